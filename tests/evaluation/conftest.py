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


def inception_shapes() -> dict[str, tuple[int, ...]]:
    """Return the kernels of Inception v3, block by block as in Szegedy et al. 2016: out, in, height, width."""
    stem = {
        'Conv2d_1a_3x3': (32, 3, 3, 3), 'Conv2d_2a_3x3': (32, 32, 3, 3), 'Conv2d_2b_3x3': (64, 32, 3, 3),
        'Conv2d_3b_1x1': (80, 64, 1, 1), 'Conv2d_4a_3x3': (192, 80, 3, 3),
    }  # fmt: skip
    blocks: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, depth, pool in (('5b', 192, 32), ('5c', 256, 64), ('5d', 288, 64)):
        blocks[name] = {
            '1x1': (64, depth, 1, 1), '5x5_1': (48, depth, 1, 1), '5x5_2': (64, 48, 5, 5),
            '3x3dbl_1': (64, depth, 1, 1), '3x3dbl_2': (96, 64, 3, 3), '3x3dbl_3': (96, 96, 3, 3),
            '_pool': (pool, depth, 1, 1),
        }  # fmt: skip
    blocks['6a'] = {
        '3x3': (384, 288, 3, 3),
        '3x3dbl_1': (64, 288, 1, 1), '3x3dbl_2': (96, 64, 3, 3), '3x3dbl_3': (96, 96, 3, 3),
    }  # fmt: skip
    for name, c in (('6b', 128), ('6c', 160), ('6d', 160), ('6e', 192)):
        blocks[name] = {
            '1x1': (192, 768, 1, 1),
            '7x7_1': (c, 768, 1, 1), '7x7_2': (c, c, 1, 7), '7x7_3': (192, c, 7, 1),
            '7x7dbl_1': (c, 768, 1, 1), '7x7dbl_2': (c, c, 7, 1), '7x7dbl_3': (c, c, 1, 7),
            '7x7dbl_4': (c, c, 7, 1), '7x7dbl_5': (192, c, 1, 7), '_pool': (192, 768, 1, 1),
        }  # fmt: skip
    blocks['7a'] = {
        '3x3_1': (192, 768, 1, 1), '3x3_2': (320, 192, 3, 3),
        '7x7x3_1': (192, 768, 1, 1), '7x7x3_2': (192, 192, 1, 7), '7x7x3_3': (192, 192, 7, 1),
        '7x7x3_4': (192, 192, 3, 3),
    }  # fmt: skip
    for name, depth in (('7b', 1280), ('7c', 2048)):
        blocks[name] = {
            '1x1': (320, depth, 1, 1), '3x3_1': (384, depth, 1, 1),
            '3x3_2a': (384, 384, 1, 3), '3x3_2b': (384, 384, 3, 1),
            '3x3dbl_1': (448, depth, 1, 1), '3x3dbl_2': (384, 448, 3, 3),
            '3x3dbl_3a': (384, 384, 1, 3), '3x3dbl_3b': (384, 384, 3, 1), '_pool': (192, depth, 1, 1),
        }  # fmt: skip
    mixed = {
        f'Mixed_{name}.branch{branch}': shape
        for name, part in blocks.items()
        for branch, shape in part.items()
    }
    return stem | mixed


@pytest.fixture(scope='session')
def inception() -> dict[str, Any]:
    """Return random weights of Inception v3."""
    import torch

    torch.manual_seed(0)
    weights = {'fc.weight': torch.randn(1008, 2048), 'fc.bias': torch.randn(1008)}
    for name, shape in inception_shapes().items():
        weights[f'{name}.conv.weight'] = torch.randn(shape) * np.sqrt(2 / np.prod(shape[1:]))
        for part, value in (('weight', 1.0), ('bias', 0.0), ('running_mean', 0.0), ('running_var', 1.0)):
            weights[f'{name}.bn.{part}'] = torch.full((shape[0],), value)
    return weights
