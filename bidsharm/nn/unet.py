"""U-Nets in two and three dimensions (Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28), with the variants of the survey's methods."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.blocks import Activation, Down, Order, ResidualBlock, Up, conv, finish, widening
from bidsharm.nn.names import Block, Bottleneck, Downsampling, Norm
from bidsharm.nn.transformer import TransformerBottleneck


class AttentionGate(nn.Module):
    """Additive attention on a skip connection (Oktay et al. 2018, arXiv:1804.03999, eq. 1).

    Parameters
    ----------
    dims
        2 or 3.
    skip, gate
        Channels of the skip connection and of the signal from below, which has the same size.
    """

    def __init__(self, dims: int, skip: int, gate: int) -> None:
        super().__init__()
        inner = max(skip // 2, 1)
        self.of_skip, self.of_gate = conv(dims, skip, inner, 1, bias=False), conv(dims, gate, inner, 1)
        self.score = conv(dims, inner, 1, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Return the skip connection, weighed from 0 to 1 at each place."""
        return skip * torch.sigmoid(self.score(functional.relu(self.of_skip(skip) + self.of_gate(gate))))


class UNet(nn.Module):
    """An encoder and a decoder with skip connections.

    Sizes of the input must be divisible by 2 to the number of levels less one.

    Parameters
    ----------
    dims
        2 or 3.
    in_channels, out_channels
        Channels of images.
    widths
        Channels of each level, from the finest on.
    convs
        Convolutions (or residual blocks) of each level.
    block
        ``plain`` or ``residual``.
    kind, act, order
        Norm, activation, and which of them follows the convolution.
    down, up
        How sizes change.
    gates
        Additive attention on the skip connections.
    bottleneck
        ``conv``, or ``transformer`` for self-attention at the coarsest level.
    depth, heads
        Layers and heads of the transformer.
    skip_input
        Concatenate the input before the last convolution (Dewey et al. 2019).
    """

    def __init__(
        self,
        *,
        dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        convs: int = 1,
        block: Block = 'plain',
        kind: Norm = 'instance',
        act: Activation = 'relu',
        order: Order = 'conv-act-norm',
        down: Downsampling = 'stride',
        up: Literal['transpose', 'interpolate'] = 'transpose',
        gates: bool = False,
        bottleneck: Bottleneck = 'conv',
        depth: int = 4,
        heads: int = 8,
        skip_input: bool = False,
    ) -> None:
        super().__init__()
        self.skip_input = skip_input

        def level(ins: int, outs: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for _ in range(convs):
                if block == 'residual':
                    parts.append(ResidualBlock(dims, ins, outs, kind, act))
                else:
                    parts.append(
                        finish(
                            conv(dims, ins, outs // widening(act)),
                            dims,
                            outs // widening(act),
                            kind,
                            act,
                            order,
                        )
                    )
                ins = outs
            return nn.Sequential(*parts)  # fmt: skip

        pairs = list(itertools.pairwise(widths))
        self.encoders = nn.ModuleList([level(in_channels, widths[0]), *(level(a, b) for a, b in pairs)])
        self.downs = nn.ModuleList(Down(dims, a, kind, act, order, how=down) for a, _ in pairs)
        self.bottleneck: nn.Module = nn.Identity()
        if bottleneck == 'transformer':
            self.bottleneck = TransformerBottleneck(widths[-1], depth=depth, heads=heads)
        self.ups = nn.ModuleList(Up(dims, b, a, kind, act, order, how=up) for a, b in reversed(pairs))
        self.gates = nn.ModuleList(
            AttentionGate(dims, a, a) if gates else nn.Identity() for a, _ in reversed(pairs)
        )
        self.gated = gates
        self.decoders = nn.ModuleList(level(2 * a, a) for a, _ in reversed(pairs))
        self.last = conv(dims, widths[0] + (in_channels if skip_input else 0), out_channels, 1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the features of all levels, from the finest to the bottleneck."""
        levels = [self.encoders[0](x)]
        for down, encoder in zip(self.downs, list(self.encoders)[1:], strict=True):
            levels.append(encoder(down(levels[-1])))
        levels[-1] = self.bottleneck(levels[-1])
        return levels

    def decode(self, levels: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the image from the features of all levels, and the input for the last skip connection."""
        here = levels[-1]
        for up, gate, decoder, skip in zip(
            self.ups, self.gates, self.decoders, reversed(levels[:-1]), strict=True
        ):
            here = up(here)
            kept = gate(skip, here) if self.gated else skip
            here = decoder(torch.cat([here, kept], dim=1))
        return self.last(torch.cat([here, x], dim=1) if self.skip_input else here)  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (B, C, ...), to images of the same size, without a last activation."""
        return self.decode(self.encode(x), x)


class TanhResidual(nn.Module):
    """The input plus the hyperbolic tangent of a network: a change of at most 1 (Roca et al. 2024)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return the changed image."""
        return x + torch.tanh(self.body(x))
