"""Documents whose commands are run, block by block, and show what was printed.

    ```console          one command, `$ saelake ...`, and what it prints; an argument in quotes may go over several lines
    ```sql              a statement; a ```text block right after it shows its answer
    ```python           a program; a ```text block right after it shows what it prints

Every document is run in a folder that holds `lake` (the embedded study) and `planted` (the planted one, with atlas and audit).

Beside this file stand the makers of what documents show: pages made from code, tables made from lakes, pictures.
"""

import contextlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from saelake import cli
from tests.conftest import ROOT
from tests.forked import Forks

BLOCK = re.compile(
    r"```console\n(?P<console>\$ [^\"\n]*(?:\"[^\"]*\"[^\"\n]*)*)\n(?P<printed>(?:(?!```).*\n)*)```"
    r"|```(?P<language>sql|python)\n(?P<code>(?:(?!```).*\n)*)```(?:\n\n```text\n(?P<answer>(?:(?!```).*\n)*)```)?"
)
ENVIRONMENT = {"SAELAKE_LAKE": "lake", "COLUMNS": "120", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """One block of a document: what is run, and what it is shown to print; None if nothing is shown."""

    language: str
    code: str
    shown: str | None

    def written(self, output: str) -> str:
        """The block with other output."""
        if self.language == "console":
            return f"```console\n$ {self.code}\n{output}```"
        answer = "" if self.shown is None else f"\n\n```text\n{output}```"
        return f"```{self.language}\n{self.code}```{answer}"


def documents() -> list[Path]:
    """README.md and everything under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(document: Path) -> list[Block]:
    """What a document has run."""
    return [block_of(found) for found in BLOCK.finditer(document.read_text(encoding="utf-8"))]


def block_of(found: re.Match[str]) -> Block:
    """The block that BLOCK found."""
    if found["console"]:
        return Block("console", found["console"][2:], found["printed"])
    return Block(found["language"], found["code"], found["answer"])


def prepare(folder: Path, lake: Path, planted: Path) -> None:
    """Fills the folder in which a document is run."""
    (folder / "lake").symlink_to(lake.resolve())
    (folder / "planted").symlink_to(planted.resolve())


def programs(hub: Path) -> Forks:
    """What the documents' programs run in; `hub` is where they keep what they take from the hub."""
    return Forks(env=ENVIRONMENT | {"HF_HOME": str(hub), "PYTHONWARNINGS": "ignore"})


def printed(block: Block, folder: Path, running: Forks) -> str:
    """What a block prints in a prepared folder; `running` is made by `programs`."""
    output = _program(block.code, folder, running) if block.language == "python" else _command(block, folder)
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def _program(code: str, folder: Path, running: Forks) -> str:
    done = running.run("python", "-c", code, cwd=folder)
    assert done.code == 0, f"{code}: {done.err}"
    return done.out


def _command(block: Block, folder: Path) -> str:
    words = shlex.split(block.code) if block.language == "console" else ["saelake", "sql", "-"]
    assert words[0] == "saelake", f"not a saelake command: {block.code}"
    given = block.code if block.language == "sql" else None
    with contextlib.chdir(folder):
        done = CliRunner().invoke(cli.main, words[1:], input=given, env=ENVIRONMENT)
    assert done.exit_code == 0, f"{block.code}: {done.output}"
    return done.stdout


def same_but_for_rounding(shown: str, now: str, tolerance: float = 0.05) -> bool:
    """Equal words, and numbers equal to 5%: another processor rounds differently, and that may move a count a little."""
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", now).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(now), strict=True)
    numbers = ((float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs)
    return all(abs(a - b) <= tolerance * max(abs(a), abs(b)) for a, b in numbers)
