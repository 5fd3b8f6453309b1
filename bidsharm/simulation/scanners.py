"""Scanners to travel between: invented makers, with protocols in the range that hospitals use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bidsharm.errors import UsageError
from bidsharm.simulation.physics import PulseSequence


@dataclass(frozen=True)
class Scanner:
    """A scanner and its protocol.

    Parameters
    ----------
    label
        Letters and digits; the session label of its scans.
    manufacturer, model_name
        Invented names, written to the sidecars.
    field_strength
        Tesla.
    sequences
        One per contrast.
    snr
        Signal of white matter over the standard deviation of the noise.
    bias_strength
        Largest absolute logarithm of the coil's sensitivity.
    scale
        Value that white matter gets in the stored images.
    slice_factor
        Slice thickness over in-plane voxel size, a whole number.
    """

    label: str
    manufacturer: str
    model_name: str
    field_strength: float
    sequences: tuple[PulseSequence, ...]
    snr: float
    bias_strength: float
    scale: float
    slice_factor: int = 1

    def sequence(self, contrast: str) -> PulseSequence:
        """Return the sequence for a contrast (BIDS suffix).

        Raises
        ------
        UsageError
            If the protocol has none.
        """
        for sequence in self.sequences:
            if sequence.contrast == contrast:
                return sequence
        known = ', '.join(sequence.contrast for sequence in self.sequences)
        raise UsageError(
            f'There is no {contrast} in the protocol.', where=f'scanner {self.label}', fix=f'It has {known}.'
        )

    def sidecar(self, contrast: str) -> dict[str, Any]:
        """Return the BIDS metadata of a scan of this contrast."""
        return {
            'Modality': 'MR',
            'Manufacturer': self.manufacturer,
            'ManufacturersModelName': self.model_name,
            'MagneticFieldStrength': self.field_strength,
            **self.sequence(contrast).sidecar(),
        }


#: The built-in scanners, in the order in which they are taken.
SCANNERS: tuple[Scanner, ...] = (
    Scanner(
        label='northA',
        manufacturer='Boreal Resonance',
        model_name='Aurora 3T',
        field_strength=3.0,
        sequences=(
            PulseSequence('T1w', 'MPRAGE', 2.3, 0.003, 9.0, 0.9, echo_spacing=0.007, excitations=160),
            PulseSequence('T2w', 'SE', 6.0, 0.1),
            PulseSequence('FLAIR', 'IRSE', 9.0, 0.12, inversion_time=2.45),
        ),
        snr=40.0,
        bias_strength=0.25,
        scale=500.0,
    ),
    Scanner(
        label='southB',
        manufacturer='Austral Magnetics',
        model_name='Meridian 1.5',
        field_strength=1.5,
        sequences=(
            PulseSequence('T1w', 'MPRAGE', 1.9, 0.004, 12.0, 0.8, echo_spacing=0.009, excitations=128),
            PulseSequence('T2w', 'SE', 4.5, 0.085),
            PulseSequence('FLAIR', 'IRSE', 8.0, 0.1, inversion_time=2.35),
        ),
        snr=18.0,
        bias_strength=0.12,
        scale=1400.0,
    ),
    Scanner(
        label='eastC',
        manufacturer='Levant Imaging',
        model_name='Solstice 3',
        field_strength=3.0,
        sequences=(
            PulseSequence('T1w', 'MPRAGE', 2.5, 0.0035, 7.0, 1.1, echo_spacing=0.0075, excitations=192),
            PulseSequence('T2w', 'SE', 5.0, 0.11),
            PulseSequence('FLAIR', 'IRSE', 10.0, 0.13, inversion_time=2.55),
        ),
        snr=45.0,
        bias_strength=0.3,
        scale=220.0,
        slice_factor=2,
    ),
    Scanner(
        label='westD',
        manufacturer='Austral Magnetics',
        model_name='Meridian Plus',
        field_strength=1.5,
        sequences=(
            PulseSequence('T1w', 'MPRAGE', 2.4, 0.0036, 8.0, 1.0, echo_spacing=0.009, excitations=160),
            PulseSequence('T2w', 'SE', 5.5, 0.095),
            PulseSequence('FLAIR', 'IRSE', 9.0, 0.11, inversion_time=2.45),
        ),
        snr=25.0,
        bias_strength=0.2,
        scale=900.0,
    ),
)

#: Contrasts that every built-in scanner has.
CONTRASTS = ('T1w', 'T2w', 'FLAIR')
