"""Monotone rational-quadratic splines (Durkan et al. 2019, Neural Spline Flows, arXiv:1906.04032, sec. 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

#: Least width, height and slope of a bin, relative to the whole.
LEAST = 1e-3


def rational_quadratic(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, *, bound: float, backwards: bool = False
) -> tuple[Tensor, Tensor]:
    """Return numbers put through splines of their own, and the logarithms of the slopes there.

    Parameters
    ----------
    x
        Numbers, any shape; those beyond plus and minus ``bound`` stay as they are.
    widths, heights
        Of the bins before they are normalized, shape (*x.shape, K).
    slopes
        At the inner knots, unbounded; 0 stands for a slope of 1. Shape (*x.shape, K - 1).
    bound
        The spline maps this interval onto itself.
    backwards
        Apply the inverse.
    """
    inside = (x > -bound) & (x < bound)
    across, up = _knots(widths, bound), _knots(heights, bound)
    steep = functional.softplus(slopes + math.log(math.expm1(1 - LEAST))) + LEAST
    steep = functional.pad(steep, (1, 1), value=1.0)
    at = torch.where(inside, x, 0.0)
    bin_ = ((up if backwards else across)[..., 1:-1] <= at[..., None]).sum(dim=-1, keepdim=True)

    def of(values: Tensor, shift: int = 0) -> Tensor:
        return values.gather(-1, bin_ + shift)[..., 0]

    left, low = of(across), of(up)
    width, height = of(across, 1) - left, of(up, 1) - low
    start, end, mean = of(steep), of(steep, 1), height / width
    if backwards:
        share = _solved(at - low, height, mean, start, end)
        y = left + share * width
    else:
        share = (at - left) / width
        y = low + height * (mean * share**2 + start * share * (1 - share)) / _denominator(
            share, mean, start, end
        )
    slope = mean**2 * (end * share**2 + 2 * mean * share * (1 - share) + start * (1 - share) ** 2)
    log_slope = slope.log() - 2 * _denominator(share, mean, start, end).log()
    sign = -1 if backwards else 1
    return torch.where(inside, y, x), torch.where(inside, sign * log_slope, 0.0)


def _knots(sizes: Tensor, bound: float) -> Tensor:
    """Return the ends of bins, from minus to plus ``bound``, shape (..., K + 1)."""
    count = sizes.shape[-1]
    shares = LEAST + (1 - LEAST * count) * sizes.softmax(dim=-1)
    inner = shares.cumsum(dim=-1)[..., :-1]
    return functional.pad(functional.pad(inner, (1, 0)), (0, 1), value=1.0) * (2 * bound) - bound


def _denominator(share: Tensor, mean: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the denominator of eq. 4."""
    return mean + (start + end - 2 * mean) * share * (1 - share)


def _solved(above: Tensor, height: Tensor, mean: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return where in its bin a spline is so far above the lower knot (eq. 6 to 8), from 0 to 1."""
    bend = above * (start + end - 2 * mean)
    a, b, c = height * (mean - start) + bend, height * start - bend, -mean * above
    root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
    return 2 * c / (-b - root)
