"""Statistics of a comparison of methods. The unit is the subject: one number a person goes into every test.

Scans, pairs or slices of a person are averaged first (:func:`average_by_subject`). Wherever a figure cannot be had,
most often because there are too few subjects, its field is None and ``reason`` says why; nothing here returns NaN.
What makes no sense as a question raises :class:`~bidsharm.errors.UsageError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bidsharm.errors import UsageError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Statistic = Callable[..., Any]

#: Resamples of a bootstrap interval.
RESAMPLES = 10_000
#: Fewer subjects than this make no test, and fewer than the second no bootstrap interval.
LEAST_TEST, LEAST_BOOTSTRAP = 3, 5
#: With fewer subjects the two-sided signed-rank test cannot reach p < 0.05, whatever they show: 2 / 2^5 = 0.0625.
LEAST_SIGNED_RANK = 6
#: Up to this number of subjects the shift's interval is bootstrapped; the time grows with the square.
MOST_BOOTSTRAPPED_SHIFT = 100
#: Differences that vary by less than this share of the values are equal up to rounding.
ROUNDING = 1e-12
#: Numbers that one batch of resamples may hold.
BATCH = 4_000_000
#: Optimizers of the mixed model, in the order in which they are tried.
OPTIMIZERS = ('lbfgs', 'bfgs', 'powell')


class Interval(NamedTuple):
    """Lower and upper limit of an interval; a limit may be infinite only where a docstring says so."""

    low: float
    high: float


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


@dataclass(frozen=True)
class Omnibus:
    """Friedman's test that no method differs from the others.

    Parameters
    ----------
    n
        Subjects with a number for every method.
    statistic, p
        The chi-square statistic with ``methods - 1`` degrees of freedom, and its p.
    reason
        Why there is none; empty when there is one.
    """

    n: int
    statistic: float | None = None
    p: float | None = None
    reason: str = ''


class MethodEffect(NamedTuple):
    """Fixed effect of a method: estimate against the reference, interval, two-sided p."""

    estimate: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class MixedModel:
    """What :func:`mixed_model` finds.

    Parameters
    ----------
    rows, n
        Numbers and subjects in the model.
    effects
        Fixed effect of every method but the reference; empty when nothing could be fitted.
    fitted_as
        ``'subject and scanner intercepts'``, ``'subject intercepts'``, ``'fixed subjects'`` or ``''``.
    degrees
        Degrees of freedom of the t tests.
    spread
        SD of the random parts and of the residual, in units of the values.
    reason
        Why a simpler model was used, or none; empty when the model asked for was fitted.
    """

    rows: int
    n: int
    effects: dict[str, MethodEffect]
    fitted_as: str = ''
    degrees: int = 0
    spread: dict[str, float] | None = None
    reason: str = ''


@dataclass(frozen=True)
class MethodTable:
    """Comparison of all methods on one metric.

    Parameters
    ----------
    reference
        The method that all others are compared with.
    omnibus
        Friedman's test over all methods, the reference included.
    model
        Linear mixed model over all methods.
    against
        Comparison of each method with the reference (method minus reference).
    holm_wilcoxon, holm_t
        Adjusted p of these comparisons, corrected over the whole family; None where there is no p.
    """

    reference: str
    omnibus: Omnibus
    model: MixedModel
    against: dict[str, Comparison]
    holm_wilcoxon: dict[str, float | None]
    holm_t: dict[str, float | None]


class Fold(NamedTuple):
    """Rows to train on and rows to test on, both sorted."""

    train: Integers
    test: Integers


@dataclass(frozen=True)
class Probe:
    """What :func:`site_probe` finds.

    Parameters
    ----------
    n, left_out
        Subjects used, and rows left out for a missing feature.
    sites
        Number of sites; ``1 / sites`` is the accuracy of guessing.
    accuracy, interval
        Balanced accuracy over all rows, each predicted by a model that has not seen its subject, and its bootstrap
        interval over subjects (for these predictions).
    chance, chance_high
        Mean and 95 % quantile of the balanced accuracy with permuted sites: the chance line.
    p
        Permutation p that the accuracy is above chance.
    reason
        Why something is None; empty when nothing is.
    """

    n: int
    left_out: int
    sites: int
    accuracy: float | None = None
    interval: Interval | None = None
    chance: float | None = None
    chance_high: float | None = None
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
    (numbers,) = _vectors(values)
    _same_length(numbers.size, subjects)
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
    first, second, left_out = _finite_pairs(a, b)
    _check_options(resamples, confidence)
    n = first.size
    if n == 0:
        return Comparison(0, left_out, reason='no subject has both numbers')
    difference = first - second
    base = Comparison(n, left_out, float(np.mean(difference)), shift=hodges_lehmann(difference))
    if n < LEAST_TEST:
        return replace(base, reason=_too_few(n, LEAST_TEST, 'a test'))
    if _all_equal(difference, first, second):
        return _of_equal_differences(base)

    def interval(statistic: Statistic, batch: int) -> tuple[Interval | None, str]:
        return _bootstrap((difference,), statistic, seed, resamples, confidence, batch=batch)

    mean_interval, why_mean = interval(np.mean, BATCH // n)
    dz_interval, why_dz = interval(_standardized, BATCH // n)
    shift_interval: Interval | None = None
    if n > MOST_BOOTSTRAPPED_SHIFT:
        shift_interval, why_shift = _signed_rank_interval(difference, confidence), ''
    else:
        shift_interval, why_shift = interval(_walsh_median, 2 * BATCH // (n * (n + 1)))
    notes = [why_mean, why_shift, why_dz]
    if n < LEAST_SIGNED_RANK:
        notes.append(f'with {n} subjects the signed-rank test cannot go below p = {2 / 2**n:.4g}')
    return replace(
        base,
        mean_interval=mean_interval,
        shift_interval=shift_interval,
        dz=float(_standardized(difference)),
        dz_interval=dz_interval,
        p_t=float(stats.ttest_rel(first, second).pvalue),
        p_wilcoxon=float(stats.wilcoxon(difference, zero_method='pratt').pvalue),
        reason=_joined(notes),
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


def compare_methods(
    table: Mapping[str, Mapping[str, float]],
    *,
    reference: str,
    seed: int,
    scanners: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> MethodTable:
    """Compare all methods on one metric; the family of the Holm correction is its comparisons with the reference.

    Parameters
    ----------
    table
        Values by method and subject. A subject may be missing from a method: the omnibus test uses the subjects
        that have all methods, each comparison those that have both, and the mixed model every number.
    reference
        The method that the others are compared with.
    seed
        Seed of the bootstrap.
    scanners
        The scanner of each subject, for a random effect of the scanner in the mixed model.
    resamples, confidence
        As for :func:`compare_paired`.

    Returns
    -------
    MethodTable
        Omnibus test, mixed model, comparisons and their adjusted p.

    Raises
    ------
    UsageError
        If the reference is not in the table, there is nothing to compare it with, or a subject has no scanner.
    """
    return compare_metrics(
        {'': table},
        reference=reference,
        seed=seed,
        scanners=scanners,
        resamples=resamples,
        confidence=confidence,
    )['']


def compare_metrics(
    tables: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    reference: str,
    seed: int,
    scanners: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> dict[str, MethodTable]:
    """Compare all methods on several metrics; the family of the Holm correction is methods times metrics.

    Parameters
    ----------
    tables
        Values by metric, method and subject.
    reference, seed, scanners, resamples, confidence
        As for :func:`compare_methods`.

    Returns
    -------
    dict
        One :class:`MethodTable` a metric. The signed-rank and the t tests make one family each.

    Raises
    ------
    UsageError
        As for :func:`compare_methods`.
    """
    against: dict[tuple[str, str], Comparison] = {}
    for metric, table in tables.items():
        _check_table(table, reference, scanners)
        for method in table:
            if method != reference:
                against[metric, method] = _compare_mappings(
                    table[method], table[reference], seed, resamples, confidence
                )
    keys = list(against)
    ranks = dict(zip(keys, holm([against[key].p_wilcoxon for key in keys]), strict=True))
    means = dict(zip(keys, holm([against[key].p_t for key in keys]), strict=True))

    def of(metric: str, parts: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
        return {method: part for (name, method), part in parts.items() if name == metric}

    return {
        metric: MethodTable(
            reference,
            friedman(table),
            _model_of_table(table, reference, scanners, confidence),
            of(metric, against),
            of(metric, ranks),
            of(metric, means),
        )
        for metric, table in tables.items()
    }


def friedman(table: Mapping[str, Mapping[str, float]]) -> Omnibus:
    """Test whether any of three or more methods differs from the others (Friedman 1937).

    Parameters
    ----------
    table
        Values by method and subject; only subjects with a finite number for every method are used.

    Returns
    -------
    Omnibus
        Without a statistic for fewer than three methods or subjects, or where all methods tie in every subject.
    """
    shared = set.intersection(*(set(values) for values in table.values())) if table else set()
    columns = np.array([[table[method][subject] for subject in sorted(shared)] for method in table], float)
    blocks = columns[:, np.isfinite(columns).all(axis=0)] if shared else np.empty((len(table), 0))
    n = blocks.shape[1]
    if len(table) < 3:
        return Omnibus(n, reason='Friedman needs three or more methods')
    if n < LEAST_TEST:
        return Omnibus(n, reason=_too_few(n, LEAST_TEST, 'a test'))
    if np.all(blocks == blocks[:1]):
        return Omnibus(n, reason='all methods tie in every subject')
    found = stats.friedmanchisquare(*blocks)
    return Omnibus(n, float(found.statistic), float(found.pvalue))


def mixed_model(
    values: ArrayLike,
    methods: Sequence[str],
    subjects: Sequence[str],
    *,
    reference: str,
    scanners: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> MixedModel:
    r"""Fit the linear mixed model ``value ~ method + (1 | subject) [+ (1 | scanner)]`` by REML.

    With :math:`u_i` and :math:`w_s` the random intercepts of subject and scanner,
    :math:`y_{ims} = \mu + \beta_m + u_i + w_s + e_{ims}`. The effects :math:`\beta_m` are tested with t on the
    rows minus the rank of the design of all fixed and random effects, since the normal distribution that Wald tests
    use is too narrow for the few subjects at hand.

    Fallbacks, in this order, where the optimizers (L-BFGS, BFGS, Powell) do not converge or a standard error cannot
    be had: without the scanner; subjects as fixed effects by least squares, which gives the same effects for
    balanced data. ``fitted_as`` and ``reason`` say which. The model takes the effect of a method to be the same in
    all subjects; with several rows for a subject and method that overstates the evidence, so average first or trust
    the comparisons by subject.

    Parameters
    ----------
    values
        Numbers, shape (rows,); those that are not finite are left out.
    methods, subjects, scanners
        Method, subject and, if wanted, scanner of each number, length rows.
    reference
        The method that the effects are relative to.
    confidence
        Confidence of the intervals, in (0, 1).

    Returns
    -------
    MixedModel
        Without effects where there are fewer than 3 subjects, or nothing varies.

    Raises
    ------
    UsageError
        If lengths differ or the reference is not among the methods.
    """
    (numbers,) = _vectors(values)
    for labels in (methods, subjects, scanners):
        if labels is not None:
            _same_length(numbers.size, labels)
    if reference not in methods:
        raise UsageError(f'The reference {reference!r} is not among the methods.')
    _check_options(1, confidence)
    rows = np.flatnonzero(np.isfinite(numbers))
    known = list(dict.fromkeys(methods[row] for row in rows))
    names = [method for method in known if method != reference]
    y = numbers[rows]
    method_part = _indicators([methods[row] for row in rows], names)
    subject_part = _indicators([subjects[row] for row in rows])
    scanner_part = None if scanners is None else _indicators([scanners[row] for row in rows])
    empty = MixedModel(int(y.size), subject_part.shape[1], {})
    fixed = np.column_stack([np.ones(y.size), method_part])
    design = np.column_stack([fixed, subject_part, *([] if scanner_part is None else [scanner_part])])
    degrees = int(y.size - np.linalg.matrix_rank(design)) if y.size else 0
    if empty.n < LEAST_TEST:
        return replace(empty, reason=_too_few(empty.n, LEAST_TEST, 'a model'))
    if reference not in known or not names:
        return replace(empty, reason='only one method has numbers, or the reference has none')
    if degrees < 1 or np.linalg.matrix_rank(fixed) < fixed.shape[1]:
        return replace(empty, reason='too few numbers for the number of methods')
    if np.ptp(y) <= ROUNDING * np.max(np.abs(y)):
        return replace(empty, reason='all values are equal')
    return _fit_in_turn(empty, y, fixed, subject_part, scanner_part, names, degrees, confidence)


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
    first, second, left_out = _finite_pairs(a, b)
    if not (np.isfinite(margin) and margin > 0):
        raise UsageError(
            f'The margin {margin} is not above 0.', fix='Give the largest difference that is no harm.'
        )
    if not 0 < alpha < 0.5:
        raise UsageError(f'The level {alpha} is not between 0 and 0.5.')
    if worse not in ('higher', 'lower'):
        raise UsageError(f"'worse' is {worse!r}.", fix="Use 'higher' or 'lower'.")
    n = first.size
    base = Equivalence(n, left_out, float(margin))
    if n < LEAST_TEST:
        return replace(base, reason=_too_few(n, LEAST_TEST, 'a test'))
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
    x, y, left_out = _finite_pairs(values, truth)
    _check_options(resamples, confidence)
    base = Effect('pearson r', x.size, left_out)
    if x.size < LEAST_TEST:
        return replace(base, reason=_too_few(x.size, LEAST_TEST, 'a correlation'))
    if _all_equal(x, x) or _all_equal(y, y):
        return replace(base, reason='one of both does not vary')
    found = stats.pearsonr(x, y)
    interval, reason = _bootstrap(
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
    (numbers,) = _vectors(values)
    _same_length(numbers.size, groups)
    _check_options(resamples, confidence)
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
        return replace(base, reason=_too_few(least, LEAST_TEST, 'a group'))
    if _all_equal(other, other) and _all_equal(last, last):
        return replace(base, reason='neither group varies')
    interval, reason = _bootstrap(
        (last, other), _pooled_d, seed, resamples, confidence, batch=BATCH // base.n, infinite=True
    )
    p = float(stats.ttest_ind(last, other, equal_var=False).pvalue)
    return replace(base, estimate=float(_pooled_d(last, other)), interval=interval, p=p, reason=reason)


def folds(
    subjects: Sequence[str],
    scanners: Sequence[str],
    *,
    by: Literal['subject', 'scanner'],
    count: int = 5,
    seed: int = 0,
) -> list[Fold]:
    """Return cross-validation folds that never have a subject on both sides.

    Parameters
    ----------
    subjects, scanners
        Subject and scanner of each row, length rows.
    by
        ``'subject'``: the subjects are shared out over ``count`` folds. ``'scanner'``: each scanner is left out in
        turn; if any subject was on several scanners, the subjects are shared out over ``count`` parts as well, and a
        fold tests one part on one scanner and trains on the other parts on the other scanners.
    count
        Number of folds, or of parts of travelling subjects.
    seed
        Seed of the sharing out.

    Returns
    -------
    list of Fold
        Each row is tested once; no fold shares a subject, nor with ``by='scanner'`` a scanner, between both sides.

    Raises
    ------
    UsageError
        If there are too few subjects or scanners for it, or a fold would have nothing to train on.
    """
    _same_length(len(subjects), scanners)
    if by not in ('subject', 'scanner'):
        raise UsageError(f'Folds by {by!r} are not known.', fix="Use 'subject' or 'scanner'.")
    persons, devices = np.asarray(subjects, dtype=str), np.asarray(scanners, dtype=str)
    if by == 'subject':
        part = _parts(persons, count, seed)
        found = [(part != index, part == index) for index in range(count)]
        return [Fold(np.flatnonzero(train), np.flatnonzero(test)) for train, test in found]
    names = np.unique(devices)
    if names.size < 2:
        raise UsageError('Folds by scanner need two or more scanners.')
    travelled = len(set(zip(subjects, scanners, strict=True))) > len(set(subjects))
    part = _parts(persons, count, seed) if travelled else np.zeros(persons.size, dtype=np.int64)
    result = []
    for name in names:
        for index in np.unique(part[devices == name]):
            test = (devices == name) & (part == index)
            train = (devices != name) & (part != index if travelled else True)
            if not train.any():
                raise UsageError(
                    f'Without scanner {name!r} and its subjects nothing is left to train on.',
                    fix='Use folds by subject.',
                )
            result.append(Fold(np.flatnonzero(train), np.flatnonzero(test)))
    return result


def site_probe(
    features: ArrayLike,
    sites: Sequence[str],
    subjects: Sequence[str],
    *,
    seed: int,
    count: int = 5,
    permutations: int = 200,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Probe:
    """Return how well a linear classifier tells the site of a scan from its features.

    Logistic regression (L2, C = 1, classes weighted to be equal) on features standardized on the training rows,
    in stratified cross-validation that never splits a subject. For the chance line the sites are permuted: between
    subjects where each was at one site, within a subject that travelled. The whole cross-validation is repeated for
    each permutation. Low accuracy alone is no success: blurring everything reaches it too, so read it next to
    :func:`effect_size_of_biology`.

    Parameters
    ----------
    features
        Shape (rows, features); rows with a value that is not finite are left out and counted.
    sites, subjects
        Site and subject of each row, length rows.
    seed
        Seed of the folds, permutations and bootstrap.
    count
        Number of folds; fewer where a site has fewer subjects.
    permutations
        Number of permutations; the least p is ``1 / (permutations + 1)``.
    resamples, confidence
        As for :func:`compare_paired`; subjects are resampled.

    Returns
    -------
    Probe
        Without accuracy where a site has fewer than 2 subjects.

    Raises
    ------
    UsageError
        If shapes differ, there is only one site, or an option is out of range.
    """
    from threadpoolctl import threadpool_limits

    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2 or not table.shape[1]:
        raise UsageError(f'The features have shape {table.shape}.', fix='Give rows of one or more features.')
    _same_length(table.shape[0], sites)
    _same_length(table.shape[0], subjects)
    _check_options(min(resamples, permutations), confidence)
    if count < 2:
        raise UsageError(f'The number of folds {count} is below 2.')
    there = np.isfinite(table).all(axis=1)
    table, names = table[there], sorted(set(sites))
    if len(names) < 2:
        raise UsageError('There is only one site, so none can be told from another.')
    site = np.array([names.index(name) for name in sites], dtype=np.int64)[there]
    persons, person = np.unique(np.asarray(subjects, dtype=str)[there], return_inverse=True)
    base = Probe(persons.size, int((~there).sum()), len(names))
    least = min(np.unique(person[site == index]).size for index in range(len(names)))
    if least < 2:
        return replace(base, reason='a site has fewer than 2 subjects with all features')
    splits = min(count, least)
    # Fits this small take ten times as long when threads wait for one another.
    with threadpool_limits(1):
        hits, totals = _predicted(table, site, person, splits, seed)
        chance = _chance(table, site, person, splits, seed, permutations)
    interval, reason = _bootstrap(
        (np.arange(persons.size),),
        lambda order, axis=-1: _balanced(hits[order].sum(axis=-2), totals[order].sum(axis=-2)),
        seed,
        resamples,
        confidence,
        batch=BATCH // hits.size,
    )
    accuracy = float(_balanced(hits.sum(axis=0), totals.sum(axis=0)))
    return replace(
        base,
        accuracy=accuracy,
        interval=interval,
        chance=float(chance.mean()),
        chance_high=float(np.quantile(chance, 0.95)),
        # A rounding error must not make an equal accuracy a smaller one.
        p=float((1 + np.count_nonzero(chance >= accuracy - ROUNDING)) / (1 + permutations)),
        reason=reason,
    )


# Input


def _vectors(*arrays: ArrayLike) -> tuple[Floats, ...]:
    found = tuple(np.asarray(array, dtype=np.float64) for array in arrays)
    if any(array.ndim != 1 or array.shape != found[0].shape for array in found):
        shapes = ', '.join(str(array.shape) for array in found)
        raise UsageError(f'Numbers of shape {shapes} do not match.', fix='Give one number a subject.')
    return found


def _finite_pairs(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats, int]:
    """Return the pairs with two finite numbers and how many were left out."""
    first, second = _vectors(a, b)
    there = np.isfinite(first) & np.isfinite(second)
    return first[there], second[there], int(np.count_nonzero(~there))


def _same_length(length: int, labels: Sequence[Hashable]) -> None:
    if len(labels) != length:
        raise UsageError(f'{length} rows have {len(labels)} labels.', fix='Give one label a row.')


def _check_options(resamples: int, confidence: float) -> None:
    if resamples < 1:
        raise UsageError(f'The number of resamples {resamples} is below 1.')
    if not 0 < confidence < 1:
        raise UsageError(f'The confidence {confidence} is not between 0 and 1.')


def _check_table(
    table: Mapping[str, Mapping[str, float]], reference: str, scanners: Mapping[str, str] | None
) -> None:
    if reference not in table:
        raise UsageError(
            f'The reference {reference!r} is not among the methods.', fix=f'Use one of {sorted(table)}.'
        )
    if len(table) < 2:
        raise UsageError('There is only the reference, and nothing to compare it with.')
    if scanners is not None:
        lacking = sorted({subject for values in table.values() for subject in values} - set(scanners))
        if lacking:
            raise UsageError(
                f'Subject {lacking[0]!r} has no scanner.', fix='Name a scanner for every subject.'
            )


def _too_few(n: int, least: int, what: str) -> str:
    return f'{n} subjects are too few: {what} needs {least} or more'


def _joined(notes: Sequence[str]) -> str:
    return '; '.join(dict.fromkeys(note for note in notes if note))


def _all_equal(values: Floats, *scale: Floats) -> bool:
    size = max(float(np.max(np.abs(part))) for part in scale)
    return bool(np.ptp(values) <= ROUNDING * size)


# Paired comparisons


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


def _compare_mappings(
    values: Mapping[str, float], others: Mapping[str, float], seed: int, resamples: int, confidence: float
) -> Comparison:
    everyone = sorted(set(values) | set(others))
    first = [values.get(subject, np.nan) for subject in everyone]
    second = [others.get(subject, np.nan) for subject in everyone]
    return compare_paired(first, second, seed=seed, resamples=resamples, confidence=confidence)


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


def _bootstrap(
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
    """Return a BCa interval, a percentile interval where BCa is not defined, or why there is none."""
    least = min(part.size for part in data)
    if least < LEAST_BOOTSTRAP:
        return None, _too_few(least, LEAST_BOOTSTRAP, 'a bootstrap interval')
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


def _usable(limits: Any, infinite: bool) -> Interval | None:
    found = Interval(float(limits.low), float(limits.high))
    fine = not np.isnan(found).any() if infinite else np.isfinite(found).all()
    return found if fine else None


def _one_sided(
    first: Floats, second: Floats, margin: float, alpha: float
) -> tuple[float, Interval, float, float]:
    """Return the mean difference, its interval, and p against differences below -margin and above margin."""
    from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

    difference = first - second
    mean = float(np.mean(difference))
    if _all_equal(difference, first, second):
        return mean, Interval(mean, mean), float(mean <= -margin), float(mean >= margin)
    _, (_, p_low, _), (_, p_high, _) = ttost_paired(first, second, -margin, margin)
    low, high = DescrStatsW(difference).tconfint_mean(2 * alpha)
    return mean, Interval(float(low), float(high)), float(p_low), float(p_high)


# The mixed model


class _Fit(NamedTuple):
    """Effects of the methods and their standard errors, and SD of the random parts, in units of the model."""

    effects: Floats
    errors: Floats
    spread: dict[str, float]


def _model_of_table(
    table: Mapping[str, Mapping[str, float]],
    reference: str,
    scanners: Mapping[str, str] | None,
    confidence: float,
) -> MixedModel:
    rows = [(method, subject, value) for method in table for subject, value in table[method].items()]
    if not table[reference]:
        return MixedModel(len(rows), 0, {}, reason='the reference has no numbers')
    return mixed_model(
        [value for _, _, value in rows],
        [method for method, _, _ in rows],
        [subject for _, subject, _ in rows],
        reference=reference,
        scanners=None if scanners is None else [scanners[subject] for _, subject, _ in rows],
        confidence=confidence,
    )


def _indicators(labels: Sequence[str], names: Sequence[str] | None = None) -> Floats:
    """Return one 0/1 column a name; by default a name a label that occurs."""
    wanted = sorted(set(labels)) if names is None else names
    return (np.asarray(labels, dtype=str)[:, None] == np.asarray(wanted, dtype=str)[None, :]).astype(
        np.float64
    )


def _fit_in_turn(
    empty: MixedModel,
    y: Floats,
    fixed: Floats,
    subject: Floats,
    scanner: Floats | None,
    names: Sequence[str],
    degrees: int,
    confidence: float,
) -> MixedModel:
    """Fit the fullest model that converges."""
    scale = float(np.std(y))
    z = (y - np.mean(y)) / scale
    notes: list[str] = []
    turns: list[tuple[str, Callable[[], _Fit | None]]] = []
    if scanner is not None and scanner.shape[1] < 2:
        notes.append('there is one scanner only, so it has no effect of its own')
    elif scanner is not None:
        turns.append(('subject and scanner intercepts', lambda: _fit_mixed(z, fixed, subject, scanner)))
    turns.append(('subject intercepts', lambda: _fit_mixed(z, fixed, subject, None)))
    turns.append(('fixed subjects', lambda: _fit_fixed(z, fixed, subject)))
    for fitted_as, fit in turns:
        found = fit()
        if found is None:
            notes.append(f'the model with {fitted_as} did not converge')
            continue
        half = float(stats.t.ppf((1 + confidence) / 2, degrees))
        effects = {}
        for name, effect, error in zip(names, found.effects, found.errors, strict=True):
            interval = Interval(
                float(scale * (effect - half * error)), float(scale * (effect + half * error))
            )
            p = float(2 * stats.t.sf(abs(effect) / error, degrees))
            effects[name] = MethodEffect(float(scale * effect), interval, p)
        spread = {part: scale * value for part, value in found.spread.items()}
        return replace(
            empty,
            effects=effects,
            fitted_as=fitted_as,
            degrees=degrees,
            spread=spread,
            reason=_joined(notes),
        )
    return replace(empty, reason=_joined(notes))


def _fit_mixed(y: Floats, fixed: Floats, subject: Floats, scanner: Floats | None) -> _Fit | None:
    """Fit random intercepts by REML; None where no optimizer converges."""
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    options: dict[str, Any] = {'groups': np.argmax(subject, axis=1)}
    if scanner is not None:
        # Crossed effects: one group of all rows with two variance components.
        parts = {'subject': subject, 'scanner': scanner}
        columns = [[[str(index) for index in range(part.shape[1])]] for part in parts.values()]
        vc = VCSpec(list(parts), columns, [[part] for part in parts.values()])
        options = {'groups': np.zeros(y.size), 'exog_vc': vc}
    with warnings.catch_warnings(), np.errstate(all='ignore'):
        # An intercept without variance lies on the boundary: it warns, and is a result.
        warnings.simplefilter('ignore')
        try:
            found = MixedLM(y, fixed, **options).fit(reml=True, method=list(OPTIMIZERS))
            count = fixed.shape[1]
            effects, errors = np.asarray(found.fe_params)[1:], np.asarray(found.bse_fe)[1:]
            variances = np.atleast_1d(found.vcomp) if scanner is not None else np.ravel(found.cov_re)
        except (np.linalg.LinAlgError, ValueError):
            return None
    proper = np.isfinite(effects).all() and np.isfinite(errors).all() and (errors > 0).all()
    if not found.converged or not proper or effects.size != count - 1:
        return None
    names = ['subject'] if scanner is None else ['subject', 'scanner']
    # statsmodels sorts the components by name only when it builds them from a formula; here the order is ours.
    spread = {name: float(np.sqrt(max(value, 0))) for name, value in zip(names, variances, strict=True)}
    return _Fit(effects, errors, spread | {'residual': float(np.sqrt(found.scale))})


def _fit_fixed(y: Floats, fixed: Floats, subject: Floats) -> _Fit | None:
    """Fit subjects as fixed effects by least squares."""
    from statsmodels.regression.linear_model import OLS

    found = OLS(y, np.column_stack([fixed, subject[:, 1:]])).fit()
    chosen = slice(1, fixed.shape[1])
    effects, errors = np.asarray(found.params)[chosen], np.asarray(found.bse)[chosen]
    if not (np.isfinite(effects).all() and np.isfinite(errors).all() and (errors > 0).all()):
        return None
    return _Fit(effects, errors, {'residual': float(np.sqrt(found.scale))})


# Folds and the probe


def _parts(persons: NDArray[np.str_], count: int, seed: int) -> Integers:
    """Share out the persons over ``count`` parts of nearly equal numbers; one index a row."""
    names, index = np.unique(persons, return_inverse=True)
    if count < 2 or names.size < count:
        raise UsageError(
            f'{names.size} subjects cannot be shared out over {count} folds.',
            fix='Use from 2 folds up to the number of subjects.',
        )
    place = np.random.default_rng(seed).permutation(names.size) % count
    return place[index].astype(np.int64)


def _predicted(
    table: Floats, site: Integers, person: Integers, splits: int, seed: int
) -> tuple[Integers, Integers]:
    """Return right predictions and rows by person and site, each of shape (persons, sites)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    guess = np.empty_like(site)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # rare sites and slow convergence are part of the probe
        cut = StratifiedGroupKFold(splits, shuffle=True, random_state=seed)
        for train, test in cut.split(table, site, person):
            if np.unique(site[train]).size < 2:
                guess[test] = site[train][0]
                continue
            model = make_pipeline(
                StandardScaler(), LogisticRegression(max_iter=1000, class_weight='balanced')
            )
            guess[test] = model.fit(table[train], site[train]).predict(table[test])
    shape = (int(person.max()) + 1, int(site.max()) + 1)
    hits, totals = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    np.add.at(totals, (person, site), 1)
    np.add.at(hits, (person, site), guess == site)
    return hits, totals


def _balanced(hits: Integers, totals: Integers) -> Floats:
    """Return the mean recall over the sites that have rows, along the last axis."""
    recall = hits / np.maximum(totals, 1)
    return np.sum(recall, axis=-1) / np.maximum(np.count_nonzero(totals, axis=-1), 1)


def _chance(
    table: Floats, site: Integers, person: Integers, splits: int, seed: int, permutations: int
) -> Floats:
    """Return the balanced accuracy for each permutation of the sites."""
    rng = np.random.default_rng(seed)
    found = np.empty(permutations)
    for index in range(permutations):
        hits, totals = _predicted(table, _permuted(site, person, rng), person, splits, seed)
        found[index] = _balanced(hits.sum(axis=0), totals.sum(axis=0))
    return found


def _permuted(site: Integers, person: Integers, rng: np.random.Generator) -> Integers:
    """Return permuted sites: within those who travelled, and between the others as whole persons."""
    found, home = site.copy(), np.full(int(person.max()) + 1, -1, dtype=np.int64)
    for index in range(home.size):
        rows = np.flatnonzero(person == index)
        if np.unique(site[rows]).size > 1:
            found[rows] = rng.permutation(site[rows])
        else:
            home[index] = site[rows[0]]
    lone = np.flatnonzero(home >= 0)
    home[lone] = rng.permutation(home[lone])
    stays = home[person] >= 0
    found[stays] = home[person[stays]]
    return found
