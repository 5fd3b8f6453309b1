"""How the intensities inside a mask are distributed, and how far apart two distributions are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bidsharm.imaging.segmentation import TISSUES

Floats = NDArray[np.float64]

#: A voxel is taken for one tissue when its probability is above this.
PURE = 0.9
#: Fewer voxels than this say nothing about a tissue.
LEAST_VOXELS = 50
#: Quantiles between which a histogram is drawn: single hot voxels would squeeze it otherwise.
HISTOGRAM_SPAN = (0.001, 0.999)


@dataclass(frozen=True)
class Histogram:
    """Density of intensities.

    Parameters
    ----------
    edges
        Edges of the bins, shape (bins + 1,), intensity units.
    density
        Share of the voxels per unit of intensity, shape (bins,); it integrates to the share of voxels
        that lies within the edges.
    """

    edges: Floats
    density: Floats

    @property
    def mass(self) -> Floats:
        """Share of the voxels in each bin, shape (bins,)."""
        return self.density * np.diff(self.edges)


def quantiles(data: NDArray, mask: NDArray[np.bool_], n: int = 101) -> Floats:
    """Return ``n`` evenly spaced quantiles of the intensities inside a mask.

    Parameters
    ----------
    data
        Intensities, shape (X, Y, Z).
    mask
        Voxels to use, same shape.
    n
        Number of quantiles, from the minimum to the maximum; 101 gives the percentiles.

    Returns
    -------
    ndarray
        Non-decreasing, shape (n,), linear between order statistics (type 7 of Hyndman and Fan 1996);
        all NaN for an empty mask.
    """
    return sorted_quantiles(np.sort(data[mask], axis=None), np.linspace(0, 1, n))


def sorted_quantiles(values: NDArray, levels: ArrayLike) -> Floats:
    """Return quantiles of values that are sorted already.

    Parameters
    ----------
    values
        Sorted values, shape (k,).
    levels
        Levels in [0, 1], shape (n,).
    """
    wanted = np.asarray(levels, dtype=np.float64)
    if not values.size:
        return np.full(wanted.shape, np.nan)
    position = wanted * (values.size - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, values.size - 1)
    start = values[low].astype(np.float64)
    return start + (position - low) * (values[high].astype(np.float64) - start)


def histogram(
    data: NDArray,
    mask: NDArray[np.bool_],
    bins: int = 128,
    range: tuple[float, float] | None = None,  # noqa: A002  numpy's name for it
) -> Histogram:
    """Return the histogram of the intensities inside a mask.

    Parameters
    ----------
    data
        Intensities, shape (X, Y, Z).
    mask
        Voxels to use, same shape.
    bins
        Number of bins.
    range
        Lowest and highest edge; by default the 0.1 and the 99.9 % quantile. Values outside are left out of the
        bins but not of the total.
    """
    values = np.asarray(data[mask], dtype=np.float64)
    low, high = range or (np.quantile(values, HISTOGRAM_SPAN) if values.size else (0.0, 1.0))
    counts, edges = np.histogram(values, bins=bins, range=widened(float(low), float(high)))
    return Histogram(edges, counts / (max(values.size, 1) * np.diff(edges)))


def histogram_of_quantiles(levels: ArrayLike, edges: ArrayLike) -> Histogram:
    """Return the histogram of a distribution that is known by its quantiles only.

    Parameters
    ----------
    levels
        Evenly spaced quantiles from the minimum to the maximum, shape (n,); between two of them the
        distribution is taken to be even.
    edges
        Edges of the bins, shape (bins + 1,).
    """
    values, borders = np.asarray(levels, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    below = np.interp(borders, values, np.linspace(0, 1, values.size), left=0, right=1)
    return Histogram(borders, np.diff(below) / np.diff(borders))


def widened(low: float, high: float) -> tuple[float, float]:
    """Return a range, made wide enough to hold bins when both ends coincide."""
    if high > low:
        return low, high
    half = max(abs(low), 1.0) * 0.5
    return low - half, high + half


def wasserstein(q_a: ArrayLike, q_b: ArrayLike) -> float:
    r"""Return the 1-Wasserstein distance between two distributions given by their quantiles.

    In one dimension it is :math:`\int_0^1 |Q_a(u) - Q_b(u)|\,du` (Vallender 1974, doi:10.1137/1118101). Both
    quantile functions are taken to be linear between the given points, and the integral is exact for that.

    Parameters
    ----------
    q_a, q_b
        Evenly spaced quantiles from the minimum to the maximum, shape (n,) and (m,).

    Returns
    -------
    float
        Distance in intensity units; 0 for equal distributions.
    """
    a, b = np.asarray(q_a, dtype=np.float64), np.asarray(q_b, dtype=np.float64)
    levels_a, levels_b = np.linspace(0, 1, a.size), np.linspace(0, 1, b.size)
    levels = np.union1d(levels_a, levels_b)
    gap = np.interp(levels, levels_a, a) - np.interp(levels, levels_b, b)
    size = np.abs(gap)
    left, right = size[:-1], size[1:]
    # Where the functions cross, the two triangles are smaller than the trapezium.
    crossing = gap[:-1] * gap[1:] < 0
    both = np.where(crossing, left + right, 1.0)
    area = np.where(crossing, (left**2 + right**2) / (2 * both), (left + right) / 2)
    return float(np.sum(area * np.diff(levels)))


def js_divergence(p: ArrayLike, q: ArrayLike) -> float:
    r"""Return the Jensen-Shannon divergence of two histograms on the same bins, to base 2.

    :math:`JS = \frac12 KL(p\|m) + \frac12 KL(q\|m)` with :math:`m = (p + q)/2` (Lin 1991, doi:10.1109/18.61115).

    Parameters
    ----------
    p, q
        Masses or counts, shape (bins,), not negative; normalized here.

    Returns
    -------
    float
        0 for equal, 1 for disjoint histograms; NaN when one of them is empty.
    """
    first, second = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if not (first.sum() > 0 and second.sum() > 0):
        return float('nan')
    first, second = first / first.sum(), second / second.sum()
    middle = (first + second) / 2

    def relative(part: Floats) -> float:
        there = part > 0
        return float(np.sum(part[there] * np.log2(part[there] / middle[there])))

    return max(0.5 * relative(first) + 0.5 * relative(second), 0.0)


def tissue_values(data: NDArray, tissue: NDArray) -> dict[str, Floats]:
    """Return the intensities of the voxels that are almost purely one tissue.

    Parameters
    ----------
    data
        Intensities, shape (X, Y, Z).
    tissue
        Probabilities of CSF, GM and WM, shape (3, X, Y, Z), in [0, 1].

    Returns
    -------
    dict
        ``csf``, ``gm`` and ``wm``; empty arrays where there are fewer than 50 such voxels.
    """
    found = {}
    for name, probability in zip(TISSUES, tissue, strict=True):
        values = data[probability > PURE].astype(np.float64)
        found[name.lower()] = values if values.size >= LEAST_VOXELS else values[:0]
    return found


def tissue_peaks(data: NDArray, tissue: NDArray) -> dict[str, float]:
    """Return the typical intensity of each tissue: the median of its almost pure voxels.

    The median stays put when a tail of partial volume or lesions grows, and follows every increasing map of
    intensities exactly, which neither the mean nor the mode of a histogram does.

    Parameters
    ----------
    data
        Intensities, shape (X, Y, Z).
    tissue
        Probabilities of CSF, GM and WM, shape (3, X, Y, Z), in [0, 1].

    Returns
    -------
    dict
        ``csf``, ``gm`` and ``wm`` in intensity units; NaN where a tissue has no pure voxels.
    """
    return {
        name: float(np.median(values)) if values.size else float('nan')
        for name, values in tissue_values(data, tissue).items()
    }
