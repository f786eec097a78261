"""The status of a study: every stage of a recipe, whether its run is in a lake, and if not, why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from saelake import queries
from saelake.analysis.search import directions, judging
from saelake.analysis.stage import Stage
from saelake.analysis.stage_list import judging_stage, specs, stages
from saelake.analysis.stage_status import Pointers, StageStatus, changes, ingest_status, stage_status
from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import SetRuns, ingest_runs
from saelake.ingest.study import Study, open_study
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunSpec


def study_status(recipe: Recipe, lake: Lake) -> list[StageStatus]:
    """Every stage of the recipe, and every judge that was asked beside it: whether its run is there, and if not, what has changed
    since the current one.
    """
    study = open_study(recipe.sending_nothing())
    current, sets = lake.current(), ingest_runs(study, lake)
    known = specs(study, lake=lake)
    found = [_status(name, spec, lake, current, known, sets) for name, spec in known.items()]
    found = [*ingest_status(study, lake, sets, current), *_with_reasons(found, study, lake)]
    judged = [stage.removeprefix(judging.PREFIX) for name, stage in sorted(current) if name == recipe.name]
    for name in judged:
        if name in study.recipe.judge_names and name != recipe.verdicts.oracle and judging.PREFIX + name not in known:
            found.append(_status_beside(judging_stage(name), study, lake, current, sets))
    return found


def _with_reasons(found: Sequence[StageStatus], study: Study, lake: Lake) -> list[StageStatus]:
    """The same with what is known of stages that had nothing to work on, and of those that never will."""
    done = {one.stage for one in found if one.state == "done"}
    if not any(recipe == study.recipe.name for recipe, _ in lake.current()):  # computed under another name, or not yet
        return list(found)
    with connect(lake, study.recipe.name) as con:
        why = {stage: f"no input: {sentence}" for stage, sentence in queries.reasons(con).items() if stage in done}
    if directions.STAGE.name in why:
        why |= {one.stage: "no direction is chosen" for one in found if one.stage not in done}
    return [replace(one, why=why.get(one.stage, one.why)) for one in found]


def _status_beside(stage: Stage, study: Study, lake: Lake, current: Pointers, sets: Sequence[SetRuns]) -> StageStatus:
    """The status of a judge that the recipe does not name (any more); its classifier may be out of reach."""
    try:
        known = specs(study, [*stages(study.recipe), stage], lake)
    except UserError as error:
        return StageStatus(stage.name, ", ".join(current[study.recipe.name, stage.name]), "unknown", str(error))
    return _status(stage.name, known[stage.name], lake, current, known, sets)


def _status(
    name: str, spec: RunSpec, lake: Lake, current: Pointers, known: Mapping[str, RunSpec], sets: Sequence[SetRuns]
) -> StageStatus:
    def why(_: object) -> str:
        previous = next((lake.record(run_id) for run_id in current.get((spec.recipe, name), ())), None)
        return changes(spec, previous, known, sets, lake)

    return stage_status(name, [spec], lake, why)
