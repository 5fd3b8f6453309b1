"""Seconds and memory of every method on one T1w of 1 mm: a simulated head, brain mask and all.

Methods that learn a target learn it from three scans beforehand; that is not counted. Seconds: median of three runs after one that is not
counted, and their ratio to `robust`. Memory: the largest resident set of a process that loads the scan and harmonizes it, and what
it has over one that only loads it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import common


def scan_of(seed: int) -> Any:
    """Return a simulated brain of 1 mm."""
    import numpy as np

    from bidsharm.harmonizers.contract import Scan
    from bidsharm.imaging.grids import bounding_box, crop_affine
    from bidsharm.simulation.acquisition import acquire
    from bidsharm.simulation.heads import load_template
    from bidsharm.simulation.presets import PRESETS
    from bidsharm.simulation.rendering import render, scan_grid
    from bidsharm.simulation.warps import random_warp

    shape, affine = scan_grid(1.0)
    head = load_template(head=False)
    seen = render(head, shape=shape, affine=affine, warp=random_warp(np.random.default_rng(seed)))
    found = acquire(seen, PRESETS[seed], 'T1w', np.random.default_rng(seed))
    mask = seen.brain_mask
    box = bounding_box(mask, 6)
    return Scan(
        found.stored[box].astype(np.float32),
        mask[box],
        crop_affine(affine, box),
        'T1w',
        f'scan{seed}',
        site='x',
    )


def ready(name: str, scans: list[Any]) -> tuple[Any, Any]:
    """Return a method and its target, learnt where it has to be."""
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Canonical, Cohort

    method = registry.get(name)()
    if method.card.needs_fit:
        method.fit(Cohort(scans), target=Canonical(), seed=0)
    return method, Canonical()


def pack(scans: list[Any]) -> bytes:
    """Return scans as the bytes of an npz file."""
    import io

    import numpy as np

    parts = {f'{n}{i}': getattr(scan, n) for i, scan in enumerate(scans) for n in ('data', 'mask', 'affine')}
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    return buffer.getvalue()


def read(content: bytes) -> list[Any]:
    """Return what :func:`pack` packed."""
    import io

    import numpy as np

    from bidsharm.harmonizers.contract import Scan

    with np.load(io.BytesIO(content), allow_pickle=False) as kept:
        return [
            Scan(kept[f'data{i}'], kept[f'mask{i}'], kept[f'affine{i}'], 'T1w', f'scan{i}', site='x')
            for i in range(len(kept.files) // 3)
        ]


def alone(name: str) -> None:
    """Print the largest resident set (GB) before and after one scan."""
    scans = read(sys.stdin.buffer.read())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method, target = ready(name, scans)
    method.harmonize(scans[0], target)
    print(before / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def main() -> None:
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Cohort

    arguments = common.parser(__doc__)
    arguments.add_argument('--alone', help='for one process of its own')
    args = arguments.parse_args()
    if args.alone:
        alone(args.alone)
        return
    scans = [scan_of(seed) for seed in (1, 2, 3)]
    packed = pack(scans)
    rows: list[dict[str, Any]] = []
    for name in registry.could_run(Cohort(scans).offers):
        method, target = ready(name, scans)
        method.harmonize(scans[0], target)
        seconds = common.repeat(lambda m=method, t=target: m.harmonize(scans[0], t), 3)
        process = subprocess.run(
            [sys.executable, __file__, '--alone', name],
            input=packed,
            capture_output=True,
            check=True,
        )
        before, after = (float(text) for text in process.stdout.split())
        rows.append({'method': name, 'seconds': seconds, 'GB': after, 'GB more': after - before})
        print(rows[-1], flush=True)
    robust = next(row['seconds'] for row in rows if row['method'] == 'robust')
    for row in rows:
        row['over robust'] = row['seconds'] / robust
    shape = ' x '.join(str(n) for n in scans[0].data.shape)
    text = f'Brain of {shape} voxels.\n{(__doc__ or "").split(chr(10), 1)[1]}\n{common.table(rows)}'
    common.save('cost', title='Seconds and memory of a scan', text=text, data={'rows': rows}, seed=1)


if __name__ == '__main__':
    main()
