"""`saelake steer`: one sweep of strengths over the prompts of a recipe's analysis, as a run of its own."""

from dataclasses import replace

from saelake.analysis.search import directions
from saelake.analysis.search.edit_sets import Features, check_positions, listed_edits
from saelake.analysis.search.sweeps import CHOSEN, Source, Sweep, check_sweep, check_swept, features_source, stage
from saelake.analysis.search.user_ablation import check_condition, check_listed
from saelake.analysis.stage_list import OWN_CONDITIONS, specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import ensure_stage, open_analysis
from saelake.ingest.job import ingest_study
from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import is_ingested
from saelake.ingest.sites import Site
from saelake.ingest.study import Study
from saelake.ingest.vectors import read_vector
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from saelake.warehouse.progress import Quiet
from saelake.warehouse.records import RunRecord
from saelake.warehouse.runs import whole_run


def steer(
    recipe: Recipe,
    lake: Lake,
    sweep: Sweep,
    features: Features | None = None,
    *,
    force: bool = False,
    progress: Quiet | None = None,
) -> RunRecord:
    """Answers of the analysis' prompts (candidates.split) at every strength of a sweep; ingests if needed.

    Args:
        features: what is added or clamped, if it is features, as `verbs.ablate` takes them.
    Raises UserError, before anything is computed, for what does not fit together, and where a direction is not there yet;
    QueryError for what is not a feature of the study.
    """
    return steer_study(open_steering(recipe, lake, sweep, features), lake, sweep, features, force=force, progress=progress)


def open_steering(recipe: Recipe, lake: Lake, sweep: Sweep, features: Features | None) -> Study:
    """The study of a recipe, checked for `steer`, whose mistakes it raises."""
    check_condition(sweep.name, OWN_CONDITIONS)
    check_sweep(sweep, sum(one is not None for one in (features, sweep.direction, sweep.vector)))
    if sweep.vector is not None:
        read_vector(sweep.vector)
        _site(str(sweep.site))
    study = open_analysis(recipe)
    if sweep.direction is not None:
        _direction(study, lake, sweep.direction)
    if features is not None and not is_ingested(study, lake):
        listed = check_listed(study, features, 0.0, sweep.positions)
        if listed is not None:
            check_swept(listed, sweep)
    check_positions([sweep.positions], study, study.prompts_of(recipe.candidates.split))
    return study


def steer_study(
    study: Study,
    lake: Lake,
    sweep: Sweep,
    features: Features | None = None,
    *,
    force: bool = False,
    progress: Quiet | None = None,
) -> RunRecord:
    """`steer` for a study that `open_steering` has opened."""
    context = StudyContext(study, lake)
    ingest_study(study, lake, progress=progress, loaded=context.loaded)
    asked = stage(sweep, _source(study, lake, sweep, features))
    if sweep.direction is None:
        known = specs(study, [asked], lake)
    else:
        asked = replace(asked, parents=("direction", *asked.parents))
        known = specs(study, [directions.STAGE, asked], lake)
    return ensure_stage(asked, known, context, force=force, progress=progress)


def _source(study: Study, lake: Lake, sweep: Sweep, features: Features | None) -> Source:
    if features is not None:
        with connect(lake, study.recipe.name) as con:
            edits = listed_edits(con, study.numbered_saes, features, 0.0, sweep.positions)
        check_swept(edits, sweep)  # so that its positions are those that are checked already
        return features_source(edits, {n: ref.sae_id for n, ref in study.numbered_saes.items()})
    if sweep.direction is not None:
        return _direction(study, lake, sweep.direction)
    assert sweep.vector is not None, "one of three"
    return Source(sweep.vector.name, vector=read_vector(sweep.vector), site=_site(str(sweep.site)))


def _direction(study: Study, lake: Lake, which: str) -> Source:
    """The chosen direction, or a layer's; raises UserError where the study has none yet."""
    if which != CHOSEN and not which.isdecimal():
        raise UserError(f"direction is {CHOSEN} or a layer, not {which!r}")
    run = specs(study, [directions.STAGE], lake)["direction"].run_id
    if whole_run(lake, run) is None:
        raise UserError(f"the directions of {study.recipe.name} are not computed yet: run `saelake analyze` first")
    with connect(lake, runs=[run]) as con:
        found = directions.stored_direction(con, None if which == CHOSEN else int(which))
    if found is None:
        raise UserError("no direction is chosen in this study" if which == CHOSEN else f"there is no direction of layer {which}")
    layer, vector = found
    name = f"{CHOSEN} direction, of layer {layer}" if which == CHOSEN else f"direction of layer {layer}"
    return Source(name, vector=vector, site=Site(layer))


def _site(name: str) -> Site:
    """A hook, or a layer's residual stream."""
    return Site(int(name)) if name.isdecimal() else Site.parse(name)


def parse_strengths(text: str) -> tuple[float, ...]:
    """Strengths as a person writes them: numbers joined by commas; raises UserError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"strengths are numbers joined by commas, as 0,10,20, not {text!r}") from error
