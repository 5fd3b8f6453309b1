"""Beyond the brain mask: the same map, nothing below 0, and air that stays dark."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bidsharm.harmonizers import registry
from bidsharm.harmonizers.beyond import DARK_PERCENTILE, whole_head
from bidsharm.harmonizers.contract import Canonical, Harmonized, Scan
from bidsharm.harmonizers.isotone import Isotone
from bidsharm.simulation.acquisition import acquire
from bidsharm.simulation.heads import load_template
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.rendering import render, scan_grid

#: Methods whose units put brain below 0.
SIGNED = ('zscore', 'whitestripe')
#: Those that map intensities one to one; methods on a model grid know the brain only.
METHODS = (
    'identity', 'robust', 'zscore', 'tscore', 'kde', 'fcm', 'whitestripe', 'lsq', 'nyul', 'histogram', 'isotone',
)  # fmt: skip


@pytest.fixture(scope='module')
def head() -> Scan:
    """A whole simulated head at 3 mm with the true mask and tissue."""
    shape, affine = scan_grid(3.0)
    anatomy = render(load_template(step=2), shape=shape, affine=affine)
    found = acquire(anatomy, PRESETS[0], 'T1w', np.random.default_rng(0))
    data = found.stored.astype(np.float32)
    return Scan(data, anatomy.brain_mask, affine, 'T1w', 'sub-01_T1w', 'A', anatomy.tissue)


@pytest.fixture(params=METHODS)
def result(request, head, cohort) -> Harmonized:
    method = registry.get(request.param)()
    if method.card.needs_fit:
        method.fit(cohort)
    found = method.harmonize(head, Canonical())
    return replace(found, details={**found.details, 'method': request.param})


def test_the_map_goes_on_where_the_units_allow_it(result, head):
    found = whole_head(result, head, head.data, head.affine)
    if result.details['method'] in SIGNED:
        assert found is None
        return
    assert found is not None
    assert found.dtype == np.float32
    assert found.min() >= 0
    dark = np.percentile(head.data[head.mask], DARK_PERCENTILE)
    bright = head.data >= dark
    np.testing.assert_allclose(
        found[head.mask & bright], np.maximum(result.image[head.mask & bright], 0), rtol=1e-5, atol=1e-5
    )
    # air: the darkest tenth outside the brain stays darker than nearly all of it
    air = ~head.mask & (head.data <= np.percentile(head.data[~head.mask], 10))
    assert np.median(found[air]) < 0.1 * np.median(result.image[head.mask])
    assert found[head.data == 0].max(initial=0) == 0
    # and outside too what was brighter is brighter at one place in space
    outside = ~head.mask
    assert np.corrcoef(found[outside].astype(float), head.data[outside].astype(float))[0, 1] > 0.9


def test_there_is_no_step_at_the_dark_end_nor_at_the_mask(result, head):
    if whole_head(result, head, head.data, head.affine) is None:
        return
    dark = float(np.percentile(head.data[head.mask], DARK_PERCENTILE))
    near = [whole_head(result, head, np.full((2, 2, 2), dark * part, np.float32), head.affine) for part in (0.999, 1.001)]  # fmt: skip
    assert abs(near[0] - near[1]).max() < 0.01 * np.percentile(result.image[head.mask], 90)


def test_the_gain_of_the_network_stays_smooth_and_bounded_outside(head):
    result = Isotone().harmonize(head, Canonical())
    assert result.details['way'] == 'network'
    level = float(np.percentile(head.data[head.mask], 90))
    assert result.beyond is not None
    flat = result.beyond(np.full_like(head.data, level), head.affine)
    inside = flat[head.mask]
    assert flat.min() > 0.5 * inside.min()
    assert flat.max() < 1.5 * inside.max()
    for axis in range(3):  # no jump from a voxel of 3 mm to the next
        assert np.abs(np.diff(flat, axis=axis)).max() < 0.05 * np.median(inside)


def test_another_grid_gives_the_same_head(head):
    result = Isotone().harmonize(head, Canonical())
    whole = whole_head(result, head, head.data, head.affine)
    cut = head.affine.copy()
    cut[:3, 3] += cut[:3, :3] @ [20, 5, 7]
    part = whole_head(result, head, head.data[20:, 5:, 7:], cut)
    np.testing.assert_allclose(part, whole[20:, 5:, 7:], rtol=1e-5, atol=1e-5)


def test_a_method_that_knows_the_brain_only_gives_the_brain_only(head):
    assert whole_head(Harmonized(np.where(head.mask, head.data, 0)), head, head.data, head.affine) is None


def test_a_brain_around_zero_has_no_background(head):
    shifted = replace(head, data=head.data - np.float32(np.median(head.data[head.mask])))
    result = registry.get('identity')().harmonize(shifted, Canonical())
    assert whole_head(result, shifted, shifted.data, shifted.affine) is None
