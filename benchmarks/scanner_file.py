"""Write built-in scanners with changes as a file for `bidsharm-simulate --scanners`.

With --noise-free they have no noise, motion and ghosts: what is left is what a harmonizer can remove (sequence, coils, transmit field) and resolution.
With --voxel-mm all protocols have voxels of one size, for benchmarks on a processor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

#: Of white matter; noise is then far below a grey level.
SNR = 10_000.0
QUIET = {
    'snr': SNR, 'motion_events': 0, 'motion_degrees': 0.0, 'motion_millimetres': 0.0, 'ghost_intensity': 0.0,
}  # fmt: skip


def changed(scanner: Any, *, noise_free: bool, voxel_mm: float | None) -> dict[str, Any]:
    """Return a scanner as a mapping, with changes."""
    content: dict[str, Any] = scanner.to_dict()
    for protocol in content['protocols']:
        if noise_free:
            protocol |= QUIET
        if voxel_mm:
            protocol |= {'voxel_size': [voxel_mm] * 3, 'slice_gap': 0}
    return content


def main() -> None:
    from bidsharm.simulation.presets import PRESETS

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument('out', type=Path, help='JSON file')
    arguments.add_argument('labels', nargs='+', help='built-in scanners')
    arguments.add_argument('--noise-free', action='store_true')
    arguments.add_argument('--voxel-mm', type=float)
    args = arguments.parse_args()
    known = {scanner.label: scanner for scanner in PRESETS}
    found = [
        changed(known[label], noise_free=args.noise_free, voxel_mm=args.voxel_mm) for label in args.labels
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({'scanners': found}, indent=2))


if __name__ == '__main__':
    main()
