"""Comparison of many methods at once: Friedman's test, a linear mixed model, and one family of corrected tests.

The unit is the subject, as in :mod:`bidsharm.evaluation.statistics`. Wherever a figure cannot be had its field is
None and ``reason`` says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from bidsharm.errors import UsageError
from bidsharm.evaluation.intervals import (
    LEAST_TEST,
    RESAMPLES,
    ROUNDING,
    Floats,
    Interval,
    check_options,
    joined,
    same_length,
    too_few,
    vectors,
)
from bidsharm.evaluation.statistics import Comparison, compare_paired, holm

#: Optimizers of the mixed model, in the order in which they are tried.
OPTIMIZERS = ('lbfgs', 'bfgs', 'powell')


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
        return Omnibus(n, reason=too_few(n, LEAST_TEST, 'a test'))
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
    (numbers,) = vectors(values)
    for labels in (methods, subjects, scanners):
        if labels is not None:
            same_length(numbers.size, labels)
    if reference not in methods:
        raise UsageError(f'The reference {reference!r} is not among the methods.')
    check_options(1, confidence)
    rows = np.flatnonzero(np.isfinite(numbers))
    design = _Design.of(
        numbers[rows],
        [methods[row] for row in rows],
        [subjects[row] for row in rows],
        None if scanners is None else [scanners[row] for row in rows],
        reference,
    )
    empty = MixedModel(rows.size, design.subject.shape[1], {})
    reason = _obstacle(design, any(methods[row] == reference for row in rows))
    return replace(empty, reason=reason) if reason else _fit_in_turn(empty, design, confidence)


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


def _compare_mappings(
    values: Mapping[str, float], others: Mapping[str, float], seed: int, resamples: int, confidence: float
) -> Comparison:
    everyone = sorted(set(values) | set(others))
    first = [values.get(subject, np.nan) for subject in everyone]
    second = [others.get(subject, np.nan) for subject in everyone]
    return compare_paired(first, second, seed=seed, resamples=resamples, confidence=confidence)


class _Design(NamedTuple):
    """Numbers, their fixed effects (first the mean) and the subject and scanner of each as 0/1 columns."""

    y: Floats
    names: list[str]
    fixed: Floats
    subject: Floats
    scanner: Floats | None

    @classmethod
    def of(
        cls,
        y: Floats,
        methods: Sequence[str],
        subjects: Sequence[str],
        scanners: Sequence[str] | None,
        reference: str,
    ) -> _Design:
        names = [method for method in dict.fromkeys(methods) if method != reference]
        fixed = np.column_stack([np.ones(y.size), _indicators(methods, names)])
        return cls(
            y, names, fixed, _indicators(subjects), None if scanners is None else _indicators(scanners)
        )

    @property
    def degrees(self) -> int:
        """Rows minus the rank of all effects."""
        parts = [self.fixed, self.subject, *([] if self.scanner is None else [self.scanner])]
        return int(self.y.size - np.linalg.matrix_rank(np.column_stack(parts))) if self.y.size else 0


def _obstacle(design: _Design, has_reference: bool) -> str:
    """Return why no model can be fitted."""
    y, fixed, n = design.y, design.fixed, design.subject.shape[1]
    if n < LEAST_TEST:
        return too_few(n, LEAST_TEST, 'a model')
    if not (has_reference and design.names):
        return 'only one method has numbers, or the reference has none'
    if design.degrees < 1 or np.linalg.matrix_rank(fixed) < fixed.shape[1]:
        return 'too few numbers for the number of methods'
    return 'all values are equal' if np.ptp(y) <= ROUNDING * np.max(np.abs(y)) else ''


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


def _fit_in_turn(empty: MixedModel, design: _Design, confidence: float) -> MixedModel:
    """Fit the fullest model that converges."""
    _, names, fixed, subject, scanner = design
    scale = float(np.std(design.y))
    z = (design.y - np.mean(design.y)) / scale
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
        return replace(
            empty,
            effects=_effects(found, names, scale, design.degrees, confidence),
            fitted_as=fitted_as,
            degrees=design.degrees,
            spread={part: scale * value for part, value in found.spread.items()},
            reason=joined(notes),
        )
    return replace(empty, reason=joined(notes))


def _effects(
    fit: _Fit, names: Sequence[str], scale: float, degrees: int, confidence: float
) -> dict[str, MethodEffect]:
    half = float(stats.t.ppf((1 + confidence) / 2, degrees))
    found = {}
    for name, effect, error in zip(names, fit.effects, fit.errors, strict=True):
        interval = Interval(float(scale * (effect - half * error)), float(scale * (effect + half * error)))
        p = float(2 * stats.t.sf(abs(effect) / error, degrees))
        found[name] = MethodEffect(float(scale * effect), interval, p)
    return found


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
