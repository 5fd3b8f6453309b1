"""What this process may use: cores and memory, seen through containers and schedulers."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """Return how many cores this process may run on."""
    try:
        return max(len(os.sched_getaffinity(0)), 1)
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def available_memory_gb() -> float:
    """Return 90 % of the memory of the machine or of the container, in GB."""
    limits = []
    try:
        limits.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
    except (ValueError, OSError):
        limits.append(8_000_000_000)
    for name in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
        try:
            limits.append(int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return round(0.9 * min(limits) / 1e9, 1)
