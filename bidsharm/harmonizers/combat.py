r"""ComBat and its relatives, after the equations of the papers.

Feature :math:`v` of row :math:`j` at site :math:`i` is :math:`y_{ijv} = \alpha_v + x_{ij}^T \beta_v + \gamma_{iv} + \delta_{iv}
\varepsilon_{ijv}` (Johnson 2007; Fortin 2017, 2018). Least squares with one column a site give :math:`\alpha_v` as the mean of the sites
weighted by rows, and the residual spread :math:`\sigma_v`; of :math:`z = (y - \alpha_v - x^T \beta_v) / \sigma_v`, each site's mean and
variance are shrunk towards what the site does to all features, and taken out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError
from bidsharm.harmonizers.contract import Card, Progress
from bidsharm.harmonizers.design import Floats
from bidsharm.harmonizers.table import CONSTANT, FeatureTable, TableHarmonizer, counted, some

Booleans = NDArray[np.bool_]
Integers = NDArray[np.int64]

#: The iteration for the parametric estimates ends when nothing changes by more than this share.
TOLERANCE, ROUNDS = 1e-8, 1000
#: Elements of the largest array of the non-parametric estimates.
_BLOCK = 4_000_000
#: Strengths of the penalty on bends that are tried, as shares of the squares of the columns.
STRENGTHS = np.logspace(-8, 4, 37)

PRIORS = ('parametric', 'nonparametric', 'none')


@dataclass(frozen=True)
class ComBatSettings:
    """Settings of ComBat.

    Parameters
    ----------
    prior
        How the sites' means and variances are shrunk: ``parametric`` (normal and inverse gamma priors),
        ``nonparametric`` (the other features are the prior), or ``none``.
    mean_only
        Leave the spread of each site as it is.
    """

    prior: Literal['parametric', 'nonparametric', 'none'] = 'parametric'
    mean_only: bool = False

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise UsageError(f'There is no prior "{self.prior}".', where='--set', fix=f'Choose {", ".join(PRIORS)}.')  # fmt: skip
        if not isinstance(self.mean_only, bool):
            raise UsageError('mean_only is True or False.', where='--set')


@dataclass(frozen=True)
class SmoothSettings(ComBatSettings):
    """Settings of ComBat with smooth terms.

    Parameters
    ----------
    functions
        Cubic B-splines of each smooth term, including the one that the intercept makes redundant.
    """

    functions: int = 10


@dataclass(frozen=True)
class CovBatSettings(ComBatSettings):
    """Settings of CovBat.

    Parameters
    ----------
    variance
        Share of the variance of the residuals in the components that are harmonized.
    """

    variance: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.variance, (int, float)) and 0 < self.variance <= 1):
            raise UsageError('variance is above 0 and not above 1.', where='--set')


@dataclass(frozen=True)
class Estimates:
    """What ComBat learns.

    Parameters
    ----------
    alpha, scale
        Mean over the sites and residual spread of each feature, shape (features,).
    beta
        Effect of each kept column, shape (columns, features).
    gamma, delta
        Shift and variance ratio of each site, in units of the spread, shape (sites, features).
    usable
        Features that can be harmonized, shape (features,).
    """

    alpha: Floats
    scale: Floats
    beta: Floats
    gamma: Floats
    delta: Floats
    usable: Booleans

    def standard(self, matrix: Floats) -> Floats:
        """Return what a row with these kept columns has on average over the sites, shape (rows, features)."""
        return np.asarray(self.alpha + matrix @ self.beta)

    def adjusted(self, values: Floats, site: Integers, matrix: Floats) -> Floats:
        """Return standardized features without the sites, shape (rows, features)."""
        z = (values - self.standard(matrix)) / self.scale
        return np.asarray((z - self.gamma[site]) / np.sqrt(self.delta[site]))


@dataclass(frozen=True)
class Fitted:
    """Least squares of features on sites and kept columns, before any shrinking."""

    alpha: Floats
    scale: Floats
    beta: Floats
    usable: Booleans


class ComBat(TableHarmonizer):
    """ComBat with empirical Bayes."""

    card = Card(
        name='combat',
        title='Site means and spreads of features, shrunk towards those of all features',
        paper='Johnson et al. 2007, Biostatistics; Fortin et al. 2018, NeuroImage (cortical thickness)',
        doi='10.1016/j.neuroimage.2017.11.024',
        family='statistical',
        supervision='unpaired',
        domain='table',
        output='features',
        needs_fit=('table', 'two_sites'),
        needs_apply=('table', 'site'),
        targets=('canonical', 'site'),
        deviations='Sites with one row, or without spread in a feature, keep their spread; missing cells are left out feature by feature.',
        memory_gb=0.5,
    )
    Settings: ClassVar[type[Any]] = ComBatSettings

    def learn(
        self, table: FeatureTable, matrix: Floats, *, seed: int, progress: Progress | None
    ) -> list[str]:
        """Estimate what each site does to each feature."""
        del seed, progress  # nothing is drawn, and nothing takes long
        onehot = self.onehot(table.sites)
        if self.reference is not None and onehot[:, self.reference].sum() < 2:
            raise UsageError(
                f'The reference "{self.sites[self.reference]}" has a single usable row, and so no spread that others could take.',
                where='--reference', fix='Choose a site with more rows, or leave --reference.',
            )  # fmt: skip
        fitted = least_squares(table.values, onehot, matrix, self.reference, self.design.penalty())
        z = (table.values - fitted.alpha - matrix @ fitted.beta) / fitted.scale
        z[:, ~fitted.usable] = np.nan
        gamma, delta, warnings = self.shrunk(z, table)
        self.estimates = Estimates(fitted.alpha, fitted.scale, fitted.beta, gamma, delta, fitted.usable)
        return self._said(fitted.usable) + warnings

    def shrunk(self, z: Floats, table: FeatureTable) -> tuple[Floats, Floats, list[str]]:
        """Return shift and variance ratio of each site, and what cannot be estimated in words."""
        site = self.site_index(table.sites)
        gamma, delta, told = site_effects(z, site, len(self.sites), self.settings.mean_only)
        warnings = self._about(z, site, told)
        prior = self.settings.prior
        if prior != 'none' and np.count_nonzero(np.isfinite(z).any(axis=0)) < 2:
            warnings.append(
                'One feature has no others to learn a prior from, so its estimates are not shrunk.'
            )
            prior = 'none'
        for index in range(len(self.sites)) if prior != 'none' else ():
            rows = z[site == index]
            shrink = _parametric if prior == 'parametric' else _nonparametric
            gamma[index], delta[index] = shrink(rows, gamma[index], delta[index], told[index])
        if self.reference is not None:
            gamma[self.reference], delta[self.reference] = 0.0, 1.0
        return gamma, delta, warnings

    def apply(self, table: FeatureTable, matrix: Floats) -> Floats:
        """Take the sites out."""
        site, found = self.site_index(table.sites), self.estimates
        return self.recovered(
            found.adjusted(table.values, site, matrix), site
        ) * found.scale + found.standard(matrix)

    def recovered(self, z: Floats, site: Integers) -> Floats:
        """Return standardized features after a further step; ComBat has none."""
        del site
        return z

    def left_features(self) -> Booleans:
        """Return which features the method leaves as they are."""
        return np.asarray(~self.estimates.usable)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the estimates."""
        _, settings = super().state()
        arrays = (
            {}
            if not self.sites
            else {item.name: getattr(self.estimates, item.name) for item in fields(Estimates)}
        )
        return {name: np.asarray(array) for name, array in arrays.items()}, settings

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take the estimates back."""
        super().restore(arrays, settings)
        self.estimates = Estimates(**{item.name: arrays[item.name] for item in fields(Estimates)})
        shape = (len(self.sites), len(self.features))
        if self.estimates.gamma.shape != shape or self.estimates.delta.shape != shape:
            raise ValueError(f'estimates are not of shape {shape}')

    def _said(self, usable: Booleans) -> list[str]:
        left = [name for name, good in zip(self.features, usable, strict=True) if not good]
        if not left:
            return []
        what = 'does not vary beyond what is kept, or is missing in too many rows: left as it is'
        return [f'{counted(len(left), "feature")} ({some(left)}) {what}.']

    def _about(self, z: Floats, site: Integers, told: Booleans) -> list[str]:
        """Say for which sites and features there is no spread, or nothing at all."""
        warnings = []
        varies: Booleans = np.asarray(np.isfinite(z).any(axis=0))
        for index, name in enumerate(self.sites):
            count = np.isfinite(z[site == index]).sum(axis=0)
            if (site == index).sum() == 1:
                warnings.append(f'Site "{name}" has one row: its mean is harmonized, its spread is not.')
                continue
            nothing = [f for f, n, v in zip(self.features, count, varies, strict=True) if v and not n]
            flat = [
                f for f, n, v, known in zip(self.features, count, varies, told[index], strict=True) if v and n and not known
            ]  # fmt: skip
            if nothing:
                warnings.append(
                    f'Site "{name}" has no value of {some(nothing)}, left as it is in its new rows.'
                )
            if flat and not self.settings.mean_only:
                warnings.append(
                    f'Site "{name}" does not vary in {some(flat)}: its mean is harmonized, its spread is not.'
                )
        return warnings


class ComBatGAM(ComBat):
    """ComBat that keeps smooth curves."""

    card = Card(
        name='combat-gam',
        title='ComBat that keeps smooth curves, for example of age',
        paper='Pomponio et al. 2020, NeuroImage',
        doi='10.1016/j.neuroimage.2019.116450',
        family='statistical',
        supervision='unpaired',
        domain='table',
        output='features',
        needs_fit=('table', 'two_sites', 'kept'),
        needs_apply=('table', 'site'),
        targets=('canonical', 'site'),
        deviations='How much a curve may bend is chosen by generalized cross-validation, once for all curves of a feature; neuroHarmonize draws '
        'random folds. Beyond the values of the fit a curve goes on flat.',
        memory_gb=0.5,
    )
    Settings: ClassVar[type[Any]] = SmoothSettings
    tiny: ClassVar[dict[str, Any]] = {'functions': 5}
    smooth = True


class CovBat(ComBat):
    r"""ComBat, then the same for the scores of principal components of what it leaves."""

    card = Card(
        name='covbat',
        title='ComBat, and the covariance of features between sites',
        paper='Chen et al. 2022, Human Brain Mapping',
        doi='10.1002/hbm.25688',
        family='statistical',
        supervision='unpaired',
        domain='table',
        output='features',
        needs_fit=('table', 'two_sites'),
        needs_apply=('table', 'site'),
        targets=('canonical', 'site'),
        deviations='Missing cells count as the mean for the components.',
        memory_gb=0.5,
    )
    Settings: ClassVar[type[Any]] = CovBatSettings

    def learn(
        self, table: FeatureTable, matrix: Floats, *, seed: int, progress: Progress | None
    ) -> list[str]:
        """Estimate the sites' effects, and those on the components of what is left."""
        warnings = super().learn(table, matrix, seed=seed, progress=progress)
        site = self.site_index(table.sites)
        z = self._filled(self.estimates.adjusted(table.values, site, matrix))
        self.centre = z.mean(axis=0)
        _, singular, axes = np.linalg.svd(z - self.centre, full_matrices=False)
        power = np.cumsum(singular**2)
        count = int(np.searchsorted(power, self.settings.variance * power[-1] * (1 - 1e-12))) + 1
        strong = int(np.count_nonzero(singular > CONSTANT * max(singular[0], 1e-300)))
        self.axes = axes[: min(count, max(strong, 1))]
        scores = (z - self.centre) @ self.axes.T
        fitted = least_squares(scores, self.onehot(table.sites), matrix[:, :0], self.reference)
        own = (scores - fitted.alpha) / fitted.scale
        gamma, delta, _ = site_effects(own, site, len(self.sites), self.settings.mean_only)
        if self.reference is not None:
            gamma[self.reference], delta[self.reference] = 0.0, 1.0
        self.scores = Estimates(fitted.alpha, fitted.scale, fitted.beta, gamma, delta, fitted.usable)
        missing = int(np.isnan(table.values).sum())
        if missing:
            warnings.append(
                f'{counted(missing, "missing cell")} counted as the mean for the covariance of the features.'
            )
        return warnings

    def recovered(self, z: Floats, site: Integers) -> Floats:
        """Return standardized features with harmonized scores."""
        filled = self._filled(z)
        scores, found = (filled - self.centre) @ self.axes.T, self.scores
        adjusted = found.adjusted(scores, site, np.zeros((len(z), 0))) * found.scale + found.alpha
        change = np.where(found.usable, adjusted - scores, 0.0)
        return np.asarray(filled + change @ self.axes)

    def _filled(self, z: Floats) -> Floats:
        return np.where(np.isfinite(z) & self.estimates.usable, z, 0.0)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the estimates of both steps."""
        arrays, settings = super().state()
        if self.sites:
            arrays |= {'centre': self.centre, 'axes': self.axes}
            arrays |= {
                f'score_{item.name}': np.asarray(getattr(self.scores, item.name))
                for item in fields(Estimates)
            }
        return arrays, settings

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take both steps back."""
        super().restore(arrays, settings)
        self.centre, self.axes = arrays['centre'], arrays['axes']
        self.scores = Estimates(**{item.name: arrays[f'score_{item.name}'] for item in fields(Estimates)})


# --- Estimation ---


def least_squares(
    values: Floats, onehot: Floats, matrix: Floats, reference: int | None, penalty: Floats | None = None
) -> Fitted:
    """Return the regression of each feature on sites and kept columns, over the rows that have the feature.

    Parameters
    ----------
    values
        Shape (rows, features); NaN where missing.
    onehot, matrix
        Site and kept columns of each row.
    reference
        The site whose mean and spread are the standard; the mean of all, weighted by rows, by default.
    penalty
        Of :meth:`~bidsharm.harmonizers.design.Design.penalty`; how much of it counts is chosen for each feature.
    """
    features = values.shape[1]
    alpha, scale, usable = np.zeros(features), np.ones(features), np.zeros(features, dtype=bool)
    beta = np.zeros((matrix.shape[1], features))
    for rows, columns in _patterns(np.isfinite(values)):
        sites = onehot[rows]
        full = np.column_stack([sites, matrix[rows]])
        there: Booleans = np.asarray(sites.any(axis=0))
        of = sites[:, reference] > 0 if reference is not None else np.ones(len(sites), dtype=bool)
        if len(full) <= np.count_nonzero(there) + matrix.shape[1] or not of.any():
            continue
        y = values[np.ix_(rows, columns)]
        if (
            np.linalg.matrix_rank(_scaled(full[:, np.r_[there, np.ones(matrix.shape[1], bool)]]))
            < there.sum() + matrix.shape[1]
        ):
            continue
        coefficients = (
            np.linalg.lstsq(full, y, rcond=None)[0] if penalty is None else penalized(full, y, penalty)
        )
        residual = y - full @ coefficients
        effects = coefficients[: len(there)]
        weight = sites.mean(axis=0)
        alpha[columns] = effects[reference] if reference is not None else weight @ effects
        beta[:, columns] = coefficients[len(there) :]
        spread = np.sqrt(np.mean(residual[of] ** 2, axis=0))
        good = spread > CONSTANT * np.abs(y).max(axis=0)
        usable[columns], scale[columns] = good, np.where(good, spread, 1.0)
    alpha[~usable], beta[:, ~usable] = 0.0, 0.0
    return Fitted(alpha, scale, beta, usable)


def penalized(full: Floats, y: Floats, penalty: Floats) -> Floats:
    """Return coefficients of penalized least squares, with the strength of least generalized cross-validation for each feature.

    Parameters
    ----------
    full
        Columns of sites and of what is kept.
    y
        Features, shape (rows, features).
    penalty
        Form of the last columns of ``full``.
    """
    values, vectors = np.linalg.eigh(penalty)
    root = np.zeros((len(penalty), full.shape[1]))
    root[:, -len(penalty) :] = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    best = np.full(y.shape[1], np.inf)
    found = np.zeros((full.shape[1], y.shape[1]))
    for strength in STRENGTHS * np.sum(full[:, -len(penalty) :] ** 2):
        tall = np.concatenate([full, np.sqrt(strength) * root])
        inverse = np.linalg.pinv(tall)[:, : len(full)]
        coefficients = inverse @ y
        rest = np.sum((y - full @ coefficients) ** 2, axis=0)
        score = rest / max(len(full) - float(np.sum(inverse.T * full)), 1e-9) ** 2
        better = score < best
        best[better], found[:, better] = score[better], coefficients[:, better]
    return found


def _scaled(matrix: Floats) -> Floats:
    size = np.linalg.norm(matrix, axis=0)
    return matrix / np.where(size > 0, size, 1.0)


def _patterns(there: Booleans) -> Iterator[tuple[Booleans, Integers]]:
    """Yield the features that are there in the same rows, with these rows."""
    packed = np.packbits(there, axis=0).T
    _, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    for index, column in enumerate(first):
        yield there[:, column], np.flatnonzero(which.ravel() == index)


def site_effects(z: Floats, site: Integers, sites: int, mean_only: bool) -> tuple[Floats, Floats, Booleans]:
    """Return mean and variance of each site, shape (sites, features), and where the variance could be told.

    Where it could not (one row, no spread) it is 1; where there is no value at all, the mean is 0.
    """
    gamma, delta = np.zeros((sites, z.shape[1])), np.ones((sites, z.shape[1]))
    told = np.zeros(gamma.shape, dtype=bool)
    for index in range(sites):
        rows = z[site == index]
        there = np.isfinite(rows)
        count = there.sum(axis=0)
        filled = np.where(there, rows, 0.0)
        mean = filled.sum(axis=0) / np.maximum(count, 1)
        variance = np.where(there, (rows - mean) ** 2, 0.0).sum(axis=0) / np.maximum(count - 1, 1)
        known = (count > 1) & (variance > CONSTANT)
        gamma[index] = mean
        if not mean_only:
            told[index], delta[index] = known, np.where(known, variance, 1.0)
    return gamma, delta, told


def _parametric(rows: Floats, gamma: Floats, delta: Floats, told: Booleans) -> tuple[Floats, Floats]:
    """Return means and variances of one site under a normal and an inverse gamma prior (Johnson 2007, section 3.2)."""
    there = np.isfinite(rows)
    count = there.sum(axis=0)
    known = count > 0
    if np.count_nonzero(known) < 2:
        return gamma, delta
    centre, width = gamma[known].mean(), gamma[known].var(ddof=1)
    shape, rate = _inverse_gamma(delta[told])
    filled = np.where(there, rows, 0.0)
    mean, spread = gamma.copy(), delta.copy()
    for _ in range(ROUNDS):
        new_mean = (width * count * gamma + spread * centre) / np.maximum(width * count + spread, 1e-300)
        square = np.where(there, (filled - new_mean) ** 2, 0.0).sum(axis=0)
        new_spread = spread if shape is None else (rate + square / 2) / (count / 2 + shape - 1)
        new_spread = np.where(told, new_spread, delta)
        change = max(_change(mean, new_mean), _change(spread, new_spread))
        mean, spread = new_mean, new_spread
        if change < TOLERANCE:
            break
    return np.where(known, mean, gamma), spread


def _change(old: Floats, new: Floats) -> float:
    return float(np.max(np.abs(new - old) / np.maximum(np.abs(old), 1e-3)))


def _inverse_gamma(delta: Floats) -> tuple[float | None, float]:
    """Return shape and rate of the inverse gamma distribution with the moments of some variances; None where it has none."""
    if delta.size < 2 or delta.var(ddof=1) <= CONSTANT**2:
        return None, 0.0
    mean, variance = float(delta.mean()), float(delta.var(ddof=1))
    return (2 * variance + mean**2) / variance, (mean * variance + mean**3) / variance


def _nonparametric(rows: Floats, gamma: Floats, delta: Floats, told: Booleans) -> tuple[Floats, Floats]:
    """Return means and variances of one site with those of the other features as prior (Johnson 2007, section 3.2)."""
    there = np.isfinite(rows)
    count = there.sum(axis=0)
    filled = np.where(there, rows, 0.0)
    total, square = filled.sum(axis=0), (filled**2).sum(axis=0)
    prior = np.flatnonzero(count > 0)
    if prior.size < 2:
        return gamma, delta
    mean, spread = gamma.copy(), delta.copy()
    step = max(_BLOCK // prior.size, 1)
    for start in range(0, prior.size, step):
        own = prior[start : start + step]
        g, d = gamma[prior][None], delta[prior][None]
        n = count[own][:, None]
        misfit = square[own][:, None] - 2 * g * total[own][:, None] + n * g**2
        log = -0.5 * (misfit / d + n * np.log(2 * np.pi * d))
        log[own[:, None] == prior[None]] = -np.inf
        weight = np.exp(log - log.max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        mean[own], spread[own] = (weight * g).sum(axis=1), (weight * d).sum(axis=1)
    return mean, np.where(told, spread, delta)
