"""Write travelling heads as a BIDS data set, with the truth as a derivative."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bidsharm import __version__
from bidsharm.errors import UsageError
from bidsharm.simulation.acquisition import CANONICAL_UNIT, acquire, canonical_image, gradient_error
from bidsharm.simulation.anatomy import DSEG_LABELS, SEGMENTED, Anatomy
from bidsharm.simulation.files import stream, write_bytes, write_json, write_tsv
from bidsharm.simulation.heads import TEMPLATE_SIZE, load_labels, load_template
from bidsharm.simulation.people import Person, draw_person, random_pose
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.protocols import Protocol, Scanner
from bidsharm.simulation.rendering import render, scan_grid, smooth_to
from bidsharm.simulation.unfinished import MARK, Unfinished, read_mark, request_of
from bidsharm.simulation.warps import ventricle_walls
from bidsharm.temporary import clear_remains

#: Called with the number of scans written, the number to write, and the name of the last one.
Progress = Callable[[int, int, str], None]

#: Version of the BIDS specification that the data sets follow.
BIDS_VERSION = '1.10.0'
#: Name under ``GeneratedBy``; a folder that carries it may be replaced.
GENERATOR = 'bidsharm-simulate'
# What a sidecar says of how a grid was laid, under names of BIDS and under those of the simulator.
_PLACING = ('MRAcquisitionType', 'SliceEncodingDirection', 'PhaseEncodingDirection')
_MORE, _PLACING_MORE = 'SimulatedAcquisition', ('ReadoutAxis', 'SliceFactor', 'SliceGap', 'GradientError')
# What is done to a scan and to no image of the truth.
_ERRORS = frozenset({
    'PartialFourier', 'ParallelReductionFactorInPlane', 'ReceiveStrength', 'TransmitDeviation', 'OffResonance', 'MeasuredFraction',
    'Taper', 'CombinedCoils', 'Snr', 'MotionDegrees', 'MotionMillimetres', 'MotionEvents', 'GhostIntensity', 'GhostCount', 'Storage',
    'Scale', 'Saturation',
})  # fmt: skip
#: Folder of the truth inside the data set.
TRUTH = Path('derivatives', 'truth')

_README = """\
# Simulated travelling heads

Nobody was scanned for this data set. Every participant is an anatomy (column `anatomy` of participants.tsv) in a
different smooth warp, and every session is the same head in another simulated scanner, lying a little differently.

- Images follow the signal equations of the sequences named in the sidecars, with published relaxation times. Transmit
  and receive fields, imperfect gradients, off-resonance, k-space window, motion, ghosts, noise and storage are those
  that the sidecars tell under `SimulatedAcquisition`.
- Scanner makers and models are invented. Field strength and timing in the sidecars are those simulated.
- Age widens ventricles and sulci; women and men differ in the size of their heads. How much is in participants.tsv.
- `derivatives/truth` holds, on the grid of each scan, what the head really is.
{anatomies}"""
_MNI = """\
- Around the brain of the MNI152 template there is at most a shell of fluid, bone and scalp: no face, no neck, no vessels.

The MNI152 template is copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University; it may be used, copied, modified and distributed freely as long as
this notice goes with it.
"""
_LABELS = """\
- The anatomies are label maps that were given to the simulator; their licence holds for what is made from them.
"""
_TRUTH_README = """\
# What the simulated heads really are

On the grid of each session: tissue fractions (`probseg`), the largest tissue (`dseg`, see `dseg.tsv`), the brain
mask, and where there are any the mask of lesions. Contrasts on a grid of their own have files of their own, with the
contrast in `desc`.

`desc-noiseless` is the image without transmit and receive field, frequency errors, k-space window, motion, ghosts, noise and
rounding, in the units of the scan; `desc-canonical` the same head in one and the same scanner without any error, in units that make its 90th percentile about 1.

Two transforms lead from points of a scan to the anatomy: `from-orig_to-head` (an affine: pose and size; ITK text) and, of
each person, `from-head_to-anatomy` (a displacement field as ITK reads it). What gradients do to places comes before both and
is not in them; the other files of the truth contain it. Frequency errors near the sinuses move the scan along its readout
(`ReadoutAxis`) by up to `OffResonance` / `PixelBandwidth` voxels; no file of the truth contains that.
"""


def simulate(
    out: Path | str,
    *,
    subjects: int = 2,
    scanners: Sequence[Scanner] = PRESETS[:2],
    contrasts: Sequence[str] = ('T1w',),
    labels: Sequence[Path] = (),
    resolution: float = 1.5,
    seed: int = 0,
    head: bool = True,
    lesions: int = 0,
    mass_mm: float = 0.0,
    texture: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Scan simulated people in several simulated scanners and write a BIDS data set.

    Every person goes through every scanner, one session each; the head stays the same, the pose does
    not. What is drawn for a person, a session or a scan depends on the seed and on its own name only, so
    that adding people, scanners or contrasts changes nothing that was there (unless people get another digit in
    their names: from the hundredth on).

    Parameters
    ----------
    out
        Folder of the data set. It is made where it is missing, and written into as it is. Where the same was asked for and has not
        come to its end, the scans that are there are kept.
    subjects
        Number of people, at least 1.
    scanners
        Scanners with different labels.
    contrasts
        BIDS suffixes, all in every scanner's protocol.
    labels
        Label maps that heads are made from (:func:`bidsharm.simulation.heads.load_labels`), in turn; none for the template.
    resolution
        Voxels of protocols are enlarged, all axes alike, until none is smaller (mm); 0 leaves them as they are.
    seed
        Not negative. The same seed gives the same bytes.
    head
        Whether there is anything but air around the brain.
    lesions
        Number of lesions as of multiple sclerosis in every person.
    mass_mm
        Radius of a tumour-like mass in the anatomy of every person (mm), before it pushes its surroundings; 0 for none.
    texture
        Whether tissue varies within itself.
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
    done = Unfinished.begin(out, request_of(
        subjects=subjects, scanners=scanners, contrasts=contrasts, labels=labels, resolution=resolution, seed=seed, head=head,
        lesions=lesions, mass_mm=mass_mm, texture=texture,
    ))  # fmt: skip
    clear_remains([out], below=True)
    _write_descriptions(out, labels)
    template = None if labels else load_template(head=head, step=max(1, int(resolution)))
    total, count = subjects * len(scanners) * len(contrasts), 0
    for number, label in enumerate(people, start=1):
        names = {
            scanner.label: {contrast: _scan_name(label, scanner, contrast) for contrast in contrasts}
            for scanner in scanners
        }
        known = [name for row in names.values() for name in row.values() if name in done.scans]
        count += len(known)
        if progress and known:
            progress(count, total, known[-1])
        if label in done.rows and len(known) == len(scanners) * len(contrasts):
            continue
        source = labels[(number - 1) % len(labels)] if labels else None
        anatomy = load_labels(source, head=head) if source else template
        assert anatomy is not None
        person = draw_person(
            stream(seed, 'person', number), label, anatomy, ventricle_walls(anatomy),
            lesions=lesions, mass_mm=mass_mm, texture=texture, usual_size=1.0 if source else TEMPLATE_SIZE,
        )  # fmt: skip
        _write_warp(out, person)
        done.add_person(label, _participant(person, source.name.split('.')[0] if source else 'MNI152'))
        for scanner in scanners:
            todo = [contrast for contrast, name in names[scanner.label].items() if name not in done.scans]
            for name in _scan_session(out, person, scanner, todo, resolution, seed, head=head):
                done.add_scan(name)
                count += 1
                if progress:
                    progress(count, total, name)
    _write_participants(out, [tuple(done.rows[label]) for label in people])
    done.end()
    return out


def _scan_name(label: str, scanner: Scanner, contrast: str) -> str:
    return f'sub-{label}_ses-{scanner.label}_{contrast}'


def _scan_session(
    out: Path,
    person: Person,
    scanner: Scanner,
    contrasts: Sequence[str],
    resolution: float,
    seed: int,
    *,
    head: bool,
) -> Iterator[str]:
    """Write all scans of a person in a scanner; yield the name of each."""
    pose = random_pose(stream(seed, 'pose', person.label, scanner.label))
    session = f'ses-{scanner.label}'
    stem = Path(f'sub-{person.label}', session, 'anat', f'sub-{person.label}_{session}')
    _write_pose(out, stem, person, pose)
    truths: dict[Grid, Truth] = {}
    for contrast in contrasts:
        grid = Grid.of(scanner.protocol(contrast), resolution)
        if grid not in truths:
            shape, affine = grid.frame
            error = gradient_error(shape, affine, scanner.hardware, stream(seed, 'gradients', scanner.label))
            anatomy = render(
                smooth_to(person.head, min(grid.voxel_size)), shape=shape, affine=affine, warp=person.warp,
                pose=person.place(pose), slice_factor=grid.slice_factor, slice_axis=grid.slice_axis,
                thickness=grid.thickness, displacement=error,
            )  # fmt: skip
            truths[grid] = Truth(out, stem, anatomy, _name_of(grid, scanner, resolution))
            truths[grid].write()
        rng = stream(seed, 'scan', person.label, scanner.label, contrast)
        _write_scan(out, stem, person, scanner, contrast, truths[grid], rng, head=head)
        yield _scan_name(person.label, scanner, contrast)


def _name_of(grid: Grid, scanner: Scanner, resolution: float) -> str:
    """Return the contrast that a grid is called by, whichever contrasts are scanned; the first needs no name."""
    same = [item for item in scanner.contrasts if Grid.of(scanner.protocol(item), resolution) == grid]
    return '' if same[0] == scanner.contrasts[0] else same[0]


@dataclass(frozen=True)
class Grid:
    """Where a protocol puts its voxels.

    Parameters
    ----------
    voxel_size
        Of the stored grid (mm), along the slice axis from slice to slice.
    field_of_view
        Millimetres, or None for the whole head.
    slice_axis, slice_factor
        Axis across slices, and planes that are averaged into one.
    thickness
        Thickness of a slice over the distance from slice to slice.
    """

    voxel_size: tuple[float, float, float]
    field_of_view: tuple[float, float, float] | None
    slice_axis: int
    slice_factor: int
    thickness: float

    @classmethod
    def of(cls, protocol: Protocol, resolution: float) -> Grid:
        """Return the grid of a protocol, enlarged until no voxel is smaller than a resolution (mm)."""
        x, y, z = protocol.voxel_size
        factor = max(1.0, resolution / min(x, y, z))
        distance = protocol.voxel_size[protocol.slice_axis]
        return cls(
            (x * factor, y * factor, z * factor), protocol.field_of_view, protocol.slice_axis,
            protocol.slice_factor, protocol.slice_thickness / distance,
        )  # fmt: skip

    @property
    def frame(self) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
        """Shape and affine."""
        return scan_grid(self.voxel_size, field_of_view=self.field_of_view)


@dataclass(frozen=True)
class Truth:
    """What a head is on one grid, and how its files are called.

    Parameters
    ----------
    out, stem
        Folder of the data set, and the path of the session's files up to the suffix.
    anatomy
        The head on the grid.
    name
        The contrast whose grid it is; empty for the first grid of a session.
    """

    out: Path
    stem: Path
    anatomy: Anatomy
    name: str

    def write(self) -> None:
        """Write tissue, labels and masks."""
        desc = f'_desc-{self.name}' if self.name else ''
        for tissue, fraction in zip(SEGMENTED, self.anatomy.tissue, strict=True):
            self._save(
                f'label-{tissue}{desc}_probseg',
                fraction,
                {'Description': f'Fraction of {tissue} in each voxel.'},
            )
        self._save(
            f'{desc[1:]}_dseg'.lstrip('_'),
            self.anatomy.labels,
            {'Description': 'Largest tissue in each voxel.'},
        )
        brain = {'Type': 'Brain', 'Description': 'Voxels that are at least half brain.'}
        mask = self.anatomy.brain_mask.astype(np.uint8)
        self._save(f'desc-{self.name}Brain_mask' if self.name else 'desc-brain_mask', mask, brain)
        ill = self.anatomy.part('lesion', 'mass')
        if ill.any():
            lesion = {
                'Type': 'Lesion',
                'Description': 'Voxels that are at least half lesion, oedema or mass.',
            }
            self._save(f'label-lesion{desc}_mask', (ill >= 0.5).astype(np.uint8), lesion)

    def _save(self, suffix: str, data: NDArray[Any], fields: Mapping[str, Any]) -> None:
        base = self.out / TRUTH / self.stem
        _write_image(base.with_name(f'{base.name}_{suffix}.nii.gz'), data, self.anatomy.affine)
        write_json(base.with_name(f'{base.name}_{suffix}.json'), {**fields, 'SpatialReference': 'orig'})


def prepare_folder(out: Path, *, force: bool = False, request: Mapping[str, Any] | None = None) -> None:
    """Make sure that a data set can be written to a folder.

    Parameters
    ----------
    out
        The folder; it may be missing.
    force
        Whether a simulated data set that is there may be removed. Nothing else ever is.
    request
        What is going to be made (:func:`bidsharm.simulation.unfinished.request_of`): an unfinished data set of the same is left
        as it is, to go on with.

    Raises
    ------
    UsageError
        If there is something that must not be touched, or the folder cannot be made.
    """
    try:
        clear_remains([out])
        # The file by which a command holds the folder does not count.
        occupied = out.exists() and (
            not out.is_dir() or any(item.name != f'.{GENERATOR}.lock' for item in out.iterdir())
        )
        if not occupied:
            out.mkdir(parents=True, exist_ok=True)
            return
        mark = read_mark(out)
        if not force and mark is not None:
            if mark.get('request') == request:
                return
            raise UsageError(
                'The folder holds an unfinished data set that was asked for in another way.', where=str(out),
                fix='Ask in the same way to finish it, choose another folder, or replace it with --force.',
            )  # fmt: skip
        if not force:
            raise UsageError(
                'The folder is not empty.', where=str(out), fix='Choose another, or replace it with --force.'
            )
        if mark is None and not _is_simulated(out):
            raise UsageError(
                'The folder holds something other than a simulated data set.',
                where=str(out),
                fix='--force replaces simulated data sets only; choose another folder.',
            )
        for folder in [*sorted(out.glob('sub-*')), out / TRUTH]:
            if folder.is_dir():
                shutil.rmtree(folder)
        (out / MARK).unlink(missing_ok=True)
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
    if not 0 <= resolution <= 10:
        raise UsageError('The resolution must be between 0 and 10 mm.', where=f'{resolution:g}')
    if seed < 0:
        raise UsageError('The seed must not be negative.', where=f'{seed}')
    for scanner in scanners:
        for contrast in contrasts:
            scanner.sequence(contrast)


def _write_scan(
    out: Path,
    stem: Path,
    person: Person,
    scanner: Scanner,
    contrast: str,
    truth: Truth,
    rng: np.random.Generator,
    *,
    head: bool,
) -> None:
    """Write one scan, the same image as an ideal scanner would give it, and the head in the standard contrast."""
    scan = acquire(truth.anatomy, scanner, contrast, rng, factors=person.relaxation)
    affine, path = truth.anatomy.affine, out / stem
    _write_image(path.with_name(f'{path.name}_{contrast}.nii.gz'), scan.stored, affine)
    write_json(
        path.with_name(f'{path.name}_{contrast}.json'), _sidecar(scanner, scanner, contrast, truth.anatomy)
    )
    common = {'SkullStripped': not head, 'SpatialReference': 'orig'}
    images = {
        'noiseless': (
            scan.noiseless, scanner,
            'The image without coils, frequency errors, filter, motion, ghosts, noise and rounding, in the units of the scan.',
        ),
        'canonical': (
            canonical_image(truth.anatomy, contrast, factors=person.relaxation), PRESETS[0],
            f'The same head in the scanner {PRESETS[0].label}, without any error; white matter is about {1 / CANONICAL_UNIT[contrast]:.2g}.',
        ),
    }  # fmt: skip
    base = out / TRUTH / stem
    for desc, (image, machine, text) in images.items():
        name = f'{base.name}_desc-{desc}_{contrast}'
        _write_image(base.with_name(f'{name}.nii.gz'), image, affine)
        write_json(
            base.with_name(f'{name}.json'),
            {'Description': text, **common, **_ideal(_sidecar(machine, scanner, contrast, truth.anatomy))},
        )


def _sidecar(machine: Scanner, scanner: Scanner, contrast: str, anatomy: Anatomy) -> dict[str, Any]:
    """Return the sidecar of a machine's image on the grid of a scanner, with the voxels that the grid has."""
    content, placed = machine.sidecar(contrast), scanner.sidecar(contrast)
    protocol = scanner.protocol(contrast)
    sizes = np.diag(anatomy.affine)[:3]
    distance = sizes[protocol.slice_axis]
    thickness = protocol.slice_thickness * distance / protocol.voxel_size[protocol.slice_axis]
    return {
        **content, **{key: placed[key] for key in _PLACING},
        'SliceThickness': round(float(thickness), 4), 'SpacingBetweenSlices': round(float(distance), 4),
        _MORE: {
            **content[_MORE], **{key: placed[_MORE][key] for key in _PLACING_MORE},
            'VoxelSize': _millimetres(sizes), 'FieldOfView': _millimetres(sizes * anatomy.fractions.shape[1:]),
        },
    }  # fmt: skip


def _ideal(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sidecar of an image of the truth: without what was done to the scan alone."""
    kept = {name: value for name, value in sidecar.items() if name not in _ERRORS}
    return kept | {_MORE: {name: value for name, value in sidecar[_MORE].items() if name not in _ERRORS}}


def _millimetres(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 4) for value in values]


def _write_pose(out: Path, stem: Path, person: Person, pose: NDArray[np.float64]) -> None:
    """Write the affine from the scanner to the head at the size of its anatomy, as ITK writes one."""
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK counts to the left and to the back
    matrix = flip @ person.place(pose) @ flip
    numbers = ' '.join(f'{value:.12g}' for value in (*matrix[:3, :3].ravel(), *matrix[:3, 3]))
    text = (
        '#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n'
        f'Parameters: {numbers}\nFixedParameters: 0 0 0\n'
    )
    path = out / TRUTH / stem
    write_bytes(path.with_name(f'{path.name}_from-orig_to-head_mode-points_xfm.txt'), text.encode())


def _write_warp(out: Path, person: Person) -> None:
    """Write the warp from a head at the size of its anatomy to the anatomy, as an ITK displacement field."""
    data = np.moveaxis(person.warp.displacement, 0, -1)[:, :, :, None] * np.array(
        [-1, -1, 1], dtype=np.float32
    )
    image = nib.Nifti1Image(data.astype(np.float32), person.warp.affine)
    image.header.set_intent('vector')
    image.header.set_xyzt_units('mm')
    image.set_qform(person.warp.affine, code=1)
    image.set_sform(person.warp.affine, code=1)
    folder = out / TRUTH / f'sub-{person.label}' / 'anat'
    path = folder / f'sub-{person.label}_from-head_to-anatomy_mode-points_xfm.nii.gz'
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))


#: Columns of participants.tsv behind the label, and what they mean.
COLUMNS: dict[str, dict[str, Any]] = {
    'age': {'Description': 'Simulated age; ventricles and sulci widen with it', 'Units': 'year'},
    'sex': {'Description': 'Simulated sex; heads differ in size', 'Levels': {'F': 'female', 'M': 'male'}},
    'anatomy': {'Description': 'What the head was made from'},
    'size': {'Description': 'Linear size relative to the anatomy'},
    'ventricles_mm': {'Description': 'How far the walls of the ventricles were moved out', 'Units': 'mm'},
    'cortex_mm': {
        'Description': 'Thickness of cortex to be turned into fluid where it borders on pure fluid; gm_ml has what became of it',
        'Units': 'mm',
    },
    'lesions': {'Description': 'Number of lesions as of multiple sclerosis'},
    'mass_mm': {
        'Description': 'Radius of a tumour-like mass in the anatomy, before it grows by pushing its surroundings; 0 for none',
        'Units': 'mm',
    },
    'csf_ml': {'Description': 'True volume of cerebrospinal fluid inside the brain mask', 'Units': 'ml'},
    'gm_ml': {'Description': 'True volume of gray matter', 'Units': 'ml'},
    'wm_ml': {'Description': 'True volume of white matter, lesions included', 'Units': 'ml'},
    'lesion_ml': {'Description': 'True volume of lesions and oedema', 'Units': 'ml'},
}


def _participant(person: Person, anatomy: str) -> tuple[str, ...]:
    """Return a person's row of participants.tsv."""
    shape, affine = scan_grid(2.0)
    head = render(
        smooth_to(replace(person.head, texture=None), 2.0), shape=shape, affine=affine, warp=person.warp,
        pose=person.place(np.eye(4)),
    )  # fmt: skip
    millilitres = [*(part.sum() for part in head.tissue), head.part('lesion').sum()]
    return (
        f'sub-{person.label}', str(person.age), person.sex, anatomy, f'{person.size:.4f}',
        f'{person.ventricles_mm:.3f}', f'{person.cortex_mm:.3f}', str(person.lesions), f'{person.mass_mm:g}',
        *(f'{float(count) * head.voxel_volume / 1000:.1f}' for count in millilitres),
    )  # fmt: skip


def _write_descriptions(out: Path, labels: Sequence[Path]) -> None:
    common: dict[str, Any] = {
        'BIDSVersion': BIDS_VERSION,
        'License': 'That of the label maps; see README'
        if labels
        else 'Free with the notice of the MNI ICBM 152 template; see README',
        'GeneratedBy': [
            {'Name': GENERATOR, 'Version': __version__, 'Description': 'Travelling heads, simulated.'}
        ],
    }
    # The description comes first: it marks a data set that was interrupted as one that may be replaced.
    raw = {'Name': 'Simulated travelling heads', 'DatasetType': 'raw', **common}
    write_json(out / 'dataset_description.json', raw)
    write_bytes(out / 'README', _README.format(anatomies=_LABELS if labels else _MNI).encode())
    truth = {'Name': 'Truth of the simulated travelling heads', 'DatasetType': 'derivative', **common}
    write_json(out / TRUTH / 'dataset_description.json', truth)
    write_bytes(out / TRUTH / 'README', _TRUTH_README.encode())
    write_bytes(out / TRUTH / '.bidsignore', b'*_xfm.*\n')
    names = {'GM': 'Gray matter', 'WM': 'White matter', 'CSF': 'Cerebrospinal fluid', 'L': 'Lesion'}
    rows = [(str(code), names[tissue], tissue) for tissue, code in DSEG_LABELS.items()]
    write_tsv(out / TRUTH / 'dseg.tsv', ('index', 'name', 'abbreviation'), rows)


def _write_participants(out: Path, rows: Sequence[tuple[str, ...]]) -> None:
    write_tsv(out / 'participants.tsv', ('participant_id', *COLUMNS), rows)
    write_json(out / 'participants.json', COLUMNS)


def _write_image(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units('mm')
    # Compressed here and not by nibabel: with the time left out, the same image is the same file.
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))
