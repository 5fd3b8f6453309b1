"""A whole run with --fmriprep-derivatives, and what sMRIPrep itself finds there."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bidsharm.bids.validation import find_validator
from bidsharm.simulation.dataset import simulate
from bidsharm.simulation.presets import PRESETS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('handoff')]

STEM = 'sub-01/ses-northA/anat/sub-01_ses-northA'
SPACES = ['MNI152NLin2009aSym', 'MNI152NLin2009cAsym']


def run(*arguments: object, check: int = 0) -> str:
    command = [sys.executable, '-m', 'bidsharm', *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == check, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object]]:
    """One head, and another T1w of its session."""
    base = tmp_path_factory.mktemp('handoff')
    simulate(base / 'data', subjects=1, scanners=PRESETS[:1], resolution=3.0, seed=3)
    raw = base / 'data' / f'{STEM}_T1w.nii.gz'
    shutil.copy(raw, base / 'data' / f'{STEM}_run-2_T1w.nii.gz')
    raw.rename(base / 'data' / f'{STEM}_run-1_T1w.nii.gz')
    raw.with_name(raw.name.replace('.nii.gz', '.json')).unlink(missing_ok=True)
    arguments: list[object] = [
        base / 'data', base / 'out', 'participant', '--sloppy', '--skip-bids-validation', '--fmriprep-derivatives', base / 'harm',
        '-w', base / 'work',
    ]  # fmt: skip
    run(*arguments)
    return base, arguments


def collected(base: Path, **more: Any) -> dict[str, Any]:
    """Return what sMRIPrep finds, by the query specification that it was installed with."""
    pytest.importorskip('smriprep', reason='smriprep is not installed')
    from smriprep.utils.bids import collect_derivatives

    found: dict[str, Any] = collect_derivatives(base / 'harm', '01', [*SPACES, 'fsnative'], **more)
    return found


@pytest.mark.parametrize('session', [None, 'northA'])
def test_smriprep_finds_every_file_and_takes_none_twice(first_run, session):
    base, _ = first_run
    stem = f'{base / "harm" / STEM}_run-1'
    assert collected(base, session_id=session) == {
        't1w_preproc': f'{stem}_desc-preproc_T1w.nii.gz',
        't1w_mask': f'{stem}_desc-brain_mask.nii.gz',
        't1w_dseg': f'{stem}_dseg.nii.gz',
        't1w_tpms': [f'{stem}_label-{tissue}_probseg.nii.gz' for tissue in ('GM', 'WM', 'CSF')],
        'transforms': {},
    }
    assert not list((base / 'harm').rglob('*run-2*'))
    assert list((base / 'out').rglob('*run-2_desc-harmonized_T1w.nii.gz'))


def test_smriprep_skips_what_it_has_been_given(first_run, caplog):
    """The anatomical workflow of sMRIPrep, built with what it has found: no brain extraction, no N4, no segmentation."""
    base, _ = first_run
    found = collected(base)
    from niworkflows.utils.spaces import Reference, SpatialReferences
    from smriprep.workflows.anatomical import init_anat_fit_wf

    logger = logging.getLogger('nipype.workflow')
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        workflow = init_anat_fit_wf(
            bids_root=str(base / 'data'), output_dir=str(base / 'fmriprep'), freesurfer=False, hires=False, longitudinal=False,
            msm_sulc=False, t1w=[str(base / 'data' / f'{STEM}_run-1_T1w.nii.gz')], t2w=[], skull_strip_mode='auto',
            skull_strip_template=Reference('OASIS30ANTs'), spaces=SpatialReferences(), precomputed=found, omp_nthreads=1,
        )  # fmt: skip
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
    told = [record.getMessage() for record in caplog.records]
    assert {
        'ANAT Found preprocessed T1w - skipping Stage 1',
        'ANAT Skipping Stage 2',
        'ANAT Skipping Stage 3',
    } <= set(told)
    names = ' '.join(workflow.list_node_names())
    assert 'brain_extraction' not in names
    assert 'n4' not in names
    assert 'fast' not in names
    assert workflow.get_node('anat_validate').inputs.in_file == found['t1w_preproc']


def test_the_head_is_kept_and_the_brain_is_the_result(first_run):
    base, _ = first_run
    raw = nib.load(base / 'data' / f'{STEM}_run-1_T1w.nii.gz')
    image, brain, mask = (
        nib.load(base / folder / f'{STEM}_run-1_{name}.nii.gz')
        for folder, name in (
            ('harm', 'desc-preproc_T1w'), ('out', 'desc-harmonized_T1w'), ('harm', 'desc-brain_mask'),
        )
    )  # fmt: skip
    assert image.shape == raw.shape
    np.testing.assert_allclose(image.affine, raw.affine, atol=1e-5)
    inside = np.asarray(mask.dataobj) > 0
    data = image.get_fdata()
    np.testing.assert_allclose(data[inside], brain.get_fdata()[inside])
    assert data.min() >= 0
    assert (data[~inside] > 30).mean() > 0.02  # scalp
    sidecar = json.loads((base / 'harm' / f'{STEM}_run-1_desc-preproc_T1w.json').read_text())
    assert sidecar['SkullStripped'] is False
    assert sidecar['Harmonization']['Method'] == 'tscore'


def test_both_folders_are_valid_bids(first_run):
    base, _ = first_run
    validator = find_validator()
    if validator is None:
        pytest.skip('the BIDS validator is not installed')
    for folder in ('out', 'harm'):
        done = subprocess.run([validator, str(base / folder), '--json'], capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
        issues = json.loads(done.stdout)['issues']['issues']
        assert [issue for issue in issues if issue['severity'] == 'error'] == []


def test_a_second_run_goes_on_and_mends_what_is_gone(first_run):
    base, arguments = first_run
    image = base / 'harm' / f'{STEM}_run-1_desc-preproc_T1w.nii.gz'
    before = image.read_bytes()
    time = image.stat().st_mtime_ns
    assert '2 were done before' in run(*arguments)
    assert image.stat().st_mtime_ns == time
    listed = run(*arguments, '--dry-run')
    assert listed.count('for fMRIPrep:') == 6
    image.unlink()
    assert '1 was done before' in run(*arguments)
    assert image.read_bytes() == before
    # without the option the results stand
    plain = [item for item in arguments if item not in ('--fmriprep-derivatives', base / 'harm')]
    shutil.copytree(base / 'harm', base / 'kept')
    shutil.rmtree(base / 'harm')
    assert '2 were done before' in run(*plain)
    os.rename(base / 'kept', base / 'harm')
    assert '2 were done before' in run(*arguments)


def test_another_choice_leaves_no_second_t1w(first_run):
    base, arguments = first_run
    run(*arguments, '--run', '2')
    found = [file.name for file in (base / 'harm').rglob('*_T1w.nii.gz')]
    assert found == ['sub-01_ses-northA_run-2_desc-preproc_T1w.nii.gz']
    run(*arguments)
    assert isinstance(collected(base)['t1w_preproc'], str)
    assert not list((base / 'harm').rglob('*run-2*'))


def test_units_without_room_for_a_background_give_the_brain_only(first_run):
    base, arguments = first_run
    moved = [base / name if item == base / 'out' else item for item in arguments for name in ['out-z']]
    moved = [base / 'harm-z' if item == base / 'harm' else item for item in moved]
    run(*moved, '--harmonizer', 'zscore', '--run', '1')
    stem = base / 'harm-z' / f'{STEM}_run-1'
    data = nib.load(f'{stem}_desc-preproc_T1w.nii.gz').get_fdata()
    mask = np.asarray(nib.load(f'{stem}_desc-brain_mask.nii.gz').dataobj) > 0
    assert not data[~mask].any()
    assert abs(data[mask].mean()) < 1e-3
    assert json.loads(Path(f'{stem}_desc-preproc_T1w.json').read_text())['SkullStripped'] is True
