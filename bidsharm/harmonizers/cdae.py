"""CDAE (Zhao et al. 2023): a code that does not tell the site, and a decoder that is told it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.surface import SurfaceMap, SurfaceSettings, TrainedSurface, of_cortex
from bidsharm.nn.names import SurfaceNorm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class CDAESettings(SurfaceSettings):
    """Settings of CDAE (its public code).

    Parameters
    ----------
    widths
        Channels of the levels of encoder and decoder, finest first.
    site_widths
        Channels of the levels of the network that tells the site of a map.
    norm
        Of encoders and decoder; ``group`` as the weights that are public.
    bottleneck_norm
        Of the first and the last block of the decoder and of the classifier of codes.
    site, code, adversary, target
        Weights of the cross-entropies: which site a map is of, which site a code is of, that a code tells none, and that a harmonized map is of the
        target.
    latent, cycle, correlation, square
        Weights of: the code of a harmonized map, the way back, the correlation of a map with its harmonized self, and that of their squares.
    keep_detail
        Harmonize by the difference between the target's and the map's own site, as the decoder sees it, instead of by the decoder's map: what the
        code cannot hold stays. Only for maps of sites of the training.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256)
    site_widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    norm: SurfaceNorm = 'group'
    bottleneck_norm: SurfaceNorm = 'channel'
    site: float = 0.9
    code: float = 0.5
    adversary: float = 0.4
    target: float = 0.7
    latent: float = 4.0
    cycle: float = 0.5
    correlation: float = 10.0
    square: float = 3.0
    keep_detail: bool = False


class CDAE(TrainedSurface):
    """Cycle-consistent disentangled autoencoder (Zhao et al. 2023)."""

    settings: CDAESettings
    Preset: ClassVar[type[SurfaceSettings]] = CDAESettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'level': 3, 'widths': (16, 32), 'site_widths': (8, 16), 'norm': 'none', 'bottleneck_norm': 'none', 'batch': 8, 'steps': 100, 'rate': 3e-3,
        'keep_detail': True,
    }  # fmt: skip
    kept = ('encoder', 'decoder')
    card = Card(
        name='cdae', title='Autoencoder of cortical maps with a code that does not tell the site', family='vae', supervision='unpaired',
        domain='surface',
        paper='Zhao F, et al. Disentangling site effects with cycle-consistent adversarial autoencoder for multi-site cortical data harmonization. MICCAI 2023, pages 369-379.',
        doi='10.1007/978-3-031-43993-3_36', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=2.0, fidelity='adapted',
        deviations='Networks, losses and weights are those of the public training script. Maps are scaled by the mean and standard deviation of the target for all sites, '
        'where the script divides by those of each site and age; a batch holds all sites equally often, where the script weighs them; each step has an optimizer of its own.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return encoder, decoder, what tells the site of a map, and what tells the site of a code."""
        from bidsharm.nn.cdae import CodeClassifier, Decoder, SiteClassifier
        from bidsharm.nn.spherical import SphericalEncoder

        s, sites = self.settings, len(self.sites)
        encoder = SphericalEncoder(1, s.widths, s.level, s.norm)
        return {
            'encoder': encoder,
            'decoder': Decoder(sites, s.widths, s.level, s.norm, s.bottleneck_norm),
            'of_map': SiteClassifier(sites, s.site_widths, s.level, s.norm),
            'of_code': CodeClassifier(sites, s.widths[-1], encoder.level, s.bottleneck_norm),
        }

    @property
    def players(self) -> Mapping[str, Player]:
        """What the steps of the training script move, in their order."""
        from bidsharm.training.options import Player

        rate, betas, schedule = self.settings.rate, (0.5, 0.999), script_schedule
        return {
            'autoencoder': Player(('encoder', 'decoder', 'of_map'), rate, betas, schedule=schedule),
            'classifier': Player(('of_code',), rate, betas),
            'adversary': Player(('encoder',), rate, betas, schedule=schedule),
            'cycle': Player(('encoder', 'decoder'), rate, betas, schedule=schedule),
        }

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """The four steps of the public training script."""
        from torch.nn.functional import binary_cross_entropy, one_hot

        from bidsharm.nn.losses import pearson

        del stage
        s, net = self.settings, self.networks
        x, mask = batch['x'], batch['x_mask']
        site = one_hot(batch['site'], len(self.sites)).float()
        rebuilt = of_cortex(net['decoder'](net['encoder'](x), site), mask)
        yield (
            'autoencoder',
            {
                'rebuilt': far(rebuilt, x, 3),
                'site': s.site * binary_cross_entropy(net['of_map'](x), site),
            },
        )
        guess = net['of_code'](net['encoder'](x).detach())
        yield 'classifier', {'code': s.code * binary_cross_entropy(guess, site)}
        guess = net['of_code'](net['encoder'](x))
        yield (
            'adversary',
            {'code': s.adversary * binary_cross_entropy(guess, guess.new_full(guess.shape, 0.5))},
        )
        x, mask = batch['z'], batch['z_mask']
        own = one_hot(batch['z_site'], len(self.sites)).float()
        wanted = self.at_target(x)
        code = net['encoder'](x)
        moved = of_cortex(net['decoder'](code, wanted), mask)
        again = net['encoder'](moved)
        yield (
            'cycle',
            {
                'target': s.target * binary_cross_entropy(net['of_map'](moved), wanted),
                'latent': s.latent * far(again, code, 10),
                'correlation': s.correlation * (1 - pearson(moved, x)),
                'square': s.square * (1 - pearson(moved.square(), x.square())),
                'cycle': s.cycle * far(of_cortex(net['decoder'](again, own), mask), x, 3),
            },
        )

    def at_target(self, x: Tensor) -> Tensor:
        """Return the site code of the target for a batch."""
        import torch

        code = torch.zeros(len(x), len(self.sites), device=x.device)
        code[:, self.sites.index(self.target_site)] = 1
        return code

    def translate(self, x: Tensor, site: int) -> Tensor:
        """Decode the code of a map for the target."""
        import torch

        code = self.networks['encoder'](x)
        found: Tensor = self.networks['decoder'](code, self.at_target(x))
        if not self.settings.keep_detail or site < 0:
            return found
        own = torch.zeros(len(x), len(self.sites), device=x.device)
        own[:, site] = 1
        return x + found - self.networks['decoder'](code, own)

    def cautions(self, surface: SurfaceMap) -> tuple[str, ...]:
        """Return sentences that a reader of a map must see."""
        found = super().cautions(surface)
        if self.settings.keep_detail and found:
            return (
                *found,
                'So the map is what the decoder made of its code, without the detail that the code cannot hold.',
            )
        return found


def far(found: Tensor, wanted: Tensor, weight: float) -> Tensor:
    """Return the mean absolute difference, and the mean squared one with a weight."""
    from bidsharm.nn.losses import l1, l2

    return l1(found, wanted) + weight * l2(found, wanted)


def script_schedule(done: float) -> float:
    """Return the factor of the learning rate: of 50 epochs, the steps of the training script."""
    epoch = 50 * done
    return next(
        factor for end, factor in ((5, 1.0), (10, 0.5), (20, 0.2), (30, 0.1), (51, 0.05)) if epoch < end
    )
