"""The texts on which features fire most, from a lake's own activations, for the tools that show them. BOS counts for nothing.

Prompts of sets that their recipe calls restricted are left out, as in what is shared.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from saelake.analysis.meaning.explanations import KnownSae

if TYPE_CHECKING:
    from saelake.lake import OpenLake

TOPS = 20
"""Texts a feature at most."""
STRONGEST = """
with shown as (
    select prompt_id from prompts
    where n_tokens > 0 and not list_contains($restricted, "set")
),

bos as (select prompt_id, pos from tokens where role = 'bos'),

fired as (
    select a.feature_id, a.prompt_id, a.pos, a.activation
    from activations as a
    semi join shown on shown.prompt_id = a.prompt_id
    anti join bos on bos.prompt_id = a.prompt_id and bos.pos = a.pos
    where a.layer = $layer and a.sae_id = $sae_id
)

select feature_id, prompt_id, max(activation) as activation, min_by(pos, (-activation, pos)) as pos,
    list(pos order by pos) as places, list(activation order by pos) as activations
from fired
group by feature_id, prompt_id
qualify row_number() over (partition by feature_id order by max(activation) desc, prompt_id) <= $tops
order by feature_id, activation desc, prompt_id
"""


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
    """The prompt sets whose text is not passed on."""
    told = opened.sql("select distinct about ->> '$.prompts' from runs where about ->> '$.prompts' is not null").fetchall()
    return sorted({one["set"] for (text,) in told for one in json.loads(text) if one.get("restricted")})


@dataclass(frozen=True)
class Tops:
    """What the features of a study fire on most."""

    opened: "OpenLake"

    def of(self, sae: KnownSae) -> Iterator[Top]:
        """The texts of all features of an SAE, feature by feature."""
        asked = {"restricted": self._restricted, "layer": sae.layer, "sae_id": sae.sae_id, "tops": TOPS}
        found: list[tuple[Any, ...]] = self.opened.sql(STRONGEST, asked).fetchall()
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
