"""Write built-in scanners without noise, motion and ghosts as a file for `bidsharm-simulate --scanners`.

What is left is what a harmonizer can remove: sequence, coils, transmit field; and resolution.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

#: Of white matter; noise is then far below a grey level.
SNR = 10_000.0


def quiet(scanner: Any) -> dict[str, Any]:
    """Return a scanner without noise as a mapping."""
    content: dict[str, Any] = scanner.to_dict()
    for protocol in content['protocols']:
        protocol |= {
            'snr': SNR,
            'motion_events': 0,
            'motion_degrees': 0.0,
            'motion_millimetres': 0.0,
            'ghost_intensity': 0.0,
        }
    return content


def main() -> None:
    from bidsharm.simulation.presets import PRESETS

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument('out', type=Path, help='JSON file')
    arguments.add_argument('labels', nargs='+', help='built-in scanners')
    args = arguments.parse_args()
    known = {scanner.label: scanner for scanner in PRESETS}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({'scanners': [quiet(known[label]) for label in args.labels]}, indent=2))


if __name__ == '__main__':
    main()
