"""Which stage needs which, what is done, and running the rest.

A stage's run is known before anything is computed: its id is a hash of its part of the recipe, its parents' ids and its code.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from analysis.bench import Bench
from analysis.search import algorithm1, alignments, baseline, candidates, controls, directions, judging, minimal
from analysis.stage import Stage, Work
from ingest.job import Study, ingest_spec, ingest_study, open_study
from ingest.recipe import Recipe
from warehouse.progress import Quiet
from warehouse.records import Lake, RunRecord, RunSpec
from warehouse.runs import Plan, Rows, ensure_run

ANSWERING = (baseline.STAGE, candidates.STAGE, algorithm1.STAGE, minimal.STAGE, controls.STAGE)
"""The stages that ablate and store answers, which the judges read."""


def stages(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe's analysis, each after the ones that it needs."""
    answered_by = [stage.name for stage in ANSWERING]
    judges = [judging.stage(name, answered_by) for name in recipe.verdicts.judges if name != recipe.verdicts.oracle]
    return [directions.STAGE, alignments.STAGE, *ANSWERING, *judges]


@dataclass(frozen=True)
class StageStatus:
    """One stage of a recipe in a lake, as `saelake status` shows it."""

    stage: str
    run_id: str
    state: str
    """done, resumable (some shards are landed) or to do"""
    why: str


def specs(study: Study) -> dict[str, RunSpec]:
    """The identity of every stage's run, ingest first."""
    found = {"ingest": ingest_spec(study)}
    for stage in stages(study.recipe):
        found[stage.name] = _spec(stage, study, found)
    return found


def _spec(stage: Stage, study: Study, known: Mapping[str, RunSpec]) -> RunSpec:
    config = study.identity | {"code": stage.code_version}
    config |= {section: study.recipe.section(section) for section in stage.sections}
    parents = tuple(known[parent].run_id for parent in stage.parents)
    return RunSpec(stage.name, study.recipe.name, config, parents, study.recipe.compute.seed)


def analyze(recipe: Recipe, lake: Lake, *, force: bool = False, progress: Quiet | None = None) -> list[RunRecord]:
    """Ingests if needed, then brings every stage up to date; returns the runs in the order of the stages."""
    study = open_study(recipe)
    known = specs(study)
    bench = Bench(study, lake)
    records = [ingest_study(study, lake, force=force, progress=progress)]
    for stage in stages(recipe):
        parents = {name: known[name].run_id for name in stage.parents}
        plan = Plan(stage.shards(study), partial(_compute, stage, bench, known[stage.name], parents), stage.tables, stage.unit)
        records.append(ensure_run(lake, known[stage.name], plan, force=force, progress=progress))
    return records


def _compute(
    stage: Stage, bench: Bench, spec: RunSpec, parents: Mapping[str, str], missing: Sequence[str]
) -> Iterator[tuple[str, list[Rows]]]:
    return stage.compute(Work(bench, spec, parents), missing)


def status(recipe: Recipe, lake: Lake) -> list[StageStatus]:
    """Every stage of the recipe: whether its run is there, and if not, what has changed since the current one."""
    study = open_study(recipe)
    known = specs(study)
    current = lake.current()
    found: list[StageStatus] = []
    for name, spec in known.items():
        landed = lake.landing(spec.run_id)
        if lake.record(spec.run_id):
            state, why = "done", ""
        elif landed.is_dir():
            n_landed = sum(1 for p in landed.iterdir() if p.is_dir() and p.name[0] != "." and p.name != "spill")
            state, why = "resumable", f"{n_landed} shards landed"
        else:
            previous = current.get((recipe.name, name))
            state, why = "to do", _changes(spec, lake.record(previous) if previous else None, known)
        found.append(StageStatus(name, spec.run_id, state, why))
    return found


def _changes(spec: RunSpec, previous: RunRecord | None, known: Mapping[str, RunSpec]) -> str:
    """Why the current run of a stage is not the one that the recipe asks for."""
    if previous is None:
        return "never computed"
    changed = [name for name, value in spec.config.items() if previous.config.get(name) != value]
    changed += ["seed"] if previous.seed != spec.seed else []
    stage_of = {s.run_id: name for name, s in known.items()}
    changed += [f"run of {stage_of[p]}" for p in spec.parents if p not in previous.parents]
    return "changed: " + ", ".join(changed)
