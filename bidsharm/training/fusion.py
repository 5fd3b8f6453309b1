"""Learn to fuse the volumes that slices along several axes gave, after the network of the slices has been trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bidsharm.training.views import Slices, Translate


@dataclass(frozen=True)
class FusionExample:
    """What the slices gave for one scan, and what should become of it.

    Parameters
    ----------
    found
        One volume for each axis, shape (axes, X, Y, Z).
    wanted
        The right volume, shape (X, Y, Z).
    mask
        Where it counts, same shape.
    """

    found: NDArray[np.float32]
    wanted: NDArray[np.float32]
    mask: NDArray[np.bool_]


def fusion_example(
    view: Slices, channels: NDArray[np.float32], wanted: NDArray[np.float32], mask: NDArray[np.bool_],
    translate: Translate, *, background: float, device: str,
) -> FusionExample:  # fmt: skip
    """Put a scan, shape (C, X, Y, Z), through the network of the slices, along each axis."""
    with torch.no_grad():
        found = view.along_axes(channels, translate, background=background, batch=8, device=device)
    return FusionExample(np.where(mask, found, background).astype(np.float32), wanted, mask)


def fusion_loss(network: nn.Module, examples: Sequence[FusionExample], device: torch.device) -> Tensor:
    """Return the mean absolute error in the brain of one example, drawn by torch's random numbers."""
    one = examples[int(torch.randint(len(examples), (1,)))]
    fused = network(torch.from_numpy(one.found)[None].to(device))[0, 0]
    inside = torch.from_numpy(one.mask).to(device)
    return (fused - torch.from_numpy(one.wanted).to(device))[inside].abs().mean()
