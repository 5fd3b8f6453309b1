"""Random changes of examples: of the contrast, by a rising curve, and of the geometry, by turning and scaling all images of an example alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Change:
    """What happens to one example.

    Parameters
    ----------
    exponent, factor
        Of the curve ``factor * (value - offset) ** exponent + offset``; below the offset it runs on through the origin, point-symmetrically.
    offset
        What networks see for an intensity of 0.
    matrix
        From a voxel of the changed piece to that of the scan, both relative to the middle of the piece, shape (dims, dims); None for no change
        of the geometry.
    """

    exponent: float = 1.0
    factor: float = 1.0
    offset: float = 0.0
    matrix: NDArray[np.float64] | None = None
    _grids: dict[tuple[tuple[int, ...], ...], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def margin(self, shape: tuple[int, ...]) -> int:
        """Return how many voxels around a piece its changed form can reach."""
        if self.matrix is None:
            return 0
        half = (np.array(shape) - 1) / 2
        return max(0, int(np.ceil((np.abs(self.matrix) @ half - half).max())) + 1)

    def curved(self, values: Array) -> Array:
        """Return intensities after the change of contrast."""
        relative = values - self.offset
        return (self.factor * np.sign(relative) * np.abs(relative) ** self.exponent + self.offset).astype(np.float32)  # fmt: skip

    def image(
        self, wide: Array, mask: NDArray, begin: tuple[int, ...], shape: tuple[int, ...], *, background: float, curve: bool
    ) -> Array:  # fmt: skip
        """Return the changed piece of a scan.

        Parameters
        ----------
        wide
            The piece and what lies around it, shape (C, ...).
        mask
            Where there is brain, same shape. Values elsewhere do not count, so nothing of the background mixes with the brain.
        begin, shape
            First voxel of the piece in ``wide``, and its size along the axes of space.
        background
            Value outside the brain.
        curve
            Whether the contrast changes, too.
        """
        if self.matrix is None:
            values, inside = wide, mask > 0
        else:
            weights = torch.from_numpy(mask.astype(np.float32))
            parts = torch.cat([torch.from_numpy(wide) * weights, weights])
            sums, shares = self._sampled(parts, begin, shape, 'bilinear').chunk(2)
            values, inside = (sums / shares.clamp_min(1e-6)).numpy(), self.labels(mask, begin, shape) > 0
        return np.where(inside, self.curved(values) if curve else values, np.float32(background))

    def labels(self, wide: NDArray, begin: tuple[int, ...], shape: tuple[int, ...]) -> NDArray:
        """Return the changed piece of labels or of a mask, shape (C, ...), float32: those of the nearest voxels."""
        values = torch.from_numpy(wide.astype(np.float32))
        return (values if self.matrix is None else self._sampled(values, begin, shape, 'nearest')).numpy()

    def _sampled(self, wide: Tensor, begin: tuple[int, ...], shape: tuple[int, ...], mode: str) -> Tensor:
        """Return values at the voxels that the matrix leads to, shape (C, *shape); 0 beyond the border."""
        sizes = tuple(wide.shape[1:])
        if (sizes, begin, shape) not in self._grids:  # all images of an example are cut in one or two ways
            self._grids[sizes, begin, shape] = self._grid(sizes, begin, shape)
        grid = self._grids[sizes, begin, shape]
        return functional.grid_sample(wide[None], grid, mode=mode, align_corners=False)[0]

    def _grid(self, sizes: tuple[int, ...], begin: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """Return where the voxels of a piece come from, as torch wants it."""
        assert self.matrix is not None
        whole, part = np.array(sizes), np.array(shape)
        # Torch counts from -1 to 1 between the outer faces of the first and last voxel, last axis first.
        middle = (2 * np.array(begin) + part) / whole - 1
        scaled = self.matrix * part[None] / whole[:, None]
        theta = np.concatenate([scaled[::-1, ::-1], middle[::-1, None]], axis=1)
        return functional.affine_grid(
            torch.from_numpy(theta[None].astype(np.float32)), [1, 1, *shape], align_corners=False
        )


@dataclass(frozen=True)
class Augmentation:
    """Draws the change of each example.

    Parameters
    ----------
    gamma, gain
        The exponent and the factor of a curve lie between 1 + this and its inverse, on a logarithmic scale.
    angle
        Largest rotation, in degrees: of slices in their plane, of patches and volumes about each axis.
    scale
        Sizes change by a factor between 1 + this and its inverse.
    offset
        What networks see for an intensity of 0.
    """

    gamma: float = 0.0
    gain: float = 0.0
    angle: float = 0.0
    scale: float = 0.0
    offset: float = 0.0

    def drawn(self, dims: int, rng: np.random.Generator) -> Change:
        """Return a random change of pieces with this many axes of space."""
        exponent, factor, size = (
            float((1 + most) ** rng.uniform(-1, 1)) for most in (self.gamma, self.gain, self.scale)
        )
        turns = np.deg2rad(self.angle) * rng.uniform(-1, 1, 1 if dims == 2 else 3)
        matrix = rotation(turns) / size if self.angle or self.scale else None
        return Change(exponent, factor, self.offset, matrix)


def rotation(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix of a rotation by one angle in a plane, or by three angles about the axes of space, in radians."""
    if len(turns) == 1:
        return _about((0, 1), turns[0], 2)
    first, second, third = (_about(plane, turn, 3) for plane, turn in zip(((1, 2), (0, 2), (0, 1)), turns, strict=True))  # fmt: skip
    return first @ second @ third


def _about(plane: tuple[int, int], turn: float, dims: int) -> NDArray[np.float64]:
    matrix = np.eye(dims)
    matrix[np.ix_(plane, plane)] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    return matrix
