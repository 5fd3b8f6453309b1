"""A head made of shells with known tissues, in any contrast and voxel size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

#: Intensities of CSF, GM and WM: every order of tissues occurs.
MEANS = {'T1w': (30.0, 60.0, 90.0), 'T2w': (95.0, 60.0, 40.0), 'FLAIR': (15.0, 80.0, 65.0)}


@dataclass(frozen=True)
class Head:
    data: NDArray[np.float32]
    mask: NDArray[np.bool_]
    tissue: NDArray[np.float32]
    spacing: tuple[float, float, float]
    radius: NDArray[np.float64]  # mm from the centre
    contrast: str
    means: tuple[float, float, float]  # of CSF, GM and WM

    def mapped(self, function: Callable[[NDArray], NDArray]) -> NDArray[np.float32]:
        """Apply a function inside the mask; exactly 0 outside."""
        return np.where(self.mask, function(self.data), 0).astype(np.float32)

    def with_ball(self, diameter: float, height: float, x: float = 0.0) -> NDArray[np.float32]:
        """Add a ball with a soft rim of half a millimetre at ``x`` mm along the first axis from the centre."""
        axes = [
            (np.arange(n) - (n - 1) / 2) * size for n, size in zip(self.mask.shape, self.spacing, strict=True)
        ]
        grid = np.meshgrid(axes[0] - x, axes[1], axes[2], indexing='ij')
        distance = np.sqrt(sum(axis**2 for axis in grid))
        ball = 1 / (1 + np.exp((distance - diameter / 2) / 0.5))
        return self.mapped(lambda data: data + height * ball)


def build(
    contrast: str = 'T1w',
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
    noise: float = 2.0,
    extent: float = 144.0,
) -> Head:
    """Return WM within 46 mm, GM to 59 mm and CSF to 66 mm from the centre: 1,204 ml in all."""
    axes = [(np.arange(round(extent / size)) - (round(extent / size) - 1) / 2) * size for size in spacing]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing='ij')))
    mask = radius < 66
    inner, outer = (1 / (1 + np.exp((radius - border) / 1.0)) for border in (46.0, 59.0))
    tissue = (np.stack([1 - outer, outer - inner, inner]) * mask).astype(np.float32)
    clean = np.tensordot(np.array(MEANS[contrast]), tissue, axes=1)
    grain = noise * np.random.default_rng(0).standard_normal(mask.shape)
    data = ((clean + grain) * mask).astype(np.float32)
    return Head(data, mask, tissue, spacing, radius, contrast, MEANS[contrast])


@pytest.fixture(scope='session')
def make_head() -> Callable[..., Head]:
    return build


@pytest.fixture(scope='session')
def head() -> Head:
    return build()


@pytest.fixture(scope='session')
def smooth_head() -> Head:
    return build(noise=0.0)


def numbers(thing: Any) -> list[float]:
    """Return every number in a result, however deep."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return [value for field in fields(thing) for value in numbers(getattr(thing, field.name))]
    if isinstance(thing, dict):
        return [value for part in thing.values() for value in numbers(part)]
    if isinstance(thing, tuple):
        return [value for part in thing for value in numbers(part)]
    return [float(thing)] if isinstance(thing, int | float) else []


@pytest.fixture(name='numbers', scope='session')
def numbers_fixture() -> Callable[[Any], list[float]]:
    return numbers
