"""One volume from the volumes that slices along several axes gave (Zuo et al. 2021 and 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bidsharm.nn.blocks import conv


class FusionNet(nn.Module):
    """Four 3-D convolutions; the input joins in before the third. It begins as the mean of its inputs.

    Parameters
    ----------
    axes
        How many volumes come in.
    width
        Channels after the first convolution.
    floor
        Smallest value that comes out; None for no bound.
    """

    def __init__(self, axes: int = 3, width: int = 8, floor: float | None = 0.0) -> None:
        super().__init__()
        self.floor = floor
        self.features = nn.Sequential(
            conv(3, axes, width), nn.InstanceNorm3d(width), nn.LeakyReLU(),
            conv(3, width, 2 * width), nn.InstanceNorm3d(2 * width), nn.LeakyReLU(),
        )  # fmt: skip
        self.mix = nn.Conv3d(axes + 2 * width, 2 * width, 3, padding=1)
        self.last = nn.Conv3d(2 * width, 1, 3, padding=1)
        middle = (1, 1, 1)
        for layer, tap in ((self.mix, 1 / axes), (self.last, 1.0)):
            nn.init.zeros_(layer.weight[0])
            nn.init.zeros_(layer.bias) if layer.bias is not None else None
            with torch.no_grad():
                layer.weight[(0, slice(axes) if layer is self.mix else 0, *middle)] = tap

    def forward(self, x: Tensor) -> Tensor:
        """Return one volume, shape (B, 1, X, Y, Z), of several, shape (B, axes, X, Y, Z)."""
        found = self.last(nn.functional.leaky_relu(self.mix(torch.cat([x, self.features(x)], dim=1))))
        return found if self.floor is None else found.clamp_min(self.floor)
