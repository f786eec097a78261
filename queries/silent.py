"""Features that a question is asked about and that have nothing to show: which of them, and why."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from saelake.queries.loader import Query, load
from saelake.queries.reasons import why_empty

if TYPE_CHECKING:
    import duckdb

    from saelake.queries.features import Features

MOST_SHOWN = 10
"""Features that a sentence lists."""


class Feature(NamedTuple):
    layer: int
    sae_id: str
    feature_id: int


def why_no_rows(con: "duckdb.DuckDBPyConnection", name: str, values: Mapping[str, Any]) -> list[str]:
    """Sentences that explain why a question has no rows: stages without input, else features with nothing to show."""
    asked = load(name)
    return why_empty(con, asked.sql, " ".join(map(str, values.values()))) or _silent(con, asked, values)


def _silent(con: "duckdb.DuckDBPyConnection", asked: Query, values: Mapping[str, Any]) -> list[str]:
    from saelake.queries.features import resolve

    said: list[str] = []
    if "token" in values:
        said += _token(con, str(values["token"]))
    for declared in asked.parameters:
        if declared.type != "features":
            continue
        given = resolve(con, declared, values.get(declared.name))
        features = [Feature(*sae, feature_id) for sae, ids in given.items() for feature_id in ids]
        if not features:
            said.append(f"{declared.name} names no feature")
        elif len(features) == 1 and any(one.name == "pairs" for one in asked.parameters):
            said.append(f"{declared.name} names one feature, and a pair has two")
        else:
            read = [table for table in REASONS if re.search(rf"\b{table}\b", asked.sql)]
            said += [sentence for table in read for sentence in REASONS[table](con, given, features, _counts_bos(asked, values))]
    return said


def _token(con: "duckdb.DuckDBPyConnection", token: str) -> list[str]:
    """That no token is spelled so, with those that come near; nothing where one is."""
    near = "select distinct token from tokens where contains(lower(token), lower(trim(?))) order by length(token), token"
    found = [one for (one,) in con.execute(near, [token]).fetchall()]
    if any(one.strip().lower() == token.strip().lower() for one in found):
        return []
    holding = f"; match = contains also finds {', '.join(map(repr, found[:MOST_SHOWN]))}" if found else ""
    return [f"no token of these prompts is {token!r}{holding}"]


def _counts_bos(asked: Query, values: Mapping[str, Any]) -> bool:
    """Whether the question counts what fires on BOS tokens."""
    declared = next((one for one in asked.parameters if one.name == "bos"), None)
    return declared.literal(values.get("bos", declared.default)) == "true" if declared else "'bos'" not in asked.sql


def _activations(con: "duckdb.DuckDBPyConnection", given: "Features", features: Sequence[Feature], bos: bool) -> list[str]:
    from saelake.queries.features import subquery

    firing = f"""
        select a.sae_id, a.feature_id, bool_or(t.role <> 'bos')
        from {subquery(con, "activations", given)} as a
        join tokens as t on t.prompt_id = a.prompt_id and t.pos = a.pos
        group by a.sae_id, a.feature_id
    """
    beyond_bos = {(sae_id, feature_id): beyond for sae_id, feature_id, beyond in con.execute(firing).fetchall()}
    on_bos = {one for one, beyond in beyond_bos.items() if not beyond}
    return [
        *_of("fire on no token", features, [one for one in features if one[1:] not in beyond_bos]),
        *_of(
            "fire on BOS tokens alone, which do not count", features, [one for one in features if one[1:] in on_bos and not bos]
        ),
    ]


def _reactivations(con: "duckdb.DuckDBPyConnection", given: "Features", features: Sequence[Feature], _: bool) -> list[str]:
    silent = _without_rows(con, "reactivations", given, features)
    return _of("fire in no ablated pass that was captured", features, silent)


def _embeddings(con: "duckdb.DuckDBPyConnection", given: "Features", features: Sequence[Feature], _: bool) -> list[str]:
    silent = _without_rows(con, "fm_embeddings", given, features)
    return _of("have no embedding, since they fire on no prompt that the machine was trained on", features, silent)


def _cosines(con: "duckdb.DuckDBPyConnection", given: "Features", features: Sequence[Feature], _: bool) -> list[str]:
    from saelake.queries.features import subquery

    others = con.execute(
        f"select distinct other_sae_id, other_feature_id from {subquery(con, 'decoder_cosines', given)}"
    ).fetchall()
    if {one[1:] for one in features} & set(others):
        return []
    return ["no decoder cosine between them is recorded: those of candidates are, from redundancy.min_cosine on"]


def _without_rows(con: "duckdb.DuckDBPyConnection", table: str, given: "Features", features: Sequence[Feature]) -> list[Feature]:
    from saelake.queries.features import subquery

    found = set(con.execute(f"select distinct sae_id, feature_id from {subquery(con, table, given)}").fetchall())
    return [one for one in features if one[1:] not in found]


def _of(what: str, features: Sequence[Feature], silent: Sequence[Feature]) -> list[str]:
    """That these of the features do `what`, as a sentence; nothing if there are none."""
    if not silent:
        return []
    several = {
        layer for layer in {one.layer for one in silent} if len({one.sae_id for one in features if one.layer == layer}) > 1
    }
    named = ", ".join(f"{one.sae_id if one.layer in several else one.layer}:{one.feature_id}" for one in silent[:MOST_SHOWN])
    more = f" and {len(silent) - MOST_SHOWN:,} more" if len(silent) > MOST_SHOWN else ""
    return [f"{len(silent):,} of {len(features):,} features asked for {what}: {named}{more}"]


REASONS = {
    "activations": _activations,
    "reactivations": _reactivations,
    "fm_embeddings": _embeddings,
    "decoder_cosines": _cosines,
}
"""table that questions read features from -> what it lacks of them"""
