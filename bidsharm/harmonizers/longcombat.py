r"""ComBat for people with several visits.

:math:`y_{ijv}(t) = \alpha_v + x_{ij}(t)^T \beta_v + \eta_{jv} + \gamma_{iv} + \delta_{iv} \varepsilon_{ijv}(t)` (Beer 2020): a random
intercept :math:`\eta_{jv} \sim N(0, \rho_v^2)` for each person. With :math:`\lambda = \rho^2 / \sigma^2` and :math:`n` visits, the covariance of a
person is :math:`\sigma^2 (I + \lambda 1 1^T)`, whose inverse root takes :math:`1 - (1 + n \lambda)^{-1/2}` of the mean away, so that the restricted
likelihood is one of least squares for each :math:`\lambda`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.harmonizers.combat import ComBat, Estimates, Integers
from bidsharm.harmonizers.contract import Card, Progress
from bidsharm.harmonizers.design import Floats
from bidsharm.harmonizers.table import CONSTANT, FeatureTable, counted

#: Largest ratio of the variance between people to that within.
MOST = 1e4


@dataclass(frozen=True)
class Intercept:
    """A regression with a random intercept for each person.

    Parameters
    ----------
    ratio
        Variance between people over that within.
    sigma
        Standard deviation within people, by restricted maximum likelihood.
    coefficients
        Of the fixed columns.
    """

    ratio: float
    sigma: float
    coefficients: Floats


class LongComBat(ComBat):
    """ComBat with a random intercept for each person."""

    card = Card(
        name='longcombat',
        title='ComBat for several visits of each person',
        paper='Beer et al. 2020, NeuroImage',
        doi='10.1016/j.neuroimage.2020.117129',
        family='statistical',
        supervision='unpaired',
        domain='table',
        output='features',
        needs_fit=('table', 'two_sites', 'visits'),
        needs_apply=('table', 'site'),
        targets=('canonical', 'site'),
        fidelity='faithful',
        deviations='Rows of new people get the intercept that their own rows predict.',
        memory_gb=0.5,
    )

    def learn(
        self, table: FeatureTable, matrix: Floats, *, seed: int, progress: Progress | None
    ) -> list[str]:
        """Estimate the intercepts' spread, and what each site does."""
        del seed, progress
        onehot, person = self.onehot(table.sites), _numbered(table.people)
        full = np.column_stack([onehot, matrix])
        features = len(self.features)
        alpha, scale, ratio = np.zeros(features), np.ones(features), np.zeros(features)
        beta, effects = np.zeros((matrix.shape[1], features)), np.zeros((len(self.sites), features))
        usable = np.zeros(features, dtype=bool)
        z = np.full(table.values.shape, np.nan)
        for index in range(features):
            rows = np.isfinite(table.values[:, index])
            y, x = table.values[rows, index], full[rows]
            there = x.any(axis=0)
            if rows.sum() <= there.sum() + 1 or np.linalg.matrix_rank(x[:, there]) < there.sum():
                continue
            if self.reference is not None and not there[self.reference]:
                continue
            found = random_intercept(y, x[:, there], person[rows])
            if found.sigma <= CONSTANT * np.abs(y).max():
                continue
            coefficients = np.zeros(full.shape[1])
            coefficients[there] = found.coefficients
            sites = coefficients[: len(self.sites)]
            usable[index], scale[index], ratio[index] = True, found.sigma, found.ratio
            weight = onehot[rows].mean(axis=0)
            alpha[index] = sites[self.reference] if self.reference is not None else weight @ sites
            beta[:, index] = coefficients[len(self.sites) :]
            effects[:, index] = sites - alpha[index]
            effects[~there[: len(self.sites)], index] = 0.0
            own = intercepts(y - x @ coefficients, person[rows], found.ratio)
            z[rows, index] = (y - alpha[index] - matrix[rows] @ beta[:, index] - own) / found.sigma
        gamma, delta, warnings = self.shrunk(z, table)
        self.estimates = Estimates(alpha, scale, beta, gamma, delta, usable)
        self.ratio, self.effects = ratio, effects
        once = len(set(table.people)) - int((np.bincount(person) > 1).sum())
        if once:
            warnings.append(
                f'{counted(once, "person" if once == 1 else "people").removesuffix("s" if once > 1 else "")} with one visit only.'
            )
        return self._said(usable) + warnings

    def apply(self, table: FeatureTable, matrix: Floats) -> Floats:
        """Take the sites out, and leave each person's own intercept in."""
        site, person, found = self.site_index(table.sites), _numbered(table.people), self.estimates
        expected = found.standard(matrix)
        own = np.zeros_like(table.values)
        residual = table.values - expected - self.effects[site]
        for index in np.flatnonzero(found.usable):
            rows = np.isfinite(table.values[:, index])
            own[rows, index] = intercepts(residual[rows, index], person[rows], self.ratio[index])
        z = (table.values - expected - own) / found.scale
        adjusted = (z - found.gamma[site]) / np.sqrt(found.delta[site])
        return np.asarray(adjusted * found.scale + expected + own)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the estimates, with the spread of the intercepts and the unshrunk effects of the sites."""
        arrays, settings = super().state()
        if self.sites:
            arrays |= {'ratio': self.ratio, 'effects': self.effects}
        return arrays, settings

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take the estimates back."""
        super().restore(arrays, settings)
        self.ratio, self.effects = arrays['ratio'], arrays['effects']


def random_intercept(y: Floats, x: Floats, person: Integers) -> Intercept:
    """Return the regression with a random intercept that has the largest restricted likelihood.

    Parameters
    ----------
    y, x
        The feature, shape (rows,), and the fixed columns, shape (rows, columns), of full rank.
    person
        Number of the person of each row.
    """
    from scipy.optimize import minimize_scalar

    visits = np.bincount(person)
    visits = visits[visits > 0]

    def solved(ratio: float) -> tuple[float, Floats, float]:
        a, b = _whitened(x, person, ratio), _whitened(y[:, None], person, ratio)[:, 0]
        q, r = np.linalg.qr(a)
        coefficients = np.linalg.solve(r, q.T @ b)
        rest = float(np.sum((b - a @ coefficients) ** 2))
        freedom = len(y) - x.shape[1]
        cost = freedom * np.log(max(rest, 1e-300)) + np.log1p(visits * ratio).sum()
        return cost + 2 * np.log(np.abs(np.diag(r))).sum(), coefficients, np.sqrt(rest / freedom)

    # On a logarithmic scale; no spread between people is looked at by itself.
    grid = np.linspace(np.log(1e-4), np.log(MOST), 25)
    costs = [solved(float(np.exp(step)))[0] for step in grid]
    best = int(np.argmin(costs))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(
        lambda step: solved(float(np.exp(step)))[0],
        bounds=(low, high),
        method='bounded',
        options={'xatol': 1e-6},
    )
    ratio = float(np.exp(found.x))
    if solved(0.0)[0] <= found.fun:
        ratio = 0.0
    _, coefficients, sigma = solved(ratio)
    return Intercept(ratio, float(sigma), coefficients)


def intercepts(residual: Floats, person: Integers, ratio: float) -> Floats:
    """Return the best linear prediction of each row's person, from what the fixed columns leave."""
    count = np.bincount(person)
    total = np.bincount(person, weights=residual)
    return np.asarray((ratio * total / (1 + ratio * count))[person])


def _whitened(columns: Floats, person: Integers, ratio: float) -> Floats:
    count = np.bincount(person)
    sums = np.zeros((count.size, columns.shape[1]))
    np.add.at(sums, person, columns)
    safe = np.maximum(count, 1)
    share = 1 - 1 / np.sqrt(1 + ratio * count)
    return np.asarray(columns - (share / safe)[person][:, None] * sums[person])


def _numbered(people: tuple[str, ...]) -> Integers:
    return np.unique(np.asarray(people, dtype=str), return_inverse=True)[1].astype(np.int64)
