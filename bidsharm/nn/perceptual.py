"""Perceptual loss without a network that was trained on photographs: features of fixed random filters.

That random filters serve nearly as well as trained ones is shown by Amir and Weiss (CVPR 2021, "Understanding and simplifying perceptual
distances": the distance compares how small patches are distributed) and by Liu et al. (2021, arXiv:2103.10571).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Filters are the same in every training.
SEED = 0


class FixedFeatures(nn.Module):
    """Features of slices at several scales, as from the first blocks of VGG16, with random orthogonal filters that never learn.

    Parameters
    ----------
    widths
        Channels of each block of two convolutions; sizes halve between blocks.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        generator = torch.Generator().manual_seed(SEED)
        channels = [1, *(width for width in self.widths for _ in range(2))]
        for index, (ins, outs) in enumerate(pairwise(channels)):
            # Not saved with a model: anyone can make them again.
            self.register_buffer(f'filters{index}', _orthogonal(outs, ins, generator), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features after each block.

        Parameters
        ----------
        x
            Slices, shape (B, 1, H, W).
        """
        found = []
        for block in range(len(self.widths)):
            if block:
                x = functional.avg_pool2d(x, 2)
            for index in (2 * block, 2 * block + 1):
                x = functional.conv2d(x, getattr(self, f'filters{index}'), padding=1).relu()
            found.append(x)
        return found

    def distance(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Return the mean absolute difference of features, averaged over blocks; a gradient reaches ``found`` only."""
        with torch.no_grad():
            aims = self(wanted)
        return torch.stack([
            functional.l1_loss(one, aim) for one, aim in zip(self(found), aims, strict=True)
        ]).mean()  # fmt: skip


def _orthogonal(outs: int, ins: int, generator: torch.Generator) -> Tensor:
    """Return filters of 3 x 3 that keep the scale of what they see, for half of it is cut off at 0."""
    filters = torch.empty(outs, ins, 3, 3)
    nn.init.orthogonal_(filters, gain=2**0.5, generator=generator)
    return filters
