"""The factorisation machine from Python: what it fits is `train` on scaled rows, and what it lists is a double loop."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import expit

from saelake.analysis.interactions import estimator
from saelake.analysis.interactions.estimator import FactorizationMachine
from saelake.analysis.interactions.factorisation_machine import Settings, train
from saelake.warehouse.errors import UserError

RNG = np.random.default_rng(0)
DENSE = (RNG.uniform(-3, 3, (41, 6)) * (RNG.random((41, 6)) < 0.6)).astype(np.float32)
DENSE[:, 4] = 0
Y = np.arange(41) % 2
SETTINGS: dict[str, Any] = {
    "k": 3,
    "learning_rate": 0.05,
    "epochs": 4,
    "batch_size": 8,
    "init_sd": 0.2,
    "validation": 0.25,
    "scale": True,
    "seed": 5,
}


@pytest.fixture
def machine() -> FactorizationMachine:
    return FactorizationMachine(**SETTINGS).fit(csr_matrix(DENSE), Y)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("validation", "n_val"), [(0.25, 10), (0.0, 0)])
def test_it_is_trained_on_rows_scaled_by_their_largest_and_chosen_on_drawn_ones(
    scale: bool, validation: float, n_val: int
) -> None:
    fitted = FactorizationMachine(**SETTINGS | {"scale": scale, "validation": validation}).fit(csr_matrix(DENSE), Y)
    largest = np.array([max(abs(DENSE[:, j])) or 1 for j in range(6)]) if scale else np.ones(6)
    np.testing.assert_array_equal(fitted.scale_, largest.astype(np.float32))
    order = np.random.default_rng(5).permutation(41)
    splits = {"val": np.sort(order[:n_val]), "train": np.sort(order[n_val:]), "test": np.arange(0)}
    scaled = csr_matrix(DENSE / largest.astype(np.float32))
    literal = train(scaled, Y, splits, Settings(3, learning_rate=0.05, epochs=4, batch_size=8, init_sd=0.2, seed=5))
    np.testing.assert_array_equal(fitted.machine_.rows_mk.numpy(), literal.machine.rows_mk.numpy())
    np.testing.assert_array_equal(fitted.epochs_, literal.epochs)
    assert fitted.best_epoch_ == literal.best_epoch
    assert (fitted.n_features_in_, fitted.classes_.tolist(), len(fitted.epochs_)) == (6, [0, 1], 4)
    np.testing.assert_array_equal(np.column_stack([fitted.coef_, fitted.embeddings_]), literal.machine.rows_mk.numpy())
    assert fitted.intercept_ == literal.machine.bias
    logits = literal.machine.logits(scaled).astype(np.float64)
    np.testing.assert_allclose(fitted.decision_function(csr_matrix(DENSE)), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fitted.predict_proba(DENSE), np.stack([1 - expit(logits), expit(logits)], 1), rtol=1e-5, atol=1e-6)
    assert fitted.predict(DENSE).tolist() == (logits > 0).astype(int).tolist()
    assert fitted.score(DENSE, Y) == np.mean((logits > 0) == Y)


@pytest.mark.parametrize("at_once", [1, 14, 1 << 22])
def test_pairs_and_partners_are_those_of_a_double_loop(
    machine: FactorizationMachine, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimator, "AT_ONCE", at_once)
    vectors = np.array([[1, 0, 0], [2, 1, 0], [0, 0, 0], [-2, 1, 0], [0, 3, 1], [1, 0, 0]], dtype=np.float32)
    machine.embeddings_ = vectors
    dots = {(i, j): float(vectors[i] @ vectors[j]) for i, j in combinations(range(6), 2)}
    ranked = sorted(dots, key=lambda pair: (-abs(dots[pair]), pair))
    for n in (0, 1, 4, 15, 99):
        found = machine.pairs(n)
        assert [one[:3] for one in found] == [(*pair, dots[pair]) for pair in ranked[:n]]
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    for one in machine.pairs(15):
        assert one.cosine == pytest.approx(one.interaction / (lengths[one.i] * lengths[one.j]) if one.interaction else 0.0)
    for i in range(6):
        others = sorted((j for j in range(6) if j != i), key=lambda j: (-abs(dots[min(i, j), max(i, j)]), j))
        assert [one.j for one in machine.partners(i, 3)] == others[:3]
        assert [one.j for one in machine.partners(i)] == others
        assert {one.i for one in machine.partners(i)} == {i}


def test_a_machine_that_knows_nothing_says_no(machine: FactorizationMachine) -> None:
    machine.machine_.rows_mk.zero_()
    machine.machine_ = machine.machine_.__class__(0.0, machine.machine_.rows_mk)
    assert machine.decision_function(DENSE[:3]).tolist() == [0, 0, 0]
    assert machine.predict(DENSE[:3]).tolist() == [0, 0, 0]
    assert machine.predict_proba(DENSE[:2]).tolist() == [[0.5, 0.5]] * 2


def test_settings_are_read_and_set_by_name() -> None:
    made = FactorizationMachine(**SETTINGS)
    assert made.get_params() == SETTINGS
    assert made.set_params(k=7, scale=False) is made
    assert made.get_params() == SETTINGS | {"k": 7, "scale": False}
    with pytest.raises(UserError, match="there is no setting 'a': there are k, learning_rate, epochs,"):
        made.set_params(b=1, k=2, a=3)
    assert FactorizationMachine(3, learning_rate=0.01).get_params() == {
        "k": 3,
        "learning_rate": 0.01,
        "epochs": 20,
        "batch_size": 64,
        "init_sd": 0.01,
        "validation": 0.2,
        "scale": True,
        "seed": 0,
    }
    assert FactorizationMachine().get_params() == FactorizationMachine(20, learning_rate=0.01).get_params()


WRONG = [
    ({"k": -1}, "k "),
    ({"epochs": 0}, "epochs "),
    ({"batch_size": 0}, "batch_size "),
    ({"seed": -1}, "seed "),
    ({"learning_rate": 0.0}, r"learning_rate is 0\.0: give a positive number"),
    ({"init_sd": -0.1}, r"init_sd is -0\.1: give a positive number"),
    ({"validation": 1.0}, r"validation is 1\.0: give a share of the rows, from 0 and below 1"),
    ({"validation": -0.1}, "give a share of the rows"),
    ({"validation": 0.99}, r"validation is 0\.99, which leaves none of 41 rows to learn from"),
    ({"scale": 1}, "scale "),
]


@pytest.mark.parametrize(("changed", "expected"), WRONG)
def test_settings_that_are_none_are_told(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        FactorizationMachine(**SETTINGS | changed).fit(DENSE, Y)


@pytest.mark.parametrize(
    "changed", [{"k": 0}, {"epochs": 1}, {"batch_size": 1}, {"seed": 0}, {"init_sd": 0.0}, {"validation": 0.97}]
)
def test_settings_at_their_least_are_taken(changed: dict[str, Any]) -> None:
    assert FactorizationMachine(**SETTINGS | {"epochs": 1} | changed).fit(DENSE, Y).best_epoch_ == 1


def test_rows_and_labels_that_are_none_are_told(machine: FactorizationMachine) -> None:
    for x, y, expected in (
        (DENSE, Y[:-1], r"y has shape \(40,\), and x has 41 rows"),
        (DENSE, Y[:, None], r"y has shape \(41, 1\)"),
        (DENSE, Y * 0, "both labels, 0 and 1, and no other"),
        (DENSE, np.arange(41) % 3, "both labels, 0 and 1, and no other"),
        (DENSE[0], Y, r"x has shape \(6,\): give a matrix"),
        (csr_matrix(DENSE.astype(complex)), Y, "x is a matrix of complex"),
        (DENSE * np.float64(1e300), Y, "values that are not finite"),
    ):
        with pytest.raises(UserError, match=expected):
            FactorizationMachine(**SETTINGS).fit(x, y)
    with pytest.raises(UserError, match="x has 5 columns, and the machine was fitted on 6"):
        machine.predict(DENSE[:, :5])
    with pytest.raises(UserError, match=r"y has shape \(40,\), and x has 41 rows"):
        machine.score(DENSE, Y[:-1])
    with pytest.raises(UserError, match="no rows to score"):
        machine.score(DENSE[:0], Y[:0])
    for i in (-1, 6):
        with pytest.raises(UserError, match="the column"):
            machine.partners(i)
    with pytest.raises(UserError, match="n "):
        machine.pairs(-1)
