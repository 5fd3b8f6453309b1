"""What the disentangled methods share: anatomy and contrast apart, and together again (Zuo et al. 2023; its public code). Their files: drl.py.

All contrasts of one visit show the same anatomy (beta, a label for each voxel), each in a contrast of its own (theta, a few numbers). The anatomy of one
and the contrast of another make the other one again, so both can be learnt without travelling people. To harmonize is to decode
a scan's anatomy with the contrast of the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bidsharm.harmonizers.adversarial import AdversarialSettings
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.trained import TrainedHarmonizer
from bidsharm.nn.names import Fusion
from bidsharm.training.scaling import Scaled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player, Stage
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import Slices
    from bidsharm.training.volumes import TrainingSet

#: How volumes from several axes become one; a network may learn to.
Fuse = Fusion | Literal['learnt']
Attention = Literal['softmax', 'fg_bg', 'swap']
Pairs = Literal['contrasts', 'orientations']


@dataclass(frozen=True, kw_only=True)
class DisentangledSettings(AdversarialSettings):
    """Settings of the family; defaults are those of HACA3 (Zuo et al. 2023; its public code).

    Parameters
    ----------
    pairs
        What shows the same thing twice: ``contrasts`` of a visit (one anatomy), or ``orientations`` of a scan (one contrast).
    axes, fuse
        Axes of the slices, and how their volumes become one: ``median``, ``mean`` or ``learnt``.
    labels, theta, eta
        Labels of the anatomy, and numbers that describe contrast and artifacts (0: artifacts are not described).
    base, decoder, levels
        Channels of the first layer of anatomy encoder and decoder, and how often they halve.
    stride, width
        Stride of the contrast encoder, and channels of its first layer; half as many has the artifact encoder.
    patch, features
        Edge of a patch, and features of one.
    attention
        Whose anatomy is decoded: ``softmax`` of codes, the same with each contrast counting only where it shows something (``fg_bg``,
        as in HACA3+), or that of one contrast (``swap``).
    temperature, temperature_apply
        Divide the scores of the attention in the training and for a scan.
    reconstruction, perceptual, kl, contrastive, cycle, cycle_anatomy
        Weights of the losses; features are those of fixed random filters (:mod:`bidsharm.nn.perceptual`). The one of the anatomy in the cycle counts within the cycle's.
    confusion
        Weight of the critic of Dewey et al. 2020 and CALAMITI, which guesses the contrast that anatomy comes from; the critic is the
        discriminator of these methods.
    drop_target
        How often the target itself is no source.
    artifacts, within, across, fusion
        Shares of the stages: the artifact encoder; images of a visit; also contrasts of other visits; the fusion of axes.
    fusion_scans, fusion_rate
        Scans that the fusion is learnt from, and its learning rate.
    """

    unused: ClassVar[tuple[str, ...]] = ('gan_loss',)

    pairs: Pairs = 'contrasts'
    axes: tuple[int, ...] = (0, 1, 2)
    fuse: Fuse = 'learnt'
    labels: int = 5
    theta: int = 2
    eta: int = 2
    base: int = 8
    decoder: int = 16
    levels: int = 4
    stride: int = 9
    width: int = 32
    patch: int = 32
    features: int = 128
    attention: Attention = 'softmax'
    temperature: float = 10.0
    temperature_apply: float = 5.0
    reconstruction: float = 10.0
    perceptual: float = 0.5
    kl: float = 1e-5
    contrastive: float = 0.5
    confusion: float = 0.0
    cycle: float = 0.05
    cycle_anatomy: float = 0.05
    drop_target: float = 0.8
    artifacts: float = 1.0
    within: float = 1.0
    across: float = 7.0
    fusion: float = 1.0
    fusion_scans: int = 8
    fusion_rate: float = 5e-4
    scaling: Scaled = 'p95'
    steps: int = 100_000
    rate: float = 5e-4


class _Task(NamedTuple):
    """Sources and those that may be used, shape (B, N, H, W) and (B, N); whose contrast to draw, and what should come out."""

    sources: Tensor
    present: Tensor
    allowed: Tensor
    style: Tensor
    wanted: Tensor
    mask: Tensor


class _Codes(NamedTuple):
    """Mean and log variance of contrast codes, and artifact codes."""

    mean: Tensor
    log_variance: Tensor
    eta: Tensor


class _Drawn(NamedTuple):
    """An image, its anatomy, and the codes it was drawn with."""

    image: Tensor
    anatomy: Tensor
    theta: Tensor
    codes: _Codes


class Disentangled(TrainedHarmonizer):
    """What the four methods do; they differ in their settings."""

    settings: DisentangledSettings
    Preset: ClassVar[type[NetworkSettings]] = DisentangledSettings
    look: ClassVar[tuple[str, ...]] = ('theta',)  # no acquisition parameter tells the artifacts
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'base': 8, 'decoder': 16, 'levels': 1, 'stride': 3, 'width': 8, 'patch': 8, 'features': 16, 'batch': 8,
        'steps': 100, 'rate': 1e-3, 'fusion_scans': 2, 'fusion_rate': 1e-4, 'artifacts': 0.5, 'within': 4.0, 'across': 2.0, 'fusion': 1.0,
    }  # fmt: skip

    # --- Networks ---

    def view(self) -> Slices:
        """Return slices along the axes of the settings."""
        from bidsharm.training.views import Slices

        fusion = dict(getattr(self, 'networks', {})).get('fusion')
        return Slices(axes=self.settings.axes, fuse=self.settings.fuse, network=fusion)

    def sampler(self, data: TrainingSet) -> Sampler:
        """Return visits with several contrasts, or scans in two orientations."""
        from bidsharm.training.regimes import Orientations, Visits

        kind = Orientations if self.settings.pairs == 'orientations' else Visits
        return kind(
            data, self.view(), batch=self.settings.batch, target=self.target_site, flip=self.settings.flip
        )

    def build(self) -> dict[str, nn.Module]:
        """Return encoders and decoder, and what else the settings ask for."""
        from bidsharm.nn.disentangled import (
            ArtifactEncoder,
            ContrastAttention,
            ContrastCritic,
            ContrastEncoder,
            Patchifier,
            WideUNet,
        )
        from bidsharm.nn.fusion import FusionNet

        s = self.settings
        networks: dict[str, nn.Module] = {
            'anatomy': WideUNet(1, s.labels, s.base, s.levels), 'contrast': ContrastEncoder(s.theta, s.stride, s.width),
            'decoder': WideUNet(1 + s.theta, 1, s.decoder, s.levels, level=0.5),
        }  # fmt: skip
        if s.attention != 'swap':
            networks['attention'] = ContrastAttention(s.theta + s.eta)
        if s.eta:
            networks['artifact'] = ArtifactEncoder(s.eta, s.patch, s.width // 2)
        if s.contrastive:
            networks['patchifier'] = Patchifier(s.features, s.patch)
        if s.confusion:
            networks['critic'] = ContrastCritic(s.labels, len(self.contrasts), spectral=s.spectral)
        if s.fuse == 'learnt':
            networks['fusion'] = FusionNet(len(s.axes))
        return networks

    @property
    def players(self) -> Mapping[str, Player]:
        """The encoders and the decoder, and each other network that learns from losses of its own."""
        from bidsharm.training.options import Player

        s = self.settings
        main = ['anatomy', 'contrast', 'decoder']
        main += [
            name
            for name, there in {'attention': s.attention != 'swap', 'patchifier': s.contrastive}.items()
            if there
        ]
        own = {'artifact': s.eta, 'critic': s.confusion, 'fusion': s.fuse == 'learnt'}
        return {
            'translator': Player(tuple(main), s.rate),
            **{
                name: Player((name,), s.fusion_rate if name == 'fusion' else s.rate)
                for name, there in own.items()
                if there
            },
        }

    @property
    def stages(self) -> Sequence[Stage]:
        """Artifacts, images of a visit, contrasts of other visits, fusion: those that the settings ask for."""
        from bidsharm.training.options import Stage

        s = self.settings
        asked = {'artifacts': s.eta > 0, 'within': True, 'across': s.cycle > 0, 'fusion': s.fuse == 'learnt'}
        return [
            Stage(name, getattr(s, name), grows=name != 'fusion', validates=name != 'fusion')
            for name, there in asked.items()
            if there
        ]

    def begin(self, stage: str) -> None:
        """For the fusion, put some scans through the networks of the slices."""
        from bidsharm.nn.perceptual import FixedFeatures

        self._stage = stage
        self._features = FixedFeatures().to(self._device)
        if stage != 'fusion':
            return
        from bidsharm.training.fusion import fusion_example

        self.networks.eval()
        device, s, view = str(self._device), self.settings, self.view()
        chosen = np.linspace(0, len(self.data.volumes) - 1, min(s.fusion_scans, len(self.data.volumes)))
        self._examples = []
        for index in chosen.round().astype(int):
            volume = self.data.volumes[index]
            values = np.asarray(volume.values)
            given = Given(contrast=self.contrasts.index(volume.contrast))
            channels, given = self.prepare(values[None], given, 8)
            self._examples.append(
                fusion_example(
                    view, channels, values, volume.mask, lambda x, axis, known=given: self.translate(x, known),  # type: ignore[misc]
                    background=s.background, device=device,
                )
            )  # fmt: skip
        self.networks.train()

    # --- Codes and images ---

    @property
    def _device(self) -> Any:
        return next(self.networks.parameters()).device

    def _codes(self, images: Tensor) -> _Codes:
        """Return the codes of images, shape (B, N, H, W), each code of shape (B, N, numbers)."""
        flat, lead = images.flatten(0, 1)[:, None], images.shape[:2]
        mean, log_variance = self.networks['contrast'](flat)
        eta = self.networks['artifact'](flat).detach() if self.settings.eta else mean[:, :0]
        return _Codes(*(code.unflatten(0, lead) for code in (mean, log_variance, eta)))

    def _anatomy(self, images: Tensor) -> Tensor:
        """Return the logits of the labels of images, shape (B, N, labels, H, W)."""
        return self.networks['anatomy'](images.flatten(0, 1)[:, None]).unflatten(0, images.shape[:2])

    def _sampled(self, codes: _Codes) -> Tensor:
        """Return contrast codes, drawn while there is a bound on them and the networks learn."""
        import torch

        if not (self.networks.training and self.settings.kl):
            return codes.mean
        return codes.mean + (codes.log_variance / 2).exp() * torch.randn_like(codes.mean)

    def _weights(self, task: _Task, query: Tensor) -> Tensor:
        """Return how much the anatomy of each contrast counts, shape (B, N)."""
        import torch
        from torch.nn import functional

        if self.settings.attention == 'swap':
            one = torch.multinomial(task.allowed, 1)[:, 0]
            return functional.one_hot(one, task.allowed.shape[1]).to(query)
        s, codes = self.settings, self._codes(task.sources)
        keys = torch.cat([self._sampled(codes), codes.eta], dim=2)
        temperature = s.temperature if self.networks.training else s.temperature_apply
        return self.networks['attention'](query, keys, task.allowed, temperature)

    def _decode(self, task: _Task, logits: Tensor, theta: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Return an image and the map of its anatomy, from the contrasts that are allowed and the codes of a target."""
        import torch

        from bidsharm.nn.disentangled import fuse

        shown = task.sources > self.settings.background
        weights = self._weights(task, torch.cat([theta, eta], dim=1))
        foreground = shown.to(logits) if self.settings.attention == 'fg_bg' else None
        anatomy = self._map(fuse(logits, weights, foreground))
        # The code fills the brain and not the slice: instance norms would take a constant away.
        brain = shown.any(dim=1, keepdim=True)
        filled = theta[:, :, None, None] * brain
        image = torch.relu(self.networks['decoder'](torch.cat([anatomy * brain, filled], dim=1)))
        return image * task.mask, anatomy

    def _draw(self, task: _Task, logits: Tensor, style: Tensor) -> _Drawn:
        """Return the anatomy of the sources in the contrast of other images, shape (B, 1, H, W)."""
        codes = self._codes(style)
        theta = self._sampled(codes)[:, 0]
        image, anatomy = self._decode(task, logits, theta, codes.eta[:, 0])
        return _Drawn(image, anatomy, theta, codes)

    # --- Training ---

    def _task(self, batch: Batch) -> _Task:
        """Return what to draw from what: one contrast of a visit from others, or a slice in the contrast of another one."""
        import torch

        if self.settings.pairs == 'orientations':
            x = batch['x']
            there = torch.ones_like(x[:, :1, 0, 0])
            return _Task(x, there, there, batch['other'], x, batch['mask'])
        images, present = batch['images'], batch['present']
        training = self.networks.training
        target = torch.multinomial(present, 1)[:, 0] if training else present.argmax(dim=1)
        wanted = images[torch.arange(len(images)), target][:, None]
        rate = self.settings.drop_target if training else 1.0
        allowed = some_of(present, target, rate, few=training)
        sources = self._spoiled(images) if training and self.settings.eta else images
        return _Task(sources, present, allowed, wanted, wanted, batch['mask'])

    def _spoiled(self, images: Tensor) -> Tensor:
        """Give artifacts to a part of the sources, never to all of them."""
        import torch

        from bidsharm.training.degradation import degraded, generator_like

        count = int(torch.randint(images.shape[1], (1,)))
        chosen, spoiled = torch.randperm(images.shape[1])[:count], images.clone()
        for index in chosen.tolist():
            spoiled[:, index] = degraded(images[:, index], generator_like(images))
        return spoiled

    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Reconstruction, bound on the contrast, equal anatomy of all contrasts; then the cycle by way of another visit's contrast."""
        import torch

        from bidsharm.nn.losses import l1
        from bidsharm.training.fusion import fusion_loss

        if stage == 'artifacts':
            yield 'artifact', {'contrastive': self._artifact_loss(batch)}
            return
        if stage == 'fusion':
            yield 'fusion', {'l1': fusion_loss(self.networks['fusion'], self._examples, self._device)}
            return
        s, task = self.settings, self._task(batch)
        logits = self._anatomy(task.sources)
        drawn = self._draw(task, logits, task.style)
        yield 'translator', {
            'reconstruction': s.reconstruction * inside(drawn.image, task.wanted, task.mask),
            **self._perceptual_loss(drawn.image, task.wanted * task.mask),
            **self._code_losses(task, logits, drawn.codes),
        }  # fmt: skip
        if s.confusion:
            yield 'critic', {'contrast': self._critic_loss(task, logits.detach())}
        if stage != 'across':
            return
        # Fresh images of the moved networks, in the contrast of another visit.
        order = torch.randperm(len(task.style), device=task.style.device)
        away = task._replace(allowed=some_of(task.present, None, 0.0, few=True))
        drawn = self._draw(away, self._anatomy(away.sources), task.style[order])
        again = self._codes(drawn.image)
        parts = l1(again.mean[:, 0], drawn.theta.detach())
        if s.eta:
            parts = parts + l1(self.networks['artifact'](drawn.image), drawn.codes.eta[:, 0].detach())
        anatomy = l1(self._map(self._anatomy(drawn.image)[:, 0]), drawn.anatomy.detach())
        yield 'translator', {'cycle': s.cycle * (parts + s.cycle_anatomy * anatomy)}

    def _perceptual_loss(self, found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """What fixed filters see in an image should be what they see in the one that is wanted."""
        weight = self.settings.perceptual
        return {'perceptual': weight * self._features.distance(found, wanted)} if weight else {}

    def _map(self, logits: Tensor) -> Tensor:
        from bidsharm.nn.disentangled import label_map, one_label

        return label_map(one_label(logits, self.networks.training))

    def _code_losses(self, task: _Task, logits: Tensor, codes: _Codes) -> dict[str, Tensor]:
        """The bound on the contrast code, and what keeps contrast out of the anatomy."""
        from bidsharm.nn.disentangled import one_label
        from bidsharm.nn.losses import confusion, gaussian_kl

        s, found = self.settings, {}
        if s.kl:
            found['kl'] = s.kl * gaussian_kl(codes.mean[:, 0], codes.log_variance[:, 0]) / s.theta
        if s.contrastive and logits.shape[1] > 1:
            found['contrastive'] = s.contrastive * self._patch_loss(task, logits)
        if s.confusion:
            labels = one_label(logits.flatten(0, 1), self.networks.training)
            guesses = self.networks['critic'](labels[task.present.flatten() > 0])
            found['confusion'] = s.confusion * confusion(guesses)
        return found

    def _patch_loss(self, task: _Task, logits: Tensor) -> Tensor:
        """The anatomy of a patch should look alike in two contrasts, and unlike other patches and the images themselves."""
        import torch

        from bidsharm.nn.losses import patch_nce

        pair, rows = torch.multinomial(task.present, 2), torch.arange(len(logits))
        patches = self.networks['patchifier']
        one, other = (patches(self._map(logits[rows, which])) for which in pair.T)
        images = [patches(task.sources[rows, which][:, None]) for which in pair.T]
        elsewhere = [anatomy.roll(1, dims=0) for anatomy in (one, other)] if len(logits) > 1 else []
        return patch_nce(one, other, 0.1, negatives=torch.cat([*images, *elsewhere], dim=1))

    def _critic_loss(self, task: _Task, logits: Tensor) -> Tensor:
        """Cross-entropy of the critic's guesses of the contrast, and the penalty on the gradient of the right one."""
        import torch
        from torch.nn import functional

        from bidsharm.nn.disentangled import one_label
        from bidsharm.nn.losses import gradient_penalty

        labels = one_label(logits.flatten(0, 1), self.networks.training)
        there = task.present.flatten() > 0
        truth = torch.arange(task.present.shape[1], device=labels.device).repeat(len(task.present))
        penalty, shown, truth = self.settings.penalty, labels[there], truth[there]
        if penalty:
            shown = shown.detach().requires_grad_()
        guesses = self.networks['critic'](shown)
        loss = functional.cross_entropy(guesses, truth)
        return (
            loss + penalty * gradient_penalty(guesses.gather(1, truth[:, None]), shown) if penalty else loss
        )

    def _artifact_loss(self, batch: Batch) -> Tensor:
        """Two clean images should have nearer codes than a clean one and one with artifacts."""
        import torch

        from bidsharm.nn.losses import distance_nce
        from bidsharm.training.degradation import degraded, generator_like

        if self.settings.pairs == 'orientations':
            pair = [batch['x'], batch['other']]
        else:
            groups = ((batch['images'], batch['present']), (batch['others'], batch['others_present']))
            pair = [
                images[torch.arange(len(images)), torch.multinomial(there, 1)[:, 0]][:, None]
                for images, there in groups
            ]
        bad = [degraded(image[:, 0], generator_like(image))[:, None] for image in pair]
        one, other, *negatives = (self.networks['artifact'](image) for image in (*pair, *bad))
        return distance_nce(one, other, torch.stack(negatives, dim=1))

    def validation(self, batch: Batch) -> Tensor | None:
        """Return the mean absolute error of a contrast that is drawn from the others, while that is being learnt."""
        if self._stage not in ('within', 'across'):
            return None
        task = self._task(batch)
        return inside(self._draw(task, self._anatomy(task.sources), task.style).image, task.wanted, task.mask)

    def preview(self, batch: Batch) -> list[Tensor]:
        """Return a source, what is drawn, and what should be."""
        task = self._task(batch)
        drawn = self._draw(task, self._anatomy(task.sources), task.style)
        return [task.sources[:, :1], drawn.image, task.wanted]

    # --- One scan ---

    def style_of(
        self, scans: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
    ) -> dict[str, Tensor]:
        """Return the mean contrast and artifact code of all slices that hold brain."""
        import torch

        codes: dict[str, list[Tensor]] = {'theta': [], 'eta': []}
        for values, mask in zip(scans, masks, strict=True):
            for axis in self.settings.axes:
                shares = mask.mean(axis=tuple(other for other in range(3) if other != axis))
                slices = np.moveaxis(values, axis, 0)[shares >= shares.max() / 2]
                for start in range(0, len(slices), 16):
                    part = np.ascontiguousarray(slices[start : start + 16])
                    found = self._codes(torch.from_numpy(part)[:, None].to(self._device))
                    codes['theta'].append(found.mean[:, 0])
                    codes['eta'].append(found.eta[:, 0])
        return {name: torch.cat(parts).mean(dim=0, keepdim=True) for name, parts in codes.items()}

    def prepare(
        self, volume: NDArray[np.float32], given: Given, batch: int
    ) -> tuple[NDArray[np.float32], Given]:
        """Return one channel for each contrast, filled with the scan and what else the visit has."""
        del batch
        if self.settings.pairs == 'orientations':
            return volume, given
        return self.all_contrasts(volume, given), given

    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Decode the anatomy of a scan (and of its companions) in the contrast of the target; without one, in its own."""
        import torch

        own = given.contrast if x.shape[1] > 1 else 0
        present = torch.zeros(len(x), x.shape[1], device=x.device)
        present[
            :, [own, *(given.companions if x.shape[1] > 1 and self.settings.attention != 'swap' else ())]
        ] = 1
        task = _Task(x, present, present, x[:, [own]], x[:, [own]], torch.ones_like(x[:, :1]))
        style = given.style
        if not style:
            return self._draw(task, self._anatomy(x), task.style).image
        theta, eta = (style[name].expand(len(x), -1) for name in ('theta', 'eta'))
        return self._decode(task, self._anatomy(x), theta, eta)[0]


def some_of(present: Tensor, target: Tensor | None, rate: float, *, few: bool) -> Tensor:
    """Return which of the contrasts that are there may be used, at least one of each row, shape (B, N).

    Parameters
    ----------
    present
        1 or 0, shape (B, N).
    target
        Number of the contrast that is drawn, shape (B,); None for none.
    rate
        How often it is left out, where others are there.
    few
        Leave out others too, as many as chance decides.
    """
    import torch

    left = present.clone()
    if target is not None:
        rows = torch.arange(len(present), device=present.device)
        out = (torch.rand(len(present), device=present.device) < rate) & (present.sum(dim=1) > 1)
        left[rows[out], target[out]] = 0
    if not few:
        return left
    order = torch.rand_like(left).masked_fill(left == 0, 2).argsort(dim=1).argsort(dim=1)
    kept = 1 + (torch.rand(len(left), 1, device=left.device) * left.sum(dim=1, keepdim=True)).floor()
    return left * (order < kept)


def inside(found: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Return the mean absolute difference in the brain."""
    return ((found - wanted).abs() * mask).sum() / mask.sum().clamp_min(1)
