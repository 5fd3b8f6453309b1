from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.ndimage import gaussian_filter

from bidsharm.errors import UsageError
from bidsharm.evaluation import features as F


def samples(seed: int, n: int = 60, m: int = 40, size: int = 5):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(size, size))
    return rng.normal(size=(n, size)), rng.normal(0.5, 1, (m, size)) @ mix


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_frechet_is_that_of_the_matrix_root(seed):
    a, b = samples(seed)
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.real(linalg.sqrtm(first @ second))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first + second - 2 * root)
    assert F.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert F.frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_known_moments():
    corners = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(
        3 / 4
    )  # covariance is the unit matrix
    assert F.frechet_distance(corners, corners) == pytest.approx(0, abs=1e-12)
    # Means 3 and 4 apart, standard deviations 1 against 2 and 5: 9 + 16 + 1 + 16.
    other = corners * [2, 5] + [3, 4]
    assert F.frechet_distance(corners, other) == pytest.approx(9 + 16 + 1 + 16)
    # Fewer rows than features: two points each, on lines at a right angle: the traces remain.
    x, y = np.zeros((2, 2, 9))
    x[:, 0] = y[:, 1] = 1, -1
    assert F.frechet_distance(x, y) == pytest.approx(4)
    assert F.frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_kernel_distance_by_plain_loops(seed):
    a, b = samples(seed, 7, 6, 3)

    def k(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / 3 + 1) ** 3

    first = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    second = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    expected = first + second - 2 * np.mean([k(x, y) for x in a for y in b])
    assert F.kernel_distance(a, b) == pytest.approx(expected)


def test_kernel_distance_has_no_bias():
    rng = np.random.default_rng(0)
    equal = [F.kernel_distance(rng.normal(size=(8, 4)), rng.normal(size=(8, 4))) for _ in range(2000)]
    assert abs(np.mean(equal)) < 4 * np.std(equal) / np.sqrt(2000)
    assert min(equal) < 0
    # For points at c and at 0 in one dimension the kernel gives (c^2 + 1)^3 + 1 - 2.
    assert F.kernel_distance(np.full((3, 1), 2.0), np.zeros((4, 1))) == pytest.approx(125 + 1 - 2)


def test_slices_are_even_and_hold_enough_of_the_mask():
    volume = np.broadcast_to(np.arange(40.0), (6, 8, 40))
    mask = np.ones(volume.shape, bool)
    mask[..., :5] = mask[..., 35:] = False
    mask[:2, :2, 5:35] = False
    mask[0, 7, 2] = True  # a slice of one voxel
    images, masks = F.slices(volume, mask, count=6)
    assert images.shape == masks.shape == (6, 6, 8)
    assert [image.max() for image in images] == [7, 12, 17, 22, 27, 32]
    assert (images[~masks] == 0).all()
    assert len(F.slices(volume, mask, count=99)[0]) == 30
    assert F.slices(volume, mask, axis=0, count=2)[0].shape == (2, 8, 40)
    assert len(F.slices(volume, np.zeros_like(mask))[0]) == 0


def test_filters_answer_to_gratings_of_their_size_and_direction():
    # A sine along x of angular frequency w after a Gaussian of s: amplitude exp(-(w s)^2 / 2).
    size, w = 0.5, 0.5
    x = np.arange(240) * size
    volume = np.broadcast_to(100 + np.sin(w * x)[:, None, None], (240, 200, 2))
    mask = np.zeros(volume.shape, bool)
    mask[20:220, 40:160] = True  # 100 mm, close to eight periods
    found = F.filter_features(volume, mask, (size, size, 3.0))
    assert found.shape == (2, 41)
    mean, spread, grain = found[0, :3]
    assert (mean, spread) == pytest.approx((100, np.sqrt(0.5)), abs=0.02)
    responses = found[0, 3:35].reshape(4, 4, 2)
    for scale, by_angle in zip(
        F.SCALES_MM[:2], responses, strict=False
    ):  # wider ones feel the edge of the mask
        left = np.exp(-((w * scale) ** 2) / 2)
        assert by_angle[0, 0] == pytest.approx(scale * w * left * 2 / np.pi, rel=0.05)
        assert by_angle[0, 1] == pytest.approx((scale * w) ** 2 * left * 2 / np.pi, rel=0.07)
        # 45 degrees sees the cosine of it, or its square, and across there is nothing.
        assert by_angle[1] == pytest.approx(by_angle[0] * [np.sqrt(0.5), 0.5], rel=1e-6)
        assert by_angle[2] == pytest.approx([0, 0], abs=1e-8)
    assert grain == pytest.approx((1 - np.exp(-(w**2) / 2)) * np.sqrt(0.5), rel=0.1)


def test_the_edge_of_the_mask_is_no_edge():
    mask = np.zeros((60, 50, 3), bool)
    mask[20:40, 15:35] = True
    flat = F.filter_features(np.where(mask, 100.0, np.nan), mask, (1.0, 1.0, 1.0))
    assert flat[:, 0] == pytest.approx(100)
    np.testing.assert_allclose(flat[:, 1:], 0, atol=1e-9)


def heads(seed: int, people: int = 6, blur: float = 0.0, gain: float = 1.0):
    """Return filter features of smooth random heads, after a blur and a gain of their scanner."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((48, 48, 20), bool)
    mask[6:42, 6:42, 2:18] = True
    found = []
    for _ in range(people):
        data = 5 * gaussian_filter(rng.normal(size=mask.shape), 1.5) + 0.05 * rng.normal(size=mask.shape)
        found.append(F.filter_features(gain * gaussian_filter(data, blur), mask, (1.5, 1.5, 3.0), count=8))
    return np.concatenate(found)


def test_distances_rise_with_the_change_of_the_scanner():
    target = heads(0)
    same, blurred, smeared, gained = (
        F.filter_distances(heads(1, **change), target)
        for change in ({}, {'blur': 0.4}, {'blur': 0.8}, {'gain': 1.5})
    )
    for name in ('ffd', 'kfd'):
        values = [getattr(part, name) for part in (same, blurred, smeared)]
        assert values == sorted(values)
        assert values[1] > 1.5 * abs(values[0])
        assert values[2] > 3 * abs(values[0])
        assert getattr(gained, name) > 3 * abs(values[0])
    assert F.filter_distances(target, target).ffd == pytest.approx(0, abs=1e-8)
    assert (same.n, same.m, same.reason) == (48, 48, '')


def test_units_do_not_matter_and_features_scale_with_them():
    target, other = heads(0, 2), heads(1, 2)
    np.testing.assert_allclose(heads(1, 2, gain=100.0), 100 * other, rtol=1e-6)
    here, there = F.filter_distances(other, target), F.filter_distances(100 * other, 100 * target)
    assert there.ffd == pytest.approx(here.ffd)
    assert there.kfd == pytest.approx(here.kfd)


def test_what_cannot_be_had_has_a_reason():
    found = F.filter_distances(np.zeros((1, 4)), np.zeros((5, 4)))
    assert np.isnan([found.ffd, found.kfd]).all()
    assert 'two or more' in found.reason
    assert np.isnan(F.frechet_distance(np.zeros((1, 4)), np.zeros((5, 4))))
    with pytest.raises(UsageError, match='do not match'):
        F.frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(UsageError, match='finite'):
        F.kernel_distance(np.full((5, 3), np.nan), np.zeros((5, 3)))
    mask = np.ones((4, 4, 4), bool)
    with pytest.raises(UsageError, match='finite'):
        F.filter_features(np.full(mask.shape, np.nan), mask, (1, 1, 1))
    with pytest.raises(UsageError, match='voxel size'):
        F.filter_features(np.zeros(mask.shape), mask, (1, 1, 0))
    with pytest.raises(UsageError, match='axis'):
        F.slices(np.zeros(mask.shape), mask, axis=3)
