"""Atrophy, lesions, masses and texture of known size."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bidsharm.errors import UsageError
from bidsharm.simulation.anatomy import TISSUES, Anatomy
from bidsharm.simulation.pathology import add_lesions, add_mass, add_texture, widen_sulci


def slab(spacing: float = 1.0) -> Anatomy:
    """Fluid below z = 10 mm, cortex of 3 mm upon it, then white matter."""
    size = int(40 / spacing)
    fractions = np.zeros((len(TISSUES), 20, 20, size), np.float32)
    edges = [int(edge / spacing) for edge in (0, 10, 13, 40)]
    for name, low, high in zip(('CSF', 'GM', 'WM'), edges[:-1], edges[1:], strict=True):
        fractions[TISSUES.index(name), ..., low:high] = 1
    return Anatomy(fractions, np.diag([spacing] * 3 + [1.0]))


@pytest.mark.parametrize('spacing', [0.5, 1.0])
@pytest.mark.parametrize('millimetres', [0.3, 1.0, 1.6])
def test_sulci_widen_by_what_is_asked_for(millimetres, spacing):
    head = slab(spacing)
    before = head.fractions.copy()
    worn = widen_sulci(head, millimetres)
    column = worn.fractions[:, 10, 10] * spacing
    # Where most of the cortex goes, some of the front has reached white matter, which stays.
    error = 1e-5 if millimetres <= 1 else 0.02 * millimetres
    assert column[TISSUES.index('GM')].sum() == pytest.approx(3 - millimetres, abs=error)
    assert column[TISSUES.index('CSF')].sum() == pytest.approx(10 + millimetres, abs=error)
    assert column[TISSUES.index('WM')].sum() == pytest.approx(27, abs=1e-5)
    np.testing.assert_array_equal(head.fractions, before)
    np.testing.assert_allclose(worn.fractions.sum(axis=0), head.fractions.sum(axis=0), atol=1e-6)


@pytest.mark.parametrize('name', ['blurred', 'oblique', 'narrow', 'membranes'])
def test_borders_that_are_mixtures_lose_as_much(name):
    head = slab()
    fractions, cortex, fluid = head.fractions, TISSUES.index('GM'), TISSUES.index('CSF')
    sides, area = 1, 400.0
    if name == 'blurred':
        ndimage.gaussian_filter(fractions, (0, 0.5, 0.5, 0.5), output=fractions)
    elif name == 'oblique':  # 45 degrees; each voxel is cut where the border passes
        x, _, z = np.indices(fractions.shape[1:])
        fractions[[cortex, fluid]] = 0
        fractions[fluid] = np.clip(15 - (x + z) / np.sqrt(2), 0, 1)
        fractions[cortex] = 1 - fractions[fluid]
        fractions[TISSUES.index('WM')] = 0
        area = 20 * np.sqrt(2) * 20
    elif name == 'narrow':  # a sulcus of a third of a millimetre
        fractions[:] = 0
        fractions[fluid, ..., 20] = 0.3
        fractions[cortex] = 1 - fractions[fluid]
        sides = 2
    else:
        fractions[TISSUES.index('soft tissue')] = 0.3 * fractions[fluid]
        fractions[fluid] *= 0.7
    lost = (fractions - widen_sulci(head, 0.3).fractions)[cortex].sum()
    assert lost == pytest.approx(0.3 * sides * area, rel=0.1)


def test_no_atrophy_is_the_same_head():
    head = slab()
    assert widen_sulci(head, 0) is head
    for wrong in (-0.1, 3, float('nan')):
        with pytest.raises(UsageError, match='Cortex'):
            widen_sulci(head, wrong)


def test_lesions_lie_deep_in_white_matter_near_the_ventricles(small_head):
    before = small_head.fractions.copy()
    ill = add_lesions(small_head, 40, np.random.default_rng(2))
    np.testing.assert_array_equal(small_head.fractions, before)
    np.testing.assert_allclose(ill.fractions.sum(axis=0), before.sum(axis=0), atol=1e-5)
    lesion = ill.part('lesion')
    assert 0.5 < lesion.sum() * ill.voxel_volume / 1000 < 40  # ml
    # All of it was white matter or a nucleus, and nothing else has changed.
    changed = small_head.fractions - ill.fractions
    for name in TISSUES:
        if name not in ('WM', 'deep GM', 'lesion'):
            assert not changed[TISSUES.index(name)].any(), name
    depth = ndimage.distance_transform_edt(small_head.brain_mask, sampling=3)
    ventricles = (small_head.part('CSF') > 0.5) & (depth > 20)
    away = ndimage.distance_transform_edt(~ventricles, sampling=3)
    white = small_head.part('WM')
    assert np.average(away, weights=lesion) < 0.8 * np.average(away, weights=white)
    again = add_lesions(small_head, 40, np.random.default_rng(2))
    np.testing.assert_array_equal(again.fractions, ill.fractions)
    assert add_lesions(small_head, 0, np.random.default_rng(2)) is small_head


def test_lesions_need_white_matter(small_head):
    bare = Anatomy(small_head.fractions.copy(), small_head.affine)
    bare.fractions[TISSUES.index('WM')] = 0
    with pytest.raises(UsageError, match='white matter'):
        add_lesions(bare, 3, np.random.default_rng(0))


def test_a_mass_has_its_size_and_a_rim(small_head):
    ill, centre = add_mass(small_head, 15.0, 24.0, np.random.default_rng(1))
    volume = float(ill.part('mass').sum()) * ill.voxel_volume
    assert volume == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.35)  # uneven, and fluid is spared
    place = ndimage.center_of_mass(ill.part('mass'))
    np.testing.assert_allclose((ill.affine @ [*place, 1])[:3], centre, atol=5)
    assert ill.part('lesion').sum() > 0.1 * ill.part('mass').sum()
    touching = ndimage.binary_dilation(ill.part('mass') > 0.5, iterations=2) & (ill.part('lesion') > 0.5)
    assert touching.any()
    np.testing.assert_allclose(ill.brain, small_head.brain, atol=1e-5)
    # No tissue of a segmentation: but it lies inside the mask.
    assert set(np.unique(ill.labels[ill.part('mass') > 0.9])) == {7}
    with pytest.raises(UsageError, match='no room'):
        add_mass(small_head, 60.0, 96.0, np.random.default_rng(1))


def test_texture_is_two_smooth_fields_of_unit_size(small_head):
    first, same = (add_texture(small_head, np.random.default_rng(4)).texture for _ in range(2))
    assert first.shape == (2, *small_head.fractions.shape[1:])
    np.testing.assert_array_equal(first, same)
    for field in first:
        assert abs(field.mean()) < 0.15
        assert field.std() == pytest.approx(1, abs=0.1)
        neighbours = np.corrcoef(field[1:].ravel(), field[:-1].ravel())[0, 1]
        assert neighbours > 0.5
    assert abs(np.corrcoef(first[0].ravel(), first[1].ravel())[0, 1]) < 0.05
