"""The target tokens: other ones compute again what reads them, and nothing else."""

from pathlib import Path

import pytest

from saelake.analysis import stage_list
from saelake.analysis.search import sweeps, user_ablation
from saelake.analysis.search.edit_sets import EditSet
from saelake.ingest.job import ingest
from saelake.ingest.recipe import Recipe
from saelake.ingest.runs import is_ingested
from saelake.ingest.study import open_study
from tests.ingest.small_study import lake_in, write_study


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return write_study(tmp_path, "llama", capture={"shard_prompts": 3})


def with_model(recipe: Recipe, **fields: object) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=fields)})


def test_other_target_tokens_and_longer_prompts_that_may_come_capture_nothing_again(recipe: Recipe, tmp_path: Path) -> None:
    lake = lake_in(tmp_path)
    ingest(recipe, lake)
    for fields in ({"refusal_tokens": ("I", "help")}, {"max_prompt_tokens": 300}):
        assert is_ingested(open_study(with_model(recipe, **fields)), lake), fields


STAGES = (*stage_list.COMPUTED, *stage_list.ATLAS, *stage_list.AUDIT, *map(stage_list.judging_stage, ("first_token", "phrases")))
ANY_BEHAVIOUR = {"logits", "separation", "taxonomy", "concepts"}
"""Stages that ask what features are and when they fire, not what they cause."""


def test_every_stage_that_reads_the_target_tokens_is_computed_again_for_others(recipe: Recipe) -> None:
    def run_ids(*tokens: str) -> dict[str, str]:
        study = open_study(with_model(recipe, refusal_tokens=tokens))
        edits = EditSet.of([(0, 1, 0.0, None)])
        swept = sweeps.stage(sweeps.Sweep("swept", (1.0,)), sweeps.Source("0:1", edits))
        stages = (*STAGES, user_ablation.stage("mine", edits, recipe), swept)
        return {name: spec.run_id for name, spec in stage_list.specs(study, stages).items()}

    before, after = run_ids("I"), run_ids("help")
    assert {name for name in before if before[name] == after[name]} == ANY_BEHAVIOUR
    assert run_ids("\u0120I", "I") == before, "the same word"
