"""The log that a machine reads: whole lines, strict JSON, and the fields that the documents promise."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from bidsharm.workflows.events import (
    EVENTS,
    Event,
    EventLog,
    RunFinished,
    ScanFailed,
    ScanResumed,
    StepFailed,
    read_events,
)
from bidsharm.workflows.logs import interruption, keep_journal
from rich.console import Console

from bidsharm.errors import ConfigurationError, UsageError

OUTPUTS = Path(__file__).parents[2] / 'docs' / 'outputs.md'


def conforms(line: dict[str, Any]) -> bool:
    """Say whether a line holds what its event promises, no more and no less."""
    kind = EVENTS[line['event']]
    types = get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind)]
    return list(line) == ['time', 'event', *names] and all(_is(line[name], types[name]) for name in names)


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(item, get_args(kind)[1]) for item in value.values())
    if options := get_args(kind):
        return any(_is(value, option) for option in options)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


def example(kind: type[Event]) -> Event:
    values = {str: 'ä "x"\n', int: 3, float: 0.25, bool: True}
    made: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        origin, options = get_origin(hint), get_args(hint)
        if origin is list:
            made[name] = ['a', 'b']
        elif origin is dict:
            made[name] = {'done': 1}
        else:
            made[name] = None if options else values[hint]
    return kind(**made)


@pytest.mark.parametrize('kind', EVENTS.values(), ids=list(EVENTS))
def test_every_event_is_a_strict_line_of_its_fields(kind: type[Event], tmp_path: Path) -> None:
    log = EventLog()
    log.open(tmp_path / 'events.jsonl')
    log.emit(example(kind))
    log.close()
    (text,) = (tmp_path / 'events.jsonl').read_text().splitlines()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
    assert conforms(line)
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z', line['time'])


def test_the_documents_tell_every_event_with_its_fields() -> None:
    text = OUTPUTS.read_text().split('## The event log')[1].split('\n## ')[0]
    told = {}
    for row in text.splitlines():
        if found := re.match(r'\| `([a-z_]+)` \| (.*?) \| (.*) \|$', row):
            told[found[1]] = set(re.findall(r'`([a-z_]+)`', re.sub(r'\([^)]*\)', '', found[3])))
    assert told == {name: {item.name for item in dataclasses.fields(kind)} for name, kind in EVENTS.items()}


def test_what_happened_before_there_is_a_folder_comes_first(tmp_path: Path) -> None:
    log = EventLog()
    log.emit(ScanResumed('a'))
    log.open(tmp_path / 'events.jsonl')
    log.emit(ScanResumed('b'))
    assert [line['scan'] for line in read_events(tmp_path / 'events.jsonl')] == ['a', 'b']


def test_numbers_that_are_none_and_names_that_are_no_text(tmp_path: Path) -> None:
    log = EventLog()
    log.open(tmp_path / 'events.jsonl')
    log.emit(StepFailed('s', 'n4', 'x.n4', float('nan'), float('inf'), -0.0, 1.0, 1))
    log.emit(ScanResumed(os.fsdecode(b'sub-\xff')))
    first, second = read_events(tmp_path / 'events.jsonl')
    assert (first['seconds'], first['cpu_seconds'], first['peak_gb']) == (None, None, 0)
    assert second['scan'] == 'sub-?'


def test_the_same_lines_on_a_stream(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = EventLog(stream)
    log.emit(ScanResumed('a'))
    log.open(tmp_path / 'events.jsonl')
    log.emit(RunFinished({'done': 1}, 0, 2.0))
    assert stream.getvalue() == (tmp_path / 'events.jsonl').read_text()


def test_a_full_disk_is_told_once_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog()
    log.open(Path('/dev/full'))
    for _ in range(3):
        log.emit(ScanResumed('a'))
    assert capsys.readouterr().err == 'bidsharm: the event log cannot be written: No space left on device.\n'


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that is full for a moment."""
    log, write = EventLog(), os.write
    log.open(tmp_path / 'events.jsonl')
    log.emit(ScanResumed('a'))
    with monkeypatch.context() as patch:
        patch.setattr(os, 'write', lambda file, line: write(file, line[:20]))
        log.emit(ScanResumed('b'))
    log.emit(ScanResumed('c'))
    assert [line['scan'] for line in read_events(tmp_path / 'events.jsonl')] == ['a', 'c']


def test_a_process_that_is_killed_leaves_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / 'events.jsonl'
    code = (
        'import sys, pathlib\n'
        'from bidsharm.workflows.events import EventLog, ScanResumed\n'
        'log = EventLog()\n'
        'log.open(pathlib.Path(sys.argv[1]))\n'
        'print("ready", flush=True)\n'
        'while True: log.emit(ScanResumed("x" * 500))\n'
    )
    with subprocess.Popen([sys.executable, '-c', code, str(file)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not file.stat().st_size:
            pass
        process.send_signal(signal.SIGKILL)
    text = file.read_text()
    assert text.endswith('\n')
    assert all(conforms(json.loads(line)) for line in text.splitlines())


@pytest.mark.parametrize(
    ('error', 'code', 'what'),
    [
        (UsageError('No.', where='--x', fix='Do.'), 2, 'No.'), (ConfigurationError('No.'), 78, 'No.'),
        (KeyboardInterrupt(), 1, 'It was told to stop, by Ctrl-C or a signal.'), (MemoryError(), 1, 'MemoryError'),
        (ZeroDivisionError('by zero'), 70, 'by zero'), (OSError(28, 'No space left'), None, '[Errno 28] No space left'),
    ],
    ids=repr,
)  # fmt: skip
def test_what_ends_a_run_early_is_its_last_event(error, code, what, make_settings, tmp_path) -> None:
    def run() -> None:
        with keep_journal(make_settings(), Console(quiet=True), ['bids', 'out']) as journal:
            (folder,) = [journal.open(make_settings())]
            assert folder.parent == tmp_path / 'out' / 'logs'
            raise error

    with pytest.raises(type(error)):
        run()
    (file,) = (tmp_path / 'out' / 'logs').glob('*/events.jsonl')
    first, last = read_events(file)
    assert conforms(first)
    assert conforms(last)
    assert first['command'] == ['bidsharm', 'bids', 'out']
    assert (last['event'], last['exit_code'], last['what']) == ('run_interrupted', code, what)
    assert (last['where'], last['fix']) == (getattr(error, 'where', ''), interruption(error, 0).fix)
    assert what in file.with_name('run.log').read_text()


def test_the_environment_is_not_written(make_settings, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('SECRET_TOKEN', 'do-not-tell')
    with keep_journal(make_settings(), Console(quiet=True), []) as journal:
        folder = journal.open(make_settings())
    assert 'do-not-tell' not in ''.join(file.read_text() for file in folder.iterdir())


def test_json_alone_is_on_standard_output(make_settings, capsys) -> None:
    settings = make_settings(log_json=True)
    with keep_journal(settings, Console(quiet=settings.log_json), []) as journal:
        journal.screen.say('For people.')
        journal.events.emit(ScanFailed('a', 'It broke.', '', '', ''))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line['event'] for line in lines] == ['run_started', 'scan_failed']
