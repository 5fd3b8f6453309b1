"""Whole runs of the app on simulated heads with known truth."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bidsharm.workflows.events import read_events

from bidsharm.bids.validation import find_validator
from bidsharm.settings import load_values
from bidsharm.simulation.dataset import simulate

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('participant')]


def run(*arguments: object, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run the app as a user would."""
    command = [sys.executable, '-m', 'bidsharm', *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope='module')
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three travelling heads in two scanners; the third subject's scans are cut off."""
    out = tmp_path_factory.mktemp('heads') / 'My heads [1, 2]' / 'bids'
    simulate(out, subjects=3, resolution=2.0, seed=3)
    for file in (out / 'sub-03').rglob('*_T1w.nii.gz'):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return out


@pytest.fixture(scope='module')
def first_run(
    heads: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str], dict]:
    """One run with a method that learns from the cohort."""
    home = tmp_path_factory.mktemp('out') / "a student's folder"
    out = home / 'derivatives'
    before = checksums(heads)
    done = run(
        heads, out, 'participant', '-w', home / 'work, (big)', '--harmonizer', 'histogram', '--site', 'session', '--sloppy',
        '--skip-bids-validation', '--target', 'northA', '--output-spaces', 'native', 'MNI152NLin2009aSym:res-2', '--write-graph',
        check=None,
    )  # fmt: skip
    return out, done, before


def test_one_broken_subject_costs_only_itself(first_run, heads):
    out, done, before = first_run
    assert done.returncode == 1, done.stdout + done.stderr
    assert checksums(heads) == before
    for subject in ('01', '02'):
        for session in ('northA', 'southB'):
            assert (
                out / f'sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_desc-T1w_qc.json'
            ).exists()
    assert not list((out / 'sub-03').rglob('*desc-harmonized*'))
    broken = [line for line in done.stdout.splitlines() if line.startswith('FAILED')]
    assert len(broken) == 2
    assert all('sub-03' in line and 'cut off' in line for line in broken)
    assert '--participant-label 03' in done.stdout
    assert '--target northA' in done.stdout.split('Run just those again:')[1], 'the rest of the command stays'
    assert 'cut off' in (out / 'sub-03.html').read_text()


def test_the_logs_tell_the_same_story(first_run):
    """What happened, for programs; what was said, for people; what became of it; what it took."""
    out, done, _ = first_run
    log_dir = min((out / 'logs').glob('*_*/'))  # the first run
    events = read_events(log_dir / 'events.jsonl')
    assert len(events) == len((log_dir / 'events.jsonl').read_text().splitlines())
    names = [event['event'] for event in events]
    assert (names[0], names[1], names[-1]) == ('run_started', 'plan', 'run_finished')
    by_name = {name: [event for event in events if event['event'] == name] for name in names}
    scans = [f'sub-0{subject}_ses-{session}_T1w' for subject in (1, 2, 3) for session in ('northA', 'southB')]
    assert by_name['plan'][0]['scans'] == scans
    assert by_name['target_learning'][0]['target'] == 'northA'
    assert [event['scan'] for event in by_name['scan_done']] == scans[:4]
    assert all(event['outputs'] for event in by_name['scan_done'])
    assert [event['scan'] for event in by_name['scan_failed']] == scans[4:]
    for event in by_name['scan_failed']:
        assert 'cut off' in event['what']
        assert 'cut off' in (log_dir / event['log']).read_text()
    assert len(by_name['report_written']) == 3
    assert events[-1]['exit_code'] == 1
    summary = json.loads((log_dir / 'summary.json').read_text())
    assert summary['counts'] == events[-1]['counts']
    assert (summary['counts']['done'], summary['counts']['failed']) == (4, 2)
    assert shlex.join(summary['rerun']) in done.stdout
    said = [line.split('  ', 1)[1] for line in (log_dir / 'run.log').read_text().splitlines()]
    assert [line for line in done.stdout.splitlines() if line.strip() and line not in said] == []


def test_what_the_steps_took_was_planned(first_run):
    """Also for the batch in which steps failed."""
    out, done, _ = first_run
    log_dir = min((out / 'logs').glob('*_*/'))  # the first run
    with (log_dir / 'resources.tsv').open() as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    steps = {row['step'] for row in rows if row['scan'] == 'sub-01_ses-southB_T1w'}
    assert {
        'prep.conform',
        'prep.bias_correction.n4',
        'prep.register.register',
        'harmonize.harmonize',
        'qc.assess',
    } <= steps
    assert {row['state'] for row in rows if row['scan'] == 'sub-03_ses-northA_T1w'} == {'failed'}
    for row in rows:
        assert (
            0 < float(row['peak_gb']) < max(1.2 * float(row['planned_gb']), float(row['planned_gb']) + 0.1)
        ), row
    assert 'memory    ' not in done.stdout


def test_masks_and_segmentation_agree_with_the_truth(first_run, heads):
    out, *_ = first_run
    truth = heads / 'derivatives/truth/sub-01/ses-northA/anat'
    folder = out / 'sub-01/ses-northA/anat'
    mask = np.asarray(nib.load(folder / 'sub-01_ses-northA_desc-brain_mask.nii.gz').dataobj) > 0
    true_mask = np.asarray(nib.load(next(truth.glob('*desc-brain_mask.nii.gz'))).dataobj) > 0
    assert dice(mask, true_mask) > 0.93
    labels = np.asarray(nib.load(folder / 'sub-01_ses-northA_dseg.nii.gz').dataobj)
    true_labels = np.asarray(nib.load(next(truth.glob('*_dseg.nii.gz'))).dataobj)
    assert dice(labels == 2, true_labels == 2) > 0.85
    assert dice(labels == 1, true_labels == 1) > 0.75


def test_harmonized_image_is_on_the_grid_of_the_scan(first_run, heads):
    out, *_ = first_run
    for session in ('northA', 'southB'):
        raw = nib.load(next((heads / f'sub-01/ses-{session}/anat').glob('*_T1w.nii.gz')))
        folder = out / f'sub-01/ses-{session}/anat'
        image = nib.load(folder / f'sub-01_ses-{session}_desc-harmonized_T1w.nii.gz')
        mask = np.asarray(nib.load(folder / f'sub-01_ses-{session}_desc-brain_mask.nii.gz').dataobj) > 0
        data = image.get_fdata()
        assert image.shape == raw.shape
        np.testing.assert_allclose(image.affine, raw.affine, atol=1e-4)
        assert np.isfinite(data).all()
        assert not data[~mask].any()
        assert data[mask].std() > 0


def test_the_other_scanner_comes_to_look_like_the_target(first_run):
    """Histogram matching to a site must bring the other site's intensities to those of the target."""
    out, *_ = first_run

    def quantiles(subject: str, session: str, when: str) -> np.ndarray:
        file = out / f'sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_desc-T1w_qc.json'
        values = np.asarray(json.loads(file.read_text())['quantiles'][when])
        return values / values[90] if when == 'before' else values

    for subject in ('01', '02'):
        apart = np.abs(quantiles(subject, 'northA', 'before') - quantiles(subject, 'southB', 'before'))
        after = [quantiles(subject, session, 'after') for session in ('northA', 'southB')]
        together = np.abs(after[0] - after[1]) / after[0][90]
        assert together[5:96].mean() < 0.5 * apart[5:96].mean()


def test_sidecar_names_method_target_and_model(first_run):
    out, *_ = first_run
    sidecar = json.loads(
        (out / 'sub-01/ses-southB/anat/sub-01_ses-southB_desc-harmonized_T1w.json').read_text()
    )
    assert sidecar['SkullStripped'] is True
    assert sidecar['Sources'] == ['bids::sub-01/ses-southB/anat/sub-01_ses-southB_desc-preproc_T1w.nii.gz']
    used = sidecar['Harmonization']
    assert (used['Method'], used['Target'], used['Device'], used['Seed']) == ('histogram', 'northA', 'cpu', 0)
    models = [path for path in (out / 'models').iterdir() if path.is_dir()]
    assert len(models) == 1
    card = json.loads((models[0] / 'card.json').read_text())
    assert used['ModelDigest']
    assert 'histogram' in json.dumps(card)


def test_template_space_outputs(first_run):
    out, *_ = first_run
    folder = out / 'sub-02/ses-northA/anat'
    stem = 'sub-02_ses-northA_space-MNI152NLin2009aSym_res-2'
    image = nib.load(folder / f'{stem}_desc-harmonized_T1w.nii.gz')
    mask = np.asarray(nib.load(folder / f'{stem}_desc-brain_mask.nii.gz').dataobj) > 0
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), 2)
    native = nib.load(folder / 'sub-02_ses-northA_desc-harmonized_T1w.nii.gz').get_fdata()
    data = image.get_fdata()
    assert data.max() <= native.max() + 1e-4
    assert not data[~mask].any()
    # The template's brain and the warped mask must lie on each other.
    from bidsharm.imaging.templates import tissue_priors

    brain, _ = tissue_priors(step=2)
    assert dice(mask, np.asarray(brain.dataobj) > 0) > 0.9
    assert json.loads((folder / f'{stem}_desc-harmonized_T1w.json').read_text())['Resolution']


def test_bids_validator_finds_no_error(first_run, tmp_path):
    program = find_validator()
    if program is None:
        pytest.skip('bids-validator-deno is not installed')
    out, *_ = first_run
    done = subprocess.run(
        [program, out, '--json', '--ignoreWarnings'], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)['issues']['issues']
    assert [
        (issue['code'], issue.get('location')) for issue in issues if issue.get('severity') == 'error'
    ] == []


def test_a_second_run_does_only_what_is_missing(first_run, heads):
    out, *_ = first_run
    arguments = [
        heads, out, 'participant', '--participant-label', '01', '--harmonizer', 'histogram', '--site', 'session',
        '--sloppy', '--skip-bids-validation', '--target', 'northA',
        '--output-spaces', 'native', 'MNI152NLin2009aSym:res-2',
    ]  # fmt: skip
    image = out / 'sub-01/ses-southB/anat/sub-01_ses-southB_desc-harmonized_T1w.nii.gz'
    whole = image.read_bytes()
    other = out / 'sub-01/ses-northA/anat/sub-01_ses-northA_desc-harmonized_T1w.nii.gz'
    stamp = other.stat().st_mtime_ns
    done = run(*arguments)
    assert '2 were done before' in done.stdout
    image.unlink()
    done = run(*arguments, '--log-json')
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event['scan'] for event in events if event['event'] == 'scan_resumed'] == [
        'sub-01_ses-northA_T1w'
    ]
    assert [event['scan'] for event in events if event['event'] == 'scan_done'] == ['sub-01_ses-southB_T1w']
    assert (events[-1]['event'], events[-1]['counts']['resumed']) == ('run_finished', 1)
    assert other.stat().st_mtime_ns == stamp
    again = nib.load(image).get_fdata()
    image_before = image.with_name('before.nii.gz')
    image_before.write_bytes(whole)
    try:
        np.testing.assert_allclose(again, nib.load(image_before).get_fdata(), rtol=1e-3, atol=1e-3)
    finally:
        image_before.unlink()


def test_group_level(first_run, heads):
    out, *_ = first_run
    done = run(heads, out, 'group')
    assert 'group.html' in done.stdout
    with (out / 'group_T1w.tsv').open() as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    assert [(row['participant_id'], row['session_id'], row['site']) for row in rows] == [
        ('sub-01', 'ses-northA', 'northA'),
        ('sub-01', 'ses-southB', 'southB'),
        ('sub-02', 'ses-northA', 'northA'),
        ('sub-02', 'ses-southB', 'southB'),
    ]
    dictionary = json.loads((out / 'group_T1w.json').read_text())
    assert set(rows[0]) == set(dictionary)
    volumes = [float(row['before_volume_gm_ml']) for row in rows]
    assert min(volumes) > 300
    assert max(volumes) < 1200


def test_the_settings_of_a_run_repeat_it(first_run, heads):
    out, *_ = first_run
    log_dir = min((out / 'logs').glob('*_*/'))  # the first run
    values = load_values(log_dir / 'settings.toml')
    told = {name: values[name] for name in ('harmonizer', 'target', 'site', 'sloppy', 'write_graph')}
    assert told == {
        'harmonizer': 'histogram',
        'target': 'northA',
        'site': 'session',
        'sloppy': True,
        'write_graph': True,
    }
    graphs = list(log_dir.rglob('*.dot'))
    assert any('harmonize' in graph.read_text() for graph in graphs)
    before = {file: file.stat().st_mtime_ns for file in out.rglob('*desc-harmonized_T1w.nii.gz')}
    done = run(heads, out, 'participant', '--config-file', log_dir / 'settings.toml', check=1)
    assert {file: file.stat().st_mtime_ns for file in out.rglob('*desc-harmonized_T1w.nii.gz')} == before
    failed = [line for line in done.stdout.splitlines() if line.startswith('FAILED')]
    assert len(failed) == 2
    assert all('sub-03' in line for line in failed)


def test_group_without_participants(heads, tmp_path):
    done = run(heads, tmp_path / 'empty', 'group', check=3)
    assert 'participant level first' in done.stderr


def test_jobs_side_by_side_agree(heads, tmp_path):
    """Two processes, one subject each, one output folder: one target, valid files, nothing lost."""
    good = tmp_path / 'bids'
    shutil.copytree(heads, good, ignore=shutil.ignore_patterns('sub-03', 'derivatives'))
    out = tmp_path / 'out'
    command = [
        sys.executable, '-m', 'bidsharm', str(good), str(out), 'participant', '--harmonizer', 'nyul', '--site', 'session',
        '--sloppy', '--skip-bids-validation', '--nprocs', '1',
    ]  # fmt: skip
    jobs = [
        subprocess.Popen(
            [*command, '--participant-label', subject],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for subject in ('01', '02')
    ]
    said = [job.communicate(timeout=900)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    digests = {
        json.loads(file.read_text())['Harmonization']['ModelDigest']
        for file in out.rglob('*desc-harmonized_T1w.json')
    }
    assert len(digests) == 1
    assert len(list(out.rglob('*_qc.json'))) == 4
    assert json.loads((out / 'dataset_description.json').read_text())['GeneratedBy'][0]['Name'] == 'bidsharm'
    assert not list(out.rglob('.tmp-*'))


def test_other_contrasts_follow_the_t1w(tmp_path):
    """T2w and FLAIR take mask and tissue from the T1w; a session without T1w uses that of another session."""
    bids, out = tmp_path / 'bids', tmp_path / 'out'
    simulate(bids, subjects=1, resolution=2.0, seed=5, contrasts=('T1w', 'T2w', 'FLAIR'))
    for file in (bids / 'sub-01/ses-southB/anat').glob('*_T1w.*'):
        file.unlink()
    (bids / 'sub-01/ses-southB/anat/sub-01_ses-southB_FLAIR.json').write_text('{"broken')
    done = run(
        bids, out, 'participant', '--site', 'session', '--sloppy', '--skip-bids-validation',
        '--output-spaces', 'native', 'T1w',
    )  # fmt: skip
    assert '5 scans harmonized' in done.stdout
    broken = json.loads((out / 'sub-01/ses-southB/anat/sub-01_ses-southB_desc-FLAIR_qc.json').read_text())
    assert any('cannot be read' in warning for warning in broken['warnings'])
    truth = bids / 'derivatives/truth/sub-01/ses-southB/anat'
    true_mask = np.asarray(nib.load(next(truth.glob('*desc-brain_mask.nii.gz'))).dataobj) > 0
    for contrast in ('T2w', 'FLAIR'):
        folder = out / 'sub-01/ses-southB/anat'
        mask = nib.load(folder / f'sub-01_ses-southB_desc-{contrast}Brain_mask.nii.gz')
        assert dice(np.asarray(mask.dataobj) > 0, true_mask) > 0.9, contrast
        record = json.loads((folder / f'sub-01_ses-southB_desc-{contrast}_qc.json').read_text())
        assert record['notes']['follows'] == 'sub-01_ses-northA_T1w'
        moved = nib.load(folder / f'sub-01_ses-southB_space-T1w_desc-harmonized_{contrast}.nii.gz')
        anchor = nib.load(bids / 'sub-01/ses-northA/anat/sub-01_ses-northA_T1w.nii.gz')
        assert moved.shape == anchor.shape
        np.testing.assert_allclose(moved.affine, anchor.affine, atol=1e-4)


def test_reuse_of_other_derivatives(heads, tmp_path):
    """A mask and a preprocessed T1w of another pipeline are taken as they are."""
    other, out = tmp_path / 'smriprep', tmp_path / 'out'
    folder = other / 'sub-01/ses-northA/anat'
    folder.mkdir(parents=True)
    truth = heads / 'derivatives/truth/sub-01/ses-northA/anat'
    raw = heads / 'sub-01/ses-northA/anat/sub-01_ses-northA_T1w.nii.gz'
    mask = next(truth.glob('*desc-brain_mask.nii.gz'))
    shutil.copy(raw, folder / 'sub-01_ses-northA_desc-preproc_T1w.nii.gz')
    shutil.copy(mask, folder / 'sub-01_ses-northA_desc-brain_mask.nii.gz')
    run(
        heads, out, 'participant', '--participant-label', '01', '--session-label', 'northA', '--sloppy',
        '--skip-bids-validation', '--derivatives', f'smriprep={other}', '--harmonizer', 'zscore',
    )  # fmt: skip
    folder = out / 'sub-01/ses-northA/anat'
    record = json.loads((folder / 'sub-01_ses-northA_desc-T1w_qc.json').read_text())
    assert record['notes']['bias_correction'] == 'taken from smriprep'
    assert record['notes']['brain_mask'] == 'reused from smriprep'
    ours = np.asarray(nib.load(folder / 'sub-01_ses-northA_desc-brain_mask.nii.gz').dataobj)
    np.testing.assert_array_equal(ours > 0, np.asarray(nib.load(mask).dataobj) > 0)
    values = nib.load(folder / 'sub-01_ses-northA_desc-harmonized_T1w.nii.gz').get_fdata()[ours > 0]
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 1) < 1e-3


def test_reports_and_boilerplate_only(first_run, heads):
    """Pages are made anew from what is on disk: they tell how it was made, whatever the command line says now."""
    out, *_ = first_run
    page = out / 'sub-01.html'
    page.unlink()
    cited = (out / 'logs/CITATION.md').read_text()
    common = [heads, out, 'participant', '--site', 'session', '--sloppy', '--skip-bids-validation']
    run(
        *common,
        '--participant-label',
        '01',
        '--reports-only',
        '--harmonizer',
        'zscore',
        '--registration',
        'syn',
    )
    said = page.read_text()
    assert 'sub-01_ses-northA_T1w' in said
    assert 'registry name &#34;histogram&#34;' in said
    assert 'affine, then SyN' not in said
    assert 'registry name &#34;zscore' not in said
    assert (out / 'logs/CITATION.md').read_text() == cited
    done = run(*common, '--participant-label', '01', '--boilerplate-only')
    assert 'N4' in done.stdout
    assert 'doi:10.1109/TMI.2010.2046908' in done.stdout
    assert '10.1109/TMI.2010.2046908' in (out / 'logs/CITATION.bib').read_text()


def test_a_failure_stays_on_the_page_until_it_is_mended(first_run, heads):
    out, *_ = first_run
    common = [
        heads,
        out,
        'participant',
        '--site',
        'session',
        '--sloppy',
        '--skip-bids-validation',
        '--reports-only',
    ]
    done = run(*common, '--participant-label', '03', check=1)
    assert 'FAILED    sub-03_ses-northA_T1w' in done.stdout
    assert 'cut off' in (out / 'sub-03.html').read_text()
    failures = out / 'logs/failures'
    assert len(list(failures.glob('sub-03_*.json'))) == 2
    assert not list(failures.glob('sub-01_*.json'))
