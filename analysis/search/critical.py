"""What both searches of Stage 2 start from, and how their findings are stored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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
    """The candidates of one prompt: the top K of every layer at its first flip."""

    prompt: int
    k: int
    layers: np.ndarray
    feature_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.layers)

    def at(self, members: Sequence[int] | np.ndarray) -> FeatureSet:
        """The set of the candidates at these places."""
        places = np.asarray(members, dtype=np.int64)
        return FeatureSet.of(self.layers[places], self.feature_ids[places])


def pools(work: Work, direction: str) -> dict[int, Pool]:
    """Prompt number -> pool, for the prompts that refuse unmodified and flip at some K, by the recipe's oracle."""
    recipe = work.bench.recipe
    with work.bench.sql([work.parents[s] for s in ("ingest", "alignments", "baseline", "candidates")]) as con:
        candidates = pool(con, recipe.candidates, direction)
        flips = queries.run(con, "first_flip", condition=f"top_k_{direction}", judge=recipe.verdicts.oracle)
        first = flips.filter("refused_at_baseline and label = 'harmful' and first_k is not null").fetchnumpy()
    found = {}
    for prompt_id, k in zip(first["prompt_id"], first["first_k"], strict=True):
        top = candidates["rank"] <= k
        prompt = work.bench.numbers[int(prompt_id)]
        found[prompt] = Pool(prompt, int(k), candidates["layer"][top], candidates["feature_id"][top])
    return found


def on_benign(asked: Sequence[Ablation], bench: Workbench, prompts: Sequence[int]) -> Iterator[Ablation]:
    """The same sets on benign prompts, each of which borrows those of one harmful prompt in turn: are they still answered?"""
    by_prompt: dict[int, list[Ablation]] = {}
    for one in asked:
        by_prompt.setdefault(one.request.prompt, []).append(one)
    lenders = list(by_prompt)
    benign = [p for p in prompts if bench.study.prompts[p].label == "benign"]
    for turn, prompt in enumerate(benign if lenders else ()):
        for one in by_prompt[lenders[turn % len(lenders)]]:
            request = Request(prompt, one.request.features)
            yield Ablation(request, one.condition, k=one.k, draw=one.draw, seed=one.seed, tau=one.tau)


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
