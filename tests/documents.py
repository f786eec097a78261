"""Documents whose commands are run, block by block, and show what was printed.

    ```console          one command, `$ saelake ...`, and what it prints; an argument in quotes may go over several lines
    ```sql              a statement; a ```text block right after it shows its answer
    ```python           a program; a ```text block right after it shows what it prints

Every document is run in a folder that holds `lake` (the embedded study) and `planted` (the planted one, with atlas and audit).

python -m tests.documents LAKE PLANTED        # runs everything on these lakes and writes the output into the documents
python -m tests.documents                     # the pages that are made from code alone
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from saelake import cli
from tests.conftest import ROOT

BLOCK = re.compile(
    r"```console\n(?P<console>\$ [^\"\n]*(?:\"[^\"]*\"[^\"\n]*)*)\n(?P<printed>(?:(?!```).*\n)*)```"
    r"|```(?P<language>sql|python)\n(?P<code>(?:(?!```).*\n)*)```(?:\n\n```text\n(?P<answer>(?:(?!```).*\n)*)```)?"
)
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
    return [_block(found) for found in BLOCK.finditer(document.read_text(encoding="utf-8"))]


def _block(found: re.Match[str]) -> Block:
    if found["console"]:
        return Block("console", found["console"][2:], found["printed"])
    return Block(found["language"], found["code"], found["answer"])


def prepare(folder: Path, lake: Path, planted: Path) -> None:
    """Fills the folder in which a document is run."""
    (folder / "lake").symlink_to(lake.resolve())
    (folder / "planted").symlink_to(planted.resolve())


def printed(block: Block, folder: Path) -> str:
    """What a block prints in a prepared folder."""
    environment = {"SAELAKE_LAKE": "lake", "COLUMNS": "120", "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    output = _program(block.code, folder, environment) if block.language == "python" else _command(block, folder, environment)
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def _program(code: str, folder: Path, environment: dict[str, str]) -> str:
    run = [sys.executable, "-W", "ignore", "-"]
    done = subprocess.run(run, cwd=folder, env=os.environ | environment, input=code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}: {done.stderr}"
    return done.stdout


def _command(block: Block, folder: Path, environment: dict[str, str]) -> str:
    words = shlex.split(block.code) if block.language == "console" else ["saelake", "sql", "-"]
    assert words[0] == "saelake", f"not a saelake command: {block.code}"
    given = block.code if block.language == "sql" else None
    with contextlib.chdir(folder):
        done = CliRunner().invoke(cli.main, words[1:], input=given, env=environment)
    assert done.exit_code == 0, f"{block.code}: {done.output}"
    return done.stdout


def same_but_for_rounding(shown: str, now: str, tolerance: float = 0.05) -> bool:
    """Equal words, and numbers equal to 5%: another processor rounds otherwise, and that may move a count a little."""
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", now).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(now), strict=True)
    numbers = ((float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs)
    return all(abs(a - b) <= tolerance * max(abs(a), abs(b)) for a, b in numbers)


def pages() -> None:
    """Writes the pages that are made from code alone."""
    from tests import cards_page, comparison_page, formats_page, library_page, recipe_page
    from tests.protocol import PROTOCOL, protocol

    PROTOCOL.write_text(protocol(), encoding="utf-8")
    for made in (recipe_page, library_page, formats_page, cards_page, comparison_page):
        made.PAGE.write_text(made.page(), encoding="utf-8")


def main(lake: Path, planted: Path) -> None:
    """Brings all documents up to date."""
    from tests import picture, replication_page, test_contributing

    pages()
    picture.PICTURE.write_text(picture.picture(lake), encoding="utf-8")
    found = replication_page.page(replication_page.PAGE.read_text(encoding="utf-8"), lake)
    replication_page.PAGE.write_text(found, encoding="utf-8")
    test_contributing.main(planted)
    for document in documents():
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), lake, planted)
            text = document.read_text(encoding="utf-8")
            renewed = BLOCK.sub(lambda m, at=folder: _block(m).written(printed(_block(m), Path(at))), text)  # type: ignore[misc]
            document.write_text(renewed, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:])) if sys.argv[1:] else pages()
