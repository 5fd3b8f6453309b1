"""S2SGAN (Zhao et al. 2019): two spherical U-Nets, there and back, and what each makes has to go with what it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.surface import SurfaceSettings, TrainedSurface, of_cortex
from bidsharm.nn.names import SurfaceNorm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class S2SGANSettings(SurfaceSettings):
    """Settings of S2SGAN.

    Parameters
    ----------
    widths
        Channels of the levels of the generators, finest first (Spherical U-Net).
    judge
        Channels of the levels of the discriminators.
    norm, judge_norm
        Of generators and discriminators.
    residual
        Whether a generator adds to its input, and so begins as the identity.
    cycle, correlation
        Weights of the losses, next to 1 for the adversarial one.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    judge: tuple[int, ...] = (32, 64, 128, 256)
    norm: SurfaceNorm = 'group'
    judge_norm: SurfaceNorm = 'group'
    residual: bool = False
    cycle: float = 10.0
    correlation: float = 1.0
    rate: float = 2e-4


class S2SGAN(TrainedSurface):
    """Surface-to-surface CycleGAN (Zhao et al. 2019)."""

    settings: S2SGANSettings
    Preset: ClassVar[type[SurfaceSettings]] = S2SGANSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'level': 3, 'widths': (8, 16), 'judge': (8,), 'norm': 'none', 'judge_norm': 'none', 'residual': True, 'batch': 8, 'steps': 200,
        'rate': 1e-2, 'cycle': 0.5, 'correlation': 0.5,
    }  # fmt: skip
    kept = ('generator',)
    card = Card(
        name='s2sgan', title='CycleGAN of spherical U-Nets on cortical maps', family='gan', supervision='unpaired', domain='surface',
        paper='Zhao F, et al. Harmonization of infant cortical thickness using surface-to-surface cycle-consistent adversarial networks. MICCAI 2019, LNCS 11767:475-483.',
        doi='10.1007/978-3-030-32251-9_52', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=2.0, fidelity='adapted',
        deviations='No code of the paper is public. Adversarial, cycle and correlation losses are those of its abstract; their weights and the least-squares form '
        'are those of CycleGAN, the correlation has weight 1, and the discriminator is half of a spherical U-Net. Group norm instead of batch norm; all other sites are one. The loss of '
        'the discriminators is not halved, which makes no difference to Adam.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return both generators and both discriminators."""
        from bidsharm.nn.spherical import SphericalJudge, SphericalUNet

        s = self.settings

        def generator() -> nn.Module:
            return SphericalUNet(1, 1, s.widths, s.level, norm=s.norm, residual=s.residual)

        def judge() -> nn.Module:
            return SphericalJudge(1, s.judge, s.level, s.judge_norm)

        return {'generator': generator(), 'backward': generator(), 'of_target': judge(), 'of_source': judge()}

    @property
    def players(self) -> Mapping[str, Player]:
        """The generators, and the discriminators."""
        from bidsharm.training.options import Player, linear_after_half

        rate, betas = self.settings.rate, (0.5, 0.999)
        return {
            'generators': Player(('generator', 'backward'), rate, betas, schedule=linear_after_half),
            'discriminators': Player(('of_target', 'of_source'), rate, betas, schedule=linear_after_half),
        }

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Adversarial and cycle losses (Zhu et al. 2017, eq. 1 to 3), and the correlation of what goes in and what comes out."""
        from bidsharm.nn.losses import l1, least_squares_gan, pearson

        del stage
        s, net = self.settings, self.networks
        x, x_mask, y, y_mask = batch['z'], batch['z_mask'], batch['y'], batch['y_mask']
        to_target, to_source = (
            of_cortex(net['generator'](x), x_mask),
            of_cortex(net['backward'](y), y_mask),
        )
        around = l1(of_cortex(net['backward'](to_target), x_mask), x)
        around = around + l1(of_cortex(net['generator'](to_source), y_mask), y)
        yield (
            'generators',
            {
                'adversarial': least_squares_gan(net['of_target'](to_target), True)
                + least_squares_gan(net['of_source'](to_source), True),
                'cycle': s.cycle * around,
                'correlation': s.correlation * (2 - pearson(to_target, x) - pearson(to_source, y)),
            },
        )
        yield (
            'discriminators',
            {
                'of_target': judged(net['of_target'], y, to_target),
                'of_source': judged(net['of_source'], x, to_source),
            },
        )

    def translate(self, x: Tensor, site: int) -> Tensor:
        """Put maps of other sites through the generator; those of the target stay as they are."""
        return x if site >= 0 and self.sites[site] == self.target_site else self.networks['generator'](x)
