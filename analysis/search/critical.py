"""What both searches of Stage 2 start from, and how their findings are stored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from saelake import queries
from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.search.answers import Ablation
from saelake.analysis.search.candidates import pool
from saelake.analysis.stage import Work
from saelake.analysis.workbench import Workbench
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import SEARCHES


@dataclass(frozen=True)
class Pool:
    """The candidates of one prompt: the top K of every SAE at its first flip."""

    prompt: int
    k: int
    saes: np.ndarray
    """Numbers of the SAEs."""
    feature_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.saes)

    def at(self, members: Sequence[int] | np.ndarray) -> FeatureSet:
        """The set of the candidates at these places."""
        places = np.asarray(members, dtype=np.int64)
        return FeatureSet.of(self.saes[places], self.feature_ids[places])


def pools(work: Work, direction: str) -> dict[int, Pool]:
    """Prompt number -> pool, for the prompts that refuse unmodified and flip at some K, by the recipe's oracle."""
    recipe = work.bench.recipe
    with work.sql("prompts", "alignments", "baseline", "candidates") as con:
        candidates = pool(con, recipe.candidates, direction)
        flips = queries.run(con, "first_flip", condition=f"top_k_{direction}", judge=recipe.verdicts.oracle)
        first = flips.filter("refused_at_baseline and first_k is not null").fetchnumpy()
    found = {}
    for prompt_id, k in zip(first["prompt_id"], first["first_k"], strict=True):
        prompt = work.bench.number_of[int(prompt_id)]
        if work.bench.study.role(prompt) != "target":
            continue
        top = candidates["rank"] <= k
        found[prompt] = Pool(prompt, int(k), work.bench.sae_numbers(candidates["sae_id"][top]), candidates["feature_id"][top])
    return found


def borrowers(bench: Workbench, lenders: Iterable[int]) -> dict[int, list[int]]:
    """Which control prompts borrow the sets of which prompt: each those of one in turn, both in the order of the study.

    The lenders are all prompts of the study that are searched, known before the search. So who borrows from whom does not depend
    on shards; the shard of a lender holds the answers on its borrowers.
    """
    lent: dict[int, list[int]] = {prompt: [] for prompt in sorted(lenders)}
    controls = bench.study.prompts_of(bench.recipe.candidates.split, "control")
    for prompt, lender in zip(controls, cycle(lent), strict=False):
        lent[lender].append(prompt)
    return lent


def on_controls(asked: Iterable[Ablation], lent: Mapping[int, Sequence[int]]) -> Iterator[Ablation]:
    """The same sets on the control prompts that borrow them: are they still answered?"""
    for one in asked:
        for prompt in lent[one.request.prompt]:
            yield replace(one, request=Request(prompt, one.request.features))


def search_rows(bench: Workbench, method: str, searches: Mapping[tuple[int, int], tuple[Pool, int]]) -> Rows:
    """Rows of `searches`, from (prompt, start) -> (pool, evaluations)."""
    columns: dict[str, list[object]] = {
        "prompt_id": [int(bench.prompt_ids[prompt]) for prompt, _ in searches],
        "method": [method] * len(searches),
        "start": [start for _, start in searches],
        "k": [pool.k for pool, _ in searches.values()],
        "n_candidates": [len(pool) for pool, _ in searches.values()],
        "n_evaluations": [n for _, n in searches.values()],
    }
    return Rows.of(SEARCHES, columns)
