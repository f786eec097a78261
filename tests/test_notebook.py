"""The notebook of docs/ runs from top to bottom, without a browser."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_every_cell_of_the_notebook_runs(organism_lake: Path, tmp_path: Path) -> None:
    page, notebook = tmp_path / "explore.html", tmp_path / "explore.py"
    shutil.copy(ROOT / "docs" / "explore.py", notebook)  # marimo writes beside it
    command = [sys.executable, "-m", "marimo", "export", "html", str(notebook), "-o", str(page)]
    environment = os.environ | {"SAELAKE_LAKE": str(organism_lake), "PYTHONPATH": str(ROOT), "MARIMO_SKIP_UPDATE_CHECK": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "features_firing" in page.read_text(encoding="utf-8")
