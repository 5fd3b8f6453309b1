"""What the guard takes back of images of trained methods, and what it costs.

WORK is the folder of `zoo.py`, whose models are applied to scans of two people in two scanners that they have not seen (HELD, after N4, in the true brain mask). `own` is what a method
made; `windows of 3 mm` what is carried back without the guard, as a function of intensity that is linear in windows of 3 mm; `guard` what `--guard blend` gives. `truth` stands for a method that makes the
canonical image itself, without noise: nothing should be taken from that.

- detail, r: correlation of gradients and of intensities with those of the head as it is, without noise.
- left: a ball of 10, 20 or 30 mm is painted into the method's image, deep inside the brain, with a fifth of the range; how much of its height comes back.
- score: the guard's, without and with the ball of 20 mm. It warns from 0.15 on, and fails from 0.3 on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import travelling
from scipy import ndimage

SCANNERS, PEOPLE = ('southB', 'ultraX'), 2
#: Trained methods of several families, good and bad ones.
METHODS = (
    'att-unet',
    'cyclegan',
    'imunity',
    'single-modality',
    'style-blind',
    'unit',
    'calamiti',
    'blindharmony',
)
#: Widths of balls (mm), their height over the range of the image, and how deep in the brain they lie (mm).
WIDTHS, HEIGHT, DEPTH_MM = (10, 20, 30), 0.2, 18
TRUTH = 'truth'


def carried(before: Any, after: Any, mask: Any, affine: Any) -> tuple[dict[str, Any], float]:
    """Return an image as it is and as it is carried back without and with the guard, and the guard's score."""
    from bidsharm.harmonizers.guard import inspect, restrained
    from bidsharm.imaging.carry import carry_change, local_change, smooth_curves

    curves = smooth_curves(before, after, affine)
    finding = inspect(curves, before, after, mask, affine)
    image = carry_change(before, mask, affine, local_change(before, after, affine))
    guarded = restrained(image, curves, finding.span, before, mask, affine)
    return {'own': after, 'windows of 3 mm': image, 'guard': guarded}, finding.score


def balls(mask: Any, sizes: Any) -> dict[int, Any]:
    """Return balls of height 1 with soft borders, each at a place deep inside the brain."""
    depth = ndimage.distance_transform_edt(mask, sampling=sizes)
    deep, rng = np.argwhere(depth > DEPTH_MM), np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing='ij'), axis=-1)
    found = {}
    for width in WIDTHS:
        place = deep[rng.integers(len(deep))]
        away = np.sqrt((((grid - place) * sizes) ** 2).sum(axis=-1))
        found[width] = mask / (1 + np.exp((away - width / 2) / 0.7))
    return found


def measure(scan: Any, after: Any, head: Any) -> list[dict[str, Any]]:
    """Return a row for each way of carrying an image back."""
    from bidsharm.evaluation.similarity import gradient_ncc
    from bidsharm.imaging.grids import voxel_sizes

    mask, sizes = scan.data != 0, voxel_sizes(scan.affine)
    span = float(np.ptp(np.percentile(after[mask], [0.5, 99.5])))
    images, score = carried(scan.data, after, mask, scan.affine)
    rows = {
        way: {'way': way, 'detail': gradient_ncc(head, image, mask, tuple(sizes)), 'r': np.corrcoef(head[mask], image[mask])[0, 1]}
        for way, image in images.items()
    }  # fmt: skip
    for width, ball in balls(mask, sizes).items():
        found, painted = carried(
            scan.data, (after + HEIGHT * span * ball).astype(np.float32), mask, scan.affine
        )
        core = ball > 0.5
        for way, image in found.items():
            rows[way][f'left of {width} mm'] = (image - images[way])[core].mean() / (
                HEIGHT * span * ball[core].mean()
            )
        if width == 20:
            rows['guard'] |= {'score': score, 'score, 20 mm': painted}
    return list(rows.values())


def images_of(name: str, work: Path, scans: list[travelling.Travelled]) -> list[tuple[Any, Any, Any]]:
    """Return scans on the grid of a method, what it made of them, and the heads."""
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.native import on_model_grid
    from bidsharm.imaging.grids import resample

    method = None if name == TRUTH else bundle.load(work / 'models' / name / 'model')
    found = []
    for item in scans:
        scan = on_model_grid(
            replace(item.corrected, site=item.scanner), 2.0 if method is None else method.grid_mm
        )
        head = resample(item.canonical, item.scan.affine, scan.data.shape, scan.affine, order=1)
        after = head
        if method is not None:
            after = method.harmonize(scan, travelling.aim_of(method, travelling.TARGET)).image
        found.append((scan, np.where(scan.data != 0, after, 0).astype(np.float32), head))
    return found


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('held', type=Path, help='data set of bidsharm-simulate to judge on')
    arguments.add_argument('work', type=Path, help='folder of zoo.py')
    args = arguments.parse_args()
    scans = [item for item in travelling.load_all(args.held, count=PEOPLE) if item.scanner in SCANNERS]
    rows = []
    for name in (TRUTH, *METHODS):
        print(name, flush=True)
        measured = [measure(*one) for one in images_of(name, args.work, scans)]
        for ways in zip(*measured, strict=True):
            means = {key: float(np.mean([row[key] for row in ways])) for key in ways[0] if key != 'way'}
            rows.append({'method': name, 'way': ways[0]['way'], **means})
    rows = common.filled(rows)
    how = f'{PEOPLE} people, scanners {" and ".join(SCANNERS)}: means over {len(scans)} scans.'
    common.save(
        'guard',
        title='What the guard takes back',
        text=common.body(__doc__, how, rows),
        data={'rows': rows},
        seed=1,
    )


if __name__ == '__main__':
    main()
