"""The walks of CONTRIBUTING.md, walked in a copy of the repository.

A block with title="PATH" is a file, or, as a diff, changes of one: context and what goes (- and space) must stand in it once.
Hunks are apart by @@. A console block has commands, each behind `$ `; what stands below the last one is what it prints.

python -m tests.test_contributing PLANTED      # walks on a copy of this lake and writes what the commands print into the document
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.documents import same_but_for_rounding
from tests.forked import LIBRARIES, Forks

DOCUMENT = ROOT / "CONTRIBUTING.md"
FOLDERS = ("analysis", "commands", "docs", "formats", "ingest", "queries", "recipes", "saelake", "tests", "warehouse")
STEP = re.compile(
    r'```(?P<language>\w+) title="(?P<path>[^"]+)"\n(?P<text>.*?)```|```console\n(?P<console>.*?)```',
    re.DOTALL,
)
ENVIRONMENT = {
    "COLUMNS": "120",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONWARNINGS": "ignore",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
"""The plugins of packages that are imported already would warn that pytest comes too late to rewrite them."""


def walks() -> dict[str, str]:
    """Title -> text of every section that has steps."""
    parts = re.split(r"^## (.+)\n", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {title: text for title, text in zip(parts[::2], parts[1::2], strict=True) if STEP.search(text)}


def copied(folder: Path, planted: Path) -> Path:
    """A copy of what is run, compiled as far as it is, with a planted lake in it."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    for name in ("cli.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(planted, folder / "planted", symlinks=True)
    return folder


def walk(text: str, folder: Path, running: Forks) -> str:
    """Takes all steps of a walk in a copy; gives its text with what the commands print now."""

    def step(found: re.Match[str]) -> str:
        if found["console"] is not None:
            *commands, last = re.findall(r"^\$ (.+)$", found["console"], re.MULTILINE)
            for command in commands:
                run(command, folder, running)
            shown = "\n".join(f"$ {command}" for command in (*commands, last))
            return f"```console\n{shown}\n{run(last, folder, running)}```"
        path = folder / found["path"]
        if found["language"] == "diff":
            path.write_text(changed(path.read_text("utf-8"), found["text"], found["path"]), "utf-8")
        else:
            assert not path.exists(), f"{found['path']} is there already"
            path.write_text(found["text"], "utf-8")
        return found[0]

    return STEP.sub(step, text)


def changed(text: str, diff: str, name: str) -> str:
    """A file's text after the hunks of a diff that has no line numbers."""
    for hunk in diff.split("@@\n"):
        lines = [line for line in hunk.splitlines(keepends=True) if line.strip()]
        before = "".join(line[1:] for line in lines if line[0] in " -")
        assert text.count(before) == 1, f"{name} has this {text.count(before)} times:\n{before}"
        after = "".join((line[1:] if line[0] in " +" else "") for line in hunk.splitlines(keepends=True))
        text = text.replace(before, after)
    return text


def forks() -> Forks:
    """What the walks' commands run in: of saelake itself, the copy that is walked in is imported."""
    return Forks(LIBRARIES, ENVIRONMENT)


def run(command: str, folder: Path, running: Forks) -> str:
    """What a command prints in a copy."""
    words = shlex.split(command)
    program = ["python", "-m", "saelake.cli"] if words[0] == "saelake" else words[:1]
    done = running.run(*program, *words[1:], cwd=folder, latest=600)
    assert done.code == 0, f"{command}: {done.out}{done.err}"
    return "".join(f"{line.rstrip()}\n" for line in done.out.splitlines())


def ruff(command: str, files: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "ruff", *command.split(), "--no-cache", *files]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def running() -> Iterator[Forks]:
    with forks() as one:
        yield one


def test_there_are_five_walks() -> None:
    assert list(walks()) == ["A question", "A table", "A command", "A judge", "A kind of SAE"]


@pytest.mark.parametrize("title", walks())
def test_a_walk_leads_where_it_says(title: str, planted_lake: Path, tmp_path: Path, running: Forks) -> None:
    text = walks()[title]
    now = walk(text, copied(tmp_path, planted_lake), running)
    assert same_but_for_rounding(text, now), f"CONTRIBUTING.md is out of date (make docs):\n{now}"
    files = [found["path"] for found in STEP.finditer(text) if str(found["path"]).endswith(".py")]
    for command in ("check", "format --check") if files else ():
        done = ruff(command, files, tmp_path)
        assert done.returncode == 0, f"make test would stop at lint:\n{done.stdout}{done.stderr}"


def main(planted: Path) -> None:
    """Brings the document up to date."""
    for text in walks().values():
        with tempfile.TemporaryDirectory() as folder, forks() as running:
            now = walk(text, copied(Path(folder), planted), running)
        DOCUMENT.write_text(DOCUMENT.read_text(encoding="utf-8").replace(text, now), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
