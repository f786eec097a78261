"""Scores of agreement: by hand, and equal to published libraries on random data."""

import krippendorff
import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from saelake.analysis.meaning.agreement import alpha, alpha_sums, kappa, kappa_sums, mean, mean_sums, measured


@pytest.mark.parametrize("seed", range(20))
def test_alpha_equals_the_published_one_with_missing_answers(seed: int) -> None:
    random = np.random.default_rng(seed)
    ratings_ric = (random.random((random.integers(2, 6), 30, 4)) < random.uniform(0.1, 0.9)).astype(float)
    ratings_ric[random.random(ratings_ric.shape) < 0.3] = np.nan
    units = ratings_ric.reshape(len(ratings_ric), -1)
    expected = krippendorff.alpha(reliability_data=units, level_of_measurement="nominal", value_domain=[0, 1])
    assert alpha(alpha_sums(ratings_ric).sum(axis=0, keepdims=True))[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_kappa_equals_the_published_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    a_ic, b_ic = (random.random((2, 25, 5)) < random.uniform(0.2, 0.8)).astype(float)
    same = random.random(a_ic.shape) < 0.4
    b_ic[same] = a_ic[same]
    a_ic[0, :] = np.nan
    table = np.histogram2d(a_ic[1:].ravel(), b_ic[1:].ravel(), bins=2)[0]
    expected = cohens_kappa(table).kappa
    assert kappa(kappa_sums(a_ic, b_ic).sum(axis=0, keepdims=True))[0] == pytest.approx(expected, abs=1e-12)


def test_alpha_by_hand() -> None:
    """Krippendorff's own example of two observers and ten units (2011, section A): alpha = 0.095."""
    observers = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]], dtype=float)[:, :, None]
    assert alpha(alpha_sums(observers).sum(axis=0, keepdims=True))[0] == pytest.approx(1 - 19 * 4 / (14 * 6))


def test_nothing_to_disagree_about_has_no_value() -> None:
    equal = np.ones((3, 4, 2))
    assert np.isnan(alpha(alpha_sums(equal).sum(axis=0, keepdims=True))[0])
    assert np.isnan(kappa(kappa_sums(equal[0], equal[1]).sum(axis=0, keepdims=True))[0])
    assert measured(mean_sums(np.full(3, np.nan)), mean, 0).n == 0


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        found = measured(mean_sums((random.random(80) < 0.3).astype(float)), mean, seed)
        assert found.low <= found.estimate <= found.high
        hits += found.low <= 0.3 <= found.high
    assert 51 <= hits <= 60


def test_the_bootstrap_of_a_mean_equals_scipys() -> None:
    from scipy import stats

    values = np.random.default_rng(1).normal(size=60)
    found = measured(mean_sums(values), mean, 0)
    peer = stats.bootstrap((values,), np.mean, method="percentile", rng=2).confidence_interval
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.02)
