"""What fMRIPrep gets: which T1w, under which names, and never two for one session."""

from __future__ import annotations

import json

import pytest

from bidsharm.bids.dataset import prepare_root
from bidsharm.bids.derivatives import Precomputed, way_back
from bidsharm.bids.handoff import handed_off, handoff_files, handoff_specs, prepare_handoff
from bidsharm.bids.names import ScanFile, parse_name
from bidsharm.bids.resume import fingerprint, is_complete
from bidsharm.cli.parser import parse_settings
from bidsharm.errors import UsageError
from bidsharm.interfaces.derivatives import remove_others


def scan(name: str, root) -> ScanFile:
    parsed = parse_name(name)
    assert parsed is not None
    return ScanFile(root / f'{name}.nii.gz', parsed[0], parsed[1], root)


def chosen(names: list[str], root) -> set[str]:
    return set(handed_off([scan(name, root) for name in names]))


def test_one_t1w_a_session_and_the_same_whatever_the_order(tmp_path):
    names = [
        'sub-01_ses-a_run-2_T1w', 'sub-01_ses-a_run-1_T1w', 'sub-01_ses-a_T2w', 'sub-01_ses-b_acq-x_T1w', 'sub-02_run-1_T1w',
        'sub-02_run-2_T1w', 'sub-03_FLAIR',
    ]  # fmt: skip
    expected = {'sub-01_ses-a_run-1_T1w', 'sub-01_ses-b_acq-x_T1w', 'sub-02_run-1_T1w'}
    assert chosen(names, tmp_path) == chosen(names[::-1], tmp_path) == expected


def test_contrast_agent_comes_last(tmp_path):
    assert chosen(['sub-01_ce-gad_T1w', 'sub-01_run-1_T1w'], tmp_path) == {'sub-01_run-1_T1w'}
    assert chosen(['sub-01_ce-gad_T1w'], tmp_path) == {'sub-01_ce-gad_T1w'}


def test_the_names_are_those_of_fmriprep(tmp_path):
    stem = 'sub-01/ses-a/anat/sub-01_ses-a_acq-x'
    assert set(handoff_files(scan('sub-01_ses-a_acq-x_T1w', tmp_path), ['MNI152NLin2009cAsym'])) == {
        f'{stem}_desc-preproc_T1w.nii.gz', f'{stem}_desc-brain_mask.nii.gz', f'{stem}_dseg.nii.gz',
        *(f'{stem}_label-{tissue}_probseg.nii.gz' for tissue in ('GM', 'WM', 'CSF')),
        f'{stem}_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5',
        f'{stem}_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5',
    }  # fmt: skip


def test_every_source_is_named_in_a_data_set_that_is_linked(tree):
    tree.add('sub-01_T1w')
    settings = tree.settings(fmriprep_derivatives=str(tree.root.parent / 'harm'))
    prepare_handoff(settings)
    content = json.loads((tree.root.parent / 'harm' / 'dataset_description.json').read_text())
    assert content['DatasetType'] == 'derivative'
    assert content['DatasetLinks'] == {'raw': tree.root.as_uri(), 'bidsharm': settings.output_dir.as_uri()}
    for spec in handoff_specs(scan('sub-01_T1w', tree.root), Precomputed(), ['X']):
        fields = spec.get('sidecar', [])
        for sidecar in fields if isinstance(fields, list) else [fields]:
            assert all(uri.startswith(('bids:bidsharm:', 'bids:raw:')) for uri in sidecar['Sources'])


def test_the_two_kinds_of_folder_are_not_confused(tree):
    tree.add('sub-01_T1w')
    here, there = tree.root.parent / 'out', tree.root.parent / 'harm'
    settings = tree.settings(fmriprep_derivatives=str(there))
    prepare_root(settings)
    prepare_handoff(settings)
    prepare_root(settings)  # again is fine
    prepare_handoff(settings)
    with pytest.raises(UsageError, match='two data sets'):
        prepare_root(tree.settings(output_dir=str(there)))
    with pytest.raises(UsageError, match='two data sets'):
        prepare_handoff(tree.settings(fmriprep_derivatives=str(here)))


@pytest.mark.parametrize('content', [None, '{"Name": "fMRIPrep", "GeneratedBy": [{"Name": "fMRIPrep"}]}'])
def test_a_folder_of_somebody_else_is_refused_untouched(tree, content):
    other = tree.root.parent / 'harm'
    image = other / 'sub-01' / 'anat' / 'sub-01_desc-preproc_T1w.nii.gz'
    image.parent.mkdir(parents=True)
    image.write_bytes(b'theirs')
    if content:
        (other / 'dataset_description.json').write_text(content)
    before = sorted(other.rglob('*'))
    with pytest.raises(UsageError, match='another data set'):
        prepare_handoff(tree.settings(fmriprep_derivatives=str(other)))
    assert sorted(other.rglob('*')) == before


@pytest.mark.parametrize(
    ('folder', 'says'),
    [('data', 'data set'), ('.', 'data set'), ('out', 'outside'), ('out/harm', 'outside'), ('theirs', 'theirs')],
)  # fmt: skip
def test_the_folder_is_one_of_its_own(tmp_path, folder, says):
    for name in ('data', 'theirs'):
        (tmp_path / name).mkdir()
    places = [
        str(tmp_path / 'data'),
        str(tmp_path / 'out'),
        'participant',
        '-d',
        f'theirs={tmp_path / "theirs"}',
    ]
    with pytest.raises(UsageError, match=says):
        parse_settings([*places, '--fmriprep-derivatives', str(tmp_path / folder)])
    fine = parse_settings([*places, '--fmriprep-derivatives', str(tmp_path / 'harm')])
    assert fine.fmriprep_derivatives == tmp_path / 'harm'
    # where the copies go changes no result
    assert fine.digest() == parse_settings(places).digest()


def test_what_an_earlier_choice_has_left_goes(tmp_path):
    specs = handoff_specs(scan('sub-01_run-1_T1w', tmp_path), Precomputed(), ['X'])
    folder = tmp_path / 'sub-01' / 'anat'
    folder.mkdir(parents=True)
    kept = [tmp_path / name for name in handoff_files(scan('sub-01_run-1_T1w', tmp_path), ['X'])]
    kept += [
        folder / 'sub-01_run-1_desc-preproc_T1w.json',
        folder / 'notes.txt',
        folder / 'sub-01_bold.nii.gz',
    ]
    gone = [tmp_path / name for name in handoff_files(scan('sub-01_run-2_T1w', tmp_path), ['X', 'Y'])]
    gone += [folder / 'sub-01_run-2_dseg.json']
    for file in (*kept, *gone):
        file.write_text('x')
    remove_others(folder, specs)
    assert sorted(folder.iterdir()) == sorted(kept)


def test_a_scan_is_done_when_fmriprep_has_it_too(tmp_path):
    raw, root, harm = tmp_path / 'raw.nii.gz', tmp_path / 'out', tmp_path / 'harm'
    for file in (raw, root / 'image.nii.gz', harm / 'a' / 'head.nii.gz'):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    record = {
        'scan': 'sub-01_T1w', 'subject': '01', 'contrast': 'T1w', 'verdict': 'pass', 'digest': 'd1', 'figures': {},
        'outputs': {'image.nii.gz': fingerprint(root / 'image.nii.gz')}, 'inputs': {'bids:raw:x': fingerprint(raw)},
    }  # fmt: skip
    qc = root / 'qc.json'

    def complete(**more):
        return is_complete(qc, root, {'bids:raw:x': raw}, 'd1', **more)

    wanted = {'handoff': harm, 'handed_off': ['a/head.nii.gz']}
    qc.write_text(json.dumps(record))
    assert complete()
    assert not complete(**wanted)  # made before the option was given
    record['fmriprep_derivatives'] = {'a/head.nii.gz': fingerprint(harm / 'a' / 'head.nii.gz')}
    qc.write_text(json.dumps(record))
    assert complete(**wanted)
    assert not complete(handoff=harm, handed_off=['a/head.nii.gz', 'a/mask.nii.gz'])
    moved = harm.rename(tmp_path / 'elsewhere')
    assert complete(handoff=moved, handed_off=['a/head.nii.gz'])
    (moved / 'a' / 'head.nii.gz').write_text('other')
    assert not complete(handoff=moved, handed_off=['a/head.nii.gz'])
    assert complete()  # without the option nobody asks


def test_the_way_back_of_a_given_transform(tmp_path):
    there = tmp_path / 'sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5'
    assert (
        way_back(there, 'MNI152NLin2009cAsym').name
        == 'sub-01_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5'
    )
