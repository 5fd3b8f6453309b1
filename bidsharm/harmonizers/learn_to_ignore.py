"""Learn to ignore (Wolleb et al. 2022): codes of one class gather around one point, from whichever scanner they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.task import Kind, TaskSettings, TrainedTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class IgnoreSettings(TaskSettings):
    """Settings of learn to ignore.

    Parameters
    ----------
    code
        Length of the code.
    centre, pull, push
        Weights of the distance to the centre of the class, of the distance between scans of one class from different scanners, and of classes
        that are closer than the margin.
    radius, margin
        Distance of the fixed centres from the origin, and least distance of two classes.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    code: int = 128
    centre: float = 1.0
    pull: float = 1.0
    push: float = 1.0
    radius: float = 5.0
    margin: float = 5.0


class LearnToIgnore(TrainedTask):
    """An encoder with fixed centres of the classes in its space, and a classifier of its codes."""

    settings: IgnoreSettings
    Preset: ClassVar[type[TaskSettings]] = IgnoreSettings
    kinds: ClassVar[tuple[Kind, ...]] = ('classification',)
    card = Card(
        name='learn-to-ignore', title='Codes that gather by class and ignore the scanner (L2I)', family='indirect', supervision='unpaired',
        paper='Wolleb J, et al. Learn to ignore: domain adaptation for multi-site MRI analysis. MICCAI, 725-735, 2022 (arXiv:2110.06803).',
        doi='10.48550/arXiv.2110.06803', output='task', geometry='grid', targets=(), needs_fit=('answers_of_two_sites',),
        needs_apply=('weights',), uses_device=True, memory_gb=4.0, fidelity='minimal',
        deviations='Only the idea of the paper could be read: an encoder of residual blocks with branches, fixed centres at equal distances, '
        'and the weights of the losses are our choice.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return encoder and classifier."""
        from torch import nn

        from bidsharm.nn.task import InceptionEncoder

        s = self.settings
        return {
            'encoder': InceptionEncoder(s.widths, s.code),
            'head': nn.Linear(s.code, self.task.outputs),
        }

    @property
    def players(self) -> Mapping[str, Player]:
        """One optimizer."""
        from bidsharm.training.options import Player

        return {'task': Player(('encoder', 'head'), self.settings.rate)}

    def centres(self, like: Tensor) -> Tensor:
        """Return the fixed centres of the classes, on an axis of their own each, shape (classes, code)."""
        import torch

        return self.settings.radius * torch.eye(self.task.outputs, self.settings.code).to(like)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return answers and embeddings."""
        code = self.networks['encoder'](x)
        return self.networks['head'](code), code

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield the losses of the class, of its centre, and of pairs."""
        del stage
        s = self.settings
        said, code = self.read(batch['x'])
        some = batch['known'] > 0
        code, truth, site = code[some], batch['truth'][some], batch['site'][some]
        pull, push = self.pairs(code, truth, site)
        yield (
            'task',
            {
                'task': self.task_loss(said, batch),
                'centre': s.centre * (code - self.centres(code)[truth]).square().sum(dim=1).mean(),
                'pull': s.pull * pull,
                'push': s.push * push,
            },
        )

    def pairs(self, code: Tensor, truth: Tensor, site: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean squared distance within a class across scanners, and how much classes lack to the margin (squared mean)."""
        # The square root has no slope where codes are equal.
        square = (code[:, None] - code[None]).square().sum(dim=2)
        alike = truth[:, None] == truth[None]
        across = alike & (site[:, None] != site[None])
        lack = (self.settings.margin - (square + 1e-6).sqrt()).clamp_min(0).square()
        return (
            (square * across).sum() / across.sum().clamp_min(1),
            (lack * ~alike).sum() / (~alike).sum().clamp_min(1),
        )
