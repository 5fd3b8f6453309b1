"""How good predictions are, at each site and over all, and whether the features that they are made from tell the site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bidsharm.evaluation.intervals import RESAMPLES, Interval, bootstrap
from bidsharm.evaluation.probe import Probe, balanced_interval, refitted_site_probe
from bidsharm.evaluation.scores import classification_scores

Integers = NDArray[np.int64]
Kind = Literal['regression', 'classification', 'segmentation']
#: Permutations of the chance line of the probe.
PERMUTATIONS = 200


@dataclass(frozen=True)
class Judged:
    """A prediction of a network that has not seen the person, and what is true.

    Parameters
    ----------
    name, person, session, site
        Whose it is.
    fold
        Number of the part that was predicted by networks trained on the others; -1 for a model from elsewhere.
    truth
        What is true; None where nobody knows. Of a segmentation it is left out.
    value
        Of a regression.
    shares
        Of a classification: the probability of each class.
    dice
        Of a segmentation: overlap of each class with its label map, NaN for a class in neither.
    volumes
        Of a segmentation: volume of each class in ml.
    """

    name: str
    person: str
    session: str
    site: str
    fold: int = -1
    truth: float | str | None = None
    value: float = float('nan')
    shares: tuple[float, ...] = ()
    dice: Mapping[str, float] = field(default_factory=dict)
    volumes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """A number and its interval over people; None where there is none."""

    value: float | None
    interval: Interval | None = None


@dataclass(frozen=True)
class SiteScores:
    """How good predictions are at a site, or over all.

    Parameters
    ----------
    site
        Label; empty for all of them.
    scans, people, known
        How many, and of how many scans the truth is known.
    measures
        ``mae``, ``bias`` and ``r2``; ``balanced_accuracy`` and ``auc``; or ``dice`` and that of each class.
    """

    site: str
    scans: int
    people: int
    known: int
    measures: dict[str, Measure]


def scores_by_site(
    rows: Sequence[Judged], kind: Kind, classes: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[SiteScores]:
    """Return scores over all rows and at each site; intervals are bootstraps over people (BCa).

    Parameters
    ----------
    rows
        Predictions.
    kind, classes
        Of the task; of a segmentation the classes that are judged.
    seed, resamples
        Of the bootstrap.
    """
    sites = sorted({row.site for row in rows})
    parts = {'': list(rows), **{site: [row for row in rows if row.site == site] for site in sites}}
    return [
        SiteScores(
            site, len(part), len({row.person for row in part}), sum(_known(row) for row in part),
            _measures([row for row in part if _known(row)], kind, classes, seed, resamples),
        )
        for site, part in parts.items()
    ]  # fmt: skip


def _known(row: Judged) -> bool:
    return row.truth is not None or bool(row.dice)


def _measures(
    rows: Sequence[Judged], kind: Kind, classes: Sequence[str], seed: int, resamples: int
) -> dict[str, Measure]:
    if kind == 'regression':
        return _regression(rows, seed, resamples)
    if kind == 'classification':
        return _classification(rows, classes, seed, resamples)
    dice = {name: np.array([row.dice.get(name, np.nan) for row in rows]) for name in classes}
    table = np.stack(list(dice.values())) if rows and classes else np.empty((0, 0))
    mean = _mean_over_classes(table)
    found = {'dice': _mean_of(rows, mean, seed, resamples)}
    return {
        **found,
        **{f'dice_{name}': _mean_of(rows, values, seed, resamples) for name, values in dice.items()},
    }


def _mean_over_classes(table: NDArray[np.float64]) -> NDArray[np.float64]:
    there = np.isfinite(table)
    total = np.where(there, table, 0).sum(axis=0)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)


def _regression(rows: Sequence[Judged], seed: int, resamples: int) -> dict[str, Measure]:
    truth = np.array([float(row.truth or 0) for row in rows])
    error = np.array([row.value for row in rows]) - truth
    spread = float(((truth - truth.mean()) ** 2).sum()) if len(rows) > 1 else 0.0
    return {
        'mae': _mean_of(rows, np.abs(error), seed, resamples),
        'bias': _mean_of(rows, error, seed, resamples),
        'r2': Measure(1 - float((error**2).sum()) / spread if spread > 0 else None),
    }


def _classification(
    rows: Sequence[Judged], classes: Sequence[str], seed: int, resamples: int
) -> dict[str, Measure]:
    if not rows:
        return {'balanced_accuracy': Measure(None), 'auc': Measure(None)}
    shares = np.array([row.shares for row in rows])
    truth = [str(row.truth) for row in rows]
    found = classification_scores(truth, shares[:, -1] if len(classes) == 2 else shares, classes=classes)
    return {
        'balanced_accuracy': Measure(
            _finite(found.balanced_accuracy), _accuracy_interval(rows, shares, classes, seed, resamples)
        ),
        'auc': Measure(_finite(found.auc)),
    }


def _accuracy_interval(
    rows: Sequence[Judged], shares: NDArray[np.float64], classes: Sequence[str], seed: int, resamples: int
) -> Interval | None:
    """Return the interval of the balanced accuracy, whole people drawn."""
    people = sorted({row.person for row in rows})
    hits, totals = (np.zeros((len(people), len(classes)), np.int64) for _ in range(2))
    for row, guess in zip(rows, shares.argmax(axis=1), strict=True):
        place = people.index(row.person), list(classes).index(str(row.truth))
        totals[place] += 1
        hits[place] += guess == place[1]
    return balanced_interval(hits, totals, seed, resamples, 0.95)[0]


def _mean_of(rows: Sequence[Judged], values: NDArray[np.float64], seed: int, resamples: int) -> Measure:
    """Return the mean over people of their means, and its interval."""
    by_person: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if np.isfinite(value):
            by_person.setdefault(row.person, []).append(float(value))
    if not by_person:
        return Measure(None)
    means = np.array([np.mean(some) for some in by_person.values()])
    interval, _ = bootstrap((means,), np.mean, seed, resamples, 0.95, batch=2000)
    return Measure(float(means.mean()), interval)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def embedding_probe(
    tables: Callable[[Integers], NDArray[np.float64]],
    sites: Sequence[str],
    people: Sequence[str],
    *,
    folds: int,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> Probe | None:
    """Return how well a linear classifier tells the site from embeddings; None where there are too few people or sites.

    The classifier of a fold is trained on embeddings of people of the training, by the networks that were trained on them, and judged on people
    whom neither has seen.

    Parameters
    ----------
    tables
        Takes the rows of a fold's training, and returns the embeddings of all rows by the networks of that fold, shape (rows, E).
    sites, people
        Of each row.
    folds, seed
        Those of :func:`bidsharm.evaluation.probe.person_folds`.
    permutations
        Of the chance line.
    """
    if len(set(sites)) < 2:
        return None
    found = refitted_site_probe(tables, sites, people, seed=seed, count=folds, permutations=permutations)
    return found if found.accuracy is not None else None
