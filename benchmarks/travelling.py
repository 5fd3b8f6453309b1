"""Methods on simulated people who travel, against the truth: heads and scanners that `isotone` has never seen.

HELD is a data set of `bidsharm-simulate` (the Makefile has the command): anatomies that are not in the training of `isotone`, in
built-in scanners, none of which is either. Every method gets the raw scan in the true brain mask, or the same after N4. Methods that
learn a target learn it from the canonical images of the other people. Measures, means over people and scanners:

- PSNR, SSIM, MAE: harmonized scan against the same head in the canonical scanner without noise, in units of the latter's range.
- WD: 1-Wasserstein distance of both distributions, in the same units.
- transfer: Dice (mean of CSF, GM, WM) of a classifier of intensity, learnt from the other people's scans in one scanner, on a person's
  scan in another.
- GM r: correlation over all scans of the GM fraction that a classifier of canonical images finds with the true one.
- lesion: contrast of lesions to white matter around them, after over before; 1 is kept.
- p: paired t test of the person's mean PSNR against `isotone`, Holm-corrected.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np

METHODS = ('robust', 'zscore', 'whitestripe', 'nyul', 'histogram', 'isotone')
#: Those that are also tried after N4.
AFTER_N4 = ('robust', 'histogram', 'isotone')
TARGET = 'northA'


@dataclass(frozen=True)
class Travelled:
    """One scan of one person in one scanner, cut to the brain, with the truth."""

    person: str
    scanner: str
    scan: Any
    corrected: Any
    canonical: Any
    labels: Any
    gm_fraction: float
    lesions: Any
    spacing: tuple[float, float, float]


def load(held: Path, person: str, session: str) -> Travelled:
    """Read a scan and its truth."""
    import nibabel as nib

    from bidsharm.harmonizers.contract import Scan
    from bidsharm.imaging.grids import bounding_box, crop_affine, voxel_sizes

    stem = f'{person}_{session}'
    truth = held / 'derivatives' / 'truth' / person / session / 'anat'

    def read(path: Path) -> Any:
        return np.asarray(nib.load(path).dataobj)

    image = nib.load(held / person / session / 'anat' / f'{stem}_T1w.nii.gz')
    mask = read(truth / f'{stem}_desc-brain_mask.nii.gz') > 0
    box = bounding_box(mask, 6)
    affine = crop_affine(image.affine, box)
    inside, data = mask[box], np.asarray(image.dataobj, dtype=np.float32)[box]
    labels = read(truth / f'{stem}_dseg.nii.gz')[box]
    fractions = [
        read(truth / f'{stem}_label-{name}_probseg.nii.gz')[box][inside].sum() for name in ('CSF', 'GM', 'WM')
    ]
    x, y, z = voxel_sizes(affine)
    scan = Scan(data, inside, affine, 'T1w', f'{stem}_T1w')
    return Travelled(
        person, session.removeprefix('ses-'), scan, correct(scan),
        read(truth / f'{stem}_desc-canonical_T1w.nii.gz')[box].astype(np.float32), np.where(labels > 3, 0, labels),
        float(fractions[1] / sum(fractions)), read(truth / f'{stem}_label-lesion_mask.nii.gz')[box] > 0, (x, y, z),
    )  # fmt: skip


def correct(scan: Any) -> Any:
    """Return a scan after N4 with the levels that the app uses."""
    import ants

    from bidsharm.imaging.bias import apply_field, coarse_copy

    copy = coarse_copy(scan.data, scan.mask, scan.affine)
    spacing = tuple(float(n) for n in np.abs(np.diag(copy.affine)[:3]))
    image, mask = (
        ants.from_numpy(np.asarray(part, dtype=np.float32), spacing=spacing)
        for part in (copy.data, copy.mask)
    )
    field = ants.n4_bias_field_correction(
        image, mask=mask, shrink_factor=2, spline_param=200, convergence={'iters': [50] * 3, 'tol': 1e-7},
        return_bias_field=True,
    ).numpy()  # fmt: skip
    corrected, _ = apply_field(scan.data, scan.mask, scan.affine, field, copy.affine, shift=copy.shift)
    return replace(scan, data=corrected)


def harmonize_all(
    name: str, scans: Sequence[Travelled], n4: bool
) -> tuple[dict[tuple[str, str], Any], float]:
    """Return every harmonized image by person and scanner, and the median seconds of a scan."""
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Canonical, Cohort, Site

    images, seconds = {}, []
    for person in sorted({item.person for item in scans}):
        method = registry.get(name)()
        target: Any = Canonical()
        if name != 'isotone':
            others = [item for item in scans if item.person != person and item.scanner == TARGET]
            examples = [replace(item.scan, data=item.canonical, site='canonical') for item in others]
            target = Site('canonical')
            method.fit(Cohort(examples), target=target, seed=0)
        for item in scans:
            if item.person == person:
                started = time.perf_counter()
                found = method.harmonize(item.corrected if n4 else item.scan, target)
                seconds.append(time.perf_counter() - started)
                images[item.person, item.scanner] = found.image
                if name == 'isotone':
                    print(
                        item.person,
                        item.scanner,
                        {k: v for k, v in found.details.items() if k != 'curve'},
                        flush=True,
                    )
    return images, statistics.median(seconds)


def judge(scans: Sequence[Travelled], images: dict[tuple[str, str], Any]) -> list[dict[str, Any]]:
    """Return the measures of every scan but those of the canonical scanner."""
    from bidsharm.evaluation import overlap, similarity
    from bidsharm.evaluation.transfer import Head, IntensityClassifier, transfer

    rows = []
    for item in scans:
        image, mask = images[item.person, item.scanner], item.scan.mask
        others = [
            Head(o.person, o.canonical[o.scan.mask], o.labels[o.scan.mask])
            for o in scans
            if o.person != item.person and o.scanner == TARGET
        ]
        found = transfer(IntensityClassifier.fit(others), Head(item.person, image[mask], item.labels[mask]))
        scale = similarity.reference_scale(item.canonical, mask)
        quantiles = [
            np.quantile(scale(part[mask]), np.linspace(0, 1, 501)) for part in (item.canonical, image)
        ]
        white = (item.labels == 2) & ~item.lesions
        lesion = overlap.lesion_contrast(item.scan.data, image, item.lesions, white, item.spacing)
        rows.append({
            'person': item.person, 'scanner': item.scanner,
            'PSNR': similarity.psnr(item.canonical, image, mask), 'SSIM': similarity.ssim(item.canonical, image, mask),
            'MAE': similarity.mae(item.canonical, image, mask), 'WD': float(np.abs(quantiles[0] - quantiles[1]).mean()),
            'gm_fraction': found.gm_fraction, 'true_gm_fraction': item.gm_fraction, 'lesion': lesion.kept,
        })  # fmt: skip
    return rows


def transfers(scans: Sequence[Travelled], images: dict[tuple[str, str], Any]) -> float:
    """Return the mean Dice of classifiers carried from scanner to scanner."""
    from bidsharm.evaluation.transfer import Head, cross_site_transfer

    sites: dict[str, list[Head]] = {}
    for item in scans:
        mask = item.scan.mask
        sites.setdefault(item.scanner, []).append(
            Head(item.person, images[item.person, item.scanner][mask], item.labels[mask])
        )
    return statistics.mean(one.mean_dice for found in cross_site_transfer(sites).values() for one in found)


def evaluate(name: str, scans: Sequence[Travelled], n4: bool) -> dict[str, Any]:
    """Return the row of a method, with the rows of its scans."""
    images, seconds = harmonize_all(name, scans, n4)
    rows = judge(scans, images)
    travelled = [row for row in rows if row['scanner'] != TARGET]
    row: dict[str, Any] = {'method': f'N4 + {name}' if n4 else name}
    for measure in ('PSNR', 'SSIM', 'MAE', 'WD'):
        row[measure] = statistics.mean(one[measure] for one in travelled)
    row['transfer'] = transfers(scans, images)
    row['GM r'] = float(
        np.corrcoef([[one[key] for one in travelled] for key in ('gm_fraction', 'true_gm_fraction')])[0, 1]
    )
    row['lesion'] = statistics.mean(one['lesion'] for one in travelled)
    row['s a scan'] = seconds
    print(
        {key: value if isinstance(value, str) else round(value, 4) for key, value in row.items()}, flush=True
    )
    return row | {'scans': rows}


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Add the p values of a paired t test of each person's PSNR against `isotone`, Holm-corrected."""
    from scipy import stats

    from bidsharm.evaluation.statistics import holm

    def people(row: dict[str, Any]) -> list[float]:
        found: dict[str, list[float]] = {}
        for one in row['scans']:
            if one['scanner'] != TARGET:
                found.setdefault(one['person'], []).append(one['PSNR'])
        return [statistics.mean(found[person]) for person in sorted(found)]

    for prefix in ('', 'N4 + '):
        ours = next(row for row in rows if row['method'] == f'{prefix}isotone')
        rest = [row for row in rows if row is not ours and row['method'].startswith('N4 + ') == bool(prefix)]
        values = [float(stats.ttest_rel(people(ours), people(row)).pvalue) for row in rest]
        for row, p in zip(rest, holm(values), strict=True):
            row['p'] = p


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('held', type=Path, help='data set of bidsharm-simulate')
    arguments.add_argument('--people', type=int, help='only the first so many')
    arguments.add_argument('--methods', nargs='+', default=METHODS)
    args = arguments.parse_args()
    people = sorted(path.name for path in args.held.glob('sub-*'))[: args.people]
    sessions = sorted(path.name for path in (args.held / people[0]).glob('ses-*'))
    scans = [load(args.held, person, session) for person, session in itertools.product(people, sessions)]
    rows = [evaluate(name, scans, False) for name in args.methods]
    rows += [evaluate(name, scans, True) for name in args.methods if name in AFTER_N4]
    compare(rows)
    shown = [{key: value for key, value in row.items() if key != 'scans'} for row in rows]
    about = (__doc__ or '').split('\n', 1)[1]
    text = (
        f'{len(people)} people, {len(sessions) - 1} scanners and the canonical one.\n{about}\n'
        + common.table(shown)
    )
    if args.people is None:
        common.save(
            'travelling', title='Methods on travelling heads', text=text, data={'rows': rows}, seed=2026
        )
    print(common.table(shown))


if __name__ == '__main__':
    main()
