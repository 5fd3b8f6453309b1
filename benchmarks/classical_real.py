"""The classical methods on real scans: what is left of the difference between scanners, and what it costs.

DERIVATIVES is the output of `participant.py` (only its preprocessing is used). A method that learns is fitted on
the other subjects (leave one subject out). Measures, per method:

- distance: 1-Wasserstein distance between the brain intensities of two scans of one contrast, over the mean of their
  5-95 % ranges, so that no rescaling alone makes it smaller. "visits" are two visits of one person on different
  protocols, "control" two visits on the same protocol, "sites" T1w of different people at different sites. "T1w", "T2w" and "FLAIR"
  are those of one contrast alone; FLAIR are all from one hospital.
- peaks: the same for the typical intensities of CSF, GM and WM.
- transfer: a Gaussian classifier of intensity, learnt from the tissue of a scan at one site and applied to a scan at
  another; mean Dice of GM and WM with that scan's own segmentation. "own" is the classifier learnt from the scan itself.
- Dice GM, GM r, verdicts: segmentation before against after, the correlation of grey matter's share of the brain before and
  after over all T1w, and the verdict of the app (T1w).

`unet`, where --unet names its weights, is the network of `train_unet.py`, for T1w alone.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

METHODS = (
    'identity',
    'robust',
    'zscore',
    'tscore',
    'kde',
    'fcm',
    'whitestripe',
    'lsq',
    'nyul',
    'histogram',
    'ravel',
    'isotone',
)
VISITS, CONTROL = ('sub-ms01', 'sub-ms03'), ('sub-ms12',)


def load_scan(qc: Path) -> Any:
    """Return one preprocessed scan of a derivatives folder, cut to its brain."""
    import nibabel as nib

    from bidsharm.harmonizers.contract import Scan
    from bidsharm.imaging.grids import bounding_box, crop_affine

    stem, contrast = qc.name.removesuffix('_qc.json').split('_desc-')
    own = '' if contrast == 'T1w' else f'_desc-{contrast}'
    mask_name = f'{stem}_desc-brain_mask' if contrast == 'T1w' else f'{stem}_desc-{contrast}Brain_mask'
    image = nib.load(qc.with_name(f'{stem}_desc-preproc_{contrast}.nii.gz'))
    mask = np.asarray(nib.load(qc.with_name(f'{mask_name}.nii.gz')).dataobj) > 0
    box = bounding_box(mask, 2)
    tissue = [
        np.asarray(
            nib.load(qc.with_name(f'{stem}_label-{name}{own}_probseg.nii.gz')).dataobj, dtype=np.float32
        )[box]
        for name in ('CSF', 'GM', 'WM')
    ]
    data = np.asarray(image.dataobj, dtype=np.float32)[box]
    affine = crop_affine(image.affine, box)
    return Scan(data, mask[box], affine, contrast, f'{stem}_{contrast}', stem.split('_')[0], np.stack(tissue))


def subject(scan: Any) -> str:
    return scan.name.split('_')[0]


def site(scan: Any) -> str:
    """Return the site by the subject: MS patients are all from one hospital."""
    return 'ms' if subject(scan).startswith('sub-ms') else subject(scan)


def harmonize_all(name: str, scans: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Harmonize every scan with a method fitted on the other subjects; median seconds of a scan."""
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Canonical, Cohort
    from bidsharm.harmonizers.native import harmonize_scan

    images, quantiles, seconds = {}, {}, []
    kind = registry.get(name)
    for contrast, person in sorted({(scan.contrast, subject(scan)) for scan in scans}):
        method = kind()
        if method.card.needs_fit:
            others = [scan for scan in scans if scan.contrast == contrast and subject(scan) != person]
            method.fit(Cohort(others), target=Canonical(), seed=0)
        for scan in scans:
            if (scan.contrast, subject(scan)) != (contrast, person):
                continue
            started = time.perf_counter()
            images[scan.name] = harmonize_scan(method, scan, Canonical()).image
            seconds.append(time.perf_counter() - started)
            quantiles[scan.name] = method.target_quantiles(contrast)
    return images, quantiles, statistics.median(seconds)


def regress_all(file: Path, scans: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Let the U-Net draw every scan; median seconds of a scan."""
    import train_unet

    net, images, seconds = train_unet.load(file), {}, []
    for scan in scans:
        started = time.perf_counter()
        images[scan.name] = train_unet.harmonize(net, scan)
        seconds.append(time.perf_counter() - started)
    return images, dict.fromkeys(images), statistics.median(seconds)


def distances(pairs: Iterable[tuple[Any, Any]], images: Mapping[str, Any]) -> tuple[float, float]:
    """Return the mean distance of brain intensities, and of tissue peaks, over pairs of scans."""
    from bidsharm.evaluation import distributions

    whole, peaks = [], []
    for pair in pairs:
        q = [distributions.quantiles(images[scan.name], scan.mask) for scan in pair]
        spread = statistics.mean(levels[95] - levels[5] for levels in q)
        whole.append(distributions.wasserstein(*q) / spread)
        p = [distributions.tissue_peaks(images[scan.name], scan.tissue) for scan in pair]
        peaks.append(statistics.mean(abs(p[0][tissue] - p[1][tissue]) for tissue in p[0]) / spread)
    return statistics.mean(whole), statistics.mean(peaks)


def transfer(pairs: Iterable[tuple[Any, Any]], images: Mapping[str, Any]) -> tuple[float, float]:
    """Return the Dice of classifiers carried across sites, and of classifiers at home."""
    crossed, own = [], []
    for pair in pairs:
        for here, there in (pair, pair[::-1]):
            crossed.append(_classify(_gaussians(images[here.name], here), images[there.name], there))
            own.append(_classify(_gaussians(images[there.name], there), images[there.name], there))
    return statistics.mean(crossed), statistics.mean(own)


def _gaussians(image: Any, scan: Any) -> list[tuple[float, float, float]]:
    found = []
    for probability in scan.tissue:
        values = image[probability > 0.9]
        found.append((float(values.mean()), float(values.std()) + 1e-6, values.size / scan.mask.sum()))
    return found


def _classify(model: Sequence[tuple[float, float, float]], image: Any, scan: Any) -> float:
    values = image[scan.mask]
    scores = [np.log(w) - np.log(s) - 0.5 * ((values - m) / s) ** 2 for m, s, w in model]
    guess, truth = np.argmax(scores, axis=0), np.argmax([part[scan.mask] for part in scan.tissue], axis=0)
    return statistics.mean(
        float(2 * ((guess == k) & (truth == k)).sum() / ((guess == k).sum() + (truth == k).sum()))
        for k in (1, 2)
    )


def judge(
    scans: Sequence[Any], images: Mapping[str, Any], quantiles: Mapping[str, Any], priors: Mapping[str, Any]
) -> dict[str, Any]:
    """Segment before and after, and return the verdicts of the app and the Dice of grey matter."""
    from bidsharm.evaluation.metrics import dice
    from bidsharm.evaluation.verdict import assess
    from bidsharm.imaging.grids import voxel_sizes
    from bidsharm.imaging.segmentation import segment

    verdicts, overlap, shares = [], [], []
    for scan in scans:
        before, after = (
            segment(image, scan.mask, priors[scan.name], scan.affine)
            for image in (scan.data, images[scan.name])
        )
        result = assess(
            before=np.where(scan.mask, scan.data, 0), after=np.where(scan.mask, images[scan.name], 0), mask=scan.mask,
            tissue_before=before.probability, tissue_after=after.probability,
            spacing=tuple(float(size) for size in voxel_sizes(scan.affine)), contrast=scan.contrast,
            target_quantiles=quantiles[scan.name],
        )  # fmt: skip
        verdicts.append(result['verdict'])
        overlap.append(dice(before.labels, after.labels)['gm'])
        shares.append([float(part.probability[1].sum() / scan.mask.sum()) for part in (before, after)])
    count = {verdict: verdicts.count(verdict) for verdict in ('pass', 'warn', 'fail')}
    return {
        'Dice GM': statistics.mean(overlap),
        'GM r': statistics.correlation(*zip(*shares, strict=True)),
        'pass/warn/fail': '/'.join(str(n) for n in count.values()),
    }


def warped_priors(root: Path, scans: Sequence[Any]) -> dict[str, Any]:
    """Bring the template's tissue priors to every T1w with the transforms of the run."""
    import nibabel as nib

    from bidsharm.imaging.templates import BUNDLED, tissue_priors
    from bidsharm.interfaces.ants import ApplyTransforms

    found, (_, image) = {}, tissue_priors()
    with tempfile.TemporaryDirectory() as folder:
        image.to_filename(Path(folder) / 'priors.nii')
        for scan in scans:
            stem = scan.name.removesuffix('_T1w')
            transform = next(root.rglob(f'{stem}_from-{BUNDLED}_to-T1w_mode-image_xfm.h5'))
            grid = nib.Nifti1Image(scan.mask.astype(np.uint8), scan.affine)
            grid.to_filename(Path(folder) / 'grid.nii')
            apply = ApplyTransforms(
                dimension=3, input_image_type=3, interpolation='Linear', input_image=f'{folder}/priors.nii',
                reference_image=f'{folder}/grid.nii', transforms=str(transform), output_image=f'{folder}/{stem}.nii',
            )  # fmt: skip
            apply.run(cwd=folder)
            warped = np.asarray(nib.load(f'{folder}/{stem}.nii').dataobj, dtype=np.float32)
            found[scan.name] = np.ascontiguousarray(np.moveaxis(warped, -1, 0))
    return found


def of_contrast(contrast: str, pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return the pairs of scans of a contrast."""
    return [pair for pair in pairs if pair[0].contrast == contrast]


def evaluate(
    name: str,
    scans: Sequence[Any],
    priors: Mapping[str, Any],
    made: tuple[dict[str, Any], dict[str, Any], float],
) -> dict[str, Any]:
    """Return the row of one method from what it made of the scans."""
    images, quantiles, seconds = made
    pairs = list(itertools.combinations(scans, 2))
    same = [(a, b) for a, b in pairs if a.contrast == b.contrast]
    visits = [(a, b) for a, b in same if subject(a) == subject(b) and subject(a) in VISITS]
    control = [(a, b) for a, b in same if subject(a) == subject(b) and subject(a) in CONTROL]
    t1w = [scan for scan in scans if scan.contrast == 'T1w']
    across = [(a, b) for a, b in same if site(a) != site(b)]
    sites = of_contrast('T1w', across)
    row: dict[str, Any] = {'method': name}
    kinds = {
        'visits': visits, 'T1w visits': of_contrast('T1w', visits), 'T2w visits': of_contrast('T2w', visits),
        'FLAIR visits': of_contrast('FLAIR', visits), 'control': control, 'T1w control': of_contrast('T1w', control),
        'T2w control': of_contrast('T2w', control), 'FLAIR control': of_contrast('FLAIR', control),
        'sites': sites, 'T2w sites': of_contrast('T2w', across),
    }  # fmt: skip
    for label, chosen in kinds.items():
        if chosen:
            row[f'{label} distance'], row[f'{label} peaks'] = distances(chosen, images)
    row['transfer'], row['own'] = transfer(sites, images)
    if t2w := of_contrast('T2w', across):
        row['T2w transfer'], row['T2w own'] = transfer(t2w, images)
    row |= judge(t1w, images, quantiles, priors)
    row['s a scan'] = seconds
    print(row, flush=True)
    return row


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('derivatives', type=Path)
    arguments.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
    arguments.add_argument('--unet', type=Path, help='weights of train_unet.py')
    arguments.add_argument('--name', default='classical_real', help='of the result')
    args = arguments.parse_args()
    os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS'] = '2'
    root = args.derivatives.absolute()
    scans = [load_scan(file) for file in sorted(root.rglob('*_qc.json'))]
    t1w = [scan for scan in scans if scan.contrast == 'T1w']
    priors = warped_priors(root, t1w)
    rows = [evaluate(name, scans, priors, harmonize_all(name, scans)) for name in args.methods]
    if args.unet:
        row = evaluate('unet', t1w, priors, regress_all(args.unet, t1w))
        mixed = ('visits', 'control')  # means over all contrasts
        rows.append({key: None if key.split()[0] in mixed else row.get(key) for key in rows[0]})
    about = (__doc__ or '').split('Measures, per method:')[1]
    text = (
        f'{len(scans)} scans of {len({subject(scan) for scan in scans})} people; a method that learns was fitted on the '
        f'other subjects.\n{about}\n' + common.table(rows)
    )
    common.save(args.name, title='Methods on real scans', text=text, data={'rows': rows}, seed=0)


if __name__ == '__main__':
    main()
