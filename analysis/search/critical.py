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
from saelake.analysis.study_context import StudyContext
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
    recipe = work.context.recipe
    with work.sql("prompts", "alignments", "baseline", "candidates") as con:
        candidates = pool(con, recipe.candidates, direction)
        flips = queries.run(con, "first_flip", condition=f"top_k_{direction}", judge=recipe.verdicts.oracle)
        first = flips.filter("refused_at_baseline and first_k is not null").fetchnumpy()
    found = {}
    for prompt_id, k in zip(first["prompt_id"], first["first_k"], strict=True):
        prompt = work.context.number_of[int(prompt_id)]
        if work.context.study.role(prompt) != "target":
            continue
        top = candidates["rank"] <= k
        found[prompt] = Pool(prompt, int(k), work.context.sae_numbers(candidates["sae_id"][top]), candidates["feature_id"][top])
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
        "n_candidates": [len(pool) for pool, _ in searches.values()],
        "n_evaluations": [n for _, n in searches.values()],
    }
    return Rows.of(SEARCHES, columns)
