"""Transformers for content and style (StyTr2, Deng et al. 2022, arXiv:2105.14576)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.blocks import conv

#: Positions are found on this grid, whatever the size of the image.
PLACES = 18


class ContentAwarePositions(nn.Module):
    """Positions that follow from the content: features averaged to a small grid, mixed, and spread out again (StyTr2, section 3.2).

    Parameters
    ----------
    channels
        Of the features.
    places
        Edge of the small grid.
    """

    def __init__(self, channels: int, places: int = PLACES) -> None:
        super().__init__()
        self.places = places
        self.mix = conv(2, channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return positions for features, both of shape (B, C, rows, columns)."""
        small = self.mix(functional.adaptive_avg_pool2d(x, self.places))
        return functional.interpolate(small, x.shape[2:], mode='bilinear', align_corners=False)


class StyleTransformer(nn.Module):
    """Patches of a content and of a style image, an encoder for each, a decoder that looks from the one to the other, convolutions to an image.

    Parameters
    ----------
    channels
        Length of a token.
    patch
        Edge of a patch, a power of 2.
    depth, heads
        Layers of the encoders and of the decoder; heads of their attention.
    """

    def __init__(self, channels: int = 512, patch: int = 8, depth: int = 3, heads: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, channels, patch, patch)
        self.positions = ContentAwarePositions(channels)
        self.of_content, self.of_style = (
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(channels, heads, 4 * channels, dropout=0.0, batch_first=True),
                depth, enable_nested_tensor=False,
            )
            for _ in range(2)
        )  # fmt: skip
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(channels, heads, 4 * channels, dropout=0.0, batch_first=True), depth
        )
        parts: list[nn.Module] = []
        while patch > 1:
            inner = max(channels // 2, 8)
            parts += [conv(2, channels, inner), nn.ReLU(), nn.Upsample(scale_factor=2)]
            channels, patch = inner, patch // 2
        self.to_image = nn.Sequential(*parts, conv(2, channels, channels), nn.ReLU(), conv(2, channels, 1))

    def style_tokens(self, y: Tensor) -> Tensor:
        """Return the tokens of style images, shape (B, patches, channels); styles know no positions."""
        return self.of_style(tokens(self.embed(y)))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return content images, shape (B, 1, rows, columns), in styles given by tokens, shape (B, any number, channels)."""
        patches = self.embed(x)
        content = self.of_content(tokens(patches + self.positions(patches)))
        found = self.decoder(content, style)
        return self.to_image(found.transpose(1, 2).reshape(patches.shape))


def tokens(features: Tensor) -> Tensor:
    """Return a feature map, shape (B, C, rows, columns), as tokens, shape (B, places, C)."""
    return features.flatten(2).transpose(1, 2)


def normalized(features: Tensor) -> Tensor:
    """Return features whose channels have mean 0 and deviation 1 over space."""
    return functional.instance_norm(features) if features[0, 0].numel() > 1 else torch.zeros_like(features)
