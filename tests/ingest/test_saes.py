"""SAEs: named without torch, loaded as SAELens loads them, refused with a sentence where the engine could not be exact."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from saelake.ingest.saes.description import read_description
from saelake.ingest.saes.refs import list_saes
from saelake.ingest.saes.sae import Sae, check_fits, load_sae
from saelake.warehouse.errors import UserError
from tests.ingest.saes import ELEMENTWISE, TOPK, local, recipe_of, saved
from tests.ingest.tiny import D_MODEL, N_LAYERS, as_hub_cache, save_sae
from tests.paper import GEMMA_L0

COMMIT = "c" * 40


def assert_gate(sae: Sae, resid_nd: torch.Tensor) -> None:
    """The weights that lie open are those by which SAELens encodes."""
    pre_nf = (resid_nd - sae.b_dec * sae.apply_b_dec_to_input) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(pre_nf.relu() * (pre_nf > sae.threshold), sae.encode(resid_nd))


def sizes(n_layers: int = N_LAYERS, d_model: int = D_MODEL) -> Any:
    """Stands for a Subject where only its sizes matter."""
    return SimpleNamespace(n_layers=n_layers, d_model=d_model)


@pytest.fixture
def resid_btd() -> torch.Tensor:
    return torch.randn(3, 7, D_MODEL, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", ELEMENTWISE + TOPK)
def test_encode_and_decode_are_saelens_own(tmp_path: Path, resid_btd: torch.Tensor, config: dict[str, Any]) -> None:
    from sae_lens import SAE

    sae = saved(tmp_path, **config)
    theirs = SAE.load_from_disk(tmp_path / "layer_0", dtype="float32")
    acts_btf = sae.encode(resid_btd)
    assert torch.equal(acts_btf, theirs.encode(resid_btd))
    assert torch.equal(sae.decode(acts_btf), theirs.decode(acts_btf))
    torch.testing.assert_close(sae.decode(acts_btf), acts_btf @ sae.W_dec + sae.b_dec, msg="W_dec is one unit of activation")
    assert 0 < (acts_btf > 0).float().mean() < 0.9
    assert sae.elementwise == (config in ELEMENTWISE)
    if sae.elementwise:
        assert_gate(sae, resid_btd)


def test_bfloat16_residuals_are_encoded_in_float32(tmp_path: Path, resid_btd: torch.Tensor) -> None:
    sae = saved(tmp_path)
    rounded = resid_btd.bfloat16()
    assert torch.equal(sae.encode(rounded), sae.encode(rounded.float()))


def test_weights_that_were_saved_in_half_precision_become_float32(tmp_path: Path) -> None:
    sae = saved(tmp_path, dtype="float16")
    assert {one.dtype for one in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)} == {torch.float32}
    assert (sae.layer, sae.d_in, sae.width, sae.norm) == (0, D_MODEL, 40, "none")
    assert (sae.W_enc.shape, sae.W_dec.shape) == ((D_MODEL, 40), (40, D_MODEL))


def test_relu_has_no_threshold(tmp_path: Path) -> None:
    assert not saved(tmp_path, architecture="standard").threshold.any()


def test_sae_trained_by_saelens_is_read(tmp_path: Path, resid_btd: torch.Tensor) -> None:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    trained = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=16, k=4))
    trained.topk_threshold.fill_(0.2)
    trained.save_inference_model(tmp_path / "layer_0")
    sae = load_sae(local(tmp_path)[0])
    assert (sae.description.architecture, sae.elementwise) == ("jumprelu", True)
    check_fits(sae, sizes())  # no hook point is declared, so only the width counts
    assert_gate(sae, resid_btd)


def test_dataset_norm_is_folded(tmp_path: Path, resid_btd: torch.Tensor) -> None:
    plain = saved(tmp_path / "plain")
    scaled = saved(tmp_path / "scaled", normalize_activations="expected_average_only_in", metadata={"norm_scaling_factor": 2.0})
    torch.testing.assert_close(scaled.encode(resid_btd / 2), plain.encode(resid_btd))
    torch.testing.assert_close(scaled.decode(scaled.encode(resid_btd / 2)) * 2, plain.decode(plain.encode(resid_btd)))
    assert scaled.norm == "dataset norm folded: 2"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"normalize_activations": "layer_norm"}, "normalises every token by itself (layer_norm)"),
        ({"normalize_activations": "constant_norm_rescale"}, "normalises every token by itself (constant_norm_rescale)"),
        ({"normalize_activations": "expected_average_only_in"}, "does not say the scale"),
        ({"architecture": "temporal"}, "is a temporal SAE: its latents depend on earlier tokens"),
        ({"architecture": "matching_pursuit"}, "is a matching_pursuit SAE: its latents are found one after another"),
        ({"architecture": "abstopk", "k": 5}, "is a abstopk SAE: its activations can be negative"),
        ({"architecture": "crosslayer_transcoder"}, "is a crosslayer_transcoder SAE: it writes to several layers at once"),
        ({"architecture": "crosscoder"}, "is a crosscoder SAE: it reads several layers at once"),
        ({"architecture": "unheard_of"}, "is a unheard_of SAE; supported are standard, gated, jumprelu, "),
    ],
)
def test_saes_that_cannot_be_ablated_exactly_are_refused(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    folder = save_sae(tmp_path / "layer_0", **config)
    for reader in (read_description, load_sae):
        with pytest.raises(UserError) as caught:
            reader(local(tmp_path)[0])
        assert expected in str(caught.value)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "hook",
    [
        None,
        "blocks.0.hook_resid_post",
        "model.layers.0",
        "model.layers.0.output",
        "blocks.1.hook_resid_pre",
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_mlp_out",
        "blocks.0.attn.hook_z",
        "model.layers.0.post_feedforward_layernorm.output",
    ],
)
def test_sae_of_this_place_fits(tmp_path: Path, hook: str | None) -> None:
    save_sae(tmp_path / "layer_0", metadata={"hook_name": hook})
    check_fits(read_description(local(tmp_path)[0]), sizes())


@pytest.mark.parametrize(
    "hook", ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.2.hook_resid_pre", "model.layers.2"]
)
def test_sae_of_another_layer_does_not_fit(tmp_path: Path, hook: str) -> None:
    save_sae(tmp_path / "layer_0", metadata={"hook_name": hook})
    with pytest.raises(UserError, match=f"was trained on {hook}, but the recipe uses it for layer 0"):
        check_fits(read_description(local(tmp_path)[0]), sizes())


def test_sae_of_a_place_that_is_no_site_does_not_fit(tmp_path: Path) -> None:
    save_sae(tmp_path / "layer_0", metadata={"hook_name": "hook_embed"})
    with pytest.raises(
        UserError, match="was trained on hook_embed: hook_embed is not a site that SAEs can be used at: these are blocks"
    ):
        check_fits(read_description(local(tmp_path)[0]), sizes())


def test_a_gated_sae_is_one_matrix_and_a_threshold(tmp_path: Path) -> None:
    sae = saved(tmp_path, architecture="gated")
    resid_nd = torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(1))
    pre_nf = sae.pre_activations(resid_nd, torch.empty(200, sae.width))
    acts_nf = sae.encode(resid_nd)
    assert sae.elementwise
    assert 0.1 < (acts_nf > 0).float().mean() < 0.9
    torch.testing.assert_close(pre_nf.relu() * (pre_nf > sae.threshold), acts_nf, atol=1e-5, rtol=1e-5)


def test_sae_of_another_size_does_not_fit(tmp_path: Path) -> None:
    sae = saved(tmp_path)
    with pytest.raises(UserError, match=f"reads a width of {D_MODEL}, but the model's residual stream has 64"):
        check_fits(sae, sizes(d_model=64))
    save_sae(tmp_path / "layer_5", layer=5)
    with pytest.raises(UserError, match=r"saes\.layers: layer 5 does not exist: the model has 3 layers"):
        check_fits(read_description(local(tmp_path, (5,))[0]), sizes())


def test_local_saes_are_named_by_layer_and_content_not_by_place(tmp_path: Path) -> None:
    for copy in ("a", "b"):
        for layer in range(2):
            save_sae(tmp_path / copy / f"layer_{layer}", layer=layer, seed=layer)
    here, there = local(tmp_path / "a", (0, 1), l0=[3, 4]), local(tmp_path / "b", (0, 1))
    assert [ref.sae_id for ref in here] == [ref.sae_id for ref in there]
    assert [ref.name for ref in here] == [ref.name for ref in there]
    assert here[1].sae_id == f"layer_01-{here[1].content_hash[:8]}"
    assert [ref.declared_l0 for ref in here + there] == [3, 4, None, None]
    save_sae(tmp_path / "b" / "layer_0", layer=0, seed=9)
    assert local(tmp_path / "b", (0, 1))[0].sae_id != here[0].sae_id


def test_damaged_sae_files_are_named(tmp_path: Path) -> None:
    folder = save_sae(tmp_path / "layer_0")
    ref = local(tmp_path)[0]
    (folder / "sae_weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"saes: {folder} cannot be loaded"):
        load_sae(ref)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(UserError, match=f"saes: the configuration of {folder} cannot be read"):
        load_sae(ref)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(UserError, match=rf"saes\.path, layer 0: there are no \.safetensors weights in {folder}"):
        local(tmp_path)


def test_llama_scope_loads_by_release_with_its_norm_folded(offline_hub: Path) -> None:
    snapshot = as_hub_cache(offline_hub, "fnlp/Llama3_1-8B-Base-LXR-32x", COMMIT)
    folder = snapshot / "Llama3_1-8B-Base-L1R-32x"
    (folder / "checkpoints").mkdir(parents=True)
    parameters = {
        "d_model": 8,
        "d_sae": 12,
        "jump_relu_threshold": 0.1,
        "dataset_average_activation_norm": {"in": 4.0},
        "hook_point_in": "blocks.1.hook_resid_post",
    }
    (folder / "hyperparams.json").write_text(json.dumps(parameters))
    weights = {"encoder.weight": (12, 8), "encoder.bias": (12,), "decoder.weight": (8, 12), "decoder.bias": (8,)}
    random = {name: torch.randn(*shape) for name, shape in weights.items()}
    save_file(random, folder / "checkpoints" / "final.safetensors")

    (ref,) = list_saes(recipe_of(release="llama_scope_lxr_32x", id="l{layer}r_32x", layers=[1]))
    assert ref.name == f"llama_scope_lxr_32x/l1r_32x@{COMMIT}"
    assert ref.declared_l0 == 50, "SAELens' directory declares it"
    sae = load_sae(ref)
    assert sae.description.hook == "blocks.1.hook_resid_post"
    assert sae.norm.startswith("dataset norm folded: ")
    scale = sae.W_enc[0, 0] / random["encoder.weight"][0, 0]
    assert sae.norm == f"dataset norm folded: {scale:.6g}, threshold too"
    assert_gate(sae, torch.randn(5, 8))


def test_hub_repository_that_saelens_does_not_list(offline_hub: Path) -> None:
    snapshot = as_hub_cache(offline_hub, "acme/saes", COMMIT)
    save_sae(snapshot / "layer_0")
    absent = offline_hub / "models--acme--saes" / ".no_exist" / COMMIT / "layer_0"
    absent.mkdir(parents=True)
    (absent / "sparsity.safetensors").touch()  # how the hub cache remembers that there is no such file
    (ref,) = list_saes(recipe_of(release="acme/saes", id="layer_{layer}", layers=[0], revision=COMMIT))
    assert (ref.name, ref.declared_l0) == (f"acme/saes/layer_0@{COMMIT}", None)
    check_fits(load_sae(ref), sizes())
    with pytest.raises(UserError, match=rf"saes\.revision is {'d' * 40}, but acme/saes is at commit {COMMIT}"):
        list_saes(recipe_of(release="acme/saes", id="layer_{layer}", layers=[0], revision="d" * 40))


def test_gemma_scope_ids_are_those_of_the_paper(offline_hub: Path) -> None:
    as_hub_cache(offline_hub, "google/gemma-scope-2b-pt-res", COMMIT)
    pattern = "layer_{layer}/width_65k/average_l0_{l0}"
    refs = list_saes(recipe_of(release="gemma-scope-2b-pt-res", id=pattern, layers=range(16), l0=GEMMA_L0))
    assert refs[2].location == "gemma-scope-2b-pt-res/layer_2/width_65k/average_l0_77"
    assert [ref.declared_l0 for ref in refs] == list(GEMMA_L0)
    assert len({ref.sae_id for ref in refs}) == 16


@pytest.mark.parametrize(
    ("saes", "expected"),
    [
        ({"release": "gemma-scope-2b-pt-re", "id": "x"}, "SAELens knows no release 'gemma-scope-2b-pt-re' (did you mean"),
        (
            {"release": "llama_scope_lxr_32x", "id": "l0r_8x"},
            "release llama_scope_lxr_32x has no SAE 'l0r_8x' (did you mean 'l0r_32x'?)",
        ),
        ({"release": "acme/none", "id": "x"}, "saes.release: acme/none with revision main is not in the local hub cache"),
    ],
)
def test_unknown_releases_and_ids_are_named(offline_hub: Path, saes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        list_saes(recipe_of(layers=[0], **saes))
    assert expected in str(caught.value)
