"""What a page shows of a feature: its explanations, and its top samples token by token."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import duckdb

from saelake import queries

FeatureKey = tuple[str, int]
"""(sae_id, feature_id)"""
N_SAMPLES = 5
VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True)
class Token:
    """One token of a sample."""

    text: str
    is_top: bool
    is_template: bool
    strength: int
    """0 to 4: its activation beside the strongest of the tokens shown; 0 does not fire"""


@dataclass(frozen=True)
class Sample:
    """One prompt around the token on which a feature fires most."""

    activation: float
    """on that token"""
    token: str
    tokens: Sequence[Token]
    label: str
    category: str | None
    prompt_id: int


def samples_of(con: duckdb.DuckDBPyConnection, features: Iterable[tuple[int | str, int]]) -> dict[FeatureKey, list[Sample]]:
    """The top samples of features, given as (layer or sae_id, feature_id); features that fire nowhere but on BOS are absent."""
    rows = queries.run(con, "sample_tokens", features=list(features), n=N_SAMPLES).fetchall()
    grouped: dict[FeatureKey, dict[int, list[tuple[object, ...]]]] = defaultdict(lambda: defaultdict(list))
    for _, sae_id, feature_id, rank, *row in rows:
        grouped[sae_id, feature_id][rank].append(tuple(row))
    return {key: [_sample(tokens) for tokens in by_rank.values()] for key, by_rank in grouped.items()}


def quantiles_of(con: duckdb.DuckDBPyConnection, feature: tuple[int | str, int]) -> list[tuple[int, Sample]]:
    """Samples of one feature from weak to strong, each with the part of its activations that it stands for, 1 the weakest."""
    rows = queries.run(con, "quantile_tokens", features=[feature]).fetchall()
    grouped: dict[int, list[tuple[object, ...]]] = defaultdict(list)
    for _, _, quantile, *row in rows:
        grouped[quantile].append(tuple(row))
    return [(quantile, _sample(tokens)) for quantile, tokens in grouped.items()]


def _sample(rows: Sequence[tuple[object, ...]]) -> Sample:
    activation, label, category, prompt_id = rows[0][:4]
    tokens = []
    strongest_here = max(float(row[-1]) for row in rows if row[-1] is not None)  # type: ignore[arg-type]
    for *_, text, role, is_top, here in rows:
        how = strength(float(here), strongest_here) if here else 0  # type: ignore[arg-type]
        tokens.append(Token(visible(str(text)), bool(is_top), role == "template", how))
    strongest = next(token.text for token in tokens if token.is_top)
    named = None if category is None else str(category)
    return Sample(float(activation), strongest, tokens, str(label), named, int(prompt_id))  # type: ignore[arg-type, call-overload]


def strength(here: float, strongest: float) -> int:
    """0 to 4: an activation beside the strongest that is shown with it; 0 does not fire."""
    return min(4, 1 + int(4 * here / strongest)) if here > 0 and strongest > 0 else 0


def visible(text: str) -> str:
    """A token with its white space to be seen, as far as it would otherwise vanish."""
    if not text.strip():
        return "".join(VISIBLE.get(letter, "␣") for letter in text) or "∅"
    return text.strip(" ")


def explanations_of(con: duckdb.DuckDBPyConnection, features: Sequence[FeatureKey]) -> Mapping[FeatureKey, list[str]]:
    """The explanations of some features; those that have none are absent."""
    found: dict[FeatureKey, list[str]] = defaultdict(list)
    asked = [f"{sae_id}/{feature_id}" for sae_id, feature_id in features]
    for sae_id, feature_id, description in con.execute(queries.step("explanations_of"), {"features": asked}).fetchall():
        found[sae_id, feature_id].append(description)
    return found
