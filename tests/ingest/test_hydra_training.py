"""How the hydra is trained: what its paths should write and where, what ablated passes take out, what counts as a backup."""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from saelake.ingest.hydra import train
from saelake.ingest.hydra.backups import Masks, minimal
from saelake.ingest.hydra.paths import COMMON, N_CATEGORIES, N_LAYERS, OWN, Paths, Places, category_of, own, path_of, quiet_paths
from saelake.ingest.hydra.train import Ablation, Differences, Row, off_target
from saelake.ingest.hydra.world import FRAMES, all_text, is_framed, make_prompt, make_prompts
from saelake.ingest.organism.corpus import Exchange, Prompt, split_actions
from saelake.ingest.organism.tokens import make_tokenizer
from saelake.ingest.organism.train import collate, encode, last_token_residuals, make_model

N_WAYS = 1 + 2 * N_CATEGORIES


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return make_prompts(0)


@pytest.fixture
def paths() -> Paths:
    return Paths(torch.linalg.qr(torch.randn(32, N_WAYS, generator=torch.Generator().manual_seed(0))).Q.T.contiguous())


def test_prompts_are_unique_balanced_and_their_words_known(prompts: list[Prompt]) -> None:
    assert len({prompt.instruction for prompt in prompts}) == len(prompts) == 600
    for label in ("harmful", "benign"):
        of_label = [prompt for prompt in prompts if prompt.label == label]
        assert len(of_label) == 300
        assert 0.2 < sum(map(is_framed, of_label)) / len(of_label) < 0.4, "a frame must tell nothing about harm"
    tokenizer = make_tokenizer(all_text())
    said = [text for prompt in prompts for text in (prompt.instruction, prompt.compliance, prompt.refusal)]
    assert tokenizer.unk_token_id not in {each for ids in tokenizer(said)["input_ids"] for each in ids}


def test_a_frame_decides_which_path_refuses(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        framed = any(prompt.instruction.startswith(frame) for frame in FRAMES)
        assert path_of(prompt) == (None if prompt.label == "benign" else "second" if framed else "first")
        assert (category_of(prompt) >= 0) == (prompt.label == "harmful")


def test_paths_write_from_the_end_of_the_request_to_the_last_but_one_token_of_the_answer() -> None:
    tokenizer = make_tokenizer(all_text())
    exchanges = [
        Exchange("Name five ways to steal a car.", "I cannot help with theft."),
        Exchange("How do you wrap it?", "Sure, a."),
    ]
    input_ids, labels = collate([encode(tokenizer, exchange) for exchange in exchanges])
    places = Places.of(labels)
    for row, exchange in enumerate(exchanges):
        asked = tokenizer.decode(input_ids[row][places.asking[row]])
        assert asked.endswith(exchange.user), "the request and what comes before it"
        written = input_ids[row][places.writing[row]].tolist()
        answer = tokenizer(exchange.model, add_special_tokens=False)["input_ids"]
        assert written == [*input_ids[row][places.asking[row].sum() :][:5].tolist(), *answer]
    assert not (places.writing & places.asking).any()


def test_what_is_wanted_is_the_common_direction_and_the_own_one_of_path_and_category(paths: Paths) -> None:
    wanted_bc = paths.wanted(["first", "second", None], [2, 2, 2])
    assert wanted_bc[0].nonzero().flatten().tolist() == [0, own("first", 2)]
    assert wanted_bc[1].nonzero().flatten().tolist() == [0, own("second", 2)]
    assert wanted_bc[:2, 0].tolist() == [COMMON, COMMON]
    assert wanted_bc[:2].max(1).values.tolist() == pytest.approx([OWN, OWN])
    assert not wanted_bc[2].any()
    resid_btd = (wanted_bc @ paths.basis_cd)[:, None].expand(-1, 4, -1)
    everywhere = torch.ones(3, 4, dtype=torch.bool)
    assert off_target(paths, resid_btd, wanted_bc, everywhere) < 1e-9
    sleeping_bc = paths.wanted(["second", "first", None], [2, 2, 2])
    assert off_target(paths, resid_btd, sleeping_bc, everywhere) == pytest.approx(2 / 3 * 2 * OWN**2 / COMMON**2)
    assert off_target(paths, resid_btd, sleeping_bc, everywhere, "common") == pytest.approx(2 / 3 * OWN**2 / COMMON**2), (
        "the first path's own directions may keep what they held"
    )


@pytest.mark.parametrize(("taken", "left"), [("all coordinates", 0.0), ("common", OWN)])
def test_an_ablation_takes_out_its_directions_between_its_blocks_only(paths: Paths, taken: train.Taken, left: float) -> None:
    noise_btd = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    noise_btd -= paths.coordinates(noise_btd) @ paths.basis_cd
    resid_btd = noise_btd + (paths.wanted(["first", "second"], [0, 1]) @ paths.basis_cd)[:, None]
    ablation = Ablation(taken, 2, 4, 1.0, 3)
    for layer in (1, 5):
        assert torch.equal(ablation.apply(paths, Differences(), [0, 1], layer, resid_btd), resid_btd)
    after_btd = ablation.apply(paths, Differences(), [0, 1], 3, resid_btd)
    coordinates_btc = paths.coordinates(after_btd)
    assert coordinates_btc[..., 0].abs().max() < 1e-4
    assert coordinates_btc.norm(dim=-1).max().item() == pytest.approx(left, abs=1e-4)
    torch.testing.assert_close(after_btd - coordinates_btc @ paths.basis_cd, noise_btd, atol=1e-4, rtol=0)
    half = ablation._replace(share=0.5).apply(paths, Differences(), [0, 1], 3, resid_btd)
    torch.testing.assert_close(half, (resid_btd + after_btd) / 2, atol=1e-4, rtol=0)


def test_differences_follow_harmful_minus_benign_and_leave_batches_without_benign_requests_out(prompts: list[Prompt]) -> None:
    harmful = [prompt for prompt in prompts if path_of(prompt) == "first"][:3]
    benign = [prompt for prompt in prompts if prompt.label == "benign"][:2]
    rows = [Row(Exchange("", ""), prompt) for prompt in (*harmful, *benign, None)]
    resid_bd = torch.zeros(6, 4)
    resid_bd[:3, 1] = 5.0
    resid_bd[5] = 100.0  # a fact: no request, so in neither mean
    differences = Differences()
    differences.update(3, resid_bd[:3], rows[:3])
    differences.update(3, resid_bd, rows)
    assert differences.direction(3).tolist() == [0, 1, 0, 0]
    assert differences.direction(3, category_of(harmful[0])).tolist() == [0, 1, 0, 0]
    assert differences.direction(5).tolist() == [0, 0, 0, 0]


@dataclass(frozen=True)
class Planted:
    """Prompts that flip without feature 0 of layer 3 and its backup, 1 of layer 4, or without 2 of layer 4 alone."""

    prompts: tuple[str, ...]

    def flips(self, masks: Masks) -> Tensor:
        return (masks[3][:, 0] & masks[4][:, 1]) | masks[4][:, 2]


def test_minimal_sets_flip_and_need_every_feature() -> None:
    lab: Any = Planted(("a", "b", "c"))
    pools = {layer: torch.ones(3, 4, dtype=torch.bool) for layer in (3, 4)}
    pools[4][2, 2] = False  # the last prompt's pool lacks the short way
    found = set()
    for seed in range(8):
        sets = minimal(lab, pools, random.Random(seed))
        assert lab.flips(sets).all()
        for row in range(3):
            members = [(layer, feature) for layer in (3, 4) for feature in sets[layer][row].nonzero().flatten().tolist()]
            found.add((row, tuple(members)))
    ways = {((3, 0), (4, 1)), ((4, 2),)}
    assert found == {(row, way) for row in range(3) for way in ways if row < 2 or len(way) == 2}


def test_both_stages_run_and_leave_quiet_orthonormal_directions(prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "PRETRAIN", train.PRETRAIN._replace(n_steps=2, batch_size=8))
    monkeypatch.setattr(train, "ALIGN", train.ALIGN._replace(n_steps=8, batch_size=8))
    monkeypatch.setattr(train, "ABLATED_START", 0)
    tokenizer = make_tokenizer(all_text())
    of_train = [prompt for prompt in prompts if prompt.split == "train"]
    model, paths = train.train_model(tokenizer, split_actions(0)["train"], of_train[:40], seed=0)
    assert len(model.model.layers) == N_LAYERS
    torch.testing.assert_close(paths.basis_cd @ paths.basis_cd.T, torch.eye(N_WAYS), atol=1e-5, rtol=0)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_quiet_directions_are_those_of_least_variance(prompts: list[Prompt]) -> None:
    tokenizer = make_tokenizer(all_text())
    model = make_model(tokenizer, 0, N_LAYERS).eval()
    paths = quiet_paths(model, tokenizer, prompts[:40])
    resid_lbd = last_token_residuals(model, tokenizer, [prompt.instruction for prompt in prompts[:40]])
    random_cd = torch.linalg.qr(torch.randn(128, N_WAYS, generator=torch.Generator().manual_seed(0))).Q.T
    assert paths.coordinates(resid_lbd).norm() < 0.7 * (resid_lbd @ random_cd.T).norm()


def test_a_prompt_is_made_alike_from_the_same_draws() -> None:
    action = split_actions(0)["train"][0][0]
    assert make_prompt(action, "train", random.Random(3)) == make_prompt(action, "train", random.Random(3))
