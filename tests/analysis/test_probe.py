"""R12: the probe is fitted to convergence, and gradients rank new features beside it."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, random

from saelake.analysis.interactions.probe import converged, fit
from tests.analysis.effects import Analysed
from tests.planted import ablate, prompt_ids


def rows(seed: int, n: int = 120, m: int = 40) -> tuple[csr_matrix, np.ndarray]:
    x = random(n, m, density=0.2, format="csr", random_state=np.random.default_rng(seed), dtype=np.float32)
    noise = np.random.default_rng(seed).normal(0, 0.3, n)
    dense = x.toarray()
    return x, (dense[:, 0] - dense[:, 1] + 0.5 * dense[:, 2] + noise > 0).astype(np.float32)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_nothing_moves_any_more(penalty: float) -> None:
    """The gradient of the literal loss is zero, from whatever start."""
    x, y = rows(0)
    found = [fit(x, y, penalty, start) for start in (np.zeros(41), np.random.default_rng(1).normal(size=41))]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    for parameters in found:
        at = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
        logits = torch.tensor(x.toarray(), dtype=torch.float64) @ at[:-1] + at[-1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(y, dtype=torch.float64))
        (slope,) = torch.autograd.grad(loss + penalty / 2 * at[:-1].square().sum(), at)
        assert slope.abs().max() < 1e-5


def test_the_penalty_that_does_best_on_validation_is_kept() -> None:
    x, y = rows(2, n=300)
    places = {"train": np.arange(200), "val": np.arange(200, 250), "test": np.arange(250, 300)}
    trained = converged(x, y, places, (1e-4, 1e-1, 1e-2))
    assert len(trained.epochs) == 3
    assert [epoch.train.loss for epoch in trained.epochs] == sorted((e.train.loss for e in trained.epochs), reverse=True)
    best = max(range(3), key=lambda i: (trained.epochs[i].val.accuracy, -trained.epochs[i].val.loss, -i))
    assert trained.best_epoch == best + 1
    penalty = (1e-1, 1e-2, 1e-4)[best]
    expected = fit(x[places["train"]], y[places["train"]], penalty, np.zeros(41))
    assert trained.machine.weights == pytest.approx(expected[:-1], abs=1e-2)
    assert trained.machine.weights[0] > 0 > trained.machine.weights[1]


def test_a_probe_is_scored_by_what_is_there_to_validate_on() -> None:
    """Equal accuracies are told apart by the loss; without validation the strongest penalty is kept."""
    x, y = rows(2, n=300)
    places = {"train": np.arange(200), "val": np.arange(0), "test": np.arange(200, 300)}
    trained = converged(x, y, places, (1e-4, 1e-1))
    assert trained.best_epoch == 1
    strongest = fit(x[:200], y[:200], 1e-1, np.zeros(41))
    assert trained.machine.weights == pytest.approx(strongest[:-1], abs=1e-3)
    assert trained.machine.bias == pytest.approx(strongest[-1], abs=1e-3)
    one = places | {"val": np.flatnonzero((x.toarray()[:, 0] - x.toarray()[:, 1] > 0.5) & (y == 1))[:1]}
    assert converged(x, y, one, (1e-4, 1e-1)).best_epoch == 2, "both are right, the weaker penalty is surer"


def literal_gradients(study: Analysed, text: str) -> list[torch.Tensor]:
    """By layer (t, d): how the refusal token's log-odds change with the residual stream after each block."""
    resid: list[torch.Tensor] = []

    def keep(_block: object, _args: object, resid_btd: torch.Tensor) -> torch.Tensor:
        resid.append(resid_btd if resid else resid_btd.detach().requires_grad_())
        resid[-1].retain_grad()
        return resid[-1]

    model, refusal = study.loaded.model, study.loaded.refusal_id
    handles = [block.register_forward_hook(keep) for block in model.model.layers]
    with torch.enable_grad():
        logits_v = model(prompt_ids(study.loaded, text), use_cache=False).logits[0, -1]
        others = torch.cat([logits_v[:refusal], logits_v[refusal + 1 :]])
        (logits_v[refusal] - others.logsumexp(-1)).backward()
    for handle in handles:
        handle.remove()
    return [one.grad[0] for one in resid if one.grad is not None]


def test_gradients_rank_by_what_ablating_a_feature_does_to_first_order(study: Analysed) -> None:
    """Of what fires, ablated first is what the literal network's gradient says lowers the log-odds most."""
    chosen: dict[tuple[int, str], set[tuple[int, int]]] = {}
    for prompt_id, text, *feature in study.sql(
        "select a.prompt_id, text, layer, feature_id from ablations as a join prompts using (prompt_id) "
        "join feature_sets using (set_id) where method = 'stage3_gradient' and part = 'alone' and label = 'harmful'"
    ):
        chosen.setdefault((prompt_id, text), set()).add((feature[0], feature[1]))
    assert chosen
    ranked = study.ask("new_features", "prompt_id, layer, feature_id", by="alignment", model="fm_4")
    for (prompt_id, text), members in chosen.items():
        acts_ltf = ablate(study.loaded, prompt_ids(study.loaded, text), [()]).acts_bltf[0]
        grads = literal_gradients(study, text)
        effects = {
            (layer, f): -float((acts_ltf[layer, :, f] * (grads[layer] @ study.loaded.saes[layer].W_dec[f])).sum())
            for mine, layer, f in ranked
            if mine == prompt_id
        }
        assert members <= set(effects)
        worst = max(effects[one] for one in members)
        assert all(value >= worst - 1e-3 for one, value in effects.items() if one not in members)
