"""QS-Attn as Yao et al. (2023) use it: one generator, no way back; patches of the output have to be like the same patches of the input.

Contrastive unpaired translation (Park et al. 2020, arXiv:2007.15651) with patches that attention selects (Hu et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.cyclegan import CycleGAN, CycleSettings
from bidsharm.harmonizers.network_settings import NetworkSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings(CycleSettings):
    """Settings of QS-Attn (its public code) on axial slices.

    Parameters
    ----------
    taps
        Layers of the generator whose features are compared: 0 is the image.
    attend_from
        The taps from this one on select their patches by attention; earlier ones at random.
    patches, features
        Patches of a tap, and the length of their vectors.
    temperature
        Divides the similarities.
    contrast
        Weight of the contrastive loss, next to 1 for the adversarial one. The mean over input and output, and over target and itself.
    """

    unused: ClassVar[tuple[str, ...]] = ('cycle', 'identity')

    taps: tuple[int, ...] = (0, 2, 3, 4, 8)
    attend_from: int = 3
    patches: int = 256
    features: int = 256
    temperature: float = 0.07
    contrast: float = 1.0
    cycle: float = 0.0
    identity: float = 0.0


class QueryAttention(CycleGAN):
    """Contrastive translation with query-selected attention (Yao et al. 2023)."""

    settings: ContrastiveSettings
    Preset: ClassVar[type[NetworkSettings]] = ContrastiveSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        **{key: value for key, value in CycleGAN.tiny.items() if key not in ('cycle', 'identity')},
        'taps': (0, 2, 4), 'attend_from': 2, 'patches': 32, 'features': 16, 'contrast': 0.1,
    }  # fmt: skip
    card = Card(
        name='qs-attn', title='One-sided translation by contrasts of selected patches', family='attention', supervision='unpaired',
        paper='Yao X, et al. Novel application of the attention mechanism on medical image harmonization. Proc SPIE 12464:184-194, 2023.',
        doi='10.1117/12.2654392', geometry='grid', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations='From the public code of QS-Attn, its global mode. Strided convolutions instead of blurred ones, no tanh at the end, zeros at the borders.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return the generator, the discriminator, and what makes vectors of patches."""
        from bidsharm.nn.patches import PatchProjection
        from bidsharm.nn.resnet import ResNet

        s, generator = self.settings, self.generator()
        assert isinstance(generator, ResNet)
        channels = [generator.channels()[tap] for tap in s.taps]
        return {
            'generator': generator, 'discriminator': self.discriminator(),
            'projection': PatchProjection(channels, s.features, s.patches, s.attend_from),
        }  # fmt: skip

    @property
    def players(self) -> Mapping[str, Player]:
        """The generator with the projection, and the discriminator."""
        from bidsharm.training.options import Player, linear_after_half

        rate, betas = self.settings.rate, (0.5, 0.999)
        judge = self.settings.judge_rate * rate
        return {
            'generator': Player(('generator', 'projection'), rate, betas, schedule=linear_after_half),
            'discriminator': Player(('discriminator',), judge, betas, schedule=linear_after_half),
        }

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Adversarial and contrastive losses (Park et al. 2020, eq. 5; Hu et al. 2022, section 3)."""
        from bidsharm.nn.losses import adversarial_loss

        del stage
        s, net = self.settings, self.networks
        x, y = self.covered(batch['x'], batch, 'x'), self.covered(batch['y'], batch, 'y')
        moved, stayed = (
            self.covered(net['generator'](x), batch, 'x'),
            self.covered(net['generator'](y), batch, 'y'),
        )
        yield (
            'generator',
            {
                'adversarial': adversarial_loss(net['discriminator'](moved), s.gan_loss),
                'contrast': 0.5 * s.contrast * self.alike(moved, x),
                'identity': 0.5 * s.contrast * self.alike(stayed, y),
            },
        )
        yield 'discriminator', {'adversarial': 0.5 * judged(net['discriminator'], y, moved, s)}

    def alike(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Return the contrastive loss of patches, averaged over the taps."""
        import torch

        from bidsharm.nn.losses import patch_nce

        s, net = self.settings, self.networks
        queries, keys = ([net['generator'].taps(image)[tap] for tap in s.taps] for image in (found, wanted))  # type: ignore[operator]
        routes = net['projection'].routes(keys)  # type: ignore[operator]
        pairs = zip(net['projection'](queries, routes), net['projection'](keys, routes), strict=True)
        return torch.stack([patch_nce(a, b, s.temperature) for a, b in pairs]).mean()
