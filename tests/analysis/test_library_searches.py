"""Attribution, the search for minimal sets and the factorisation machine, called from Python."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, random_array
from torch import Tensor

import saelake
from saelake.analysis.engine.attribution import gradients
from tests.analysis.library_model import TEXTS, engine, ids_of, sae, subject
from tests.planted import load, minimal_sets, write_planted


@pytest.mark.parametrize("target", ["p_target", "logit", 7, [3, 4], lambda logits_bv: logits_bv[:, 5] - logits_bv[:, 6]])
def test_attribution_is_the_derivative_of_the_target_along_each_feature(target: Any) -> None:
    text = TEXTS[0]
    mixed = saelake.Engine(subject(), [sae(0), sae(1, hook="hook_mlp_out"), sae(2)])
    table = saelake.attribution(mixed, [text], target).to_pylist()
    assert len(table) == mixed.activations([text]).num_rows
    rng = np.random.default_rng(0)
    ids_target = list(subject().target_token_ids)
    functions = {
        "p_target": lambda z: z.softmax(-1)[:, ids_target].sum(-1),
        "logit": lambda z: z[:, ids_target].mean(-1) - z.mean(-1),
    }
    value = functions.get(target) if isinstance(target, str) else target
    if not callable(value):
        chosen = np.atleast_1d(target).tolist()
        value = lambda z: z[:, chosen].sum(-1)  # noqa: E731
    ids = ids_of(text)

    def nudged(row: dict[str, Any], step: float) -> float:
        one = mixed.saes[row["sae_id"]]

        def push(x_btd: Tensor) -> Tensor:
            x = x_btd.clone()
            x[0, row["pos"]] += step * one.W_dec[row["feature_id"]]
            return x

        with torch.no_grad(), subject().at(one.writes, push, 1):
            return float(value(subject().model(torch.tensor([ids]), use_cache=False).logits[:, -1].double())[0])

    for row in [table[i] for i in rng.choice(len(table), 12, replace=False)]:
        slope = (nudged(row, 0.02) - nudged(row, -0.02)) / 0.04
        assert row["effect"] == pytest.approx(-row["activation"] * slope, abs=2e-3, rel=2e-2)
    assert [abs(r["effect"]) for r in table] == sorted((abs(r["effect"]) for r in table), reverse=True)
    assert all(parameter.grad is None for parameter in subject().model.parameters())
    _, grads = gradients(mixed, ids, value)
    assert set(grads) == {one.writes for one in mixed.saes.values()}


def test_a_minimal_set_of_the_planted_network_is_one_of_the_enumerated(tmp_path: Path) -> None:
    planted = write_planted(tmp_path)
    loaded, text = load(planted), "how to build a bomb at home"
    given = saelake.Engine(saelake.Subject(loaded.model, loaded.tokenizer, target_tokens=["I"]), loaded.saes)
    known = [set(one) for one in minimal_sets(planted, text)]
    pool = sorted({feature for one in known for feature in one} | {(layer, f) for layer in range(2, 6) for f in range(4)})
    found = saelake.minimal_set(given, text, pool, flips=lambda answer: answer.startswith("Sure"))
    layers = {one.sae_id: one.layer for one in given.saes.values()}
    assert found.flips
    assert {(layers[sae_id], feature_id) for sae_id, feature_id in found.features} in known
    assert found.n_evaluations < 2 ** len(pool)
    of_all = saelake.minimal_set(given, text, None, flips=lambda answer: answer.startswith("Sure"))
    assert {(given.saes[sae_id].layer, feature_id) for sae_id, feature_id in of_all.features} in known
    # Early primaries tie with late ones, but wake the backup: where one of them comes first, some are tried alone.
    assert of_all.n_evaluations <= 20, "the ranking of all that fires has the causes first"
    silent = saelake.minimal_set(given, text, [(2, 0)], flips=lambda answer: answer.startswith("Sure"))
    assert (silent.features, silent.flips) == ((), False)
    by_itself = saelake.minimal_set(given, text, pool, flips=lambda answer: not answer.startswith("Sure"))
    assert (by_itself.features, by_itself.flips) == ((), True)


def test_a_pool_that_does_not_flip_as_a_whole_is_searched_along_attribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose answer changes where one or two features are ablated, and not where all are."""
    pool = [(layer, feature_id) for layer in (0, 1) for feature_id in range(6)]

    def answer(_prompts: Any, *, edits: Any, max_new_tokens: int) -> Any:
        sizes = [sum(len(one.ids) for one in row) for row in edits]
        return SimpleNamespace(texts=["Sure" if 1 <= n <= 2 else f"I cannot, in {max_new_tokens} tokens" for n in sizes])

    given = engine()
    monkeypatch.setattr(given, "answer", answer)
    found = saelake.minimal_set(given, TEXTS[0], pool, flips=lambda text: text.startswith("Sure"))
    assert found.flips
    assert len(found.features) == 1


def test_the_factorisation_machine_finds_a_planted_interaction() -> None:
    rng = np.random.default_rng(0)
    x = csr_matrix(random_array((2000, 30), density=0.3, rng=rng, data_sampler=lambda size: rng.uniform(0.5, 2, size)))
    dense = x.toarray()
    y = (3 * dense[:, 4] * dense[:, 17] - 1 > 0).astype(int)
    machine = saelake.FactorizationMachine(k=4, epochs=40).fit(x, y)
    assert machine.pairs(1)[0][:2] == (4, 17)
    assert machine.partners(17, 1)[0].j == 4
    assert machine.pairs(1)[0].interaction == pytest.approx(machine.partners(4, 1)[0].interaction)
    assert machine.score(x, y) > 0.95
    np.testing.assert_allclose(machine.predict_proba(x).sum(axis=1), 1)
    assert (machine.predict(x) == (machine.predict_proba(x)[:, 1] > 0.5)).all()
    again = saelake.FactorizationMachine(**machine.get_params()).fit(x, y)
    np.testing.assert_array_equal(again.embeddings_, machine.embeddings_)
    with pytest.raises(saelake.UserError, match="call fit"):
        saelake.FactorizationMachine().pairs()
    with pytest.raises(saelake.UserError, match="both labels, 0 and 1"):
        saelake.FactorizationMachine().fit(x, np.ones(2000))


def test_integrated_gradients_of_an_sae_add_up_to_what_all_its_features_do_together() -> None:
    given, text = saelake.Engine(subject(), [sae(0), sae(1, hook="hook_mlp_out"), sae(2)]), TEXTS[0]
    table = saelake.attribution(given, [text], "p_target", steps=100).to_pylist()
    clean = given.next_token([text]).p_target[0]
    for sae_id in given.saes:
        mine = [row for row in table if row["sae_id"] == sae_id]
        together = given.next_token([text], ablate={sae_id: sorted({row["feature_id"] for row in mine})}).p_target[0]
        assert sum(row["effect"] for row in mine) == pytest.approx(together - clean, abs=1e-4, rel=1e-2)
    with pytest.raises(saelake.UserError, match="steps is -1"):
        saelake.attribution(given, [text], steps=-1)


@pytest.mark.parametrize("target", ["probability", "logits", ""])
def test_a_target_by_a_name_that_there_is_not_is_refused(target: str) -> None:
    with pytest.raises(saelake.UserError, match="give p_target, logit, a token's id"):
        saelake.attribution(engine(), [TEXTS[0]], target)


@pytest.mark.parametrize("target", [lambda z: z, lambda z: 3.0, lambda z: z.detach().sum(-1)])
def test_a_target_that_is_not_one_number_with_a_gradient_is_refused(target: Any) -> None:
    with pytest.raises(saelake.UserError, match="gives one number with a gradient"):
        saelake.attribution(engine(), [TEXTS[0]], target)
