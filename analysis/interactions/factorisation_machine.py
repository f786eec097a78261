"""A second-order factorisation machine on sparse, real-valued rows, and its training (R9).

    y(x) = w0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j

The interaction is torchfm's layer, applied to value-weighted embeddings of the non-zeros alone. Of a batch only the columns that
it touches are read, differentiated and moved (Adam on touched rows, as torch's SparseAdam), so a step costs what its non-zeros
cost, however many columns there are. With embeddings of length 0 the machine is a logistic probe.

Letters of shapes: m columns, b prompts of a batch, n non-zeros a prompt (padded), u touched columns, k embedding length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional
from torchfm.layer import FactorizationMachine

from saelake.ingest.torch_threads import torch_threads

INTERACTION = FactorizationMachine(reduce_sum=True)
BETAS = (0.9, 0.999)
EPSILON = 1e-8
CHUNK = 24_576
"""Non-zeros (padded) that are differentiated at once: what they need stays in the processor's cache."""


@dataclass(frozen=True)
class Settings:
    """How a machine is trained."""

    n_factors: int
    learning_rate: float
    epochs: int
    batch_size: int
    init_sd: float
    seed: int


@dataclass(frozen=True)
class Machine:
    """Fitted parameters."""

    bias: float
    rows_mk: Tensor
    """(m, 1 + k) float32: linear weight, then embedding, of every column"""

    @property
    def weights(self) -> np.ndarray:
        """(m,)"""
        return self.rows_mk[:, 0].numpy()

    @property
    def embeddings(self) -> np.ndarray:
        """(m, k)"""
        return self.rows_mk[:, 1:].numpy()

    def logits(self, x: csr_matrix) -> np.ndarray:
        """(rows of x,) float32."""
        if not x.shape[0]:
            return np.empty(0, dtype=np.float32)
        bias = torch.tensor(self.bias)
        with torch.no_grad():
            found = [_logits(bias, _gathered(self.rows_mk, columns_bn), value_bn) for columns_bn, value_bn in _chunks(x)]
        return torch.cat(found).numpy()


class Score(NamedTuple):
    """How a machine does on some prompts."""

    loss: float
    """Mean negative log-likelihood (nats)."""
    accuracy: float


class Epoch(NamedTuple):
    """One pass over the training prompts, and how the machine did during it (train) and after it (the others)."""

    train: Score
    val: Score
    test: Score


class Trained(NamedTuple):
    machine: Machine
    """As it was after the best epoch."""
    best_epoch: int
    """From 1: the most accurate on validation, then the one with the lowest loss, then the first. Where nothing
    validates a machine's last, and the probe's first, the strongest penalty."""
    epochs: list[Epoch]


def train(x: csr_matrix, y: np.ndarray, splits: dict[str, np.ndarray], settings: Settings) -> Trained:
    """Fits a machine to labels y (0 or 1); `splits` gives the places of the prompts of train, val and test."""
    # Steps are small and bound by memory: more threads only wait for each other, and sums would depend on their number.
    with torch_threads(1):
        return _train(x, y.astype(np.float32), splits, settings)


def _train(x: csr_matrix, y: np.ndarray, splits: dict[str, np.ndarray], settings: Settings) -> Trained:
    learner = _Learner(x.shape[1], settings)
    rng = np.random.default_rng(settings.seed)
    epochs: list[Epoch] = []
    best, best_epoch = learner.machine(), 0
    best_score = (-np.inf, -np.inf)
    for number in range(1, settings.epochs + 1):
        order = rng.permutation(splits["train"])
        batches = [order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)]
        logits = np.concatenate([learner.step(x[rows], y[rows]) for rows in batches])
        now = learner.view()
        val, test = (score(now.logits(x[splits[name]]), y[splits[name]]) for name in ("val", "test"))
        epochs.append(Epoch(score(logits, y[order]), val, test))
        if not len(splits["val"]) or (val.accuracy, -val.loss) > best_score:
            best, best_epoch, best_score = learner.machine(), number, (val.accuracy, -val.loss)
    return Trained(best, best_epoch, epochs)


def score(logits: np.ndarray, y: np.ndarray) -> Score:
    """Loss and accuracy; NaN where there is nothing to score."""
    if not len(y):
        return Score(float("nan"), float("nan"))
    loss = np.logaddexp(0, np.where(y > 0.5, -logits, logits).astype(np.float64)).mean()
    return Score(float(loss), float(((logits > 0) == (y > 0.5)).mean()))


class _Learner:
    """Parameters with Adam's two moments."""

    def __init__(self, n_columns: int, settings: Settings) -> None:
        self._settings = settings
        self._step = 0
        width = 1 + settings.n_factors
        self._rows = _Moving(*(torch.zeros(n_columns, width) for _ in _Moving._fields))
        self._rows.value[:, 1:].normal_(0, settings.init_sd, generator=torch.Generator().manual_seed(settings.seed))
        self._bias = _Moving(*(torch.zeros(1) for _ in _Moving._fields))

    def view(self) -> Machine:
        """The machine as it is, sharing memory with what is being trained."""
        return Machine(float(self._bias.value), self._rows.value)

    def machine(self) -> Machine:
        """The machine as it is, for keeps."""
        now = self.view()
        return Machine(now.bias, now.rows_mk.clone())

    def step(self, x: csr_matrix, y: np.ndarray) -> np.ndarray:
        """One step of Adam on a batch; returns its logits from before the step."""
        self._step += 1
        touched = np.zeros(x.shape[1], dtype=bool)
        touched[x.indices] = True
        columns = torch.from_numpy(np.flatnonzero(touched))
        place = np.cumsum(touched, dtype=np.int32) - 1  # of each column among the touched ones
        narrow = csr_matrix((x.data, place[x.indices], x.indptr), shape=(x.shape[0], len(columns)))

        rows = _Moving(*(table_mw.index_select(0, columns) for table_mw in self._rows))
        grad_uw = torch.zeros_like(rows.value)
        bias = self._bias.value.clone().requires_grad_()
        grad_bias = torch.zeros(1)
        logits, first = [], 0
        for columns_bn, value_bn in _chunks(narrow):
            rows_bnw = _gathered(rows.value, columns_bn).requires_grad_()
            logits_b = _logits(bias, rows_bnw, value_bn)
            y_b = torch.from_numpy(y[first : first + len(columns_bn)])
            loss = functional.binary_cross_entropy_with_logits(logits_b, y_b, reduction="sum") / len(y)
            by_bias, by_rows_bnw = torch.autograd.grad(loss, [bias, rows_bnw])
            grad_uw.index_add_(0, columns_bn.flatten(), by_rows_bnw.flatten(0, 1))
            grad_bias += by_bias
            logits.append(logits_b.detach())
            first += len(columns_bn)
        self._adam(rows, grad_uw)
        for table_mw, moved_uw in zip(self._rows, rows, strict=True):
            table_mw.index_copy_(0, columns, moved_uw)
        self._adam(self._bias, grad_bias)
        return torch.cat(logits).numpy()

    def _adam(self, moving: "_Moving", grad: Tensor) -> None:
        moving.mean.lerp_(grad, 1 - BETAS[0])
        moving.square.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        size = self._settings.learning_rate / (1 - BETAS[0] ** self._step)
        root = (moving.square / (1 - BETAS[1] ** self._step)).sqrt_().add_(EPSILON)
        moving.value.addcdiv_(moving.mean, root, value=-size)


class _Moving(NamedTuple):
    """Parameters, and the running means of their gradient and of its square."""

    value: Tensor
    mean: Tensor
    square: Tensor


def _gathered(rows_uw: Tensor, columns_bn: Tensor) -> Tensor:
    """(b, n, w): a row for every non-zero. (index_select is several times as fast as indexing.)"""
    return rows_uw.index_select(0, columns_bn.flatten()).view(*columns_bn.shape, -1)


def _logits(bias: Tensor, rows_bnw: Tensor, value_bn: Tensor) -> Tensor:
    """(b,): the formula above, over each prompt's non-zeros; a padded one has the value 0."""
    weighted_bnw = rows_bnw * value_bn[..., None]
    return bias + weighted_bnw[..., 0].sum(1) + INTERACTION(weighted_bnw[..., 1:])[:, 0]


def _chunks(x: csr_matrix) -> Iterator[tuple[Tensor, Tensor]]:
    """Columns and values of consecutive prompts, padded to the longest of each chunk with the value 0 in column 0."""
    lengths = np.diff(x.indptr)
    n_rows = max(1, CHUNK // max(1, int(lengths.max(initial=1))))
    for first in range(0, x.shape[0], n_rows):
        mine = lengths[first : first + n_rows]
        filled_bn = np.arange(max(1, mine.max(initial=0))) < mine[:, None]
        span = slice(x.indptr[first], x.indptr[first + len(mine)])
        columns_bn = np.zeros(filled_bn.shape, dtype=np.int64)
        value_bn = np.zeros(filled_bn.shape, dtype=np.float32)
        columns_bn[filled_bn], value_bn[filled_bn] = x.indices[span], x.data[span]
        yield torch.from_numpy(columns_bn), torch.from_numpy(value_bn)
