"""Layers that several networks share, in two or three dimensions: convolutions, norms, activations and the blocks made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.names import Downsampling, Norm

Activation = Literal['relu', 'leaky', 'elu', 'concat_elu', 'tanh', 'none']
Order = Literal['conv-norm-act', 'conv-act-norm']

_CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_INSTANCE: dict[int, type[nn.Module]] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_BATCH: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL: dict[int, type[nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_SMOOTH = {1: 'linear', 2: 'bilinear', 3: 'trilinear'}


class MeanAbsoluteDeviationNorm(nn.Module):
    """Instance norm that divides by the mean absolute deviation (Roca et al. 2024, IGUANe; its public code).

    Parameters
    ----------
    channels
        Number of channels; each has a scale and an offset.
    eps
        Added to the deviation.
    """

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize features, shape (B, C, ...)."""
        axes = tuple(range(2, x.ndim))
        centred = x - x.mean(axes, keepdim=True)
        normal = centred / (centred.abs().mean(axes, keepdim=True) + self.eps)
        shape = (1, -1, *(1 for _ in axes))
        return normal * self.scale.view(shape) + self.offset.view(shape)


class ConcatELU(nn.Module):
    """ELU of the features and of their negatives; twice as many channels come out (van den Oord et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (B, 2 C, ...)."""
        return functional.elu(torch.cat([x, -x], dim=1))


def conv(dims: int, ins: int, outs: int, kernel: int = 3, stride: int = 1, *, bias: bool = True) -> nn.Module:
    """Return a convolution that keeps sizes (divides them by the stride), padded with zeros."""
    return _CONV[dims](ins, outs, kernel, stride, (kernel - 1) // 2, bias=bias)


def norm(kind: Norm, dims: int, channels: int) -> nn.Module:
    """Return a norm over space (``instance``, ``mad``), batch and space, or channels and space (``layer``)."""
    if kind == 'instance':
        return _INSTANCE[dims](channels, affine=True)
    if kind == 'batch':
        return _BATCH[dims](channels)
    if kind == 'mad':
        return MeanAbsoluteDeviationNorm(channels)
    return nn.GroupNorm(1, channels) if kind == 'layer' else nn.Identity()


def activation(kind: Activation) -> nn.Module:
    """Return an activation; ``leaky`` has a slope of 0.2, as is usual in discriminators."""
    makers: dict[str, Callable[[], nn.Module]] = {
        'relu': nn.ReLU, 'leaky': lambda: nn.LeakyReLU(0.2), 'elu': nn.ELU, 'concat_elu': ConcatELU, 'tanh': nn.Tanh,
    }  # fmt: skip
    return makers.get(kind, nn.Identity)()


def widening(kind: Activation) -> int:
    """Return how many channels come out of an activation for each that goes in."""
    return 2 if kind == 'concat_elu' else 1


def finish(
    layer: nn.Module, dims: int, channels: int, kind: Norm, act: Activation, order: Order
) -> nn.Sequential:
    """Return a layer followed by its norm and activation, in either order."""
    if order == 'conv-act-norm':
        return nn.Sequential(layer, activation(act), norm(kind, dims, channels * widening(act)))
    return nn.Sequential(layer, norm(kind, dims, channels), activation(act))


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut (He et al. 2016, doi:10.1109/CVPR.2016.90).

    Parameters
    ----------
    dims
        2 or 3.
    ins, outs
        Channels; the shortcut is a 1 x 1 convolution where they differ.
    kind, act
        Norm and activation.
    after
        Activation of the sum, where it is another one.
    """

    def __init__(
        self,
        dims: int,
        ins: int,
        outs: int,
        kind: Norm = 'instance',
        act: Activation = 'relu',
        after: Activation | None = None,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(dims, ins, outs), norm(kind, dims, outs), activation(act), conv(dims, outs, outs), norm(kind, dims, outs)
        )  # fmt: skip
        self.shortcut = nn.Identity() if ins == outs else conv(dims, ins, outs, 1)
        self.last = activation(after or act)

    def forward(self, x: Tensor) -> Tensor:
        """Map features, shape (B, C, ...)."""
        return self.last(self.body(x) + self.shortcut(x))


class Down(nn.Module):
    """Half the size: a strided convolution with a kernel of 4, or a maximum over 2 voxels along each axis."""

    def __init__(
        self, dims: int, channels: int, kind: Norm, act: Activation, order: Order, *, how: Downsampling
    ) -> None:  # fmt: skip
        super().__init__()
        if how == 'pool':
            self.body: nn.Module = _POOL[dims](2)
        else:
            layer = _CONV[dims](channels, channels // widening(act), 4, 2, 1)
            self.body = finish(layer, dims, channels // widening(act), kind, act, order)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of half the size."""
        return self.body(x)


class Up(nn.Module):
    """Twice the size: a transposed convolution with a kernel of 4, or linear interpolation and a convolution."""

    def __init__(
        self,
        dims: int,
        ins: int,
        outs: int,
        kind: Norm,
        act: Activation,
        order: Order,
        *,
        how: Literal['transpose', 'interpolate'],
    ) -> None:
        super().__init__()
        self.smooth = _SMOOTH[dims] if how == 'interpolate' else ''
        width = outs // widening(act)
        layer = conv(dims, ins, width) if self.smooth else _TRANSPOSED[dims](ins, width, 4, 2, 1)
        self.body = finish(layer, dims, width, kind, act, order)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of twice the size."""
        if self.smooth:
            x = functional.interpolate(x, scale_factor=2, mode=self.smooth, align_corners=False)
        return self.body(x)


def silent(layer: nn.Module) -> nn.Module:
    """Return a layer whose weights begin with 0: a network that says a change begins with none."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable weights."""
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
