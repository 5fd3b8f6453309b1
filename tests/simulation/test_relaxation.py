"""Relaxation against what was measured in living people."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bidsharm.errors import UsageError
from bidsharm.simulation.anatomy import TISSUES
from bidsharm.simulation.relaxation import MEASURED, SURROUNDINGS, Relaxation, relaxation

FIELDS = (0.064, 0.55, 1.5, 3.0, 7.0)


@pytest.mark.parametrize(
    ('tissue', 'field', 't1'),
    # Wright et al. 2008, MAGMA 21:121, in vivo.
    [
        ('GM', 1.5, 1.197),
        ('GM', 3.0, 1.607),
        ('GM', 7.0, 1.939),
        ('WM', 1.5, 0.646),
        ('WM', 3.0, 0.838),
        ('WM', 7.0, 1.126),
    ],
)
def test_t1_agrees_with_a_measurement_that_the_law_does_not_come_from(tissue, field, t1):
    assert relaxation(tissue, field).t1 == pytest.approx(t1, rel=0.15)


@pytest.mark.parametrize(
    ('tissue', 'times'),
    # Cox and Gowland 2010, and Peters et al. 2007, at 1.5, 3 and 7 T.
    [
        ('GM', ((0.087, 0.084), (0.076, 0.066), (0.047, 0.0332))),
        ('WM', ((0.08, 0.0662), (0.071, 0.0532), (0.047, 0.0268))),
    ],
)
def test_transverse_times_lie_near_the_measured_ones(tissue, times):
    for field, (t2, t2_star) in zip((1.5, 3.0, 7.0), times, strict=True):
        found = relaxation(tissue, field)
        assert found.t2 == pytest.approx(t2, rel=0.05)
        assert found.t2_star == pytest.approx(t2_star, rel=0.16)


@pytest.mark.parametrize('tissue', ['GM', 'WM'])
def test_brain_relaxes_slower_along_and_faster_across_a_stronger_field(tissue):
    found = [relaxation(tissue, field) for field in FIELDS]
    assert all(np.diff([item.t1 for item in found]) > 0)
    assert all(np.diff([item.t2 for item in found]) < 0)
    assert all(np.diff([item.t2_star for item in found]) < 0)
    for item in found:
        assert item.t2_star < item.t2 < item.t1


@pytest.mark.parametrize('field', FIELDS)
def test_white_matter_is_faster_than_grey_and_that_than_fluid(field):
    csf, gm, wm = (relaxation(tissue, field) for tissue in ('CSF', 'GM', 'WM'))
    assert wm.t1 < gm.t1 < csf.t1
    assert wm.pd < gm.pd < csf.pd
    assert wm.t2 < gm.t2 * 1.02 < csf.t2


@pytest.mark.parametrize('tissue', sorted({*TISSUES, *MEASURED, *SURROUNDINGS}))
def test_every_tissue_has_values_at_every_field(tissue):
    for field in FIELDS:
        found = relaxation(tissue, field)
        assert 0 < found.t2_star <= found.t2 <= found.t1
        assert 0 <= found.pd <= 1
        assert found.source


def test_measured_tissues_pass_through_their_two_points():
    for tissue, (first, second, t2, pd, _) in MEASURED.items():
        for field, t1 in ((1.5, first), (3.0, second)):
            found = relaxation(tissue, field)
            assert (found.t1, found.t2, found.pd) == (pytest.approx(t1), t2, pd)


def test_without_dephasing_t2_star_is_t2():
    assert Relaxation(1.0, 0.5, 1.0, '').t2_star == 0.5
    assert Relaxation(1.0, 0.5, 1.0, '', t2_star=0.1).t2_star == 0.1


@pytest.mark.parametrize('field', [0.0, 0.01, 9.4, -3.0, math.inf])
def test_fields_beyond_the_laws_are_refused(field):
    with pytest.raises(UsageError, match=r'0\.05 to 7\.5 T'):
        relaxation('GM', field)


def test_unknown_tissue_is_named():
    with pytest.raises(UsageError, match='liver'):
        relaxation('liver', 3.0)
