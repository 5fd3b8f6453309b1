"""Processes end with the one that started them, and are known again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from bidsharm import processes
from bidsharm.processes import Identity, as_parent, end_processes, this_process

#: Long enough for anything on a busy machine; nothing waits for so long where all is well.
PATIENCE_S = 60.0


def until(true: Callable[[], object]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_process_is_known_again_and_not_taken_for_a_later_one_with_its_number():
    own = this_process()
    assert own.alive
    assert own.here
    assert Identity.parse(str(own)) == own
    assert not Identity(own.machine, own.pid, own.started + 1).alive
    child = subprocess.Popen([sys.executable, '-c', ''])
    known = Identity(own.machine, child.pid, processes._start_of(child.pid) or -1)
    until(lambda: not runs(child.pid))
    assert not known.alive, 'what is left of a process until its parent asks for it does not run'
    child.wait(PATIENCE_S)
    assert not known.alive


@pytest.mark.parametrize('text', ['', 'a', 'a-1', 'a-b-c', 'a-1-2-3', 'a--1', 'a-1-x'])
def test_texts_that_name_no_process(text):
    assert Identity.parse(text) is None


def test_a_hidden_process_of_somebody_else_counts_as_alive(monkeypatch):
    """Some clusters hide processes of others from ``/proc``."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(processes, '_start_of', lambda pid: None)
    monkeypatch.setattr(os, 'kill', refuse)
    assert Identity(processes.this_machine(), 4711, 1).alive


def family(tmp_path: Path, child: str, between: Sequence[str] = ()) -> tuple[subprocess.Popen[bytes], int]:
    """Start a parent that starts a child; return the parent and the number of the child."""
    note = tmp_path / 'pid'
    (tmp_path / 'child.py').write_text(
        f'import os, time\nfrom pathlib import Path\n{child}\nPath({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n'
    )
    (tmp_path / 'parent.py').write_text(
        'import os, subprocess, sys\nfrom bidsharm.processes import as_parent\n'
        f'subprocess.run([*{between!r}, sys.executable, {str(tmp_path / "child.py")!r}], env={{**os.environ, **as_parent()}})\n'
    )
    parent = subprocess.Popen([sys.executable, str(tmp_path / 'parent.py')])
    assert until(lambda: note.exists() and note.read_text())
    return parent, int(note.read_text())


@pytest.mark.parametrize(
    ('how', 'between'),
    [
        ('', ()),
        ('processes._ask_kernel = lambda: False', ()),  # other systems than Linux
        ('', ('sh', '-c', '"$@"; true', 'sh')),  # a shell between, which is not told
    ],
    ids=['kernel', 'watch', 'shell'],
)
def test_a_tethered_process_ends_when_its_parent_is_killed(tmp_path, how, between):
    child = f'from bidsharm import processes\n{how}\nprocesses.tether()'
    parent, number = family(tmp_path, child, between)
    assert runs(number)
    parent.kill()
    parent.wait(PATIENCE_S)
    assert until(lambda: not runs(number))


def test_a_process_whose_parent_is_gone_already_does_not_begin(tmp_path):
    gone = Identity(processes.this_machine(), 2**22 - 1, 1)
    code = 'from bidsharm.processes import tether; tether(); print("went on")'
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**os.environ, processes.PARENT: str(gone)},
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stdout == ''


@pytest.mark.parametrize('parent', ['', 'nonsense', 'ffffffff-1-1'])
def test_a_parent_that_is_none_or_elsewhere_does_not_matter(parent):
    """A job of a cluster inherits the environment of the machine that has submitted it."""
    code = 'from bidsharm.processes import tether; tether(); print("went on")'
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=PATIENCE_S, check=True,
        env={**os.environ, processes.PARENT: parent},
    )  # fmt: skip
    assert done.stdout == 'went on\n'


def test_any_program_can_be_tethered(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'bidsharm.processes', 'sh', '-c', 'echo "$1"; exit 3', 'sh', 'a b'],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False, env={**os.environ, **as_parent()},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, 'a b\n')


def test_processes_are_ended_with_all_that_they_have_started(tmp_path):
    parent, number = family(tmp_path, '')
    other = subprocess.Popen(['sleep', '600'])
    end_processes([parent.pid])
    assert parent.wait(PATIENCE_S) == -signal.SIGKILL
    assert until(lambda: not runs(number))
    assert other.poll() is None, 'only those'
    other.kill()
    other.wait(PATIENCE_S)
