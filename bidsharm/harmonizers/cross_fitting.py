"""Predictions of people by networks that have not seen them: the people are divided into folds, and each fold is predicted by the others' networks.

What a fold has learnt is kept under a name that says what it was learnt from, so a run that was interrupted goes on, and one with other
settings or scans begins anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.harmonizers import bundle
from bidsharm.harmonizers.contract import Progress
from bidsharm.harmonizers.task import Prediction, Task, TrainedTask, Truth

if TYPE_CHECKING:
    from bidsharm.training.options import Running
    from bidsharm.training.volumes import TrainingSet

Integers = NDArray[np.int64]


@dataclass
class CrossFitted:
    """What cross-fitting gives.

    Parameters
    ----------
    predictions, fold
        Of each volume, by networks that have not seen its person, and the number of the fold.
    embeddings
        Of all volumes by the networks of each fold, shape (rows, E), by the rows that these were trained on.
    """

    predictions: list[Prediction]
    fold: list[int]
    embeddings: dict[tuple[int, ...], NDArray[np.float64]] = field(default_factory=dict)

    def of_fold(self, train: Integers) -> NDArray[np.float64]:
        """Return the embeddings of all volumes by the networks trained on some rows."""
        return self.embeddings[tuple(train.tolist())]


@dataclass(frozen=True)
class Fitting:
    """What every fold has in common.

    Parameters
    ----------
    make
        Makes an untrained method.
    task, truth
        What is predicted, and the answers that may be learnt from.
    keys
        What tells the state of each scan's files from any other, by its name.
    folder
        Where what was learnt is kept.
    running
        Where and how a training runs; its folder is set for each fold.
    """

    make: Callable[[], TrainedTask]
    task: Task
    truth: Truth
    keys: Mapping[str, str]
    folder: Path
    running: Running

    def fitted(self, data: TrainingSet, progress: Progress | None = None) -> TrainedTask:
        """Return a method that was trained on volumes; one that was trained on the same before is taken from the folder."""
        method = self.make()
        names = {volume.name for volume in data.volumes}
        truth = {name: value for name, value in self.truth.items() if name in names}
        place = self.folder / self._digest(method, data, truth)
        if (place / 'model').exists():
            kept = bundle.load_any(place / 'model', method.execution, name=method.card.name)
            assert isinstance(kept, TrainedTask)
            if progress is not None:
                progress(1, 1, 'learnt before')
            return kept
        running = replace(self.running, folder=place)
        method.fit(data, truth, task=self.task, seed=running.seed, progress=progress, running=running)
        bundle.save(method, place / 'model')
        return method

    def _digest(self, method: TrainedTask, data: TrainingSet, truth: Truth) -> str:
        scans = sorted((self.keys[one.name], one.site, one.person) for one in data.volumes)
        running = self.running
        what: list[Any] = [
            method.card.name, asdict(method.settings), asdict(self.task), scans, sorted(truth.items()),
            running.seed, running.budget, running.patience,
        ]  # fmt: skip
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def cross_fitted(
    fitting: Fitting,
    data: TrainingSet,
    folds: Sequence[tuple[Integers, Integers]],
    progress: Callable[[str], Progress] | None = None,
) -> CrossFitted:
    """Train on each fold's people and predict the others.

    Parameters
    ----------
    fitting
        What every fold has in common.
    data
        All volumes.
    folds
        Rows to train on and rows to predict; each row is predicted once.
    progress
        Gives a function that is told how far the training of a fold is, by its name.
    """
    nothing = Prediction(np.zeros(0, np.float32))
    found = CrossFitted([nothing] * len(data.volumes), [-1] * len(data.volumes))
    for number, (train, test) in enumerate(folds):
        part = replace(data, volumes=[data.volumes[row] for row in train])
        method = fitting.fitted(part, progress(f'fold {number + 1} of {len(folds)}') if progress else None)
        wanted = set(test.tolist())
        table = []
        for row, volume in enumerate(data.volumes):
            said = method.predict(volume)
            table.append(said.embedding)
            if row in wanted:
                found.predictions[row], found.fold[row] = said, number
        found.embeddings[tuple(train.tolist())] = np.array(table, np.float64)
    return found
