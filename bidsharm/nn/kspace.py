"""The k-space of slices: which of it a faster scan would have measured, and images from that part."""

from __future__ import annotations

import torch
from torch import Tensor


def density(shape: tuple[int, int], acceleration: float, power: float = 3.0) -> Tensor:
    """Return how likely each place of k-space is measured: surely in the centre, rarely at the rim.

    Parameters
    ----------
    shape
        Rows and columns.
    acceleration
        1 divided by the part that is measured on average.
    power
        How fast the density falls.

    Returns
    -------
    Tensor of shape (rows, columns)
        From 0 to 1, mean ``1 / acceleration``; frequencies in the order of an FFT.
    """
    rows, columns = (torch.fft.fftfreq(size).abs() * 2 for size in shape)
    fall = (1 - torch.sqrt(rows[:, None] ** 2 + columns[None] ** 2) / 2**0.5).clamp(0) ** power
    low, high = 0.0, float(rows.numel() * columns.numel()) ** power
    for _ in range(200):  # the mean grows with the factor
        middle = (low + high) / 2
        low, high = (
            (low, middle) if (middle * fall).clamp(max=1).mean() > 1 / acceleration else (middle, high)
        )
    return (high * fall).clamp(max=1)


def measured(shape: tuple[int, int], acceleration: float, like: Tensor) -> Tensor:
    """Return a random choice of places, shape (rows, columns), 0 or 1; all for an acceleration of 1."""
    if acceleration <= 1:
        return torch.ones(shape, device=like.device)
    chance = density(shape, acceleration).to(like.device)
    return (torch.rand(shape, device=like.device) < chance).float()


def spectrum(image: Tensor) -> Tensor:
    """Return the Fourier transform of images of two channels (real, imaginary), shape (B, 2, rows, columns), alike."""
    found = torch.fft.fft2(torch.complex(image[:, 0].float(), image[:, 1].float()))
    return torch.stack([found.real, found.imag], dim=1)


def image_of(spectra: Tensor) -> Tensor:
    """Return the images of Fourier transforms, both with two channels (real, imaginary)."""
    found = torch.fft.ifft2(torch.complex(spectra[:, 0], spectra[:, 1]))
    return torch.stack([found.real, found.imag], dim=1)


def with_phase(image: Tensor) -> Tensor:
    """Return real images, shape (B, 1, ...), with an imaginary channel of 0."""
    return torch.cat([image, torch.zeros_like(image)], dim=1)


def magnitude(image: Tensor) -> Tensor:
    """Return the magnitude of images of two channels, shape (B, 1, ...)."""
    return image.norm(dim=1, keepdim=True)
