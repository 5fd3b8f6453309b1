"""Residual generators (Johnson et al. 2016, doi:10.1007/978-3-319-46475-6_43), as CycleGAN and its relatives use them, with their variants.

A convolution of 7 voxels, strided convolutions, residual blocks, transposed convolutions, a convolution of 7 voxels. Images lie in a background of
equal values, so they are padded with zeros instead of being mirrored at the border.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.blocks import ResidualBlock, Up, conv, finish, silent
from bidsharm.nn.names import Head, Norm

_ORDER: Literal['conv-norm-act'] = 'conv-norm-act'


def stem(dims: int, in_channels: int, width: int, downs: int = 2, kind: Norm = 'instance') -> list[nn.Module]:
    """Return the layers before the residual blocks: the first, and one for each halving, which doubles the channels."""
    layers: list[nn.Module] = [finish(conv(dims, in_channels, width, 7), dims, width, kind, 'relu', _ORDER)]
    for _ in range(downs):
        layers.append(finish(conv(dims, width, 2 * width, 3, 2), dims, 2 * width, kind, 'relu', _ORDER))
        width *= 2
    return layers


def crown(dims: int, out_channels: int, width: int, downs: int = 2, kind: Norm = 'instance') -> nn.Sequential:
    """Return the layers after the residual blocks: doublings of the size, and a last convolution without activation."""
    ups = [
        Up(dims, width * 2**level, width * 2 ** (level - 1), kind, 'relu', _ORDER, how='transpose')
        for level in range(downs, 0, -1)
    ]
    return nn.Sequential(*ups, conv(dims, width, out_channels, 7))


class ResNet(nn.Module):
    """A residual generator.

    Sizes of the input must be divisible by 2 to the power of ``downs``.

    Parameters
    ----------
    dims
        2 or 3.
    in_channels, out_channels
        Channels of images.
    width
        Channels of the first layer.
    blocks
        Residual blocks: 6 or 9.
    downs
        Halvings of the size.
    kind
        Norm.
    head
        ``direct`` says the image itself, ``residual`` a change of the input, which is none at the start, and ``attention`` several images
        that masks combine (:class:`AttentionHead`).
    masks
        Number of masks of the attention, that of the input among them.
    self_attention
        Let places attend to each other in the middle of the residual blocks (:class:`SelfAttention`).
    """

    def __init__(
        self,
        *,
        dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 64,
        blocks: int = 9,
        downs: int = 2,
        kind: Norm = 'instance',
        head: Head = 'direct',
        masks: int = 10,
        self_attention: bool = False,
    ) -> None:
        super().__init__()
        inner = width * 2**downs
        self.head, self.depth = head, 1 + downs
        self.layers = nn.ModuleList(stem(dims, in_channels, width, downs, kind))
        self.layers.extend(ResidualBlock(dims, inner, inner, kind, after='none') for _ in range(blocks))
        if self_attention:
            self.layers.insert(self.depth + blocks // 2, SelfAttention(dims, inner))
        if head == 'attention':
            self.crown: nn.Module = AttentionHead(dims, width, downs, kind, masks)
        else:
            self.crown = crown(dims, out_channels, width, downs, kind)
        if head == 'residual':
            silent(self.crown[-1])  # type: ignore[index]

    def taps(self, x: Tensor) -> list[Tensor]:
        """Return the image and the features after every layer up to the last residual block."""
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return found

    def channels(self) -> list[int]:
        """Return the channels of what :meth:`taps` returns."""
        first = self.layers[0][0]  # type: ignore[index]
        widths = [first.out_channels * 2**level for level in range(self.depth)]
        return [first.in_channels, *widths, *(widths[-1] for _ in self.layers[self.depth :])]

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (B, C, ...), to images of the same size."""
        features = self.taps(x)[-1]
        if self.head == 'attention':
            return self.crown(features, x)
        return x + self.crown(features) if self.head == 'residual' else self.crown(features)


class SelfAttention(nn.Module):
    """What every place takes from all others (Zhang et al. 2019, arXiv:1805.08318, eq. 1 to 3); nothing at the start.

    Parameters
    ----------
    dims
        2 or 3.
    channels
        Of the features; queries and keys have an eighth of them, values half.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        few, half = max(channels // 8, 1), max(channels // 2, 1)
        self.queries, self.keys = conv(dims, channels, few, 1), conv(dims, channels, few, 1)
        self.values, self.last = conv(dims, channels, half, 1), conv(dims, half, channels, 1)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map features, shape (B, C, ...), to features of the same shape."""
        queries, keys, values = (
            layer(x).flatten(2).transpose(1, 2) for layer in (self.queries, self.keys, self.values)
        )
        found = functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        return x + self.weight * self.last(found.transpose(1, 2).unflatten(2, x.shape[2:]))


class AttentionHead(nn.Module):
    """Several images, and masks that say where each of them counts (Tang et al. 2021, doi:10.1109/TNNLS.2021.3105725, eq. 3 and 4).

    The last mask belongs to the input, so what nobody needs to change stays. It begins with nine tenths of the weight.

    Parameters
    ----------
    dims, width, downs, kind
        As in :class:`ResNet`.
    masks
        Number of masks, that of the input among them.
    """

    def __init__(self, dims: int, width: int, downs: int, kind: Norm, masks: int) -> None:
        super().__init__()
        self.contents = crown(dims, masks - 1, width, downs, kind)
        self.attention = crown(dims, masks, width, downs, kind)
        start = torch.zeros(masks)
        start[-1] = torch.log(torch.tensor(9.0 * (masks - 1)))
        self.attention[-1].bias = nn.Parameter(start)

    def masks(self, features: Tensor) -> Tensor:
        """Return the masks, shape (B, masks, ...); at each place they add up to 1."""
        return self.attention(features).softmax(dim=1)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        """Return the combined image."""
        return (self.masks(features) * torch.cat([self.contents(features), x], dim=1)).sum(
            dim=1, keepdim=True
        )
