"""The texts on which features fire most, from a lake's own activations, for the tools that show them. BOS counts for nothing.

Prompts of sets that their recipe calls restricted are left out, as in what is shared.
"""

import json
from collections.abc import Iterator
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


def saes_of(opened: "OpenLake", asked: str | None) -> list[KnownSae]:
    """The study's SAEs, or the one that is asked for."""
    from saelake.formats.joined import Joined

    rows = opened.sql("select sae_id, name, layer, width from saes order by layer, sae_id").fetchall()
    known = Joined(opened.lake, opened.studies[0], True, tuple(KnownSae(*row) for row in rows))
    return [known.named(asked, "--sae")] if asked is not None else list(known.saes)


def restricted_sets(opened: "OpenLake") -> list[str]:
    """The prompt sets whose text is not passed on."""
    told = opened.sql("select distinct about ->> '$.prompts' from runs where about ->> '$.prompts' is not null").fetchall()
    return sorted({one["set"] for (text,) in told for one in json.loads(text) if one.get("restricted")})


def tops(opened: "OpenLake", sae: KnownSae) -> Iterator[Top]:
    """The texts of all features of an SAE, feature by feature."""
    texts: dict[int, tuple[list[str], str]] = {}
    told = {"restricted": restricted_sets(opened), "layer": sae.layer, "sae_id": sae.sae_id, "tops": TOPS}
    found: list[tuple[Any, ...]] = opened.sql(STRONGEST, told).fetchall()
    asked = {row[1] for row in found}
    rows = opened.sql(
        "select prompt_id, list(token order by pos), any_value(text) from tokens join prompts using (prompt_id) "
        "group by prompt_id"
    ).fetchall()
    texts = {row[0]: (row[1], row[2]) for row in rows if row[0] in asked}
    number, before = 0, -1
    for feature_id, prompt_id, activation, pos, places, activations in found:
        number = number + 1 if feature_id == before else 0
        before = feature_id
        tokens, context = texts[prompt_id]
        values = [0.0] * len(tokens)
        for place, value in zip(places, activations, strict=True):
            values[place] = value
        yield Top(feature_id, number, activation, pos, tokens, values, context)
