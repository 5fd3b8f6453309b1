r"""Counterfactual features: what a person would have had at another site (Vigneshwaran 2024).

A structural causal model in which site and kept columns (age, sex) are causes of the features: :math:`x = f(u; site, kept)` with
noise :math:`u \sim N(0, I)`. The invertible :math:`f` is trained by maximum likelihood. Then :math:`u` is found from the features of a
row (abduction), the site is set to the target (action), and :math:`f` gives the features (prediction).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.errors import UsageError
from bidsharm.harmonizers.contract import Card, Progress
from bidsharm.harmonizers.table_networks import NetworkTableHarmonizer, descend, epochs, onehot

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class CausalFlowSettings:
    """Settings of the flow.

    Parameters
    ----------
    couplings
        Number of coupling layers with splines; 0 leaves a shift and a spread that depend on the causes.
    width, bins
        Hidden size of their networks, and bins of the splines.
    rate, decay
        Learning rate and weight decay.
    epochs, batch
        Of the training.
    """

    couplings: int = 4
    width: int = 32
    bins: int = 8
    rate: float = 3e-3
    decay: float = 1e-3
    epochs: int = 400
    batch: int = 128

    def __post_init__(self) -> None:
        if self.couplings < 0 or min(self.width, self.bins, self.batch, self.epochs) < 1:
            raise UsageError(
                'couplings is 0 or more; width, bins, batch and epochs are 1 or more.', where='--set'
            )


class CausalFlow(NetworkTableHarmonizer):
    """Counterfactuals by a conditional normalizing flow."""

    card = Card(
        name='causal-flow',
        title='What a person would have had at another site, by a causal model',
        paper='Vigneshwaran et al. 2024, Improved multi-site Parkinson\'s disease classification using neuroimaging data with counterfactual inference, MIDL',
        family='flow',
        supervision='unpaired',
        domain='table',
        output='features',
        needs_fit=('table', 'two_sites'),
        needs_apply=('table', 'site'),
        targets=('canonical', 'site'),
        fidelity='adapted',
        deviations='No code was published: sizes and training are ours. Causes are shift and spread of each feature (linear) and splines between '
        'features; site, age and sex need no model of their own for a counterfactual site. The mean over the sites is the default target.',
        memory_gb=1.0,
    )  # fmt: skip
    Settings: ClassVar[type[Any]] = CausalFlowSettings
    tiny: ClassVar[dict[str, Any]] = {'couplings': 2, 'width': 12, 'bins': 4, 'epochs': 80, 'rate': 1e-2}

    def build(self, features: int, sites: int, kept: int) -> dict[str, nn.Module]:
        """Return the flow."""
        from bidsharm.nn.table_flow import CausedFlow

        s = self.settings
        return {'flow': CausedFlow(features, sites, kept, couplings=s.couplings, width=s.width, bins=s.bins)}

    def train_networks(self, units: Tensor, site: Tensor, kept: Tensor, progress: Progress) -> None:
        """Train the flow by maximum likelihood."""
        import torch

        s, flow = self.settings, self.networks['flow']
        indicator = onehot(site, len(self.sites))
        optimizer = torch.optim.AdamW(flow.parameters(), lr=s.rate, weight_decay=s.decay)
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.epochs)

        def step(rows: Tensor) -> None:
            u, log_det = flow(units[rows], indicator[rows], kept[rows])
            descend(optimizer, (0.5 * u**2).sum(dim=1).mean() - log_det.mean())

        epochs(s.epochs, len(units), s.batch, step, plan.step, lambda n: progress(n, s.epochs, 'flow'))

    def mapped(self, units: Tensor, site: Tensor, kept: Tensor) -> Tensor:
        """Return the counterfactual features at the target: one site, or the mean of all by their rows."""
        import torch

        from bidsharm.nn.table_flow import CausedFlow

        flow, sites = self.networks['flow'], len(self.sites)
        assert isinstance(flow, CausedFlow)
        u, _ = flow(units, onehot(site, sites), kept)
        total = torch.zeros_like(units)
        for index, weight in enumerate(self.weights()):
            if weight:
                there = torch.full((len(units),), index)
                total += float(weight) * flow.backwards(u, onehot(there, sites), kept)
        return total
