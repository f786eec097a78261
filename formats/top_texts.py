"""The texts on which features fire most, from a lake's own activations, for the tools that show them. BOS counts for nothing.

Prompts of sets that their recipe calls restricted are left out, as in what is shared.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from saelake import queries
from saelake.analysis.meaning.explanations import KnownSae
from saelake.warehouse.sharing.marks import restricted_sets as marked

if TYPE_CHECKING:
    from saelake.lake import OpenLake

TOPS = 20
"""Texts a feature at most."""


class Top(NamedTuple):
    """One text of a feature."""

    feature_id: int
    number: int
    """From 0, strongest first."""
    activation: float
    pos: int
    tokens: list[str]
    values: list[float]
    """On each token."""
    context: str


def restricted_sets(opened: "OpenLake") -> list[str]:
    """The prompt sets whose text is not passed on, as in what is shared."""
    told = opened.sql("select about ->> '$' from all_runs.runs where about ->> '$.prompts' is not null").fetchall()
    return sorted(marked(json.loads(text) for (text,) in told))


@dataclass(frozen=True)
class Tops:
    """What the features of a study fire on most."""

    opened: "OpenLake"

    def of(self, sae: KnownSae) -> Iterator[Top]:
        """The texts of all features of an SAE, feature by feature."""
        asked = {"restricted": self._restricted, "layer": sae.layer, "sae_id": sae.sae_id, "tops": TOPS}
        found: list[tuple[Any, ...]] = self.opened.sql(queries.step("strongest_texts"), asked).fetchall()
        number, before = 0, -1
        for feature_id, prompt_id, activation, pos, places, activations in found:
            number = number + 1 if feature_id == before else 0
            before = feature_id
            tokens, context = self._texts[prompt_id]
            values = [0.0] * len(tokens)
            for place, value in zip(places, activations, strict=True):
                values[place] = value
            yield Top(feature_id, number, activation, pos, tokens, values, context)

    @cached_property
    def _restricted(self) -> list[str]:
        return restricted_sets(self.opened)

    @cached_property
    def _texts(self) -> dict[int, tuple[list[str], str]]:
        """prompt_id -> its tokens, and its text"""
        rows = self.opened.sql(
            "select prompt_id, list(token order by pos), any_value(text) from tokens join prompts using (prompt_id) "
            "group by prompt_id"
        ).fetchall()
        return {prompt_id: (tokens, text) for prompt_id, tokens, text in rows}
