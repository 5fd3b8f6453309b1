"""Networks on the icosphere: convolution over a vertex and its neighbours, pooling, transposed convolution, and what is built of them.

Features have the shape (B, C, N), where N is the number of vertices of a level (:mod:`bidsharm.imaging.icosphere`). After the Spherical U-Net of
Zhao et al. (2019), arXiv:1904.00906. A filter sees the six directions from a vertex by the compass, so it is not invariant to
rotations of the sphere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.imaging.icosphere import icosphere, vertex_count
from bidsharm.nn.names import SurfaceNorm

SLOPE = 0.2


class RingConv(nn.Module):
    """Convolution over a vertex and its neighbours: their features, one weight for each of the seven.

    Parameters
    ----------
    inputs, outputs
        Channels.
    level
        Of the icosphere.
    """

    ring: Tensor

    def __init__(self, inputs: int, outputs: int, level: int) -> None:
        super().__init__()
        self.weight = nn.Linear(7 * inputs, outputs)
        self.register_buffer('ring', _tensor(icosphere(level).ring.ravel()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same level."""
        batch, channels, vertices = x.shape
        # Features of one vertex lie side by side, for that is what is gathered.
        seen = x.transpose(1, 2).index_select(1, self.ring).reshape(batch, vertices, 7 * channels)
        weight = self.weight.weight.unflatten(1, (channels, 7)).transpose(1, 2).flatten(1)
        return functional.linear(seen, weight, self.weight.bias).transpose(1, 2)


class RingPool(nn.Module):
    """Mean over a vertex and its neighbours, for the vertices of the next coarser level.

    Parameters
    ----------
    level
        Of what goes in.
    """

    ring: Tensor

    def __init__(self, level: int) -> None:
        super().__init__()
        coarse = icosphere(level).ring[: icosphere(level - 1).size]
        self.register_buffer('ring', _tensor(coarse.ravel()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the level below."""
        seen = x.transpose(1, 2).index_select(1, self.ring)
        return seen.unflatten(1, (-1, 7)).mean(dim=2).transpose(1, 2)


class MidpointUp(nn.Module):
    """Interpolation to the next finer level: a new vertex takes the mean of the two that it lies between.

    Parameters
    ----------
    level
        Of what goes in.
    """

    parents: Tensor

    def __init__(self, level: int) -> None:
        super().__init__()
        self.register_buffer('parents', _tensor(icosphere(level + 1).parents.ravel()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the level above."""
        ends = x.transpose(1, 2).index_select(1, self.parents)
        return torch.cat([x, ends.unflatten(1, (-1, 2)).mean(dim=2).transpose(1, 2)], dim=2)


class RingUp(nn.Module):
    """Transposed convolution to the next finer level: each vertex makes seven features, for itself and towards its neighbours.

    Parameters
    ----------
    inputs, outputs
        Channels.
    level
        Of what goes in.
    """

    own: Tensor
    between: Tensor

    def __init__(self, inputs: int, outputs: int, level: int) -> None:
        super().__init__()
        self.weight = nn.Linear(inputs, 7 * outputs)
        fine, coarse = icosphere(level + 1), vertex_count(level)
        new = np.arange(coarse, fine.size)[:, None, None]
        slot = (fine.ring[fine.parents] == new).argmax(axis=2)
        self.register_buffer('own', _tensor(np.arange(coarse) * 7 + 6), persistent=False)
        self.register_buffer('between', _tensor((fine.parents * 7 + slot).ravel()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the level above."""
        batch, _, vertices = x.shape
        made = self.weight(x.transpose(1, 2)).reshape(batch, vertices * 7, -1)
        middle = made.index_select(1, self.between).unflatten(1, (-1, 2)).mean(dim=2)
        return torch.cat([made.index_select(1, self.own), middle], dim=1).transpose(1, 2)


def norm_layer(norm: SurfaceNorm, channels: int) -> nn.Module:
    """Return a norm: over four groups of channels, over each channel of a map, or none."""
    if norm == 'none':
        return nn.Identity()
    return nn.GroupNorm(channels if norm == 'channel' else min(4, channels), channels)


def conv_block(inputs: int, outputs: int, level: int, norm: SurfaceNorm) -> list[nn.Module]:
    """Return a convolution, its norm and a leaky ReLU."""
    return [RingConv(inputs, outputs, level), norm_layer(norm, outputs), nn.LeakyReLU(SLOPE)]


def double_block(
    inputs: int, outputs: int, level: int, norm: SurfaceNorm, *, pool: bool = False
) -> nn.Sequential:
    """Return two convolutions with norms and activations, after pooling from the level above where that is asked for."""
    before = [RingPool(level + 1)] if pool else []
    return nn.Sequential(
        *before, *conv_block(inputs, outputs, level, norm), *conv_block(outputs, outputs, level, norm)
    )


class SphericalEncoder(nn.Module):
    """Double convolutions, each on a coarser level than the one before.

    Parameters
    ----------
    inputs
        Channels of a map.
    widths
        Channels of the levels, finest first.
    level
        Of a map.
    norm
        After each convolution.
    """

    def __init__(self, inputs: int, widths: Sequence[int], level: int, norm: SurfaceNorm = 'group') -> None:
        super().__init__()
        before = (inputs, *widths)
        self.down = nn.ModuleList(
            double_block(before[step], width, level - step, norm, pool=step > 0)
            for step, width in enumerate(widths)
        )
        self.level = level - len(widths) + 1

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the coarsest level."""
        for block in self.down:
            x = block(x)
        return x


class SphericalUNet(nn.Module):
    """U-Net on the icosphere (Zhao et al. 2019).

    Parameters
    ----------
    inputs, outputs
        Channels.
    widths
        Channels of the levels, finest first.
    level
        Of a map.
    norm
        After each convolution.
    residual
        Whether the output is added to the input; it begins as the input then.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int],
        level: int,
        *,
        norm: SurfaceNorm = 'group',
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = SphericalEncoder(inputs, widths, level, norm)
        steps = range(len(widths) - 2, -1, -1)
        self.up = nn.ModuleList(RingUp(widths[step + 1], widths[step], level - step - 1) for step in steps)
        self.joined = nn.ModuleList(
            double_block(2 * widths[step], widths[step], level - step, norm) for step in steps
        )
        self.last = nn.Conv1d(widths[0], outputs, 1)
        self.residual = residual
        if residual:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same level."""
        kept, here = [], x
        for block in self.encoder.down:
            here = block(here)
            kept.append(here)
        for up, joined, skip in zip(self.up, self.joined, kept[-2::-1], strict=True):
            here = joined(torch.cat([up(here), skip], dim=1))
        found: Tensor = self.last(here)
        return x + found if self.residual else found


class SphericalJudge(nn.Module):
    """Discriminator: scores of the vertices of a coarse level, as PatchGAN scores patches.

    Parameters
    ----------
    inputs
        Channels of a map.
    widths
        Channels of the levels, finest first.
    level
        Of a map.
    norm
        After each convolution. Norms over a map hide how thick the whole cortex is; ``none`` shows it.
    """

    def __init__(self, inputs: int, widths: Sequence[int], level: int, norm: SurfaceNorm = 'none') -> None:
        super().__init__()
        self.encoder = SphericalEncoder(inputs, widths, level, norm)
        self.score = RingConv(widths[-1], 1, self.encoder.level)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape (B, 1, M)."""
        found: Tensor = self.score(self.encoder(x))
        return found


def _tensor(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int64))
