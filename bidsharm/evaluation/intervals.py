"""Bootstrap intervals over subjects, and the checks of input that all statistics share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bidsharm.errors import UsageError

Floats = NDArray[np.float64]
Statistic = Callable[..., Any]

#: Resamples of a bootstrap interval.
RESAMPLES = 10_000
#: Fewer subjects than this make no test, and fewer than the second no bootstrap interval.
LEAST_TEST, LEAST_BOOTSTRAP = 3, 5
#: Differences that vary by less than this share of the values are equal up to rounding.
ROUNDING = 1e-12
#: Numbers that one batch of resamples may hold.
BATCH = 4_000_000


class Interval(NamedTuple):
    """Lower and upper limit of an interval; a limit may be infinite only where a docstring says so."""

    low: float
    high: float


def bootstrap(
    data: tuple[NDArray[Any], ...],
    statistic: Statistic,
    seed: int,
    resamples: int,
    confidence: float,
    *,
    batch: int,
    paired: bool = False,
    infinite: bool = False,
) -> tuple[Interval | None, str]:
    """Return a bootstrap interval over subjects, or why there is none.

    Parameters
    ----------
    data
        One or more samples, each of shape (n,).
    statistic
        Takes the samples and works along their last axis, with leading axes for resamples.
    seed, resamples, confidence
        Of the bootstrap.
    batch
        Resamples held at once.
    paired
        Resample all samples together.
    infinite
        Let a limit be infinite.

    Returns
    -------
    interval, reason
        Bias-corrected and accelerated (Efron 1987, doi:10.1080/01621459.1987.10478410), or of percentiles where that
        is not defined, and then the reason says so; None below 5 subjects or without finite limits.
    """
    least = min(part.size for part in data)
    if least < LEAST_BOOTSTRAP:
        return None, too_few(least, LEAST_BOOTSTRAP, 'a bootstrap interval')
    options: dict[str, Any] = {'vectorized': True, 'paired': paired, 'confidence_level': confidence}
    with warnings.catch_warnings(), np.errstate(all='ignore'):
        warnings.simplefilter('ignore')  # degenerate distributions are dealt with below
        found = stats.bootstrap(
            data,
            statistic,
            n_resamples=resamples,
            batch=max(batch, 1),
            random_state=np.random.default_rng(seed),
            method='BCa',
            **options,
        )
        usable = _usable(found.confidence_interval, infinite)
        if usable is not None:
            return usable, ''
        again = stats.bootstrap(
            data, statistic, n_resamples=0, bootstrap_result=found, method='percentile', **options
        )
    usable = _usable(again.confidence_interval, infinite)
    if usable is None:
        return None, 'the bootstrap distribution has no finite limits'
    return (
        usable,
        '' if usable.low == usable.high else 'percentile interval: BCa is not defined for these data',
    )


def vectors(*arrays: ArrayLike) -> tuple[Floats, ...]:
    """Return vectors of equal length as float64."""
    found = tuple(np.asarray(array, dtype=np.float64) for array in arrays)
    if any(array.ndim != 1 or array.shape != found[0].shape for array in found):
        shapes = ', '.join(str(array.shape) for array in found)
        raise UsageError(f'Numbers of shape {shapes} do not match.', fix='Give one number a subject.')
    return found


def finite_pairs(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats, int]:
    """Return the pairs with two finite numbers and how many were left out."""
    first, second = vectors(a, b)
    there = np.isfinite(first) & np.isfinite(second)
    return first[there], second[there], int(np.count_nonzero(~there))


def same_length(length: int, labels: Sequence[Hashable]) -> None:
    """Refuse labels that are not one a row."""
    if len(labels) != length:
        raise UsageError(f'{length} rows have {len(labels)} labels.', fix='Give one label a row.')


def check_options(resamples: int, confidence: float) -> None:
    """Refuse a bootstrap without resamples, or a confidence that is none."""
    if resamples < 1:
        raise UsageError(f'The number of resamples {resamples} is below 1.')
    if not 0 < confidence < 1:
        raise UsageError(f'The confidence {confidence} is not between 0 and 1.')


def too_few(n: int, least: int, what: str) -> str:
    """Say that there are too few subjects."""
    return f'{n} subjects are too few: {what} needs {least} or more'


def joined(notes: Sequence[str]) -> str:
    """Return the notes in one line, each once."""
    return '; '.join(dict.fromkeys(note for note in notes if note))


def all_equal(values: Floats, *scale: Floats) -> bool:
    """Return whether values are equal up to the rounding of numbers as large as ``scale``."""
    size = max(float(np.max(np.abs(part))) for part in scale)
    return bool(np.ptp(values) <= ROUNDING * size)


def _usable(limits: Any, infinite: bool) -> Interval | None:
    found = Interval(float(limits.low), float(limits.high))
    fine = not np.isnan(found).any() if infinite else np.isfinite(found).all()
    return found if fine else None
