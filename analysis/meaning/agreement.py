"""How well people agree with each other and with the taxonomy (R19): pure functions over sums of features.

Every measure is a function of sums over features, so its bootstrap over features is a product of random weights and these sums.
Shapes: r annotators, i items (features), c categories; ratings are 1 (chosen), 0, or nan where a person has not answered.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from saelake.analysis.interactions.statistics import LEVEL, RESAMPLES


class Measured(NamedTuple):
    """A measure with its percentile interval; nan where it is not defined."""

    n: int
    """items that count"""
    estimate: float
    low: float
    high: float


Measure = Callable[[np.ndarray], np.ndarray]
"""(n, k) sums over items -> (n,) values of a measure"""


def measured(sums_ik: np.ndarray, measure: Measure, seed: int) -> Measured:
    """A measure of all items, with its 95% interval from drawing the items anew, with replacement.

    Draws without a value (no item that counts was drawn) are left out.
    """
    n = int((sums_ik != 0).any(axis=1).sum())
    if not n:
        return Measured(0, *[float("nan")] * 3)
    weights = np.random.default_rng(seed).multinomial(len(sums_ik), np.full(len(sums_ik), 1 / len(sums_ik)), size=RESAMPLES)
    drawn = measure(weights @ sums_ik)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(drawn) else (np.nan, np.nan)
    return Measured(n, float(measure(sums_ik.sum(axis=0, keepdims=True))[0]), float(low), float(high))


def mean_sums(values_i: np.ndarray) -> np.ndarray:
    """(i, 2): value and 1, or zeros where the value is nan: what `mean` needs."""
    is_there = np.isfinite(values_i)
    return np.stack([np.where(is_there, values_i, 0), is_there], axis=1).astype(float)


def mean(sums_nk: np.ndarray) -> np.ndarray:
    """The mean of values (`mean_sums`)."""
    return _ratio(sums_nk[:, 0], sums_nk[:, 1])


def alpha_sums(ratings_ric: np.ndarray) -> np.ndarray:
    """(i, 4): what `alpha` needs of each item, its categories added up.

    The numbers of ones and of zeros, the disagreeing pairs (each decision's over its number of people less one), and 1 if any
    decision counts: those that fewer than two people made do not, since they cannot agree.
    """
    ones_ic, zeros_ic = ((ratings_ric == value).sum(axis=0).astype(float) for value in (1, 0))
    n_ic = ones_ic + zeros_ic
    counts_ic = n_ic >= 2
    unlike_ic = np.where(counts_ic, ones_ic * zeros_ic / np.maximum(n_ic - 1, 1), 0)
    ones_ic, zeros_ic = ones_ic * counts_ic, zeros_ic * counts_ic
    return np.stack([ones_ic.sum(axis=1), zeros_ic.sum(axis=1), unlike_ic.sum(axis=1), counts_ic.any(axis=1)], axis=1)


def alpha(sums_nk: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha for nominal data of yes-or-no decisions: 1 - observed over expected disagreement.

    With N ones and zeros in all: 1 - (N - 1) sum(unlike) / (ones x zeros). nan if all decisions are equal.
    """
    ones, zeros, unlike = sums_nk[:, 0], sums_nk[:, 1], sums_nk[:, 2]
    return 1 - _ratio((ones + zeros - 1) * unlike, ones * zeros)


def kappa_sums(a_ic: np.ndarray, b_ic: np.ndarray) -> np.ndarray:
    """(i, 4): how often two people both chose, only the first, only the second, and neither did, per item."""
    both = np.isfinite(a_ic) & np.isfinite(b_ic)
    cells = [(a_ic == x) & (b_ic == y) & both for x, y in ((1, 1), (1, 0), (0, 1), (0, 0))]
    return np.stack([cell.sum(axis=1) for cell in cells], axis=1).astype(float)


def kappa(sums_nk: np.ndarray) -> np.ndarray:
    """Cohen's kappa of two people's yes-or-no decisions: agreement beyond chance, over what is possible beyond chance."""
    n = sums_nk.sum(axis=1)
    observed = _ratio(sums_nk[:, 0] + sums_nk[:, 3], n)
    a, b = _ratio(sums_nk[:, 0] + sums_nk[:, 1], n), _ratio(sums_nk[:, 0] + sums_nk[:, 2], n)
    expected = a * b + (1 - a) * (1 - b)
    return _ratio(observed - expected, 1 - expected)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """over / under; nan where under is 0."""
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under != 0)
