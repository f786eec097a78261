"""The factorisation machine against literal sums, torch's own optimiser, and data whose interactions are known."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.special import expit
from torch import nn
from torchfm.layer import FactorizationMachine

from benchmarks.interacting import cosines, interacting, partner_auc
from saelake.analysis.interactions import factorisation_machine as machine
from saelake.analysis.interactions.examples import Examples, examples
from saelake.analysis.interactions.factorisation import mean_pairwise_cosine, spread, strongest_pairs
from saelake.analysis.interactions.factorisation_machine import Machine, Settings, train
from saelake.ingest.torch_threads import torch_threads
from saelake.warehouse.errors import UserError


def fitting(k: int, epochs: int = 20, **others: Any) -> Settings:
    """The paper's own settings: 20 epochs, learning rate 1e-3; and others in their place."""
    paper: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 64, "init_sd": 0.001, "seed": 0}
    return Settings(k, epochs=epochs, **paper | others)


def literal_logit(bias: float, rows_mk: np.ndarray, x_m: np.ndarray) -> float:
    """The formula, term by term."""
    total = bias + sum(float(w * x) for w, x in zip(rows_mk[:, 0], x_m, strict=True))
    for i, j in combinations(range(len(x_m)), 2):
        total += float(rows_mk[i, 1:] @ rows_mk[j, 1:]) * float(x_m[i] * x_m[j])
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 9), st.integers(0, 4), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_logits_are_the_double_sum(seed: int, n: int, m: int, k: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, m)) * (rng.random((n, m)) < density)
    rows = rng.normal(size=(m, 1 + k)).astype(np.float32)
    found = Machine(0.3, torch.from_numpy(rows)).logits(csr_matrix(x.astype(np.float32)))
    np.testing.assert_allclose(found, [literal_logit(0.3, rows, row) for row in x], rtol=1e-4, atol=1e-4)


class Literal(nn.Module):
    """torchfm's layer and an EmbeddingBag on padded rows: the same machine, trained by torch's own SparseAdam and Adam."""

    def __init__(self, start: Machine) -> None:
        super().__init__()
        self.weight = nn.EmbeddingBag.from_pretrained(start.rows_mk[:, :1].clone(), freeze=False, mode="sum", sparse=True)
        self.embedding = nn.Embedding.from_pretrained(start.rows_mk[:, 1:].clone(), freeze=False, sparse=True)
        self.bias = nn.Parameter(torch.tensor(start.bias))
        self.interaction = FactorizationMachine()

    def forward(self, columns_bn: torch.Tensor, value_bn: torch.Tensor) -> torch.Tensor:
        linear_b = self.weight(columns_bn, per_sample_weights=value_bn)[:, 0]
        return self.bias + linear_b + self.interaction(self.embedding(columns_bn) * value_bn[..., None])[:, 0]


@pytest.mark.parametrize("chunk", [3, machine.CHUNK])
def test_training_is_sparse_adam_on_torchfm(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    n, m, width = 24, 40, 6
    columns = np.stack([rng.choice(m - 1, width, replace=False) for _ in range(n)])
    values = rng.random((n, width)).astype(np.float32)
    x = csr_matrix((values.ravel(), (np.repeat(np.arange(n), width), columns.ravel())), shape=(n, m))
    y = rng.integers(0, 2, n).astype(np.float32)
    learner = machine._Learner(m, fitting(3, learning_rate=0.05, init_sd=0.3, seed=5))
    literal = Literal(learner.machine())
    sparse = torch.optim.SparseAdam([literal.weight.weight, literal.embedding.weight], lr=0.05)
    dense = torch.optim.Adam([literal.bias], lr=0.05)
    for step in range(9):
        rows = np.arange(8) + 8 * (step % 3)
        logits = literal(torch.from_numpy(columns[rows]), torch.from_numpy(values[rows]))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(y[rows]))
        sparse.zero_grad(), dense.zero_grad()
        loss.backward()
        sparse.step(), dense.step()
        np.testing.assert_allclose(learner.step(x[rows], y[rows]), logits.detach().numpy(), rtol=2e-4, atol=2e-5)
    found = learner.machine()
    # a step is about 0.05; where a gradient is nearly 0, rounding shows in Adam's quotient
    np.testing.assert_allclose(found.weights, literal.weight.weight[:, 0].detach().numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.embeddings, literal.embedding.weight.detach().numpy(), rtol=0, atol=1e-3)
    assert found.bias == pytest.approx(float(literal.bias.detach()), rel=1e-3)


def test_planted_interactions_are_found_by_the_machine_and_not_by_the_probe() -> None:
    data = interacting(10_000, 20, seed=1)
    fitted = train(data.x, data.y, data.splits, fitting(20))
    probe = train(data.x, data.y, data.splits, fitting(0))
    assert partner_auc(cosines(fitted.machine.embeddings), data.partner) >= 0.95
    sizes = np.abs(probe.machine.weights)
    assert partner_auc(np.tile(sizes, (len(sizes), 1)), data.partner) <= 0.6
    assert fitted.epochs[fitted.best_epoch - 1].test.accuracy > 0.75
    assert abs(probe.epochs[probe.best_epoch - 1].test.accuracy - 0.5) < 0.06


def test_pairs_are_identified_after_thousands_of_prompts_and_not_after_hundreds() -> None:
    """What docs/replication.md says of R9."""
    first, worst = {}, {}
    for n in (480, 5000):
        data = interacting(int(n / 0.8), 20, seed=0)
        alike = cosines(train(data.x, data.y, data.splits, fitting(20)).machine.embeddings)
        np.fill_diagonal(alike, -2)
        paired = np.flatnonzero(data.partner >= 0)
        ranks = np.array([1 + (alike[i] > alike[i, data.partner[i]]).sum() for i in paired])
        first[n], worst[n] = (ranks == 1).mean(), ranks.max()
    assert first[5000] >= 0.9
    assert worst[5000] <= 4
    assert first[480] <= 0.5
    assert worst[480] >= 10


def test_the_best_epoch_on_validation_is_kept_and_equal_seeds_give_equal_machines() -> None:
    data = interacting(600, 6, seed=2)
    settings = fitting(4, 12, learning_rate=0.05, batch_size=16)
    first, again = (train(data.x, data.y, data.splits, settings) for _ in range(2))
    np.testing.assert_array_equal(first.machine.rows_mk.numpy(), again.machine.rows_mk.numpy())
    assert first.epochs == again.epochs
    ranked = sorted(range(12), key=lambda i: (-first.epochs[i].val.accuracy, first.epochs[i].val.loss, i))
    assert first.best_epoch == ranked[0] + 1
    test = data.splits["test"]
    kept = machine.score(first.machine.logits(data.x[test]), data.y[test])
    assert kept == pytest.approx(first.epochs[first.best_epoch - 1].test)
    other = train(data.x, data.y, data.splits, replace(settings, seed=1))
    assert not np.array_equal(first.machine.rows_mk.numpy(), other.machine.rows_mk.numpy())


def test_without_validation_the_last_epoch_is_kept() -> None:
    """As a study of a few prompts has it, whose tenth is none."""
    data = interacting(60, 4, seed=2)
    splits = {"train": np.arange(50), "val": np.arange(0), "test": np.arange(50, 60)}
    trained = train(data.x, data.y, splits, fitting(2, 3))
    assert trained.best_epoch == 3
    last = machine.score(trained.machine.logits(data.x[splits["test"]]), data.y[splits["test"]])
    assert last == pytest.approx(trained.epochs[-1].test)
    assert np.isnan(trained.epochs[-1].val).all()
    assert trained.machine.weights.any()


def test_scores_are_scipys_and_a_logit_of_zero_says_no() -> None:
    logits, y = np.random.default_rng(0).normal(0, 3, 50), np.random.default_rng(1).integers(0, 2, 50)
    p = expit(logits)
    loss, accuracy = machine.score(logits, y)
    assert loss == pytest.approx(-np.mean(np.where(y == 1, np.log(p), np.log1p(-p))))
    assert accuracy == np.mean((p > 0.5) == y)
    assert machine.score(np.zeros(4), np.array([0, 0, 0, 1])) == pytest.approx((np.log(2), 0.75))


def test_training_takes_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = interacting(60, 4, seed=2), list[int]()
    step = machine._Learner.step

    def counting(learner: Any, *batch: Any) -> np.ndarray:
        seen.append(torch.get_num_threads())
        return step(learner, *batch)

    monkeypatch.setattr(machine._Learner, "step", counting)
    with torch_threads(3):
        train(data.x, data.y, data.splits, fitting(2, 1))
        assert torch.get_num_threads() == 3
    assert set(seen) == {1}


def test_rows_are_taken_as_many_at_a_time_as_their_nonzeros_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = np.zeros((5, 6), np.float32)
    dense[0, :5], dense[1, 2], dense[3, 1:4], dense[4, 0] = 1.5, 2.0, 3.0, 4.0
    monkeypatch.setattr(machine, "CHUNK", 13)
    parts = list(machine._chunks(csr_matrix(dense)))
    assert [tuple(columns.shape) for columns, _ in parts] == [(2, 5), (2, 3), (1, 1)], "13 of 5: two rows"
    rows = np.concatenate([np.zeros((len(c), 6), np.float32) for c, _ in parts])
    at = 0
    for columns, values in parts:
        for mine, value in zip(columns.numpy(), values.numpy(), strict=True):
            np.add.at(rows[at], mine, value)
            at += 1
    np.testing.assert_array_equal(rows, dense)
    assert [tuple(c.shape) for c, _ in machine._chunks(csr_matrix((3, 6), dtype=np.float32))] == [(3, 1)]
    monkeypatch.setattr(machine, "CHUNK", 4)
    assert [len(c) for c, _ in machine._chunks(csr_matrix(dense))] == [1] * 5, "one at least"


def test_an_untouched_column_keeps_what_it_was_drawn_with() -> None:
    data = interacting(200, 4, seed=3)
    wider = csr_matrix((data.x.data, data.x.indices, data.x.indptr), shape=(200, data.x.shape[1] + 3))
    before = machine._Learner(wider.shape[1], fitting(2)).machine().rows_mk
    after = train(wider, data.y, data.splits, fitting(2, 2)).machine.rows_mk
    np.testing.assert_array_equal(after[-3:].numpy(), before[-3:].numpy())
    assert (after[:-3] != before[:-3]).all()


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 5))
def test_mean_pairwise_cosine_is_the_mean_over_pairs(seed: int, n: int, k: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, k))
    pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(vectors, 2)]
    assert mean_pairwise_cosine(vectors) == pytest.approx(np.mean(pairs), abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 5))
def test_spread_is_that_of_the_pairs_and_of_the_singular_values(seed: int, n: int, k: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, k))
    found = spread(vectors)
    pairs = [abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(vectors, 2)]
    shares = np.linalg.svd(vectors, compute_uv=False) ** 2 / (vectors**2).sum()
    assert found.mean_abs_cosine == pytest.approx(np.mean(pairs), abs=1e-9)
    assert found.first_direction == pytest.approx(shares[0])
    assert found.effective_rank == pytest.approx(np.prod(shares**-shares))
    assert 1 - 1e-9 <= found.effective_rank <= min(n, k) + 1e-9


def test_two_opposite_clusters_are_one_direction_whatever_their_signed_cosines_say() -> None:
    rng = np.random.default_rng(0)
    line = np.where(rng.random(1000) < 0.5, 1.0, -1.0)[:, None] * np.array([0.6, 0.8, 0, 0, 0])
    found = spread(line + 0.02 * rng.normal(size=line.shape))
    assert abs(found.mean_cosine) < 0.1, "the signs cancel"
    assert found.mean_abs_cosine > 0.99
    assert found.first_direction > 0.99
    assert found.effective_rank < 1.05
    apart = spread(rng.normal(size=(5000, 40)))
    assert apart.mean_abs_cosine == pytest.approx(np.sqrt(2 / (np.pi * 40)), rel=0.02), "drawn pairs of many rows"
    assert apart.effective_rank > 38
    assert np.isnan(spread(np.ones((1, 3)))).all()


def prompts_of(labels: str, splits: str) -> dict[str, np.ndarray]:
    names = {"h": "harmful", "b": "benign", "r": "train", "v": "val", "t": "test"}
    roles = {"h": "target", "b": "control"}
    columns = {"label": [names[c] for c in labels], "label_role": [roles[c] for c in labels], "split": [names[c] for c in splits]}
    return {"prompt_id": np.arange(len(labels)) + 100} | {n: np.array(v, dtype=object) for n, v in columns.items()}


def cells_of(cells: dict[tuple[int, int], float]) -> dict[str, np.ndarray]:
    """(prompt, number) -> value; feature `number` is (number // 10, number)."""
    prompt, number = (np.array(side) for side in zip(*cells, strict=True))
    return {
        "prompt_id": prompt + 100,
        "number": number,
        "layer": number // 10,
        "sae_id": np.array([f"sae{n // 10}" for n in number], dtype=object),
        "feature_id": number,
        "value": np.array(list(cells.values()), dtype=np.float32),
    }


def test_examples_are_scaled_by_the_training_maximum_and_leave_out_what_training_never_sees() -> None:
    cells = {(0, 3): 2.0, (1, 3): 4.0, (2, 3): 8.0, (1, 12): 5.0, (2, 15): 1.0, (0, 12): 2.5, (9, 3): 99.0}
    found = examples(prompts_of("hbh", "rrt"), cells_of(cells))
    by_feature = {int(f): i for i, f in enumerate(found.feature_ids)}
    assert by_feature.keys() == {3, 12}
    assert found.n_untrained == 1, "feature 15 fires on a test prompt only; prompt 9 is not among the prompts"
    x = found.x.toarray()
    assert x[:, by_feature[3]].tolist() == [0.5, 1.0, 2.0], "a test value may pass 1"
    assert x[:, by_feature[12]].tolist() == [0.5, 1.0, 0.0]
    assert found.scale[by_feature[3]] == 4
    assert found.n_train.tolist() == [2, 2]
    assert (found.layers[by_feature[12]], found.sae_ids[by_feature[12]]) == (1, "sae1")
    assert found.y.tolist() == [1, 0, 1]
    assert {name: rows.tolist() for name, rows in found.places.items()} == {"train": [0, 1], "val": [], "test": [2]}


def test_both_labels_are_needed() -> None:
    with pytest.raises(UserError, match=r"interactions\.sets has no control prompt"):
        examples(prompts_of("hhb", "rrt"), cells_of({(0, 1): 1.0}))


def test_strongest_pairs_are_those_of_a_double_loop() -> None:
    rng = np.random.default_rng(4)
    x = csr_matrix((rng.random((30, 12)) * (rng.random((30, 12)) < 0.4)).astype(np.float32))
    split = np.array(["train"] * 24 + ["test"] * 6)
    empty = np.zeros(12)
    data = Examples(np.arange(30), np.zeros(30), np.zeros(30), split, x, empty, empty, empty, empty, empty, 0)
    vectors = rng.normal(size=(12, 3)).astype(np.float32)
    found = strongest_pairs(data, vectors, 10)
    dense = x.toarray()[:24]
    literal = {
        (i, j): float(vectors[i] @ vectors[j]) * float((dense[:, i] * dense[:, j]).mean()) for i, j in combinations(range(12), 2)
    }
    best = sorted(literal, key=lambda pair: -abs(literal[pair]))[:10]
    assert list(zip(found["a"].tolist(), found["b"].tolist(), strict=True)) == best
    np.testing.assert_allclose(found["contribution"], [literal[pair] for pair in best], rtol=1e-4)
    np.testing.assert_allclose(found["dot"] * found["cofiring"], found["contribution"], rtol=1e-5)
