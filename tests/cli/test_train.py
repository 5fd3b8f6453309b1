"""``bidsharm-train``: from derivatives to a model, again from where it stopped, and in words where it cannot."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from bidsharm.bids.training_input import find_training_files
from bidsharm.cli.train import build_parser, main
from bidsharm.errors import UsageError
from bidsharm.harmonizers import bundle
from bidsharm.harmonizers.contract import Site
from bidsharm.imaging.templates import bundled_files

TINY = ['--preset', 'tiny', '--threads', '1', '--device', 'cpu', '--set', 'batch=2', 'voxel_mm=8.0']


@pytest.fixture(scope='module')
def derivatives(tmp_path_factory):
    """Three people at two sites, made of the template: site B shows them darker, and one of its images is broken."""
    root = tmp_path_factory.mktemp('derivatives')
    template = nib.load(bundled_files()['T1w'])
    data, affine = (
        np.asarray(template.dataobj, np.float32)[::3, ::3, ::3],
        template.affine @ np.diag([3, 3, 3, 1]),
    )
    for subject in ('01', '02', '03'):
        for site in ('A', 'B'):
            folder = root / f'sub-{subject}' / f'ses-{site}' / 'anat'
            folder.mkdir(parents=True)
            stem = f'sub-{subject}_ses-{site}'
            image = data * (1 + 0.05 * int(subject)) if site == 'A' else 255 * (data / 255) ** 2
            nib.Nifti1Image(image.astype(np.float32), affine).to_filename(
                folder / f'{stem}_desc-preproc_T1w.nii.gz'
            )
            nib.Nifti1Image((data > 0).astype(np.uint8), affine).to_filename(
                folder / f'{stem}_desc-brain_mask.nii.gz'
            )
            (folder / f'{stem}_desc-T1w_qc.json').write_text(json.dumps({'site': f'scanner{site}'}))
    (root / 'participants.tsv').write_text(
        'participant_id\tage\tlab\nsub-01\t40\tx\nsub-02\tn/a\ty\nsub-03\t60\tx\n'
    )
    return root


def test_scans_are_found_with_what_is_known_of_them(derivatives):
    files = find_training_files(derivatives)
    assert len(files) == 6
    first = files[0]
    assert (first.person, first.session, first.site, first.contrast) == ('01', 'A', 'scannerA', 'T1w')
    assert first.covariates == {'age': 40.0}
    assert first.tissue == ()
    assert {file.site for file in find_training_files(derivatives, site='session')} == {'A', 'B'}
    assert {file.site for file in find_training_files(derivatives, site='lab')} == {'x', 'y'}
    assert {file.person for file in find_training_files(derivatives, person='lab')} == {'x', 'y'}
    assert {file.person for file in find_training_files(derivatives, subjects=['02'])} == {'02'}


def test_acquisition_parameters_come_from_the_sidecar_of_the_image(derivatives, tmp_path):
    import shutil

    copy = tmp_path / 'copy'
    shutil.copytree(derivatives, copy)
    anat = copy / 'sub-01' / 'ses-A' / 'anat'
    known = {'RepetitionTime': 2.3, 'EchoTime': 0.003, 'FlipAngle': 9, 'MagneticFieldStrength': 3}
    about = {**known, 'InversionTime': 0, 'Manufacturer': 'x'}
    (anat / 'sub-01_ses-A_desc-preproc_T1w.json').write_text(json.dumps(about))
    (copy / 'sub-02' / 'ses-A' / 'anat' / 'sub-02_ses-A_desc-preproc_T1w.json').write_text('{')
    found = {(file.person, file.session): file for file in find_training_files(copy)}
    assert found['01', 'A'].acquisition == known
    assert found['01', 'A'].read().acquisition == known
    assert found['01', 'B'].acquisition == found['02', 'A'].acquisition == {}


def test_a_model_is_trained_and_the_same_command_does_nothing_more(derivatives, tmp_path, capsys):
    command = [
        'deepharmony',
        str(derivatives),
        str(tmp_path / 'out'),
        '--target',
        'scannerA',
        '--budget',
        '30',
        '--interval',
        '10',
        *TINY,
    ]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / 'out' / 'model')
    method = bundle.load(tmp_path / 'out' / 'model')
    assert method.sites == ('scannerA', 'scannerB')
    scans = {file.name: file.read() for file in find_training_files(derivatives)}
    dark, bright = scans['sub-01_ses-B_T1w'], scans['sub-01_ses-A_T1w']
    found = method.harmonize(dark, Site('scannerA')).image
    inside = dark.mask

    def distance(image):
        return float(np.abs(image - bright.data)[inside].mean())

    assert distance(found) < 0.7 * distance(dark.data)
    rows = (tmp_path / 'out' / 'log.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['step', '10', '20', '30']
    assert len(list((tmp_path / 'out' / 'examples').glob('*.png'))) == 3
    assert main(command) == 0
    assert 'trained already' in capsys.readouterr().out


def test_a_broken_scan_is_left_out_and_told(derivatives, tmp_path, capsys):
    import shutil

    copy = tmp_path / 'copy'
    shutil.copytree(derivatives, copy)
    broken = copy / 'sub-03' / 'ses-B' / 'anat' / 'sub-03_ses-B_desc-preproc_T1w.nii.gz'
    broken.write_bytes(b'no image')
    assert (
        main(
            ['deepharmony', str(copy), str(tmp_path / 'out'), '--target', 'scannerA', '--budget', '2', *TINY]
        )
        == 1
    )
    said = capsys.readouterr()
    assert 'left out' in said.err
    assert 'sub-03_ses-B' in said.err
    assert bundle.load(tmp_path / 'out' / 'model').card.name == 'deepharmony'


@pytest.mark.parametrize(
    ('arguments', 'code', 'said'),
    [
        (['deepharmony', 'D', 'O'], 2, 'scannerA (3 scans), scannerB (3 scans)'),
        (['deepharmony', 'D', 'O', '--target', 'elsewhere'], 2, 'No scan comes from the site "elsewhere"'),
        (['tscore', 'D', 'O'], 2, 'is not trained'),
        (['deepharmnoy', 'D', 'O'], 2, 'deepharmony'),
        (['deepharmony', 'D', 'O', '--target', 'scannerA', '--set', 'wdth=3'], 2, 'no setting "wdth"'),
        (['deepharmony', 'D', 'O', '--target', 'scannerA', '--set', 'widths=(4, 0)'], 2, 'no networks for deepharmony'),
        (['deepharmony', 'D', 'O', '--target', 'scannerA', '--contrasts', 'T2w'], 3, 'no preprocessed scan'),
        (['deepharmony', 'D/none', 'O', '--target', 'scannerA'], 2, 'does not exist'),
        (['deepharmony', 'D', 'O', '--target', 'scannerA', '--person', 'age', '--site', 'age'], 2, 'No scan comes from'),
        (['deepharmony', 'D', 'O', '--target', '40', '--site', 'age'], 2, 'scans of the same people at several sites'),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(arguments, code, said, derivatives, tmp_path, capsys):
    command = [text.replace('D', str(derivatives)) if text.startswith('D') else text for text in arguments]
    assert main([str(tmp_path / 'out') if text == 'O' else text for text in command]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_people_of_whom_nothing_is_known_are_nobody_s_other_visit(derivatives, tmp_path):
    labels = sorted(path.name for path in derivatives.glob('sub-*') if path.is_dir())
    rows = [f'{label}\t{"anna" if label in labels[:2] else "n/a"}' for label in labels]
    (tmp_path / 'participants.tsv').write_text('\n'.join(['participant_id\twho', *rows]) + '\n')
    found = find_training_files(derivatives, contrasts=['T1w'], participants=tmp_path, person='who')
    people = {file.entities['sub']: file.person for file in found}
    names = [label.removeprefix('sub-') for label in labels]
    assert people == {name: 'anna' if name in names[:2] else name for name in names}
    with pytest.raises(UsageError, match='no column "hwo"'):
        find_training_files(derivatives, contrasts=['T1w'], participants=tmp_path, person='hwo')


def test_a_training_starts_from_a_model(derivatives, tmp_path, capsys):
    tiny = [*TINY, '--target', 'scannerA', '--interval', '2']
    first, model = str(tmp_path / 'first'), str(tmp_path / 'first' / 'model')
    assert main(['deepharmony', str(derivatives), first, '--budget', '2', *tiny]) == 0
    rest = ['--target', 'scannerA', '--budget', '2', '--threads', '1', '--device', 'cpu', '--from', model]
    second = [str(derivatives), str(tmp_path / 'second'), *rest, '--set', 'rate=1e-5']
    assert main(['deepharmony', *second]) == 0
    card = bundle.read_card(tmp_path / 'second' / 'model')['settings']
    assert card['started_from'] == bundle.digest(tmp_path / 'first' / 'model')
    assert (card['preset']['voxel_mm'], card['preset']['rate']) == (8.0, 1e-5)
    capsys.readouterr()
    for name, more, said in [
        ('osman', [], 'is one of deepharmony'), ('deepharmony', ['--preset', 'tiny'], 'settings are those of the model'),
        ('deepharmony', ['--set', 'widths=(4, 8)'], 'the networks are others'),
    ]:  # fmt: skip
        assert main([name, str(derivatives), str(tmp_path / 'third'), *rest, *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / 'third' / 'model').exists()


def test_a_method_that_needs_pairs_is_trained_on_simulated_people(block_map, tmp_path, capsys):
    command = [
        'deepharmony', 'simulated', str(tmp_path / 'out'), '--people', '3', '--scanners', '2', '--labels', str(block_map),
        '--target', 'simulated1', '--budget', '4', '--interval', '2', *TINY,
    ]  # fmt: skip
    assert main(command) == 0
    method = bundle.load(tmp_path / 'out' / 'model')
    assert method.sites == ('simulated1', 'simulated2')
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / 'out' / 'cache').iterdir()}
    assert len([file for file in kept if file.name.endswith('.values.npy')]) == 6
    # The same command on the same seed goes on with the same scans.
    weights = {key: value.clone() for key, value in method.networks.state_dict().items()}
    for name in ('card.json', 'model.safetensors'):
        (tmp_path / 'out' / 'model' / name).unlink()
    (tmp_path / 'out' / 'model').rmdir()
    (tmp_path / 'out' / 'checkpoint.pt').unlink()
    assert main(command) == 0
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    again = bundle.load(tmp_path / 'out' / 'model').networks.state_dict()
    assert all(bool((again[key] == value).all()) for key, value in weights.items())
    capsys.readouterr()


def test_simulated_people_are_scanned_again_and_a_stopped_training_sees_the_same(block_map, tmp_path, capsys):
    def trained(name, renew, *budgets):
        for budget in budgets:
            assert main([
                'deepharmony', 'simulated', str(tmp_path / name), '--people', '3', '--scanners', '2', '--labels', str(block_map),
                '--target', 'simulated1', '--interval', '2', *TINY, '--renew', renew, '--budget', budget,
            ]) == 0  # fmt: skip
            if budget != budgets[-1]:
                shutil.rmtree(tmp_path / name / 'model')
        return bundle.load(tmp_path / name / 'model').networks.state_dict()

    whole, stopped, never = (
        trained('whole', '2', '6'),
        trained('stopped', '2', '4', '6'),
        trained('never', '0', '6'),
    )
    assert all(bool((stopped[key] == value).all()) for key, value in whole.items())
    assert not all(bool((never[key] == value).all()) for key, value in whole.items())
    capsys.readouterr()


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['simulated', '--target', 'scannerA'], 'There are: simulated1, simulated2, simulated3, simulated4'),
        (['simulated', '--target', 'simulated1', '--site', 'session'], '--site does not concern these scans'),
        (['simulated', '--target', 'simulated1', '--set', 'voxel_mm=1.0'], 'have voxels of 2 mm'),
        (['simulated', '--target', 'simulated1', '--labels', 'nowhere'], 'no label map'),
        (['simulated', '--target', 'simulated1', '--scanners', '1'], 'same people at several sites'),
        (['D', '--target', 'scannerA', '--people', '3'], '--people does not concern these scans'),
        (['D', '--target', 'scannerA', '--renew', '0'], '--renew does not concern these scans'),
        (['./simulated', '--target', 'simulated1'], 'does not exist'),
    ],
)
def test_what_cannot_be_simulated_is_said(arguments, said, derivatives, tmp_path, capsys):
    first, *rest = [text.replace('D', str(derivatives)) if text == 'D' else text for text in arguments]
    assert main(['deepharmony', first, str(tmp_path / 'out'), *TINY, *rest]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / 'out' / 'model').exists()


@pytest.mark.parametrize('text', ['0', '-3', '3.5', 'm', '0m', '3d', ''])
def test_a_budget_that_is_none(text):
    with pytest.raises(SystemExit):
        build_parser().parse_args(['x', 'd', 'o', f'--budget={text}'])


def test_budgets():
    parse = build_parser().parse_args
    assert parse(['x', 'd', 'o', '--budget', '200']).budget.done(50, 0) == 0.25
    assert parse(['x', 'd', 'o', '--budget', '2h']).budget.done(10**9, 1800) == 0.25
    assert parse(['x', 'd', 'o', '--budget', '90m']).budget.done(0, 90 * 60) == 1


def test_patience_needs_a_number_to_wait_for(derivatives, tmp_path, capsys):
    command = ['cyclegan', str(derivatives), str(tmp_path / 'out'), '--target', 'scannerA', '--budget', '2']
    assert main([*command, '--patience', '3', *TINY]) == 2
    said = capsys.readouterr().err
    assert '--patience' in said
    assert 'cyclegan has no number' in said


def test_two_processes_train_one_model(derivatives, tmp_path):
    """Gradients are averaged: both processes end with the same weights, and the first one alone writes."""
    import subprocess
    import sys

    command = [
        sys.executable, '-m', 'bidsharm.cli.train', 'deepharmony', str(derivatives), str(tmp_path / 'out'), '--target', 'scannerA', '--budget', '4',
        '--interval', '2', '--devices', '2', *TINY,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(str(tmp_path / 'out' / 'model')) == 1
    assert bundle.load(tmp_path / 'out' / 'model').sites == ('scannerA', 'scannerB')
    rows = (tmp_path / 'out' / 'log.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['step', '2', '4']


@pytest.mark.parametrize('name', ['nonsense', 'combat'])
def test_a_name_that_cannot_be_trained_is_called_as_this_command_calls_it(name, tmp_path, capsys):
    assert main([name, str(tmp_path), str(tmp_path / 'out')]) == 2
    assert capsys.readouterr().err.startswith('bidsharm-train: NAME: ')
