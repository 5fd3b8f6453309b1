"""Measure a method over all its scans: what only a group can show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError
from bidsharm.evaluation import features, probe, statistics, travelling
from bidsharm.evaluation.intervals import Interval, joined
from bidsharm.evaluation.overlap import jaccard
from bidsharm.evaluation.scan_measures import TISSUE_LABELS, Trace
from bidsharm.evaluation.scores import classification_scores
from bidsharm.evaluation.study import Options, Study
from bidsharm.evaluation.transfer import Head, Transfer, cross_site_transfer

#: Folds in which classes are told, or as many as there are people.
FOLDS = 5


@dataclass(frozen=True)
class Value:
    """One measure of one method.

    Parameters
    ----------
    estimate
        The number, NaN where there is none.
    interval
        Its 95 % interval, if there is one.
    n
        People that it rests on.
    chance, chance_high
        What guessing gives, and the 95 % quantile of guessing, of measures that have such a line.
    p
        Of a permutation test against guessing.
    reason
        Why something is missing, or was left out.
    """

    estimate: float
    interval: Interval | None = None
    n: int = 0
    chance: float | None = None
    chance_high: float | None = None
    p: float | None = None
    reason: str = ''


def add_transfer(traces: Sequence[Trace]) -> dict[str, float]:
    """Carry classifiers between scanners, write what they find into the rows, and return the true GM fraction by scan.

    Parameters
    ----------
    traces
        All scans of one method; ``transfer_dice`` and ``transfer_gm`` are added to their rows.
    """
    sites: dict[str, list[Head]] = {}
    for trace in traces:
        if trace.scanner and trace.labels.any():
            head = Head(trace.person, trace.values, trace.labels, trace.scan)
            sites.setdefault(trace.scanner, []).append(head)
    if len(sites) < 2:
        return {}
    by_scan: dict[str, list[Transfer]] = {}
    for carried in cross_site_transfer(sites).values():
        for one in carried:
            by_scan.setdefault(one.scan, []).append(one)
    truth: dict[str, float] = {}
    for trace in traces:
        ours = by_scan.get(trace.scan, [])
        if ours:
            trace.row['transfer_dice'] = float(np.mean([one.mean_dice for one in ours]))
            trace.row['transfer_gm'] = float(np.mean([one.gm_fraction for one in ours]))
            truth[trace.scan] = ours[0].true_gm_fraction
    return truth


def correlations(
    traces: Sequence[Trace],
    truth: Mapping[str, float],
    volumes: Mapping[str, Mapping[str, float]],
    options: Options,
) -> dict[str, Value]:
    """Return how well the method tells people apart: grey-matter fraction and volumes against the truth."""
    found: dict[str, Value] = {}
    if truth:
        found['transfer_gm_r'] = _correlated(
            [(t.row.get('transfer_gm', math.nan), truth.get(t.scan, math.nan), t.person) for t in traces],
            options,
        )
    for name in TISSUE_LABELS:
        rows = [
            (t.row[f'volume_{name}'], volumes[t.scan][name], t.person)
            for t in traces
            if f'volume_{name}' in t.row and t.scan in volumes
        ]
        if rows:
            found[f'volume_r_{name}'] = _correlated(rows, options)
    return found


def _correlated(rows: Sequence[tuple[float, float, str]], options: Options) -> Value:
    estimate, truth, people = zip(*rows, strict=True)
    effect = travelling.between_subjects(
        estimate, truth, people, seed=options.seed, resamples=options.resamples
    )
    return _of_effect(effect)


def _of_effect(effect: statistics.Effect) -> Value:
    estimate = math.nan if effect.estimate is None else effect.estimate
    return Value(estimate, effect.interval, effect.n, p=effect.p, reason=effect.reason)


def across_scanners(traces: Sequence[Trace], study: Study) -> dict[str, Value]:
    """Return agreement of volumes of travelling people, and whether their scans find each other."""
    found: dict[str, Value] = {}
    for name in TISSUE_LABELS:
        table = _table(traces, study, f'volume_{name}')
        if table is None:
            continue
        each = travelling.cov(table)
        known = each[np.isfinite(each)]
        if known.size:
            found[f'cov_{name}'] = Value(float(known.mean()), n=int(known.size))
        found |= _icc(table, name)
    known_scanners = [trace for trace in traces if trace.scanner]
    people, scanners = ([getattr(t, name) for t in known_scanners] for name in ('person', 'scanner'))
    if len(set(zip(people, scanners, strict=True))) > len(set(people)):
        distances = _distances(known_scanners)
        ratio = travelling.within_between_ratio(distances, people, scanners)
        again = travelling.reidentification(distances, people, scanners)
        found['within_between'] = Value(
            math.nan if ratio.ratio is None else ratio.ratio, n=len(ratio.by_subject), reason=ratio.reason
        )
        found['reidentification'] = Value(
            math.nan if again.rate is None else again.rate, n=len(again.by_subject), chance=again.chance,
            reason=again.reason,
        )  # fmt: skip
    return found


def _icc(table: NDArray[np.float64], name: str) -> dict[str, Value]:
    """Return both intraclass correlations of people who were in the same scanners, and say who and what was left out."""
    people, scanners = travelling.complete_ratings(table)
    icc = travelling.icc(table[np.ix_(people, scanners)])
    travelled = int((np.isfinite(table).sum(axis=1) > 1).sum())
    left_out = people.size < travelled or scanners.size < table.shape[1]
    rests = (
        f'rests on {people.size} of {travelled} people who travelled and {scanners.size} of {table.shape[1]} scanners'
        if left_out
        else ''
    )
    found = {}
    for kind in ('agreement', 'consistency'):
        value = getattr(icc, kind)
        found[f'icc_{kind}_{name}'] = Value(
            math.nan if value is None else value,
            getattr(icc, f'{kind}_interval'),
            icc.n,
            reason=joined([icc.reason, rests]),
        )
    return found


def _table(traces: Sequence[Trace], study: Study, name: str) -> NDArray[np.float64] | None:
    """Return a measure by person (rows) and scanner (columns), the mean of repeats; None where nobody travelled."""
    people = sorted({trace.person for trace in traces})
    repeats: dict[tuple[int, int], list[float]] = {}
    for trace in traces:
        if trace.scanner and name in trace.row:
            cell = people.index(trace.person), study.scanners.index(trace.scanner)
            repeats.setdefault(cell, []).append(trace.row[name])
    table = np.full((len(people), len(study.scanners)), np.nan)
    for cell, values in repeats.items():
        table[cell] = np.mean(values)
    return table if (np.isfinite(table).sum(axis=1) > 1).any() else None


def _distances(traces: Sequence[Trace]) -> NDArray[np.float64]:
    """Return root mean square differences of coarse volumes."""
    rows = np.stack([trace.coarse.ravel().astype(float) for trace in traces])
    square = (rows**2).sum(axis=1)
    # Rounding may leave a little below 0, and a little on the diagonal.
    distances = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * rows @ rows.T, 0) / rows.shape[1])
    distances = (distances + distances.T) / 2
    np.fill_diagonal(distances, 0)
    return np.asarray(distances)


def label_agreement(segmentations: Sequence[tuple[str, NDArray[np.uint8]]]) -> dict[str, list[float]]:
    """Return the Dice of each tissue for every pair of segmentations of one person from two scanners.

    Parameters
    ----------
    segmentations
        Scanner, empty where nobody knows, and segmentation on the common grid. Pairs of one scanner, or of one that
        is not known, say nothing of scanners and are passed over.
    """
    found: dict[str, list[float]] = {name: [] for name in TISSUE_LABELS}
    known = [one for one in segmentations if one[0]]
    for (here, first), (there, second) in combinations(known, 2):
        if here == there:
            continue
        for name, label in TISSUE_LABELS.items():
            shared = jaccard(first == label, second == label)
            found[name].append(2 * shared / (1 + shared))
    return found


def distribution(
    traces: Sequence[Trace], target: Sequence[NDArray[np.float64]], study: Study
) -> dict[str, Value]:
    """Return the distances of the set of slices to those of the target."""
    ours = [trace for trace in traces if not study.target or trace.scanner != study.target]
    if not ours or not target:
        return {}
    found = features.filter_distances(
        np.concatenate([trace.filters for trace in ours]), np.concatenate(list(target))
    )
    people = len({trace.person for trace in ours})
    return {
        'ffd': Value(found.ffd, n=people, reason=found.reason),
        'kfd': Value(found.kfd, n=people, reason=found.reason),
    }


def sites(traces: Sequence[Trace], options: Options) -> dict[str, Value]:
    """Return how well classifiers guess the scanner."""
    known = [trace for trace in traces if trace.scanner]
    scanners, people = ([getattr(t, name) for t in known] for name in ('scanner', 'person'))
    if len(set(scanners)) < 2:
        return {}
    table = np.stack(
        [np.concatenate([t.quantiles, t.filters.mean(axis=0), t.filters.std(axis=0)]) for t in known]
    )
    found = {
        'site_linear': probe.site_probe(
            table, scanners, people, seed=options.seed, permutations=options.permutations,
            resamples=options.resamples,
        )
    }  # fmt: skip
    if options.network:
        found['site_cnn'] = probe.volume_probe(
            np.stack([t.coarse for t in known]), scanners, people, seed=options.seed,
            permutations=5 * options.permutations, resamples=options.resamples,
        )  # fmt: skip
    return {
        name: Value(
            math.nan if one.accuracy is None else one.accuracy, one.interval, len(set(people)), one.chance,
            one.chance_high, one.p, one.reason,
        )
        for name, one in found.items()
    }  # fmt: skip


def biology(
    traces: Sequence[Trace], fractions: Sequence[float], study: Study, options: Options
) -> dict[str, Value]:
    """Return whether the fraction of grey matter (:func:`gm_fractions`) still shows age and groups."""
    found: dict[str, Value] = {}
    if study.ages:
        rows = [
            (fraction, study.ages[trace.person], trace.person)
            for trace, fraction in zip(traces, fractions, strict=True)
            if trace.person in study.ages
        ]
        if rows:
            found['age_r'] = _correlated(rows, options)
    groups = study.groups
    if groups:
        by_person = statistics.average_by_subject(fractions, [trace.person for trace in traces])
        known = [person for person in by_person if person in groups]
        if len({groups[person] for person in known}) == 2:
            effect = statistics.cohens_d(
                [by_person[p] for p in known],
                [groups[p] for p in known],
                seed=options.seed,
                resamples=options.resamples,
            )
            found['group_d'] = _of_effect(effect)
    return found


def gm_fractions(traces: Mapping[str, Sequence[Trace]]) -> dict[str, list[float]]:
    """Return the fraction of grey matter in every scan of every method; NaN where nothing tells it.

    Both ways to find it have offsets of their own, so one serves all methods: carried classifiers where they served every scan
    of every method, else segmentations.
    """
    carried = all('transfer_gm' in trace.row for found in traces.values() for trace in found)
    return {
        method: [trace.row['transfer_gm'] if carried else _segmented_fraction(trace) for trace in found]
        for method, found in traces.items()
    }


def _segmented_fraction(trace: Trace) -> float:
    total = sum(trace.row.get(f'volume_{name}', math.nan) for name in TISSUE_LABELS)
    return trace.row.get('volume_gm', math.nan) / total if total > 0 else math.nan


def task(
    traces: Sequence[Trace], fractions: Sequence[float], study: Study, options: Options
) -> dict[str, Value]:
    """Return how well people's classes are told from their scans, in cross-validation by person and by scanner."""
    asked = np.array([trace.person in study.classes for trace in traces])
    known = [trace for trace, there in zip(traces, asked, strict=True) if there]
    people, scanners = ([getattr(t, name) for t in known] for name in ('person', 'scanner'))
    classes = [study.classes[person] for person in people]
    if len(set(classes)) < 2:
        return {}
    sizes = Counter(study.classes[person] for person in set(people))
    if min(sizes.values()) < 2:
        # Nobody of such a class could be told by a classifier that has not seen the person.
        return {'task_accuracy': Value(math.nan, reason='a class has fewer than two people')}
    grey = _filled(np.array(fractions)[asked])
    table = np.stack(
        [
            np.concatenate([t.quantiles, t.filters.mean(axis=0), [share]])
            for t, share in zip(known, grey, strict=True)
        ]
    )
    ways: tuple[tuple[str, Literal['subject', 'scanner']], ...] = (('', 'subject'), ('_scanner', 'scanner'))
    found: dict[str, Value] = {}
    for suffix, way in ways:
        # A scan of an unknown scanner may be of any of those that are left out.
        used = [i for i, scanner in enumerate(scanners) if scanner or way == 'subject']
        who, where, what = ([part[i] for i in used] for part in (people, scanners, classes))
        if way == 'scanner' and len(set(where)) < 2:
            continue
        try:
            parts = probe.folds(
                who, where, by=way, count=min(FOLDS, len(set(who))), classes=what, seed=options.seed
            )
        except UsageError as error:
            found[f'task_accuracy{suffix}'] = Value(math.nan, reason=error.what)
            continue
        found |= _scores(table[used], what, who, parts, suffix)
    return found


def _filled(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numbers with the mean of the known ones where they are not known; 0 where none is."""
    known = np.isfinite(numbers)
    return np.where(known, numbers, numbers[known].mean() if known.any() else 0.0)


def _scores(
    table: NDArray[np.float64],
    classes: Sequence[str],
    people: Sequence[str],
    parts: Sequence[probe.Fold],
    suffix: str,
) -> dict[str, Value]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = sorted(set(classes))
    labels = np.array(classes)
    scores = np.full((len(labels), len(names)), np.nan)
    for fold in parts:
        train, test = fold
        if len(set(labels[train])) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight='balanced'))
        model.fit(table[train], labels[train])
        columns = np.array([names.index(name) for name in model.classes_])
        scores[test] = 0  # of a class that was not there to learn
        scores[test[:, None], columns] = model.predict_proba(table[test])
        scores[test[~np.isin(labels[test], labels[train])]] = np.nan
    owners = sorted(set(people))
    of = {person: [i for i, p in enumerate(people) if p == person] for person in owners}
    averaged = np.stack([_mean_of_known(scores[of[p]]) for p in owners])
    truth = [str(labels[of[p][0]]) for p in owners]
    found = classification_scores(truth, averaged[:, 1] if len(names) == 2 else averaged, classes=names)
    left_out = (
        f'{found.left_out} people are left out: nobody else was left to learn their class from'
        if found.left_out
        else ''
    )
    return {
        f'task_{name}{suffix}': Value(
            getattr(found, name), n=found.n, reason=joined([found.reason, left_out])
        )
        for name in ('accuracy', 'balanced_accuracy', 'precision', 'recall', 'f1', 'auc')
    }


def _mean_of_known(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the scans that have scores; NaN where none has."""
    known = rows[np.isfinite(rows).all(axis=1)]
    return np.asarray(known.mean(axis=0)) if len(known) else np.full(rows.shape[1], np.nan)


def add_lpips(traces: Sequence[Trace], weights: Path | None) -> None:
    """Write the learned perceptual distance of slices to those of the reference into the rows, if there are weights."""
    from bidsharm.evaluation.perceptual import load_weights, lpips

    if weights is None:
        return
    loaded = load_weights(weights)
    for trace in traces:
        if len(trace.reference_slices):
            trace.row['lpips'] = float(lpips(trace.slices, trace.reference_slices, loaded).mean())


def perceptual(traces: Sequence[Trace], weights: Path | None) -> dict[str, Value]:
    """Return FID, KID and Inception score of slices, if there are weights."""
    from bidsharm.evaluation.perceptual import inception_distances, load_weights

    ours = [trace for trace in traces if len(trace.reference_slices)]
    if weights is None or not ours:
        return {}
    found = inception_distances(
        np.concatenate([trace.slices for trace in ours]),
        np.concatenate([trace.reference_slices for trace in ours]),
        load_weights(weights),
    )
    people = len({trace.person for trace in ours})
    return {
        name: Value(getattr(found, name), n=people, reason=found.reason)
        for name in ('fid', 'kid', 'inception_score')
    }
