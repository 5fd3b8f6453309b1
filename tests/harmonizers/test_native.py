"""A scan comes back on its own grid, oblique and of odd sizes, whichever grid and view a method has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import Execution, Site
from bidsharm.harmonizers.native import harmonize_scan, on_model_grid
from bidsharm.harmonizers.training_data import in_units

from .small_gans import built

#: Axial slices, patches, whole volumes, slices of three axes by their median, and stacks of slices by their mean.
METHODS = ('osman', 'unet3d', 'iguane', 'deepharmony', 'murd')
#: Voxel size of the networks.
EDGE = 4.0


@pytest.fixture
def oblique(make_scan):
    """Return a maker of scans of any voxel size that lie askew."""

    def make(*sizes):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler('xyz', [12, -9, 17], degrees=True).as_matrix() * sizes
        affine[:3, 3] = [-60, -50, -70]
        return replace(make_scan(shape=(37, 41, 29), site='B', name='sub-01_T1w'), affine=affine)

    return make


def ready(name, unit=1.0, guard='blend'):
    """Return a method whose networks are as they were built, and that paints in units of a target."""
    method = built(registry.get(name), voxel_mm=EDGE)
    method.execution = Execution(guard=guard)
    method.take_trained(units={'T1w': unit}, kind='site', label='A')
    return method


def doing_nothing(name, scan):
    """Return a method whose networks return what they get, and whose target has the unit of the scan."""
    method = ready(name, guard='report')
    method.translate = lambda x, given: x[:, [x.shape[1] // 2]]
    method._units['T1w'] = in_units(on_model_grid(scan, EDGE), method.settings)[1].unit
    return method


def test_a_scan_that_fits_the_grid_loses_its_skull_as_any_other_does(make_scan):
    scan = make_scan(shape=(48, 48, 48), site='B', name='sub-01_T1w')
    scan = replace(scan, affine=np.diag([EDGE, EDGE, EDGE, 1.0]))
    head = replace(
        scan,
        data=np.where(scan.mask, scan.data, 12345).astype(np.float32),
        companions=(replace(scan, data=scan.data + 7),),
    )
    moved = on_model_grid(head, EDGE)
    assert moved.data.shape == scan.data.shape
    for one in (moved, *moved.companions):
        assert not one.data[~one.mask].any()
    method = ready('unet3d', unit=500.0)
    plain, full = (harmonize_scan(method, one, Site('A')) for one in (scan, head))
    np.testing.assert_allclose(full.image, plain.image, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize('name', METHODS)
def test_whatever_networks_draw_lies_on_the_grid_of_the_scan(name, oblique):
    scan = oblique(4.0, 3.5, 5.0)
    before = {key: getattr(scan, key).copy() for key in ('data', 'mask', 'affine')}
    method = ready(name, unit=500.0)
    if name == 'murd':
        method._styles = {'T1w/mean': np.zeros((1, method.settings.style), np.float32)}
    found = harmonize_scan(method, scan, Site('A'))
    for image in (found.image, found.unsupported):
        assert image.shape == scan.data.shape
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert np.count_nonzero(image[~scan.mask]) == 0
    assert found.image[scan.mask].any()
    assert all(np.array_equal(getattr(scan, key), value) for key, value in before.items())


@pytest.mark.parametrize('name', METHODS)
def test_networks_that_do_nothing_give_the_scan_back(name, oblique):
    scan = oblique(EDGE, EDGE, EDGE)
    assert on_model_grid(scan, EDGE).data.shape != scan.data.shape
    found = harmonize_scan(doing_nothing(name, scan), scan, Site('A'))
    error = np.abs(found.image - scan.data)[scan.mask]
    assert error.max() < 8 * np.finfo(np.float32).eps * scan.data[scan.mask].max()
    assert np.count_nonzero(found.image[~scan.mask]) == 0


@pytest.mark.parametrize('name', METHODS)
def test_from_voxels_of_another_size_only_interpolation_is_lost(name, oblique):
    scan = oblique(4.0, 3.5, 5.0)
    found = harmonize_scan(doing_nothing(name, scan), scan, Site('A'))
    error = np.abs(found.image - scan.data)[scan.mask] / scan.data[scan.mask].max()
    assert error.max() < 0.01
    assert error.mean() < 0.001
