"""Carry the change that a method made on a model grid back to the scan's own grid, keeping its fine detail.

Resampling the harmonized image back would blur the scan twice. Instead, the harmonized image is described locally
as a linear function of its input (the guided filter of He et al. 2013, doi:10.1109/TPAMI.2012.213: the coefficients
are smooth, so they survive resampling), and that function is applied to the native voxels.

A function of windows so small can follow a blob of a centimetre that a method paints into flat tissue. Curves that are the same over
centimetres cannot (local regression, Cleveland and Devlin 1988, doi:10.1080/01621459.1988.10478639); they tell what brightness, contrast and
fields explain of a change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.imaging.grids import Affine, Floats, bounding_box, crop_affine, resample, voxel_sizes


def model_grid(
    mask: NDArray[np.bool_], affine: Affine, *, size_mm: float = 1.0
) -> tuple[tuple[int, ...], Affine]:
    """Return shape and affine of an isotropic grid along the scan's axes that holds the brain.

    Sizes are rounded up to multiples of 16, which most networks need.
    """
    box = bounding_box(mask, 3)
    start = crop_affine(affine, box)
    sizes = voxel_sizes(affine)
    extent = np.array([part.stop - part.start for part in box]) * sizes
    shape = tuple(int(np.ceil(length / size_mm / 16)) * 16 for length in extent)
    onto = start.copy()
    onto[:3, :3] = start[:3, :3] / sizes * size_mm
    # Same field of view: the corner of the first voxel stays where it was.
    onto[:3, 3] = start[:3, 3] + start[:3, :3] @ np.full(3, -0.5) + onto[:3, :3] @ np.full(3, 0.5)
    return shape, onto


@dataclass(frozen=True)
class LocalChange:
    """A change of a volume as a linear function of its intensities at every place, and what no such function explains.

    Parameters
    ----------
    gain, offset
        Of the linear function, smooth over space, shape (X, Y, Z).
    unexplained
        What is left of the changed volume, same shape, 0 outside the brain.
    affine
        Of the grid.
    """

    gain: Floats
    offset: Floats
    unexplained: Floats
    affine: Affine


def local_change(
    before: NDArray, after: NDArray, grid_affine: Affine, *, radius_mm: float = 3.0, stiffness: float = 1e-3
) -> LocalChange:
    """Describe the change that turned ``before`` into ``after`` (He et al. 2013, eq. 5 to 8).

    Parameters
    ----------
    before, after, grid_affine
        Input and output of a method on the model grid; 0 outside the brain.
    radius_mm
        Standard deviation of the window in which the change is taken as linear.
    stiffness
        Regularization, relative to the variance of the whole brain: flat regions take the mean change.
    """
    weight = (before != 0).astype(np.float32)
    sigma = radius_mm / voxel_sizes(grid_affine)

    def local_mean(data: NDArray) -> Floats:
        return ndimage.gaussian_filter(data * weight, sigma, truncate=3) / norm

    norm = np.maximum(ndimage.gaussian_filter(weight, sigma, truncate=3), 1e-4)
    x, y = np.asarray(before, dtype=np.float32), np.asarray(after, dtype=np.float32)
    mean_x, mean_y = local_mean(x), local_mean(y)
    variance = np.maximum(local_mean(x * x) - mean_x**2, 0)
    covariance = local_mean(x * y) - mean_x * mean_y
    # A brain of one single intensity has no variance at all; its change is the mean change.
    floor = max(stiffness * float(np.var(x[weight > 0])), float(np.finfo(np.float32).tiny))
    gain = covariance / (variance + floor)
    offset = mean_y - gain * mean_x
    gain, offset = local_mean(gain), local_mean(offset)
    return LocalChange(gain, offset, (y - gain * x - offset) * weight, grid_affine)


@dataclass(frozen=True)
class SmoothCurves:
    """A parabola of intensity at every place, nearly the same over centimetres.

    Parameters
    ----------
    coefficients
        Of three polynomials, shape (3, X, Y, Z), on a coarse grid.
    affine
        Of that grid.
    scale
        The polynomials.
    """

    coefficients: Floats
    affine: Affine
    scale: Polynomials

    def apply(self, data: NDArray, affine: Affine) -> Floats:
        """Return intensities on any grid under the curves, shape (X, Y, Z)."""
        found = np.zeros(data.shape, np.float32)
        for field, term in zip(self.coefficients, self.scale.of(data), strict=True):
            found += resample(field, self.affine, data.shape, affine, order=1, mode='nearest') * term
        return found


@dataclass(frozen=True)
class Polynomials:
    """Polynomials of intensity up to the second degree that are orthonormal over a brain, and straight beyond most of it.

    Parameters
    ----------
    centre, spread
        Mean and standard deviation of the brain.
    ends
        Between these scaled intensities the polynomials bend; beyond them they go on straight.
    basis
        Their coefficients, shape (3, 3).
    """

    centre: float
    spread: float
    ends: tuple[float, float]
    basis: NDArray[np.float64]

    @classmethod
    def over(cls, values: NDArray) -> Polynomials:
        """Return those of a brain, from its intensities."""
        centre, spread = float(np.mean(values)), max(float(np.std(values)), float(np.finfo(np.float32).tiny))
        low, high = np.percentile((values - centre) / spread, [0.5, 99.5])
        plain = cls(centre, spread, (float(low), float(high)), np.eye(3))
        terms = plain.of(values).astype(np.float64)
        # A brain of one intensity has no second term.
        products = terms @ terms.T / terms.shape[1] + 1e-6 * np.eye(3)
        return cls(centre, spread, plain.ends, np.linalg.inv(np.linalg.cholesky(products)))

    def of(self, data: NDArray) -> Floats:
        """Return the polynomials of intensities of any shape, stacked in front."""
        scaled = (np.asarray(data, dtype=np.float32) - np.float32(self.centre)) / np.float32(self.spread)
        bent = np.clip(scaled, *self.ends)
        powers = np.stack([np.ones_like(scaled), scaled, bent**2 + 2 * bent * (scaled - bent)])
        return np.tensordot(self.basis.astype(np.float32), powers, axes=1)


def smooth_curves(
    before: NDArray, after: NDArray, grid_affine: Affine, *, radius_mm: float = 12.0, stiffness: float = 1e-3
) -> SmoothCurves:
    """Describe the change that turned ``before`` into ``after`` by curves that change over centimetres.

    Parameters
    ----------
    before, after, grid_affine
        Input and output of a method on the model grid; 0 outside the brain.
    radius_mm
        Standard deviation of the window in which the curve is the same.
    stiffness
        Regularization: where a window holds tissue of one kind only, its curve is flat.
    """
    weight = before != 0
    scale = Polynomials.over(before[weight])
    terms, wanted = scale.of(before) * weight, np.asarray(after, dtype=np.float32)
    sizes = voxel_sizes(grid_affine)
    cell = np.maximum(1, np.round(radius_mm / 3 / sizes)).astype(int)

    def around(values: NDArray) -> NDArray[np.float64]:
        return ndimage.gaussian_filter(
            _sums(values, cell), radius_mm / (sizes * cell), mode='constant', truncate=3
        )

    count = np.maximum(around(weight.astype(np.float32)), 1e-6)
    products = np.empty((*count.shape, 3, 3))
    for row, column in zip(*np.triu_indices(3), strict=True):
        found = around(terms[row] * terms[column]) / count
        products[..., row, column] = products[..., column, row] = found
    aims = np.stack([around(term * wanted) / count for term in terms], axis=-1)
    products += np.diag([1e-6, stiffness, stiffness])
    fields = np.linalg.solve(products, aims[..., None])[..., 0]
    affine = np.array(grid_affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ ((cell - 1) / 2)
    affine[:3, :3] = affine[:3, :3] * cell
    return SmoothCurves(np.moveaxis(fields, -1, 0).astype(np.float32), affine, scale)


def _sums(values: NDArray, cell: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the sums over blocks of voxels, the last of which may be cut."""
    wide = np.pad(values, [(0, -size % edge) for size, edge in zip(values.shape, cell, strict=True)])
    blocks = [part for size, edge in zip(wide.shape, cell, strict=True) for part in (size // edge, edge)]
    return np.asarray(wide.reshape(blocks).sum(axis=(1, 3, 5)), dtype=np.float64)


def carry_change(
    native: NDArray,
    native_mask: NDArray[np.bool_],
    native_affine: Affine,
    change: LocalChange,
    *,
    unexplained: bool = False,
) -> Floats:
    """Apply a change to native voxels.

    Parameters
    ----------
    native, native_mask, native_affine
        The scan on its own grid.
    change
        From :func:`local_change`.
    unexplained
        Add what the linear function does not explain, too: then the result is the method's own image, and may hold structure that is not
        in the scan.

    Returns
    -------
    numpy.ndarray
        Harmonized image on the native grid, 0 outside the mask.
    """

    def here(field: NDArray) -> Floats:
        return resample(field, change.affine, native.shape, native_affine, order=1, mode='nearest')

    image = here(change.gain) * native + here(change.offset)
    if unexplained:
        image = image + here(change.unexplained)
    return np.where(native_mask, image, 0).astype(np.float32)
