"""Adversarial networks that learn from scans of different people, by the way there and back: CycleGAN and its relatives.

A generator maps scans of other sites to the target site, another one leads back, and both ways together have to end where they began (Zhu et al.
2017, doi:10.1109/ICCV.2017.244). IGUANe has one generator to the target for all sites, and one back to each; AG-GAN's generators say where to
change anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import AdversarialSettings, Unpaired, judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.nn.names import Head, Norm
from bidsharm.training.scaling import Scaled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class CycleSettings(AdversarialSettings):
    """Settings of the cycle-consistent methods; defaults are those of CycleGAN on axial slices.

    Parameters
    ----------
    axes
        Axes of the slices; empty for patches of volumes.
    edge
        Edge of a patch in voxels.
    width, blocks
        Channels after the first convolution of the residual generator, and its residual blocks.
    head
        What the generator says (:class:`bidsharm.nn.resnet.ResNet`).
    masks
        Number of attention masks, where the head has them.
    self_attention
        Let places of the residual generator attend to each other (:class:`bidsharm.nn.resnet.SelfAttention`), as in later relatives of CycleGAN.
    discriminator
        Channels of the discriminators' strided layers.
    middle
        Channels of the discriminators' layer without stride; 0 for none.
    judge_norm
        Norm of the discriminators. Instance norm hides how bright a whole patch is; ``none`` shows it to them.
    cycle, identity
        Weights of the losses, next to 1 for the adversarial one.
    judge_rate
        Learning rate of the discriminators relative to that of the generators (Heusel et al. 2017).
    """

    axes: tuple[int, ...] = (2,)
    edge: int = 64
    width: int = 64
    blocks: int = 9
    head: Head = 'direct'
    masks: int = 10
    self_attention: bool = False
    discriminator: tuple[int, ...] = (64, 128, 256)
    middle: int = 512
    judge_norm: Norm = 'instance'
    cycle: float = 10.0
    identity: float = 5.0
    judge_rate: float = 1.0
    batch: int = 1
    steps: int = 100_000
    rate: float = 2e-4


@dataclass(frozen=True, kw_only=True)
class VolumeSettings(CycleSettings):
    """CycleGAN on patches of volumes, with the smaller generator."""

    axes: tuple[int, ...] = ()
    width: int = 32
    blocks: int = 6
    middle: int = 0


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(CycleSettings):
    """AG-GAN: nine images and the input, combined by ten masks."""

    head: Head = 'attention'


@dataclass(frozen=True, kw_only=True)
class IguaneSettings(AdversarialSettings):
    """Settings of IGUANe (Roca et al. 2024; its public code).

    Parameters
    ----------
    widths
        Channels of the levels of the generators.
    discriminator
        Channels of the discriminators' strided layers.
    judge_norm
        Norm of the discriminators.
    cycle, identity
        Weights of the losses, next to 1 for the adversarial one.
    momentum
        First moment of Adam.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    discriminator: tuple[int, ...] = (64, 128, 256)
    judge_norm: Norm = 'mad'
    cycle: float = 30.0
    identity: float = 15.0
    scaling: Scaled = 'median'
    offset: float = -1.0
    momentum: float = 0.9
    batch: int = 1
    steps: int = 20_000
    rate: float = 2e-4


class CycleConsistent(Unpaired):
    """Two generators and two discriminators, and their losses; base of this file's methods."""

    def parts(self, batch: Batch) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """Return the generator to the target and the one back, and what judges the target and the other site."""
        del batch
        net = self.networks
        return net['generator'], net['backward'], net['of_target'], net['of_source']

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Least-squares adversarial, cycle and identity losses (Zhu et al. 2017, eq. 1 to 3 and section 5.2)."""
        from bidsharm.nn.losses import adversarial_loss, l1

        del stage
        s = self.settings
        forward, back, of_target, of_source = self.parts(batch)
        x, y = self.covered(batch['x'], batch, 'x'), self.covered(batch['y'], batch, 'y')
        to_target, to_source = self.covered(forward(x), batch, 'x'), self.covered(back(y), batch, 'y')
        yield (
            'generators',
            {
                'adversarial': adversarial_loss(of_target(to_target), s.gan_loss)
                + adversarial_loss(of_source(to_source), s.gan_loss),
                'cycle': s.cycle
                * (
                    l1(self.covered(back(to_target), batch, 'x'), x)
                    + l1(self.covered(forward(to_source), batch, 'y'), y)
                ),
                'identity': s.identity
                * (l1(self.covered(forward(y), batch, 'y'), y) + l1(self.covered(back(x), batch, 'x'), x)),
            },
        )
        yield (
            'discriminators',
            {
                'of_target': judged(of_target, y, to_target, s),
                'of_source': judged(of_source, x, to_source, s),
            },
        )

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Put a batch through the generator to the target."""
        del given
        return self.networks['generator'](x)

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return a scan and what becomes of it."""
        return [batch['x'], self.covered(self.translate(batch['x'], Given()), batch, 'x')]


class CycleGAN(CycleConsistent):
    """CycleGAN on slices: all other sites are one (Bashyam et al. 2020)."""

    settings: CycleSettings
    Preset: ClassVar[type[NetworkSettings]] = CycleSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'width': 8, 'blocks': 1, 'head': 'residual', 'discriminator': (8, 16), 'middle': 0, 'judge_norm': 'none', 'spectral': True,
        'batch': 8, 'steps': 80, 'rate': 5e-3, 'cycle': 0.5, 'identity': 0.25,
    }  # fmt: skip
    card = Card(
        name='cyclegan', title='CycleGAN on axial slices', family='gan', supervision='unpaired',
        paper='Bashyam VM, et al. Medical image harmonization using deep learning based canonical mapping: toward robust and generalizable learning in imaging. arXiv:2010.05355, 2020.',
        doi='10.48550/arXiv.2010.05355', geometry='grid', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations='No code of the paper is public; networks, losses and weights are those of CycleGAN. The last layer has no tanh, borders are padded with zeros, '
        'and discriminators see no buffer of earlier images. Their loss is not halved, which makes no difference to Adam.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return both generators and both discriminators."""
        return {
            'generator': self.generator(), 'backward': self.generator(),
            'of_target': self.discriminator(), 'of_source': self.discriminator(),
        }  # fmt: skip

    def generator(self) -> nn.Module:
        """Return a residual generator."""
        from bidsharm.nn.resnet import ResNet

        s = self.settings
        return ResNet(
            dims=self.view().dims, width=s.width, blocks=s.blocks, head=s.head, masks=s.masks,
            self_attention=s.self_attention,
        )  # fmt: skip

    def discriminator(self) -> nn.Module:
        """Return a discriminator of patches."""
        from bidsharm.nn.discriminators import PatchDiscriminator

        s = self.settings
        return PatchDiscriminator(
            self.view().dims, widths=s.discriminator, kind=s.judge_norm, middle=s.middle, spectral=s.spectral
        )

    @property
    def players(self) -> Mapping[str, Player]:
        """Generators, and discriminators; the rate falls to 0 in the second half."""
        from bidsharm.training.options import Player, linear_after_half

        rate, betas = self.settings.rate, (0.5, 0.999)
        return {
            'generators': Player(('generator', 'backward'), rate, betas, schedule=linear_after_half),
            'discriminators': Player(
                ('of_target', 'of_source'), self.settings.judge_rate * rate, betas, schedule=linear_after_half
            ),
        }


class CycleGAN3D(CycleGAN):
    """CycleGAN on volumes (Komandur et al. 2023)."""

    Preset: ClassVar[type[NetworkSettings]] = VolumeSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        **CycleGAN.tiny,
        'voxel_mm': 12.0,
        'width': 4,
        'edge': 16,
        'batch': 2,
        'steps': 50,
        'rate': 5e-4,
        'penalty': 0.1,
        'judge_rate': 4.0,
    }
    card = Card(
        name='cyclegan3d', title='CycleGAN on patches of volumes', family='gan', supervision='unpaired',
        paper='Komandur D, et al. Unsupervised harmonization of brain MRI using 3D CycleGANs and its effect on brain age prediction. SIPAIM, 2023.',
        doi='10.1109/SIPAIM56729.2023.10373501', geometry='grid', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=8.0, fidelity='adapted',
        deviations='No code of the paper is public; width and depth of the networks are ours, losses and weights are those of CycleGAN. '
        'The networks see patches that are blended, the last layer has no tanh, and discriminators see no buffer of earlier images. Their loss is not halved, which makes no difference to Adam.',
    )  # fmt: skip


class AttentionGAN(CycleGAN):
    """AG-GAN: masks say which of several images counts where, and where the input stays (Sinha et al. 2021)."""

    Preset: ClassVar[type[NetworkSettings]] = AttentionSettings
    tiny: ClassVar[Mapping[str, Any]] = {**CycleGAN.tiny, 'head': 'attention', 'masks': 4, 'rate': 2e-3}
    card = Card(
        name='aggan', title='CycleGAN whose generators mask their change', family='gan', supervision='unpaired',
        paper="Sinha S, et al. Alzheimer's disease classification accuracy is improved by MRI harmonization based on attention-guided generative adversarial networks. Proc SPIE 12088:180-189, 2021.",
        doi='10.1117/12.2606155', geometry='grid', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=6.0, fidelity='adapted',
        deviations='No code of the paper is public; networks and losses are those of AttentionGAN and CycleGAN. Axial slices; the mask of the input begins with nine '
        'tenths of the weight; the images that are combined have no tanh; the total variation of the masks is no loss; the loss of the discriminators is not halved, which makes no difference to Adam.',
    )  # fmt: skip


class Iguane(CycleConsistent):
    """IGUANe: one universal generator to the target site, one back to each source site (Roca et al. 2024)."""

    settings: IguaneSettings
    Preset: ClassVar[type[NetworkSettings]] = IguaneSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 12.0, 'widths': (4, 8), 'discriminator': (8, 16), 'judge_norm': 'none', 'spectral': True, 'penalty': 0.1, 'batch': 2,
        'steps': 60, 'rate': 2e-3, 'momentum': 0.5, 'cycle': 0.5, 'identity': 0.25,
    }  # fmt: skip
    card = Card(
        name='iguane', title='One generator from every site to one, with cycles back', family='gan', supervision='unpaired',
        paper='Roca V, et al. IGUANe: a 3D generalizable CycleGAN for multicenter harmonization of brain MR images. arXiv:2402.03227, 2024.',
        doi='10.48550/arXiv.2402.03227', geometry='grid', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=6.0,
        fidelity='adapted',
        deviations='A step takes one site, drawn at random, and one batch for the discriminators instead of two; ages are not matched; the generators begin as the identity. '
        'Generators move before the discriminators instead of after them, and on the same batch; the public code draws batches of its own for each discriminator.',
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

        from bidsharm.nn.blocks import silent
        from bidsharm.nn.discriminators import PatchDiscriminator
        from bidsharm.nn.unet import TanhResidual, UNet

        def generator() -> nn.Module:
            body = UNet(dims=3, widths=self.settings.widths, kind='mad', skip_input=True)
            silent(body.last)  # the generators begin as the identity
            return TanhResidual(body)

        def discriminator() -> nn.Module:
            return PatchDiscriminator(
                3, widths=self.settings.discriminator, kind=self.settings.judge_norm, middle=0, last_kernel=3,
                padding_value=-1.0, spectral=self.settings.spectral,
            )  # fmt: skip

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

        rate, betas = self.settings.rate, (self.settings.momentum, 0.999)
        return {
            'generators': Player(('generator', 'backward'), rate, betas, schedule=polynomial),
            'discriminators': Player(('of_target', 'of_source'), rate, betas, schedule=polynomial),
        }

    def parts(self, batch: Batch) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """Return the universal generator, and what belongs to the site of the batch."""
        net, index = self.networks, self.sources.index(self.sites[int(batch['x_site'][0])])
        back, of_target, of_source = (
            net[name].get_submodule(str(index)) for name in ('backward', 'of_target', 'of_source')
        )
        return net['generator'], back, of_target, of_source
