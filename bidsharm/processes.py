"""Processes that end with the one that started them, and how one is known again.

``python -m bidsharm.processes PROGRAM ARGUMENTS...`` turns into a program that ends with the process that started it (on Linux).
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Names the process that a new one shall end with (:func:`as_parent`).
PARENT = 'BIDSHARM_PARENT'
#: How often a process looks for its parent where the kernel does not tell (seconds).
LOOK_S = 1.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Identity:
    """What tells a process from every other, also from a later one with its number.

    Parameters
    ----------
    machine
        The machine since it was started, and in a container the container (:func:`this_machine`).
    pid
        Number of the process.
    started
        When it was started, by a clock that nobody sets.
    """

    machine: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f'{self.machine}-{self.pid}-{self.started}'

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        """Return what :func:`str` made a text of; None where it is no such text."""
        machine, *numbers = text.split('-')
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            return None
        return cls(machine, *map(int, numbers))

    @property
    def here(self) -> bool:
        """Say whether it is a process of this machine, so that something can be known about it."""
        return self.machine == this_machine()

    @property
    def alive(self) -> bool:
        """Say whether a process of this machine still runs."""
        started = _start_of(self.pid)
        return _hidden(self.pid) if started is None else started == self.started


@functools.cache
def this_machine() -> str:
    """Return a short name of the machine: its host name, when it was started, and whose process numbers it counts.

    Containers may share the name of the machine, and still have process numbers of their own.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path('/proc/sys/kernel/random/boot_id').read_text())
    with contextlib.suppress(OSError):
        parts.append(os.readlink('/proc/self/ns/pid'))
    return f'{zlib.crc32(repr(parts).encode()):08x}'


def this_process() -> Identity:
    """Return what this process is known by."""
    return Identity(this_machine(), os.getpid(), _start_of(os.getpid()) or 0)


def _start_of(pid: int) -> int | None:
    """Return when a process was started; None where there is none, or only its remains."""
    try:
        # The name of the program stands in brackets and may hold anything.
        state, *numbers = Path(f'/proc/{pid}/stat').read_text(errors='replace').rpartition(')')[2].split()
        return None if state in 'ZX' else int(numbers[18])
    except OSError:
        if sys.platform == 'linux':
            return None
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time())
    except psutil.Error:
        return None


def _hidden(pid: int) -> bool:
    """Say whether a process runs of which the system tells nothing else: of another user (``hidepid``), or without ``/proc``."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return sys.platform == 'linux' and not os.path.exists('/proc/self/stat')


def as_parent() -> dict[str, str]:
    """Return the variable of the environment by which a program that is started here knows whom it ends with."""
    return {PARENT: str(this_process())}


def tether(parent: Identity | None = None) -> None:
    """End this process at once when its parent ends, however that ends.

    Nothing happens in a process that nobody of this package has started.

    Parameters
    ----------
    parent
        Who has to live; the one that the environment names (:func:`as_parent`) by default.
    """
    parent = parent or Identity.parse(os.environ.get(PARENT, ''))
    if parent is None or not parent.here:
        return
    asked = _ask_kernel()
    if not parent.alive:  # it ended before the kernel was asked
        os._exit(128 + signal.SIGKILL)
    # The kernel tells of the direct parent only; there may be a shell between.
    if not asked or os.getppid() != parent.pid:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _ask_kernel() -> bool:
    """Have the kernel kill this process with its parent, which Linux offers; holds for a program that takes its place."""
    if sys.platform != 'linux':
        return False
    import ctypes

    try:
        return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: Identity) -> None:
    while parent.alive:
        time.sleep(LOOK_S)
    os._exit(128 + signal.SIGKILL)


def begin_worker(parent: Identity) -> None:
    """Prepare a process of a pool: it ends with its parent, and what it starts ends with it.

    Parameters
    ----------
    parent
        The process that keeps the pool.
    """
    tether(parent)
    os.environ.update(as_parent())
    # Ctrl-C reaches all processes of a terminal; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_children() -> None:
    """Kill everything that this process has started, and what that has started."""
    import psutil

    end_processes(child.pid for child in psutil.Process().children())


def end_processes(numbers: Iterable[int], wait_s: float = 5.0) -> None:
    """Kill some processes and everything that they have started.

    Parameters
    ----------
    numbers
        Numbers of child processes.
    wait_s
        How long to look whether they are gone (seconds).
    """
    import psutil

    found: set[psutil.Process] = set()
    for number in numbers:
        with contextlib.suppress(psutil.Error):
            found.add(psutil.Process(number))
    deadline = time.monotonic() + wait_s
    while (left := [process for process in found if _runs(process)]) and time.monotonic() < deadline:
        # Stopped first, so that none starts another that is not seen.
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.suspend()
                found.update(process.children(recursive=True))
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def _runs(process: object) -> bool:
    import psutil

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # type: ignore[attr-defined]
    except psutil.Error:
        return False


def main(arguments: list[str] | None = None) -> None:
    """Turn into a program that ends with the process that started it."""
    command = sys.argv[1:] if arguments is None else arguments
    tether()
    os.execvp(command[0], command)


if __name__ == '__main__':
    main()
