"""How like those of the target scanner the scans look as a set: distances between distributions of features.

The features are responses of a fixed bank of filters, without anything learned: ``ffd``, a Frechet distance, and ``kfd``,
a kernel distance, of these filters. They follow FID and KID in their statistics, not in their features, so their
numbers cannot be compared with either; the real ones need the weights of a trained network and are in
:mod:`bidsharm.evaluation.perceptual`.

Such distances say nothing about anatomy: a set of other people's scans from the target scanner would score best.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage

from bidsharm.errors import UsageError

Floats = NDArray[np.float64]

NAN = float('nan')
#: Widths of the filters in mm, and their orientations.
SCALES_MM = (1.0, 2.0, 4.0, 8.0)
ANGLES = np.pi * np.arange(4) / 4
#: Features of a slice: mean, spread, fine grain, two filters by scale and orientation, and edges of edges.
FEATURES = 3 + 2 * len(SCALES_MM) * ANGLES.size + len(list(combinations(SCALES_MM, 2)))
#: A slice is used when its share of the mask is at least this share of the largest one.
LEAST_AREA = 0.3
#: Slices of a volume.
SLICES = 24


@dataclass(frozen=True)
class FilterDistances:
    """Distances between two sets of slices in filter features, standardized on the target's.

    Parameters
    ----------
    n, m
        Slices of the images and of the target.
    ffd
        Frechet distance, squared; 0 for equal means and covariances. Its bias falls with the number of slices, so
        compare it between methods at equal numbers only.
    kfd
        Kernel distance: unbiased, and so negative now and then for sets that are alike.
    reason
        Why something is NaN; empty when nothing is.
    """

    n: int
    m: int
    ffd: float = NAN
    kfd: float = NAN
    reason: str = ''


def slices(
    volume: NDArray, mask: NDArray, *, axis: int = 2, count: int = SLICES
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return slices of a volume, evenly spaced over those that hold enough of the mask.

    Parameters
    ----------
    volume
        Intensities, shape (X, Y, Z).
    mask
        Brain mask, same shape.
    axis
        Axis across the slices.
    count
        Number of slices; all that hold at least 30 % of the largest area where these are fewer.

    Returns
    -------
    images, masks
        Shape (n, height, width); the images are 0 outside the mask, and in the unit of the volume. No slice is
        rescaled.

    Raises
    ------
    UsageError
        If the shapes differ, there is no such axis, or the count is below 1.
    """
    data, inside = np.asarray(volume), np.asarray(mask, dtype=bool)
    if data.shape != inside.shape or data.ndim != 3:
        raise UsageError(f'Shapes {data.shape} and {inside.shape} of volume and mask do not match.')
    if axis not in range(3) or count < 1:
        raise UsageError(f'{count} slices across axis {axis} cannot be had.')
    masks = np.moveaxis(inside, axis, 0)
    area = np.count_nonzero(masks, axis=(1, 2))
    fit = np.flatnonzero((area > 0) & (area >= LEAST_AREA * area.max(initial=0)))
    if fit.size > count:
        fit = fit[np.round((np.arange(count) + 0.5) * fit.size / count - 0.5).astype(np.int64)]
    masks = masks[fit]
    images = np.moveaxis(data, axis, 0)[fit].astype(np.float64)
    return np.where(masks, images, 0), masks


def filter_features(
    volume: NDArray, mask: NDArray, spacing: tuple[float, float, float], *, axis: int = 2, count: int = SLICES
) -> Floats:
    r"""Return what a fixed bank of filters sees in the slices of a volume.

    At each of the scales 1, 2, 4 and 8 mm, first and second derivatives of a Gaussian in four directions, times the
    scale (squared) so that all have the unit of the intensities; the mean of their absolute values over the mask.
    Then edges of edges, the mean gradient at a scale of the size of the gradient at a finer one, as in the
    second layer of a scattering network (Bruna and Mallat 2013, doi:10.1109/TPAMI.2012.230), and the mean, the spread
    and the grain (spread of what 1 mm smooths away) of the intensities. Smoothing divides by the smoothed mask, so the
    edge of the mask makes no edge.

    Parameters
    ----------
    volume
        Intensities, shape (X, Y, Z); finite inside the mask, and in a unit that all volumes to be compared share.
    mask
        Brain mask, same shape.
    spacing
        Voxel size in mm.
    axis, count
        As for :func:`slices`.

    Returns
    -------
    ndarray
        Shape (n, 41), in the unit of the intensities.

    Raises
    ------
    UsageError
        As for :func:`slices`, or if values inside the mask are not finite or a voxel size is not above 0.
    """
    if len(spacing) != 3 or not min(spacing) > 0:
        raise UsageError(f'The voxel size {tuple(spacing)} is not three numbers above 0.')
    images, masks = slices(volume, mask, axis=axis, count=count)
    if not np.isfinite(images).all():
        raise UsageError('Values inside the mask are not finite.')
    plane = tuple(size for index, size in enumerate(spacing) if index != axis)
    found = [_responses(image, inside, plane) for image, inside in zip(images, masks, strict=True)]
    return np.array(found).reshape(-1, FEATURES)


def filter_distances(features: NDArray, target: NDArray) -> FilterDistances:
    """Return the distances between the slices of two sets of volumes.

    Each feature is centred and divided by its mean and spread over the *target's* slices, as one ruler for all
    methods; features in which the target does not vary are only centred.

    Parameters
    ----------
    features
        Of all slices of the harmonized volumes by :func:`filter_features`, shape (n, features).
    target
        The same of volumes from the target scanner, shape (m, features).

    Returns
    -------
    FilterDistances
        NaN with fewer than two slices on a side.

    Raises
    ------
    UsageError
        If the shapes do not match or values are not finite.
    """
    a, b = _tables(features, target)
    if min(len(a), len(b)) < 2:
        return FilterDistances(len(a), len(b), reason='two or more slices are needed on each side')
    centre, spread = b.mean(axis=0), b.std(axis=0)
    spread = np.where(spread > 1e-9 * np.abs(b).max(axis=0), spread, 1.0)
    a, b = (a - centre) / spread, (b - centre) / spread
    return FilterDistances(len(a), len(b), frechet_distance(a, b), kernel_distance(a, b))


def frechet_distance(a: NDArray, b: NDArray) -> float:
    r"""Return the squared Frechet distance between Gaussians with the moments of two samples.

    :math:`d^2 = |\mu_a - \mu_b|^2 + \mathrm{tr}(C_a + C_b - 2 (C_a C_b)^{1/2})` (Dowson and Landau 1982,
    doi:10.1016/0047-259X(82)90077-X; Heusel et al. 2017, arXiv:1706.08500). With centred samples :math:`A` and
    :math:`B` over :math:`\sqrt{n - 1}`, the trace of the root is the sum of the singular values of :math:`A B^T`,
    which is exact for singular covariances too.

    Parameters
    ----------
    a, b
        Samples, shapes (n, features) and (m, features).

    Returns
    -------
    float
        Not negative; NaN with fewer than two rows on a side.

    Raises
    ------
    UsageError
        If the shapes do not match or values are not finite.
    """
    first, second = _tables(a, b)
    if min(len(first), len(second)) < 2:
        return NAN
    shift = float(np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2))
    parts = [(part - part.mean(axis=0)) / np.sqrt(len(part) - 1) for part in (first, second)]
    # The triangle of a QR decomposition has the same covariance in fewer rows.
    roots = [linalg.qr(part, mode='r')[0] for part in parts]
    shared = float(linalg.svdvals(roots[0] @ roots[1].T).sum())
    return max(shift + sum(float(np.sum(part**2)) for part in parts) - 2 * shared, 0.0)


def kernel_distance(a: NDArray, b: NDArray) -> float:
    r"""Return the unbiased squared maximum mean discrepancy under the kernel :math:`(x \cdot y / d + 1)^3`.

    With :math:`d` features, :math:`MMD^2 = \frac{\sum_{i \ne j} k(a_i, a_j)}{n (n - 1)} + \frac{\sum_{i \ne j}
    k(b_i, b_j)}{m (m - 1)} - \frac{2}{n m} \sum_{i, j} k(a_i, b_j)` (Gretton et al. 2012; Binkowski et al. 2018,
    arXiv:1801.01401, who average it over subsets; here all rows are used).

    Parameters
    ----------
    a, b
        Samples, shapes (n, features) and (m, features).

    Returns
    -------
    float
        0 on average for samples of one distribution, so at times negative; NaN with fewer than two rows on a side.

    Raises
    ------
    UsageError
        If the shapes do not match or values are not finite.
    """
    first, second = _tables(a, b)
    if min(len(first), len(second)) < 2:
        return NAN

    def kernel(x: Floats, y: Floats) -> Floats:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Floats) -> float:
        k = kernel(x, x)
        return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)))

    return within(first) + within(second) - 2 * float(kernel(first, second).mean())


def _responses(image: Floats, inside: NDArray[np.bool_], spacing: tuple[float, ...]) -> list[float]:
    """Return the features of one slice."""
    smooth = [_smoothed(image, inside, scale, spacing) for scale in SCALES_MM]
    values = image[inside]
    found = [float(values.mean()), float(values.std()), float((values - smooth[0][inside]).std())]
    edges = []
    for scale, data in zip(SCALES_MM, smooth, strict=True):
        x, y = np.gradient(data, *spacing)
        (xx, xy), (_, yy) = np.gradient(x, *spacing), np.gradient(y, *spacing)
        for c, s in zip(np.cos(ANGLES), np.sin(ANGLES), strict=True):
            first, second = c * x + s * y, c * c * xx + 2 * c * s * xy + s * s * yy
            found += [float(np.abs(part[inside]).mean()) for part in (scale * first, scale**2 * second)]
        edges.append(scale * np.hypot(x, y))
    for fine, coarse in combinations(range(len(SCALES_MM)), 2):
        x, y = np.gradient(_smoothed(edges[fine], inside, SCALES_MM[coarse], spacing), *spacing)
        found.append(float(SCALES_MM[coarse] * np.hypot(x, y)[inside].mean()))
    return found


def _smoothed(image: Floats, inside: NDArray[np.bool_], scale: float, spacing: tuple[float, ...]) -> Floats:
    """Return a Gaussian mean over the mask, also just outside of it, where derivatives ask for it."""
    sigma = [scale / size for size in spacing]
    weight = ndimage.gaussian_filter(inside.astype(np.float64), sigma, mode='constant')
    total = ndimage.gaussian_filter(np.where(inside, image, 0), sigma, mode='constant')
    known = weight > 1e-6
    filled = np.where(known, total / np.where(known, weight, 1), 0)
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return filled[tuple(nearest)]


def _tables(a: NDArray, b: NDArray) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UsageError(f'Features of shape {first.shape} and {second.shape} do not match.')
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UsageError('Features are not finite.')
    return first, second
