"""Heads from label maps."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsharm.errors import ScanError, UsageError
from bidsharm.simulation.anatomy import TISSUES, Anatomy
from bidsharm.simulation.heads import (
    BRAIN_CENTRE,
    LABELS,
    PARCELS,
    _hull,
    _tissues_of,
    load_labels,
    load_template,
    narrow_sulci,
)


def centre(head: Anatomy) -> np.ndarray:
    """Return the middle of GM and WM in mm."""
    voxel = ndimage.center_of_mass(head.part('GM', 'WM', 'deep GM') > 0.5)
    return (head.affine @ [*voxel, 1])[:3]


def edited(path: Path, out: Path, change) -> Path:
    image = nib.load(path)
    data = change(np.asarray(image.dataobj).copy())
    nib.Nifti1Image(data, image.affine).to_filename(out)
    return out


def test_the_template_lies_where_all_heads_are_put():
    np.testing.assert_allclose(centre(load_template(head=False)), BRAIN_CENTRE, atol=1)


@pytest.mark.parametrize('spacing', [0.7, 1.0, 3.0])
def test_the_hull_of_a_ball_is_the_ball_on_all_sides(spacing):
    size = round(110 / spacing)
    offsets = (np.indices((size, size, size)) - size // 2) * spacing
    away = np.sqrt((offsets**2).sum(axis=0))
    fissure = (np.abs(offsets[0] - 15) < 4) & (offsets[1] > 0)  # is filled
    ball = (away <= 40) & ~fissure
    distance = _hull(ball, spacing)
    for axis in range(3):
        along = np.moveaxis(distance, axis, 0)[:, size // 2, size // 2]
        inside = np.flatnonzero(along <= 0)
        ends = [
            k + along[k] / (along[k] - along[k + step]) * step
            for k, step in ((inside[0], -1), (inside[-1], 1))
        ]
        low, high = (np.array(ends) - size // 2) * spacing
        assert low == pytest.approx(-high, abs=0.1), axis
        assert high == pytest.approx(40, abs=max(1.2, spacing / 2)), axis  # voxels of the surface have 2 mm
    assert (distance <= 0).sum() * spacing**3 == pytest.approx(4 / 3 * np.pi * 40**3, rel=0.03)


def test_a_label_map_becomes_the_head_it_was_made_of(label_map, small_head):
    head = load_labels(label_map)
    np.testing.assert_allclose(centre(head), BRAIN_CENTRE, atol=0.1)
    assert head.fractions.dtype == np.float32
    assert head.fractions.min() >= 0
    assert head.fractions.sum(axis=0).max() < 1.001
    largest = small_head.fractions.argmax(axis=0)
    for name in ('WM', 'skull', 'scalp'):
        true = (
            (largest == TISSUES.index(name)) & (small_head.fractions.sum(axis=0) > 0.5)
        ).sum() * small_head.voxel_volume
        assert head.part(name).sum() * head.voxel_volume == pytest.approx(true, rel=1e-3), name
    # Left stays left: the picture of the template, moved to where the head is.
    offset = np.rint(np.linalg.inv(head.affine)[:3] @ [*centre(head), 1]).astype(int)
    there = np.rint(np.linalg.inv(small_head.affine)[:3] @ [*centre(small_head), 1]).astype(int)
    cut = [tuple(slice(p - 20, p + 20) for p in place) for place in (offset, there)]
    assert np.corrcoef(head.part('WM')[cut[0]].ravel(), small_head.part('WM')[cut[1]].ravel())[0, 1] > 0.9


def test_fluid_is_parted_at_the_surface_of_the_brain(label_map):
    head = load_labels(label_map)
    csf, outside = head.part('CSF') > 0.5, head.part('meninges') > 0.5
    assert csf.any()
    assert outside.any()
    depth = ndimage.distance_transform_edt(head.brain_mask, sampling=3)
    assert depth[csf].max() > 20  # ventricles
    assert not (outside & head.brain_mask).any()


def test_a_brain_alone_gets_a_shell_or_none(label_map, tmp_path):
    path = edited(label_map, tmp_path / 'brain.nii.gz', lambda data: np.where(np.isin(data, [2, 3]), data, 0))
    whole, bare = load_labels(path), load_labels(path, head=False)
    for name in ('meninges', 'skull', 'scalp'):
        assert whole.part(name).sum() > 100
        assert not bare.part(name).any()
    # Sulci and ventricles are no air.
    assert bare.part('CSF').sum() > 100
    np.testing.assert_array_equal(bare.brain_mask, whole.brain_mask)


def test_parcels_and_deep_nuclei(label_map, tmp_path):
    def change(data: np.ndarray) -> np.ndarray:
        middle = data.shape[0] // 2
        data[:middle][data[:middle] == 3] = 1024
        data[:middle][data[:middle] == 2] = 3024
        return data

    head, parcels = load_labels(label_map), load_labels(edited(label_map, tmp_path / 'p.nii.gz', change))
    np.testing.assert_array_equal(head.fractions, parcels.fractions)
    nuclei = load_labels(
        edited(label_map, tmp_path / 'd.nii.gz', lambda d: np.where(d == 2, np.int16(10), d))
    )
    np.testing.assert_allclose(nuclei.part('deep GM'), head.part('WM'))
    np.testing.assert_allclose(nuclei.tissue[1], head.tissue[1] + head.tissue[2], atol=1e-6)
    np.testing.assert_allclose(nuclei.tissue[0], head.tissue[0], atol=1e-6)


#: Numbers of aseg, aparc+aseg, aparc.a2009s+aseg and wmparc, of parcels the first and the last, by what they stand for.
WRITTEN = {
    'GM': (3, 42, 8, 47, 31, 63, 1000, 1035, 2000, 2035, 11100, 11101, 11175, 12100, 12101, 12175),
    'WM': (
        2, 41, 7, 46, 16, 28, 60, 77, 78, 79, 85, *range(251, 256), 3000, 3035, 4000, 4035, 5001, 5002, 13100, 13175, 14100, 14175,
    ),
    'deep GM': (10, 11, 12, 13, 17, 18, 26, 49, 50, 51, 52, 53, 54, 58, 80, 81, 82),
    'CSF': (4, 5, 14, 15, 24, 43, 44, 72),
    'vessel': (30, 62),
}  # fmt: skip


@pytest.mark.parametrize('tissue', WRITTEN)
def test_labels_of_freesurfer_are_known(tissue):
    codes = np.array(WRITTEN[tissue], dtype=np.int32)
    np.testing.assert_array_equal(_tissues_of(codes, 'x'), TISSUES.index(tissue))


@pytest.mark.parametrize('code', [1, 40, 999, 5000, 5003, 11099, 11176, 12099, 12176, 13099, 14176, 15000])
def test_labels_beside_those_of_freesurfer_are_not_known(code):
    with pytest.raises(UsageError, match=f'unknown meaning: {code}'):
        _tissues_of(np.array([0, 2, code], dtype=np.int32), 'x')


def test_a_label_has_one_meaning():
    codes = [code for numbers in LABELS.values() for code in numbers]
    assert len(codes) == len(set(codes))
    assert not [code for code in codes for first, last, _ in PARCELS if first <= code <= last]


def test_parcels_of_a2009s_and_wmparc_make_the_same_head(label_map, tmp_path):
    def change(data: np.ndarray) -> np.ndarray:
        middle = data.shape[0] // 2
        for half, cortex, inner, rest in (
            (data[:middle], 11130, 14110, 5001),
            (data[middle:], 12142, 3024, 5002),
        ):
            white = np.flatnonzero(half == 2)
            half[half == 3] = cortex
            half.flat[white[::2]], half.flat[white[1::2]] = inner, rest
        return data

    head, parcels = load_labels(label_map), load_labels(edited(label_map, tmp_path / 'p.nii.gz', change))
    np.testing.assert_array_equal(head.fractions, parcels.fractions)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_voxels_that_are_no_cubes_are_divided_into_cubes(label_map, tmp_path, axis):
    image = nib.load(label_map)
    thick = np.take(np.asarray(image.dataobj), range(0, image.shape[axis], 2), axis)
    affine = image.affine @ np.diag([2.0 if k == axis else 1.0 for k in range(3)] + [1.0])
    nib.Nifti1Image(thick, affine).to_filename(tmp_path / 'thick.nii.gz')
    nib.Nifti1Image(np.repeat(thick, 2, axis), image.affine).to_filename(tmp_path / 'cubes.nii.gz')
    head, cubes = load_labels(tmp_path / 'thick.nii.gz'), load_labels(tmp_path / 'cubes.nii.gz')
    np.testing.assert_allclose(head.affine, cubes.affine)
    np.testing.assert_array_equal(head.fractions, cubes.fractions)


def test_the_shell_is_as_thick_in_every_direction_where_voxels_are_no_cubes(small_head, tmp_path):
    brain = np.where(small_head.brain_mask, 2, 0).astype(np.int16)[:, :, ::3]
    nib.Nifti1Image(brain, np.diag([3.0, 3.0, 9.0, 1.0])).to_filename(tmp_path / 'brain.nii.gz')
    head = load_labels(tmp_path / 'brain.nii.gz')
    np.testing.assert_allclose(np.diag(head.affine), [3, 3, 3, 1])
    whole, inner = head.fractions.sum(axis=0) > 0.5, head.brain_mask
    x, y, z = (round(place) for place in ndimage.center_of_mass(inner))
    for line in (np.s_[:, y, z], np.s_[x, :, z], np.s_[x, y, :]):
        shell = (np.count_nonzero(whole[line]) - np.count_nonzero(inner[line])) * 3 / 2
        assert shell == pytest.approx(13, abs=6)


def test_maps_whose_cubes_would_fill_the_memory_are_refused(tmp_path):
    flat = np.zeros((80, 40, 40), dtype=np.int16)
    nib.Nifti1Image(flat, np.diag([0.15, 12.0, 12.0, 1.0])).to_filename(tmp_path / 'flat.nii.gz')
    with pytest.raises(UsageError, match='too flat'):
        load_labels(tmp_path / 'flat.nii.gz')


def test_unknown_labels_are_named(label_map, tmp_path):
    path = edited(label_map, tmp_path / 'x.nii.gz', lambda data: np.where(data == 511, np.int16(9123), data))
    with pytest.raises(UsageError, match='9123') as caught:
        load_labels(path)
    assert caught.value.where == 'x.nii.gz'


def test_a_map_without_brain_is_refused(label_map, tmp_path):
    path = edited(label_map, tmp_path / 'x.nii.gz', lambda data: np.where(data == 511, data, 0))
    with pytest.raises(UsageError, match='no brain'):
        load_labels(path)
    (tmp_path / 'broken.nii.gz').write_bytes(b'')
    with pytest.raises(ScanError):
        load_labels(tmp_path / 'broken.nii.gz')


def slabs(spacing: float) -> Anatomy:
    """Cortex for 8 mm, then fluid for 8 mm, along the first axis."""
    fractions = np.zeros((len(TISSUES), round(16 / spacing), 4, 4), dtype=np.float32)
    half = fractions.shape[1] // 2
    fractions[TISSUES.index('GM'), :half] = 1
    fractions[TISSUES.index('CSF'), half:] = 1
    return Anatomy(fractions, np.diag([spacing, spacing, spacing, 1]))


@pytest.mark.parametrize('spacing', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('millimetres', [0.25, 0.5, 1.0])
def test_cortex_grows_by_what_is_asked_for(spacing, millimetres):
    head = slabs(spacing)
    grown = narrow_sulci(head, millimetres, keep=np.zeros(head.fractions.shape[1:], dtype=bool))
    thicker = (grown.part('GM') - head.part('GM'))[:, 0, 0].sum() * spacing
    assert thicker == pytest.approx(millimetres, abs=0.13 * spacing)
    np.testing.assert_allclose(grown.part('GM', 'CSF'), head.part('GM', 'CSF'))


def test_ventricles_stay_as_they_are(label_map, tmp_path):
    path = edited(label_map, tmp_path / 'v.nii.gz', ventricles_in_the_middle)
    head = load_labels(path)
    fluid = head.part('CSF')
    assert fluid.max() > 0.97  # pure in the ventricle
    sulci = fluid.copy()
    inner = ndimage.binary_dilation(fluid > 0.9, iterations=3)
    assert inner.any()
    assert sulci[~inner].max() <= 0.7 + 1e-6  # three parts of ten are membranes
    assert head.part('soft tissue')[~inner].max() == pytest.approx(0.3, abs=0.02)


def ventricles_in_the_middle(data: np.ndarray) -> np.ndarray:
    """Make a block of ventricle (4) in the middle of the head."""
    middle = np.array(ndimage.center_of_mass(data == 2)).astype(int)
    data[tuple(slice(m - 4, m + 4) for m in middle)] = 4
    return data
