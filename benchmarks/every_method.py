"""Does `bidsharm participant --harmonizer NAME` work for every method of images, on real scans, with a model of one's own?

Every trained method is trained by `bidsharm-train` for a few steps on the derivatives of the real scans (OUT of `participant.py`), in the preset "tiny"; its two sites are
the two visits of the MS patients, who so have travelled. Then the app runs on one scan of one of them with that model, and its results are looked at. So few
steps teach nothing: this asks whether a user gets through, not how good a method is.

- report: the page of the subject has the name of the method, its paper and how faithful it is to it.
- background: all voxels outside the brain mask are 0. grid: the image has shape and affine of the scan. changed: some voxel of the brain changed.
- verdict: that of quality control, which may well fail a method that has learnt nothing; "refused" where the scan was, with exit code 1.
- training, run: seconds. Runs reuse the masks, bias correction and registrations of OUT.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np

PROGRAM = Path(sys.executable).with_name('bidsharm')
#: Whose scan is harmonized, and the visit that it shall look like.
SUBJECT, VISIT, TARGET = 'ms12', '1', '2'
#: Who has two visits, and is trained on.
PATIENTS = ('ms01', 'ms03', 'ms12')


def methods() -> list[str]:
    """Return all methods that turn an image into an image."""
    from bidsharm.harmonizers import registry

    return [name for name in registry.available() if registry.card(name).place == 'volume']


def train(name: str, args: Any) -> tuple[float, str]:
    """Train a method on real scans, unless it is; return the seconds, and what went wrong."""
    folder = args.work / 'models' / name
    if (folder / 'model').exists():
        return 0.0, ''
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'said.log').open('w') as log:
        used = common.train(
            name, args.out, folder, cache=args.work / 'cache', target=TARGET, others=['T2w'],
            options=['--participant-label', *PATIENTS, '--preset', 'tiny', '--budget', args.steps, '--threads', 2],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return used.wall_s, f'training: exit code {used.code}' if used.code else ''


def harmonize(name: str, model: Path | None, out: Path, prepared: Path) -> dict[str, Any]:
    """Run the app on one scan and look at what it wrote."""
    from bidsharm.harmonizers import registry

    shutil.rmtree(out, ignore_errors=True)
    aim = ['--target', TARGET] if 'site' in registry.card(name).targets else []
    command = [
        PROGRAM, common.real_data(), out, 'participant', '--participant-label', SUBJECT, '--session-label', VISIT, TARGET,
        '--contrasts', 'T1w', '--site', 'session', '--harmonizer', name, *aim, '--skip-bids-validation', '-d', f'prepared={prepared}',
        *(['--model', model] if model else []),
    ]  # fmt: skip
    with (out.parent / f'{name}.log').open('w') as log:
        used = common.measure(command, stdout=log, stderr=subprocess.STDOUT)
    return {'exit': used.code, **looked_at(name, out), 'run': used.wall_s}


def looked_at(name: str, out: Path) -> dict[str, Any]:
    """Return what the report and the image of a run have."""
    import nibabel as nib

    folder = out / f'sub-{SUBJECT}' / f'ses-{VISIT}' / 'anat'
    stem = f'sub-{SUBJECT}_ses-{VISIT}'
    image = folder / f'{stem}_desc-harmonized_T1w.nii.gz'
    row: dict[str, Any] = {'report': named(name, out / f'sub-{SUBJECT}.html')}
    if not image.exists():
        return row | dict.fromkeys(('background', 'grid', 'changed')) | {'verdict': 'refused'}
    scan = nib.load(common.real_data() / f'sub-{SUBJECT}' / f'ses-{VISIT}' / 'anat' / f'{stem}_T1w.nii.gz')
    after, before, mask = (
        nib.load(folder / f'{stem}_desc-{part}')
        for part in ('harmonized_T1w.nii.gz', 'preproc_T1w.nii.gz', 'brain_mask.nii.gz')
    )
    inside = np.asarray(mask.dataobj) > 0
    values, old = (np.asarray(part.dataobj, dtype=np.float32) for part in (after, before))
    record = json.loads((folder / f'{stem}_desc-T1w_qc.json').read_text())
    return row | {
        'background': yes(not values[~inside].any()),
        'grid': yes(after.shape == scan.shape and bool(np.allclose(after.affine, scan.affine, atol=1e-4))),
        'changed': yes(not np.array_equal(values[inside], old[inside])),
        'verdict': record['verdict'],
    }


def named(name: str, page: Path) -> str:
    """Say whether a report names a method, its paper and its fidelity."""
    from bidsharm.harmonizers import registry

    if not page.exists():
        return 'none'
    card = registry.card(name)
    text = re.sub(r'\s+', ' ', html.unescape(re.sub(r'<[^>]+>', '', page.read_text())))
    wanted = (card.title, re.sub(r'\s+', ' ', card.paper), card.doi, card.fidelity)
    return yes(all(str(part) in text for part in wanted if part))


def yes(holds: bool) -> str:
    """Return a word for a table."""
    return 'yes' if holds else 'no'


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('out', type=Path, help='what participant.py wrote')
    arguments.add_argument('work', type=Path, help='folder for models and results')
    arguments.add_argument('--methods', nargs='+', help='default: all')
    arguments.add_argument('--steps', type=int, default=20, help='of each training')
    arguments.add_argument('--name', default='every_method', help='of the result')
    args = arguments.parse_args()
    from bidsharm.harmonizers import registry

    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in args.methods or methods():
        card, model, cost = registry.card(name), None, {}
        row: dict[str, Any] = {'method': name, 'fidelity': card.fidelity}
        if 'weights' in card.needs_apply:
            seconds, problem = train(name, args)
            if problem:
                rows.append(row | {'exit': problem})
                continue
            model, cost = args.work / 'models' / name / 'model', {'training': seconds}
        rows.append(row | harmonize(name, model, args.work / name, args.out) | cost)
        print(rows[-1], flush=True)
    through = sum(row.get('exit') == 0 and row.get('report') == 'yes' for row in rows)
    how = f'{through} of {len(rows)} methods: exit code 0 and a report that names method, paper and fidelity. {args.steps} steps of training each.'
    rows = common.filled(rows)
    text = common.body(__doc__, how, rows)
    common.save(args.name, title='Every method through the app', text=text, data={'rows': rows}, seed=0)


if __name__ == '__main__':
    main()
