"""StarGAN v2 for scanners: one generator for all sites, told by a style code what to make (Bashyam et al. 2022; Liu et al. 2021, 2023).

Equations are those of Choi et al. 2020, doi:10.1109/CVPR42600.2020.00821. A style comes from a reference image (style encoder) or from
noise (mapping network); both have a layer for each site. With a single site no labels are needed, and any image can be the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import DECAY, AdversarialSettings, verdicts
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.style import StyleMethod, StyleSettings
from bidsharm.nn.names import GanLoss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class StarGAN2Settings(StyleSettings, AdversarialSettings):
    """Settings of StarGAN v2; the weights of its losses are all 1.

    Parameters
    ----------
    width, most
        Channels at the finest level of all networks, and the largest number.
    downs, middle, judge_downs
        Halvings of the generator, its blocks on either side of the bottleneck, halvings of style encoder and discriminator.
    style, latent, hidden
        Length of the style code and of the noise; units of the mapping network.
    high_pass
        Divides the high-pass filtered skip connections; 0 for none.
    adversarial, style_weight, diversity, cycle, penalty
        Weights of the losses; that of the diversity falls to 0 in the course of the training. The penalty is R1.
    identity
        Weight of getting a scan back from its own style; 0 in the papers.
    mapping_rate
        Learning rate of the mapping network, as a factor of that of the others.
    momentum
        First decay of Adam.
    """

    width: int = 64
    most: int = 512
    downs: int = 4
    middle: int = 2
    judge_downs: int = 6
    style: int = 64
    latent: int = 16
    hidden: int = 512
    high_pass: float = 0.0
    adversarial: float = 1.0
    style_weight: float = 1.0
    diversity: float = 1.0
    cycle: float = 1.0
    penalty: float = 1.0
    gan_loss: GanLoss = 'logistic'
    identity: float = 0.0
    mapping_rate: float = 0.01
    momentum: float = 0.0
    batch: int = 4
    steps: int = 100_000
    rate: float = 1e-4
    average: float = 0.999


@dataclass(frozen=True, kw_only=True)
class StyleTransferSettings(StarGAN2Settings):
    """Settings of Liu et al.: the way back weighs 100 (their public code, whose training command leaves out the high-pass skip connections)."""

    cycle: float = 100.0
    steps: int = 200_000


class StarGAN2(StyleMethod):
    """StarGAN v2 with the sites as domains (Bashyam et al. 2022)."""

    settings: StarGAN2Settings
    Preset: ClassVar[type[NetworkSettings]] = StarGAN2Settings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'width': 8, 'most': 16, 'downs': 1, 'middle': 1, 'judge_downs': 2, 'style': 8, 'latent': 4, 'hidden': 16,
        'steps': 60, 'batch': 2, 'rate': 4e-3, 'momentum': 0.9, 'average': 0.0, 'diversity': 0.1, 'cycle': 50.0, 'identity': 200.0,
    }  # fmt: skip
    card = Card(
        name='stargan2', title='One generator for all sites, with a style code for each', family='gan', supervision='unpaired',
        paper='Bashyam VM, et al. Deep generative medical image harmonization for improving cross-site generalization in deep learning '
        'predictors. J Magn Reson Imaging 2022;55:908-916.',
        doi='10.1002/jmri.27908', geometry='grid', targets=('site', 'reference', 'acquisition'), needs_fit=('site', 'two_sites'),
        needs_apply=('weights',), changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations='Networks and weights of the losses are those of StarGAN v2, for the paper names no others. Outputs are masked by '
        "the brain. The target's style is the mean over the slices of its scans; a reference from an unknown site gets the mean of what "
        'the layers of all sites say.' + DECAY,
    )  # fmt: skip

    @property
    def domains(self) -> int:
        """Number of styles' kinds: the sites."""
        return len(self.sites)

    def build(self) -> dict[str, nn.Module]:
        """Return generator, mapping network, style encoder and discriminator."""
        from bidsharm.nn.discriminators import DomainDiscriminator
        from bidsharm.nn.style import StyledGenerator, StyleMapping, residual_style_encoder

        s, channels = self.settings, self.view().channels
        return {
            'generator': StyledGenerator(
                channels=channels, width=s.width, most=s.most, downs=s.downs, middle=s.middle, style=s.style, high_pass=s.high_pass
            ),
            'mapping': StyleMapping(s.latent, s.hidden, s.style, self.domains),
            'style': residual_style_encoder(
                2, channels, width=s.width, most=s.most, downs=s.judge_downs, style=s.style, sites=self.domains
            ),
            'discriminator': DomainDiscriminator(
                2, channels, self.domains, width=s.width, most=s.most, downs=s.judge_downs, spectral=s.spectral
            ),
        }  # fmt: skip

    @property
    def players(self) -> Mapping[str, Player]:
        """The discriminator, and all others together."""
        from bidsharm.training.options import Player

        def player(*names: str) -> Player:
            factors = {'mapping': self.settings.mapping_rate}
            return Player(
                names,
                self.settings.rate,
                betas=(self.settings.momentum, 0.99),
                weight_decay=1e-4,
                factors=factors,
            )

        return {
            'discriminator': player('discriminator'),
            'generator': player('generator', 'mapping', 'style'),
        }

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Discriminator and generator in turn, first with styles from noise, then with those of references."""
        import torch

        from bidsharm.nn.losses import held

        del stage
        net, site = self.networks, batch['y_site']
        noise = [torch.randn(len(site), self.settings.latent, device=site.device) for _ in range(2)]

        def drawn() -> list[Tensor]:
            return [net['mapping'](part, site) for part in noise]

        def read() -> list[Tensor]:
            return [self.encode_style(batch[name], site) for name in 'yz']

        for styles in (drawn, read):
            with torch.no_grad():
                fake = self.inside(
                    net['generator'](batch['x'], styles()[0]), self.brain(batch['x'], batch['x_mask'])
                )
            yield 'discriminator', self._judged(batch['y'], fake, site)
        yield 'generator', self._made(batch, drawn())
        # Styles of references train the generator alone.
        with held(net['style']):
            yield 'generator', self._made(batch, read())

    def _judged(self, real: Tensor, fake: Tensor, site: Tensor) -> dict[str, Tensor]:
        """Return the discriminator's losses (eq. 1), with the penalty on the gradient at real images."""
        judge = self.networks['discriminator']
        return verdicts(lambda images: judge(images, site), real, fake, self.settings)

    def _made(self, batch: Batch, styles: list[Tensor]) -> dict[str, Tensor]:
        """Return the generator's losses: adversarial, style, diversity and cycle (eq. 1 to 4)."""
        import torch

        from bidsharm.nn.losses import adversarial_loss, l1

        s, net = self.settings, self.networks
        x, site = batch['x'], batch['y_site']
        mask = self.brain(x, batch['x_mask'])
        fake = self.inside(net['generator'](x, styles[0]), mask)
        with torch.no_grad():
            other = self.inside(net['generator'](x, styles[1]), mask)
        own = self.encode_style(x, batch['x_site'])
        back = self.inside(net['generator'](fake, own), mask)
        losses = {
            'adversarial': s.adversarial * adversarial_loss(net['discriminator'](fake, site), s.gan_loss),
            'style': s.style_weight * l1(self.encode_style(fake, site), styles[0]),
            'diversity': -s.diversity * (1 - self.done) * l1(fake, other),
            'cycle': s.cycle * l1(back, x),
        }
        if s.identity:
            losses['identity'] = s.identity * l1(self.inside(net['generator'](x, own), mask), x)
        return losses

    def encode_style(self, x: Tensor, site: Tensor | None) -> Tensor:
        """Return the codes that the style encoder finds."""
        return self.networks['style'](x, site)

    def render(self, x: Tensor, style: Tensor, given: Given) -> Tensor:
        """Put slices through the generator."""
        del given
        return self.networks['generator'](x, style)


class StyleTransfer(StarGAN2):
    """StarGAN v2 with a single domain: style transfer from a reference (Liu et al. 2021, 2023)."""

    Preset: ClassVar[type[NetworkSettings]] = StyleTransferSettings
    tiny: ClassVar[Mapping[str, Any]] = {**StarGAN2.tiny, 'downs': 2, 'middle': 0, 'high_pass': 1.0}
    card = Card(
        name='styletransfer', title='The style of one image in the anatomy of another, without site labels', family='gan',
        supervision='unpaired',
        paper='Liu M, et al. Style transfer generative adversarial networks to harmonize multisite MRI to a single reference image to '
        'avoid overcorrection. Hum Brain Mapp 2023;44:4875-4892.',
        doi='10.1002/hbm.26422', geometry='grid', targets=('site', 'reference', 'acquisition'), needs_fit=('cohort',),
        needs_apply=('weights',), changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations='References in the training come from the same height of the head. Outputs are masked by the brain. The style of a '
        'target is the mean over all its slices instead of that of one.' + DECAY,
    )  # fmt: skip

    @property
    def domains(self) -> int:
        """One: scans of all sites are of one kind."""
        return 1

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return scans with references from anywhere."""
        from bidsharm.training.regimes import OneDomain

        return OneDomain(data, self.view(), batch=self.settings.batch, flip=self.settings.flip)

    def encode_style(self, x: Tensor, site: Tensor | None) -> Tensor:
        """Return the codes that the style encoder finds, whatever the site."""
        del site
        return self.networks['style'](x, None)
