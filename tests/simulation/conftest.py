"""A small head with known tissue, and the same as a label map of FreeSurfer's numbers."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsharm.simulation.anatomy import TISSUES, Anatomy
from bidsharm.simulation.heads import load_template

#: One number for each tissue of the template.
NUMBERS = {'CSF': 24, 'GM': 3, 'WM': 2, 'meninges': 24, 'skull': 515, 'scalp': 511}


@pytest.fixture(scope='session')
def small_head() -> Anatomy:
    """The template at 3 mm."""
    return load_template(step=3)


@pytest.fixture(scope='session')
def label_map(small_head: Anatomy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The largest tissue of each voxel, in the axis order of FreeSurfer, somewhere else in the world."""
    codes = np.array([NUMBERS.get(name, 0) for name in TISSUES], dtype=np.int16)
    whole = small_head.fractions.sum(axis=0) > 0.5
    labels = np.where(whole, codes[small_head.fractions.argmax(axis=0)], 0).astype(np.int16)
    affine = small_head.affine.copy()
    affine[:3, 3] += [31, -17, 53]
    image = nib.Nifti1Image(labels, affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt('LIA')
    )
    path = tmp_path_factory.mktemp('labels') / 'head.nii.gz'
    image.as_reoriented(turn).to_filename(path)
    return path
