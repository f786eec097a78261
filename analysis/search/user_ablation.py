"""Features that a person chose, ablated or clamped together, each where it is said; the answers are rows that join all others."""

import re
from collections.abc import Iterator, Sequence
from functools import partial

import duckdb

from saelake.analysis.search.answer_tokens import answer_rows, tables_of
from saelake.analysis.search.answers import Ablation, ablation_id, ablation_rows
from saelake.analysis.search.candidates import shards_of_split
from saelake.analysis.search.edit_sets import EditSet, Features, NoFeature, check_positions, is_select, listed_edits
from saelake.analysis.stage import Condition, Stage, Work, searched_split
from saelake.ingest.preflight import check_saes
from saelake.ingest.recipe import Recipe
from saelake.ingest.study import Study
from saelake.warehouse.errors import UserError
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import TABLES

NAME = re.compile("[a-z][a-z0-9_]{0,60}")


def check_condition(condition: str, taken: Sequence[str]) -> None:
    """Raises UserError for a name that the analysis uses itself (`taken`, and what begins with one of these), or that is none."""
    if not NAME.fullmatch(condition):
        raise UserError(f"the condition {condition!r} is not a name: use lower-case letters, digits and _, a letter first")
    if any(f"{condition}_".startswith(f"{name}_") for name in taken):
        raise UserError(f"the condition {condition} is one of the analysis' own: choose another name")


def check_listed(study: Study, features: Features, value: float, positions: str | None) -> EditSet | None:
    """What `listed_edits` gives, or raises, before the study is ingested; None for a select, which is read over empty tables."""
    with duckdb.connect() as con:
        for schema in ("main", "all_runs"):
            con.execute(f"create schema if not exists {schema}")
            for name, table in TABLES.items():
                con.register("empty", table.shown.empty_table())
                con.execute(f"create table {schema}.{name} as from empty")
        saes = [(one.ref.layer, one.ref.sae_id, one.width) for one in check_saes(study)]
        con.executemany("insert into saes (layer, sae_id, width) values (?, ?, ?)", saes)
        try:
            edits = listed_edits(con, study.numbered_saes, features, value, positions)
        except NoFeature:
            if is_select(features):
                return None
            raise
    check_edits(study, edits)
    return edits


def check_edits(study: Study, edits: EditSet) -> None:
    """Raises UserError where a prompt that is ablated on lacks a position or role."""
    check_positions(edits.places, study, study.prompts_of(study.recipe.candidates.split))


def _compute(condition: str, edits: EditSet, work: Work, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]:
    context, shards = work.context, shards_of_split(work.context.study)
    for name in missing:
        asked = [Ablation(edits.request(p, context.encoded), Condition(condition), edits=edits) for p in shards[name]]
        ids = [ablation_id(context, work.spec.stage, one) for one in asked]
        rows = ablation_rows(context, work.spec.stage, asked)
        yield name, [*rows, *answer_rows(context, [one.request for one in asked], ids)]


def stage(condition: str, edits: EditSet, recipe: Recipe) -> Stage:
    """The stage that holds a set on the prompts of the analysis; each condition is a stage of its own."""
    return Stage(
        name=f"chosen_{condition}",
        parents=("prompts", "activations"),
        splits=searched_split,
        sections=("generation", "verdicts", "capture"),
        tables=("feature_sets", "ablations", "verdicts", *tables_of(recipe)),
        shards=lambda study: list(shards_of_split(study)),
        compute=partial(_compute, condition, edits),
        identity=lambda study: {
            "condition": condition,
            "features": edits.content,
            "split": study.recipe.candidates.split,
            **({"answer_tokens": study.recipe.capture.answer_tokens} if study.recipe.capture.answer_tokens else {}),
        },
    )
