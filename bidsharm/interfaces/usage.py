"""What a step uses: seconds, CPU seconds of it and of the programs that it started, and its peak of memory.

Memory is what the step needs beyond what all processes share: pages of libraries, and those that a worker got from
the process it was forked from, are counted in parts. It is the larger of two figures: the peak of the step's own process,
which the kernel keeps (Linux only), and the sum over it and its child processes, looked at ten times a second.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

#: File in the folder of a step that says what it used.
USAGE_FILE = 'usage.json'

#: Seconds between two looks at the memory; longer where a look takes long.
INTERVAL_S = 0.1

_RESET_PEAK = '5'  # for /proc/self/clear_refs, see proc(5)

#: Why something cannot be measured, such as a full disk, too many files or threads; a step must not fail for this.
_UNABLE = (OSError, RuntimeError, psutil.Error)


@contextlib.contextmanager
def measured(folder: Path) -> Iterator[None]:
    """Measure what is done inside, also if it fails, and write it to :data:`USAGE_FILE` of a folder."""
    meter = Meter()
    with contextlib.suppress(*_UNABLE):
        meter.start()
    try:
        yield
    finally:
        with contextlib.suppress(*_UNABLE):
            (folder / USAGE_FILE).write_text(json.dumps(meter.stop()))


def read_usage(folder: Path) -> dict[str, float] | None:
    """Return what :func:`measured` wrote into a folder, or None."""
    try:
        used = json.loads((folder / USAGE_FILE).read_text())
        return {name: float(used[name]) for name in ('seconds', 'cpu_seconds', 'peak_gb')}
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Meter:
    """Measures this process and its children between :meth:`start` and :meth:`stop`."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.peak = 0
        self.shared = 0
        self.resets = False
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begin."""
        self.began, self.cpu = time.perf_counter(), cpu_seconds()
        self.shared = self.process.memory_info().rss - _held(self.process)
        self.resets = _reset_peak()
        self.thread.start()

    def stop(self) -> dict[str, float]:
        """Return seconds, CPU seconds, and the peak of memory in GB."""
        self.ended.set()
        self.thread.join()
        self._look()
        own = _own_peak() - self.shared if self.resets else 0
        return {
            'seconds': round(time.perf_counter() - self.began, 3),
            'cpu_seconds': round(cpu_seconds() - self.cpu, 3),
            'peak_gb': round(max(self.peak, own) / 1e9, 3),
        }

    def _watch(self) -> None:
        pause = 0.0
        while not self.ended.wait(pause):
            began = time.perf_counter()
            with contextlib.suppress(*_UNABLE):
                self._look()
            pause = max(INTERVAL_S, 20 * (time.perf_counter() - began))

    def _look(self) -> None:
        """Take the sum over the processes that live now; the own one is asked for what costs nothing to know."""
        total = self.process.memory_info().rss - self.shared
        for child in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                total += _held(child)
        self.peak = max(self.peak, total)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def _held(process: Any) -> int:
    """Return the memory of a process, in bytes; what it shares counts in parts where the system tells."""
    try:
        full = process.memory_full_info()
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    return int(getattr(full, 'pss', 0) or full.uss)


def _reset_peak() -> bool:
    """Let the kernel count the peak of this process anew; say whether it can."""
    if sys.platform != 'linux':
        return False
    try:
        Path('/proc/self/clear_refs').write_text(_RESET_PEAK)
        _own_peak()
    except (OSError, StopIteration):
        return False
    return True


def _own_peak() -> int:
    """Return the peak of this process since the last reset, in bytes."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith('VmHWM:')).split()[1])
