"""What a training leaves in its folder: checkpoints, a log as CSV (and TensorBoard), pictures; whole or not there."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bidsharm.files import open_regular
from bidsharm.temporary import atomic_path

CHECKPOINT, LOG, PICTURES = 'checkpoint.pt', 'log.csv', 'examples'
#: Pictures show at most so many examples of a batch.
MOST_EXAMPLES = 4
#: What a checkpoint holds.
STATE = frozenset(
    {'step', 'seconds', 'stage', 'networks', 'means', 'optimizers', 'best', 'best_score', 'waiting'}
)


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state: tensors, numbers and names only."""
    with atomic_path(folder / CHECKPOINT) as partial:
        try:
            torch.save(dict(state), partial)
        except RuntimeError as error:
            if 'inline_container' not in str(error) and 'StreamWriter' not in str(error):
                raise
            # PyTorch says that it could not write, and not why.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / CHECKPOINT)) from error


def read_checkpoint(folder: Path | None, device: torch.device) -> dict[str, Any] | None:
    """Return the state of a folder; None where there is none.

    A checkpoint is a pickle inside a zip, of which torch takes tensors, numbers, texts and their containers and nothing else
    (``weights_only``): nothing in it is executed, whatever it asks for.

    Raises
    ------
    ValueError
        If the file is not such a state.
    """
    if folder is None or not (folder / CHECKPOINT).exists():
        return None
    try:
        with open_regular(folder / CHECKPOINT) as file:
            found = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises a dozen kinds for what is no checkpoint
        raise ValueError(str(error) or type(error).__name__) from None
    if not isinstance(found, dict) or not found.keys() >= STATE:
        raise ValueError('it is not the state of a training')
    return found


@dataclass
class Best:
    """The best validation so far.

    Parameters
    ----------
    score
        Smaller is better.
    weights
        Weights that reached it; empty where nothing was validated.
    waiting
        Validations since.
    """

    score: float = float('inf')
    weights: dict[str, Tensor] = field(default_factory=dict)
    waiting: int = 0

    def see(self, score: float | None, step: int, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Take note of a validation."""
        del step
        if score is None:
            return
        if score < self.score:
            self.score, self.weights, self.waiting = score, weights(), 0
        else:
            self.waiting += 1

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {'best': self.weights, 'best_score': self.score, 'waiting': self.waiting}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Best:
        """Take it back from a checkpoint."""
        return cls(float(state['best_score']), dict(state['best']), int(state['waiting']))


class TrainingLog:
    """Mean losses of each interval as rows of a CSV file, and pictures.

    Parameters
    ----------
    folder
        None writes nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.sums: dict[str, list[float]] = {}
        self.last: dict[str, float] = {}
        self.board = _tensorboard(folder)

    def add(self, losses: Mapping[str, float]) -> None:
        """Take note of the losses of a step."""
        for name, value in losses.items():
            self.sums.setdefault(name, []).append(value)

    def write(self, step: int, seconds: float, stage: str, validation: float | None) -> None:
        """Write the row of an interval, and begin the next one."""
        self.last = {name: float(np.mean(values)) for name, values in self.sums.items()}
        self.sums = {}
        if validation is not None:
            self.last['validation'] = validation
        if self.folder is None:
            return
        for name, value in self.last.items():
            if self.board is not None:
                self.board.add_scalar(name, value, step)
        self._rewrite(
            [*self._rows(), {'step': step, 'seconds': round(seconds, 1), 'stage': stage} | self.last]
        )

    def drop_after(self, step: int) -> None:
        """Remove rows that lie behind a checkpoint which a training goes on from."""
        if self.folder is not None and (rows := self._rows()):
            self._rewrite([row for row in rows if int(row['step']) <= step])

    def words(self) -> str:
        """Return the last interval in a few words."""
        return '  '.join(f'{name} {value:.3g}' for name, value in list(self.last.items())[:6])

    def picture(self, step: int, images: Sequence[Tensor]) -> None:
        """Write images side by side: a row for each example, a column for each tensor."""
        if self.folder is None or not images:
            return
        from PIL import Image

        rows = [
            _row([image[index] for image in images]) for index in range(min(MOST_EXAMPLES, len(images[0])))
        ]
        with atomic_path(self.folder / PICTURES / f'step-{step:07d}.png') as partial:
            Image.fromarray(np.concatenate(rows)).save(partial)

    def _rows(self) -> list[dict[str, Any]]:
        path = (self.folder or Path()) / LOG
        if not path.is_file():
            return []
        with path.open(newline='', encoding='utf-8') as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        # Stages have losses of their own, so columns may come later.
        assert self.folder is not None
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (
            atomic_path(self.folder / LOG) as partial,
            partial.open('w', newline='', encoding='utf-8') as file,
        ):
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def _row(images: Sequence[Tensor]) -> np.ndarray:
    """Return images of one example side by side as grey values; of volumes the middle slice."""
    shown = []
    for image in images:
        values = image.detach().float().cpu().numpy()
        values = values[values.shape[0] // 2]
        if values.ndim == 3:
            values = values[:, :, values.shape[2] // 2]
        shown.append(np.rot90(values))
    low, high = np.percentile(shown[0], [1, 99.8])
    scaled = [((values - low) / max(high - low, 1e-6)).clip(0, 1) for values in shown]
    return (np.concatenate(scaled, axis=1) * 255).astype(np.uint8)


def _tensorboard(folder: Path | None) -> Any:
    """Return a writer where TensorBoard is installed, else None."""
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / 'tensorboard'))
