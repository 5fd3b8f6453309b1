"""What all methods with a discriminator share: settings that keep it from teaching a generator to invent, and its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsharm.harmonizers.trained import NetworkSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings(NetworkSettings):
    """Settings of the methods with a discriminator.

    Parameters
    ----------
    spectral
        Spectral normalization in the discriminators (Miyato et al. 2018).
    penalty
        Weight of the gradient penalty on real images (R1, Mescheder et al. 2018); 0 for none.
    """

    spectral: bool = False
    penalty: float = 0.0


def masked(x: Tensor, mask: Tensor, background: float = 0.0) -> Tensor:
    """Return images with the background outside the brain."""
    return x * mask + background * (1 - mask)


def judged(
    judge: Callable[[Tensor], Tensor | Sequence[Tensor]], real: Tensor, fake: Tensor, penalty: float = 0.0
) -> Tensor:
    """Return the least-squares loss of a discriminator, with a gradient penalty where it has a weight.

    Parameters
    ----------
    judge
        From images to scores, or to several kinds of scores.
    real, fake
        Images, shape (B, C, ...); no gradient reaches what made the fake ones.
    penalty
        Weight of the penalty.
    """
    import torch

    from bidsharm.nn.losses import gradient_penalty, least_squares_gan

    if penalty:
        real = real.detach().requires_grad_()
    scores = judge(real)
    loss = least_squares_gan(scores, True) + least_squares_gan(judge(fake.detach()), False)
    if not penalty:
        return loss
    many = [scores] if isinstance(scores, torch.Tensor) else scores
    return loss + penalty * gradient_penalty(torch.cat([score.flatten() for score in many]), real)
