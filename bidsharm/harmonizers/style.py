"""What methods share that describe the look of a scanner by a code: slices, references, and the mean code of a target."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.trained import TrainedHarmonizer
from bidsharm.nn.names import Fusion

if TYPE_CHECKING:
    from torch import Tensor

    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import Slices
    from bidsharm.training.volumes import TrainingSet

#: Slices of a target whose styles are found at once.
AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class StyleSettings(NetworkSettings):
    """Settings of the methods that work on slices with a style.

    Parameters
    ----------
    axes
        Axes of the slices: 0 sagittal, 1 coronal, 2 axial.
    neighbours
        Slices on either side that come along as channels.
    fuse
        How volumes from several axes become one: ``median`` or ``mean``.
    """

    axes: tuple[int, ...] = (2,)
    neighbours: int = 0
    fuse: Fusion = 'median'


class StyleMethod(TrainedHarmonizer):
    """A method with a style code: it aims at any site or image whose code it can find.

    A method defines :meth:`encode_style` and :meth:`render`.
    """

    settings: StyleSettings
    Preset: ClassVar[type[NetworkSettings]] = StyleSettings
    look: ClassVar[tuple[str, ...]] = ('mean',)

    @abstractmethod
    def encode_style(self, x: Tensor, site: Tensor | None) -> Tensor:
        """Return the codes of slices, shape (B, code), that come from sites, shape (B,); None for an unknown site."""

    @abstractmethod
    def render(self, x: Tensor, style: Tensor, given: Given) -> Tensor:
        """Return slices in styles, shape (B, code)."""

    def view(self) -> Slices:
        """Return slices."""
        from bidsharm.training.views import Slices

        s = self.settings
        return Slices(axes=s.axes, neighbours=s.neighbours, fuse=s.fuse)

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return scans with references of another site."""
        from bidsharm.training.regimes import Domains

        return Domains(
            data, self.view(), batch=self.settings.batch, target=self.target_site, flip=self.settings.flip
        )

    def inside(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return images with the background outside the brain."""
        return x * mask + self.settings.background * (1 - mask)

    def brain(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return where the brain is in stacks of slices, of which ``mask`` knows the middle one: each has an outline of its own.

        With that of the middle, made images could be told from real ones by the outlines of their neighbours.
        """
        return mask if x.shape[1] == 1 else (x != self.settings.background).to(x)

    def slices(
        self, scans: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
    ) -> Iterator[Tensor]:
        """Yield the slices of volumes that hold enough brain, as batches of shape (B, C, rows, columns)."""
        import torch

        from bidsharm.training.views import Place

        view, device = self.view(), next(self.networks.parameters()).device
        for volume, mask in zip(scans, masks, strict=True):
            for axis in view.axes:
                along = view.usable(mask, axis)
                for first in range(0, len(along), AT_ONCE):
                    cuts = [
                        view.cut(volume, Place(axis, (int(index), 0, 0)))
                        for index in along[first : first + AT_ONCE]
                    ]
                    yield torch.from_numpy(np.ascontiguousarray(np.stack(cuts), np.float32)).to(device)

    def style_of(
        self, scans: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
    ) -> dict[str, Tensor]:
        """Return mean and standard deviation of the codes of all slices, each of shape (1, code)."""
        import torch

        site = self.described_site
        codes = torch.cat([
            self.encode_style(x, torch.full((len(x),), site, device=x.device) if site >= 0 else None)
            for x in self.slices(scans, masks)
        ])  # fmt: skip
        return {
            'mean': codes.mean(dim=0, keepdim=True),
            'deviation': codes.std(dim=0, keepdim=True, unbiased=False),
        }

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Give a batch the style of the target."""
        assert given.style is not None
        found = self.render(x, given.style['mean'].expand(len(x), -1), given)
        middle = found.shape[1] // 2
        return found[:, middle : middle + 1]

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return scans, their references, and the scans in the style of these."""
        style = self.encode_style(batch['y'], batch['y_site'])
        parts: list[Any] = []
        for index in range(len(style)):
            given = Given(site=int(batch['x_site'][index]))
            parts.append(self.render(batch['x'][index, None], style[index, None], given))
        import torch

        found = self.inside(torch.cat(parts), batch['x_mask'])
        middle = found.shape[1] // 2
        return [part[:, middle : middle + 1] for part in (batch['x'], found, batch['y'])]
