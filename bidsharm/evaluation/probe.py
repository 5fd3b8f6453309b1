"""How well scans give away their site: to a linear classifier of features, and to a small network that sees the volumes.

Every scan is judged by a classifier that has not seen its subject. Low accuracy alone is no success: blurring
everything reaches it too, so read it next to
:func:`~bidsharm.evaluation.statistics.effect_size_of_biology`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bidsharm.errors import UsageError
from bidsharm.evaluation.intervals import (
    BATCH,
    RESAMPLES,
    ROUNDING,
    Floats,
    Interval,
    bootstrap,
    check_options,
    same_length,
)
from bidsharm.imaging.grids import bounding_box

Integers = NDArray[np.int64]
#: Training rows, their sites, rows to classify and a seed, to sites.
Classifier = Callable[[NDArray, Integers, NDArray, int], Integers]

#: The network: channels of its convolutions, side of what they are pooled to, and how it is trained.
CHANNELS, POOLED, RATE, DECAY, BATCH_SIZE = (8, 12, 16), 2, 3e-3, 1e-2, 16


class Fold(NamedTuple):
    """Rows to train on and rows to test on, both sorted."""

    train: Integers
    test: Integers


@dataclass(frozen=True)
class Probe:
    """What :func:`site_probe` and :func:`volume_probe` find.

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
        Mean and 95 % quantile of the balanced accuracy with permuted sites: the chance line and its upper edge.
    p
        Permutation p that the accuracy is above chance.
    reason
        Why something is None; empty when nothing is.
    recall
        Share of the rows of each site that is told rightly, by the label of the site.
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
    recall: Mapping[str, float] = field(default_factory=dict)


def folds(
    subjects: Sequence[str],
    scanners: Sequence[str],
    *,
    by: Literal['subject', 'scanner'],
    count: int = 5,
    classes: Sequence[str] | None = None,
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
    classes
        Class of each row's subject, length rows: each class is shared out evenly, so with ``by='subject'`` one that
        two or more subjects have is in every training. By default classes do not count.
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
    for labels in (scanners, classes):
        if labels is not None:
            same_length(len(subjects), labels)
    if by not in ('subject', 'scanner'):
        raise UsageError(f'Folds by {by!r} are not known.', fix="Use 'subject' or 'scanner'.")
    persons, devices = np.asarray(subjects, dtype=str), np.asarray(scanners, dtype=str)
    if by == 'subject':
        part = _parts(persons, count, seed, classes)
        found = [(part != index, part == index) for index in range(count)]
        return [Fold(np.flatnonzero(train), np.flatnonzero(test)) for train, test in found]
    names = np.unique(devices)
    if names.size < 2:
        raise UsageError('Folds by scanner need two or more scanners.')
    travelled = len(set(zip(subjects, scanners, strict=True))) > len(set(subjects))
    part = _parts(persons, count, seed, classes) if travelled else np.zeros(persons.size, dtype=np.int64)
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
    each permutation.

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
        Of the bootstrap interval; subjects are resampled.

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
    _check(table.shape[0], sites, subjects, count, min(resamples, permutations), confidence)
    base, rows, there = _rows(table, sites, subjects)
    if base.reason:
        return base
    table, rng, chance = table[there], np.random.default_rng(seed), np.empty(permutations)
    # Fits this small take ten times as long when threads wait for one another.
    with threadpool_limits(1):
        guess = _predicted(table, rows, count, seed, _linear)
        for index in range(permutations):
            mixed = rows._replace(site=_permuted(rows.site, rows.person, rng))
            chance[index] = _accuracy(mixed, _predicted(table, mixed, count, seed, _linear))
    return _scored(base, rows, guess, chance, seed, resamples, confidence)


def refitted_site_probe(
    refit: Callable[[Integers], NDArray],
    sites: Sequence[str],
    subjects: Sequence[str],
    *,
    seed: int,
    count: int = 5,
    permutations: int = 200,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Probe:
    """Return what :func:`site_probe` does for features that were harmonized by a fit on the training rows of each fold.

    A harmonization that has seen the rows to be judged has taken their own chance differences between sites away, and so looks better than
    it is. The chance line permutes the sites of the same folds and features; nothing is fitted anew for it.

    Parameters
    ----------
    refit
        Takes the numbers of the rows to fit on, and returns the harmonized features of all rows, shape (rows, features).
    sites, subjects, seed, count, permutations, resamples, confidence
        As for :func:`site_probe`.

    Returns
    -------
    Probe
        Without accuracy where a site has fewer than 2 subjects.

    Raises
    ------
    UsageError
        If there is only one site, or an option is out of range.
    """
    from threadpoolctl import threadpool_limits

    _check(len(sites), sites, subjects, count, min(resamples, permutations), confidence)
    base, rows, _ = _rows(np.zeros((len(sites), 1)), sites, subjects)
    if base.reason:
        return base
    with threadpool_limits(1):
        parts = [(train, test, refit(train)) for train, test in _shared_out(rows, count, seed)]
        guess = _predicted_in(parts, rows, seed, _linear)
        rng, chance = np.random.default_rng(seed), np.empty(permutations)
        for index in range(permutations):
            mixed = rows._replace(site=_permuted(rows.site, rows.person, rng))
            chance[index] = _accuracy(mixed, _predicted_in(parts, mixed, seed, _linear))
    return _scored(base, rows, guess, chance, seed, resamples, confidence)


def person_folds(sites: Sequence[str], people: Sequence[str], *, count: int, seed: int) -> list[Fold]:
    """Return the folds of :func:`site_probe` and :func:`refitted_site_probe`: whole people, and like shares of the sites in each.

    Parameters
    ----------
    sites, people
        Of each row, length rows.
    count
        Number of folds; fewer where a site has fewer people.
    seed
        Of the sharing out.

    Raises
    ------
    UsageError
        If a site has fewer than two people, or rows differ in number.
    """
    same_length(len(sites), people)
    names, numbers = sorted(set(sites)), np.unique(people, return_inverse=True)[1]
    rows = _Rows(np.array([names.index(site) for site in sites], np.int64), numbers.astype(np.int64))
    if _fewest(rows, len(names)) < 2:
        raise UsageError(
            'A site has fewer than two people, so that nobody can be kept back there.',
            fix='Leave that site out.',
        )
    return [
        Fold(train.astype(np.int64), test.astype(np.int64)) for train, test in _shared_out(rows, count, seed)
    ]


def volume_probe(
    volumes: NDArray,
    sites: Sequence[str],
    subjects: Sequence[str],
    *,
    seed: int,
    count: int = 5,
    epochs: int = 40,
    permutations: int = 1000,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Probe:
    """Return how well a small 3-D convolutional network tells the site of a scan from the scan itself.

    Three convolutions of stride 2 with 8, 12 and 16 channels, pooled to 2 x 2 x 2, and one linear layer: 8,000
    weights and 129 a site, trained with AdamW on cross-entropy with classes weighted to be equal. The mean volume of the
    training rows is subtracted and one number, their spread, divides; no scan is scaled by itself, since gain and
    offset are what sites differ by. The cross-validation is that of :func:`site_probe`. Training anew for every
    permutation would take hours: here the permuted sites are compared with the predictions as they are.

    Parameters
    ----------
    volumes
        Shape (rows, X, Y, Z), on one grid and in one unit, about 24 to 32 voxels a side: see :func:`low_resolution`.
        Rows with a value that is not finite are left out and counted.
    sites, subjects
        Site and subject of each row, length rows.
    seed
        Seed of the folds, weights, batches, permutations and bootstrap; equal seeds give equal results on one CPU.
    count
        Number of folds; fewer where a site has fewer subjects.
    epochs
        Times that the training rows are seen.
    permutations
        Number of permutations; the least p is ``1 / (permutations + 1)``.
    resamples, confidence
        Of the bootstrap interval; subjects are resampled.

    Returns
    -------
    Probe
        Without accuracy where a site has fewer than 2 subjects.

    Raises
    ------
    UsageError
        If shapes differ, there is only one site, or an option is out of range.
    """
    data = np.asarray(volumes, dtype=np.float32)
    if data.ndim != 4 or not data.size:
        raise UsageError(f'The volumes have shape {data.shape}.', fix='Give rows of 3-D volumes.')
    _check(data.shape[0], sites, subjects, count, min(resamples, permutations, epochs), confidence)
    base, rows, there = _rows(data, sites, subjects)
    if base.reason:
        return base
    guess = _predicted(data[there], rows, count, seed, partial(_convolutional, epochs=epochs))
    rng = np.random.default_rng(seed)
    permuted = (_permuted(rows.site, rows.person, rng) for _ in range(permutations))
    chance = np.array([_accuracy(rows._replace(site=site), guess) for site in permuted])
    return _scored(base, rows, guess, chance, seed, resamples, confidence)


def low_resolution(
    volumes: Iterable[NDArray], mask: NDArray, spacing: tuple[float, float, float], *, block_mm: float = 6.0
) -> NDArray[np.float32]:
    """Average volumes on one grid to blocks, for :func:`volume_probe`.

    Parameters
    ----------
    volumes
        Volumes, shape (X, Y, Z) each, all in one unit; taken one by one, so a generator will do.
    mask
        Intersection of the brain masks, same shape: blocks fill the box around it, and only its voxels count.
    spacing
        Voxel size in mm.
    block_mm
        Side of a block; rounded to whole voxels, one or more, along each axis.

    Returns
    -------
    ndarray
        Shape (rows, x, y, z): mean over the voxels of the mask in each block, in the unit of the volumes; 0 in
        blocks without any. No volume is rescaled.

    Raises
    ------
    UsageError
        If the mask is empty, shapes differ or a size is not above 0.
    """
    inside = np.asarray(mask, dtype=bool)
    if inside.ndim != 3 or not inside.any():
        raise UsageError('The mask is empty or not a volume.', fix='Give the brain mask of the common grid.')
    if not (block_mm > 0 and len(spacing) == 3 and min(spacing) > 0):
        raise UsageError(f'Blocks of {block_mm} mm and voxels of {tuple(spacing)} mm are not above 0.')
    box = bounding_box(inside)
    step = [max(round(block_mm / size), 1) for size in spacing]
    counts = _block_sums(inside[box], step)
    found = []
    for volume in volumes:
        if volume.shape != inside.shape:
            raise UsageError(
                f'A volume of shape {volume.shape} does not fit the mask of shape {inside.shape}.',
                fix='Bring the volumes and the mask to one grid.',
            )
        found.append(_block_sums(np.where(inside[box], volume[box], 0), step) / np.maximum(counts, 1))
    return np.stack(found).astype(np.float32) if found else np.empty((0, *counts.shape), dtype=np.float32)


class _Rows(NamedTuple):
    """Site and person of each row, as numbers from 0."""

    site: Integers
    person: Integers


def _check(
    length: int, sites: Sequence[str], subjects: Sequence[str], count: int, repeats: int, confidence: float
) -> None:
    same_length(length, sites)
    same_length(length, subjects)
    check_options(repeats, confidence)
    if count < 2:
        raise UsageError(f'The number of folds {count} is below 2.')


def _rows(data: NDArray, sites: Sequence[str], subjects: Sequence[str]) -> tuple[Probe, _Rows, Integers]:
    """Return a result without numbers, the rows that can be used, and where they are."""
    there = np.isfinite(data).reshape(len(data), -1).all(axis=1)
    used, names = np.flatnonzero(there), sorted(set(sites))
    if len(names) < 2:
        raise UsageError('There is only one site, so none can be told from another.')
    site = np.array([names.index(sites[row]) for row in used], dtype=np.int64)
    persons, person = np.unique([subjects[row] for row in used], return_inverse=True)
    rows = _Rows(site, person.astype(np.int64))
    # The shares are filled in when rows have been classified.
    base = Probe(
        persons.size, int(there.size - used.size), len(names), recall=dict.fromkeys(names, float('nan'))
    )
    if _fewest(rows, len(names)) < 2:
        base = replace(base, recall={}, reason='a site has fewer than 2 subjects with all numbers')
    return base, rows, used


def _fewest(rows: _Rows, sites: int) -> int:
    """Return the number of subjects of the smallest site."""
    return min(np.unique(rows.person[rows.site == index]).size for index in range(sites))


def _scored(
    base: Probe, rows: _Rows, guess: Integers, chance: Floats, seed: int, resamples: int, confidence: float
) -> Probe:
    hits, totals = _tables(rows, guess)
    interval, reason = balanced_interval(hits, totals, seed, resamples, confidence)
    accuracy = _accuracy(rows, guess)
    return replace(
        base,
        accuracy=accuracy,
        interval=interval,
        chance=float(chance.mean()),
        chance_high=float(np.quantile(chance, 0.95)),
        # A rounding error must not make an equal accuracy a smaller one.
        p=float((1 + np.count_nonzero(chance >= accuracy - ROUNDING)) / (1 + chance.size)),
        reason=reason,
        recall={
            name: float(hit / total)
            for name, hit, total in zip(base.recall, hits.sum(axis=0), totals.sum(axis=0), strict=True)
            if total
        },
    )


def balanced_interval(
    hits: Integers, totals: Integers, seed: int, resamples: int, confidence: float
) -> tuple[Interval | None, str]:
    """Return the bootstrap interval of a balanced accuracy over people, or why there is none.

    Parameters
    ----------
    hits, totals
        Right predictions and rows by person and class, each of shape (persons, classes).
    seed, resamples, confidence
        Of the bootstrap.
    """
    return bootstrap(
        (np.arange(len(hits)),),
        lambda order, axis=-1: _balanced(hits[order].sum(axis=-2), totals[order].sum(axis=-2)),
        seed,
        resamples,
        confidence,
        batch=BATCH // hits.size,
    )


def _parts(
    persons: NDArray[np.str_], count: int, seed: int, classes: Sequence[str] | None = None
) -> Integers:
    """Share out the persons over ``count`` parts of nearly equal numbers; one index a row."""
    names, first, index = np.unique(persons, return_index=True, return_inverse=True)
    if count < 2 or names.size < count:
        raise UsageError(
            f'{names.size} subjects cannot be shared out over {count} folds.',
            fix='Use from 2 folds up to the number of subjects.',
        )
    drawn = np.random.default_rng(seed).permutation(names.size)
    place = drawn % count
    if classes is not None:
        # Persons of a class follow one another, so neighbours, and two of any class, are in different parts.
        in_turn = drawn[np.argsort(np.asarray(classes, dtype=str)[first][drawn], kind='stable')]
        place[in_turn] = np.arange(names.size) % count
    return place[index].astype(np.int64)


def _predicted(table: NDArray, rows: _Rows, count: int, seed: int, classify: Classifier) -> Integers:
    """Return the site that each row seems to be from, by a classifier trained on other persons."""
    parts = ((train, test, table) for train, test in _shared_out(rows, count, seed))
    return _predicted_in(parts, rows, seed, classify)


def _shared_out(rows: _Rows, count: int, seed: int) -> list[tuple[Integers, Integers]]:
    """Return rows to train on and to test on, with whole persons and like shares of the sites."""
    from sklearn.model_selection import StratifiedGroupKFold

    splits = min(count, _fewest(rows, int(rows.site.max()) + 1))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # rare sites are part of the probe
        cut = StratifiedGroupKFold(splits, shuffle=True, random_state=seed)
        return list(cut.split(np.zeros(rows.site.size), *rows))


def _predicted_in(
    parts: Iterable[tuple[Integers, Integers, NDArray]], rows: _Rows, seed: int, classify: Classifier
) -> Integers:
    """Return the site that each row seems to be from; each part has rows to train on, rows to test on, and its own table."""
    guess = np.empty_like(rows.site)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # slow convergence is part of the probe
        for train, test, table in parts:
            known = np.unique(rows.site[train])
            if known.size < 2:
                guess[test] = known[0]
            else:
                guess[test] = classify(table[train], rows.site[train], table[test], seed)
    return guess


def _linear(train: NDArray, site: Integers, test: NDArray, seed: int) -> Integers:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight='balanced'))
    return model.fit(train, site).predict(test)


def _convolutional(train: NDArray, site: Integers, test: NDArray, seed: int, *, epochs: int) -> Integers:
    import torch
    from torch import nn

    mean, classes = train.mean(axis=0), int(site.max()) + 1
    spread = float((train - mean).std()) or 1.0
    x, unseen = (torch.from_numpy((part - mean) / spread)[:, None] for part in (train, test))
    y = torch.from_numpy(site)
    sizes = np.bincount(site, minlength=classes)
    weight = torch.from_numpy((site.size / np.maximum(sizes, 1)).astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for low, high in pairwise((1, *CHANNELS)):
            layers += [nn.Conv3d(low, high, 3, stride=2, padding=1), nn.ReLU()]
        pool = [nn.AdaptiveAvgPool3d(POOLED), nn.Flatten()]
        net = nn.Sequential(*layers, *pool, nn.Linear(CHANNELS[-1] * POOLED**3, classes))
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
        for _ in range(epochs):
            for batch in torch.randperm(y.numel()).split(BATCH_SIZE):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[batch]), y[batch], weight).backward()
                optimizer.step()
    with torch.no_grad():
        return net(unseen).argmax(dim=1).numpy()


def _block_sums(data: NDArray, step: Sequence[int]) -> Floats:
    """Return the sum over blocks, the last ones of which may be cut off."""
    total = np.asarray(data, dtype=np.float64)
    for axis, size in enumerate(step):
        total = np.add.reduceat(total, np.arange(0, total.shape[axis], size), axis=axis)
    return total


def _tables(rows: _Rows, guess: Integers) -> tuple[Integers, Integers]:
    """Return right predictions and rows by person and site, each of shape (persons, sites)."""
    shape = (int(rows.person.max()) + 1, int(rows.site.max()) + 1)
    hits, totals = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    np.add.at(totals, (rows.person, rows.site), 1)
    np.add.at(hits, (rows.person, rows.site), guess == rows.site)
    return hits, totals


def _accuracy(rows: _Rows, guess: Integers) -> float:
    hits, totals = _tables(rows, guess)
    return float(_balanced(hits.sum(axis=0), totals.sum(axis=0)))


def _balanced(hits: Integers, totals: Integers) -> Floats:
    """Return the mean recall over the sites that have rows, along the last axis."""
    recall = hits / np.maximum(totals, 1)
    return np.sum(recall, axis=-1) / np.maximum(np.count_nonzero(totals, axis=-1), 1)


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
