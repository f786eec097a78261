"""Functions that write one file of a kind into a folder, and say where it is."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def as_json(name: str, content: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return folder / name

    return write


def as_lines(name: str, rows: list[dict[str, object]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return folder / name

    return write


def as_csv(name: str, rows: Sequence[Mapping[str, object]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        return folder / name

    return write


def as_text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return write
