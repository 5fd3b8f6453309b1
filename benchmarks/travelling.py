"""Methods on simulated people who travel, against the truth: heads and scanners that `isotone` has never seen.

HELD is a data set of `bidsharm-simulate` (the Makefile has the command): anatomies that are not in the training of `isotone`, in
built-in scanners, none of which is either. Every method gets the raw scan in the true brain mask, or the same after N4. Methods that
learn a target learn it from the canonical images of the other people, which no study has, so this flatters them; with --target from
the other people's scans in that scanner, as all methods then do, and every image is compared with what the same method made of the same
person's scan there. What they make of it is written as data sets into WORK and judged by
`bidsharm-evaluate`, which also makes the page; its documentation defines the measures. `oracle` is a smooth gain on 16 mm and one
curve, fitted to the truth: as good as a map of this kind can be. `unet`, where --unet names its weights, is the network of
`train_unet.py`, which may change a scan in any way. p: paired t test of each person's PSNR against `isotone`,
Holm-corrected over all methods and measures of the page. The scans of the canonical scanner itself take part only where scanners are
compared with each other. With --keep, images that are in WORK already are left as they are, and so is what was measured of them: for one more
method, or after an interruption, not after a change of a method.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import common
import numpy as np

METHODS = ('robust', 'zscore', 'whitestripe', 'nyul', 'histogram', 'isotone')
#: Those that are also tried after N4.
AFTER_N4 = ('robust', 'nyul', 'histogram', 'isotone')
#: Which of the scanners is the canonical one.
TARGET = 'northA'
#: Columns of the table.
SHOWN = {
    'psnr': 'PSNR', 'ssim': 'SSIM', 'mae': 'MAE', 'wasserstein': 'WD', 'gradient_ncc': 'gradients', 'transfer_dice': 'transfer',
    'transfer_gm_r': 'GM r', 'volume_r_gm': 'volume r', 'ravd_gm': 'rAVD GM', 'lesion_kept': 'lesion', 'site_linear': 'site',
    'age_r': 'age r', 'seconds': 's a scan',
}  # fmt: skip


@dataclass(frozen=True)
class Travelled:
    """One scan of one person in one scanner, cut to the brain, with the truth."""

    person: str
    scanner: str
    scan: Any
    canonical: Any
    box: tuple[slice, slice, slice]
    image: Any

    def harmonized(self, folder: Path) -> Path:
        """Return where the data set of a method has its image of the scan."""
        stem = f'{self.person}_ses-{self.scanner}_desc-harmonized_{self.scan.contrast}.nii.gz'
        return folder / self.person / f'ses-{self.scanner}' / 'anat' / stem

    @cached_property
    def corrected(self) -> Any:
        """The scan after N4."""
        from bidsharm.imaging.bias import correct_bias

        return replace(self.scan, data=correct_bias(self.scan.data, self.scan.mask, self.scan.affine))


def load(held: Path, person: str, session: str, contrast: str = 'T1w') -> Travelled:
    """Read a scan and its truth."""
    import nibabel as nib

    from bidsharm.harmonizers.contract import Scan
    from bidsharm.imaging.grids import bounding_box, crop_affine, same_grid

    stem = f'{person}_{session}'
    truth = held / 'derivatives' / 'truth' / person / session / 'anat'

    def read(path: Path) -> Any:
        return np.asarray(nib.load(path).dataobj)

    image = nib.load(held / person / session / 'anat' / f'{stem}_{contrast}.nii.gz')
    masks = sorted(truth.glob(f'{stem}_desc-*rain_mask.nii.gz'))  # one for each grid of the session
    mask = read(next(file for file in masks if same_grid(nib.load(file), image))) > 0
    box = bounding_box(mask, 6)
    affine = crop_affine(image.affine, box)
    scan = Scan(
        np.asarray(image.dataobj, dtype=np.float32)[box], mask[box], affine, contrast, f'{stem}_{contrast}'
    )
    canonical = read(truth / f'{stem}_desc-canonical_{contrast}.nii.gz').astype(np.float32)[box]
    return Travelled(person, session.removeprefix('ses-'), scan, canonical, box, image)


def load_all(held: Path, contrast: str = 'T1w', count: int | None = None) -> list[Travelled]:
    """Read all scans of a contrast, person by person, or those of the first people."""
    people = sorted(path.name for path in held.glob('sub-*'))[:count]
    sessions = sorted(path.name for path in (held / people[0]).glob('ses-*'))
    return [load(held, *names, contrast) for names in itertools.product(people, sessions)]


def missing(scans: Sequence[Travelled], folder: Path, keep: bool) -> list[Travelled]:
    """Return the scans whose images a method shall write."""
    return [item for item in scans if not (keep and item.harmonized(folder).exists())]


def harmonize(
    name: str, scans: Sequence[Travelled], n4: bool, folder: Path, aim: str, wanted: Sequence[Travelled]
) -> None:
    """Write what a method makes of those scans that are wanted; it aims at a scanner, or at the canonical contrast."""
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Canonical, Cohort, Site

    for person in sorted({item.person for item in wanted}):
        method = registry.get(name)()
        target: Any = Canonical()
        if name != 'isotone' or aim:
            others = [item for item in scans if item.person != person and item.scanner == (aim or TARGET)]
            examples = [replace(example(item, aim, n4), site='target') for item in others]
            target = Site('target')
            method.fit(Cohort(examples), target=target, seed=0)
        for item in (item for item in wanted if item.person == person):
            scan = item.corrected if n4 else item.scan  # N4 is no part of the time of a method
            started = time.perf_counter()
            found = method.harmonize(scan, target)
            write(item, found.image, folder, time.perf_counter() - started)


def aim_of(method: Any, scanner: str) -> Any:
    """Return the scanner as a target, for methods that aim at sites; the canonical contrast for others."""
    from bidsharm.harmonizers.contract import Canonical, Site

    return Site(scanner) if 'site' in method.card.targets else Canonical()


def example(item: Travelled, aim: str, n4: bool) -> Any:
    """Return what methods learn their target from."""
    if not aim:
        return replace(item.scan, data=item.canonical)
    return item.corrected if n4 else item.scan


def oracle(item: Travelled) -> Any:
    """Return a scan under the gain and the curve that bring it nearest to the truth."""
    import torch

    from bidsharm.imaging.lowres import SIZE_MM, look_at
    from bidsharm.nn import isotone as parts
    from bidsharm.nn.isotone_model import KNOTS, field_at, increasing

    seen, aim = (look_at(data, item.scan.mask, item.scan.affine) for data in (item.scan.data, item.canonical))
    places = parts.places_of(torch.from_numpy(seen.voxels), seen.shape).float()
    bright = float(np.quantile(seen.values, parts.HIGH))
    values, wanted = (torch.from_numpy(part)[None].float() for part in (seen.values / bright, aim.values))
    cells = [round(n * SIZE_MM / parts.CONTROL_MM) for n in seen.shape]
    gain = torch.zeros([1, 1, *cells], requires_grad=True)
    slopes, start = torch.zeros(1, parts.KNOTS - 1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([gain, slopes, start], lr=0.02)
    for _ in range(400):
        plain = torch.exp(-parts.sample_field(gain, places)[:, 0]) * values
        loss = (parts.apply_curve(plain, start, torch.exp(slopes)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    steps = torch.exp(slopes.detach())[0].double().numpy() * parts.STEP
    heights = float(start.detach()) + np.concatenate([[0.0], np.cumsum(steps)])
    field = field_at(gain.detach()[0, 0].numpy(), seen, item.scan.mask, item.scan.affine)
    image = np.zeros(item.scan.mask.shape, dtype=np.float32)
    image[item.scan.mask] = increasing(
        np.exp(-field) * item.scan.data[item.scan.mask] / bright, KNOTS, heights
    )
    return image


def regress(file: Path, scans: Sequence[Travelled], folder: Path) -> None:
    """Write what the U-Net makes of every scan."""
    import train_unet

    net = train_unet.load(file)
    for item in scans:
        started = time.perf_counter()
        write(item, train_unet.harmonize(net, item.scan), folder, time.perf_counter() - started)


def write(item: Travelled, image: Any, folder: Path, seconds: float | None) -> None:
    """Write a harmonized image, and a record of what it took, as bidsharm does."""
    import nibabel as nib

    whole = np.zeros(item.image.shape, dtype=np.float32)
    whole[item.box] = image
    path = item.harmonized(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(whole, item.image.affine), path)
    contrast = item.scan.contrast
    record = path.name.replace(f'desc-harmonized_{contrast}.nii.gz', f'desc-{contrast}_qc.json')
    path.with_name(record).write_text(json.dumps({'harmonizer': {'seconds': seconds}}))


def judge(work: Path, held: Path, labels: Sequence[str], *how: str) -> Path:
    """Let `bidsharm-evaluate` judge the data sets of a folder; return where its page is. What it measured is kept beside."""
    from bidsharm.cli import evaluate

    link = work / 'held'
    link.unlink(missing_ok=True)
    link.symlink_to(held.resolve())
    with contextlib.chdir(work):  # names without a place: the page goes with the results
        code = evaluate.main([
            'evaluation', *(f'{label}={label}' for label in labels), '--original', 'held', '--truth', 'held/derivatives/truth',
            '--site', 'session', '--seed', '2026', '--nprocs', '2', '--work-dir', 'measured', *how,
        ])  # fmt: skip
    if code:
        raise SystemExit(code)
    return work / 'evaluation'


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the table: some measures of `bidsharm-evaluate`."""
    record = json.loads((out / 'evaluation.json').read_text())
    values = {(row['method'], row['metric']): row['estimate'] for row in record['summary']}
    p = {row['method']: row.get('p_t_holm') for row in record['comparisons'] if row['metric'] == 'psnr'}
    rows = []
    for method in record['methods']:
        if method == 'original':
            continue
        row: dict[str, Any] = {'method': method}
        row |= {label: values.get((method, name)) for name, label in SHOWN.items()}
        rows.append(row | {'p': p.get(method)})
    return rows


def main() -> None:

    arguments = common.parser(__doc__)
    arguments.add_argument('held', type=Path, help='data set of bidsharm-simulate')
    arguments.add_argument('work', type=Path, help='folder for data sets and tables')
    arguments.add_argument('--contrast', default='T1w')
    arguments.add_argument('--target', default='', help='scanner to aim at (default: the canonical contrast)')
    arguments.add_argument('--name', default='travelling', help='of the result')
    arguments.add_argument('--people', type=int, help='only the first so many')
    arguments.add_argument('--methods', nargs='+', default=METHODS)
    arguments.add_argument('--unet', type=Path, help='weights of train_unet.py')
    arguments.add_argument('--keep', action='store_true', help='images that are in WORK already')
    args = arguments.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    scans = load_all(args.held, args.contrast, args.people)
    people, scanners = {item.person for item in scans}, {item.scanner for item in scans}
    chosen = [(name, False) for name in args.methods] + [(n, True) for n in args.methods if n in AFTER_N4]
    labels = [f'N4 + {name}' if n4 else name for name, n4 in chosen]
    for label, (name, n4) in zip(labels, chosen, strict=False):
        print(label, flush=True)
        wanted = missing(scans, args.work / label, args.keep)
        harmonize(name, scans, n4, args.work / label, args.target, wanted)
    if not args.target:
        if args.unet:
            labels.append('unet')
            regress(args.unet, missing(scans, args.work / 'unet', args.keep), args.work / 'unet')
        labels.append('oracle')
        for item in missing(scans, args.work / 'oracle', args.keep):
            write(item, oracle(item), args.work / 'oracle', None)
    aim = ['--target', args.target] if args.target else []
    out = judge(args.work, args.held, labels, '--against', 'isotone', '--suffix', args.contrast, *aim)
    rows = rows_of(out)
    text = f'{len(people)} people, {len(scanners)} scanners, {args.contrast}.\n{(__doc__ or "").split(chr(10), 1)[1]}\n{common.table(rows)}'
    if args.people is None:
        common.save(args.name, title='Methods on travelling heads', text=text, data={'rows': rows}, seed=2026)
        page = Path(__file__).parent / 'results' / f'{args.name}.html'
        page.write_text((out / 'evaluation.html').read_text())
    print(common.table(rows))


if __name__ == '__main__':
    main()
