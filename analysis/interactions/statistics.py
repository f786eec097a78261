"""Intervals, tests and effect sizes (R21): pure functions over SciPy, two-sided, at 95%."""

from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 9_999


class Interval(NamedTuple):
    low: float
    high: float


class Test(NamedTuple):
    """A paired test of no difference."""

    name: str
    p: float
    effect: float
    effect_measure: str


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a proportion.

    `successes` may be fractional, where each of n prompts contributes the share of its draws: as if the draws of a prompt always
    agreed, which is never too narrow. For whole numbers it is scipy's `binomtest(...).proportion_ci(method="wilson")`.
    """
    assert n > 0, "no prompts"
    assert -1e-9 <= successes <= n + 1e-9, f"{successes} successes of {n}"
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    rate = min(max(successes / n, 0.0), 1.0)
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # exact at the ends, as in scipy, where rounding would leave 1e-17
    return Interval(0.0 if rate == 0 else float(centre - half), 1.0 if rate == 1 else float(centre + half))


def paired_interval(a: np.ndarray, b: np.ndarray) -> Interval:
    """Interval of mean(a) - mean(b) for values in [0, 1] on the same prompts (n,).

    Newcombe's (1998) score method for paired proportions, without continuity correction: Wilson's intervals of both, joined by
    the correlation of the pairs.
    """
    n = len(a)
    rates = float(a.mean()), float(b.mean())
    (low_a, high_a), (low_b, high_b) = (wilson(float(x.sum()), n) for x in (a, b))
    spread = float(a.std() * b.std())
    phi = float(((a - rates[0]) * (b - rates[1])).mean() / spread) if spread else 0.0
    down = _joined(rates[0] - low_a, high_b - rates[1], phi)
    up = _joined(high_a - rates[0], rates[1] - low_b, phi)
    return Interval(rates[0] - rates[1] - down, rates[0] - rates[1] + up)


def _joined(one: float, other: float, phi: float) -> float:
    return float(np.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0)))


def bootstrap_mean(values: np.ndarray, seed: int) -> Interval:
    """Percentile bootstrap of the mean of (n,) values."""
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(float(values.mean()), float(values.mean()))
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", batch=1000, rng=seed
    )
    return Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))


def paired_test(a: np.ndarray, b: np.ndarray, seed: int) -> Test:
    """The test for shares in [0, 1] on the same prompts: McNemar's where all are 0 or 1, else by permutation."""
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        return mcnemar(a.astype(bool), b.astype(bool))
    return permutation(a, b, seed)


def mcnemar(a: np.ndarray, b: np.ndarray) -> Test:
    """McNemar's exact test of two boolean answers (n,) on the same prompts.

    The effect is the odds ratio of the pairs that differ, each count enlarged by a half (Haldane), so that it exists.
    """
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Test("mcnemar_exact", p, (only_a + 0.5) / (only_b + 0.5), "odds_ratio")


def permutation(a: np.ndarray, b: np.ndarray, seed: int) -> Test:
    """Sign-flip permutation test of the mean difference of pairs; the effect is Cohen's h of the two means."""
    effect = cohens_h(float(a.mean()), float(b.mean()))
    if np.array_equal(a, b):
        return Test("permutation", 1.0, effect, "cohens_h")
    found = stats.permutation_test(
        (a, b), _mean_difference, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=1000, rng=seed
    )
    return Test("permutation", float(found.pvalue), effect, "cohens_h")


def _mean_difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    # rounded: permutations that are equal on paper must not count as different
    return np.asarray(np.mean(a - b, axis=axis)).round(12)


def wilcoxon(a: np.ndarray, b: np.ndarray) -> Test:
    """Wilcoxon's signed-rank test of pairs, ties left out; the effect is the matched-pairs rank-biserial correlation.

    That correlation is (sum of positive ranks - sum of negative ranks) / sum of all: 1 if a is larger in every pair that differs.
    """
    difference = a - b
    difference = difference[difference != 0]
    if not len(difference):
        return Test("wilcoxon", 1.0, 0.0, "rank_biserial")
    ranks = stats.rankdata(np.abs(difference))
    effect = float((ranks * np.sign(difference)).sum() / ranks.sum())
    return Test("wilcoxon", float(stats.wilcoxon(difference).pvalue), effect, "rank_biserial")


def cohens_h(a: float, b: float) -> float:
    """Cohen's effect size of two proportions: 0.2 is small, 0.5 medium, 0.8 large; pi at most."""
    return float(2 * np.arcsin(np.sqrt(a)) - 2 * np.arcsin(np.sqrt(b)))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (m,) after Holm's step-down correction."""
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]), 1.0)
    corrected = np.empty_like(stepped)
    corrected[order] = stepped
    return corrected
