"""Statistics of a comparison of two methods. The unit is the subject: one number a person goes into every test.

Scans, pairs or slices of a person are averaged first (:func:`average_by_subject`). Wherever a figure cannot be had,
most often because there are too few subjects, its field is None and ``reason`` says why; nothing here returns NaN.
What makes no sense as a question raises :class:`~bidsharm.errors.UsageError`.

Many methods at once are compared in :mod:`bidsharm.evaluation.models`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from bidsharm.errors import UsageError
from bidsharm.evaluation.intervals import (
    BATCH,
    LEAST_TEST,
    RESAMPLES,
    Floats,
    Interval,
    Statistic,
    all_equal,
    bootstrap,
    check_options,
    finite_pairs,
    joined,
    same_length,
    too_few,
    vectors,
)

#: With fewer subjects the two-sided signed-rank test cannot reach p < 0.05, whatever they show: 2 / 2^5 = 0.0625.
LEAST_SIGNED_RANK = 6
#: Up to this number of subjects the shift's interval is bootstrapped; the time grows with the square.
MOST_BOOTSTRAPPED_SHIFT = 100


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of one number a subject; differences are first minus second.

    Parameters
    ----------
    n
        Subjects with both numbers.
    left_out
        Subjects left out because a number is missing or not finite.
    mean_difference, mean_interval
        Mean difference and its bootstrap interval, in units of the values.
    shift, shift_interval
        Hodges-Lehmann shift (median of the Walsh averages of the differences) and its interval, same units.
    dz, dz_interval
        Cohen's dz, the mean difference over the SD (``ddof=1``) of the differences, and its bootstrap interval.
    p_t
        Two-sided p of the paired t test.
    p_wilcoxon
        Two-sided p of the Wilcoxon signed-rank test, zeros handled as by Pratt.
    reason
        Why something is None; empty when nothing is.
    """

    n: int
    left_out: int = 0
    mean_difference: float | None = None
    mean_interval: Interval | None = None
    shift: float | None = None
    shift_interval: Interval | None = None
    dz: float | None = None
    dz_interval: Interval | None = None
    p_t: float | None = None
    p_wilcoxon: float | None = None
    reason: str = ''


@dataclass(frozen=True)
class Equivalence:
    """What :func:`equivalence` finds.

    Parameters
    ----------
    n, left_out
        Subjects used, and left out for a missing number.
    margin
        Largest mean difference, in either direction, that counts as no harm.
    difference
        Mean of first minus second, in units of the values.
    interval
        Interval of the mean difference at confidence ``1 - 2 alpha``: 90 % by default.
    p_equivalence
        The larger p of the two one-sided t tests.
    p_noninferiority
        p of the one-sided t test against a harm as large as the margin.
    equivalent, noninferior
        ``'equivalent'`` or ``'not inferior'`` where shown; ``'not shown'``; or ``'n too small'`` where so few
        subjects with this spread could not have shown it even at a mean difference of exactly 0.
    reason
        Why something is None; empty when nothing is.
    """

    n: int
    left_out: int
    margin: float
    difference: float | None = None
    interval: Interval | None = None
    p_equivalence: float | None = None
    p_noninferiority: float | None = None
    equivalent: str = 'n too small'
    noninferior: str = 'n too small'
    reason: str = ''


@dataclass(frozen=True)
class Effect:
    """An effect size.

    Parameters
    ----------
    kind
        ``'cohen d'`` or ``'pearson r'``.
    n, left_out
        Subjects used, and left out for a missing number.
    estimate, interval
        The effect and its bootstrap interval over subjects; for Cohen's d a limit may be infinite.
    p
        Two-sided p: Welch's t test for d, the t test of Pearson's correlation for r.
    reason
        Why something is None; empty when nothing is.
    """

    kind: Literal['cohen d', 'pearson r']
    n: int
    left_out: int
    estimate: float | None = None
    interval: Interval | None = None
    p: float | None = None
    reason: str = ''


def average_by_subject(values: ArrayLike, subjects: Sequence[str]) -> dict[str, float]:
    """Return one number a subject: the mean over that subject's scans or pairs.

    Parameters
    ----------
    values
        One number a scan or pair, shape (k,). NaN says that it could not be computed, and is passed over; an
        infinite one (the PSNR of two equal images) makes the subject's mean infinite.
    subjects
        Whose it is, length k.

    Returns
    -------
    dict
        Mean by subject, sorted by name; a subject without any number is not in it.

    Raises
    ------
    UsageError
        If the lengths differ.
    """
    (numbers,) = vectors(values)
    same_length(numbers.size, subjects)
    found: dict[str, list[float]] = {}
    for subject, number in zip(subjects, numbers, strict=True):
        if not np.isnan(number):
            found.setdefault(subject, []).append(float(number))
    with np.errstate(invalid='ignore'):
        means = {subject: float(np.mean(found[subject])) for subject in sorted(found)}
    return {subject: mean for subject, mean in means.items() if not np.isnan(mean)}


def compare_paired(
    a: ArrayLike, b: ArrayLike, *, seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Comparison:
    """Compare two numbers a subject.

    The intervals are bias-corrected and accelerated bootstrap intervals (Efron 1987,
    doi:10.1080/01621459.1987.10478410) over subjects. Above 100 subjects the interval of the shift comes from
    turning the signed-rank test around instead, with its normal approximation (Hollander and Wolfe 1999, section
    3.3). The signed-rank test ranks zero differences along with the others and then drops them (Pratt 1959,
    doi:10.1080/01621459.1959.10501526), so subjects that a method leaves alone count as evidence of no change. When
    every difference is 0, both p are 1.

    Parameters
    ----------
    a, b
        One number a subject, same order, shape (n,). Pairs with a number that is not finite are left out and
        counted.
    seed
        Seed of the bootstrap.
    resamples
        Bootstrap resamples.
    confidence
        Confidence of the intervals, in (0, 1).

    Returns
    -------
    Comparison
        Of a minus b. No tests below 3 subjects, no intervals below 5.

    Raises
    ------
    UsageError
        If the shapes differ or an option is out of range.
    """
    first, second, left_out = finite_pairs(a, b)
    check_options(resamples, confidence)
    n = first.size
    if n == 0:
        return Comparison(0, left_out, reason='no subject has both numbers')
    difference = first - second
    base = Comparison(n, left_out, float(np.mean(difference)), shift=hodges_lehmann(difference))
    if n < LEAST_TEST:
        return replace(base, reason=too_few(n, LEAST_TEST, 'a test'))
    if all_equal(difference, first, second):
        return _of_equal_differences(base)

    intervals, notes = _shift_intervals(difference, seed, resamples, confidence)
    return replace(
        base,
        **intervals,
        dz=float(_standardized(difference)),
        p_t=float(stats.ttest_rel(first, second).pvalue),
        p_wilcoxon=float(stats.wilcoxon(difference, zero_method='pratt').pvalue),
        reason=joined(notes),
    )


def hodges_lehmann(differences: ArrayLike) -> float:
    """Return the Hodges-Lehmann shift: the median of the means of all pairs, each value with itself included.

    Parameters
    ----------
    differences
        Paired differences, shape (n,), at least one, finite.

    Returns
    -------
    float
        In units of the values (Hodges and Lehmann 1963, doi:10.1214/aoms/1177704172).
    """
    return float(_walsh_median(np.asarray(differences, dtype=np.float64)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values adjusted for a family of tests by the step-down method of Holm (1979).

    Parameters
    ----------
    p_values
        The p of every test of the family, in [0, 1]; None for a test that could not be made, which is no part of
        the family.

    Returns
    -------
    list
        Adjusted p in the same order; None stays None.

    Raises
    ------
    UsageError
        If a p is not in [0, 1].
    """
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    if not known:
        return [None] * len(p_values)
    if not all(0 <= p <= 1 for p in known):
        raise UsageError('A p value lies outside 0 to 1.', fix='Pass None for a test that could not be made.')
    adjusted = iter(multipletests(known, method='holm')[1])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def equivalence(
    a: ArrayLike,
    b: ArrayLike,
    *,
    margin: float,
    worse: Literal['higher', 'lower'] = 'higher',
    alpha: float = 0.05,
) -> Equivalence:
    """Test whether a differs from b by less than a margin on average: that a method does no harm.

    Two one-sided paired t tests (Schuirmann 1987, doi:10.1007/BF01068419): equivalent when both reject, which is
    when the interval at confidence ``1 - 2 alpha`` lies within the margins. The one-sided variant asks only that a
    is not worse than b by the margin. A large p of a difference test is no evidence of equality and is not used.

    Parameters
    ----------
    a, b
        One number a subject, the method's and the reference's, same order, shape (n,); pairs with a number that is
        not finite are left out and counted.
    margin
        Largest mean difference that counts as no harm, in units of the values, above 0. Fix it before looking.
    worse
        Whether a higher or a lower number is the worse one (higher for rAVD and errors, lower for Dice).
    alpha
        Level of each one-sided test, in (0, 0.5).

    Returns
    -------
    Equivalence
        Of a minus b. If all differences are equal the tests are taken at their limit, p = 0 or 1.

    Raises
    ------
    UsageError
        If the shapes differ or the margin or level is out of range.
    """
    first, second, left_out = finite_pairs(a, b)
    _check_margin(margin, worse, alpha)
    n = first.size
    base = Equivalence(n, left_out, float(margin))
    if n < LEAST_TEST:
        return replace(base, reason=too_few(n, LEAST_TEST, 'a test'))
    mean, interval, p_low, p_high = _one_sided(first, second, margin, alpha)
    p_harm = p_high if worse == 'higher' else p_low
    possible = (interval.high - interval.low) / 2 < margin

    def said(p: float, yes: str) -> str:
        return yes if p < alpha else 'not shown' if possible else 'n too small'

    return replace(
        base,
        difference=mean,
        interval=interval,
        p_equivalence=max(p_low, p_high),
        p_noninferiority=p_harm,
        equivalent=said(max(p_low, p_high), 'equivalent'),
        noninferior=said(p_harm, 'not inferior'),
        reason=''
        if possible
        else f'with this spread, {n} subjects could not have shown it for any difference',
    )


def effect_size_of_biology(
    values: ArrayLike,
    *,
    ages: ArrayLike | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Effect:
    """Return how strongly a measure shows what it should: age, or a difference between two groups.

    Parameters
    ----------
    values
        One number a subject, shape (n,): a tissue volume, say.
    ages
        Age or another continuous truth, shape (n,): Pearson's r.
    groups
        Group of each subject, length n, two of them: Cohen's d. Give either ages or groups.
    seed, resamples, confidence
        As for :func:`compare_paired`.

    Returns
    -------
    Effect
        Of :func:`correlation` or :func:`cohens_d`.

    Raises
    ------
    UsageError
        If not exactly one of ages and groups is given, or lengths differ.
    """
    if (ages is None) == (groups is None):
        raise UsageError('Exactly one of ages and groups is needed.')
    if ages is not None:
        return correlation(values, ages, seed=seed, resamples=resamples, confidence=confidence)
    assert groups is not None
    return cohens_d(values, groups, seed=seed, resamples=resamples, confidence=confidence)


def correlation(
    values: ArrayLike, truth: ArrayLike, *, seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Effect:
    """Return Pearson's correlation of a measure with the truth, over subjects.

    Parameters
    ----------
    values, truth
        One number a subject, same order, shape (n,); pairs with a number that is not finite are left out and
        counted.
    seed, resamples, confidence
        As for :func:`compare_paired`; subjects are resampled. A resample without any spread counts as r = 0.

    Returns
    -------
    Effect
        In [-1, 1]; none below 3 subjects or where one of both does not vary.

    Raises
    ------
    UsageError
        If the shapes differ or an option is out of range.
    """
    x, y, left_out = finite_pairs(values, truth)
    check_options(resamples, confidence)
    base = Effect('pearson r', x.size, left_out)
    if x.size < LEAST_TEST:
        return replace(base, reason=too_few(x.size, LEAST_TEST, 'a correlation'))
    if all_equal(x, x) or all_equal(y, y):
        return replace(base, reason='one of both does not vary')
    found = stats.pearsonr(x, y)
    interval, reason = bootstrap(
        (x, y), _pearson, seed, resamples, confidence, paired=True, batch=BATCH // x.size
    )
    return replace(
        base, estimate=float(found.statistic), interval=interval, p=float(found.pvalue), reason=reason
    )


def cohens_d(
    values: ArrayLike,
    groups: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Effect:
    """Return Cohen's d between two groups of subjects: difference of the means over the pooled SD.

    Parameters
    ----------
    values
        One number a subject, shape (n,); those that are not finite are left out and counted.
    groups
        Group of each subject, length n; two different ones. Positive when the group that sorts last (``True`` for
        booleans) has the larger mean.
    seed, resamples, confidence
        As for :func:`compare_paired`; each group is resampled by itself.

    Returns
    -------
    Effect
        Without small-sample correction; none below 3 subjects a group or without spread, and no interval below 5
        a group. p is that of Welch's t test.

    Raises
    ------
    UsageError
        If lengths differ, there are not two groups, or an option is out of range.
    """
    (numbers,) = vectors(values)
    same_length(numbers.size, groups)
    check_options(resamples, confidence)
    labels = sorted(set(groups), key=lambda label: (str(type(label)), label))
    if len(labels) != 2:
        raise UsageError(
            f'There are {len(labels)} groups, and Cohen d compares two.', fix='Give two group labels.'
        )
    there = np.isfinite(numbers)
    member = np.array([label == labels[1] for label in groups])
    other, last = numbers[there & ~member], numbers[there & member]
    base = Effect('cohen d', int(there.sum()), int((~there).sum()))
    least = min(other.size, last.size)
    if least < LEAST_TEST:
        return replace(base, reason=too_few(least, LEAST_TEST, 'a group'))
    if all_equal(other, other) and all_equal(last, last):
        return replace(base, reason='neither group varies')
    interval, reason = bootstrap(
        (last, other), _pooled_d, seed, resamples, confidence, batch=BATCH // base.n, infinite=True
    )
    p = float(stats.ttest_ind(last, other, equal_var=False).pvalue)
    return replace(base, estimate=float(_pooled_d(last, other)), interval=interval, p=p, reason=reason)


def _of_equal_differences(base: Comparison) -> Comparison:
    """Return the comparison where every difference is the same, so that nothing has a spread."""
    mean, shift = base.mean_difference, base.shift
    assert mean is not None
    assert shift is not None
    found = replace(base, mean_interval=Interval(mean, mean), shift_interval=Interval(shift, shift))
    if mean == 0:
        return replace(found, p_t=1.0, p_wilcoxon=1.0, reason='every difference is 0, so dz is not defined')
    p = float(stats.wilcoxon(np.full(base.n, np.sign(mean)), zero_method='pratt').pvalue)
    return replace(found, p_wilcoxon=p, reason='all differences are equal: t and dz are not defined')


def _shift_intervals(
    difference: Floats, seed: int, resamples: int, confidence: float
) -> tuple[dict[str, Any], list[str]]:
    """Return the intervals of a comparison by field, and notes on them."""
    n = difference.size
    wanted: dict[str, tuple[Statistic, int]] = {
        'mean_interval': (np.mean, BATCH // n),
        'shift_interval': (_walsh_median, 2 * BATCH // (n * (n + 1))),
        'dz_interval': (_standardized, BATCH // n),
    }
    found: dict[str, Any] = {}
    notes = []
    if n > MOST_BOOTSTRAPPED_SHIFT:
        del wanted['shift_interval']
        found['shift_interval'] = _signed_rank_interval(difference, confidence)
    for field, (statistic, batch) in wanted.items():
        found[field], note = bootstrap((difference,), statistic, seed, resamples, confidence, batch=batch)
        notes.append(note)
    if n < LEAST_SIGNED_RANK:
        notes.append(f'with {n} subjects the signed-rank test cannot go below p = {2 / 2**n:.4g}')
    return found, notes


def _walsh_median(x: Floats, axis: int = -1) -> Floats:
    first, second = np.triu_indices(x.shape[-1])
    return np.median((x[..., first] + x[..., second]) / 2, axis=-1)


def _standardized(x: Floats, axis: int = -1) -> Floats:
    """Return mean over SD along the last axis; infinite without spread, and 0 if the mean is 0 as well."""
    return _ratio(np.mean(x, axis=-1), np.std(x, axis=-1, ddof=1))


def _pooled_d(x: Floats, y: Floats, axis: int = -1) -> Floats:
    n, m = x.shape[-1], y.shape[-1]
    pooled = ((n - 1) * np.var(x, axis=-1, ddof=1) + (m - 1) * np.var(y, axis=-1, ddof=1)) / (n + m - 2)
    return _ratio(np.mean(x, axis=-1) - np.mean(y, axis=-1), np.sqrt(pooled))


def _ratio(top: Floats, bottom: Floats) -> Floats:
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where((top == 0) & (bottom == 0), 0.0, np.divide(top, bottom))


def _pearson(x: Floats, y: Floats, axis: int = -1) -> Floats:
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.sum(x * x, axis=-1) * np.sum(y * y, axis=-1))
    return np.where(scale > 0, np.sum(x * y, axis=-1) / np.where(scale > 0, scale, 1), 0.0)


def _signed_rank_interval(difference: Floats, confidence: float) -> Interval:
    """Return the shifts that the signed-rank test does not reject, by its normal approximation."""
    n = difference.size
    first, second = np.triu_indices(n)
    walsh = np.sort((difference[first] + difference[second]) / 2)
    z = stats.norm.ppf((1 + confidence) / 2)
    rank = max(int(n * (n + 1) / 4 - z * np.sqrt(n * (n + 1) * (2 * n + 1) / 24)), 1)
    return Interval(float(walsh[rank - 1]), float(walsh[-rank]))


def _check_margin(margin: float, worse: str, alpha: float) -> None:
    if not (np.isfinite(margin) and margin > 0):
        raise UsageError(
            f'The margin {margin} is not above 0.', fix='Give the largest difference that is no harm.'
        )
    if not 0 < alpha < 0.5:
        raise UsageError(f'The level {alpha} is not between 0 and 0.5.')
    if worse not in ('higher', 'lower'):
        raise UsageError(f"'worse' is {worse!r}.", fix="Use 'higher' or 'lower'.")


def _one_sided(
    first: Floats, second: Floats, margin: float, alpha: float
) -> tuple[float, Interval, float, float]:
    """Return the mean difference, its interval, and p against differences below -margin and above margin."""
    from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

    difference = first - second
    mean = float(np.mean(difference))
    if all_equal(difference, first, second):
        return mean, Interval(mean, mean), float(mean <= -margin), float(mean >= margin)
    _, (_, p_low, _), (_, p_high, _) = ttost_paired(first, second, -margin, margin)
    low, high = DescrStatsW(difference).tconfint_mean(2 * alpha)
    return mean, Interval(float(low), float(high)), float(p_low), float(p_high)
