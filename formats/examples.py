"""Texts on which features fire, from another tool, as rows of `examples`: numbered, checked, strongest first."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from saelake.analysis.meaning.explanations import KnownSae
from saelake.warehouse.errors import UserError
from saelake.warehouse.literals import is_unicode
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import EXAMPLES


class Example(NamedTuple):
    """One text."""

    sae: KnownSae
    feature_id: int
    activation: float
    context: str
    token: str | None = None
    pos: int | None = None
    tokens: str | None = None
    """As a JSON list."""
    values: np.ndarray | None = None


def number(value: Any, where: str) -> float:
    """A finite number; raises UserError for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or isinstance(value, bool):
        raise UserError(f"{where}: {str(value)[:40]!r} is not a finite number")
    return found


def position(value: Any, where: str) -> int:
    """A position in a text, from 0 up."""
    found = number(value, where)
    if not 0 <= found < 2**31 or found != int(found):
        raise UserError(f"{where}: {str(value)[:40]!r} is not a position")
    return int(found)


def example_rows(examples: Sequence[Example], sources: Mapping[str, str]) -> Rows:
    """Rows of examples, of whichever order; sources by sae_id."""
    ordered = sorted(examples, key=lambda one: (one.sae.layer, one.sae.sae_id, one.feature_id, -one.activation, one.context))
    seen: dict[tuple[str, int], int] = {}
    numbers = []
    for one in ordered:
        place = one.sae.sae_id, one.feature_id
        numbers.append(seen.get(place, 0))
        seen[place] = numbers[-1] + 1
    columns: dict[str, Any] = {
        "sae_id": [one.sae.sae_id for one in ordered],
        "layer": [one.sae.layer for one in ordered],
        "feature_id": [one.feature_id for one in ordered],
        "number": numbers,
        "activation": [one.activation for one in ordered],
        "token": [one.token for one in ordered],
        "pos": [one.pos for one in ordered],
        "context": [one.context for one in ordered],
        "tokens": [one.tokens for one in ordered],
        "values": [one.values for one in ordered],
        "source": [sources[one.sae.sae_id] for one in ordered],
    }
    return Rows.of(EXAMPLES, columns)


def text_of(value: Any, what: str, where: str) -> str:
    """A text without halves of characters."""
    if not isinstance(value, str) or not is_unicode(value):
        raise UserError(f"{where}: its {what} is not text")
    return value
