"""Scores of a classification that is made from harmonized scans: patients and controls, or women and men."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bidsharm.errors import UsageError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NAN = float('nan')


@dataclass(frozen=True)
class ClassScores:
    """Scores of a classification, all in [0, 1].

    Parameters
    ----------
    n, left_out
        Rows used, and left out for a score that is not finite.
    classes
        The classes, in the order of the columns of the scores.
    accuracy
        Share of the rows that are classified rightly.
    balanced_accuracy
        Mean recall of the classes that occur.
    precision, recall, f1
        Of the last of two classes; of three or more the means over the classes that occur, none weighted more.
    auc
        Area under the ROC curve; of three or more classes the mean of each against the rest.
    reason
        Why something is NaN; empty when nothing is.
    """

    n: int
    left_out: int
    classes: tuple[Hashable, ...]
    accuracy: float = NAN
    balanced_accuracy: float = NAN
    precision: float = NAN
    recall: float = NAN
    f1: float = NAN
    auc: float = NAN
    reason: str = ''


def classification_scores(
    labels: Sequence[Hashable],
    scores: ArrayLike,
    *,
    classes: Sequence[Hashable] | None = None,
    threshold: float = 0.5,
) -> ClassScores:
    r"""Return how well scores tell the classes of subjects.

    With the confusion table, :math:`precision = TP / (TP + FP)`, :math:`recall = TP / (TP + FN)` and
    :math:`F_1 = 2 TP / (2 TP + FP + FN)`. The area under the ROC curve is the share of pairs, one row of the class and
    one of the others, that the score puts in the right order, a tie counting one half (Hanley and McNeil 1982,
    doi:10.1148/radiology.143.1.7063747).

    Parameters
    ----------
    labels
        True class of each row, length n: one row a subject, predicted by a model that has not seen it.
    scores
        Of two classes: the score of the last one, shape (n,). Otherwise a score for each class, shape (n, classes),
        of which the largest wins (the first of equal ones).
    classes
        The classes, in the order of the columns; by default those among the labels, sorted, so ``True`` and 1 come
        last and are what two-class scores are of.
    threshold
        With scores of shape (n,), a row is of the last class from this score on.

    Returns
    -------
    ClassScores
        What is not defined is NaN, with a reason: of two classes, the precision of one that is never predicted, the
        recall of one that does not occur, F1 where it is neither, and the AUC of a single class. Among three or
        more a class that occurs and is never predicted counts with a precision and F1 of 0.

    Raises
    ------
    UsageError
        If the shapes do not match, or a label is not among the classes.
    """
    names = _classes(labels, classes)
    table = _table(scores, len(labels), len(names))
    there = np.isfinite(table).all(axis=1)
    truth = np.array([names.index(label) for label in labels], dtype=np.int64)[there]
    table = table[there]
    base = ClassScores(truth.size, int(np.count_nonzero(~there)), names)
    if not truth.size:
        return replace(base, reason='no row has a label and a score')
    if table.shape[1] == 1:
        guess = (table[:, 0] >= threshold).astype(np.int64)
        table = np.column_stack([-table, table])
    else:
        guess = table.argmax(axis=1)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (truth, guess), 1)
    base = replace(
        base,
        accuracy=float(np.mean(guess == truth)),
        balanced_accuracy=float(np.mean(_recall(confusion)[confusion.sum(axis=1) > 0])),
    )
    return (
        _of_two(base, confusion, truth, table) if len(names) == 2 else _of_many(base, confusion, truth, table)
    )


def auc(member: NDArray[np.bool_], score: NDArray) -> float:
    """Return the area under the ROC curve of one class against the rest.

    Parameters
    ----------
    member
        Whether a row is of the class, shape (n,).
    score
        Score of the class, shape (n,), finite.

    Returns
    -------
    float
        In [0, 1]; NaN where all rows are of the class or none is.
    """
    inside = int(np.count_nonzero(member))
    outside = member.size - inside
    if not (inside and outside):
        return NAN
    ranks = stats.rankdata(score)
    return float((ranks[member].sum() - inside * (inside + 1) / 2) / (inside * outside))


def _of_two(base: ClassScores, confusion: Integers, truth: Integers, table: Floats) -> ClassScores:
    hit, predicted, real = int(confusion[1, 1]), int(confusion[:, 1].sum()), int(confusion[1].sum())
    last = base.classes[1]
    notes = {
        f'no row is predicted as {last!r}, so there is no precision': not predicted,
        f'no row is {last!r}, so there is no recall': not real,
        'all rows are of one class, so there is no AUC': real in (0, base.n),
    }
    return replace(
        base,
        precision=hit / predicted if predicted else NAN,
        recall=hit / real if real else NAN,
        f1=2 * hit / (predicted + real) if predicted + real else NAN,
        auc=auc(truth == 1, table[:, 1]),
        reason='; '.join(note for note, applies in notes.items() if applies),
    )


def _of_many(base: ClassScores, confusion: Integers, truth: Integers, table: Floats) -> ClassScores:
    occurs = confusion.sum(axis=1) > 0
    hits, predicted = np.diag(confusion), confusion.sum(axis=0)
    precision = hits / np.maximum(predicted, 1)
    f1 = 2 * hits / np.maximum(predicted + confusion.sum(axis=1), 1)
    areas = [auc(truth == index, table[:, index]) for index in np.flatnonzero(occurs)]
    return replace(
        base,
        precision=float(np.mean(precision[occurs])),
        recall=base.balanced_accuracy,
        f1=float(np.mean(f1[occurs])),
        auc=float(np.mean(areas)),
        reason='all rows are of one class, so there is no AUC' if np.isnan(areas).any() else '',
    )


def _recall(confusion: Integers) -> Floats:
    return np.diag(confusion) / np.maximum(confusion.sum(axis=1), 1)


def _classes(labels: Sequence[Hashable], classes: Sequence[Hashable] | None) -> tuple[Hashable, ...]:
    if classes is None:
        names = tuple(sorted(set(labels), key=lambda label: (str(type(label)), label)))
    else:
        names = tuple(classes)
        foreign = sorted(str(label) for label in set(labels) - set(names))
        if foreign:
            raise UsageError(f'The label {foreign[0]} is not among the classes.')
    if len(set(names)) < 2 or len(set(names)) != len(names):
        raise UsageError(
            f'{len(names)} classes {names} are not two or more different ones.',
            fix='Name the classes where the labels do not hold them all.',
        )
    return names


def _table(scores: ArrayLike, rows: int, classes: int) -> Floats:
    """Return the scores with one column for two classes, or with one a class."""
    table = np.asarray(scores, dtype=np.float64)
    fits = table.shape == (rows, classes) or (table.shape == (rows,) and classes == 2)
    if not fits:
        raise UsageError(
            f'Scores of shape {table.shape} do not fit {rows} rows of {classes} classes.',
            fix='Give one score a class, or of two classes the score of the last.',
        )
    return table.reshape(rows, -1)
