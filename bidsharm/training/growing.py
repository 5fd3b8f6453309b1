"""Progressive growing: networks first learn from coarse images, then from finer ones (Karras et al. 2018, arXiv:1710.10196).

Nothing is added to the networks as images grow: those of the methods here are convolutional and take images of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.errors import UsageError
from bidsharm.training.loop import Learner, Losses
from bidsharm.training.options import Player, Stage
from bidsharm.training.regimes import Batch, Sampler

_AVERAGE = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


def grown(learner: Learner, sampler: Sampler, halvings: int) -> Learner:
    """Return a learner whose images grow in the course of the training; the learner itself for no halvings.

    Parameters
    ----------
    learner
        What is trained.
    sampler
        Draws its batches.
    halvings
        How often sizes are halved at the start.
    """
    if not halvings:
        return learner
    return Growing(learner, halvings, background=sampler.data.background, multiple=sampler.view.multiple)


class Growing:
    """A learner whose stages are divided: equal parts of each see images of 1 / 2 ** halvings, ..., 1 / 2, and of the full size.

    Validation and preview see full sizes throughout.

    Parameters
    ----------
    learner
        What is trained.
    halvings
        How often sizes are halved at the start.
    background
        Value outside the brain.
    multiple
        Sizes above this are padded to multiples of it.
    """

    def __init__(self, learner: Learner, halvings: int, *, background: float, multiple: int) -> None:
        self.learner, self.halvings = learner, halvings
        self.background, self.multiple = background, multiple
        self.factor = 1
        self._parts = {part.name: (stage, factor) for part, stage, factor in self._divided()}

    # --- What the loop asks for and sets ---

    @property
    def networks(self) -> nn.ModuleDict:
        """Of the learner."""
        return self.learner.networks

    @networks.setter
    def networks(self, networks: nn.ModuleDict) -> None:
        self.learner.networks = networks

    @property
    def more(self) -> Callable[[], Batch]:
        """Draws another batch, of the size of this part of the training."""
        return self.learner.more

    @more.setter
    def more(self, more: Callable[[], Batch]) -> None:
        self.learner.more = lambda: self._seen(more())

    @property
    def done(self) -> float:
        """The part of the training that is over."""
        return self.learner.done

    @done.setter
    def done(self, done: float) -> None:
        self.learner.done = done

    @property
    def players(self) -> Mapping[str, Player]:
        """Those of the learner."""
        return self.learner.players

    @property
    def average(self) -> float:
        """That of the learner."""
        return self.learner.average

    @property
    def stages(self) -> Sequence[Stage]:
        """The parts of the learner's stages."""
        return [part for part, *_ in self._divided()]

    def begin(self, stage: str) -> None:
        """Prepare for a part of a stage."""
        name, self.factor = self._parts[stage]
        self.learner.begin(name)

    def losses(self, batch: Batch, stage: str) -> Losses:
        """Yield the losses of images of the size of this part.

        Raises
        ------
        UsageError
            If the networks cannot take images of this size.
        """
        name, _ = self._parts[stage]
        small = self._seen(batch)
        try:
            yield from self.learner.losses(small, name)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            if self.factor == 1:
                raise
            raise UsageError(
                f'The networks cannot take images of 1/{self.factor} of their size ({_sizes(small)} voxels): {str(error).splitlines()[0].rstrip(".")}.',
                where='--set progressive', fix='Give a smaller number of halvings, or larger patches where there are any.',
            ) from error  # fmt: skip

    def validation(self, batch: Batch) -> Tensor | None:
        """Return what the learner says of full sizes."""
        return self.learner.validation(batch)

    def preview(self, batch: Batch) -> Sequence[Tensor]:
        """Return images of the full size."""
        return self.learner.preview(batch)

    # --- Parts ---

    def _divided(self) -> Iterator[tuple[Stage, str, int]]:
        """Yield each part as a stage of its own, the name of the stage that it is a part of, and what sizes are divided by."""
        for stage in self.learner.stages:
            if not stage.grows:
                yield stage, stage.name, 1
                continue
            for halvings in range(self.halvings, -1, -1):
                factor = 2**halvings
                name = f'{stage.name} at 1/{factor}' if halvings else stage.name
                yield replace(stage, name=name, share=stage.share / (self.halvings + 1)), stage.name, factor

    def _seen(self, batch: Batch) -> Batch:
        if self.factor == 1:
            return batch
        return coarse(batch, self.factor, background=self.background, multiple=self.multiple)


def coarse(batch: Batch, factor: int, *, background: float = 0.0, multiple: int = 16) -> Batch:
    """Return a batch with fewer voxels: images by the mean of their brain, masks and labels by the majority; numbers stay.

    Parameters
    ----------
    batch
        Images, shape (B, C, ...); masks, shape (B, 1, ...), whose names end with ``mask``; labels, integers of shape (B, ...).
    factor
        What sizes are divided by.
    background
        Value outside the brain.
    multiple
        Sizes that come out and are larger than this are padded to multiples of it.
    """
    found = {}
    for name, value in batch.items():
        if value.ndim < 3:
            found[name] = value
        elif name == 'mask' or name.endswith('_mask'):
            found[name] = (_averaged(value, factor, multiple) >= 0.5).to(value)
        elif value.is_floating_point():
            mask = batch.get(f'{name}_mask', batch.get('mask'))
            found[name] = _coarse_image(value, mask, factor, background, multiple)
        else:
            found[name] = _coarse_labels(value, factor, multiple)
    return found


def _coarse_image(
    image: Tensor, mask: Tensor | None, factor: int, background: float, multiple: int
) -> Tensor:
    """Return the mean over the brain in each block; the background where less than half of it is brain."""
    brain = image != background  # the mask may be what several images share, and is smaller then
    if mask is not None and mask.shape[2:] == image.shape[2:]:
        brain = brain | (mask > 0)
    share = _averaged(brain.to(image), factor, multiple)
    mean = _averaged(image * brain, factor, multiple) / share.clamp_min(1e-6)
    return torch.where(share >= 0.5, mean, background)


def _coarse_labels(labels: Tensor, factor: int, multiple: int) -> Tensor:
    """Return the label that most voxels of a block have, of those above 0 where at least half of them have one."""
    classes = functional.one_hot(labels).movedim(-1, 1).float()
    shares = _averaged(classes, factor, multiple)[:, 1:]
    if not shares.shape[1]:
        return shares.new_zeros((len(labels), *shares.shape[2:]), dtype=labels.dtype)
    return torch.where(shares.sum(dim=1) >= 0.5, shares.argmax(dim=1) + 1, 0).to(labels.dtype)


def _averaged(values: Tensor, factor: int, multiple: int) -> Tensor:
    """Return the mean of each block of voxels, shape (B, C, ...), padded with zeros at the end."""
    ends = [-(-size // factor) for size in values.shape[2:]]
    ends = [-(-end // multiple) * multiple if end > multiple else end for end in ends]
    extra = [end * factor - size for end, size in zip(ends, values.shape[2:], strict=True)]
    sides = [side for more in reversed(extra) for side in (0, more)]
    return _AVERAGE[len(ends)](functional.pad(values, sides), factor)


def _sizes(batch: Batch) -> str:
    images = [value for name, value in batch.items() if value.ndim > 3 and not name.endswith('mask')]
    return ' x '.join(str(size) for size in images[0].shape[2:])
