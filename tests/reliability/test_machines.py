"""Bad machines, quickly: nothing waits for ever, no clock is trusted that somebody may set, and errors of the system end in plain words."""

from __future__ import annotations

import ast
import errno
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bidsharm.cli.ending import run_to_end
from bidsharm.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / 'bidsharm').rglob('*.py'), *(ROOT / 'workflows').rglob('*.py')])

#: Where the time of day is asked for, and why that is right.
TIME_OF_DAY = {
    'bidsharm/temporary.py': 'days since a process of another machine wrote a file; a wrong clock costs at most that file',
    'workflows/doctor/folders.py': 'it is what is looked into: how far the clocks of two machines lie apart',
}
#: Functions that start a program and wait for it.
RUNS = {'subprocess.run', 'subprocess.call', 'subprocess.check_call', 'subprocess.check_output'}
#: Calls that reach the network; TemplateFlow's client is one, and is called from one place, in a thread that is given up.
NETWORK = ('urlopen', 'requests.get', 'requests.post', 'urlretrieve', 'create_connection')


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding='utf-8'))


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield file, what is called, and the call."""
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call):
                yield file.relative_to(ROOT).as_posix(), ast.unparse(node.func), node


def has(call: ast.Call, *names: str) -> bool:
    return any(keyword.arg in names for keyword in call.keywords)


def test_every_program_that_is_waited_for_has_a_time_limit():
    seen, missing = 0, []
    for file, name, call in calls():
        if name in RUNS:
            seen += 1
            if not has(call, 'timeout'):
                missing.append(f'{file}:{call.lineno}')
    assert not missing
    assert seen > 4


def test_a_process_that_is_started_is_waited_for_with_a_limit():
    """``Popen`` is allowed where the same file waits with ``timeout=``."""
    for file in {file for file, name, _ in calls() if name.endswith('subprocess.Popen')}:
        waits = [
            call
            for path, name, call in calls()
            if path == file and name.endswith(('.wait', '.communicate')) and 'Event' not in name
        ]
        assert waits, file
        assert all(has(call, 'timeout') or call.args for call in waits), file


def test_no_lock_is_waited_for_without_a_limit():
    opened = 0
    for file, name, call in calls():
        if name.endswith('.acquire'):
            assert has(call, 'timeout', 'blocking'), f'{file}:{call.lineno}'
    for file in FILES:
        for node in ast.walk(tree(file)):
            for item in node.items if isinstance(node, ast.With) else ():
                if isinstance(item.context_expr, ast.Call) and 'Lock' in ast.unparse(item.context_expr.func):
                    opened += 1
                    assert has(item.context_expr, 'timeout'), f'{file}:{node.lineno}'
    assert opened


def test_the_network_is_reached_from_one_place():
    assert [f'{file}: {name}' for file, name, _ in calls() if name.endswith(NETWORK)] == []
    users = {
        file.relative_to(ROOT).as_posix()
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'templateflow'
    }
    assert users == {'bidsharm/imaging/templates.py'}


def test_durations_are_measured_by_a_clock_that_nobody_sets():
    """``time.time`` may jump; where a date is meant, ``datetime.now`` says so."""
    assert {file for file, name, _ in calls() if name == 'time.time'} == set(TIME_OF_DAY)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/out/sub-01')


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (full(), '/out/sub-01: The disk is full. Make room'),
        (OSError('32768 requested and 25568 written'), 'The disk is full. Make room'),
        (OSError(errno.EDQUOT, 'x'), 'Your quota is used up. Make room'),
        (OSError(errno.EROFS, 'x', '/out'), '/out: The file system can only be read. Give a folder that can be written'),
        (PermissionError(errno.EACCES, 'x', '/out'), '/out: There is no permission for it.'),
        (MemoryError(), 'There is not enough memory. Give it more'),
    ],
)  # fmt: skip
def test_errors_of_the_machine_end_a_command_in_plain_words(error, words, capsys):
    def work() -> int:
        raise error

    assert run_to_end('bidsharm-test', work, stopped='') == ExitCode.SCAN_FAILED
    said = capsys.readouterr().err
    assert said.startswith(f'bidsharm-test: {words}')
    assert 'Traceback' not in said


def test_a_checkpoint_on_a_full_disk_is_no_riddle(tmp_path, monkeypatch):
    """PyTorch tells neither the number of the error nor the file."""
    import torch

    from bidsharm.training.records import CHECKPOINT, write_checkpoint

    def stumble(state, path):
        Path(path).write_bytes(b'half of it')
        raise RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534')

    write_checkpoint(tmp_path, {'step': 1})
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr(torch, 'save', stumble)
    with pytest.raises(OSError) as caught:
        write_checkpoint(tmp_path, {'step': 2})
    assert caught.value.errno == errno.ENOSPC
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    assert (tmp_path / CHECKPOINT).read_bytes() == before
