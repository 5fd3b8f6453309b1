"""From tissue to image: the MR signal equations, coil bias, noise and the scale of the stored numbers.

Times are in seconds, angles in degrees, signals in units of the fully relaxed magnetization of pure water.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError
from bidsharm.simulation.anatomy import TISSUES, Anatomy

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Relaxation:
    """What the signal of a tissue depends on.

    Parameters
    ----------
    t1, t2
        Relaxation times in seconds.
    pd
        Proton density relative to pure water.
    source
        Where the numbers come from.
    """

    t1: float
    t2: float
    pd: float
    source: str


_WANSAPURA = 'T1 Wansapura 1999'
_ROONEY = 'T1 Rooney 2007'
_STANISZ = 'T2 Stanisz 2005; PD Oros-Peusquens 2019'
_CSF = Relaxation(4.31, 1.89, 1.0, 'T1, T2 of subarachnoid CSF at 3 T, PMC10696635; PD 1 by definition')
_BONE = Relaxation(0.2, 0.0005, 0.0, 'cortical bone: T2 below 1 ms, nothing left at the echo, hence PD 0')

#: Relaxation by field strength (tesla) and tissue, measured in living adults except for T2 of GM and WM
#: (bovine, in vitro), which are the ones measured at both fields by one method.
#:
#: - Wansapura et al. 1999, J Magn Reson Imaging 9:531 (3 T, in vivo)
#: - Rooney et al. 2007, Magn Reson Med 57:308 (1.5 T, in vivo)
#: - Stanisz et al. 2005, Magn Reson Med 54:507 (1.5 T and 3 T)
#: - Oros-Peusquens et al. 2019, Front Neurol 10:1333 (water content: WM 69.1 %, GM 83.7 %)
#: - de Bazelaire et al. 2004, Radiology 230:652 (subcutaneous fat at both fields)
#: - CSF: "Quantification of T1 and T2 of subarachnoid CSF", PMC10696635. T1 of CSF hardly
#:   depends on the field (Rooney 2007), so 1.5 T uses the same.
#:
#: T1 of grey matter of Stanisz 2005 at 3 T (1.82 s) is not used: an MPRAGE would null the cortex, which living
#: brains do not show.
RELAXATION: dict[float, dict[str, Relaxation]] = {
    1.5: {
        'CSF': _CSF,
        'GM': Relaxation(1.188, 0.095, 0.837, f'{_ROONEY}; {_STANISZ}'),
        'WM': Relaxation(0.656, 0.072, 0.691, f'{_ROONEY}; {_STANISZ}'),
        'meninges': _CSF,  # the fluid between brain and bone; membranes are too thin to see
        'skull': _BONE,
        'scalp': Relaxation(
            0.343, 0.058, 0.7, 'fat, de Bazelaire 2004; PD assumed, skin being darker than fat'
        ),
    },
    3.0: {
        'CSF': _CSF,
        'GM': Relaxation(1.331, 0.099, 0.837, f'{_WANSAPURA}; {_STANISZ}'),
        'WM': Relaxation(0.832, 0.069, 0.691, f'{_WANSAPURA}; {_STANISZ}'),
        'meninges': _CSF,
        'skull': _BONE,
        'scalp': Relaxation(
            0.382, 0.068, 0.7, 'fat, de Bazelaire 2004; PD assumed, skin being darker than fat'
        ),
    },
}


@dataclass(frozen=True)
class PulseSequence:
    """One imaging sequence.

    Parameters
    ----------
    contrast
        BIDS suffix of its images: ``T1w``, ``T2w``, ``FLAIR`` or ``PDw``.
    kind
        ``MPRAGE``, spin echo (``SE``) or inversion recovery spin echo (``IRSE``).
    repetition_time, echo_time, inversion_time
        Seconds. For an MPRAGE the repetition time is from inversion to inversion, and the inversion time
        runs to the middle of the train of excitations, where the centre of k-space is taken.
    flip_angle
        Degrees; 90 for spin echoes.
    echo_spacing, excitations
        Interval of the excitations of an MPRAGE (seconds) and their number per inversion.
    """

    contrast: str
    kind: Literal['MPRAGE', 'SE', 'IRSE']
    repetition_time: float
    echo_time: float
    flip_angle: float = 90.0
    inversion_time: float = 0.0
    echo_spacing: float = 0.0
    excitations: int = 0

    def signal(self, tissue: Relaxation) -> float:
        """Return the signed signal of a tissue (negative while inverted)."""
        if self.kind == 'MPRAGE':
            return mprage_signal(
                tissue,
                tr=self.repetition_time,
                te=self.echo_time,
                ti=self.inversion_time,
                flip=self.flip_angle,
                echo_spacing=self.echo_spacing,
                excitations=self.excitations,
            )
        if self.kind == 'SE':
            return spin_echo_signal(tissue, tr=self.repetition_time, te=self.echo_time)
        return flair_signal(tissue, tr=self.repetition_time, te=self.echo_time, ti=self.inversion_time)

    def sidecar(self) -> dict[str, Any]:
        """Return the BIDS metadata of the sequence."""
        names = {'MPRAGE': 'MPRAGE', 'SE': 'Spin echo', 'IRSE': 'Inversion recovery spin echo'}
        content: dict[str, Any] = {
            'PulseSequenceType': names[self.kind],
            'MRAcquisitionType': '3D' if self.kind == 'MPRAGE' else '2D',
            'RepetitionTime': self.repetition_time,
            'EchoTime': self.echo_time,
            'FlipAngle': self.flip_angle,
        }
        if self.kind != 'SE':
            content['InversionTime'] = self.inversion_time
        if self.kind == 'MPRAGE':
            content |= {'RepetitionTimeExcitation': self.echo_spacing, 'NumberShots': self.excitations}
        return content


def mprage_signal(
    tissue: Relaxation, *, tr: float, te: float, ti: float, flip: float, echo_spacing: float, excitations: int
) -> float:
    """Return the signal of an MPRAGE at the centre of k-space, in the steady state over inversions.

    Inversion, recovery until the first of N spoiled excitations, the train, recovery until the next inversion
    (Mugler and Brookeman 1990, doi:10.1002/mrm.1910150117). Within the train the magnetization before an
    excitation is mapped to the next by ``m -> m cos(flip) E + 1 - E`` with ``E = exp(-echo_spacing / T1)``;
    the fixed point of the whole cycle is solved for. Inversion and spoiling are perfect. T2 stands for T2*,
    which changes the ratio of GM to WM by a percent at an echo time of 3 ms.

    Parameters
    ----------
    tissue
        Relaxation times and proton density.
    tr, te, ti
        Inversion to inversion, excitation to echo, inversion to the excitation in the middle; seconds.
    flip
        Flip angle in degrees.
    echo_spacing, excitations
        Interval of the excitations in seconds, and their number N per inversion.

    Raises
    ------
    UsageError
        If the train does not fit between the inversions, or there is none.
    """
    if excitations < 1 or echo_spacing <= 0:
        raise UsageError(
            'An MPRAGE needs excitations, and time between them.', where='echo_spacing, excitations'
        )
    before = ti - excitations / 2 * echo_spacing
    after = tr - before - excitations * echo_spacing
    if before < 0 or after < 0:
        raise UsageError(
            'The excitations do not fit between two inversions.',
            where=f'MPRAGE with TR {tr:g} s, TI {ti:g} s, {excitations} x {echo_spacing:g} s',
        )
    angle = np.deg2rad(flip)
    recovery = np.exp(-echo_spacing / tissue.t1)
    decay = np.cos(angle) * recovery
    driven = (1 - recovery) / (1 - decay)  # where endless excitations would drive it
    first, last = np.exp(-before / tissue.t1), np.exp(-after / tissue.t1)
    train = decay**excitations
    # At the inversion: z = 1 - last + last (driven (1 - train) + train m), at the first excitation m = 1 - (1 + z) first.
    z = (1 - last + last * (driven * (1 - train) + train * (1 - first))) / (1 + last * train * first)
    m = 1 - (1 + z) * first
    centre = driven + (m - driven) * decay ** (excitations / 2)
    return float(tissue.pd * np.sin(angle) * centre * np.exp(-te / tissue.t2))


def spin_echo_signal(tissue: Relaxation, *, tr: float, te: float) -> float:
    """Return the signal of a 90-180 spin echo: PD-weighted for a short echo time, T2-weighted for a long one.

    ``PD (1 - 2 exp(-(TR - TE/2)/T1) + exp(-TR/T1)) exp(-TE/T2)``; times in seconds.
    """
    z = 1 - 2 * np.exp(-(tr - te / 2) / tissue.t1) + np.exp(-tr / tissue.t1)
    return float(tissue.pd * z * np.exp(-te / tissue.t2))


def flair_signal(tissue: Relaxation, *, tr: float, te: float, ti: float) -> float:
    """Return the signal of a 180-90-180 inversion recovery spin echo (FLAIR, when TI nulls the fluid).

    ``PD (1 - 2 exp(-TI/T1) + 2 exp(-(TR - TE/2)/T1) - exp(-TR/T1)) exp(-TE/T2)``; times in seconds.
    """
    z = 1 - 2 * np.exp(-ti / tissue.t1) + 2 * np.exp(-(tr - te / 2) / tissue.t1) - np.exp(-tr / tissue.t1)
    return float(tissue.pd * z * np.exp(-te / tissue.t2))


def tissue_signals(sequence: PulseSequence, field_strength: float) -> NDArray[np.float64]:
    """Return the signed signal of every tissue of :data:`~bidsharm.simulation.anatomy.TISSUES`.

    Raises
    ------
    UsageError
        If there are no relaxation times for this field strength (tesla).
    """
    if field_strength not in RELAXATION:
        known = ', '.join(f'{field:g}' for field in RELAXATION)
        raise UsageError(
            f'No relaxation times are known at {field_strength:g} T.',
            where='field_strength',
            fix=f'Use {known} T.',
        )
    table = RELAXATION[field_strength]
    return np.array([sequence.signal(table[name]) for name in TISSUES])


def ideal_image(
    anatomy: Anatomy, sequence: PulseSequence, field_strength: float, white_matter: float
) -> Volume:
    """Return the image without noise and without bias.

    The tissues of a voxel add up with their signs before the magnitude is taken, as in a receiver; so a
    voxel half inverted and half not is dark.

    Parameters
    ----------
    anatomy
        Tissue fractions.
    sequence, field_strength
        What is played, and at how many tesla.
    white_matter
        Value that pure white matter gets: the scale of the stored numbers.

    Returns
    -------
    ndarray of shape (X, Y, Z), float32, not negative
    """
    signals = tissue_signals(sequence, field_strength)
    gain = white_matter / abs(signals[TISSUES.index('WM')])
    return np.abs(np.tensordot((gain * signals).astype(np.float32), anatomy.fractions, axes=1))


def bias_field(shape: tuple[int, int, int], strength: float, rng: np.random.Generator) -> Volume:
    """Draw a smooth multiplicative field: the sensitivity of the receive coil.

    Parameters
    ----------
    shape
        Shape of the image; the field spans it whatever the voxel size.
    strength
        Largest absolute logarithm: the field lies in [exp(-strength), exp(strength)], and is 1 for 0.
    rng
        Source of the coefficients of a polynomial of degree 3.
    """
    degrees = np.add.outer(np.add.outer(np.arange(4), np.arange(4)), np.arange(4))
    weights = rng.standard_normal((4, 4, 4)) * np.where(
        (degrees > 0) & (degrees <= 3), 1 / np.maximum(degrees, 1), 0
    )
    x, y, z = (np.linspace(-1, 1, size) for size in shape)
    field = np.polynomial.legendre.leggrid3d(x, y, z, weights)
    return np.exp(strength * field / np.abs(field).max()).astype(np.float32)


def add_noise(image: Volume, sigma: float, rng: np.random.Generator) -> Volume:
    """Return the magnitude of an image with complex Gaussian noise: Rician (Gudbjartsson and Patz 1995).

    Parameters
    ----------
    image
        Noise-free magnitude, any shape.
    sigma
        Standard deviation of the real and of the imaginary noise, in units of the image; 0 adds nothing.
    rng
        Source of the noise.
    """
    if sigma == 0:
        return image
    real = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32))


def quantize(image: Volume) -> NDArray[np.int16]:
    """Round to the 16-bit integers that scanners store; values beyond them are clipped."""
    return np.clip(np.rint(image), 0, np.iinfo(np.int16).max).astype(np.int16)


def acquire(
    ideal: Volume, *, bias_strength: float, snr: float, white_matter: float, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Return the stored scan: bias from the coil, then noise from the receiver, then rounding.

    Parameters
    ----------
    ideal
        Image without noise and bias, from :func:`ideal_image`.
    bias_strength
        See :func:`bias_field`.
    snr
        Signal of pure white matter without bias over the standard deviation of the noise; infinite for none.
    white_matter
        Value of pure white matter in ``ideal``.
    rng
        Source of bias and noise.
    """
    x, y, z = ideal.shape
    biased = ideal * bias_field((x, y, z), bias_strength, rng)
    return quantize(add_noise(biased, white_matter / snr, rng))
