"""The slowly varying intensity field: a coarse copy for N4, and its field carried back to the full grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bidsharm.imaging.grids import Affine, Floats, bounding_box, crop_affine, resample, shrink, voxel_sizes
from bidsharm.imaging.masks import shrink_mask

#: N4 estimates a field that varies over centimetres; 2 mm voxels lose nothing of it and save most of the time.
COARSE_MM = 2.0
MARGIN_MM = 8.0


@dataclass(frozen=True)
class CoarseCopy:
    """A cropped, coarse, positive copy of a scan for N4.

    Parameters
    ----------
    data, mask, affine
        Copy around the brain.
    shift
        What was added to make the brain positive (N4 takes the logarithm).
    """

    data: Floats
    mask: NDArray[np.uint8]
    affine: Affine
    shift: float


def coarse_copy(
    data: NDArray, mask: NDArray[np.bool_], affine: Affine, *, size_mm: float = COARSE_MM
) -> CoarseCopy:
    """Return the copy on which N4 estimates the field.

    Parameters
    ----------
    data, mask, affine
        Scan (X, Y, Z), its brain mask, and voxel to world.
    size_mm
        Voxel size of the copy; coarser axes are kept.
    """
    margin = np.ceil(MARGIN_MM / voxel_sizes(affine)).astype(int)
    box = bounding_box(mask, (int(margin[0]), int(margin[1]), int(margin[2])))
    inside = data[mask]
    low, spread = float(inside.min()), float(inside.max() - inside.min())
    shift = 0.01 * spread - low if low <= 0 else 0.0
    cropped = crop_affine(affine, box)
    small, coarse = shrink(np.maximum(data[box] + shift, 0.001 * spread), cropped, size_mm)
    small_mask, _ = shrink_mask(mask[box], cropped, size_mm)
    return CoarseCopy(small, small_mask, coarse, shift)


def apply_field(
    data: NDArray,
    mask: NDArray[np.bool_],
    affine: Affine,
    field: NDArray,
    field_affine: Affine,
    *,
    shift: float = 0.0,
) -> tuple[Floats, Floats]:
    """Divide a scan by a field estimated on a coarse copy.

    The logarithm of the field is interpolated linearly and carried on as a constant beyond the copy; its
    mean inside the brain is 1, so intensities keep their scale.

    Returns
    -------
    corrected, field
        Both on the scan's grid, float32.
    """
    log_field = np.log(np.maximum(np.asarray(field, dtype=np.float32), 1e-4))
    full = resample(log_field, field_affine, data.shape, affine, order=1, mode='nearest')
    full -= float(full[mask].mean())
    full = np.exp(np.clip(full, -3, 3))
    return ((data + shift) / full - shift).astype(np.float32), full.astype(np.float32)


def correct_bias(data: NDArray, mask: NDArray[np.bool_], affine: Affine) -> Floats:
    """Return a scan without its slow change of intensity, by N4 in this process, as the app corrects it in one of its own.

    Tustison et al. 2010, doi:10.1109/TMI.2010.2046908. Three levels, the first of 200 mm.

    Parameters
    ----------
    data, mask, affine
        Scan (X, Y, Z), its brain mask, and voxel to world.

    Returns
    -------
    ndarray
        Shape (X, Y, Z), float32, in the units of the scan.
    """
    import ants

    copy = coarse_copy(data, mask, affine)
    spacing = tuple(float(size) for size in voxel_sizes(copy.affine))
    image, inside = (
        ants.from_numpy(np.asarray(part, dtype=np.float32), spacing=spacing)
        for part in (copy.data, copy.mask)
    )
    field = ants.n4_bias_field_correction(
        image, mask=inside, shrink_factor=2, spline_param=200, convergence={'iters': [50] * 3, 'tol': 1e-7},
        return_bias_field=True,
    ).numpy()  # fmt: skip
    corrected, _ = apply_field(data, mask, affine, field, copy.affine, shift=copy.shift)
    return corrected
