"""The answers that contenders are compared by, and the NumPy that array users would compute them with. BOS is position 0."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from saelake.warehouse.synth import Shape


class Firings(NamedTuple):
    """Non-zeros of some features of a layer."""

    feature_id: np.ndarray
    token: np.ndarray
    """prompt * tokens_per_prompt + pos"""
    activation: np.ndarray


class Statistics(NamedTuple):
    """What `features` holds, each (layers, width)."""

    n_tokens: np.ndarray
    n_prompts: np.ndarray
    n_harmful: np.ndarray
    mean: np.ndarray
    largest: np.ndarray

    @property
    def digest(self) -> tuple[float, ...]:
        """Numbers in which all contenders must agree."""
        return (*(float(a.sum()) for a in self[:3]), round(float(self.mean.sum(dtype=np.float64)), 0), float(self.largest.max()))


Samples = list[tuple[int, int, int, int, float]]
"""(layer, feature_id, prompt, pos, activation): the best samples of each feature, best first"""


class Cofiring(NamedTuple):
    """Pairs of features of one layer that fire on a common prompt."""

    n_pairs: int
    n_both: int
    """summed over the pairs"""


def summed(layers: Sequence[tuple[np.ndarray, ...]], length: int, harmful: np.ndarray) -> Statistics:
    """Statistics of rows grouped by feature: (indptr, token, activation) a layer."""
    found = [_summed(indptr, token, activation, length, harmful) for indptr, token, activation in layers]
    return Statistics(*(np.stack(column) for column in zip(*found, strict=True)))


def _summed(indptr: np.ndarray, token: np.ndarray, activation: np.ndarray, length: int, harmful: np.ndarray) -> list[np.ndarray]:
    width = len(indptr) - 1
    prompt, pos = np.divmod(token, np.int32(length))
    kept = pos > 0
    feature = np.repeat(np.arange(width, dtype=np.int32), np.diff(indptr))[kept]
    prompt, activation = prompt[kept], activation[kept]
    n_tokens = np.bincount(feature, minlength=width)
    total = np.bincount(feature, activation, minlength=width)
    largest = np.zeros(width, dtype=np.float32)
    starts = np.flatnonzero(np.diff(feature, prepend=-1))
    largest[feature[starts]] = np.maximum.reduceat(activation, starts)
    new = np.flatnonzero((np.diff(feature, prepend=-1) != 0) | (np.diff(prompt, prepend=-1) != 0))
    n_prompts = np.bincount(feature[new], minlength=width)
    n_harmful = np.bincount(feature[new], harmful[prompt[new]], minlength=width).astype(np.int64)
    return [n_tokens, n_prompts, n_harmful, (total / np.maximum(n_tokens, 1)).astype(np.float32), largest]


def top_samples(layers: Iterable[tuple[int, Firings]], length: int, n: int) -> Samples:
    """The `n` best samples of each feature, one per prompt; ties to the lower prompt, then the lower pos."""
    found: Samples = []
    for number, rows in layers:
        prompt, pos = np.divmod(rows.token, length)
        order = np.lexsort((pos, prompt, -rows.activation, rows.feature_id))
        order = order[pos[order] > 0]
        best: dict[int, dict[int, tuple[int, float]]] = {}
        columns = (rows.feature_id[order], prompt[order], pos[order], rows.activation[order])
        for feature, where, at, value in zip(*(column.tolist() for column in columns), strict=True):
            samples = best.setdefault(feature, {})
            if len(samples) < n:
                samples.setdefault(where, (at, value))
        found += [(number, f, where, at, value) for f, samples in best.items() for where, (at, value) in samples.items()]
    return found


def cofiring(layers: Iterable[tuple[int, Firings]], features: dict[int, np.ndarray], shape: Shape) -> Cofiring:
    """Prompts on which both features of a pair fire, by a product of feature x prompt matrices."""
    n_pairs = n_both = 0
    for number, rows in layers:
        prompt, pos = np.divmod(rows.token, shape.tokens_per_prompt)
        fires = np.zeros((len(features[number]), shape.n_prompts), dtype=np.float32)
        kept = pos > 0
        fires[np.searchsorted(features[number], rows.feature_id[kept]), prompt[kept]] = 1
        both = np.triu(fires @ fires.T, 1)
        n_pairs += int((both > 0).sum())
        n_both += int(both.sum())
    return Cofiring(n_pairs, n_both)
