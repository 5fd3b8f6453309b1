"""Whether a scan came skull-stripped, whether a mask is a brain, and where a head ends."""

from __future__ import annotations

import numpy as np
import pytest

from bidsharm.errors import ScanError
from bidsharm.imaging import masks
from bidsharm.imaging.templates import tissue_priors


def ball(volume_ml: float, size: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Return a ball of this volume, and its affine."""
    radius = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    half = int(radius / size) + 3
    grid = np.meshgrid(*[np.arange(-half, half + 1) * size] * 3, indexing='ij')
    return np.sqrt(sum(axis**2 for axis in grid)) < radius, np.diag([size, size, size, 1.0])


@pytest.fixture(scope='module')
def mni() -> tuple[np.ndarray, np.ndarray]:
    brain, _ = tissue_priors(step=2)
    return np.asarray(brain.dataobj) * 200, brain.affine


def test_a_whole_head_is_not_stripped(head):
    assert masks.stripped_support(head.data, head.affine) is None


def test_a_whole_head_in_exact_zeros_is_not_stripped(head):
    """Scanners may write exact zeros into the air; defacing does, too."""
    assert masks.stripped_support(head.ideal, head.affine) is None
    defaced = head.ideal.copy()
    defaced[:, 55:, :35] = 0
    assert (defaced == 0).mean() > 0.5
    assert masks.stripped_support(defaced, head.affine) is None


@pytest.mark.parametrize('background', [0.0, -1024.0, 37.0])
def test_a_stripped_brain_is_seen_whatever_its_background(background, head, overlap):
    support = masks.stripped_support(np.where(head.mask, head.data, background), head.affine)
    assert support is not None
    assert support.dtype == bool
    assert overlap(support, head.mask) > 0.999


def test_a_stripped_brain_is_seen_in_any_voxels(make_head, overlap):
    head = make_head(resolution=3.0)
    data = np.where(head.mask, head.data, 0)[:, :, ::2]
    affine = head.affine @ np.diag([1, 1, 2, 1.0])
    support = masks.stripped_support(data, affine)
    assert support is not None
    assert overlap(support, head.mask[:, :, ::2]) > 0.98


def test_the_template_is_stripped(mni, overlap):
    data, affine = mni
    support = masks.stripped_support(data, affine)
    assert support is not None
    assert overlap(support, data > 0) > 0.999


def test_specks_around_the_template_do_not_count(mni, overlap):
    """Integers with a faint noise floor: most of the background is 0, some of it is 1."""
    data, affine = mni
    noise = np.abs(np.random.default_rng(0).normal(0, 0.2, data.shape))
    speckled = np.rint(data + noise)
    assert (speckled[data == 0] > 0).mean() > 0.005
    support = masks.stripped_support(speckled, affine)
    assert support is not None
    assert overlap(support, data > 0) > 0.99


def test_a_noise_floor_everywhere_is_no_background(mni):
    data, affine = mni
    noise = np.abs(np.random.default_rng(0).normal(0, 2, data.shape))
    assert masks.stripped_support(data + noise, affine) is None


def test_ventricles_set_to_zero_belong_to_the_brain(mni, overlap):
    data, affine = mni
    hollow = data.copy()
    middle = np.round(np.linalg.inv(affine)[:3] @ [0, -12, 16, 1]).astype(int)
    hole = tuple(slice(m - 6, m + 7) for m in middle)
    assert (data[hole] > 0).all()
    hollow[hole] = 0
    support = masks.stripped_support(hollow, affine)
    assert support is not None
    assert support[hole].all()
    assert overlap(support, data > 0) > 0.999


@pytest.mark.parametrize('volume_ml', [100.0, 3000.0])
def test_what_is_not_the_size_of_a_brain_is_no_stripped_brain(volume_ml):
    mask, affine = ball(volume_ml)
    assert masks.stripped_support(mask * 100.0, affine) is None


def test_a_block_that_fills_the_field_of_view_is_no_stripped_brain():
    data = np.zeros((40, 40, 40))
    data[:, :, :20] = 50.0
    assert masks.BRAIN_ML[0] < (data > 0).sum() * 27 / 1000 < masks.BRAIN_ML[1]
    assert masks.stripped_support(data, np.diag([3.0, 3, 3, 1])) is None


def test_an_empty_volume_has_no_support():
    assert masks.stripped_support(np.zeros((20, 20, 20)), np.eye(4)) is None


def test_background_is_the_most_frequent_value_of_the_faces():
    data = np.full((10, 10, 10), 5.0)
    data[2:8, 2:8, 2:8] = 9.0
    data[0, 0] = 7.0
    assert masks.background_value(data) == 5.0


@pytest.mark.parametrize('volume_ml', [0.0, 200.0, 2400.0])
def test_a_mask_that_is_no_brain_is_refused(volume_ml):
    mask, affine = ball(volume_ml)
    with pytest.raises(ScanError, match='no brain') as caught:
        masks.check_brain(mask, affine, name='sub-01_T1w')
    assert caught.value.where == 'sub-01_T1w'
    assert '--derivatives' in caught.value.fix
    assert f'{masks.volume_ml(mask, affine):.0f} ml' in caught.value.what


@pytest.mark.parametrize(('volume_ml', 'unusual'), [(600.0, True), (1300.0, False), (2050.0, True)])
def test_an_unusual_brain_is_a_warning(volume_ml, unusual):
    mask, affine = ball(volume_ml)
    warnings = masks.check_brain(mask, affine, name='x')
    assert bool(warnings) == unusual
    if unusual:
        assert 'unusual' in warnings[0]
        assert f'{masks.volume_ml(mask, affine):.0f} ml' in warnings[0]


def test_volume_counts_millilitres():
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[:5] = True
    assert masks.volume_ml(mask, np.diag([2.0, -1.0, 4.0, 1])) == pytest.approx(500 * 8 / 1000)


def test_the_largest_component_is_kept():
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[:2, :2, :2] = True
    mask[5:9, 5:9, 5:9] = True
    found = masks.largest_component(mask)
    assert found is not None
    assert found.sum() == 64
    assert found[6, 6, 6]
    assert masks.largest_component(np.zeros((3, 3, 3), dtype=bool)) is None


def test_growing_is_measured_in_millimetres():
    mask = np.zeros((21, 21, 21), dtype=bool)
    mask[10, 10, 10] = True
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    grown = masks.grow(mask, affine, 4.0)
    index = np.indices(mask.shape) - 10
    distance = np.sqrt((index[0] * 1.0) ** 2 + (index[1] * 2.0) ** 2 + (index[2] * 4.0) ** 2)
    np.testing.assert_array_equal(grown, distance <= 4.0)
    assert not masks.grow(np.zeros_like(mask), affine, 4.0).any()


@pytest.mark.parametrize(('height_mm', 'least'), [(140.0, 0.97), (165.0, 0.9999)])
def test_the_neck_is_cut_off_and_the_brain_is_not(height_mm, least, head):
    """A head on a long neck, as scans with a large field of view show it; this brain is a large one."""
    below = 30
    data = np.concatenate([np.zeros((*head.data.shape[:2], below), np.float32), head.data], axis=2)
    data[25:45, 25:55, : below + 12] = 300.0
    affine = head.affine.copy()
    affine[2, 3] -= below * 3.0
    cut, moved = masks.upper_head(data, affine, height_mm=height_mm)
    start = round((moved[2, 3] - affine[2, 3]) / 3.0)
    assert start > below - 5
    np.testing.assert_array_equal(cut, data[:, :, start : start + cut.shape[2]])
    np.testing.assert_array_equal(moved[:2], affine[:2])
    mask = np.concatenate([np.zeros((*head.mask.shape[:2], below), bool), head.mask], axis=2)
    kept = mask[:, :, start : start + cut.shape[2]].sum() / mask.sum()
    assert kept > least


@pytest.mark.parametrize('offset', [0.0, -1024.0])
def test_a_second_head_is_seen(offset, head):
    """Two heads side by side, of which one is the brain's; one head alone is no company."""
    data = np.concatenate([head.data, head.data[::-1]]) + offset
    mask = np.concatenate([head.mask, np.zeros_like(head.mask)])
    assert masks.beside_the_head(data, mask, head.affine) > 1000
    assert masks.beside_the_head(head.data + offset, head.mask, head.affine) < 20


def test_a_scalp_that_a_dark_skull_parts_from_the_brain_is_no_company(head):
    data = head.data.copy()
    shell = masks.grow(head.mask, head.affine, 6.0) & ~head.mask
    data[shell] = 0
    assert masks.beside_the_head(data, head.mask, head.affine) < 20


def test_where_no_head_stands_out_nothing_is_cut():
    data = np.full((20, 20, 20), 10.0)
    data[3, 3, 3] = 10000.0  # one bright voxel is no head
    cut, affine = masks.upper_head(data, np.eye(4))
    assert cut.shape == data.shape
    np.testing.assert_array_equal(affine, np.eye(4))


def test_a_coarser_mask_keeps_its_place_and_volume(head):
    small, coarse = masks.shrink_mask(head.mask, head.affine, 6.0)
    assert small.dtype == np.uint8
    assert set(np.unique(small)) == {0, 1}
    assert masks.volume_ml(small > 0, coarse) == pytest.approx(
        masks.volume_ml(head.mask, head.affine), rel=0.02
    )
    centres = [
        (affine @ [*np.argwhere(mask).mean(axis=0), 1])[:3]
        for mask, affine in ((small, coarse), (head.mask, head.affine))
    ]
    np.testing.assert_allclose(centres[0], centres[1], atol=0.5)
