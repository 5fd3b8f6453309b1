"""One process at a time in a folder of a training or of simulated data."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bidsharm.cli import alone
from bidsharm.cli.alone import alone_in
from bidsharm.cli.simulate import main as simulate
from bidsharm.errors import ExitCode, UsageError

HOLD = """
import sys, time
from pathlib import Path
from bidsharm.cli.alone import alone_in
with alone_in(Path(sys.argv[1]), 'bidsharm-simulate'):
    print('holding', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that holds a folder."""
    monkeypatch.setattr(alone, 'WAIT_S', 0.2)
    process = subprocess.Popen([sys.executable, '-c', HOLD, tmp_path / 'out'], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate(timeout=20)


def test_a_second_process_is_refused_until_the_first_is_gone(holder, tmp_path):
    out = tmp_path / 'out'
    with (
        pytest.raises(UsageError, match='Another bidsharm-simulate is at work'),
        alone_in(out, 'bidsharm-simulate'),
    ):
        pass
    with alone_in(out, 'bidsharm-train'):  # another command is no hindrance
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait(20)
    with alone_in(out, 'bidsharm-simulate'):
        pass
    assert list(out.iterdir()) == []


def test_a_second_simulation_leaves_the_first_alone(holder, tmp_path, capsys):
    code = simulate(
        [str(tmp_path / 'out'), '--subjects', '1', '--scanners', '1', '--resolution', '5', '--force']
    )
    assert code == ExitCode.USAGE
    assert 'Another bidsharm-simulate is at work in this folder.' in capsys.readouterr().err
    assert [item.name for item in (tmp_path / 'out').iterdir()] == ['.bidsharm-simulate.lock']


def test_a_hold_that_a_killed_process_left_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(alone, 'WAIT_S', 0.2)
    (tmp_path / '.bidsharm-simulate.lock').touch()
    started = time.monotonic()
    with alone_in(tmp_path, 'bidsharm-simulate'):
        assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / 'file').touch()
    with (
        pytest.raises(UsageError, match='cannot be written'),
        alone_in(tmp_path / 'file' / 'out', 'bidsharm-train'),
    ):
        pass
