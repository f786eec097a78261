"""The plan of a study: right about what is here, honest about what is not, and no download on the way."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner

import saelake
from saelake import cli
from saelake.analysis.engine import memory, slices
from saelake.analysis.stage_list import COMPUTED
from saelake.ingest import capture, preflight, unembedding
from saelake.ingest.access import access_to, require_access
from saelake.ingest.job import ingest
from saelake.ingest.model_shape import KNOWN, read_shape
from saelake.ingest.plan import estimate
from saelake.ingest.plan.estimate import PREFILL_SHARE, _timed, make_plan
from saelake.ingest.plan.sizes import width_of
from saelake.ingest.plan.table import render, size, time
from saelake.ingest.plan.work import StageWork, corpus, judge_work, stage_work
from saelake.ingest.recipe import Compute, ModelSpec, Recipe, load_recipe
from saelake.ingest.saes.description import sae_bytes
from saelake.ingest.study import open_study
from saelake.warehouse.errors import UserError
from saelake.warehouse.lake import Lake
from tests.conftest import ROOT
from tests.ingest.small_study import lake_in, write_study
from tests.ingest.tiny import as_hub_cache, save_model


@pytest.fixture(autouse=True)
def _nothing_downloaded(offline_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setenv("SAELAKE_CACHE", str(tmp_path / "prompts"))


def on_one_thread(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"compute": Compute(device="cpu", threads=1)})


def test_rows_and_bytes_of_the_organism_are_within_a_tenth(tmp_path: Path) -> None:
    recipe = on_one_thread(load_recipe("organism"))
    planned = make_plan(recipe)
    lake = Lake.create(tmp_path / "lake")
    record = ingest(recipe, lake)
    assert planned.lake.n_tokens == record.n_rows("tokens")
    assert planned.lake.n_activations == pytest.approx(record.n_rows("activations"), rel=0.1)
    assert planned.lake.n_bytes == pytest.approx(sum(file.n_bytes for file in record.files), rel=0.1)
    assert planned.lake.known_by == "a sample of 160 prompts"
    assert planned.problems == []


def test_limited_study_is_planned_as_limited() -> None:
    recipe = on_one_thread(load_recipe("organism"))
    assert corpus(recipe.limit(5)).n_prompts == len(open_study(recipe.limit(5)).prompts)


def test_what_the_plan_counts_with_is_what_is_held_at_once() -> None:
    """Where it cannot import the number."""
    assert slices.KEPT == estimate.SLICES
    assert unembedding.VOCABULARY_AT_ONCE == estimate.UNEMBEDDED
    assert 4 * max(capture.CHUNK_VALUES.values()) == estimate.ENCODED
    assert memory.MOST_TOKENS["cpu"] * memory.ANSWERING == estimate.ANSWERED_TOKENS


def test_passes_of_the_organism_are_those_of_its_stages() -> None:
    recipe = load_recipe("organism")
    shape = read_shape(recipe.model)
    assert shape is not None
    found = corpus(recipe)
    work = {one.stage: one for one in stage_work(recipe, found, shape)}
    prompts = open_study(recipe).prompts
    test = [prompt for prompt in prompts if prompt.split == "test"]
    harmful = [prompt for prompt in test if prompt.label == "harmful"]
    assert work["ingest"].passes == len(prompts)
    assert work["baseline"].answers == 2 * len(test)
    assert work["candidates"].answers == len(test) * 20 * 2, "every K, both directions"
    most = work["algorithm1"].most
    assert most is not None
    assert most[0] == len(harmful) * 3 * (20 * 4 // 5 + 1), "the identity: one evaluation a step, not two"
    assert work["algorithm1"].passes == len(harmful) * 3 * (2 * 4 // 5 + 1), "pools of a tenth of the cap are expected"
    assert work["candidates"].share == pytest.approx(4 / 6), "the two excluded layers are not computed again"


def test_stages_after_the_search_are_those_that_the_organism_ran(organism_lake: Path) -> None:
    """Two of 120 harmful prompts are answered anyway and not searched."""
    recipe = load_recipe("organism")
    shape = read_shape(recipe.model)
    assert shape is not None
    planned = {one.stage: one for one in stage_work(recipe, corpus(recipe), shape)}
    with saelake.open(organism_lake) as opened:
        ran = dict(opened.sql("select stage, count(*) from ablations group by all").fetchall())
        ((texts,),) = opened.sql("select count(*) from losses").fetchall()
    for stage in ("candidates", "steering"):
        assert planned[stage].answers == ran[stage]
        assert planned[stage].most is None, "it does not depend on what is found"
    most = {stage: one.most[0] + one.most[1] for stage, one in planned.items() if one.most is not None}
    assert ran["controls"] <= most["controls"] <= ran["controls"] + 8 * 3 * 120, "no set is common at every threshold"
    for stage in ("controls", "waking", "backups"):
        expected = (
            planned[stage].answers + planned[stage].passes / 2
        )  # a waking pass is run twice: for what fires, and what is said
        assert ran[stage] / 2 <= expected <= 2 * ran[stage], stage
        assert ran[stage] <= most[stage], stage
    for stage in ("inert", "stage3", "stage3_probe", "minimal"):
        assert planned[stage].answers == pytest.approx(ran[stage], rel=0.05), stage
    assert planned["losses"].passes == texts
    by_sql = {"alignments", "decoder_cosines", "waking_graph", "fm", "probe", "taxonomy", "populations", "concepts", "separation"}
    runs_the_model = {stage.name for stage in COMPUTED} - by_sql - {"logits"}  # the unembedding alone: a thousandth of the whole
    assert set(planned) == runs_the_model | {"ingest", "fm, probe"}, "every stage that runs the model is planned"


def test_classifier_is_planned_where_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = make_plan(load_recipe("gemma-2-2b"))
    judged = next(one for one in planned.stages if one.work.stage == "harmbench")
    assert judged.work.passes == sum(one.work.answers for one in planned.stages)
    assert ("classifier, where it judges", 26_000_000_000) in [(one.what, one.n_bytes) for one in planned.memory]
    monkeypatch.setattr("saelake.warehouse.machine.host_bytes", lambda: 24_000_000_000)
    (short,) = (problem for problem in make_plan(load_recipe("gemma-2-2b")).problems if "classifier" in problem)
    assert short.startswith("the model takes 5.2 GB and the classifier 26.0 GB beside it, but cpu has 24.0 GB free: ingest works")
    assert not any("classifier" in problem for problem in make_plan(load_recipe("gemma-3-270m")).problems)


def test_a_narrow_model_does_not_slow_the_classifier() -> None:
    recipe = load_recipe("gemma-2-2b")
    wide = read_shape(recipe.model)
    assert wide is not None
    found = corpus(recipe)
    (judged,) = judge_work(recipe, found, [StageWork("baseline", 0, 10, 1.0)])
    assert judged.length is not None
    narrow = replace(wide, d_model=128)
    hours = [_timed(judged, recipe, shape, [], found, (1e9, 1e9), "cpu").hours for shape in (wide, narrow)]
    assert hours[0] == hours[1] == pytest.approx(10 * judged.length * 2 * 13 / PREFILL_SHARE["cpu"] / 3600)


def test_the_classifier_reads_more_only_where_more_is_answered_if_much_is_found() -> None:
    recipe = load_recipe("gemma-2-2b")
    same, more = StageWork("baseline", 0, 10, 1.0), StageWork("minimal", 0, 10, 1.0, most=(0, 30))
    assert [one.most for one in judge_work(recipe, corpus(recipe), [same])] == [None]
    assert [one.most for one in judge_work(recipe, corpus(recipe), [same, more])] == [(40, 0)]


def test_saes_that_are_to_be_trained_are_as_large_as_their_training_makes_them(tmp_path: Path) -> None:
    """And their training is the first row; the steps' products, two forwards and four backwards, at the rate of float32."""
    recipe = write_study(tmp_path, "llama", saes={"path": tmp_path / "own" / "layer_{layer}", "layers": [0, 2]})
    training = recipe.train_saes.model_copy(update={"width": 96, "l0": 8, "steps": 40, "batch_tokens": 128})
    recipe = recipe.model_copy(update={"train_saes": training})
    planned = make_plan(recipe)
    shape = read_shape(recipe.model)
    assert shape is not None
    assert {one.what: one.n_bytes for one in planned.memory}["all SAEs, if they are kept"] == 2 * sae_bytes(shape.d_model, 96)
    assert planned.lake.known_by == "the L0 that train_saes aims at, first tokens apart"
    assert planned.lake.n_activations == planned.lake.n_tokens * 2 * 8
    first = planned.stages[0].work
    assert (first.stage, first.passes, first.answers) == ("train-saes", 2 * 40, 0)
    hours = _timed(first, recipe, shape, [], corpus(recipe), (1e9, 1e6), "cpu").hours
    products = 2 * 40 * 128 * 6 * 2 * 96 * shape.d_model
    assert hours * 3600 == pytest.approx(first.waits * products / 1e6 / PREFILL_SHARE["cpu"])
    assert make_plan(load_recipe("organism"), measure=False).stages[0].work.stage == "ingest", "whose SAEs are there"


def test_the_rate_is_that_of_the_recipes_threads() -> None:
    """Of the organism's one, whatever torch would take by itself."""
    before = torch.get_num_threads()
    rates = {n: min(estimate._rate("cpu", "float32", n) for _ in range(3)) for n in (1, 4)}
    assert rates[4] == pytest.approx(4 * rates[1], rel=0.5)
    assert torch.get_num_threads() == before


def test_what_is_not_counted_is_said() -> None:
    assert "not counted: the loading of models; audit, atlas and judge" in render(
        make_plan(load_recipe("planted"), measure=False)
    )


def test_gemma_is_planned_without_network_or_files() -> None:
    planned = make_plan(load_recipe("gemma-2-2b"))
    sizes = {one.what: one for one in planned.downloads}
    assert sizes["model"].n_bytes == pytest.approx(5.23e9, rel=0.01)
    assert sizes["16 SAEs"].n_bytes == pytest.approx(16 * 2 * 2304 * 65_536 * 4, rel=0.01)
    assert {one.known_by for one in planned.downloads} == {"estimate"}
    assert not any(one.is_here for one in planned.downloads)
    assert planned.lake.known_by == "declared L0"
    assert planned.lake.n_activations == planned.lake.n_tokens * 972, "the paper's L0s add up to this"
    memory = {one.what.split(" ")[0]: one.n_bytes for one in planned.memory}
    assert memory["largest"] == pytest.approx(1.2e9, rel=0.02)
    assert memory["all"] == pytest.approx(19.3e9, rel=0.02)
    published = next(one.work.note for one in planned.stages if one.work.stage == "algorithm1")
    assert "23,143,680 passes" in published, "861 prompts, 24 runs of the loop, 14 layers of 200: 23 million"


def test_first_hour_tells_what_the_plan_tells() -> None:
    """docs/first-hour.md has the figures that do not depend on a device."""
    told = (ROOT / "docs" / "first-hour.md").read_text("utf-8")
    recipe = load_recipe("gemma-2-2b")
    whole, quick = make_plan(recipe), make_plan(recipe.limit(8))
    figures = [f"{whole.lake.n_tokens:,}", f"{whole.lake.n_activations:,}", size(whole.lake.n_bytes), size(quick.lake.n_bytes)]
    figures += [f"{quick.lake.n_tokens:,}", *(size(one.n_bytes) for one in whole.downloads)]
    figures += [size(one.n_bytes) for one in whole.memory]
    own = ("direction", "baseline", "candidates", "algorithm1", "minimal", "controls", "harmbench")
    work = {one.work.stage: one.work for one in whole.stages}
    figures += [f"{n:,}" for stage in own for n in (work[stage].passes, work[stage].answers) if n]
    assert [figure for figure in figures if figure not in told] == []


def test_llama_fits_a_small_card_layer_by_layer() -> None:
    planned = make_plan(load_recipe("llama-3.1-8b"))
    memory = {one.what.split(" ")[0]: one.n_bytes for one in planned.memory}
    assert memory["model"] + memory["largest"] + memory["residuals"] < 24e9 < memory["model"] + memory["all"]
    assert 16e9 < memory["ablation"] < memory["ingest"] < 24e9
    assert memory["ablation"] < memory["model"] + 1e9, "no whole SAE is on the device"


def test_missing_licence_is_a_sentence_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "google/gemma-2-2b-it asks for the Gemma licence to be accepted"
    recipe = load_recipe("gemma-2-2b")
    assert [expected in problem for problem in make_plan(recipe).problems if "licence" in problem] == [True]
    with pytest.raises(UserError, match=expected):
        open_study(recipe)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    assert access_to(recipe.model).state == "token", "offline nobody can say whether it is accepted"
    require_access(recipe.model)


def test_open_models_and_scopes_need_no_licence() -> None:
    assert access_to(ModelSpec(id="HuggingFaceTB/SmolLM2-135M-Instruct")).state == "open"
    assert access_to(ModelSpec(id="google/gemma-scope-2b-pt-res")).licence is None
    assert access_to(ModelSpec(id="meta-llama/Llama-3.1-8B-Instruct")).licence == "the Llama licence"


def test_gated_model_in_the_cache_is_here(offline_hub: Path) -> None:
    save_model("gemma2", as_hub_cache(offline_hub, "google/gemma-2-2b-it", "a" * 40))
    model = ModelSpec(id="google/gemma-2-2b-it")
    assert access_to(model).state == "here"
    shape = read_shape(model)
    assert shape is not None
    assert (shape.d_model, shape.known_by) == (32, "config"), "what is here goes before what is known"


def test_too_little_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelake.warehouse.machine.host_bytes", lambda: 4_000_000_000)
    planned = make_plan(load_recipe("gemma-2-2b"))
    assert (
        "the model takes 5.2 GB in bfloat16 and its largest SAE 1.2 GB, but cpu has 4.0 GB free: use a device with more memory"
    ) in planned.problems
    monkeypatch.setattr(preflight, "host_bytes", lambda: 30_000)
    with pytest.raises(UserError, match=r'the model takes .* in float32 .* or set model\.dtype = "bfloat16"'):
        ingest(write_study(tmp_path, "llama"), lake_in(tmp_path))


def test_the_peak_of_the_organism_is_about_what_was_measured() -> None:
    """0.81 GB, the largest resident size of a whole `analyze` with one thread; a large model is not analysed on a CPU."""
    by_name = {one.what: one.n_bytes for one in make_plan(on_one_thread(load_recipe("organism")), measure=False).memory}
    assert by_name["analyze at its peak on this CPU, with its libraries"] == pytest.approx(0.81e9, rel=0.33)
    assert not any("at its peak" in one.what for one in make_plan(load_recipe("gemma-2-2b")).memory)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_small_studies_are_measured(tmp_path: Path, family: str) -> None:
    recipe = write_study(tmp_path, family)
    planned = make_plan(recipe)
    record = ingest(recipe, lake_in(tmp_path))
    assert planned.lake.n_activations == record.n_rows("activations"), "the sample is the study"
    guessed = make_plan(recipe, measure=False).lake
    assert guessed.known_by == "a guess of L0 = 64"
    assert guessed.n_tokens == planned.lake.n_tokens


def test_parameters_are_counted_as_the_model_does(tmp_path: Path) -> None:
    from saelake.ingest.subject import Subject

    for family in ("llama", "gemma2", "gemma3", "qwen3"):
        spec = ModelSpec(path=save_model(family, tmp_path / family))
        shape = read_shape(spec)
        assert shape is not None
        loaded = sum(weight.numel() for weight in Subject.load(spec, Compute(device="cpu")).model.parameters())
        assert shape.n_parameters == pytest.approx(loaded, rel=0.03), f"{family}: all but norms"
    assert KNOWN["google/gemma-2-2b-it"].n_layers == 26


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("layer_3/width_65k/average_l0_42", 65_536),
        ("layer_5_width_16k_l0_medium", 16_384),
        ("layer_5/width_1m/average_l0_9", 1_048_576),
        ("llama_scope_lxr_32x/l3r_32x", 131_072),
    ],
)
def test_width_by_name(name: str, width: int) -> None:
    assert width_of(name, 4096) == width


def test_command_line_shows_it_and_says_what_is_missing() -> None:
    shown = CliRunner().invoke(cli.main, ["plan", "gemma-2-2b"])
    assert shown.exit_code == 1
    for part in ("access and downloads", "google/gemma-scope-2b-pt-res", "19.3 GB", "harmful", "861", "work · estimated"):
        assert part in shown.output
    assert "licence" in shown.output
    as_json = CliRunner().invoke(cli.main, ["plan", "organism", "--format", "json", "--no-measure"])
    assert as_json.exit_code == 0
    read: dict[str, Any] = json.loads(as_json.output)
    assert read["lake"]["n_tokens"] == 12_025
    assert [one["work"]["stage"] for one in read["stages"]][:2] == ["ingest", "direction"]


def test_model_of_unknown_size_is_named(tmp_path: Path) -> None:
    recipe = write_study(tmp_path, "llama")
    unknown = recipe.model_copy(update={"model": ModelSpec(id="acme/unknown")})
    with pytest.raises(UserError, match=r"the size of acme/unknown is not known here: download its config\.json first"):
        make_plan(unknown)


def test_numbers_for_people() -> None:
    assert [size(n) for n in (None, 512, 1_208_500_000, 999_600_000)] == ["-", "512 B", "1.21 GB", "1 GB"]
    assert [time(hours) for hours in (0.001, 0.5, 30)] == ["3.6 s", "30 min", "30 h"]
    assert "organism" in render(make_plan(load_recipe("organism"), measure=False), width=80)
