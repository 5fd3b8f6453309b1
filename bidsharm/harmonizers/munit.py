"""Content and style of each scanner, and how much an image depends on the style that was drawn (Li et al. 2021).

The networks and losses are those of MUNIT (Huang et al. 2018, arXiv:1804.04732): every scanner has encoders of content and style and a decoder; contents
of all scanners mean the same, and styles follow a standard normal distribution. A scan is harmonized by decoding its content as the target's scanner
would; decoding it with many styles of that scanner tells how sure each voxel is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.errors import UsageError
from bidsharm.harmonizers.adversarial import DECAY, AdversarialSettings, judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.style import StyleMethod, StyleSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class MunitSettings(StyleSettings, AdversarialSettings):
    """Settings of MUNIT.

    Parameters
    ----------
    width, downs, blocks
        Channels at the finest level, halvings, residual blocks.
    style, style_downs, hidden
        Length of the style code, halvings of the style encoder, units of the layers between code and decoder.
    discriminator, scales
        Channels of the discriminator's strided layers; number of sizes that it sees.
    adversarial, image, content, style_weight
        Weights of the adversarial loss and of getting images, contents and styles back.
    cycle
        Weight of getting the image back from its image at the other site; 0 in the paper of MUNIT.
    samples
        Images that are made with styles drawn at random, for the uncertainty; 0 for none.
    """

    width: int = 64
    downs: int = 2
    blocks: int = 4
    style: int = 8
    style_downs: int = 4
    hidden: int = 256
    discriminator: tuple[int, ...] = (64, 128, 256, 512)
    scales: int = 3
    adversarial: float = 1.0
    image: float = 10.0
    content: float = 1.0
    style_weight: float = 1.0
    cycle: float = 0.0
    samples: int = 10
    batch: int = 1
    steps: int = 200_000
    rate: float = 1e-4


class Munit(StyleMethod):
    """MUNIT for scanners, with an uncertainty (Li et al. 2021)."""

    settings: MunitSettings
    Preset: ClassVar[type[NetworkSettings]] = MunitSettings
    look: ClassVar[tuple[str, ...]] = ()  # codes of different sites have different decoders
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'width': 8, 'downs': 1, 'blocks': 1, 'style': 4, 'style_downs': 2, 'hidden': 16, 'discriminator': (8, 16),
        'scales': 1, 'samples': 4, 'batch': 2, 'steps': 80, 'rate': 4e-3, 'adversarial': 0.1, 'content': 0.1, 'style_weight': 0.1,
        'cycle': 10.0,
    }  # fmt: skip
    card = Card(
        name='munit', title='Content and style of each scanner, with an uncertainty', family='disentangled', supervision='unpaired',
        paper='Li H, et al. Unpaired MR image homogenisation by disentangled representations and its uncertainty. UNSURE, MICCAI 2021:44-53.',
        geometry='grid', targets=('site',), needs_fit=('site', 'two_sites'), needs_apply=('weights', 'site'), changes_anatomy=True,
        uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations='Networks and weights are those of MUNIT, for the code of the paper could not be found. More than two scanners are '
        'served, each in turn paired with the target. The image is decoded with the mean style of the target; styles for the uncertainty are '
        "drawn from a normal distribution with the mean and spread of the styles of the target's slices instead of a standard one." + DECAY,
    )  # fmt: skip

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return one source site at a time, and the target."""
        from bidsharm.training.regimes import Unpaired

        s = self.settings
        return Unpaired(data, self.view(), batch=s.batch, target=self.target_site, flip=s.flip, one_site=True)

    def build(self) -> dict[str, nn.Module]:
        """Return content encoder, style encoder, decoder and discriminator of each site."""
        from torch import nn

        from bidsharm.nn.discriminators import MultiScale
        from bidsharm.nn.style import ContentEncoder, StyledDecoder, plain_style_encoder

        s, sites = self.settings, self.sites

        def decoder() -> nn.Module:
            return StyledDecoder(
                2, 1, width=s.width, downs=s.downs, blocks=s.blocks, style=s.style, hidden=s.hidden
            )

        return {
            'content': nn.ModuleList(ContentEncoder(2, 1, width=s.width, downs=s.downs, blocks=s.blocks) for _ in sites),
            'style': nn.ModuleList(
                plain_style_encoder(2, 1, width=s.width, most=4 * s.width, downs=s.style_downs, style=s.style, sites=1)
                for _ in sites
            ),
            'decoder': nn.ModuleList(decoder() for _ in sites),
            'discriminator': nn.ModuleList(
                MultiScale(s.scales, s.discriminator, spectral=s.spectral) for _ in sites
            ),
        }  # fmt: skip

    @property
    def players(self) -> Mapping[str, Player]:
        """The discriminators, and all others together; the rate is halved every 100,000 steps."""
        from bidsharm.training.options import Player, halving

        schedule = halving(100_000 / self.settings.steps)

        def player(*names: str) -> Player:
            return Player(names, self.settings.rate, betas=(0.5, 0.999), weight_decay=1e-4, schedule=schedule)

        return {
            'generators': player('content', 'style', 'decoder'),
            'discriminators': player('discriminator'),
        }

    @property
    def target_number(self) -> int:
        """Number of the site that the training aimed at."""
        return self.sites.index(self.target_site)

    def part(self, name: str, site: int) -> nn.Module:
        """Return a network of a site."""
        return self.networks[name][site]  # type: ignore[index]

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Both ways between a source site and the target."""
        import torch

        del stage
        sites = int(batch['x_site'][0]), self.target_number
        ways = [
            self.way(batch, 'xy', sites, torch.randn(len(batch['x']), self.settings.style, device=batch['x'].device)),
            self.way(batch, 'yx', sites[::-1], torch.randn(len(batch['x']), self.settings.style, device=batch['x'].device)),
        ]  # fmt: skip
        yield 'generators', {name: ways[0][0][name] + ways[1][0][name] for name in ways[0][0]}
        yield (
            'discriminators',
            {
                name: judged(self.part('discriminator', site), batch[name], fake, self.settings)
                for name, site, fake in zip('xy', sites, (ways[1][1], ways[0][1]), strict=True)
            },
        )

    def way(
        self, batch: Batch, names: str, sites: tuple[int, int], style: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of one way (MUNIT, eq. 1 to 4), and the image of the other site in a drawn style."""
        from bidsharm.nn.losses import adversarial_loss, l1

        s, (here, there), x, mask = self.settings, sites, batch[names[0]], batch[f'{names[0]}_mask']
        content = self.part('content', here)(x)
        own = self.part('style', here)(x, None)
        same = self.inside(self.part('decoder', here)(content, own), mask)
        fake = self.inside(self.part('decoder', there)(content, style), mask)
        again = self.part('content', there)(fake)
        losses = {
            'image': s.image * l1(same, x),
            'content': s.content * l1(again, content),
            'style': s.style_weight * l1(self.part('style', there)(fake, None), style),
            'adversarial': s.adversarial
            * adversarial_loss(self.part('discriminator', there)(fake), s.gan_loss),
        }
        if s.cycle:
            losses['cycle'] = s.cycle * l1(self.inside(self.part('decoder', here)(again, own), mask), x)
        return losses, fake

    def encode_style(self, x: Tensor, site: Tensor | None) -> Tensor:
        """Return what the style encoder of the described site finds; that of the training's target where it is unknown."""
        return self.part('style', self.target_number if site is None else int(site[0]))(x, None)

    def style_of(
        self, scans: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
    ) -> dict[str, Tensor]:
        """Return mean and spread of the codes, and the site whose decoder makes the image.

        Raises
        ------
        UsageError
            If the training had no such site, and so no decoder for it.
        """
        import torch

        if self.described_site < 0:
            raise UsageError(
                'munit has a decoder for each site of its training, and none for this target.', where='--target',
                fix=f'It can aim at {", ".join(self.sites)}; or train it with scans of the target.',
            )  # fmt: skip
        return {**super().style_of(scans, masks), 'site': torch.tensor([self.described_site])}

    def render(self, x: Tensor, style: Tensor, given: Given) -> Tensor:
        """Decode the content that the encoder of the scan's site finds by the decoder of the target."""
        there = self.target_number if given.style is None else int(given.style['site'][0])
        return self.part('decoder', there)(self.part('content', given.site)(x), style)

    def draws(self, given: Given) -> list[Given]:
        """Return styles that the target could have, drawn at random."""
        import torch

        assert given.style is not None
        mean, deviation = given.style['mean'], given.style['deviation']
        return [
            replace(given, style={**given.style, 'mean': mean + deviation * torch.randn_like(mean)})
            for _ in range(self.settings.samples)
        ]

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return scans, and the scans in the styles of the target's."""
        style = self.encode_style(batch['y'], None)
        found = self.render(batch['x'], style, Given(site=int(batch['x_site'][0])))
        return [batch['x'], self.inside(found, batch['x_mask']), batch['y']]
