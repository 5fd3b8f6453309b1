"""The MR signal equations of the sequences that make T1w, T2w, FLAIR and PDw images.

Times are in seconds, angles in degrees, signals in units of the fully relaxed magnetization of pure water.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError
from bidsharm.simulation.anatomy import TISSUES
from bidsharm.simulation.relaxation import Relaxation, relaxation

#: Share of the signal of white matter that multi-slice fast spin echoes lose to magnetization transfer: 0.19 to 0.21 in vivo
#: (PMC7053148). Other tissues lose in proportion to their bound protons.
TRANSFER_LOSS = 0.2
_WHITE_MATTER_BOUND = 11.2 / 111

#: A number, or one for each voxel.
Scale = float | NDArray[np.float64]


@dataclass(frozen=True)
class PulseSequence:
    """One imaging sequence.

    Parameters
    ----------
    contrast
        BIDS suffix of its images: ``T1w``, ``T2w``, ``FLAIR`` or ``PDw``.
    kind
        ``MPRAGE``, spoiled gradient echo (``SPGR``), spin echo (``SE``), fast spin echo (``FSE``), or one of these two
        after an inversion (``IRSE``, ``IRFSE``): FLAIR, when the inversion time nulls the fluid.
    repetition_time, echo_time, inversion_time
        Seconds. For an MPRAGE the repetition time is from inversion to inversion, and the inversion time
        runs to the middle of the train of excitations, where the centre of k-space is taken. For fast spin echoes
        the echo time is the effective one.
    flip_angle
        Degrees; 90 for spin echoes.
    echo_spacing, excitations
        Interval of the excitations of an MPRAGE (seconds) and their number per inversion; for fast spin echoes,
        interval of the echoes and their number per excitation.
    """

    contrast: str
    kind: Literal['MPRAGE', 'SPGR', 'SE', 'IRSE', 'FSE', 'IRFSE']
    repetition_time: float
    echo_time: float
    flip_angle: float = 90.0
    inversion_time: float = 0.0
    echo_spacing: float = 0.0
    excitations: int = 0

    def signal(self, tissue: Relaxation, *, b1: Scale = 1.0) -> Scale:
        """Return the signed signal of a tissue (negative while inverted).

        Parameters
        ----------
        tissue
            Relaxation times and proton density.
        b1
            Factor on the flip angles, a number or an array: what the transmit field does. Inversions are taken as
            adiabatic and stay whole.
        """
        tr, te, ti, flip = self.repetition_time, self.echo_time, self.inversion_time, b1 * self.flip_angle
        if self.kind == 'MPRAGE':
            return mprage_signal(
                tissue,
                tr=tr,
                te=te,
                ti=ti,
                flip=flip,
                echo_spacing=self.echo_spacing,
                excitations=self.excitations,
            )
        if self.kind == 'SPGR':
            return spoiled_gradient_echo_signal(tissue, tr=tr, te=te, flip=flip)
        refocused = np.sin(np.deg2rad(flip)) * np.sin(np.deg2rad(b1 * 90.0)) ** 2
        if self.kind in ('FSE', 'IRFSE'):
            train = self.echo_spacing * self.excitations
            refocused = refocused * (1 - TRANSFER_LOSS * tissue.bound / _WHITE_MATTER_BOUND)
            return refocused * fast_spin_echo_signal(tissue, tr=tr, te=te, ti=ti, train=train)
        plain = (
            spin_echo_signal(tissue, tr=tr, te=te)
            if self.kind == 'SE'
            else flair_signal(tissue, tr=tr, te=te, ti=ti)
        )
        return refocused * plain

    def sidecar(self) -> dict[str, Any]:
        """Return the BIDS metadata of the sequence."""
        names = {
            'MPRAGE': 'MPRAGE', 'SPGR': 'Spoiled gradient echo', 'SE': 'Spin echo', 'FSE': 'Fast spin echo',
            'IRSE': 'Inversion recovery spin echo', 'IRFSE': 'Inversion recovery fast spin echo',
        }  # fmt: skip
        content: dict[str, Any] = {
            'PulseSequenceType': names[self.kind],
            'MRAcquisitionType': '3D' if self.kind in ('MPRAGE', 'SPGR') else '2D',
            'RepetitionTime': self.repetition_time,
            'EchoTime': self.echo_time,
            'FlipAngle': self.flip_angle,
        }
        if self.inversion_time:
            content['InversionTime'] = self.inversion_time
        if self.kind == 'MPRAGE':
            content |= {'RepetitionTimeExcitation': self.echo_spacing, 'NumberShots': self.excitations}
        if self.kind in ('FSE', 'IRFSE'):
            content['EchoTrainLength'] = self.excitations
        return content


def mprage_signal(
    tissue: Relaxation, *, tr: float, te: float, ti: float, flip: Scale, echo_spacing: float, excitations: int
) -> Scale:
    """Return the signal of an MPRAGE at the centre of k-space, in the steady state over inversions.

    Inversion, recovery until the first of N spoiled excitations, the train, recovery until the next inversion
    (Mugler and Brookeman 1990, doi:10.1002/mrm.1910150117). Within the train the magnetization before an
    excitation is mapped to the next by ``m -> m cos(flip) E + 1 - E`` with ``E = exp(-echo_spacing / T1)``;
    the fixed point of the whole cycle is solved for. Inversion and spoiling are perfect.

    Parameters
    ----------
    tissue
        Relaxation times and proton density.
    tr, te, ti
        Inversion to inversion, excitation to echo, inversion to the excitation in the middle; seconds.
    flip
        Flip angle in degrees, a number or an array.
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
    return tissue.pd * np.sin(angle) * centre * np.exp(-te / tissue.t2_star)


def spoiled_gradient_echo_signal(tissue: Relaxation, *, tr: float, te: float, flip: Scale) -> Scale:
    """Return the signal of a spoiled gradient echo (SPGR, FLASH) in the steady state.

    ``PD sin(flip) (1 - E) / (1 - cos(flip) E) exp(-TE/T2*)`` with ``E = exp(-TR/T1)`` (Ernst and Anderson 1966,
    doi:10.1063/1.1719961); times in seconds, flip in degrees.
    """
    angle, recovery = np.deg2rad(flip), np.exp(-tr / tissue.t1)
    z = (1 - recovery) / (1 - np.cos(angle) * recovery)
    return tissue.pd * np.sin(angle) * z * np.exp(-te / tissue.t2_star)


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


def fast_spin_echo_signal(
    tissue: Relaxation, *, tr: float, te: float, train: float, ti: float = 0.0
) -> float:
    """Return the signal of a fast (turbo) spin echo, after an inversion where ``ti`` is not 0.

    The refocusing pulses hold the magnetization at zero until the end of the echo train, so recovery starts there:
    ``PD (1 - exp(-(TR - train)/T1)) exp(-TE/T2)``, and with an inversion
    ``PD (1 - 2 exp(-TI/T1) + exp(-(TR - train)/T1)) exp(-TE/T2)``. Stimulated echoes, which lengthen T2 when
    refocusing is imperfect, are left out.

    Parameters
    ----------
    tissue
        Relaxation times and proton density.
    tr, te, ti
        Repetition, effective echo and inversion time in seconds.
    train
        Length of the echo train in seconds.

    Raises
    ------
    UsageError
        If train and inversion time do not fit into the repetition time.
    """
    if train < te or ti + train > tr:
        raise UsageError(
            'The echo train does not fit.',
            where=f'fast spin echo with TR {tr:g} s, TE {te:g} s, train {train:g} s',
        )
    recovered = np.exp(-(tr - train) / tissue.t1)
    z = 1 - 2 * np.exp(-ti / tissue.t1) + recovered if ti else 1 - recovered
    return float(tissue.pd * z * np.exp(-te / tissue.t2))


def tissue_signals(sequence: PulseSequence, field_strength: float) -> NDArray[np.float64]:
    """Return the signed signal of every tissue of :data:`~bidsharm.simulation.anatomy.TISSUES`.

    Raises
    ------
    UsageError
        If there are no relaxation times for this field strength (tesla).
    """
    return np.array([sequence.signal(relaxation(name, field_strength)) for name in TISSUES])
