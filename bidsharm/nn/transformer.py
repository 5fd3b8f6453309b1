"""Self-attention over the places of a feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TransformerBottleneck(nn.Module):
    """A transformer encoder over all places of a feature map (Dosovitskiy et al. 2021, arXiv:2010.11929).

    Positions are sines and cosines of each coordinate, so any size is served.

    Parameters
    ----------
    channels
        Of the features; divisible by ``heads``.
    depth, heads
        Layers and heads.
    """

    def __init__(self, channels: int, *, depth: int = 4, heads: int = 8) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            channels, heads, 4 * channels, dropout=0.0, activation='gelu', batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map features, shape (B, C, ...), to features of the same size."""
        tokens = x.flatten(2).transpose(1, 2)
        places = positions(x.shape[2:], x.shape[1]).to(x)
        return self.encoder(tokens + places).transpose(1, 2).reshape(x.shape)


def positions(shape: torch.Size | tuple[int, ...], channels: int) -> Tensor:
    """Return the sinusoidal position of every place of a grid (Vaswani et al. 2017), the channels shared by the axes.

    Returns
    -------
    Tensor of shape (places, channels)
        Places in C order.
    """
    per_axis = math.ceil(channels / len(shape) / 2) * 2
    rates = torch.exp(torch.arange(0, per_axis, 2) * (-math.log(10_000) / per_axis))
    parts = []
    for axis, size in enumerate(shape):
        angles = torch.arange(size)[:, None] * rates
        wave = torch.cat([angles.sin(), angles.cos()], dim=1)
        view = [1] * len(shape) + [per_axis]
        view[axis] = size
        parts.append(wave.view(view).expand(*shape, per_axis))
    return torch.cat(parts, dim=-1).reshape(-1, per_axis * len(shape))[:, :channels]
