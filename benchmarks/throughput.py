"""Training steps a second, next to a plain loop over the same networks, losses and batches.

The plain loop draws a batch, and for each player adds up the losses, goes back through them and takes a step of AdamW: what one would write by hand. That
of bidsharm draws the next batch meanwhile, checks that losses are numbers, averages weights where the method does, and can be interrupted; its
checkpoints and pictures are left out here. Both run in turn on the same threads, each for as many steps as the plain loop needs some seconds for; a ratio
above 1 says that bidsharm is faster. Networks are small, so that what is beside them counts.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

#: Slices of three axes, whole volumes in 3-D, and patches; adversarial with two and four networks, and without any adversary.
METHODS: dict[str, dict[str, Any]] = {
    'deepharmony': {'voxel_mm': 2.0, 'batch': 8},
    'cyclegan': {'voxel_mm': 2.0, 'batch': 4},
    'iguane': {'voxel_mm': 4.0, 'batch': 1},
    'unet3d-cgan': {'voxel_mm': 2.0, 'batch': 2},
}
PEOPLE, SCANNERS, SEED = 3, 2, 2026


def prepared(name: str, people: Any) -> tuple[Any, Any]:
    """Return an untrained method on simulated scans, and what draws its batches."""
    import torch

    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Cohort
    from bidsharm.harmonizers.training_data import training_set

    kind: Any = registry.find(name)
    method = kind(settings=kind.preset('tiny', **METHODS[name]))
    data = training_set(Cohort(people), method.settings)
    method.sites, method.contrasts, method.target_site = data.sites, data.contrasts, data.sites[0]
    torch.manual_seed(SEED)
    method.networks, method.data = torch.nn.ModuleDict(method.build()), data
    return method, method.sampler(data)


def ours(method: Any, sampler: Any, steps: int) -> None:
    """Train with the loop of bidsharm."""
    from bidsharm.training.loop import Loop
    from bidsharm.training.options import Budget, Running

    Loop(method, sampler, Running(seed=SEED, budget=Budget(steps), interval=10**9)).run()


def plain(method: Any, sampler: Any, steps: int) -> None:
    """Train with a loop as one would write it."""
    import torch

    rng = np.random.default_rng(SEED)
    optimizers = {
        name: torch.optim.AdamW([w for part in player.networks for w in method.networks[part].parameters()], lr=player.rate)
        for name, player in method.players.items()
    }  # fmt: skip
    stage = method.stages[0].name
    method.networks.train()
    method.begin(stage)
    method.more = lambda: sampler.draw(rng)
    for step in range(steps):
        method.done = step / steps
        for player, losses in method.losses(sampler.draw(rng), stage):
            optimizers[player].zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizers[player].step()


def rate(loop: Callable[[Any, Any, int], None], method: Any, sampler: Any, steps: int) -> float:
    """Return steps a second."""
    started = time.perf_counter()
    loop(method, sampler, steps)
    return steps / (time.perf_counter() - started)


def compared(name: str, people: Any, seconds: float, rounds: int) -> dict[str, Any]:
    """Return the row of a method; turns last about some seconds, and at least five steps."""
    method, sampler = prepared(name, people)
    for loop in (ours, plain):
        loop(method, sampler, 3)
    steps = max(5, round(seconds * rate(plain, method, sampler, 3)))
    pairs = []
    for turn in range(rounds):
        order = (ours, plain) if turn % 2 else (plain, ours)
        found = {loop: rate(loop, method, sampler, steps) for loop in order}
        pairs.append((found[ours], found[plain]))
    ratios = sorted(one / other for one, other in pairs)
    size = sum(value.numel() for value in method.networks.parameters())
    row = {
        'method': name, 'weights': size, 'batch': method.settings.batch, 'steps of a turn': steps,
        'steps/s': round(statistics.median(one for one, _ in pairs), 2), 'plain loop': round(statistics.median(other for _, other in pairs), 2),
        'ratio': f'{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})',
    }  # fmt: skip
    print(row, flush=True)
    return row


def main() -> None:
    import torch

    from bidsharm.harmonizers.simulated_source import simulated

    arguments = common.parser(__doc__)
    arguments.add_argument('--seconds', type=float, default=15, help='of each turn')
    arguments.add_argument('--rounds', type=int, default=6, help='turns of both loops')
    arguments.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        drawn = simulated(
            [], people=PEOPLE, scanners=SCANNERS, contrasts=['T1w'], seed=SEED, folder=Path(folder)
        )
        people = [source.read() for source in drawn]
    rows = [compared(name, people, args.seconds, args.rounds) for name in METHODS]
    about = f'{args.rounds} turns of about {args.seconds:g} s with {args.threads} threads; medians, and the range of the ratio.'
    common.save(
        'throughput',
        title='Training steps a second',
        text=common.body(__doc__, about, rows),
        data={'rows': rows},
        seed=SEED,
    )


if __name__ == '__main__':
    main()
