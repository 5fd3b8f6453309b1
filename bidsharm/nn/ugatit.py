"""Networks of U-GAT-IT (Kim et al. 2020, arXiv:1907.10830): attention by class activation, and a norm that shades from instance to layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from bidsharm.nn.blocks import ResidualBlock, activation, conv, silent
from bidsharm.nn.resnet import stem


class ClassActivation(nn.Module):
    """Weigh channels by how much they say about the site (Zhou et al. 2016; Kim et al. 2020, section 2.1).

    Parameters
    ----------
    dims
        2 or 3.
    channels
        Of the features.
    spectral
        Spectral normalization of the classifiers.
    """

    def __init__(self, dims: int, channels: int, *, spectral: bool = False) -> None:
        super().__init__()
        self.of_mean, self.of_largest = (nn.Linear(channels, 1, bias=False) for _ in range(2))
        if spectral:
            for layer in (self.of_mean, self.of_largest):
                spectral_norm(layer)
        self.merge = conv(dims, 2 * channels, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighed features, and two logits of each image, shape (B, 2): is it of the one site or the other."""
        flat = x.flatten(2)
        logits = torch.cat([self.of_mean(flat.mean(dim=2)), self.of_largest(flat.amax(dim=2))], dim=1)
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        weighed = [x * layer.weight.view(shape) for layer in (self.of_mean, self.of_largest)]
        return self.merge(torch.cat(weighed, dim=1)), logits


class LayerInstanceNorm(nn.Module):
    """A learnt mixture of instance and layer norm (Kim et al. 2020, eq. 1).

    Parameters
    ----------
    channels
        Of the features.
    share
        Part of the instance norm at the start; it stays between 0 and 1.
    given
        Scale and offset are given with each image (AdaLIN) instead of learnt.
    """

    def __init__(self, channels: int, share: float, *, given: bool) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((channels,), share))
        if not given:
            self.scale, self.offset = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, style: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Normalize features, shape (B, C, ...); ``style`` is a scale and an offset, each of shape (B, C)."""
        self.share.data.clamp_(0, 1)
        space = (1,) * (x.ndim - 2)
        share = self.share.view(1, -1, *space)
        by_layer = functional.layer_norm(x, x.shape[1:])
        mixed = share * functional.instance_norm(x, eps=1e-5) + (1 - share) * by_layer
        scale, offset = style if style is not None else (self.scale[None], self.offset[None])
        return mixed * scale.view(*scale.shape, *space) + offset.view(*offset.shape, *space)


class StyledBlock(nn.Module):
    """A residual block whose norms take scale and offset from the attention."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.first, self.second = (conv(dims, channels, channels, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(LayerInstanceNorm(channels, 0.9, given=True) for _ in range(2))

    def forward(self, x: Tensor, style: tuple[Tensor, Tensor]) -> Tensor:
        """Map features, shape (B, C, ...)."""
        inner = functional.relu(self.norms[0](self.first(x), style))
        return x + self.norms[1](self.second(inner), style)


class Rise(nn.Module):
    """Twice the size by repetition, then a convolution, layer-instance norm and ReLU."""

    def __init__(self, dims: int, ins: int, outs: int) -> None:
        super().__init__()
        self.layer, self.norm = (
            conv(dims, ins, outs, bias=False),
            LayerInstanceNorm(outs, 0.0, given=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of twice the size."""
        return functional.relu(self.norm(self.layer(functional.interpolate(x, scale_factor=2.0))))


class UgatitGenerator(nn.Module):
    """The generator: an encoder, attention, and a decoder whose norms the attended features steer.

    Scale and offset come from the mean of the attended features (the public code's light variant), so any size is served.

    Parameters
    ----------
    dims
        2 or 3.
    width
        Channels of the first layer.
    blocks
        Residual blocks before and after the attention, each.
    head
        ``direct`` says the image itself, ``residual`` a change of the input, which is none at the start.
    downs
        Halvings of the size.
    """

    def __init__(
        self, dims: int = 2, width: int = 64, blocks: int = 4, head: Literal['direct', 'residual'] = 'direct', downs: int = 2
    ) -> None:  # fmt: skip
        super().__init__()
        inner = width * 2**downs
        before = [ResidualBlock(dims, inner, inner, after='none') for _ in range(blocks)]
        self.encoder = nn.Sequential(*stem(dims, 1, width, downs), *before)
        self.attention = ClassActivation(dims, inner)
        self.steer = nn.Sequential(
            nn.Linear(inner, inner, bias=False), nn.ReLU(), nn.Linear(inner, inner, bias=False), nn.ReLU()
        )
        self.to_scale, self.to_offset = (nn.Linear(inner, inner, bias=False) for _ in range(2))
        self.blocks = nn.ModuleList(StyledBlock(dims, inner) for _ in range(blocks))
        ups = [Rise(dims, width * 2**level, width * 2 ** (level - 1)) for level in range(downs, 0, -1)]
        self.decoder = nn.Sequential(*ups, conv(dims, width, 1, 7))
        self.residual = head == 'residual'
        if self.residual:
            silent(self.decoder[-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return images, shape (B, 1, ...), and the two logits of the attention, shape (B, 2)."""
        features, logits = self.attention(self.encoder(x))
        features = functional.relu(features)
        code = self.steer(features.flatten(2).mean(dim=2))
        style = self.to_scale(code), self.to_offset(code)
        for block in self.blocks:
            features = block(features, style)
        found = self.decoder(features)
        return (x + found if self.residual else found), logits


class UgatitDiscriminator(nn.Module):
    """A discriminator with attention; it scores patches, and whole images by the logits of its attention.

    Parameters
    ----------
    dims
        2 or 3.
    widths
        Channels of the strided layers: three more see more (global) than one more (local).
    spectral
        Spectral normalization, which the paper has in every layer.
    """

    def __init__(self, dims: int, widths: Sequence[int], *, spectral: bool = True) -> None:
        super().__init__()

        def layer(ins: int, outs: int, stride: int, *, bias: bool = True) -> nn.Module:
            made = conv(dims, ins, outs, 4, stride, bias=bias)
            return spectral_norm(made) if spectral else made

        parts: list[nn.Module] = []
        for ins, outs in itertools.pairwise((1, *widths)):
            parts += [layer(ins, outs, 2), activation('leaky')]
        parts += [layer(widths[-1], 2 * widths[-1], 1), activation('leaky')]
        self.body = nn.Sequential(*parts)
        self.attention = ClassActivation(dims, 2 * widths[-1], spectral=spectral)
        self.last = layer(2 * widths[-1], 1, 1, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return scores of patches, shape (B, 1, ...), and of the images, shape (B, 2)."""
        features, logits = self.attention(self.body(x))
        return [self.last(functional.leaky_relu(features, 0.2)), logits]


class Judges(nn.ModuleList):
    """Several discriminators; all their scores in one list."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the scores of all of them."""
        return [score for judge in self for score in judge(x)]
