"""How far rounding moves the relative changes that Algorithm 1 decides by: the noise floor, beside which tau is to be read.

Measured once a study, on the first steps of a few of its own sequences: with the model in its dtype and in float32, and one
prompt at a time against padded batches. A change c = |P - P'| / P moves by P' / P * (floor * ((1 - P) + (1 - P')) + 2 eps), where
P and P' are the probabilities before and after, held in float32: the floor is a difference of log-odds, which does not depend on
how near to 0 or 1 they are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saelake.analysis.engine.engine import AblationEngine
from saelake.analysis.engine.requests import Request
from saelake.ingest.saes.sae import Sae
from saelake.ingest.subject import Subject
from saelake.warehouse.runs import Rows
from saelake.warehouse.schema import NOISE

SEQUENCES, STEPS = 6, 32
"""Sequences of different prompts, and steps of each, that it is measured on."""
SHARE = 0.95
"""Of the changes, so many move by less than the floor."""
BATCH_TOKENS = 512
"""Padded tokens of the batches: a number of its own, so that free memory does not decide what is measured."""
DIGITS = 2
"""To which it is rounded up, so that what another machine measures is most often the same."""
SMALLEST_P = 1e-12


@dataclass(frozen=True)
class Noise:
    """What rounding does to changes, as a difference of log-odds that few exceed."""

    batch: float
    """The same prompts one at a time, and padded in batches."""
    dtype: float
    """The model in its dtype, and the same weights computed with in float32; 0 where that is the dtype."""
    n_decisions: int

    @property
    def floor(self) -> float:
        """What may be rounding alone."""
        return max(self.batch, self.dtype)

    def of_changes(self, p_target: np.ndarray) -> np.ndarray:
        """(n,): how far rounding may move the relative changes of P(A_0) .. P(A_n) (n + 1,)."""
        return self.floor * _scale(p_target) + _held(p_target)


def measured(
    subject: Subject, saes: Mapping[int, Sae], token_ids: Sequence[Sequence[int]], sequences: Sequence[Sequence[Request]]
) -> Noise:
    """The noise of a subject under the ablations of some sequences."""
    sequences = [one[: STEPS + 1] for one in sequences]

    def traces(batch_tokens: int) -> list[np.ndarray]:
        engine = AblationEngine(subject, saes, token_ids, batch_tokens=batch_tokens)
        return [engine.next_token(one).p_target.astype(np.float64) for one in sequences]

    alone, together = traces(1), traces(BATCH_TOKENS)
    batch, dtype = _exceeded_by_few(alone, together), 0.0
    if subject.dtype != torch.float32:
        with in_float32(subject.model):
            dtype = _exceeded_by_few(together, traces(BATCH_TOKENS))
    return Noise(batch, dtype, sum(len(one) - 1 for one in sequences))


def changes(p_target: np.ndarray) -> np.ndarray:
    """(n,): relative change by each step, from P(A_0) .. P(A_n) (n + 1,)."""
    before, after = p_target[:-1], p_target[1:]
    moved: np.ndarray = np.abs(before - after) / np.maximum(before, SMALLEST_P)
    return moved


def _scale(p_target: np.ndarray) -> np.ndarray:
    before, after = p_target[:-1], p_target[1:]
    scale: np.ndarray = after / np.maximum(before, SMALLEST_P) * ((1 - before) + (1 - after))
    return scale


def _held(p_target: np.ndarray) -> np.ndarray:
    """How far changes move because probabilities are float32."""
    moved: np.ndarray = p_target[1:] / np.maximum(p_target[:-1], SMALLEST_P) * 2 * np.finfo(np.float32).eps
    return moved


def _exceeded_by_few(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """The difference of log-odds below which SHARE of the changes of one evaluation differ from those of another; rounded up."""
    found = np.zeros(0)
    for a, b in zip(some, others, strict=True):
        moved = np.maximum(np.abs(changes(a) - changes(b)) - _held(a), 0)
        found = np.append(found, moved / np.maximum(_scale(a), SMALLEST_P))
    floor = float(np.quantile(found, SHARE)) if len(found) else 0.0
    if floor == 0:
        return 0.0
    unit = math.floor(math.log10(floor)) - DIGITS + 1
    return float(f"{math.ceil(floor / 10.0**unit)}e{unit}")


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """While open, the model computes in float32 with the weights that it has, one module's at a time in that precision."""
    held: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def widen(module: nn.Module, _args: Any) -> None:
        own = [one for one in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if one.is_floating_point()]
        held[module] = [(one, one.data) for one in own]
        for one in own:
            one.data = one.data.float()

    def narrow(module: nn.Module, _args: Any, _output: Any) -> None:
        for one, data in held.pop(module, []):
            one.data = data

    owners = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    with ExitStack() as hooks:
        for module in owners:
            hooks.callback(module.register_forward_pre_hook(widen).remove)
            hooks.callback(module.register_forward_hook(narrow, always_call=True).remove)
        try:
            yield
        finally:
            for module in list(held):
                narrow(module, None, None)


def noise_rows(noise: Noise) -> Rows:
    """The row of `noise`."""
    columns = {"n_decisions": [noise.n_decisions], "batch": [noise.batch], "dtype": [noise.dtype], "floor": [noise.floor]}
    return Rows.of(NOISE, columns)
