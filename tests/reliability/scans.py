"""All bad scans as subjects of one data set beside good ones; a very large scan; data sets that are bad as a whole."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import bad_data_sets
import nibabel as nib
import numpy as np
import random_scans
from bad_scans import CASES, DONE, REFUSED, WARNED, Case, Head, grid, load_head, resampled, write
from bidsharm.workflows.failures import FOLDER
from hypothesis import HealthCheck, given, seed, settings
from numpy.typing import NDArray
from shared import CannotRun, Part, Row, app, checksums, heads

from bidsharm.bids.dataset import read_json
from bidsharm.errors import ScanError
from bidsharm.imaging import grids

SIMULATED = ('--subjects', 1, '--scanners', 'northA', '--resolution', 2.5, '--contrasts', 'T1w', 'T2w')
OPTIONS = (
    'participant',
    '--harmonizer',
    'zscore',
    '--sloppy',
    '--skip-bids-validation',
    '--offline',
    '--omp-nthreads',
    1,
)
GOOD = 3
#: How many files with any header are read.
ANY = 500


def run(part: Part) -> None:
    """Read what is only read, run the rest, and try what is bad as a whole."""
    head = _head(part.work / 'simulated')
    steps = (
        lambda: _read_only(part, head), lambda: _read_any(part), lambda: _run_all(part, head),
        lambda: bad_data_sets.run_all(part), lambda: _large(part, head),
    )  # fmt: skip
    for step in steps:
        try:
            step()
        except CannotRun as error:
            part.skip(str(error))


def _head(folder: Path) -> Head:
    done = app(folder, *SIMULATED, command='bidsharm-simulate')
    if done.returncode:
        raise CannotRun(done.stderr)
    return load_head(folder)


def _image(stem: Path) -> Path:
    return next(path for path in stem.parent.glob(f'{stem.name}.nii*'))


def _read_only(part: Part, head: Head) -> None:
    """Read the cases that no run is spent on, and put them back."""
    for case in (case for case in CASES if not case.run):
        folder = part.work / 'read'
        folder.mkdir()
        stem = folder / 'sub-01_T1w'
        case.make(head, stem)
        path = _image(stem)
        try:
            result = grids.conform(path)
            back = grids.to_native(result.image, nib.load(path))
            happened, message = (WARNED if result.warnings else DONE), ' '.join(result.warnings)
            wrong = _off_the_grid(back, nib.load(path))
        except ScanError as error:
            happened, message, wrong = REFUSED, str(error), ''
        ok = happened == case.ends and bool(re.search(case.message, message)) and not wrong
        part.add(Row('scan', f'{case.name} (only read and put back)', happened, wrong or message, ok))
        shutil.rmtree(folder)


def _off_the_grid(image: nib.Nifti1Image, raw: nib.Nifti1Image) -> str:
    """Say what is wrong with an image that must lie on the voxels of a raw scan; nothing if all is well."""
    if image.shape[:3] != raw.shape[:3]:
        return f'shape {image.shape} instead of {raw.shape}'
    if not np.allclose(image.affine, raw.affine, atol=1e-4):
        return 'another affine than the raw scan'
    if not np.isfinite(np.asarray(image.dataobj)).all():
        return 'voxels that hold no number'
    return ''


def _read_any(part: Part) -> None:
    """Read files with any header and any voxels."""
    ended: Counter[str] = Counter()

    @seed(part.seed)
    @settings(max_examples=ANY, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(random_scans.files())
    def read(file: tuple[str, bytes]) -> None:
        path = part.work / f'sub-any_T1w{file[0]}'
        path.write_bytes(file[1])
        ended[random_scans.check(path)] += 1

    message = ''
    try:
        read()
    except Exception as error:  # noqa: BLE001 - whatever comes through is the finding
        message = f'{type(error).__name__}: {error}'
    happened = f'{ended["done"]} read and put back exactly, {ended["refused"]} refused in words'
    part.add(
        Row(
            'scan',
            'any header, any voxels (hypothesis)',
            happened,
            message,
            not message,
            count=sum(ended.values()),
        )
    )


def _run_all(part: Part, head: Head) -> None:
    """Run good and bad scans together, and the good ones alone."""
    bids = heads(part.work / 'mixed', subjects=GOOD)
    good = part.work / 'good'
    shutil.copytree(bids, good)
    truths: dict[str, NDArray[np.bool_] | None] = {}
    cases = {f'bad{index:02}': case for index, case in enumerate(case for case in CASES if case.run)}
    for label, case in cases.items():
        anat = bids / f'sub-{label}' / 'anat'
        anat.mkdir(parents=True)
        truths[label] = case.make(head, anat / f'sub-{label}_T1w')
    before = checksums(bids)
    out, alone = part.work / 'out', part.work / 'alone'
    done = app(bids, out, *OPTIONS, '--nprocs', 2, '--work-dir', part.work / 'cache', limit_s=3600)
    for label, case in cases.items():
        part.add(_judge(case, label, bids, out, truths[label]))
    part.add(Row('scan', f'{len(cases)} bad scans beside {GOOD} good ones: exit code', str(done.returncode),
                 done.stdout[-300:] if done.returncode != 1 else '', done.returncode == 1))  # fmt: skip
    changed = sorted(name for name, digest in checksums(bids).items() if before.get(name) != digest)
    part.add(
        Row(
            'scan',
            'files of the data set that the run changed',
            str(len(changed)),
            ' '.join(changed[:5]),
            not changed,
        )
    )
    partial = [path.name for path in out.rglob('.tmp-*')]
    part.add(
        Row('scan', 'partial files among the results', str(len(partial)), ' '.join(partial[:5]), not partial)
    )
    app(good, alone, *OPTIONS, '--nprocs', 1, limit_s=1800)
    part.add(_compare(out, alone))


def _compare(out: Path, alone: Path) -> Row:
    """Compare the voxels of all images of the good scans with those of a run without the bad ones."""
    images = sorted(path.relative_to(alone) for path in alone.glob('sub-*/**/*.nii.gz'))
    differ = [
        path.name
        for path in images
        if not (out / path).exists() or not np.array_equal(np.asarray(nib.load(out / path).dataobj), np.asarray(nib.load(alone / path).dataobj))
    ]  # fmt: skip
    return Row(
        'scan', f'{GOOD} good scans, beside the bad ones and without them: {len(images)} images', f'{len(differ)} differ',
        ' '.join(differ[:5]), len(images) >= 5 * GOOD and not differ, count=GOOD,
    )  # fmt: skip


def _judge(case: Case, label: str, bids: Path, out: Path, truth: NDArray[np.bool_] | None) -> Row:
    """Compare what became of a scan with what must become of it."""
    name = f'sub-{label}_T1w'
    anat = out / f'sub-{label}' / 'anat'
    record = anat / f'sub-{label}_desc-T1w_qc.json'
    if record.exists():
        qc = json.loads(record.read_text())
        bad = [check for check in qc['checks'] if check['verdict'] in ('warn', 'fail')]
        message = ' '.join(
            [*qc['warnings'], *(f'{c["label"]} ({c["value"]:.3g}). {c["meaning"]}' for c in bad)]
        )
        happened = DONE if qc['verdict'] == 'pass' and not message else WARNED
        wrong = _wrong_result(anat, name, _image(bids / f'sub-{label}' / 'anat' / name), truth, case.dice)
    else:
        failure = read_json(out / FOLDER / f'{name}.json')
        message = f'{failure["what"]} {failure["fix"]}' if failure else 'nothing is said of it'
        happened = REFUSED if failure else 'lost'
        page = out / f'sub-{label}.html'
        wrong = '' if page.exists() and name in page.read_text() else 'no report page names it'
    ok = happened == case.ends and bool(re.search(case.message, message)) and not wrong
    return Row('scan', case.name, happened, f'{wrong}; {message}' if wrong else message, ok)


def _wrong_result(anat: Path, name: str, raw_file: Path, truth: NDArray[np.bool_] | None, dice: float) -> str:
    """Say what is wrong with the files of a scan that was done; nothing if all is well."""
    subject = name.removesuffix('_T1w')
    raw, result = nib.load(raw_file), nib.load(anat / f'{subject}_desc-harmonized_T1w.nii.gz')
    mask = np.asarray(nib.load(anat / f'{subject}_desc-brain_mask.nii.gz').dataobj) > 0
    if wrong := _off_the_grid(result, raw):
        return wrong
    if np.asarray(result.dataobj)[~mask].any():
        return 'the background is not 0'
    if truth is None:
        return ''
    overlap = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    return '' if overlap >= dice else f'the mask overlaps with the true brain by {overlap:.2f} only'


def _large(part: Part, head: Head) -> None:
    """Run one scan of 512 x 512 x 512 voxels."""
    bids, out = part.work / 'large', part.work / 'large-out'
    anat = bids / 'sub-01' / 'anat'
    anat.mkdir(parents=True)
    (bids / 'dataset_description.json').write_text('{"Name": "large", "BIDSVersion": "1.10.0"}')
    affine, _ = grid(head, (0.5, 0.5, 0.5), shape=(512, 512, 512))
    data, truth = resampled(head, affine, (512, 512, 512))
    write(anat / 'sub-01_T1w', np.round(data).astype(np.int16), affine, '.nii')
    del data
    started = time.monotonic()
    app(bids, out, *OPTIONS, '--nprocs', 2, limit_s=3600)
    minutes = (time.monotonic() - started) / 60
    case = Case(f'512 x 512 x 512 voxels of 0.5 mm ({minutes:.0f} minutes)', lambda head, stem: None)
    part.add(_judge(case, '01', bids, out, truth))
    shutil.rmtree(bids)
    shutil.rmtree(out)
