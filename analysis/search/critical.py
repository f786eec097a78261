"""What both searches of Stage 2 start from, and how their findings are stored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import duckdb
import numpy as np

from saelake import queries
from saelake.analysis.engine.library import Engine
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.search.answers import Ablation
from saelake.analysis.search.candidates import ATTRIBUTED, pool
from saelake.analysis.search.ranking import engine_of, ranked
from saelake.analysis.stage import Work
from saelake.analysis.study_context import StudyContext
from saelake.ingest.saes.refs import layer_of
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import SEARCHES

RANKINGS = ("own", "chosen", "attribution")
"""What candidates may be ranked by, in the order in which those of equal K are taken (as in populations and audit_sets)."""


@dataclass(frozen=True)
class Pool:
    """What is searched on one prompt: the top K of every SAE at its first flip or, where K is 0, all that fires."""

    prompt: int
    k: int
    saes: np.ndarray
    """Numbers of the SAEs."""
    feature_ids: np.ndarray
    ranking: str | None = None
    """What ranked them: own, chosen or attribution; None where all that fires is in it."""

    def __len__(self) -> int:
        return len(self.saes)

    def at(self, members: Sequence[int] | np.ndarray) -> FeatureSet:
        """The set of the candidates at these places."""
        places = np.asarray(members, dtype=np.int64)
        return FeatureSet.of(self.saes[places], self.feature_ids[places])


def pools(work: Work, direction: str) -> dict[int, Pool]:
    """Prompt number -> pool, for the prompts that refuse unmodified and flip at some K, by the recipe's oracle.

    Args:
        direction: whose candidates; "first": of the ranking by which a prompt flips at the smallest K, the first of RANKINGS.
    """
    if direction != "first":
        return _pools(work, direction)
    tried = work.context.recipe.candidates.rankings
    found = [one for ranking in RANKINGS if ranking in tried for one in _pools(work, ranking).values()]
    first: dict[int, Pool] = {}
    for one in sorted(found, key=lambda one: (one.prompt, one.k)):  # stable: of equal K the first ranking's
        first.setdefault(one.prompt, one)
    return first


def _pools(work: Work, direction: str) -> dict[int, Pool]:
    recipe, context = work.context.recipe, work.context
    with work.sql("prompts", "alignments", "baseline", "candidates") as con:
        candidates = pool(con, recipe.candidates, direction) if direction != ATTRIBUTED.part else None
        flips = queries.run(con, "first_flip", condition=f"top_k_{direction}", judge=recipe.verdicts.oracle)
        first = flips.filter("refused_at_baseline and first_k is not null").fetchnumpy()
        own = con.execute(queries.step("own_candidates"), {"part": direction}).fetchnumpy() if candidates is None else {}
    found = {}
    for prompt_id, k in zip(first["prompt_id"], first["first_k"], strict=True):
        prompt = context.number_of[int(prompt_id)]
        if context.study.role(prompt) != "target":
            continue
        rows = own if candidates is None else candidates
        top = candidates["rank"] <= k if candidates is not None else (own["prompt_id"] == prompt_id) & (own["k"] == k)
        found[prompt] = Pool(prompt, int(k), context.sae_numbers(rows["sae_id"][top]), rows["feature_id"][top], direction)
    return found


def falls_of(context: StudyContext, engine: Engine, pool: Pool) -> np.ndarray:
    """(n,) what the log-odds fall by without each candidate of a pool; 0 for those that do not fire."""
    saes, ids, falls = ranked(context, engine, pool.prompt)
    known = dict(zip(zip(saes.tolist(), ids.tolist(), strict=True), falls.tolist(), strict=True))
    return np.array([known.get(one, 0.0) for one in zip(pool.saes.tolist(), pool.feature_ids.tolist(), strict=True)])


def refused_prompts(work: Work, con: duckdb.DuckDBPyConnection) -> list[int]:
    """Numbers of the target prompts that are refused unmodified, every family in turn."""
    recipe = work.context.recipe
    found = queries.run(con, "atlas_prompts", judge=recipe.verdicts.oracle, split=recipe.candidates.split).fetchnumpy()
    return [work.context.number_of[prompt_id] for prompt_id in found["prompt_id"].tolist()]


def active_pools(work: Work) -> dict[int, Pool]:
    """Prompt number -> all features of the searched layers that fire on it, for the prompts that refuse unmodified."""
    context = work.context
    with work.sql("prompts", "baseline") as con:
        refused = sorted(refused_prompts(work, con))
    engine, found = engine_of(context), {}
    for prompt in refused:
        saes, ids, _ = ranked(context, engine, prompt)
        kept = ~np.isin(layer_of(saes), context.recipe.candidates.exclude_layers)
        if kept.any():
            found[prompt] = Pool(prompt, 0, saes[kept], ids[kept])
    return found


def controls_by_donor(context: StudyContext, donors: Iterable[int]) -> dict[int, list[int]]:
    """Which control prompts take the sets of which donor: each those of one in turn, both in the order of the study.

    The donors are all prompts of the study that are searched, known before the search. So who takes whose sets does not depend on
    shards; the shard of a donor holds the answers on the control prompts that take its sets.
    """
    found: dict[int, list[int]] = {prompt: [] for prompt in sorted(donors)}
    controls = context.study.prompts_of(context.recipe.candidates.split, "control")
    for prompt, donor in zip(controls, cycle(found), strict=False):
        found[donor].append(prompt)
    return found


def on_controls(asked: Iterable[Ablation], controls: Mapping[int, Sequence[int]]) -> Iterator[Ablation]:
    """The same sets on the control prompts that take them: are they still answered?"""
    for one in asked:
        for prompt in controls[one.request.prompt]:
            yield replace(one, request=Request(prompt, one.request.features))


def search_rows(context: StudyContext, method: str, searches: Mapping[tuple[int, int], tuple[Pool, int]]) -> Rows:
    """Rows of `searches`, from (prompt, start) -> (pool, evaluations)."""
    columns: dict[str, list[object]] = {
        "prompt_id": [int(context.prompt_ids[prompt]) for prompt, _ in searches],
        "method": [method] * len(searches),
        "start": [start for _, start in searches],
        "k": [pool.k for pool, _ in searches.values()],
        "ranking": [pool.ranking for pool, _ in searches.values()],
        "n_candidates": [len(pool) for pool, _ in searches.values()],
        "n_evaluations": [n for _, n in searches.values()],
    }
    return Rows.of(SEARCHES, columns)
