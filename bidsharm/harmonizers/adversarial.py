"""What methods with a discriminator share: settings that keep it from teaching a generator to invent, its loss, and what is drawn for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bidsharm.errors import UsageError
from bidsharm.harmonizers.network_settings import NetworkSettings, Range
from bidsharm.harmonizers.trained import TrainedHarmonizer
from bidsharm.nn.names import GanLoss

if TYPE_CHECKING:
    from torch import Tensor

    from bidsharm.training.augmentation import Augmentation
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet

    #: From images to scores, or to several kinds of scores.
    Judge = Callable[[Tensor], Tensor | Sequence[Tensor]]

#: What cards say of methods whose papers decay weights by Adam.
DECAY = ' Weights decay beside the gradient (AdamW) and not as a part of it (Adam).'
_FROM_ZERO: Range = (
    (lambda value: isinstance(value, int | float) and value >= 0),
    '0 for none, or a number above 0',
)


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings(NetworkSettings):
    """Settings of the methods with a discriminator.

    Parameters
    ----------
    gan_loss
        How discriminators and generators are scored: ``least_squares``, ``logistic`` or ``hinge`` (:mod:`bidsharm.nn.losses`).
    spectral
        Spectral normalization in the discriminators (Miyato et al. 2018).
    penalty
        Weight of the gradient penalty on real images (R1, Mescheder et al. 2018); 0 for none.
    augment_gamma, augment_gain
        Random changes of the contrast of the scans that go in (:class:`bidsharm.training.augmentation.Augmentation`); 0 for none.
    augment_angle, augment_scale
        Random rotations, in degrees, and changes of size of all images of an example; 0 for none.
    progressive
        How often sizes of images are halved at the start of the training (:mod:`bidsharm.training.growing`); 0 for never.
    """

    gan_loss: GanLoss = 'least_squares'
    spectral: bool = False
    penalty: float = 0.0
    augment_gamma: float = 0.0
    augment_gain: float = 0.0
    augment_angle: float = 0.0
    augment_scale: float = 0.0
    progressive: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.progressive, int):
            raise UsageError(
                f'progressive is {self.progressive}.', where='--set', fix='Give a whole number of halvings.'
            )

    @property
    def ranges(self) -> Mapping[str, Range]:
        """What numbers may be, by the name of the setting."""
        mine = ('penalty', 'augment_gamma', 'augment_gain', 'augment_angle', 'augment_scale', 'progressive')
        return {**super().ranges, **dict.fromkeys(mine, _FROM_ZERO)}

    @property
    def halvings(self) -> int:
        """How often sizes are halved at the start."""
        return self.progressive

    @property
    def augmentation(self) -> Augmentation | None:
        """How examples are changed at random; None where no setting asks for it."""
        from bidsharm.training.augmentation import Augmentation

        found = Augmentation(
            self.augment_gamma, self.augment_gain, self.augment_angle, self.augment_scale, self.offset
        )
        return None if found == Augmentation(offset=self.offset) else found


#: Of surfaces, whose settings have none of these.
_DEFAULTS = AdversarialSettings()


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


def judged(judge: Judge, real: Tensor, fake: Tensor, settings: AdversarialSettings = _DEFAULTS) -> Tensor:
    """Return the loss of a discriminator, with a gradient penalty where it has a weight.

    Parameters
    ----------
    judge, real, fake, settings
        As for :func:`verdicts`.
    """
    first, *rest = verdicts(judge, real, fake, settings).values()
    return sum(rest, start=first)


def verdicts(judge: Judge, real: Tensor, fake: Tensor, settings: AdversarialSettings) -> dict[str, Tensor]:
    """Return the losses of a discriminator: of ``real`` and ``fake`` images, and the ``penalty`` where it has a weight.

    Parameters
    ----------
    judge
        From images to scores, or to several kinds of scores.
    real, fake
        Images, shape (B, C, ...); no gradient reaches what made the fake ones.
    settings
        The adversarial loss, and the weight of the penalty on the gradient at real images.
    """
    from bidsharm.nn.losses import GAN_LOSSES, gradient_penalty

    loss, penalty = GAN_LOSSES[settings.gan_loss], settings.penalty
    if penalty:
        real = real.detach().requires_grad_()
    scores = judge(real)
    losses = {'real': loss(scores, True), 'fake': loss(judge(fake.detach()), False)}
    if penalty:
        losses['penalty'] = penalty * gradient_penalty(_all_of(scores), real)
    return losses


def _all_of(scores: Tensor | Sequence[Tensor]) -> Tensor:
    """Return scores of all kinds as one vector."""
    import torch

    many = [scores] if isinstance(scores, torch.Tensor) else scores
    return torch.cat([score.flatten() for score in many])
