"""Fixtures that several test files share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the hub


@pytest.fixture(scope="session")
def organism_lake(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The lake that `saelake analyze organism` makes, once for all tests and test processes; do not change it."""
    base = tmp_path_factory.getbasetemp()
    # Processes that test side by side share the folder above theirs; of two that ask for a run, one computes and one waits.
    lake = (base if worker_id == "master" else base.parent) / "organism" / "lake"
    command = [sys.executable, "-m", "cli", "analyze", "organism", "--lake", str(lake)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return lake
