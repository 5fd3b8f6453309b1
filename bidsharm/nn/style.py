"""Content and style: encoders of both, adaptive norms that bring a style into a network, and networks that draw styles from noise.

The residual networks are those of StarGAN v2 (Choi et al. 2020, doi:10.1109/CVPR42600.2020.00821), the plain ones those of MUNIT
(Huang et al. 2018, arXiv:1804.04732) and MURD (Liu and Yap 2024).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.blocks import ResidualBlock, Up, activation, conv, finish, norm
from bidsharm.nn.losses import moments
from bidsharm.nn.unet import UNet

_AVERAGE = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
_ADAPTIVE = {2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}
_CONVOLVE = {2: functional.conv2d, 3: functional.conv3d}
#: Features are averaged to this many places along each axis before the last convolution of an encoder.
LAST_SIZE = 4


def transfer_moments(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return features whose channels have other means and standard deviations (Huang and Belongie 2017, arXiv:1703.06868, eq. 8).

    Parameters
    ----------
    features
        Shape (B, C, ...).
    mean, deviation
        Of the style, shape (B, C) or (1, C).
    """
    shape = (1, 1, *(1 for _ in features.shape[2:]))
    own = [part.view(*part.shape, *shape[2:]) for part in (*moments(features), mean, deviation)]
    return (features - own[0]) / own[1] * own[3] + own[2]


def widths_of(width: int, downs: int, most: int) -> list[int]:
    """Return the channels of each level: doubled at each halving of the size, up to a bound."""
    return [min(width * 2**level, most) for level in range(downs + 1)]


def halved(x: Tensor) -> Tensor:
    """Return averages over 2 voxels along each axis; a last odd one is averaged alone."""
    return _AVERAGE[x.ndim - 2](x, 2, ceil_mode=True)


class AdaIN(nn.Module):
    """Instance norm whose scale and offset come from a style code (Huang and Belongie 2017)."""

    def __init__(self, dims: int, channels: int, style: int) -> None:
        super().__init__()
        self.normal = nn.InstanceNorm3d(channels) if dims == 3 else nn.InstanceNorm2d(channels)
        self.of_style = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Normalize features, shape (B, C, ...), with codes, shape (B, style)."""
        scale, offset = self.of_style(style).view(len(style), -1, *(1 for _ in x.shape[2:])).chunk(2, dim=1)
        return (1 + scale) * self.normal(x) + offset


class ShrinkingBlock(nn.Module):
    """A residual block with norms and activations before its convolutions, which may halve the size.

    Parameters
    ----------
    dims, ins, outs
        Axes of space, channels.
    normal
        Use instance norm.
    down
        Halve the size.
    """

    def __init__(self, dims: int, ins: int, outs: int, *, normal: bool = False, down: bool = False) -> None:
        super().__init__()
        kind: Literal['instance', 'none'] = 'instance' if normal else 'none'
        self.down = down
        self.first = nn.Sequential(norm(kind, dims, ins), activation('leaky'), conv(dims, ins, ins))
        self.second = nn.Sequential(norm(kind, dims, ins), activation('leaky'), conv(dims, ins, outs))
        self.shortcut = conv(dims, ins, outs, 1, bias=False) if ins != outs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return features of unit variance, if those that came in had it."""
        side, body = self.shortcut(x), self.first(x)
        if self.down:
            side, body = halved(side), halved(body)
        return (side + self.second(body)) / math.sqrt(2)


class StyledBlock(nn.Module):
    """A residual block whose norms take a style, which may double the size.

    Parameters
    ----------
    dims, ins, outs, style
        Axes of space, channels, length of the code.
    up
        Double the size.
    bare
        Without the shortcut, for networks with skip connections (StarGAN v2).
    """

    def __init__(
        self, dims: int, ins: int, outs: int, style: int, *, up: bool = False, bare: bool = False
    ) -> None:
        super().__init__()
        self.up, self.bare = up, bare
        self.norms = nn.ModuleList([AdaIN(dims, ins, style), AdaIN(dims, outs, style)])
        self.convs = nn.ModuleList([conv(dims, ins, outs), conv(dims, outs, outs)])
        self.shortcut = conv(dims, ins, outs, 1, bias=False) if ins != outs and not bare else nn.Identity()

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return features in a style."""
        body = functional.leaky_relu(self.norms[0](x, style), 0.2)
        side = x
        if self.up:
            body, side = (functional.interpolate(part, scale_factor=2) for part in (body, side))
        body = self.convs[1](functional.leaky_relu(self.norms[1](self.convs[0](body), style), 0.2))
        return body if self.bare else (body + self.shortcut(side)) / math.sqrt(2)


class StyledGenerator(nn.Module):
    """The generator of StarGAN v2: residual encoder, decoder of styled blocks, one network for all sites.

    Parameters
    ----------
    dims, channels
        Axes of space; channels of an image.
    width, most
        Channels at the finest level, and the largest number.
    downs, middle
        Halvings, and blocks without a change of size on either side of the bottleneck.
    style
        Length of the code.
    high_pass
        Add high-pass filtered features of the encoder to the decoder, at all levels between the finest and the bottleneck, divided by
        this number; 0 for none.
    """

    def __init__(
        self, *, dims: int = 2, channels: int = 1, width: int = 64, most: int = 512, downs: int = 4, middle: int = 2, style: int = 64,
        high_pass: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.high_pass, self.downs = high_pass, downs
        widths = widths_of(width, downs, most)
        pairs = list(itertools.pairwise(widths))
        bare = high_pass > 0
        self.first = conv(dims, channels, widths[0])
        self.encoder = nn.ModuleList(
            [ShrinkingBlock(dims, a, b, normal=True, down=True) for a, b in pairs]
            + [ShrinkingBlock(dims, widths[-1], widths[-1], normal=True) for _ in range(middle)]
        )
        self.decoder = nn.ModuleList(
            [StyledBlock(dims, widths[-1], widths[-1], style, bare=bare) for _ in range(middle)]
            + [StyledBlock(dims, b, a, style, up=True, bare=bare) for a, b in reversed(pairs)]
        )
        self.last = nn.Sequential(
            norm('instance', dims, widths[0]), activation('leaky'), conv(dims, widths[0], channels, 1)
        )

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return images, shape (B, C, ...), in styles, shape (B, style); sizes must be divisible by 2 to the number of halvings."""
        here, kept = self.first(x), {}
        for level, block in enumerate(self.encoder):
            if self.high_pass and 0 < level < self.downs:
                kept[here.shape[2:]] = here
            here = block(here)
        for block in self.decoder:
            here = block(here, style)
            if here.shape[2:] in kept:
                here = here + high_pass(kept[here.shape[2:]]) / self.high_pass
        return self.last(here)


def high_pass(x: Tensor) -> Tensor:
    """Return each voxel times the number of its neighbours less the sum of these, channel by channel; 0 beyond the border."""
    dims, channels = x.ndim - 2, x.shape[1]
    kernel = -torch.ones((3,) * dims, device=x.device, dtype=x.dtype)
    kernel[(1,) * dims] = 3**dims - 1
    return _CONVOLVE[dims](x, kernel.expand(channels, 1, *kernel.shape), padding=1, groups=channels)


class ResidualTrunk(nn.Module):
    """From an image to one vector by residual halvings: what style encoder and discriminator of StarGAN v2 share.

    Parameters
    ----------
    dims, channels, width, most, downs
        As for :class:`StyledGenerator`.
    """

    def __init__(self, dims: int, channels: int, *, width: int = 64, most: int = 512, downs: int = 6) -> None:
        super().__init__()
        widths = widths_of(width, downs, most)
        self.blocks = nn.Sequential(
            conv(dims, channels, widths[0]),
            *(ShrinkingBlock(dims, a, b, down=True) for a, b in itertools.pairwise(widths)),
            activation('leaky'),
        )
        made = conv(dims, widths[-1], widths[-1], LAST_SIZE)
        made.padding = (0,) * dims  # type: ignore[assignment]  # one place comes out
        self.last = nn.Sequential(made, activation('leaky'))

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors, shape (B, features), for images of any size."""
        return self.last(_ADAPTIVE[x.ndim - 2](self.blocks(x), LAST_SIZE)).flatten(1)


class Heads(nn.Module):
    """A linear layer for each site."""

    def __init__(self, features: int, outs: int, sites: int) -> None:
        super().__init__()
        self.outs = outs
        self.linear = nn.Linear(features, outs * sites)

    def forward(self, x: Tensor, site: Tensor | None) -> Tensor:
        """Return what the layer of each example's site says, shape (B, outs); the mean of all layers where the site is None."""
        found = self.linear(x).view(len(x), -1, self.outs)
        if site is None:
            return found.mean(dim=1)
        return found[torch.arange(len(x), device=x.device), site]


class StyleEncoder(nn.Module):
    """The style of an image, with a layer for each site at the end.

    Parameters
    ----------
    body
        From images to vectors.
    features
        Length of these.
    style, sites
        Length of the code; number of sites.
    """

    def __init__(self, body: nn.Module, features: int, style: int, sites: int) -> None:
        super().__init__()
        self.body, self.heads = body, Heads(features, style, sites)

    def forward(self, x: Tensor, site: Tensor | None) -> Tensor:
        """Return codes, shape (B, style), of images from sites, shape (B,); None for an unknown site."""
        return self.heads(self.body(x), site)


def residual_style_encoder(
    dims: int, channels: int, *, width: int, most: int, downs: int, style: int, sites: int
) -> StyleEncoder:
    """Return the style encoder of StarGAN v2."""
    trunk = ResidualTrunk(dims, channels, width=width, most=most, downs=downs)
    return StyleEncoder(trunk, widths_of(width, downs, most)[-1], style, sites)


class PlainTrunk(nn.Module):
    """From an image to one vector by strided convolutions without norms, which would take the style away (MUNIT)."""

    def __init__(self, dims: int, channels: int, *, width: int, most: int, downs: int) -> None:
        super().__init__()
        widths = widths_of(width, downs, most)
        parts = [conv(dims, channels, widths[0], 7), nn.ReLU()]
        for ins, outs in itertools.pairwise(widths):
            parts += [conv(dims, ins, outs, 4, 2), nn.ReLU()]
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean features over space, shape (B, features)."""
        return self.body(x).flatten(2).mean(dim=2)


def plain_style_encoder(
    dims: int, channels: int, *, width: int, most: int, downs: int, style: int, sites: int
) -> StyleEncoder:
    """Return the style encoder of MUNIT (one site) or MURD (a layer for each)."""
    trunk = PlainTrunk(dims, channels, width=width, most=most, downs=downs)
    return StyleEncoder(trunk, widths_of(width, downs, most)[-1], style, sites)


class ContentEncoder(nn.Module):
    """Content without style: strided convolutions and residual blocks, all with instance norm.

    Parameters
    ----------
    dims, channels
        Axes of space; channels of an image.
    width, downs, blocks
        Channels at the finest level, halvings (each doubles the channels), residual blocks.
    """

    def __init__(self, dims: int, channels: int, *, width: int = 64, downs: int = 2, blocks: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(downs + 1)]
        parts: list[nn.Module] = [_normal(dims, channels, width, 7, 1)]
        parts += [_normal(dims, a, b, 4, 2) for a, b in itertools.pairwise(widths)]
        parts += [ResidualBlock(dims, widths[-1], widths[-1], after='none') for _ in range(blocks)]
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (B, width * 2 ** downs, ...), smaller by 2 ** downs along each axis."""
        return self.body(x)


def _normal(dims: int, ins: int, outs: int, kernel: int, stride: int) -> nn.Module:
    return finish(conv(dims, ins, outs, kernel, stride), dims, outs, 'instance', 'relu', 'conv-norm-act')


class AdaptiveBlock(nn.Module):
    """A residual block of two convolutions, each followed by an adaptive norm."""

    def __init__(self, dims: int, channels: int, style: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(dims, channels, channels) for _ in range(2))
        self.norms = nn.ModuleList(AdaIN(dims, channels, style) for _ in range(2))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return features in a style."""
        body = functional.relu(self.norms[0](self.convs[0](x), style))
        return x + self.norms[1](self.convs[1](body), style)


class StyledDecoder(nn.Module):
    """From content and a style to an image (MUNIT, MURD).

    Parameters
    ----------
    dims, channels
        Axes of space; channels of an image.
    width, downs, blocks
        As of the :class:`ContentEncoder`.
    style, hidden
        Length of the code; units of two layers between the code and the norms, 0 for none.
    up
        ``interpolate`` (MUNIT) or ``transpose`` (MURD).
    """

    def __init__(
        self, dims: int, channels: int, *, width: int = 64, downs: int = 2, blocks: int = 4, style: int = 8, hidden: int = 256,
        up: Literal['transpose', 'interpolate'] = 'interpolate',
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [width * 2**level for level in reversed(range(downs + 1))]
        self.of_style = mlp([style, hidden, hidden]) if hidden else nn.Identity()
        self.blocks = nn.ModuleList(AdaptiveBlock(dims, widths[0], hidden or style) for _ in range(blocks))
        # Layer norm keeps what the adaptive norms have said about the channels relative to each other.
        ups = [
            Up(dims, a, b, 'layer', 'relu', 'conv-norm-act', how=up) for a, b in itertools.pairwise(widths)
        ]
        self.last = nn.Sequential(*ups, conv(dims, width, channels, 7))

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """Return images, shape (B, C, ...), without a last activation."""
        code = self.of_style(style)
        for block in self.blocks:
            content = block(content, code)
        return self.last(content)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers, each followed by a ReLU."""
    parts: list[nn.Module] = []
    for ins, outs in itertools.pairwise(widths):
        parts += [nn.Linear(ins, outs), nn.ReLU()]
    return nn.Sequential(*parts)


class StyleMapping(nn.Module):
    """Styles from noise: layers that all sites share, and layers of each site.

    Parameters
    ----------
    latent, hidden, style
        Length of the noise, of the layers and of the code.
    sites
        Number of sites.
    shared, own
        Layers of each kind; at least one is a site's own.
    """

    def __init__(
        self, latent: int, hidden: int, style: int, sites: int, *, shared: int = 4, own: int = 4
    ) -> None:
        super().__init__()
        self.shared = mlp([latent, *[hidden] * shared])
        self.own = nn.ModuleList(
            nn.Sequential(mlp([hidden] * own), nn.Linear(hidden, style)) for _ in range(sites)
        )

    def forward(self, noise: Tensor, site: Tensor) -> Tensor:
        """Return codes, shape (B, style), for noise, shape (B, latent), and sites, shape (B,)."""
        features = self.shared(noise)
        found = torch.stack([layers(features) for layers in self.own], dim=1)
        return found[torch.arange(len(noise), device=noise.device), site]


class VariationalUNet(nn.Module):
    """A 2-D U-Net whose bottleneck is a Gaussian that depends on a code, too.

    Parameters
    ----------
    widths
        Channels of the levels.
    code
        Length of the code.
    """

    def __init__(self, widths: Sequence[int], code: int) -> None:
        super().__init__()
        # Norms over channels keep what the code says about channels relative to each other.
        self.unet = UNet(dims=2, widths=widths, kind='layer')
        self.latent = conv(2, widths[-1] + code, 2 * widths[-1], 1)

    def forward(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, and mean and log of the variance of the bottleneck; while it learns, the bottleneck is drawn at random."""
        levels = self.unet.encode(x)
        wide = code[:, :, None, None].expand(-1, -1, *levels[-1].shape[2:])
        mean, log_variance = self.latent(torch.cat([levels[-1], wide], dim=1)).chunk(2, dim=1)
        drawn = mean
        if self.training:
            drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.unet.decode([*levels[:-1], drawn], x), mean, log_variance
