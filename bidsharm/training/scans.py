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

from bidsharm.imaging.lowres import SHAPE, SIZE_MM
from bidsharm.simulation import artefacts
from bidsharm.simulation.acquisition import CANONICAL_UNIT, TEXTURE
from bidsharm.simulation.physics import PulseSequence
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.protocols import draw_scanner
from bidsharm.simulation.relaxation import relaxation
from bidsharm.training.brains import Brain

#: Values of the transmit field at which signals are kept.
_FLIPS = np.linspace(0.4, 1.6, 13)
#: Grid on which smooth fields are drawn (mm).
_COARSE_MM = 8.0
#: Tissue whose relaxation each kind of voxel has; what is around has none of its own.
_LIKE = {'CSF': 'CSF', 'sulci': 'CSF', 'GM': 'GM', 'deep GM': 'deep GM', 'WM': 'WM', 'lesion': 'lesion'}
_TEXTURE_STEP = 1 / 32
#: Voxels that are longer count as thick slices (mm).
_THICK_MM = 2.4
#: Values of the transmit field that signals are rounded to.
_LEVELS = 121
#: How much darker or brighter deep grey matter is than the equations say, relative: myelin in T1w, iron in the others.
_DEEP_GREY = {'T1w': (-0.05, 0.12), 'T2w': (-0.2, 0.05), 'FLAIR': (-0.2, 0.05), 'PDw': (-0.15, 0.05)}
#: How much signal dark fluid has at most that should have none, in parts of white matter.
#: Real FLAIR have 0.4 to 0.55 (``benchmarks/results/simulated_real.md``), partial volume and noise included.
_FLUID_LEFT = {'T1w': 0.25, 'FLAIR': 0.5}
#: What a scan may really be when its name is wrong; PDw with bright fluid are T2w to the eye, those with dark fluid FLAIR.
_MISTAKEN = {
    'T1w': ('T2w', 'FLAIR', 'PDw'),
    'T2w': ('T1w', 'FLAIR'),
    'FLAIR': ('T1w', 'T2w'),
    'PDw': ('T1w',),
}
#: Scanners of each of them.
_OTHER_SCANNERS = 200
#: Contrasts whose fluid is not dark.
_BRIGHT_FLUID = ('T2w', 'PDw')
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
    parameters
        Repetition, echo and inversion time (s; 0 without inversion), flip angle (degrees) and field (T), shape (P, 5).
    """

    signal: Tensor
    slope: Tensor
    transmit: Tensor
    receive: Tensor
    snr: Tensor
    voxel: Tensor
    parameters: Tensor

    def acquisition(self, number: int) -> dict[str, float]:
        """Return the acquisition parameters of a scanner by their BIDS names; without inversion there is no InversionTime."""
        names = ('RepetitionTime', 'EchoTime', 'InversionTime', 'FlipAngle', 'MagneticFieldStrength')
        values = self.parameters[number].tolist()
        return {name: float(value) for name, value in zip(names, values, strict=True) if value > 0}


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
        sequence, tesla = protocol.sequence, hardware.field_strength
        signal, slope = _tissue_signals(sequence, tesla)
        rows.append(
            (
                signal,
                slope,
                hardware.transmit_deviation,
                hardware.receive_strength,
                protocol.snr,
                protocol.voxel_size,
                (
                    sequence.repetition_time,
                    sequence.echo_time,
                    sequence.inversion_time,
                    sequence.flip_angle,
                    tesla,
                ),
            )
        )
    columns = [torch.as_tensor(np.array(column), dtype=torch.float32) for column in zip(*rows, strict=True)]
    return Signals(*columns)


def canonical_signals(contrast: str) -> tuple[Tensor, Tensor]:
    """Return signals and slopes of the canonical scanner at its nominal flip angle, in its units, shape (6,) each."""
    scanner = PRESETS[0]
    signal, slope = _tissue_signals(scanner.sequence(contrast), scanner.field_strength)
    middle = int(np.argmin(np.abs(_FLIPS - 1)))
    unit = CANONICAL_UNIT[contrast]
    return torch.as_tensor(signal[:, middle] / unit).float(), torch.as_tensor(slope[:, middle] / unit).float()


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


def _usual(contrast: str, fluid: float, grey: float, white: float) -> bool:
    """Say whether tissues may be of this brightness in a contrast."""
    return {
        'T1w': fluid < 0.95 * grey and grey < 0.99 * white,
        'T2w': white < 0.95 * grey and grey < 0.95 * fluid,
        'FLAIR': fluid < 0.8 * white and white < grey,
        'PDw': white < 0.97 * grey and 0.7 * white < fluid < 2.2 * white,
    }[contrast]


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
        self.brains, self.contrast, self.device = list(brains), contrast, torch.device(device)
        drawn = draw_signals(contrast, scanners, seed=seed)
        self.signals = Signals(**{name: getattr(drawn, name).to(device) for name in Signals.__annotations__})
        # Hospitals have more thick slices than a draw from all there is.
        self.thick = np.flatnonzero(drawn.voxel.amax(dim=1).numpy() > _THICK_MM)
        self.target, self.target_slope = (part.to(device) for part in canonical_signals(contrast))
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.receive, self.transmit = self._fields(64)
        self._others: dict[str, ScanSource] = {}

    def reseed(self, seed: int) -> None:
        """Start all random numbers anew."""
        self.rng = np.random.default_rng(seed)
        self.generator.manual_seed(seed)

    def draw(self) -> TrainingScan:
        """Return the next scan."""
        return self.scan(int(self.rng.integers(len(self.brains))))

    def scan(self, brain: int, scanner: int | None = None) -> TrainingScan:
        """Return a scan of one of the brains.

        Parameters
        ----------
        brain
            Its number.
        scanner
            Number of one of the scanners; drawn by default.
        """
        voxels, flat, mixture, kinds, texture = self._place(brain)
        number = scanner
        if number is None:
            number = int(self.rng.choice(self.thick if self._chance(0.3) else len(self.signals.snr)))
        jitter = self._people()
        transmit = 1 + float(self.signals.transmit[number]) * enlarge(self._field(self.transmit), flat)
        signal, white = self._signal(number, mixture, texture, transmit, jitter)
        canonical = self._canonical(mixture, texture, jitter)
        if self.contrast in _BRIGHT_FLUID:
            left = self._flow_voids(kinds, flat)
            signal, canonical = signal * left, canonical * left
        elif self.contrast == 'FLAIR' and self._chance(0.4):
            signal = signal + self._inflow(mixture, flat)
        log_receive = self._receive(number, flat, white.log())
        power = self._tone()
        clean = (signal * log_receive.exp()).abs().clamp_min(1e-6) ** power
        log_gain = power * (log_receive + white.log())
        return self._acquired(number, clean, canonical, log_gain, voxels, flat, kinds)

    def _acquired(
        self,
        number: int,
        clean: Tensor,
        canonical: Tensor,
        log_gain: Tensor,
        voxels: Tensor,
        flat: Tensor,
        kinds: Tensor,
    ) -> TrainingScan:
        """Return what a scanner makes of an image without noise: measured, in a mask that was found."""
        values = self._measure(clean, flat, number)
        given, true = self._mask(flat, kinds)
        tissue = torch.stack([kinds[0] + kinds[1], kinds[2] + kinds[3], kinds[4] + kinds[5]])
        return TrainingScan(
            values[given], clean[given], canonical[given], log_gain[given], tissue[:, given], voxels[given], true[given]
        )  # fmt: skip

    def draw_strange(self) -> TrainingScan:
        """Return something that is no scan of this contrast, for a network to learn what it does not know.

        A quarter are brains whose tissues have any brightness but the right order, a quarter scans of other contrasts, a quarter
        brains that lie wrongly, hold noise or are inverted, a quarter no brains at all. The truth of such a scan means nothing.
        """
        kind = int(self.rng.integers(4))
        if kind == 0:
            return self._recoloured()
        if kind == 1:
            return self._mistaken()
        return self._spoiled(self.draw()) if kind == 2 else self._phantom(self.draw())

    def _mistaken(self) -> TrainingScan:
        """Return a scan of another contrast."""
        contrast = str(self.rng.choice(_MISTAKEN[self.contrast]))
        if contrast not in self._others:
            seed = int(self.rng.integers(2**31))
            self._others[contrast] = ScanSource(
                self.brains, contrast, seed=seed, scanners=_OTHER_SCANNERS, device=str(self.device)
            )
        source = self._others[contrast]
        source.reseed(int(self.rng.integers(2**31)))
        scan = source.draw()
        return self._untrue(scan.values, _flat(scan.voxels), scan.true_mask)

    def _recoloured(self) -> TrainingScan:
        """Return a brain with tissue of any brightness, as in other contrasts, in infants or in a CT."""
        _, flat, mixture, kinds, texture = self._place(int(self.rng.integers(len(self.brains))))
        fluid, grey, white = self._colours()
        levels = torch.tensor(
            [fluid, fluid, grey, 0.5 * (grey + white), white, grey, 0.3], device=self.device
        ).float()
        values = (
            (levels @ mixture)
            * (1 + 0.02 * texture[0])
            * enlarge(self._uniform(0, 0.3) * self._noise(40.0), flat).exp()
        )
        sigma = float(np.exp(self._uniform(np.log(0.005), np.log(0.15))))
        values = values + sigma * self._normal(len(values))
        given, true = self._mask(flat, kinds)
        return self._untrue(values[given], flat[given], true[given])

    def _colours(self) -> tuple[float, float, float]:
        """Draw a brightness of fluid, grey and white matter that the contrast never has.

        Half of them are those of a scanner where grey and white matter have changed places, as before myelin is there.
        """
        if self._chance(0.5):
            number, middle = int(self.rng.integers(len(self.signals.snr))), len(_FLIPS) // 2
            fluid, grey, white = (
                float(abs(self.signals.signal[number, tissue, middle])) for tissue in (0, 2, 4)
            )
            grey = white + self._uniform(0.2, 1) * (white - grey)
            brightest = max(fluid, grey, white)
            if grey > 0 and not _usual(self.contrast, fluid, grey, white):
                return fluid / brightest, grey / brightest, white / brightest
        while True:
            fluid, grey, white = (float(level) for level in self.rng.uniform(0.05, 1, 3))
            if not _usual(self.contrast, fluid, grey, white):
                return fluid, grey, white

    def _spoiled(self, scan: TrainingScan) -> TrainingScan:
        """Return a scan upside down, back to front (the least obvious, so more of them), inverted, or with noise in place of tissue."""
        kind = str(self.rng.choice(['inverted', 'noise', *(2 * ['back to front']), *(2 * ['upside down'])]))
        values, voxels = scan.values, scan.voxels
        if kind == 'inverted':
            values = values.max() - values
        elif kind == 'noise':
            values = 1 + self._uniform(0.02, 0.5) * self._normal(len(values))
        else:
            axis = 1 if kind == 'back to front' else 2
            voxels = voxels.clone()
            voxels[:, axis] = SHAPE[axis] - 1 - voxels[:, axis]
        return self._untrue(values, _flat(voxels), scan.true_mask)

    def _phantom(self, scan: TrainingScan) -> TrainingScan:
        """Return bodies of even brightness, in the shape of the brain or of an ellipsoid."""
        grids = torch.meshgrid(*(torch.linspace(-1, 1, n, device=self.device) for n in SHAPE), indexing='ij')
        image = torch.full(SHAPE, self._uniform(0.1, 1), device=self.device)
        for _ in range(int(self.rng.integers(1, 12))):
            centre, radii = self.rng.uniform(-0.6, 0.6, 3), self.rng.uniform(0.08, 0.6, 3)
            away = sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii, strict=True))
            image[away < 1] = self._uniform(0.1, 1)
        image = image + self._uniform(0.01, 0.1) * self._normal(*SHAPE)
        if self._chance(0.5):
            flat = _flat(scan.voxels)
        else:
            radii = self.rng.uniform(0.5, 0.85, 3)
            flat = (sum((g / r) ** 2 for g, r in zip(grids, radii, strict=True)) < 1).view(-1).nonzero()[:, 0]
        return self._untrue(image.view(-1)[flat], flat, torch.ones_like(flat, dtype=torch.bool))

    def _untrue(self, values: Tensor, flat: Tensor, true: Tensor) -> TrainingScan:
        voxels = torch.stack(
            [flat // (SHAPE[1] * SHAPE[2]), flat // SHAPE[2] % SHAPE[1], flat % SHAPE[2]], dim=1
        )
        nothing = torch.zeros_like(values)
        return TrainingScan(values, values, nothing, nothing, nothing.expand(3, -1), voxels, true)

    # --- Drawing ---

    def _uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def _chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def _fields(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw receive fields (logarithms) and transmit fields (differences from 1) of strength 1, on the coarse grid."""
        x, y, z = (int(n * SIZE_MM / _COARSE_MM) for n in SHAPE)
        spacing = (_COARSE_MM, _COARSE_MM, _COARSE_MM)
        generator = torch.Generator().manual_seed(int(self.rng.integers(2**62)))
        receive = [
            artefacts.receive_field((x, y, z), spacing, coils=int(n), strength=1.0, generator=generator).log()
            for n in self.rng.choice((1, 4, 8, 12, 20, 32, 64), count)
        ]
        transmit = [
            artefacts.transmit_field((x, y, z), spacing, deviation=0.9, generator=generator).sub(1) / 0.9
            for _ in range(count)
        ]
        return torch.stack(receive).to(self.device), torch.stack(transmit).to(self.device)

    def _field(self, bank: Tensor) -> Tensor:
        """Return one of the fields, mirrored at random, on the coarse grid."""
        field = bank[int(self.rng.integers(len(bank)))]
        return field.flip(0) if self._chance(0.5) else field

    def _noise(self, sigma_mm: float) -> Tensor:
        """Return smooth noise of a standard deviation near 1 on the coarse grid."""
        noise = 1.5 * self._normal(1, 1, *(max(3, round(n * SIZE_MM / sigma_mm)) + 2 for n in SHAPE))
        size = tuple(self.receive.shape[1:])
        return functional.interpolate(noise, size=size, mode='trilinear', align_corners=False)[0, 0]

    def _place(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Put a brain into the field of view, mirrored or not.

        Returns positions of its voxels, shape (N, 3), and as one index; what contributes to the signal, where sulci hold more or
        less membranes, and the tissues themselves, shape (7, N); the texture, shape (2, N).
        """
        brain = self.brains[number]
        voxels = torch.from_numpy(np.argwhere(brain.inside)).to(self.device)
        if self._chance(0.5):
            voxels[:, 0] = brain.inside.shape[0] - 1 - voxels[:, 0]
        room = [n - m for n, m in zip(SHAPE, brain.inside.shape, strict=True)]
        start = [int(r // 2 + self.rng.integers(-4, 5)) for r in room]
        voxels += torch.tensor(start, device=self.device)
        fits = ((voxels >= 0) & (voxels < torch.tensor(SHAPE, device=self.device))).all(dim=1)
        kinds = torch.from_numpy(brain.fractions).to(self.device).float() / 255
        texture = torch.from_numpy(brain.texture).to(self.device).float() * _TEXTURE_STEP
        if not bool(fits.all()):
            voxels, kinds, texture = voxels[fits], kinds[:, fits], texture[:, fits]
        flat = _flat(voxels)
        mixture = kinds.clone()
        membranes = self._uniform(0, 0.45) * kinds[1]
        mixture[2] += membranes
        mixture[1] -= membranes
        myelin = self._uniform(0, 0.5) * kinds[3]  # a thalamus lies between grey and white matter
        mixture[4] += myelin
        mixture[3] -= myelin
        spared = self._uniform(0, 0.6) * kinds[5]  # a lesion loses more or less of its myelin
        mixture[4] += spared
        mixture[5] -= spared
        # Myelin and iron differ over the brain.
        texture[0] += self._uniform(0, 0.4) * enlarge(self._noise(30.0), flat)
        return voxels, flat, mixture, kinds, texture

    def _people(self) -> Tensor:
        """Return relative differences of T1 and proton density of each tissue of this person, shape (6, 2)."""
        return self._normal(len(_LIKE), 2) * torch.tensor(_RELAXATION_SPREAD, device=self.device)

    def _canonical(self, mixture: Tensor, texture: Tensor, jitter: Tensor) -> Tensor:
        table = self.target * (1 + jitter[:, 1]) + self.target_slope * jitter[:, 0]
        image = table @ mixture[: len(_LIKE)]
        return (image + self._textured(self.target, self.target_slope, mixture, texture)).abs()

    def _textured(self, signal: Tensor, slope: Tensor, mixture: Tensor, texture: Tensor) -> Tensor:
        """Return what texture adds; signal and slope of shape (6,)."""
        spread = torch.tensor([TEXTURE.get(name, (0.0, 0.0)) for name in _LIKE.values()], device=self.device)
        by_t1 = (slope * spread[:, 0]) @ mixture[: len(_LIKE)]
        by_pd = (signal * spread[:, 1]) @ mixture[: len(_LIKE)]
        return by_t1 * texture[0] + by_pd * texture[1]

    def _signal(
        self, number: int, mixture: Tensor, texture: Tensor, transmit: Tensor, jitter: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the signal, and how the transmit field changes white matter, relative to a perfect one; shape (N,) each."""
        signal, slope = self.signals.signal[number], self.signals.slope[number]
        # Beyond the physics: tissues that no equation foresees.
        odd = 1 + 0.03 * self._normal(len(_LIKE), 1)
        odd[3] += self._uniform(*_DEEP_GREY[self.contrast])
        table = odd * (signal * (1 + jitter[:, 1:]) + slope * jitter[:, :1])
        if self._chance(0.4):  # flow and pulsation: fluid is seldom as dark, or as bright, as it should be
            if self.contrast in _BRIGHT_FLUID:
                table[:2] *= self._uniform(0.4, 1.1)
            else:
                table[:2] += self._uniform(0, _FLUID_LEFT[self.contrast])
        fine = functional.interpolate(
            torch.cat([table, signal[4:5].abs()])[None], size=_LEVELS, mode='linear', align_corners=True
        )[0]
        place = (transmit - _FLIPS[0]) / (_FLIPS[-1] - _FLIPS[0]) * (_LEVELS - 1)
        level = place.round().clamp(0, _LEVELS - 1).long()
        image = mixture[len(_LIKE)] * self._uniform(0, 1.2)
        for index in range(len(_LIKE)):
            image += mixture[index] * fine[index][level]
        middle = len(_FLIPS) // 2
        image += self._textured(signal[:, middle], slope[:, middle], mixture, texture)
        return image, fine[-1][level].clamp_min(0.05)

    def _flow_voids(self, kinds: Tensor, flat: Tensor) -> Tensor:
        """Return what is left of the signal where blood flows and membranes lie: spots at the surface and in sulci, shape (N,)."""
        spots = enlarge(self._normal(*(n // 2 for n in SHAPE)), flat)
        dark = torch.sigmoid(6 * (spots - self._uniform(0.3, 1.5))) * self._uniform(0.5, 1)
        return 1 - dark * (kinds[1] + kinds[6]).clamp(max=1)

    def _inflow(self, mixture: Tensor, flat: Tensor) -> Tensor:
        """Return the signal of fluid that flowed in after the inversion, bright in some cisterns and ventricles, shape (N,)."""
        places = enlarge(self._noise(self._uniform(20, 40)), flat).clamp_min(0)
        return self._uniform(0, 0.6) * places * (mixture[0] + mixture[1])

    def _receive(self, number: int, flat: Tensor, log_white: Tensor) -> Tensor:
        """Return the logarithm of the receive field; more than half of all scans were corrected before."""
        receive = float(self.signals.receive[number]) * self._field(self.receive)
        rough = self._noise(self._uniform(20, 50)) * self._uniform(0, 0.06)
        if self._chance(0.6):  # what a bias correction leaves of all that is smooth
            left = self._uniform(-0.1, 0.35)
            return enlarge(left * receive + rough, flat) - (1 - left) * log_white
        return enlarge(receive + rough, flat)

    def _tone(self) -> float:
        """Return the power that intensities are taken to: 1, or what some pipelines make of it."""
        return float(np.exp(self.rng.normal(0, 0.15))) if self._chance(0.3) else 1.0

    def _measure(self, clean: Tensor, flat: Tensor, number: int) -> Tensor:
        """Blur, add noise and round; noise is that of voxels averaged to 2 mm."""
        voxel = self.signals.voxel[number].tolist()
        values = self._blurred(clean, flat, voxel)
        averaged = max(1.0, SIZE_MM**3 / float(np.prod(voxel))) ** 0.5
        sigma = 1 / (float(self.signals.snr[number]) * averaged)
        if self._chance(0.15):
            sigma *= self._uniform(1, 3)
        real, imaginary = values + sigma * self._normal(len(values)), sigma * self._normal(len(values))
        values = (real**2 + imaginary**2).sqrt()
        if self._chance(0.15):  # bright ends cut off
            values = values.clamp(max=float(torch.quantile(values[::7], self._uniform(0.97, 0.999))))
        if self._chance(0.15):  # few grey values
            step = float(values.max()) / self._uniform(60, 255)
            values = torch.round(values / step) * step
        return values

    def _blurred(self, clean: Tensor, flat: Tensor, voxel: Sequence[float]) -> Tensor:
        """Average over thick voxels, and over the point spread of some others."""
        image, weight = (torch.zeros(SHAPE, device=self.device) for _ in range(2))
        image.view(-1)[flat], weight.view(-1)[flat] = clean, torch.ones_like(clean)
        changed = False
        for axis, size in enumerate(voxel):
            if size > SIZE_MM * 1.2:
                phase = self._uniform(0, 1)
                image, weight = (_thick(part, size, axis, phase) for part in (image, weight))
            elif self._chance(0.3):
                image, weight = (_blur(part, axis) for part in (image, weight))
            else:
                continue
            changed = True
        return image.view(-1)[flat] / weight.view(-1)[flat].clamp_min(0.05) if changed else clean

    def _mask(self, flat: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Return which voxels a mask as brain extraction might give it holds, and which are brain; shape (N,) each."""
        brain = kinds[:6].sum(dim=0)
        true = brain >= 0.5
        draw = self.rng.random()
        if draw < 0.15:  # fluid at the surface is lost
            tissue = kinds[2:6].sum(dim=0) + kinds[0] + (0.3 * kinds[1] if self._chance(0.5) else 0)
            return tissue > self._uniform(0.3, 0.6), true
        if draw < 0.55:
            whole = torch.zeros(SHAPE, dtype=torch.bool, device=self.device)
            whole.view(-1)[flat] = true
            whole = _grow(whole) if draw < 0.35 else ~_grow(~whole)
            return whole.view(-1)[flat], true
        return brain + self._uniform(0, 0.25) * enlarge(self._noise(12.0), flat) >= 0.5, true


def enlarge(field: Tensor, flat: Tensor) -> Tensor:
    """Interpolate a coarse field to the field of view and return it at voxels."""
    whole = functional.interpolate(field[None, None], size=SHAPE, mode='trilinear', align_corners=False)
    return whole.view(-1)[flat]


def _flat(voxels: Tensor) -> Tensor:
    """Return places in the field of view, shape (N, 3), as one index, shape (N,)."""
    return (voxels[:, 0] * SHAPE[1] + voxels[:, 1]) * SHAPE[2] + voxels[:, 2]


def _grow(mask: Tensor) -> Tensor:
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
