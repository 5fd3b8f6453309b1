"""How a training is run: budget, device, checkpoints; and how a method divides its weights among optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

#: Part of the training that is over (0 to 1) to a factor of the learning rate.
Schedule = Callable[[float], float]


def constant(done: float) -> float:
    """Return 1: the rate does not change."""
    del done
    return 1.0


def linear_after_half(done: float) -> float:
    """Return a factor that is 1 for the first half and falls to 0 in the second (Zhu et al. 2017)."""
    return min(1.0, 2 * (1 - done))


def polynomial(done: float, last: float = 0.1) -> float:
    """Return a factor that falls on a line from 1 to ``last``."""
    return 1 - (1 - last) * done


def halving(every: float) -> Schedule:
    """Return a schedule that halves the rate whenever a part of the training, from 0 to 1, is over (Huang et al. 2018)."""
    return lambda done: 0.5 ** int(done / every)


@dataclass(frozen=True)
class Player:
    """Networks that one optimizer moves.

    Parameters
    ----------
    networks
        Their names.
    rate, betas, weight_decay
        Of AdamW (of Adam where the decay is 0).
    clip
        Largest norm of the gradient; 0 for none.
    schedule
        How the rate changes.
    factors
        Multiplies the rate of a network, by its name; 1 where it is not named.
    """

    networks: tuple[str, ...]
    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 0.0
    schedule: Schedule = constant
    factors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    Parameters
    ----------
    name
        Handed to the losses.
    share
        Part of the budget, relative to the other stages.
    grows
        Whether it learns from the images of its batches, which may then be coarse at first (:mod:`bidsharm.training.growing`).
    validates
        Whether there is a number in it that tells how good a method is that has one otherwise.
    """

    name: str = 'train'
    share: float = 1.0
    grows: bool = True
    validates: bool = True


@dataclass(frozen=True)
class Budget:
    """When a training ends.

    Parameters
    ----------
    steps
        Number of steps; None for no bound.
    minutes
        Time; None for no bound. A training bounded by time alone ends in another place on another machine.
    """

    steps: int | None = None
    minutes: float | None = None

    def done(self, step: int, seconds: float) -> float:
        """Return the part that is over, from 0 to 1."""
        parts = [step / self.steps] if self.steps else []
        parts += [seconds / 60 / self.minutes] if self.minutes else []
        return min(1.0, max(parts, default=1.0))


@dataclass(frozen=True)
class Running:
    """Where and how a training runs.

    Parameters
    ----------
    folder
        For checkpoints, logs and pictures; None keeps nothing.
    device
        ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    devices, nodes
        Processes on this machine, and machines (started by ``torchrun`` or ``srun``).
    precision
        As Lightning Fabric names it: ``32-true``, ``bf16-mixed``, ``16-mixed``.
    accumulate
        Batches whose gradients are added up before a step.
    interval
        Steps between checkpoints, validations and pictures: what a killed training loses at most.
    patience
        Intervals without a better validation after which the training ends; 0 never ends it early.
    seed
        Of weights, batches and noise.
    renew
        Steps after which scans that can be measured again are replaced by those of another visit; 0 for never.
    """

    folder: Path | None = None
    device: str = 'cpu'
    devices: int = 1
    nodes: int = 1
    precision: Literal['32-true', 'bf16-mixed', '16-mixed'] = '32-true'
    accumulate: int = 1
    interval: int = 200
    patience: int = 0
    seed: int = 0
    renew: int = 0
    budget: Budget = field(default_factory=Budget)
