"""Matched controls: for every critical feature of a prompt, others of the same SAE that fire where it does, about as strongly."""

from collections.abc import Mapping, Sequence

import duckdb
import numpy as np
from scipy.optimize import linear_sum_assignment

from saelake import queries
from saelake.analysis.engine.requests import Feature
from saelake.analysis.study_context import StudyContext

Controls = Mapping[tuple[int, Feature], list[Feature]]
"""(prompt_id, critical feature) -> its controls, best first"""


def assigned(cost_so: np.ndarray, n: int) -> list[list[int]]:
    """Up to `n` others for each source, no other twice, as many as there can be and these at the least total cost.

    Places in the columns of (sources, others), best first. An infinite cost: the other does not match the source.
    """
    possible = np.isfinite(cost_so)
    too_much = 1 + n * len(cost_so) * cost_so[possible].max(initial=0.0)
    rows, columns = linear_sum_assignment(np.repeat(np.where(possible, cost_so, too_much), n, axis=0))
    found: list[list[int]] = [[] for _ in cost_so]
    for row, column in zip(rows, columns, strict=True):
        if possible[row // n, column]:
            found[row // n].append(int(column))
    return [[mine[i] for i in np.argsort(cost_so[s, mine], kind="stable")] for s, mine in enumerate(found)]


def matched(context: StudyContext, con: duckdb.DuckDBPyConnection, prompt_ids: Sequence[int], seed: int) -> Controls:
    """Controls of the critical features of some prompts, none twice within a prompt; none where none near enough is left."""
    recipe = context.recipe
    n = recipe.waking.controls
    found = queries.run(
        con,
        "matched_active",
        prompts=prompt_ids,
        pool=recipe.candidates.cap,
        similarity=recipe.waking.similarity,
        min_overlap=recipe.waking.overlap,
        seed=seed,
    ).fetchnumpy()
    controls: dict[tuple[int, Feature], list[Feature]] = {}
    saes = context.sae_numbers(found["sae_id"])
    # The rows come by prompt and SAE.
    starts = np.flatnonzero(np.diff(found["prompt_id"], prepend=-1) | np.diff(saes, prepend=-1))
    for part in np.split(np.arange(len(saes)), starts[1:]) if n and len(starts) else ():
        prompt_id, sae = int(found["prompt_id"][part[0]]), int(saes[part[0]])
        sources, row = np.unique(found["feature_id"][part], return_inverse=True)
        others, column = np.unique(found["other_feature_id"][part], return_inverse=True)
        cost_so = np.full((len(sources), len(others)), np.inf)
        cost_so[row, column] = found["cost"][part]
        for source, places in zip(sources, assigned(cost_so, n), strict=True):
            controls[prompt_id, (sae, int(source))] = [(sae, int(others[place])) for place in places]
    return controls
