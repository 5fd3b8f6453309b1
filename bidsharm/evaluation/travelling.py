"""Measures of agreement between scans of the same persons on several scanners, and of what must stay as it is.

Variation, intraclass correlation, distances and re-identification need travelling subjects, the correlation of persons
needs the truth; identity and cycle error need a scan only. Whatever cannot be computed is
NaN in an array and None, with a reason, in a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bidsharm.errors import UsageError
from bidsharm.evaluation.intervals import (
    BATCH,
    LEAST_TEST,
    RESAMPLES,
    Interval,
    all_equal,
    bootstrap,
    check_options,
    joined,
    same_length,
    too_few,
    vectors,
)
from bidsharm.evaluation.statistics import Effect

Floats = NDArray[np.float64]

#: Quantiles of the reference between which its range is taken.
RANGE_QUANTILES = (0.005, 0.995)
#: A mean square below this share of the total is 0 up to rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class ICC:
    """Intraclass correlations of single measurements, two-way model.

    Parameters
    ----------
    n, scanners
        Subjects and scanners used.
    left_out
        Subjects left out because a scanner is missing.
    agreement, agreement_interval
        ICC(2,1) of Shrout and Fleiss, ICC(A,1) of McGraw and Wong: absolute agreement; an offset between scanners
        lowers it.
    consistency, consistency_interval
        ICC(3,1) of Shrout and Fleiss, ICC(C,1) of McGraw and Wong: consistency; an offset does not lower it.
    reason
        Why something is None; empty when nothing is.
    """

    n: int
    scanners: int
    left_out: int
    agreement: float | None = None
    agreement_interval: Interval | None = None
    consistency: float | None = None
    consistency_interval: Interval | None = None
    reason: str = ''


@dataclass(frozen=True)
class WithinBetween:
    """Distances between scans of the same person over those between scans of different persons.

    Parameters
    ----------
    ratio
        Mean of ``within`` over mean of ``between``, each averaged by subject first; 0 is best, 1 says that scans
        of a person are no more alike than others.
    within, between
        The two means, in units of the distance.
    by_subject
        Ratio of each subject that has two or more scans.
    reason
        Why something is None; empty when nothing is.
    """

    ratio: float | None
    within: float | None
    between: float | None
    by_subject: dict[str, float]
    reason: str = ''


@dataclass(frozen=True)
class Reidentification:
    """How often the nearest scan from another scanner is of the same person.

    Parameters
    ----------
    rate
        Mean over subjects of the share of their scans that are recognized, in [0, 1].
    chance
        The same for a scan drawn at random among those from other scanners.
    by_subject
        Rate of each subject that was on two or more scanners.
    reason
        Why something is None; empty when nothing is.
    """

    rate: float | None
    chance: float | None
    by_subject: dict[str, float]
    reason: str = ''


def cov(values: ArrayLike) -> Floats:
    r"""Return the coefficient of variation across scanners, :math:`SD / mean`, of each subject and region.

    Needs travelling subjects. The SD is that of a sample (``ddof=1``).

    Parameters
    ----------
    values
        Positive measures such as volumes, shape (subjects, scanners) or (subjects, scanners, regions); NaN where a
        subject was not on a scanner.

    Returns
    -------
    ndarray
        Shape (subjects,) or (subjects, regions), without unit; NaN where fewer than two scanners are there or the
        mean is not above 0.

    Raises
    ------
    UsageError
        If the values have another number of dimensions.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (2, 3):
        raise UsageError(
            f'The values have shape {table.shape}.',
            fix='Give subjects x scanners, or subjects x scanners x regions.',
        )
    there = np.isfinite(table)
    count = np.count_nonzero(there, axis=1)
    mean = np.sum(table, axis=1, where=there) / np.maximum(count, 1)
    squares = np.sum(np.square(table - mean[:, None]), axis=1, where=there)
    sd = np.sqrt(squares / np.maximum(count - 1, 1))
    fine = (count > 1) & (mean > 0)
    return np.where(fine, sd / np.where(fine, mean, 1), np.nan)


def icc(ratings: ArrayLike, *, confidence: float = 0.95) -> ICC:
    """Return the intraclass correlations ICC(2,1) and ICC(3,1) with their limits.

    Needs travelling subjects. Estimates as in Shrout and Fleiss 1979 (doi:10.1037/0033-2909.86.2.420), limits by F
    as in McGraw and Wong 1996, table 7 (doi:10.1037/1082-989X.1.1.30); those of ICC(2,1) are approximate.

    Parameters
    ----------
    ratings
        One measure, shape (subjects, scanners); subjects with a number that is not finite are left out.
    confidence
        Confidence of the limits, in (0, 1).

    Returns
    -------
    ICC
        Can be negative; nothing below 3 subjects or 2 scanners, or where subjects do not differ and nothing else
        varies either.

    Raises
    ------
    UsageError
        If the ratings are not a table or the confidence is out of range.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2:
        raise UsageError(f'The ratings have shape {table.shape}.', fix='Give subjects x scanners.')
    if not 0 < confidence < 1:
        raise UsageError(f'The confidence {confidence} is not between 0 and 1.')
    complete = np.isfinite(table).all(axis=1)
    table = table[complete]
    n, k = table.shape
    base = ICC(n, k, int(np.count_nonzero(~complete)))
    if n < 3 or k < 2:
        return replace(base, reason=f'{n} subjects on {k} scanners: 3 or more on 2 or more are needed')
    rows, columns, error = _mean_squares(table)
    if not rows + columns + error > 0:
        return replace(base, reason='all ratings are equal')
    if rows + error == 0:
        return replace(base, agreement=0.0, reason='subjects do not differ, so consistency is not defined')
    level = (1 + confidence) / 2
    consistency = (rows - error) / (rows + (k - 1) * error)
    agreement = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    limits = _agreement_limits(agreement, rows, columns, error, n, k, level)
    return replace(
        base,
        agreement=float(agreement),
        agreement_interval=limits,
        consistency=float(consistency),
        consistency_interval=_consistency_limits(rows, error, n, k, level),
        reason='' if limits else 'the approximate limits of ICC(2,1) are not defined for these data',
    )


def complete_ratings(ratings: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose people and scanners for :func:`icc`: each of the people was in each of the scanners.

    Only people who travelled count, and only scanners that they were in. While two scanners or more are left, the one
    with the fewest people (of equal ones the first) may be left out, and then the next. Of these steps that one is
    taken that keeps the most ratings, complete people times scanners, and of equal ones that with the most scanners;
    steps with three people or more go first, since fewer make no ICC. Only who was where decides, never a rating.

    Parameters
    ----------
    ratings
        As for :func:`icc`; not finite where a person was not in a scanner.

    Returns
    -------
    people, scanners
        Rows and columns of the ratings, sorted; both empty where nobody travelled, people also where there is nobody
        complete.

    Raises
    ------
    UsageError
        If the ratings are not a table.
    """
    there = np.isfinite(np.asarray(ratings, dtype=np.float64))
    if there.ndim != 2:
        raise UsageError(f'The ratings have shape {there.shape}.', fix='Give subjects x scanners.')
    best, found = (False, -1), (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    scanners = np.flatnonzero(_of_travellers(there).any(axis=0))
    while scanners.size > 1:
        people = np.flatnonzero(there[:, scanners].all(axis=1))
        rank = (people.size > 2, people.size * scanners.size)
        if rank > best:
            best, found = rank, (people, scanners)
        fewest = np.argmin(_of_travellers(there[:, scanners]).sum(axis=0))
        scanners = np.delete(scanners, fewest)
    return found


def _of_travellers(there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return who was where, without people of one scanner."""
    return there & (np.count_nonzero(there, axis=1) > 1)[:, None]


def within_between_ratio(
    distances: ArrayLike, subjects: Sequence[str], scanners: Sequence[str] | None = None
) -> WithinBetween:
    """Return how far apart scans of a person are, relative to scans of different persons.

    Needs travelling subjects. Harmonization should lower the ratio; it may not do so by making persons alike,
    which shows in ``between``.

    Parameters
    ----------
    distances
        Distances between scans, shape (scans, scans), symmetric, not negative, in any unit.
    subjects
        Person of each scan, length scans.
    scanners
        Scanner of each scan; if given, only pairs from two different scanners are used.

    Returns
    -------
    WithinBetween
        Averaged by subject first, so persons with many scans do not weigh more.

    Raises
    ------
    UsageError
        If the distances are not such a matrix or lengths differ.
    """
    matrix, person = _checked(distances, subjects)
    allowed = ~np.eye(person.size, dtype=bool)
    if scanners is not None:
        allowed &= _differ(scanners, person.size)
    same = person[:, None] == person[None, :]
    within, between, ratios = [], [], {}
    for name in sorted(set(subjects)):
        mine = (person == name)[:, None]
        own, others = matrix[mine & same & allowed], matrix[mine & ~same & allowed]
        if own.size and others.size:
            within.append(own.mean())
            between.append(others.mean())
            if between[-1] > 0:
                ratios[name] = float(within[-1] / between[-1])
    if not within:
        return WithinBetween(None, None, None, {}, 'no person has two scans to compare with those of others')
    low, high = float(np.mean(within)), float(np.mean(between))
    if high == 0:
        return WithinBetween(None, low, high, {}, 'all persons are alike')
    return WithinBetween(low / high, low, high, ratios)


def reidentification(
    distances: ArrayLike, subjects: Sequence[str], scanners: Sequence[str]
) -> Reidentification:
    """Return how often the nearest scan from another scanner is of the same person.

    Needs travelling subjects. Each scan of a person who was on other scanners too is looked up among all scans from
    other scanners. When several are equally near, it counts by the share of them that are of the person.

    Parameters
    ----------
    distances
        Distances between scans, shape (scans, scans), symmetric, not negative, in any unit.
    subjects, scanners
        Person and scanner of each scan, length scans.

    Returns
    -------
    Reidentification
        Rate and chance line, averaged by subject first; none where nobody was on two scanners.

    Raises
    ------
    UsageError
        If the distances are not such a matrix or lengths differ.
    """
    matrix, person = _checked(distances, subjects)
    other = _differ(scanners, person.size)
    hits: dict[str, list[float]] = {}
    odds: dict[str, list[float]] = {}
    for scan, name in enumerate(subjects):
        candidates = np.flatnonzero(other[scan])
        same = person[candidates] == name
        if not same.any():
            continue
        away = matrix[scan, candidates]
        hits.setdefault(name, []).append(float(same[away == away.min()].mean()))
        odds.setdefault(name, []).append(float(same.mean()))
    if not hits:
        return Reidentification(None, None, {}, 'nobody was on two scanners')
    by_subject = {name: float(np.mean(hits[name])) for name in sorted(hits)}
    chance = float(np.mean([np.mean(part) for part in odds.values()]))
    reason = 'every candidate is of the same person' if chance == 1 else ''
    return Reidentification(float(np.mean(list(by_subject.values()))), chance, by_subject, reason)


def between_subjects(
    estimate: ArrayLike,
    truth: ArrayLike,
    groups: Sequence[str],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Effect:
    r"""Return how well a measure tells persons apart as they truly differ, whatever scanner each was on.

    Pearson's correlation over all scans, each person weighing the same:
    :math:`r = S_{et} / \sqrt{S_{ee} S_{tt}}` with :math:`S_{et} = \sum_p \frac{1}{n_p} \sum_{i \in p} (e_i - \bar e)
    (t_i - \bar t)`. Offsets between scanners add to :math:`S_{ee}` alone and lower it. Averaging the scans of a
    person first would hide them.

    Parameters
    ----------
    estimate
        Measured volume, or another quantity, of each scan, shape (n,); pairs with a number that is not finite are
        left out and counted.
    truth
        What it should be, or at least be proportional to, shape (n,).
    groups
        Person of each scan, length n; one scan a person is fine.
    seed, resamples, confidence
        Of the bootstrap, which resamples persons with all their scans.

    Returns
    -------
    Effect
        In [-1, 1], with ``n`` persons; none below 3 of them or where one of both does not vary. p is that of Pearson's
        correlation, and None where a person has several scans, since those are no independent evidence.

    Raises
    ------
    UsageError
        If lengths differ or an option is out of range.
    """
    e, t = vectors(estimate, truth)
    same_length(e.size, groups)
    check_options(resamples, confidence)
    there = np.isfinite(e) & np.isfinite(t)
    names, person = np.unique(np.asarray(groups, dtype=str)[there], return_inverse=True)
    e, t = e[there], t[there]
    base = Effect('pearson r', names.size, int(np.count_nonzero(~there)))
    if names.size < LEAST_TEST:
        return replace(base, reason=too_few(names.size, LEAST_TEST, 'a correlation'))
    if all_equal(e, e) or all_equal(t, t):
        return replace(base, reason='one of both does not vary')
    scans = np.bincount(person)
    # Sums a person are all that a resample needs; centred and scaled, they do not cancel.
    e, t = (e - e.mean()) / e.std(), (t - t.mean()) / t.std()
    sums = np.stack([np.bincount(person, part) / scans for part in (e, t, e * e, t * t, e * t)], axis=-1)
    interval, reason = bootstrap(
        (np.arange(names.size),),
        lambda order, axis=-1: _correlation_of_sums(sums[order].mean(axis=-2)),
        seed,
        resamples,
        confidence,
        batch=BATCH // sums.size,
    )
    return replace(
        base,
        estimate=float(_correlation_of_sums(sums.mean(axis=0))),
        interval=interval,
        p=float(stats.pearsonr(e, t).pvalue) if scans.max() == 1 else None,
        reason=joined([reason, '' if scans.max() == 1 else 'no p: persons have several scans']),
    )


def identity_error(image: NDArray, harmonized: NDArray, mask: NDArray[np.bool_]) -> float:
    """Return by how much a scan that needs no change was changed: harmonized to the scanner that it is from.

    Needs no travelling subjects. Mean absolute difference inside the mask, over the 0.5 to 99.5 % range of the
    image inside the mask.

    Parameters
    ----------
    image, harmonized
        The scan before and after, shape (X, Y, Z), same units.
    mask
        Brain mask, same shape.

    Returns
    -------
    float
        0 when nothing was changed; NaN for an empty mask or a flat image.

    Raises
    ------
    UsageError
        If the shapes differ.
    """
    return _error_in_range(image, harmonized, mask)


def cycle_error(image: NDArray, returned: NDArray, mask: NDArray[np.bool_]) -> float:
    """Return how far a scan is from itself after it went to another scanner's style and back.

    Needs no travelling subjects. Mean absolute difference inside the mask, over the 0.5 to 99.5 % range of the
    image inside the mask.

    Parameters
    ----------
    image, returned
        The scan before and after the way there and back, shape (X, Y, Z), same units.
    mask
        Brain mask, same shape.

    Returns
    -------
    float
        0 for a map that inverts exactly; NaN for an empty mask or a flat image. A method that changes nothing at
        all reaches 0 too.

    Raises
    ------
    UsageError
        If the shapes differ.
    """
    return _error_in_range(image, returned, mask)


def _error_in_range(reference: NDArray, other: NDArray, mask: NDArray[np.bool_]) -> float:
    if not reference.shape == other.shape == mask.shape:
        raise UsageError(
            f'Shapes {reference.shape}, {other.shape} and {mask.shape} of images and mask differ.',
            fix='Bring both images and the mask to one grid.',
        )
    inside = mask.astype(bool)
    if not inside.any():
        return float('nan')
    truth = np.asarray(reference[inside], dtype=np.float64)
    low, high = np.quantile(truth, RANGE_QUANTILES)
    if not high > low:
        return float('nan')
    return float(np.mean(np.abs(other[inside] - truth)) / (high - low))


def _correlation_of_sums(sums: Floats) -> Floats:
    """Return r from the means of x, y, x^2, y^2 and xy along the last axis; 0 without any spread."""
    x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    scale = np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
    return np.where(
        scale > ROUNDING, np.clip((xy - x * y) / np.where(scale > ROUNDING, scale, 1), -1, 1), 0.0
    )


def _mean_squares(table: Floats) -> tuple[float, float, float]:
    """Return the mean squares between subjects, between scanners and of the residual."""
    n, k = table.shape
    grand, subject, scanner = table.mean(), table.mean(axis=1), table.mean(axis=0)
    residual = table - subject[:, None] - scanner[None, :] + grand
    rows = k * np.sum((subject - grand) ** 2) / (n - 1)
    columns = n * np.sum((scanner - grand) ** 2) / (k - 1)
    error = np.sum(residual**2) / ((n - 1) * (k - 1))
    # Rounding is relative to the size of the numbers: equal columns leave a residual of the order of 1e-16 of it.
    floor = np.square(ROUNDING * np.max(np.abs(table)))
    cleaned = [float(part) if part > floor else 0.0 for part in (rows, columns, error)]
    return cleaned[0], cleaned[1], cleaned[2]


def _consistency_limits(rows: float, error: float, n: int, k: int, level: float) -> Interval:
    """Return the exact limits of ICC(C,1)."""
    if error == 0:
        return Interval(1.0, 1.0)
    first, second = n - 1, (n - 1) * (k - 1)
    low = rows / error / stats.f.ppf(level, first, second)
    high = rows / error * stats.f.ppf(level, second, first)
    return Interval(float((low - 1) / (low + k - 1)), float((high - 1) / (high + k - 1)))


def _agreement_limits(
    r: float, rows: float, columns: float, error: float, n: int, k: int, level: float
) -> Interval | None:
    """Return the limits of ICC(A,1), with Satterthwaite's degrees of freedom; None where those vanish."""
    if r >= 1:
        return Interval(1.0, 1.0)
    a = k * r / (n * (1 - r))
    b = 1 + k * r * (n - 1) / (n * (1 - r))
    parts = (a * columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1))
    if parts == 0:
        return None
    v = (a * columns + b * error) ** 2 / parts
    noise = k * columns + (k * n - k - n) * error
    with np.errstate(all='ignore'):
        lower, upper = stats.f.ppf(level, n - 1, v), stats.f.ppf(level, v, n - 1)
        low = n * (rows - lower * error) / (lower * noise + n * rows)
        high = n * (upper * rows - error) / (noise + n * upper * rows)
    proper = np.isfinite(low) and np.isfinite(high) and low <= r <= high
    return Interval(float(low), float(high)) if proper else None


def _checked(distances: ArrayLike, subjects: Sequence[str]) -> tuple[Floats, NDArray[np.str_]]:
    matrix = np.asarray(distances, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape != (len(subjects), len(subjects)):
        raise UsageError(
            f'Distances of shape {matrix.shape} do not fit {len(subjects)} scans.', fix='Give scans x scans.'
        )
    if not (np.isfinite(matrix).all() and (matrix >= 0).all() and np.allclose(matrix, matrix.T)):
        raise UsageError(
            'The distances are not finite, not negative and symmetric.',
            fix='Give distances, not similarities.',
        )
    return matrix, np.asarray(subjects, dtype=str)


def _differ(labels: Sequence[str], length: int) -> NDArray[np.bool_]:
    """Return which pairs have different labels."""
    if len(labels) != length:
        raise UsageError(f'{length} scans have {len(labels)} scanners.', fix='Give one scanner a scan.')
    names = np.asarray(labels, dtype=str)
    return names[:, None] != names[None, :]
