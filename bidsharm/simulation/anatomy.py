"""What a head is made of: fractions of tissues on a grid, and the places that all heads share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

#: Tissues of a head, in the order of the first axis of every array of fractions.
TISSUES = (
    'CSF', 'GM', 'WM', 'meninges', 'skull', 'scalp', 'deep GM', 'lesion', 'mass', 'vessel', 'marrow', 'eye', 'soft tissue', 'cord',
)  # fmt: skip
#: What a segmentation into three tissues should find, and which tissues of the head each of them holds. A tumour is none.
SEGMENTED = {'CSF': ('CSF',), 'GM': ('GM', 'deep GM'), 'WM': ('WM', 'lesion')}
#: The tissues that the brain mask holds.
BRAIN_TISSUES = ('CSF', 'GM', 'WM', 'deep GM', 'lesion', 'mass')
#: Labels of a discrete segmentation, as in ``dseg.tsv``: the common labels of BIDS. Only a mass is a lesion here (L).
DSEG_LABELS = {'GM': 1, 'WM': 2, 'CSF': 3, 'L': 7}

#: World box (RAS mm, lower and upper corner) that holds a whole head in any pose that is drawn here.
FIELD_OF_VIEW = ((-104.0, -140.0, -100.0), (104.0, 108.0, 112.0))
#: Heads turn about this point (RAS mm), near the centre of the brain.
HEAD_CENTRE = (0.0, -18.0, 5.0)


@dataclass(frozen=True)
class Anatomy:
    """Tissue fractions on a grid.

    Parameters
    ----------
    fractions
        Shape (14, X, Y, Z), float32 in [0, 1], in the order of :data:`TISSUES`; what is missing to 1 is air.
    affine
        Voxel to world (RAS mm), shape (4, 4).
    texture
        How tissue varies within itself: T1 and proton density, shape (2, X, Y, Z), standard deviation 1; None for none.
    """

    fractions: Float32
    affine: Float64
    texture: Float32 | None = None

    def part(self, *tissues: str) -> Float32:
        """Return the fraction of some tissues together, shape (X, Y, Z)."""
        first, *others = (self.fractions[TISSUES.index(name)] for name in tissues)
        return sum(others, start=first.copy())

    @property
    def brain(self) -> Float32:
        """Fraction of brain (:data:`BRAIN_TISSUES`) in each voxel, shape (X, Y, Z)."""
        return self.part(*BRAIN_TISSUES)

    @property
    def tissue(self) -> Float32:
        """Fractions of CSF, GM and WM as a segmentation should find them, shape (3, X, Y, Z)."""
        return np.stack([self.part(*names) for names in SEGMENTED.values()])

    @property
    def brain_mask(self) -> NDArray[np.bool_]:
        """Voxels that are at least half brain, shape (X, Y, Z)."""
        return self.brain >= 0.5

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Largest brain tissue per voxel inside the mask, as :data:`DSEG_LABELS`; 0 outside."""
        codes = np.array([DSEG_LABELS[name] for name in (*SEGMENTED, 'L')], dtype=np.uint8)
        largest = codes[np.concatenate([self.tissue, self.part('mass')[None]]).argmax(axis=0)]
        return np.where(self.brain_mask, largest, 0).astype(np.uint8)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


def to_voxels(affine: Float64, points: Float64) -> Float64:
    """Map world points (RAS mm), shape (3, ...), to voxel positions."""
    inverse = np.linalg.inv(affine)
    return np.tensordot(inverse[:3, :3], points, axes=1) + inverse[:3, 3].reshape(
        (3,) + (1,) * (points.ndim - 1)
    )


def world_of(affine: Float64, shape: tuple[int, ...]) -> Float64:
    """Return the world points (RAS mm) of all voxels of a grid, shape (3, X, Y, Z)."""
    return np.tensordot(affine[:3, :3], np.indices(shape, dtype=float), axes=1) + affine[:3, 3].reshape(
        3, 1, 1, 1
    )


def signed_distance(mask: NDArray[np.bool_], spacing: float) -> Float32:
    """Return the distance to the surface of a mask in mm, negative inside.

    The surface runs between voxels, half a voxel from the middles of those on either side.
    """
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    distance = (outside - inside).astype(np.float32)
    distance -= np.copysign(np.float32(spacing / 2), distance)
    return distance
