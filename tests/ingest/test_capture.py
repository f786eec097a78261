"""Capture: a lake's activations are SAELens' own, however the work is cut, and what is wrong stops it in a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saelake.ingest import shards
from saelake.ingest.capture import CHUNK_VALUES, capture, last_residuals, length_batches, nonzeros, residuals
from saelake.ingest.job import ingest, one_ahead
from saelake.ingest.recipe import Recipe
from saelake.ingest.saes import loader
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import load_sae
from saelake.ingest.sites import Site
from saelake.ingest.subject import Subject
from saelake.warehouse.errors import UserError
from tests.ingest.small_study import BENIGN, HARMFUL, Key, activations, lake_in, sql, write_study
from tests.ingest.tiny import N_LAYERS, save_sae

TOLERANCE = 1e-4


def expected(recipe: Recipe) -> dict[Key, float]:
    """What SAELens' encode gives, prompt by prompt, each alone in its pass."""
    subject = Subject.load(recipe.model, recipe.compute)
    found: dict[Key, float] = {}
    for ref in list_saes(recipe):
        module = load_sae(ref).module
        for place, text in enumerate(HARMFUL + BENIGN):
            batch = subject.batch([subject.encode(text).token_ids])
            acts_tf = module.encode(subject.read_resid_post(batch, [ref.layer])[ref.layer][0].float())
            for pos, feature_id in acts_tf.nonzero().tolist():
                found[ref.layer, place, pos, feature_id] = acts_tf[pos, feature_id].item()
    return found


def assert_same(found: dict[Key, float], wanted: dict[Key, float]) -> None:
    """Equal up to rounding."""
    assert len(found) > 500, "enough to compare"
    assert found.keys() == wanted.keys()
    difference = max(abs(value - wanted[key]) / max(1.0, wanted[key]) for key, value in found.items())
    assert difference < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("cut", [{"shard_prompts": 128}, {"shard_prompts": 3, "batch_tokens": 40}, {"shard_prompts": 1}])
def test_lake_holds_what_saelens_encodes(tmp_path: Path, family: str, cut: dict[str, int]) -> None:
    recipe = write_study(tmp_path, family, capture=cut)
    lake = lake_in(tmp_path)
    assert_same(activations(lake, ingest(recipe, lake)), expected(recipe))


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "standard"},
        {"architecture": "jumprelu", "apply_b_dec_to_input": False},
        {"architecture": "jumprelu"},
        {"architecture": "topk", "k": 5},
    ],
)
def test_nonzeros_are_those_of_encode_to_the_bit(tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_study(tmp_path, "llama")
    save_sae(tmp_path / "saes" / "layer_0", **config)
    sae = load_sae(list_saes(recipe)[0])
    resid_nd = torch.randn(50, sae.d_in, generator=torch.Generator().manual_seed(1))
    monkeypatch.setitem(CHUNK_VALUES, "cpu", 50 * sae.width)
    acts_nf = sae.module.encode(resid_nd)
    found = nonzeros(sae, resid_nd)
    back = np.zeros(acts_nf.shape, dtype=np.float32)
    back[found.token, found.feature_id] = found.activation
    np.testing.assert_array_equal(back, acts_nf.numpy())
    assert len(found.activation) == np.count_nonzero(back)
    monkeypatch.setitem(CHUNK_VALUES, "cpu", 7 * sae.width)
    cut = nonzeros(sae, resid_nd)
    np.testing.assert_array_equal(cut.token, found.token)
    np.testing.assert_array_equal(cut.feature_id, found.feature_id)
    np.testing.assert_allclose(cut.activation, found.activation, rtol=1e-5)


def test_thresholds_below_zero_keep_only_what_relu_keeps(tmp_path: Path) -> None:
    recipe = write_study(tmp_path, "llama")
    file = tmp_path / "saes" / "layer_0" / "sae_weights.safetensors"
    weights = load_file(file)
    save_file(weights | {"threshold": weights["threshold"] - 1}, file)
    sae = load_sae(list_saes(recipe)[0])
    assert (sae.threshold < 0).any()
    resid_nd = torch.randn(20, sae.d_in, generator=torch.Generator().manual_seed(1))
    found, acts_nf = nonzeros(sae, resid_nd), sae.module.encode(resid_nd)
    assert len(found.token) == acts_nf.count_nonzero() > 0
    np.testing.assert_allclose(found.activation, acts_nf[found.token, found.feature_id].numpy(), rtol=1e-5)


def test_no_tokens_give_no_rows(tmp_path: Path) -> None:
    sae = load_sae(list_saes(write_study(tmp_path, "llama"))[0])
    assert [len(column) for column in nonzeros(sae, torch.empty(0, sae.d_in))] == [0, 0, 0]


def test_bfloat16_rounding_changes_values_and_nothing_else(tmp_path: Path) -> None:
    lake = lake_in(tmp_path)
    exact = ingest(write_study(tmp_path, "gemma2"), lake)
    rounded = ingest(write_study(tmp_path, "gemma2", capture={"round": "bfloat16"}), lake)
    assert rounded.records[-1].config["round"] == "bfloat16"
    assert set(rounded.run_ids) & set(exact.run_ids) == {exact.run_ids[0]}, "the prompts are the same"
    values = activations(lake, exact)
    expected_values = torch.tensor(list(values.values())).bfloat16().float().tolist()
    assert activations(lake, rounded) == dict(zip(values, expected_values, strict=True))


def test_bos_rows_are_kept_and_marked(tmp_path: Path) -> None:
    lake = lake_in(tmp_path)
    with sql(lake, ingest(write_study(tmp_path, "llama"), lake)) as con:
        rows = con.execute(
            "select role, count(*), count(distinct prompt_id) from activations join tokens using (prompt_id, pos) group by role"
        ).fetchall()
    found = {role: (n_rows, n_prompts) for role, n_rows, n_prompts in rows}
    assert found["bos"][0] > 0
    assert found["bos"][1] == len(HARMFUL + BENIGN)
    assert found.keys() == {"bos", "template", "user"}


def test_bfloat16_models_are_encoded_in_float32(tmp_path: Path) -> None:
    recipe = write_study(tmp_path, "llama", model={"dtype": "bfloat16"}, capture={"shard_prompts": 1})
    lake = lake_in(tmp_path)
    assert_same(activations(lake, ingest(recipe, lake)), expected(recipe))


def test_residuals_are_in_the_order_given(tmp_path: Path) -> None:
    recipe = write_study(tmp_path, "llama")
    subject = Subject.load(recipe.model, recipe.compute)
    prompts = [subject.encode(text).token_ids for text in ("How do I pick a lock?", "I", "Where is the sea?")]
    together = residuals(subject, prompts, [0, 2], max_tokens=32)
    for layer in (0, 2):
        alone = [subject.read_resid_post(subject.batch([ids]), [layer])[layer][0] for ids in prompts]
        torch.testing.assert_close(together[layer], torch.cat(alone), atol=1e-5, rtol=1e-4)
    last_bld = last_residuals(subject, prompts, [0, 2], max_tokens=12)  # more than one batch
    ends = np.cumsum([len(ids) for ids in prompts]) - 1
    for place, layer in enumerate((0, 2)):
        torch.testing.assert_close(last_bld[:, place], together[layer][ends], atol=1e-5, rtol=1e-4)
    captured = capture(subject, prompts, [Site(0), Site(2)], max_tokens=32, on_host=True)
    assert captured.order == [1, 2, 0], "shortest first"


def test_batches_hold_what_fits_and_long_prompts_come_alone() -> None:
    assert length_batches([5, 100, 6, 5], 12) == [[0, 3], [2], [1]]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers whose SAEs are loaded, in order."""
    loaded: list[int] = []

    def load(ref: Any, device: Any) -> Any:
        loaded.append(ref.layer)
        return load_sae(ref, device)

    monkeypatch.setattr(loader, "load_sae", load)
    return loaded


def test_saes_that_fit_are_loaded_once(tmp_path: Path, loads: list[int]) -> None:
    ingest(write_study(tmp_path, "llama", capture={"shard_prompts": 2}), lake_in(tmp_path))
    assert loads == [0, 1, 2]


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_saes_that_do_not_fit_are_streamed_with_the_same_result(
    tmp_path: Path, loads: list[int], monkeypatch: pytest.MonkeyPatch, n_groups: int
) -> None:
    recipe = write_study(tmp_path, "llama", capture={"shard_prompts": 2})
    resident = ingest(recipe, lake_in(tmp_path / "resident"))
    loads.clear()
    # Room for one SAE of 40 latents and no second one.
    monkeypatch.setattr(loader, "free_bytes", lambda _device: 20_000)
    room = {1: 10**9, 2: 4 * 60_000, 4: 4}[n_groups]
    monkeypatch.setattr(shards, "host_bytes", lambda: room)
    streamed = ingest(recipe, lake_in(tmp_path / "streamed"))
    assert streamed.content_hash == resident.content_hash
    assert loads == [0, 1, 2] * (n_groups + 1), "once a group, and once for the table of features"


def test_sae_that_does_not_fit_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "free_bytes", lambda _device: 10_000)
    with pytest.raises(UserError, match=r"layer_0 needs 0\.0 GB, but beside the model there is room for 0\.0 GB on cpu"):
        ingest(write_study(tmp_path, "llama"), lake_in(tmp_path))


def test_declared_l0_far_from_the_measured_one_stops_after_the_first_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_study(tmp_path, "llama", saes={"l0": [400, 400, 400]}, capture={"shard_prompts": 1})
    monkeypatch.setattr(shards, "L0_PROMPTS", 2)
    passes = counted(monkeypatch)
    lake = lake_in(tmp_path)
    with pytest.raises(UserError, match=r"layer_0 has [\d.]+ active latents a token on the first prompts, but 400 are declared"):
        ingest(recipe, lake)
    assert len(passes) == 2
    assert not lake.run_ids()


def test_declared_l0_that_is_near_enough_is_recorded(tmp_path: Path) -> None:
    lake = lake_in(tmp_path)
    record = ingest(write_study(tmp_path, "llama"), lake)
    with sql(lake, record) as con:
        measured = [l0 for (l0,) in con.execute("select measured_l0 from saes order by layer").fetchall()]
    again = ingest(write_study(tmp_path, "llama", saes={"l0": [l0 * 2 for l0 in measured]}), lake)
    with sql(lake, again) as con:
        assert con.execute("select measured_l0 from saes order by layer").fetchall() == [(l0,) for l0 in measured]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every shard that is captured."""
    passes: list[int] = []

    def count(*args: Any, **options: Any) -> Any:
        passes.append(1)
        return capture(*args, **options)

    monkeypatch.setattr(shards, "capture", count)
    return passes


def test_saes_are_checked_before_any_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_study(tmp_path, "llama")
    save_sae(tmp_path / "saes" / "layer_2", layer=2, d_in=48)
    monkeypatch.setattr(Subject, "load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(loader, "load_sae", lambda *_: pytest.fail("an SAE was loaded"))
    with pytest.raises(UserError, match=r"layer_2 reads a width of 48, but the model's residual stream has 32"):
        ingest(recipe, lake_in(tmp_path))


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_residuals_that_are_not_numbers_name_their_layer(tmp_path: Path, layer: int) -> None:
    recipe = write_study(tmp_path, "llama")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights[f"model.layers.{layer}.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"the model's residual stream after layer {layer} holds values that are not finite"):
        ingest(recipe, lake_in(tmp_path))


def test_saes_with_values_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    recipe = write_study(tmp_path, "llama")
    file = tmp_path / "saes" / "layer_1" / "sae_weights.safetensors"
    weights = load_file(file)
    weights["W_enc"][3, 3] = float("inf")
    save_file(weights, file)
    with pytest.raises(UserError, match=r"layer_1 has values in W_enc that are not finite numbers"):
        ingest(recipe, lake_in(tmp_path))


def test_activations_that_overflow_name_their_sae(tmp_path: Path) -> None:
    recipe = write_study(tmp_path, "llama")
    file = tmp_path / "saes" / "layer_1" / "sae_weights.safetensors"
    weights = load_file(file)
    save_file(weights | {"b_enc": torch.full_like(weights["b_enc"], 3e38), "W_enc": weights["W_enc"] * 1e38}, file)
    with pytest.raises(UserError, match=r"the SAE \S+ gives activations that are not finite numbers"):
        ingest(recipe, lake_in(tmp_path))


def test_one_ahead_keeps_order_and_passes_errors_on() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise UserError("after five")

    seen: list[Any] = []
    with pytest.raises(UserError, match="after five"):
        seen.extend(one_ahead(items()))
    assert seen == [0, 1, 2, 3, 4]
