"""The notebooks of docs/ run from top to bottom, without a browser."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(("name", "shown"), [("explore", "features_firing"), ("library", "p_target")])
def test_every_cell_of_a_notebook_runs(organism_lake: Path, tmp_path: Path, name: str, shown: str) -> None:
    page, notebook = tmp_path / f"{name}.html", tmp_path / f"{name}.py"
    shutil.copy(ROOT / "docs" / f"{name}.py", notebook)  # marimo writes beside it
    command = [sys.executable, "-m", "marimo", "export", "html", str(notebook), "-o", str(page)]
    environment = os.environ | {"SAELAKE_LAKE": str(organism_lake), "PYTHONPATH": str(ROOT), "MARIMO_SKIP_UPDATE_CHECK": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert shown in page.read_text(encoding="utf-8")
