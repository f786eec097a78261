"""Intervals, tests and effect sizes (R21): pure functions over SciPy, two-sided, at 95%."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 9_999
EQUAL = 1e-6
"""Probabilities nearer than this are ties for a test: float32 holds no more, and its last bits depend on the batch."""
LARGEST_FRACTION = 60
"""Shares are looked for as multiples of 1, 1/2, ... of so small a part."""
LATTICE_STEPS = 1e9
"""Sums of shares are built up exactly in so many additions at most."""
ENUMERATED = 20
"""All sign flips are tried of so many pairs at most."""


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
    return _wilson(min(max(successes / n, 0.0), 1.0), n)


def _wilson(rate: float, n: float) -> Interval:
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
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
    phi = (float((a * b).mean()) - rates[0] * rates[1]) / spread if spread else 0.0
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
    return Test("mcnemar_exact", sign_test(only_a, only_b), (only_a + 0.5) / (only_b + 0.5), "odds_ratio")


def sign_test(n_more: int, n_less: int, *, one_sided: bool = False) -> float:
    """How probable so many pairs in one direction are, of those that differ, if both are alike; one-sided: so many more."""
    n = n_more + n_less
    return float(stats.binomtest(n_more, n, alternative="greater" if one_sided else "two-sided").pvalue) if n else 1.0


def permutation(a: np.ndarray, b: np.ndarray, seed: int) -> Test:
    """Sign-flip permutation test of the mean difference of pairs; the effect is Cohen's h of the two means.

    Exact for shares (draws that flip, of a few draws), whatever their number; else by draws, which the name of p says.
    """
    effect = cohens_h(float(a.mean()), float(b.mean()))
    exact = sign_flip_p(a - b)
    if exact is not None:
        return Test("permutation", exact, effect, "cohens_h")
    found = stats.permutation_test(
        (a, b), _mean_difference, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=1000, rng=seed
    )
    return Test("permutation_drawn", float(found.pvalue), effect, "cohens_h")


def _mean_difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    # rounded: permutations that are equal on paper must not count as different
    return np.asarray(np.mean(a - b, axis=axis)).round(12)


def sign_flip_p(differences: np.ndarray) -> float | None:
    """Two-sided p of sum(differences) if every sign were a coin, over all 2^n flips of (n,): no floor but 2^-n.

    Where the differences are multiples of one fraction, the sum's distribution is built up term by term on that lattice; else all
    flips are tried, up to ENUMERATED of them. None where neither can be done.
    """
    sizes = np.abs(differences[np.abs(differences) > EQUAL]).astype(np.float64)
    if not len(sizes):
        return 1.0
    observed = abs(float(differences.sum()))
    parts = next((n for n in range(1, LARGEST_FRACTION + 1) if np.allclose(sizes * n, np.round(sizes * n), rtol=0, atol=1e-7)), 0)
    if parts and len(sizes) * float(sizes.sum()) * parts <= LATTICE_STEPS:
        steps = np.round(sizes * parts).astype(np.int64)
        total = int(steps.sum())
        chance = np.zeros(2 * total + 1)  # of the sums -total .. total
        chance[total] = 1
        for step in steps.tolist():
            flipped = np.zeros_like(chance)
            flipped[step:] += chance[: len(chance) - step] / 2
            flipped[: len(chance) - step] += chance[step:] / 2
            chance = flipped
        extreme = np.abs(np.arange(-total, total + 1)) >= round(observed * parts)
        return min(float(chance[extreme].sum()), 1.0)
    if len(sizes) <= ENUMERATED:
        sums = np.zeros(1)
        for size in sizes.tolist():
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= observed - EQUAL).mean())
    return None


def wilcoxon(a: np.ndarray, b: np.ndarray) -> Test:
    """Wilcoxon's signed-rank test of pairs, ties left out; the effect is the matched-pairs rank-biserial correlation.

    That correlation is (sum of positive ranks - sum of negative ranks) / sum of all: 1 if a is larger in every pair that differs.
    """
    difference = a - b
    difference = difference[np.abs(difference) > EQUAL]
    difference = np.sign(difference) * (1 + tied_places(np.abs(difference)))
    if not len(difference):
        return Test("wilcoxon", 1.0, 0.0, "rank_biserial")
    ranks = stats.rankdata(np.abs(difference))
    effect = float((ranks * np.sign(difference)).sum() / ranks.sum())
    return Test("wilcoxon", float(stats.wilcoxon(difference).pvalue), effect, "rank_biserial")


def tied_places(values: np.ndarray) -> np.ndarray:
    """(n,) which of the distinct values each is, from 0; a value is distinct from the one below it if it is not EQUAL to it."""
    order = np.argsort(values, kind="stable")
    places = np.empty(len(values), dtype=np.int64)
    places[order] = np.cumsum(np.diff(values[order], prepend=values[order][:1]) > EQUAL)
    return places


def cohens_h(a: float, b: float) -> float:
    """Cohen's effect size of two proportions: 0.2 is small, 0.5 medium, 0.8 large; pi at most."""
    return float(2 * np.arcsin(np.sqrt(a)) - 2 * np.arcsin(np.sqrt(b)))


class Families:
    """Prompts that are alike (one wording, say) as clusters: what is drawn again, or flipped, is a family as a whole.

    Args:
        of_n: (n,) the family of each prompt, as any number.
    """

    def __init__(self, of_n: np.ndarray) -> None:
        _, self.place_n, self.sizes_g = np.unique(of_n, return_inverse=True, return_counts=True)

    def __len__(self) -> int:
        return len(self.sizes_g)

    def sums(self, values_n: np.ndarray) -> np.ndarray:
        """(g,): the sum of each family's values."""
        return np.bincount(self.place_n, values_n, len(self.sizes_g))

    def interval(self, values_n: np.ndarray, seed: int) -> Interval:
        """Percentile bootstrap of the mean of (n,) values over whole families, RESAMPLES times."""
        sums_g, times_rg = self.sums(values_n), _drawn(len(self), seed)
        means_r = (times_rg @ sums_g) / (times_rg @ self.sizes_g)
        low, high = np.quantile(means_r, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(low), float(high))

    def paired(self, a_n: np.ndarray, b_n: np.ndarray, seed: int) -> Interval:
        """Interval of mean(a) - mean(b) over families, for shares (n,).

        Differences that are all equal leave nothing to draw from: there it is `paired_interval` with a family as one prompt.
        """
        if np.ptp(a_n - b_n):
            return self.interval(a_n - b_n, seed)
        return paired_interval(self.sums(a_n) / self.sizes_g, self.sums(b_n) / self.sizes_g)

    def rate(self, shares_n: np.ndarray) -> Interval:
        """Wilson's interval of a rate as if there were n / deff prompts (Korn and Graubard 1998; theirs is the exact one).

        deff, how many times the variance over families is that over as many independent prompts, is at least 1 and at most what
        makes the families the observations. It is that most where all shares are equal, since it cannot be estimated there.
        """
        n, n_g, mean = len(shares_n), len(self.sizes_g), float(shares_n.mean())
        plain = mean * (1 - mean) / n
        residuals_g = self.sums(shares_n - mean)
        clustered = float((residuals_g**2).sum()) / n**2 * n_g / max(n_g - 1, 1)
        known = np.ptp(shares_n) > 0 and n_g > 1
        effective = min(max(n * plain / clustered if clustered else n, n_g), n) if known else n_g
        return _wilson(mean, effective)

    def p(self, differences_n: np.ndarray) -> float | None:
        """`sign_flip_p` where the prompts of a family keep one sign: its smallest value is 2^(1 - families)."""
        return sign_flip_p(self.sums(differences_n))


@lru_cache(maxsize=2)
def _drawn(n_families: int, seed: int) -> np.ndarray:
    """(RESAMPLES, families): how often each is drawn."""
    even = np.full(n_families, 1 / n_families)
    return np.random.default_rng(seed).multinomial(n_families, even, size=RESAMPLES).astype(np.float64)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (m,) after Holm's step-down correction."""
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]), 1.0)
    corrected = np.empty_like(stepped)
    corrected[order] = stepped
    return corrected
