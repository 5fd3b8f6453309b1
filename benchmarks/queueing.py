"""A queue of scans before cores and GPUs, in simulated time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Seconds of one scan: ``before`` and ``after`` on ``cores`` cores, and ``gpu`` on one GPU between them."""

    before: float
    gpu: float
    after: float
    cores: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a simulated cluster did: hours until all was done, and how busy its cores and GPUs were (0 to 1)."""

    hours: float
    cores_busy: float
    gpus_busy: float


def simulate(costs: list[Cost], cores: int, gpus: int) -> Outcome:
    """Let scans go through cores, a GPU, and cores again, first come first served; finishing goes before starting.

    Parameters
    ----------
    costs
        One entry a scan, in the order in which they are submitted.
    cores, gpus
        What the cluster has. A scan holds no core while it waits for a GPU, as with one job a step.
    """
    events: list[tuple[float, int, int]] = []  # when, which scan, which stage has ended
    waiting: tuple[list[int], list[int], list[int]] = (list(range(len(costs)))[::-1], [], [])
    free = {'cores': cores, 'gpus': gpus}
    now = busy_cores = busy_gpus = 0.0
    while True:
        while waiting[1] and free['gpus']:
            scan = waiting[1].pop()
            free['gpus'] -= 1
            busy_gpus += costs[scan].gpu
            heapq.heappush(events, (now + costs[scan].gpu, scan, 1))
        ends_now = bool(events) and events[0][0] <= now  # first all that ends at this moment, then who starts
        for stage in () if ends_now else (2, 0):
            while waiting[stage] and free['cores'] >= costs[waiting[stage][-1]].cores:
                scan = waiting[stage].pop()
                seconds = costs[scan].after if stage else costs[scan].before
                free['cores'] -= costs[scan].cores
                busy_cores += seconds * costs[scan].cores
                heapq.heappush(events, (now + seconds, scan, stage))
        if not events:
            break
        now, scan, stage = heapq.heappop(events)
        if stage == 1:
            free['gpus'] += 1
        else:
            free['cores'] += costs[scan].cores
        if stage < 2:
            waiting[stage + 1].insert(0, scan)
    return Outcome(now / 3600, busy_cores / (now * cores), busy_gpus / (now * gpus) if gpus else 0.0)
