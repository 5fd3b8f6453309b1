"""An autoencoder with a map of codes, and an energy of such maps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from bidsharm.nn.blocks import Down, ResidualBlock, Up, conv


class Autoencoder(nn.Module):
    """Images to maps of codes and back, without skip connections: all that is known of the image goes through the code.

    Parameters
    ----------
    dims
        2 or 3.
    widths
        Channels of each level; sizes are halved between levels.
    code
        Channels of the code.
    """

    def __init__(self, dims: int = 2, widths: Sequence[int] = (32, 64, 128), code: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(dims, 1, widths[0])]
        for ins, outs in itertools.pairwise(widths):
            down = Down(dims, ins, 'none', 'relu', 'conv-act-norm', how='stride')
            layers += [down, ResidualBlock(dims, ins, outs, 'none')]
        self.encoder = nn.Sequential(*layers, conv(dims, widths[-1], code, 1))
        layers = [conv(dims, code, widths[-1], 1)]
        for ins, outs in itertools.pairwise(reversed(widths)):
            up = Up(dims, ins, outs, 'none', 'relu', 'conv-act-norm', how='interpolate')
            layers += [ResidualBlock(dims, ins, ins, 'none'), up]
        self.decoder = nn.Sequential(
            *layers, ResidualBlock(dims, widths[0], widths[0], 'none'), conv(dims, widths[0], 1, 1)
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return codes, shape (B, code, ...), of images whose sizes are divisible by 2 to the number of levels less one."""
        return self.encoder(x)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return what the encoder sees at each level but the finest, and the codes."""
        found = []
        for layer in self.encoder:
            x = layer(x)
            if isinstance(layer, ResidualBlock):
                found.append(x)
        return [*found, x]

    def decode(self, codes: Tensor) -> Tensor:
        """Return images, shape (B, 1, ...)."""
        return self.decoder(codes)

    def forward(self, x: Tensor) -> Tensor:
        """Return images put through their codes."""
        return self.decode(self.encode(x))


class Energy(nn.Module):
    """How unlike codes are to those of a site, for every place; smooth, so that one can go downhill.

    Parameters
    ----------
    dims
        2 or 3.
    code, width
        Channels of codes, and of the layers between.
    """

    def __init__(self, dims: int, code: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(dims, code, width), nn.SiLU(), conv(dims, width, width), nn.SiLU(), conv(dims, width, 1, 1)
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Return the energy of every place, shape (B, 1, ...)."""
        return self.body(codes)
