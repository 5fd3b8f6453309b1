"""The guard finds what a method drew, leaves changes of brightness and contrast alone, and does as it was told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.harmonizers.contract import Canonical, Card, Execution, Harmonized, Harmonizer
from bidsharm.harmonizers.guard import FAIL, WARN, inspect, warnings_of
from bidsharm.harmonizers.native import harmonize_scan
from bidsharm.imaging.carry import local_change

PLACE = (24, 30, 24)


def blob(shape, sigma=3.0):
    """A lump of height 1 and some 7 mm across, in the white matter of the phantom."""
    point = np.zeros(shape)
    point[PLACE] = 1
    wide = ndimage.gaussian_filter(point, sigma)
    return wide / wide.max()


@pytest.fixture
def scan(make_scan):
    return make_scan(shape=(48, 60, 48), noise=15.0)


CHANGES = {
    'nothing': lambda data, mask: data,
    'scale and shift': lambda data, mask: 0.4 * data + 100,
    'inverted': lambda data, mask: 1200 - data,
    'gamma': lambda data, mask: 900 * (np.maximum(data, 1) / 900) ** 0.6,
    'field': lambda data, mask: data * (1 + 0.4 * np.linspace(-1, 1, data.shape[0])[:, None, None]),
}


def found(scan, after):
    before = np.where(scan.mask, scan.data, 0)
    return inspect(local_change(before, np.where(scan.mask, after, 0), scan.affine), after, scan.mask)


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
    assert at_the_place(removed.image, scan) < 0.75 * at_the_place(kept.image, scan)
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
