"""Write travelling heads as a BIDS data set, with the truth as a derivative."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bidsharm import __version__
from bidsharm.errors import UsageError
from bidsharm.simulation.anatomy import (
    BRAIN_TISSUES,
    DSEG_LABELS,
    Anatomy,
    Person,
    draw_person,
    load_template,
    random_pose,
    render,
    scan_grid,
    smooth_to,
    ventricle_walls,
)
from bidsharm.simulation.physics import acquire, ideal_image
from bidsharm.simulation.scanners import SCANNERS, Scanner

#: Called with the number of scans written, the number to write, and the name of the last one.
Progress = Callable[[int, int, str], None]

#: Version of the BIDS specification that the data sets follow.
BIDS_VERSION = '1.10.0'
#: Name under ``GeneratedBy``; a folder that carries it may be replaced.
GENERATOR = 'bidsharm-simulate'
#: Folder of the truth inside the data set.
TRUTH = Path('derivatives', 'truth')

_COARSE = 3.0  # mm; from here on a 3 mm template is sharp enough, and 27 times faster
_README = """\
# Simulated travelling heads

Nobody was scanned for this data set. Every participant is the MNI152 anatomy (ICBM 2009a, nonlinear,
symmetric) in a different smooth warp, and every session is the same head in another simulated scanner,
lying a little differently.

- Images follow the signal equations of MPRAGE, spin echo and inversion recovery spin echo, with published
  relaxation times, a smooth coil bias, Rician noise and rounding to integers.
- Scanner makers and models are invented. Field strength and timing in the sidecars are those simulated.
- Age widens the ventricles; sex has no effect.
- `derivatives/truth` holds, on the grid of each session, tissue fractions, a discrete segmentation, the brain
  mask, and each image before bias and noise.
- Around the brain there is at most a shell of fluid, bone and scalp: no face, no neck, no vessels, no lesions.

The MNI152 template is copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University; it may be used, copied, modified and distributed freely as long as
this notice goes with it.
"""
_TRUTH_README = """\
# What the simulated heads really are

On the grid of each session: tissue fractions (`probseg`), the largest tissue (`dseg`, see `dseg.tsv`), the brain
mask, and every image before coil bias, noise and rounding (`desc-noiseless`), in the units of the scan.
"""


def simulate(
    out: Path | str,
    *,
    subjects: int = 2,
    scanners: Sequence[Scanner] = SCANNERS[:2],
    contrasts: Sequence[str] = ('T1w',),
    resolution: float = 1.5,
    seed: int = 0,
    head: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Scan simulated people in several simulated scanners and write a BIDS data set.

    Every person goes through every scanner, one session each; the anatomy stays the same, the pose does
    not. What is drawn for a person, a session or a scan depends on the seed and on its own name only, so
    that adding people, scanners or contrasts changes nothing that was there.

    Parameters
    ----------
    out
        Folder of the data set. It is made where it is missing, and written into as it is.
    subjects
        Number of people, at least 1.
    scanners
        Scanners with different labels.
    contrasts
        BIDS suffixes, all in every scanner's protocol.
    resolution
        In-plane voxel size in mm, at least 1.
    seed
        Not negative. The same seed gives the same bytes.
    head
        Whether there is anything but air around the brain.
    progress
        Called after every scan.

    Returns
    -------
    Path
        The folder of the data set.

    Raises
    ------
    UsageError
        If the request makes no sense.
    """
    _check(subjects, scanners, contrasts, resolution, seed)
    out = Path(out)
    people = [f'{number:0{max(2, len(str(subjects)))}d}' for number in range(1, subjects + 1)]
    _write_descriptions(out)
    template = load_template(head=head, step=3 if resolution >= _COARSE else 1)
    walls = ventricle_walls(template)
    template = smooth_to(template, resolution)
    total, done, rows = subjects * len(scanners) * len(contrasts), 0, []
    for number, label in enumerate(people, start=1):
        person = draw_person(_random(seed, 'person', number), label, walls)
        rows.append((f'sub-{label}', str(person.age), person.sex))
        for scanner in scanners:
            anatomy = _scan_anatomy(
                template, person, scanner, resolution, _random(seed, 'pose', number, scanner.label)
            )
            stem = _write_truth(out, person, scanner, anatomy)
            for contrast in contrasts:
                rng = _random(seed, 'scan', number, scanner.label, contrast)
                _write_scan(out, stem, scanner, contrast, anatomy, rng, head=head)
                done += 1
                if progress:
                    progress(done, total, f'{stem.name}_{contrast}')
    _write_participants(out, rows)
    return out


def prepare_folder(out: Path, *, force: bool = False) -> None:
    """Make sure that a data set can be written to a folder.

    Parameters
    ----------
    out
        The folder; it may be missing.
    force
        Whether a simulated data set that is there may be removed. Nothing else ever is.

    Raises
    ------
    UsageError
        If there is something that must not be touched, or the folder cannot be made.
    """
    try:
        occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
        if not occupied:
            out.mkdir(parents=True, exist_ok=True)
            return
        if not force:
            raise UsageError(
                'The folder is not empty.', where=str(out), fix='Choose another, or replace it with --force.'
            )
        if not _is_simulated(out):
            raise UsageError(
                'The folder holds something other than a simulated data set.',
                where=str(out),
                fix='--force replaces simulated data sets only; choose another folder.',
            )
        for folder in [*sorted(out.glob('sub-*')), out / TRUTH]:
            if folder.is_dir():
                shutil.rmtree(folder)
    except OSError as error:
        raise UsageError(f'The folder cannot be written ({error.strerror}).', where=str(out)) from None


def _is_simulated(out: Path) -> bool:
    try:
        description = json.loads((out / 'dataset_description.json').read_text(encoding='utf-8'))
        return any(item['Name'] == GENERATOR for item in description['GeneratedBy'])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _check(
    subjects: int, scanners: Sequence[Scanner], contrasts: Sequence[str], resolution: float, seed: int
) -> None:
    labels = [scanner.label for scanner in scanners]
    if subjects < 1 or not scanners or not contrasts:
        raise UsageError('At least one subject, one scanner and one contrast are needed.', where='simulate')
    if len(set(labels)) < len(labels) or len(set(contrasts)) < len(contrasts):
        raise UsageError('A scanner or a contrast is named twice.', where=', '.join([*labels, *contrasts]))
    bad = [label for label in labels if not (label.isascii() and label.isalnum())]
    if bad:
        raise UsageError('A scanner label may hold letters and digits only.', where=bad[0])
    if not np.isfinite(resolution) or resolution < 1:
        raise UsageError(
            'The resolution must be at least 1 mm, that of the template.', where=f'{resolution:g}'
        )
    if seed < 0:
        raise UsageError('The seed must not be negative.', where=f'{seed}')
    for scanner in scanners:
        for contrast in contrasts:
            scanner.sequence(contrast)


def _random(seed: int, *names: str | int) -> np.random.Generator:
    """Return a stream of random numbers that belongs to these names."""
    return np.random.default_rng([seed, *(zlib.crc32(str(name).encode()) for name in names)])


def _scan_anatomy(
    template: Anatomy, person: Person, scanner: Scanner, resolution: float, rng: np.random.Generator
) -> Anatomy:
    shape, affine = scan_grid(resolution, scanner.slice_factor)
    return render(
        template,
        shape=shape,
        affine=affine,
        warp=person.warp,
        pose=random_pose(rng),
        slice_factor=scanner.slice_factor,
    )


def _write_scan(
    out: Path,
    stem: Path,
    scanner: Scanner,
    contrast: str,
    anatomy: Anatomy,
    rng: np.random.Generator,
    *,
    head: bool,
) -> None:
    """Write one scan, and the same image without bias and noise."""
    ideal = ideal_image(anatomy, scanner.sequence(contrast), scanner.field_strength, scanner.scale)
    scan = acquire(
        ideal, bias_strength=scanner.bias_strength, snr=scanner.snr, white_matter=scanner.scale, rng=rng
    )
    path = out / stem
    _write_image(path.with_name(f'{path.name}_{contrast}.nii.gz'), scan, anatomy.affine)
    _write_json(path.with_name(f'{path.name}_{contrast}.json'), scanner.sidecar(contrast))
    truth = out / TRUTH / stem
    _write_image(truth.with_name(f'{truth.name}_desc-noiseless_{contrast}.nii.gz'), ideal, anatomy.affine)
    _write_json(
        truth.with_name(f'{truth.name}_desc-noiseless_{contrast}.json'),
        {
            'Description': 'The image before coil bias, noise and rounding, in the units of the scan.',
            'SkullStripped': not head,
            'SpatialReference': 'orig',
            **scanner.sidecar(contrast),
        },
    )


def _write_truth(out: Path, person: Person, scanner: Scanner, anatomy: Anatomy) -> Path:
    """Write tissue and mask of a session; return the path of its files up to the suffix, below ``out``."""
    session = f'ses-{scanner.label}'
    stem = Path(f'sub-{person.label}', session, 'anat', f'sub-{person.label}_{session}')
    base = out / TRUTH / stem
    for index, tissue in enumerate(BRAIN_TISSUES):
        name = f'{base.name}_label-{tissue}_probseg'
        _write_image(base.with_name(f'{name}.nii.gz'), anatomy.fractions[index], anatomy.affine)
        _write_json(
            base.with_name(f'{name}.json'),
            {'Description': f'Fraction of {tissue} in each voxel.', 'SpatialReference': 'orig'},
        )
    _write_image(base.with_name(f'{base.name}_dseg.nii.gz'), anatomy.labels, anatomy.affine)
    _write_json(
        base.with_name(f'{base.name}_dseg.json'),
        {'Description': 'Largest tissue in each voxel.', 'SpatialReference': 'orig'},
    )
    mask = anatomy.brain_mask.astype(np.uint8)
    _write_image(base.with_name(f'{base.name}_desc-brain_mask.nii.gz'), mask, anatomy.affine)
    _write_json(
        base.with_name(f'{base.name}_desc-brain_mask.json'),
        {'Type': 'Brain', 'Description': 'Voxels that are at least half brain.', 'SpatialReference': 'orig'},
    )
    return stem


def _write_descriptions(out: Path) -> None:
    common = {
        'BIDSVersion': BIDS_VERSION,
        'License': 'Free with the notice of the MNI ICBM 152 template; see README',
        'GeneratedBy': [
            {'Name': GENERATOR, 'Version': __version__, 'Description': 'Travelling heads, simulated.'}
        ],
    }
    # The description comes first: it marks a data set that was interrupted as one that may be replaced.
    raw = {'Name': 'Simulated travelling heads', 'DatasetType': 'raw', **common}
    _write_json(out / 'dataset_description.json', raw)
    _write(out / 'README', _README.encode())
    truth = {'Name': 'Truth of the simulated travelling heads', 'DatasetType': 'derivative', **common}
    _write_json(out / TRUTH / 'dataset_description.json', truth)
    _write(out / TRUTH / 'README', _TRUTH_README.encode())
    names = {'GM': 'Gray matter', 'WM': 'White matter', 'CSF': 'Cerebrospinal fluid'}
    rows = [(str(code), names[tissue], tissue) for tissue, code in DSEG_LABELS.items()]
    _write_tsv(out / TRUTH / 'dseg.tsv', ('index', 'name', 'abbreviation'), rows)


def _write_participants(out: Path, rows: Sequence[tuple[str, ...]]) -> None:
    _write_tsv(out / 'participants.tsv', ('participant_id', 'age', 'sex'), rows)
    columns = {
        'age': {'Description': 'Simulated age; the ventricles widen with it', 'Units': 'year'},
        'sex': {'Description': 'Simulated sex; without effect', 'Levels': {'F': 'female', 'M': 'male'}},
    }
    _write_json(out / 'participants.json', columns)


def _write_image(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units('mm')
    # Compressed here and not by nibabel: with the time left out, the same image is the same file.
    _write(path, gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(content, indent=2, allow_nan=False) + '\n').encode())


def _write_tsv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    _write(path, ''.join('\t'.join(row) + '\n' for row in (header, *rows)).encode())


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.tmp-{os.getpid()}-{path.name}')
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
