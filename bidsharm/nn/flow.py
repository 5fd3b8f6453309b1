"""Normalizing flows: networks that can be run backwards and know how they change volumes, so that they give an image a probability.

Every layer returns its output and the logarithm of the absolute determinant of its Jacobian, one number per image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.blocks import conv
from bidsharm.nn.spline import rational_quadratic


class Invertible(nn.Module, ABC):
    """A layer that can be run backwards."""

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the output for images, shape (B, C, ...), and the log-determinants, shape (B,)."""

    @abstractmethod
    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return what :meth:`forward` was given."""


class Squeeze(Invertible):
    """Put neighbours into channels: half the size, 2 to the number of axes times the channels (Dinh et al. 2017, arXiv:1605.08803, sec. 3.6)."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return images of half the size."""
        del context
        axes = x.ndim - 2
        sizes = [part for size in x.shape[2:] for part in (size // 2, 2)]
        wide = x.reshape(*x.shape[:2], *sizes)
        order = [0, 1, *(3 + 2 * axis for axis in range(axes)), *(2 + 2 * axis for axis in range(axes))]
        return wide.permute(order).reshape(len(x), -1, *sizes[::2]), x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return images of twice the size."""
        del context
        axes = y.ndim - 2
        wide = y.reshape(len(y), -1, *[2] * axes, *y.shape[2:])
        order = [0, 1, *(place for axis in range(axes) for place in (2 + axes + axis, 2 + axis))]
        return wide.permute(order).reshape(len(y), -1, *(2 * size for size in y.shape[2:]))


class ActNorm(Invertible):
    """An offset and a scale per channel; the first batch of the training sets them so that it comes out standardized (Kingma and Dhariwal 2018, sec. 3.1)."""

    ready: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset, self.log_scale = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer('ready', torch.zeros(1, dtype=torch.uint8))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scaled images."""
        del context
        if self.training and not self.ready:
            self._measure(x)
        y = (x + _of_channels(self.offset, x)) * _of_channels(self.log_scale, x).exp()
        return y, (self.log_scale.sum() * math.prod(x.shape[2:])).expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return unscaled images."""
        del context
        return y * (-_of_channels(self.log_scale, y)).exp() - _of_channels(self.offset, y)

    @torch.no_grad()
    def _measure(self, x: Tensor) -> None:
        axes = (0, *range(2, x.ndim))
        moments = torch.stack([x.mean(axes), x.square().mean(axes)])
        if (
            torch.distributed.is_available() and torch.distributed.is_initialized()
        ):  # all processes set the same
            torch.distributed.all_reduce(moments)
            moments /= torch.distributed.get_world_size()
        self.offset.copy_(-moments[0])
        deviation = (moments[1] - moments[0].square()).clamp_min(0).sqrt()
        self.log_scale.copy_(-(deviation + 1e-3).log())
        self.ready.fill_(1)


class Mixing(Invertible):
    """A 1 x 1 convolution with an invertible matrix (Kingma and Dhariwal 2018, eq. 9)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels)).Q.contiguous())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mixed channels."""
        del context
        volume = torch.linalg.slogdet(self.weight.double()).logabsdet.to(x) * math.prod(x.shape[2:])
        return torch.einsum('ij,bj...->bi...', self.weight, x), volume.expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return unmixed channels."""
        del context
        return torch.einsum('ij,bj...->bi...', torch.linalg.inv(self.weight.double()).to(y), y)


class Logit(Invertible):
    """From (0, 1) to all numbers (Dinh et al. 2017, sec. 4.1).

    Parameters
    ----------
    alpha
        Shrinks images a little towards 1/2, so that 0 and 1 have finite values.
    """

    def __init__(self, alpha: float = 1e-5) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits; values outside 0 to 1 are taken to the nearest of them."""
        del context
        p = x.clamp(0, 1) * (1 - self.alpha) + 0.5 * self.alpha
        slopes = math.log(1 - self.alpha) - p.log() - (1 - p).log()
        return p.log() - (1 - p).log(), slopes.flatten(1).sum(dim=1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return numbers from 0 to 1."""
        del context
        return (y.sigmoid() - 0.5 * self.alpha) / (1 - self.alpha)


class Shift(Invertible):
    """Move images by a constant."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return moved images."""
        del context
        return x + self.by, x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return images where they were."""
        del context
        return y - self.by


class Coupling(Invertible):
    """One part of the image says how the other one is mapped (Dinh et al. 2017, sec. 3.4; splines: Durkan et al. 2019, arXiv:1906.04032).

    Parameters
    ----------
    net
        From the kept part (zeros elsewhere; the context, where there is one, concatenated) to the parameters of the map: for each channel 2
        (affine) or 3 ``bins`` - 1 (spline).
    channels
        Of the image.
    by
        Which part is kept: every other voxel (``checker``) or half of the ``channels``.
    odd
        Keep the other part.
    bins
        Of a rational-quadratic spline; 0 for an affine map, whose log-scale is at most a learnt bound.
    bound
        The spline is the identity beyond plus and minus this.
    """

    def __init__(
        self,
        net: nn.Module,
        channels: int,
        *,
        by: Literal['checker', 'channels'] = 'channels',
        odd: bool = False,
        bins: int = 0,
        bound: float = 1.0,
    ) -> None:
        super().__init__()
        self.net, self.by, self.odd, self.bins, self.bound = net, by, odd, bins, bound
        self.log_bound = nn.Parameter(torch.zeros(channels)) if not bins else None

    def kept(self, x: Tensor) -> Tensor:
        """Return 1 where the image stays as it is, 0 elsewhere."""
        if self.by == 'channels':
            half = torch.arange(x.shape[1], device=x.device) < x.shape[1] // 2
            return _of_channels(half ^ self.odd, x).to(x)
        grids = torch.meshgrid(*(torch.arange(size, device=x.device) for size in x.shape[2:]), indexing='ij')
        return ((torch.stack(list(grids)).sum(dim=0) % 2 == 0) ^ self.odd).to(x)[None, None]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mapped images."""
        return self._mapped(x, context, backwards=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return images as they were."""
        return self._mapped(y, context, backwards=True)[0]

    def _mapped(self, x: Tensor, context: Tensor | None, *, backwards: bool) -> tuple[Tensor, Tensor]:
        kept = self.kept(x)
        seen = x * kept if context is None else torch.cat([x * kept, context], dim=1)
        parameters = self.net(seen).unflatten(1, (-1, x.shape[1]))
        map_ = self._spline if self.bins else self._affine
        y, slopes = map_(x, parameters, backwards)
        return x * kept + y * (1 - kept), (slopes * (1 - kept)).flatten(1).sum(dim=1)

    def _affine(self, x: Tensor, parameters: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
        assert self.log_bound is not None
        bound = _of_channels(self.log_bound, x).exp()
        scale, shift = bound * torch.tanh(parameters[:, 0] / bound), parameters[:, 1]
        if backwards:
            return x * (-scale).exp() - shift, -scale
        return (x + shift) * scale.exp(), scale

    def _spline(self, x: Tensor, parameters: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = parameters.movedim(1, -1).split(
            [self.bins, self.bins, self.bins - 1], dim=-1
        )
        return rational_quadratic(x, widths, heights, slopes, bound=self.bound, backwards=backwards)


class Flow(nn.Module):
    """Layers by level; after each level but the last one, half of the channels is done where ``split`` is set (Dinh et al. 2017, sec. 3.6).

    Latents are standard normal.

    Parameters
    ----------
    levels
        Layers of each level, which begins with what changes the size.
    split
        Whether channels leave between levels.
    """

    def __init__(self, levels: Sequence[Sequence[Invertible]], *, split: bool = True) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.ModuleList(level) for level in levels)
        self.split = split

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the latents of all levels, and the log-determinants, shape (B,)."""
        latents, total = [], x.new_zeros(len(x))
        for number, level in enumerate(self.levels, start=1):
            for layer in level:  # type: ignore[attr-defined]  # a ModuleList
                x, volume = layer(x)
                total = total + volume
            if self.split and number < len(self.levels):
                x, done = x.chunk(2, dim=1)
                latents.append(done)
        return [*latents, x], total

    def inverse(self, latents: Sequence[Tensor]) -> Tensor:
        """Return the images of latents."""
        x, waiting = latents[-1], list(latents[:-1])
        for number, level in reversed(list(enumerate(self.levels, start=1))):
            if self.split and number < len(self.levels):
                x = torch.cat([x, waiting.pop()], dim=1)
            for layer in reversed(list(level)):  # type: ignore[call-overload]
                x = layer.inverse(x)
        return x

    def log_density(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density of images, shape (B,)."""
        latents, volume = self(x)
        return torch.stack([_log_normal(latent) for latent in latents]).sum(dim=0) + volume


class Noise(nn.Module):
    """Noise of one grey level, from 0 to 1, so that a density cannot grow without bound on images of few levels.

    Uniform where there are no layers; else its distribution depends on the image (variational dequantization: Ho et al. 2019, arXiv:1902.00275, eq. 4).

    Parameters
    ----------
    layers
        Couplings that see the image as context.
    """

    def __init__(self, layers: Sequence[Invertible] = ()) -> None:
        super().__init__()
        self.layers, self.logit = nn.ModuleList(layers), Logit()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return noise for images, and the negative logarithm of its density, shape (B,)."""
        noise = torch.rand_like(x)
        if not len(self.layers):
            return noise, x.new_zeros(len(x))
        noise, total = self.logit(noise)
        for layer in self.layers:
            noise, volume = layer(noise, 2 * x - 1)
            total = total + volume
        volume = functional.logsigmoid(noise) + functional.logsigmoid(-noise)
        return noise.sigmoid(), total + volume.flatten(1).sum(dim=1)


class ImageDensity(nn.Module):
    """How likely an image is, in bits per voxel.

    Parameters
    ----------
    flow
        Sees images from 0 to 1.
    noise
        Added to them.
    grey_levels
        That an image is thought to be made of.
    span
        Intensity that becomes 1.
    """

    def __init__(self, flow: Flow, noise: Noise, *, grey_levels: int = 256, span: float = 1.5) -> None:
        super().__init__()
        self.flow, self.noise, self.grey_levels, self.span = flow, noise, grey_levels, span

    def forward(self, x: Tensor) -> Tensor:
        """Return bits per dimension of each image, shape (B,); noise is drawn."""
        unit = x / self.span
        noise, spread = self.noise(unit)
        found = self.flow.log_density(unit + noise / self.grey_levels) + spread
        voxels = math.prod(x.shape[1:])
        return math.log2(self.grey_levels) - found / (voxels * math.log(2))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the latents of images, in the middle of their grey levels."""
        return self.flow(x / self.span + 0.5 / self.grey_levels)[0]

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Return the images of latents, from the first to the last grey level: where no image was ever seen, a flow makes numbers of any size."""
        return ((self.flow.inverse(latents) - 0.5 / self.grey_levels) * self.span).clamp(0, self.span)


def glow(dims: int, *, levels: int, steps: int, width: int, bins: int = 4, bound: float = 1.0) -> Flow:
    """Return a multi-scale flow of steps of ActNorm, mixing and coupling (Kingma and Dhariwal 2018; splines: Durkan et al. 2019).

    Parameters
    ----------
    dims
        2 or 3.
    levels, steps
        Number of levels, and steps of each.
    width
        Channels of the coupling networks.
    bins, bound
        Of the splines; 0 bins for affine couplings.
    """
    channels, made = 1, []
    for _ in range(levels):
        channels *= 2**dims
        layers: list[Invertible] = [Squeeze()]
        for _ in range(steps):
            net = _plain_net(dims, channels, width, channels * (3 * bins - 1 if bins else 2))
            layers += [ActNorm(channels), Mixing(channels), Coupling(net, channels, bins=bins, bound=bound)]
        made.append([*layers, Mixing(channels)])
        channels //= 2
    made[0].insert(0, Shift(-0.5))
    return Flow(made)


def real_nvp(dims: int, net: Callable[[int, int], nn.Module], *, levels: int = 3, couplings: int = 4) -> Flow:
    """Return affine couplings at each size, by voxels first and then by channels; nothing leaves between levels (public code of Beizaee et al. 2023).

    Parameters
    ----------
    dims
        2 or 3.
    net
        Makes a coupling network from its channels in and out; its last layer should begin at 0.
    levels, couplings
        Number of levels, and couplings of each.
    """
    made: list[list[Invertible]] = [[Logit()]]
    for level in range(levels):
        channels = 2 ** (dims * level)
        by: Literal['checker', 'channels'] = 'channels' if level else 'checker'
        start: list[Invertible] = [Squeeze()] if level else []
        made.append(
            [*start, *(Coupling(net(channels, 2 * channels), channels, by=by, odd=bool(n % 2)) for n in range(couplings))]
        )  # fmt: skip
    return Flow(made, split=False)


def begin_at_zero(layer: nn.Module) -> nn.Module:
    """Return a layer whose weights are 0, so that a coupling begins as the identity."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def _plain_net(dims: int, ins: int, width: int, outs: int) -> nn.Sequential:
    return nn.Sequential(
        conv(dims, ins, width), nn.ReLU(), conv(dims, width, width, 1), nn.ReLU(), begin_at_zero(conv(dims, width, outs))
    )  # fmt: skip


def _of_channels(values: Tensor, x: Tensor) -> Tensor:
    """Return one number per channel in a shape that goes with images."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


def _log_normal(z: Tensor) -> Tensor:
    """Return the log-density of standard normal numbers, summed for each image."""
    return (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(dim=1)
