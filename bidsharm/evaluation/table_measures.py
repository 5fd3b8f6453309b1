"""What a harmonization did to a table of features: how much the sites still differ, and whether what was to be kept is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bidsharm.evaluation.probe import Probe, refitted_site_probe, site_probe

Floats = NDArray[np.float64]
NAN = float('nan')
#: Of the bootstrap intervals.
RESAMPLES = 1000


@dataclass(frozen=True)
class SiteEffects:
    """How much sites differ in each feature.

    Parameters
    ----------
    means, spreads
        Of each site, shape (sites, features); standard deviations with ddof 1, NaN with fewer than two rows.
    shares
        Partial eta squared: the share of what is kept apart that the sites explain, shape (features,).
    chance
        What this share is on average where sites do not differ.
    ratios
        Largest over smallest standard deviation of a site.
    """

    means: Floats
    spreads: Floats
    shares: Floats
    chance: float
    ratios: Floats


@dataclass(frozen=True)
class KeptEffect:
    """How strong the effect of a kept column is, before and after.

    Parameters
    ----------
    name
        Of the column of numbers.
    before, after
        Partial correlation with each feature, given the sites and the other kept columns, shape (features,).
    """

    name: str
    before: Floats
    after: Floats


@dataclass(frozen=True)
class TableMeasures:
    """A table before and after.

    Parameters
    ----------
    sites
        Names, in the order of rows of the effects.
    before, after
        Effects of the sites.
    kept
        Effects of what is kept.
    probe_before, probe_after
        How well a linear classifier tells the site.
    held_out
        Whether the classifier after harmonization judged rows that the harmonization had not seen.
    """

    sites: tuple[str, ...]
    before: SiteEffects
    after: SiteEffects
    kept: tuple[KeptEffect, ...]
    probe_before: Probe | None
    probe_after: Probe | None
    held_out: bool


def site_effects(values: Floats, labels: Sequence[str], matrix: Floats) -> SiteEffects:
    """Return how much sites differ.

    Parameters
    ----------
    values
        Shape (rows, features); NaN where missing.
    labels
        Site of each row.
    matrix
        What is kept, shape (rows, columns).
    """
    names = sorted(set(labels))
    at = np.asarray(labels)[:, None] == np.asarray(names)[None]
    means, spreads = (np.full((len(names), values.shape[1]), NAN) for _ in range(2))
    for index in range(len(names)):
        for column in range(values.shape[1]):
            own = values[at[:, index], column]
            own = own[np.isfinite(own)]
            if own.size:
                means[index, column] = own.mean()
            if own.size > 1:
                spreads[index, column] = own.std(ddof=1)
    low, high = (_over_sites(which, spreads) for which in (np.nanmin, np.nanmax))
    ratios = np.divide(high, low, out=np.full_like(high, NAN), where=low > 0)
    base = np.column_stack([np.ones(len(values)), matrix])
    full = np.column_stack([at.astype(float), matrix])
    shares = np.array([_share(values[:, column], base, full) for column in range(values.shape[1])])
    extra = len(names) - 1
    return SiteEffects(means, spreads, shares, extra / max(len(values) - base.shape[1], 1), ratios)


def _over_sites(which: Callable[..., Floats], spreads: Floats) -> Floats:
    known = np.isfinite(spreads).any(axis=0)
    found = np.full(spreads.shape[1], NAN)
    found[known] = which(spreads[:, known], axis=0)
    return found


def _share(y: Floats, base: Floats, full: Floats) -> float:
    """Return the share of what the base leaves that the full columns explain."""
    there = np.isfinite(y)
    first, second = (_rest(y[there], columns[there]) for columns in (base, full))
    if first <= 1e-18 * max(float(np.sum(y[there] ** 2)), 1e-300):
        return NAN
    return float(max(first - second, 0.0) / first)


def _rest(y: Floats, columns: Floats) -> float:
    scale = np.linalg.norm(columns, axis=0)
    fit = columns / np.where(scale > 0, scale, 1)
    return float(np.sum((y - fit @ np.linalg.lstsq(fit, y, rcond=None)[0]) ** 2))


def kept_effects(
    before: Floats, after: Floats, labels: Sequence[str], matrix: Floats, names: Sequence[str]
) -> tuple[KeptEffect, ...]:
    """Return the partial correlation of each kept column with each feature, before and after."""
    at = (np.asarray(labels)[:, None] == np.asarray(sorted(set(labels)))[None]).astype(float)
    found = []
    for index, name in enumerate(names):
        others = np.column_stack([at, np.delete(matrix, index, axis=1)])
        pair = [
            np.array([_partial(values[:, c], matrix[:, index], others) for c in range(values.shape[1])])
            for values in (before, after)
        ]
        found.append(KeptEffect(name, *pair))
    return tuple(found)


def _partial(y: Floats, x: Floats, others: Floats) -> float:
    there = np.isfinite(y)
    if there.sum() < others.shape[1] + 3:
        return NAN
    scale = np.linalg.norm(others[there], axis=0)
    columns = others[there] / np.where(scale > 0, scale, 1)
    pair = np.column_stack([y[there], x[there]])
    rest = pair - columns @ np.linalg.lstsq(columns, pair, rcond=None)[0]
    size = np.linalg.norm(rest, axis=0)
    if (size <= 1e-9 * np.maximum(np.linalg.norm(pair, axis=0), 1e-300)).any():
        return NAN
    return float(rest[:, 0] @ rest[:, 1] / (size[0] * size[1]))


def measure_table(
    before: Floats,
    after: Floats,
    labels: Sequence[str],
    people: Sequence[str],
    matrix: Floats,
    names: Sequence[str],
    *,
    refit: Callable[[NDArray[np.int64]], Floats] | None = None,
    seed: int = 0,
    permutations: int = 200,
) -> TableMeasures:
    """Return what a harmonization did to a table.

    Parameters
    ----------
    before, after
        Features, shape (rows, features).
    labels, people
        Site and person of each row.
    matrix, names
        What is kept, as numbers.
    refit
        Returns the features of all rows after a fit on some of them, for a judgement of rows that the fit has not seen.
    seed, permutations
        Of the classifier's folds and chance line.
    """
    many = len(set(labels)) > 1
    options = _Options(seed, permutations)
    first = second = None
    if many:
        first = options.judged(before, labels, people)
        second = (
            options.judged(after, labels, people)
            if refit is None
            else options.refitted(refit, labels, people)
        )
    return TableMeasures(
        tuple(sorted(set(labels))),
        site_effects(before, labels, matrix),
        site_effects(after, labels, matrix),
        kept_effects(before, after, labels, matrix, names),
        first,
        second,
        held_out=refit is not None,
    )


@dataclass(frozen=True)
class _Options:
    seed: int
    permutations: int

    def judged(self, values: Floats, labels: Sequence[str], people: Sequence[str]) -> Probe:
        return site_probe(
            filled(values),
            labels,
            people,
            seed=self.seed,
            permutations=self.permutations,
            resamples=RESAMPLES,
        )

    def refitted(
        self, refit: Callable[[NDArray[np.int64]], Floats], labels: Sequence[str], people: Sequence[str]
    ) -> Probe:
        return refitted_site_probe(
            lambda rows: filled(refit(rows)),
            labels, people, seed=self.seed, permutations=self.permutations, resamples=RESAMPLES,
        )  # fmt: skip


def filled(values: Floats) -> Floats:
    """Return features with missing cells at the mean of their column, where they say nothing about the site."""
    there = np.isfinite(values)
    mean = np.where(there, values, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return np.where(there, values, mean)
