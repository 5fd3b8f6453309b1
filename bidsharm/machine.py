"""What this process may use: cores and memory, seen through containers and schedulers."""

from __future__ import annotations

import math
import os
from pathlib import Path

#: Where control groups (version 2 and 1) are mounted, as a container sees its own.
CGROUP = Path('/sys/fs/cgroup')


def available_cores() -> int:
    """Return how many cores this process may run on."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return max(min(cores, math.ceil(_cpu_quota())), 1)


def _cpu_quota() -> float:
    """Return how many cores the time given to the container is worth; as many as there are without a limit."""
    for files in (('cpu.max',), ('cpu/cpu.cfs_quota_us', 'cpu/cpu.cfs_period_us')):
        try:
            quota, period = ' '.join((CGROUP / name).read_text() for name in files).split()
            if int(quota) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # no such file, or "max": no limit
    return float(os.cpu_count() or 1)


def available_memory_gb() -> float:
    """Return 90 % of the memory of the machine or of the container, in GB."""
    limits = []
    try:
        limits.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
    except (ValueError, OSError):
        limits.append(8_000_000_000)
    for name in ('memory.max', 'memory/memory.limit_in_bytes'):
        try:
            limits.append(int((CGROUP / name).read_text()))
        except (OSError, ValueError):
            continue
    return round(0.9 * min(limits) / 1e9, 1)
