"""The scores of a closed annotation study (R19): agreement with what features fire on, and of people with each other."""

from itertools import combinations
from typing import NamedTuple

import duckdb
import numpy as np

from saelake import queries
from saelake.analysis.meaning.agreement import (
    Measured,
    alpha,
    alpha_sums,
    kappa,
    kappa_sums,
    mean,
    mean_sums,
    measured,
)
from saelake.analysis.meaning.annotation_study import NONE, AnnotationStudy, stage
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake


class Score(NamedTuple):
    """One measure of an annotation study."""

    measure: str
    """accuracy, precision, alpha or kappa"""
    of: str
    """all features or a stratum; all categories or one; two annotators"""
    measured: Measured


def score(lake: Lake, study: AnnotationStudy, *, mapping: str = "literal", seed: int = 0) -> list[Score]:
    """All scores of an annotation study, by its answers and the taxonomy that it was drawn from; UserError if it is open."""
    published = lake.current().get((study.recipe, stage(study.name)))
    if published is None:
        raise UserError(
            f"the annotation study {study.name} is not closed: `saelake study close {study.name}` publishes its answers"
        )
    with connect(lake, runs=[*study.parents, *published]) as con:
        return scores(con, study.name, mapping=mapping, seed=seed)


def scores(con: duckdb.DuckDBPyConnection, study: str, *, mapping: str = "literal", seed: int = 0) -> list[Score]:
    """All scores of an annotation study that a connection shows; intervals are from a bootstrap over its features.

    accuracy and precision are means of the question study_scores over features. alpha and kappa are over yes-or-no decisions, one
    for each feature and category; None is not a decision of its own, but a no to all.
    """
    judged = queries.run(con, "study_scores", study=study, mapping=mapping).fetchnumpy()
    found = []
    strata = judged["stratum"].astype(str)
    for stratum in ("all", "critical", "random", "silent"):
        mine = np.isin(strata, stratum) if stratum != "all" else np.ones(len(strata), dtype=bool)
        for measure, column in (("accuracy", "score"), ("precision", "precision")):
            values = np.ma.filled(judged[column].astype(float), np.nan)[mine]
            if len(values):
                found.append(Score(measure, stratum, measured(mean_sums(values), mean, seed)))
    annotators, categories, ratings_ric = _ratings(con, study)
    found.append(Score("alpha", "all", measured(alpha_sums(ratings_ric), alpha, seed)))
    for c, category in enumerate(categories):
        found.append(Score("alpha", category, measured(alpha_sums(ratings_ric[:, :, [c]]), alpha, seed)))
    for a, b in combinations(range(len(annotators)), 2):
        sums = kappa_sums(ratings_ric[a], ratings_ric[b])
        found.append(Score("kappa", f"{annotators[a]} and {annotators[b]}", measured(sums, kappa, seed)))
    return found


def _ratings(con: duckdb.DuckDBPyConnection, study: str) -> tuple[list[str], list[str], np.ndarray]:
    """Annotators, categories, and (r, i, c) who chose what: 1, 0, or nan without an answer."""
    rows = con.execute(
        "select annotator, item, category, chosen from annotations where study = ? and category <> ?", [study, NONE]
    ).fetchnumpy()
    (annotators, r), (items, i), (categories, c) = (
        np.unique(rows[name].astype(str) if name != "item" else rows[name], return_inverse=True)
        for name in ("annotator", "item", "category")
    )
    ratings_ric = np.full((len(annotators), len(items), len(categories)), np.nan)
    ratings_ric[r, i, c] = rows["chosen"]
    return annotators.tolist(), categories.tolist(), ratings_ric
