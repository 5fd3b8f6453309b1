"""A conditional variational autoencoder of features whose mapping has to keep what people differ by (An 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bidsharm.errors import UsageError
from bidsharm.harmonizers.contract import Card, Progress
from bidsharm.harmonizers.table_networks import (
    NetworkTableHarmonizer,
    descend,
    epochs,
    mlp,
    onehot,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class GcVAESettings:
    """Settings, with those of the paper's code as defaults.

    Parameters
    ----------
    width, layers
        Of the hidden layers of encoder and decoder.
    latent
        Size of the code.
    dropout
        In the hidden layers.
    kl, marginal, adversarial
        Weights of the Kullback-Leibler divergence, of the bound on what the code knows about the site, and of the discriminator.
    rate, decay_epochs, decay
        Learning rate, and every how many epochs it is multiplied by what.
    epochs, batch
        Of the first training.
    goal_width, goal_epochs
        Of the network that predicts what is kept.
    tune_rate, tune_epochs
        Of the second training, for the goals.
    samples
        Codes that are averaged over.
    """

    width: int = 512
    layers: int = 2
    latent: int = 32
    dropout: float = 0.1
    kl: float = 1e-3
    marginal: float = 1e-3
    adversarial: float = 1.0
    rate: float = 1e-2
    decay_epochs: int = 100
    decay: float = 0.1
    epochs: int = 1000
    batch: int = 512
    goal_width: int = 128
    goal_epochs: int = 200
    tune_rate: float = 1e-6
    tune_epochs: int = 1000
    samples: int = 100

    def __post_init__(self) -> None:
        small = [
            name
            for name in ('width', 'layers', 'latent', 'batch', 'samples', 'goal_width')
            if getattr(self, name) < 1
        ]
        if small:
            raise UsageError(f'{small[0]} is 1 or more.', where='--set')


class GcVAE(NetworkTableHarmonizer):
    """Goal-specific conditional VAE."""

    card = Card(
        name='gcvae',
        title='Conditional autoencoder of features that keeps what people differ by',
        paper='An et al. 2022, Goal-specific brain MRI harmonization, NeuroImage',
        doi='10.1016/j.neuroimage.2022.119570',
        family='vae',
        supervision='unpaired',
        domain='table',
        output='features',
        needs_fit=('table', 'two_sites', 'kept'),
        needs_apply=('table', 'site'),
        targets=('canonical', 'site'),
        fidelity='adapted',
        deviations='The goals are the columns of --keep (the paper: diagnosis and MMSE), their network has two hidden layers, and its size is ours; '
        'sizes are not searched for; the mean over the sites is the default target.',
        memory_gb=1.0,
    )
    Settings: ClassVar[type[Any]] = GcVAESettings
    tiny: ClassVar[dict[str, Any]] = {
        'width': 48, 'layers': 1, 'latent': 16, 'dropout': 0.0, 'marginal': 0.02, 'adversarial': 0.02, 'epochs': 120, 'decay_epochs': 60, 'batch': 128,
        'goal_width': 32, 'goal_epochs': 100, 'tune_epochs': 20, 'samples': 20,
    }  # fmt: skip

    def build(self, features: int, sites: int, kept: int) -> dict[str, nn.Module]:
        """Return encoder, decoder, discriminator and the network of the goals."""
        s = self.settings
        hidden = [s.width] * s.layers
        return {
            'encoder': mlp([features, *hidden, 2 * s.latent], s.dropout),
            'decoder': mlp([s.latent + sites, *hidden, features], s.dropout),
            'judge': mlp([features, 32, 32, 1]),
            'goals': mlp([features, s.goal_width, s.goal_width // 2 + 1, kept]),
        }

    def train_networks(self, units: Tensor, site: Tensor, kept: Tensor, progress: Progress) -> None:
        """Train the autoencoder, then the goals, then the autoencoder for the goals."""
        import torch

        s = self.settings
        total = s.epochs + s.goal_epochs + s.tune_epochs
        indicator = onehot(site, len(self.sites))
        nets = self.networks
        coder = [*nets['encoder'].parameters(), *nets['decoder'].parameters()]
        first = torch.optim.Adam(coder, lr=s.rate)
        second = torch.optim.Adam(nets['judge'].parameters(), lr=s.rate)
        plans = [torch.optim.lr_scheduler.StepLR(o, s.decay_epochs, s.decay) for o in (first, second)]

        def code(rows: Tensor) -> None:
            self._code_step(units[rows], indicator[rows], first, second)

        def slower() -> None:
            for plan in plans:
                plan.step()

        epochs(s.epochs, len(units), s.batch, code, slower, lambda n: progress(n, total, 'autoencoder'))
        goals = torch.optim.Adam(nets['goals'].parameters(), lr=1e-3)

        def goal(rows: Tensor) -> None:
            descend(goals, goal_loss(nets['goals'](units[rows]), kept[rows]))

        epochs(
            s.goal_epochs,
            len(units),
            s.batch,
            goal,
            _nothing,
            lambda n: progress(s.epochs + n, total, 'goals'),
        )
        nets['goals'].requires_grad_(False)
        tuned = torch.optim.Adam(coder, lr=s.tune_rate)

        def tune(rows: Tensor) -> None:
            mean, spread = self._encoded(units[rows])
            made = self._decoded(mean + spread * torch.randn_like(mean))
            descend(tuned, goal_loss(nets['goals'](made), kept[rows]))

        start = s.epochs + s.goal_epochs
        epochs(
            s.tune_epochs,
            len(units),
            s.batch,
            tune,
            _nothing,
            lambda n: progress(start + n, total, 'goals kept'),
        )

    def _code_step(
        self, x: Tensor, indicator: Tensor, first: torch.optim.Optimizer, second: torch.optim.Optimizer
    ) -> None:
        """Train autoencoder and discriminator on one batch."""
        import torch
        from torch.nn import functional

        s, nets = self.settings, self.networks
        mean, spread = self._encoded(x)
        made = nets['decoder'](torch.cat([mean + spread * torch.randn_like(mean), indicator], dim=1))
        error = functional.mse_loss(made, x)
        fooled = functional.softplus(-nets['judge'](made)).mean()
        bound = between_codes(mean, spread) + error
        descend(first, error + s.kl * to_normal(mean, spread) + s.marginal * bound + s.adversarial * fooled)
        judged = (
            functional.softplus(-nets['judge'](x)).mean()
            + functional.softplus(nets['judge'](made.detach())).mean()
        )
        descend(second, judged)

    def mapped(self, units: Tensor, site: Tensor, kept: Tensor) -> Tensor:
        """Return the mean of decoded codes at the target."""
        import torch

        del site, kept  # the code knows neither
        mean, spread = self._encoded(units)
        drawn = torch.from_numpy(
            np.random.default_rng(0).standard_normal((self.settings.samples, self.settings.latent))
        )
        total = torch.zeros_like(units)
        for noise in drawn:  # the same draws for every row, so that a row does not depend on others
            total += self._decoded(mean + spread * noise)
        return total / len(drawn)

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and spread of the code; the mean is squashed."""
        mean, log_variance = self.networks['encoder'](x).chunk(2, dim=1)
        return mean.tanh(), (0.5 * log_variance.clamp(-12, 4)).exp()

    def _decoded(self, code: Tensor) -> Tensor:
        """Return the features of a code at the target: one site, or the mean over all by their rows."""
        import torch

        total: Tensor | None = None
        for index, weight in enumerate(self.weights()):
            if weight == 0:
                continue
            indicator = onehot(torch.full((len(code),), index), len(self.sites))
            made = float(weight) * self.networks['decoder'](torch.cat([code, indicator], dim=1))
            total = made if total is None else total + made
        assert total is not None
        return total


def _nothing() -> None:
    return None


def to_normal(mean: Tensor, spread: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of the codes from a standard normal distribution, summed over the code."""
    return (0.5 * (mean**2 + spread**2 - 1) - spread.log()).sum(dim=1).mean()


def between_codes(mean: Tensor, spread: Tensor) -> Tensor:
    """Return the mean divergence between the codes of two rows, a bound on what the code says about a row, and so about its site."""
    variance = spread**2
    gap = (mean[:, None] - mean[None]) ** 2
    ratio = variance[:, None] / variance[None]
    return (0.5 * (ratio + gap / variance[None] - 1 - ratio.log())).sum(dim=2).mean()


def goal_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute error of the standardized kept columns; indicators of categories are such columns."""
    return (found - wanted).abs().mean()
