"""JSON that a stranger wrote, read whole: bounded, and every name once."""

import gzip
import json
from pathlib import Path
from typing import Any

from saelake.ingest.inputs import open_input, open_text, unpacked
from saelake.warehouse.errors import UserError, one_line

MAX_CHARACTERS = 2**29
MAX_VALUES = 2**24
"""Values that a text may hold: each takes some hundred bytes, however few letters it has."""


def read_json(file: Path, owner: str) -> Any:
    """What a .json file, plain or with .gz behind, holds; raises UserError for a damaged or a far too large one."""
    with open_input(file, owner) as stream:
        try:
            text = open_text(unpacked(stream) if file.name.lower().endswith(".gz") else stream).read(MAX_CHARACTERS + 1)
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"it has more than {MAX_CHARACTERS:,} characters")
            check_values(text)
            return json.loads(text, object_pairs_hook=_once, parse_constant=_refused)
        except (ValueError, OSError, EOFError, RecursionError, gzip.BadGzipFile) as error:
            raise UserError(f"{owner}: {file.name} is not complete JSON ({one_line(error)})") from error


def check_values(text: str) -> None:
    """Raises ValueError for JSON of so many values that they would fill the memory."""
    n_values = sum(map(text.count, ",[{"))
    if n_values > MAX_VALUES:
        raise ValueError(f"it has {n_values:,} values, and {MAX_VALUES:,} may be read")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} stands twice in an object")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number")
