"""Scanners to travel between: the machine, what it plays for each contrast, how they are read, and how they are drawn.

A :class:`Scanner` says everything that :mod:`~bidsharm.simulation.physics` and :mod:`~bidsharm.simulation.artefacts`
ask for. Built-in ones are in :mod:`~bidsharm.simulation.presets`, :func:`read_scanners` reads others from a file, and
:func:`draw_scanner` draws one at random, to train on.

Times are in seconds, angles in degrees, lengths in millimetres, field strengths in tesla, frequencies in hertz. Axes
0, 1 and 2 point to the right, to the front and up.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from bidsharm.errors import UsageError
from bidsharm.files import parse_json, parse_toml, read_text
from bidsharm.settings import CONTRASTS, check_keys, reason
from bidsharm.simulation.physics import PulseSequence, tissue_signals
from bidsharm.simulation.relaxation import FIELD_RANGE, relaxation

Triple = tuple[float, float, float]
_Limits = Mapping[str, tuple[float, float]]
_T = TypeVar('_T')

#: What a field may be; wider than anything sensible, to catch slips and wrong units (milliseconds) in files.
HARDWARE_LIMITS: _Limits = {
    'field_strength': FIELD_RANGE, 'receive_coils': (1, 128), 'receive_strength': (0, 1.5),
    'transmit_deviation': (0, 0.9), 'gradient_error': (0, 20), 'off_resonance': (0, 1000),
}  # fmt: skip
#: The same for a protocol.
PROTOCOL_LIMITS: _Limits = {
    'voxel_size': (0.2, 20), 'field_of_view': (50, 600), 'slice_axis': (0, 2), 'slice_factor': (1, 100),
    'slice_gap': (0, 100), 'measured_fraction': (0.1, 1), 'taper': (0, 1), 'partial_fourier': (0.51, 1),
    'phase_axis': (0, 2), 'readout_axis': (0, 2), 'bandwidth': (10, 5000), 'acceleration': (1, 12),
    'combined_coils': (1, 128), 'snr': (1, 10_000), 'motion_degrees': (0, 45), 'motion_millimetres': (0, 50),
    'motion_events': (0, 20), 'ghost_intensity': (0, 1), 'ghost_count': (2, 32), 'scale': (1, 32767),
    'saturation': (0, 0.5),
}  # fmt: skip
#: The same for a sequence.
SEQUENCE_LIMITS: _Limits = {
    'repetition_time': (0.002, 30), 'echo_time': (0.0003, 0.8), 'flip_angle': (0.5, 180),
    'inversion_time': (0, 10), 'echo_spacing': (0, 0.1), 'excitations': (0, 1024),
}  # fmt: skip
#: Largest number of each kind of storage.
STORAGE_TOP = {'int16': 32767, 'uint8': 255, 'uint12': 4095}

# Steepest slope of the off-resonance map over its maximum (1/mm), from above: Gaussians of 22 and 16 mm.
_SLOPE = 0.05
# The steepest shift, in voxels per voxel, that the distortion can be computed for.
_STEEPEST = 0.9


# --- What a scanner is ---


@dataclass(frozen=True)
class Hardware:
    """The machine: what all its scans have in common.

    Parameters
    ----------
    field_strength
        Tesla.
    receive_coils
        Number of receive channels.
    receive_strength
        How uneven the coils receive: largest absolute logarithm of their profile in the head. About 0.1 with the
        vendor's normalization, 0.3 to 0.6 without.
    transmit_deviation
        Largest difference of the transmit field from 1, as part of the flip angle: 0.05 to 0.1 at 1.5 T, 0.2 at
        3 T, 0.4 to 0.5 at 7 T.
    gradient_error
        Longest displacement (mm) in the field of view that gradients leave after correction.
    off_resonance
        Largest frequency error (Hz), which is near the sinuses; in proportion to the field.

    Raises
    ------
    UsageError
        If a value lies beyond :data:`HARDWARE_LIMITS`.
    """

    field_strength: float
    receive_coils: int = 1
    receive_strength: float = 0.0
    transmit_deviation: float = 0.0
    gradient_error: float = 0.0
    off_resonance: float = 0.0

    def __post_init__(self) -> None:
        _check_limits(self, HARDWARE_LIMITS)


@dataclass(frozen=True)
class Protocol:
    """How one contrast is scanned and stored.

    The anatomy is sampled in planes; ``slice_factor`` planes make a slice, and ``slice_gap`` planes between two
    slices are not measured (see :func:`~bidsharm.simulation.artefacts.slice_profile`).

    Parameters
    ----------
    sequence
        Contrast and timing. The echo time of a train with variable flip angles is the one of equal contrast.
    voxel_size
        Of the stored grid along x, y and z (mm); along the slice axis from slice to slice.
    source
        Where the numbers come from.
    field_of_view
        Millimetres along x, y and z, or None for the whole head.
    acquisition_type
        Slices one by one (``2D``) or a volume at once (``3D``).
    slice_axis, phase_axis, readout_axis
        Slice, (first) phase-encode and readout direction.
    slice_factor, slice_gap
        Planes per slice, and planes between two slices.
    measured_fraction
        Measured part of k-space along x, y and z, in (0, 1]; the rest is filled with zeros.
    taper
        Part of the measured extent over which the k-space filter falls, in [0, 1].
    partial_fourier
        Measured part of the lines of the phase axis, in (0.5, 1].
    bandwidth
        Hertz per voxel of the readout.
    acceleration
        Reduction factor of parallel imaging, 1 for none.
    combined_coils
        Number of coils whose magnitudes are combined, which makes the noise noncentral chi; 1 for Rician noise.
    snr
        Signal of white matter over the standard deviation of the noise at the isocentre, before acceleration.
    motion_degrees, motion_millimetres, motion_events
        Largest rotation and translation of the head, and how often it moves during the scan.
    ghost_intensity, ghost_count
        Lost part of the amplitude of every ``ghost_count``-th line; 0 for no ghosts.
    storage
        ``int16``, ``uint8`` or twelve bits (``uint12``).
    scale
        Stored number of white matter, or None where the brightest voxel gets the largest number there is.
    saturation
        Part of all voxels, the brightest, that are clipped.

    Raises
    ------
    UsageError
        If a value lies beyond :data:`PROTOCOL_LIMITS` or :data:`SEQUENCE_LIMITS`, or values contradict each other.
    """

    sequence: PulseSequence
    voxel_size: Triple
    source: str
    field_of_view: Triple | None = None
    acquisition_type: Literal['2D', '3D'] = '3D'
    slice_axis: int = 0
    phase_axis: int = 1
    readout_axis: int = 2
    slice_factor: int = 1
    slice_gap: int = 0
    measured_fraction: Triple = (1.0, 1.0, 1.0)
    taper: float = 0.0
    partial_fourier: float = 1.0
    bandwidth: float = 200.0
    acceleration: float = 1.0
    combined_coils: int = 1
    snr: float = 30.0
    motion_degrees: float = 0.0
    motion_millimetres: float = 0.0
    motion_events: int = 0
    ghost_intensity: float = 0.0
    ghost_count: int = 2
    storage: Literal['int16', 'uint8', 'uint12'] = 'int16'
    scale: float | None = None
    saturation: float = 0.0

    def __post_init__(self) -> None:
        _check_limits(self, PROTOCOL_LIMITS)
        _check_limits(self.sequence, SEQUENCE_LIMITS, where='sequence.')
        _check_protocol(self)

    @property
    def plane_size(self) -> Triple:
        """Voxel size (mm) of the grid before planes become slices."""
        return self._with_slice(self.voxel_size[self.slice_axis] / (self.slice_factor + self.slice_gap))

    @property
    def slice_thickness(self) -> float:
        """Thickness of a slice in mm."""
        return self.plane_size[self.slice_axis] * self.slice_factor

    def _with_slice(self, size: float) -> Triple:
        x, y, z = (size if axis == self.slice_axis else self.voxel_size[axis] for axis in range(3))
        return x, y, z

    def sidecar(self) -> dict[str, Any]:
        """Return the metadata of a scan, by the names of BIDS, or those of DICOM where BIDS has none."""
        content = self.sequence.sidecar() | {
            'MRAcquisitionType': self.acquisition_type,
            'SliceThickness': round(self.slice_thickness, 4),
            'SpacingBetweenSlices': round(self.voxel_size[self.slice_axis], 4),
            'SliceEncodingDirection': 'ijk'[self.slice_axis],
            'PhaseEncodingDirection': 'ijk'[self.phase_axis],
            'PixelBandwidth': self.bandwidth,
            'PartialFourier': self.partial_fourier,
        }
        if self.acceleration > 1:
            content['ParallelReductionFactorInPlane'] = self.acceleration
        return content


@dataclass(frozen=True)
class Scanner:
    """A scanner and its protocols.

    Parameters
    ----------
    label
        Letters and digits; the session label of its scans.
    manufacturer, model_name
        Invented names, written to the sidecars.
    hardware
        The machine.
    protocols
        One per contrast.

    Raises
    ------
    UsageError
        If the label holds anything else, a contrast is there twice, or a sequence cannot be played.
    """

    label: str
    manufacturer: str
    model_name: str
    hardware: Hardware
    protocols: tuple[Protocol, ...]

    def __post_init__(self) -> None:
        if not (self.label.isascii() and self.label.isalnum()):
            raise UsageError('A scanner label may hold letters and digits only.', where=self.label or 'label')
        if not self.protocols:
            raise UsageError('A scanner needs at least one protocol.', where=f'scanner {self.label}')
        if len(set(self.contrasts)) < len(self.contrasts):
            raise UsageError('A contrast is there twice.', where=f'scanner {self.label}')
        for protocol in self.protocols:
            where = f'scanner {self.label}, {protocol.sequence.contrast}'
            try:
                _check_playable(protocol, self.hardware)
            except UsageError as error:
                raise UsageError(error.what, where=f'{where}, {error.where}', fix=error.fix) from None

    @property
    def contrasts(self) -> tuple[str, ...]:
        """BIDS suffixes of the contrasts, in the order of the protocols."""
        return tuple(protocol.sequence.contrast for protocol in self.protocols)

    @property
    def field_strength(self) -> float:
        """Tesla."""
        return self.hardware.field_strength

    def protocol(self, contrast: str) -> Protocol:
        """Return the protocol for a contrast (BIDS suffix).

        Raises
        ------
        UsageError
            If there is none.
        """
        for protocol in self.protocols:
            if protocol.sequence.contrast == contrast:
                return protocol
        raise UsageError(
            f'There is no {contrast} in the protocol.',
            where=f'scanner {self.label}',
            fix=f'It has {", ".join(self.contrasts)}.',
        )

    def sequence(self, contrast: str) -> PulseSequence:
        """Return the sequence for a contrast (BIDS suffix).

        Raises
        ------
        UsageError
            If there is none.
        """
        return self.protocol(contrast).sequence

    def sidecar(self, contrast: str) -> dict[str, Any]:
        """Return the metadata of a scan of this contrast, safe for JSON.

        What has no name in BIDS or DICOM is under ``SimulatedAcquisition``, by the names of the fields.

        Raises
        ------
        UsageError
            If the scanner does not have this contrast.
        """
        protocol, coils = self.protocol(contrast), self.hardware.receive_coils
        more = _plain(self.hardware) | _plain(protocol) | {'echo_spacing': protocol.sequence.echo_spacing}
        return {
            'Modality': 'MR',
            'Manufacturer': self.manufacturer,
            'ManufacturersModelName': self.model_name,
            'MagneticFieldStrength': self.field_strength,
            'ReceiveCoilActiveElements': f'C1-{coils}' if coils > 1 else 'C1',
            'NumberReceiveCoilActiveElements': coils,
            **protocol.sidecar(),
            'SimulatedAcquisition': {
                ''.join(word.capitalize() for word in name.split('_')): value
                for name, value in more.items()
                if name not in _TOLD
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON or TOML; :meth:`from_dict` gives an equal scanner back."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = 'scanner') -> Scanner:
        """Build a scanner from plain values.

        Parameters
        ----------
        values
            As :meth:`to_dict` returns them; what has a default may be left out.
        where
            What to call it in errors.

        Raises
        ------
        UsageError
            If a key is unknown or missing, or a value has the wrong type or makes no sense.
        """
        return _read(cls, values, where)


#: Fields that a sidecar tells by a name of BIDS or DICOM.
_TOLD = {
    'sequence', 'field_strength', 'receive_coils', 'acquisition_type', 'slice_axis', 'phase_axis', 'bandwidth',
    'partial_fourier', 'acceleration',
}  # fmt: skip


# --- Checks ---


def _check_limits(owner: object, limits: _Limits, where: str = '') -> None:
    for name, (low, high) in limits.items():
        value = getattr(owner, name)
        for number in value if isinstance(value, tuple) else (value,):
            # "not <=" refuses NaN too
            if number is not None and not low <= number <= high:
                raise UsageError(f'{number:g} is not between {low:g} and {high:g}.', where=where + name)


def _check_protocol(protocol: Protocol) -> None:
    contrast, storage = protocol.sequence.contrast, protocol.storage
    flat = protocol.acquisition_type == '2D'
    axes = (protocol.slice_axis, protocol.phase_axis, protocol.readout_axis)
    for wrong, what, where in (
        (contrast not in CONTRASTS, f'"{contrast}" is none of {", ".join(CONTRASTS)}.', 'sequence.contrast'),
        (len(protocol.voxel_size) != 3, 'A voxel has three sizes.', 'voxel_size'),
        (len(protocol.measured_fraction) != 3, 'There is one part for each of three axes.', 'measured_fraction'),
        (protocol.readout_axis == protocol.phase_axis, 'Readout and phase axis are the same.', 'readout_axis'),
        (flat and len(set(axes)) < 3, 'The three axes of a slice must differ.', 'slice_axis'),
        (not flat and protocol.slice_gap > 0, 'A volume has no gaps.', 'slice_gap'),
        (not protocol.source, 'The source is missing.', 'source'),
        (storage not in STORAGE_TOP, f'There is no kind "{storage}".', 'storage'),
        ((protocol.scale or 0) > STORAGE_TOP.get(storage, 0), f'White matter does not fit into {storage}.', 'scale'),
        (
            protocol.acceleration > 1 and protocol.combined_coils > 1,
            'Accelerated images are made before coils are combined; their noise is Rician.',
            'combined_coils',
        ),
    ):  # fmt: skip
        if wrong:
            raise UsageError(what, where=where)


def _check_playable(protocol: Protocol, hardware: Hardware) -> None:
    """Refuse what no scanner can play: echoes after the repetition, trains that do not fit, an image that folds over."""
    sequence = protocol.sequence
    interval = sequence.echo_spacing if sequence.kind == 'MPRAGE' else sequence.repetition_time
    if not sequence.echo_time < interval:
        raise UsageError('The echo comes after the next excitation.', where='echo_time')
    if sequence.kind in ('IRSE', 'IRFSE') and not 0 < sequence.inversion_time < sequence.repetition_time:
        raise UsageError('The inversion does not fit into the repetition time.', where='inversion_time')
    signals = tissue_signals(sequence, hardware.field_strength)
    if not np.isfinite(signals).all():
        raise UsageError('The signal is not finite.', where='sequence')
    shift = hardware.off_resonance / protocol.bandwidth * protocol.voxel_size[protocol.readout_axis]
    if shift * _SLOPE > _STEEPEST:
        raise UsageError(
            'The image would fold over itself.', where='bandwidth', fix='Use a larger one, or less off-resonance.'
        )  # fmt: skip
    if max(protocol.combined_coils, protocol.acceleration) > hardware.receive_coils:
        raise UsageError('The scanner has fewer coils.', where='combined_coils, acceleration')


# --- Plain values and files ---


def _plain(value: Any) -> Any:
    """Return dictionaries, lists, text and numbers; None is left out, as TOML has none."""
    if dataclasses.is_dataclass(value):
        items = ((item.name, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {name: _plain(part) for name, part in items if part is not None}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


def _read(kind: type[_T], values: Any, where: str) -> _T:
    """Build a dataclass from plain values, strictly."""
    if not isinstance(values, Mapping):
        raise UsageError(f'A table is needed, not {values!r}.', where=where)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    check_keys(values, tuple(item.name for item in fields), where=where)
    for item in fields:
        if item.name not in values and item.default is dataclasses.MISSING:
            raise UsageError(f'"{item.name}" is missing.', where=where)
    hints = typing.get_type_hints(kind)
    converted = {key: _convert(hints[key], value, f'{where}.{key}') for key, value in values.items()}
    try:
        return kind(**converted)
    except UsageError as error:
        raise UsageError(error.what, where=f'{where}.{error.where}', fix=error.fix) from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Turn a value of JSON or TOML into the type of a field."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _read(typing.cast('type[Any]', hint), value, where)
    if origin is types.UnionType:
        return None if value is None else _convert(options[0], value, where)
    if origin is Literal:
        if value not in options:
            raise UsageError(
                f'{value!r} cannot be used.', where=where, fix=f'Choose from {", ".join(options)}.'
            )
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (options[-1] is not ... and len(value) != len(options)):
            wanted = '' if options[-1] is ... else f' of {len(options)}'
            raise UsageError(f'A list{wanted} is needed, not {value!r}.', where=where)
        return tuple(_convert(options[0], part, f'{where}[{index}]') for index, part in enumerate(value))
    wanted_types = (int, float) if hint is float else (hint,)
    if not isinstance(value, wanted_types) or isinstance(value, bool):
        raise UsageError(f'{value!r} is not of type {hint.__name__}.', where=where)
    return float(value) if hint is float else value


def read_scanners(path: Path | str) -> tuple[Scanner, ...]:
    """Read scanners from a JSON or TOML file.

    Parameters
    ----------
    path
        Ends in ``.json`` or ``.toml`` and holds a list ``scanners`` of what :meth:`Scanner.to_dict` returns; a JSON
        file may be the list itself.

    Raises
    ------
    UsageError
        If the file cannot be read, there is no scanner in it, a label is there twice, or one makes no sense.
    """
    path = Path(path)
    if path.suffix not in ('.json', '.toml'):
        raise UsageError('Scanners are read from .json and .toml files.', where=str(path))
    try:
        text = read_text(path)
        content = parse_json(text) if path.suffix == '.json' else parse_toml(text)
    except (OSError, ValueError) as error:
        raise UsageError(f'The scanners cannot be read: {reason(error)}.', where=str(path)) from None
    if isinstance(content, Mapping):
        check_keys(content, ('scanners',), where=str(path))
        content = content.get('scanners')
    if not isinstance(content, list) or not content:
        raise UsageError('There is no list of scanners.', where=str(path))
    scanners = tuple(
        Scanner.from_dict(values, where=f'{path}: scanners[{index}]') for index, values in enumerate(content)
    )
    labels = [scanner.label for scanner in scanners]
    if len(set(labels)) < len(labels):
        raise UsageError('Two scanners have the same label.', where=str(path))
    return scanners


# --- Random scanners ---


class Range(NamedTuple):
    """Where a value is drawn from.

    Parameters
    ----------
    low, high
        Borders, both included.
    unit
        Empty for plain numbers.
    why
        What the range is made of.
    log
        Whether its logarithm is uniform, and not the value.
    """

    low: float
    high: float
    unit: str
    why: str
    log: bool = False


#: What :func:`draw_scanner` draws from. Most ranges go beyond the presets, so that what is learnt from them holds for more than those.
RANGES: Mapping[str, Range] = {
    # The machine
    'field_strength': Range(0.055, 7.4, 'T', 'portable scanners to a little over 7 T; four of five are 1.5 or 3 T', log=True),
    'receive_coils': Range(1, 64, '', 'a birdcage to the largest head arrays sold', log=True),
    'receive_strength': Range(0, 0.7, '', 'normalized images to bare arrays, whose rim is twice as bright'),
    'transmit_per_tesla': Range(0, 0.08, '1/T', 'up to and a little beyond 0.2 at 3 T (Vaughan 2001)'),
    'transmit_coil': Range(0, 0.08, '', 'what the coil adds at any field'),
    'gradient_error': Range(0, 4, 'mm', 'left by correction in the corners; none to a correction not used'),
    'off_resonance_per_tesla': Range(0, 60, 'Hz/T', 'near the sinuses, with good shims to poor ones'),
    # T1w
    'echo_spacing': Range(0.005, 0.013, 's', 'MPRAGE: interval of excitations, fast and old gradients'),
    'excitations': Range(64, 260, '', 'MPRAGE: the partitions of a head, with and without partial Fourier'),
    'inversion_over_t1': Range(0.4, 1.1, 'T1 of grey matter', 'MPRAGE: TI of 0.55 to 1.5 s at 3 T'),
    'recovery': Range(0.02, 1.6, 's', 'MPRAGE: from the train to the next inversion'),
    'flip_mprage': Range(5, 16, 'degrees', 'MPRAGE: published ones are 7 to 12'),
    'echo_part': Range(0.22, 0.6, 'interval', 'gradient echoes: echo time over the interval of excitations'),
    'repetition_spgr': Range(0.008, 0.04, 's', 'spoiled gradient echoes, 3-D'),
    'flip_spgr': Range(12, 50, 'degrees', 'T1-weighted spoiled gradient echoes'),
    'repetition_t1': Range(0.35, 0.85, 's', 'T1-weighted spin echoes: textbook 0.4 to 0.8'),
    'echo_short': Range(0.007, 0.022, 's', 'T1-weighted spin echoes'),
    # T2w, FLAIR, PDw
    'repetition_t2': Range(1.8, 9.0, 's', '3-D trains and slices one after another'),
    'echo_t2': Range(0.055, 0.18, 's', 'T2w: effective, of equal contrast in trains of variable flip angle'),
    'repetition_flair': Range(3.8, 12.0, 's', 'portable scanners and 3-D trains to 1.5 T slices'),
    'echo_flair': Range(0.075, 0.18, 's', 'effective'),
    'inversion_part': Range(0.94, 1.06, 'null of fluid', 'FLAIR: fluid is not nulled exactly'),
    'echo_pd': Range(0.008, 0.035, 's', 'first echo of dual-echo sequences'),
    'flip_pd': Range(3, 7, 'degrees', 'proton-density weighted spoiled gradient echoes'),
    'spacing_fse': Range(0.0035, 0.018, 's', 'short non-selective pulses to selective ones'),
    'train_over_echo': Range(1, 8, 'effective echo time', 'length of the train; 3-D trains are longest', log=True),
    # Grid
    'voxel': Range(0.65, 1.6, 'mm', 'in the plane of a volume', log=True),
    'aspect': Range(1, 1.7, 'voxel', 'slices of a volume'),
    'voxel_2d': Range(0.4, 1.6, 'mm', 'in the plane of 2-D slices', log=True),
    'thickness': Range(2, 6.5, 'mm', '2-D slices'),
    'gap': Range(0, 0.35, 'thickness', '2-D slices; 10 to 30 % is usual'),
    # k-space, noise, motion, storage
    'measured_fraction': Range(0.55, 1, '', 'rectangular and interpolated matrices; half of all axes are full'),
    'taper': Range(0, 0.8, '', 'raw to smoothed reconstructions; none for 3 of 10 scans'),
    'partial_fourier': Range(0.6, 1, '', '5/8, 6/8, 7/8; half of all scans have all lines'),
    'bandwidth': Range(60, 800, 'Hz', 'per voxel', log=True),
    'acceleration': Range(1.2, 4, '', 'clinical parallel imaging; for half of all scans'),
    'snr': Range(8, 100, '', 'portable scanners to averages at 3 T', log=True),
    'motion_degrees': Range(0, 3, 'degrees', 'what is accepted with visible rings; for 4 of 10 scans'),
    'motion_millimetres': Range(0, 3, 'mm', 'the same'),
    'motion_events': Range(1, 5, '', 'times that the head moves'),
    'ghost_intensity': Range(0.02, 0.25, '', 'for 2 of 10 scans'),
    'ghost_count': Range(2, 8, '', 'lines'),
    'scale': Range(40, 8000, '', 'white matter; at most a quarter of the largest number', log=True),
    'saturation': Range(0, 0.003, '', 'for 2 of 10 scans'),
}  # fmt: skip

#: Invented makers and models.
_MAKERS = (
    ('Boreal Resonance', 'Aurora'), ('Austral Magnetics', 'Meridian'), ('Levant Imaging', 'Solstice'),
    ('Occident Spin', 'Zephyr'),
)  # fmt: skip
#: Latest echo of a spoiled gradient echo (s), after which T2* would decide.
_LATEST = 0.012
#: How often a sequence that does not give its contrast may be drawn again. Most succeed at once.
_TRIES = 10_000


def draw_scanner(rng: np.random.Generator, label: str, *, contrasts: Sequence[str] = CONTRASTS) -> Scanner:
    """Draw a scanner whose contrasts are what they are called.

    Sequences fit by construction and are drawn again until :func:`looks_right`. The protocol of a contrast does not
    depend on which others are drawn.

    Parameters
    ----------
    rng
        Source of everything; the same state gives the same scanner.
    label
        Letters and digits.
    contrasts
        BIDS suffixes out of :data:`bidsharm.settings.CONTRASTS`.

    Raises
    ------
    UsageError
        If a contrast is unknown or there twice, there is none, or the label is none.
    """
    unknown = [contrast for contrast in contrasts if contrast not in CONTRASTS]
    if unknown:
        raise UsageError(f'"{unknown[0]}" is no contrast.', fix=f'Choose from {", ".join(CONTRASTS)}.')
    manufacturer, model = _MAKERS[rng.integers(len(_MAKERS))]
    hardware = _draw_hardware(rng)
    seeds = {contrast: rng.integers(2**63) for contrast in CONTRASTS}
    return Scanner(
        label=label,
        manufacturer=manufacturer,
        model_name=f'{model} {hardware.field_strength:g}T',
        hardware=hardware,
        protocols=tuple(
            _draw_protocol(np.random.default_rng(seeds[contrast]), contrast, hardware) for contrast in contrasts
        ),
    )  # fmt: skip


def looks_right(sequence: PulseSequence, field_strength: float) -> bool:
    """Say whether a sequence gives the contrast that it is named for, by the magnitudes of the tissues.

    - T1w: white matter is brighter than grey matter, and that than fluid; grey over white matter is 0.3 to 0.97.
    - T2w: fluid is brighter than grey matter, and that than white matter.
    - FLAIR: fluid is darkest. Grey over white matter is 1 to 1.5 from 1 to 3 T. Further away it is 0.6 to 1.7: at low
      fields grey matter recovers almost as fast as white matter and its longer T2 decides; at 7 T it is the other way
      round.
    - PDw: grey matter is brighter than white matter.

    Parameters
    ----------
    sequence
        What is played.
    field_strength
        Tesla.
    """
    csf, gm, wm = (
        abs(float(sequence.signal(relaxation(name, field_strength)))) for name in ('CSF', 'GM', 'WM')
    )
    if sequence.contrast == 'T1w':
        return csf < gm and 0.3 * wm < gm < 0.97 * wm
    if sequence.contrast == 'T2w':
        return csf > gm > wm
    if sequence.contrast == 'FLAIR':
        low, high = (1.0, 1.5) if 1 <= field_strength <= 3 else (0.6, 1.7)
        return csf < min(gm, wm) and low * wm < gm < high * wm
    return gm > wm


def _take(rng: np.random.Generator, name: str) -> float:
    """Draw from a range, to four digits."""
    low, high, _, _, log = RANGES[name]
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
    return float(f'{value:.4g}')


def _count(rng: np.random.Generator, name: str) -> int:
    """Draw a whole number from a range."""
    return round(_take(rng, name))


def _draw_hardware(rng: np.random.Generator) -> Hardware:
    usual = rng.random() < 0.8
    field = float(rng.choice((1.5, 3.0))) if usual else _take(rng, 'field_strength')
    return Hardware(
        field_strength=field,
        receive_coils=_count(rng, 'receive_coils'),
        receive_strength=_take(rng, 'receive_strength'),
        transmit_deviation=round(_take(rng, 'transmit_per_tesla') * field + _take(rng, 'transmit_coil'), 4),
        gradient_error=_take(rng, 'gradient_error'),
        off_resonance=round(_take(rng, 'off_resonance_per_tesla') * field, 2),
    )


def _draw_sequence(rng: np.random.Generator, contrast: str, field: float) -> PulseSequence:
    draw = {'T1w': _draw_t1w, 'T2w': _draw_t2w, 'FLAIR': _draw_flair, 'PDw': _draw_pdw}[contrast]
    for _ in range(_TRIES):
        sequence = draw(rng, field)
        if sequence is not None and looks_right(sequence, field):
            return sequence
    raise RuntimeError(f'No {contrast} was found at {field:g} T.')  # pragma: no cover


def _draw_t1w(rng: np.random.Generator, field: float) -> PulseSequence | None:
    kind = rng.choice(('MPRAGE', 'SPGR', 'SE'), p=(0.7, 0.2, 0.1))
    if kind == 'MPRAGE':
        return _draw_mprage(rng, field)
    if kind == 'SE':
        return PulseSequence('T1w', 'SE', _take(rng, 'repetition_t1'), _take(rng, 'echo_short'))
    tr = _take(rng, 'repetition_spgr')
    te = min(round(_take(rng, 'echo_part') * tr, 5), _LATEST)
    return PulseSequence('T1w', 'SPGR', tr, te, _take(rng, 'flip_spgr'))


def _draw_mprage(rng: np.random.Generator, field: float) -> PulseSequence | None:
    spacing = _take(rng, 'echo_spacing')
    ti = round(_take(rng, 'inversion_over_t1') * relaxation('GM', field).t1, 3)
    # The first half of the train, and the inversion itself, must fit before the inversion time.
    count = min(_count(rng, 'excitations'), math.floor(2 * (ti - 0.01) / spacing))
    if count < RANGES['excitations'].low:
        return None
    tr = round(ti + count / 2 * spacing + _take(rng, 'recovery'), 3)
    te = round(_take(rng, 'echo_part') * spacing, 5)
    return PulseSequence(
        'T1w', 'MPRAGE', tr, te, _take(rng, 'flip_mprage'), ti, echo_spacing=spacing, excitations=count
    )


def _draw_train(rng: np.random.Generator, te: float, longest: float) -> tuple[float, int]:
    """Return spacing and number of the echoes of a train that reaches the effective echo time."""
    spacing = min(_take(rng, 'spacing_fse'), te)
    length = min(te * _take(rng, 'train_over_echo'), longest)
    return spacing, max(math.floor(length / spacing), math.ceil(te / spacing))


def _draw_t2w(rng: np.random.Generator, field: float) -> PulseSequence:
    tr, te = _take(rng, 'repetition_t2'), _take(rng, 'echo_t2')
    if rng.random() < 0.1:
        return PulseSequence('T2w', 'SE', tr, te)
    spacing, count = _draw_train(rng, te, tr / 2)
    return PulseSequence('T2w', 'FSE', tr, te, echo_spacing=spacing, excitations=count)


def _draw_pdw(rng: np.random.Generator, field: float) -> PulseSequence:
    if rng.random() < 0.15:
        tr = _take(rng, 'repetition_spgr')
        te = min(round(_take(rng, 'echo_part') * tr, 5), _LATEST)
        return PulseSequence('PDw', 'SPGR', tr, te, _take(rng, 'flip_pd'))
    tr, te = _take(rng, 'repetition_t2'), _take(rng, 'echo_pd')
    if rng.random() < 0.2:
        return PulseSequence('PDw', 'SE', tr, te)
    spacing, count = _draw_train(rng, te, tr / 2)
    return PulseSequence('PDw', 'FSE', tr, te, echo_spacing=spacing, excitations=count)


def _draw_flair(rng: np.random.Generator, field: float) -> PulseSequence:
    tr, te = _take(rng, 'repetition_flair'), _take(rng, 'echo_flair')
    t1 = relaxation('CSF', field).t1
    part = _take(rng, 'inversion_part')
    if rng.random() < 0.05:
        left = 2 * math.exp(-(tr - te / 2) / t1) - math.exp(-tr / t1)
        ti = part * t1 * math.log(2 / (1 + left))
        return PulseSequence('FLAIR', 'IRSE', tr, te, inversion_time=round(ti, 3))
    spacing, count = _draw_train(rng, te, tr / 3)
    ti = part * t1 * math.log(2 / (1 + math.exp(-(tr - spacing * count) / t1)))
    return PulseSequence(
        'FLAIR', 'IRFSE', tr, te, inversion_time=round(ti, 3), echo_spacing=spacing, excitations=count
    )


def _draw_protocol(rng: np.random.Generator, contrast: str, hardware: Hardware) -> Protocol:
    sequence = _draw_sequence(rng, contrast, hardware.field_strength)
    spin_echo = sequence.kind not in ('MPRAGE', 'SPGR')
    always_flat = sequence.kind in ('SE', 'IRSE')
    grid = _draw_slices(rng) if always_flat or (spin_echo and rng.random() < 0.7) else _draw_volume(rng)
    return Protocol(
        sequence=sequence,
        source='drawn at random',
        **grid,
        **_draw_lines(rng, grid, hardware),
        **_draw_disturbances(rng),
        **_draw_storage(rng),
        snr=_take(rng, 'snr'),
    )


def _draw_volume(rng: np.random.Generator) -> dict[str, Any]:
    slice_axis = int(rng.choice((0, 1, 2), p=(0.6, 0.1, 0.3)))
    size = _take(rng, 'voxel')
    sizes = [size, size, size]
    sizes[slice_axis] = round(size * _take(rng, 'aspect'), 3)
    readout, phase = rng.permutation([axis for axis in range(3) if axis != slice_axis])
    return {
        'acquisition_type': '3D', 'voxel_size': tuple(sizes), 'slice_axis': slice_axis,
        'readout_axis': int(readout), 'phase_axis': int(phase),
    }  # fmt: skip


def _draw_slices(rng: np.random.Generator) -> dict[str, Any]:
    slice_axis = int(rng.choice((0, 1, 2), p=(0.1, 0.1, 0.8)))
    thickness = _take(rng, 'thickness')
    factor = round(thickness)  # planes of about a millimetre
    gap = round(_take(rng, 'gap') * factor)
    size = _take(rng, 'voxel_2d')
    sizes = [size, size, size]
    sizes[slice_axis] = round(thickness / factor * (factor + gap), 3)
    readout, phase = rng.permutation([axis for axis in range(3) if axis != slice_axis])
    return {
        'acquisition_type': '2D', 'voxel_size': tuple(sizes), 'slice_axis': slice_axis,
        'readout_axis': int(readout), 'phase_axis': int(phase), 'slice_factor': factor, 'slice_gap': gap,
    }  # fmt: skip


def _draw_lines(rng: np.random.Generator, grid: Mapping[str, Any], hardware: Hardware) -> dict[str, Any]:
    """Draw how k-space is measured and how coils are combined."""
    fraction = [1.0, 1.0, 1.0]
    for axis in range(3):
        slices = axis == grid['slice_axis'] and grid['acquisition_type'] == '2D'
        if rng.random() < 0.5 and not slices:
            fraction[axis] = _take(rng, 'measured_fraction')
    coils = hardware.receive_coils
    fast = coils >= 4 and rng.random() < 0.5
    # A bandwidth below this folds the image over.
    least = hardware.off_resonance * grid['voxel_size'][grid['readout_axis']] * _SLOPE / _STEEPEST
    return {
        'measured_fraction': tuple(fraction),
        'taper': _take(rng, 'taper') if rng.random() < 0.7 else 0.0,
        'partial_fourier': _take(rng, 'partial_fourier') if rng.random() < 0.5 else 1.0,
        'bandwidth': max(_take(rng, 'bandwidth'), math.ceil(least)),
        'acceleration': _take(rng, 'acceleration') if fast else 1.0,
        'combined_coils': coils if not fast and rng.random() < 0.5 else 1,
    }


def _draw_disturbances(rng: np.random.Generator) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if rng.random() < 0.4:
        content['motion_degrees'] = _take(rng, 'motion_degrees')
        content['motion_millimetres'] = _take(rng, 'motion_millimetres')
        content['motion_events'] = _count(rng, 'motion_events')
    if rng.random() < 0.2:
        content['ghost_intensity'] = _take(rng, 'ghost_intensity')
        content['ghost_count'] = _count(rng, 'ghost_count')
    return content


def _draw_storage(rng: np.random.Generator) -> dict[str, Any]:
    kind = str(rng.choice(('int16', 'uint12', 'uint8'), p=(0.6, 0.3, 0.1)))
    scale = min(_take(rng, 'scale'), STORAGE_TOP[kind] / 4) if rng.random() < 0.75 else None
    saturation = _take(rng, 'saturation') if rng.random() < 0.2 else 0.0
    return {'storage': kind, 'scale': scale, 'saturation': saturation}
