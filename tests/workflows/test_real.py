"""One real subject with a hole: two visits on different scanners, the first without a T1w."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope='module')
def data() -> Path:
    folder = Path(os.environ.get('BIDSHARM_REAL_DATA', ''))
    if not (folder / 'sub-ms03').is_dir():
        pytest.skip('set BIDSHARM_REAL_DATA to the folder with the real scans')
    return folder


@pytest.fixture(scope='module')
def derivatives(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('real') / 'out'
    command = [
        sys.executable, '-m', 'bidsharm', data, out, 'participant', '--participant-label', 'ms03',
        '--skip-bids-validation', '--harmonizer', 'robust',
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def records(out: Path) -> dict[str, dict]:
    return {file.name: json.loads(file.read_text()) for file in out.rglob('*_qc.json')}


def test_every_scan_comes_out_harmonized(data: Path, derivatives: Path) -> None:
    raw = {
        file.name
        for kind in ('T1w', 'T2w', 'FLAIR')
        for file in (data / 'sub-ms03').rglob(f'*_{kind}.nii.gz')
    }
    made = {file.name for file in derivatives.rglob('*_desc-harmonized_*.nii.gz') if '_dseg' not in file.name}
    assert made == {
        name.replace('_T', '_desc-harmonized_T').replace('_F', '_desc-harmonized_F') for name in raw
    }
    assert {record['verdict'] for record in records(derivatives).values()} <= {'pass', 'warn'}


def test_a_session_without_t1w_follows_the_other_session(derivatives: Path) -> None:
    found = {name: record['notes'] for name, record in records(derivatives).items()}
    for name, notes in found.items():
        if 'T1w' in name:
            assert notes['follows'] is None
        else:
            assert notes['follows'] == 'sub-ms03_ses-2_T1w', name


def test_both_visits_show_one_brain(derivatives: Path) -> None:
    """The mask that was carried over must fit: both visits hold the same brain, whatever the slices."""
    volumes = {}
    for file in (derivatives / 'sub-ms03').rglob('*_mask.nii.gz'):
        image = nib.load(file)
        volumes[file.name] = np.count_nonzero(image.dataobj) * abs(np.linalg.det(image.affine)) / 1000
    assert len(volumes) == 5
    assert max(volumes.values()) / min(volumes.values()) < 1.12, volumes


def test_harmonized_images_lie_on_the_raw_voxels(data: Path, derivatives: Path) -> None:
    for file in (derivatives / 'sub-ms03').rglob('*_desc-harmonized_*.nii.gz'):
        if '_dseg' in file.name:
            continue
        raw = nib.load(
            data / file.relative_to(derivatives).with_name(file.name.replace('_desc-harmonized', ''))
        )
        image = nib.load(file)
        assert image.shape == raw.shape[:3]
        np.testing.assert_allclose(image.affine, raw.affine, atol=1e-5)
        values = image.get_fdata()
        assert np.percentile(values[values != 0], 90) == pytest.approx(1, abs=0.02)  # what robust promises
