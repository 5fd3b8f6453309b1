"""Adversarial networks that learn from scans of different people, by the way there and back: CycleGAN and its relatives.

A generator maps scans of other sites to the target site, another one leads back, and both ways together have to end where they began (Zhu et al.
2017, doi:10.1109/ICCV.2017.244). IGUANe has one generator to the target for all sites, and one back to each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.trained import Given, NetworkSettings, TrainedHarmonizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class CycleSettings(NetworkSettings):
    """Settings of the cycle-consistent methods; defaults are those of CycleGAN on axial slices.

    Parameters
    ----------
    dims
        2 for slices, 3 for volumes.
    axes
        Axes of the slices.
    width, blocks
        Channels after the first convolution of the residual generator, and its residual blocks.
    discriminator
        Channels of the discriminators' strided layers.
    cycle, identity
        Weights of the losses, next to 1 for the adversarial one.
    spectral
        Spectral normalization in the discriminators.
    """

    dims: int = 2
    axes: tuple[int, ...] = (2,)
    width: int = 64
    blocks: int = 9
    discriminator: tuple[int, ...] = (64, 128, 256)
    cycle: float = 10.0
    identity: float = 5.0
    spectral: bool = False
    scaling: str = 'p99'
    background: float = 0.0
    batch: int = 1
    steps: int = 100_000
    rate: float = 2e-4


@dataclass(frozen=True, kw_only=True)
class IguaneSettings(NetworkSettings):
    """Settings of IGUANe (Roca et al. 2024; its public code).

    Parameters
    ----------
    widths
        Channels of the levels of the generators.
    discriminator
        Channels of the discriminators' strided layers.
    cycle, identity
        Weights of the losses, next to 1 for the adversarial one.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    discriminator: tuple[int, ...] = (64, 128, 256)
    cycle: float = 30.0
    identity: float = 15.0
    scaling: str = 'median'
    background: float = -1.0
    batch: int = 1
    steps: int = 20_000
    rate: float = 2e-4


class Iguane(TrainedHarmonizer):
    """IGUANe: one universal generator to the target site, one back to each source site (Roca et al. 2024)."""

    settings: IguaneSettings
    Preset: ClassVar[type[NetworkSettings]] = IguaneSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'widths': (4, 8, 16), 'discriminator': (8, 16), 'steps': 40, 'rate': 2e-3,
    }  # fmt: skip
    card = Card(
        name='iguane', title='One generator from every site to one, with cycles back', family='gan', supervision='unpaired',
        paper='Roca V, et al. IGUANe: a 3D generalizable CycleGAN for multicenter harmonization of brain MR images. arXiv:2402.03227, 2024.',
        doi='10.48550/arXiv.2402.03227', geometry='grid', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=6.0,
        deviations='A step takes one site, drawn at random, and one batch for the discriminators instead of two; ages are not matched.', fidelity='adapted',
    )  # fmt: skip

    def view(self) -> View:
        """Return whole volumes."""
        from bidsharm.training.views import Whole

        return Whole()

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return one source site at a time, and the target."""
        from bidsharm.training.regimes import Unpaired

        return Unpaired(
            data,
            self.view(),
            batch=self.settings.batch,
            target=self.target_site,
            flip=self.settings.flip,
            one_site=True,
        )

    @property
    def sources(self) -> list[str]:
        """The sites that are mapped to the target."""
        return [site for site in self.sites if site != self.target_site]

    def build(self) -> dict[str, nn.Module]:
        """Return the universal generator, and for each source site a generator back and two discriminators."""
        from torch import nn

        from bidsharm.nn.discriminators import PatchDiscriminator
        from bidsharm.nn.unet import TanhResidual, UNet

        def generator() -> nn.Module:
            return TanhResidual(UNet(dims=3, widths=self.settings.widths, kind='mad', skip_input=True))

        def discriminator() -> nn.Module:
            return PatchDiscriminator(
                3, widths=self.settings.discriminator, kind='mad', middle=0, last_kernel=3, padding_value=-1.0
            )

        many = range(len(self.sources))
        return {
            'generator': generator(),
            'backward': nn.ModuleList(generator() for _ in many),
            'of_target': nn.ModuleList(discriminator() for _ in many),
            'of_source': nn.ModuleList(discriminator() for _ in many),
        }

    @property
    def players(self) -> Mapping[str, Player]:
        """Generators, and discriminators; the rate falls to a tenth."""
        from bidsharm.training.options import Player, polynomial

        rate = self.settings.rate
        return {
            'generators': Player(('generator', 'backward'), rate, schedule=polynomial),
            'discriminators': Player(('of_target', 'of_source'), rate, schedule=polynomial),
        }

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Least-squares adversarial, 30 times cycle and 15 times identity losses."""
        from bidsharm.nn.losses import l1, least_squares_gan

        del stage
        s, net = self.settings, self.networks
        index = self.sources.index(self.sites[int(batch['x_site'][0])])
        forward, back, of_target, of_source = net['generator'], net['backward'][index], net['of_target'][index], net['of_source'][index]  # type: ignore[index]  # fmt: skip
        x, y, x_mask, y_mask = batch['x'], batch['y'], batch['x_mask'], batch['y_mask']
        to_target, to_source = masked(forward(x), x_mask), masked(back(y), y_mask)
        yield (
            'generators',
            {
                'adversarial': least_squares_gan(of_target(to_target), True)
                + least_squares_gan(of_source(to_source), True),
                'cycle': s.cycle
                * (l1(masked(back(to_target), x_mask), x) + l1(masked(forward(to_source), y_mask), y)),
                'identity': s.identity * (l1(masked(forward(y), y_mask), y) + l1(masked(back(x), x_mask), x)),
            },
        )
        to_target, to_source = to_target.detach(), to_source.detach()
        yield (
            'discriminators',
            {
                'of_target': least_squares_gan(of_target(y), True)
                + least_squares_gan(of_target(to_target), False),
                'of_source': least_squares_gan(of_source(x), True)
                + least_squares_gan(of_source(to_source), False),
            },
        )

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Put a batch through the universal generator."""
        del given
        return self.networks['generator'](x)

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return a scan and what becomes of it."""
        return [batch['x'], masked(self.networks['generator'](batch['x']), batch['x_mask'])]


def masked(x: Tensor, mask: Tensor, background: float = -1.0) -> Tensor:
    """Return images with the background outside the brain."""
    return x * mask + background * (1 - mask)
