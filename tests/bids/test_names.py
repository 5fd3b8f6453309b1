"""Names: what a scan is called, and that no two outputs can have one name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidsharm.bids.names import ENTITY_ORDER, OutputNames, ScanFile, file_name, parse_name

LABELS = st.text('abcXYZ0129+', min_size=1, max_size=6)


def scan_of(name: str, root: Path = Path('/data')) -> ScanFile:
    parsed = parse_name(name)
    assert parsed is not None
    session = f'ses-{parsed[0]["ses"]}' if 'ses' in parsed[0] else ''
    path = root / f'sub-{parsed[0]["sub"]}' / session / 'anat' / f'{name}.nii.gz'
    return ScanFile(path, parsed[0], parsed[1], root)


@given(st.dictionaries(st.sampled_from(ENTITY_ORDER), LABELS, min_size=1), st.sampled_from(('T1w', 'mask')))
def test_names_can_be_read_back(entities, suffix):
    name = file_name(entities, suffix, '.nii.gz')
    assert parse_name(name) == (entities, suffix)
    keys = [pair.split('-')[0] for pair in name.split('_')[:-1]]
    assert keys == sorted(keys, key=ENTITY_ORDER.index)


@pytest.mark.parametrize(
    'name',
    [
        'T1w.nii.gz', 'notes.txt', '', '.nii.gz', 'sub-01.nii.gz', 'sub-_T1w.nii.gz', '-01_T1w.nii.gz', 'sub-0 1_T1w.nii.gz',
        'sub-01;rm_T1w.nii.gz', 'sub-ü_T1w.nii.gz', 'sub-01__T1w.nii.gz', 'sub-01_T1w_T2w.nii.gz', 'sub-a-b_T1w.nii.gz',
        'SUB-01_T1w.nii.gz', '._sub-01_T1w.nii.gz', 'sub-01_sub-02_T1w.nii.gz', 'sub-01_run-1_run-1_T1w.nii.gz',
        'sub-../../x_T1w.nii.gz',
    ],
)  # fmt: skip
def test_what_is_no_bids_name(name):
    assert parse_name(name) is None


def test_entities_added_to_bids_later_stay_before_desc():
    assert file_name({'sub': '01', 'new': 'x', 'desc': 'brain'}, 'mask') == 'sub-01_new-x_desc-brain_mask'


def test_parts_of_a_scan():
    scan = scan_of('sub-01_ses-a_run-2_T2w')
    assert (scan.subject, scan.session, scan.suffix) == ('01', 'a', 'T2w')
    assert scan.name == 'sub-01_ses-a_run-2_T2w'
    assert scan.relative == 'sub-01/ses-a/anat/sub-01_ses-a_run-2_T2w.nii.gz'
    assert scan.node == 'sub_01_ses_a_run_2_T2w'
    assert scan_of('sub-01_T1w').session is None


@pytest.mark.parametrize(
    ('name', 'mask', 'image'),
    [
        ('sub-01_T1w', 'sub-01/anat/sub-01_desc-brain_mask.nii.gz', 'sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz'),
        ('sub-01_ses-a_acq-x_rec-n_run-2_T1w', 'sub-01/ses-a/anat/sub-01_ses-a_acq-x_rec-n_run-2_desc-brain_mask.nii.gz',
         'sub-01/ses-a/anat/sub-01_ses-a_acq-x_rec-n_run-2_desc-harmonized_T1w.nii.gz'),
        ('sub-01_FLAIR', 'sub-01/anat/sub-01_desc-FLAIRBrain_mask.nii.gz', 'sub-01/anat/sub-01_desc-harmonized_FLAIR.nii.gz'),
    ],
)  # fmt: skip
def test_outputs_keep_every_entity(name, mask, image):
    names = OutputNames(scan_of(name))
    assert names.companion('mask', desc='brain') == mask
    assert names.image('harmonized') == image


def test_space_stands_before_desc():
    names = OutputNames(scan_of('sub-01_run-1_T1w'))
    assert names.image('harmonized', {'space': 'MNI', 'res': '2'}).endswith(
        'sub-01_run-1_space-MNI_res-2_desc-harmonized_T1w.nii.gz'
    )
    assert names.companion('dseg', space='MNI', res='2').endswith('sub-01_run-1_space-MNI_res-2_dseg.nii.gz')


def test_transforms_are_named_as_by_fmriprep():
    names = OutputNames(scan_of('sub-01_ses-a_T1w'))
    assert (
        names.transform('T1w', 'MNI152NLin2009aSym')
        == 'sub-01/ses-a/anat/sub-01_ses-a_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5'
    )


@pytest.mark.parametrize('space', [{}, {'space': 'T1w'}, {'space': 'MNI', 'res': '1'}])
def test_no_two_scans_share_an_output(space):
    """Contrasts, runs, acquisitions and sessions of one subject, all outputs: every path is there once."""
    stems = (
        'sub-01',
        'sub-01_run-1',
        'sub-01_run-2',
        'sub-01_acq-x',
        'sub-01_rec-x',
        'sub-01_ses-a',
        'sub-01_ses-b',
    )
    paths = []
    for scan in (scan_of(f'{stem}_{suffix}') for stem in stems for suffix in ('T1w', 'T2w', 'FLAIR', 'PDw')):
        names = OutputNames(scan)
        paths += [
            names.image('harmonized', space), names.image('preproc', space), names.qc, names.companion('dseg', **space),
            names.companion('mask', desc='brain', **space), names.companion('probseg', label='GM', **space),
        ]  # fmt: skip
        assert names.qc.endswith('_qc.json')
    assert len({path.lower() for path in paths}) == len(paths)
