"""Bad scans, each made from a good one, and what must happen to it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bidsharm.files import MAX_TEXT

#: What must become of a scan: ``done`` without a word, ``done, with a warning``, or ``refused``.
Ending = Literal['done', 'done, with a warning', 'refused']
DONE, WARNED, REFUSED = 'done', 'done, with a warning', 'refused'


@dataclass(frozen=True)
class Head:
    """A good scan and the truth about it.

    Parameters
    ----------
    data, affine
        Whole head, float32, axes in RAS order.
    mask
        Brain mask on the same grid.
    t2w
        The same head in another contrast.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    mask: NDArray[np.bool_]
    t2w: NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A kind of bad scan.

    Parameters
    ----------
    name
        In a few words.
    make
        Writes the file (and what lies beside it) under a path without extension; returns the true brain mask on the
        grid of the file, or None where there is no brain to find.
    ends
        What must become of it.
    message
        Pattern of what the user is told.
    reading
        Whether the end shows when the file is read; else only a run knows.
    run
        Whether a run of the app is worth its time; else the scan is only read and put back.
    dice
        Least overlap of the mask that is found with the true one.
    large
        Too large for the quick tests.
    """

    name: str
    make: Callable[[Head, Path], NDArray[np.bool_] | None]
    ends: Ending = 'done'
    message: str = ''
    reading: bool = True
    run: bool = False
    dice: float = 0.93
    large: bool = False


def load_head(folder: Path, *, session: str = 'northA') -> Head:
    """Read the first subject of a simulated data set with T1w and T2w."""
    anat = folder / 'sub-01' / f'ses-{session}' / 'anat'
    truth = folder / 'derivatives' / 'truth' / 'sub-01' / f'ses-{session}' / 'anat'
    name = f'sub-01_ses-{session}'
    t1w = nib.load(anat / f'{name}_T1w.nii.gz')
    mask = nib.load(truth / f'{name}_desc-brain_mask.nii.gz')
    t2w = nib.load(anat / f'{name}_T2w.nii.gz')
    return Head(
        np.asarray(t1w.dataobj, dtype=np.float32), t1w.affine, np.asarray(mask.dataobj) > 0, np.asarray(t2w.dataobj, np.float32)
    )  # fmt: skip


def write(stem: Path, data: NDArray, affine: NDArray, ending: str = '.nii.gz', **header: Any) -> Path:
    """Write a NIfTI-1 image; ``sform`` and ``qform`` are codes, other words are fields of the header."""
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.set_qform(affine, code=header.pop('qform', 1))
    image.set_sform(affine, code=header.pop('sform', 1))
    image.header.set_xyzt_units(header.pop('units', 'mm'))
    path = stem.with_name(stem.name + ending)
    image.to_filename(path)
    if header:
        patch(path, **header)
    return path


def patch(path: Path, **fields: Any) -> None:
    """Change fields of a NIfTI-1 header in the file, also to values that nibabel would not write."""
    opened = gzip.open if path.suffix == '.gz' else open
    with opened(path, 'rb') as file:
        raw = file.read()
    block = np.frombuffer(raw[:348], dtype=nib.Nifti1Header.template_dtype).copy()
    for key, value in fields.items():
        block[key] = value
    with opened(path, 'wb') as file:
        file.write(block.tobytes() + raw[348:])


# --- files -------------------------------------------------------------------------------------------------------------


def _good(ending: str) -> Callable[[Head, Path], NDArray[np.bool_]]:
    def make(head: Head, stem: Path) -> NDArray[np.bool_]:
        write(stem, head.data.astype(np.int16), head.affine, ending)
        return head.mask

    return make


def _cut_off(head: Head, stem: Path) -> None:
    path = write(stem, head.data.astype(np.int16), head.affine)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _cut_off_plain(head: Head, stem: Path) -> None:
    path = write(stem, head.data.astype(np.int16), head.affine, '.nii')
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bytes(content: bytes, ending: str = '.nii.gz') -> Callable[[Head, Path], None]:
    def make(head: Head, stem: Path) -> None:
        stem.with_name(stem.name + ending).write_bytes(content)

    return make


def _renamed(real: str, shown: str) -> Callable[[Head, Path], None]:
    def make(head: Head, stem: Path) -> None:
        path = write(stem, head.data.astype(np.int16), head.affine, real)
        path.rename(stem.with_name(stem.name + shown))

    return make


def _broken_link(head: Head, stem: Path) -> None:
    stem.with_name(f'{stem.name}.nii.gz').symlink_to('../../.git/annex/objects/Xz/9q/MD5E-s1.nii.gz')


def _nifti2(head: Head, stem: Path) -> NDArray[np.bool_]:
    image = nib.Nifti2Image(head.data.astype(np.int16), head.affine)
    image.header.set_xyzt_units('mm')
    image.to_filename(stem.with_name(f'{stem.name}.nii.gz'))
    return head.mask


# --- kinds of voxels ---------------------------------------------------------------------------------------------------


def _big_endian(head: Head, stem: Path) -> NDArray[np.bool_]:
    header = nib.Nifti1Header(endianness='>')
    header.set_data_dtype('>i2')
    header.set_xyzt_units('mm')
    image = nib.Nifti1Image(head.data.astype('>i2'), head.affine, header)
    image.to_filename(stem.with_name(f'{stem.name}.nii.gz'))
    return head.mask


def _typed(dtype: type | np.dtype) -> Callable[[Head, Path], NDArray[np.bool_]]:
    """Return what writes integers or floats of a type, with a slope and an intercept for 8 bits."""

    def make(head: Head, stem: Path) -> NDArray[np.bool_]:
        top = float(head.data.max())
        if np.dtype(dtype).itemsize == 1:
            slope = top / np.iinfo(dtype).max
            write(
                stem, np.round(head.data / slope).astype(dtype), head.affine, scl_slope=slope, scl_inter=-3.0
            )
        else:
            write(stem, head.data.astype(dtype), head.affine)
        return head.mask

    return make


def _scaled(
    slope: float, inter: float, *, stored_max: float = 32767
) -> Callable[[Head, Path], NDArray[np.bool_]]:
    def make(head: Head, stem: Path) -> NDArray[np.bool_]:
        stored = np.round(head.data * (stored_max / head.data.max())).astype(np.int16)
        write(stem, stored, head.affine, scl_slope=slope, scl_inter=inter)
        return head.mask

    return make


def _changed(change: Callable[[Head, NDArray[np.float32]], Any]) -> Callable[[Head, Path], NDArray[np.bool_]]:
    """Return what writes a float copy of the head after a change in place."""

    def make(head: Head, stem: Path) -> NDArray[np.bool_]:
        data = head.data.copy()
        change(head, data)
        write(stem, data, head.affine)
        return head.mask

    return make


def _set(where: Callable[[Head], Any], value: float) -> Callable[[Head, Path], NDArray[np.bool_]]:
    return _changed(lambda head, data: data.__setitem__(where(head), value))


def _outside(head: Head) -> NDArray[np.bool_]:
    away: NDArray[np.bool_] = head.data < 0.1 * head.data.max()
    away &= ~ndimage.binary_dilation(head.mask, iterations=6)
    return away


def _few_inside(head: Head) -> tuple[NDArray, ...]:
    points = np.argwhere(ndimage.binary_erosion(head.mask, iterations=4))[::997]
    return tuple(points.T)


def _array(make: Callable[[Head], NDArray]) -> Callable[[Head, Path], None]:
    """Return what writes an array that holds no brain to find."""

    def written(head: Head, stem: Path) -> None:
        write(stem, make(head), head.affine)

    return written


def _singleton(head: Head, stem: Path) -> NDArray[np.bool_]:
    write(stem, head.data.astype(np.int16)[..., None], head.affine)
    return head.mask


def _rgb(head: Head) -> NDArray:
    grey = np.clip(head.data / head.data.max() * 255, 0, 255).astype(np.uint8)
    return np.rec.fromarrays([grey, grey, grey], dtype=[('R', 'u1'), ('G', 'u1'), ('B', 'u1')])


# --- headers -----------------------------------------------------------------------------------------------------------


def _affine(**fields: Any) -> Callable[[Head, Path], None]:
    """Return what writes a header whose affine says nothing."""

    def make(head: Head, stem: Path) -> None:
        write(stem, head.data.astype(np.int16), head.affine, **fields)

    return make


def _no_codes(head: Head, stem: Path) -> NDArray[np.bool_]:
    # Without codes nibabel takes the first axis to run from right to left.
    data, mask = head.data[::-1], head.mask[::-1]
    write(stem, data.astype(np.int16), np.diag([-1.0, 1, 1, 1]) @ head.affine, sform=0, qform=0)
    return mask


def _forms_differ(head: Head, stem: Path) -> NDArray[np.bool_]:
    write(stem, head.data.astype(np.int16), head.affine, qoffset_x=float(head.affine[0, 3] + 20))
    return head.mask


def _qform_only(head: Head, stem: Path) -> NDArray[np.bool_]:
    write(stem, head.data.astype(np.int16), head.affine, sform=0)
    return head.mask


def _reoriented(codes: str) -> Callable[[Head, Path], NDArray[np.bool_]]:
    def make(head: Head, stem: Path) -> NDArray[np.bool_]:
        turn = ornt_transform(io_orientation(head.affine), axcodes2ornt(codes))
        affine = head.affine @ inv_ornt_aff(turn, head.data.shape)
        write(stem, np.ascontiguousarray(apply_orientation(head.data, turn)).astype(np.int16), affine)
        return np.ascontiguousarray(apply_orientation(head.mask, turn))

    return make


def resampled(
    head: Head, affine: NDArray, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return head and mask on another grid."""
    onto = np.linalg.inv(head.affine) @ affine
    place = {'output_shape': shape, 'matrix': onto[:3, :3], 'offset': onto[:3, 3]}
    data = ndimage.affine_transform(head.data, order=1, **place)
    mask = ndimage.affine_transform(head.mask.astype(np.float32), order=1, **place) > 0.5
    return data.astype(np.float32), mask


def grid(
    head: Head, sizes: tuple[float, ...], turn: NDArray | None = None, shape: tuple[int, ...] | None = None
) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Return affine and shape of a grid of other voxels, perhaps turned, about the middle of the head."""
    extent = np.array(head.data.shape) * np.linalg.norm(head.affine[:3, :3], axis=0)
    size = shape or tuple(int(n) for n in np.ceil(extent / sizes))
    middle = head.affine @ [*(np.array(head.data.shape) - 1) / 2, 1]
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(sizes)
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine, size


def _voxels(*sizes: float, shape: tuple[int, ...] | None = None) -> Callable[[Head, Path], NDArray[np.bool_]]:
    def make(head: Head, stem: Path) -> NDArray[np.bool_]:
        wanted = sizes
        if shape is not None:
            wanted = tuple(
                float(v)
                for v in np.array(head.data.shape) * np.linalg.norm(head.affine[:3, :3], axis=0) / shape
            )
        affine, size = grid(head, wanted)
        data, mask = resampled(head, affine, size if shape is None else shape)
        write(stem, np.round(data).astype(np.int16), affine)
        return mask

    return make


def _oblique(head: Head, stem: Path) -> NDArray[np.bool_]:
    turn = Rotation.from_euler('xyz', (30, 0, 10), degrees=True).as_matrix()
    affine, shape = grid(head, (2.5, 2.5, 2.5), turn)
    data, mask = resampled(head, affine, shape)
    write(stem, np.round(data).astype(np.int16), affine)
    return mask


def _sheared(cosine: float) -> Callable[[Head, Path], NDArray[np.bool_]]:
    def make(head: Head, stem: Path) -> NDArray[np.bool_]:
        affine = head.affine.copy()
        affine[:3, :3] = affine[:3, :3] @ np.array([[1, cosine, 0], [0, 1, 0], [0, 0, 1]])
        affine[:3, 3] = head.affine[:3, 3]
        data, mask = resampled(head, affine, head.data.shape)
        write(stem, np.round(data).astype(np.int16), affine, qform=0)
        return mask

    return make


def _metres(head: Head, stem: Path) -> NDArray[np.bool_]:
    affine = head.affine.copy()
    affine[:3] /= 1000
    write(stem, head.data.astype(np.int16), affine, units='meter')
    return head.mask


def _prime(head: Head, stem: Path) -> NDArray[np.bool_]:
    box = tuple(slice(0, n) for n in (83, 97, 83))
    write(stem, head.data[box].astype(np.int16), head.affine)
    return head.mask[box]


# --- what the picture shows --------------------------------------------------------------------------------------------


def _cropped(share: float) -> Callable[[Head, Path], NDArray[np.bool_]]:
    """Return what cuts away the top of the brain, which the field of view then misses."""

    def make(head: Head, stem: Path) -> NDArray[np.bool_]:
        levels = np.flatnonzero(head.mask.any(axis=(0, 1)))
        box = (slice(None), slice(None), slice(0, int(levels[0] + (1 - share) * len(levels))))
        write(stem, head.data[box].astype(np.int16), head.affine)
        return head.mask[box]

    return make


def _defaced(head: Head, data: NDArray[np.float32]) -> None:
    levels = np.flatnonzero(head.mask.any(axis=(0, 1)))
    front = np.flatnonzero(head.mask.any(axis=(0, 2)))[-1]
    face = np.zeros(data.shape, dtype=bool)
    face[:, int(0.75 * front) :, : int(levels[0] + 0.35 * len(levels))] = True
    data[face & ~ndimage.binary_dilation(head.mask, iterations=2)] = 0


def _two_heads(head: Head, stem: Path) -> None:
    write(stem, np.concatenate([head.data, head.data[::-1]]).astype(np.int16), head.affine)


def _upside_down(head: Head, stem: Path) -> NDArray[np.bool_]:
    """Turn the voxels about the axis from left to right, and leave the header."""
    write(stem, np.ascontiguousarray(head.data[:, ::-1, ::-1]).astype(np.int16), head.affine)
    return head.mask[:, ::-1, ::-1]


def _phantom(head: Head) -> NDArray:
    """Return a ball of water with the noise of a scan."""
    away = np.linalg.norm((np.indices(head.data.shape).T - (np.array(head.data.shape) - 1) / 2).T, axis=0)
    ball = 400.0 * (away * np.linalg.norm(head.affine[:3, 0]) < 85)
    noise = np.random.default_rng(0).normal(0, 8, (2, *ball.shape))
    return np.hypot(ball + noise[0], noise[1]).astype(np.int16)


def _infant(head: Head, stem: Path) -> NDArray[np.bool_]:
    affine = head.affine.copy()
    affine[:3] *= 0.72
    write(stem, head.data.astype(np.int16), affine)
    return head.mask


def _operated(head: Head, data: NDArray[np.float32]) -> None:
    """Put fluid where a lobe was: a ball of 50 mm across under the skull."""
    inside = np.argwhere(head.mask)
    middle = inside.mean(axis=0) + np.multiply(np.ptp(inside, axis=0), (0.22, 0.2, 0.1))
    away = np.linalg.norm((np.indices(data.shape).T - middle).T, axis=0) * np.linalg.norm(head.affine[:3, 0])
    data[(away < 25) & head.mask] = 0.2 * np.percentile(head.data[head.mask], 90)


def _t2w(head: Head, stem: Path) -> NDArray[np.bool_]:
    write(stem, head.t2w.astype(np.int16), head.affine)
    return head.mask


# --- sidecars ----------------------------------------------------------------------------------------------------------


def _sidecar(content: bytes) -> Callable[[Head, Path], NDArray[np.bool_]]:
    def make(head: Head, stem: Path) -> NDArray[np.bool_]:
        write(stem, head.data.astype(np.int16), head.affine)
        stem.with_name(f'{stem.name}.json').write_bytes(content)
        return head.mask

    return make


_WRONG_TYPES = b'{"Manufacturer": 7, "MagneticFieldStrength": ["3"], "EchoTime": {"a": null}, "StationName": true, "RepetitionTime": NaN}'
_HOSTILE = (
    b'{"Manufacturer": "<script>alert(1)</script>", "StationName": "../../../../etc/passwd", '
    b'"ManufacturersModelName": "$(touch pwned); `id` {{ 7*7 }}", "SeriesDescription": "\\u0000\\u202e\\ud800"}'
)

CASES = (
    # files
    Case('truncated gzip', _cut_off, REFUSED, 'cut off', run=True),
    Case('truncated .nii', _cut_off_plain, REFUSED, 'cut off'),
    Case('zero bytes', _bytes(b''), REFUSED, 'Empty file', run=True),
    Case('zero bytes, .nii', _bytes(b'', '.nii'), REFUSED, 'Empty file'),
    Case('not a NIfTI: text', _bytes(b'patient moved\n' * 50), REFUSED, 'not a readable image', run=True),
    Case('not a NIfTI: gzipped text', _bytes(gzip.compress(b'patient moved\n' * 50)), REFUSED, 'not a readable image'),
    Case('gzip named .nii', _renamed('.nii.gz', '.nii'), REFUSED, r'compressed.*Rename it to \.nii\.gz'),
    Case('plain file named .nii.gz', _renamed('.nii', '.nii.gz'), REFUSED, r'not compressed.*Rename it to \.nii'),
    Case('broken DataLad link', _broken_link, REFUSED, 'datalad get', run=True),
    Case('.nii', _good('.nii')),
    Case('.nii.gz', _good('.nii.gz')),
    Case('NIfTI-2', _nifti2, run=True),
    # kinds of voxels
    Case('big-endian int16', _big_endian, run=True),
    *(
        Case(f'voxels of type {np.dtype(dtype).name}', _typed(dtype))
        for dtype in (
            np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64,
        )
    ),
    Case('int16 whose slope leads out of its range', _scaled(37.5, -1000.0), run=True),
    Case('slope of 1e-6', _scaled(1e-6, 0.0)),
    Case('slope of 1e-30', _scaled(1e-30, 0.0), REFUSED, 'intensities'),
    Case('negative slope', _scaled(-1.0, 32767.0), WARNED, 'bright', reading=False, dice=0.0, run=True),
    Case('NaN slope', _scaled(np.nan, 0.0)),
    Case('zero slope', _scaled(0.0, 0.0)),
    Case('infinite intercept', _scaled(1.0, np.inf), REFUSED, 'not a readable image'),
    Case('slope that leads out of float32', _scaled(3e38, 0.0), REFUSED, 'not numbers'),
    Case('slope of 1e30', _scaled(1e30, 0.0), REFUSED, 'intensities'),
    Case('NaN outside the brain', _set(_outside, np.nan), WARNED, 'not numbers', run=True),
    Case('NaN inside the brain', _set(_few_inside, np.nan), WARNED, 'not numbers', run=True),
    Case('infinity outside the brain', _set(lambda head: np.s_[0, 0], np.inf), WARNED, 'not numbers'),
    Case('infinity inside the brain', _set(_few_inside, -np.inf), WARNED, 'not numbers'),
    Case('NaN everywhere', _array(lambda head: np.full(head.data.shape, np.nan, np.float32)), REFUSED, 'not numbers'),
    Case('all zeros', _array(lambda head: np.zeros(head.data.shape, np.int16)), REFUSED, 'no picture'),
    Case('constant', _array(lambda head: np.full(head.data.shape, 7, np.int16)), REFUSED, 'no picture', run=True),
    Case('negative values', _changed(lambda head, data: data.__isub__(1024)), run=True),
    Case('4-D with one volume', _singleton, run=True),
    Case('4-D with three volumes', _array(lambda head: np.stack([head.data] * 3, -1).astype(np.int16)), REFUSED, 'one 3-D volume', run=True),
    Case('2-D', _array(lambda head: head.data[:, :, 40].astype(np.int16)), REFUSED, 'one 3-D volume'),
    Case('one slice', _array(lambda head: head.data[:, :, 40:41].astype(np.int16)), REFUSED, 'not plausible|one 3-D volume'),
    Case('RGB', _array(_rgb), REFUSED, 'colour', run=True),
    Case('complex', _array(lambda head: head.data.astype(np.complex64)), REFUSED, 'complex'),
    # headers
    Case('affine missing: no codes, no voxel sizes', _affine(sform=0, qform=0, pixdim=[1, 0, 0, 0, 0, 0, 0, 0]), REFUSED, 'affine'),
    Case('affine zero', _affine(srow_x=0, srow_y=0, srow_z=0), REFUSED, 'affine'),
    Case('affine NaN', _affine(srow_y=np.nan), REFUSED, 'affine', run=True),
    Case('affine that leads away', _affine(srow_z=[0, 0, 2.5, 3e38]), REFUSED, 'away from its origin'),
    Case('sform against qform', _forms_differ, WARNED, r'differ \(by 20'),
    Case('both codes 0', _no_codes, WARNED, 'neither sform nor qform', run=True),
    Case('qform alone', _qform_only),
    *(
        Case(f'axes {codes}', _reoriented(codes), run=codes == 'PSR')
        for codes in ('RAS', 'LAS', 'LPS', 'PSR', 'ASR', 'LIP', 'ILP', 'RSA')
    ),
    Case('30 degrees oblique', _oblique, run=True),
    Case('directions sheared by 0.02', _sheared(0.02), WARNED, 'straightened', run=True),
    Case('directions sheared by 0.2', _sheared(0.2), REFUSED, 'right angles'),
    Case('voxels of 0.3 x 0.3 x 2.5 mm', _voxels(0.3, 0.3, 2.5), large=True, run=True),
    Case('voxels of 1 x 1 x 6 mm', _voxels(1.0, 1.0, 6.0), run=True),
    Case('voxels of 0.1 mm', _affine(srow_x=[0.1, 0, 0, 0], srow_y=[0, 0.1, 0, 0], srow_z=[0, 0, 0.1, 0]), REFUSED, 'not plausible'),
    Case('32 x 32 x 32 voxels', _voxels(shape=(32, 32, 32)), dice=0.85, run=True),
    Case('prime dimensions', _prime, run=True),
    Case('sizes in metres', _metres, WARNED, 'meter', run=True),
    # what the picture shows
    Case('top of the brain cut off', _cropped(0.3), WARNED, 'field of view', reading=False, dice=0.9, run=True),
    Case('lower half of the brain only', _cropped(0.55), WARNED, 'field of view', reading=False, dice=0.0, run=True),
    Case('already stripped', _changed(lambda head, data: data.__setitem__(~head.mask, 0)), dice=0.99, run=True),
    Case('defaced', _changed(_defaced), run=True),
    Case('empty background', _changed(lambda head, data: data.__setitem__(_outside(head), 0)), run=True),
    Case('two heads', _two_heads, WARNED, 'beside the head', reading=False, run=True),
    Case('upside down, the header does not know', _upside_down, WARNED, 'Fit of the template', reading=False, dice=0.0, run=True),
    Case('phantom: a ball of water', _array(_phantom), REFUSED, 'no brain', reading=False, run=True),
    Case('infant', _infant, WARNED, 'unusual for an adult', reading=False, dice=0.9, run=True),
    Case('post-operative: 50 mm of fluid', _changed(_operated), dice=0.85, run=True),
    Case('T2w named T1w', _t2w, WARNED, 'bright', reading=False, dice=0.85, run=True),
    # sidecars
    Case('no sidecar', _good('.nii.gz')),
    Case('empty sidecar', _sidecar(b''), WARNED, 'sidecar.*cannot be read', reading=False, run=True),
    Case('sidecar of wrong types', _sidecar(_WRONG_TYPES), run=True),
    Case('hostile sidecar', _sidecar(_HOSTILE), run=True),
    Case('huge sidecar', _sidecar(b'{"a": "' + b'x' * MAX_TEXT + b'"}'), WARNED, 'sidecar.*larger than', reading=False, run=True),
)  # fmt: skip
