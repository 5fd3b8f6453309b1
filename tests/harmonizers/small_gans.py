"""Tiny methods with two sites, batches, and networks whose losses can be worked out by hand."""

from __future__ import annotations

import torch
from torch import nn


class Add(nn.Module):
    """Add a number."""

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)))

    def forward(self, x):
        return x + self.number


class Slope(nn.Module):
    """Score images by a weighted sum."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x):
        return (x * self.weights).flatten(1).sum(dim=1)


def built(kind, sites=('A', 'B'), **changes):
    method = kind(settings=kind.preset('tiny', **changes))
    method.sites, method.contrasts, method.target_site = sites, ('T1w',), 'A'
    method.networks = nn.ModuleDict(method.build())
    return method


def batch_of(shape, site=1, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(2, 1, *shape, generator=draw) for _ in range(2))
    masks = [(torch.rand(2, 1, *shape, generator=draw) < 0.5).float() for _ in range(2)]
    return {'x': x, 'y': y, 'x_mask': masks[0], 'y_mask': masks[1], 'x_site': torch.full((2,), site)}


def totals(method, batch):
    torch.manual_seed(0)
    return {
        player: {name: float(loss.detach()) for name, loss in losses.items()}
        for player, losses in method.losses(batch, '')
    }
