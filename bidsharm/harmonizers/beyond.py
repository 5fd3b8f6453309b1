"""The whole head in the intensities of a harmonized brain, where the method's map holds beyond the mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bidsharm.harmonizers.contract import Harmonized, Scan, Volume

#: Below this percentile of the brain a map rests on hardly any voxel; from there to 0 it goes straight.
DARK_PERCENTILE = 1.0
#: Where more of a harmonized brain than this share is not above 0, its units have no room for a background at 0.
MOST_NEGATIVE = 0.05
#: Slices that are mapped at a time: the maps work in double precision.
_SLAB = 16


def whole_head(result: Harmonized, scan: Scan, head: Volume, affine: NDArray[np.float64]) -> Volume | None:
    """Carry the map of a harmonized brain on over the whole head.

    Parameters
    ----------
    result
        What a method made of the scan.
    scan
        The brain that it saw.
    head
        The whole image in the units of ``scan.data``, shape (X, Y, Z), on any grid.
    affine
        Its voxel to world (RAS+ mm), shape (4, 4).

    Returns
    -------
    ndarray or None
        Shape (X, Y, Z), float32, finite, not below 0. None where the method has no such map, or where its units (those of a z-score) put
        much of the brain below a background at 0: then only the brain can be shown.

    Notes
    -----
    From the 1st percentile q of the brain upwards it is the method's map f, but not below 0; under it, ``x f(q) / q``. So the air around
    the head, which is near 0 in a scan, is near 0 afterwards, also where the map has a shift; the intensities stay in order, and the map
    has no step. The brain itself is to be taken from ``result.image``.
    """
    brain = np.asarray(scan.mask).astype(bool)
    dark = float(np.percentile(np.asarray(scan.data)[brain], DARK_PERCENTILE))
    if result.beyond is None or not dark > 0 or np.mean(result.image[brain] <= 0) > MOST_NEGATIVE:
        return None
    mapped = np.empty(np.shape(head), np.float32)
    for start in range(0, len(head), _SLAB):
        slab = np.asarray(head[start : start + _SLAB], np.float32)
        place = np.array(affine, dtype=np.float64)
        place[:3, 3] += start * place[:3, 0]
        floor, above = (
            np.maximum(result.beyond(part, place), 0)
            for part in (np.full_like(slab, dark), np.maximum(slab, dark))
        )
        mapped[start : start + _SLAB] = np.where(slab < dark, floor * (np.maximum(slab, 0) / dark), above)
    return mapped if np.isfinite(mapped).all() else None


def with_brain(head: Volume, affine: NDArray[np.float64], scan: Scan, brain: Volume) -> Volume:
    """Return a head with the harmonized brain in its place.

    Parameters
    ----------
    head, affine
        The rest of the head, shape (X, Y, Z), and its grid.
    scan
        What ``brain`` was made of, on a part of the voxels of the head.
    brain
        Shape of the scan; only what its mask holds is used.
    """
    start = np.round((np.linalg.inv(affine) @ scan.affine)[:3, 3]).astype(int)
    box = tuple(slice(at, at + size) for at, size in zip(start, brain.shape, strict=True))
    result = np.array(head, dtype=np.float32)
    result[box] = np.where(np.asarray(scan.mask).astype(bool), brain, result[box])
    return result
