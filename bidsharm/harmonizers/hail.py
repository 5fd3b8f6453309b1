"""HAIL: one image of a site is enough to give its intensities to others (Parida et al. 2023).

A feature extractor is learnt by rebuilding scans, then frozen. The features of a scan get the means and standard deviations of the features of the
reference (adaptive instance norm, Huang and Belongie 2017, arXiv:1703.06868), and a decoder learns to make the image that has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bidsharm.harmonizers.contract import Card
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.trained import TrainedHarmonizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from bidsharm.training.options import Player, Stage
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class HailSettings(NetworkSettings):
    """Settings of HAIL.

    Parameters
    ----------
    widths, code
        Channels of the levels of the autoencoder and of its code.
    content, style
        Weights of the losses of the second stage.
    extractor
        Part of the training that learns the features.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    code: int = 64
    content: float = 1.0
    style: float = 10.0
    extractor: float = 0.5
    batch: int = 1
    steps: int = 20_000
    rate: float = 1e-4


class Hail(TrainedHarmonizer):
    """Neural style transfer of whole volumes by adaptive instance norm."""

    settings: HailSettings
    Preset: ClassVar[type[NetworkSettings]] = HailSettings
    look: ClassVar[tuple[str, ...]] = ('mean', 'deviation')
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'widths': (4, 8), 'code': 16, 'steps': 50, 'rate': 4e-3, 'style': 1.0, 'extractor': 0.7,
    }  # fmt: skip
    card = Card(
        name='hail', title='Moments of features, taken from one image', family='vae', supervision='unpaired',
        paper='Parida A, et al. Harmonization across imaging locations (HAIL): one-shot learning for brain MRI. arXiv:2308.11047, 2023.',
        doi='10.48550/arXiv.2308.11047', geometry='grid', targets=('site', 'reference', 'acquisition'), needs_fit=('cohort',),
        needs_apply=('weights',), changes_anatomy=True, uses_device=True, memory_gb=12.0, fidelity='minimal',
        deviations='Only the abstract could be read. Networks, weights and steps are our choices; losses are those of Huang and Belongie 2017, '
        'on features of the own extractor. The moments of a site are the means over its scans.',
    )  # fmt: skip

    def view(self) -> View:
        """Return whole volumes."""
        from bidsharm.training.views import Whole

        return Whole()

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return scans with references from anywhere."""
        from bidsharm.training.regimes import OneDomain

        return OneDomain(data, self.view(), batch=self.settings.batch, flip=self.settings.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return the autoencoder."""
        from bidsharm.nn.latent import Autoencoder

        return {'autoencoder': Autoencoder(3, self.settings.widths, self.settings.code)}

    @property
    def players(self) -> Mapping[str, Player]:
        """The autoencoder; in the second stage its decoder alone."""
        from bidsharm.training.options import Player

        return {'autoencoder': Player(('autoencoder',), self.settings.rate)}

    @property
    def stages(self) -> Sequence[Stage]:
        """Features, then transfer."""
        from bidsharm.training.options import Stage

        return Stage('features', self.settings.extractor), Stage('transfer', 1 - self.settings.extractor)

    def begin(self, stage: str) -> None:
        """Freeze the encoder for the transfer."""
        from bidsharm.nn.losses import frozen

        if stage == 'transfer':
            frozen(self.networks['autoencoder'].encoder)  # type: ignore[arg-type]

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Rebuilding; then content and style (Huang and Belongie 2017, eq. 11 to 13)."""
        from bidsharm.nn.losses import l1

        x, mask, net = batch['x'], batch['x_mask'], self.networks['autoencoder']
        if stage == 'features':
            yield 'autoencoder', {'image': l1(net(x) * mask, x)}
            return
        yield 'autoencoder', self.transferred(x, mask, batch['y'])

    def transferred(self, x: Tensor, mask: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the losses of a scan in the style of another."""
        from bidsharm.nn.losses import l2, moment_distance, moments
        from bidsharm.nn.style import transfer_moments

        s, net = self.settings, self.networks['autoencoder']
        of_y = net.features(y)  # type: ignore[operator]
        wanted = transfer_moments(net.encode(x), *moments(of_y[-1]))  # type: ignore[operator]
        found = net.features(net.decode(wanted) * mask)  # type: ignore[operator]
        return {
            'content': s.content * l2(found[-1], wanted),
            'style': s.style * sum((moment_distance(a, b) for a, b in zip(found, of_y, strict=True)), start=x.new_zeros(())),
        }  # fmt: skip

    def style_of(
        self, scans: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
    ) -> dict[str, Tensor]:
        """Return the moments of the codes of volumes, averaged over these: mean and deviation of shape (1, code)."""
        import torch

        from bidsharm.nn.losses import moments
        from bidsharm.training.views import padded

        del masks
        device, found = next(self.networks.parameters()).device, []
        for scan in scans:
            wide, _ = padded(scan[None], self.view().multiple, self.settings.background)
            code = self.networks['autoencoder'].encode(torch.from_numpy(wide[None]).to(device))  # type: ignore[operator]
            found.append(torch.stack(moments(code)))
        mean, deviation = torch.stack(found).mean(dim=0)
        return {'mean': mean, 'deviation': deviation}

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Give the codes of a volume the moments of the target, and decode them."""
        from bidsharm.nn.style import transfer_moments

        assert given.style is not None
        net = self.networks['autoencoder']
        return net.decode(transfer_moments(net.encode(x), given.style['mean'], given.style['deviation']))  # type: ignore[operator]

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return scans, and the scans in the style of others."""
        from bidsharm.nn.losses import moments

        x, y = batch['x'], batch['y']
        mean, deviation = moments(self.networks['autoencoder'].encode(y))  # type: ignore[operator]
        found = self.translate(x, Given(style={'mean': mean, 'deviation': deviation}))
        return [x, found * batch['x_mask'], y]
