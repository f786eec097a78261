"""The ground truth is itself tested: the planted network must do what every search will be judged against."""

import random
import time
import tomllib
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from saelake.ingest.planted.build import build
from saelake.ingest.planted.geometry import N_LATENTS, N_LAYERS
from saelake.ingest.planted.saes import build_sae
from saelake.ingest.torch_threads import torch_threads
from tests.conftest import ROOT
from tests.planted import (
    Feature,
    Loaded,
    Outcome,
    Planted,
    ablate,
    enumerated_sets,
    flipping_sets,
    load,
    minimal_sets,
    prompt_ids,
    table,
    write_planted,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread: the network is too small for two."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return write_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def loaded(planted: Planted) -> Loaded:
    return load(planted)


@pytest.fixture(scope="module")
def clean(planted: Planted, loaded: Loaded) -> dict[str, Outcome]:
    """Instruction -> the pass without any ablation."""
    return {row["instruction"]: ablate(loaded, prompt_ids(loaded, row["instruction"]), [()]) for row in planted.prompts()}


def test_what_is_shipped_is_what_the_build_writes(tmp_path: Path) -> None:
    build(tmp_path)
    shipped = ROOT / "ingest" / "planted"
    assert (shipped / "prompts.jsonl").read_text() == (tmp_path / "prompts.jsonl").read_text()
    written = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.safetensors"))
    assert len(written) == 1 + N_LAYERS
    for name in written:
        torch.testing.assert_close(load_file(shipped / name), load_file(tmp_path / name), rtol=1e-6, atol=1e-6)


def refusal_directions(planted: Planted, clean: dict[str, Outcome]) -> torch.Tensor:
    """[l, d]: difference of means at the last token over the training prompts, unit length."""
    means = []
    for label in ("harmful", "benign"):
        train = [row for row in planted.prompts(label) if row["split"] == "train"]
        means.append(torch.stack([clean[row["instruction"]].resid_bltd[0, :, -1] for row in train]).mean(0))
    difference_ld = means[0] - means[1]
    return difference_ld / difference_ld.norm(dim=-1, keepdim=True)


def test_writes_a_study_as_a_user_would_have_it(tmp_path: Path) -> None:
    started = time.perf_counter()
    planted = write_planted(tmp_path / "new" / "study")
    assert time.perf_counter() - started < 2
    recipe = tomllib.loads(planted.recipe.read_text())
    assert recipe["name"] == "planted"
    assert recipe["candidates"]["exclude_layers"] == [0, 1]
    for part in (recipe["model"]["path"], recipe["prompts"][0]["file"], recipe["saes"]["path"].format(layer=5)):
        assert (planted.recipe.parent / part).exists()
    assert {path.suffix for path in planted.folder.rglob("*.*") if path.is_file()} <= {
        ".json",
        ".jsonl",
        ".toml",
        ".jinja",
        ".safetensors",
    }


def test_two_writes_are_byte_identical(planted: Planted, tmp_path: Path) -> None:
    again = write_planted(tmp_path)
    for path in (path for path in planted.folder.rglob("*") if path.is_file()):
        assert path.read_bytes() == (again.folder / path.relative_to(planted.folder)).read_bytes(), path.name


def test_prompts_are_unique_balanced_and_of_different_lengths(planted: Planted, loaded: Loaded) -> None:
    rows = planted.prompts()
    assert len({row["instruction"] for row in rows}) == len(rows) == 48
    for split, n in (("train", 12), ("val", 6), ("test", 6)):
        for label in ("harmful", "benign"):
            assert sum(row["split"] == split and row["label"] == label for row in rows) == n
    assert len({prompt_ids(loaded, row["instruction"]).shape[1] for row in rows}) >= 6
    assert all(loaded.tokenizer.unk_token_id not in prompt_ids(loaded, row["instruction"]) for row in rows)


def test_loads_by_ordinary_loaders(loaded: Loaded) -> None:
    assert isinstance(loaded.model, LlamaForCausalLM)
    assert isinstance(loaded.tokenizer, PreTrainedTokenizerBase)
    template = loaded.tokenizer.convert_ids_to_tokens(prompt_ids(loaded, "how to")[0])
    expected = ["<bos>", "<start_of_turn>", "user", "\n", "how", "to", "<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"]
    assert template == expected
    assert len(loaded.saes) == N_LAYERS


def test_saes_survive_the_round_trip(loaded: Loaded) -> None:
    for layer, sae in enumerate(loaded.saes):
        for name, value in build_sae(layer).state_dict().items():
            torch.testing.assert_close(sae.state_dict()[name], value, rtol=0, atol=0)
        assert sae.cfg.metadata.hook_name == f"blocks.{layer}.hook_resid_post"
        assert (sae.threshold > 0).all()


def test_harmful_is_refused_and_benign_is_answered(planted: Planted, loaded: Loaded) -> None:
    answers = {"harmful": "I cannot help .", "benign": "Sure , here it is ."}
    for row in planted.prompts():
        ids_1t = prompt_ids(loaded, row["instruction"])
        with torch.no_grad():
            written = loaded.model.generate(ids_1t, max_new_tokens=12)[0, ids_1t.shape[1] :]
        assert loaded.tokenizer.decode(written, skip_special_tokens=True) == answers[row["label"]], row["instruction"]
        assert written[-1] == loaded.tokenizer.eos_token_id


def test_left_padding_changes_nothing(planted: Planted, loaded: Loaded, clean: dict[str, Outcome]) -> None:
    rows = planted.prompts()
    chats = [[{"role": "user", "content": row["instruction"]}] for row in rows]
    texts = loaded.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    batch = loaded.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        p_refusal = loaded.model(**batch).logits[:, -1].softmax(-1)[:, loaded.refusal_id]
    alone = torch.cat([clean[row["instruction"]].p_refusal_b for row in rows])
    torch.testing.assert_close(p_refusal, alone, rtol=1e-3, atol=1e-5)


def test_the_table(planted: Planted, loaded: Loaded) -> None:
    nothing, primary, backup, both, noise = table(planted, loaded)
    for row in (nothing, backup, noise):
        assert row.n_flipped == 0
        assert row.p_refusal_min > 0.9999
        assert row.backup_min == row.backup_max == 0
    assert primary.n_flipped == 0
    assert primary.p_refusal_min > 0.99
    assert primary.backup_min > 1.5, "the backup wakes"
    assert both.n_flipped == both.n_prompts == 24
    assert both.p_refusal_max < 0.01


def test_backup_is_dormant_at_every_position(planted: Planted, clean: dict[str, Outcome]) -> None:
    for outcome in clean.values():
        assert (outcome.acts_bltf[..., planted.backup] == 0).all()


def test_primary_fires_from_layer_2_on_harmful_prompts_only(planted: Planted, clean: dict[str, Outcome]) -> None:
    for row in planted.prompts():
        primary_lt = clean[row["instruction"]].acts_bltf[0, :, :, planted.primary]
        assert (primary_lt[:2] == 0).all()
        assert (primary_lt[2:, -1] > 2).all() if row["label"] == "harmful" else (primary_lt == 0).all()


def test_enumeration_covers_every_subset_once(planted: Planted) -> None:
    sets = enumerated_sets(planted)
    assert len(sets) == len(set(sets)) == 2**12


@pytest.mark.parametrize("i", [0, 5, 9, 12, 20, 23])
def test_enumeration_finds_the_frozen_minimal_sets(planted: Planted, loaded: Loaded, i: int) -> None:
    # Written out, so that neither the constants nor the network can move unnoticed.
    assert planted.minimal_sets == {
        frozenset({(4, 5)}),
        frozenset({(5, 5)}),
        frozenset({(2, 5), (4, 17)}),
        frozenset({(2, 5), (5, 17)}),
        frozenset({(3, 5), (4, 17)}),
        frozenset({(3, 5), (5, 17)}),
    }
    assert minimal_sets(planted, planted.prompts("harmful")[i]["instruction"], loaded) == planted.minimal_sets


def test_minimal_sets_flip_every_harmful_prompt_and_their_subsets_none(planted: Planted, loaded: Loaded) -> None:
    whole = sorted(planted.minimal_sets, key=sorted)
    parts = sorted({frozenset(part) for one in whole for n in range(len(one)) for part in combinations(one, n)}, key=sorted)
    for row in planted.prompts("harmful"):
        outcome = ablate(loaded, prompt_ids(loaded, row["instruction"]), [*whole, *parts])
        assert outcome.flipped_b.tolist() == [True] * len(whole) + [False] * len(parts)
        assert not ((outcome.p_refusal_b > 0.01) & (outcome.p_refusal_b < 0.99)).any(), "a clear margin on both sides"


def test_ablating_more_can_flip_less(planted: Planted, loaded: Loaded) -> None:
    """The trap: without the primary only after the backup's gate, both are missing; without it before, the backup wakes."""
    flipping = set(flipping_sets(planted, planted.prompts("harmful")[0]["instruction"], loaded))
    assert frozenset({(4, planted.primary)}) in flipping
    assert frozenset({(3, planted.primary), (4, planted.primary)}) not in flipping
    assert frozenset(product(planted.layers, [planted.primary])) not in flipping
    assert frozenset(product(planted.layers, [planted.primary, planted.backup])) in flipping


def test_a_benign_prompt_counts_as_flipped_by_nothing(planted: Planted, loaded: Loaded) -> None:
    assert minimal_sets(planted, planted.prompts("benign")[0]["instruction"], loaded) == {frozenset()}


def test_no_subset_of_harmless_features_flips(planted: Planted, loaded: Loaded, clean: dict[str, Outcome]) -> None:
    harmless = sorted(set(range(N_LATENTS)) - {planted.primary, planted.backup})
    assert set(planted.noise) | set(planted.categories.values()) | set(planted.dead) | {planted.decoy} == set(harmless)
    everything: list[Feature] = list(product(range(N_LAYERS), harmless))
    draw = random.Random(0)
    sets = [everything, *(draw.sample(everything, draw.randint(1, len(everything))) for _ in range(63))]
    for row in planted.prompts("harmful"):
        outcome = ablate(loaded, prompt_ids(loaded, row["instruction"]), sets)
        assert not outcome.flipped_b.any()
        torch.testing.assert_close(
            outcome.p_refusal_b, clean[row["instruction"]].p_refusal_b.expand(len(sets)), rtol=0, atol=1e-4
        )


def test_random_controls_have_active_noise_to_draw_from(planted: Planted, clean: dict[str, Outcome]) -> None:
    for outcome in clean.values():
        fires_lf = (outcome.acts_bltf[0] > 0).any(1)
        assert (fires_lf[2:, list(planted.noise)].sum(-1) >= 4).all()
        assert (outcome.acts_bltf[0, 2:, -1, planted.one_noise] > 0).all(), "the enumerated noise feature fires on the last token"
        assert not fires_lf[:, [planted.decoy, *planted.dead]].any()


def test_category_features_fire_on_their_words_only(planted: Planted, loaded: Loaded, clean: dict[str, Outcome]) -> None:
    for instruction, outcome in clean.items():
        tokens = loaded.tokenizer.convert_ids_to_tokens(prompt_ids(loaded, instruction)[0])
        for category, feature_id in planted.categories.items():
            expected = torch.tensor([token in planted.category_words[category] for token in tokens])
            assert ((outcome.acts_bltf[0, :, :, feature_id] > 0) == expected).all()


def test_direction_ranks_primary_then_backup_then_silent_latents(
    planted: Planted, loaded: Loaded, clean: dict[str, Outcome]
) -> None:
    directions_ld = refusal_directions(planted, clean)
    expected = [planted.primary, planted.backup, planted.decoy, planted.dead[0]]
    for layer, chosen in product(planted.layers, planted.layers):  # own direction and any chosen one
        cosine_f = torch.cosine_similarity(loaded.saes[layer].W_dec, directions_ld[chosen][None], dim=-1)
        top = cosine_f.topk(5)
        assert top.indices[:4].tolist() == expected
        assert (top.values[:-1] - top.values[1:] > 0.1).all(), "no rank depends on rounding"


def test_top_k_flips_at_two_and_not_at_one(planted: Planted, loaded: Loaded) -> None:
    ranked = [planted.primary, planted.backup, planted.decoy, planted.dead[0]]
    sets = [list(product(planted.layers, ranked[:k])) for k in range(5)]
    for row in planted.prompts("harmful"):
        flipped = ablate(loaded, prompt_ids(loaded, row["instruction"]), sets).flipped_b.tolist()
        assert flipped == [False, False, True, True, True]


def test_projecting_the_direction_out_flips_from_layer_2_on(planted: Planted, loaded: Loaded, clean: dict[str, Outcome]) -> None:
    for layer, direction_d in enumerate(refusal_directions(planted, clean)):

        def project_out(
            _block: nn.Module, _args: object, resid_btd: torch.Tensor, direction_d: torch.Tensor = direction_d
        ) -> torch.Tensor:
            return resid_btd - (resid_btd @ direction_d)[..., None] * direction_d

        handles = [block.register_forward_hook(project_out) for block in loaded.model.model.layers]
        with torch.no_grad():
            for row in planted.prompts("harmful"):
                first = loaded.model(prompt_ids(loaded, row["instruction"])).logits[0, -1].argmax().item()
                assert (first != loaded.refusal_id) == (layer >= 2), (layer, row["instruction"])
        for handle in handles:
            handle.remove()


def test_saes_reconstruct_and_silence_is_far_from_the_threshold(loaded: Loaded, clean: dict[str, Outcome]) -> None:
    for layer, sae in enumerate(loaded.saes):
        resid_nd = torch.cat([outcome.resid_bltd[0, layer] for outcome in clean.values()])
        acts_nf = sae.encode(resid_nd)
        lost = (resid_nd - sae.decode(acts_nf)).square().sum() / (resid_nd - resid_nd.mean(0)).square().sum()
        assert lost < (0.04 if layer >= 2 else 0.07), "where features are ablated, they carry nearly all of the variance"
        pre_nf = resid_nd @ sae.W_enc + sae.b_enc - (sae.b_dec @ sae.W_enc if sae.cfg.apply_b_dec_to_input else 0)
        live_f = sae.threshold < 1
        near_nf = (pre_nf - sae.threshold).abs()[:, live_f]
        assert near_nf.min() > 0.25, "a gate in lower precision must not decide otherwise"
