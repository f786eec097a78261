"""The shipped recipes of real models run as they are, offline, on tiny files of the real formats."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from saelake.analysis.judges.harmbench import Classifier
from saelake.analysis.search import alignments, candidates, directions
from saelake.analysis.stage_list import specs
from saelake.analysis.study_context import StudyContext
from saelake.analysis.verbs import ensure_stage, open_analysis
from saelake.ingest.job import ingest_study
from saelake.ingest.plan.estimate import make_plan
from saelake.ingest.recipe import Recipe
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import load_sae
from saelake.ingest.subject import Subject
from saelake.warehouse.catalog import connect
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.analysis.tiny_judge import plant
from tests.paper import GEMMA_L0
from tests.real_formats import LAYERS, WIDTH, lay_out

ENDS = {
    "gemma-2-2b": ["<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"],
    "gemma-3-270m": ["<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"],
    "llama-3.1-8b": ["<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"],
}
BOS = {"gemma-2-2b": "<bos>", "gemma-3-270m": "<bos>", "llama-3.1-8b": "<|begin_of_text|>"}
DECLARED_L0 = {
    "gemma-2-2b": dict(enumerate(GEMMA_L0)),
    "gemma-3-270m": {5: 55, 9: 60, 12: 60, 15: 60},
    "llama-3.1-8b": dict.fromkeys(range(13), 50),
}
"""Recipe -> layer -> L0 as its publishers declare it."""
POOLS = {"gemma-2-2b": range(2, 16), "gemma-3-270m": (5, 9, 12, 15), "llama-3.1-8b": range(2, 13)}


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def planted_judge(patch: pytest.MonkeyPatch) -> None:
    """A classifier that finds no harm in anything: every answer counts as a refusal."""
    load = Classifier.load

    def loaded(*args: Any) -> Classifier:
        classifier = load(*args)
        plant(classifier, lambda _put: {"No": 9.0})
        return classifier

    patch.setattr(Classifier, "load", loaded)


@pytest.mark.parametrize("name", LAYERS)
def test_pipeline_runs_by_the_shipped_recipe(name: str, tmp_path: Path, patch: pytest.MonkeyPatch, planted_judge: None) -> None:
    recipe = lay_out(name, tmp_path, patch)
    passing = {"drop_last_layers": 0.0, "kl_max": 1e9, "induce_min": 0.0}  # a random model's directions pass no real filter
    recipe = recipe.model_copy(update={"direction": recipe.direction.model_copy(update=passing)})
    if recipe.verdicts.oracle == "phrases":  # random text apologises to nobody
        patch.setattr("saelake.analysis.judges.named.phrases.REFUSAL_PHRASES", ("",))
    study = open_analysis(recipe)
    lake = Lake.create(tmp_path / "lake")
    context, known = StudyContext(study, lake), specs(study)
    ingested = ingest_study(study, lake)
    runs = [ensure_stage(stage, known, context) for stage in (directions.STAGE, alignments.STAGE, candidates.STAGE)]
    with connect(lake, runs=[*ingested.run_ids, *(run.run_id for run in runs)]) as con:
        _check_saes(con, recipe, DECLARED_L0[name])
        _check_activations(con, study.prompts[0].text, recipe, context.subject)
        ablated = con.execute(
            "select distinct layer from ablations join feature_sets using (set_id) where stage = 'candidates' order by layer"
        ).fetchall()
        assert [layer for (layer,) in ablated] == list(POOLS[name])
        texts = con.execute("select text from prompts where set = 'harmful'").fetchall()
    assert len({text for (text,) in texts}) == len(texts)
    planned = make_plan(recipe)
    assert planned.problems == []
    assert all(one.is_here for one in planned.downloads)


def _check_saes(con: Any, recipe: Recipe, declared_l0: dict[int, int]) -> None:
    rows = con.execute("select layer, name, norm, declared_l0, measured_l0, width from saes order by layer").fetchall()
    assert {layer: declared for layer, _, _, declared, *_ in rows} == declared_l0
    for layer, name, norm, declared, measured, width in rows:
        assert name.startswith(f"{recipe.saes.release}/")
        assert width == WIDTH
        assert declared / 3 <= measured <= declared * 3
        is_llama = recipe.saes.release == "llama_scope_lxr_32x"
        assert re.fullmatch(r"dataset norm folded: [\d.]+, threshold too" if is_llama else "none", norm), layer


def _check_activations(con: Any, text: str, recipe: Recipe, subject: Subject) -> None:
    """What the lake holds of the first prompt is what SAELens gives for the model's own hidden states."""
    token_ids = torch.tensor([subject.encode(text).token_ids])
    hidden = subject.model(token_ids, output_hidden_states=True).hidden_states
    ref = list_saes(recipe)[-1]
    acts_tf = load_sae(ref).module.encode(hidden[ref.layer + 1][0].float()).detach()
    rows = con.execute(
        "select pos, feature_id, activation from activations join prompts using (prompt_id) where text = ? and layer = ? "
        "and prompt_id = (select min(prompt_id) from prompts where text = ?)",
        [text, ref.layer, text],
    ).fetchall()
    back = torch.zeros_like(acts_tf)
    for pos, feature_id, activation in rows:
        back[pos, feature_id] = activation
    rough = 0.05 if recipe.model.dtype == "bfloat16" else 1e-4  # bfloat16 knows three digits, and batches differ in padding
    torch.testing.assert_close(back, acts_tf, atol=rough * float(acts_tf.max()), rtol=rough)
    assert (back != 0).sum() == len(rows) > 10


@pytest.mark.parametrize("name", LAYERS)
def test_template_and_tokens_are_those_of_the_family(name: str, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    recipe = lay_out(name, tmp_path, patch)
    subject = Subject.load(recipe.model, recipe.compute)
    tokenizer = subject.tokenizer
    assert tokenizer.chat_template != recipe.model.chat_template, "pinned, so that the hub's may change"
    tokenized = subject.encode("How do I pick a lock?")
    assert tokenized.tokens[0] == BOS[name]
    assert tokenized.token_ids.count(tokenizer.bos_token_id) == 1
    assert tokenized.roles[0] == "bos"
    end = "".join(ENDS[name])
    assert tokenizer.decode(tokenized.token_ids).endswith(end)
    alone = tokenizer(end, add_special_tokens=False)["input_ids"]
    assert tokenized.token_ids[-len(alone) :] == alone, "the last positions are the template's"
    assert set(tokenized.roles[-len(alone) :]) == {"template"}
    answered = tokenizer(subject.template.render("x") + "I", add_special_tokens=False)["input_ids"]
    assert answered[-1] == subject.target_token_ids[0]
    assert {text.strip() for text in subject.spelling.texts(subject.target_token_ids)} == {"I"}


def test_llama_scope_threshold_as_published(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    recipe = lay_out("llama-3.1-8b", tmp_path, patch)
    published = recipe.model_copy(update={"saes": recipe.saes.model_copy(update={"threshold": "published"})})
    here, there = (open_analysis(one).saes[0] for one in (recipe, published))
    assert here.sae_id != there.sae_id
    scaled, plain = load_sae(here), load_sae(there)
    assert plain.norm == "dataset norm folded: 58.9353, threshold as published"
    torch.testing.assert_close(plain.threshold * 58.935251798561154, scaled.threshold)
    torch.testing.assert_close(plain.threshold, torch.full((WIDTH,), 0.01), rtol=0.02, atol=0)
    gemma = lay_out("gemma-2-2b", tmp_path / "gemma", patch)
    wrong = gemma.model_copy(update={"saes": gemma.saes.model_copy(update={"threshold": "published"})})
    with pytest.raises(UserError, match=r'saes.threshold = "published" is about Llama Scope'):
        load_sae(open_analysis(wrong).saes[0])


def test_wrong_l0_stops_a_real_recipe(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    recipe = lay_out("llama-3.1-8b", tmp_path, patch)
    wrong = recipe.model_copy(update={"saes": recipe.saes.model_copy(update={"l0": 2.0})})
    lake = Lake.create(tmp_path / "lake")
    with pytest.raises(UserError, match=r"2 are declared \(input scale: dataset norm folded: 58\.9353, threshold too\)"):
        ingest_study(open_analysis(wrong), lake)
    assert not lake.run_ids()


def test_wrong_width_stops_a_real_recipe(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    recipe = lay_out("gemma-2-2b", tmp_path, patch)
    patch.setattr(get_pretrained_saes_directory()["gemma-scope-2b-pt-res"], "config_overrides", None)
    patch.setattr(Subject, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=r"reads a width of 2304, but the model's residual stream has 32"):
        ingest_study(open_analysis(recipe), Lake.create(tmp_path / "lake"))
