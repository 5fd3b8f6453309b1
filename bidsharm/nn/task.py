"""Networks that read a volume and answer a question about it: encoders to a vector, heads, and attention over space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bidsharm.nn.blocks import conv, norm


def _levels(widths: Sequence[int], convs: Sequence[int]) -> list[nn.Module]:
    """Return levels of convolutions, rectifiers and batch norms, the sizes halved between them."""
    parts: list[nn.Module] = []
    ins = 1
    for index, (width, count) in enumerate(zip(widths, convs, strict=True)):
        if index:
            parts.append(nn.MaxPool3d(2))
        for _ in range(count):
            parts += [conv(3, ins, width), nn.ReLU(), norm('batch', 3, width)]
            ins = width
    return parts


class VolumeEncoder(nn.Module):
    """A volume to a vector, in the manner of VGG (Dinsdale et al. 2021, fig. 2).

    Parameters
    ----------
    widths, convs
        Channels of each level, and how many convolutions it has; sizes are halved between levels.
    code
        Length of the vector.
    """

    def __init__(self, widths: Sequence[int], convs: Sequence[int], code: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_levels(widths, convs))
        # Pooled to a fixed size, so that the field of view may be any.
        self.code = nn.Sequential(
            nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(8 * widths[-1], code), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors, shape (B, code), for volumes, shape (B, 1, X, Y, Z)."""
        return self.code(self.body(x))


class SpatialAttention(nn.Module):
    """Where to look: a map in [0, 1] from the largest and the mean of all channels (Woo et al. 2018, arXiv:1807.06521, eq. 3).

    Parameters
    ----------
    kernel
        Edge of the convolution.
    """

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.score = conv(3, 2, 1, kernel)

    def forward(self, features: Tensor) -> Tensor:
        """Return a map, shape (B, 1, X, Y, Z)."""
        seen = torch.cat([features.amax(dim=1, keepdim=True), features.mean(dim=1, keepdim=True)], dim=1)
        return torch.sigmoid(self.score(seen))


class AttentiveEncoder(nn.Module):
    """A volume to a vector, by features weighed with a map of attention (Guan et al. 2021).

    Parameters
    ----------
    widths, convs, code
        As for :class:`VolumeEncoder`.
    """

    def __init__(self, widths: Sequence[int], convs: Sequence[int], code: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_levels(widths, convs))
        self.attention = SpatialAttention()
        self.code = nn.Sequential(
            nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(8 * widths[-1], code), nn.ReLU()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors, shape (B, code), and maps of attention at the coarsest level, shape (B, 1, x, y, z)."""
        features = self.body(x)
        where = self.attention(features)
        return self.code(features * where), where


class InceptionBlock(nn.Module):
    """Convolutions of several reaches side by side, around a shortcut (Szegedy et al. 2017, arXiv:1602.07261, fig. 10).

    Parameters
    ----------
    width
        Channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        part = max(width // 4, 1)

        def branch(*widths: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for index, outs in enumerate(widths):
                ins = width if index == 0 else widths[index - 1]
                layers += [conv(3, ins, outs, 1 if index == 0 else 3), norm('batch', 3, outs), nn.ReLU()]
            return nn.Sequential(*layers)

        self.branches = nn.ModuleList([branch(part), branch(part, part), branch(part, part, part)])
        self.join = conv(3, 3 * part, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map features, shape (B, width, X, Y, Z)."""
        return torch.relu(x + self.join(torch.cat([branch(x) for branch in self.branches], dim=1)))


class InceptionEncoder(nn.Module):
    """A volume to a vector, by residual blocks with branches (Wolleb et al. 2022).

    Parameters
    ----------
    widths
        Channels of each level; sizes are halved before each.
    code
        Length of the vector.
    """

    def __init__(self, widths: Sequence[int], code: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        ins = 1
        for width in widths:
            parts += [
                conv(3, ins, width, stride=2),
                norm('batch', 3, width),
                nn.ReLU(),
                InceptionBlock(width),
            ]
            ins = width
        self.body = nn.Sequential(*parts)
        self.code = nn.Sequential(nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(8 * ins, code))

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors, shape (B, code), for volumes, shape (B, 1, X, Y, Z)."""
        return self.code(self.body(x))


class Head(nn.Module):
    """A vector to an answer, by one hidden layer.

    Parameters
    ----------
    code, hidden, outs
        Lengths of the vector, the hidden layer and the answer.
    """

    def __init__(self, code: int, hidden: int, outs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, outs))

    def forward(self, x: Tensor) -> Tensor:
        """Return answers, shape (B, outs)."""
        return self.body(x)
