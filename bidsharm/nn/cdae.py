"""Parts of CDAE (Zhao et al. 2023): its decoder and its two classifiers, laid out as the weights that its authors publish."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bidsharm.imaging.icosphere import vertex_count
from bidsharm.nn.spherical import (
    SLOPE,
    RingConv,
    RingPool,
    RingUp,
    SphericalEncoder,
    SurfaceNorm,
    conv_block,
    double_block,
)


class UpBlock(nn.Module):
    """Transposed convolution and two convolutions, without anything from the encoder."""

    def __init__(self, inputs: int, outputs: int, level: int, norm: SurfaceNorm) -> None:
        super().__init__()
        self.up = RingUp(inputs, outputs, level - 1)
        self.double_conv = double_block(outputs, outputs, level, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the level above."""
        found: Tensor = self.double_conv(self.up(x))
        return found


class Decoder(nn.Module):
    """From a code and a site to a map.

    Parameters
    ----------
    sites
        How many there are.
    widths
        Channels of the levels of the encoder, finest first.
    level
        Of a map.
    norm
        After the convolutions in the middle.
    outer
        After those of the first and the last block.
    """

    def __init__(
        self, sites: int, widths: Sequence[int], level: int, norm: SurfaceNorm, outer: SurfaceNorm
    ) -> None:
        super().__init__()
        coarse = level - len(widths) + 1
        middle = [
            UpBlock(widths[step + 1], widths[step], level - step - 1, norm)
            for step in range(len(widths) - 3, -1, -1)
        ]
        first = conv_block(widths[-1] + sites, widths[-2], coarse, outer)
        last = [
            RingUp(widths[0], widths[0], level - 1),
            *conv_block(widths[0], widths[0], level, outer),
            RingConv(widths[0], 1, level),
        ]
        self.up = nn.ModuleList([nn.Sequential(*first), *middle, nn.Sequential(*last)])

    def forward(self, code: Tensor, site: Tensor) -> Tensor:
        """Return maps, shape (B, 1, N), for codes, shape (B, C, M), and sites, shape (B, S)."""
        x = torch.cat([site[:, :, None].expand(-1, -1, code.shape[2]), code], dim=1)
        for block in self.up:
            x = block(x)
        return x


class SiteClassifier(nn.Module):
    """Tells the site of a map.

    Parameters
    ----------
    sites
        How many there are.
    widths, level, norm
        Of its encoder.
    """

    def __init__(self, sites: int, widths: Sequence[int], level: int, norm: SurfaceNorm) -> None:
        super().__init__()
        self.encoder = SphericalEncoder(1, widths, level, norm)
        self.out = nn.Linear(vertex_count(self.encoder.level), sites)

    def forward(self, x: Tensor) -> Tensor:
        """Return how much a map is of each site, shape (B, S), from 0 to 1."""
        return torch.sigmoid(self.out(self.encoder(x).mean(dim=1)))


class CodeClassifier(nn.Module):
    """Tells the site of a code.

    Parameters
    ----------
    sites
        How many there are.
    channels, level
        Of a code.
    norm
        After its convolutions.
    """

    def __init__(self, sites: int, channels: int, level: int, norm: SurfaceNorm) -> None:
        super().__init__()
        self.seen = nn.Sequential(
            RingPool(level),
            *conv_block(channels, 32, level - 1, norm),
            *conv_block(32, sites, level - 1, norm),
        )
        self.out = nn.Sequential(
            nn.Linear(sites * vertex_count(level - 1), 256),
            nn.LeakyReLU(SLOPE),
            nn.Linear(256, 32),
            nn.LeakyReLU(SLOPE),
            nn.Linear(32, sites),
        )

    def forward(self, code: Tensor) -> Tensor:
        """Return how much a code is of each site, shape (B, S), from 0 to 1."""
        return torch.sigmoid(self.out(self.seen(code).flatten(1)))
