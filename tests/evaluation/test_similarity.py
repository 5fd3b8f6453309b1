from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from skimage.metrics import (
    mean_squared_error,
    normalized_root_mse,
    peak_signal_noise_ratio,
    structural_similarity,
)

from bidsharm.errors import UsageError
from bidsharm.evaluation import similarity as sim

SPACING = (1.0, 1.0, 2.0)


def pair(seed: int = 0, shape: tuple[int, int, int] = (24, 22, 26)):
    """Return a reference on the scale 0 to 1 by construction, and a noisy image."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(0, 1, shape)
    image = 0.8 * reference + 0.1 + 0.05 * rng.standard_normal(shape)
    return reference, image


def scaled(reference, image, mask):
    low, high = np.quantile(reference[mask], (0.005, 0.995))
    return (reference - low) / (high - low), (image - low) / (high - low)


def test_errors_agree_with_scikit_image_on_the_scale_of_the_reference():
    reference, image = pair()
    mask = np.ones(reference.shape, bool)
    x, y = scaled(reference, image, mask)
    assert sim.psnr(reference, image, mask) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1))
    assert sim.nrmse(reference, image, mask) == pytest.approx(np.sqrt(mean_squared_error(x, y)))
    low, high = np.quantile(reference, (0.005, 0.995))
    assert sim.nrmse(reference, image, mask) == pytest.approx(
        normalized_root_mse(reference, image, normalization='min-max') * np.ptp(reference) / (high - low)
    )
    assert sim.mae(reference, image, mask) == pytest.approx(np.abs(x - y).mean())
    assert sim.pearson(reference[mask], image[mask]) == pytest.approx(
        stats.pearsonr(reference.ravel(), image.ravel()).statistic
    )


def test_psnr_by_hand():
    reference = np.linspace(0, 1000, 1001).reshape(7, 11, 13)  # quantiles 5 and 995: range 990
    image = reference + 99
    mask = np.ones(reference.shape, bool)
    assert sim.psnr(reference, image, mask) == pytest.approx(20)
    assert sim.mae(reference, image, mask) == pytest.approx(0.1)
    assert sim.psnr(reference, reference, mask) == np.inf


def test_a_shared_background_lifts_only_the_whole_field_of_view():
    reference, image = pair()
    mask = np.zeros(reference.shape, bool)
    mask[:6] = True
    reference, image = reference * mask, image * mask
    gain = sim.psnr(reference, image, mask, whole=True) - sim.psnr(reference, image, mask)
    assert gain == pytest.approx(-10 * np.log10(6 / 24))


def test_the_image_is_never_rescaled_by_itself():
    reference, _ = pair()
    mask = np.ones(reference.shape, bool)
    assert sim.psnr(reference, 2 * reference, mask) < 10
    assert sim.psnr(reference * 100 + 7, (reference + 0.1) * 100 + 7, mask) == pytest.approx(
        sim.psnr(reference, reference + 0.1, mask)
    )


def test_ssim_agrees_with_scikit_image_away_from_the_border():
    reference, image = pair()
    whole = np.ones(reference.shape, bool)
    x, y = scaled(reference, image, whole)
    options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'data_range': 1.0}
    _, expected = structural_similarity(x, y, full=True, **options)
    found = sim._ssim_map(x, y, whole, None)
    core = (slice(5, -5),) * 3
    np.testing.assert_allclose(found[core], expected[core], atol=1e-12)
    flat = sim._ssim_map(x, y, whole, 2)
    for index in (0, 13, 25):
        _, expected = structural_similarity(x[..., index], y[..., index], full=True, **options)
        np.testing.assert_allclose(flat[5:-5, 5:-5, index], expected[5:-5, 5:-5], atol=1e-12)


def test_ssim_at_the_edge_of_the_mask_by_hand():
    reference, image = pair(3, (14, 14, 14))
    mask = np.random.default_rng(5).uniform(size=reference.shape) < 0.4
    mask[4, 5, 6] = True
    axis = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.zeros_like(reference)
    for i in range(14):
        for j in range(14):
            for k in range(14):
                away = abs(i - 4), abs(j - 5), abs(k - 6)
                if max(away) <= 5 and mask[i, j, k]:
                    weights[i, j, k] = np.prod([axis[5 + step] for step in away])
    weights /= weights.sum()
    x, y = scaled(reference, image, mask)
    mean_x, mean_y = np.sum(weights * x), np.sum(weights * y)
    var_x, var_y = np.sum(weights * (x - mean_x) ** 2), np.sum(weights * (y - mean_y) ** 2)
    cov = np.sum(weights * (x - mean_x) * (y - mean_y))
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * cov + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)
    assert sim._ssim_map(x, y, mask, None)[4, 5, 6] == pytest.approx(expected)


def test_slices_are_averaged_one_by_one():
    reference, image = pair()
    mask = np.zeros(reference.shape, bool)
    mask[:, :, 3] = True
    mask[4:12, 4:12, 20] = True
    x, y = scaled(reference, image, mask)
    values = sim._ssim_map(x, y, mask, 2)
    expected = (values[:, :, 3].mean() + values[4:12, 4:12, 20].mean()) / 2
    assert sim.ssim(reference, image, mask, slice_axis=2) == pytest.approx(expected)


@pytest.mark.parametrize('gain', [3.0, -3.0])
def test_gradients_agree_up_to_the_sign_of_the_gain(head, gain):
    after = head.mapped(lambda data: gain * data + 40)
    found = sim.gradient_ncc(head.data, after, head.mask, head.spacing)
    assert found == pytest.approx(np.sign(gain), abs=1e-5)


def test_gradients_of_noise_do_not_agree_and_a_shift_is_seen(head):
    noise = np.random.default_rng(7).standard_normal(head.mask.shape)
    assert abs(sim.gradient_ncc(head.data, noise, head.mask, head.spacing)) < 0.02
    moved = np.roll(head.data, 2, axis=0)
    whole = sim.gradient_ncc(head.data, head.data, head.mask, head.spacing)
    assert sim.gradient_ncc(head.data, moved, head.mask, head.spacing) < whole - 0.2


def test_all_at_once_orders_images_by_their_error(head):
    rng = np.random.default_rng(1)
    grain = rng.standard_normal(head.mask.shape)
    equal = sim.similarity(head.data, head.data, head.mask, head.spacing)
    near, far = (
        sim.similarity(
            head.data, head.mapped(lambda d, s=size: 1.05 * d + s * grain), head.mask, head.spacing
        )
        for size in (1.0, 8.0)
    )
    assert equal.reason == near.reason == far.reason == ''
    assert equal.psnr == equal.psnr_fov == np.inf
    ones = ('ssim', 'ssim_slices', 'pcc', 'gradient_ncc', 'edge_direction')
    zeros = ('mae', 'nrmse', 'wasserstein', 'js', 'new_edges')
    assert [getattr(equal, name) for name in ones] == pytest.approx([1] * 5, abs=1e-5)
    assert [getattr(equal, name) for name in zeros] == pytest.approx([0] * 5, abs=1e-5)
    for name in (*ones, 'psnr', 'psnr_fov'):
        assert getattr(far, name) < getattr(near, name), name
    for name in ('mae', 'nrmse', 'wasserstein', 'js', 'new_edges'):
        assert getattr(far, name) > getattr(near, name), name


def test_wasserstein_agrees_with_scipy():
    reference, image = pair()
    mask = reference > 0.2
    x, y = scaled(reference, image, mask)
    found = sim.similarity(reference, image, mask, SPACING)
    assert found.wasserstein == pytest.approx(stats.wasserstein_distance(x[mask], y[mask]), abs=1e-3)
    assert found.voxels == np.count_nonzero(mask)


@pytest.mark.parametrize(
    ('change', 'word'),
    [('empty', 'empty'), ('nan', 'not finite'), ('flat', 'flat')],
)
def test_what_cannot_be_computed_is_nan_with_a_reason(change, word):
    reference, image = pair(0, (8, 8, 8))
    mask = np.ones(reference.shape, bool)
    if change == 'empty':
        mask[:] = False
    elif change == 'nan':
        image[3, 3, 3] = np.nan
    else:
        reference[:] = 0.1
    found = sim.similarity(reference, image, mask, SPACING)
    assert word in found.reason
    values = [value for name, value in asdict(found).items() if name not in ('voxels', 'reason')]
    assert np.isnan(values).all()
    for single in (sim.psnr, sim.ssim, sim.mae, sim.nrmse, sim.divergence):
        assert np.isnan(single(reference, image, mask))


def test_a_flat_image_has_an_error_but_no_correlation():
    reference, _ = pair(0, (8, 8, 8))
    mask = np.ones(reference.shape, bool)
    found = sim.similarity(reference, np.full_like(reference, 0.1), mask, SPACING)
    assert found.psnr > 0
    assert np.isnan(found.pcc)
    assert np.isnan(found.gradient_ncc)
    assert 'pcc' in found.reason
    assert 'gradient_ncc' in found.reason


def test_shapes_that_differ_are_refused():
    with pytest.raises(UsageError, match='differ'):
        sim.psnr(np.zeros((3, 3, 3)), np.zeros((3, 3, 4)), np.ones((3, 3, 3), bool))
    with pytest.raises(UsageError, match='axis'):
        sim.ssim(np.zeros((3, 3, 3)), np.zeros((3, 3, 3)), np.ones((3, 3, 3), bool), slice_axis=3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e4), st.floats(-1e3, 1e3))
def test_voxelwise_measures_ignore_order_units_and_the_outside(seed, gain, offset):
    reference, image = pair(seed, (7, 6, 5))
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=reference.shape) < 0.7
    order = rng.permutation(reference.size)

    def shuffled(data):
        return data.ravel()[order].reshape(data.shape)

    other = np.where(mask, image, 1e6)
    for measure in (sim.psnr, sim.mae, sim.nrmse):
        value = measure(reference, image, mask)
        assert measure(*(shuffled(d) for d in (reference, image, mask))) == pytest.approx(value)
        assert measure(gain * reference + offset, gain * image + offset, mask) == pytest.approx(
            value, rel=1e-4
        )
        assert measure(reference, other, mask) == pytest.approx(value)
    assert sim.ssim(reference, other, mask) == pytest.approx(sim.ssim(reference, image, mask))
    assert -1 <= sim.ssim(reference, image, mask) <= 1
    assert sim.ssim(reference, reference, mask) == pytest.approx(1)
    forth, back = sim.pearson(reference, image), sim.pearson(image, reference)
    assert forth == pytest.approx(back)
    assert sim.gradient_ncc(reference, image, mask, SPACING) == pytest.approx(
        sim.gradient_ncc(image, reference, mask, SPACING)
    )
