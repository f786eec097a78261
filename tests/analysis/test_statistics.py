"""Intervals, tests and effect sizes against SciPy, statsmodels and examples worked out by hand."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

from saelake.analysis.interactions import statistics
from saelake.analysis.interactions.statistics import Interval


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    k, n = counts
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert statistics.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_shares_is_statsmodels() -> None:
    assert statistics.wilson(7.25, 20) == pytest.approx(proportion_confint(7.25, 20, method="wilson"))
    assert statistics.wilson(0, 10) == pytest.approx((0, 0.277533), abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_statsmodels_exact(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    found = statistics.mcnemar(a, b)
    # scipy and statsmodels may differ in the last digit; without a differing pair there is nothing to test
    expected = 1.0 if table[0][1] + table[1][0] == 0 else statsmodels_mcnemar(table, exact=True).pvalue
    assert found.p == pytest.approx(min(expected, 1.0), rel=1e-9)
    assert found.effect == (table[0][1] + 0.5) / (table[1][0] + 0.5)


def test_mcnemar_by_hand() -> None:
    a = np.array([True] * 6 + [False] * 4)
    b = np.array([False] * 5 + [True, True] + [False] * 3)
    # five pairs for a, one for b: 2 (C(6,0) + C(6,1)) / 2^6
    assert statistics.mcnemar(a, b).p == pytest.approx(14 / 64)


def test_paired_interval_holds_the_difference_and_shrinks_with_agreement() -> None:
    a = np.array([1.0] * 30 + [0.0] * 10)
    b = np.array([1.0] * 20 + [0.0] * 20)
    nested, crossed = statistics.paired_interval(a, b), statistics.paired_interval(a, b[::-1])
    assert nested.low < 0.25 < nested.high
    assert nested.high - nested.low < crossed.high - crossed.low
    same = statistics.paired_interval(a, a)
    assert same.low == pytest.approx(-same.high)


def test_paired_interval_is_newcombes_formula() -> None:
    """36 and 2 agree or differ as in Newcombe (1998), Table II: n = 50, a = 36, b = 12, c = 2, d = 0."""
    a = np.array([1] * 36 + [1] * 12 + [0] * 2, dtype=float)
    b = np.array([1] * 36 + [0] * 12 + [1] * 2, dtype=float)
    (l1, u1), (l2, u2) = (proportion_confint(k, 50, method="wilson") for k in (48, 38))
    phi = (36 * 0 - 12 * 2) / math.sqrt(48 * 2 * 38 * 12)
    down = math.sqrt((0.96 - l1) ** 2 - 2 * phi * (0.96 - l1) * (u2 - 0.76) + (u2 - 0.76) ** 2)
    up = math.sqrt((u1 - 0.96) ** 2 - 2 * phi * (u1 - 0.96) * (0.76 - l2) + (0.76 - l2) ** 2)
    assert statistics.paired_interval(a, b) == pytest.approx((0.2 - down, 0.2 + up))


def test_paired_interval_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        common = rng.random(60) < 0.5
        a, b = (
            np.where(common, rng.random(60) < 0.7, side).astype(float) for side in (rng.random(60) < 0.8, rng.random(60) < 0.5)
        )
        low, high = statistics.paired_interval(a, b)
        covered += low <= 0.5 * (0.8 - 0.5) <= high
    assert covered / 400 > 0.92


def test_wilcoxon_is_scipys_and_its_effect_by_hand() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(80), rng.random(80)
    assert statistics.wilcoxon(a, b).p == stats.wilcoxon(a, b).pvalue
    # differences 1, -2, 3, 0: ranks 1, 2, 3; (1 - 2 + 3) / 6
    assert statistics.wilcoxon(np.array([1.0, 0, 3, 5]), np.array([0.0, 2, 0, 5])).effect == pytest.approx(1 / 3)
    assert statistics.wilcoxon(a, a) == ("wilcoxon", 1.0, 0.0, "rank_biserial")


def test_permutation_is_exact_where_all_sign_flips_are_few() -> None:
    a, b = np.array([0.9, 0.5, 0.7, 1.0, 0.4]), np.array([0.1, 0.6, 0.2, 0.3, 0.4])
    observed = (a - b).mean()
    flips = [np.mean(np.array(signs) * (a - b)) for signs in product((1, -1), repeat=5)]
    literal = np.mean([abs(flip) >= abs(observed) - 1e-12 for flip in flips])
    assert statistics.permutation(a, b, seed=0).p == pytest.approx(literal)
    assert statistics.permutation(a, a, seed=0).p == 1


@given(st.lists(st.sampled_from([0, 1 / 3, 2 / 3, 1, -1 / 3, -2 / 3, -1]), min_size=1, max_size=11))
def test_sign_flips_are_counted_exactly(differences: list[float]) -> None:
    values = np.array(differences)
    sums = [abs(float(np.dot(signs, values))) for signs in product((1, -1), repeat=len(values))]
    literal = np.mean([one >= abs(values.sum()) - 1e-9 for one in sums])
    assert statistics.sign_flip_p(values) == pytest.approx(literal)
    # no common fraction: all flips are tried
    irregular = values * np.sqrt(2)
    assert statistics.sign_flip_p(irregular) == pytest.approx(literal)


def test_a_large_effect_has_its_real_p_and_passes_holm_over_many_tests() -> None:
    a = np.array([1.0] * 92 + [1 / 3] * 8 + [0.0] * 18)
    b = np.zeros(118)
    p = statistics.permutation(a, b, seed=0).p
    assert p == pytest.approx(2.0**-99, rel=1e-9), "all hundred differences have one sign: 2 of 2^100 flips are as extreme"
    # as scipy's own for McNemar's: differences of 1 alone
    whole = np.array([1.0] * 40 + [-1.0] * 15)
    assert statistics.sign_flip_p(whole) == pytest.approx(stats.binomtest(40, 55).pvalue)
    assert statistics.holm(np.concatenate([[p], np.ones(400)]))[0] < 1e-20
    drawn = np.random.default_rng(0).random((2, 40))
    assert statistics.sign_flip_p(drawn[0] - drawn[1]) is None
    assert statistics.permutation(drawn[0], drawn[1], seed=0).name == "permutation_drawn"


def test_families_keep_one_sign_and_are_drawn_as_a_whole() -> None:
    family = np.repeat(np.arange(5), 20)
    a, b = np.ones(100), np.repeat([0.0, 0.0, 0.0, 0.0, 1.0], 20)
    families = statistics.Families(family)
    assert statistics.sign_flip_p(a - b) == pytest.approx(2.0**-79)
    assert families.p(a - b) == 2 / 2**4, "four families that differ are four observations, not eighty"
    alone = statistics.Families(np.arange(100))
    assert alone.p(a - b) == statistics.sign_flip_p(a - b)
    assert alone.rate(b) == pytest.approx(statistics.wilson(20, 100), abs=1e-3)
    assert families.rate(b) == pytest.approx(statistics.wilson(1, 5), abs=1e-9), "each family is all or nothing"
    assert families.rate(a) == pytest.approx(statistics.wilson(5, 5)), "without any difference, families are what was seen"
    assert families.interval(b, seed=0)[1] > 0.5 > alone.interval(b, seed=0)[1]
    ones, zeros = np.ones(100), np.zeros(100)
    assert families.paired(ones, zeros, seed=0) == statistics.paired_interval(np.ones(5), np.zeros(5)), "no narrower than seen"
    assert families.paired(a, b, seed=0) == families.interval(a - b, seed=0)


def test_intervals_over_families_cover_where_those_over_prompts_do_not() -> None:
    rng = np.random.default_rng(4)
    families = statistics.Families(np.repeat(np.arange(16), 8))
    covered = {"prompts": 0, "families": 0}
    for _ in range(300):
        of_family = rng.beta(0.8, 0.8, 16)  # families differ much: some flip nearly always, some never
        flipped = (rng.random(128) < np.repeat(of_family, 8)).astype(float)
        for name, (low, high) in {
            "prompts": statistics.wilson(float(flipped.sum()), 128),
            "families": families.rate(flipped),
        }.items():
            covered[name] += low <= 0.5 <= high
    assert covered["families"] / 300 > 0.92
    assert covered["prompts"] / 300 < 0.8


@given(st.floats(0, 1), st.floats(0, 1))
def test_cohens_h_is_statsmodels(a: float, b: float) -> None:
    assert statistics.cohens_h(a, b) == pytest.approx(proportion_effectsize(a, b), abs=1e-12)


@pytest.mark.parametrize("m", [1, 2, 5, 40])
def test_holm_is_statsmodels(m: int) -> None:
    p = np.random.default_rng(m).choice([0.0, 1e-4, 0.003, 0.02, 0.3, 1.0], m) * np.random.default_rng(m + 1).uniform(0.5, 1, m)
    np.testing.assert_allclose(statistics.holm(p), multipletests(p, method="holm")[1], atol=1e-12)


def test_bootstrap_covers_the_mean_and_knows_constants() -> None:
    values = np.random.default_rng(2).normal(3, 1, 200)
    low, high = statistics.bootstrap_mean(values, seed=0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(200), rel=0.1)
    assert statistics.bootstrap_mean(values, seed=0) == (low, high), "seeded"
    assert statistics.bootstrap_mean(np.ones(5), seed=0) == Interval(1.0, 1.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_null_is_rejected_no_more_often_than_said(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [(rng.random((2, 40)) < 0.5).astype(float) for _ in range(60)]
    tests = [statistics.paired_test(a, b, seed=0) for a, b in drawn]
    assert sum(t.p < 0.05 for t in tests) <= 10, "McNemar's exact test is conservative"


def test_rounding_ranks_no_pair() -> None:
    """Differences that are equal up to float32's rounding are ties, and those of its size are none."""
    random = np.random.default_rng(0)
    b = random.random(40)
    a = b + random.choice([-2e-4, -1e-4, 0.0, 1e-4, 2e-4], 40)
    shaken = a + random.normal(0, 2e-8, 40)
    assert statistics.wilcoxon(shaken, b) == statistics.wilcoxon(a.round(12), b)
    difference = (a - b).round(6)
    assert statistics.wilcoxon(a, b).p == pytest.approx(stats.wilcoxon(difference[difference != 0]).pvalue)


def test_what_is_drawn_is_scipys_with_as_many_draws() -> None:
    """9,999 draws, by the seed: intervals and drawn p-values are SciPy's own to the last digit."""
    a, b = np.random.default_rng(3).random((2, 30))
    drawn = {"n_resamples": 9_999, "rng": 7}
    low, high = stats.bootstrap(
        (a,), np.mean, confidence_level=0.95, method="percentile", batch=1000, **drawn
    ).confidence_interval
    assert statistics.bootstrap_mean(a, seed=7) == (low, high)
    found = stats.permutation_test((a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", batch=1000, **drawn)
    assert statistics.permutation(a, b, seed=7).p == found.pvalue
    assert statistics.bootstrap_mean(np.array([0.0, 1.0]), seed=0) == (0, 1), "two values are enough to draw from"
    assert statistics.bootstrap_mean(np.array([0.25]), seed=0) == (0.25, 0.25)


@pytest.mark.parametrize(("successes", "n"), [(-0.5, 10), (10.5, 10), (0, 0)])
def test_a_rate_of_more_than_all_or_of_nobody_is_no_rate(successes: float, n: int) -> None:
    with pytest.raises(AssertionError):
        statistics.wilson(successes, n)


def test_a_sum_of_shares_may_be_off_by_rounding() -> None:
    assert statistics.wilson(10 + 5e-10, 10) == statistics.wilson(10, 10)
    assert statistics.wilson(-5e-10, 10) == statistics.wilson(0, 10)


def test_where_one_side_never_differs_the_pairs_have_no_correlation() -> None:
    ones, half = np.ones(20), np.array([1.0, 0.0] * 10)
    (l1, u1), (l2, u2) = (proportion_confint(k, 20, method="wilson") for k in (20, 10))
    expected = 0.5 - math.hypot(1 - l1, u2 - 0.5), 0.5 + math.hypot(u1 - 1, 0.5 - l2)
    assert statistics.paired_interval(ones, half) == pytest.approx(expected)


def test_shares_are_tested_by_permutation_and_answers_by_mcnemars() -> None:
    whole, shares = np.array([1.0, 0, 1, 1, 0]), np.array([1.0, 0.5, 1, 0, 0])
    assert statistics.paired_test(whole, 1 - whole, seed=0).name == "mcnemar_exact"
    assert statistics.paired_test(whole, shares, seed=0).name == "permutation"
    assert statistics.paired_test(shares, whole, seed=0).name == "permutation"


def test_where_the_exact_test_ends() -> None:
    """Multiples of 1/60 whatever their number, and twenty differences without a common fraction; beyond that it is drawn."""
    signs = np.where(np.arange(24) % 3, 1.0, -1.0)
    irregular = np.sqrt(np.arange(2.0, 26.0))
    literal = [abs(sum(one)) for one in product((1 / 60, -1 / 60), repeat=12)]
    few = signs[:12] / 60
    assert statistics.sign_flip_p(few) == pytest.approx(np.mean([s >= abs(few.sum()) - 1e-9 for s in literal]))
    assert statistics.sign_flip_p(signs / 60) is not None
    assert statistics.sign_flip_p(signs / 61) is None
    assert statistics.sign_flip_p(signs / 3 + 1e-5) is None, "nearly a fraction is none"
    assert statistics.sign_flip_p((signs / 3).astype(np.float32)) is not None, "but float32 of one is"
    assert statistics.sign_flip_p(irregular[:20] * signs[:20]) is not None
    assert statistics.sign_flip_p(irregular[:21] * signs[:21]) is None


def test_a_sum_that_takes_too_many_additions_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 differences of a half: 25 terms on a lattice of 25 steps to either side."""
    halves = np.where(np.arange(25) % 4, 0.5, -0.5)
    monkeypatch.setattr(statistics, "LATTICE_STEPS", 25 * 12.5 * 2)
    assert statistics.sign_flip_p(halves) is not None
    monkeypatch.setattr(statistics, "LATTICE_STEPS", 25 * 12.5 * 2 - 1)
    assert statistics.sign_flip_p(halves) is None


def test_differences_up_to_what_float32_holds_are_none() -> None:
    least = statistics.EQUAL
    assert statistics.sign_flip_p(np.full(3, least)) == 1
    assert statistics.sign_flip_p(np.full(3, 2 * least)) == 0.25
    assert statistics.wilcoxon(np.full(5, least), np.zeros(5)) == ("wilcoxon", 1.0, 0.0, "rank_biserial")
    assert statistics.tied_places(np.array([3 * least, 0.0, least])).tolist() == [1, 0, 0]


def literal_rate(shares: np.ndarray, family: np.ndarray) -> tuple[float, float]:
    """Wilson's interval of n / deff observations, with every sum written out."""
    n, mean, groups = len(shares), shares.mean(), np.unique(family)
    of_families = sum(float((shares[family == g] - mean).sum()) ** 2 for g in groups) / n**2 * len(groups) / (len(groups) - 1)
    effective = min(max(n / (of_families / (mean * (1 - mean) / n)), len(groups)), n)
    low, high = proportion_confint(mean * effective, effective, method="wilson")
    return low, high


def test_the_rate_over_families_by_its_formula() -> None:
    family, sizes, flipped = np.repeat([5, 2, 9, 4], [30, 25, 25, 20]), (30, 25, 25, 20), (9, 16, 12, 10)
    held = np.concatenate([np.arange(size) < n for size, n in zip(sizes, flipped, strict=True)]).astype(float)
    families = statistics.Families(family)
    assert families.rate(held) == pytest.approx(literal_rate(held, family))
    plain, clustered = statistics.wilson(float(held.sum()), 100), families.rate(held)
    assert plain[0] - clustered[0] > 1e-3, "the formula decides, not its limits"
    assert clustered[0] > statistics.wilson(4 * held.mean(), 4)[0]
    alike = np.tile([1.0, 0.0], 50)  # every family has half: less apart than independent prompts would be
    assert families.rate(alike) == pytest.approx(statistics.wilson(50, 100)), "deff is 1 at least"
    one = statistics.Families(np.zeros(100))
    assert one.rate(held) == pytest.approx(statistics.wilson(float(held.mean()), 1)), "one family is one observation"
    pair = statistics.Families(np.repeat([0, 1], 50))
    assert pair.rate(held) == pytest.approx(literal_rate(held, np.repeat([0, 1], 50))), "two are enough for a variance"


def test_the_interval_over_families_of_one_is_the_bootstrap_over_prompts() -> None:
    values = np.random.default_rng(8).normal(1, 1, 60)
    low, high = statistics.Families(np.arange(60)).interval(values, seed=0)
    expected = statistics.bootstrap_mean(values, seed=1)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.05 * (expected.high - expected.low))
    times = np.random.default_rng(5).multinomial(60, np.full(60, 1 / 60), size=9_999)
    literal = np.quantile(times @ values / 60, [0.025, 0.975])
    assert statistics.Families(np.arange(60)).interval(values, seed=5) == pytest.approx(tuple(literal), rel=1e-12)
    sizes = np.repeat([0, 1, 2], [1, 2, 3])
    drawn = np.random.default_rng(5).multinomial(3, np.full(3, 1 / 3), size=9_999)
    means = drawn @ np.array([values[0], values[1:3].sum(), values[3:6].sum()]) / (drawn @ np.array([1, 2, 3]))
    found = statistics.Families(sizes).interval(values[:6], seed=5)
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-12)
