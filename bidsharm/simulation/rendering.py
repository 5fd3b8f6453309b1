"""A person's head on the grid of a scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import ndimage

from bidsharm.simulation.anatomy import FIELD_OF_VIEW, TISSUES, Anatomy, Float32, Float64, to_voxels
from bidsharm.simulation.warps import Warp


def scan_grid(
    resolution: float | tuple[float, float, float],
    slice_factor: int = 1,
    *,
    field_of_view: tuple[float, float, float] | None = None,
) -> tuple[tuple[int, int, int], Float64]:
    """Return shape and RAS affine of a grid over the field of view.

    Parameters
    ----------
    resolution
        Voxel size in mm, one number or three.
    slice_factor
        How many times thicker the voxels are from foot to head.
    field_of_view
        Size in mm along x, y and z around the middle of the usual one, which holds the whole head; None for that.
    """
    lower, upper = (np.array(corner) for corner in FIELD_OF_VIEW)
    if field_of_view is not None:
        middle, half = (lower + upper) / 2, np.array(field_of_view) / 2
        lower, upper = middle - half, middle + half
    sizes = np.broadcast_to(np.array(resolution, dtype=float), 3) * (1, 1, slice_factor)
    x, y, z = (int(n) for n in np.ceil(np.round((upper - lower) / sizes, 6)))
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = lower + sizes / 2
    return (x, y, z), affine


def smooth_to(template: Anatomy, resolution: float) -> Anatomy:
    """Blur a template so that sampling it at a coarser resolution (mm) averages instead of picking voxels."""
    size = float(np.diag(template.affine)[0])
    if resolution <= size:
        return template
    sigma = np.sqrt(resolution**2 - size**2) / (2 * np.sqrt(2 * np.log(2))) / size
    blurred = np.zeros_like(template.fractions)
    for part, result in zip(template.fractions, blurred, strict=True):
        if part.any():
            ndimage.gaussian_filter(part, sigma, mode='constant', output=result)
    return replace(template, fractions=blurred)


def render(
    template: Anatomy,
    *,
    shape: tuple[int, int, int],
    affine: Float64,
    warp: Warp | None = None,
    pose: Float64 | None = None,
    slice_factor: int = 1,
    slice_axis: int = 2,
    thickness: float = 1.0,
    displacement: Float32 | None = None,
) -> Anatomy:
    """Sample a person's anatomy on the grid of a scan.

    Parameters
    ----------
    template
        Fractions on the template's grid.
    shape, affine
        The grid of the scan.
    warp
        The person; None is the template itself.
    pose
        Scanner's world to head's world, shape (4, 4); None is the identity.
    slice_factor, slice_axis
        Planes that are averaged into one slice, evenly spread over its thickness, and the axis across them.
    thickness
        Thickness of a slice over the distance from slice to slice.
    displacement
        What imperfect gradients do: from a voxel to its place in the scanner, (3, X, Y, Z) in mm; None for nothing.
    """
    channels = [*template.fractions, *(template.texture if template.texture is not None else ())]
    used = [index for index, channel in enumerate(channels) if channel.any()]  # most heads lack some tissues
    result = np.zeros((len(channels), *shape), dtype=np.float32)
    to_head = np.eye(4) if pose is None else pose
    for start, stop in _slabs(shape[2], 16):
        slab = np.indices((*shape[:2], stop - start), dtype=float)
        slab[2] += start
        for plane in range(slice_factor):
            voxels = slab.copy()
            voxels[slice_axis] += ((plane + 0.5) / slice_factor - 0.5) * thickness
            points = _apply(affine, voxels)
            if displacement is not None:
                points += displacement[..., start:stop]
            points = _apply(to_head, points)
            places = to_voxels(template.affine, points if warp is None else warp(points))
            for index in used:
                result[index, :, :, start:stop] += ndimage.map_coordinates(
                    channels[index], places, order=1, mode='constant', output=np.float32
                )
    for index in used:
        result[index] /= np.float32(slice_factor)
    count = len(TISSUES)
    return Anatomy(result[:count], affine, None if template.texture is None else result[count:])


def _apply(matrix: Float64, points: Float64) -> Float64:
    """Map points, shape (3, ...), by an affine."""
    return np.tensordot(matrix[:3, :3], points, axes=1) + matrix[:3, 3].reshape(
        (3,) + (1,) * (points.ndim - 1)
    )


def _slabs(size: int, thickness: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, thickness):
        yield start, min(start + thickness, size)
