"""Random changes of contrast, of which the original is known: what self-supervised methods learn to undo."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def monotone_points(count: int, depth: int = 8, margin: float = 0.2, *, device: torch.device) -> Tensor:
    """Draw rising curves from 0 to 1, by displacing midpoints.

    The value midway between two known ones is drawn from between them, but not from the outer ``margin`` of their distance on either side (public
    code of Beizaee et al. 2023).

    Returns
    -------
    Tensor of shape (count, 2 to the depth, plus 1)
        Values at equal distances.
    """
    points = torch.zeros(count, 2**depth + 1, device=device)
    points[:, -1] = 1
    for level in range(depth):
        gap = 2 ** (depth - level)
        low, high = points[:, :-1:gap], points[:, gap::gap]
        share = margin + (1 - 2 * margin) * torch.rand(low.shape, device=device)
        points[:, gap // 2 :: gap] = low + share * (high - low)
    return points


def mapped(x: Tensor, points: Tensor) -> Tensor:
    """Return images, shape (B, ...), each put through its own curve, shape (B, N), over 0 to 1; values outside stay as they are."""
    steps = points.shape[1] - 1
    flat = x.flatten(1)
    at = (flat.clamp(0, 1) * steps).clamp(max=steps - 1e-3)
    below = at.floor().long()
    low, high = points.gather(1, below), points.gather(1, below + 1)
    curved = low + (at - below) * (high - low)
    return torch.where((flat > 0) & (flat < 1), curved, flat).view_as(x)


@dataclass(frozen=True)
class RandomContrast:
    """Changes of the contrast of brains: a random rising curve, or shift, gain and gamma, or both.

    Two in five images get the curve, two the others, one gets both (public code of Beizaee et al. 2023).

    Parameters
    ----------
    shift
        Largest shift, in units of the image.
    gain
        Range of factors.
    gamma
        Range of exponents.
    often
        Probability of each of the three, where they are allowed.
    """

    shift: float = 30 / 255
    gain: tuple[float, float] = (0.5, 2.0)
    gamma: tuple[float, float] = (0.5, 1.5)
    often: float = 0.75

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return changed images, shape (B, 1, ...), 0 outside the mask."""
        which = torch.rand(len(x), device=x.device)
        shift = self._drawn(x, (-self.shift, self.shift), 0.0)
        gain, gamma = self._drawn(x, self.gain, 1.0), self._drawn(x, self.gamma, 1.0)
        points = monotone_points(len(x), device=x.device)
        changed = torch.where(_each(which > 0.4, x), ((x + shift).clamp_min(0) * gain) ** gamma, x)
        return torch.where(_each(which < 0.6, x), mapped(changed, points), changed) * mask

    def _drawn(self, x: Tensor, between: tuple[float, float], neutral: float) -> Tensor:
        low, high = between
        values = low + (high - low) * torch.rand(len(x), device=x.device)
        used = torch.rand(len(x), device=x.device) < self.often
        return _each(torch.where(used, values, neutral), x)


def _each(values: Tensor, x: Tensor) -> Tensor:
    """Return one number per image in a shape that goes with the images."""
    return values.view(-1, *[1] * (x.ndim - 1))
