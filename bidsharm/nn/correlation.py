"""Moving an image towards the structure of another one, whatever their contrasts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bidsharm.nn.losses import pearson


def unlikeness(x: Tensor, source: Tensor) -> float:
    """Return 1 less the correlation with the source, averaged over the images of a batch that are not empty."""
    some = source.flatten(1).std(dim=1) > 0
    return 1 - float(pearson(x[some], source[some])) if bool(some.any()) else 0.0


def more_alike(x: Tensor, source: Tensor, by: float) -> Tensor:
    """Return images moved along the gradient of their correlation with a source.

    Parameters
    ----------
    x, source
        Images, shape (B, C, ...); each is compared with its own source.
    by
        Factor of the gradient, which is taken per voxel, so that it means the same for every size of image.
    """
    with torch.enable_grad():
        here = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(pearson(here, source) * len(here), here)
    return x + by * math.prod(x.shape[1:]) * slope
