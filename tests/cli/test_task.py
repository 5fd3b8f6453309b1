"""``bidsharm-task``: from derivatives to predictions, again from where it stopped, and in words where it cannot."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsharm.bids.validation import find_validator
from bidsharm.cli.task import main
from bidsharm.harmonizers import bundle
from bidsharm.imaging.templates import bundled_files

TINY = ['--preset', 'tiny', '--threads', '1', '--device', 'cpu', '--folds', '2', '--site', 'session']
QUICK = [*TINY, '--set', 'steps=4']
PEOPLE = 8


@pytest.fixture(scope='module')
def derivatives(tmp_path_factory):
    """Eight people at one of two sites, made of the template; the older, the darker the inner brain. Labels of a blob lie beside."""
    root = tmp_path_factory.mktemp('task') / 'in'
    template = nib.load(bundled_files()['T1w'])
    data = np.asarray(template.dataobj, np.float32)[::4, ::4, ::4]
    affine = template.affine @ np.diag([4, 4, 4, 1])
    ages = [20 + 8 * i for i in range(PEOPLE)]
    lines = ['participant_id\tage\tsex\tnote']
    for index, age in enumerate(ages):
        session = 'AB'[index // 2 % 2]
        stem = f'sub-{index:02d}_ses-{session}'
        folder = root / f'sub-{index:02d}' / f'ses-{session}' / 'anat'
        folder.mkdir(parents=True)
        image = data.copy()
        blob = (slice(18, 28), slice(20, 34), slice(16, 26))
        image[blob] *= 1.3 - age / 100
        if session == 'B':
            image = 255 * (image / 255) ** 1.5
        _save(image, affine, folder / f'{stem}_desc-preproc_T1w.nii.gz')
        _save((data > 0).astype(np.uint8), affine, folder / f'{stem}_desc-brain_mask.nii.gz')
        labels = np.zeros(data.shape, np.uint8)
        labels[blob] = 10
        _save(labels, affine, root.parent / 'labels' / f'sub-{index:02d}' / f'{stem}_dseg.nii.gz')
        lines.append(f'sub-{index:02d}\t{age if index != 5 else "n/a"}\t{"MF"[index % 2]}\tx{index}')
    (root / 'participants.tsv').write_text('\n'.join(lines) + '\n')
    (root.parent / 'labels' / 'dseg.tsv').write_text('index\tname\n10\tthalamus\n')
    (root / 'dataset_description.json').write_text(
        json.dumps({'Name': 'x', 'BIDSVersion': '1.10.0', 'License': 'CC0'})
    )
    return root


def _save(data, affine, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, affine).to_filename(path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.fixture
def out(aged, tmp_path):
    """Return a folder for the output in which the scans are prepared already, for aligning them takes longest."""
    shutil.copytree(aged / 'cache', tmp_path / 'out' / 'cache')
    return tmp_path / 'out'


@pytest.fixture(scope='module')
def aged(derivatives, tmp_path_factory):
    out = tmp_path_factory.mktemp('task') / 'out'
    before = contents(derivatives)
    assert main([str(derivatives), str(out), '--harmonizer', 'erm', '--task', 'age', *QUICK]) == 0
    assert contents(derivatives) == before
    return out


def test_every_scan_is_predicted_by_networks_that_have_not_seen_it(aged):
    found = rows(aged / 'predictions.tsv')
    assert len(found) == PEOPLE
    assert {row['fold'] for row in found} == {'1', '2'}
    assert [row['truth'] for row in found][:3] == ['20', '28', '36']
    assert found[5]['truth'] == 'n/a'
    assert all(np.isfinite(float(row['predicted'])) for row in found)
    dictionary = json.loads((aged / 'predictions.json').read_text())
    assert set(dictionary) == set(found[0])
    overall, *sites = rows(aged / 'scores.tsv')
    assert (overall['site'], overall['scans'], overall['known']) == ('n/a', '8', '7')
    assert [row['site'] for row in sites] == ['A', 'B']
    told = [float(row['site_told']) for row in sites]
    assert float(overall['site_told']) == pytest.approx(np.mean(told), abs=1e-4)
    assert 0 < float(overall['site_told_by_chance']) < 1
    known = [row for row in found if row['truth'] != 'n/a']
    error = np.mean([abs(float(row['truth']) - float(row['predicted'])) for row in known])
    assert float(overall['mae']) == pytest.approx(error, rel=1e-4)
    assert len(rows(aged / 'embeddings.tsv')) == PEOPLE


def test_the_folder_is_a_data_set(aged):
    validator = find_validator()
    if validator is None:
        pytest.skip('the BIDS validator is not installed')
    done = subprocess.run(
        [validator, str(aged), '--ignoreWarnings', '--format', 'json'], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert json.loads(done.stdout)['issues']['issues'] == []


def test_the_page_says_what_was_found(aged):
    page = (aged / 'task.html').read_text()
    assert 'Prediction of age' in page
    assert 'Mean absolute error' in page
    assert 'not seen its person' in page
    assert 'sub-03_ses-B_T1w' in page


def test_a_second_run_trains_nothing_and_a_model_predicts_others(aged, derivatives, out, monkeypatch):
    from bidsharm.harmonizers.erm import PlainTask

    before = (aged / 'predictions.tsv').read_bytes()
    monkeypatch.setattr(PlainTask, 'fit', None)
    assert main([str(derivatives), str(aged), '--harmonizer', 'erm', '--task', 'age', *QUICK]) == 0
    assert (aged / 'predictions.tsv').read_bytes() == before
    model = aged / 'models' / 'erm'
    assert bundle.load_any(model).card.name == 'erm'
    assert main([str(derivatives), str(out), '--model', str(model), '--site', 'session', '--device', 'cpu', '--participant-label', '01', '02', '03', '04']) == 0  # fmt: skip
    found = rows(out / 'predictions.tsv')
    assert [row['fold'] for row in found] == ['n/a'] * 4
    assert 'came from elsewhere' in (out / 'task.html').read_text()


def test_a_model_refuses_scans_of_another_contrast(aged, derivatives, out, monkeypatch, capsys):
    from bidsharm.harmonizers.task import TrainedTask

    restore = TrainedTask.restore

    def of_flair(self, arrays, settings):
        restore(self, arrays, {**settings, 'contrasts': ['FLAIR']})

    monkeypatch.setattr(TrainedTask, 'restore', of_flair)
    assert main([str(derivatives), str(out), '--model', str(aged / 'models' / 'erm'), '--device', 'cpu']) == 2
    assert 'was trained on FLAIR, and these scans are T1w' in capsys.readouterr().err


def test_other_answers_are_learnt_anew(aged, derivatives, tmp_path):
    copy = tmp_path / 'in'
    shutil.copytree(derivatives, copy)
    table = copy / 'participants.tsv'
    table.write_text(table.read_text().replace('\t28\t', '\t70\t'))
    before = set(
        (aged / 'folds').iterdir()
    )  # of two folds and of all; sub-01 was trained on in one of the folds
    out = tmp_path / 'out'
    shutil.copytree(aged, out)
    assert main([str(copy), str(out), '--harmonizer', 'erm', '--task', 'age', *QUICK]) == 0
    assert len({path.name for path in (out / 'folds').iterdir()} - {path.name for path in before}) == 2


def test_classes_and_labelled_sites(derivatives, out):
    assert main([str(derivatives), str(out), '--task', 'sex', '--labelled', 'A', *QUICK]) == 0
    found = rows(out / 'predictions.tsv')
    assert {row['predicted'] for row in found} <= {'F', 'M'}
    assert all(float(row['p_F']) + float(row['p_M']) == pytest.approx(1, abs=1e-4) for row in found)
    method = bundle.load_any(out / 'models' / 'unlearning')
    assert method.labelled_sites == ('A',)
    assert method.sites == ('A', 'B')
    page = (out / 'task.html').read_text()
    assert '<td>no</td>' in page


def test_labels_of_ones_own_are_segmented_on_the_grid_of_the_scan(derivatives, tmp_path):
    out = tmp_path / 'out'
    labels = derivatives.parent / 'labels'
    command = [str(derivatives), str(out), '--harmonizer', 'erm', '--labels', str(labels), *TINY, '--set', 'steps=80', 'edge=0', 'batch=1', 'voxel_mm=8.0', '--participant-label', '00', '01', '02', '03']  # fmt: skip
    assert main(command) == 0
    paths = sorted(out.glob('sub-*/ses-*/anat/*_desc-erm_dseg.nii.gz'))
    assert len(paths) == 4
    image = nib.load(paths[0])
    scan = nib.load(next(derivatives.glob('sub-00/ses-A/anat/*_desc-preproc_T1w.nii.gz')))
    np.testing.assert_allclose(image.affine, scan.affine)
    assert image.shape == scan.shape
    assert set(np.unique(image.dataobj)) <= {0, 10}
    assert (out / 'dseg.tsv').read_text() == 'index\tname\n10\tthalamus\n'
    sidecar = json.loads(Path(str(paths[0]).replace('.nii.gz', '.json')).read_text())
    assert sidecar['Task']['Method'] == 'erm'
    found = rows(out / 'predictions.tsv')
    assert all(0 <= float(row['dice_thalamus']) <= 1 for row in found)
    assert float(rows(out / 'scores.tsv')[0]['dice_thalamus']) > 0.5
    truth = np.asarray(nib.load(labels / 'sub-00' / 'sub-00_ses-A_dseg.nii.gz').dataobj) == 10
    mine = np.asarray(image.dataobj) == 10
    assert 2 * (truth & mine).sum() / (truth.sum() + mine.sum()) > 0.5


def test_a_broken_scan_is_left_out_and_told(derivatives, out, tmp_path, capsys):
    copy = tmp_path / 'in'
    shutil.copytree(derivatives, copy)
    (copy / 'sub-03' / 'ses-B' / 'anat' / 'sub-03_ses-B_desc-preproc_T1w.nii.gz').write_bytes(b'no image')
    assert main([str(copy), str(out), '--harmonizer', 'erm', '--task', 'age', *QUICK]) == 1
    said = capsys.readouterr()
    assert 'left out' in said.err
    assert 'sub-03_ses-B' in said.err
    assert len(rows(out / 'predictions.tsv')) == PEOPLE - 1


@pytest.mark.parametrize(
    ('options', 'code', 'words'),
    [
        ([], 2, 'what to predict'),
        (['--task', 'weight'], 2, 'It has: age, note, sex'),
        (['--task', 'note', '--kind', 'regression'], 2, 'is no number'),
        (['--task', 'age', '--labels', 'x'], 2, '--labels is for segmentations'),
        (['--task', 'age', '--harmonizer', 'combat'], 2, 'predicts nothing'),
        (['--task', 'age', '--harmonizer', 'learn-to-ignore'], 2, 'cannot be trained for a regression'),
        (['--task', 'sex', '--labelled', 'C'], 2, 'There are: A, B'),
        (['--task', 'age', '--folds', '1'], 2, 'leaves nobody to judge'),
        (['--labels', 'nowhere'], 2, 'does not exist'),
        (['--task', 'sex', '--set', 'nonsense=1'], 2, 'no setting "nonsense"'),
        (['--task', 'age', '--set', 'widths=(0,)'], 2, 'no networks for erm'),
        (['--task', 'age', '--person', 'persn'], 2, 'no column "persn"'),
    ],
)
def test_wrong_use_is_explained(options, code, words, derivatives, tmp_path, capsys):
    harmonizer = [] if '--harmonizer' in options else ['--harmonizer', 'erm']
    command = [str(derivatives), str(tmp_path / 'out'), *TINY, *harmonizer, *options]
    assert main(command) == code
    assert words in capsys.readouterr().err


def test_out_must_not_be_the_input_or_another_data_set(derivatives, tmp_path, capsys):
    assert main([str(derivatives), str(derivatives / 'x'), '--task', 'age', '--harmonizer', 'erm', *QUICK]) == 2  # fmt: skip
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'dataset_description.json').write_text('{"Name": "mine", "BIDSVersion": "1.10.0"}')
    assert main([str(derivatives), str(other), '--task', 'age', '--harmonizer', 'erm', *QUICK]) == 2
    assert 'another data set' in capsys.readouterr().err
