"""What this process may use: cores and memory, seen through containers and schedulers."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

#: Where control groups (version 2 and 1) are mounted, as a container sees its own.
CGROUP = Path('/sys/fs/cgroup')
#: In which of them this process is; jobs of a scheduler have one of their own below the top.
OWN_GROUPS = Path('/proc/self/cgroup')

#: Files that a process may have open where it has to ask for more than it was given.
OPEN_FILES = 65536


def allow_open_files() -> None:
    """Raise the number of files that this process may have open, as far as it may do so itself."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(OSError, ValueError):  # some systems have a limit of their own below that
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def available_cores() -> int:
    """Return how many cores this process may run on."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return max(min(cores, math.ceil(_cpu_quota())), 1)


def _cpu_quota() -> float:
    """Return how many cores the time given to the container is worth; as many as there are without a limit."""
    limits = [float(os.cpu_count() or 1)]
    for folder in _groups('cpu'):
        for files in (('cpu.max',), ('cpu.cfs_quota_us', 'cpu.cfs_period_us')):
            try:
                quota, period = ' '.join((folder / name).read_text() for name in files).split()
                if int(quota) > 0:
                    limits.append(int(quota) / int(period))
            except (OSError, ValueError, ZeroDivisionError):
                continue  # no such file, or "max": no limit
    return min(limits)


def _groups(controller: str) -> list[Path]:
    """Return the folders of the control groups that this process is in, up to the top; each may have a limit."""
    found = [CGROUP, CGROUP / controller]
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(':', 2)
        parts = [part for part in path.split('/') if part]
        if '..' in parts or (controllers and controller not in controllers.split(',')):
            continue
        top = CGROUP / controller if controllers else CGROUP
        found += [top.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return found


def available_memory_gb() -> float:
    """Return 90 % of the memory of the machine, of the container or of the job, in GB."""
    limits = []
    try:
        limits.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
    except (ValueError, OSError):
        limits.append(8_000_000_000)
    for folder in _groups('memory'):
        for name in ('memory.max', 'memory.limit_in_bytes'):
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):
                continue
    limits += _of_slurm()
    return round(0.9 * min(limits) / 1e9, 1)


def _of_slurm() -> list[int]:
    """Return the memory that a job of SLURM has asked for, in bytes; clusters that do not enforce it still count on it."""
    found = []
    for name, times in (
        ('SLURM_MEM_PER_NODE', '1'),
        ('SLURM_MEM_PER_CPU', os.environ.get('SLURM_CPUS_ON_NODE', '')),
    ):
        try:
            amount = int(os.environ[name]) * int(times) * 2**20
        except (KeyError, ValueError):
            continue
        if amount > 0:  # 0: all there is
            found.append(amount)
    return found
