"""Texts on which features fire, from another tool, as rows of `examples`: numbered, checked, strongest first."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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
    tokens: list[str] | None = None
    values: list[float] | None = None


def number(value: Any, where: str) -> float:
    """A finite number; raises UserError for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or isinstance(value, bool):
        raise UserError(f"{where}: {str(value)[:40]!r} is no finite number")
    return found


def example_rows(examples: Sequence[Example], source: str) -> Rows:
    """Rows of examples, of whichever order."""
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
        "tokens": [None if one.tokens is None else json.dumps(one.tokens, ensure_ascii=False) for one in ordered],
        "values": [one.values for one in ordered],
        "source": [source] * len(ordered),
    }
    return Rows.of(EXAMPLES, columns)


def text_of(value: Any, what: str, where: str) -> str:
    """A text without halves of characters."""
    if not isinstance(value, str) or not is_unicode(value):
        raise UserError(f"{where}: its {what} is no text")
    return value
