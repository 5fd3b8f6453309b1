"""MISPEL: scans of all scanners meet in the middle (Torbati et al. 2021, ICCV; its public code).

Each scanner has an encoder to a few maps, and a decoder that weighs and adds them. First the maps of one person are made alike over scanners, then
the decoders' images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.trained import TrainedHarmonizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player, Stage
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class MispelSettings(NetworkSettings):
    """Settings of MISPEL.

    Parameters
    ----------
    widths, convs
        Channels of the encoders' levels, and convolutions of each.
    maps
        Maps of an embedding.
    axes
        Axes of the slices: axial.
    restored, alike
        Weights of the first stage: reconstruction, and variance of embeddings over scanners.
    restored_again, harmonized
        Weights of the second stage: reconstruction, and difference of the images of any two scanners.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    convs: int = 2
    maps: int = 6
    axes: tuple[int, ...] = (2,)
    restored: float = 0.3
    alike: float = 1.0
    restored_again: float = 1.0
    harmonized: float = 4.0
    batch: int = 4
    rate: float = 1e-4


class Mispel(TrainedHarmonizer):
    """An encoder and a linear decoder for each scanner, taught by travelling people in two stages (Torbati et al. 2021)."""

    settings: MispelSettings
    Preset: ClassVar[type[NetworkSettings]] = MispelSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'widths': (8, 16), 'convs': 1, 'steps': 160, 'rate': 3e-3,
    }  # fmt: skip
    card = Card(
        name='mispel', title='An encoder and a linear decoder for each scanner, to a common middle', family='vae', supervision='paired',
        paper='Torbati ME, et al. Multi-scanner harmonization of paired neuroimaging data via structure preserving embedding learning. '
        'ICCV Workshops 2021:3284-3293.',
        doi='10.1109/ICCVW54120.2021.00367', geometry='grid', targets=('canonical',), needs_fit=('travellers',), needs_apply=('weights', 'site'), changes_anatomy=True, uses_device=True,
        memory_gb=3.0, fidelity='adapted',
        deviations='The encoders are the U-Net of this package, with instance norms, strided convolutions and transposed ones; the maps come from a 1 x 1 convolution instead of a 3 x 3 one, '
        'without activation; a decoder adds a constant to its sum of maps. Losses are taken inside the brain, and differences of images are averaged over pairs of scanners, which the public code adds up '
        'and divides by the number of scanners.',
    )  # fmt: skip

    def view(self) -> View:
        """Return slices."""
        from bidsharm.training.views import Slices

        return Slices(self.settings.axes)

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return people at all sites."""
        from bidsharm.training.regimes import Travellers

        return Travellers(data, self.view(), batch=self.settings.batch, flip=self.settings.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return an encoder and a decoder for each site."""
        from torch import nn

        from bidsharm.nn.blocks import conv
        from bidsharm.nn.unet import UNet

        s = self.settings
        encoders = (
            UNet(dims=2, widths=s.widths, convs=s.convs, out_channels=s.maps, act='leaky') for _ in self.sites
        )
        decoders = (nn.Sequential(conv(2, s.maps, 1, 1), nn.ReLU()) for _ in self.sites)
        return {'encoders': nn.ModuleList(encoders), 'decoders': nn.ModuleList(decoders)}

    @property
    def players(self) -> Mapping[str, Player]:
        """All networks in the first stage, the decoders alone in the second."""
        from bidsharm.training.options import Player

        rate = self.settings.rate
        return {'embedding': Player(('encoders', 'decoders'), rate), 'decoding': Player(('decoders',), rate)}

    @property
    def stages(self) -> Sequence[Stage]:
        """First embeddings, then images."""
        from bidsharm.training.options import Stage

        return Stage('embedding'), Stage('harmonizing')

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield reconstruction and likeness: of the embeddings first, of the images then."""
        s = self.settings
        restored, alike, harmonized = self._terms(batch)
        if stage == 'embedding':
            yield 'embedding', {'restored': s.restored * restored, 'alike': s.alike * alike}
        else:
            yield (
                'decoding',
                {'restored': s.restored_again * restored, 'harmonized': s.harmonized * harmonized},
            )

    def _terms(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction, the variance of embeddings over scanners, and the mean difference of two scanners' images."""
        import itertools

        import torch

        from bidsharm.nn.losses import l1

        x, mask = batch['images'] * batch['mask'], batch['mask']
        maps = torch.stack([self._maps(x[:, [site]], site) * mask for site in range(len(self.sites))])
        images = [self.networks['decoders'][site](maps[site]) * mask for site in range(len(self.sites))]  # type: ignore[index]
        restored = torch.stack([l1(image, x[:, [site]]) for site, image in enumerate(images)]).mean()
        pairs = [l1(one, other) for one, other in itertools.combinations(images, 2)]
        return restored, maps.var(dim=0, unbiased=False).mean(), torch.stack(pairs).mean()

    def _maps(self, x: Tensor, site: int) -> Tensor:
        return self.networks['encoders'][site](x)  # type: ignore[index]

    def validation(self, batch: Batch) -> Tensor:
        """Return all terms of both stages."""
        s = self.settings
        restored, alike, harmonized = self._terms(batch)
        return s.restored_again * restored + s.alike * alike + s.harmonized * harmonized

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Put slices through the encoder and the decoder of their site."""
        return self.networks['decoders'][given.site](self._maps(x, given.site))  # type: ignore[index]

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return each site's image and what becomes of it."""
        found = []
        for site in range(len(self.sites)):
            x = batch['images'][:, [site]]
            found += [x, self.translate(x, Given(site=site)) * batch['mask']]
        return found
