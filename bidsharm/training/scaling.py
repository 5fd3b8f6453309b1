"""Intensities as networks want them, and exactly back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: What becomes 1: the median of the brain, or its 95th or 99th percentile.
Scaled = Literal['median', 'p95', 'p99']


@dataclass(frozen=True)
class Scaling:
    """A factor and a shift: ``network = intensity / unit + shift``.

    Parameters
    ----------
    unit
        Intensity that becomes ``1 + shift``.
    shift
        -1 where the background of 0 should become -1, else 0.
    """

    unit: float
    shift: float = 0.0

    def forward(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return intensities for a network, any shape."""
        return np.asarray(values / self.unit + self.shift, dtype=np.float32)

    def inverse(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return intensities in units of the scan again."""
        return np.asarray((values - self.shift) * self.unit, dtype=np.float32)


def measure(values: NDArray[np.floating], kind: Scaled, shift: float = 0.0) -> Scaling:
    """Return the scaling of a scan.

    Parameters
    ----------
    values
        Intensities inside the brain mask, shape (N,).
    kind
        ``median`` (IGUANe), ``p95`` or ``p99``: which intensity becomes 1.
    shift
        Added afterwards.

    Raises
    ------
    ValueError
        If that intensity is not above 0.
    """
    unit = float(np.percentile(values, {'median': 50, 'p95': 95, 'p99': 99}[kind]))
    if not unit > 0:
        raise ValueError(f'the {kind} of the brain is {unit:g}, not above 0')
    return Scaling(unit, shift)
