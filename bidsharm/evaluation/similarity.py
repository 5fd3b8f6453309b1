"""How like the truth an image is: a harmonized scan next to a scan of the same person from the target scanner.

Both are on one grid. Both are scaled by the *reference alone* (:func:`reference_scale`): its 0.5 and 99.5 % quantile
inside the mask become 0 and 1, nothing is clipped, and the image under test is never rescaled by itself, since that
would hide the very errors that count. Only voxels of the mask, the intersection of both brain masks, are used
unless a name says otherwise. Whatever cannot be computed is NaN, and :func:`similarity` says why.

The errors of scans that need no change and of the way there and back are
:func:`~bidsharm.evaluation.travelling.identity_error` and :func:`~bidsharm.evaluation.travelling.cycle_error`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from bidsharm.errors import UsageError
from bidsharm.evaluation.distributions import js_divergence, quantiles, wasserstein
from bidsharm.evaluation.metrics import (
    SSIM_K1,
    SSIM_K2,
    SSIM_RADIUS,
    SSIM_SIGMA,
    Mask,
    Spacing,
    edge_scores,
    masked_gradient,
)
from bidsharm.evaluation.travelling import RANGE_QUANTILES
from bidsharm.imaging.grids import bounding_box

Floats = NDArray[np.float64]

NAN = float('nan')
#: Quantiles by which a distribution enters the Wasserstein distance, and bins of the Jensen-Shannon divergence.
QUANTILES, BINS = 1001, 256
#: A spread below this share of the values is 0 up to rounding.
ROUNDING = 1e-12


class ReferenceScale(NamedTuple):
    """The intensities of the reference that become 0 and 1."""

    low: float
    high: float

    @property
    def usable(self) -> bool:
        """Whether there is a range at all."""
        return bool(self.high > self.low)

    def __call__(self, data: ArrayLike) -> Floats:
        """Return intensities in units of the reference; all NaN when the reference is flat."""
        values = np.asarray(data, dtype=np.float64)
        if not self.usable:
            return np.full(values.shape, NAN)
        return (values - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Similarity:
    """Agreement of an image with the reference, in units of the reference's range where it has a unit.

    Parameters
    ----------
    voxels
        Voxels of the mask.
    psnr, psnr_fov
        :func:`psnr` inside the mask and over the whole field of view, dB. A background that both share lifts the
        second for free, so only the first ranks methods.
    ssim, ssim_slices
        :func:`ssim` in 3-D, and slice by slice for comparison with papers on 2-D methods.
    mae, nrmse
        Mean absolute and root mean square difference, shares of the reference's range.
    pcc
        :func:`pearson`.
    gradient_ncc
        :func:`gradient_ncc`.
    edge_direction, new_edges
        :func:`~bidsharm.evaluation.metrics.edge_scores` of the image against the reference.
    wasserstein, js
        1-Wasserstein distance (share of the range) and Jensen-Shannon divergence (base 2, 256 bins) between the
        distributions of both.
    reason
        Why something is NaN; empty when nothing is.
    """

    voxels: int
    psnr: float = NAN
    psnr_fov: float = NAN
    ssim: float = NAN
    ssim_slices: float = NAN
    mae: float = NAN
    nrmse: float = NAN
    pcc: float = NAN
    gradient_ncc: float = NAN
    edge_direction: float = NAN
    new_edges: float = NAN
    wasserstein: float = NAN
    js: float = NAN
    reason: str = ''


def reference_scale(reference: NDArray, mask: Mask) -> ReferenceScale:
    """Return the 0.5 and 99.5 % quantile of the reference inside the mask.

    Parameters
    ----------
    reference
        Intensities, shape (X, Y, Z).
    mask
        Brain mask, same shape.

    Returns
    -------
    ReferenceScale
        Both NaN for an empty mask or values that are not finite.
    """
    values = np.asarray(reference[np.asarray(mask, dtype=bool)], dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        return ReferenceScale(NAN, NAN)
    low, high = np.quantile(values, RANGE_QUANTILES)
    return ReferenceScale(float(low), float(high))


def similarity(
    reference: NDArray, image: NDArray, mask: Mask, spacing: Spacing, *, slice_axis: int = 2
) -> Similarity:
    """Return every measure of this module at once.

    Parameters
    ----------
    reference, image
        Intensities, shape (X, Y, Z), in the same units: both as the target scanner would give them.
    mask
        Intersection of both brain masks, same shape.
    spacing
        Voxel size in mm.
    slice_axis
        Axis across the slices of ``ssim_slices``.

    Returns
    -------
    Similarity
        All NaN, with the reason, for an empty mask, values inside it that are not finite, or a flat reference.

    Raises
    ------
    UsageError
        If the shapes differ.
    """
    inside = _checked(reference, image, mask)
    voxels = int(np.count_nonzero(inside))
    reason = _obstacle(reference, image, inside)
    if reason:
        return Similarity(voxels, reason=reason)
    scale = reference_scale(reference, inside)
    edges = edge_scores(reference, image, inside, spacing)
    found = {
        'psnr': psnr(reference, image, inside),
        'psnr_fov': psnr(reference, image, inside, whole=True),
        'ssim': ssim(reference, image, inside),
        'ssim_slices': ssim(reference, image, inside, slice_axis=slice_axis),
        'mae': mae(reference, image, inside),
        'nrmse': nrmse(reference, image, inside),
        'pcc': pearson(reference[inside], image[inside]),
        'gradient_ncc': gradient_ncc(reference, image, inside, spacing),
        'edge_direction': edges.direction,
        'new_edges': edges.new,
        'wasserstein': wasserstein(
            *(quantiles(scale(data), inside, QUANTILES) for data in (reference, image))
        ),
        'js': divergence(reference, image, inside),
    }
    missing = [name for name, value in found.items() if np.isnan(value)]
    why = f'no {", ".join(missing)}: the image is flat or not finite outside the mask' if missing else ''
    return Similarity(voxels, **found, reason=why)


def psnr(reference: NDArray, image: NDArray, mask: Mask, *, whole: bool = False) -> float:
    r"""Return the peak signal-to-noise ratio :math:`10 \log_{10}(R^2 / MSE)` with a fixed range :math:`R = 1`.

    Parameters
    ----------
    reference, image
        Intensities, shape (X, Y, Z), same units; scaled here by the reference alone.
    mask
        Brain mask, same shape: where the scale is taken and the error is averaged.
    whole
        Average the error over the whole field of view instead. With a brain in a fraction :math:`f` of it and equal
        backgrounds this adds :math:`-10 \log_{10} f` dB, so it serves for comparison with papers only.

    Returns
    -------
    float
        In dB; infinite for equal images, NaN for an empty mask or a flat reference.

    Raises
    ------
    UsageError
        If the shapes differ.
    """
    error = nrmse(reference, image, mask, whole=whole)
    return float('inf') if error == 0 else float(-20 * np.log10(error))


def nrmse(reference: NDArray, image: NDArray, mask: Mask, *, whole: bool = False) -> float:
    r"""Return the root mean square error :math:`\sqrt{\mathrm{mean}_v (x_v - y_v)^2}` over the reference's range.

    Parameters
    ----------
    reference, image, mask, whole
        As for :func:`psnr`.

    Returns
    -------
    float
        Not negative; NaN as for :func:`psnr`.

    Raises
    ------
    UsageError
        If the shapes differ.
    """
    difference = _difference(reference, image, mask, whole)
    return float(np.sqrt(np.mean(np.square(difference)))) if difference.size else NAN


def mae(reference: NDArray, image: NDArray, mask: Mask) -> float:
    r"""Return the mean absolute error :math:`\mathrm{mean}_v |x_v - y_v|` over the reference's range.

    Parameters
    ----------
    reference, image, mask
        As for :func:`psnr`.

    Returns
    -------
    float
        Not negative; NaN as for :func:`psnr`.

    Raises
    ------
    UsageError
        If the shapes differ.
    """
    difference = _difference(reference, image, mask)
    return float(np.mean(np.abs(difference))) if difference.size else NAN


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    r"""Return Pearson's correlation of paired values, :math:`\mathrm{cov}(a, b) / (\sigma_a \sigma_b)`.

    Parameters
    ----------
    a, b
        Values of the same voxels, shape (N,), each in its own units.

    Returns
    -------
    float
        In [-1, 1]; NaN below two pairs, where one of both does not vary, or where one is not finite.
    """
    first, second = (np.asarray(values, dtype=np.float64).ravel() for values in (a, b))
    if first.size < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return NAN
    # Rounding of the mean leaves a little spread in constant values.
    limits = [ROUNDING * np.abs(values).max() * np.sqrt(values.size) for values in (first, second)]
    first, second = first - first.mean(), second - second.mean()
    sizes = [float(np.linalg.norm(values)) for values in (first, second)]
    if any(size <= limit for size, limit in zip(sizes, limits, strict=True)):
        return NAN
    return float(np.clip((first / sizes[0]) @ (second / sizes[1]), -1, 1))


def gradient_ncc(reference: NDArray, image: NDArray, mask: Mask, spacing: Spacing) -> float:
    r"""Return the normalized cross-correlation of the gradients.

    .. math:: G = \frac{\sum_v g_r \cdot g_i}{\sqrt{\sum_v |g_r|^2 \sum_v |g_i|^2}}

    with gradients per mm from voxels of the mask only: the gradient correlation of Penney et al. 1998
    (doi:10.1109/42.730403) with the components pooled instead of averaged, so no axis is special. It says whether
    anatomy agrees, whatever the offset and the positive gain of either image.

    Parameters
    ----------
    reference, image
        Intensities, shape (X, Y, Z), each in its own units.
    mask
        Brain mask, same shape.
    spacing
        Voxel size in mm.

    Returns
    -------
    float
        In [-1, 1]; -1 for an inverted contrast; NaN for an empty mask or an image without gradient.

    Raises
    ------
    UsageError
        If the shapes differ.
    """
    inside = _checked(reference, image, mask)
    if not inside.any():
        return NAN
    box = bounding_box(inside)
    first, second = (
        masked_gradient(data[box], inside[box], spacing).astype(np.float64) for data in (reference, image)
    )
    power = float(np.sum(first**2)) * float(np.sum(second**2))
    return float(np.clip(np.sum(first * second) / np.sqrt(power), -1, 1)) if power > 0 else NAN


def ssim(reference: NDArray, image: NDArray, mask: Mask, *, slice_axis: int | None = None) -> float:
    r"""Return the mean structural similarity over the mask.

    .. math:: SSIM = \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
       {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}

    (Wang et al. 2004, doi:10.1109/TIP.2003.819861): Gaussian window of 11 voxels along each axis with sigma 1.5,
    :math:`C_1 = 0.01^2`, :math:`C_2 = 0.03^2`, population moments, in units of the reference (:math:`L = 1`). The
    weights of a window are renormalized to its voxels inside the mask, so what is outside does not count at all.
    (scikit-image's default is another window, uniform and of 7 voxels.)

    Unlike :func:`bidsharm.evaluation.metrics.ssim`, which asks what harmonization did beyond a linear map, this one
    counts a wrong gain and offset as errors.

    Parameters
    ----------
    reference, image
        Intensities, shape (X, Y, Z), same units; scaled here by the reference alone.
    mask
        Brain mask, same shape.
    slice_axis
        Use windows of 11 x 11 voxels within the slices across this axis, and average over the voxels of a slice and
        then over slices, as papers on 2-D methods do. It is not comparable with the 3-D score.

    Returns
    -------
    float
        In [-1, 1]; 1 for equal images; NaN for an empty mask, a flat reference or values that are not finite.

    Raises
    ------
    UsageError
        If the shapes differ or there is no such axis.
    """
    inside = _checked(reference, image, mask)
    if slice_axis is not None and slice_axis not in range(inside.ndim):
        raise UsageError(f'There is no axis {slice_axis} in {inside.ndim} dimensions.')
    if _obstacle(reference, image, inside):
        return NAN
    box = bounding_box(inside)
    scale = reference_scale(reference, inside)
    values = _ssim_map(scale(reference[box]), scale(image[box]), inside[box], slice_axis)
    if slice_axis is None:
        return float(values[inside[box]].mean())
    others = tuple(axis for axis in range(inside.ndim) if axis != slice_axis)
    counts = np.count_nonzero(inside[box], axis=others)
    sums = np.sum(values, axis=others, where=inside[box])
    return float(np.mean(sums[counts > 0] / counts[counts > 0]))


def divergence(reference: NDArray, image: NDArray, mask: Mask, bins: int = BINS) -> float:
    """Return the Jensen-Shannon divergence between both distributions, to base 2, on bins of the reference.

    Parameters
    ----------
    reference, image, mask
        As for :func:`psnr`.
    bins
        Number of bins over the joint range of both images, clipped to one range of the reference beyond 0 and 1
        so that single hot voxels do not empty the other bins.

    Returns
    -------
    float
        In [0, 1]; NaN for an empty mask, a flat reference or values that are not finite.

    Raises
    ------
    UsageError
        If the shapes differ.
    """
    inside = _checked(reference, image, mask)
    if _obstacle(reference, image, inside):
        return NAN
    scale = reference_scale(reference, inside)
    values = [np.clip(scale(data[inside]), -1, 2) for data in (reference, image)]
    limits = min(part.min() for part in values), max(part.max() for part in values)
    first, second = (np.histogram(part, bins, limits)[0] for part in values)
    return js_divergence(first, second)


def _ssim_map(x: Floats, y: Floats, inside: Mask, slice_axis: int | None) -> Floats:
    """Return SSIM per voxel for a data range of 1, from the voxels of the mask."""
    sigma = [0.0 if axis == slice_axis else SSIM_SIGMA for axis in range(x.ndim)]
    radius = [0 if axis == slice_axis else SSIM_RADIUS for axis in range(x.ndim)]
    x, y = np.where(inside, x, 0), np.where(inside, y, 0)

    def blur(volume: Floats) -> Floats:
        return ndimage.gaussian_filter(volume, sigma, radius=radius, mode='constant')

    weight = np.where(inside, blur(inside.astype(np.float64)), 1)
    mean_x, mean_y = blur(x) / weight, blur(y) / weight
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = blur(x * y) / weight - product
    variances = np.maximum(blur(x * x + y * y) / weight - squares, 0)
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def _difference(reference: NDArray, image: NDArray, mask: Mask, whole: bool = False) -> Floats:
    """Return the error at each voxel in units of the reference; nothing where it is not defined."""
    inside = _checked(reference, image, mask)
    scale = reference_scale(reference, inside)
    if not scale.usable:
        return np.empty(0)
    used = np.ones_like(inside) if whole else inside
    return scale(image[used]) - scale(reference[used])


def _checked(reference: NDArray, image: NDArray, mask: Mask) -> Mask:
    if not reference.shape == image.shape == mask.shape:
        raise UsageError(
            f'Shapes {reference.shape}, {image.shape} and {mask.shape} of images and mask differ.',
            fix='Bring both images and the mask to one grid.',
        )
    return mask.astype(bool)


def _obstacle(reference: NDArray, image: NDArray, inside: Mask) -> str:
    """Return why nothing can be computed."""
    if not inside.any():
        return 'the mask is empty'
    if not (np.isfinite(reference[inside]).all() and np.isfinite(image[inside]).all()):
        return 'values inside the mask are not finite'
    return '' if reference_scale(reference, inside).usable else 'the reference is flat inside the mask'
