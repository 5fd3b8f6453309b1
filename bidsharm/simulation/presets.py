"""Built-in scanners: invented makers, with the protocols of hospitals and public studies.

``source`` of a protocol says what its timing is like. Where a document is named, repetition, echo and inversion time and
voxel size (as far as it tells them) are its numbers. What it does not tell, and bandwidths, filters, coils and noise if
nothing is said of them, are typical. This is translated for the signal equations:

- The inversion time of an MPRAGE runs to the middle of the train. Vendors that tell the interval of excitations as
  repetition time count it to the first excitation instead, as is taken here for GE and for OASIS: half a train is added.
  For Philips the inversion time is taken to run to the middle. Where the interval between inversions, the interval of
  excitations or their number is not told, it is typical.
- Trains with variable flip angles (SPACE, CUBE, VISTA) tell the echo at the centre of k-space, 400 to 560 ms, while their
  contrast is that of a much shorter one; the echo time here is that one, about 90 to 120 ms.
- Fluid has a T1 of 4.33 s here. Where the published inversion time of a FLAIR (2.2 to 2.4 s) would leave it bright, it is
  moved to 2.46 to 2.5 s. FLAIR volumes at 3 T prepare T2 before the inversion, which the equations lack; without it, their
  repetition time of 5 s would leave grey matter dark, so they have those of equal contrast, about 8 and 2.2 s.
- Echo spacings are such that the train of the published length reaches the effective echo time.

Documents:

- Fjell et al. 2021, eLife 10:e66466, table 6: T1w of LCBC, Barcelona, BASE-II, Betula, Cam-CAN, UK Biobank and VETSA.
- MS-SMART trial protocol, BMJ Open, table 4: PDw and T2w (dual echo), FLAIR and T1w for three vendors at 1.5 and 3 T.
- Alfaro-Almagro et al. 2018, NeuroImage 166:400, table 1 (PMC5770339): UK Biobank.
- PMC8542422, table 4: a protocol in the manner of the HCP with multi-echo MPRAGE.
- MRC CBU, "CBU default imaging sequences" (imaging.mrc-cbu.cam.ac.uk), and the sidecar of OpenNeuro ds000117.
- OpenNeuro ds001378: T1w of a 1.5 T Philips.
- Arnold et al. 2022, NeuroImage Clin 35:103101: voxel sizes of a portable 64 mT scanner.
- Van der Kouwe, martinos.org/~andre/Sequences/OtherOptima.html: interval of excitations of the older MPRAGE.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bidsharm.simulation.physics import PulseSequence
from bidsharm.simulation.protocols import Hardware, Protocol, Scanner

TYPICAL = 'typical, not from one source'
_FJELL = 'Fjell 2021, eLife, table 6'
_MS_SMART = 'MS-SMART protocol, BMJ Open, table 4'
_BIOBANK = 'UK Biobank, Alfaro-Almagro 2018, table 1'
_HCP = 'HCP Young Adult, as quoted by papers that use it'
_ADNI3 = f'ADNI-3-like; {TYPICAL}'
_IXI = f'IXI-like; {TYPICAL}'
_ICBM = f'in the manner of the ICBM atlas; {TYPICAL}'
_PORTABLE = f'voxels Arnold 2022; else {TYPICAL}'
_CUBE = (1.0, 1.0, 1.0)


def _t1w(tr: float, te: float, ti: float, flip: float, spacing: float, count: int) -> PulseSequence:
    """Return an MPRAGE."""
    return PulseSequence('T1w', 'MPRAGE', tr, te, flip, ti, echo_spacing=spacing, excitations=count)


def _t2w(tr: float, te: float, spacing: float, count: int) -> PulseSequence:
    return PulseSequence('T2w', 'FSE', tr, te, echo_spacing=spacing, excitations=count)


def _pdw(tr: float, te: float, spacing: float, count: int) -> PulseSequence:
    return PulseSequence('PDw', 'FSE', tr, te, echo_spacing=spacing, excitations=count)


def _flair(tr: float, te: float, ti: float, spacing: float, count: int) -> PulseSequence:
    return PulseSequence('FLAIR', 'IRFSE', tr, te, 90.0, ti, echo_spacing=spacing, excitations=count)


def _volume(sequence: PulseSequence, voxel: tuple[float, float, float], source: str, **more: Any) -> Protocol:
    """Return a sagittal volume: slices from right to left, lines to the front, readout up."""
    return replace(Protocol(sequence, voxel, source, taper=0.2), **more)


def _slices(
    sequence: PulseSequence, in_plane: float, planes: int, source: str, *, gap: int = 0, plane: float = 1.0,
    **more: Any,
) -> Protocol:  # fmt: skip
    """Return axial slices of so many planes with so many planes between: lines to the left, readout to the front."""
    voxel = (in_plane, in_plane, plane * (planes + gap))
    flat = Protocol(
        sequence, voxel, source, acquisition_type='2D', slice_axis=2, phase_axis=0, readout_axis=1,
        slice_factor=planes, slice_gap=gap, taper=0.3, measured_fraction=(0.8, 1.0, 1.0),
    )  # fmt: skip
    return replace(flat, **more)


def _all(protocols: tuple[Protocol, ...], **more: Any) -> tuple[Protocol, ...]:
    """Return protocols with the same noise, storage and so on."""
    return tuple(replace(protocol, **more) for protocol in protocols)


# --- The first four: cohorts that are easy to tell apart; all contrasts on one grid. Timing typical. ---

_FIRST = (
    Scanner(
        'northA', 'Boreal Resonance', 'Aurora 3T', Hardware(3.0, 32, 0.25, 0.15, 0.8, 80.0),
        _all((
            _volume(_t1w(2.3, 0.003, 0.9, 9.0, 0.007, 160), _CUBE, TYPICAL, bandwidth=240.0),
            _volume(_t2w(6.0, 0.1, 0.0105, 16), _CUBE, TYPICAL),
            _volume(_flair(9.0, 0.12, 2.45, 0.0105, 16), _CUBE, TYPICAL),
            _volume(_pdw(3.0, 0.0105, 0.0105, 8), _CUBE, TYPICAL),
        ), snr=40.0, scale=500.0),
    ),
    Scanner(
        'southB', 'Austral Magnetics', 'Meridian 1.5', Hardware(1.5, 8, 0.12, 0.06, 1.5, 40.0),
        _all((
            _volume(_t1w(1.9, 0.004, 0.8, 12.0, 0.009, 128), _CUBE, TYPICAL, bandwidth=130.0),
            _volume(_t2w(4.5, 0.085, 0.012, 12), _CUBE, TYPICAL),
            _volume(_flair(8.0, 0.1, 2.35, 0.012, 14), _CUBE, TYPICAL),
            _volume(_pdw(2.8, 0.012, 0.012, 6), _CUBE, TYPICAL),
        ), snr=18.0, scale=1400.0, combined_coils=8),
    ),
    Scanner(
        'eastC', 'Levant Imaging', 'Solstice 3', Hardware(3.0, 32, 0.3, 0.18, 1.0, 90.0),
        _all((
            _volume(_t1w(2.5, 0.0035, 1.1, 7.0, 0.0075, 192), _CUBE, TYPICAL),
            _volume(_t2w(5.0, 0.11, 0.009, 18), _CUBE, TYPICAL),
            _volume(_flair(10.0, 0.13, 2.55, 0.009, 20), _CUBE, TYPICAL),
            _volume(_pdw(3.2, 0.018, 0.009, 10), _CUBE, TYPICAL),
        ), snr=45.0, scale=220.0, voxel_size=(1.0, 1.0, 2.0), slice_axis=2, slice_factor=2, readout_axis=0),
    ),
    Scanner(
        'westD', 'Austral Magnetics', 'Meridian Plus', Hardware(1.5, 12, 0.2, 0.07, 1.2, 45.0),
        _all((
            _volume(_t1w(2.4, 0.0036, 1.0, 8.0, 0.009, 160), _CUBE, TYPICAL, bandwidth=180.0),
            _volume(_t2w(5.5, 0.095, 0.011, 15), _CUBE, TYPICAL),
            _volume(_flair(9.0, 0.11, 2.45, 0.011, 15), _CUBE, TYPICAL),
            _volume(_pdw(3.0, 0.011, 0.011, 8), _CUBE, TYPICAL),
        ), snr=25.0, scale=900.0),
    ),
)  # fmt: skip

# --- 1.5 T ---

_LOW_CLINICAL = (
    Scanner(  # ADNI-1
        'coastE', 'Austral Magnetics', 'Meridian A', Hardware(1.5, 12, 0.25, 0.08, 1.5, 50.0),
        _all((
            _volume(_t1w(2.4, 0.00361, 1.0, 8.0, 0.0087, 160), (1.2, 1.25, 1.25), f'ADNI-1-like; LCBC in {_FJELL}',
                    bandwidth=180.0),
            _slices(_t2w(2.68, 0.086, 0.0125, 7), 0.98, 3, f'Siemens 1.5 T, {_MS_SMART}'),
            _slices(_flair(9.5, 0.122, 2.48, 0.0087, 19), 0.98, 3, f'Siemens 1.5 T, {_MS_SMART}'),
            _slices(_pdw(2.68, 0.011, 0.011, 7), 0.98, 3, f'Siemens 1.5 T, {_MS_SMART}'),
        ), snr=22.0, scale=300.0, storage='uint12'),
    ),
    Scanner(  # VETSA at 1.5 T, older coils
        'valleyF', 'Austral Magnetics', 'Meridian Classic', Hardware(1.5, 4, 0.15, 0.08, 2.5, 60.0),
        _all((
            _volume(_t1w(2.73, 0.00331, 1.0, 7.0, 0.0078, 160), (1.33, 1.0, 1.3), f'VETSA baseline, {_FJELL}'),
            _slices(_t2w(2.68, 0.086, 0.0125, 7), 0.98, 3, f'Siemens 1.5 T, {_MS_SMART}'),
            _slices(_flair(9.0, 0.11, 2.45, 0.0105, 13), 0.9, 5, TYPICAL, gap=1),
            _slices(_pdw(2.68, 0.011, 0.011, 7), 0.98, 3, f'Siemens 1.5 T, {_MS_SMART}'),
        ), snr=16.0, scale=180.0, combined_coils=4),
    ),
    Scanner(  # OASIS-1: short cycles, repeated scans averaged
        'steppeG', 'Austral Magnetics', 'Plateau 1.5', Hardware(1.5, 1, 0.08, 0.1, 3.0, 60.0),
        _all((
            _volume(_t1w(1.462, 0.004, 0.641, 10.0, 0.0097, 128), (1.25, 1.0, 1.0),
                    f'OASIS-1-like: interval of excitations van der Kouwe; else {TYPICAL}', bandwidth=195.0, snr=35.0),
            _slices(_t2w(4.8, 0.1, 0.0125, 11), 1.0, 5, TYPICAL, gap=1),
            _slices(_flair(9.0, 0.11, 2.4, 0.0125, 11), 1.0, 5, TYPICAL, gap=1),
            _slices(_pdw(2.5, 0.015, 0.015, 5), 1.0, 5, TYPICAL, gap=1),
        ), snr=20.0, scale=120.0),
    ),
    Scanner(  # GE at 1.5 T: inversion-prepared SPGR
        'harborH', 'Levant Imaging', 'Equinox 1.5', Hardware(1.5, 8, 0.3, 0.07, 1.0, 45.0),
        _all((
            _volume(_t1w(2.65, 0.005, 1.17, 20.0, 0.013, 80), (1.0, 0.98, 0.98), f'GE 1.5 T, {_MS_SMART}',
                    bandwidth=122.0, combined_coils=8),
            _slices(_t2w(2.9, 0.086, 0.0125, 10), 0.98, 3, f'GE 1.5 T, {_MS_SMART}'),
            _slices(_flair(10.0, 0.128, 2.46, 0.0095, 19), 0.98, 3, f'GE 1.5 T, {_MS_SMART}'),
            _slices(_pdw(2.9, 0.021, 0.0105, 10), 0.98, 3, f'GE 1.5 T, {_MS_SMART}'),
        ), snr=24.0, scale=2500.0),
    ),
    Scanner(  # Philips at 1.5 T: turbo field echo
        'islandI', 'Occident Spin', 'Zephyr 1.5', Hardware(1.5, 8, 0.12, 0.07, 1.2, 45.0),
        _all((
            _volume(_t1w(2.2, 0.0037, 0.764, 8.0, 0.0081, 170), _CUBE, 'Philips 1.5 T, OpenNeuro ds001378',
                    bandwidth=190.0),
            _slices(_t2w(3.3, 0.1, 0.02, 5), 0.98, 3, f'Philips 1.5 T, {_MS_SMART}'),
            _slices(_flair(10.0, 0.12, 2.5, 0.0095, 19), 0.98, 3, f'Philips 1.5 T, {_MS_SMART}'),
            _slices(_pdw(3.3, 0.016, 0.016, 5), 0.98, 3, f'Philips 1.5 T, {_MS_SMART}'),
        ), snr=24.0, scale=350.0, storage='uint12', measured_fraction=(1.0, 0.85, 1.0)),
    ),
    Scanner(  # spoiled gradient echo without inversion, as in older atlases
        'meadowJ', 'Occident Spin', 'Zephyr Heath', Hardware(1.5, 1, 0.1, 0.1, 2.5, 60.0),
        _all((
            _volume(PulseSequence('T1w', 'SPGR', 0.018, 0.01, 30.0), _CUBE, _ICBM,
                    bandwidth=130.0),
            _slices(_t2w(3.3, 0.12, 0.015, 8), 1.0, 2, _ICBM),
            _slices(_flair(8.0, 0.12, 2.3, 0.012, 12), 1.0, 5, TYPICAL, gap=1),
            _slices(_pdw(3.3, 0.03, 0.015, 8), 1.0, 2, _ICBM),
        ), snr=20.0, scale=None, storage='uint8'),
    ),
    Scanner(  # IXI at Guy's Hospital
        'fenK', 'Occident Spin', 'Zephyr Sedge', Hardware(1.5, 6, 0.2, 0.08, 1.5, 50.0),
        _all((
            _volume(_t1w(2.6, 0.0046, 0.9, 8.0, 0.0098, 150), (1.2, 0.94, 0.94), _IXI, bandwidth=140.0),
            _slices(_t2w(8.2, 0.1, 0.0125, 16), 0.94, 1, _IXI, plane=1.25),
            _slices(_flair(9.0, 0.12, 2.4, 0.0125, 16), 0.94, 4, TYPICAL, gap=1),
            _slices(_pdw(8.2, 0.008, 0.008, 16), 0.94, 1, _IXI, plane=1.25),
        ), snr=20.0, scale=400.0, storage='uint12', measured_fraction=(0.8, 0.8, 1.0)),
    ),
    Scanner(  # the routine of a hospital: slices only, with gaps, in a hurry
        'clinicL', 'Levant Imaging', 'Equinox Express', Hardware(1.5, 16, 0.4, 0.08, 2.0, 60.0),
        _all((
            _slices(PulseSequence('T1w', 'SE', 0.5, 0.012), 0.9, 5, TYPICAL, gap=1, snr=30.0),
            _slices(_t2w(4.0, 0.1, 0.0115, 16), 0.6, 5, TYPICAL, gap=1, acceleration=2.0),
            _slices(_flair(8.5, 0.11, 2.35, 0.0105, 18), 0.8, 5, TYPICAL, gap=1, acceleration=2.0),
            _slices(_pdw(2.8, 0.015, 0.015, 6), 0.8, 3, TYPICAL, gap=1),
        ), snr=35.0, scale=600.0, motion_degrees=1.0, motion_millimetres=1.0, motion_events=2, ghost_intensity=0.05),
    ),
)  # fmt: skip

# --- 3 T ---

_THREE_TESLA = (
    Scanner(  # ADNI-2 and many others
        'summitM', 'Boreal Resonance', 'Aurora Tern', Hardware(3.0, 12, 0.3, 0.2, 1.0, 100.0),
        _all((
            _volume(_t1w(2.3, 0.00298, 0.9, 9.0, 0.0071, 176), _CUBE, f'ADNI-2-like; Barcelona in {_FJELL}',
                    bandwidth=240.0),
            _slices(_t2w(2.7, 0.097, 0.0195, 5), 0.98, 3, f'Siemens 3 T, {_MS_SMART}'),
            _slices(_flair(9.5, 0.1, 2.48, 0.0085, 15), 0.98, 3, f'Siemens 3 T, {_MS_SMART}'),
            _slices(_pdw(2.7, 0.026, 0.013, 5), 0.98, 3, f'Siemens 3 T, {_MS_SMART}'),
        ), snr=30.0, scale=250.0, storage='uint12'),
    ),
    Scanner(  # BASE-II: late echo
        'lakeN', 'Boreal Resonance', 'Aurora Duo', Hardware(3.0, 12, 0.35, 0.2, 1.0, 100.0),
        _all((
            _volume(_t1w(2.5, 0.00477, 1.1, 7.0, 0.0112, 176), _CUBE, f'BASE-II, {_FJELL}', bandwidth=140.0),
            _slices(_t2w(5.06, 0.102, 0.0114, 9), 0.7, 4, 'CBU_TSE, MRC CBU', gap=1, plane=1.04, acceleration=2.0),
            _slices(_flair(9.0, 0.095, 2.5, 0.0095, 15), 0.9, 4, TYPICAL, gap=1),
            _slices(_pdw(3.0, 0.012, 0.012, 6), 0.9, 3, TYPICAL),
        ), snr=28.0, scale=200.0),
    ),
    Scanner(  # Cam-CAN
        'riverO', 'Boreal Resonance', 'Aurora Tern Plus', Hardware(3.0, 32, 0.15, 0.2, 1.0, 100.0),
        _all((
            _volume(_t1w(2.25, 0.00298, 0.9, 9.0, 0.0071, 192), _CUBE,
                    f'Cam-CAN, {_FJELL}; bandwidth, GRAPPA and partial Fourier: sidecar of ds000117',
                    bandwidth=230.0, acceleration=2.0, partial_fourier=0.875),
            _volume(_t2w(2.8, 0.1, 0.0042, 220), _CUBE, f'Cam-CAN-like SPACE; {TYPICAL}', acceleration=2.0,
                    bandwidth=450.0),
            _slices(_flair(9.0, 0.09, 2.45, 0.009, 16), 0.9, 4, TYPICAL, acceleration=2.0),
            _slices(_pdw(3.0, 0.012, 0.012, 6), 0.9, 3, TYPICAL),
        ), snr=45.0, scale=160.0),
    ),
    Scanner(  # ADNI-3: accelerated volumes
        'glacierP', 'Boreal Resonance', 'Aurora Prime', Hardware(3.0, 32, 0.12, 0.18, 0.6, 80.0),
        _all((
            _volume(_t1w(2.3, 0.00298, 0.9, 9.0, 0.0071, 208), _CUBE, _ADNI3, bandwidth=240.0),
            _volume(_t2w(3.2, 0.105, 0.004, 250), _CUBE, TYPICAL, bandwidth=600.0),
            _volume(_flair(8.0, 0.11, 2.25, 0.0038, 220), (1.2, 1.0, 1.0), _ADNI3, bandwidth=600.0),
            _volume(_pdw(3.2, 0.012, 0.004, 120), _CUBE, TYPICAL, bandwidth=600.0),
        ), snr=50.0, scale=300.0, acceleration=2.0),
    ),
    Scanner(  # UK Biobank
        'deltaQ', 'Boreal Resonance', 'Aurora Sky', Hardware(3.0, 32, 0.1, 0.2, 2.5, 90.0),
        _all((
            _volume(_t1w(2.0, 0.002, 0.88, 8.0, 0.0061, 208), _CUBE, _BIOBANK, bandwidth=240.0),
            _volume(_t2w(3.2, 0.1, 0.0042, 240), _CUBE, TYPICAL, bandwidth=700.0),
            _volume(_flair(8.0, 0.105, 2.25, 0.0037, 190), (1.05, 1.0, 1.0),
                    f'{_BIOBANK} (TR 5 s, TI 1.8 s with preparation)', bandwidth=780.0, partial_fourier=0.875),
            _volume(_pdw(3.2, 0.013, 0.0042, 120), _CUBE, TYPICAL, bandwidth=700.0),
        ), snr=45.0, scale=700.0, acceleration=2.0),
    ),
    Scanner(  # HCP Young Adult
        'canyonR', 'Boreal Resonance', 'Aurora Connect', Hardware(3.0, 32, 0.45, 0.25, 1.5, 100.0),
        _all((
            _volume(_t1w(2.4, 0.00214, 1.0, 8.0, 0.0076, 240), (0.7, 0.7, 0.7),
                    _HCP, bandwidth=210.0),
            _volume(_t2w(3.2, 0.1, 0.0035, 314), (0.7, 0.7, 0.7), _HCP,
                    bandwidth=744.0),
            _volume(_flair(8.0, 0.105, 2.2, 0.0037, 240), (0.8, 0.8, 0.8), TYPICAL, bandwidth=700.0),
            _volume(_pdw(3.2, 0.0105, 0.0035, 160), (0.8, 0.8, 0.8), TYPICAL, bandwidth=744.0),
        ), snr=28.0, scale=450.0, acceleration=2.0, taper=0.0),
    ),
    Scanner(  # multi-echo MPRAGE: four echoes, combined to what is like one between them, at a high bandwidth
        'mesaS', 'Boreal Resonance', 'Aurora Quartet', Hardware(3.0, 32, 0.15, 0.2, 1.0, 90.0),
        _all((
            _volume(_t1w(2.5, 0.0045, 1.0, 8.0, 0.0096, 196), (0.8, 0.8, 0.8),
                    f'multi-echo MPRAGE, PMC8542422, table 4 (echoes 1.81 to 7.18 ms); TI {TYPICAL}', bandwidth=740.0),
            _volume(_t2w(3.2, 0.1, 0.0039, 282), (0.8, 0.8, 0.8), 'SPACE, PMC8542422, table 4', bandwidth=740.0),
            _volume(_flair(8.0, 0.105, 2.22, 0.0038, 240), _CUBE, TYPICAL, bandwidth=740.0),
            _volume(_pdw(3.2, 0.0117, 0.0039, 140), _CUBE, TYPICAL, bandwidth=740.0),
        ), snr=32.0, scale=380.0, acceleration=2.0),
    ),
    Scanner(  # GE at 3 T: BRAVO-like
        'forestT', 'Levant Imaging', 'Solstice Grove', Hardware(3.0, 32, 0.3, 0.2, 0.8, 90.0),
        _all((
            _volume(_t1w(2.0, 0.0032, 0.86, 12.0, 0.00819, 100), (1.0, 0.98, 0.98), f'Betula, {_FJELL}', bandwidth=244.0,
                    acceleration=2.0, measured_fraction=(1.0, 0.95, 1.0)),
            _slices(_t2w(2.6, 0.085, 0.011, 8), 0.98, 3, f'GE 3 T, {_MS_SMART}', combined_coils=32),
            _slices(_flair(9.5, 0.127, 2.48, 0.0095, 19), 0.98, 3, f'GE 3 T, {_MS_SMART}', combined_coils=32),
            _slices(_pdw(2.6, 0.024, 0.012, 8), 0.98, 3, f'GE 3 T, {_MS_SMART}', combined_coils=32),
        ), snr=38.0, scale=3500.0),
    ),
    Scanner(  # Philips at 3 T: turbo field echo
        'dunesU', 'Occident Spin', 'Zephyr 3', Hardware(3.0, 8, 0.15, 0.2, 1.0, 90.0),
        _all((
            _volume(_t1w(2.5, 0.0032, 0.83, 8.0, 0.0069, 200), _CUBE, f'Philips 3 T, {_MS_SMART}; flip {TYPICAL}',
                    bandwidth=230.0, acceleration=2.0),
            _slices(_t2w(2.9, 0.09, 0.015, 6), 0.98, 3, f'Philips 3 T, {_MS_SMART}'),
            _slices(_flair(9.5, 0.12, 2.48, 0.0095, 19), 0.98, 3, f'Philips 3 T, {_MS_SMART}'),
            _slices(_pdw(2.9, 0.013, 0.013, 6), 0.98, 3, f'Philips 3 T, {_MS_SMART}'),
        ), snr=35.0, scale=500.0, storage='uint12', measured_fraction=(1.0, 0.85, 1.0)),
    ),
)  # fmt: skip

# --- Far fields ---

_FAR = (
    Scanner(  # portable: T1w is an inversion recovery fast spin echo there
        'portableV', 'Occident Spin', 'Breeze', Hardware(0.064, 1, 0.1, 0.05, 3.5, 3.0),
        _all((
            _volume(PulseSequence('T1w', 'IRFSE', 0.9, 0.006, 90.0, 0.3, echo_spacing=0.006, excitations=24),
                    (1.5, 1.5, 5.0), _PORTABLE),
            _volume(_t2w(2.0, 0.17, 0.006, 60), (1.5, 1.5, 5.0), _PORTABLE),
            _volume(_flair(4.0, 0.17, 1.45, 0.006, 60), (1.6, 1.6, 5.0), _PORTABLE),
            _volume(_pdw(2.0, 0.018, 0.006, 24), (1.6, 1.6, 5.0), TYPICAL),
        ), snr=12.0, scale=250.0, slice_axis=2, readout_axis=0, slice_factor=5, bandwidth=64.0, taper=0.5,
            measured_fraction=(0.9, 0.9, 1.0), motion_degrees=1.0, motion_millimetres=1.0, motion_events=1),
    ),
    Scanner(
        'lowfieldW', 'Boreal Resonance', 'Aurora Light', Hardware(0.55, 12, 0.25, 0.05, 1.5, 20.0),
        _all((
            _volume(_t1w(1.8, 0.005, 0.75, 10.0, 0.0105, 120), (1.2, 1.2, 1.2), TYPICAL, bandwidth=120.0),
            _slices(_t2w(5.5, 0.105, 0.013, 14), 0.9, 5, TYPICAL, gap=1),
            _slices(_flair(8.0, 0.11, 2.3, 0.013, 12), 1.0, 5, TYPICAL, gap=1),
            _slices(_pdw(3.0, 0.026, 0.013, 8), 1.0, 4, TYPICAL),
        ), snr=16.0, scale=350.0, bandwidth=110.0),
    ),
    Scanner(
        'ultraX', 'Boreal Resonance', 'Aurora Ultra', Hardware(7.0, 32, 0.6, 0.45, 1.5, 220.0),
        _all((
            _volume(_t1w(2.6, 0.0026, 1.1, 6.0, 0.0068, 224), (0.7, 0.7, 0.7), f'7 T MPRAGE; {TYPICAL}', bandwidth=300.0),
            _slices(_t2w(8.0, 0.06, 0.01, 9), 0.6, 2, TYPICAL, bandwidth=250.0),
            _volume(_flair(8.0, 0.08, 2.3, 0.004, 160), (0.8, 0.8, 0.8), TYPICAL, bandwidth=600.0),
            _slices(_pdw(6.0, 0.0105, 0.0105, 6), 0.6, 2, TYPICAL, bandwidth=250.0),
        ), snr=35.0, scale=220.0, storage='uint12', acceleration=2.5),
    ),
)  # fmt: skip

#: The built-in scanners, in the order in which they are taken. All have T1w, T2w, FLAIR and PDw.
PRESETS: tuple[Scanner, ...] = _FIRST + _LOW_CLINICAL + _THREE_TESLA + _FAR
