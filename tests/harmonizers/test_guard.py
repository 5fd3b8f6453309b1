"""The guard finds what a method drew, leaves changes of brightness and contrast alone, and does as it was told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.harmonizers.contract import Canonical, Card, Execution, Harmonized, Harmonizer
from bidsharm.harmonizers.guard import ALLOWED, FAIL, WARN, inspect, restrained, warnings_of
from bidsharm.harmonizers.native import harmonize_scan
from bidsharm.imaging.carry import carry_change, local_change, smooth_curves

PLACE = (24, 30, 24)


def blob(shape, sigma=3.0):
    """A lump of height 1 and some 14 mm across, in the white matter of the phantom."""
    point = np.zeros(shape)
    point[PLACE] = 1
    wide = ndimage.gaussian_filter(point, sigma)
    return wide / wide.max()


@pytest.fixture
def scan(make_scan):
    scan = make_scan(shape=(48, 60, 48), noise=15.0)
    return replace(scan, affine=np.diag([2.0, 2.0, 2.0, 1.0]))


CHANGES = {
    'nothing': lambda data, mask: data,
    'scale and shift': lambda data, mask: 0.4 * data + 100,
    'inverted': lambda data, mask: 1200 - data,
    'gamma': lambda data, mask: 900 * (np.maximum(data, 1) / 900) ** 0.6,
    'field': lambda data, mask: data * (1 + 0.4 * np.linspace(-1, 1, data.shape[0])[:, None, None]),
}


def found(scan, after):
    before, after = (np.where(scan.mask, data, 0) for data in (scan.data, after))
    return inspect(smooth_curves(before, after, scan.affine), before, after, scan.mask, scan.affine)


@pytest.mark.parametrize('name', CHANGES)
def test_changes_of_brightness_and_contrast_pass(name, scan):
    finding = found(scan, CHANGES[name](scan.data, scan.mask).astype(np.float32))
    assert finding.score < WARN
    assert finding.verdict == 'pass'


@pytest.mark.parametrize('sign', [1, -1])
def test_a_lump_that_was_drawn_is_found_in_its_place(sign, scan):
    drawn = scan.data + sign * 400 * blob(scan.data.shape)
    finding = found(scan, drawn.astype(np.float32))
    assert finding.score > WARN
    peak = np.unravel_index(np.argmax(sign * finding.map), finding.map.shape)
    assert np.linalg.norm(np.subtract(peak, PLACE)) < 3
    assert finding.score > 3 * found(scan, scan.data).score


def test_the_score_grows_with_the_lump(scan):
    scores = [found(scan, (scan.data + height * blob(scan.data.shape)).astype(np.float32)).score for height in (0, 200, 400, 800)]  # fmt: skip
    assert np.all(np.diff(scores) > 0)


class Drawing(Harmonizer):
    """Draws a lump, as a network might."""

    card = Card(name='drawing', title='', paper='', geometry='grid', changes_anatomy=True)
    height = 800.0
    grid_mm = 2.0

    def harmonize(self, scan, target):
        drawn = scan.data + self.height * blob(scan.data.shape)
        return Harmonized(np.where(scan.mask, drawn, 0).astype(np.float32))


def at_the_place(image, scan):
    return float(image[PLACE] - scan.data[PLACE])


def test_it_is_kept_or_removed_as_asked_and_told(scan):
    scan = replace(
        scan,
        data=np.pad(scan.data, [(0, 0), (0, 4), (0, 0)]),
        mask=np.pad(scan.mask, [(0, 0), (0, 4), (0, 0)]),
    )
    kept = harmonize_scan(Drawing(Execution(guard='report')), scan, Canonical())
    removed = harmonize_scan(Drawing(Execution(guard='blend')), scan, Canonical())
    assert at_the_place(kept.image, scan) > 700
    assert at_the_place(removed.image, scan) < 0.3 * at_the_place(kept.image, scan)
    assert 'kept' in kept.warnings[0]
    assert 'removed' in removed.warnings[0]
    assert kept.details['guard']['score'] == removed.details['guard']['score'] > FAIL
    assert np.array_equal(kept.unsupported, removed.unsupported)
    assert np.count_nonzero(kept.unsupported[~scan.mask]) == 0


def test_it_is_refused_where_that_was_asked(scan):
    with pytest.raises(ScanError, match='does not support') as caught:
        harmonize_scan(Drawing(Execution(guard='refuse')), replace(scan, name='sub-01_T1w'), Canonical())
    assert caught.value.where == 'sub-01_T1w'
    assert caught.value.fix


def test_a_pass_says_nothing(scan):
    assert warnings_of(found(scan, scan.data), 'refuse', '') == ()


# --- How much of a ball comes back ---


@pytest.fixture(scope='module')
def flat():
    """A brain of two tissues, each wider than what is painted, in voxels of 2 mm: intensities, mask, affine, and places (mm)."""
    shape, affine = (64, 72, 64), np.diag([2.0, 2.0, 2.0, 1.0])
    places = np.stack(np.meshgrid(*(2.0 * (np.arange(size) - size / 2) for size in shape), indexing='ij'))
    radius = np.sqrt((places**2).sum(axis=0))
    rng = np.random.default_rng(0)
    data = np.where(radius < 42, 900.0, 600.0) + 15 * rng.standard_normal(shape)
    return data.astype(np.float32), radius < 56, affine, places


def painted(flat, centre, width, height):
    """Return a ball with a soft border, in units of intensity."""
    places = flat[3]
    away = np.sqrt(((places - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0))
    return height / (1 + np.exp((away - width / 2) / 0.7))


def through(flat, after):
    """Return what is carried back of an image, and what was found."""
    data, mask, affine, _ = flat
    before, after = (np.where(mask, values, 0).astype(np.float32) for values in (data, after))
    curves = smooth_curves(before, after, affine)
    finding = inspect(curves, before, after, mask, affine)
    image = carry_change(data, mask, affine, local_change(before, after, affine))
    return restrained(image, curves, finding.span, data, mask, affine), finding


def carried_alone(flat, after):
    """Return what is carried back of an image without the guard."""
    data, mask, affine, _ = flat
    before, after = (np.where(mask, values, 0).astype(np.float32) for values in (data, after))
    return carry_change(data, mask, affine, local_change(before, after, affine))


def test_a_correction_comes_back_whole(flat):
    data, mask, _, places = flat
    field = 1 + 0.2 * np.sin(places[0] / 30)
    wanted = 500 * (np.maximum(data, 1) / 900) ** 0.7 * field
    image, finding = through(flat, wanted)
    deep = ndimage.binary_erosion(mask, iterations=3)
    assert np.sqrt(np.mean((image - wanted)[deep] ** 2)) < 0.02 * finding.span
    assert finding.score < 0.5 * WARN


@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize(('width', 'most'), [(10, 0.15), (20, 0.2), (30, 0.4)])
def test_little_is_left_of_a_ball_painted_into_flat_tissue(flat, width, most, sign):
    data, _, _, _ = flat
    plain, before = through(flat, data)
    ball = painted(flat, (10.0, -8.0, 4.0), width, sign * 0.4 * before.span)
    image, finding = through(flat, data + ball)
    core = np.abs(ball) > 0.5 * np.abs(ball).max()
    left = (image - plain)[core].mean() / ball[core].mean()
    assert left < most
    assert finding.score > WARN > before.score
    followed = (carried_alone(flat, data + ball) - plain)[core].mean() / ball[core].mean()
    assert left < 0.7 * followed  # by windows of millimetres


def test_what_is_small_stays(flat):
    """Below the allowed departure nothing is taken back, so a correction that differs a little from place to place survives."""
    data, mask, _, _ = flat
    ball = painted(flat, (10.0, -8.0, 4.0), 20, 0.02 * np.ptp(np.percentile(data[mask], [0.5, 99.5])))
    carried = carried_alone(flat, data + ball)
    image, finding = through(flat, data + ball)
    assert finding.score < ALLOWED
    np.testing.assert_allclose(image[mask], carried[mask], atol=1e-3 * finding.span)


def test_a_structure_that_was_erased_comes_back(flat):
    data, _, _, _ = flat
    lesion = painted(flat, (-28.0, 6.0, 0.0), 16, -250.0)
    scan = (data + lesion, *flat[1:])
    image, finding = through(scan, data)  # as a method would that knows healthy people only
    core = np.abs(lesion) > 125
    around = (np.abs(lesion) < 5) & (np.sqrt((flat[3] ** 2).sum(axis=0)) < 38)
    alone = carried_alone(scan, data)

    def contrast(values):
        return float(values[around].mean() - values[core].mean())

    assert contrast(image) > 0.5 * contrast(scan[0])
    assert contrast(image) > 2 * contrast(alone)
    assert finding.score > WARN


def test_a_spot_smaller_than_the_volume_does_not_count_and_one_of_it_does(flat):
    """Half a percent of the brain, which a percentile would not see, is more than enough."""
    data, mask, _, _ = flat
    span = np.ptp(np.percentile(data[mask], [0.5, 99.5]))
    scores = [
        through(flat, data + painted(flat, (0.0, 0.0, 0.0), width, 0.8 * span))[1].score for width in (4, 12)
    ]
    assert scores[0] < WARN < scores[1]
    assert np.count_nonzero(painted(flat, (0.0, 0.0, 0.0), 12, 1.0) > 0.5) < 0.005 * np.count_nonzero(mask)
