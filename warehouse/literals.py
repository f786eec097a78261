"""Values as SQL, where a statement takes no parameters, and the one way in which Parquet is read by SQL."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard

MOST_DIGITS = 18
"""Of a number of 63 bits."""
GLOB = re.compile(r"[*?\[]")
"""What DuckDB takes for a pattern in a path; in brackets it stands for itself."""
ESCAPED_LAKE = r"regexp_replace(getvariable('lake'), '([*?[])', '[\1]', 'g')"
"""SQL that does what `paths` does to the variable `lake`, which is only known when a statement runs."""


def is_unicode(value: object) -> TypeGuard[str]:
    """Whether a value is text of whole characters. JSON can spell halves of some, and what a terminal gives that is not text has
    them too; nothing can store them.
    """
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def as_id(text: str) -> int | None:
    """The whole number from 0 up that plain digits spell; None for any other text, and for more digits than an id has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS else None


def as_integer(text: str) -> int | None:
    """`as_id`, with or without a minus sign."""
    found = as_id(text.removeprefix("-"))
    return -found if found is not None and text.startswith("-") else found


def literal(text: str) -> str:
    """A safe SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """A SQL list of strings."""
    return "[" + ", ".join(map(literal, texts)) + "]::varchar[]"


def exactly(path: str | Path) -> str:
    """The pattern that only this path fits, whatever characters it holds."""
    return GLOB.sub(lambda found: f"[{found[0]}]", str(path))


def paths(files: Iterable[str | Path]) -> str:
    """A SQL list of exactly these files."""
    return literals(map(exactly, files))


def parquet(files: str) -> str:
    """Rows of Parquet files, for a from clause; `files` is SQL. Nothing in a path is data: columns are what the files hold."""
    return f"read_parquet({files}, hive_partitioning = false)"
