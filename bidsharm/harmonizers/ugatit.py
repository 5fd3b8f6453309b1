"""U-GAT-IT as Yao et al. (2023) use it under the name Morph-UGATIT: a CycleGAN whose networks attend to what tells the sites apart.

An auxiliary classifier in each network says which of two sites an image is from; its weights become attention over channels, and the attended
features steer the norms of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bidsharm.harmonizers.adversarial import DECAY, judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.cyclegan import CycleGAN, CycleSettings
from bidsharm.harmonizers.network_settings import Given, NetworkSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class UgatitSettings(CycleSettings):
    """Settings of U-GAT-IT (Kim et al. 2020) on axial slices.

    Parameters
    ----------
    blocks
        Residual blocks before and after the attention, each.
    discriminator, small
        Channels of the strided layers of the global and the local discriminators.
    activation
        Weight of the attention's classifiers in the generators.
    decay
        Weight decay.
    """

    unused: ClassVar[tuple[str, ...]] = ('judge_norm', 'middle', 'masks', 'self_attention')

    blocks: int = 4
    discriminator: tuple[int, ...] = (64, 128, 256, 512, 1024)
    small: tuple[int, ...] = (64, 128, 256)
    cycle: float = 10.0
    identity: float = 10.0
    activation: float = 1000.0
    spectral: bool = True
    head: Literal['direct', 'residual'] = 'direct'
    rate: float = 1e-4
    decay: float = 1e-4


class Ugatit(CycleGAN):
    """U-GAT-IT between the target and all other sites (Yao et al. 2023)."""

    settings: UgatitSettings
    Preset: ClassVar[type[NetworkSettings]] = UgatitSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'width': 8, 'blocks': 1, 'head': 'residual', 'discriminator': (8, 16), 'small': (8,), 'batch': 8, 'steps': 60,
        'rate': 5e-3, 'cycle': 0.5, 'identity': 0.25, 'activation': 1.0,
    }  # fmt: skip
    card = Card(
        name='ugatit', title='CycleGAN with attention by class activation (U-GAT-IT)', family='attention', supervision='unpaired',
        paper='Yao X, et al. Novel application of the attention mechanism on medical image harmonization. Proc SPIE 12464:184-194, 2023.',
        doi='10.1117/12.2654392', geometry='grid', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations='U-GAT-IT itself: what the paper\'s "Morph" adds is not described where we could read it, and no code is public. The light variant of the generator; '
        'the last layer has no tanh, and borders are padded with zeros.' + DECAY,
    )  # fmt: skip

    def generator(self) -> nn.Module:
        """Return a generator with attention."""
        from bidsharm.nn.ugatit import UgatitGenerator

        s = self.settings
        return UgatitGenerator(
            self.view().dims, s.width, s.blocks, 'direct' if s.head == 'direct' else 'residual'
        )

    def discriminator(self) -> nn.Module:
        """Return a global and a local discriminator."""
        from bidsharm.nn.ugatit import Judges, UgatitDiscriminator

        s = self.settings
        return Judges(
            UgatitDiscriminator(self.view().dims, widths, spectral=s.spectral)
            for widths in (s.discriminator, s.small)
        )

    @property
    def players(self) -> Mapping[str, Player]:
        """As for CycleGAN, with weight decay."""
        from dataclasses import replace

        return {
            name: replace(player, weight_decay=self.settings.decay)
            for name, player in super().players.items()
        }

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Adversarial, cycle, identity and attention losses (Kim et al. 2020, eq. 2 to 6)."""
        from bidsharm.nn.losses import adversarial_loss, l1, logistic_gan

        del stage
        s = self.settings
        forward, back, of_target, of_source = self.parts(batch)
        x, y = self.covered(batch['x'], batch, 'x'), self.covered(batch['y'], batch, 'y')
        (x_to_y, x_moved), (y_to_x, y_moved) = forward(x), back(y)
        (y_to_y, y_stayed), (x_to_x, x_stayed) = forward(y), back(x)
        x_to_y, y_to_x = self.covered(x_to_y, batch, 'x'), self.covered(y_to_x, batch, 'y')
        x_again, y_again = (
            self.covered(back(x_to_y)[0], batch, 'x'),
            self.covered(forward(y_to_x)[0], batch, 'y'),
        )
        yield (
            'generators',
            {
                'adversarial': adversarial_loss(of_target(x_to_y), s.gan_loss)
                + adversarial_loss(of_source(y_to_x), s.gan_loss),
                'cycle': s.cycle * (l1(x_again, x) + l1(y_again, y)),
                'identity': s.identity
                * (l1(self.covered(y_to_y, batch, 'y'), y) + l1(self.covered(x_to_x, batch, 'x'), x)),
                # Each generator's classifier knows what it has to change: 1, and what is right already: 0.
                'attention': s.activation
                * (
                    logistic_gan(x_moved, True) + logistic_gan(y_stayed, False)
                    + logistic_gan(y_moved, True) + logistic_gan(x_stayed, False)
                ),
            },
        )  # fmt: skip
        yield (
            'discriminators',
            {
                'of_target': judged(of_target, y, x_to_y, s),
                'of_source': judged(of_source, x, y_to_x, s),
            },
        )

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Put a batch through the generator to the target."""
        del given
        return self.networks['generator'](x)[0]
