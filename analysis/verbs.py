"""The verbs of an analysis: all stages of a recipe, its atlas, its audit, one more judge, features of the user's own.

Each finds what is done already and computes the rest (`stage_list` says which stages there are). The command line opens a study
first, before there is a lake, and calls `analyze_study` and its like; `analyze`, `judge` and `ablate` do both in one call, as
tests use them. None of it is public (`saelake.__all__` is).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from saelake.analysis.interactions import losses
from saelake.analysis.judges.replies import cost
from saelake.analysis.judges.verdicts import check_judge, judge_identity, oracle_identity
from saelake.analysis.meaning import taxonomy
from saelake.analysis.search import baseline, directions, user_ablation
from saelake.analysis.search.edit_sets import Features, listed_edits
from saelake.analysis.search.shown import check_shown
from saelake.analysis.stage import Stage, Work
from saelake.analysis.stage_list import ATLAS, AUDIT, COMPUTED, OWN_CONDITIONS, judging_stage, parent_runs, specs, stages
from saelake.analysis.study_context import StudyContext
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import SetRuns, is_ingested
from saelake.ingest.splits import require_splits
from saelake.ingest.study import Study, open_study
from saelake.warehouse.catalog import connect, up_to_date_at_the_end
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord, RunSpec
from saelake.warehouse.runs import Plan, Rows, ensure_run, whole_run

Shards = Iterator[tuple[str, str, list[Rows]]]
"""run_id, shard, rows"""


class Workers(Protocol):
    """Computes shards elsewhere, as `analysis.workers.RayWorkers` does."""

    def compute(self, spec: RunSpec, missing: Sequence[str]) -> Iterator[tuple[str, list[Rows]]]: ...

    def ingest(self, study: Study, sets: Sequence[SetRuns], missing: Mapping[str, Sequence[str]]) -> Shards: ...


def open_analysis(recipe: Recipe) -> Study:
    """The study of a recipe, with the prompts and judges that its analysis needs; raises UserError before any compute."""
    study = open_study(recipe)
    require_splits(recipe, study.prompts)
    taxonomy.check(study)
    losses.check(study)
    oracle_identity(recipe)
    for judge in recipe.verdicts.judges:
        judge_identity(judge, recipe)
    return study


def analyze(recipe: Recipe, lake: Lake, *, force: bool = False, progress: Quiet | None = None) -> list[RunRecord]:
    """Ingests if needed, then brings every stage up to date; returns the runs in the order of the stages."""
    return analyze_study(open_analysis(recipe), lake, force=force, progress=progress)


def analyze_study(
    study: Study, lake: Lake, *, force: bool = False, progress: Quiet | None = None, workers: Workers | None = None
) -> list[RunRecord]:
    """`analyze` for a study that is opened already; workers compute the shards outside this process."""
    with up_to_date_at_the_end(lake):
        known = specs(study, lake=lake)
        context = StudyContext(study, lake)
        compute = partial(workers.ingest, study, context.sets) if workers else None
        context.run_id = known["direction"].run_id  # whose record counts what judges are asked before any stage
        # With workers the subject need not fit here: there the stage of the direction finds out, after the ingest.
        if workers is None and whole_run(lake, known["direction"].run_id) is None:
            check_shown(context)
        found = ingest_study(study, lake, force=force, progress=progress, compute=compute, loaded=context.loaded)
        records = list(found.records)
        ensure = partial(
            ensure_stage, known=known, context=context, force=force, progress=progress, workers=workers, more_follows=True
        )
        for stage in stages(study.recipe):
            records.append(ensure(stage))
            if stage is directions.STAGE:
                with context.sql([records[-1].run_id]) as con:
                    try:
                        directions.require_chosen(con)
                    except directions.NoDirection:  # what the unmodified model answers is worth having all the same
                        ensure(baseline.STAGE)
                        raise
        return records


def atlas_study(
    study: Study, lake: Lake, *, force: bool = False, progress: Quiet | None = None, workers: Workers | None = None
) -> list[RunRecord]:
    """The atlas of a study that is analysed: what ablating every active feature of its refused prompts does, alone and together.

    Raises UserError where a stage of the analysis that it reads is not there yet.
    """
    return _beside(ATLAS, "the atlas", study, lake, force=force, progress=progress, workers=workers)


def audit_study(
    study: Study, lake: Lake, *, force: bool = False, progress: Quiet | None = None, workers: Workers | None = None
) -> list[RunRecord]:
    """The recovery audit of a study that is analysed: what brings the behaviour back while the sets found are held ablated.

    Raises UserError where a stage of the analysis that it reads is not there yet.
    """
    return _beside(AUDIT, "the audit", study, lake, force=force, progress=progress, workers=workers)


def _beside(
    asked: Sequence[Stage],
    name: str,
    study: Study,
    lake: Lake,
    *,
    force: bool,
    progress: Quiet | None,
    workers: Workers | None,
) -> list[RunRecord]:
    """The runs of stages that a command of their own adds to an analysis that is done."""
    known, context = specs(study, [*COMPUTED, *asked], lake), StudyContext(study, lake)
    read = {parent for stage in asked for parent in stage.parents} - {stage.name for stage in asked}
    if absent := _absent(read, known, lake):
        raise UserError(f"{name} reads what {', '.join(absent)} of {study.recipe.name} found: run `saelake analyze` first")
    return [ensure_stage(stage, known, context, force=force, progress=progress, workers=workers) for stage in asked]


def _absent(needed: Collection[str], known: Mapping[str, RunSpec], lake: Lake) -> list[str]:
    """Those of the needed stages that are not done, in their order."""
    return [name for name, spec in known.items() if name in needed and whole_run(lake, spec.run_id) is None]


def judge(recipe: Recipe, lake: Lake, name: str, *, force: bool = False, progress: Quiet | None = None) -> RunRecord:
    """Verdicts of one judge over all answers that a recipe's analysis stored, as a run of its own: nothing is ablated again.

    Raises UserError for an unknown judge, for the recipe's oracle (its verdicts were stored with the answers), and where the
    answers are not there yet.
    """
    return judge_study(open_analysis(recipe), lake, name, force=force, progress=progress)


def judge_study(
    study: Study, lake: Lake, name: str, *, force: bool = False, progress: Quiet | None = None, workers: Workers | None = None
) -> RunRecord:
    """`judge` for a study that is opened already; workers compute the shards outside this process."""
    check_judge(name, study.recipe)
    recipe, stage = study.recipe, judging_stage(name)
    if name == recipe.verdicts.oracle:
        raise UserError(f"{name} is the oracle of {recipe.name}: its verdicts are stored with the answers already")
    known = specs(study, [*COMPUTED, stage], lake)
    if absent := _absent(stage.parents, known, lake):
        raise UserError(
            f"{name} judges all answers of {recipe.name}, and those of {', '.join(absent)} are not there yet: "
            f"run `saelake analyze` first"
        )
    return ensure_stage(stage, known, StudyContext(study, lake), force=force, progress=progress, workers=workers)


def ablate(
    recipe: Recipe,
    lake: Lake,
    condition: str,
    features: Features,
    *,
    value: float = 0.0,
    positions: str | None = None,
    force: bool = False,
    progress: Quiet | None = None,
) -> RunRecord:
    """Answers of the analysis' prompts (candidates.split) while chosen features are ablated together, as a run of its own.

    Ingests if needed. The verdicts stored with the answers are the oracle's.

    Args:
        condition: what `ablations.condition` calls it; asking again under the same name with other features takes its place.
        features: `layer:feature_id,...`, pairs of both, or a select, or a file of rows, with the columns sae (sae_id or layer)
            and feature, and perhaps value and positions.
        value: the activation that they are clamped to instead, if not 0, where their row does not say it.
        positions: where they are held, as "-1" or "user,answer", where their row does not say it; everywhere by default.
    Raises UserError for a name that the analysis uses itself and for no features, QueryError for what is not a feature of the
    study.
    """
    study = open_ablation(recipe, lake, condition, features, value=value, positions=positions)
    return ablate_study(study, lake, condition, features, value=value, positions=positions, force=force, progress=progress)


def open_ablation(
    recipe: Recipe, lake: Lake, condition: str, features: Features, *, value: float = 0.0, positions: str | None = None
) -> Study:
    """The study of a recipe, checked for `ablate`, whose mistakes it raises; what a select names is only known after ingest."""
    user_ablation.check_condition(condition, OWN_CONDITIONS)
    study = open_analysis(recipe)
    if not is_ingested(study, lake):
        user_ablation.check_listed(study, features, value, positions)
    return study


def ablate_study(
    study: Study,
    lake: Lake,
    condition: str,
    features: Features,
    *,
    value: float = 0.0,
    positions: str | None = None,
    force: bool = False,
    progress: Quiet | None = None,
) -> RunRecord:
    """`ablate` for a study that `open_ablation` has opened."""
    context = StudyContext(study, lake)
    ingest_study(study, lake, progress=progress, loaded=context.loaded)
    with connect(lake, study.recipe.name) as con:
        edits = listed_edits(con, study.numbered_saes, features, value, positions)
    user_ablation.check_edits(study, edits)
    stage = user_ablation.stage(condition, edits, study.recipe)
    return ensure_stage(stage, specs(study, [stage], lake), context, force=force, progress=progress)


def ensure_stage(
    stage: Stage,
    known: Mapping[str, RunSpec],
    context: StudyContext,
    *,
    force: bool = False,
    progress: Quiet | None = None,
    workers: Workers | None = None,
    more_follows: bool = False,
) -> RunRecord:
    """The published run of a stage whose parents are published: found, resumed or computed (see `ensure_run`)."""
    compute = partial(workers.compute, known[stage.name]) if workers else partial(stage_rows, stage, context, known)
    paid = partial(_paid, context, known[stage.name].run_id)
    plan = Plan(stage.shards(context.study), compute, stage.tables, stage.unit, about=paid)
    return ensure_run(context.lake, known[stage.name], plan, force=force, progress=progress, more_follows=more_follows)


def stage_rows(
    stage: Stage, context: StudyContext, known: Mapping[str, RunSpec], missing: Sequence[str]
) -> Iterator[tuple[str, list[Rows]]]:
    """The missing shards of a stage, computed in this process."""
    parents = parent_runs(stage, context.study, context.sets, known)
    context.run_id = known[stage.name].run_id
    return stage.compute(Work(context, known[stage.name], parents), missing)


def _paid(context: StudyContext, run_id: str) -> dict[str, object]:
    """What a run asked of endpoints, for its record."""
    paid = cost(context.lake.root, tuple(context.recipe.judges), run_id)
    return {"judges": paid} if paid else {}
