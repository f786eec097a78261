"""Which stages an analysis has, each after the ones that it needs, and what each one's run is.

A run is known before anything is computed: its id is a hash of its part of the recipe, the model, the kind of device, the seed,
its parents' ids and its code's version.
"""

from collections.abc import Mapping, Sequence

from saelake.analysis.atlas import attributions, effects, scores
from saelake.analysis.audit import rates, recoveries
from saelake.analysis.interactions import (
    backups,
    comparisons,
    diagnostic,
    edges,
    factorisation,
    inert,
    losses,
    probe,
    readouts,
    redundancy,
    stage3,
    steering,
    waking,
)
from saelake.analysis.judges.verdicts import oracle_identity
from saelake.analysis.meaning import concepts, logits, populations, separation, taxonomy
from saelake.analysis.search import (
    algorithm1,
    alignments,
    answer_tokens,
    baseline,
    candidates,
    controls,
    directions,
    judging,
    minimal,
)
from saelake.analysis.stage import Stage
from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import ACTIVATIONS, PROMPTS, SetRuns, ingest_runs
from saelake.ingest.study import Study
from saelake.warehouse.lake import Lake
from saelake.warehouse.records import RunSpec
from saelake.warehouse.runs import known as known_runs

SEARCH = (directions.STAGE, alignments.STAGE, baseline.STAGE, candidates.STAGE, algorithm1.STAGE, minimal.STAGE, controls.STAGE)
INTERACTIONS = (
    diagnostic.STAGE,
    redundancy.STAGE,
    inert.STAGE,
    readouts.STAGE,
    waking.STAGE,
    edges.STAGE,
    backups.STAGE,
    steering.STAGE,
    losses.STAGE,
    factorisation.STAGE,
    probe.STAGE,
    stage3.STAGE,
    stage3.PROBE_STAGE,
)
MEANING = (populations.STAGE, taxonomy.STAGE, separation.STAGE, logits.STAGE, concepts.STAGE)
COMPUTED = (*SEARCH, *INTERACTIONS, *MEANING)
"""The stages of every analysis, each after the ones that it needs; `stages` adds the comparisons, and what a recipe asks for."""
ATLAS = (effects.STAGE, effects.JOINT_STAGE, attributions.STAGE, scores.STAGE)
"""What `saelake atlas` computes beside them."""
AUDIT = (recoveries.STAGE, rates.STAGE)
"""What `saelake audit` computes beside them."""
ANSWERING = tuple(stage for stage in COMPUTED if "verdicts" in stage.tables)
"""The stages that store answers, which the judges read."""
OWN_CONDITIONS = tuple(name for stage in COMPUTED for name in stage.conditions)
"""The names of the analysis' own conditions, or what they begin with: no other condition may be called so."""


def stages(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe's analysis, each after the ones that it needs."""
    judges = [judging_stage(name) for name in recipe.verdicts.judges if name != recipe.verdicts.oracle]
    on_answers = [answer_tokens.STAGE] if recipe.capture.answer_tokens else []
    return [*COMPUTED, *on_answers, comparisons.stage(ANSWERING), *judges]


def stage_named(recipe: Recipe, name: str) -> Stage:
    """A stage of a recipe's analysis, of its atlas or its audit, or of a judge that is asked beside it."""
    found = {stage.name: stage for stage in (*stages(recipe), *ATLAS, *AUDIT)}
    return found[name] if name in found else judging_stage(name.removeprefix(judging.PREFIX))


def judging_stage(judge: str) -> Stage:
    """The stage in which a judge reads all answers that the analysis stored."""
    return judging.stage(judge, [stage.name for stage in ANSWERING])


def specs(study: Study, asked: Sequence[Stage] | None = None, lake: Lake | None = None) -> dict[str, RunSpec]:
    """The identity of every stage's run, of the recipe's stages or of those that are asked for, in this order.

    Args:
        lake: where to look for runs that an older version of the schema published with this content.
    """
    find = known_runs(lake) if lake else lambda spec: spec
    oracle, sets = oracle_identity(study.recipe), ingest_runs(study, lake)
    found: dict[str, RunSpec] = {}
    for stage in stages(study.recipe) if asked is None else asked:
        config = study.identity | {"code": stage.code_version}
        config |= {name: oracle if name == "verdicts" else study.recipe.section(name) for name in stage.sections}
        if "verdicts" in stage.sections and not any(one.holds_target_tokens for one in stage.reads(study, sets)):
            config |= {"refusal_tokens": list(study.recipe.model.target_words)}
        config |= stage.identity(study)
        runs = parent_runs(stage, study, sets, found)
        parents = tuple(dict.fromkeys(run_id for run_ids in runs.values() for run_id in run_ids))
        found[stage.name] = find(RunSpec(stage.name, study.recipe.name, config, parents, study.recipe.compute.seed))
    return found


def parent_runs(stage: Stage, study: Study, sets: Sequence[SetRuns], known: Mapping[str, RunSpec]) -> dict[str, tuple[str, ...]]:
    """The runs that a stage reads, by the names of its parents."""
    read = stage.reads(study, sets)
    ingested = {
        PROMPTS: tuple(one.prompts.run_id for one in read),
        ACTIVATIONS: tuple(spec.run_id for one in read for spec in one.activations.values()),
    }
    return {parent: ingested[parent] if parent in ingested else (known[parent].run_id,) for parent in stage.parents}
