"""A shallow network that changes an image by one factor and a map: the harmonizer of Beizaee et al. (2023; its public code)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.blocks import ConcatELU, conv


def _twice(ins: int, outs: int) -> nn.Sequential:
    """Return two convolutions, each after its activation; there are no norms, for intensities have to be seen as they are."""
    return nn.Sequential(ConcatELU(), conv(2, 2 * ins, outs), ConcatELU(), conv(2, 2 * outs, outs))


class GainAndBias(nn.Module):
    """Image times a factor plus a map. The factor comes from the coarsest level of a U-Net, the map from its finest.

    Parameters
    ----------
    widths
        Channels of each level.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 48, 64, 64)) -> None:
        super().__init__()
        self.first = conv(2, 1, widths[0])
        self.encoders = nn.ModuleList(_twice(ins, outs) for ins, outs in itertools.pairwise(widths))
        backwards = list(reversed(widths))
        self.decoders = nn.ModuleList(_twice(low + skip, skip) for low, skip in itertools.pairwise(backwards))
        self.gain, self.bias = conv(2, widths[-1], 1, 1), conv(2, widths[0], 1, 1)
        self._begin_as_identity()

    def _begin_as_identity(self) -> None:
        for layer, value in ((self.gain, 1.0), (self.bias, 0.0)):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.constant_(layer.bias, value)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map slices, shape (B, 1, H, W); sizes are divisible by 2 to the number of levels less one."""
        levels = [self.first(x)]
        for encoder in self.encoders:
            levels.append(encoder(functional.max_pool2d(levels[-1], 2)))
        gain = self.gain(levels[-1].mean(dim=(2, 3), keepdim=True))
        here = levels.pop()
        for decoder in self.decoders:
            wide = functional.interpolate(here, scale_factor=2, mode='bilinear', align_corners=True)
            here = decoder(torch.cat([wide, levels.pop()], dim=1))
        return gain * x + self.bias(here)
