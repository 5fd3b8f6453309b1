"""Whether an uncertainty says how large the error is: likelihood, coverage, and what it orders rightly.

A harmonizer that gives a standard deviation for every voxel claims that the error, harmonized minus true, is Gaussian
with that standard deviation. Whatever cannot be computed is NaN, with a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, stats

from bidsharm.errors import UsageError

Floats = NDArray[np.float64]

NAN = float('nan')
#: Levels whose coverage is reported, and those over which its calibration error is averaged.
LEVELS = (0.5, 0.8, 0.9, 0.95)
ECE_LEVELS = np.arange(1, 20) / 20
#: Shares of the voxels that a sparsification curve takes away.
FRACTIONS = np.arange(100) / 100


@dataclass(frozen=True)
class Sparsification:
    """Mean absolute error of the voxels that are left, over that of all.

    Parameters
    ----------
    fractions
        Shares of the voxels taken away, shape (k,), from 0 to below 1.
    by_sigma
        What is left without the most uncertain voxels, shape (k,); 1 at the start.
    by_error
        What is left without the largest errors: no ordering can be lower.
    ause
        Area between both curves over [0, 1]; 0 for a perfect ordering, and positive otherwise.
    """

    fractions: Floats
    by_sigma: Floats
    by_error: Floats
    ause: float


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibration` finds.

    Parameters
    ----------
    n
        Voxels used.
    nll
        Mean negative log-likelihood of the errors, nats a voxel; depends on the unit of the errors.
    coverage
        Share of the errors inside the central interval of each level; equal to the level when calibrated, below it
        when the uncertainty is too small.
    ece
        Mean absolute difference of coverage and level over the levels .05, .10, ..., .95; in [0, 0.5].
    ause
        Area under the sparsification error: see :func:`sparsification`.
    correlation
        Spearman's correlation of the absolute error with sigma. Even a perfect sigma does not reach 1, since errors
        are drawn from it; it needs sigmas that differ.
    reason
        Why something is NaN; empty when nothing is.
    """

    n: int
    nll: float = NAN
    coverage: dict[float, float] = field(default_factory=dict)
    ece: float = NAN
    ause: float = NAN
    correlation: float = NAN
    reason: str = ''


def calibration(
    error: NDArray, sigma: NDArray, mask: NDArray | None = None, *, levels: Sequence[float] = LEVELS
) -> Calibration:
    r"""Return how well Gaussian uncertainties fit the errors.

    With errors :math:`e_v` and standard deviations :math:`\sigma_v`, the likelihood is
    :math:`NLL = \mathrm{mean}_v [\tfrac12 \log(2 \pi \sigma_v^2) + e_v^2 / (2 \sigma_v^2)]`, and the interval of
    level :math:`p` holds a voxel when :math:`|e_v| \le \sigma_v \Phi^{-1}((1 + p) / 2)` (Kuleshov et al. 2018,
    arXiv:1807.00263). Voxels of a scan depend on each other: compare these numbers between scans, and do not take the
    number of voxels for a sample size.

    Parameters
    ----------
    error
        Harmonized minus true, any shape, in any unit.
    sigma
        Standard deviation of each voxel, same shape and unit, not negative.
    mask
        Voxels to use, same shape; all by default.
    levels
        Levels of coverage, each in (0, 1).

    Returns
    -------
    Calibration
        All NaN where there are no voxels, or a value is not finite. With a sigma of 0 anywhere there is no
        likelihood; where sigma or the error does not vary there is no correlation, and without any error no AUSE.

    Raises
    ------
    UsageError
        If the shapes differ, a sigma is negative or a level out of range.
    """
    if not all(0 < level < 1 for level in levels):
        raise UsageError(f'The levels {tuple(levels)} are not all between 0 and 1.')
    e, s = _values(error, sigma, mask)
    nothing = {float(level): NAN for level in levels}
    if not e.size:
        return Calibration(0, coverage=nothing, reason='there are no voxels')
    if not (np.isfinite(e).all() and np.isfinite(s).all()):
        return Calibration(e.size, coverage=nothing, reason='values inside the mask are not finite')
    size = np.abs(e)
    positive, varies = bool((s > 0).all()), np.ptp(s) > 0 and np.ptp(size) > 0
    notes = {
        'sigma is 0 somewhere, so there is no likelihood': not positive,
        'sigma or the error does not vary, so there is no correlation': not varies,
        'every error is 0, so there is no AUSE': not size.any(),
    }
    return Calibration(
        e.size,
        nll=float(np.mean(np.log(s) + np.square(e / s) / 2) + np.log(2 * np.pi) / 2) if positive else NAN,
        coverage=dict(zip(nothing, _coverage(size, s, levels).tolist(), strict=True)),
        ece=float(np.mean(np.abs(_coverage(size, s, ECE_LEVELS) - ECE_LEVELS))),
        ause=_sparsified(size, s).ause,
        correlation=float(stats.spearmanr(size, s).statistic) if varies else NAN,
        reason='; '.join(note for note, applies in notes.items() if applies),
    )


def sparsification(error: NDArray, sigma: NDArray, mask: NDArray | None = None) -> Sparsification:
    """Return how the mean error falls as the most uncertain voxels are taken away.

    The area between this curve and that of the true errors is the AUSE of Ilg et al. 2018
    (doi:10.1007/978-3-030-01234-2_40), by the trapezium rule. Voxels of equal sigma are taken away in random order:
    each counts with the mean error of all of them.

    Parameters
    ----------
    error, sigma, mask
        As for :func:`calibration`; only the order of sigma counts.

    Returns
    -------
    Sparsification
        All NaN without voxels, without any error, or where a value is not finite.

    Raises
    ------
    UsageError
        If the shapes differ or a sigma is negative.
    """
    e, s = _values(error, sigma, mask)
    if not (np.isfinite(e).all() and np.isfinite(s).all()):
        e = s = np.empty(0)
    return _sparsified(np.abs(e), s)


def _sparsified(size: Floats, sigma: Floats) -> Sparsification:
    if not size.any():
        lost = np.full(FRACTIONS.size, NAN)
        return Sparsification(FRACTIONS, lost, lost, NAN)
    _, group = np.unique(sigma, return_inverse=True)
    typical = (np.bincount(group, size) / np.bincount(group))[group]
    by_sigma, by_error = _means_left(typical[np.argsort(sigma)]), _means_left(np.sort(size))
    # What is left at the end is the least of each ordering; it closes the last interval.
    gap = np.append(by_sigma - by_error, by_sigma[-1] - by_error[-1])
    area = float(integrate.trapezoid(gap, np.append(FRACTIONS, 1.0)))
    return Sparsification(FRACTIONS, by_sigma, by_error, max(area, 0.0))


def _means_left(values: Floats) -> Floats:
    """Return the mean of the first values without each fraction of the last ones, over that of all."""
    kept = values.size - np.floor(FRACTIONS * values.size).astype(np.int64)
    return np.cumsum(values)[kept - 1] / kept / values.mean()


def _coverage(size: Floats, sigma: Floats, levels: ArrayLike) -> Floats:
    """Return the share of errors within the central interval of each level."""
    reach = stats.norm.ppf((1 + np.asarray(levels, dtype=np.float64)) / 2)
    return np.array([np.mean(size <= factor * sigma) for factor in reach])


def _values(error: NDArray, sigma: NDArray, mask: NDArray | None) -> tuple[Floats, Floats]:
    e, s = np.asarray(error, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    inside = np.ones(e.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if not e.shape == s.shape == inside.shape:
        raise UsageError(
            f'Shapes {e.shape}, {s.shape} and {inside.shape} of error, sigma and mask differ.',
            fix='Bring them to one grid.',
        )
    if (s[inside] < 0).any():
        raise UsageError('A standard deviation is negative.', fix='Give sigma, not its logarithm.')
    return e[inside], s[inside]
