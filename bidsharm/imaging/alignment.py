"""Rigid alignment of brains, so that scans of one person, and persons, can be compared place by place."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ScanError
from bidsharm.imaging.grids import Affine, bounding_box, crop_affine, open_image, resample, shrink
from bidsharm.imaging.templates import bundled_files
from bidsharm.temporary import temporary_folder

#: Voxels that a registration sees (mm).
REGISTRATION_MM = 2.0
#: What is kept around the brain of the template on the common grid (mm); brains differ in size.
MARGIN_MM = 12
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Brain:
    """A brain without its surroundings.

    Parameters
    ----------
    data
        Intensities, 0 outside the brain, shape (X, Y, Z).
    mask
        Brain mask, same shape.
    affine
        From voxels to the world (RAS, mm).
    """

    data: NDArray[Any]
    mask: NDArray[np.bool_]
    affine: Affine


@dataclass(frozen=True)
class Grid:
    """A grid of voxels.

    Parameters
    ----------
    shape
        Number of voxels along each axis.
    affine
        From voxels to the world (RAS, mm).
    """

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def sample(
        self, data: NDArray[Any], affine: Affine, world: Affine, *, order: int = 1
    ) -> NDArray[np.float32]:
        """Sample a volume on this grid.

        Parameters
        ----------
        data, affine
            The volume, shape (X, Y, Z), and its grid.
        world
            From the world of the volume to that of this grid: see :func:`rigid`.
        order
            Spline order: 0 nearest, 1 linear, 3 cubic.
        """
        return np.asarray(
            resample(data, world @ affine, self.shape, self.affine, order=order), dtype=np.float32
        )


@cache
def template_brain() -> Brain:
    """Return the bundled MNI152 brain at 1 mm."""
    image = open_image(bundled_files()['T1w'])
    data = np.asarray(image.dataobj, dtype=np.float32)
    return Brain(data, data > 0, np.asarray(image.affine, dtype=float))


@cache
def common_grid() -> Grid:
    """Return the grid on which scans are compared: 1 mm, in MNI152 space, around the template's brain."""
    brain = template_brain()
    box = bounding_box(brain.mask, MARGIN_MM)
    shape = brain.mask[box].shape
    return Grid((shape[0], shape[1], shape[2]), crop_affine(brain.affine, box))


def rigid(moving: Brain, fixed: Brain, *, name: str = '', seed: int = 1) -> Affine:
    """Return the rigid transform that lays one brain on another.

    Mattes mutual information by ANTs on brains of 2 mm, from their centres of mass on; nothing is scaled.

    Parameters
    ----------
    moving, fixed
        Two brains, of any contrasts.
    name
        The scan, for messages.
    seed
        Of the sampling of the metric.

    Returns
    -------
    ndarray of shape (4, 4)
        From the world of the moving brain to that of the fixed one (RAS, mm).

    Raises
    ------
    ScanError
        If ANTs fails, or what it finds is no rigid transform.
    """
    import ants

    with temporary_folder('bidsharm', Path(tempfile.gettempdir())) as folder, _repeatable(seed):
        try:
            found = ants.registration(
                _ants_image(fixed), _ants_image(moving), 'Rigid', outprefix=f'{folder}/x',
                aff_iterations=(200, 100, 50), aff_shrink_factors=(4, 2, 1), aff_smoothing_sigmas=(2, 1, 0),
                aff_sampling=32, random_seed=seed,
            )  # fmt: skip
            transform = ants.read_transform(found['fwdtransforms'][0])
        except (RuntimeError, ValueError, IndexError) as error:
            raise ScanError('It could not be aligned.', where=name, fix='Is this a brain?') from error
        parameters = np.asarray(transform.parameters, dtype=float)
        centre = np.asarray(transform.fixed_parameters, dtype=float)
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:12] + centre - matrix[:3, :3] @ centre
    # ANTs maps points of the fixed image, in LPS.
    to_moving = _RAS_TO_LPS @ matrix @ _RAS_TO_LPS
    if not np.allclose(to_moving[:3, :3] @ to_moving[:3, :3].T, np.eye(3), atol=1e-3):
        raise ScanError('It could not be aligned rigidly.', where=name, fix='Is this a brain?')
    return cast(Affine, np.linalg.inv(to_moving))


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Have ANTs find the same transform every time.

    antspyx 0.6.3 takes ``random_seed`` and does nothing with it; and what several threads add up has other last digits each time.
    """
    chosen = {'ANTS_RANDOM_SEED': str(seed), 'ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS': '1'}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def stretched(mask: NDArray[np.bool_], grid: Grid) -> Affine:
    """Return the scaling along the axes that gives a brain the extent and the place of the template's.

    Parameters
    ----------
    mask
        Brain on the common grid, shape (X, Y, Z).
    grid
        The common grid.

    Returns
    -------
    ndarray of shape (4, 4)
        From the world of the common grid to that of the template.
    """
    template = template_brain()
    (low, high), (from_low, from_high) = _extent(template.mask, template.affine), _extent(mask, grid.affine)
    scale = (high - low) / np.maximum(from_high - from_low, 1.0)
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = low - scale * from_low
    return matrix


def _extent(mask: NDArray[np.bool_], affine: Affine) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 2 and 98 % quantiles of the places of a mask, in mm; stray voxels do not move them."""
    places = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    low, high = np.quantile(places, [0.02, 0.98], axis=0)
    return low, high


def _ants_image(brain: Brain) -> Any:
    import ants

    box = bounding_box(brain.mask, 3)
    data = np.where(brain.mask[box], brain.data[box], 0).astype(np.float32)
    small, affine = shrink(data, crop_affine(brain.affine, box), REGISTRATION_MM)
    low, high = np.quantile(small[small != 0], [0.01, 0.99]) if small.any() else (0.0, 1.0)
    small = np.clip((small - min(low, 0.0)) / max(high - min(low, 0.0), 1e-6), 0, 1.5).astype(np.float32)
    turned = _RAS_TO_LPS @ affine
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    return ants.from_numpy(
        small,
        origin=tuple(turned[:3, 3]),
        spacing=tuple(float(n) for n in spacing),
        direction=turned[:3, :3] / spacing,
    )
