"""Brain masks: is a scan already stripped, and is a mask a brain?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.imaging.grids import Affine, crop_affine, shrink, voxel_sizes

#: Volume of what is inside the skull, in ml, from a newborn's brain to the largest adult's.
BRAIN_ML = (250.0, 2200.0)
#: Above and below this, a report says so.
USUAL_BRAIN_ML = (850.0, 1950.0)
#: Dice of what is not background with a brain mask, from which on a scan counts as stripped. On eight real T1w and 15 T2w
#: and FLAIR cut to their masks deepbet reaches 0.967 to 0.992; a brain is 0.7 of a head with all of its air at 0.
STRIPPED_DICE = 0.85


def volume_ml(mask: NDArray[np.bool_], affine: Affine) -> float:
    """Return the volume of a mask in ml."""
    return float(mask.sum() * np.prod(voxel_sizes(affine)) / 1000)


def background_value(data: NDArray) -> float:
    """Return the most frequent value on the faces of the volume."""
    faces = np.concatenate(
        [np.take(data, index, axis=axis).ravel() for axis in range(3) for index in (0, -1)]
    )
    values, counts = np.unique(faces, return_counts=True)
    return float(values[np.argmax(counts)])


def stripped_support(data: NDArray, affine: Affine) -> NDArray[np.bool_] | None:
    """Return the brain mask of a scan that may be skull-stripped, or None for a whole head.

    A stripped scan has a background of one exact value, and what is left is as large as a brain; a defaced
    or zero-filled whole head is mostly larger, but a child's is not: :func:`is_stripped` decides.
    Holes (ventricles set to 0) belong to the brain.

    Parameters
    ----------
    data
        Intensities (X, Y, Z).
    affine
        Voxel to world.
    """
    support = data != background_value(data)
    if support.mean() > 0.6:
        return None
    size = np.maximum(np.round(3.0 / voxel_sizes(affine)).astype(int), 1)
    opened = ndimage.binary_opening(support, structure=np.ones(size))
    largest = largest_component(opened)
    if largest is None:
        return None
    brain = ndimage.binary_fill_holes(support & ndimage.binary_dilation(largest, structure=np.ones(size)))
    if brain is None or not BRAIN_ML[0] <= volume_ml(brain, affine) <= BRAIN_ML[1]:
        return None
    # A head that fills the field of view touches its faces on several sides; a stripped brain hardly does.
    touching = sum(
        bool(np.take(brain, index, axis=axis).mean() > 0.05) for axis in range(3) for index in (0, -1)
    )
    return brain if touching <= 2 else None


def is_stripped(support: NDArray[np.bool_] | None, brain: NDArray[np.bool_]) -> bool:
    """Say whether a scan is skull-stripped: what is left of it is a brain, and not a head around one.

    Parameters
    ----------
    support
        From :func:`stripped_support`.
    brain
        Brain mask of the scan from another source, on the same grid.
    """
    if support is None or not support.any():
        return False
    return bool(2 * (support & brain).sum() >= STRIPPED_DICE * (support.sum() + brain.sum()))


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return the largest connected part of a mask, or None when it is empty."""
    labels, count = ndimage.label(mask)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == int(sizes.argmax())


def grow(mask: NDArray[np.bool_], affine: Affine, distance_mm: float) -> NDArray[np.bool_]:
    """Return a mask with everything that lies within a distance of it (Euclidean, in mm)."""
    if not mask.any():
        return mask
    away = ndimage.distance_transform_edt(~mask, sampling=voxel_sizes(affine))
    return np.asarray(away <= distance_mm)


def upper_head(data: NDArray, affine: Affine, *, height_mm: float = 165.0) -> tuple[NDArray, Affine]:
    """Cut off what lies further below the top of a head than a brain reaches: neck and shoulders.

    Parameters
    ----------
    data
        Intensities (X, Y, Z) in canonical axis order, air dark.
    affine
        Voxel to world.
    height_mm
        What is kept, along the third axis.

    Returns
    -------
    data, affine
        The cut; all of the scan where no head stands out.
    """
    bright = _not_air(data)
    area = ndimage.binary_opening(bright).mean(axis=(0, 1))
    if not area.any():
        return data, affine
    top = int(np.flatnonzero(area > 0.05 * area.max()).max())
    low = max(0, int(top - height_mm / voxel_sizes(affine)[2]))
    box = (slice(None), slice(None), slice(low, top + 3))
    return data[box], crop_affine(affine, (slice(0, None), slice(0, None), slice(low, None)))


def _not_air(data: NDArray) -> NDArray[np.bool_]:
    floor = min(0.0, float(np.percentile(data, 1)))  # air is not 0 in Hounsfield-like units
    return np.asarray(data - floor > 0.25 * (float(np.median(data[data >= data.mean()])) - floor))


def beside_the_head(data: NDArray, brain: NDArray[np.bool_], affine: Affine) -> float:
    """Return the volume (ml) of the largest thing in the picture that is not connected to the head around a brain.

    Parameters
    ----------
    data
        Intensities (X, Y, Z), air dark.
    brain
        Brain mask on the same grid.
    affine
        Voxel to world.
    """
    small, coarse = shrink(data, affine, 4.0)
    own = shrink(brain, affine, 4.0)[0] > 0.5
    bright = ndimage.binary_opening(_not_air(small)) | own
    # The skull is dark: closing over 8 mm makes one piece of brain, skull and scalp.
    size = np.maximum(np.round(8.0 / voxel_sizes(coarse)).astype(int), 1)
    labels, count = ndimage.label(ndimage.binary_closing(bright, structure=np.ones(size)))
    volumes = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(voxel_sizes(coarse)) / 1000
    volumes[np.unique(labels[own])] = 0
    volumes[0] = 0
    return float(volumes.max())


def check_brain(mask: NDArray[np.bool_], affine: Affine, *, name: str) -> list[str]:
    """Refuse a mask that cannot be a brain; return warnings for an unusual one.

    Raises
    ------
    ScanError
        If the mask is empty, far too small or far too large.
    """
    volume = volume_ml(mask, affine)
    if not BRAIN_ML[0] <= volume <= BRAIN_ML[1]:
        raise ScanError(
            f'The brain mask holds {volume:.0f} ml, which is no brain.',
            where=name,
            fix='Look at the scan; give a mask with --derivatives, try --brain-extraction ants, or, for a stripped '
            'scan, --skull-strip skip.',
        )
    if not USUAL_BRAIN_ML[0] <= volume <= USUAL_BRAIN_ML[1]:
        return [f'The brain mask holds {volume:.0f} ml, which is unusual for an adult; look at the mask.']
    return []


def shrink_mask(mask: NDArray[np.bool_], affine: Affine, size_mm: float) -> tuple[NDArray[np.uint8], Affine]:
    """Return a coarser copy of a mask (voxels more than half inside)."""
    small, coarse = shrink(mask, affine, size_mm)
    return (small > 0.5).astype(np.uint8), coarse
