"""What methods with a discriminator share: settings that keep it from teaching a generator to invent, its loss, and what is drawn for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bidsharm.harmonizers.trained import NetworkSettings, TrainedHarmonizer

if TYPE_CHECKING:
    from torch import Tensor

    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


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


class Unpaired(TrainedHarmonizer):
    """A method that learns from scans of other sites (``x``) and of the target (``y``), in slices or in patches."""

    settings: Any

    def view(self) -> View:
        """Return slices along ``axes``, or patches where there are none."""
        from bidsharm.training.views import Patches, Slices

        axes = getattr(self.settings, 'axes', ())
        return Slices(axes) if axes else Patches(self.settings.edge)

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return scans of other sites, and of the target."""
        from bidsharm.training.regimes import Unpaired

        s = self.settings
        return Unpaired(data, self.view(), batch=s.batch, target=self.target_site, flip=s.flip)

    def covered(self, images: Tensor, batch: Batch, name: str) -> Tensor:
        """Return images with the background outside the brain of ``x`` or ``y``."""
        return masked(images, batch[f'{name}_mask'], self.settings.background)


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
