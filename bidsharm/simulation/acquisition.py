"""A scan: tissue signals under the fields of a scanner, then everything that happens to them on the way to a file.

Torch does the work, where its tensors are, so that the writer of data sets and a source of training data share the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bidsharm.simulation import artefacts
from bidsharm.simulation.anatomy import TISSUES, Anatomy, Float32, Float64
from bidsharm.simulation.physics import PulseSequence
from bidsharm.simulation.protocols import STORAGE_TOP, Hardware, Protocol, Scanner
from bidsharm.simulation.relaxation import Relaxation, relaxation

#: Relative standard deviation of T1 and proton density within a tissue; what is not named has no texture.
TEXTURE = {
    'GM': (0.03, 0.01), 'WM': (0.03, 0.01), 'deep GM': (0.05, 0.01), 'lesion': (0.08, 0.03), 'mass': (0.1, 0.04),
    'scalp': (0.05, 0.1), 'soft tissue': (0.05, 0.1), 'marrow': (0.05, 0.1), 'cord': (0.03, 0.01),
}  # fmt: skip

#: What is called 1 in the canonical scanner, in units of the usual white matter, such that the 90th percentile of the usual brain is near 1 in
#: every contrast, as after robust scaling (people drawn for `benchmarks/train_isotone.py`: 0.99, 1.01, 0.99, 1.01).
CANONICAL_UNIT = {'T1w': 1.0, 'T2w': 2.9, 'FLAIR': 1.1, 'PDw': 1.2}
#: Number of values of the transmit field at which signals are computed; between them they are interpolated.
_KNOTS = 9


def tissue_of_person(
    name: str, field_strength: float, factors: Mapping[str, tuple[float, float]] | None = None
) -> Relaxation:
    """Return the relaxation of a tissue of one person.

    Parameters
    ----------
    name
        One of :data:`bidsharm.simulation.anatomy.TISSUES`.
    field_strength
        Tesla.
    factors
        Factors on T1 and proton density by tissue (:attr:`bidsharm.simulation.people.Person.relaxation`).
    """
    usual = relaxation(name, field_strength)
    t1, pd = (factors or {}).get(name, (1.0, 1.0))
    return replace(usual, t1=usual.t1 * t1, pd=usual.pd * pd)


def signal_image(
    fractions: Tensor,
    sequence: PulseSequence,
    field_strength: float,
    *,
    factors: Mapping[str, tuple[float, float]] | None = None,
    texture: Tensor | None = None,
    transmit: Tensor | None = None,
) -> Tensor:
    """Return the signed signal of every voxel, before coils, gradients and noise.

    The tissues of a voxel add up with their signs, as in a receiver, so that a voxel half inverted and half not is dark.
    A small change of T1 acts through the derivative of the signal.

    Parameters
    ----------
    fractions
        Tissue fractions (T, X, Y, Z), in the order of :data:`bidsharm.simulation.anatomy.TISSUES`.
    sequence, field_strength
        What is played, and at how many tesla.
    factors
        Factors on T1 and proton density by tissue, of one person.
    texture
        Fields of T1 and proton density of standard deviation 1, (2, X, Y, Z); None for none.
    transmit
        Factor on the flip angles, (X, Y, Z); None for 1 everywhere.

    Returns
    -------
    Tensor of shape (X, Y, Z)
        In units of the fully relaxed magnetization of pure water.
    """
    image = torch.zeros_like(fractions[0])
    knots = np.array([1.0]) if transmit is None else _knots(transmit)
    for index, name in enumerate(TISSUES):
        part = fractions[index]
        if not bool(part.any()):
            continue
        tissue = tissue_of_person(name, field_strength, factors)
        signal = _at(_signals(sequence, tissue, knots), knots, transmit, part)
        spread_t1, spread_pd = TEXTURE.get(name, (0.0, 0.0))
        if texture is not None and (spread_t1 or spread_pd):
            slope = _at(_slopes(sequence, tissue, knots), knots, transmit, part)
            signal = signal * (1 + spread_pd * texture[1]) + slope * (spread_t1 * texture[0])
        image = image + part * signal
    return image


def _knots(transmit: Tensor) -> np.ndarray:
    return np.linspace(float(transmit.min()), float(transmit.max()) + 1e-6, _KNOTS)


def _signals(sequence: PulseSequence, tissue: Relaxation, knots: np.ndarray) -> np.ndarray:
    return np.array([sequence.signal(tissue, b1=float(knot)) for knot in knots], dtype=float)


def _slopes(sequence: PulseSequence, tissue: Relaxation, knots: np.ndarray, step: float = 0.01) -> np.ndarray:
    """Return the derivative of the signal by the logarithm of T1."""
    longer, shorter = (replace(tissue, t1=tissue.t1 * factor) for factor in (1 + step, 1 / (1 + step)))
    rise = _signals(sequence, longer, knots) - _signals(sequence, shorter, knots)
    return rise / (2 * np.log1p(step))


def _at(values: np.ndarray, knots: np.ndarray, transmit: Tensor | None, like: Tensor) -> Tensor:
    """Interpolate values at evenly spaced knots to the transmit field of each voxel."""
    table = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if transmit is None:
        return table[0]
    place = (transmit - float(knots[0])) / float(knots[1] - knots[0])
    lower = place.floor().clamp(0, len(knots) - 2)
    index = lower.long()
    return table[index] + (place - lower) * (table[index + 1] - table[index])


@dataclass(frozen=True)
class Scan:
    """One scan and what it shows.

    Parameters
    ----------
    stored
        Integers as the scanner stores them, (X, Y, Z).
    noiseless
        The image without transmit and receive field, frequency errors, k-space filter, motion, ghosts and noise, in stored
        numbers before rounding, (X, Y, Z), float32.
    scale
        Stored number for a signal of 1.
    """

    stored: NDArray[np.integer[Any]]
    noiseless: NDArray[np.float32]
    scale: float


def acquire(
    anatomy: Anatomy,
    scanner: Scanner,
    contrast: str,
    rng: np.random.Generator,
    *,
    factors: Mapping[str, tuple[float, float]] | None = None,
    device: str = 'cpu',
) -> Scan:
    """Scan a head that lies on the grid of the scan.

    In this order: flip angles by the transmit field, frequency errors along the readout, receive field, k-space window,
    motion, ghosts, noise, storage. What gradients do to places is part of the anatomy (:func:`gradient_error`), so that the
    truth lies where the image shows it; what frequency errors do along the readout is not: up to
    ``off_resonance / bandwidth`` voxels near the sinuses.

    Parameters
    ----------
    anatomy
        Fractions on the grid of the scan, slices already averaged.
    scanner, contrast
        Machine and protocol.
    rng
        Source of fields, motion and noise.
    factors
        Factors on T1 and proton density by tissue, of one person.
    device
        Where torch computes.

    Raises
    ------
    UsageError
        If the scanner does not have the contrast.
    """
    protocol, hardware = scanner.protocol(contrast), scanner.hardware
    generator = torch.Generator(device=device).manual_seed(int(rng.integers(2**63)))
    fractions = torch.from_numpy(anatomy.fractions).to(device)
    texture = None if anatomy.texture is None else torch.from_numpy(anatomy.texture).to(device)
    shape, spacing = _grid_of(anatomy)
    transmit = artefacts.transmit_field(
        shape, spacing, deviation=hardware.transmit_deviation, generator=generator
    )
    how: dict[str, Any] = {'factors': factors, 'texture': texture}
    ideal = signal_image(fractions, protocol.sequence, hardware.field_strength, **how).abs()
    image = signal_image(fractions, protocol.sequence, hardware.field_strength, transmit=transmit, **how)
    image = _read(image, spacing, protocol, hardware, generator)
    white = abs(float(protocol.sequence.signal(tissue_of_person('WM', hardware.field_strength))))
    image = _add_noise(image, white / protocol.snr, protocol, generator)
    scale = _scale(image, white, protocol)
    stored = artefacts.store(image, scale=scale, kind=protocol.storage, saturation=protocol.saturation)
    return Scan(stored, (ideal * scale).cpu().numpy(), scale)


def canonical_image(
    anatomy: Anatomy, contrast: str, *, factors: Mapping[str, tuple[float, float]] | None = None
) -> NDArray[np.float32]:
    """Return a head as the first of the built-in scanners would show it without any error.

    Parameters
    ----------
    anatomy
        Fractions on any grid.
    contrast
        BIDS suffix.
    factors
        Factors on T1 and proton density by tissue, of one person.

    Returns
    -------
    ndarray of shape (X, Y, Z), float32
        In units of :data:`CANONICAL_UNIT`: near 1 at the 90th percentile of the usual brain.
    """
    from bidsharm.simulation.presets import PRESETS

    scanner = PRESETS[0]
    texture = None if anatomy.texture is None else torch.from_numpy(anatomy.texture)
    sequence, field_strength = scanner.sequence(contrast), scanner.field_strength
    image = signal_image(
        torch.from_numpy(anatomy.fractions), sequence, field_strength, factors=factors, texture=texture
    )
    white = abs(float(sequence.signal(tissue_of_person('WM', field_strength))))
    return (image.abs() / (white * CANONICAL_UNIT[contrast])).numpy()


def gradient_error(
    shape: tuple[int, int, int], affine: Float64, hardware: Hardware, rng: np.random.Generator
) -> Float32 | None:
    """Return how far each voxel is from the place that it stands for, (3, X, Y, Z) in mm; None for nowhere.

    Parameters
    ----------
    shape, affine
        Grid of the scan.
    hardware
        The machine.
    rng
        Source of the coefficients; a machine has the same in all its scans.
    """
    if hardware.gradient_error == 0:
        return None
    spacing = (float(affine[0, 0]), float(affine[1, 1]), float(affine[2, 2]))
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    field = artefacts.gradient_displacement(
        shape, spacing, millimetres=hardware.gradient_error, generator=generator
    )
    return np.asarray(field.numpy(), dtype=np.float32)


def _grid_of(anatomy: Anatomy) -> tuple[artefacts.Shape, artefacts.Triple]:
    x, y, z = anatomy.fractions.shape[1:]
    sizes = np.diag(anatomy.affine)[:3]
    return (x, y, z), (float(sizes[0]), float(sizes[1]), float(sizes[2]))


def _shape(image: Tensor) -> artefacts.Shape:
    x, y, z = image.shape
    return x, y, z


def _read(
    image: Tensor,
    spacing: artefacts.Triple,
    protocol: Protocol,
    hardware: Hardware,
    generator: torch.Generator,
) -> Tensor:
    """Return the magnitude of what coils and k-space make of the signal."""
    shape = _shape(image)
    if hardware.off_resonance:
        field = artefacts.off_resonance(shape, spacing, hertz=hardware.off_resonance, generator=generator)
        image = artefacts.readout_shift(
            image, field, bandwidth_per_pixel=protocol.bandwidth, axis=protocol.readout_axis
        )
    image = image * artefacts.receive_field(
        shape, spacing, coils=hardware.receive_coils, strength=hardware.receive_strength, generator=generator
    )
    image = artefacts.kspace_window(
        image, resolution_fraction=protocol.measured_fraction, taper=protocol.taper,
        partial_fourier=protocol.partial_fourier, partial_axis=protocol.phase_axis,
        slices=protocol.slice_axis if protocol.acquisition_type == '2D' else None,
    ).abs()  # fmt: skip
    image = artefacts.motion(
        image, spacing, degrees=protocol.motion_degrees, millimetres=protocol.motion_millimetres,
        events=protocol.motion_events, axis=protocol.phase_axis, generator=generator,
    )  # fmt: skip
    return artefacts.ghosting(
        image, intensity=protocol.ghost_intensity, count=protocol.ghost_count, axis=protocol.phase_axis
    )


def _add_noise(image: Tensor, sigma: float, protocol: Protocol, generator: torch.Generator) -> Tensor:
    if protocol.acceleration > 1:
        return artefacts.add_parallel_noise(
            image, sigma=sigma, acceleration=protocol.acceleration, generator=generator
        )
    return artefacts.add_noncentral_chi(
        image, sigma=sigma, coils=protocol.combined_coils, generator=generator
    )


def _scale(image: Tensor, white: float, protocol: Protocol) -> float:
    """Return the stored number for a signal of 1."""
    if protocol.scale is not None:
        return protocol.scale / white
    clipped = min(round(protocol.saturation * image.numel()), image.numel() - 1)
    brightest = torch.topk(image.flatten(), clipped + 1).values[-1]
    return STORAGE_TOP[protocol.storage] / max(float(brightest), 1e-12)
