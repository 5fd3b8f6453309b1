"""Kills, quickly: one SIGTERM and one SIGKILL of the participant level, and a worker that is killed while it works on a scan."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import kills
from shared import heads


@pytest.fixture(scope='module')
def command(tmp_path_factory: pytest.TempPathFactory) -> kills.Command:
    data = heads(tmp_path_factory.mktemp('data') / 'bids', resolution=4)
    line = kills.participant(data, 'zscore', '--work-dir', 'work')
    return kills.Command('participant', line)


@pytest.fixture(scope='module')
def expected(command: kills.Command, tmp_path_factory: pytest.TempPathFactory) -> kills.Undisturbed:
    return kills.undisturbed(command, tmp_path_factory.mktemp('undisturbed') / 'run')


@pytest.mark.parametrize(
    ('number', 'share'), [(signal.SIGTERM, 0.55), (signal.SIGKILL, 0.75)], ids=['SIGTERM', 'SIGKILL']
)
def test_a_killed_run_is_finished_by_the_same_command(command, expected, number, share, tmp_path):
    point = kills.try_point(command, tmp_path / 'point', number, share, expected)
    assert not point.wrong


def test_a_killed_worker_ends_the_run_and_its_scan_is_named(command, tmp_path):
    """A run that waits for ever for a lost worker would be found on Monday."""
    command.prepare(tmp_path / 'point')
    point = kills.Point(command, tmp_path / 'point')
    program = point.start()
    worker = None
    while worker is None and program.poll() is None:
        time.sleep(0.1)
        for process in psutil.Process(program.pid).children():
            # One that has started a program is at work.
            if '-c' not in process.cmdline() and process.children():
                worker = process
    assert worker is not None
    worker.kill()
    try:
        code = program.wait(120)
    except subprocess.TimeoutExpired:
        program.kill()
        pytest.fail('it hangs')
    words = ' '.join(point.words().split())
    assert code == 1, words
    assert 'sub-01_ses-northA_T1w' in words
    assert 'was ended by SIGKILL, probably because memory ran out' in words
    assert not kills.partial(point.out)
    point.to_the_end()
    assert not point.wrong


def test_what_is_partial_is_found(tmp_path):
    """The checks of this file can fail."""
    (tmp_path / 'sub-01_T1w.nii.gz').write_bytes(b'\x1f\x8b\x08half')
    (tmp_path / 'a.json').write_text('{"half": ')
    (tmp_path / 'a.html').write_text('<html>')
    (tmp_path / 'a.tsv').write_text('a\tb\n1')
    (tmp_path / 'whole.json').write_text('{}')
    found = [text.split(' ')[0] for text in kills.partial(tmp_path)]
    assert found == ['a.html', 'a.json', 'a.tsv', 'sub-01_T1w.nii.gz']
