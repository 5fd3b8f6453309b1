"""A straight way from the edges of an image to the image, learnt from the target alone, in the spirit of BlindHarmonyDiff (arXiv:2505.00133).

Edges look much alike on every scanner. A network learns the velocity that turns the edges of the target's patches into the patches (rectified flow:
Liu et al. 2023, arXiv:2209.03003); put on the edges of any scan, it gives that scan the look of the target. A few steps towards the structure of the scan
take back what was invented.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.effort import repeated
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.trained import TrainedHarmonizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class RectifiedFlowSettings(NetworkSettings):
    """Settings of the rectified flow; rate, batch, steps and refinement are those of the public code of BlindHarmonyDiff.

    Parameters
    ----------
    widths, convs
        Channels of the levels of the U-Net, and convolutions of each.
    edge
        Edge of a patch in voxels.
    window
        Edge of the window in which edges are compared with each other, in voxels.
    ode_steps
        Midpoint steps from edges to image.
    fidelity
        How far a step of the refinement goes along the gradient of the correlation with the scan, per voxel.
    test_steps
        Steps of the refinement.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    convs: int = 2
    edge: int = 64
    window: int = 9
    ode_steps: int = 8
    fidelity: float = 0.005
    test_steps: int = 6
    batch: int = 8
    rate: float = 5e-5
    steps: int = 300_000


class RectifiedFlow(TrainedHarmonizer):
    """From the edges of a scan to an image of the target, along a nearly straight way."""

    settings: RectifiedFlowSettings
    Preset: ClassVar[type[NetworkSettings]] = RectifiedFlowSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'widths': (8, 16), 'convs': 1, 'edge': 16, 'window': 5, 'ode_steps': 3, 'batch': 4, 'steps': 100, 'rate': 5e-3,
    }  # fmt: skip
    card = Card(
        name='rectified-flow', title='From edges to an image of the target by a rectified flow', family='flow', supervision='none',
        paper='Efficient and robust 3D blind harmonization for large domain gaps (BlindHarmonyDiff). arXiv:2505.00133, 2025.', doi='10.48550/arXiv.2505.00133', geometry='grid', targets=('site',),
        needs_fit=('cohort',), needs_apply=('weights',), changes_anatomy=True, uses_device=True, memory_gb=12.0, fidelity='adapted',
        deviations='Patches of one resolution, with coordinates in the box around the brain; edges are gradients relative to those around them, not those of Canny; a plain '
        'U-Net; the refinement sees one patch at a time.',
    )  # fmt: skip

    def view(self) -> View:
        """Return patches."""
        from bidsharm.training.views import Patches

        return Patches(self.settings.edge)

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return patches of the target, and where they lie."""
        from bidsharm.training.places import PlacedTarget

        s = self.settings
        return PlacedTarget(data, self.view(), batch=s.batch, target=self.target_site, flip=s.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return the velocity: it sees the image on its way, edges, three coordinates and the time."""
        from bidsharm.nn.unet import UNet

        return {
            'velocity': UNet(dims=3, in_channels=6, widths=self.settings.widths, convs=self.settings.convs)
        }

    @property
    def players(self) -> Mapping[str, Player]:
        """The velocity."""
        from bidsharm.training.options import Player

        return {'velocity': Player(('velocity',), self.settings.rate)}

    def velocity(self, here: Tensor, known: Tensor, time: Tensor) -> Tensor:
        """Return where an image moves at a time from 0 to 1, shape (B,), given edges and coordinates, shape (B, 4, ...)."""
        import torch

        clock = time.to(here).view(-1, *[1] * (here.ndim - 1)).expand_as(here)
        return self.networks['velocity'](torch.cat([here, known, clock], dim=1))

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Squared difference to the straight way from edges to image, inside the brain (Liu et al. 2023, eq. 1)."""
        del stage
        yield 'velocity', {'straight': self._off_the_way(batch)}

    def _off_the_way(self, batch: Batch) -> Tensor:
        import torch

        x, mask = batch['x'], batch['mask']
        outline = edges(x, mask, self.settings.window)
        time = torch.rand(len(x), device=x.device)
        share = time.view(-1, 1, 1, 1, 1)
        here = (1 - share) * outline + share * x
        found = self.velocity(here, torch.cat([outline, batch['where']], dim=1), time)
        return ((found - (x - outline)).square() * mask).sum() / mask.sum().clamp_min(1)

    def validation(self, batch: Batch) -> Tensor:
        """Return the loss."""
        return self._off_the_way(batch)

    # --- One scan ---

    def prepare(
        self, volume: NDArray[np.float32], given: Given, batch: int
    ) -> tuple[NDArray[np.float32], Given]:
        """Add the edges of the scan, and where its voxels lie in the brain."""
        import torch

        from bidsharm.training.places import coordinates

        del batch
        brain = volume[0] != self.settings.background
        mask = torch.from_numpy(brain.astype(np.float32))[None, None]
        outline = edges(torch.from_numpy(volume)[None], mask, self.settings.window)[0].numpy()
        return np.concatenate([volume, outline, coordinates(brain)]), given

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Go from the edges to an image, then a little towards the structure of the scan."""
        from bidsharm.nn.correlation import more_alike, unlikeness

        s, source, known = self.settings, x[:, :1], x[:, 1:]
        brain = (source != s.background).to(x)
        if not brain.any():
            return source

        def step(here: Tensor, number: int) -> tuple[float, Tensor]:
            del number
            return unlikeness(here, source), more_alike(here, source, s.fidelity) * brain

        found = self._way(known, brain)
        return repeated(
            step, lambda here: unlikeness(here, source), found, most=s.test_steps, effort=given.effort
        )

    def _way(self, known: Tensor, brain: Tensor) -> Tensor:
        """Return the end of the way that begins at the edges, by midpoint steps; outside the brain nothing moves, as in the training."""
        import torch

        here, length = known[:, :1], 1 / self.settings.ode_steps
        for number in range(self.settings.ode_steps):
            time = torch.full((len(here),), number * length, device=here.device)
            middle = here + 0.5 * length * brain * self.velocity(here, known, time)
            here = here + length * brain * self.velocity(middle, known, time + 0.5 * length)
        return here

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return patches of the target, and what becomes of their edges."""
        import torch

        outline = edges(batch['x'], batch['mask'], self.settings.window)
        found = self._way(torch.cat([outline, batch['where']], dim=1), batch['mask'])
        return [batch['x'], outline, found]


def edges(x: Tensor, mask: Tensor, window: int, least: float = 0.02) -> Tensor:
    """Return how steep an image is next to its surroundings, from 0 to 1: nearly the same for every contrast.

    Parameters
    ----------
    x, mask
        Images and brains, shape (B, 1, X, Y, Z).
    window
        Edge of the surroundings in voxels.
    least
        Steepness that counts for little, in units of the image per voxel: noise.
    """
    import torch
    from torch.nn import functional

    slopes = torch.stack([torch.gradient(x, dim=axis)[0] for axis in range(2, x.ndim)])
    inside = -functional.max_pool3d(-mask, 3, 1, 1)  # the rim of the brain is no edge in it
    steep = slopes.square().sum(dim=0).sqrt() * inside

    def around(values: Tensor) -> Tensor:
        return functional.avg_pool3d(values, window, 1, window // 2, count_include_pad=False)

    usual = around(steep) / around(inside).clamp_min(1e-3)
    return steep / (steep + usual + least)
