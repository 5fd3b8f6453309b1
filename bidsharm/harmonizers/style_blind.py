"""An autoencoder that is blind to style: scans of one content in many contrasts have one code (Fatania et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.trained import TrainedHarmonizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class StyleBlindSettings(NetworkSettings):
    """Settings of the style-blind autoencoder.

    Parameters
    ----------
    widths, code
        Channels of the levels and of the code.
    axes
        Axes of the slices.
    blindness
        Weight of the difference of the codes of one slice in two contrasts, next to 1 for the image.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    code: int = 32
    axes: tuple[int, ...] = (2,)
    blindness: float = 1.0
    batch: int = 16
    steps: int = 50_000
    rate: float = 1e-3


class StyleBlind(TrainedHarmonizer):
    """Style-blind autoencoder: encodes content only, decodes the look of the target site."""

    settings: StyleBlindSettings
    Preset: ClassVar[type[NetworkSettings]] = StyleBlindSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'widths': (16, 32), 'code': 16, 'batch': 8, 'steps': 120, 'rate': 4e-3, 'blindness': 0.1,
    }  # fmt: skip
    card = Card(
        name='style-blind', title='An autoencoder whose code is the same for every contrast', family='vae', supervision='none',
        paper='Fatania K, et al. Harmonisation of scanner-dependent contrast variations in magnetic resonance imaging for radiation oncology, '
        'using style-blind auto-encoders. Phys Imaging Radiat Oncol 2022;22:115-122.',
        doi='10.1016/j.phro.2022.05.005', geometry='grid', targets=('site',), needs_fit=('cohort',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=3.0, fidelity='minimal',
        deviations='Only the idea of the paper could be read. Network, weights and the contrasts that the autoencoder is made blind to (those of '
        'ssl-restore) are our choices.',
    )  # fmt: skip

    def view(self) -> View:
        """Return slices."""
        from bidsharm.training.views import Slices

        return Slices(self.settings.axes)

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return scans of the target."""
        from bidsharm.training.regimes import TargetOnly

        s = self.settings
        return TargetOnly(data, self.view(), batch=s.batch, target=self.target_site, flip=s.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return the autoencoder."""
        from bidsharm.nn.latent import Autoencoder

        return {'autoencoder': Autoencoder(2, self.settings.widths, self.settings.code)}

    @property
    def players(self) -> Mapping[str, Player]:
        """The autoencoder."""
        from bidsharm.training.options import Player

        return {'autoencoder': Player(('autoencoder',), self.settings.rate)}

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """The image comes back from an altered copy, whose code is that of another copy."""
        from bidsharm.training.contrasts import RandomContrast

        del stage
        alter, x, mask = RandomContrast(), batch['x'], batch['mask']
        yield 'autoencoder', self.blind([alter(x, mask), alter(x, mask)], x, mask)

    def blind(self, copies: list[Tensor], x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the losses for two copies of slices in other contrasts."""
        from bidsharm.nn.losses import l1, l2

        net = self.networks['autoencoder']
        codes = [net.encode(copy) for copy in copies]  # type: ignore[operator]
        return {
            'image': l1(net.decode(codes[0]) * mask, x),  # type: ignore[operator]
            'blindness': self.settings.blindness * l2(codes[0], codes[1]),
        }

    def validation(self, batch: Batch) -> Tensor:
        """Return the mean absolute difference that is left after an altered contrast was undone."""
        from bidsharm.training.contrasts import RandomContrast

        alter = RandomContrast()
        return self.blind([alter(batch['x'], batch['mask'])] * 2, batch['x'], batch['mask'])['image']

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Put slices through the autoencoder."""
        del given
        return self.networks['autoencoder'](x)
