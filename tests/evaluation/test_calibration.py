from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bidsharm.errors import UsageError
from bidsharm.evaluation.calibration import calibration, sparsification


def draws(seed: int = 0, n: int = 40_000):
    rng = np.random.default_rng(seed)
    sigma = rng.gamma(3, 0.5, n) + 0.1
    return sigma * rng.standard_normal(n), sigma


def test_a_true_sigma_is_calibrated():
    error, sigma = draws()
    found = calibration(error, sigma)
    # Binomial spread of a share of 40,000: at most .0025.
    for level, share in found.coverage.items():
        assert share == pytest.approx(level, abs=0.01)
    assert found.ece < 0.005
    assert found.nll == pytest.approx(-stats.norm.logpdf(error, scale=sigma).mean())
    assert found.nll == pytest.approx(np.mean(np.log(sigma)) + 0.5 * np.log(2 * np.pi * np.e), abs=0.02)
    assert found.correlation == pytest.approx(stats.spearmanr(np.abs(error), sigma)[0])
    assert 0.3 < found.correlation < 0.7
    assert (found.n, found.reason) == (40_000, '')


@pytest.mark.parametrize('factor', [0.5, 2.0])
def test_a_sigma_of_wrong_size_loses_coverage_and_likelihood_but_no_order(factor):
    error, sigma = draws()
    right, wrong = calibration(error, sigma), calibration(error, factor * sigma)
    for level, share in wrong.coverage.items():
        expected = 2 * stats.norm.cdf(factor * stats.norm.ppf((1 + level) / 2)) - 1
        assert share == pytest.approx(expected, abs=0.01)
    levels = np.arange(0.05, 0.96, 0.05)
    shares = 2 * stats.norm.cdf(factor * stats.norm.ppf((1 + levels) / 2)) - 1
    assert wrong.ece == pytest.approx(np.abs(shares - levels).mean(), abs=0.005)
    assert wrong.nll > right.nll + 0.1
    assert wrong.ause == pytest.approx(right.ause)
    assert wrong.correlation == pytest.approx(right.correlation)


def test_sparsification_by_plain_loops():
    error, sigma = draws(3, 173)
    found = sparsification(error, sigma)
    for order, curve in ((sigma, found.by_sigma), (np.abs(error), found.by_error)):
        pairs = sorted(zip(order, np.abs(error), strict=True), reverse=True)
        for fraction, value in zip(found.fractions, curve, strict=True):
            left = [size for _, size in pairs[int(np.floor(fraction * 173)) :]]
            assert value == pytest.approx(np.mean(left) / np.abs(error).mean())
    gap = found.by_sigma - found.by_error
    assert found.ause == pytest.approx(np.sum((gap[1:] + gap[:-1]) / 2) / 100 + gap[-1] / 100)


def test_sparsification_of_even_errors_has_a_closed_form():
    error = np.arange(100_000) / 100_000
    perfect, useless = sparsification(error, error), sparsification(error, np.ones(error.size))
    # Without the largest share f of even errors, the mean falls from 1/2 to (1 - f) / 2.
    assert perfect.ause == 0
    np.testing.assert_allclose(perfect.by_sigma, 1 - perfect.fractions, atol=1e-4)
    np.testing.assert_allclose(useless.by_sigma, 1)
    assert useless.ause == pytest.approx(0.5, abs=0.001)
    worst = sparsification(error, 1 - error)
    # The smallest go first, so the mean rises to 1 + f.
    np.testing.assert_allclose(worst.by_sigma, 1 + worst.fractions, atol=1e-4)
    assert worst.ause == pytest.approx(1, abs=0.011)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_order_of_voxels_and_units_do_not_matter(seed, gain):
    rng = np.random.default_rng(seed)
    error, sigma = rng.normal(size=60), np.round(rng.uniform(0.1, 2, 60), 1)
    order = rng.permutation(60)
    here, there = calibration(error, sigma), calibration(gain * error[order], gain * sigma[order])
    assert there.nll == pytest.approx(here.nll + np.log(gain))
    assert there.ause == pytest.approx(here.ause)
    assert here.ause >= 0
    assert list(here.coverage.values()) == sorted(here.coverage.values())


def test_only_the_mask_counts():
    error, sigma = (part.reshape(20, 20, 10) for part in draws(1, 4000))
    mask = np.random.default_rng(0).uniform(size=error.shape) < 0.5
    plain = calibration(error[mask], sigma[mask], levels=(0.68,))
    error[~mask], sigma[~mask] = np.nan, -1
    assert calibration(error, sigma, mask, levels=(0.68,)) == plain
    assert list(plain.coverage) == [0.68]


def test_what_is_not_defined_has_a_reason():
    empty = calibration(np.empty(0), np.empty(0))
    assert np.isnan([empty.nll, empty.ece, *empty.coverage.values()]).all()
    assert empty.reason == 'there are no voxels'
    hole = calibration(np.array([1.0, np.nan]), np.ones(2))
    assert np.isnan([hole.nll, hole.ause]).all()
    assert 'not finite' in hole.reason
    assert np.isnan(sparsification(np.array([1.0, np.nan]), np.ones(2)).ause)
    certain = calibration(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.0]))
    assert np.isnan(certain.nll)
    assert certain.coverage[0.95] == pytest.approx(2 / 3)
    assert 'no likelihood' in certain.reason
    same = calibration(np.array([1.0, 2.0]), np.ones(2))
    assert np.isnan(same.correlation)
    assert 'does not vary' in same.reason
    perfect = calibration(np.zeros(5), np.ones(5))
    assert np.isnan(perfect.ause)
    assert 'no AUSE' in perfect.reason


def test_wrong_questions_are_refused():
    with pytest.raises(UsageError, match='differ'):
        calibration(np.zeros(3), np.ones(4))
    with pytest.raises(UsageError, match='negative'):
        calibration(np.zeros(3), np.array([1, -1, 1]))
    with pytest.raises(UsageError, match='levels'):
        calibration(np.zeros(3), np.ones(3), levels=(0.5, 1.0))
