"""Learning to undo changes of contrast, from scans of the target alone: self-supervised restoration, and Harmonizing Flows on top of it.

Scans of the target get random contrasts, and a network learns to restore them (Chang et al. 2022). Harmonizing Flows (Beizaee et al. 2023) adds a
normalizing flow that knows how likely an image is at the target, and adapts the restoring network to each scan until the flow finds its output likely.
"""

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

    from bidsharm.training.contrasts import RandomContrast
    from bidsharm.training.options import Player, Stage
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import Slices
    from bidsharm.training.volumes import TrainingSet


@dataclass(frozen=True, kw_only=True)
class RestoreSettings(NetworkSettings):
    """Settings of the restoring network, those of the first stage of Harmonizing Flows (its public code).

    Parameters
    ----------
    axes
        Axes of the slices: coronal.
    widths
        Channels of the network's levels.
    shift, gain, gamma, often
        The random contrasts (:class:`bidsharm.training.contrasts.RandomContrast`).
    """

    axes: tuple[int, ...] = (1,)
    widths: tuple[int, ...] = (16, 32, 48, 64, 64)
    shift: float = 30 / 255
    gain: tuple[float, float] = (0.5, 2.0)
    gamma: tuple[float, float] = (0.5, 1.5)
    often: float = 0.75
    batch: int = 32
    rate: float = 1e-3
    steps: int = 20_000


@dataclass(frozen=True, kw_only=True)
class HarmonizingFlowsSettings(RestoreSettings):
    """Settings of Harmonizing Flows.

    Parameters
    ----------
    restore_share, density_share
        Parts of the training: 200 and 1600 epochs.
    flow_widths
        Channels of the U-Nets in the couplings.
    levels, couplings
        Sizes that the flow works at, and couplings at each.
    grey_levels, span
        Grey levels of an image, and the intensity of the last one.
    floor
        Bits per voxel beyond which altered images are not pushed away any further.
    test_steps, test_rate
        Most steps of the adaptation to a scan, and their learning rate.
    patience
        Steps without an image that is likelier, after which the adaptation ends.
    """

    restore_share: float = 1.0
    density_share: float = 8.0
    flow_widths: tuple[int, ...] = (16, 32, 48, 64)
    levels: int = 3
    couplings: int = 4
    grey_levels: int = 256
    span: float = 1.5
    floor: float = 1.0
    steps: int = 180_000
    test_steps: int = 20
    test_rate: float = 2e-4
    patience: int = 3


class SslRestore(TrainedHarmonizer):
    """Restore scans of the target from random contrasts (Chang et al. 2022)."""

    settings: RestoreSettings
    Preset: ClassVar[type[NetworkSettings]] = RestoreSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'widths': (8, 16, 32), 'batch': 8, 'steps': 150, 'rate': 2e-3,
    }  # fmt: skip
    card = Card(
        name='ssl-restore', title='A network that learns to undo random contrasts of the target', family='custom', supervision='none',
        paper='Chang X, et al. Self-supervised learning for multi-center magnetic resonance imaging harmonization without traveling phantoms. '
        'Phys Med Biol 2022;67:145004.',
        doi='10.1088/1361-6560/ac7b66', geometry='grid', targets=('site',), needs_fit=('cohort',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=3.0, fidelity='minimal',
        deviations='Only the idea of the paper could be read. Network and random contrasts are those of the first stage of harmonizing-flows.',
    )  # fmt: skip

    def view(self) -> Slices:
        """Return slices."""
        from bidsharm.training.views import Slices

        return Slices(self.settings.axes, multiple=max(16, 2 ** (len(self.settings.widths) - 1)))

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return scans of the target."""
        from bidsharm.training.regimes import TargetOnly

        s = self.settings
        return TargetOnly(data, self.view(), batch=s.batch, target=self.target_site, flip=s.flip)

    def build(self) -> dict[str, nn.Module]:
        """Return the restoring network."""
        from bidsharm.nn.gain_bias import GainAndBias

        return {'harmonizer': GainAndBias(self.settings.widths)}

    @property
    def players(self) -> Mapping[str, Player]:
        """The restoring network."""
        from bidsharm.training.options import Player

        return {'harmonizer': Player(('harmonizer',), self.settings.rate)}

    @property
    def alter(self) -> RandomContrast:
        """What changes the contrast of images."""
        from bidsharm.training.contrasts import RandomContrast

        s = self.settings
        return RandomContrast(shift=s.shift, gain=s.gain, gamma=s.gamma, often=s.often)

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Mean squared difference between a slice and what is restored from its altered copy."""
        del stage
        yield 'harmonizer', {'restored': self._restored(batch)}

    def _restored(self, batch: Batch) -> Tensor:
        from bidsharm.nn.losses import l2

        x, mask = batch['x'], batch['mask']
        return l2(self.networks['harmonizer'](self.alter(x, mask)) * mask, x)

    def validation(self, batch: Batch) -> Tensor:
        """Return the loss."""
        return self._restored(batch)

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Put slices through the network, or through its copy that was adapted to the scan."""
        from torch.func import functional_call

        if given.tuned is None:
            return self.networks['harmonizer'](x)
        return functional_call(self.networks['harmonizer'], dict(given.tuned), (x,))


class HarmonizingFlows(SslRestore):
    """Restore, and adapt to each scan until a flow finds the result likely at the target (Beizaee et al. 2023)."""

    settings: HarmonizingFlowsSettings
    Preset: ClassVar[type[NetworkSettings]] = HarmonizingFlowsSettings
    tiny: ClassVar[Mapping[str, Any]] = {
        **SslRestore.tiny, 'steps': 200, 'restore_share': 3.0, 'density_share': 1.0, 'flow_widths': (8, 16), 'levels': 2,
        'couplings': 2, 'test_steps': 3, 'test_rate': 1e-4,
    }  # fmt: skip
    card = Card(
        name='harmonizing-flows', title='ssl-restore, adapted to each scan by a normalizing flow of the target', family='flow', supervision='none',
        paper='Beizaee F, et al. Harmonizing flows: unsupervised MR harmonization based on normalizing flows. IPMI 2023:347-359.',
        doi='10.48550/arXiv.2301.11551', geometry='grid', targets=('site',), needs_fit=('cohort',), needs_apply=('weights',),
        changes_anatomy=True, uses_device=True, memory_gb=8.0, fidelity='adapted',
        deviations='Adapts to one scan instead of all scans of a site, with fewer and larger steps, each over all slices; ends early when the bits per '
        'voxel fall no more. Norms in the couplings run over channels and space; intensities are not rounded to grey levels.',
    )  # fmt: skip

    @property
    def stages(self) -> Sequence[Stage]:
        """First the restoring network, then the flow."""
        from bidsharm.training.options import Stage

        s = self.settings
        return Stage('restore', s.restore_share), Stage('density', s.density_share)

    def build(self) -> dict[str, nn.Module]:
        """Return the restoring network and the flow."""
        from bidsharm.nn.flow import Coupling, ImageDensity, Noise, begin_at_zero, real_nvp
        from bidsharm.nn.unet import UNet

        s = self.settings

        def net(ins: int, outs: int) -> nn.Module:
            unet = UNet(
                dims=2, in_channels=ins, out_channels=outs, widths=s.flow_widths, kind='layer', act='concat_elu', down='pool', up='interpolate'
            )  # fmt: skip
            begin_at_zero(unet.last)
            return unet

        networks = super().build()  # before the flow, so that ssl-restore begins with the same weights
        noise = Noise([Coupling(net(2, 2), 1, by='checker', odd=bool(n % 2)) for n in range(s.couplings)])
        flow = real_nvp(2, net, levels=s.levels, couplings=s.couplings)
        return {**networks, 'flow': ImageDensity(flow, noise, grey_levels=s.grey_levels, span=s.span)}

    @property
    def players(self) -> Mapping[str, Player]:
        """The restoring network, and the flow, whose rate is halved eight times."""
        from bidsharm.training.options import Player

        first = self.settings.restore_share / (self.settings.restore_share + self.settings.density_share)

        def halving(done: float) -> float:
            return 0.5 ** int(8 * max(done - first, 0) / (1 - first))

        flow = Player(('flow',), self.settings.rate, clip=1.0, schedule=halving)
        return {**super().players, 'flow': flow}

    def bits(self, x: Tensor) -> Tensor:
        """Return how unlikely slices are at the target, in bits per voxel, shape (B,)."""
        from torch.nn import functional

        multiple = 2 ** (self.settings.levels + len(self.settings.flow_widths) - 2)
        rows, columns = (-size % multiple for size in x.shape[2:])
        return self.networks['flow'](functional.pad(x, (0, columns, 0, rows)))

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """First those of the restoring network; then bits of true slices, less those of altered ones up to a bound."""
        if stage == 'restore':
            yield from super().losses(batch, stage)
            return
        x, floor = batch['x'], -self.settings.floor
        yield (
            'flow',
            {
                'true': 0.5 * self.bits(x).clamp_min(floor).mean(),
                'altered': 0.5 * (-self.bits(self.alter(x, batch['mask']))).clamp_min(floor).mean(),
            },
        )

    def validation(self, batch: Batch) -> Tensor:
        """Return the loss of the first stage plus the bits of the second: each stands still while the other one falls."""
        return super().validation(batch) + self.bits(batch['x']).mean()

    # --- Third stage: one scan ---

    def prepare(
        self, volume: NDArray[np.float32], given: Given, batch: int
    ) -> tuple[NDArray[np.float32], Given]:
        """Adapt a copy of the restoring network to the scan, so that the flow finds its slices likely."""
        from dataclasses import replace

        import torch

        s, slices = self.settings, self._slices(volume)
        weights = {
            name: weight.detach().clone().requires_grad_()
            for name, weight in self.networks['harmonizer'].named_parameters()
        }
        optimizer = torch.optim.Adam(list(weights.values()), s.test_rate)

        def step(state: dict[str, Tensor], number: int) -> tuple[float, dict[str, Tensor]]:
            del state, number  # the state is a copy of the weights
            optimizer.zero_grad()
            with torch.enable_grad():
                value = self._bits_of(slices, weights, batch)
            optimizer.step()
            return value, {name: weight.detach().clone() for name, weight in weights.items()}

        start = {name: weight.detach().clone() for name, weight in weights.items()}
        found = repeated(
            step, lambda state: self._bits_of(slices, state, batch), start, most=s.test_steps, effort=given.effort,
            patience=s.patience,
        )  # fmt: skip
        return volume, replace(given, tuned=found)

    def _slices(self, volume: NDArray[np.float32]) -> list[Tensor]:
        """Return the slices that hold brain, for each axis a stack of shape (N, 1, H, W)."""
        import torch

        from bidsharm.training.views import padded

        wide, _ = padded(volume, self.view().multiple, self.settings.background)
        stacks = []
        for axis in self.settings.axes:
            along = np.moveaxis(wide[0], axis, 0)
            shares = (along != self.settings.background).mean(axis=(1, 2))
            usable = along[shares >= min(self.view().least_brain, shares.max())]
            stacks.append(torch.from_numpy(np.ascontiguousarray(usable[:, None])))
        return stacks

    def _bits_of(self, stacks: Sequence[Tensor], weights: Mapping[str, Tensor], batch: int) -> float:
        """Return the mean bits of a scan's slices put through the network; gather gradients of the weights where they are on."""
        import torch

        torch.manual_seed(self.execution.seed)  # the same noise in every step
        total, count = 0.0, sum(len(stack) for stack in stacks)
        for piece in (piece for stack in stacks for piece in stack.split(batch)):
            x = piece.to(next(self.networks.parameters()).device)
            found = self.translate(x, Given(tuned=weights)) * (x != self.settings.background)
            loss = self.bits(found.clamp(0, self.settings.span)).sum() / count
            if torch.is_grad_enabled():
                loss.backward()
            total += float(loss.detach())
        return total
