"""How a network sees a volume: slices, stacks of slices, patches or the whole; and how what it says becomes a volume again.

A method's networks work on batches, shape (B, C, ...); a view cuts batches out of volumes for the training and puts whole
volumes through a trained network. It is the only place that knows about axes, padding and fusion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bidsharm.nn.names import Fusion

#: From a batch of inputs, shape (B, C, ...), and the axis they were cut along (-1 for volumes) to a batch of outputs.
Translate = Callable[[Tensor, int], Tensor]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where a batch is cut: the same place in all volumes of an example.

    Parameters
    ----------
    axis
        Axis of the slices; -1 for patches and volumes.
    start
        First voxel of a patch, or index of the slice in its first element.
    """

    axis: int
    start: tuple[int, int, int]


class View(ABC):
    """Cuts batches out of volumes, and puts volumes through a network."""

    #: Number of axes of space in a batch.
    dims: int
    #: Sizes are padded to multiples of this.
    multiple: int = 16
    #: Whether a batch holds all that lies in its plane or volume, and so as much background as the field of view has.
    sees_all = True

    @property
    def channels(self) -> int:
        """Channels that one image becomes."""
        return 1

    def narrowed(self, rng: np.random.Generator) -> View:
        """Return a view whose places all have one shape, so that a batch of them can be made; it may be another one each time."""
        del rng
        return self

    @abstractmethod
    def choose(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> Place:
        """Return a random place that holds brain."""

    @abstractmethod
    def cut(self, values: NDArray, place: Place) -> NDArray:
        """Return the piece at a place, shape (C, ...); labels and masks are cut in the same way."""

    def surroundings(self, values: NDArray, place: Place, margin: int) -> tuple[NDArray, tuple[int, ...]]:
        """Return the piece at a place with what lies around it, shape (C, ...), and where the piece begins in it.

        Parameters
        ----------
        values
            A volume.
        place
            Where to cut.
        margin
            Voxels around the piece, as far as the volume has them; slices and whole volumes have none.
        """
        del margin
        found = self.cut(values, place)
        return found, (0,) * (found.ndim - 1)

    @abstractmethod
    def through(
        self, volumes: Array, translate: Translate, *, background: float, batch: int, device: str
    ) -> Array:
        """Put a volume of one or more channels, shape (C, X, Y, Z), through a network; return one channel, (X, Y, Z)."""


def padded(volumes: Array, multiple: int, background: float) -> tuple[Array, tuple[slice, ...]]:
    """Return volumes, shape (C, X, Y, Z), padded on both sides to multiples, and where the original lies in them."""
    return widened(volumes, [-(-size // multiple) * multiple for size in volumes.shape[-3:]], background)


def widened(volumes: Array, least: Sequence[int], background: float) -> tuple[Array, tuple[slice, ...]]:
    """Return volumes, shape (..., X, Y, Z), padded on both sides until they are nowhere smaller, and where the original lies in them."""
    sizes = volumes.shape[-3:]
    extra = [max(whole - size, 0) for whole, size in zip(least, sizes, strict=True)]
    sides = [(part // 2, part - part // 2) for part in extra]
    inside = tuple(slice(low, low + size) for (low, _), size in zip(sides, sizes, strict=True))
    around = [(0, 0)] * (volumes.ndim - 3)
    return np.pad(volumes, [*around, *sides], constant_values=background), inside


@dataclass(frozen=True)
class Slices(View):
    """Slices along one or more axes; the volumes of several axes are fused voxel by voxel.

    Parameters
    ----------
    axes
        0 sagittal, 1 coronal, 2 axial (axes of a scan in RAS order).
    neighbours
        Slices on either side that come along as channels (2.5-D).
    fuse
        ``median`` (Dewey et al. 2019), ``mean``, or ``learnt`` (Zuo et al. 2021): by a network that was trained after that of the slices
        (:mod:`bidsharm.training.fusion`).
    least_brain
        A slice is chosen if at least this part of it is brain.
    multiple
        Sizes are padded to multiples of this.
    network
        The network that fuses, from (1, axes, X, Y, Z) to (1, 1, X, Y, Z).
    """

    axes: Sequence[int] = (2,)
    neighbours: int = 0
    fuse: Fusion | Literal['learnt'] = 'median'
    least_brain: float = 0.05
    multiple: int = 16
    network: nn.Module | None = None

    dims = 2

    @property
    def channels(self) -> int:
        """Channels that one image becomes."""
        return 2 * self.neighbours + 1

    def narrowed(self, rng: np.random.Generator) -> Slices:
        """Return slices of one of the axes."""
        return replace(self, axes=(int(rng.choice(self.axes)),))

    def choose(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> Place:
        """Return a random slice that holds enough brain."""
        axis = int(rng.choice(self.axes))
        return Place(axis, (int(rng.choice(self.usable(mask, axis))), 0, 0))

    def usable(self, mask: NDArray[np.bool_], axis: int) -> NDArray[np.intp]:
        """Return the slices along an axis that hold enough brain."""
        shares = mask.mean(axis=tuple(other for other in range(3) if other != axis))
        return np.flatnonzero(shares >= min(self.least_brain, shares.max()))

    def cut(self, values: NDArray, place: Place) -> NDArray:
        """Return a slice and its neighbours, shape (2 neighbours + 1, rows, columns)."""
        last = values.shape[place.axis] - 1
        near = np.arange(place.start[0] - self.neighbours, place.start[0] + self.neighbours + 1).clip(0, last)
        return np.moveaxis(np.take(values, near, axis=place.axis), place.axis, 0)

    def through(
        self, volumes: Array, translate: Translate, *, background: float, batch: int, device: str
    ) -> Array:
        """Put all slices through the network and fuse the axes."""
        results = self.along_axes(volumes, translate, background=background, batch=batch, device=device)
        if self.fuse == 'learnt' and self.network is not None:
            # As in its training: nothing is asked of networks outside the brain, so what they say there must not reach this one.
            brain = (volumes != background).any(axis=0)
            results = np.where(brain, results, np.float32(background))
            with torch.no_grad():
                return self.network(torch.from_numpy(results)[None].to(device))[0, 0].float().cpu().numpy()
        fused = np.mean(results, axis=0) if self.fuse == 'mean' else np.median(results, axis=0)
        return np.asarray(fused, dtype=np.float32)

    def along_axes(
        self, volumes: Array, translate: Translate, *, background: float, batch: int, device: str
    ) -> Array:
        """Put all slices through the network; return one volume for each axis, shape (axes, X, Y, Z)."""
        wide, inside = padded(volumes, self.multiple, background)
        return np.stack([self._along(wide, axis, translate, batch, device)[inside] for axis in self.axes])

    def _along(self, wide: Array, axis: int, translate: Translate, batch: int, device: str) -> Array:
        count = wide.shape[axis + 1]
        stacked = []
        for first in range(0, count, batch):
            places = [Place(axis, (index, 0, 0)) for index in range(first, min(first + batch, count))]
            pieces = np.stack([np.concatenate([self.cut(one, place) for one in wide]) for place in places])
            found = translate(torch.from_numpy(np.ascontiguousarray(pieces)).to(device), axis)
            stacked.append(found[:, 0].float().cpu().numpy())
        return np.moveaxis(np.concatenate(stacked), 0, axis)


@dataclass(frozen=True)
class Patches(View):
    """Overlapping cubes, blended by a Gaussian.

    Parameters
    ----------
    edge
        Edge of a cube in voxels.
    overlap
        Part of a cube that neighbours share, from 0 to 1.
    """

    edge: int = 64
    overlap: float = 0.5

    dims = 3
    sees_all = False

    def choose(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> Place:
        """Return a random cube around a voxel of the brain."""
        voxel = np.argwhere(mask)[rng.integers(np.count_nonzero(mask))]
        low = [max(0, min(int(at) - self.edge // 2, size - self.edge)) for at, size in zip(voxel, mask.shape, strict=True)]  # fmt: skip
        return Place(-1, (low[0], low[1], low[2]))

    def cut(self, values: NDArray, place: Place) -> NDArray:
        """Return a cube, shape (1, edge, edge, edge); smaller where the volume is."""
        box = tuple(slice(start, start + self.edge) for start in place.start)
        return values[box][None]

    def surroundings(self, values: NDArray, place: Place, margin: int) -> tuple[NDArray, tuple[int, ...]]:
        """Return a cube and what lies around it in the volume."""
        low = [max(0, start - margin) for start in place.start]
        box = tuple(slice(first, start + self.edge + margin) for first, start in zip(low, place.start, strict=True))  # fmt: skip
        return values[box][None], tuple(start - first for first, start in zip(low, place.start, strict=True))

    def through(
        self, volumes: Array, translate: Translate, *, background: float, batch: int, device: str
    ) -> Array:
        """Put overlapping cubes through the network and blend them."""
        from monai.inferers import sliding_window_inference

        wide, inside = padded(volumes, self.multiple, background)
        edge = tuple(min(self.edge, size) for size in wide.shape[1:])
        found = sliding_window_inference(
            torch.from_numpy(wide[None]).to(device), edge, batch, lambda x: translate(x, -1), overlap=self.overlap, mode='gaussian',
        )  # fmt: skip
        assert isinstance(found, Tensor)
        return np.asarray(found[0, 0].float().cpu().numpy()[inside])


@dataclass(frozen=True)
class Whole(View):
    """The whole volume at once.

    Parameters
    ----------
    multiple
        Sizes are padded to multiples of this.
    """

    multiple: int = 16

    dims = 3

    def choose(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> Place:
        """Return the only place there is."""
        del mask, rng
        return Place(-1, (0, 0, 0))

    def cut(self, values: NDArray, place: Place) -> NDArray:
        """Return the volume, shape (1, X, Y, Z)."""
        del place
        return values[None]

    def through(
        self, volumes: Array, translate: Translate, *, background: float, batch: int, device: str
    ) -> Array:
        """Put the volume through the network."""
        del batch
        wide, inside = padded(volumes, self.multiple, background)
        found = translate(torch.from_numpy(wide[None]).to(device), -1)
        return np.asarray(found[0, 0].float().cpu().numpy()[inside])
