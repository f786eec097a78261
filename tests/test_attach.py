"""Every line by which another tool reads a lake or a shared set gives all its rows, where the tool's package is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import saelake
from saelake.formats.registry import Asked
from saelake.formats.transfer import write_out
from saelake.warehouse.sharing.share import share
from tests.attach import LINES, Attached
from tests.lakes import build_lake


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attach")
    lake = build_lake(folder / "lake")
    share(lake, folder / "set")
    write_out(lake.root, "catalog", folder / "out", Asked())
    return folder


@pytest.mark.parametrize("one", [one for one in LINES if one.package], ids=lambda one: one.tool)
def test_a_line_gives_every_prompt(one: Attached, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one.package is not None
    package = pytest.importorskip(one.package, reason=f"{one.package} is not installed")
    if one.package == "pyspark":
        if shutil.which("java") is None:
            pytest.skip("there is no Java here")
        # In a process of its own: paths are relative to where Java was started, and another test may have started it elsewhere.
        code = f"import pyspark.sql\nprint(eval({one.count!r}, {{'_': {one.line}}}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
        assert done.stdout.split()[-1:] == ["6"], done.stderr
        return
    monkeypatch.chdir(folder)
    names = {one.package: package, "saelake": saelake}
    assert eval(one.count, {"_": eval(one.line, names)}) == 6
