"""What a run leaves behind and what it needs around it: few files, no home folder, no templates, no place where it is started.

Two scans of one person with voxels of different sizes, in one session.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_to_output

from bidsharm.simulation.dataset import simulate

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('footprint')]

#: Files that one scan may leave, in the working folder and among the results: file systems of clusters count them.
#: 240 and 32 were there when this was written.
WORKING, RESULTS = 360, 50
NAME = 'sub-01/ses-northA/anat/sub-01_ses-northA{}_T1w.nii.gz'


class Place(NamedTuple):
    """The folders of a run."""

    heads: Path
    out: Path
    work: Path
    nowhere: Path


@pytest.fixture(scope='module')
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One run."""
    home = tmp_path_factory.mktemp('footprint')
    found = Place(home / 'heads', home / 'out', home / 'work', home / 'nowhere')
    simulate(found.heads, subjects=1, resolution=3.0)
    (found.heads / 'sub-01' / 'ses-southB').rename(home / 'elsewhere')
    first = found.heads / NAME.format('')
    coarse = resample_to_output(nib.load(first), (3.0, 3.0, 4.0), order=1)
    nib.Nifti1Image(np.round(coarse.get_fdata()).astype(np.int16), coarse.affine).to_filename(
        found.heads / NAME.format('_run-2')
    )
    first.rename(found.heads / NAME.format('_run-1'))
    found.nowhere.mkdir()
    found.nowhere.chmod(0o555)
    environment = {
        name: value for name, value in os.environ.items() if name not in ('HOME', 'XDG_CACHE_HOME')
    }
    environment |= {'TEMPLATEFLOW_HOME': str(found.nowhere / 'templates'), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-P', '-m', 'bidsharm', found.heads, found.out, 'participant', '-w', found.work, '--sloppy',
         '--skip-bids-validation', '--output-spaces', 'native', 'MNI152NLin2009aSym:res-2'],
        capture_output=True, text=True, timeout=600, check=False, env=environment, cwd=found.nowhere,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return found


def files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def test_a_scan_leaves_few_files(place: Place) -> None:
    assert 0 < files(place.work) / 2 <= WORKING
    assert 0 < files(place.out / 'sub-01') / 2 <= RESULTS
    # Of the data set, the logs and the page: as many whatever the number of scans.
    assert files(place.out) - files(place.out / 'sub-01') <= 25


def test_nothing_is_written_where_it_was_started(place: Place) -> None:
    assert not list(place.nowhere.iterdir())


@pytest.mark.parametrize('run', ['_run-1', '_run-2'])
def test_each_run_keeps_its_own_voxels(place: Place, run: str) -> None:
    raw = nib.load(place.heads / NAME.format(run))
    result = nib.load(place.out / NAME.format(f'{run}_desc-harmonized'))
    assert result.shape == raw.shape
    assert np.allclose(result.affine, raw.affine, atol=1e-4)
    inside = result.get_fdata() != 0
    millilitres = inside.sum() * abs(np.linalg.det(raw.affine[:3, :3])) / 1000
    assert 900 < millilitres < 2200
