"""The copy that the field is estimated on, and the field carried back, against fields that are known."""

from __future__ import annotations

import numpy as np
import pytest

from bidsharm.imaging import bias, grids


def known_field(head, smooth_field, strength: float = 0.3, seed: int = 1) -> np.ndarray:
    """Return a field whose logarithm is 0 on average inside the brain."""
    field = smooth_field(head.data.shape, strength, seed)
    return field / np.exp(np.log(field[head.mask]).mean())


def error(corrected: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Largest error among 99 % of the voxels of the brain, relative to their intensity."""
    return float(np.percentile(np.abs(corrected / truth - 1)[mask], 99))


@pytest.mark.parametrize('size_mm', [3.0, 6.0, 12.0])
def test_a_known_field_is_taken_out(size_mm, head, smooth_field):
    """The field is given on the coarse copy's grid only, as N4 gives it."""
    truth = head.ideal + 10
    field = known_field(head, smooth_field, 0.7)
    biased = truth * field
    copy = bias.coarse_copy(biased, head.mask, head.affine, size_mm=size_mm)
    coarse_field = grids.resample(field, head.affine, copy.data.shape, copy.affine, mode='nearest')
    corrected, found = bias.apply_field(
        biased, head.mask, head.affine, coarse_field, copy.affine, shift=copy.shift
    )
    assert error(biased, truth, head.mask) > 0.2
    assert error(corrected, truth, head.mask) < 0.02
    assert error(found, field, head.mask) < 0.02
    assert corrected.dtype == found.dtype == np.float32


@pytest.mark.parametrize('factor', [0.01, 1.0, 50.0])
def test_intensities_keep_their_scale(factor, head, smooth_field):
    """N4's field has a scale of its own, which must not become the scan's."""
    biased = head.ideal * known_field(head, smooth_field)
    field = known_field(head, smooth_field) * factor
    corrected, found = bias.apply_field(biased, head.mask, head.affine, field, head.affine)
    np.testing.assert_allclose(np.log(found[head.mask]).mean(), 0, atol=1e-4)
    np.testing.assert_allclose(corrected[head.mask], head.ideal[head.mask], rtol=1e-3)


def test_a_flat_field_changes_nothing(head):
    corrected, _ = bias.apply_field(
        head.data, head.mask, head.affine, np.full((5, 5, 5), 3.0), np.eye(4) * 60
    )
    np.testing.assert_allclose(corrected, head.data, rtol=1e-5)


def test_beyond_the_copy_the_field_stays_as_at_its_rim(head, smooth_field):
    """Air and neck lie outside the copy; they must get finite, moderate factors."""
    field = known_field(head, smooth_field)
    box = grids.bounding_box(head.mask)
    _, found = bias.apply_field(
        head.data, head.mask, head.affine, field[box], grids.crop_affine(head.affine, box)
    )
    assert np.isfinite(found).all()
    assert found.max() <= field[box].max() * 1.01
    assert found.min() >= field[box].min() * 0.99
    np.testing.assert_allclose(found[0], found[box[0].start], rtol=1e-4)


@pytest.mark.parametrize('bad', [0.0, -5.0])
def test_a_field_with_impossible_values_gives_numbers(bad, head, smooth_field):
    field = known_field(head, smooth_field)
    field[:4] = bad
    corrected, found = bias.apply_field(head.data, head.mask, head.affine, field, head.affine)
    assert np.isfinite(corrected).all()
    assert found.min() > np.exp(-3.001)
    assert found.max() < np.exp(3.001)


@pytest.mark.parametrize('offset', [-800.0, -200.0, 0.0])
def test_negative_intensities_come_back_negative(offset, head, smooth_field):
    """A scan with an offset is corrected about its own darkest value and returned with its offset."""
    field = known_field(head, smooth_field, 0.2)
    low = float(head.ideal[head.mask].min())
    truth = head.ideal + offset
    copy = bias.coarse_copy(truth, head.mask, head.affine)
    if offset <= -low:
        assert copy.shift > 0
    biased = ((truth + copy.shift) * field - copy.shift).astype(np.float32)
    corrected, _ = bias.apply_field(biased, head.mask, head.affine, field, head.affine, shift=copy.shift)
    span = float(np.ptp(truth[head.mask]))
    np.testing.assert_allclose(corrected[head.mask], truth[head.mask], atol=1e-3 * span)
    assert corrected[head.mask].min() == pytest.approx(truth[head.mask].min(), abs=1e-3 * span)


@pytest.mark.parametrize('offset', [-5000.0, 0.0, 300.0])
def test_the_copy_is_positive_and_lies_around_the_brain(offset, head):
    data = head.data + offset
    copy = bias.coarse_copy(data, head.mask, head.affine, size_mm=4.0)
    inside = copy.mask > 0
    assert copy.data.min() > 0
    assert copy.mask.dtype == np.uint8
    np.testing.assert_allclose(grids.voxel_sizes(copy.affine), 4.0)
    # Volume and place of the brain are those of the scan.
    volume = inside.sum() * 64 / (head.mask.sum() * 27)
    assert volume == pytest.approx(1, abs=0.02)
    centre = copy.affine @ [*np.argwhere(inside).mean(axis=0), 1]
    expected = head.affine @ [*np.argwhere(head.mask).mean(axis=0), 1]
    np.testing.assert_allclose(centre, expected, atol=0.3)
    # Every intensity is that of the scan plus the shift.
    again = grids.resample(data, head.affine, copy.data.shape, copy.affine)
    assert np.corrcoef(copy.data[inside], again[inside])[0, 1] > 0.98
    assert np.median(copy.data[inside] - again[inside]) == pytest.approx(copy.shift, abs=10)


def test_a_positive_scan_is_not_shifted(head):
    assert bias.coarse_copy(head.data + 5, head.mask, head.affine).shift == 0


def test_the_margin_is_kept_around_the_brain(head):
    copy = bias.coarse_copy(head.data, head.mask, head.affine)
    rim = np.argwhere(copy.mask)
    room = np.minimum(rim.min(axis=0), np.array(copy.mask.shape) - 1 - rim.max(axis=0))
    assert (room * grids.voxel_sizes(copy.affine) >= bias.MARGIN_MM - 3).all()
