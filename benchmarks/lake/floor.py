"""How few bytes a non-zero could take: an estimate from the entropy of id gaps and of values, for published files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from scipy.special import gammaln

EXACT = 64
"""Gaps below this are symbols of their own; larger ones are an eighth of an octave and raw bits within it."""


class Floor(NamedTuple):
    """Bytes a non-zero."""

    ids: float
    values: float

    @property
    def total(self) -> float:
        return self.ids + self.values


def floor(files: Sequence[Path]) -> Floor:
    """The estimate for files of `activations`, weighted by their rows.

    Ids, whichever is less: the entropy of the gaps between a feature's tokens, given how often it fires and its last gap; or
    the number of ways to place each feature's firings at a position among the prompts, and the entropy of their number.
    Values: entropy of the upper 16 bits, and 2 bytes for the lower ones where they are not all zero; but a value that the
    feature had at the same position of the prompt before (a common beginning) costs only the entropy of that event.
    """
    n_rows, ids, values = 0, 0.0, 0.0
    for file in files:
        rows = pq.read_table(file, columns=["feature_id", "prompt_id", "pos", "activation"])
        if not len(rows):
            continue
        feature, prompt, pos, activation = (rows[name].to_numpy() for name in rows.column_names)
        length = int(pos.max()) + 1
        prompt = prompt - prompt.min()
        place = feature.astype(np.int64) * length + pos
        n_rows += len(rows)
        ids += min(_gap_bits(feature, prompt * length + pos), _placement_bits(place, pos, int(prompt.max()) + 1))
        values += _value_bits(activation, place)
    return Floor(ids / 8 / n_rows, values / 8 / n_rows)


def _placement_bits(place: np.ndarray, pos: np.ndarray, n_prompts: int) -> float:
    counts = np.bincount(place)
    ways = gammaln(n_prompts + 1) - gammaln(counts + 1) - gammaln(n_prompts - counts + 1)
    length = int(pos.max()) + 1
    per_pos = [len(counts[at::length]) * _entropy(counts[at::length]) for at in range(length)]
    return float(ways.sum() / np.log(2)) + sum(per_pos)


def _gap_bits(feature: np.ndarray, token: np.ndarray) -> float:
    new = np.diff(feature, prepend=-1) != 0
    gap = np.where(new, token + 1, np.diff(token, prepend=0))
    octave = np.floor(np.log2(gap)).astype(np.int64)
    eighth = (gap * 8 >> octave) - 8
    symbol = np.where(gap < EXACT, gap, EXACT + 8 * octave + eighth)
    raw_bits = np.where(gap < EXACT, 0, octave - 3).clip(0)
    counts = np.bincount(feature)
    frequency = np.floor(np.log2(counts[feature])).astype(np.int64)
    last = np.where(new, 0, np.roll(symbol, 1))
    n_symbols = int(symbol.max()) + 1
    context = frequency * n_symbols + last
    ids = _entropy(context * n_symbols + symbol) - _entropy(context)
    return len(feature) * ids + float(raw_bits.sum()) + len(counts) * _entropy(counts)


def _value_bits(activation: np.ndarray, place: np.ndarray) -> float:
    bits = activation.view(np.uint32)
    order = np.argsort(place, kind="stable")  # at each place in the order of the prompts
    repeated = (np.diff(place[order], prepend=-1) == 0) & (np.diff(bits[order].astype(np.int64), prepend=-1) == 0)
    new = bits[order][~repeated]
    low = 16.0 if (bits & 0xFFFF).any() else 0.0
    return len(new) * (_entropy(new >> 16) + low) + len(bits) * _entropy(repeated)


def _entropy(symbols: np.ndarray) -> float:
    """Bits a symbol."""
    counts = np.unique(symbols, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
