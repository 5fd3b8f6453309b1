"""How commands end: signals, errors of the system, too little memory, nobody who reads."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bidsharm.cli.ending import run_to_end
from bidsharm.errors import ConfigurationError, ExitCode

PATIENCE_S = 60.0


def ended_by(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def work() -> int:
        raise error

    code = run_to_end('bidsharm-test', work, stopped='stopped; begin anew.')
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ('error', 'code', 'said'),
    [
        (OSError(errno.ENOSPC, 'No space left', '/out/x'), 1, '/out/x: The disk is full. Make room'),
        (OSError(errno.EDQUOT, 'Quota', '/out/x'), 1, '/out/x: Your quota is used up.'),
        (OSError(errno.EROFS, 'Read-only', '/out/x'), 1, '/out/x: The file system can only be read.'),
        (PermissionError(errno.EACCES, 'denied', '/out/x'), 1, '/out/x: There is no permission for it.'),
        (PermissionError(errno.EACCES, 'denied', b'/out/x'), 1, '/out/x: There is no permission for it.'),
        (OSError(errno.ENOSPC, 'No space left'), 1, 'The disk is full.'),
        (FileNotFoundError(errno.ENOENT, 'No such file', '/in/y'), 1, '/in/y: No such file.'),
        (MemoryError(), 1, 'There is not enough memory.'),
        (KeyboardInterrupt(), 1, 'stopped; begin anew.'),
        (ConfigurationError('No card.', where='--device'), 78, '--device: No card.'),
    ],
    ids=repr,
)
def test_errors_become_one_sentence(error, code, said, capsys):
    ended, err = ended_by(error, capsys)
    assert ended == code
    assert err.startswith(f'bidsharm-test: {said}')
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize('error', [RuntimeError('boom'), OSError('boom'), BrokenPipeError(errno.EPIPE, 'x')])
def test_other_errors_are_ours(error, capsys):
    ended, err = ended_by(error, capsys)
    assert ended == ExitCode.INTERNAL
    assert 'Traceback' in err
    assert 'internal error' in err


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    seen = []
    assert run_to_end('x', lambda: seen.append(signal.getsignal(signal.SIGTERM)) or 3, stopped='') == 3
    assert seen[0] not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command(
    tmp_path: Path, body: str, *, grace_s: float = 30, ignored: str = 'SIG_DFL'
) -> subprocess.Popen[str]:
    """Start a command that says when it has begun; wait for that."""
    code = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
from bidsharm.cli import ending
from bidsharm.temporary import temporary_folder
ending.GRACE_S = {grace_s}
# Whatever runs the tests may have them ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.{ignored})
here = Path({str(tmp_path)!r})
def begun():
    (here / 'begun').touch()
def work():
    with temporary_folder('.work', here):
{chr(10).join('        ' + line for line in body.splitlines())}
sys.exit(ending.run_to_end('bidsharm-test', work, stopped='stopped; begin anew.'))
"""
    program = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / 'begun').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return program


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda item: item.name)
def test_a_signal_stops_a_command_and_cleans_up(tmp_path, number):
    program = command(tmp_path, 'begun()\ntime.sleep(600)')
    program.send_signal(number)
    _, err = program.communicate(timeout=PATIENCE_S)
    assert (program.returncode, err) == (1, 'bidsharm-test: stopped; begin anew.\n')
    assert [path.name for path in tmp_path.iterdir()] == ['begun']


def test_programs_that_were_started_are_ended(tmp_path):
    body = "child = subprocess.Popen(['sleep', '600'])\n(here / 'child').write_text(str(child.pid))\nbegun()\ntime.sleep(600)"
    program = command(tmp_path, body)
    program.terminate()
    program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 1
    assert not runs(int((tmp_path / 'child').read_text()))


def test_more_signals_do_not_disturb_the_cleaning_up(tmp_path):
    body = """try:
    begun()
    time.sleep(600)
finally:
    (here / 'cleaning').touch()
    time.sleep(2)
    (here / 'cleaned').touch()"""
    program = command(tmp_path, body)
    program.terminate()
    while not (tmp_path / 'cleaning').exists():
        time.sleep(0.05)
    program.terminate()
    program.send_signal(signal.SIGHUP)
    program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 1
    assert (tmp_path / 'cleaned').exists()


@pytest.mark.parametrize(
    'body',
    [
        # An exception that Python ignores, as it does in destructors.
        'class Deaf:\n    def __del__(self):\n        begun()\n        time.sleep(3)\ndeaf = Deaf()\ndel deaf\ntime.sleep(600)',
        # A library that does not come back.
        "import hashlib\nbegun()\nhashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)",
    ],
    ids=['ignored', 'library'],
)
def test_a_command_that_does_not_hear_is_ended_and_nothing_is_left(tmp_path, body):
    start = f"child = subprocess.Popen(['sleep', '600'])\n(here / 'child').write_text(str(child.pid))\n{body}"
    program = command(tmp_path, start, grace_s=1)
    program.terminate()
    _, err = program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 1
    assert err.endswith('bidsharm-test: stopped; begin anew.\n')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['begun', 'child']
    assert not runs(int((tmp_path / 'child').read_text()))


def test_nohup_is_obeyed(tmp_path):
    body = "begun()\ntime.sleep(1)\n(here / 'done').touch()\nreturn 0"
    program = command(tmp_path, body, ignored='SIG_IGN')
    program.send_signal(signal.SIGHUP)
    program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 0
    assert (tmp_path / 'done').exists()


def test_a_forked_process_takes_no_notice_of_what_its_parent_does_about_signals(tmp_path):
    body = """child = os.fork()
if not child:
    begun()
    time.sleep(600)
while not (here / 'begun').exists():
    time.sleep(0.05)
os.kill(child, signal.SIGTERM)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
(here / 'code').write_text(str(code))
time.sleep(3)
return 0"""
    program = command(tmp_path, body, grace_s=0.5)
    program.communicate(timeout=PATIENCE_S)
    assert (tmp_path / 'code').read_text() == str(-signal.SIGTERM)
    assert program.returncode == 0
