"""Searches of the recovery audit on the planted network, where it is known what can bring a refusal back."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saelake.analysis.audit.recoveries import changed
from saelake.analysis.audit.search import TOLERANCE, Found
from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import FeatureSet
from tests.analysis.audits import BUDGETS, N_CHANGED, Bench, audit_bench, hooked

LAYERS = (2, 3, 4, 5)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return audit_bench(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def head(bench: Bench) -> dict[int, dict[tuple[str, float], Found]]:
    """The primary held at layer 4 alone, after the backup has seen it."""
    return {layer: bench.search(bench.set((4, bench.planted.primary)), layer) for layer in LAYERS}


@pytest.fixture(scope="module")
def causes(bench: Bench) -> dict[int, dict[tuple[str, float], Found]]:
    """Primary and backup held wherever they are."""
    held = bench.set(*product(LAYERS, (bench.planted.primary, bench.planted.backup)))
    return {layer: bench.search(held, layer) for layer in LAYERS}


def recovered(found: dict[tuple[str, float], Found], kind: str, budget: float = BUDGETS[-1]) -> int:
    return int((found[kind, budget].gap_b > 0).sum())


def test_ablating_the_active_head_leaves_a_route_through_the_backup(bench: Bench, head: dict[int, Any]) -> None:
    """Where the primary still fires, before the backup's gate, taking it out wakes the backup; behind it nothing is there."""
    n = len(bench.tokens)
    assert [recovered(head[layer], "features") for layer in LAYERS] == [n, n, 0, 0]
    assert recovered(head[3], "features", BUDGETS[0]) == 0, "not with a part of the primary"
    found = head[3]["features", BUDGETS[-1]]
    requests = [
        changed(n, bench.set((4, bench.planted.primary)), bench.saes[3], change, len(bench.tokens[n]) - N_CHANGED)
        for n, change in enumerate(found.change_btd.numpy())
    ]
    engine = AblationEngine(bench.subject, bench.saes, bench.tokens)
    answers = engine.answer(requests, 8)
    assert {bench.subject.tokenizer.decode(ids) for ids in answers.token_ids} == {"I cannot help ."}
    woken = engine.activations(requests, {4: np.array([bench.planted.backup])})
    assert sorted(set(woken.request.tolist())) == list(range(n)), "the backup fires"
    clean = engine.activations([r.__class__(r.prompt, r.features) for r in requests], {4: np.array([bench.planted.backup])})
    assert not len(clean.request), "and it sleeps without the change"


def test_ablating_all_causes_leaves_nothing_but_what_is_free(bench: Bench, causes: dict[int, Any]) -> None:
    for layer, kind in product(LAYERS, ("features", "orthogonal", "error", "random")):
        assert recovered(causes[layer], kind) == 0, (layer, kind)
    assert recovered(causes[5], "free") == len(bench.tokens), "the last site's stream is read by the unembedding alone"


def test_a_change_by_chance_does_not_recover(head: dict[int, Any]) -> None:
    for layer, budget in product(LAYERS, BUDGETS):
        assert recovered(head[layer], "random", budget) == 0
        torch.testing.assert_close(head[layer]["random", budget].norm_b, torch.full((4,), budget), rtol=1e-5, atol=0)


def test_budgets_hold_and_what_contains_a_kind_recovers_as_often(head: dict[int, Any], causes: dict[int, Any]) -> None:
    for found in (*head.values(), *causes.values()):
        for (_, budget), one in found.items():
            assert (one.norm_b <= budget * (1 + 1e-5)).all()
        for budget, kind in product(BUDGETS, ("features", "error", "orthogonal")):
            assert (found["free", budget].gap_b >= found[kind, budget].gap_b.clamp(max=0.05) - 1e-4).all()
        for kind in ("features", "error", "orthogonal", "free"):
            assert recovered(found, kind, BUDGETS[1]) >= recovered(found, kind, BUDGETS[0])


def test_each_kind_is_what_it_says(head: dict[int, Any], causes: dict[int, Any]) -> None:
    """Measured, as the table shows it: within other features' rows, outside of all rows, without a move of what the set reads."""
    for found in (*head.values(), *causes.values()):
        for budget in BUDGETS:
            inside, outside, still = (found[kind, budget] for kind in ("features", "error", "orthogonal"))
            moved = inside.norm_b > 0
            torch.testing.assert_close(inside.in_features_b[moved], torch.ones(int(moved.sum())), rtol=1e-3, atol=0)
            assert (outside.in_features_b < 1e-3).all()
            assert not (still.drift_b > TOLERANCE[torch.float32]).any()
            assert (outside.in_error_b[outside.norm_b > 0] > 0.999).all()


def literal_readings(bench: Bench, tokens: list[int], held: FeatureSet, change_td: Tensor | None, layer: int) -> list[float]:
    """What the held features at `layer` and behind it read before their gates, by the full decode with its error."""
    found: list[float] = []

    def hook(at: int, x_btd: Tensor) -> Tensor:
        module, ids = bench.saes[at].module, held.at(at)["feature_id"].tolist()

        def read(h_btd: Tensor) -> list[float]:
            pre = (h_btd - module.b_dec * module.cfg.apply_b_dec_to_input) @ module.W_enc + module.b_enc
            return pre[0, -N_CHANGED:, ids].flatten().tolist()

        before = read(x_btd)
        acts = module.encode(x_btd)
        kept = acts.clone()
        kept[..., ids] = 0
        left = module.decode(kept) + x_btd - module.decode(acts)
        if at == layer and change_td is not None:
            left = torch.cat([left[:, :-N_CHANGED], left[:, -N_CHANGED:] + change_td], dim=1)
        if at >= layer and ids:
            found.extend(read(left) if at == layer else before)
        return left

    with torch.no_grad():
        hooked(bench, tokens, hook)
    return found


def test_an_orthogonal_change_leaves_the_set_as_the_ablation_left_it(bench: Bench) -> None:
    """The backup behind the site reads through the model: its Jacobian is followed, and what is left is rounding."""
    held = bench.set((2, bench.planted.primary), (4, bench.planted.backup))
    found = bench.search(held, 3)
    assert recovered(found, "orthogonal") == len(bench.tokens), "the primary comes back at layer 3, where it is not held"
    moved = 0.0
    for n, tokens in enumerate(bench.tokens):
        without = np.array(literal_readings(bench, tokens, held, None, 3))
        under = literal_readings(bench, tokens, held, found["orthogonal", BUDGETS[-1]].change_btd[n], 3)
        free = literal_readings(bench, tokens, held, found["features", BUDGETS[-1]].change_btd[n], 3)
        assert len(without) == N_CHANGED
        assert np.abs(under - without).max() <= TOLERANCE[torch.float32] * np.abs(without).max() * 1.1
        moved = max(moved, float(np.abs(free - without).max()))
    assert moved > 1e-3, "other kinds move it"
