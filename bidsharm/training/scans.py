"""Scans to train on, made as they are needed: one of many brains, in a scanner that nobody has seen before.

Physics come from :mod:`bidsharm.simulation`; what is added here makes scans worse and stranger than a physicist would: residues of
bias correction, tone curves, fluid of any brightness, masks that are wrong. What a network has seen too much of in
training it does not mistake for something else in the clinic (domain randomization; Billot et al. 2023, doi:10.1016/j.media.2023.102789).

Tensors stay where the source's device is, so the same code feeds a training on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bidsharm.simulation import artefacts
from bidsharm.simulation.acquisition import TEXTURE
from bidsharm.simulation.physics import PulseSequence
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.protocols import draw_scanner
from bidsharm.simulation.relaxation import relaxation
from bidsharm.training.brains import SIZE_MM, Brain

#: Voxels of the field of view, of 2 mm each.
SHAPE = (96, 112, 96)
#: Values of the transmit field at which signals are kept.
_FLIPS = np.linspace(0.4, 1.6, 13)
#: Grid on which smooth fields are drawn (mm).
_COARSE_MM = 8.0
#: Tissue whose relaxation each kind of voxel has; what is around has none of its own.
_LIKE = {'CSF': 'CSF', 'sulci': 'CSF', 'GM': 'GM', 'deep GM': 'deep GM', 'WM': 'WM', 'lesion': 'lesion'}
_TEXTURE_STEP = 1 / 32
#: Spread between people of T1 and of proton density, relative.
_RELAXATION_SPREAD = (0.03, 0.01)


@dataclass(frozen=True)
class Signals:
    """Signals of tissues in many sequences.

    Parameters
    ----------
    signal
        Signed, relative to the magnitude of white matter, shape (P, 6, 13): sequence, tissue, transmit field.
    slope
        Derivative by the logarithm of T1, same shape and units.
    transmit
        Largest difference of the transmit field from 1, shape (P,).
    receive
        Unevenness of the coils, shape (P,).
    snr
        Of white matter in a voxel of the scan, shape (P,).
    voxel
        Voxel size in mm, shape (P, 3).
    """

    signal: Tensor
    slope: Tensor
    transmit: Tensor
    receive: Tensor
    snr: Tensor
    voxel: Tensor


def draw_signals(contrast: str, count: int, *, seed: int) -> Signals:
    """Draw scanners and compute what tissues look like in them.

    Parameters
    ----------
    contrast
        BIDS suffix.
    count
        Number of scanners.
    seed
        The same seed gives the same scanners.
    """
    rng = np.random.default_rng((seed, 7))
    rows = []
    for _ in range(count):
        scanner = draw_scanner(rng, 'x', contrasts=(contrast,))
        protocol, hardware = scanner.protocols[0], scanner.hardware
        signal, slope = _tissue_signals(protocol.sequence, hardware.field_strength)
        rows.append(
            (
                signal,
                slope,
                hardware.transmit_deviation,
                hardware.receive_strength,
                protocol.snr,
                protocol.voxel_size,
            )
        )
    columns = [torch.as_tensor(np.array(column), dtype=torch.float32) for column in zip(*rows, strict=True)]
    return Signals(*columns)


def canonical_signals(contrast: str) -> tuple[Tensor, Tensor]:
    """Return signals and slopes of the canonical scanner at its nominal flip angle, shape (6,) each; white matter is 1."""
    scanner = PRESETS[0]
    signal, slope = _tissue_signals(scanner.sequence(contrast), scanner.field_strength)
    middle = int(np.argmin(np.abs(_FLIPS - 1)))
    return torch.as_tensor(signal[:, middle]).float(), torch.as_tensor(slope[:, middle]).float()


def _tissue_signals(
    sequence: PulseSequence, field_strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    def signals(factor: float) -> NDArray[np.float64]:
        rows = []
        for name in _LIKE.values():
            tissue = relaxation(name, field_strength)
            changed = replace(tissue, t1=tissue.t1 * factor)
            rows.append(
                np.broadcast_to(np.asarray(sequence.signal(changed, b1=_FLIPS), dtype=float), _FLIPS.shape)
            )
        return np.stack(rows)

    white = abs(float(sequence.signal(relaxation('WM', field_strength))))
    step = 1.02
    slope = (signals(step) - signals(1 / step)) / (2 * np.log(step))
    return signals(1.0) / white, slope / white


@dataclass(frozen=True)
class TrainingScan:
    """One scan and its truth, brain voxels only.

    Parameters
    ----------
    values
        The scan, shape (N,).
    clean
        The same without noise, blur and rounding, shape (N,).
    canonical
        The same brain in the canonical scanner, shape (N,).
    log_gain
        Logarithm of the smooth field that lies over the scan, as white matter shows it, shape (N,).
    tissue
        Shares of CSF, GM and WM, shape (3, N).
    voxels
        Position in the field of view, shape (N, 3), integer.
    true_mask
        Which of these voxels really are brain, shape (N,).
    """

    values: Tensor
    clean: Tensor
    canonical: Tensor
    log_gain: Tensor
    tissue: Tensor
    voxels: Tensor
    true_mask: Tensor


class ScanSource:
    """Scan brains in random scanners.

    Parameters
    ----------
    brains
        Whom to scan.
    contrast
        BIDS suffix.
    seed
        Of scanners and of everything drawn.
    scanners
        Number of scanners to draw beforehand.
    device
        Where scans are made.
    """

    def __init__(
        self, brains: Sequence[Brain], contrast: str, *, seed: int, scanners: int = 4000, device: str = 'cpu'
    ) -> None:
        self.brains, self.device = list(brains), torch.device(device)
        drawn = draw_signals(contrast, scanners, seed=seed)
        self.signals = Signals(**{name: getattr(drawn, name).to(device) for name in Signals.__annotations__})
        self.target, self.target_slope = (part.to(device) for part in canonical_signals(contrast))
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.receive, self.transmit = self._fields(64)

    def reseed(self, seed: int) -> None:
        """Start all random numbers anew."""
        self.rng = np.random.default_rng(seed)
        self.generator.manual_seed(seed)

    def draw(self) -> TrainingScan:
        """Return the next scan."""
        brain = self.brains[int(self.rng.integers(len(self.brains)))]
        inside, fractions, texture = self._place(brain)
        number = int(self.rng.integers(len(self.signals.snr)))
        mixture, kinds = self._mix(fractions)
        jitter = self._people()
        transmit = self._transmit(number)[inside]
        signal = self._signal(number, mixture, texture, transmit, jitter)
        canonical = self._combine(self.target, self.target_slope, mixture, texture, jitter).abs()
        white = self._white(number, transmit)
        log_gain, receive = self._gain(number, inside, white)
        power = self._tone()
        clean = (signal * receive).abs().clamp_min(1e-6) ** power
        log_gain = power * log_gain
        values = self._measure(clean, inside, number)
        given, true = self._mask(inside, kinds)
        keep = given[inside]
        voxels = inside.nonzero()[keep]
        tissue = torch.stack([kinds[0] + kinds[1], kinds[2] + kinds[3], kinds[4] + kinds[5]])
        return TrainingScan(
            values[keep],
            clean[keep],
            canonical[keep],
            log_gain[keep],
            tissue[:, keep],
            voxels,
            true[inside][keep],
        )

    # --- Drawing ---

    def _uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def _chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def _fields(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw receive fields (logarithms) and transmit fields (differences from 1) of strength 1, on the coarse grid."""
        shape = tuple(int(n * SIZE_MM / _COARSE_MM) for n in SHAPE)
        spacing = (_COARSE_MM,) * 3
        generator = torch.Generator().manual_seed(int(self.rng.integers(2**62)))
        receive = [
            artefacts.receive_field(shape, spacing, coils=int(n), strength=1.0, generator=generator).log()
            for n in self.rng.choice((1, 4, 8, 12, 20, 32, 64), count)
        ]
        transmit = [
            artefacts.transmit_field(shape, spacing, deviation=0.9, generator=generator).sub(1) / 0.9
            for _ in range(count)
        ]
        return torch.stack(receive).to(self.device), torch.stack(transmit).to(self.device)

    def _field(self, bank: Tensor) -> Tensor:
        """Return one of the fields, flipped and shifted at random, on the grid of the scan."""
        field = bank[int(self.rng.integers(len(bank)))]
        if self._chance(0.5):
            field = field.flip(0)
        return functional.interpolate(field[None, None], size=SHAPE, mode='trilinear', align_corners=False)[
            0, 0
        ]

    def _transmit(self, number: int) -> Tensor:
        return 1 + float(self.signals.transmit[number]) * self._field(self.transmit)

    def _place(self, brain: Brain) -> tuple[Tensor, Tensor, Tensor]:
        """Put a brain into the field of view: the voxels that it fills, its fractions and its texture."""
        inside = torch.zeros(SHAPE, dtype=torch.bool, device=self.device)
        small = torch.as_tensor(brain.inside).to(self.device)
        room = [max(0, n - m) for n, m in zip(SHAPE, small.shape, strict=True)]
        start = [int(self.rng.integers(max(0, r // 2 - 4), min(r, r // 2 + 4) + 1)) for r in room]
        fractions = torch.as_tensor(brain.fractions).to(self.device).float() / 255
        texture = torch.as_tensor(brain.texture).to(self.device).float() * _TEXTURE_STEP
        order = torch.full(small.shape, -1, dtype=torch.long, device=self.device)
        order[small] = torch.arange(fractions.shape[1], device=self.device)
        order = order[tuple(slice(0, n) for n in SHAPE)]
        if self._chance(0.5):
            order = order.flip(0)
        whole = torch.full(SHAPE, -1, dtype=torch.long, device=self.device)
        whole[tuple(slice(s, s + n) for s, n in zip(start, order.shape, strict=True))] = order
        inside = whole >= 0
        return inside, fractions[:, whole[inside]], texture[:, whole[inside]]

    def _mix(self, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """Return what contributes to the signal, and the fractions themselves; sulci hold more or less membranes."""
        kinds = fractions
        membranes = self._uniform(0, 0.45)
        mixture = fractions.clone()
        mixture[2] += membranes * fractions[1]
        mixture[1] -= membranes * fractions[1]
        return mixture, kinds

    def _people(self) -> Tensor:
        """Return relative differences of T1 and proton density of each tissue of this person, shape (6, 2)."""
        spread = torch.tensor(_RELAXATION_SPREAD, device=self.device)
        return torch.randn(len(_LIKE), 2, generator=self.generator, device=self.device) * spread

    def _combine(
        self, signal: Tensor, slope: Tensor, mixture: Tensor, texture: Tensor, jitter: Tensor
    ) -> Tensor:
        """Add up the tissues; signal and slope are of shape (6,) or (6, N)."""
        image = torch.zeros_like(mixture[0])
        for index, name in enumerate(_LIKE):
            t1, pd = (float(part) for part in jitter[index])
            spread_t1, spread_pd = TEXTURE.get(_LIKE[name], (0.0, 0.0))
            local = signal[index] * (1 + pd + spread_pd * texture[1]) + slope[index] * (
                t1 + spread_t1 * texture[0]
            )
            image += mixture[index] * local
        return image

    def _signal(
        self, number: int, mixture: Tensor, texture: Tensor, transmit: Tensor, jitter: Tensor
    ) -> Tensor:
        place = ((transmit - _FLIPS[0]) / (_FLIPS[1] - _FLIPS[0])).clamp(0, len(_FLIPS) - 1.001)
        lower = place.floor()
        weight, index = place - lower, lower.long()

        def at(table: Tensor) -> Tensor:
            return table[:, index] * (1 - weight) + table[:, index + 1] * weight

        signal, slope = at(self.signals.signal[number]), at(self.signals.slope[number])
        # Beyond the physics: tissues that no equation foresees.
        odd = 1 + 0.04 * torch.randn(len(_LIKE), 1, generator=self.generator, device=self.device)
        odd[3] += self._uniform(-0.05, 0.12)
        image = self._combine(signal * odd, slope, mixture, texture, jitter)
        if self._chance(0.4):  # fluid is seldom as dark as it should be: flow, pulsation
            image = image + self._uniform(0, 0.25) * mixture[:2].sum(dim=0)
        return image + mixture[len(_LIKE)] * self._uniform(0, 1.2)

    def _white(self, number: int, transmit: Tensor) -> Tensor:
        """Return how the transmit field changes white matter, relative to a perfect one."""
        table = self.signals.signal[number, 4]
        place = ((transmit - _FLIPS[0]) / (_FLIPS[1] - _FLIPS[0])).clamp(0, len(_FLIPS) - 1.001)
        lower = place.floor()
        index = lower.long()
        found = table[index] * (1 - (place - lower)) + table[index + 1] * (place - lower)
        return found.abs().clamp_min(0.05)

    def _gain(self, number: int, inside: Tensor, white: Tensor) -> tuple[Tensor, Tensor]:
        """Return the true logarithm of the gain and the receive field; half of all scans were corrected before."""
        strength = float(self.signals.receive[number])
        receive = strength * self._field(self.receive)[inside]
        if self._chance(0.6):  # what a bias correction leaves of all that is smooth
            left = self._uniform(-0.1, 0.35)
            rough = self._noise(self._uniform(20, 50))[inside] * self._uniform(0, 0.06)
            receive = left * receive + rough - (1 - left) * white.log()
        else:
            receive = receive + self._noise(self._uniform(20, 50))[inside] * self._uniform(0, 0.05)
        return receive + white.log(), receive.exp()

    def _noise(self, sigma_mm: float) -> Tensor:
        """Return smooth noise of standard deviation 1 on the grid of the scan."""
        step = max(sigma_mm, _COARSE_MM)
        shape = [max(3, round(n * SIZE_MM / step)) + 2 for n in SHAPE]
        noise = torch.randn(1, 1, *shape, generator=self.generator, device=self.device)
        return functional.interpolate(noise, size=SHAPE, mode='trilinear', align_corners=False)[0, 0] * 1.5

    def _tone(self) -> float:
        """Return the power that intensities are taken to: 1, or what some pipelines make of it."""
        return float(np.exp(self.rng.normal(0, 0.15))) if self._chance(0.3) else 1.0

    def _measure(self, clean: Tensor, inside: Tensor, number: int) -> Tensor:
        """Blur, add noise and round; noise is that of voxels averaged to 2 mm."""
        image = torch.zeros(SHAPE, device=self.device)
        image[inside] = clean
        weight = inside.float()
        voxel = self.signals.voxel[number].tolist()
        for axis, size in enumerate(voxel):
            if size > SIZE_MM * 1.2:
                image, weight = (_thick(part, size, axis, self._uniform(0, 1)) for part in (image, weight))
            elif self._chance(0.3):
                image, weight = (_blur(part, axis) for part in (image, weight))
        values = (image / weight.clamp_min(0.05))[inside]
        averaged = max(1.0, SIZE_MM**3 / float(np.prod(voxel))) ** 0.5
        sigma = 1 / (float(self.signals.snr[number]) * averaged)
        if self._chance(0.15):
            sigma *= self._uniform(1, 3)
        real = values + sigma * torch.randn(values.shape, generator=self.generator, device=self.device)
        imaginary = sigma * torch.randn(values.shape, generator=self.generator, device=self.device)
        values = (real**2 + imaginary**2).sqrt()
        if self._chance(0.15):  # bright ends cut off
            values = values.clamp(max=float(torch.quantile(values[::7], self._uniform(0.97, 0.999))))
        if self._chance(0.15):  # few grey values
            step = float(values.max()) / self._uniform(60, 255)
            values = torch.round(values / step) * step
        return values

    def _mask(self, inside: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Return a mask as brain extraction might give it, and the true one."""
        brain = torch.zeros(SHAPE, device=self.device)
        brain[inside] = kinds[:6].sum(dim=0)
        true = brain >= 0.5
        kind = self.rng.random()
        if kind < 0.15:  # fluid at the surface is lost
            tissue = torch.zeros(SHAPE, device=self.device)
            tissue[inside] = kinds[2:6].sum(dim=0) + kinds[0]
            given = _grow(tissue > self._uniform(0.3, 0.6), self._chance(0.5) * 1)
        elif kind < 0.35:
            given = _grow(true, 1)
        elif kind < 0.55:
            given = ~_grow(~true, 1)
        else:
            edge = brain + 0.4 * self._noise(12.0) * self._uniform(0, 0.6)
            given = edge >= 0.5
        return given & inside, true


def _grow(mask: Tensor, voxels: int) -> Tensor:
    if voxels == 0:
        return mask
    grown = mask.clone()
    for axis in range(3):
        for shift in (-1, 1):
            grown |= mask.roll(shift, axis)
    return grown


def _blur(image: Tensor, axis: int) -> Tensor:
    return 0.5 * image + 0.25 * (image.roll(1, axis) + image.roll(-1, axis))


def _thick(image: Tensor, size: float, axis: int, phase: float) -> Tensor:
    """Average over slices of a thickness, and interpolate back."""
    n = image.shape[axis]
    ratio = size / SIZE_MM
    count = int(np.floor(n / ratio))
    centres = (np.arange(count) + phase) * ratio
    matrix = np.zeros((count, n), dtype=np.float32)
    edges = np.arange(n) + 0.5
    for row, centre in enumerate(centres):
        overlap = np.clip(0.5 + ratio / 2 - np.abs(edges - 0.5 + 0.5 - centre), 0, 1)
        matrix[row] = overlap / max(float(overlap.sum()), 1e-6)
    back = np.zeros((n, count), dtype=np.float32)
    place = np.clip((np.arange(n) + 0.5 - centres[0]) / ratio, 0, count - 1.001)
    lower = np.floor(place).astype(int)
    back[np.arange(n), lower] = 1 - (place - lower)
    back[np.arange(n), lower + 1] += place - lower
    whole = torch.as_tensor(back @ matrix, device=image.device)
    return torch.tensordot(whole, image, dims=([1], [axis])).movedim(0, axis).contiguous()
