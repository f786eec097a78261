"""SAEs given to the engine from Python: which site they act at, what of theirs is edited, and what cannot be."""

import warnings
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import (
    SAE,
    AbsTopKSAE,
    AbsTopKSAEConfig,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TemporalSAE,
    TemporalSAEConfig,
)
from torch import Tensor

import saelake
from tests.analysis.library_model import TEXTS, WIDTH, engine, held, ids_of, p_by_hand, sae, subject
from tests.ingest.tiny import D_MODEL


def test_several_saes_of_one_layer_are_told_apart() -> None:
    saes = [sae(1), sae(1, seed=1), sae(1, hook="hook_mlp_out"), sae(0)]
    several = saelake.Engine(subject(), saes)
    text, ids = TEXTS[0], ids_of(TEXTS[0])
    first, second, third, _ = several.saes
    assert len(several.saes) == 4
    with pytest.raises(saelake.UserError, match=f"1 has several SAEs, {first}, {second}, {third}: name one by its sae_id"):
        several.answer([text], ablate={1: [0]})
    with pytest.raises(saelake.UserError, match="has several SAEs"):
        several.answer([text], ablate={"blocks.1.hook_resid_post": [0]})
    zero = dict.fromkeys(range(20), 0.0)
    for key, module in ((first, sae(1)), (second, sae(1, seed=1))):
        p = several.next_token([text], ablate={key: range(20)}).p_target[0]
        assert p == pytest.approx(p_by_hand(ids, {1: held(module, zero)}), abs=1e-5)
    both = several.next_token([text], ablate={first: range(20), second: range(20)}).p_target[0]
    one, other = held(sae(1), zero), held(sae(1, seed=1), zero)
    assert both == pytest.approx(p_by_hand(ids, {1: lambda h: other(one(h))}), abs=1e-5), "in the order of the engine"
    by_hook = several.next_token([text], ablate={"blocks.1.hook_mlp_out": range(20)}).p_target[0]
    assert by_hook == several.next_token([text], ablate={third: range(20)}).p_target[0]
    table = several.activations([text], saes=[first, second])
    assert set(table["sae_id"].to_pylist()) == {first, second}
    with pytest.raises(saelake.UserError, match=f"saes names {third} twice"):
        several.activations([text], saes={third: [1], "blocks.1.hook_mlp_out": [2]})


@pytest.mark.parametrize("answer", [False, True])
def test_activations_are_what_saelens_encodes_of_prompt_and_answer(answer: bool) -> None:
    n_new = 4 if answer else 0
    table = engine().activations(TEXTS, ablate={0: range(10)}, max_new_tokens=n_new)
    assert table.column_names == ["prompt", "pos", "sae_id", "feature_id", "activation"]
    answers = engine().answer(TEXTS, ablate={0: range(10)}, max_new_tokens=4).token_ids if answer else [[], []]
    for place, text in enumerate(TEXTS):
        ids = [*ids_of(text), *answers[place]]
        seen: dict[int, Tensor] = {}

        def keep(layer: int, resid_btd: Tensor, seen: dict[int, Tensor] = seen) -> None:
            seen[layer] = sae(layer).encode(resid_btd)[0]

        with torch.no_grad(), ExitStack() as hooks:
            for layer in range(3):
                hooks.enter_context(subject().resid_post(layer, partial(keep, layer)))
                if layer == 0:
                    hooks.enter_context(subject().resid_post(0, held(sae(0), dict.fromkeys(range(10), 0.0))))
            subject().model(torch.tensor([ids]), use_cache=False)
        for layer in range(3):
            mine = table.filter((np.array(table["prompt"]) == place) & (np.array(table["sae_id"]) == engine().sae_id(layer)))
            dense = torch.zeros(len(ids), WIDTH)
            dense[mine["pos"].to_numpy(), mine["feature_id"].to_numpy()] = torch.tensor(mine["activation"].to_numpy())
            torch.testing.assert_close(dense, seen[layer], atol=1e-4, rtol=1e-4)
    order = list(zip(table["prompt"].to_pylist(), table["pos"].to_pylist(), strict=True))
    assert all(one <= other for one, other in pairwise(order))


def test_saes_are_given_by_site_hook_or_layer_and_stay_as_they_are() -> None:
    plain = sae(1)
    before = {name: one.clone() for name, one in plain.named_parameters()}
    for key in (1, "blocks.1.hook_resid_post", saelake.Site(1), "model.layers.1"):
        given = saelake.Engine(subject(), {key: plain})
        assert given.next_token(TEXTS, ablate={1: [2, 5]}).p_target == pytest.approx(
            engine().next_token(TEXTS, ablate={1: [2, 5]}).p_target
        )
    for name, one in plain.named_parameters():
        assert torch.equal(one, before[name])
        assert one.requires_grad
    other = saelake.Engine(subject(), {"blocks.1.hook_mlp_out": plain})
    assert other.saes[other.sae_id(1)].reads == saelake.Site(1, "mlp_out")
    with pytest.raises(saelake.UserError, match=r"the SAE layer_01-\w+ is given twice"):
        saelake.Engine(subject(), [plain, plain])
    with pytest.raises(saelake.UserError, match="a str is not an SAE of SAELens"):
        saelake.Engine(subject(), ["layer_1"])


def test_saes_that_cannot_be_edited_exactly_say_what_they_lack() -> None:
    temporal = TemporalSAE(TemporalSAEConfig(d_in=D_MODEL, d_sae=32, n_heads=2, n_attn_layers=1, bottleneck_factor=1))
    pursuit = MatchingPursuitSAE(MatchingPursuitSAEConfig(d_in=D_MODEL, d_sae=32))
    signed = AbsTopKSAE(AbsTopKSAEConfig(d_in=D_MODEL, d_sae=32, k=4))
    for given, lacks in (
        (signed, "its activations can be negative"),
        (temporal, "its latents depend on earlier tokens"),
        (pursuit, "its latents are found one after another"),
    ):
        with pytest.raises(saelake.UserError, match=lacks):
            saelake.Engine(subject(), {1: given})


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_every_kind_of_sae_is_edited_literally(architecture: str) -> None:
    module = sae(1, architecture=architecture)
    text, features = TEXTS[0], range(0, WIDTH, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # TopK says that it takes the full path
        given = saelake.Engine(subject(), [module])
    p = given.next_token([text], ablate={1: features}).p_target[0]
    assert p == pytest.approx(p_by_hand(ids_of(text), {1: held(module, dict.fromkeys(features, 0.0))}), abs=1e-5)


def test_an_sae_in_training_is_used_as_it_is_after_it() -> None:
    config = BatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=16, k=4, apply_b_dec_to_input=True)
    training = BatchTopKTrainingSAE(config)
    training.topk_threshold.fill_(0.2)
    with pytest.raises(saelake.UserError, match="does not say which hook it reads"):
        saelake.Engine(subject(), training)
    given = saelake.Engine(subject(), {1: training})
    (opened,) = given.saes.values()
    assert (opened.description.architecture, opened.elementwise) == ("jumprelu", True)


def test_a_matryoshka_sae_in_training_is_edited_as_saelens_saves_it(tmp_path: Path) -> None:
    config = MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=D_MODEL, d_sae=WIDTH, k=4, matryoshka_widths=[WIDTH // 4, WIDTH], apply_b_dec_to_input=True
    )
    training = MatryoshkaBatchTopKTrainingSAE(config)
    training.topk_threshold.fill_(0.1)
    with torch.no_grad():  # the parts are of different sizes: rows of decoders are not all of length 1
        training.W_dec.mul_(torch.linspace(0.5, 2, WIDTH)[:, None])
        training.b_enc.normal_(generator=torch.Generator().manual_seed(1))
    training.save_inference_model(tmp_path)
    module = SAE.load_from_disk(tmp_path, device="cpu", dtype="float32")
    given = saelake.Engine(subject(), {1: training})
    (opened,) = given.saes.values()
    resid_nd = torch.randn(12, D_MODEL, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(opened.encode(resid_nd), module.encode(resid_nd))
    assert (opened.encode(resid_nd) != 0).any()
    text, features = TEXTS[0], range(0, WIDTH, 2)
    p = given.next_token([text], ablate={1: features}).p_target[0]
    assert p == pytest.approx(p_by_hand(ids_of(text), {1: held(module, dict.fromkeys(features, 0.0))}), abs=1e-5)
