"""What a cell of a table means, whichever format it was written in: missing, text, or a value to compare.

CSV knows neither null nor true, pandas writes True, 1.0 and nan, JSON true, 1 and null: equal values compare equal.
"""

import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import TypeGuard

Cell = object

MISSING = frozenset(("", "<NA>", "#N/A", "#NA", "N/A", "n/a", "NA", "NULL", "null", "NaN", "nan", "-NaN", "-nan", "NaT", "None"))
"""How a missing value is spelt where a format has no other way: what pandas takes for one, and writes for one."""
BOOLEANS = ("true", "false")
AS_NUMBER = {"true": "1", "false": "0", "1": "true", "0": "false"}
NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d{1,17})?([eE][+-]?\d{1,2})?")


def is_missing(cell: Cell) -> bool:
    """Whether a cell holds nothing: null, not a number, blank, or one of the words for it."""
    if isinstance(cell, str):
        return cell.strip() in MISSING
    return cell is None or (isinstance(cell, float | Decimal) and math.isnan(cell))


def is_value(cell: Cell) -> TypeGuard[str | int | float | Decimal | date | datetime | time]:
    """Whether a cell is one value, no list, table or bytes."""
    return isinstance(cell, str | int | float | Decimal | date | datetime | time)


def as_text(cell: Cell) -> str:
    """A cell as text, the same from typed formats: true and false in lower case, whole numbers without a point."""
    if isinstance(cell, bool):
        return BOOLEANS[0] if cell else BOOLEANS[1]
    if isinstance(cell, float | Decimal) and math.isfinite(cell) and cell == int(cell):
        return str(int(cell))
    return str(cell)


def key(cell: Cell) -> str:
    """What two cells share when they are the same value: 1, 1.0, "1" and "1.0"; true, "True" and "TRUE"; all that is missing."""
    if is_missing(cell):
        return ""
    text = as_text(cell)
    if text.casefold() in BOOLEANS:
        return text.casefold()
    return as_text(Decimal(text).normalize()) if NUMBER.fullmatch(text) else text


def same(ours: Cell, theirs: Cell) -> bool:
    """Whether two cells are the same value, in whichever format each was written; 1 and 0 are also true and false."""
    first, second = key(ours), key(theirs)
    return first == second or AS_NUMBER.get(first) == second


def matches(cell: Cell, wanted: str | int | float | bool) -> bool:
    """Whether a cell is what a recipe asks for; two texts must be the same text, unless they spell a truth value or nothing."""
    if isinstance(cell, str) and isinstance(wanted, str) and key(cell) not in ("", *BOOLEANS):
        return cell == wanted
    return same(cell, wanted)


def entry(cell: Cell, names: Mapping[str, str]) -> str | None:
    """The key of a recipe's map that stands for a cell; the keys are text in TOML, whatever they mean."""
    if isinstance(cell, str) and cell in names:
        return cell
    equal = [name for name in names if key(name) == key(cell)]
    return next(iter(equal or [name for name in names if same(name, cell)]), None)
