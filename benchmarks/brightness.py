"""How much of the error of a canonical image is the brightness of a whole brain, which a scan in arbitrary units hardly tells?

HELD and WORK are those of `travelling.py`, whose images are read. People differ in relaxation times, so one brain of a data set is brighter than another in the
canonical scanner, truly; but every scanner multiplies what it sees by a number of its own, and that hides it.

- PSNR: as `bidsharm-evaluate` has it, in dB; range and mask are those of the canonical image.
- matched: the same after the one factor per scan that brings it nearest to the truth.
- people: standard deviation between people of that factor, of its mean over their scanners. visits: within a person, between scanners. A method whose factors
  differ between people and agree within is wrong about people and right about scanners.

The canonical scanner itself is left out. Means over scans, and over people where intervals are given (bootstrap, 95 %).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
import travelling


def measured(item: travelling.Travelled, work: Path, method: str) -> tuple[float, float, float]:
    """Return the PSNR of an image, that after the best factor, and the factor."""
    import nibabel as nib

    from bidsharm.evaluation.similarity import psnr

    image = np.asarray(nib.load(item.harmonized(work / method)).dataobj, dtype=np.float64)[item.box]
    truth, mask = item.canonical.astype(np.float64), item.scan.mask
    factor = float(image[mask] @ truth[mask] / (image[mask] @ image[mask]))
    return psnr(truth, image, mask), psnr(truth, factor * image, mask), factor


def row_of(method: str, found: np.ndarray[Any, Any], seed: int) -> dict[str, Any]:
    """Return the row of a method, from what was measured of it, shape (people, scanners, 3)."""
    people = found.mean(axis=1)
    gained = people[:, 1] - people[:, 0]
    factors = found[..., 2]
    return {
        'method': method, 'PSNR': round(float(people[:, 0].mean()), 2), 'matched': round(float(people[:, 1].mean()), 2),
        'gained': common.with_interval(gained, 2, seed=seed),
        'people': round(float(factors.mean(axis=1).std(ddof=1)), 4), 'visits': round(float(factors.std(axis=1, ddof=1).mean()), 4),
    }  # fmt: skip


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('held', type=Path, help='data set of bidsharm-simulate')
    arguments.add_argument('work', type=Path, help='folder of travelling.py')
    arguments.add_argument('--contrast', default='T1w')
    arguments.add_argument(
        '--methods', nargs='+', default=['robust', 'N4 + nyul', 'isotone', 'unet', 'oracle']
    )
    arguments.add_argument('--name', default='brightness', help='of the result')
    args = arguments.parse_args()
    scans = [
        item for item in travelling.load_all(args.held, args.contrast) if item.scanner != travelling.TARGET
    ]
    people, scanners = {item.person for item in scans}, {item.scanner for item in scans}
    rows = []
    for method in args.methods:
        if (args.work / method).is_dir():
            found = np.reshape([measured(item, args.work, method) for item in scans], (len(people), -1, 3))
            rows.append(row_of(method, found, seed=2026))
    about = f'{len(people)} people, {len(scanners)} scanners, {args.contrast}.'
    common.save(
        args.name,
        title='Brightness of whole brains',
        text=common.body(__doc__, about, rows),
        data={'rows': rows},
        seed=2026,
    )


if __name__ == '__main__':
    main()
