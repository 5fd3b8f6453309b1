"""What a step uses, measured on steps that use known amounts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bidsharm.interfaces import usage
from bidsharm.interfaces.base import Interface, TraitedSpec, traits
from bidsharm.interfaces.usage import USAGE_FILE, measured, read_usage

linux = pytest.mark.skipif(
    sys.platform != 'linux', reason='the kernel keeps the peak of a process on Linux only'
)


def used(folder: Path) -> dict[str, float]:
    found = read_usage(folder)
    assert found is not None
    return found


@linux
def test_memory_that_is_held_for_a_moment_only(tmp_path: Path) -> None:
    """Shorter than the time between two looks, and not what the step before held."""
    for name, size in (('large', 300_000_000), ('small', 1000)):
        (tmp_path / name).mkdir()
        with measured(tmp_path / name):
            np.ones(size, np.uint8)
    more = used(tmp_path / 'large')['peak_gb'] - used(tmp_path / 'small')['peak_gb']
    assert more == pytest.approx(0.3, abs=0.05)


def test_memory_and_time_of_a_program_that_the_step_started(tmp_path: Path) -> None:
    work = 'import time\nblock = bytearray(300_000_000)\nwhile time.process_time() < 0.5: pass\n'
    with measured(tmp_path):
        base = usage.cpu_seconds()
        subprocess.run([sys.executable, '-c', work], check=True)
        spent = usage.cpu_seconds() - base
    assert used(tmp_path)['peak_gb'] > 0.3
    assert spent >= 0.5
    assert used(tmp_path)['cpu_seconds'] >= 0.5


def test_a_grandchild_counts(tmp_path: Path) -> None:
    inner = 'import time\nblock = bytearray(300_000_000)\ntime.sleep(0.8)'
    outer = f'import subprocess, sys\nsubprocess.run([sys.executable, "-c", {inner!r}])'
    with measured(tmp_path):
        subprocess.run([sys.executable, '-c', outer], check=True)
    assert used(tmp_path)['peak_gb'] > 0.3


def test_where_the_kernel_keeps_no_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is looked at, and what is held at a look is seen."""
    monkeypatch.setattr(usage, '_reset_peak', lambda: False)
    with measured(tmp_path):
        block = np.ones(300_000_000, np.uint8)
        subprocess.run([sys.executable, '-c', 'import time; time.sleep(0.5)'], check=True)
        del block
    assert used(tmp_path)['peak_gb'] > 0.3


class Fails(Interface):
    input_spec = output_spec = TraitedSpec

    def _compute(self, cwd: Path) -> dict[str, object]:
        raise ValueError('It broke.')


class Works(Interface):
    class output_spec(TraitedSpec):
        out = traits.Int()

    input_spec = TraitedSpec

    def _compute(self, cwd: Path) -> dict[str, object]:
        return {'out': 3}


def test_every_step_of_ours_is_measured_also_one_that_fails(tmp_path: Path) -> None:
    for kind in (Works, Fails):
        (folder := tmp_path / kind.__name__).mkdir()
        kind().run(cwd=str(folder), ignore_exception=True)
        assert 0 <= used(folder)['seconds'] < 60


@pytest.mark.parametrize(
    'content', [b'', b'{}', b'[1]', b'\xff', b'{"seconds": "x", "cpu_seconds": 1, "peak_gb": 1}']
)
def test_a_file_that_says_nothing(content: bytes, tmp_path: Path) -> None:
    assert read_usage(tmp_path) is None
    (tmp_path / USAGE_FILE).write_bytes(content)
    assert read_usage(tmp_path) is None


def test_a_folder_that_went_away_is_no_error(tmp_path: Path) -> None:
    (folder := tmp_path / 'gone').mkdir()
    with measured(folder):
        folder.rmdir()
    assert not folder.exists()


def test_a_step_does_not_fail_because_it_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr('threading.Thread.start', refuse)
    with measured(tmp_path):
        pass
    assert read_usage(tmp_path) is None
    with pytest.raises(ValueError, match='of the step'), measured(tmp_path):
        raise ValueError('of the step')
