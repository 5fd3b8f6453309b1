"""Attention-guided domain adaptation (AD2A, Guan et al. 2021): features under one map of attention, alike between scanners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.task import TaskSettings, TrainedTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(TaskSettings):
    """Settings of AD2A.

    Parameters
    ----------
    domain, attention
        Weights of the domain classifier, whose gradient is turned round, and of the differences between the sites' mean maps of attention.
    hold_out
        Nobody is kept for validation: the loss of the task does not tell which weights hide the site.
    """

    domain: float = 0.1
    attention: float = 0.1
    hold_out: float = 0.0


class AttentionAdaptation(TrainedTask):
    """Attention, domain classifier with reversed gradient, and attention that is alike at all sites."""

    settings: AttentionSettings
    Preset: ClassVar[type[TaskSettings]] = AttentionSettings
    card = Card(
        name='ad2a', title='Domain adaptation under attention (AD2A)', family='indirect', supervision='unpaired',
        paper='Guan H, et al. Multi-site MRI harmonization via attention-guided deep domain adaptation for brain disorder identification. '
        'Med Image Anal 2021;71:102076.',
        doi='10.1016/j.media.2021.102076', output='task', geometry='grid', targets=(), needs_fit=('two_sites', 'answers'),
        needs_apply=('weights',), uses_device=True, memory_gb=4.0, fidelity='minimal',
        deviations='Only the idea of the paper could be read: the encoder is that of "unlearning", and the weights of the losses are our '
        'choice. Any number of sites takes part instead of one source and one target; regression is added.',
    )  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """Return encoder with attention, head of the task, and domain classifier."""
        from bidsharm.nn.discriminators import LatentClassifier
        from bidsharm.nn.task import AttentiveEncoder, Head

        s = self.settings
        return {
            'encoder': AttentiveEncoder(s.widths, s.convs, s.code),
            'head': Head(s.code, s.hidden, self.task.outputs),
            'domain': LatentClassifier(s.code, len(self.sites), s.hidden),
        }

    @property
    def players(self) -> Mapping[str, Player]:
        """One optimizer: the gradient of the domain classifier is turned round on its way to the encoder."""
        from bidsharm.training.options import Player

        return {'task': Player(('encoder', 'head', 'domain'), self.settings.rate)}

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return answers and embeddings."""
        code, _ = self.networks['encoder'](x)
        return self.networks['head'](code), code

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield the losses of task, domain and attention."""
        from torch.nn.functional import cross_entropy

        from bidsharm.nn.losses import reverse_gradient

        del stage
        s, net = self.settings, self.networks
        code, where = net['encoder'](batch['x'])
        yield (
            'task',
            {
                'task': self.task_loss(net['head'](code), batch),
                'domain': s.domain * cross_entropy(net['domain'](reverse_gradient(code)), batch['site']),
                'attention': s.attention * self.apart(where, batch['site']),
            },
        )

    @staticmethod
    def apart(where: Tensor, site: Tensor) -> Tensor:
        """Return the mean absolute difference of each site's mean map of attention from the mean of all sites."""
        import torch

        means = torch.stack([where[site == one].mean(dim=0) for one in site.unique()])
        return (means - means.mean(dim=0)).abs().mean()
