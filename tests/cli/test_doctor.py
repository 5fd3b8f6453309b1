"""``bidsharm-doctor``: its command line, what it prints, and one run on this machine."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from bidsharm.workflows.doctor.findings import Asked, Check, Finding, ok, problem, warning
from rich.console import Console

from bidsharm.cli import doctor
from bidsharm.errors import ExitCode


def checks_that_find(monkeypatch: pytest.MonkeyPatch, *found: Finding) -> None:
    monkeypatch.setattr(doctor, 'all_checks', lambda with_run: [Check('Group', 'check', lambda asked: found)])


@pytest.mark.parametrize(
    ('found', 'code', 'last'),
    [
        ([ok('Fine.')], ExitCode.OK, 'Ready.'),
        ([ok('Fine.'), warning('Odd.', 'Mend it.')], ExitCode.OK, 'Ready, with 1 warning.'),
        ([problem('Bad.', 'Mend it.')], ExitCode.CONFIGURATION, '1 problem.'),
        (
            [problem('Bad.'), problem('Worse.'), warning('Odd.')],
            ExitCode.CONFIGURATION,
            '2 problems and 1 warning.',
        ),
    ],
)
def test_exit_code_and_last_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: list[Finding],
    code: ExitCode,
    last: str,
) -> None:
    checks_that_find(monkeypatch, *found)
    assert doctor.main([]) == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(last)
    assert '\x1b' not in ''.join(printed)  # no colours where there is no terminal


def test_advice_is_repeated_worst_first() -> None:
    found = [
        ok('Fine.'),
        warning('The folder is odd.', 'Mend the folder.'),
        problem('Bad.', 'Mend it.'),
    ]
    console = Console(file=io.StringIO(), width=100)
    doctor.show(found, 3.0, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    before, _, after = text.partition('What to do')
    assert 'The folder is odd.' in before
    assert 'Fine.' not in after
    assert (
        after.index('Bad.')
        < after.index('Mend it.')
        < after.index('The folder')
        < after.index('Mend the folder.')
    )


def test_square_brackets_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks_that_find(monkeypatch, problem('pip install "bidsharm[validate]" [red]x[/red].'))
    doctor.main([])
    assert 'bidsharm[validate]" [red]x[/red].' in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [['--json'], []])
def test_nobody_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setenv('HOME', '/home/anna')  # where nothing can be written: the run is lent another one
    monkeypatch.setenv('LOGNAME', 'anna')
    checks_that_find(monkeypatch, warning('Odd: /home/anna/x', 'Mend /scratch/anna.', place='/data/anna'))
    doctor.main(arguments)
    text = capsys.readouterr().out
    assert 'anna' not in text
    assert 'Odd: ~/x' in text
    assert 'Mend /scratch/~.' in text


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks_that_find(monkeypatch, warning('Odd.', 'Mend it.', place='/data', number=3))
    assert doctor.main(['--json']) == ExitCode.OK
    content = json.loads(capsys.readouterr().out)
    assert (content['ready'], content['problems'], content['warnings']) == (True, 0, 1)
    (found,) = content['findings']
    assert found.pop('seconds') >= 0
    assert found == {
        'group': 'Group', 'check': 'check', 'verdict': 'warning', 'what': 'Odd.', 'fix': 'Mend it.',
        'values': {'place': '/data', 'number': 3},
    }  # fmt: skip


@pytest.mark.parametrize(
    'arguments',
    [['--device', 'gpu'], ['--no-such'], ['--output-spaces', 'MNI:bad'], ['a', 'b', 'c'], ['--harm', 'x']],
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = doctor.main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == ExitCode.USAGE
    assert 'bidsharm-doctor: ' in capsys.readouterr().err


def test_options_reach_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Asked] = []
    monkeypatch.setattr(
        doctor, 'diagnose', lambda asked, as_json, with_run: got.append(asked) or int(with_run)
    )
    monkeypatch.chdir(tmp_path)
    line = ['data', 'out', '-w', 'work', '--weights-dir', 'weights', '--model', 'm', '--harmonizer', 'nyul', '--device', 'cpu',
            '--no-run', '--output-spaces', 'native', 'MNI152NLin2009aSym:res-2']  # fmt: skip
    assert doctor.main(line) == 0
    assert doctor.main([]) == 1
    asked, bare = got
    assert asked.bids_dir == tmp_path / 'data'
    assert (asked.output_dir, asked.work_dir) == (tmp_path / 'out', tmp_path / 'work')
    assert (asked.weights_dir, asked.model) == (tmp_path / 'weights', Path('m'))
    assert (asked.harmonizer, asked.device) == ('nyul', 'cpu')
    assert asked.output_spaces == ('native', 'MNI152NLin2009aSym:res-2')
    assert asked.cores >= 1
    assert (bare.bids_dir, bare.output_dir, bare.device) == (None, None, 'auto')


def test_the_run_is_left_out() -> None:
    names = [check.name for check in doctor.all_checks(with_run=True)]
    assert names[-1] == 'tiny run'
    assert [check.name for check in doctor.all_checks(with_run=False)] == names[:-1]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ('data', 'out', 'work', 'said'),
    [
        ('bids', 'out', 'work', ''),
        ('bids', 'bids', 'work', 'may not be the data set itself'),
        ('out/bids', 'out', 'work', 'may not lie inside the output folder'),
        ('bids', 'out', 'bids/work', 'may not lie inside the data set'),
        ('bids', 'theirs', 'work', 'already holds another data set'),
    ],
)
def test_folders_that_get_into_each_other(tmp_path: Path, data: str, out: str, work: str, said: str) -> None:
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'dataset_description.json').write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    asked = Asked(bids_dir=tmp_path / data, output_dir=tmp_path / out, work_dir=tmp_path / work)
    (found,) = doctor.check_layout(asked)
    assert found.verdict == ('problem' if said else 'ok')
    assert said in found.what
    assert bool(found.fix) == bool(said)


def test_help_needs_nothing_heavy() -> None:
    import subprocess

    code = (
        'import sys, bidsharm.cli.doctor as d\n'
        'try: d.main(["--help"])\nexcept SystemExit: pass\n'
        'assert not {"numpy", "torch", "nipype", "nibabel", "rich"} & set(sys.modules), "heavy"'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'exit codes' in done.stdout


@pytest.mark.slow
def test_this_machine_is_ready(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Everything, with a run: the tests need a machine that is ready, so this one is."""
    assert doctor.main([str(tmp_path / 'bids'), str(tmp_path / 'out'), '--json']) == ExitCode.CONFIGURATION
    content = json.loads(capsys.readouterr().out)
    wrong = [item for item in content['findings'] if item['verdict'] == 'problem']
    assert [item['check'] for item in wrong] == ['data set'], wrong  # there is none
    run = content['findings'][-1]
    assert run['check'] == 'tiny run'
    assert {'brain_extraction', 'harmonize'} <= set(run['values']['steps_s'])
    assert not list(tmp_path.iterdir())
