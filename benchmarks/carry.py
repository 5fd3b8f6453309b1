"""Bringing a method's change back to the native grid, beside resampling its image back.

A real scan gets a known, smooth and non-linear change of intensity (a gamma curve times a slow field), once on the
1 mm model grid, as a network would, and once on the native voxels: the truth. Error: root mean square difference to
the truth inside the brain, over the standard deviation of the truth; sharpness: standard deviation of the finest
detail (image minus its mean over 3 voxels) relative to that of the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
from classical_real import load_scan
from scipy import ndimage


def change(image: Any, affine: Any, scale: float) -> Any:
    """Apply the known change: gamma 0.7 and a field of one period over 160 mm."""
    axis = np.arange(image.shape[0]) * np.linalg.norm(affine[:3, 0])
    field = 1 + 0.15 * np.sin(2 * np.pi * axis / 160)
    return np.clip(image / scale, 0, None) ** 0.7 * field[:, None, None]


def detail(image: Any, inside: Any) -> float:
    fine = image - ndimage.uniform_filter(image, 3)
    return float(fine[inside].std())


def compare(scan: Any) -> list[dict[str, Any]]:
    from bidsharm.imaging.carry import carry_change, local_change, model_grid
    from bidsharm.imaging.grids import resample

    native = np.where(scan.mask, scan.data, 0)
    scale = float(np.percentile(native[scan.mask], 90))
    shape, affine = model_grid(scan.mask, scan.affine)
    before = resample(native, scan.affine, shape, affine, order=3)
    on_grid = resample(scan.mask, scan.affine, shape, affine) > 0.5
    before = np.where(on_grid, before, 0)
    # The change knows the place in the world, so that both grids get the same one.
    offset = float(np.linalg.inv(scan.affine)[0] @ affine[:, 3]) * float(np.linalg.norm(scan.affine[:3, 0]))
    axis = np.arange(shape[0]) * float(np.linalg.norm(affine[:3, 0])) + offset
    after = (
        np.clip(before / scale, 0, None) ** 0.7 * (1 + 0.15 * np.sin(2 * np.pi * axis / 160))[:, None, None]
    )
    truth = np.where(scan.mask, change(native, scan.affine, scale), 0)
    ways = {
        'carry the change': carry_change(
            scan.data, scan.mask, scan.affine, local_change(before, after, affine)
        ),
        'resample (linear)': resample(after, affine, native.shape, scan.affine, order=1),
        'resample (cubic)': resample(after, affine, native.shape, scan.affine, order=3),
    }
    inside = ndimage.binary_erosion(scan.mask, iterations=2)
    rows = []
    for name, image in ways.items():
        error = float(np.sqrt(np.mean((image[inside] - truth[inside]) ** 2)) / truth[inside].std())
        rows.append(
            {
                'scan': scan.name,
                'way': name,
                'error': error,
                'sharpness': detail(image, inside) / detail(truth, inside),
            }
        )
    for row in rows:
        row['error, ratio to carrying'] = row['error'] / rows[0]['error']
    return rows


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('derivatives', type=Path, help='output of participant.py')
    args = arguments.parse_args()
    names = (
        'sub-forrest02*desc-T1w_qc.json',
        'sub-adi*desc-T1w_qc.json',
        'sub-adi*desc-T2w_qc.json',
        'sub-ms01_ses-1*desc-FLAIR_qc.json',
    )
    files = [next(args.derivatives.rglob(name)) for name in names]
    rows = [row for file in files for row in compare(load_scan(file))]
    text = (__doc__ or '').split('\n', 1)[1] + '\n' + common.table(rows)
    common.save('carry', title='Native detail', text=text, data={'rows': rows})


if __name__ == '__main__':
    main()
