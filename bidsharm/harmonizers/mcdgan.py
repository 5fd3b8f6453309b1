"""MCD-GAN (Yan et al. 2022, "harmless"): a generator whose images two classifiers have to agree about.

Two classifiers learn classes from scans of the target. Where they can be made to disagree about generated scans, those are unlike the target; the
generator learns to leave no such place (Saito et al. 2018, arXiv:1712.02560), and to deceive a discriminator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import AdversarialSettings, Unpaired, judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.nn.names import Norm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class DiscrepancySettings(AdversarialSettings):
    """Settings of MCD-GAN; the paper's own could not be read.

    Parameters
    ----------
    edge
        Edge of a patch in voxels.
    widths
        Channels of the levels of the generator.
    classifier
        Channels of the levels of the classifiers.
    discriminator, middle
        Channels of the discriminator's strided layers, and of the one without stride.
    judge_norm
        Norm of the discriminator.
    adversarial, discrepancy, keep
        Weights of the generator's losses; ``keep`` is that of the difference from the input.
    """

    edge: int = 64
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    classifier: tuple[int, ...] = (16, 32, 64)
    discriminator: tuple[int, ...] = (64, 128, 256)
    middle: int = 0
    judge_norm: Norm = 'instance'
    adversarial: float = 1.0
    discrepancy: float = 1.0
    keep: float = 1.0
    batch: int = 2
    rate: float = 2e-4


class DiscrepancyGAN(Unpaired):
    """A generator against a discriminator and two classifiers of tissue (Yan et al. 2022)."""

    settings: DiscrepancySettings
    Preset: ClassVar[type[NetworkSettings]] = DiscrepancySettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 12.0, 'edge': 16, 'widths': (4, 8), 'classifier': (4, 8), 'discriminator': (8, 16), 'judge_norm': 'none',
        'spectral': True, 'penalty': 0.1, 'batch': 2, 'steps': 80, 'rate': 2e-3, 'keep': 0.1,
    }  # fmt: skip
    card = Card(
        name='mcdgan', title='A generator about whose images two classifiers agree', family='gan', supervision='unpaired',
        paper="Yan W, et al. 'Harmless' adversarial network harmonization approach for removing site effects and improving reproducibility in neuroimaging studies. EMBC, 2022.",
        doi='10.1109/EMBC48229.2022.9871061', geometry='grid', targets=('site',), needs_fit=('two_sites', 'tissue'), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=8.0, fidelity='minimal',
        deviations='The paper maps grey matter maps and its classes are groups of people; here intensities are mapped, and the classes are the tissues of the voxels. '
        'Networks and weights are ours, for no code is public and the text could not be read.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return the generator, which begins as the identity, two classifiers and the discriminator."""
        from bidsharm.nn.blocks import silent
        from bidsharm.nn.discriminators import PatchDiscriminator
        from bidsharm.nn.unet import TanhResidual, UNet

        s = self.settings
        body = UNet(dims=3, widths=s.widths, skip_input=True)
        silent(body.last)
        return {
            'generator': TanhResidual(body),
            'one': UNet(dims=3, widths=s.classifier, out_channels=4),
            'other': UNet(dims=3, widths=s.classifier, out_channels=4),
            'discriminator': PatchDiscriminator(
                3, widths=s.discriminator, kind=s.judge_norm, middle=s.middle, spectral=s.spectral
            ),
        }

    @property
    def players(self) -> Mapping[str, Player]:
        """The classifiers, the generator, and the discriminator."""
        from bidsharm.training.options import Player

        rate, betas = self.settings.rate, (0.5, 0.999)
        return {
            'classifiers': Player(('one', 'other'), rate, betas),
            'generator': Player(('generator',), rate, betas),
            'discriminator': Player(('discriminator',), rate, betas),
        }

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Classes of the target; the largest disagreement about generated scans; and the least (Saito et al. 2018, steps A to C)."""
        from bidsharm.nn.losses import adversarial_loss, l1

        del stage
        s, net = self.settings, self.networks
        x, y, mask = batch['x'] * batch['x_mask'], batch['y'] * batch['y_mask'], batch['x_mask']
        yield 'classifiers', {'classes': self.classes(y, batch['y_tissue'])}
        fixed = (net['generator'](x) * mask).detach()
        apart = {
            'classes again': self.classes(y, batch['y_tissue']),
            'agreement': -s.discrepancy * self.disagreement(fixed, mask),
        }
        yield 'classifiers', apart
        found = net['generator'](x) * mask
        yield (
            'generator',
            {
                'adversarial': s.adversarial * adversarial_loss(net['discriminator'](found), s.gan_loss),
                'discrepancy': s.discrepancy * self.disagreement(found, mask),
                'keep': s.keep * l1(found, x),
            },
        )
        yield 'discriminator', {'adversarial': 0.5 * judged(net['discriminator'], y, found, s)}

    def classes(self, image: Tensor, tissue: Tensor) -> Tensor:
        """Return the cross-entropy of both classifiers."""
        from torch.nn import functional

        return functional.cross_entropy(self.networks['one'](image), tissue) + functional.cross_entropy(
            self.networks['other'](image), tissue
        )

    def disagreement(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return how far the classifiers' probabilities are apart, averaged over the brain (Saito et al. 2018, eq. 9)."""
        one, other = (self.networks[name](image).softmax(dim=1) for name in ('one', 'other'))
        return ((one - other).abs().mean(dim=1, keepdim=True) * mask).sum() / mask.sum().clamp_min(1)

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Put a batch through the generator."""
        del given
        return self.networks['generator'](x)
