"""What the methods of `zoo.py` made of one scan, side by side: the picture of docs/choosing.md.

HELD and WORK are those of `zoo.py`, whose result says which methods there are, and in which order. Every tile has the grey levels from 0 to the 99.5th percentile of its brain.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common
import numpy as np
import travelling

PICTURE = Path(__file__).parents[1] / 'docs' / 'images' / 'zoo.webp'
RESULT = Path(__file__).parent / 'results' / 'zoo.json'
COLUMNS = 9


def slice_of(volume: Any, mask: Any) -> Any:
    """Return the middle axial slice, in grey levels from 0 to 1."""
    middle = int(np.round(np.nonzero(mask)[2].mean()))
    top = np.percentile(volume[mask], 99.5)
    return np.rot90(np.clip(np.where(mask, volume, 0)[:, :, middle] / top, 0, 1))


def tiles(held: Path, work: Path, person: str, scanner: str, target: str) -> dict[str, Any]:
    """Return slices by title: the head, the scan and that of the target, and what methods made of the scan."""
    import nibabel as nib

    item = travelling.load(held, person, f'ses-{scanner}')
    theirs = travelling.load(held, person, f'ses-{target}')
    found = {
        'the head': slice_of(item.canonical, item.scan.mask),
        'the scan': slice_of(item.scan.data, item.scan.mask),
        'in the target': slice_of(theirs.scan.data, theirs.scan.mask),
    }
    for method in (row['method'] for row in json.loads(RESULT.read_text())['rows']):
        image = nib.load(item.harmonized(work / method))
        found[method] = slice_of(np.asarray(image.dataobj)[item.box], item.scan.mask)
    return found


def draw(found: dict[str, Any]) -> None:
    """Draw the tiles in the order of the table."""
    rows = -(-len(found) // COLUMNS)
    figure, panels = common.pyplot().subplots(
        rows, COLUMNS, figsize=(1.25 * COLUMNS, 1.75 * rows), squeeze=False
    )
    for panel in panels.flat:
        panel.axis('off')
    for panel, (title, tile) in zip(panels.flat, found.items(), strict=False):
        panel.imshow(tile, cmap='gray', vmin=0, vmax=1)
        panel.set_title(title, fontsize=7 if len(title) < 18 else 5)
    common.keep_picture(figure, PICTURE, pad=0.3)


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('held', type=Path, help='data set of bidsharm-simulate to judge on')
    arguments.add_argument('work', type=Path, help='folder of zoo.py')
    arguments.add_argument('--person', default='sub-04')
    arguments.add_argument('--scanner', default='southB')
    arguments.add_argument('--target', default=travelling.TARGET)
    args = arguments.parse_args()
    draw(tiles(args.held, args.work, args.person, args.scanner, args.target))
    print(PICTURE)


if __name__ == '__main__':
    main()
