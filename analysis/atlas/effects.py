"""Every active feature of every refused prompt ablated alone; all pairs, and some triples, of those near the answer together.

Nothing is searched and nothing is left out, so that one can see what a search has missed. The answer is the first token's:
whether it is a target token, and how probable these are.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import duckdb
import numpy as np
import pyarrow as pa

from saelake import queries
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.critical import refused_prompts
from saelake.analysis.stage import Stage, Work, searched_split
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import JOINT_EFFECTS, SINGLE_EFFECTS

NO_MEMBER = -1
"""Stands for the third feature of a pair."""


def _features(work: Work, con: duckdb.DuckDBPyConnection, prompt: int) -> dict[str, np.ndarray]:
    """What fires on a prompt; the effects are there once they are measured."""
    ids, last = [int(work.context.prompt_ids[prompt])], work.context.recipe.atlas.last_tokens
    return queries.run(con, "atlas_features", prompts=ids, last_tokens=last).fetchnumpy()


def _ablated(work: Work, prompt: int, sets: Sequence[FeatureSet]) -> dict[str, np.ndarray]:
    """Columns p_clean, p_target and flipped of a prompt under each set."""
    first = work.context.engine.next_token([Request(prompt), *(Request(prompt, one) for one in sets)])
    p_clean, flipped = first.p_target[0], ~np.isin(first.token_id[1:], work.context.subject.target_token_ids)
    return {"p_clean": np.full(len(sets), p_clean), "p_target": first.p_target[1:], "flipped": flipped}


def _single(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    shards = shards_of_split(work.context.study)
    with work.sql("prompts", "activations", "baseline") as con:
        refused = set(refused_prompts(work, con))
        for name in missing:
            yield name, [_single_effects(work, con, prompt) for prompt in shards[name] if prompt in refused]


def _single_effects(work: Work, con: duckdb.DuckDBPyConnection, prompt: int) -> Rows:
    features = _features(work, con, prompt)
    del features["effect"]
    saes = work.context.sae_numbers(features["sae_id"])
    sets = [FeatureSet.ablating([one]) for one in zip(saes.tolist(), features["feature_id"].tolist(), strict=True)]
    return Rows.of(SINGLE_EFFECTS, {**features, **_ablated(work, prompt, sets)})


def _joint(work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    shards = shards_of_split(work.context.study)
    with work.sql() as con:
        refused = refused_prompts(work, con)
        every, whole = set(refused), set(refused[: work.context.recipe.atlas.prompts or None])
        for name in missing:
            prompts = [prompt for prompt in shards[name] if prompt in every]
            yield name, [_joint_effects(work, con, prompt, prompt in whole) for prompt in prompts]


def _joint_effects(work: Work, con: duckdb.DuckDBPyConnection, prompt: int, whole: bool) -> Rows:
    """Pairs of the largest single effects, and for a prompt whose pairs are all asked for, these and the triples."""
    features, settings = _features(work, con, prompt), work.context.recipe.atlas
    drawn = {"largest": _pairs(np.argsort(-np.abs(features["effect"]), kind="stable")[: settings.largest])}
    if whole:
        last = np.flatnonzero(features["n_last_tokens"])
        drawn["last_tokens"] = _pairs(last)
        drawn["triples"] = _triples(
            last, settings.triples, np.random.default_rng([work.spec.seed, int(work.context.places[prompt])])
        )
    members = np.concatenate(list(drawn.values()))
    saes, ids = work.context.sae_numbers(features["sae_id"]), features["feature_id"]
    sets = [FeatureSet.of(saes[m], ids[m]) for m in (row[row != NO_MEMBER] for row in members)]
    columns: dict[str, object] = {
        "drawn": np.repeat(list(drawn), [len(rows) for rows in drawn.values()]),
        "prompt_id": np.full(len(members), work.context.prompt_ids[prompt]),
    }
    for place, suffix in enumerate(("", "_2", "_3")):
        absent, at = members[:, place] == NO_MEMBER, members[:, place].clip(0)
        for name in ("sae_id", "feature_id"):
            columns[name + suffix] = pa.array(features[name][at], JOINT_EFFECTS.column(name + suffix).type, mask=absent)
    return Rows.of(JOINT_EFFECTS, {**columns, **_ablated(work, prompt, sets)})


def _pairs(places: np.ndarray) -> np.ndarray:
    """(n, 3) all pairs of some places, each rising, without a third."""
    first, second = np.triu_indices(len(places), 1)
    places = np.sort(places)
    return np.stack([places[first], places[second], np.full(len(first), NO_MEMBER)], axis=1)


def _triples(places: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """(at most n, 3) distinct triples of some places, each rising; all of them where there are no more."""
    if len(places) * (len(places) - 1) * (len(places) - 2) // 6 <= n:
        return np.array(list(combinations(np.sort(places).tolist(), 3)), dtype=np.int64).reshape(-1, 3)
    rows: set[tuple[int, ...]] = set()
    while len(rows) < n:
        rows.add(tuple(sorted(rng.choice(places, 3, replace=False).tolist())))
    return np.array(sorted(rows), dtype=np.int64)


STAGE = Stage(
    name="atlas",
    parents=("baseline", "prompts", "activations"),
    splits=searched_split,
    sections=("candidates", "atlas", "verdicts", "capture"),
    tables=("single_effects",),
    shards=lambda study: list(shards_of_split(study)),
    compute=_single,
)
JOINT_STAGE = Stage(
    name="atlas_joint",
    parents=("atlas", "baseline", "prompts", "activations"),
    splits=searched_split,
    sections=("candidates", "atlas", "verdicts", "capture"),
    tables=("joint_effects",),
    shards=lambda study: list(shards_of_split(study)),
    compute=_joint,
)
