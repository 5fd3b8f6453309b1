"""A brain in coarse voxels along the axes of the world: what networks look at before they change a scan at its own resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.imaging.grids import Affine, bounding_box, crop_affine, voxel_sizes

#: Edge of a coarse voxel (mm), and the field of view in such voxels where the brain fits.
SIZE_MM, SHAPE = 2.0, (96, 112, 96)
#: The field of view grows by blocks of this many voxels where it does not.
_BLOCK = 16


@dataclass(frozen=True)
class LowResolution:
    """A brain in coarse voxels.

    Parameters
    ----------
    values
        Intensities of brain voxels of 2 mm, shape (N,), float32.
    voxels
        Their positions in the field of view, shape (N, 3).
    shape, affine
        The field of view: voxels, and voxel to world (RAS mm); its axes are those of the world.
    """

    values: NDArray[np.float32]
    voxels: NDArray[np.int64]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


def look_at(data: NDArray, mask: NDArray[np.bool_], affine: Affine) -> LowResolution:
    """Average a brain to voxels of 2 mm along the axes of the world.

    Parameters
    ----------
    data, mask
        Intensities and brain mask, shape (X, Y, Z); what lies outside the mask does not matter.
    affine
        Voxel to world (RAS mm).

    Notes
    -----
    Finer voxels are blurred to the width of coarse ones before they are sampled, so that noise averages; coarser ones are
    interpolated. Brain is divided by how much brain there is, so nothing leaks in from outside. The grid lies along the axes of the
    world and around the brain, so neither the order of the axes in the file nor the field of view of the scan matters.
    """
    box = bounding_box(mask)
    brain = np.asarray(mask[box]).astype(np.float32)
    masked = np.where(brain > 0, data[box], 0).astype(np.float32)
    affine = crop_affine(affine, box)
    sizes = voxel_sizes(affine)
    sigma = np.sqrt(np.maximum(SIZE_MM**2 - sizes**2, 0)) / np.sqrt(8 * np.log(2)) / sizes
    masked, brain = (
        ndimage.gaussian_filter(part, sigma, mode='constant', truncate=3.0) for part in (masked, brain)
    )
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in brain.shape), indexing='ij')).reshape(3, -1)
    corners = affine[:3, :3] @ corners + affine[:3, 3:]
    low, high = corners.min(axis=1), corners.max(axis=1)
    need = np.ceil((high - low) / SIZE_MM)
    shape = [int(max(usual, _BLOCK * np.ceil(n / _BLOCK))) for usual, n in zip(SHAPE, need, strict=True)]
    grid = np.diag([SIZE_MM, SIZE_MM, SIZE_MM, 1.0])
    grid[:3, 3] = (low + high) / 2 - SIZE_MM * (np.array(shape) - 1) / 2
    start = np.maximum(np.floor((low - grid[:3, 3]) / SIZE_MM), 0).astype(int)
    stop = np.minimum(np.ceil((high - grid[:3, 3]) / SIZE_MM) + 1, shape).astype(int)
    points = np.stack(
        np.meshgrid(*(np.arange(a, b) for a, b in zip(start, stop, strict=True)), indexing='ij')
    )
    to_scan = np.linalg.inv(affine) @ grid
    places = np.tensordot(to_scan[:3, :3], points, axes=1) + to_scan[:3, 3].reshape(3, 1, 1, 1)
    total, weight = (
        ndimage.map_coordinates(part, places, order=1, mode='constant') for part in (masked, brain)
    )
    inside = weight > 0.5
    return LowResolution(
        (total[inside] / weight[inside]).astype(np.float32), points[:, inside].T.astype(np.int64),
        (shape[0], shape[1], shape[2]), grid,
    )  # fmt: skip
