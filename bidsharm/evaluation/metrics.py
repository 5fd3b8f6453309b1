"""Measures of one scan before and after harmonization, on its own grid.

None of them assumes which tissue is bright, or that both scans share units: *before* is in the scanner's units and
*after* in the target's. Whatever cannot be computed is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.evaluation.distributions import sorted_quantiles
from bidsharm.imaging.grids import bounding_box
from bidsharm.imaging.segmentation import DSEG_LABELS, TISSUES

Floats = NDArray[np.float64]
Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

NAN = float('nan')
#: Beyond this share of the output's range a voxel counts as changed.
CHANGED = 0.05
#: SSIM as in Wang 2004: Gaussian window of 11 voxels, sigma 1.5, and its two constants.
SSIM_SIGMA, SSIM_RADIUS, SSIM_K1, SSIM_K2 = 1.5, 5, 0.01, 0.03
#: A gradient is at the noise level up to the first, and clear beyond the second multiple of the noise.
NOISE_LIMIT, CLEAR_LIMIT = 3.0, 6.0
#: Tissues whose contrast-to-noise ratio is below this are not told apart.
LEAST_CNR = 0.5
#: What counts as a local change: the block that noise is averaged over (mm), the width of the surroundings (mm), the
#: least size as a share of the output's range, and the local contrast below which surroundings explain no slope.
BLOCK_MM, SURROUNDINGS_MM, LOCAL_CHANGE, LOCAL_RIDGE = 2.0, 20.0, 0.10, 0.05
#: Gradients of pure noise follow a chi distribution with 3 degrees of freedom; its lower quartile.
_CHI3_QUARTILE = 1.101


class LinearMap(NamedTuple):
    """The map ``gain * before + offset``."""

    gain: float
    offset: float


class EdgeScores(NamedTuple):
    """What :func:`edge_scores` finds.

    Parameters
    ----------
    direction
        Agreement of gradient directions, in [-1, 1]: see :func:`edge_agreement`.
    magnitude
        Pearson correlation of gradient magnitudes, in [-1, 1].
    new
        Share of new gradient energy, in [0, 1]: see :func:`new_edges`.
    """

    direction: float
    magnitude: float
    new: float


def tissue_volumes(tissue: NDArray, voxel_volume_mm3: float) -> dict[str, float]:
    """Return the volume of each tissue: the sum of its probabilities times the volume of a voxel.

    Parameters
    ----------
    tissue
        Probabilities of CSF, GM and WM, shape (3, X, Y, Z), in [0, 1].
    voxel_volume_mm3
        Volume of a voxel in mm^3.

    Returns
    -------
    dict
        ``csf``, ``gm`` and ``wm`` in ml.
    """
    totals = [float(np.sum(part, dtype=np.float64)) for part in tissue]
    return {
        name.lower(): total * voxel_volume_mm3 / 1000 for name, total in zip(TISSUES, totals, strict=True)
    }


def relative_volume_difference(harmonized: float, original: float) -> float:
    r"""Return the relative absolute volume difference :math:`rAVD = |V_h - V_o| / V_o`.

    Parameters
    ----------
    harmonized, original
        Volumes in the same unit, from the same segmentation method.

    Returns
    -------
    float
        0 for equal volumes; NaN when the original volume is 0.
    """
    return abs(harmonized - original) / original if original > 0 else NAN


def dice(a: NDArray, b: NDArray) -> dict[str, float]:
    r"""Return the overlap of each tissue in two label images.

    :math:`D = 2 |A \cap B| / (|A| + |B|)` (Dice 1945, doi:10.2307/1932409).

    Parameters
    ----------
    a, b
        Labels of a dseg image, same shape: 0 background, 1 GM, 2 WM, 3 CSF.

    Returns
    -------
    dict
        ``csf``, ``gm`` and ``wm``, each in [0, 1]; NaN for a tissue that is in neither image.
    """
    overlap = {}
    for name in TISSUES:
        first, second = a == DSEG_LABELS[name], b == DSEG_LABELS[name]
        total = np.count_nonzero(first) + np.count_nonzero(second)
        overlap[name.lower()] = 2 * np.count_nonzero(first & second) / total if total else NAN
    return overlap


def masked_gradient(data: NDArray, mask: Mask, spacing: Spacing) -> Volume:
    """Return the intensity gradient at every voxel of a mask, using voxels of the mask only.

    Central differences where both neighbours along an axis are in the mask, one-sided ones where one is, and 0
    where none is: so the edge of the mask, which is no anatomy, makes no gradient.

    Parameters
    ----------
    data
        Intensities, shape (X, Y, Z).
    mask
        Voxels to use, same shape.
    spacing
        Voxel size in mm.

    Returns
    -------
    ndarray
        Shape (3, N) for the N voxels of the mask, in units of intensity per mm, float32.
    """
    values = np.asarray(data, dtype=np.float32)
    gradient = np.empty((3, np.count_nonzero(mask)), dtype=np.float32)
    for axis in range(3):
        upper = tuple(slice(1, None) if k == axis else slice(None) for k in range(3))
        lower = tuple(slice(None, -1) if k == axis else slice(None) for k in range(3))
        pairs = mask[upper] & mask[lower]
        steps = np.where(pairs, values[upper] - values[lower], np.float32(0))
        total = np.zeros(mask.shape, dtype=np.float32)
        used = np.zeros(mask.shape, dtype=np.uint8)
        for side in (lower, upper):
            total[side] += steps
            used[side] += pairs
        gradient[axis] = total[mask] / (np.maximum(used[mask], 1) * np.float32(spacing[axis]))
    return gradient


def edge_agreement(before: NDArray, after: NDArray, mask: Mask, spacing: Spacing) -> tuple[float, float]:
    r"""Return how well the edges of the output agree with those of the input.

    With gradients :math:`g_b` and :math:`g_a` inside the mask,

    .. math:: D = \frac{s \sum_v |g_b| \cos(g_b, g_a)}{\sum_v |g_b|}, \quad s = \pm 1 \text{ so that } D \ge 0,

    where a vanished :math:`g_a` counts as a cosine of 0. The sign is one for the whole brain: a contrast turned
    around everywhere keeps every edge, one turned around here and there does not. :math:`D` is 1 for a linear map
    and, as far as the data are smooth on the scale of a voxel, for every monotone map of intensities; it is 0 for
    unrelated images. It follows the idea of normalized gradient fields (Haber and Modersitzki 2006,
    doi:10.1007/11866763_89) without their noise parameter, because strong edges weigh more already.

    Parameters
    ----------
    before, after
        Intensities, shape (X, Y, Z), each in its own units.
    mask
        Brain mask, same shape.
    spacing
        Voxel size in mm.

    Returns
    -------
    direction, magnitude
        :math:`D` in [0, 1], and the Pearson correlation of :math:`|g_b|` with :math:`|g_a|` in [-1, 1]. NaN
        where the input has no gradient (and for the correlation, where a magnitude does not vary).
    """
    scores = edge_scores(before, after, mask, spacing)
    return scores.direction, scores.magnitude


def new_edges(before: NDArray, after: NDArray, mask: Mask, spacing: Spacing) -> float:
    r"""Return the share of the output's gradient energy that the input does not support.

    .. math:: N = \frac{\sum_v u_v}{\sum_v |g_a|^2}, \quad
       u = \begin{cases} |g_a|^2 & |g_b| \le 3 n_b,\ |g_a| > 6 n_a \\
       |g_a|^2 - (g_a \cdot g_b / |g_b|)^2 & \text{else} \end{cases}

    An edge of the output is supported by an edge of the input in the same place along the same normal, however
    strong it is; what is perpendicular to it is new, and so is a clear edge where the input shows noise only. The
    noise level :math:`n` of a gradient is what its lower quartile would mean if it were pure noise (the
    chi distribution of 3 components). :math:`N` is 0 for linear maps of the input and small for smooth monotone
    ones; it rises with invented structure, displacement and added noise.

    Parameters
    ----------
    before, after
        Intensities, shape (X, Y, Z), each in its own units.
    mask
        Brain mask, same shape.
    spacing
        Voxel size in mm.

    Returns
    -------
    float
        Share in [0, 1]; NaN when the output has no gradient at all.
    """
    return edge_scores(before, after, mask, spacing).new


def edge_scores(before: NDArray, after: NDArray, mask: Mask, spacing: Spacing) -> EdgeScores:
    """Return :func:`edge_agreement` and :func:`new_edges` from gradients that are computed once.

    Parameters
    ----------
    before, after
        Intensities, shape (X, Y, Z), each in its own units.
    mask
        Brain mask, same shape.
    spacing
        Voxel size in mm.
    """
    box = bounding_box(mask)
    inside = mask[box]
    first = masked_gradient(before[box], inside, spacing)
    second = masked_gradient(after[box], inside, spacing)
    size_b, size_a = (np.sqrt(np.einsum('kn,kn->n', g, g)) for g in (first, second))
    along = np.einsum('kn,kn->n', first, second)  # |g_b| |g_a| cos
    projected = np.divide(along, size_b, out=np.zeros_like(along), where=size_b > 0)  # |g_a| cos
    weighted = np.divide(along, size_a, out=np.zeros_like(along), where=size_a > 0)  # |g_b| cos
    total = size_b.sum(dtype=np.float64)
    direction = abs(float(weighted.sum(dtype=np.float64) / total)) if total > 0 else NAN
    return EdgeScores(
        min(direction, 1.0), _correlation(size_b, size_a), _new_share(size_b, size_a, projected)
    )


def _new_share(size_b: Volume, size_a: Volume, projected: Volume) -> float:
    energy = size_a.astype(np.float64) ** 2
    if not energy.sum() > 0:
        return NAN
    beside = np.maximum(energy - projected.astype(np.float64) ** 2, 0)
    invented = (size_b <= NOISE_LIMIT * _noise_level(size_b)) & (size_a > CLEAR_LIMIT * _noise_level(size_a))
    return float(np.where(invented, energy, beside).sum() / energy.sum())


def _noise_level(size: Volume) -> float:
    """Return the standard deviation of one gradient component, judged from the quietest quarter of the brain."""
    return float(np.quantile(size, 0.25)) / _CHI3_QUARTILE


def _correlation(a: NDArray, b: NDArray) -> float:
    first, second = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    scale = float(np.sqrt(first @ first) * np.sqrt(second @ second))
    return float(np.clip(first @ second / scale, -1, 1)) if scale > 0 else NAN


def linear_map(before: NDArray, after: NDArray) -> LinearMap:
    r"""Return the linear map of the input that comes closest to the output (ordinary least squares).

    Parameters
    ----------
    before, after
        Intensities of the same voxels, shape (N,).

    Returns
    -------
    LinearMap
        A gain of 0 for a constant input.
    """
    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    centred = x - x.mean()
    power = float(centred @ centred)
    # Rounding alone leaves a little power in a constant image.
    flat = power <= x.size * (4 * np.finfo(np.float32).eps * np.abs(x).max()) ** 2
    gain = 0.0 if flat else float(centred @ y) / power
    return LinearMap(gain, float(y.mean() - gain * x.mean()))


def intensity_range(values: NDArray) -> tuple[float, float]:
    """Return the 1 and the 99 % quantile of some values."""
    low, high = sorted_quantiles(np.sort(values, axis=None), (0.01, 0.99))
    return float(low), float(high)


def ssim(before: NDArray, after: NDArray, mask: Mask) -> float:
    r"""Return the structural similarity of the output with the best linear map of the input, mean over the mask.

    .. math:: SSIM = \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
       {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}

    (Wang et al. 2004, doi:10.1109/TIP.2003.819861) in 3-D: Gaussian window of 11 voxels along each axis with sigma
    1.5, :math:`C_1 = 0.01^2`, :math:`C_2 = 0.03^2`. The output's 1 and 99 % quantile become 0 and 1, and the input
    is mapped onto it by least squares, so a linear harmonization scores 1 and the units of neither matter. Outside
    the mask both hold the output's mean: a shared background must not lift the score.

    Parameters
    ----------
    before, after
        Intensities, shape (X, Y, Z), each in its own units.
    mask
        Brain mask, same shape.

    Returns
    -------
    float
        In [-1, 1]; NaN when the output is constant.
    """
    box = bounding_box(mask)
    inside = mask[box]
    source, output = before[box][inside], after[box][inside].astype(np.float64)
    low, high = intensity_range(output)
    if not high > low:
        return NAN
    output = (output - low) / (high - low)
    best = linear_map(source, output)
    shape = [size + 2 * SSIM_RADIUS for size in inside.shape]
    core = tuple(slice(SSIM_RADIUS, -SSIM_RADIUS) for _ in range(3))
    x, y = (np.full(shape, output.mean(), dtype=np.float32) for _ in range(2))
    x[core][inside] = best.gain * source + best.offset
    y[core][inside] = output
    return float(_ssim_map(x, y)[core][inside].mean(dtype=np.float64))


def _ssim_map(x: Volume, y: Volume) -> Volume:
    """Return SSIM per voxel for a data range of 1."""

    def local(volume: Volume) -> Volume:
        return ndimage.gaussian_filter(volume, SSIM_SIGMA, radius=SSIM_RADIUS)

    # The formula needs both variances only as their sum, which saves one of five filters.
    mean_x, mean_y = local(x), local(y)
    product = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    covariance = local(x * y) - product
    variances = local(x * x + y * y) - squares
    c1, c2 = np.float32(SSIM_K1**2), np.float32(SSIM_K2**2)
    similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    return similarity.astype(np.float32, copy=False)


def cnr(values: Mapping[str, NDArray], first: str = 'gm', second: str = 'wm') -> float:
    r"""Return the contrast-to-noise ratio of two tissues, GM and WM by default.

    :math:`CNR = |\mu_{GM} - \mu_{WM}| / \sqrt{\sigma_{GM}^2 + \sigma_{WM}^2}`: the definition of Magnotta and
    Friedman (2006, doi:10.1007/s10278-006-0264-x) as in MRIQC, without the noise of the air, which a
    skull-stripped image does not have. A linear map leaves it unchanged.

    Parameters
    ----------
    values
        Intensities by tissue, as :func:`~bidsharm.evaluation.distributions.tissue_values` returns them.
    first, second
        Which tissues, of ``csf``, ``gm`` and ``wm``.

    Returns
    -------
    float
        Not negative; NaN when a tissue is missing or nothing varies.
    """
    a, b = values[first], values[second]
    if not (a.size and b.size):
        return NAN
    spread = float(np.hypot(a.std(), b.std()))
    return float(abs(a.mean() - b.mean())) / spread if spread > 0 else NAN


def contrast_kept(
    before: Mapping[str, NDArray], after: Mapping[str, NDArray], least: float = LEAST_CNR
) -> tuple[float, tuple[str, str] | None]:
    """Return how much of the contrast between tissues is left: the worst ratio of :func:`cnr` after to before.

    Only pairs that differ clearly before are compared: GM and WM of a FLAIR look nearly alike, and the ratio of two
    numbers near 0 says nothing.

    Parameters
    ----------
    before, after
        Intensities of the same voxels, by tissue.
    least
        Contrast-to-noise ratio from which a pair counts.

    Returns
    -------
    ratio, pair
        1 when all contrasts are kept, above 1 when all grew; and the pair with the worst ratio. (NaN, None)
        when no pair differs clearly before.
    """
    worst, pair = NAN, None
    for first, second in combinations([name.lower() for name in TISSUES], 2):
        start = cnr(before, first, second)
        ratio = cnr(after, first, second) / start if start >= least else NAN
        if np.isfinite(ratio) and not ratio >= worst:  # the first one is compared with NaN
            worst, pair = ratio, (first, second)
    return worst, pair


def cjv(values: Mapping[str, NDArray]) -> float:
    r"""Return the coefficient of joint variation of GM and WM.

    :math:`CJV = (\sigma_{WM} + \sigma_{GM}) / |\mu_{WM} - \mu_{GM}|` (Ganzetti et al. 2016,
    doi:10.3389/fninf.2016.00010, as in MRIQC). Lower is better; a linear map leaves it unchanged.

    Parameters
    ----------
    values
        Intensities of ``gm`` and ``wm``.

    Returns
    -------
    float
        Not negative; NaN when a tissue is missing or both have the same mean.
    """
    if not (values['gm'].size and values['wm'].size):
        return NAN
    contrast = float(abs(values['wm'].mean() - values['gm'].mean()))
    return float(values['wm'].std() + values['gm'].std()) / contrast if contrast > 0 else NAN


def snr(values: NDArray) -> float:
    r"""Return the signal-to-noise ratio :math:`\mu / \sigma` of one tissue.

    It is unchanged by a gain but not by an offset: in a scale with an arbitrary zero (z-scores) it means little.

    Parameters
    ----------
    values
        Intensities of one tissue, shape (N,).

    Returns
    -------
    float
        NaN when the tissue is missing or does not vary.
    """
    spread = float(values.std()) if values.size else 0.0
    return float(values.mean()) / spread if spread > 0 else NAN


def change_map(before: NDArray, after: NDArray, mask: Mask) -> Volume:
    """Return what harmonization changed beyond a plain rescaling.

    The output minus the best linear map of the input (least squares inside the mask), divided by the output's range
    from the 1 to the 99 % quantile: 0.1 is a tenth of all the contrast that there is.

    Parameters
    ----------
    before, after
        Intensities, shape (X, Y, Z), each in its own units.
    mask
        Brain mask, same shape.

    Returns
    -------
    ndarray
        Shape (X, Y, Z), float32, 0 outside the mask; NaN inside when the output is constant.
    """
    change = np.zeros(np.shape(mask), dtype=np.float32)
    output = np.asarray(after[mask], dtype=np.float64)
    if not output.size:
        return change
    low, high = intensity_range(output)
    best = linear_map(before[mask], output)
    residual = output - (best.gain * before[mask] + best.offset)
    change[mask] = residual / (high - low) if high > low else NAN
    return change


def change_summary(change: NDArray, mask: Mask) -> dict[str, float]:
    """Return how large the change of :func:`change_map` is.

    Returns
    -------
    dict
        ``p95_abs``, the 95 % quantile of its size inside the mask, and ``share_changed``, the share of voxels that
        changed by more than 5 % of the range. NaN for an empty mask or a change that is not known.
    """
    size = np.abs(change[mask])
    if not size.size or not np.isfinite(size).all():
        return {'p95_abs': NAN, 'share_changed': NAN}
    return {'p95_abs': float(np.quantile(size, 0.95)), 'share_changed': float(np.mean(size > CHANGED))}


def local_change(before: NDArray, after: NDArray, mask: Mask, spacing: Spacing) -> float:
    r"""Return the volume of the largest place that no map of intensities explains, in ml.

    Scores over the whole brain do not see a small invention: a ball of 2 cm is 0.4 % of a brain. So what remains is
    looked at place by place. (1) The map :math:`h(b) = E[a | b]`, whatever its shape, is what intensity alone
    explains. (2) :math:`h` and what it leaves, :math:`a - h`, in units of the output's range from the 1 to the 99 %
    quantile, are averaged over blocks of about 2 mm, which removes noise. (3) Inside every box of 20 mm the linear
    regression of :math:`a - h` on :math:`h` is taken off, with a ridge of :math:`0.05^2`: a gain or an offset that
    varies smoothly over space is a legitimate correction. (4) Blocks that still differ by more than 0.1, in one
    direction, and touch face to face are one place.

    It is 0 for every map applied voxel by voxel, and sees a ball of 6 mm diameter with half of the range.

    Parameters
    ----------
    before, after
        Intensities, shape (X, Y, Z), each in its own units.
    mask
        Brain mask, same shape.
    spacing
        Voxel size in mm.

    Returns
    -------
    float
        Volume in ml, not negative; NaN when the output is constant.
    """
    box = bounding_box(mask)
    inside = mask[box]
    source, output = (np.asarray(data[box][inside], dtype=np.float64) for data in (before, after))
    low, high = intensity_range(output)
    if not high > low:
        return NAN
    mapped = _explained(source, output)
    factor = [max(1, round(BLOCK_MM / size)) for size in spacing]
    weight = _block_mean(inside.astype(np.float32), factor)
    parts = []
    for values in ((mapped - low) / (high - low), (output - mapped) / (high - low)):
        volume = np.zeros(inside.shape, dtype=np.float32)
        volume[inside] = values
        parts.append(
            np.divide(_block_mean(volume, factor), weight, out=np.zeros_like(weight), where=weight > 0)
        )
    width = [
        max(1, round(SURROUNDINGS_MM / (size * step))) for size, step in zip(spacing, factor, strict=True)
    ]
    local = np.where(weight > 0.5, _unexplained_locally(parts[0], parts[1], weight, width), 0)
    largest = max(_largest_count(sign * local > LOCAL_CHANGE) for sign in (1, -1))
    return largest * float(np.prod(factor) * np.prod(spacing)) / 1000


def _unexplained_locally(x: Volume, y: Volume, weight: Volume, width: list[int]) -> Volume:
    """Return what is left of ``y`` after its weighted ridge regression on ``x`` in the box around each voxel."""
    # A block that counts is half full, so a smaller sum belongs to boxes that nobody asks for.
    least = np.float32(0.5 / np.prod(width))
    total = np.maximum(ndimage.uniform_filter(weight, width, mode='constant'), least)

    def mean(volume: Volume) -> Volume:
        return ndimage.uniform_filter(weight * volume, width, mode='constant') / total

    mean_x, mean_y = mean(x), mean(y)
    slope = (mean(x * y) - mean_x * mean_y) / (np.maximum(mean(x * x) - mean_x**2, 0) + LOCAL_RIDGE**2)
    return y - mean_y - slope * (x - mean_x)


def _explained(before: Floats, after: Floats) -> Floats:
    """Return the mean output at each input intensity, linear between bins of equal share and of equal width."""
    low, high = float(before.min()), float(before.max())
    if not high > low:
        return np.full_like(after, after.mean())
    # Bins of equal share follow the bulk, bins of equal width the tails, where lesions and vessels are.
    edges = np.union1d(sorted_quantiles(np.sort(before), np.linspace(0, 1, 129)), np.linspace(low, high, 65))
    index = np.clip(np.searchsorted(edges, before, side='right') - 1, 0, edges.size - 2)
    count = np.bincount(index, minlength=edges.size - 1)
    used = count > 0
    x, y = (np.bincount(index, values, edges.size - 1)[used] / count[used] for values in (before, after))
    return np.interp(before, x, y)


def _block_mean(data: NDArray, factor: list[int]) -> Volume:
    """Average over blocks, with zeros beyond the end."""
    wide = np.pad(
        data.astype(np.float32), [(0, -size % step) for size, step in zip(data.shape, factor, strict=True)]
    )
    split = [part for size, step in zip(wide.shape, factor, strict=True) for part in (size // step, step)]
    return wide.reshape(split).mean(axis=(1, 3, 5))


def _largest_count(where: Mask) -> int:
    labels, found = ndimage.label(where)
    return int(np.bincount(labels.ravel())[1:].max()) if found else 0
