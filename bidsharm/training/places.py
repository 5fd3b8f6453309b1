"""Where in the brain a patch lies, as images that a network can see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bidsharm.training.regimes import Example, TargetOnly
from bidsharm.training.volumes import TrainingVolume


def coordinates(
    mask: NDArray[np.bool_], start: tuple[int, int, int] = (0, 0, 0), shape: tuple[int, ...] | None = None
) -> NDArray[np.float32]:
    """Return the three coordinates of voxels in the box around a brain, from -1 to 1 and beyond it outside.

    Parameters
    ----------
    mask
        Brain mask, shape (X, Y, Z).
    start, shape
        First voxel and size of the patch; the whole volume by default.

    Returns
    -------
    ndarray of shape (3, *shape), float32
    """
    shape = mask.shape if shape is None else shape
    rows = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = there[0], there[-1]
        at = np.arange(start[axis], start[axis] + shape[axis])
        rows.append(2 * (at - low) / max(high - low, 1) - 1)
    return np.stack(np.meshgrid(*rows, indexing='ij')).astype(np.float32)


class PlacedTarget(TargetOnly):
    """Patches of the target's scans (``x``, ``mask``), and ``where`` they lie in the brain."""

    def _of(self, volume: TrainingVolume, rng: np.random.Generator) -> Example:
        place, flipped = self.view.choose(volume.mask, rng), self.mirrored(rng)
        x = self.image(volume, place, flipped)
        where = coordinates(volume.mask, place.start, x.shape[1:])
        if flipped:  # the image is mirrored, so left is where right was
            where = np.ascontiguousarray(np.flip(where, axis=1))
            where[0] *= -1
        return {
            'x': x, 'mask': self.mask(volume, place, flipped), 'where': where, 'site': self.site(volume),
        }  # fmt: skip
