"""What all methods with networks are set to, and what they know of a scan that they translate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError
from bidsharm.training.scaling import Scaled

if TYPE_CHECKING:
    from bidsharm.harmonizers.effort import Effort
    from bidsharm.training.augmentation import Augmentation

#: What a number may be, and how that is said.
Range = tuple[Callable[[Any], bool], str]
_ABOVE_ZERO: Range = (lambda value: 0 < value < float('inf')), 'a number above 0'
_FROM_ONE: Range = (lambda value: value >= 1), 'a whole number from 1'
_SHARE: Range = (lambda value: 0 <= value < 1), 'a number from 0, below 1'


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Settings that all trained methods have; a method's own class adds its networks and the weights of its losses.

    Parameters
    ----------
    voxel_mm
        Voxel size that the networks see.
    scaling
        Which intensity of a brain becomes 1: ``median``, ``p95`` or ``p99``.
    offset
        Added to intensities that have been divided by their unit.
    background
        Value outside the brain.
    batch, steps
        Of the training.
    rate
        Learning rate.
    average
        Decay of the average of the weights; 0 for none.
    flip
        Mirror every other example.
    hold_out
        Part of the people that is kept for validation.

    Raises
    ------
    UsageError
        For numbers that make no sense.
    """

    #: Settings of a class that a method of it does without; they cannot be changed.
    unused: ClassVar[tuple[str, ...]] = ()

    voxel_mm: float = 1.0
    scaling: Scaled = 'p99'
    offset: float = 0.0
    background: float = 0.0
    batch: int = 8
    steps: int = 20_000
    rate: float = 1e-4
    average: float = 0.0
    flip: bool = True
    hold_out: float = 0.1

    def __post_init__(self) -> None:
        for name, (allowed, words) in self.ranges.items():
            if not allowed(value := getattr(self, name)):
                raise UsageError(f'{name} is {value}.', where='--set', fix=f'Give {words}.')
        for item in fields(self):
            if item.name in self.unused and getattr(self, item.name) != item.default:
                raise UsageError(f'This method does not use {item.name}.', where='--set', fix='Leave it.')
        if not set(axes := getattr(self, 'axes', ())) <= {0, 1, 2}:
            raise UsageError(
                f'axes is {axes}.', where='--set', fix='Give some of 0 (sagittal), 1 (coronal), 2 (axial).'
            )

    @property
    def ranges(self) -> Mapping[str, Range]:
        """What numbers may be, by the name of the setting."""
        return {
            'voxel_mm': _ABOVE_ZERO, 'batch': _FROM_ONE, 'steps': _FROM_ONE, 'rate': _ABOVE_ZERO, 'average': _SHARE, 'hold_out': _SHARE,
        }  # fmt: skip

    @property
    def augmentation(self) -> Augmentation | None:
        """How examples are changed at random; None by default."""
        return None

    @property
    def halvings(self) -> int:
        """How often the sizes of images are halved at the start of a training; 0 by default."""
        return 0


@dataclass(frozen=True)
class Given:
    """What a method knows of a scan when it translates a batch of it.

    Parameters
    ----------
    site
        Number of the scan's site; -1 where the training has not seen it.
    contrast
        Number of its contrast.
    axis
        Axis of the slices; -1 for patches and volumes.
    style
        What the method has learnt of the target: named tensors, such as codes.
    tuned
        What the method has learnt of the scan itself (:meth:`TrainedHarmonizer.prepare`): named tensors, such as weights.
    effort
        Takes note of work at test time (:mod:`bidsharm.harmonizers.effort`).
    companions
        Other contrasts of the visit by their numbers, in units of the network, shape (X, Y, Z).
    """

    site: int = -1
    contrast: int = 0
    axis: int = -1
    style: Mapping[str, Any] | None = None
    tuned: Mapping[str, Any] | None = None
    effort: Effort | None = None
    companions: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
