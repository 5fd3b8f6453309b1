"""U-Nets that learn from people who were scanned twice: DeepHarmony, the eight systems of Bottani et al., and Osman et al.

A U-Net maps a scan of another site to the scan of the same person at the target site. The loss is the mean absolute difference; the conditional
variants add a discriminator that sees input and output together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import AdversarialSettings, judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.trained import TrainedHarmonizer
from bidsharm.nn.names import Block, Bottleneck, Downsampling, Norm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class UNetSettings(AdversarialSettings):
    """Settings of the U-Nets.

    Parameters
    ----------
    widths, convs
        Channels of the levels, and convolutions of each.
    block, gates, bottleneck, depth, heads, norm, down
        Variants of the network (:class:`bidsharm.nn.unet.UNet`).
    skip_input
        Concatenate the input before the last convolution.
    adversarial
        Weight of the adversarial loss; 0 for no discriminator.
    l1, ssim
        Weights of the mean absolute difference, and of 1 less the structural similarity, which no paper here uses.
    discriminator
        Channels of the discriminator's strided layers.
    axes
        Axes of the slices; empty for patches.
    edge
        Edge of a patch in voxels.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    convs: int = 1
    block: Block = 'plain'
    gates: bool = False
    bottleneck: Bottleneck = 'conv'
    depth: int = 4
    heads: int = 8
    norm: Norm = 'instance'
    down: Downsampling = 'stride'
    skip_input: bool = False
    adversarial: float = 0.0
    l1: float = 1.0
    ssim: float = 0.0
    discriminator: tuple[int, ...] = (64, 128, 256)
    axes: tuple[int, ...] = ()
    edge: int = 96


@dataclass(frozen=True, kw_only=True)
class SliceSettings(UNetSettings):
    """DeepHarmony: slices along three axes, the input concatenated before the last convolution."""

    axes: tuple[int, ...] = (0, 1, 2)
    skip_input: bool = True
    batch: int = 16


@dataclass(frozen=True, kw_only=True)
class VisitSettings(SliceSettings):
    """DeepHarmony from all contrasts of a visit, whose only loss is L1."""

    unused: ClassVar[tuple[str, ...]] = ('adversarial', 'ssim')


@dataclass(frozen=True, kw_only=True)
class ResidualSettings(UNetSettings):
    """Residual blocks."""

    block: Block = 'residual'


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(UNetSettings):
    """Attention gates on the skip connections."""

    gates: bool = True


@dataclass(frozen=True, kw_only=True)
class TransformerSettings(UNetSettings):
    """A transformer at the bottleneck."""

    bottleneck: Bottleneck = 'transformer'


@dataclass(frozen=True, kw_only=True)
class ConditionalSettings(UNetSettings):
    """With a conditional discriminator; the L1 loss weighs 100 (Isola et al. 2017)."""

    adversarial: float = 1.0
    l1: float = 100.0
    rate: float = 2e-4


@dataclass(frozen=True, kw_only=True)
class ConditionalResidualSettings(ConditionalSettings):
    """Residual blocks, and a discriminator."""

    block: Block = 'residual'


@dataclass(frozen=True, kw_only=True)
class ConditionalAttentionSettings(ConditionalSettings):
    """Attention gates, and a discriminator."""

    gates: bool = True


@dataclass(frozen=True, kw_only=True)
class ConditionalTransformerSettings(ConditionalSettings):
    """A transformer, and a discriminator."""

    bottleneck: Bottleneck = 'transformer'


@dataclass(frozen=True, kw_only=True)
class OsmanSettings(UNetSettings):
    """Osman et al.: axial slices, batch norm and pooling (their public code)."""

    axes: tuple[int, ...] = (2,)
    convs: int = 2
    norm: Norm = 'batch'
    down: Downsampling = 'pool'
    batch: int = 32
    rate: float = 1e-3


class PairedUNet(TrainedHarmonizer):
    """A U-Net from pairs; base of this file's methods."""

    settings: UNetSettings
    Preset: ClassVar[type[NetworkSettings]] = UNetSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 4.0, 'widths': (8, 16, 32), 'discriminator': (8, 16), 'edge': 32, 'batch': 4, 'steps': 60, 'rate': 3e-3,
        'heads': 2, 'depth': 1, 'convs': 1,
    }  # fmt: skip

    def view(self) -> View:
        """Return slices or patches."""
        from bidsharm.training.views import Patches, Slices

        return Slices(self.settings.axes) if self.settings.axes else Patches(self.settings.edge)

    @property
    def channels(self) -> int:
        """Images that go in and come out."""
        return 1

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return pairs."""
        from bidsharm.training.regimes import Paired

        return Paired(
            data, self.view(), batch=self.settings.batch, target=self.target_site, flip=self.settings.flip
        )

    def build(self) -> dict[str, nn.Module]:
        """Return the U-Net, and the discriminator where there is one."""
        from bidsharm.nn.discriminators import PatchDiscriminator
        from bidsharm.nn.unet import UNet

        s, dims = self.settings, self.view().dims
        networks: dict[str, nn.Module] = {
            'generator': UNet(
                dims=dims, in_channels=self.channels, out_channels=self.channels, widths=s.widths, convs=s.convs, block=s.block, gates=s.gates, bottleneck=s.bottleneck,
                depth=s.depth, heads=s.heads, kind=s.norm, down=s.down, skip_input=s.skip_input,
            )
        }  # fmt: skip
        if s.adversarial:
            networks['discriminator'] = PatchDiscriminator(
                dims, 2, widths=s.discriminator, middle=2 * s.discriminator[-1], spectral=s.spectral
            )
        return networks

    @property
    def players(self) -> Mapping[str, Player]:
        """The generator, and the discriminator where there is one."""
        from bidsharm.training.options import Player

        names = ('generator', 'discriminator') if self.settings.adversarial else ('generator',)
        betas = (0.5, 0.999) if self.settings.adversarial else (0.9, 0.999)
        return {name: Player((name,), self.settings.rate, betas) for name in names}

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """L1 (and SSIM), and with a discriminator a conditional adversarial loss (Isola et al. 2017), by least squares as in the public code of Bottani et al."""
        import torch

        from bidsharm.nn.losses import adversarial_loss, l1, ssim_loss

        del stage
        s, x, y, mask = self.settings, batch['x'], batch['y'], batch['mask']
        found = self.networks['generator'](x) * mask
        losses = {'l1': s.l1 * l1(found, y * mask)}
        if s.ssim:
            losses['ssim'] = s.ssim * ssim_loss(found, y * mask)
        if not s.adversarial:
            yield 'generator', losses
            return
        judge = self.networks['discriminator']
        score = judge(torch.cat([x, found], dim=1))
        yield (
            'generator',
            {**losses, 'adversarial': s.adversarial * adversarial_loss(score, s.gan_loss)},
        )
        real, fake = torch.cat([x, y * mask], dim=1), torch.cat([x, found], dim=1)
        yield 'discriminator', {'adversarial': 0.5 * judged(judge, real, fake, s)}

    def validation(self, batch: Batch) -> Tensor:
        """Return the mean absolute difference."""
        from bidsharm.nn.losses import l1

        return l1(self.networks['generator'](batch['x']) * batch['mask'], batch['y'] * batch['mask'])

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Put a batch through the generator."""
        del given
        return self.networks['generator'](x)


_DEWEY = (
    'Dewey BE, et al. DeepHarmony: a deep learning approach to contrast harmonization across scanner changes. '
    'Magn Reson Imaging 2019;64:160-170.'
)
_BOTTANI = (
    'Bottani S, et al. Homogenization of brain MRI from a clinical data warehouse using contrast-enhanced to '
    'non-contrast-enhanced image translation. arXiv:2203.16557, 2022.'
)
_OSMAN = (
    'Osman AFI, Tamam NM. Deep learning-based convolutional neural network for intramodality brain MRI synthesis. '
    'J Appl Clin Med Phys 2022;23:e13530.'
)
_SIZES = (
    'Networks have fewer channels than those of the public code, and the norms and last layers of this package; they see patches instead of whole images on a grid of 128 voxels along each '
    'axis, and more of them at once.'
)
_WEIGHTS = (
    ' The mean absolute difference weighs 100 times the adversarial loss, as in Isola et al. 2017, and nothing is trained before; in the public code both weigh 1, the generator is first trained '
    'alone, and the discriminator is told noisy numbers instead of 0 and 1.'
)


def _card(name: str, title: str, paper: str, doi: str = '', deviations: str = _SIZES) -> Card:
    return Card(
        name=name, title=title, paper=paper, doi=doi, family='unet', supervision='paired', geometry='grid', targets=('site',),
        needs_fit=('paired',), needs_apply=('weights',), changes_anatomy=True, uses_device=True, memory_gb=6.0,
        fidelity='adapted', deviations=deviations,
    )  # fmt: skip


def _conditional(card: Card) -> Card:
    """Return the card of a method with a discriminator, from that of the one without."""
    title, deviations = f'{card.name} with a conditional discriminator', card.deviations + _WEIGHTS
    return replace(card, name=f'{card.name}-cgan', title=title, deviations=deviations)


class DeepHarmony(PairedUNet):
    """DeepHarmony: a 2-D U-Net along three axes, fused by the median (Dewey et al. 2019)."""

    Preset: ClassVar[type[NetworkSettings]] = SliceSettings
    card = _card(
        'deepharmony', 'U-Net on slices of three axes', _DEWEY, '10.1016/j.mri.2019.05.041',
        'One network for the slices of all three axes instead of one each; optimizer and number of steps are not those of the paper.',
    )  # fmt: skip


class DeepHarmonyManyToOne(DeepHarmony):
    """DeepHarmony with all contrasts of a visit as channels of the input (Dewey et al. 2019)."""

    Preset: ClassVar[type[NetworkSettings]] = VisitSettings
    card = replace(
        DeepHarmony.card, name='deepharmony-many-to-one', title='U-Net on slices of three axes, from all contrasts of a visit',
        needs_fit=('paired', 'multi_contrast'), companions=True,
        deviations='One network for all contrasts of the target and the slices of all three axes; contrasts are left out at random in the training, so that a '
        'scan alone can be harmonized; optimizer and number of steps are not those of the paper.',
    )  # fmt: skip

    @property
    def channels(self) -> int:
        """Contrasts of the training."""
        return len(self.contrasts)

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return visits of a person elsewhere and at the target."""
        from bidsharm.training.regimes import PairedVisits

        s = self.settings
        return PairedVisits(data, self.view(), batch=s.batch, target=self.target_site, flip=s.flip)

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """L1 of the contrasts that went in and that the target has, from a part of the visit's contrasts."""
        from bidsharm.harmonizers.disentangled import some_of

        del stage
        yield (
            'generator',
            {'l1': self.settings.l1 * self._error(batch, some_of(batch['present'], None, 0.0, few=True))},
        )

    def _error(self, batch: Batch, kept: Tensor) -> Tensor:
        """Return the mean absolute difference of the contrasts that are kept and known at the target, in the brain."""
        x, y = batch['images'], batch['others']
        lead = (*kept.shape, *(1 for _ in x.shape[2:]))
        counts = (kept * batch['others_present']).view(lead) * batch['mask']
        found = self.networks['generator'](x * kept.view(lead))
        return ((found - y).abs() * counts).sum() / counts.sum().clamp_min(1)

    def validation(self, batch: Batch) -> Tensor:
        """Return the mean absolute difference, from all contrasts."""
        return self._error(batch, batch['present'])

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return the first contrast of a visit, what becomes of it, and what should."""
        found = self.networks['generator'](batch['images']) * batch['mask']
        return [values[:, :1] for values in (batch['images'], found, batch['others'])]

    def prepare(
        self, volume: NDArray[np.float32], given: Given, batch: int
    ) -> tuple[NDArray[np.float32], Given]:
        """Return one channel for each contrast, filled with the scan and what else the visit has."""
        del batch
        return self.all_contrasts(volume, given), given

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Return the scan's own contrast."""
        return self.networks['generator'](x)[:, [given.contrast]]


class UNet3D(PairedUNet):
    """3-D U-Net (Bottani et al. 2022)."""

    card = _card('unet3d', '3-D U-Net on patches', _BOTTANI)


class ResUNet(PairedUNet):
    """3-D U-Net with residual blocks (Bottani et al. 2022)."""

    Preset: ClassVar[type[NetworkSettings]] = ResidualSettings
    card = _card('res-unet', '3-D U-Net of residual blocks', _BOTTANI)


class AttUNet(PairedUNet):
    """3-D U-Net with attention gates (Bottani et al. 2022)."""

    Preset: ClassVar[type[NetworkSettings]] = AttentionSettings
    card = _card('att-unet', '3-D U-Net with attention gates', _BOTTANI)


class TransUNet(PairedUNet):
    """3-D U-Net with a transformer at the bottleneck (Bottani et al. 2022)."""

    Preset: ClassVar[type[NetworkSettings]] = TransformerSettings
    card = _card('trans-unet', '3-D U-Net with a transformer at the bottleneck', _BOTTANI)


class UNet3DCGAN(UNet3D):
    """3-D U-Net with a conditional discriminator (Bottani et al. 2022)."""

    Preset: ClassVar[type[NetworkSettings]] = ConditionalSettings
    card = _conditional(UNet3D.card)


class ResUNetCGAN(ResUNet):
    """Residual U-Net with a conditional discriminator (Bottani et al. 2022)."""

    Preset: ClassVar[type[NetworkSettings]] = ConditionalResidualSettings
    card = _conditional(ResUNet.card)


class AttUNetCGAN(AttUNet):
    """Attention U-Net with a conditional discriminator (Bottani et al. 2022)."""

    Preset: ClassVar[type[NetworkSettings]] = ConditionalAttentionSettings
    card = _conditional(AttUNet.card)


class TransUNetCGAN(TransUNet):
    """Transformer U-Net with a conditional discriminator (Bottani et al. 2022)."""

    Preset: ClassVar[type[NetworkSettings]] = ConditionalTransformerSettings
    card = _conditional(TransUNet.card)


class Osman(PairedUNet):
    """2-D U-Net on axial slices (Osman and Tamam 2022)."""

    Preset: ClassVar[type[NetworkSettings]] = OsmanSettings
    # The running means of batch norm need some hundred steps.
    tiny: ClassVar[Mapping[str, Any]] = {**PairedUNet.tiny, 'steps': 200}
    card = _card(
        'osman', 'U-Net on axial slices', _OSMAN, '10.1002/acm2.13530',
        'The paper translates between contrasts of one scanner; here the pairs are two scanners. Widths, batch norm, pooling, batches and rate are those of the public code. The mean absolute '
        'difference is minimized, not the squared one; sizes grow by transposed convolutions instead of repetition, and norms follow activations instead of preceding them.',
    )  # fmt: skip
