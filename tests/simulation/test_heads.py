"""Heads from label maps."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsharm.errors import ScanError, UsageError
from bidsharm.simulation.anatomy import TISSUES, Anatomy
from bidsharm.simulation.heads import BRAIN_CENTRE, load_labels, load_template, narrow_sulci


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
