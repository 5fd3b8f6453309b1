"""Unlearning of the scanner (Dinsdale et al. 2021): a task network whose features a classifier of scanners can make nothing of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.task import Kind, TaskSettings, TrainedTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player, Stage
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class UnlearningSettings(TaskSettings):
    """Settings of unlearning.

    Parameters
    ----------
    alpha, beta
        Weights of the loss of the classifier of scanners (eq. 2) and of the confusion loss (eq. 3).
    first
        Part of the training that learns the task alone (100 of 300 epochs).
    pace
        Multiplies the learning rate of the classifier: a slow one is confused without anything being unlearnt.
    turns
        Steps of the classifier for each step of the others.
    hold_out
        Nobody is kept for validation: the loss of the task does not tell which weights have unlearnt the site.
    """

    alpha: float = 1.0
    beta: float = 10.0
    first: float = 1 / 3
    pace: float = 1.0
    turns: int = 1
    hold_out: float = 0.0


class Unlearning(TrainedTask):
    """Three steps in turn: the task, the classifier of scanners on features as they are, and features that confuse it."""

    settings: UnlearningSettings
    Preset: ClassVar[type[TaskSettings]] = UnlearningSettings
    kinds: ClassVar[tuple[Kind, ...]] = ('regression', 'classification', 'segmentation')
    tiny: ClassVar[Mapping[str, object]] = {
        **TrainedTask.tiny, 'steps': 300, 'rate': 1e-3, 'pace': 5.0, 'turns': 2, 'average': 0.95,
    }  # fmt: skip
    card = Card(
        name='unlearning', title='Task network that unlearns the scanner', family='indirect', supervision='unpaired',
        paper='Dinsdale NK, et al. Deep learning-based unlearning of dataset bias for MRI harmonisation and confound removal. '
        'NeuroImage 2021;228:117689.',
        doi='10.1016/j.neuroimage.2020.117689', output='task', geometry='grid', targets=(), needs_fit=('two_sites', 'answers'),
        needs_apply=('weights',), uses_device=True, memory_gb=4.0, fidelity='adapted',
        deviations='Whole brains at 2 mm instead of 128 x 128 x 32 voxels; features are pooled to 2 x 2 x 2 before the code, so that any '
        'field of view fits. Batches draw sites with equal chances and half of their scans have answers. For segmentations the scanner is '
        'unlearnt from the bottleneck of a U-Net. The training ends by its budget, and its last weights are taken.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return encoder, head of the task, and classifier of scanners."""
        return self.backbone_and_domain()

    @property
    def players(self) -> Mapping[str, Player]:
        """Task, classifier of scanners, and the encoder that confuses it."""
        from bidsharm.training.options import Player

        rate = self.settings.rate
        return {
            'task': Player(('encoder', 'head'), rate),
            'domain': Player(('domain',), rate * self.settings.pace),
            'confusion': Player(('encoder',), rate),
        }

    @property
    def stages(self) -> Sequence[Stage]:
        """The task alone, then all three steps."""
        from bidsharm.training.options import Stage

        first = self.settings.first
        return (Stage('task', first), Stage('unlearn', 1 - first)) if first else (Stage('unlearn'),)

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield the loss of the task (eq. 1), of the classifier (eq. 2) and of the confusion (eq. 3)."""
        from bidsharm.nn.losses import confusion

        yield 'task', {'task': self.task_loss(self.read(batch['x'])[0], batch)}
        domain = self.networks['domain']
        # The classifier is trained in the first stage, too, so that it can be confused from the start of the second one.
        for turn in range(self.settings.turns):
            seen = batch if turn == 0 else self.more()
            yield 'domain', {'domain': self.domain_loss(seen)}
        if stage == 'unlearn':
            _, code = self.read(batch['x'])
            yield 'confusion', {'confusion': self.settings.beta * confusion(domain(code))}

    def domain_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the classifier of scanners on features as they are (eq. 2)."""
        import torch
        from torch.nn.functional import cross_entropy

        with torch.no_grad():
            _, code = self.read(batch['x'])
        return self.settings.alpha * cross_entropy(self.networks['domain'](code), batch['site'])
