"""A failure is known until the scan is done."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from bidsharm.workflows import failures, participant
from bidsharm.workflows.base import Options
from bidsharm.workflows.engine import Failure
from bidsharm.workflows.events import EventLog, read_events
from bidsharm.workflows.failures import FOLDER, forget, remember, remembered
from bidsharm.workflows.logs import Journal, Screen
from bidsharm.workflows.participant import Run, reports_only
from bidsharm.workflows.planning import Plan
from bidsharm.workflows.progress import Progress
from bidsharm.workflows.steps import StepRecorder
from bidsharm.workflows.summary import Outcome, show_outcome
from filelock import FileLock
from rich.console import Console

from bidsharm.bids.boilerplate import Boilerplate
from bidsharm.bids.names import OutputNames
from bidsharm.bids.query import Selection
from bidsharm.errors import ExitCode, NothingToDo, ScanError
from bidsharm.reports.subject import ErrorEntry

BOILERPLATE = Boilerplate('So it is done.', (), ('', ''))


@pytest.fixture
def run_of(make_raw, make_method, make_settings, tmp_path):
    """Return a function that gives a run over some scans."""

    def make(*names: str, **settings) -> Run:
        scans = tuple(make_raw(tmp_path / 'bids', name) for name in names)
        plan = Plan(Selection(scans), make_method(), Options(digest='d'), ())
        work_dir, log_dir = tmp_path / 'work', tmp_path / 'log'
        for folder in (work_dir, log_dir):
            folder.mkdir(exist_ok=True)
        return Run(
            plan,
            make_settings(**settings),
            work_dir,
            log_dir,
            Progress(
                Screen(Console(quiet=True)), total=len(names), recorder=StepRecorder(EventLog(), log_dir)
            ),
        )

    return make


def test_remembered_until_forgotten(make_raw, tmp_path):
    bids, out = tmp_path / 'bids', tmp_path / 'out'
    scan, other = make_raw(bids, 'sub-1_T1w'), make_raw(bids, 'sub-10_T1w')
    entry = ErrorEntry(scan.name, 'It broke.', 'here', 'Mend it.', 'Trace')
    remember(out, scan, entry)
    remember(out, other, replace(entry, scan=other.name))
    assert remembered(out, '1', bids_dir=bids) == [entry]
    assert remembered(out, '10', bids_dir=bids) == [replace(entry, scan=other.name)]
    forget(out, scan)
    forget(out, scan)
    assert remembered(out, '1', bids_dir=bids) == []
    assert remembered(out / 'gone', '1', bids_dir=bids) == []


def test_a_scan_that_is_gone_cannot_fail(make_raw, tmp_path):
    scan = make_raw(tmp_path / 'bids', 'sub-1_T1w')
    remember(tmp_path, scan, ErrorEntry(scan.name, 'It broke.'))
    scan.path.unlink()
    assert remembered(tmp_path, '1', bids_dir=tmp_path / 'bids') == []


def test_a_disk_too_full_to_write_a_failure_down_costs_no_other_scan(make_raw, tmp_path, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(failures, 'write_json', full)
    scan = make_raw(tmp_path / 'bids', 'sub-1_T1w')
    remember(tmp_path, scan, ErrorEntry(scan.name, 'It broke.', '', '', ''))
    assert 'No space left' in caplog.text


def test_a_link_that_leads_nowhere_is_still_a_failure(make_raw, tmp_path):
    """As DataLad leaves a scan whose content was not fetched: the very thing that failed."""
    scan = make_raw(tmp_path / 'bids', 'sub-1_T1w')
    entry = ErrorEntry(scan.name, 'The file is a link that leads nowhere.', '', '', '')
    remember(tmp_path, scan, entry)
    scan.path.unlink()
    scan.path.symlink_to('../../.git/annex/objects/none')
    assert remembered(tmp_path, '1', bids_dir=tmp_path / 'bids') == [entry]


@pytest.mark.parametrize(
    'content', ['', '[]', '{"scan": "other"}', '{"scan": "sub-1_T1w"}', '{"scan": "sub-1_T1w", "file": 3}']
)
def test_a_file_that_someone_edited_says_nothing(content, make_raw, tmp_path):
    scan = make_raw(tmp_path / 'bids', 'sub-1_T1w')
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / f'{scan.name}.json').write_text(content)
    assert remembered(tmp_path, '1', bids_dir=tmp_path / 'bids') == []


def test_reports_only_knows_what_failed_and_what_was_never_run(run_of, make_raw):
    run = run_of('sub-1_T1w', 'sub-1_T2w', 'sub-2_T1w')
    console = Console(record=True, width=200, quiet=False)
    with pytest.raises(NothingToDo):
        reports_only(run.plan, run.settings, BOILERPLATE, Journal(Screen(console)))
    scan = run.plan.selection.scans[0]
    remember(run.settings.output_dir, scan, ErrorEntry(scan.name, 'It broke.', fix='Mend it.'))
    assert reports_only(run.plan, run.settings, BOILERPLATE, Journal(Screen(console))) == ExitCode.SCAN_FAILED
    page = (run.settings.output_dir / 'sub-1.html').read_text()
    assert 'It broke.' in page
    assert 'sub-1_T2w' in page
    assert 'has not been run' in page
    assert not (run.settings.output_dir / 'sub-2.html').exists(), 'nothing is known of it'


def test_a_subject_that_another_run_holds_costs_that_subject_only(run_of, monkeypatch):
    run = run_of('sub-1_T1w', 'sub-2_T1w', work_dir='work')
    monkeypatch.setattr(FileLock, 'acquire', _held_for('sub-1', FileLock.acquire))
    done = []
    monkeypatch.setattr(participant, '_run_batch', lambda run, todo: done.extend(todo))
    run.settings.output_dir.mkdir(parents=True)
    outcome = participant._run_batches(run)
    assert done == ['2']
    first = next(entry for entry in outcome.failures if entry.scan == 'sub-1_T1w')
    assert 'Another bidsharm' in first.what
    assert not (run.settings.output_dir / FOLDER / 'sub-1_T1w.json').exists(), 'the other run will tell'
    assert not (run.settings.output_dir / 'sub-1.html').exists(), 'and has a page of its own'


def test_two_runs_with_one_working_folder_share_no_subject(run_of, monkeypatch, tmp_path):
    monkeypatch.setattr(participant, 'CLAIM_S', 0.1)
    one = run_of('sub-1_T1w', 'sub-2_T1w', work_dir='work')
    other = run_of('sub-1_T1w', 'sub-2_T1w', work_dir='work')
    other = replace(other, log_dir=tmp_path / 'another log')
    first, both = {'1': {'sub-1_T1w'}}, {'1': {'sub-1_T1w'}, '2': {'sub-2_T1w'}}
    with participant._claim(first, one) as (mine, busy):
        assert (mine, busy) == (first, [])
        with participant._claim(both, other) as (mine, busy):
            assert (mine, busy) == ({'2': {'sub-2_T1w'}}, ['1'])
    with participant._claim(both, other) as (mine, busy):
        assert (mine, busy) == (both, [])


def _held_for(subject: str, acquire):
    from filelock import Timeout

    def hold(lock, *arguments, **options):
        if f'.{subject}.' in str(lock.lock_file):
            raise Timeout(lock.lock_file)
        return acquire(lock, *arguments, **options)

    return hold


def test_cleaning_leaves_what_others_are_at(run_of):
    run = run_of('sub-1_T1w', work_dir='work', clean_workdir=True)
    for subject in ('1', '2'):
        (run.work_dir / 'bidsharm_wf' / f'sub_{subject}_wf').mkdir(parents=True)
    with pytest.raises(ValueError, match='broke'), participant._claim({'1': {'sub-1_T1w'}}, run):
        raise ValueError('broke')
    assert not (run.work_dir / 'bidsharm_wf/sub_1_wf').exists(), 'cleaned also after an error'
    assert (run.work_dir / 'bidsharm_wf/sub_2_wf').exists()


def test_a_scan_that_was_not_started_did_not_fail(run_of, tmp_path):
    run = run_of('sub-1_T1w', 'sub-2_T1w', stop_on_first_crash=True)
    outcome = Outcome()
    crash = Failure('bidsharm_wf.sub_1_wf.prep_sub_1_T1w_wf.conform', 'It broke.')
    participant._collect(run, ['1', '2'], [crash], [], outcome)
    assert [entry.scan for entry in outcome.failures] == ['sub-1_T1w']
    assert outcome.not_run == ['sub-2_T1w']
    console = Console(record=True, width=200)
    show_outcome(outcome, Screen(console))
    assert 'not run   1 scan: the run stopped at the first failure.' in console.export_text()


def test_a_step_of_a_whole_subject_is_the_reason_for_all_its_scans(run_of):
    run = run_of('sub-1_T1w', 'sub-1_T2w', 'sub-2_T1w', stop_on_first_crash=True)
    outcome = Outcome()
    crash = Failure('bidsharm_wf.sub_1_wf.template', 'The disk is full.', file=Path('crash-1.txt'))
    participant._collect(run, ['1', '2'], [crash], [], outcome)
    assert [entry.scan for entry in outcome.failures] == ['sub-1_T1w', 'sub-1_T2w']
    assert all('The disk is full.' in entry.what for entry in outcome.failures)
    assert outcome.logs['sub-1_T1w'] == 'crash-1.txt'
    assert outcome.not_run == ['sub-2_T1w']
    assert Outcome(not_run=['sub-2_T1w']).exit_code == ExitCode.SCAN_FAILED


@pytest.fixture
def with_records(run_of):
    """A run over two subjects that an earlier run had finished."""
    run = run_of('sub-1_T1w', 'sub-2_T1w', work_dir='work')
    for scan in run.plan.selection.scans:
        file = run.settings.output_dir / OutputNames(scan).qc
        file.parent.mkdir(parents=True)
        file.write_text(
            json.dumps(
                {
                    'verdict': 'pass',
                    'scan': scan.name,
                    'subject': scan.subject,
                    'contrast': 'T1w',
                    'digest': 'd',
                }
            )
        )
    return run


def test_a_record_of_an_earlier_run_does_not_speak_for_a_graph_that_died(with_records, monkeypatch):
    monkeypatch.setattr(participant, 'run_graph', lambda *_, **__: None)
    outcome = participant._run_batches(with_records)
    assert outcome.verdicts == {}
    assert {entry.scan for entry in outcome.failures} == {'sub-1_T1w', 'sub-2_T1w'}
    assert outcome.exit_code == ExitCode.SCAN_FAILED
    assert not list(with_records.settings.output_dir.rglob('*_qc.json')), (
        'other settings must not take them as done'
    )


def test_a_record_of_an_earlier_run_does_not_speak_for_a_subject_that_is_held(with_records, monkeypatch):
    monkeypatch.setattr(FileLock, 'acquire', _held_for('sub-1', FileLock.acquire))
    monkeypatch.setattr(participant, '_run_batch', lambda run, todo: None)
    outcome = participant._run_batches(with_records)
    assert 'sub-1_T1w' not in outcome.verdicts
    assert outcome.exit_code == ExitCode.SCAN_FAILED


def test_what_another_run_finished_meanwhile_is_not_done_again(with_records, monkeypatch):
    """The other run had sub-1 when this one looked, and ended with it while this one waited for it."""
    looked: list[str] = []

    def unfinished(scans, *_):
        names = {scan.name for scan in scans}
        first = not looked or names - set(looked)
        looked.extend(names)
        return names if first else names - {'sub-1_T1w'}

    done: list[str] = []
    monkeypatch.setattr(participant, 'unfinished', unfinished)
    monkeypatch.setattr(participant, '_run_batch', lambda run, todo: done.extend(todo))
    outcome = participant._run_batches(with_records)
    assert done == ['2']
    assert outcome.resumed == ['sub-1_T1w']
    assert outcome.verdicts['sub-1_T1w'] == 'pass'
    assert outcome.exit_code == ExitCode.OK


def test_results_are_counted_before_another_run_may_begin(with_records, monkeypatch):
    """Another run with --force waits for the subject, and takes its record away as soon as it may."""
    files = [
        with_records.settings.output_dir / OutputNames(scan).qc for scan in with_records.plan.selection.scans
    ]
    release = FileLock.release

    def waiting(lock, *arguments, **options):
        release(lock, *arguments, **options)
        for file in files:
            file.unlink(missing_ok=True)

    monkeypatch.setattr(FileLock, 'release', waiting)
    monkeypatch.setattr(participant, '_run_batch', lambda run, todo: None)
    outcome = participant._run_batches(with_records)
    assert outcome.failures == []
    assert set(outcome.verdicts) == {'sub-1_T1w', 'sub-2_T1w'}


def test_a_run_that_ends_early_knows_what_is_done(run_of, make_raw):
    """A scan whose record is there is done, although its batch has not been looked at; not with --force."""
    run = run_of('sub-1_T1w', 'sub-2_T1w', 'sub-3_T1w')
    for scan, digest in zip(run.plan.selection.scans, ('d', 'other', ''), strict=True):
        file = run.settings.output_dir / OutputNames(scan).qc
        file.parent.mkdir(parents=True)
        content = {
            'verdict': 'warn',
            'scan': scan.name,
            'subject': scan.subject,
            'contrast': 'T1w',
            'digest': digest,
        }
        file.write_text(json.dumps(content))
    outcome = Outcome(failures=[ErrorEntry('sub-3_T1w', 'It broke.')])
    participant._settle(outcome, run.plan, run.settings)
    assert (outcome.verdicts, outcome.not_run) == ({'sub-1_T1w': 'warn'}, ['sub-2_T1w'])
    outcome = Outcome()
    participant._settle(outcome, run.plan, replace(run.settings, force=True))
    assert (outcome.verdicts, outcome.not_run) == ({}, ['sub-1_T1w', 'sub-2_T1w', 'sub-3_T1w'])


def test_the_target_that_cannot_be_learnt_ends_the_run_with_a_summary(
    make_settings, monkeypatch, make_data_set, tmp_path, clean_nipype
):
    def fail(*_: object) -> None:
        raise ScanError('The target could not be learnt.', where='--target', fix='Choose another.')

    monkeypatch.setattr(participant, 'ensure_target', fail)
    make_data_set(tmp_path / 'bids', {'01': 'a', '02': 'b'})
    settings = make_settings(skip_bids_validation=True, harmonizer='zscore')
    with pytest.raises(ScanError):
        participant.run_participant(settings, Console(quiet=True), ['bids', 'out', 'participant'])
    (log_dir,) = (settings.output_dir / 'logs').glob('*_*/')
    summary = json.loads((log_dir / 'summary.json').read_text())
    assert (summary['interrupted'], summary['exit_code']) == ('The target could not be learnt.', 1)
    assert summary['scans']['not_run'] == ['sub-01_T1w', 'sub-02_T1w']
    assert summary['rerun'] == ['bidsharm', 'bids', 'out', 'participant', '--participant-label', '01', '02']
    last = read_events(log_dir / 'events.jsonl')[-1]
    assert (last['event'], last['fix']) == ('run_interrupted', 'Choose another.')
