"""A task network that nothing keeps from seeing the scanner: what every other method for tasks has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.task import Kind, TrainedTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


class PlainTask(TrainedTask):
    """The backbone of all task methods, trained on the task alone (empirical risk minimization, Vapnik 1991)."""

    kinds: ClassVar[tuple[Kind, ...]] = ('regression', 'classification', 'segmentation')
    card = Card(
        name='erm', title='Task network without harmonization (empirical risk minimization)', family='indirect',
        paper='Vapnik V. Principles of risk minimization for learning theory. NIPS 4, 831-838, 1991.',
        supervision='unpaired', output='task', geometry='grid', targets=(), needs_fit=('answers',), needs_apply=('weights',),
        uses_device=True, memory_gb=4.0, fidelity='faithful',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return the encoder and the head of the task."""
        encoder, head, _ = self.backbone()
        return {'encoder': encoder, 'head': head}

    @property
    def players(self) -> Mapping[str, Player]:
        """One optimizer for everything."""
        from bidsharm.training.options import Player

        return {'task': Player(('encoder', 'head'), self.settings.rate)}

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield the loss of the task."""
        del stage
        yield 'task', {'task': self.task_loss(self.read(batch['x'])[0], batch)}
