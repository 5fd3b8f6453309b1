"""Heads from label maps."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsharm.errors import ScanError, UsageError
from bidsharm.simulation.anatomy import TISSUES, Anatomy
from bidsharm.simulation.heads import BRAIN_CENTRE, load_labels, load_template


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
    for name in ('GM', 'WM', 'skull', 'scalp'):
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
        edited(label_map, tmp_path / 'd.nii.gz', lambda d: np.where(d == 3, np.int16(10), d))
    )
    np.testing.assert_allclose(nuclei.part('deep GM'), head.part('GM'))
    np.testing.assert_allclose(nuclei.tissue, head.tissue, atol=1e-6)


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
