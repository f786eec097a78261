"""Documents whose commands are run: ```console blocks in Markdown, `$ saelake ...` lines followed by what they print.

python -m tests.documents LAKE        # runs the commands on a lake and writes their output into the documents
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```console\n(?P<command>\$ .*)\n(?P<output>(?:(?!```).*\n)*)```")
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?")


def documents() -> list[Path]:
    """README.md and everything under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(document: Path) -> list[tuple[str, str]]:
    """(command, shown output) of every console block."""
    return [(found["command"][2:], found["output"]) for found in BLOCK.finditer(document.read_text(encoding="utf-8"))]


def printed(command: str, lake: Path) -> str:
    """What a `saelake ...` command prints on a lake."""
    words = shlex.split(command)
    assert words[0] == "saelake", f"not a saelake command: {command}"
    environment = os.environ | {"SAELAKE_LAKE": str(lake), "COLUMNS": "120"}
    run = [sys.executable, "-m", "cli", *words[1:]]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def same_but_for_rounding(shown: str, now: str, tolerance: float = 0.05) -> bool:
    """Equal words, and numbers equal to 5%: another processor rounds otherwise, and that may move a count a little."""
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", now).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(now), strict=True)
    numbers = ((float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs)
    return all(abs(a - b) <= tolerance * max(abs(a), abs(b)) for a, b in numbers)


def main(lake: Path) -> None:
    """Brings all documents up to date."""
    for document in documents():
        text = document.read_text(encoding="utf-8")
        renewed = BLOCK.sub(lambda m: f"```console\n{m['command']}\n{printed(m['command'][2:], lake)}```", text)
        document.write_text(renewed, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
