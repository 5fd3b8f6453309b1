"""How many scans the simulator makes in a second: whole scans as `bidsharm-simulate` writes them, and scans to train on.

- whole: a T1w of 1 mm of a head, sampled, scanned and rounded; nothing is written.
- training: a brain at 2 mm in a random scanner, as `isotone` is trained on (`bidsharm.training.scans`).

Beside each, the same scan without any error, so that what the physics costs shows as a ratio. With `--device cuda` the training source
runs on a GPU; the ratio to the CPU of the same machine is then printed, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import common


def rate(function: Callable[[], Any], seconds: float) -> float:
    """Return how often a function runs in a second, after one run that does not count."""
    function()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        function()
        count += 1
    return count / (time.perf_counter() - started)


def whole(seconds: float) -> list[dict[str, Any]]:
    import numpy as np

    from bidsharm.simulation.acquisition import acquire, canonical_image
    from bidsharm.simulation.heads import load_template
    from bidsharm.simulation.presets import PRESETS
    from bidsharm.simulation.rendering import render, scan_grid
    from bidsharm.simulation.warps import random_warp

    head = load_template()
    shape, affine = scan_grid(1.0)
    warp = random_warp(np.random.default_rng(0))
    seen = render(head, shape=shape, affine=affine, warp=warp)
    rates = {
        'whole, sampling the head': rate(
            lambda: render(head, shape=shape, affine=affine, warp=warp), seconds
        ),
        'whole, scanning it': rate(
            lambda: acquire(seen, PRESETS[1], 'T1w', np.random.default_rng(0)), seconds
        ),
        'whole, scanning it without error': rate(lambda: canonical_image(seen, 'T1w'), seconds),
    }
    return [{'what': what, 'per second': value} for what, value in rates.items()]


def training(seconds: float, device: str) -> list[dict[str, Any]]:
    import torch

    from bidsharm.training.brains import draw_brains
    from bidsharm.training.isotone import make_example
    from bidsharm.training.scans import ScanSource

    brains = list(draw_brains([None], 2, seed=0))
    rows = []
    for place in dict.fromkeys(('cpu', device)):
        source = ScanSource(brains, 'T1w', seed=0, scanners=200, device=place)
        generator = torch.Generator(device=place).manual_seed(0)

        def make(source: Any = source, generator: Any = generator) -> None:
            make_example(source.draw(), generator)
            if source.device.type == 'cuda':
                torch.cuda.synchronize()

        rows.append({'what': f'training, {place}', 'per second': rate(make, seconds)})
    return rows


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('--device', default='cpu')
    arguments.add_argument('--seconds', type=float, default=20.0, help='for each row')
    args = arguments.parse_args()
    rows = whole(args.seconds) + training(args.seconds, args.device)
    text = (__doc__ or '').split('\n', 1)[1] + '\n' + common.table(rows)
    common.save('simulator_speed', title='Speed of the simulator', text=text, data={'rows': rows}, seed=0)
    print(common.table(rows))


if __name__ == '__main__':
    main()
