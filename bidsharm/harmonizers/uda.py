"""Segmentation with labels from some scanners only (Grigorescu et al. 2021): adapted in the latent space, or in the space of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import AdversarialSettings, judged
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.task import Kind, TaskSettings, TrainedTask, Truth

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.volumes import TrainingSet

_PAPER = 'Grigorescu I, et al. Harmonized segmentation of neonatal brain MRI. Front Neurosci 2021;15:662005.'
_DOI = '10.3389/fnins.2021.662005'


@dataclass(frozen=True, kw_only=True)
class LatentSettings(TaskSettings):
    """Settings of the adaptation in the latent space.

    Parameters
    ----------
    domain
        Weight of the domain classifier, whose gradient is turned round.
    hold_out
        Nobody is kept for validation: the loss of the task does not tell which weights hide the site.
    """

    domain: float = 0.1
    hold_out: float = 0.0


class LatentAdaptation(TrainedTask):
    """A U-Net whose bottleneck a domain classifier with a reversed gradient looks at."""

    settings: LatentSettings
    Preset: ClassVar[type[TaskSettings]] = LatentSettings
    kinds: ClassVar[tuple[Kind, ...]] = ('segmentation',)
    card = Card(
        name='uda-latent', title='Segmentation, adapted in the latent space', family='indirect', supervision='unpaired', paper=_PAPER, doi=_DOI,
        output='task', geometry='grid', targets=(), needs_fit=('two_sites', 'answers'), needs_apply=('weights',), uses_device=True,
        memory_gb=6.0, fidelity='minimal',
        deviations='Only the idea of the paper could be read: the U-Net, the classifier of the mean of its bottleneck and the weights are our choice.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return the U-Net (its head is a part of it) and the domain classifier."""
        return self.backbone_and_domain()

    @property
    def players(self) -> Mapping[str, Player]:
        """One optimizer: the gradient of the classifier is turned round on its way to the U-Net."""
        from bidsharm.training.options import Player

        return {'task': Player(('encoder', 'domain'), self.settings.rate)}

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield the losses of segmentation and domain."""
        from torch.nn.functional import cross_entropy

        from bidsharm.nn.losses import reverse_gradient

        del stage
        said, code = self.read(batch['x'])
        guess = self.networks['domain'](reverse_gradient(code))
        yield (
            'task',
            {
                'task': self.task_loss(said, batch),
                'domain': self.settings.domain * cross_entropy(guess, batch['site']),
            },
        )


@dataclass(frozen=True, kw_only=True)
class ImageSettings(TaskSettings, AdversarialSettings):
    """Settings of the adaptation in the space of images.

    Parameters
    ----------
    generator
        Channels of the levels of the generator.
    discriminator
        Channels of the discriminator's strided layers.
    adversarial, structure
        Weights of the adversarial loss and of 1 less the local correlation of an image with what is made of it.
    window
        Edge of the window of the correlation, in voxels.
    """

    generator: tuple[int, ...] = (16, 32, 64)
    discriminator: tuple[int, ...] = (32, 64, 128)
    adversarial: float = 1.0
    structure: float = 10.0
    window: int = 9


class ImageAdaptation(TrainedTask):
    """A generator that makes labelled scans look like those of the other sites, and a U-Net that learns from both looks."""

    settings: ImageSettings
    Preset: ClassVar[type[TaskSettings]] = ImageSettings
    kinds: ClassVar[tuple[Kind, ...]] = ('segmentation',)
    tiny_segmenting: ClassVar[Mapping[str, Any]] = {
        **TrainedTask.tiny_segmenting, 'generator': (8, 16), 'discriminator': (8, 16), 'window': 5, 'structure': 2.0,
    }  # fmt: skip
    card = Card(
        name='uda-image', title='Segmentation, adapted in the space of images', family='indirect', supervision='unpaired', paper=_PAPER, doi=_DOI,
        output='task', geometry='grid', targets=(), needs_fit=('answers', 'site_without_answers'), needs_apply=('weights',), uses_device=True,
        memory_gb=8.0, fidelity='minimal',
        deviations='Only the idea of the paper could be read: networks and weights are our choice. Labelled scans are made to look like those of '
        'all other sites together, and the U-Net learns from the scans as they are, too, so that it serves scans of either side.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return the U-Net, the generator, which begins with no change, and the discriminator."""
        from bidsharm.nn.blocks import silent
        from bidsharm.nn.discriminators import PatchDiscriminator
        from bidsharm.nn.unet import UNet

        s = self.settings
        encoder, head, _ = self.backbone()
        generator = UNet(dims=3, widths=s.generator)
        silent(generator.last)
        return {
            'encoder': encoder, 'head': head, 'generator': generator,
            'discriminator': PatchDiscriminator(3, widths=s.discriminator, middle=0, spectral=s.spectral),
        }  # fmt: skip

    @property
    def players(self) -> Mapping[str, Player]:
        """U-Net, generator and discriminator."""
        from bidsharm.training.options import Player

        rate = self.settings.rate
        return {
            'task': Player(('encoder',), rate),
            'generator': Player(('generator',), rate, (0.5, 0.999)),
            'discriminator': Player(('discriminator',), rate, (0.5, 0.999)),
        }

    def sampler(self, data: TrainingSet, truth: Truth) -> Sampler:
        """Return labelled scans, and scans of the other sites."""
        return source_and_target(self, data, truth)

    def moved(self, batch: Batch) -> Tensor:
        """Return labelled scans that look like those of the other sites; background stays."""
        x = batch['x']
        return (x + self.networks['generator'](x)) * batch['x_mask']

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield the losses of generator (adversarial and structure), discriminator, and segmentation of both looks."""
        from bidsharm.nn.losses import adversarial_loss, local_correlation

        del stage
        s, net = self.settings, self.networks
        fake = self.moved(batch)
        yield (
            'generator',
            {
                'adversarial': s.adversarial * adversarial_loss(net['discriminator'](fake), s.gan_loss),
                'structure': s.structure * (1 - local_correlation(fake, batch['x'], s.window)),
            },
        )
        real = batch['y'] * batch['y_mask']
        yield 'discriminator', {'discriminator': judged(net['discriminator'], real, fake, s)}
        yield (
            'task',
            {
                'moved': self.task_loss(self.read(self.moved(batch).detach())[0], batch, 'x_truth'),
                'as it is': self.task_loss(self.read(batch['x'])[0], batch, 'x_truth'),
            },
        )

    def validation(self, batch: Batch) -> Tensor | None:
        """Return the loss of the segmentation of labelled scans of people who are not trained on, moved."""
        return self.task_loss(self.read(self.moved(batch))[0], batch, 'x_truth')

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return a labelled scan, what it is made to look like, and a scan of another site."""
        return [batch['x'], self.moved(batch), batch['y']]


def source_and_target(method: TrainedTask, data: TrainingSet, truth: Truth) -> Sampler:
    """Return batches of labelled scans and scans of sites without labels."""
    from bidsharm.training.labelled import SourceAndTarget

    s = method.settings
    return SourceAndTarget(data, method.view(), batch=s.batch, labelled=[*truth], flip=s.flip)
