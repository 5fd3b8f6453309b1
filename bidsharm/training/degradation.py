"""Slices with artifacts: noise, ghosts or a coarse resolution, for methods that must learn to look past them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from bidsharm.simulation.artefacts import add_rician, ghosting, kspace_window


def degraded(slices: Tensor, generator: Generator) -> Tensor:
    """Return a batch of slices with one kind of artifact, the same kind for all of them.

    Parameters
    ----------
    slices
        Intensities from 0 to about 1, 0 outside the brain, shape (B, H, W).
    generator
        Chooses kind and strength; on the device of the slices.
    """
    volume = slices.movedim(0, 2)  # as the planes of one volume, with the phase encoding along the first axis
    kind, strength = torch.rand(2, generator=generator, device=generator.device).tolist()
    if kind < 1 / 3:
        made = add_rician(volume, sigma=0.03 + 0.12 * strength, generator=generator)
    elif kind < 2 / 3:
        made = ghosting(volume, intensity=0.4 + 0.5 * strength, count=2 + int(4 * strength), axis=0)
    else:
        part = 0.25 + 0.25 * strength
        made = kspace_window(volume, resolution_fraction=(part, 1, 1)).clamp_min(0)
    return made.movedim(2, 0) * (slices > 0)


def generator_like(x: Tensor) -> Generator:
    """Return a generator on the device of a tensor, seeded by torch's own random numbers."""
    seed = int(torch.randint(2**62, (1,)))
    return Generator(x.device).manual_seed(seed)
