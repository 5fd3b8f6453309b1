from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from bidsharm.evaluation import distributions as dist


def test_quantiles_are_numpys_over_the_mask(head):
    expected = np.percentile(head.data[head.mask].astype(np.float64), np.arange(101))
    assert dist.quantiles(head.data, head.mask) == pytest.approx(expected, rel=1e-6)
    assert dist.quantiles(head.data, head.mask, n=3) == pytest.approx(expected[[0, 50, 100]], rel=1e-6)


def test_quantiles_of_nothing_are_not_a_number(head):
    assert np.isnan(dist.quantiles(head.data, np.zeros_like(head.mask))).all()


def test_histogram_density_is_numpys_when_it_covers_all_voxels(head):
    values = head.data[head.mask].astype(np.float64)
    span = (float(values.min()), float(values.max()))
    density, edges = np.histogram(values, bins=64, range=span, density=True)
    found = dist.histogram(head.data, head.mask, bins=64, range=span)
    assert found.edges == pytest.approx(edges)
    assert found.density == pytest.approx(density)


def test_histogram_leaves_outliers_out_of_the_bins_but_not_of_the_total():
    data = np.array([0.5] * 6 + [1.5] * 2 + [99.0] * 2)
    found = dist.histogram(data, np.ones(10, bool), bins=2, range=(0, 2))
    assert found.density.tolist() == pytest.approx([0.6, 0.2])


def test_default_histogram_is_not_squeezed_by_one_hot_voxel(head):
    hot = head.data.copy()
    hot[tuple(np.argwhere(head.mask)[0])] = 1e6
    found = dist.histogram(hot, head.mask)
    assert found.edges[-1] < 120
    assert found.mass.sum() == pytest.approx(1, abs=0.005)


def test_histogram_of_a_constant_has_bins():
    found = dist.histogram(np.full(20, 7.0), np.ones(20, bool))
    assert (np.diff(found.edges) > 0).all()
    assert found.mass.sum() == pytest.approx(1)


def test_histogram_from_quantiles_is_that_of_the_data(head):
    levels = dist.quantiles(head.data, head.mask, n=1001)
    direct = dist.histogram(head.data, head.mask, bins=16)
    rebuilt = dist.histogram_of_quantiles(levels, direct.edges)
    assert rebuilt.mass == pytest.approx(direct.mass, abs=2e-3)


@pytest.mark.parametrize('shift', [0.0, 0.3, 4.0])
def test_wasserstein_agrees_with_scipy(shift):
    generator = np.random.default_rng(1)
    a, b = generator.normal(0, 1, 60_000), generator.gamma(2.0, 0.8, 50_000) + shift
    everything = [np.ones(values.size, bool) for values in (a, b)]
    fine = [dist.quantiles(v, m, n=5001) for v, m in zip((a, b), everything, strict=True)]
    coarse = [dist.quantiles(v, m) for v, m in zip((a, b), everything, strict=True)]
    expected = wasserstein_distance(a, b)
    assert dist.wasserstein(*fine) == pytest.approx(expected, rel=2e-3)
    assert dist.wasserstein(*coarse) == pytest.approx(expected, rel=0.03)


def test_wasserstein_is_exact_for_lines_that_cross_and_for_unequal_lengths():
    # |u - (1 - u)| integrates to 1/2; a trapezium over its two ends would say 1.
    assert dist.wasserstein([0, 1], [1, 0]) == pytest.approx(0.5)
    assert dist.wasserstein([0, 1], np.linspace(2, 3, 7)) == pytest.approx(2)


def test_js_divergence_agrees_with_scipy_and_has_known_ends():
    generator = np.random.default_rng(2)
    p, q = generator.random(128), generator.random(128) * (np.arange(128) > 30)
    assert dist.js_divergence(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert dist.js_divergence(p, 5 * p) == pytest.approx(0, abs=1e-12)
    assert dist.js_divergence([1, 0], [0, 3]) == pytest.approx(1)
    assert np.isnan(dist.js_divergence([0, 0], [1, 0]))


@pytest.mark.parametrize('contrast', ['T1w', 'T2w', 'FLAIR'])
def test_peaks_find_the_tissues_in_any_order_of_brightness(make_head, contrast):
    head = make_head(contrast)
    peaks = dist.tissue_peaks(head.data, head.tissue)
    for name, mean in zip(('csf', 'gm', 'wm'), head.means, strict=True):
        assert peaks[name] == pytest.approx(mean, abs=2.0)


def test_peaks_follow_increasing_maps(head):
    peaks = dist.tissue_peaks(head.data, head.tissue)
    mapped = dist.tissue_peaks(np.exp(head.data.astype(np.float64) / 50), head.tissue)
    assert mapped == pytest.approx({name: np.exp(peak / 50) for name, peak in peaks.items()}, rel=1e-3)


def test_a_tissue_with_hardly_any_pure_voxel_has_no_peak(head):
    mixed = np.stack([0.5 * head.tissue[0], head.tissue[1] + 0.5 * head.tissue[0], head.tissue[2]])
    peaks = dist.tissue_peaks(head.data, mixed)
    assert np.isnan(peaks['csf'])
    assert np.isfinite(peaks['gm'])
