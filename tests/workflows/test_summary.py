"""What is said at the end of a run: grouped for people, whole for programs, with the command that goes on."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from bidsharm.workflows.base import Options
from bidsharm.workflows.logs import Screen
from bidsharm.workflows.planning import Plan
from bidsharm.workflows.steps import Excess
from bidsharm.workflows.summary import (
    LINES,
    Outcome,
    concerns_of,
    grouped,
    rerun_command,
    show_outcome,
    without_options,
    write_summary,
)
from rich.console import Console

from bidsharm.bids.query import Selection
from bidsharm.cli.parser import parse_settings
from bidsharm.errors import NotServed, ScanError
from bidsharm.reports.subject import ErrorEntry


def said(outcome: Outcome, **more) -> str:
    console = Console(file=io.StringIO(), width=300)
    show_outcome(outcome, Screen(console), **more)
    return console.file.getvalue()


def failures(what: str, *labels: object) -> list[ErrorEntry]:
    return [ErrorEntry(f'sub-{label}_T1w', what.format(label), where='x', fix='Mend it.') for label in labels]


# On the screen.


def test_few_scans_are_told_one_by_one():
    text = said(Outcome(failures=failures('It is a link that leads nowhere.', 1, 2, 3)))
    assert [line for line in text.splitlines() if line.startswith('FAILED')] == [
        f'FAILED    sub-{label}_T1w: It is a link that leads nowhere. Mend it.' for label in (1, 2, 3)
    ]


def test_many_scans_with_one_reason_share_a_line():
    text = said(Outcome(failures=[*failures('It is a link.', *range(12)), *failures('It is empty.', 'x')]))
    lines = [line for line in text.splitlines() if line.startswith('FAILED')]
    assert lines == [
        'FAILED    12 scans: It is a link. Mend it. sub-0_T1w, sub-1_T1w, sub-2_T1w and 9 more',
        'FAILED    sub-x_T1w: It is empty. Mend it.',
    ]


def test_the_name_of_the_scan_is_no_part_of_the_reason():
    reasons = [('sub-1_ses-a_T1w.nii.gz: The file sub-1_ses-a_T1w.nii.gz is cut off.', 'sub-1_ses-a_T1w'),
               ('sub-2_T1w.nii: The file sub-2_T1w.nii is cut off.', 'sub-2_T1w')]  # fmt: skip
    ((reason, names),) = grouped(reasons)
    assert reason == 'The file ... is cut off.'
    assert names == {'sub-1_ses-a_T1w': reasons[0][0], 'sub-2_T1w': reasons[1][0]}


def test_hundreds_of_different_reasons_do_not_flood_the_screen():
    text = said(
        Outcome(failures=[entry for index in range(300) for entry in failures(f'Reason {index}.', index)])
    )
    lines = [line for line in text.splitlines() if line.startswith('FAILED')]
    assert len(lines) == LINES + 1
    assert lines[-1] == f'FAILED    and {300 - LINES} more; all are in summary.json of the log folder'


def test_scans_to_look_at_come_with_the_checks(tmp_path):
    outcome = Outcome(
        verdicts={'sub-1_T1w': 'warn', 'sub-2_T1w': 'pass', 'sub-3_T1w': 'fail'},
        concerns={'sub-1_T1w': 'Grey matter overlap', 'sub-3_T1w': 'Grey matter overlap, New edges'},
    )
    text = said(outcome, log_dir=tmp_path)
    assert 'warn      sub-1_T1w: Grey matter overlap\n' in text
    assert 'fail      sub-3_T1w: Grey matter overlap, New edges\n' in text
    assert 'sub-2_T1w' not in text
    assert str(tmp_path) not in text, 'nothing failed'


def test_checks_that_did_not_pass_by_their_labels():
    checks = [{'name': 'a', 'label': 'A', 'verdict': 'pass'}, {'name': 'b', 'label': 'B', 'verdict': 'warn'},
              {'name': 'c', 'verdict': 'fail'}]  # fmt: skip
    assert concerns_of({'checks': checks}) == 'B, c'
    missing = [
        {'name': name, 'label': name, 'verdict': 'not available'} for name in ('cnr_kept', 'target_distance')
    ]
    assert concerns_of({'checks': missing}) == 'cnr_kept', 'the other one need not be there'
    assert concerns_of({}) == ''


def test_steps_that_took_more_than_planned_are_named():
    text = said(Outcome(over={'harmonize.harmonize': Excess(3.14, 2.0, 4), 'qc.draw': Excess(1.5, 1.0)}))
    assert (
        'memory    The step harmonize.harmonize took 3.1 GB, planned 2.0 (4 times more than planned): give --mem'
        in text
    )
    assert 'The step qc.draw took 1.5 GB, planned 1.0: give --mem' in text


def test_reports_of_a_thousand_subjects(tmp_path):
    text = said(Outcome(reports=[tmp_path / f'sub-{index}.html' for index in range(1000)]))
    assert text.count('.html') == LINES
    assert f'report    and {1000 - LINES} more beside them' in text


# How to go on.


@pytest.fixture
def plan_of(make_raw, make_method, tmp_path):
    def make(*names: str) -> Plan:
        scans = tuple(make_raw(tmp_path / 'bids', name) for name in names)
        return Plan(Selection(scans), make_method(), Options(), ())

    return make


def failed(*names: str) -> Outcome:
    return Outcome(failures=[ErrorEntry(name, 'It broke.') for name in names])


def test_the_command_can_be_copied_and_chooses_what_failed(plan_of, make_settings, tmp_path):
    """It is parsed as the first one was, and differs in the subjects only."""
    plan = plan_of('sub-1_T1w', 'sub-1_T2w', 'sub-2_T1w', 'sub-3_T1w')
    (out := tmp_path / "a student's [out]").mkdir()
    arguments = ['--participant_label', '1', 'sub-2', '3', '--harmonizer', 'nyul', '--force', '--mem', '8G', '--',
                 str(tmp_path / 'bids'), str(out), 'participant']  # fmt: skip
    before = parse_settings(arguments)
    outcome = failed('sub-3_T1w', 'sub-1_T2w')
    command = shlex.split(shlex.join(rerun_command(arguments, plan, outcome, before)))
    assert command[0] == 'bidsharm'
    after = parse_settings(command[1:])
    assert after.participant_label == ('1', '3')
    assert not after.force, 'what is done is not done again'
    changed = {name for name, value in vars(before).items() if getattr(after, name) != value}
    assert changed == {'participant_label', 'force'}


def test_nothing_failed_nothing_to_run_again(plan_of, make_settings):
    assert rerun_command(['x'], plan_of('sub-1_T1w'), Outcome(), make_settings()) == []


def test_what_was_not_run_is_run(plan_of, make_settings):
    command = rerun_command(
        ['a'], plan_of('sub-1_T1w', 'sub-2_T1w'), Outcome(not_run=['sub-2_T1w']), make_settings()
    )
    assert command == ['bidsharm', 'a', '--participant-label', '2']


def test_what_was_to_be_done_again_still_is(plan_of, make_settings):
    outcome = Outcome(not_run=['sub-2_T1w'])
    command = rerun_command(['a', '--force'], plan_of('sub-2_T1w'), outcome, make_settings(force=True))
    assert '--force' in command
    assert '--no-force' not in command


def test_a_report_that_failed_is_that_of_its_subject(plan_of, make_settings):
    command = rerun_command(['a'], plan_of('sub-1_T1w', 'sub-2_T1w'), failed('sub-2'), make_settings())
    assert command[2:] == ['--participant-label', '2']


@pytest.mark.parametrize(
    ('broken', 'sessions'),
    [
        (('sub-1_ses-a_T1w',), ['a']),
        (('sub-1_ses-a_T1w', 'sub-1_ses-b_T1w', 'sub-1_ses-c_T2w'), []),  # all of them
        (('sub-1_ses-c_T2w',), []),  # it follows the T1w of another session
        (('sub-1_ses-c_T2w', 'sub-1_ses-a_T1w'), ['a', 'c']),
        (('sub-2_T1w', 'sub-1_ses-a_T1w'), []),  # one has no session
    ],
)
def test_sessions_are_named_where_that_changes_nothing_else(plan_of, make_settings, broken, sessions):
    plan = plan_of('sub-1_ses-a_T1w', 'sub-1_ses-b_T1w', 'sub-1_ses-c_T2w', 'sub-2_T1w')
    command = rerun_command(
        ['x', '--session-id', 'a', 'b', 'c'], plan, failed(*broken), make_settings(reports_only=True)
    )
    assert command[:2] == ['bidsharm', 'x']
    assert '--no-reports-only' in command
    if sessions:
        assert command[command.index('--session-label') + 1 :] == sessions
    else:
        assert '--session-label' not in command


@pytest.mark.parametrize(
    ('words', 'left'),
    [
        ('b o participant --run 1 2', 'b o participant'),
        ('--run=1 b o participant', 'b o participant'),
        ('b o participant --run 1 --runs 2 --run 3 -v', 'b o participant --runs 2 -v'),
        ('--run 1 2 -- b o participant', '-- b o participant'),
    ],
)
def test_options_are_taken_out_with_their_values(words, left):
    assert without_options(words.split(), ['--run']) == left.split()


# For programs.


def test_the_file_holds_all(tmp_path):
    outcome = Outcome(
        verdicts={'sub-1_T1w': 'pass', 'sub-2_T1w': 'warn'}, concerns={'sub-2_T1w': 'Edges'}, resumed=['sub-1_T1w'],
        failures=failures('It broke.', *range(10, 40)), logs={'sub-10_T1w': 'crash-1.txt'},
        left_out=[NotServed('Not served.', where='sub-1_FLAIR'), ScanError('Twice.', where='sub-5', fix='Keep one.')],
        not_run=['sub-9_T1w'], reports=[Path('/out/sub-1.html')], over={'n4': Excess(1.5, 1.0, 2)},
    )  # fmt: skip
    write_summary(
        tmp_path,
        outcome,
        level='participant',
        rerun=['bidsharm', 'a b'],
        seconds=12.34,
        exit_code=int(outcome.exit_code),
    )
    content = json.loads((tmp_path / 'summary.json').read_text())
    assert content['counts'] == {
        'done': 2, 'pass': 1, 'warn': 1, 'fail': 0, 'resumed': 1, 'failed': 30, 'left_out': 2, 'not_run': 1,
    }  # fmt: skip
    scans = content['scans']
    assert scans['done'] == [
        {'scan': 'sub-1_T1w', 'verdict': 'pass', 'reason': '', 'resumed': True},
        {'scan': 'sub-2_T1w', 'verdict': 'warn', 'reason': 'Edges', 'resumed': False},
    ]
    assert len(scans['failed']) == 30
    assert scans['failed'][0] == {
        'scan': 'sub-10_T1w', 'what': 'It broke.', 'where': 'x', 'fix': 'Mend it.', 'log': 'crash-1.txt',
    }  # fmt: skip
    assert [item['refused'] for item in scans['left_out']] == [False, True]
    assert scans['not_run'] == ['sub-9_T1w']
    assert content['over_planned_memory'] == [{'step': 'n4', 'peak_gb': 1.5, 'planned_gb': 1.0, 'count': 2}]
    assert (content['rerun'], content['reports']) == (['bidsharm', 'a b'], ['/out/sub-1.html'])
    assert (content['exit_code'], content['seconds'], content['interrupted']) == (1, 12.3, '')
    assert [file.name for file in tmp_path.iterdir()] == ['summary.json']
