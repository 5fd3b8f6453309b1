"""Headers, voxels and grids: check a scan, bring its axes into canonical order, crop, shrink, and go back."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.files import is_special
from bidsharm.imaging.headers import is_too_short, refuse_bomb

Floats = NDArray[np.float32]
Affine = NDArray[np.float64]

#: Voxel sizes outside this range (mm) are wrong units or a broken header.
VOXEL_SIZE_MM = (0.15, 12.0)
#: A 3-D head has at least this many voxels along each axis, and at most this many altogether.
MIN_SIZE, MAX_VOXELS = 8, 800_000_000
#: Directions may deviate this much from right angles before a scan is refused (cosine; 0.05 is 3 degrees).
MAX_SHEAR = 0.05
#: sform and qform may put a corner of the scan this far apart (mm) before a report says so: an sform may hold a shear.
FORMS_DIFFER_MM = 1.0
#: Intensities that span less, or lie further from 0, have squares that 32-bit numbers cannot hold.
INTENSITIES = (1e-15, 1e15)
#: A scan whose first voxel lies further away (mm) than this has a broken header; places on its grid are no longer exact.
ORIGIN_MM = 100_000.0
#: How a gzip file begins, and how much of a file holds the header of a NIfTI-1 or NIfTI-2.
_GZIP, _HEADER_BYTES = b'\x1f\x8b', 540
#: Not-a-number is a background, as SPM and others write it, where it covers this share of the faces of a volume.
NAN_FACES = 0.9


@dataclass(frozen=True)
class Conformed:
    """A checked scan in canonical axis order.

    Parameters
    ----------
    image
        Float32, 3-D, axes in closest RAS+ order, orthonormal directions; nothing was resampled.
    warnings
        What was found and mended, in plain words.
    """

    image: nib.Nifti1Image
    warnings: tuple[str, ...]


def open_image(path: str | Path) -> nib.Nifti1Image:
    """Open an image of any spatial format that nibabel reads; nothing is checked but that opening it does no harm."""
    refuse_bomb(Path(path))
    return cast(nib.Nifti1Image, nib.load(path))


def load_checked(path: Path) -> nib.Nifti1Image:
    """Open an image and refuse what cannot be a 3-D scan before its voxels are read.

    Raises
    ------
    ScanError
        For a missing file, a broken link, a file that is not an image, or an impossible header.
    """
    if path.is_symlink() and not path.exists():
        raise ScanError(
            'The file is a link that leads nowhere.',
            where=path.name,
            fix='With DataLad, run: datalad get FILE.',
        )
    if not path.exists():
        raise ScanError('The file does not exist.', where=path.name)
    if is_special(path):
        raise ScanError('This is a pipe, a device or a socket, no file.', where=path.name)
    try:
        image = open_image(path)
        shape, kind = image.shape, image.get_data_dtype()
    except Exception as error:  # noqa: BLE001 - nibabel raises many kinds for a broken file
        _refuse_wrong_suffix(path)
        raise ScanError(
            f'This is not a readable image ({_first_line(error, path)}).', where=path.name
        ) from None
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if kind.fields is not None or kind.kind not in 'iuf':
        raise ScanError(f'Voxels of type {kind} (colour or complex) are no intensities.', where=path.name)
    if len(shape) != 3:
        raise ScanError(
            f'The image has shape {image.shape}; one 3-D volume is needed.',
            where=path.name,
            fix='Give one volume per file (fslroi, mrconvert or nibabel can split it).',
        )
    if min(shape) < MIN_SIZE or np.prod(shape, dtype=float) > MAX_VOXELS:
        raise ScanError(f'A size of {shape} voxels is not plausible for a head.', where=path.name)
    return image


def _refuse_wrong_suffix(path: Path) -> None:
    """Name the mistake where a file is compressed though its name does not say so, or the other way round."""
    try:
        with path.open('rb') as file:
            start = file.read(_HEADER_BYTES)
    except OSError:
        return
    zipped = start.startswith(_GZIP)
    if zipped and path.suffix == '.nii':
        raise ScanError(
            'This is not a readable image: it is compressed, and its name does not say so.',
            where=path.name,
            fix='Rename it to .nii.gz.',
        )
    kinds = (nib.Nifti1Header, nib.Nifti2Header)
    if path.name.endswith('.nii.gz') and any(kind.may_contain_header(start) for kind in kinds):
        raise ScanError(
            'This is not a readable image: it is not compressed, and its name says it is.',
            where=path.name,
            fix='Rename it to .nii.',
        )


def conform(path: Path) -> Conformed:
    """Check a scan's header and voxels, and bring it into canonical axis order without resampling.

    An oblique scan stays oblique: its affine is kept. The sform counts where its code is set, else the
    qform, as nibabel does.

    Raises
    ------
    ScanError
        Naming what is wrong and what can be done.
    """
    image = load_checked(path)
    warnings: list[str] = []
    affine = _checked_affine(image, path.name, warnings)
    data = _checked_voxels(image, path.name, warnings)
    orientation = io_orientation(affine)
    canonical = np.ascontiguousarray(apply_orientation(data, orientation), dtype=np.float32)
    result = make_image(canonical, affine @ inv_ornt_aff(orientation, data.shape))
    return Conformed(result, tuple(warnings))


def make_image(data: NDArray, affine: Affine, dtype: type = np.float32) -> nib.Nifti1Image:
    """Return a NIfTI-1 image in mm with sform and qform set to the same affine."""
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units('mm')
    return image


def to_native(image: nib.Nifti1Image, native: nib.Nifti1Image) -> nib.Nifti1Image:
    """Put a result back on the grid of the raw scan, exactly: same axes, shape and affine, no resampling.

    Parameters
    ----------
    image
        A result in canonical axis order; it may be cropped (outside is filled with 0) and 4-D.
    native
        The raw scan.

    Raises
    ------
    ValueError
        If the image does not lie on the scan's voxels.
    """
    # The image stands on the affine that conform mended (units, right angles), not on the raw one.
    affine = _checked_affine(native, Path(native.get_filename() or '').name, [])
    orientation = io_orientation(affine)
    shape = tuple(int(native.shape[int(np.flatnonzero(orientation[:, 0] == axis)[0])]) for axis in range(3))
    data = np.asanyarray(image.dataobj)
    canonical = affine @ inv_ornt_aff(orientation, native.shape[:3])
    place = np.linalg.inv(canonical) @ image.affine
    start, stop = place[:3, 3], place[:3] @ [*data.shape[:3], 1]
    first = np.round(start).astype(int)
    last = first + data.shape[:3]
    apart = np.abs(start - first).max() > 0.05 or np.abs(stop - last).max() > 0.25
    if apart or first.min() < 0 or (last > shape).any():
        raise ValueError(f'the image (shape {data.shape}) does not lie on the voxels of the raw scan {shape}')
    full = np.zeros((*shape, *data.shape[3:]), dtype=data.dtype)
    full[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = data
    back = ornt_transform(axcodes2ornt('RAS'), orientation)
    restored = nib.Nifti1Image(np.ascontiguousarray(apply_orientation(full, back)), native.affine)
    codes = [1, 1]
    if isinstance(native.header, nib.Nifti1Header):
        codes = [int(native.header['sform_code']) or 1, int(native.header['qform_code']) or 1]
    restored.set_sform(native.affine, code=codes[0])
    restored.set_qform(native.affine, code=codes[1])
    restored.header.set_xyzt_units(_length_unit(native)[0])
    return restored


def voxel_sizes(affine: Affine) -> NDArray[np.float64]:
    """Return the voxel edge lengths in mm, shape (3,)."""
    return np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0))


def _checked_affine(image: nib.Nifti1Image, name: str, warnings: list[str]) -> Affine:
    affine = np.array(image.affine, dtype=float)  # a copy: the image keeps its own
    known = np.isfinite(affine).all() and not _sizes_are_invented(image)
    sizes = voxel_sizes(affine) if known else np.zeros(3)
    if sizes.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
        raise ScanError(
            'The affine is missing, zero or not a number, so nobody can say where left is.',
            where=name,
            fix='Convert it from DICOM again (dcm2niix), or repair sform and qform.',
        )
    unit, scale = _length_unit(image)
    if scale != 1.0:
        warnings.append(f'The header gives sizes in {unit}; they were converted to mm.')
        affine[:3] *= scale
        sizes = sizes * scale
    if not _plausible(sizes):
        raise ScanError(
            f'Voxels of {np.round(sizes, 3).tolist()} mm are not plausible for a head.', where=name
        )
    away = float(np.abs(affine[:3, 3]).max())
    if away > ORIGIN_MM:
        raise ScanError(
            f'The affine puts the scan {away / 1000:.3g} m away from its origin.',
            where=name,
            fix='Repair sform and qform.',
        )
    _note_header_forms(image, scale, warnings)
    return _orthonormal(affine, sizes, name, warnings)


def _sizes_are_invented(image: nib.Nifti1Image) -> bool:
    """Say whether the affine rests on voxel sizes that the file gives as 0; nibabel takes 1 mm for them."""
    file = image.get_filename()
    if not isinstance(image, nib.Nifti1Image) or int(image.header['sform_code']) or not file:
        return False
    with nib.openers.ImageOpener(file) as opened:
        raw = type(image.header).from_fileobj(opened, check=False)
    return not bool(raw['pixdim'][1:4].all())


def _length_unit(image: nib.Nifti1Image) -> tuple[str, float]:
    """Return the unit of the affine and what it is in mm; a unit that makes sizes implausible is not believed."""
    try:
        unit = image.header.get_xyzt_units()[0] if hasattr(image.header, 'get_xyzt_units') else 'mm'
    except KeyError:  # a number that means no unit
        unit = 'mm'
    scale = {'meter': 1000.0, 'micron': 0.001}.get(unit, 1.0)
    return (unit, scale) if scale != 1.0 and _plausible(voxel_sizes(image.affine) * scale) else ('mm', 1.0)


def _plausible(sizes: NDArray) -> bool:
    return bool(sizes.min() >= VOXEL_SIZE_MM[0] and sizes.max() <= VOXEL_SIZE_MM[1])


def _note_header_forms(image: nib.Nifti1Image, scale: float, warnings: list[str]) -> None:
    if not isinstance(image.header, nib.Nifti1Header):
        return
    sform, qform = int(image.header['sform_code']), int(image.header['qform_code'])
    if not sform and not qform:
        warnings.append(
            'The header has neither sform nor qform; left and right rest on the order of the voxels.'
        )
    elif sform and qform:
        try:
            apart = scale * corner_distance(image.get_sform(), image.get_qform(), image.shape)
        except (ValueError, nib.spatialimages.HeaderDataError):  # rounded by other software
            warnings.append('The qform is not a rotation; the sform was used.')
            return
        if apart > FORMS_DIFFER_MM:
            warnings.append(f'sform and qform differ (by {apart:.1f} mm); the sform was used.')


def _orthonormal(affine: Affine, sizes: NDArray, name: str, warnings: list[str]) -> Affine:
    """Return the affine with directions at right angles, as ITK demands (nearest rotation, by SVD)."""
    directions = affine[:3, :3] / sizes
    shear = np.abs(directions.T @ directions - np.eye(3)).max()
    if shear > MAX_SHEAR:
        raise ScanError(
            f'The axes of the affine are not at right angles (cosine {shear:.2f}).',
            where=name,
            fix='Resample the scan to a grid with orthogonal axes first.',
        )
    if shear > 1e-4:
        warnings.append(f'The axes deviated from right angles (cosine {shear:.4f}) and were straightened.')
    u, _, vt = np.linalg.svd(directions)
    straight = affine.copy()
    straight[:3, :3] = (u @ vt) * sizes
    return straight


def _checked_voxels(image: nib.Nifti1Image, name: str, warnings: list[str]) -> Floats:
    try:
        with np.errstate(over='ignore', invalid='ignore'):  # what leaves the range of float32 is told below
            if is_too_short(image):
                raise EOFError('there are fewer bytes than the header says')
            data = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, MemoryError) as error:
        raise ScanError(
            f'The voxels cannot be read; the file is probably cut off ({_first_line(error, image.get_filename())}).',
            where=name,
            fix='Copy or convert the file again.',
        ) from None
    data = data.reshape(data.shape[:3])
    bad = ~np.isfinite(data)
    if bad.any():
        share = bad.mean()
        if share > 0.5 and not _is_background(np.isnan(data)):
            raise ScanError(f'{share:.0%} of the voxels are not numbers (NaN or infinite).', where=name)
        warnings.append(f'{int(bad.sum())} voxels were not numbers (NaN or infinite) and were set to 0.')
        data[bad] = 0
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise ScanError(f'All voxels are {low:g}: there is no picture in this file.', where=name)
    if high - low < INTENSITIES[0] or max(-low, high) > INTENSITIES[1]:
        raise ScanError(
            f'Voxels from {low:.3g} to {high:.3g} are not plausible as intensities.',
            where=name,
            fix='Look at slope and intercept (scl_slope, scl_inter) of the header.',
        )
    return data


def _is_background(mask: NDArray[np.bool_]) -> bool:
    """Say whether voxels lie around a picture: on almost all of the six faces of the volume, and not everywhere."""
    faces = [np.take(mask, index, axis=axis).ravel() for axis in range(3) for index in (0, -1)]
    return bool(np.concatenate(faces).mean() >= NAN_FACES and not mask.all())


def _first_line(error: BaseException, path: str | Path | None) -> str:
    """Return what an error says, without the folder of the file."""
    text = str(error).replace(str(path), Path(path).name) if path else str(error)
    return (text.splitlines() or [type(error).__name__])[0][:160]


def bounding_box(
    mask: NDArray[np.bool_], margin: int | tuple[int, int, int] = 0
) -> tuple[slice, slice, slice]:
    """Return the slices around a mask, widened by ``margin`` voxels within the grid.

    Raises
    ------
    ValueError
        If the mask is empty.
    """
    margins = np.broadcast_to(margin, 3)
    slices = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not hit.size:
            raise ValueError('the mask is empty')
        low, high = int(hit[0]) - int(margins[axis]), int(hit[-1]) + 1 + int(margins[axis])
        slices.append(slice(max(low, 0), min(high, mask.shape[axis])))
    return slices[0], slices[1], slices[2]


def crop_affine(affine: Affine, box: tuple[slice, slice, slice]) -> Affine:
    """Return the affine of ``data[box]``."""
    moved = np.array(affine, dtype=float)
    moved[:3, 3] = affine[:3, :3] @ [part.start for part in box] + affine[:3, 3]
    return moved


def shrink(data: NDArray, affine: Affine, size_mm: float) -> tuple[Floats, Affine]:
    """Average a volume down to voxels of at least ``size_mm``; axes that are coarser stay as they are.

    A Gaussian of 0.42 of the new voxel (full width at half maximum one voxel) suppresses aliasing.

    Returns
    -------
    data, affine
        Smaller volume, float32, and its affine.
    """
    factor = np.maximum(size_mm / voxel_sizes(affine), 1.0)
    smooth = ndimage.gaussian_filter(
        np.asarray(data, dtype=np.float32), np.where(factor > 1.01, 0.42 * factor, 0)
    )
    shape = tuple(int(np.ceil(size / step)) for size, step in zip(data.shape, factor, strict=True))
    offset = (factor - 1) / 2
    small = ndimage.affine_transform(
        smooth, np.diag(factor), offset, output_shape=shape, order=1, mode='nearest'
    )
    coarse = np.array(affine, dtype=float)
    coarse[:3, :3] = affine[:3, :3] * factor
    coarse[:3, 3] = affine[:3, :3] @ offset + affine[:3, 3]
    return small.astype(np.float32), coarse


def resample(
    data: NDArray,
    affine: Affine,
    shape: tuple[int, ...],
    onto: Affine,
    *,
    order: int = 1,
    mode: str = 'constant',
) -> Floats:
    """Sample a volume on another grid that shares its world space.

    Parameters
    ----------
    data, affine
        Source volume (X, Y, Z) and its voxel-to-world affine.
    shape, onto
        Target grid.
    order
        Spline order: 0 nearest, 1 linear, 3 cubic.
    mode
        What lies outside the source: ``constant`` (0) or ``nearest``.
    """
    matrix = np.linalg.inv(affine) @ onto
    source = np.asarray(data, dtype=np.float32)
    result = ndimage.affine_transform(
        source, matrix[:3, :3], matrix[:3, 3], output_shape=tuple(shape[:3]), order=order, mode=mode
    )
    return result.astype(np.float32)


def corner_distance(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """Return how far apart two affines put a corner of a volume at most, in mm."""
    ends = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in shape[:3]))], dtype=float)
    return float(np.linalg.norm(((a - b) @ ends.T)[:3], axis=0).max())


def same_grid(a: nib.Nifti1Image, b: nib.Nifti1Image) -> bool:
    """Say whether two images share shape and grid (every corner to 0.01 mm)."""
    return a.shape[:3] == b.shape[:3] and corner_distance(a.affine, b.affine, a.shape) < 0.01
