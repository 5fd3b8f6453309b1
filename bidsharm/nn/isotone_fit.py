"""Fit what `isotone` may do to a scan, a smooth gain and one increasing curve, to an image that it should become."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import lsq_linear
from torch import Tensor
from torch.nn import functional

from bidsharm.imaging.lowres import SIZE_MM
from bidsharm.nn.isotone import (
    CELL_MM,
    HIGH,
    KNOTS,
    LARGEST_GAIN,
    STEEPEST,
    STEP,
    apply_curve,
    convolved,
    gaussian,
    places_of,
    sample_field,
    segment_of,
    some_of,
)

#: Standard deviation of the Gaussian that steps of the gain are smoothed by (mm).
SMOOTH_MM = 20.0
#: How often the curve is fitted; between two fits the gain takes a step.
ROUNDS = 3
#: Where the scan says less of the gain than this part of where it says most, the gain stays what it is.
_RIDGE = 1e-3
#: Weight of the squared second differences of the curve.
_BEND = 1e-3
#: The lowest and the highest canonical intensity of nothing.
_START = (-1.0, 1.0)


@dataclass(frozen=True)
class Fit:
    """A gain and a curve.

    Parameters
    ----------
    log_gain
        Logarithm of the gain in cells of 8 mm, shape (1, 1, x, y, z); its mean over the brain is 0.
    scale
        The 90th percentile of the values without gain.
    heights
        Intensity that the curve gives at the knots, in units of the scale; strictly increasing, shape (20,).
    fitted
        What the values become, shape (V,).
    """

    log_gain: Tensor
    scale: float
    heights: NDArray[np.float64]
    fitted: Tensor


def fit_style(
    values: Tensor, voxels: Tensor, shape: tuple[int, int, int], aim: Tensor, log_gain: Tensor
) -> Fit:
    """Alternate between the best curve for a gain and a step to a better gain for the curve.

    Parameters
    ----------
    values
        Intensities of brain voxels of 2 mm, without offset, shape (V,).
    voxels, shape
        Their positions, shape (V, 3), and the voxels of the field of view.
    aim
        What they should become, shape (V,).
    log_gain
        Where to start, shape (1, 1, x, y, z), with the extent of the field of view.

    Notes
    -----
    For a gain, the curve is a bounded linear least-squares problem in 20 unknowns. For a curve *f*, the step is that of Gauss and Newton, with
    both sides of its normal equations smoothed over space: where little is known, neighbours decide. With values ``p`` without gain and the
    derivative ``J = -p f'(p)`` by the logarithm of the gain, it is ``smooth(J (aim - f(p))) / smooth(J²)``.
    """
    per_cell = round(CELL_MM / SIZE_MM)
    counts = [n // per_cell for n in shape]
    x, y, z = torch.div(voxels, per_cell, rounding_mode='floor').T
    cell = (x * counts[1] + y) * counts[2] + z
    places = places_of(voxels, shape)
    gain = functional.interpolate(log_gain, size=counts, mode='trilinear', align_corners=False)
    for number in range(ROUNDS):
        gain = gain - sample_field(gain, places).mean()
        plain = torch.exp(-sample_field(gain, places)[0, 0]) * values
        scale = torch.quantile(some_of(plain), HIGH).clamp_min(
            max(1e-6 * float(plain.abs().max()), torch.finfo(plain.dtype).tiny)
        )
        plain = plain / scale
        heights = fit_curve(plain, aim)
        knots = torch.as_tensor(heights, dtype=plain.dtype, device=plain.device)
        slopes = knots.diff() / STEP
        result = apply_curve(plain[None], knots[:1], slopes[None])[0]
        if number == ROUNDS - 1:
            break
        error = aim - result
        derivative = -slopes[segment_of(plain).long()] * plain
        top, bottom = (
            _smooth(torch.bincount(cell, part, minlength=counts[0] * counts[1] * counts[2]).reshape(counts))
            for part in (derivative * error, derivative.square())
        )
        step = top / (bottom + _RIDGE * bottom.max()).clamp_min(1e-12)
        gain = (gain + step[None, None].to(gain)).clamp(-LARGEST_GAIN, LARGEST_GAIN)
    return Fit(gain, float(scale), heights, result)


def fit_curve(values: Tensor, aim: Tensor) -> NDArray[np.float64]:
    """Return the heights of the increasing curve that comes closest to the aim, slopes between 1/6 and 6, shape (20,)."""
    index = segment_of(values.double()).long()
    part = values.double() / STEP - index
    aim = aim.double()

    def sums(weight: Tensor) -> NDArray[np.float64]:
        return torch.bincount(index, weight, minlength=KNOTS - 1).cpu().numpy() / len(index)

    square, right = np.zeros((KNOTS, KNOTS)), np.zeros(KNOTS)
    low, high = np.arange(KNOTS - 1), np.arange(1, KNOTS)
    square[low, low] += sums((1 - part).square())
    square[high, high] += sums(part.square())
    square[low, high] = square[high, low] = sums(part * (1 - part))
    right[low] += sums((1 - part) * aim)
    right[high] += sums(part * aim)
    bend = np.diff(np.eye(KNOTS), 2, axis=0)
    root = np.linalg.cholesky(square + _BEND * bend.T @ bend + 1e-9 * np.eye(KNOTS))
    # Heights are a start and rises, and those have bounds.
    heights_of = np.tril(np.full((KNOTS, KNOTS), STEP))
    heights_of[:, 0] = 1
    lowest = [_START[0], *[1 / STEEPEST] * (KNOTS - 1)]
    highest = [_START[1], *[STEEPEST] * (KNOTS - 1)]
    found = lsq_linear(root.T @ heights_of, np.linalg.solve(root, right), bounds=(lowest, highest))
    return np.asarray(heights_of @ found.x)


def _smooth(field: Tensor) -> Tensor:
    """Smooth a field in cells, shape (x, y, z), by a Gaussian."""
    sigma = SMOOTH_MM / CELL_MM
    kernel = gaussian(sigma, int(3 * sigma)).to(field)
    found = field[None, None]
    for axis in range(3):
        found = convolved(found, kernel, axis)
    return found[0, 0]
