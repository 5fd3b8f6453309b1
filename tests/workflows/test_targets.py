"""Learning a target once: under which name, by whom, and what happens when it cannot be learnt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bidsharm.workflows import targets
from bidsharm.workflows.participant import plan_run
from bidsharm.workflows.targets import ensure_target, known_target, target_folder
from filelock import FileLock

from bidsharm.errors import ConfigurationError, ScanError
from bidsharm.harmonizers import bundle, registry
from bidsharm.settings import Settings

SITES = {'01': 'north', '02': 'south', '03': 'north', '04': 'south'}


@pytest.fixture
def bids(make_data_set, tmp_path):
    return make_data_set(tmp_path / 'bids', SITES, ('T1w', 'T2w'))


@pytest.fixture
def settle(bids, make_settings) -> Callable[..., Settings]:
    """Return a function that gives settings for a method that learns."""
    return lambda **values: make_settings(**{'harmonizer': 'nyul', **values})


def change_voxel(path: Path) -> None:
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[0, 0, 0] += 1
    nib.Nifti1Image(data, image.affine).to_filename(path)


def folder_of(settings: Settings) -> Path:
    return target_folder(plan_run(settings), settings)


# The name.


@pytest.mark.parametrize(
    'change',
    [
        {'target_scans': 2},
        {'target': 'north'},
        {'target': 'south'},
        {'harmonizer': 'histogram'},
        {'random_seed': 1},
        {'contrasts': ['T1w']},
        {'brain_extraction': 'ants'},
        {'skull_strip': 'force'},
        {'registration': 'syn'},
        {'sloppy': True},
    ],
    ids=str,
)
def test_name_changes_with_what_the_target_is_made_from(change, settle):
    assert folder_of(settle(**change)) != folder_of(settle())


@pytest.mark.parametrize(
    'change',
    [
        {'participant_label': ['03', '01']},
        {'participant_label': ['01', '03']},
        {'contrasts': ['PDw', 'FLAIR', 'T2w', 'T1w']},
        {'nprocs': 7},
        {'omp_nthreads': 3},
        {'output_spaces': ['T1w', 'native']},
        {'force': True},
        {'verbose': 2},
        {'qc_thresholds': {'dice_gm': {'warn': 0.85, 'fail': 0.8}}},
    ],
    ids=str,
)
def test_name_does_not_change_with_how_the_work_is_split(change, settle):
    assert folder_of(settle(**change)) == folder_of(settle())


def test_name_changes_with_the_voxels(bids, settle):
    before = folder_of(settle())
    change_voxel(bids / 'sub-03/anat/sub-03_T1w.nii.gz')
    assert folder_of(settle()) != before


def test_name_changes_with_the_t1w_that_a_scan_follows(bids, settle):
    """Mask and tissue of a T2w come from its T1w, also where only T2w are learnt from."""
    before = folder_of(settle(contrasts=['T2w']))
    change_voxel(bids / 'sub-03/anat/sub-03_T1w.nii.gz')
    assert folder_of(settle(contrasts=['T2w'])) != before


def test_name_changes_with_masks_of_another_pipeline(settle, tmp_path):
    before = folder_of(settle())
    file = tmp_path / 'smriprep/sub-01/anat/sub-01_desc-brain_mask.nii.gz'
    file.parent.mkdir(parents=True)
    nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)).to_filename(file)
    assert folder_of(settle(derivatives={'smriprep': tmp_path / 'smriprep'})) != before


def test_name_fits_into_a_file_system(bids, make_settings, tmp_path):
    file = tmp_path / ('a "b" ' + 'long' * 30 + '; $(c)_T1w.nii.gz')
    nib.Nifti1Image(np.ones((32, 32, 32), np.int16), 5 * np.eye(4)).to_filename(file)
    settings = make_settings(target=str(file))
    folder = folder_of(settings)
    assert folder.parent == settings.output_dir / 'models'
    assert set(folder.name) <= set('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.')
    assert len(folder.name) < 120
    site = folder_of(make_settings(target='north')).name
    assert site.startswith('tscore_north_')


# Learning once.


@pytest.fixture
def learns(monkeypatch) -> list[Path]:
    """Learning is replaced by writing an empty bundle; the list tells how often."""
    done: list[Path] = []

    def learn(plan, settings, folder, *_):
        done.append(folder)
        threading.Event().wait(0.2)  # long enough for the others to come to the door
        bundle.save(registry.get(plan.method.name)(), folder)

    monkeypatch.setattr(targets, '_learn', learn)
    return done


def test_nothing_to_learn(learns, bids, make_settings, tmp_path):
    settings = make_settings()
    plan = plan_run(settings)
    assert ensure_target(plan, settings, tmp_path, tmp_path) is plan
    assert learns == []
    assert not (settings.output_dir / 'models').exists()


def test_learnt_once_and_read_afterwards(learns, settle, tmp_path):
    settings = settle()
    plan = plan_run(settings)
    first = ensure_target(plan, settings, tmp_path, tmp_path)
    folder = target_folder(plan, settings)
    assert first.method.model_dir == str(folder)
    assert first.method.model_digest == bundle.digest(folder)
    assert replace(first, method=plan.method) == plan
    assert ensure_target(plan, settings, tmp_path, tmp_path) == first
    assert learns == [folder]


def test_jobs_side_by_side_learn_once(learns, settle, tmp_path):
    settings = settle()
    plan = plan_run(settings)
    found = []
    jobs = [
        threading.Thread(target=lambda: found.append(ensure_target(plan, settings, tmp_path, tmp_path)))
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert len(learns) == 1
    assert len({item.method.model_digest for item in found}) == 1
    assert len(found) == 4


def test_lock_that_nobody_holds_does_not_stop_anyone(learns, settle, tmp_path):
    settings = settle()
    folder = target_folder(plan_run(settings), settings)
    folder.parent.mkdir(parents=True)
    (folder.parent / f'.{folder.name}.lock').touch()
    ensure_target(plan_run(settings), settings, tmp_path, tmp_path)
    assert learns == [folder]


def test_waiting_has_an_end(learns, settle, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, 'WAIT_S', 0.05)
    settings = settle()
    plan = plan_run(settings)
    folder = target_folder(plan, settings)
    folder.parent.mkdir(parents=True)
    with (
        FileLock(folder.parent / f'.{folder.name}.lock'),
        pytest.raises(ScanError, match='too long') as caught,
    ):
        ensure_target(plan, settings, tmp_path, tmp_path)
    assert '.lock' in caught.value.fix
    assert learns == []


def test_scan_that_cannot_be_read(learns, bids, settle, tmp_path):
    settings = settle()
    plan = plan_run(settings)
    (bids / 'sub-03/anat/sub-03_T1w.nii.gz').unlink()
    with pytest.raises(ScanError, match='cannot be read') as caught:
        ensure_target(plan, settings, tmp_path, tmp_path)
    assert caught.value.where == '--target'
    assert learns == []


def test_damaged_bundle_is_not_used(learns, settle, tmp_path):
    settings = settle()
    plan = plan_run(settings)
    ensure_target(plan, settings, tmp_path, tmp_path)
    (target_folder(plan, settings) / 'model.safetensors').write_bytes(b'cut')
    with pytest.raises(ConfigurationError, match='damaged'):
        ensure_target(plan, settings, tmp_path, tmp_path)


# Scans that cannot be learnt from.


class Runs:
    """Stands for the scheduler: nodes of some scans fail, and the fit needs the others."""

    def __init__(self, log_dir: Path, *broken: str, fit_fails: bool = False) -> None:
        self.log_dir, self.broken, self.fit_fails = log_dir, broken, fit_fails
        self.tried: list[list[str]] = []

    def __call__(self, workflow, settings, *, device='cpu', on_node=None):
        fit = workflow.get_node('fit')
        self.tried.append(list(fit.inputs.names))
        nodes = [name for name in workflow.list_node_names() if name.endswith('.conform')]
        failed = [name for name in nodes if any(f'prep_{scan}_wf' in name for scan in self.broken)]
        for index, name in enumerate(failed):
            self._crash(f'{len(self.tried)}-{index}', f'target_wf.{name}', 'The file is cut off.')
        if not failed and self.fit_fails:
            self._crash(f'{len(self.tried)}-fit', 'target_wf.fit', 'Nothing in common.')
        elif not failed:
            bundle.save(registry.get(fit.inputs.harmonizer)(), Path(fit.inputs.out_dir))

    def _crash(self, label: str, node: str, what: str) -> None:
        text = f'Node: {node}\n\nTraceback:\n\tbidsharm.errors.ScanError: {what}\n'
        (self.log_dir / f'crash-{label}.txt').write_text(text)


@pytest.fixture
def log_dir(tmp_path):
    folder = tmp_path / 'log'
    folder.mkdir()
    return folder


def test_broken_scan_is_left_out(settle, log_dir, tmp_path, monkeypatch):
    runs = Runs(log_dir, 'sub_02_T1w')
    monkeypatch.setattr(targets, 'run_graph', runs)
    settings = settle(contrasts=['T1w'])
    plan = ensure_target(plan_run(settings), settings, tmp_path, log_dir)
    assert Path(plan.method.model_dir).is_dir()
    assert [sorted(names) for names in runs.tried] == [
        [f'sub-0{index}_T1w' for index in (1, 2, 3, 4)],
        [f'sub-0{index}_T1w' for index in (1, 3, 4)],
    ]


def test_scans_that_follow_a_broken_one_are_left_out_with_it(settle, log_dir, tmp_path, monkeypatch):
    runs = Runs(log_dir, 'sub_02_T1w')
    monkeypatch.setattr(targets, 'run_graph', runs)
    settings = settle(contrasts=['T2w'])
    ensure_target(plan_run(settings), settings, tmp_path, log_dir)
    assert [sorted(names) for names in runs.tried] == [
        [f'sub-0{index}_T2w' for index in (1, 2, 3, 4)],
        [f'sub-0{index}_T2w' for index in (1, 3, 4)],
    ]


def test_nothing_is_left_to_learn_from(settle, log_dir, tmp_path, monkeypatch):
    runs = Runs(log_dir, *(f'sub_{label}_T1w' for label in SITES))
    monkeypatch.setattr(targets, 'run_graph', runs)
    settings = settle()
    plan = plan_run(settings)
    with pytest.raises(ScanError, match=r'could not be learnt: .*cut off') as caught:
        ensure_target(plan, settings, tmp_path, log_dir)
    assert caught.value.where == '--target'
    assert len(runs.tried) == 1
    assert not target_folder(plan, settings).exists()


def test_failure_of_the_fit_itself_is_not_tried_again(settle, log_dir, tmp_path, monkeypatch):
    (log_dir / 'crash-before.txt').write_text('Node: x\nbidsharm.errors.ScanError: Of another run.\n')
    runs = Runs(log_dir, fit_fails=True)
    monkeypatch.setattr(targets, 'run_graph', runs)
    settings = settle()
    with pytest.raises(ScanError, match='Nothing in common'):
        ensure_target(plan_run(settings), settings, tmp_path, log_dir)
    assert len(runs.tried) == 1


# What is known before learning.


def test_dry_run_knows_a_target_that_was_learnt(settle):
    settings = settle()
    plan = plan_run(settings)
    assert known_target(plan, settings) == plan
    folder = target_folder(plan, settings)
    bundle.save(registry.get('nyul')(), folder)
    known = known_target(plan, settings)
    assert known.method.model_dir == str(folder)
    assert known.method.model_digest == bundle.digest(folder)
