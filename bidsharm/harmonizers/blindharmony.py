"""BlindHarmony: a flow learns the target; a scan is led from the mean of the target to its own anatomy (Jeong et al. 2023, ICCV; its public code)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
class BlindHarmonySettings(NetworkSettings):
    """Settings of BlindHarmony.

    Parameters
    ----------
    axes
        Axes of the slices: axial.
    levels, flow_steps, width
        Sizes that the flow works at, steps of each, and channels of the coupling networks.
    bins, bound
        Of the splines.
    grey_levels, span
        Grey levels of an image, and the intensity of the last one.
    mean_size
        Edge of the cube that the mean of the target's brains is kept in, in voxels.
    fidelity
        How far a step goes along the gradient of the correlation with the scan: 1000 for slices of 144 x 176 voxels.
    shrink
        By which part of themselves latents are drawn to 0, the likeliest image, in a step.
    test_steps
        Steps for each slice.
    """

    axes: tuple[int, ...] = (2,)
    levels: int = 3
    flow_steps: int = 7
    width: int = 96
    bins: int = 4
    bound: float = 3.0
    grey_levels: int = 4096
    span: float = 1.5
    mean_size: int = 96
    fidelity: float = 1000 / (144 * 176)
    shrink: float = 1e-3
    test_steps: int = 10
    batch: int = 16
    rate: float = 5e-4
    steps: int = 100_000


class BlindHarmony(TrainedHarmonizer):
    """A flow of the target, and a walk from its mean image to the scan's anatomy that keeps the image likely (Jeong et al. 2023)."""

    settings: BlindHarmonySettings
    Preset: ClassVar[type[NetworkSettings]] = BlindHarmonySettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'levels': 2, 'flow_steps': 2, 'width': 16, 'mean_size': 24, 'batch': 8, 'steps': 60, 'rate': 2e-3,
        'test_steps': 4,
    }  # fmt: skip
    card = Card(
        name='blindharmony', title='A flow of the target, inverted to find a likely image of the same anatomy', family='flow', supervision='none',
        paper='Jeong H, et al. BlindHarmony: "blind" harmonization for MR images via flow model. ICCV 2023:21129-21139.',
        doi='10.48550/arXiv.2305.10732',
        geometry='grid', targets=('site',), needs_fit=('cohort',), needs_apply=('weights',), changes_anatomy=True, uses_device=True,
        memory_gb=8.0, fidelity='adapted',
        deviations='The mean image of the target is fitted to the bounding box of the scan instead of being registered; the weak smoothness term '
        'is left out; width and steps of the flow are those of neural spline flows; images keep to the grey levels that the flow knows.',
    )  # fmt: skip

    def view(self) -> View:
        """Return slices."""
        from bidsharm.training.views import Slices

        return Slices(self.settings.axes, multiple=max(16, 2**self.settings.levels))

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return scans of the target."""
        from bidsharm.training.regimes import TargetOnly

        s = self.settings
        return TargetOnly(data, self.view(), batch=s.batch, target=self.target_site, flip=s.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return the flow."""
        from bidsharm.nn.flow import ImageDensity, Noise, glow

        s = self.settings
        flow = glow(2, levels=s.levels, steps=s.flow_steps, width=s.width, bins=s.bins, bound=s.bound)
        return {'flow': ImageDensity(flow, Noise(), grey_levels=s.grey_levels, span=s.span)}

    @property
    def players(self) -> Mapping[str, Player]:
        """The flow."""
        from bidsharm.training.options import Player

        return {'flow': Player(('flow',), self.settings.rate, clip=1.0)}

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Bits per voxel of the target's slices."""
        del stage
        yield 'flow', {'bits': self.networks['flow'](batch['x']).mean()}

    def validation(self, batch: Batch) -> Tensor:
        """Return the bits per voxel."""
        return self.networks['flow'](batch['x']).mean()

    # --- One scan ---

    @classmethod
    def aims_anew(cls) -> bool:
        """Another target has another flow."""
        return False

    def style_of(
        self, scans: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
    ) -> dict[str, Tensor]:
        """Return the mean of the target's brains, each stretched to a cube."""
        import torch

        size = (self.settings.mean_size,) * 3
        boxes = [fitted(scan[box_of(mask)], size) for scan, mask in zip(scans, masks, strict=True)]
        return {'mean': torch.from_numpy(np.mean(boxes, axis=0))}

    def prepare(
        self, volume: NDArray[np.float32], given: Given, batch: int
    ) -> tuple[NDArray[np.float32], Given]:
        """Lay the mean of the target over the brain, as a second channel: where the walk begins."""
        del batch
        assert given.style is not None
        brain = volume[0] != self.settings.background
        box = box_of(brain)
        start = np.zeros_like(volume)
        shape = (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start)
        start[0][box] = fitted(given.style['mean'].cpu().numpy(), shape)
        return np.concatenate([volume, start * brain]), given

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Walk: a step towards the anatomy of the slice, then latents a little nearer to the likeliest image."""
        from bidsharm.nn.correlation import more_alike, unlikeness

        s, flow = self.settings, self.networks['flow']
        source, start = x[:, :1], x[:, 1:]
        brain = (source != s.background).to(x)
        if not brain.any():
            return source

        def step(here: Tensor, number: int) -> tuple[float, Tensor]:
            del number
            moved = more_alike(here, source, s.fidelity) * brain
            latents = flow.encode(moved)  # type: ignore[operator]
            likelier = flow.decode([(1 - s.shrink) * latent for latent in latents])  # type: ignore[operator]
            return unlikeness(here, source), likelier * brain

        return repeated(
            step, lambda here: unlikeness(here, source), start, most=s.test_steps, effort=given.effort
        )

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return slices of the target, and images that the flow draws at 0.7 times the deviation."""
        import torch

        flow = self.networks['flow']
        latents = flow.encode(batch['x'])  # type: ignore[operator]
        return [batch['x'], flow.decode([0.7 * torch.randn_like(latent) for latent in latents])]  # type: ignore[operator]


def box_of(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Return the bounding box of a brain."""
    from bidsharm.imaging.grids import bounding_box

    x, y, z = bounding_box(mask, 0)
    return x, y, z


def fitted(volume: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a volume stretched to another shape by trilinear interpolation."""
    import torch
    from torch.nn import functional

    wide = functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(volume))[None, None], size=shape, mode='trilinear'
    )
    return np.asarray(wide[0, 0].numpy())
