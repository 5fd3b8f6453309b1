"""Closed, full and unread standard streams do not stop a command, and files do not take their place."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bidsharm.cli.streams import sure_streams

#: Says much, opens a file, starts a program that says something, and tells by a file that it came to its end.
SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from bidsharm.cli.ending import run_to_end

def work():
    file = open(sys.argv[1] + '/data', 'w')
    assert file.fileno() > 2
    for number in range(2000):
        print('said', number, 'a name with \\udcff and \\u5934', flush=number % 100 == 0)
    print('told', file=sys.stderr)
    assert isinstance(sys.stdout.isatty(), bool)
    subprocess.run(['sh', '-c', 'echo from a program; echo and more >&2'], check=False)
    file.close()
    Path(sys.argv[1], 'end').write_text(Path(sys.argv[1], 'data').read_text() or 'reached')
    return 0

sys.exit(run_to_end('test', work, stopped='stopped'))
"""


@pytest.mark.parametrize(
    'shell',
    [
        '"$@"', '"$@" >&-', '"$@" 2>&-', '"$@" >&- 2>&-', '"$@" <&- >&- 2>&-', '"$@" > /dev/full', '"$@" > /dev/full 2>&1',
        '"$@" | head -1; exit ${PIPESTATUS[0]}', 'LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@"',
    ],
)  # fmt: skip
def test_a_command_comes_to_its_end(shell: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ['bash', '-c', shell, 'bash', sys.executable, '-c', SCRIPT, tmp_path], capture_output=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.returncode, (tmp_path / 'end').read_text()) == (0, 'reached'), done.stderr.decode()
    assert b'Traceback' not in done.stderr
    assert b'Exception' not in done.stderr


def test_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', mine)
    with sure_streams():
        assert sys.stdout is not mine
        print('hello')
    assert sys.stdout is mine
    assert mine.getvalue() == 'hello\n'


def test_a_stream_that_is_given_up_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = (
        os.open('/dev/full', os.O_WRONLY) if Path('/dev/full').exists() else pytest.skip('no /dev/full here')
    )
    with os.fdopen(full, 'w') as stream:
        monkeypatch.setattr(sys, 'stdout', stream)
        with sure_streams():
            print('lost', flush=True)
            print('lost, too', flush=True)
        stream.flush()
