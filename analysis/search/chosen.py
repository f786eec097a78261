"""Features that a person chose, ablated (or clamped) together; the answers are rows that join all others."""

import re
from collections.abc import Iterator, Sequence
from functools import partial

import duckdb

from saelake.analysis.engine.requests import FeatureSet, Request
from saelake.analysis.search.answers import Ablation, ablation_rows
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.stage import Stage, Work
from saelake.ingest.job import Study
from saelake.ingest.preflight import check_saes
from saelake.queries.features import LISTED, resolve
from saelake.queries.parameters import Parameter
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import TABLES
from saelake.warehouse.store import sha256_text

CONDITION = re.compile("[a-z][a-z0-9_]{0,60}")
ASKED = Parameter("features", "features", False, None, "which features")
Features = str | Sequence[tuple[int, int]]
"""How a person lists features: `layer:feature_id,...`, pairs of both, or a select with the columns layer and feature_id."""
OF_THE_ANALYSIS = re.compile("none|direction|(top_k|random|algorithm1|minimal|firing_on_tokens|clamp|waking|stage3)(_.*)?")


def check_condition(condition: str) -> None:
    """Raises UserError for a name that the analysis uses itself, or that is none."""
    if not CONDITION.fullmatch(condition):
        raise UserError(f"the condition {condition!r} is no name: use lower-case letters, digits and _, a letter first")
    if OF_THE_ANALYSIS.fullmatch(condition):
        raise UserError(f"the condition {condition} is one of the analysis' own: choose another name")


def feature_set(con: duckdb.DuckDBPyConnection, study: Study, features: Features, value: float) -> FeatureSet:
    """The features that a list or a select names, of the study's SAEs, which the connection shows.

    Raises UserError if there are none, QueryError for what is no feature.
    """
    found = resolve(con, ASKED, features)
    number = {ref.sae_id: n for n, ref in study.numbered_saes.items()}
    pairs = [(number[sae_id], feature_id) for (_, sae_id), feature_ids in found.items() for feature_id in feature_ids]
    if not pairs:
        raise UserError("features names no feature at all, so nothing would be ablated: give LAYER:ID,... or a select with rows")
    return FeatureSet.of([n for n, _ in pairs], [feature_id for _, feature_id in pairs], value)


def check_features(study: Study, features: Features) -> None:
    """Raises what `feature_set` would, before the study is ingested; a select is read over empty tables, and may find nothing."""
    with duckdb.connect() as con:
        for schema in ("main", "all_runs"):
            con.execute(f"create schema if not exists {schema}")
            for name, table in TABLES.items():
                con.register("empty", table.schema.empty_table())
                con.execute(f"create table {schema}.{name} as from empty")
        saes = [(one.ref.layer, one.ref.sae_id, one.width) for one in check_saes(study)]
        con.executemany("insert into saes (layer, sae_id, width) values (?, ?, ?)", saes)
        if isinstance(features, str) and not LISTED.fullmatch(features):
            resolve(con, ASKED, features)
        else:
            feature_set(con, study, features, 0.0)


def _compute(condition: str, features: FeatureSet, work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    shards = shards_of_split(work.bench.study)
    for name in missing:
        asked = [Ablation(Request(prompt, features), condition) for prompt in shards[name]]
        yield name, ablation_rows(work.bench, work.spec.stage, asked)


def stage(condition: str, features: FeatureSet) -> Stage:
    """The stage that ablates a set on the prompts of the analysis; each condition is a stage of its own."""
    content = sha256_text(str(features.rows.tolist()))
    return Stage(
        name=f"chosen_{condition}",
        parents=("ingest",),
        sections=("generation", "verdicts", "capture"),
        tables=("feature_sets", "ablations", "verdicts"),
        shards=lambda study: list(shards_of_split(study)),
        compute=partial(_compute, condition, features),
        identity=lambda study: {"condition": condition, "features": content, "split": study.recipe.candidates.split},
    )
