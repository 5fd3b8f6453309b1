"""ssGAN: pairs whose target was measured in part (Yurt et al. 2022); the losses look at what was measured and at nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bidsharm.harmonizers.adversarial import AdversarialSettings, judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.trained import TrainedHarmonizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class KSpaceSettings(AdversarialSettings):
    """Settings of ssGAN (its public code) on axial slices.

    Parameters
    ----------
    axes
        Axes of the slices.
    width, blocks, head
        Of the residual generator (:class:`bidsharm.nn.resnet.ResNet`).
    discriminator, middle
        Channels of the discriminator's strided layers, and of the one without stride.
    source_acceleration, target_acceleration
        How much faster than fully sampled the scans of either site are taken to be; 1 for fully sampled.
    fidelity
        Weight of both L1 losses, next to 1 for the adversarial one.
    spectral_weight
        Weight of the loss in k-space, relative to that in the image.
    knee
        Values of k-space above this, times the number of pixels of a slice, saturate.
    """

    axes: tuple[int, ...] = (2,)
    width: int = 64
    blocks: int = 9
    head: Literal['direct', 'residual'] = 'direct'
    discriminator: tuple[int, ...] = (64, 128, 256)
    middle: int = 512
    source_acceleration: float = 1.0
    target_acceleration: float = 4.0
    fidelity: float = 100.0
    spectral_weight: float = 30.0
    knee: float = 5000 / 256**2
    batch: int = 1
    rate: float = 2e-4


class SemiSupervised(TrainedHarmonizer):
    """A residual generator of complex slices, with losses on the measured part of k-space (Yurt et al. 2022)."""

    settings: KSpaceSettings
    Preset: ClassVar[type[NetworkSettings]] = KSpaceSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'width': 8, 'blocks': 1, 'head': 'residual', 'discriminator': (8, 16), 'middle': 0, 'batch': 8, 'steps': 60,
        'rate': 3e-3,
    }  # fmt: skip
    card = Card(
        name='ssgan', title='Pairs whose target was measured in part', family='gan', supervision='paired',
        paper='Yurt M, et al. Semi-supervised learning of MRI synthesis without fully-sampled ground truths. IEEE Trans Med Imaging 41(12):3895-3906, 2022.',
        doi='10.48550/arXiv.2011.14347', geometry='grid', targets=('site',), needs_fit=('paired',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations='The paper synthesizes one contrast from another; here the pairs are two scanners. Undersampling is simulated on magnitude images, anew in every step; '
        'the knee of the k-space loss grows with the number of pixels; instance norm instead of batch norm; no buffer of earlier images.',
    )  # fmt: skip

    def view(self) -> View:
        """Return slices."""
        from bidsharm.training.views import Slices

        return Slices(self.settings.axes)

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return pairs."""
        from bidsharm.training.regimes import Paired

        s = self.settings
        return Paired(data, self.view(), batch=s.batch, target=self.target_site, flip=s.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return the generator and the discriminator, both of complex images."""
        from bidsharm.nn.discriminators import PatchDiscriminator
        from bidsharm.nn.resnet import ResNet

        s = self.settings
        return {
            'generator': ResNet(in_channels=2, out_channels=2, width=s.width, blocks=s.blocks, head=s.head),
            'discriminator': PatchDiscriminator(
                2, 2, widths=s.discriminator, middle=s.middle, spectral=s.spectral
            ),
        }

    @property
    def players(self) -> Mapping[str, Player]:
        """The generator, and the discriminator; the rate falls to 0 in the second half."""
        from bidsharm.training.options import Player, linear_after_half

        return {
            name: Player((name,), self.settings.rate, (0.5, 0.999), schedule=linear_after_half)
            for name in ('generator', 'discriminator')
        }

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """L1 of the measured k-space and of the image made of it, and an adversarial loss on such images (the public code)."""
        import torch

        from bidsharm.nn.kspace import image_of, measured, spectrum, with_phase
        from bidsharm.nn.losses import adversarial_loss, l1

        del stage
        s = self.settings
        x, y = (with_phase(batch[name] * batch['mask']) for name in 'xy')
        shape = (x.shape[2], x.shape[3])
        seen, there = (measured(shape, r, x) for r in (s.source_acceleration, s.target_acceleration))
        found = self.networks['generator'](image_of(spectrum(x) * seen)) * batch['mask']
        spectra = spectrum(found) * there, spectrum(y) * there
        fake, real = (image_of(part) for part in spectra)
        knee = s.knee * shape[0] * shape[1]
        yield (
            'generator',
            {
                'k-space': s.fidelity
                * s.spectral_weight
                * l1(torch.tanh(spectra[0] / knee), torch.tanh(spectra[1] / knee)),
                'image': s.fidelity * l1(fake, real),
                'adversarial': adversarial_loss(self.networks['discriminator'](fake), s.gan_loss),
            },
        )
        yield (
            'discriminator',
            {'adversarial': 0.5 * judged(self.networks['discriminator'], real, fake, s)},
        )

    def validation(self, batch: Batch) -> Tensor:
        """Return the mean absolute difference in the brain, from all of k-space."""
        from bidsharm.nn.losses import l1

        found = self.translate(batch['x'] * batch['mask'], Given())
        return l1(found * batch['mask'], batch['y'] * batch['mask'])

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Put a batch through the generator; return magnitudes."""
        from bidsharm.nn.kspace import magnitude, with_phase

        del given
        return magnitude(self.networks['generator'](with_phase(x)))
