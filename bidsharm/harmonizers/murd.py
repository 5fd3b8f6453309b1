"""MURD: content that is free of the site, styles of sites, from stacks of slices along three axes (Liu and Yap 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import AdversarialSettings, verdicts
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.style import StyleMethod, StyleSettings
from bidsharm.nn.names import Fusion, GanLoss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class MurdSettings(StyleSettings, AdversarialSettings):
    """Settings of MURD; the weights of the losses are the paper's.

    Parameters
    ----------
    width, downs, blocks
        Channels at the finest level of content encoder and decoder, halvings, residual blocks.
    style_width, style_most, style_downs
        Channels of the style encoder at the finest level and at most; halvings.
    judge_width, judge_most, judge_downs
        The same of the discriminator.
    style, latent, hidden, layers
        Length of the style code and of the noise; units and layers of the style generator.
    adversarial, content, style_weight, cycle, identity
        Weights of the losses.
    alignment
        Weight of the divergence of the content from a standard normal distribution.
    diversity
        Weight of the difference of two images of one content.
    gradient
        Weight of the gradients in the cycle loss.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    neighbours: int = 1
    fuse: Fusion = 'mean'
    width: int = 64
    downs: int = 2
    blocks: int = 4
    style_width: int = 32
    style_most: int = 256
    style_downs: int = 4
    judge_width: int = 64
    judge_most: int = 512
    judge_downs: int = 5
    style: int = 64
    latent: int = 16
    hidden: int = 256
    layers: int = 6
    adversarial: float = 1.0
    content: float = 10.0
    style_weight: float = 10.0
    cycle: float = 10.0
    identity: float = 10.0
    alignment: float = 0.01
    diversity: float = 1.0
    gradient: float = 0.1
    gan_loss: GanLoss = 'logistic'
    batch: int = 4
    steps: int = 100_000
    rate: float = 1e-4


class Murd(StyleMethod):
    """Multi-site unsupervised representation disentangler."""

    settings: MurdSettings
    Preset: ClassVar[type[NetworkSettings]] = MurdSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'width': 8, 'downs': 1, 'blocks': 1, 'style_width': 8, 'style_most': 16, 'style_downs': 2, 'judge_width': 8,
        'judge_most': 16, 'judge_downs': 2, 'style': 8, 'latent': 4, 'hidden': 16, 'layers': 2, 'batch': 2, 'steps': 100, 'rate': 4e-3,
        'adversarial': 0.02, 'diversity': 0.02, 'content': 0.2,
    }  # fmt: skip
    card = Card(
        name='murd', title='Content without site and styles of sites, from stacks of slices', family='disentangled',
        supervision='unpaired',
        paper='Liu S, Yap P-T. Learning multi-site harmonization of magnetic resonance images without traveling human phantoms. '
        'Commun Eng 2024;3:6.',
        doi='10.1038/s44172-023-00140-w', geometry='grid', targets=('site', 'reference', 'acquisition'), needs_fit=('site', 'two_sites'), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations='Weights of the losses and sizes of content encoder and decoder are those that a public port ascribes to the paper; '
        'style encoder, discriminator, optimizer and number of steps are not known from the paper. One network serves all three axes. The '
        "style of a target is the mean of what the style encoder finds in its slices, also where the paper's style generator would do.",
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return content encoder, style encoder, style generator, decoder and discriminator."""
        from bidsharm.nn.discriminators import DomainDiscriminator
        from bidsharm.nn.style import ContentEncoder, StyledDecoder, StyleMapping, plain_style_encoder

        s, channels, sites = self.settings, self.view().channels, len(self.sites)
        return {
            'content': ContentEncoder(2, channels, width=s.width, downs=s.downs, blocks=s.blocks),
            'style': plain_style_encoder(
                2, channels, width=s.style_width, most=s.style_most, downs=s.style_downs, style=s.style, sites=sites
            ),
            'mapping': StyleMapping(s.latent, s.hidden, s.style, sites, shared=s.layers, own=0),
            'decoder': StyledDecoder(
                2, channels, width=s.width, downs=s.downs, blocks=s.blocks, style=s.style, hidden=0, up='transpose'
            ),
            'discriminator': DomainDiscriminator(
                2, channels, sites, width=s.judge_width, most=s.judge_most, downs=s.judge_downs, spectral=s.spectral
            ),
        }  # fmt: skip

    @property
    def players(self) -> Mapping[str, Player]:
        """The discriminator, and all others together."""
        from bidsharm.training.options import Player

        def player(*names: str) -> Player:
            return Player(names, self.settings.rate, betas=(0.5, 0.999))

        return {
            'generator': player('content', 'style', 'mapping', 'decoder'),
            'discriminator': player('discriminator'),
        }

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Eight losses of the generator, and those of the discriminator."""
        import torch

        del stage
        site = batch['y_site']
        noise = torch.randn(2, len(site), self.settings.latent, device=site.device)
        styles = [self.networks['mapping'](part, site) for part in noise]
        losses, fake = self.made(batch, styles)
        yield 'generator', losses
        judge = self.networks['discriminator']
        yield (
            'discriminator',
            verdicts(lambda images: judge(images, site), batch['y'], fake, self.settings),
        )

    def made(self, batch: Batch, styles: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of the generator for two styles of the other site, and the image in the first of them."""
        from bidsharm.nn.losses import adversarial_loss, gaussian_kl, gradient_l1, l1, moments

        s, net, x, site = self.settings, self.networks, batch['x'], batch['y_site']
        mask = self.brain(x, batch['x_mask'])
        content, own = net['content'](x), self.encode_style(x, batch['x_site'])
        fake, other = (self.inside(net['decoder'](content, style), mask) for style in styles)
        content_again = net['content'](fake)
        back = self.inside(net['decoder'](content_again, own), mask)
        same = self.inside(net['decoder'](content, own), mask)
        mean, deviation = moments(content)
        return {
            'adversarial': s.adversarial * adversarial_loss(net['discriminator'](fake, site), s.gan_loss),
            'content': s.content * l1(content_again, content),
            'style': s.style_weight * l1(self.encode_style(fake, site), styles[0]),
            'cycle': s.cycle * (l1(back, x) + s.gradient * gradient_l1(back, x)),
            'identity': s.identity * l1(same, x),
            'alignment': s.alignment * gaussian_kl(mean, 2 * deviation.log()) / mean.shape[1],
            'diversity': -s.diversity * l1(fake, other),
        }, fake

    def encode_style(self, x: Tensor, site: Tensor | None) -> Tensor:
        """Return the codes that the style encoder finds."""
        return self.networks['style'](x, site)

    def render(self, x: Tensor, style: Tensor, given: Given) -> Tensor:
        """Decode the content in a style."""
        del given
        return self.networks['decoder'](self.networks['content'](x), style)
