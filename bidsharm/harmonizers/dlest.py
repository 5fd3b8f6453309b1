"""DLEST: codes of an autoencoder go downhill in an energy that is low for the target (Wu et al. 2023, MLMI; journal version arXiv:2402.06875).

The autoencoder learns images of all sites; the energy learns codes of the target. A scan is encoded, its codes take Langevin steps, and what they have
become is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.effort import Effort, repeated
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.trained import TrainedHarmonizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player, Stage
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class DlestSettings(NetworkSettings):
    """Settings of DLEST.

    Parameters
    ----------
    axes
        Axes of the slices: axial.
    widths, code
        Channels of the autoencoder's levels, and of the code.
    energy_width
        Channels of the layers of the energy.
    small
        Weight of the squared codes in the first stage, which keeps them near 0.
    calm
        Weight of the squared energies in the second stage, which keeps them near 0.
    content
        Weight of the squared distance to the codes of the scan, which is added to the energy.
    pace, shake
        Half the learning rate of a Langevin step, and the deviation of its noise.
    test_steps
        Langevin steps, in the training and for a scan.
    """

    axes: tuple[int, ...] = (2,)
    widths: tuple[int, ...] = (32, 64, 128)
    code: int = 16
    energy_width: int = 128
    small: float = 1e-3
    calm: float = 0.1
    content: float = 0.1
    pace: float = 0.1
    shake: float = 0.005
    test_steps: int = 40
    batch: int = 16
    rate: float = 1e-3
    steps: int = 60_000


class Dlest(TrainedHarmonizer):
    """An autoencoder of all sites, and an energy of the target that moves codes (Wu et al. 2023)."""

    settings: DlestSettings
    Preset: ClassVar[type[NetworkSettings]] = DlestSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'widths': (8, 16), 'code': 8, 'energy_width': 16, 'batch': 4, 'steps': 240, 'rate': 3e-3, 'test_steps': 8,
        'calm': 0.02, 'content': 0.05,
    }  # fmt: skip
    card = Card(
        name='dlest', title='Codes of an autoencoder, moved by Langevin steps to where the target is likely', family='disentangled',
        supervision='unpaired', doi='10.1007/978-3-031-45673-2_1',
        paper='Wu M, et al. Structural MRI harmonization via disentangled latent energy-based style translation. MLMI 2023:1-11.',
        geometry='grid', targets=('site',), needs_fit=('two_sites',), needs_apply=('weights',), changes_anatomy=True, uses_device=True,
        memory_gb=4.0, fidelity='minimal',
        deviations='The code is a map, not a vector, so that anatomy fits into it, and the energy has a value at every place; networks, weights and '
        'steps are not those of the paper, of which only the abstract could be read.',
    )  # fmt: skip

    def view(self) -> View:
        """Return slices."""
        from bidsharm.training.views import Slices

        return Slices(self.settings.axes, multiple=max(16, 2 ** (len(self.settings.widths) - 1)))

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return scans of other sites, and of the target."""
        from bidsharm.training.regimes import Unpaired

        s = self.settings
        return Unpaired(data, self.view(), batch=s.batch, target=self.target_site, flip=s.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return the autoencoder and the energy."""
        from bidsharm.nn.latent import Autoencoder, Energy

        s = self.settings
        return {
            'autoencoder': Autoencoder(2, s.widths, s.code),
            'energy': Energy(2, s.code, s.energy_width),
        }

    @property
    def players(self) -> Mapping[str, Player]:
        """The autoencoder, then the energy."""
        from bidsharm.training.options import Player

        return {name: Player((name,), self.settings.rate, clip=1.0) for name in ('autoencoder', 'energy')}

    @property
    def stages(self) -> Sequence[Stage]:
        """First codes, then their energy."""
        from bidsharm.training.options import Stage

        return Stage('generation', 2.0), Stage('translation', 1.0)

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """First the reconstruction; then low energies for the target, high ones for where the codes of others go (contrastive divergence)."""
        import torch

        from bidsharm.nn.losses import l1

        s, (coder, energy) = self.settings, (self.networks['autoencoder'], self.networks['energy'])
        if stage == 'generation':
            x = torch.cat([batch['x'], batch['y']])
            mask = torch.cat([batch['x_mask'], batch['y_mask']])
            codes = coder.encode(x)  # type: ignore[operator]
            restored = l1(coder.decode(codes) * mask, x)  # type: ignore[operator]
            yield 'autoencoder', {'restored': restored, 'small': s.small * codes.square().mean()}
            return
        with torch.no_grad():
            here, there = coder.encode(batch['x']), coder.encode(batch['y'])  # type: ignore[operator]
        low, high = energy(there), energy(self.moved(here))
        calm = low.square().mean() + high.square().mean()
        yield 'energy', {'contrast': low.mean() - high.mean(), 'calm': s.calm * calm}

    def moved(self, codes: Tensor, effort: Effort | None = None) -> Tensor:
        """Return codes after Langevin steps: downhill in the energy and back to where they came from, with a little noise.

        The noise of a step is the same for all images, so that the result of a slice depends on nothing but the slice.
        """
        import torch

        s, energy = self.settings, self.networks['energy']

        def height(here: Tensor) -> Tensor:
            return energy(here).sum() + s.content * (here - codes).square().sum()

        def step(here: Tensor, number: int) -> tuple[float, Tensor]:
            with torch.enable_grad():
                at = here.detach().requires_grad_()
                value = height(at)
                (slope,) = torch.autograd.grad(value, at)
            made = torch.Generator().manual_seed(self.execution.seed * 1000 + number)
            noise = torch.randn(here.shape[1:], generator=made).to(here)
            return float(value.detach()) / places, here - s.pace * slope + s.shake * noise

        places = len(codes) * codes[0, 0].numel()
        with torch.no_grad():
            return repeated(
                step,
                lambda here: float(height(here)) / places,
                codes.detach(),
                most=s.test_steps,
                effort=effort,
            )

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Encode, move, decode."""
        if not (x != self.settings.background).any():
            return x
        coder = self.networks['autoencoder']
        return coder.decode(self.moved(coder.encode(x), given.effort))  # type: ignore[operator]
