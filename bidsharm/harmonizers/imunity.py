"""ImUnity: anatomy from one slice, contrast from another slice of the same scan (Cackowski et al. 2023).

The network sees a slice whose contrast was altered and, as a model of the contrast, another slice of the same scan; it has to give the first slice as it
was. Nobody has to be scanned twice. Later the second slice comes from the scanner that is aimed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import AdversarialSettings, verdicts
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.style import StyleMethod, StyleSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class ImUnitySettings(StyleSettings, AdversarialSettings):
    """Settings of ImUnity.

    Parameters
    ----------
    widths
        Channels of the levels of the network of the anatomy.
    contrast_width, contrast_most, contrast_downs, code
        Channels of the network of the contrast at the finest level and at most, its halvings, length of its code.
    discriminator
        Channels of the discriminator's strided layers.
    gamma
        Range of the exponents that alter the contrast.
    image, adversarial, divergence, unlearning
        Weights of the losses. The last one makes the bottleneck say nothing of the site; it takes part where there are several.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    widths: tuple[int, ...] = (32, 64, 128, 256)
    contrast_width: int = 32
    contrast_most: int = 256
    contrast_downs: int = 4
    code: int = 32
    discriminator: tuple[int, ...] = (64, 128, 256)
    gamma: tuple[float, float] = (0.5, 2.0)
    image: float = 100.0
    adversarial: float = 1.0
    divergence: float = 1e-4
    unlearning: float = 0.1
    batch: int = 16
    steps: int = 100_000
    rate: float = 1e-4


class ImUnity(StyleMethod):
    """VAE-GAN with two inputs, anatomy and contrast."""

    settings: ImUnitySettings
    Preset: ClassVar[type[NetworkSettings]] = ImUnitySettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'widths': (8, 16), 'contrast_width': 8, 'contrast_most': 16, 'contrast_downs': 2, 'code': 8,
        'discriminator': (8, 16), 'batch': 4, 'steps': 80, 'rate': 4e-3,
    }  # fmt: skip
    card = Card(
        name='imunity', title='Anatomy of one slice, contrast of another', family='vae', supervision='unpaired',
        paper='Cackowski S, et al. ImUnity: a generalizable VAE-GAN solution for multicenter MR image harmonization. '
        'Med Image Anal 2023;88:102799.',
        doi='10.1016/j.media.2023.102799', geometry='grid', targets=('site', 'reference', 'acquisition'), needs_fit=('cohort',),
        needs_apply=('weights',), changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='minimal',
        deviations='Only the idea of the paper could be read: networks and weights are our choices. The module that preserves biology (a '
        'classifier of a diagnosis on the bottleneck) is left out. The contrast of a target is the mean code of its slices instead of one slice.',
    )  # fmt: skip

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return two slices of a scan."""
        from bidsharm.training.regimes import AnyScan

        return AnyScan(data, self.view(), batch=self.settings.batch, flip=self.settings.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return the networks of anatomy and contrast, discriminator and classifier of sites."""
        from bidsharm.nn.discriminators import LatentClassifier, PatchDiscriminator
        from bidsharm.nn.style import VariationalUNet, plain_style_encoder

        s = self.settings
        return {
            'generator': VariationalUNet(s.widths, s.code),
            'contrast': plain_style_encoder(
                2, 1, width=s.contrast_width, most=s.contrast_most, downs=s.contrast_downs, style=s.code, sites=1
            ),
            'discriminator': PatchDiscriminator(2, widths=s.discriminator, middle=0, spectral=s.spectral),
            'classifier': LatentClassifier(s.widths[-1], len(self.sites)),
        }  # fmt: skip

    @property
    def players(self) -> Mapping[str, Player]:
        """The generator, and its two opponents."""
        from bidsharm.training.options import Player

        def player(*names: str) -> Player:
            return Player(names, self.settings.rate, betas=(0.5, 0.999))

        return {
            'generator': player('generator', 'contrast'),
            'discriminator': player('discriminator'),
            'classifier': player('classifier'),
        }

    def altered(self, x: Tensor) -> Tensor:
        """Return slices raised to a random power each; 1 stays 1."""
        import torch

        low, high = self.settings.gamma
        power = low + (high - low) * torch.rand(len(x), 1, 1, 1, device=x.device)
        return x.clamp_min(0) ** power

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Rebuild a slice from its altered copy; deceive the discriminator; leave the classifier of sites in the dark."""
        from torch.nn.functional import cross_entropy

        del stage
        losses, fake, latent = self.rebuilt(batch, self.altered(batch['x']))
        yield 'generator', losses
        judge = self.networks['discriminator']
        yield (
            'discriminator',
            verdicts(judge, batch['x'], fake, self.settings),
        )
        if len(self.sites) > 1:
            guess = self.networks['classifier'](latent.detach())
            yield 'classifier', {'site': cross_entropy(guess, batch['site'])}

    def rebuilt(self, batch: Batch, altered: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the losses of the generator, its image, and its bottleneck."""
        from bidsharm.nn.losses import adversarial_loss, confusion, gaussian_kl, l1

        s, net, mask = self.settings, self.networks, batch['mask']
        found, mean, log_variance = net['generator'](altered, self.encode_style(batch['other'], None))
        found = self.inside(found, mask)
        losses = {
            'image': s.image * l1(found, batch['x']),
            'adversarial': s.adversarial * adversarial_loss(net['discriminator'](found), s.gan_loss),
            'divergence': s.divergence * gaussian_kl(mean, log_variance),
        }
        if len(self.sites) > 1:
            losses['unlearning'] = s.unlearning * confusion(net['classifier'](mean))
        return losses, found, mean

    def validation(self, batch: Batch) -> Tensor:
        """Return how far slices are from what is rebuilt from their altered copies."""
        return self.rebuilt(batch, self.altered(batch['x']))[0]['image']

    def encode_style(self, x: Tensor, site: Tensor | None) -> Tensor:
        """Return the codes of the contrast."""
        del site
        return self.networks['contrast'](x, None)

    def render(self, x: Tensor, style: Tensor, given: Given) -> Tensor:
        """Return the anatomy in a contrast, from the mean of the bottleneck."""
        del given
        return self.networks['generator'](x, style)[0]

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return altered slices, what is rebuilt, and the slices as they were."""
        altered = self.altered(batch['x'])
        found = self.render(altered, self.encode_style(batch['other'], None), Given())
        return [altered, self.inside(found, batch['mask']), batch['x']]
