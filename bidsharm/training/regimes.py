"""Which scans make a batch: the ways in which harmonization methods learn.

A sampler draws examples; what it needs is said in words of the contract, and checked before the training begins. The same
generator gives the same batch, so a training that was interrupted goes on with the batches it would have seen.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bidsharm.training.augmentation import Augmentation, Change
from bidsharm.training.views import Place, View
from bidsharm.training.volumes import TrainingSet, TrainingVolume

Example = dict[str, NDArray]
Batch = dict[str, Tensor]


class Sampler(ABC):
    """Draws batches for one way of learning.

    Parameters
    ----------
    data
        All volumes.
    view
        How networks see them.
    batch
        Examples in a batch.
    target
        Site that is aimed at; empty where there is none.
    flip
        Mirror every other example left to right.
    """

    #: What it takes, in words of the contract (``NEED_PHRASES``).
    needs: ClassVar[tuple[str, ...]] = ()
    #: Changes examples at random; None leaves them as they are.
    augmentation: Augmentation | None = None
    #: The change of the example that is being drawn.
    change: Change | None = None
    #: Which visit is seen of those who can be measured again.
    take: int = 0

    def __init__(
        self, data: TrainingSet, view: View, *, batch: int, target: str = '', flip: bool = True
    ) -> None:
        self.data, self.view, self.batch, self.target, self.flip = data, view, batch, target, flip

    @property
    def suffices(self) -> bool:
        """Whether the volumes hold what it is to draw from."""
        return True

    @abstractmethod
    def example(self, rng: np.random.Generator) -> Example:
        """Draw one example: named arrays, each with channels first."""

    def draw(self, rng: np.random.Generator) -> Batch:
        """Draw a batch: named tensors, shape (B, C, ...), or (B,) for numbers."""
        one = self.narrowed(rng)
        examples = [one.changed(rng).example(rng) for _ in range(self.batch)]
        return {name: torch.from_numpy(np.stack([one[name] for one in examples])) for name in examples[0]}

    def seeing(self, take: int) -> Self:
        """Return this sampler for another visit of everybody who can be measured again."""
        one = copy.copy(self)
        one.take = take
        return one

    # --- For samplers ---

    def narrowed(self, rng: np.random.Generator) -> Self:
        """Return this sampler for one batch, whose slices all run along one axis, for their sizes differ between axes."""
        one = copy.copy(self)
        one.view = self.view.narrowed(rng)
        return one

    def changed(self, rng: np.random.Generator) -> Self:
        """Return this sampler for one example, all of whose images are changed alike."""
        if self.augmentation is None:
            return self
        one = copy.copy(self)
        one.change = self.augmentation.drawn(self.view.dims, rng)
        return one

    def like(self, volume: TrainingVolume, others: list[TrainingVolume]) -> list[TrainingVolume]:
        """Return the volumes that have the contrast of another one; all of them where none has."""
        return [other for other in others if other.contrast == volume.contrast] or others

    def site(self, volume: TrainingVolume) -> NDArray:
        """Return the number of a volume's site."""
        return np.asarray(self.data.all_sites.index(volume.site), dtype=np.int64)

    def pick(self, volumes: list[TrainingVolume], rng: np.random.Generator) -> TrainingVolume:
        """Return one of several volumes."""
        return volumes[int(rng.integers(len(volumes)))]

    def image(
        self, volume: TrainingVolume, place: Place, mirrored: bool = False, *, reference: bool = False
    ) -> NDArray:
        """Return intensities at a place, shape (C, ...); a ``reference`` keeps its contrast, for the look of its site is learnt from it."""
        volume = volume.take(self.take)
        if self.change is None:
            return self._cut(volume.values, place, mirrored).astype(np.float32)
        values, begin, shape = self._around(volume.values, place, mirrored)
        mask, *_ = self._around(volume.mask, place, mirrored)
        return self.change.image(
            values.astype(np.float32), mask, begin, shape, background=self.data.background, curve=not reference
        )  # fmt: skip

    def mask(self, volume: TrainingVolume, place: Place, mirrored: bool = False) -> NDArray:
        """Return the brain at a place, shape (1, ...), 0 or 1."""
        cut = self._marks(volume.take(self.take).mask, place, mirrored).astype(np.float32)
        return cut[cut.shape[0] // 2][None]

    def labels(self, volume: TrainingVolume, place: Place, mirrored: bool = False) -> NDArray:
        """Return tissue labels at a place, without channels; 0 everywhere where nobody segmented it."""
        tissue = volume.take(self.take).tissue
        if tissue is None:
            return np.zeros(self.mask(volume, place).shape[1:], np.int64)
        cut = self._marks(tissue, place, mirrored).astype(np.int64)
        return cut[cut.shape[0] // 2]

    def elsewhere(self, volume: TrainingVolume, place: Place, rng: np.random.Generator) -> Place:
        """Return another place in a volume, along the same axis, for both must fit into one batch."""
        for _ in range(20):
            other = self.view.choose(volume.mask, rng)
            if other.axis == place.axis:
                return other
        return place

    def mirrored(self, rng: np.random.Generator) -> bool:
        """Say whether to mirror an example."""
        return bool(self.flip and rng.random() < 0.5)

    def _marks(self, values: NDArray, place: Place, mirrored: bool) -> NDArray:
        """Return a mask or labels at a place, shape (C, ...)."""
        if self.change is None:
            return self._cut(values, place, mirrored)
        return self.change.labels(*self._around(values, place, mirrored))

    def _cut(self, values: NDArray, place: Place, mirrored: bool) -> NDArray:
        return _turned(self.view.cut(values, place), place, mirrored)

    def _around(
        self, values: NDArray, place: Place, mirrored: bool
    ) -> tuple[NDArray, tuple[int, ...], tuple[int, ...]]:
        """Return what the changed piece at a place is made from, where the piece itself begins in it, and its size."""
        assert self.change is not None
        shape = self.view.cut(values, place).shape[1:]
        wide, begin = self.view.surroundings(values, place, self.change.margin(shape))
        turned = _turned(wide, place, mirrored)
        if mirrored and place.axis != 0:
            begin = (wide.shape[1] - begin[0] - shape[0], *begin[1:])
        return turned, begin, shape


def _turned(cut: NDArray, place: Place, mirrored: bool) -> NDArray:
    """Return a piece, mirrored or as it is."""
    # The first axis of a volume runs from left to right; slices along it have no such axis.
    if mirrored and place.axis != 0:
        cut = np.flip(cut, axis=1)
    return np.ascontiguousarray(cut)


class Paired(Sampler):
    """The same person at another site (``x``) and at the target (``y``)."""

    needs = ('paired',)

    def __init__(
        self, data: TrainingSet, view: View, *, batch: int, target: str = '', flip: bool = True
    ) -> None:
        super().__init__(data, view, batch=batch, target=target, flip=flip)
        self.pairs = data.pairs(target)

    def example(self, rng: np.random.Generator) -> Example:
        """Draw a place in a pair."""
        source, wanted = self.pairs[int(rng.integers(len(self.pairs)))]
        place, flipped = self.view.choose(source.mask & wanted.mask, rng), self.mirrored(rng)
        return {
            'x': self.image(source, place, flipped), 'y': self.image(wanted, place, flipped)[self._middle],
            'mask': self.mask(source, place, flipped) * self.mask(wanted, place, flipped), 'site': self.site(source),
        }  # fmt: skip

    @property
    def _middle(self) -> slice:
        middle = self.view.channels // 2
        return slice(middle, middle + 1)


class Unpaired(Sampler):
    """Somebody at another site (``x``) and somebody else at the target (``y``), at the same place of the head.

    With ``one_site`` all ``x`` of a batch come from one site, each site in turn.
    """

    needs = ('two_sites',)

    def __init__(
        self, data: TrainingSet, view: View, *, batch: int, target: str = '', flip: bool = True, one_site: bool = False
    ) -> None:  # fmt: skip
        super().__init__(data, view, batch=batch, target=target, flip=flip)
        self.one_site = one_site
        self.sources, self.targets = data.elsewhere(target), data.at(target)

    def draw(self, rng: np.random.Generator) -> Batch:
        """Draw a batch, from one site or from all."""
        if not self.one_site:
            return super().draw(rng)
        site = str(rng.choice([name for name in self.data.sites if name != self.target]))
        here, one = self.data.at(site), self.narrowed(rng)
        examples = [one.changed(rng)._example(self.pick(here, rng), rng) for _ in range(self.batch)]
        return {name: torch.from_numpy(np.stack([one[name] for one in examples])) for name in examples[0]}

    def example(self, rng: np.random.Generator) -> Example:
        """Draw a place in two scans."""
        return self._example(self.pick(self.sources, rng), rng)

    def _example(self, source: TrainingVolume, rng: np.random.Generator) -> Example:
        wanted = self.pick(self.like(source, self.targets), rng)
        place = self.view.choose(source.mask, rng)
        flips = self.mirrored(rng), self.mirrored(rng)
        return {
            'x': self.image(source, place, flips[0]), 'x_mask': self.mask(source, place, flips[0]), 'x_site': self.site(source),
            'x_tissue': self.labels(source, place, flips[0]),
            'y': self.image(wanted, place, flips[1], reference=True), 'y_mask': self.mask(wanted, place, flips[1]),
            'y_tissue': self.labels(wanted, place, flips[1]),
        }  # fmt: skip


class Domains(Sampler):
    """A scan (``x``, ``x_site``) and two of any site as references (``y``, ``z``, ``y_site``), at the same place of the head.

    The references have the contrast of the scan; their site is the target in every second example, where there is one.
    """

    needs: ClassVar[tuple[str, ...]] = ('two_sites',)

    def example(self, rng: np.random.Generator) -> Example:
        """Draw a scan and two references."""
        x = self.pick(list(self.data.volumes), rng)
        references = self.like(x, self.references(x, rng))
        y, z = self.pick(references, rng), self.pick(references, rng)
        place = self.view.choose(x.mask, rng)
        flips = [self.mirrored(rng) for _ in range(3)]
        found: Example = {'x_site': self.site(x), 'y_site': self.site(y)}
        for name, volume, flipped in zip('xyz', (x, y, z), flips, strict=True):
            found |= self.seen(name, volume, place, flipped, rng)
        return found

    def seen(
        self, name: str, volume: TrainingVolume, place: Place, mirrored: bool, rng: np.random.Generator
    ) -> Example:
        """Return what an example holds of one of its scans."""
        del rng
        return {
            name: self.image(volume, place, mirrored, reference=name != 'x'),
            f'{name}_mask': self.mask(volume, place, mirrored),
        }

    def references(self, x: TrainingVolume, rng: np.random.Generator) -> list[TrainingVolume]:
        """Return the scans of a site drawn at random."""
        del x
        there = str(rng.choice(self.data.sites))
        if self.target and rng.random() < 0.5:
            there = self.target
        return self.data.at(there)


class OneDomain(Domains):
    """As :class:`Domains`, with references from anywhere: all sites are one, number 0, and nobody needs their labels."""

    needs = ()

    def site(self, volume: TrainingVolume) -> NDArray:
        """Return 0."""
        del volume
        return np.asarray(0, dtype=np.int64)

    def references(self, x: TrainingVolume, rng: np.random.Generator) -> list[TrainingVolume]:
        """Return all scans."""
        del x, rng
        return list(self.data.volumes)


class OtherPlaces(OneDomain):
    """As :class:`OneDomain`, with another place of every scan: ``x_other``, ``y_other``, ``z_other``."""

    def seen(
        self, name: str, volume: TrainingVolume, place: Place, mirrored: bool, rng: np.random.Generator
    ) -> Example:
        """Return what an example holds of one of its scans."""
        other = self.elsewhere(volume, place, rng)
        found = super().seen(name, volume, place, mirrored, rng)
        return {**found, f'{name}_other': self.image(volume, other, mirrored, reference=name != 'x')}


class AnyScan(Sampler):
    """Single scans of all sites: ``x``, its ``site``, and ``other``, another place of the same scan."""

    needs = ()

    def example(self, rng: np.random.Generator) -> Example:
        """Draw two places of a scan."""
        return self._of(self.pick(list(self.data.volumes), rng), rng)

    def _of(self, volume: TrainingVolume, rng: np.random.Generator) -> Example:
        place, flipped = self.view.choose(volume.mask, rng), self.mirrored(rng)
        other = self.elsewhere(volume, place, rng)
        return {
            'x': self.image(volume, place, flipped), 'mask': self.mask(volume, place, flipped), 'site': self.site(volume),
            'other': self.image(volume, other, flipped), 'other_mask': self.mask(volume, other, flipped),
            'tissue': self.labels(volume, place, flipped),
        }  # fmt: skip


class Orientations(Sampler):
    """A slice (``x``) and a slice of the same scan along another axis (``other``); their masks, and the ``site``."""

    needs = ()

    def draw(self, rng: np.random.Generator) -> Batch:
        """Draw a batch, whose slices run along one axis, and the others along another one."""
        axes = list(getattr(self.view, 'axes', (0, 1, 2)))
        first, second = rng.permutation(axes)[:2] if len(axes) > 1 else (axes[0], axes[0])
        views = [replace(self.view, axes=(int(axis),)) for axis in (first, second)]  # type: ignore[type-var]
        examples = [self.changed(rng)._of(views, rng) for _ in range(self.batch)]
        return {name: torch.from_numpy(np.stack([one[name] for one in examples])) for name in examples[0]}

    def example(self, rng: np.random.Generator) -> Example:
        """Draw two slices along any axis."""
        return self._of([self.view, self.view], rng)

    def _of(self, views: Sequence[View], rng: np.random.Generator) -> Example:
        volume, flipped = self.pick(list(self.data.volumes), rng), self.mirrored(rng)
        places = [view.choose(volume.mask, rng) for view in views]
        found: Example = {'site': self.site(volume)}
        for image, mask, place in zip(('x', 'other'), ('mask', 'other_mask'), places, strict=True):
            found[image], found[mask] = (
                self.image(volume, place, flipped),
                self.mask(volume, place, flipped),
            )
        return found


class TargetOnly(AnyScan):
    """Single scans of the target site alone; of all sites where no target was named."""

    needs = ()

    @property
    def suffices(self) -> bool:
        """Whether there is a scan of the target."""
        return not self.target or bool(self.data.at(self.target))

    def example(self, rng: np.random.Generator) -> Example:
        """Draw two places of a scan of the target."""
        return self._of(self.pick(self.data.at(self.target) or list(self.data.volumes), rng), rng)


class Travellers(Sampler):
    """The same person at all sites: ``images``, shape (B, sites, ...), and the brain that all share."""

    needs = ('travellers',)

    def __init__(
        self, data: TrainingSet, view: View, *, batch: int, target: str = '', flip: bool = True
    ) -> None:
        super().__init__(data, view, batch=batch, target=target, flip=flip)
        self.rows = data.travellers()

    def example(self, rng: np.random.Generator) -> Example:
        """Draw a place of a person at all sites."""
        row = self.rows[int(rng.integers(len(self.rows)))]
        volumes = [row[site] for site in self.data.all_sites]
        shared = np.logical_and.reduce([volume.mask for volume in volumes])
        place, flipped = self.view.choose(shared, rng), self.mirrored(rng)
        masks = [self.mask(volume, place, flipped) for volume in volumes]
        images = [self.image(volume, place, flipped) for volume in volumes]
        return {'images': np.concatenate(images), 'mask': np.prod(masks, axis=0)}


class Visits(Sampler):
    """All contrasts of one visit (``images``, ``present``), and those of another visit anywhere (``others``, ``others_present``).

    Images have shape (B, contrasts, ...); those that a visit lacks are 0 and not ``present``. ``site`` is that of the visit. Visits with a
    single contrast take part only where ``least`` is 1.
    """

    needs: ClassVar[tuple[str, ...]] = ('multi_contrast',)

    def __init__(
        self,
        data: TrainingSet,
        view: View,
        *,
        batch: int,
        target: str = '',
        flip: bool = True,
        least: int = 2,
    ) -> None:
        super().__init__(data, view, batch=batch, target=target, flip=flip)
        self.visits = [visit for visit in data.visits() if len(visit) >= least]

    def example(self, rng: np.random.Generator) -> Example:
        """Draw a place in two visits."""
        one, other = (self.visits[int(rng.integers(len(self.visits)))] for _ in range(2))
        place = self.view.choose(next(iter(one.values())).mask, rng)
        flips = self.mirrored(rng), self.mirrored(rng)
        images, present, mask = self._stack(one, place, flips[0])
        others, others_present, others_mask = self._stack(other, place, flips[1], reference=True)
        return {
            'images': images, 'present': present, 'mask': mask, 'site': self.site(next(iter(one.values()))),
            'others': others, 'others_present': others_present, 'others_mask': others_mask,
        }  # fmt: skip

    def _stack(
        self, visit: dict[str, TrainingVolume], place: Place, flipped: bool, *, reference: bool = False
    ) -> tuple[NDArray, NDArray, NDArray]:
        some = next(iter(visit.values()))
        empty = np.zeros_like(self.image(some, place))
        cut = [
            self.image(visit[name], place, flipped, reference=reference) if name in visit else empty
            for name in self.data.all_contrasts
        ]
        present = np.array([name in visit for name in self.data.all_contrasts], np.float32)
        masks = [self.mask(volume, place, flipped) for volume in visit.values()]
        return np.concatenate(cut), present, np.prod(masks, axis=0)


class PairedVisits(Visits):
    """All contrasts of a visit elsewhere (``images``, ``present``), and of the same person at the target (``others``, ``others_present``)."""

    needs = ('paired', 'multi_contrast')

    def __init__(
        self, data: TrainingSet, view: View, *, batch: int, target: str = '', flip: bool = True
    ) -> None:
        super().__init__(data, view, batch=batch, target=target, flip=flip, least=1)
        there: dict[str, dict[str, TrainingVolume]] = {}
        for volume in data.at(target):
            there.setdefault(volume.person, {}).setdefault(volume.contrast, volume)
        self.pairs: list[tuple[dict[str, TrainingVolume], dict[str, TrainingVolume]]] = []
        for visit in self.visits:
            some = next(iter(visit.values()))
            if some.site != target and visit.keys() & there.get(some.person, {}).keys():
                self.pairs.append((visit, there[some.person]))

    def example(self, rng: np.random.Generator) -> Example:
        """Draw a place in a pair of visits."""
        one, other = self.pairs[int(rng.integers(len(self.pairs)))]
        place, flipped = self.view.choose(next(iter(one.values())).mask, rng), self.mirrored(rng)
        images, present, mask = self._stack(one, place, flipped)
        others, others_present, others_mask = self._stack(other, place, flipped)
        return {
            'images': images, 'present': present, 'mask': mask * others_mask, 'others': others, 'others_present': others_present,
        }  # fmt: skip
