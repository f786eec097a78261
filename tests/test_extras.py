"""What an installation without extras does, and the sentence that names the extra which a command needs."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from saelake.extras import EXTRAS, missing, require
from saelake.warehouse.errors import UserError
from tests.lakes import build_lake

ROOT = Path(__file__).resolve().parent.parent
WITHOUT = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

absent = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, Absent())
from click.testing import CliRunner
from saelake.cli import main

done = [CliRunner().invoke(main, command) for command in json.loads(sys.argv[2])]
print(json.dumps([(one.exit_code, one.output) for one in done]))
"""


def run_without(absent: list[str], commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit status and output of each command, in a process that cannot import some modules."""
    arguments = [json.dumps(absent), json.dumps(commands)]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return [tuple(one) for one in json.loads(done.stdout)]


def test_without_extras_a_lake_is_asked_shared_added_to_checked_and_reported(tmp_path: Path) -> None:
    lake = str(build_lake(tmp_path / "lake").root)
    absent = sorted({module for modules in EXTRAS.values() for module in modules})
    commands = [
        ["sql", "select count(*) as n from prompts", "--lake", lake, "--format", "csv"],
        ["query", "candidates", "--k", "1", "--lake", lake],
        ["share", str(tmp_path / "set"), "--lake", lake],
        ["add", str(tmp_path / "set"), "--lake", str(tmp_path / "other")],
        ["check", "--lake", str(tmp_path / "other")],
        ["report", "--lake", lake, "--output", str(tmp_path / "report.html")],
        ["runs", "--lake", lake],
        ["synth", "--help"],
    ]
    done = run_without(absent, commands)
    assert [command[0] for command, (code, _) in zip(commands, done, strict=True) if code] == [], done
    assert done[0][1].split() == ["n", "6"]
    assert (tmp_path / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("module", EXTRAS["compute"])
def test_a_command_that_computes_names_the_extra(module: str, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    commands = [[name, "organism", "--lake", str(lake)] for name in ("ingest", "analyze", "status")]
    needed = f"Error: this command needs the extra compute: pip install 'saelake[compute]' ({module} is not installed)\n"
    for code, said in run_without([module], commands if module == "torch" else commands[:2]):
        assert (code, said) == (1, needed)
    assert not lake.exists()


def test_a_name_of_the_package_names_the_extra() -> None:
    asked = "import saelake\ntry:\n    saelake.Engine\nexcept saelake.UserError as error:\n    print(error)"
    code = WITHOUT.partition("from click")[0] + asked
    done = subprocess.run([sys.executable, "-c", code, '["torch"]'], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "saelake.Engine needs the extra compute: pip install 'saelake[compute]' (torch is not installed)\n"


def test_help_and_completion_do_without_what_is_not_installed() -> None:
    asked = "import pydoc, rlcompleter, saelake\nprint('sparse' in pydoc.render_doc(saelake), dir(saelake).count('Engine'))\n"
    asked += "print(rlcompleter.Completer({'saelake': saelake}).complete('saelake.sp', 0))"
    code = WITHOUT.partition("from click")[0] + asked
    done = subprocess.run([sys.executable, "-c", code, '["torch"]'], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True 0\nsaelake.sparse(\n"


def test_every_extra_is_named_and_known() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(extras) - {"dev"} == set(EXTRAS)
    assert {extra: len(packages) for extra, packages in extras.items() if extra != "dev"} == {
        e: len(m) for e, m in EXTRAS.items()
    }


def test_what_no_extra_brings_is_no_extra() -> None:
    assert missing(ModuleNotFoundError("No module named 'nonsense'", name="nonsense")) is None
    assert missing(ImportError("cannot import name 'x' from 'torch'", name="torch")) is None  # it is there: a fault of its own


def test_require_names_extra_and_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "gguf", ("json", "module_that_is_absent"))
    require("gguf", "model.gguf", "json")
    with pytest.raises(
        UserError, match=r"^model.gguf needs the extra gguf: pip install 'saelake\[gguf\]' \(module_that_is_absent is"
    ):
        require("gguf", "model.gguf")
