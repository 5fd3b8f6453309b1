"""A brain in coarse voxels."""

from __future__ import annotations

import numpy as np
import pytest

from bidsharm.imaging.lowres import SHAPE, SIZE_MM, look_at


def ball(size_mm: tuple[float, float, float], radius: float = 40.0, centre=(3.0, -7.0, 11.0)):
    """Return a ball whose intensity is a plane through the world: 1000 + 2 x - y + 3 z."""
    shape = tuple(int(np.ceil(2.4 * radius / size)) for size in size_mm)
    affine = np.diag([*size_mm, 1.0])
    affine[:3, 3] = np.array(centre) - np.array(size_mm) * (np.array(shape) - 1) / 2
    points = np.tensordot(affine[:3, :3], np.indices(shape), axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)
    away = np.sqrt(((points - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0))
    data = 1000 + 2 * points[0] - points[1] + 3 * points[2]
    mask = away < radius
    return np.where(mask, data, np.nan).astype(np.float32), mask, affine


def world(seen):
    return seen.affine[:3, :3] @ seen.voxels.T + seen.affine[:3, 3:]


@pytest.mark.parametrize('size', [(1, 1, 1), (0.7, 0.7, 0.7), (2, 2, 2), (0.5, 0.9, 4.0), (3, 3, 3)])
def test_intensities_stay_where_they_are(size):
    data, mask, affine = ball(size)
    seen = look_at(data, mask, affine)
    x, y, z = world(seen)
    expected = 1000 + 2 * x - y + 3 * z
    inner = np.sqrt((x - 3) ** 2 + (y + 7) ** 2 + (z - 11) ** 2) < 34
    assert inner.sum() > 15_000
    np.testing.assert_allclose(seen.values[inner], expected[inner], atol=0.5)
    # At the surface a voxel is the mean of the brain in it, never mixed with what is outside.
    assert np.abs(seen.values - expected).max() < 3 * max(SIZE_MM, *size)
    assert len(seen.values) * SIZE_MM**3 == pytest.approx(mask.sum() * np.prod(size), rel=0.06)


def test_the_order_of_the_axes_does_not_matter():
    data, mask, affine = ball((1, 1.5, 0.8))
    turned = np.ascontiguousarray(data.transpose(2, 0, 1)[::-1, :, ::-1])
    turned_mask = np.ascontiguousarray(mask.transpose(2, 0, 1)[::-1, :, ::-1])
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[0, 1], matrix[1, 2], matrix[3, 3] = -1, 1, -1, 1
    matrix[2, 3], matrix[1, 3] = data.shape[2] - 1, data.shape[1] - 1
    first, second = look_at(data, mask, affine), look_at(turned, turned_mask, affine @ matrix)
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-9)
    np.testing.assert_array_equal(second.voxels, first.voxels)
    np.testing.assert_allclose(second.values, first.values, rtol=1e-5)


def test_the_field_of_view_does_not_matter():
    data, mask, affine = ball((1, 1, 1))
    wide = [(17, 4), (3, 30), (9, 9)]
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ [before for before, _ in wide]
    first, second = look_at(data, mask, affine), look_at(np.pad(data, wide), np.pad(mask, wide), moved)
    np.testing.assert_array_equal(second.voxels, first.voxels)
    np.testing.assert_allclose(second.values, first.values, rtol=1e-5)


def test_noise_averages():
    data, mask, affine = ball((1, 1, 1))
    noisy = np.where(mask, 100 + 10 * np.random.default_rng(0).standard_normal(data.shape), 0).astype(
        np.float32
    )
    values = look_at(noisy, mask, affine).values
    assert values.mean() == pytest.approx(100, abs=0.2)
    assert values.std() < 10 / np.sqrt(8) * 1.2  # eight voxels of 1 mm in one of 2 mm


def test_large_heads_get_a_larger_field():
    data, mask, affine = ball((2, 2, 2), radius=110)
    seen = look_at(data, mask, affine)
    assert all(n >= usual and n % 16 == 0 for n, usual in zip(seen.shape, SHAPE, strict=True))
    assert (seen.voxels >= 0).all()
    assert (seen.voxels < seen.shape).all()
    assert len(seen.values) * 8 == pytest.approx(4 / 3 * np.pi * 110**3, rel=0.05)
