"""The factorisation machine from Python, with scikit-learn's interface: on any sparse rows with labels 0 and 1."""

from typing import Any, NamedTuple, Self

import numpy as np
from scipy.sparse import csr_matrix, issparse

from saelake.analysis.interactions.factorisation_machine import Epoch, Settings, train
from saelake.warehouse import arguments
from saelake.warehouse.errors import UserError

SETTINGS = ("k", "learning_rate", "epochs", "batch_size", "init_sd", "validation", "scale", "seed")
AT_ONCE = 1 << 22
"""Products of embeddings that exist at a time."""


class Pair(NamedTuple):
    """Two columns and how they act together."""

    i: int
    j: int
    interaction: float
    """`<v_i, v_j>`: what the logit gains where both are 1; with `scale`, where both are at the largest of their columns."""
    cosine: float
    """Of v_i and v_j."""


class FactorizationMachine:
    """`y(x) = w0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j`, as a probability of label 1.

    Args:
        k: length of the embeddings; 0 is a logistic regression.
        validation: share of the rows that choose the best epoch; 0: the last epoch is kept.
        scale: divide every column by its largest absolute value in the rows that `fit` is given, those for validation included.
    """

    def __init__(
        self,
        k: int = 20,
        *,
        learning_rate: float = 0.01,
        epochs: int = 20,
        batch_size: int = 64,
        init_sd: float = 0.01,
        validation: float = 0.2,
        scale: bool = True,
        seed: int = 0,
    ) -> None:
        self.k, self.learning_rate, self.epochs, self.batch_size = k, learning_rate, epochs, batch_size
        self.init_sd, self.validation, self.scale, self.seed = init_sd, validation, scale, seed

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name, as scikit-learn's model selection asks for them."""
        return {name: getattr(self, name) for name in SETTINGS}

    def set_params(self, **settings: Any) -> Self:
        """Changes settings; raises UserError for an unknown name."""
        if unknown := sorted(set(settings) - set(SETTINGS)):
            raise UserError(f"there is no setting {unknown[0]!r}: there are {', '.join(SETTINGS)}")
        for name, value in settings.items():
            setattr(self, name, value)
        return self

    def fit(self, x: csr_matrix, y: np.ndarray) -> Self:
        """Learns from rows (n, m) and their labels (n,), 0 or 1; raises UserError for other shapes, labels and values."""
        self._check()
        x, y = _rows(x), _numbers("y", y)
        if y.shape != (x.shape[0],):
            raise UserError(f"y has shape {y.shape}, and x has {x.shape[0]} rows: give one label per row")
        if set(np.unique(y).tolist()) != {0, 1}:
            raise UserError("y needs both labels, 0 and 1, and no other")
        largest = np.asarray(abs(x).max(axis=0).todense()).ravel()
        self.scale_ = np.where(largest > 0, largest, 1).astype(np.float32) if self.scale else np.ones(x.shape[1], np.float32)
        order = np.random.default_rng(self.seed).permutation(len(y))
        n_val = round(self.validation * len(y))
        if n_val >= len(y):
            raise UserError(f"validation is {self.validation}, which leaves none of {len(y)} rows to learn from")
        splits = {"val": np.sort(order[:n_val]), "train": np.sort(order[n_val:]), "test": np.empty(0, dtype=np.int64)}
        settings = Settings(self.k, self.learning_rate, self.epochs, self.batch_size, self.init_sd, self.seed)
        trained = train(self._scaled(x), y.astype(np.float32), splits, settings)
        self.machine_, self.epochs_ = trained.machine, list[Epoch](trained.epochs)
        self.n_features_in_, self.best_epoch_ = x.shape[1], trained.best_epoch
        self.intercept_, self.coef_, self.embeddings_ = trained.machine.bias, trained.machine.weights, trained.machine.embeddings
        self.classes_ = np.array([0, 1])
        return self

    def decision_function(self, x: csr_matrix) -> np.ndarray:
        """(n,) logits of label 1."""
        x = _rows(x)
        if x.shape[1] != self._fitted().n_features_in_:
            raise UserError(f"x has {x.shape[1]} columns, and the machine was fitted on {self.n_features_in_}")
        return self.machine_.logits(self._scaled(x))

    def predict_proba(self, x: csr_matrix) -> np.ndarray:
        """(n, 2) probabilities of the labels 0 and 1."""
        p = 1 / (1 + np.exp(-self.decision_function(x).astype(np.float64)))
        return np.stack([1 - p, p], axis=1)

    def predict(self, x: csr_matrix) -> np.ndarray:
        """(n,) the likelier label."""
        return (self.decision_function(x) > 0).astype(np.int64)

    def score(self, x: csr_matrix, y: np.ndarray) -> float:
        """Share of rows whose label is predicted."""
        y, predicted = _numbers("y", y), self.predict(x)
        if y.shape != predicted.shape:
            raise UserError(f"y has shape {y.shape}, and x has {len(predicted)} rows: give one label per row")
        if not len(y):
            raise UserError("there are no rows to score")
        return float((predicted == y).mean())

    def partners(self, i: int, n: int = 20) -> list[Pair]:
        """The columns that a column acts with most, the strongest first, whatever the sign; ties go to the lower column."""
        vectors = self._fitted().embeddings_
        i, n = arguments.whole("the column", i, 0, len(vectors) - 1), arguments.whole("n", n, 0)
        dots = vectors @ vectors[i]
        others = np.delete(np.arange(len(vectors)), i)
        chosen = others[np.argsort(-np.abs(dots[others]), kind="stable")][:n]
        return [self._pair(i, int(j)) for j in chosen]

    def pairs(self, n: int = 20) -> list[Pair]:
        """The pairs of columns that act together most, the strongest first, whatever the sign; ties go to the lower columns."""
        vectors, n = self._fitted().embeddings_, arguments.whole("n", n, 0)
        best: list[tuple[float, int, int]] = []
        step = max(1, AT_ONCE // max(1, len(vectors)))
        for start in range(0, len(vectors), step):
            dots = np.abs(vectors[start : start + step] @ vectors.T)
            dots[np.arange(start, start + len(dots))[:, None] >= np.arange(len(vectors))] = -1
            flat = dots.ravel()
            least = np.partition(flat, -n)[-n] if n < flat.size else 0
            chosen = np.flatnonzero(flat >= max(least, 0))  # all that are as strong as the n-th, in their order
            chosen = chosen[np.argsort(-flat[chosen], kind="stable")[:n]]
            rows, columns = np.unravel_index(chosen, dots.shape)
            best += zip((-flat[chosen]).tolist(), (rows + start).tolist(), columns.tolist(), strict=True)
            best = sorted(best)[:n]
        return [self._pair(i, j) for _, i, j in best]

    def _check(self) -> None:
        """Raises UserError for settings that are none."""
        for name, at_least in (("k", 0), ("epochs", 1), ("batch_size", 1), ("seed", 0)):
            arguments.whole(name, getattr(self, name), at_least)
        for name in ("learning_rate", "init_sd", "validation"):
            arguments.real(name, getattr(self, name))
        arguments.switch("scale", self.scale)
        if self.learning_rate <= 0 or self.init_sd < 0:
            name = "learning_rate" if self.learning_rate <= 0 else "init_sd"
            raise UserError(f"{name} is {getattr(self, name)}: give a positive number")
        if not 0 <= self.validation < 1:
            raise UserError(f"validation is {self.validation}: give a share of the rows, from 0 and below 1")

    def _pair(self, i: int, j: int) -> Pair:
        one, other = self.embeddings_[i].astype(np.float64), self.embeddings_[j].astype(np.float64)
        dot, norms = float(one @ other), float(np.linalg.norm(one) * np.linalg.norm(other))
        return Pair(i, j, dot, dot / norms if norms else 0.0)

    def _scaled(self, x: csr_matrix) -> csr_matrix:
        return csr_matrix((x.data / self.scale_[x.indices], x.indices, x.indptr), shape=x.shape)

    def _fitted(self) -> Self:
        if not hasattr(self, "machine_"):
            raise UserError("the machine is not fitted yet: call fit(x, y) first")
        return self


def _rows(x: csr_matrix) -> csr_matrix:
    if not issparse(x):
        x = _numbers("x", x)
        if x.ndim != 2:
            raise UserError(f"x has shape {x.shape}: give a matrix of rows and columns")
    elif x.dtype.kind not in "biuf":
        raise UserError(f"x is a matrix of {x.dtype}: give one of numbers")
    with np.errstate(over="ignore"):
        found = csr_matrix(x, dtype=np.float32)
    if not np.isfinite(found.data).all():
        raise UserError("x has values that are not finite numbers")
    return found


def _numbers(name: str, given: Any) -> np.ndarray:
    found = arguments.array(given, "biuf")
    if found is None:
        raise UserError(f"{name} is {arguments.shown(given)}: give an array of numbers")
    return found
