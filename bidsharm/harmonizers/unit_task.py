"""Tor-Diez et al. (2020) with their segmentation: scans become alike by autoencoders that share their code, and are segmented as such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.adversarial import DECAY
from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.task import Kind, TaskSettings, TrainedTask, Truth
from bidsharm.harmonizers.uda import source_and_target
from bidsharm.harmonizers.unit import SharedCode, SharedCodeSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class SharedTaskSettings(SharedCodeSettings, TaskSettings):
    """Settings of :class:`~bidsharm.harmonizers.unit.SharedCodeSettings`, and those of the segmentation.

    Parameters
    ----------
    segmentation
        Weight of the segmentation of translated scans.
    """

    segmentation: float = 1.0


class SharedCodeTask(TrainedTask):
    """The translation of ``unit`` from labelled scans to the look of the others, and a U-Net that segments what comes out."""

    settings: SharedTaskSettings
    Preset: ClassVar[type[TaskSettings]] = SharedTaskSettings
    kinds: ClassVar[tuple[Kind, ...]] = ('segmentation',)
    segmenting: ClassVar[Mapping[str, Any]] = {}
    tiny_segmenting: ClassVar[Mapping[str, Any]] = {
        **SharedCode.tiny, **TrainedTask.tiny_segmenting, 'edge': 16, 'steps': 100,
    }  # fmt: skip
    card = Card(
        name='unit-seg', title='Segmentation of scans that autoencoders made alike (UNIT)', family='indirect', supervision='unpaired',
        paper=SharedCode.card.paper, doi=SharedCode.card.doi, output='task', geometry='grid', targets=(), needs_fit=('answers', 'site_without_answers'),
        needs_apply=('weights',), uses_device=True, memory_gb=8.0, fidelity='minimal',
        deviations='No code is public and the text could not be read; the translation is that of UNIT in three dimensions, the segmentation '
        'a U-Net whose loss also reaches the translation. Sites with labels are one side, all others the other.' + DECAY,
    )  # fmt: skip

    def translator(self) -> SharedCode:
        """Return the method of images, on the networks of this one."""
        known = {item.name for item in fields(SharedCodeSettings)}
        settings = {name: getattr(self.settings, name) for name in known}
        found = SharedCode(self.execution, SharedCodeSettings(**settings))
        if hasattr(self, 'networks'):
            found.networks = self.networks
        return found

    def build(self) -> dict[str, nn.Module]:
        """Return the networks of the translation, and the U-Net."""
        encoder, head, _ = self.backbone()
        return {**self.translator().build(), 'encoder': encoder, 'head': head}

    @property
    def players(self) -> Mapping[str, Player]:
        """Those of the translation, and the segmentation, which moves the way of a translated scan, too."""
        from bidsharm.training.options import Player

        way = ('encode_source', 'shared_in', 'shared_out', 'decode_target')
        return {**self.translator().players, 'task': Player(('encoder', *way), self.settings.rate)}

    def sampler(self, data: TrainingSet, truth: Truth) -> Sampler:
        """Return labelled scans, and scans of the other sites."""
        return source_and_target(self, data, truth)

    def moved(self, x: Tensor) -> Tensor:
        """Return scans as the sites without labels would show them; background stays."""
        one = self.translator()
        return one.decode(one.encode(x, 'source'), 'target') * (x != self.settings.background)

    def before(self, image: Tensor, site: str) -> Tensor:
        """Return a scan as the sites without labels would show it."""
        return self.moved(image) if site in self.labelled_sites else image

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield the losses of the translation, and of the segmentation of translated scans."""
        yield from self.translator().losses(batch, stage)
        said, _ = self.read(self.moved(batch['x']))
        yield 'task', {'task': self.settings.segmentation * self.task_loss(said, batch, 'x_truth')}

    def validation(self, batch: Batch) -> Tensor | None:
        """Return the loss of the segmentation of labelled scans of people who are not trained on, translated."""
        return self.task_loss(self.read(self.moved(batch['x']))[0], batch, 'x_truth')

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return a labelled scan, what becomes of it, and a scan of another site."""
        return [batch['x'], self.moved(batch['x']), batch['y']]
