"""Scans in the units of White Stripe, laid on one grid in the space of the template."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.harmonizers.contract import Canonical, Scan, Volume
from bidsharm.harmonizers.linear import CSF, MODALITIES, WhiteStripe
from bidsharm.harmonizers.standard import Values, check_scan
from bidsharm.imaging.grids import Affine, resample

if TYPE_CHECKING:
    from bidsharm.imaging.alignment import Grid

#: Voxels of the common grid (mm). The registration sees 2 mm and does not bend, so finer voxels would hold no finer correspondence; a
#: cohort takes 2.5 MB a scan and the bundle 2.5 MB a factor, an eighth of what 1 mm would.
COMMON_MM = 2.0
#: Voxels in which a scan is looked at (mm): those of the model grid that methods of the geometry ``grid`` see.
SEEN_MM = 1.0
#: A voxel is fluid where its probability is above this.
FLUID = 0.5
#: All eight neighbours of a place are brain: nothing from outside the mask is mixed in by interpolation.
WHOLE = 0.999


@dataclass(frozen=True)
class Look:
    """A scan in the units of White Stripe, on the common grid.

    Parameters
    ----------
    shift, scale
        Of White Stripe, in the units of the scan.
    world
        From the world of the scan to that of the template, shape (4, 4).
    values
        Intensities, shape (m,) for the m voxels of the common grid.
    inside, fluid
        Voxels that are brain, and that may be control voxels, shape (m,).
    """

    shift: float
    scale: float
    world: Affine
    values: NDArray[np.float32]
    inside: NDArray[np.bool_]
    fluid: NDArray[np.bool_]


def look_at(scan: Scan) -> Look:
    """Return a scan in the units of White Stripe on the common grid.

    It is looked at in voxels of 1 mm, as the workflow shows it to methods of the geometry ``grid``, so that a scan of the cohort is seen alike both
    times.

    Raises
    ------
    ScanError
        If it is unusable, or cannot be aligned.
    """
    from bidsharm.harmonizers.native import on_model_grid

    check_scan(scan)
    if scan.contrast not in MODALITIES:
        raise ScanError(
            f'ravel handles {", ".join(MODALITIES)}, not {scan.contrast}.',
            where=scan.name,
            fix='Choose another harmonizer for this contrast.',
        )
    seen = on_model_grid(replace(scan, mask=np.asarray(scan.mask).astype(bool), companions=()), SEEN_MM)
    striped = WhiteStripe().harmonize(seen, Canonical())
    world = to_template(seen)
    grid = common_grid()

    def sample(volume: Volume) -> NDArray[np.float32]:
        return grid.sample(volume, seen.affine, world).ravel()

    inside = sample(seen.mask.astype(np.float32)) >= WHOLE
    fluid = inside if seen.tissue is None else inside & (sample(seen.tissue[CSF]) > FLUID)
    return Look(
        float(striped.details['shift']), float(striped.details['scale']), world, sample(striped.image), inside, fluid
    )  # fmt: skip


def to_template(scan: Scan) -> Affine:
    """Return the transform from the world of a scan to that of the template: rigid, then stretched along the axes of the template.

    Raises
    ------
    ScanError
        If it cannot be aligned.
    """
    from bidsharm.harmonizers.training_data import align
    from bidsharm.imaging.alignment import stretched

    grid, world = common_grid(), align(scan, None)
    mask = grid.sample(scan.mask.astype(np.float32), scan.affine, world) > 0.5
    if not mask.any():
        raise ScanError('It could not be aligned.', where=scan.name, fix='Is this a brain?')
    return np.asarray(stretched(mask, grid) @ world)


def common_grid() -> Grid:
    """Return the common grid."""
    from bidsharm.harmonizers.training_data import common_frame

    return common_frame(COMMON_MM)


def corrected(scan: Scan, look: Look, unwanted: NDArray[np.float32]) -> Values:
    """Return the intensities inside the mask in the units of White Stripe, less what is unwanted, shape (n,)."""
    grid = common_grid()
    onto = np.linalg.inv(look.world) @ grid.affine
    field = resample(unwanted.reshape(grid.shape), onto, scan.data.shape, scan.affine, mode='nearest')
    return (check_scan(scan) - look.shift) / look.scale - field[np.asarray(scan.mask).astype(bool)]


def spread(gamma: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return coefficients that are known where all scans have brain, and elsewhere those of the nearest such place."""
    shape = common_grid().shape
    nearest = ndimage.distance_transform_edt(
        ~known.reshape(shape), return_distances=False, return_indices=True
    )
    return np.ascontiguousarray(gamma[:, np.ravel_multi_index(tuple(nearest), shape).ravel()])
