"""A change made at 1 mm, carried back to finer and to thicker voxels, against doing it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.imaging.carry import carry_change, local_change, model_grid
from bidsharm.imaging.grids import resample, voxel_sizes


@dataclass(frozen=True)
class Phantom:
    data: NDArray[np.float32]
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    world: NDArray[np.float64]


@pytest.fixture(scope='module')
def phantom(make_affine, world_of) -> Callable[..., Phantom]:
    """A ball of two tissues, with texture as fine as the voxels: what resampling loses."""

    def make(sizes: tuple[float, float, float] = (0.8, 0.8, 0.8), degrees: float = 8.0) -> Phantom:
        shape = tuple(round(48 / size) for size in sizes)
        affine = make_affine((degrees, -degrees, 2 * degrees), sizes)
        world = world_of(affine, shape)
        middle = (affine @ [*(np.array(shape) - 1) / 2, 1])[:3].reshape(3, 1, 1, 1)
        radius = np.sqrt(((world - middle) ** 2).sum(axis=0))
        rng = np.random.default_rng(0)
        clean = np.where(radius < 13, 90.0, 60.0)
        texture = 6 * rng.standard_normal(shape) + 5 * (radius % 2.4 < 1.2)
        data = ndimage.gaussian_filter(clean, 0.4) + texture
        return Phantom(data.astype(np.float32), radius < 20, affine, world)

    return make


def through_the_model_grid(
    scan: Phantom, change: Callable[[NDArray, NDArray], NDArray], world_of
) -> tuple[NDArray, NDArray]:
    """Return what carrying the change back gives, and what resampling the result back gives."""
    shape, affine = model_grid(scan.mask, scan.affine)
    mask = resample(scan.mask, scan.affine, shape, affine) > 0.5
    before = resample(np.where(scan.mask, scan.data, 0), scan.affine, shape, affine, order=3) * mask
    after = (change(before, world_of(affine, shape)) * mask).astype(np.float32)
    carried = carry_change(scan.data, scan.mask, scan.affine, local_change(before, after, affine))
    resampled = resample(after, affine, scan.data.shape, scan.affine, order=3)
    return carried, np.where(scan.mask, resampled, 0)


def rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


CHANGES = {
    'gain': lambda data, world: 1.7 * data + 25,
    'field': lambda data, world: data * (1.4 + 0.01 * (world[0] + 10)),  # 1.2 to 1.6 across the ball
    'gamma': lambda data, world: 100 * np.sign(data) * (np.abs(data) / 100) ** 0.7,
    'inverted': lambda data, world: 150 - data,
}


@pytest.mark.parametrize(
    ('name', 'ratio'), [('gain', 0.02), ('field', 0.15), ('gamma', 0.25), ('inverted', 0.02)]
)
@pytest.mark.parametrize('sizes', [(0.8, 0.8, 0.8), (0.7, 0.7, 2.0)])
def test_detail_is_kept_far_better_than_by_resampling(name, ratio, sizes, phantom, world_of):
    """Error against the change made on native voxels, relative to the error of resampling back."""
    scan = phantom(sizes)
    change = CHANGES[name]
    truth = change(scan.data, scan.world)
    carried, resampled = through_the_model_grid(scan, change, world_of)
    deep = ndimage.binary_erosion(scan.mask, iterations=3)
    lost = rms((resampled - truth)[deep])
    assert lost > 2  # there is detail to lose
    assert rms((carried - truth)[deep]) < ratio * lost


@pytest.mark.parametrize(('gain', 'offset'), [(1.0, 0.0), (2.5, 0.0), (0.01, 7.0), (-1.0, 300.0)])
def test_a_global_linear_change_is_carried_exactly(gain, offset, phantom, world_of):
    scan = phantom()
    carried, _ = through_the_model_grid(scan, lambda data, world: gain * data + offset, world_of)
    truth = gain * scan.data + offset
    spread = abs(gain) * float(np.std(scan.data[scan.mask]))
    assert np.abs(carried - truth)[scan.mask].max() < 0.03 * spread
    assert rms((carried - truth)[scan.mask]) < 0.003 * spread


def test_no_change_leaves_the_scan(phantom, world_of):
    scan = phantom()
    carried, resampled = through_the_model_grid(scan, lambda data, world: data, world_of)
    spread = float(np.std(scan.data[scan.mask]))
    assert rms((carried - scan.data)[scan.mask]) < 0.003 * spread
    assert rms((resampled - scan.data)[scan.mask]) > 0.2 * spread


def test_outside_the_mask_is_exactly_zero(phantom, world_of):
    scan = phantom()
    dirty = Phantom(
        np.where(scan.mask, scan.data, 1e4).astype(np.float32), scan.mask, scan.affine, scan.world
    )
    carried, _ = through_the_model_grid(dirty, CHANGES['gain'], world_of)
    assert not carried[~scan.mask].any()
    assert carried.dtype == np.float32
    clean, _ = through_the_model_grid(scan, CHANGES['gain'], world_of)
    np.testing.assert_allclose(carried[scan.mask], clean[scan.mask], rtol=1e-5)


def test_a_flat_region_takes_the_mean_change():
    """Where the scan has no contrast, there is no gain to learn: the mean is moved, noise is not blown up."""
    rng = np.random.default_rng(0)
    before = np.full((40, 40, 40), 50.0, np.float32)
    before[20:] = 100.0
    data = before.copy()
    data[:20] += rng.normal(0, 0.01, (20, 40, 40))
    after = np.where(before > 75, 10.0, 30.0).astype(np.float32)
    mask = np.ones(before.shape, bool)
    carried = carry_change(data, mask, np.eye(4), local_change(before, after, np.eye(4)))
    np.testing.assert_allclose(carried[3:8], 30, atol=0.05)
    np.testing.assert_allclose(carried[32:37], 10, atol=0.05)


@pytest.mark.parametrize('level', [7.0, 0.001, 30000.0])
def test_a_brain_without_any_contrast_gives_numbers(level):
    mask = np.ones((20, 20, 20), bool)
    flat = np.full(mask.shape, level, np.float32)
    carried = carry_change(flat, mask, np.eye(4), local_change(flat, flat * 2, np.eye(4)))
    np.testing.assert_allclose(carried, 2 * level, rtol=1e-3)


def test_a_large_offset_does_not_cost_accuracy(phantom, world_of):
    """Single precision must bear intensities that are large compared with their contrast."""
    scan = phantom()
    high = Phantom(scan.data + 5000, scan.mask, scan.affine, scan.world)
    shape, affine = model_grid(scan.mask, scan.affine)
    mask = resample(scan.mask, scan.affine, shape, affine) > 0.5
    before = resample(high.data, high.affine, shape, affine, order=3, mode='nearest') * mask
    after = np.where(mask, (before - 5000) * 2, 0).astype(np.float32)
    carried = carry_change(high.data, high.mask, high.affine, local_change(before, after, affine))
    truth = 2 * scan.data
    assert rms((carried - truth)[scan.mask]) < 0.02 * float(np.std(truth[scan.mask]))


@pytest.mark.parametrize('sizes', [(0.8, 0.8, 0.8), (1.0, 1.0, 1.0), (0.7, 0.7, 2.0)])
def test_the_model_grid_holds_the_brain_at_1_mm(sizes, phantom):
    scan = phantom(sizes)
    shape, affine = model_grid(scan.mask, scan.affine)
    np.testing.assert_allclose(voxel_sizes(affine), 1.0)
    assert all(size % 16 == 0 for size in shape)
    # Directions are those of the scan: no oblique resampling.
    np.testing.assert_allclose(affine[:3, :3], scan.affine[:3, :3] / voxel_sizes(scan.affine))
    places = np.argwhere(scan.mask) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    inside = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    assert inside.min() >= 0
    assert (inside <= np.array(shape) - 1).all()
    # The corners of the two fields of view coincide.
    first = np.maximum(np.argwhere(scan.mask).min(axis=0) - 3, 0)
    corner = scan.affine[:3, :3] @ (first - 0.5) + scan.affine[:3, 3]
    np.testing.assert_allclose(affine[:3, :3] @ np.full(3, -0.5) + affine[:3, 3], corner, atol=1e-6)
