"""A 3-D U-Net that draws what the canonical scanner would show of a brain, in voxels of 2 mm.

It writes what it likes into every voxel, so nothing that it draws is ever shown: `isotone` only fits a smooth gain and one increasing
curve to the drawing (:mod:`bidsharm.nn.isotone_fit`).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.isotone import scan_units

#: Channels at 4, 8 and 16 mm.
WIDTHS = (16, 48, 96)
#: Sizes of a volume are multiples of it.
BLOCK = 8


class CanonicalUNet(nn.Module):
    """Intensities and mask in, the canonical image out (Çiçek et al. 2016, doi:10.1007/978-3-319-46723-8_49).

    So that two cores can train it, blocks of 2 x 2 x 2 voxels are channels at 4 mm on the way down and become voxels again on the way
    up, where the input joins them once more (sub-pixel convolution: Shi et al. 2016, doi:10.1109/CVPR.2016.207).
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in itertools.pairwise((2 * 8, *WIDTHS)))
        self.up = nn.ModuleList(_convolutions(a + b, a) for a, b in itertools.pairwise(WIDTHS))
        self.spread = nn.Conv3d(WIDTHS[0], 8 * 8, 1)
        self.last = nn.Sequential(
            nn.Conv3d(8 + 2, 8, 3, padding=1), nn.LeakyReLU(0.01, inplace=True), nn.Conv3d(8, 1, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map shape (B, 2, X, Y, Z) to (B, 1, X, Y, Z); sizes are multiples of 8."""
        deep, kept = blocks_to_channels(image), []
        for level, block in enumerate(self.down):
            deep = block(deep if level == 0 else functional.max_pool3d(deep, 2))
            kept.append(deep)
        for level in reversed(range(len(self.up))):
            deep = self.up[level](
                torch.cat([kept[level], functional.interpolate(deep, scale_factor=2)], dim=1)
            )
        change: Tensor = self.last(torch.cat([image, channels_to_blocks(self.spread(deep))], dim=1))
        return image[:, :1] + change


def _convolutions(before: int, after: int) -> nn.Sequential:
    """Return two convolutions, each with group normalization and a leaky ReLU."""
    layers: list[nn.Module] = []
    for depth in (before, after):
        layers += [
            nn.Conv3d(depth, after, 3, padding=1, bias=False),
            nn.GroupNorm(8, after),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


def blocks_to_channels(image: Tensor) -> Tensor:
    """Turn shape (B, C, 2X, 2Y, 2Z) into (B, 8C, X, Y, Z)."""
    batch, depth, *sizes = image.shape
    x, y, z = (n // 2 for n in sizes)
    parts = image.reshape(batch, depth, x, 2, y, 2, z, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return parts.reshape(batch, depth * 8, x, y, z).contiguous(memory_format=torch.channels_last_3d)


def channels_to_blocks(image: Tensor) -> Tensor:
    """Turn shape (B, 8C, X, Y, Z) into (B, C, 2X, 2Y, 2Z)."""
    batch, depth, x, y, z = image.shape
    parts = image.reshape(batch, depth // 8, 2, 2, 2, x, y, z).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.reshape(batch, depth // 8, 2 * x, 2 * y, 2 * z)


def volume_of(values: Tensor, voxels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what the network sees of brain voxels, cut to the brain, and where in it they lie.

    Parameters
    ----------
    values
        Intensities of brain voxels of 2 mm, in any units, shape (V,).
    voxels
        Their positions, integer, shape (V, 3).

    Returns
    -------
    image : Tensor of shape (1, 2, X, Y, Z)
        Intensities in units of the scan, and the mask.
    where : three Tensors of shape (V,)
        The place of every voxel in it.
    """
    low, span = scan_units(values)
    place = voxels - voxels.amin(dim=0)
    sizes = [int(-(-(n + 1) // BLOCK)) * BLOCK for n in place.amax(dim=0)]
    image = torch.zeros(1, 2, *sizes, device=values.device)
    where = tuple(place.T)
    image[(0, 0, *where)] = (values - low) / span
    image[(0, 1, *where)] = 1
    return image.contiguous(memory_format=torch.channels_last_3d), where


def draw(net: nn.Module, values: Tensor, voxels: Tensor) -> Tensor:
    """Return the canonical intensity of brain voxels as the network draws it, shape (V,)."""
    image, where = volume_of(values, voxels)
    found: Tensor = net(image)[(0, 0, *where)]
    return found
