"""Tor-Diez et al. (2020): two variational autoencoders that share their code, and translate by encoding with one and decoding with the other.

The networks and losses are those of UNIT (Liu et al. 2017, arXiv:1703.00848).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import DECAY, AdversarialSettings, Unpaired, judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.nn.names import Norm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class SharedCodeSettings(AdversarialSettings):
    """Settings of UNIT on patches of volumes.

    Parameters
    ----------
    edge
        Edge of a patch in voxels.
    width, blocks, downs
        Channels of the first layer, residual blocks of each encoder and decoder, and halvings of the size.
    discriminator, middle
        Channels of the discriminators' strided layers, and of the one without stride.
    judge_norm
        Norm of the discriminators.
    adversarial, reconstruction, divergence, cycle, cycle_divergence
        Weights of the losses (Liu et al. 2017, eq. 3 to 5).
    noise
        Standard deviation of a code around its mean.
    """

    edge: int = 64
    width: int = 32
    blocks: int = 3
    downs: int = 2
    discriminator: tuple[int, ...] = (64, 128, 256)
    middle: int = 0
    judge_norm: Norm = 'instance'
    adversarial: float = 10.0
    reconstruction: float = 100.0
    divergence: float = 0.1
    cycle: float = 100.0
    cycle_divergence: float = 0.1
    noise: float = 1.0
    batch: int = 1
    steps: int = 100_000
    rate: float = 1e-4


class SharedCode(Unpaired):
    """UNIT between the target and all other sites (Tor-Diez et al. 2020, without its segmentation)."""

    settings: SharedCodeSettings
    Preset: ClassVar[type[NetworkSettings]] = SharedCodeSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 12.0, 'edge': 16, 'width': 4, 'blocks': 1, 'downs': 1, 'discriminator': (8, 16), 'judge_norm': 'none', 'spectral': True,
        'penalty': 0.1, 'batch': 2, 'steps': 80, 'rate': 5e-3, 'adversarial': 2.0, 'reconstruction': 10.0, 'divergence': 0.01, 'cycle': 2.0,
        'cycle_divergence': 0.01, 'noise': 0.1,
    }  # fmt: skip
    card = Card(
        name='unit', title='Autoencoders of the sites that share their code (UNIT)', family='gan', supervision='unpaired',
        paper='Tor-Diez C, et al. Unsupervised MRI homogenization: application to pediatric anterior visual pathway segmentation. MLMI, 180-188, 2020.',
        doi='10.1007/978-3-030-59861-7_19', geometry='grid', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=8.0, fidelity='minimal',
        deviations="The paper's segmentation network and its loss are left out: images are harmonized, nothing is segmented (`unit-seg` does that). No code is public and the text could not be "
        'read; networks and weights are those of UNIT, in three dimensions. All sites but the target are one.' + DECAY,
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return an encoder, a decoder and a discriminator for either side, and the blocks that both share."""
        from torch import nn

        from bidsharm.nn.blocks import ResidualBlock
        from bidsharm.nn.discriminators import PatchDiscriminator
        from bidsharm.nn.resnet import crown, stem

        s = self.settings
        inner = s.width * 2**s.downs

        def blocks(count: int) -> list[nn.Module]:
            return [ResidualBlock(3, inner, inner, after='none') for _ in range(count)]

        networks: dict[str, nn.Module] = {
            'shared_in': ResidualBlock(3, inner, inner, 'none', 'relu', 'none'),
            'shared_out': ResidualBlock(3, inner, inner, after='none'),
        }
        for side in ('source', 'target'):
            networks |= {
                f'encode_{side}': nn.Sequential(*stem(3, 1, s.width, s.downs), *blocks(s.blocks)),
                f'decode_{side}': nn.Sequential(*blocks(s.blocks), crown(3, 1, s.width, s.downs)),
                f'of_{side}': PatchDiscriminator(
                    3, widths=s.discriminator, kind=s.judge_norm, middle=s.middle, spectral=s.spectral
                ),
            }
        return networks

    @property
    def players(self) -> Mapping[str, Player]:
        """Autoencoders, and discriminators."""
        from bidsharm.training.options import Player

        rate, betas = self.settings.rate, (0.5, 0.999)
        sides = (
            'encode_source',
            'encode_target',
            'shared_in',
            'shared_out',
            'decode_source',
            'decode_target',
        )
        return {
            'autoencoders': Player(sides, rate, betas, 1e-4),
            'discriminators': Player(('of_source', 'of_target'), rate, betas, 1e-4),
        }

    def encode(self, image: Tensor, side: str) -> Tensor:
        """Return the mean of a code, shape (B, C, ...)."""
        return self.networks['shared_in'](self.networks[f'encode_{side}'](image))

    def decode(self, code: Tensor, side: str, *, noise: float = 0.0) -> Tensor:
        """Return the image of a code, with noise added to it."""
        import torch

        code = code + noise * torch.randn_like(code) if noise else code
        return self.networks[f'decode_{side}'](self.networks['shared_out'](code))

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Variational, adversarial and cycle losses (Liu et al. 2017, eq. 2 to 5); a code has a fixed deviation, so the divergence is its square."""
        import torch

        from bidsharm.nn.losses import adversarial_loss, l1

        del stage
        s, net = self.settings, self.networks
        noise, other = s.noise, {'source': 'target', 'target': 'source'}
        images = {
            side: batch[name] * batch[f'{name}_mask'] for side, name in (('source', 'x'), ('target', 'y'))
        }
        masks = {'source': batch['x_mask'], 'target': batch['y_mask']}
        codes = {side: self.encode(image, side) for side, image in images.items()}
        moved = {side: self.decode(codes[other[side]], side, noise=noise) * masks[other[side]] for side in images}  # fmt: skip
        codes_again = {side: self.encode(moved[other[side]], other[side]) for side in images}
        same = {side: self.decode(codes[side], side, noise=noise) * masks[side] for side in images}
        again = {side: self.decode(codes_again[side], side, noise=noise) * masks[side] for side in images}
        each = {
            'reconstruction': lambda side: s.reconstruction * l1(same[side], images[side]),
            'divergence': lambda side: s.divergence * codes[side].square().mean(),
            'cycle': lambda side: s.cycle * l1(again[side], images[side]),
            'cycle divergence': lambda side: s.cycle_divergence * codes_again[side].square().mean(),
            'adversarial': lambda side: (
                s.adversarial * adversarial_loss(net[f'of_{side}'](moved[side]), s.gan_loss)
            ),
        }
        yield (
            'autoencoders',
            {name: torch.stack([loss(side) for side in images]).sum() for name, loss in each.items()},
        )
        yield (
            'discriminators',
            {side: s.adversarial * judged(net[f'of_{side}'], images[side], moved[side], s) for side in images},
        )  # fmt: skip

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Encode as a scan of its side, and decode as one of the target."""
        at_target = given.site >= 0 and self.sites[given.site] == self.target_site
        return self.decode(self.encode(x, 'target' if at_target else 'source'), 'target')

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return a scan and what becomes of it."""
        return [batch['x'], self.translate(batch['x'], Given()) * batch['x_mask']]
