from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsharm.errors import UsageError
from bidsharm.settings import CONTRASTS
from bidsharm.simulation import presets
from bidsharm.simulation.anatomy import TISSUES
from bidsharm.simulation.physics import PulseSequence, tissue_signals
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.protocols import (
    RANGES,
    STORAGE_TOP,
    Hardware,
    Protocol,
    Scanner,
    draw_scanner,
    looks_right,
    read_scanners,
)

EVERY = pytest.mark.parametrize('scanner', PRESETS, ids=lambda scanner: scanner.label)
SEEDS = st.integers(0, 2**32 - 1)
NORTH = PRESETS[0]
SPIN_ECHO = PulseSequence('T2w', 'SE', 4.0, 0.1)
SLICES = Protocol(
    SPIN_ECHO, (0.5, 0.5, 6.0), 'made up', acquisition_type='2D', slice_axis=2, phase_axis=0, readout_axis=1,
    slice_factor=5, slice_gap=1,
)  # fmt: skip


def drawn(seed: int) -> Scanner:
    return draw_scanner(np.random.default_rng(seed), 'drawn')


def signals(scanner: Scanner, contrast: str) -> dict[str, float]:
    values = tissue_signals(scanner.sequence(contrast), scanner.field_strength)
    return dict(zip(TISSUES, np.abs(values), strict=True))


# --- Presets ---


def test_there_are_many_presets_and_the_first_four_are_those_of_the_demo():
    labels = [scanner.label for scanner in PRESETS]
    assert labels[:4] == ['northA', 'southB', 'eastC', 'westD']
    assert len(set(labels)) == len(labels) >= 14
    assert NORTH.sequence('T1w') == PulseSequence(
        'T1w', 'MPRAGE', 2.3, 0.003, 9.0, 0.9, echo_spacing=0.007, excitations=160
    )
    assert [scanner.protocol('T1w').scale for scanner in PRESETS[:4]] == [500, 1400, 220, 900]
    assert {scanner.field_strength for scanner in PRESETS} >= {0.064, 0.55, 1.5, 3.0, 7.0}


@EVERY
def test_every_preset_has_every_contrast_and_its_signals_are_finite(scanner: Scanner):
    assert scanner.contrasts == CONTRASTS
    for contrast in CONTRASTS:
        assert np.isfinite(tissue_signals(scanner.sequence(contrast), scanner.field_strength)).all()


@EVERY
def test_the_contrasts_of_a_preset_are_those_of_real_scans(scanner: Scanner):
    t1w, t2w, flair, pdw = (signals(scanner, contrast) for contrast in CONTRASTS)
    assert t1w['WM'] > 1.1 * t1w['GM'] > 1.1 * t1w['CSF']
    assert t2w['CSF'] > 1.5 * t2w['GM'] > 1.5 * t2w['WM']
    assert flair['CSF'] < 0.25 * min(flair['GM'], flair['WM'])
    assert pdw['GM'] > pdw['WM']
    # Far from the fields of hospitals T1 and T2 of grey and white matter no longer balance; see looks_right.
    low, high = (1.0, 1.3) if 1 <= scanner.field_strength <= 3 else (0.7, 1.7)
    assert low < flair['GM'] / flair['WM'] < high
    assert all(looks_right(protocol.sequence, scanner.field_strength) for protocol in scanner.protocols)


@EVERY
def test_the_source_of_every_protocol_is_a_document_that_is_listed_or_owned_to_be_typical(scanner: Scanner):
    documents = ('Fjell', 'MS-SMART', 'Alfaro-Almagro', 'PMC8542422', 'MRC CBU', 'ds001378', 'Arnold', 'HCP')
    for protocol in scanner.protocols:
        named = [name for name in documents if name in protocol.source]
        assert named or presets.TYPICAL in protocol.source
        assert all(name in str(presets.__doc__) for name in named)


def test_numbers_of_documents_are_in_the_presets():
    by_label = {scanner.label: scanner for scanner in PRESETS}
    hcp = by_label['canyonR'].protocol('T1w')
    assert hcp.voxel_size == (0.7, 0.7, 0.7)
    assert (hcp.sequence.repetition_time, hcp.sequence.inversion_time, hcp.sequence.flip_angle) == (
        2.4,
        1.0,
        8,
    )
    biobank = by_label['deltaQ'].protocol('T1w')
    assert (biobank.sequence.repetition_time, biobank.sequence.inversion_time, biobank.acceleration) == (
        2.0,
        0.88,
        2,
    )
    # GE: 450 ms to the first excitation, and half a train of 8.19 ms.
    betula = by_label['forestT'].sequence('T1w')
    assert betula.inversion_time == pytest.approx(0.45 + betula.excitations / 2 * 0.00819, abs=1e-3)


# --- Sidecars and geometry ---


def test_planes_make_slices_and_gaps():
    assert SLICES.plane_size == (0.5, 0.5, 1.0)
    assert SLICES.slice_thickness == 5.0
    sidecar = SLICES.sidecar()
    assert (sidecar['SliceThickness'], sidecar['SpacingBetweenSlices']) == (5.0, 6.0)
    assert (sidecar['MRAcquisitionType'], sidecar['SliceEncodingDirection']) == ('2D', 'k')
    assert sidecar['PhaseEncodingDirection'] == 'i'


def test_sidecar_tells_all_that_was_simulated():
    scanner = next(scanner for scanner in PRESETS if scanner.label == 'riverO')
    protocol, sidecar = scanner.protocol('T1w'), scanner.sidecar('T1w')
    expected = {
        'Manufacturer': 'Boreal Resonance', 'MagneticFieldStrength': 3.0, 'RepetitionTime': 2.25, 'EchoTime': 0.00298,
        'InversionTime': 0.9, 'FlipAngle': 9.0, 'SliceThickness': 1.0, 'PixelBandwidth': 230.0,
        'ParallelReductionFactorInPlane': 2.0, 'PartialFourier': 0.875, 'NumberReceiveCoilActiveElements': 32,
        'ReceiveCoilActiveElements': 'C1-32', 'MRAcquisitionType': '3D',
    }  # fmt: skip
    assert expected.items() <= sidecar.items()
    more = sidecar['SimulatedAcquisition']
    assert more['Snr'] == protocol.snr
    assert more['TransmitDeviation'] == scanner.hardware.transmit_deviation
    assert more['Source'] == protocol.source
    told = len(fields(Hardware)) + len(fields(Protocol)) + 1  # and the echo spacing
    unset = sum(getattr(protocol, item.name) is None for item in fields(Protocol))
    assert len(more) == told - unset - 9  # nine have names of their own
    assert 'ParallelReductionFactorInPlane' not in NORTH.sidecar('T1w')


@EVERY
def test_sidecars_are_safe_for_json(scanner: Scanner):
    for contrast in CONTRASTS:
        sidecar = scanner.sidecar(contrast)
        assert json.loads(json.dumps(sidecar, allow_nan=False)) == sidecar


def test_a_contrast_that_is_not_there_is_named_with_those_that_are():
    scanner = replace(NORTH, protocols=NORTH.protocols[:2])
    for method in (scanner.sequence, scanner.protocol, scanner.sidecar):
        with pytest.raises(UsageError, match=r'scanner northA: There is no FLAIR .* It has T1w, T2w\.'):
            method('FLAIR')


# --- Plain values and files ---


@EVERY
def test_plain_values_give_the_same_scanner_back(scanner: Scanner):
    assert Scanner.from_dict(json.loads(json.dumps(scanner.to_dict()))) == scanner


def test_what_has_a_default_may_be_left_out():
    sequence = {'contrast': 'T2w', 'kind': 'SE', 'repetition_time': 4, 'echo_time': 0.1}
    scanner = Scanner.from_dict(
        {
            'label': 'a1', 'manufacturer': 'M', 'model_name': 'N', 'hardware': {'field_strength': 3},
            'protocols': [{'sequence': sequence, 'voxel_size': [1, 1, 2], 'source': 'mine'}],
        }
    )  # fmt: skip
    assert scanner.protocol('T2w') == Protocol(SPIN_ECHO, (1.0, 1.0, 2.0), 'mine')
    assert type(scanner.field_strength) is float


def changed(**values: object) -> dict[str, object]:
    """Return plain values of a scanner with one thing changed: ``sequence__kind`` is the kind of its first sequence."""
    plain = replace(NORTH, protocols=NORTH.protocols[:1]).to_dict()
    for path, value in values.items():
        *parents, name = path.split('__')
        place = plain
        for parent in parents:
            place = plain['hardware'] if parent == 'hardware' else plain['protocols'][0]
            place = place['sequence'] if parent == 'sequence' else place
        place[name] = value
    return plain


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'lable': 'x'}, 'scanner: Unknown key "lable". Did you mean "label"?'),
        ({'hardware__coils_received': 3}, 'scanner.hardware: Unknown key "coils_received".'),
        ({'protocols__band_width': 3}, 'scanner.protocols[0]: Unknown key "band_width". Did you mean "bandwidth"?'),
        ({'sequence__echotime': 3}, 'scanner.protocols[0].sequence: Unknown key "echotime". Did you mean "echo_time"?'),
        ({'sequence__kind': 'EPI'}, "scanner.protocols[0].sequence.kind: 'EPI' cannot be used. Choose from MPRAGE"),
        ({'hardware__receive_coils': 3.5}, 'scanner.hardware.receive_coils: 3.5 is not of type int.'),
        ({'hardware__receive_coils': True}, 'scanner.hardware.receive_coils: True is not of type int.'),
        ({'hardware__field_strength': '3'}, "scanner.hardware.field_strength: '3' is not of type float."),
        ({'hardware__field_strength': 30}, 'scanner.hardware.field_strength: 30 is not between 0.05 and 7.5.'),
        ({'hardware': 3}, 'scanner.hardware: A table is needed, not 3.'),
        ({'protocols': {}}, 'scanner.protocols: A list is needed, not {}.'),
        ({'protocols': []}, 'A scanner needs at least one protocol.'),
        ({'protocols__voxel_size': [1, 1]}, 'scanner.protocols[0].voxel_size: A list of 3 is needed'),
        ({'protocols__voxel_size': [1, 1, 'x']}, "scanner.protocols[0].voxel_size[2]: 'x' is not of type float."),
        ({'protocols__snr': math.nan}, 'scanner.protocols[0].snr: nan is not between 1 and 10000.'),
        ({'protocols__storage': 'int8'}, "scanner.protocols[0].storage: 'int8' cannot be used."),
        ({'protocols__source': ''}, 'scanner.protocols[0].source: The source is missing.'),
        ({'protocols__readout_axis': 1}, 'Readout and phase axis are the same.'),
        ({'protocols__slice_gap': 1}, 'A volume has no gaps.'),
        ({'protocols__acquisition_type': '2D', 'protocols__slice_axis': 2}, 'The three axes of a slice must differ.'),
        ({'protocols__storage': 'uint8'}, 'White matter does not fit into uint8.'),
        ({'protocols__acceleration': 2, 'protocols__combined_coils': 2}, 'their noise is Rician.'),
        ({'protocols__combined_coils': 64}, 'scanner northA, T1w, combined_coils, acceleration: The scanner has fewer'),
        ({'protocols__bandwidth': 10, 'hardware__off_resonance': 500}, 'The image would fold over itself.'),
        ({'sequence__repetition_time': 2300}, 'sequence.repetition_time: 2300 is not between 0.002 and 30.'),
        ({'sequence__excitations': 300}, 'The excitations do not fit between two inversions.'),
        ({'sequence__echo_time': 0.0071}, 'The echo comes after the next excitation.'),
        ({'sequence__contrast': 'T3w'}, '"T3w" is none of T1w, T2w, FLAIR, PDw.'),
        ({'label': 'a-b'}, 'A scanner label may hold letters and digits only.'),
        ({'label': ''}, 'A scanner label may hold letters and digits only.'),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_place(change: dict[str, object], message: str):
    with pytest.raises(UsageError) as caught:
        Scanner.from_dict(changed(**change))
    assert message in str(caught.value)


def test_what_is_missing_is_named():
    values = changed()
    del values['hardware']
    with pytest.raises(UsageError, match='scanner: "hardware" is missing'):
        Scanner.from_dict(values)


def test_a_contrast_is_there_once():
    with pytest.raises(UsageError, match='scanner northA: A contrast is there twice'):
        replace(NORTH, protocols=NORTH.protocols[:1] * 2)


def test_an_inversion_must_fit():
    sequence = PulseSequence('FLAIR', 'IRSE', 2.0, 0.1, inversion_time=2.5)
    with pytest.raises(UsageError, match='The inversion does not fit'):
        replace(NORTH, protocols=(replace(SLICES, sequence=sequence),))


@pytest.mark.parametrize('suffix', ['.json', '.toml'])
def test_files_of_scanners_are_read(tmp_path: Path, suffix: str):
    import tomli_w

    path = tmp_path / f'mine{suffix}'
    content = {'scanners': [scanner.to_dict() for scanner in PRESETS]}
    path.write_text(json.dumps(content) if suffix == '.json' else tomli_w.dumps(content), encoding='utf-8')
    assert read_scanners(path) == PRESETS


def test_a_json_file_may_be_the_list(tmp_path: Path):
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps([NORTH.to_dict()]), encoding='utf-8')
    assert read_scanners(path) == (NORTH,)


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.json', '{', 'The scanners cannot be read'),
        ('a.toml', 'x = ', 'The scanners cannot be read'),
        ('a.yaml', '', r'\.json and \.toml'),
        ('a.json', '[]', 'There is no list of scanners'),
        ('a.toml', '', 'There is no list of scanners'),
        ('a.json', '{"scanner": []}', 'Unknown key "scanner". Did you mean "scanners"?'),
        ('a.json', '[{"label": 1}]', r'a\.json: scanners\[0\]: "manufacturer" is missing'),
        ('a.json', json.dumps([NORTH.to_dict()] * 2), 'Two scanners have the same label'),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text, encoding='utf-8')
    with pytest.raises(UsageError, match=message.replace('?', r'\?')):
        read_scanners(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match='No such file'):
        read_scanners(tmp_path / 'none.json')


# --- Random scanners ---


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_drawn_scanner_has_the_contrasts_that_it_says_and_comes_back_from_plain_values(seed: int):
    scanner = drawn(seed)
    assert scanner.contrasts == CONTRASTS
    assert Scanner.from_dict(json.loads(json.dumps(scanner.to_dict(), allow_nan=False))) == scanner
    for contrast in CONTRASTS:
        json.dumps(scanner.sidecar(contrast), allow_nan=False)
        found = signals(scanner, contrast)
        if contrast == 'T1w':
            assert found['WM'] > found['GM'] > found['CSF']
        elif contrast == 'T2w':
            assert found['CSF'] > found['GM'] > found['WM']
        elif contrast == 'FLAIR':
            assert found['CSF'] < min(found['GM'], found['WM'])
        else:
            assert found['GM'] > found['WM']


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_one_seed_is_one_scanner_and_contrasts_do_not_depend_on_each_other(seed: int):
    scanner = drawn(seed)
    assert drawn(seed) == scanner
    assert drawn(seed + 1) != scanner
    alone = draw_scanner(np.random.default_rng(seed), 'drawn', contrasts=('FLAIR',))
    assert alone.protocols == (scanner.protocol('FLAIR'),)
    assert alone.hardware == scanner.hardware


def within(name: str, value: float) -> bool:
    return RANGES[name].low <= value <= RANGES[name].high


def check_sequence(sequence: PulseSequence) -> None:
    if sequence.kind == 'MPRAGE':
        after = (
            sequence.repetition_time
            - sequence.inversion_time
            - sequence.excitations / 2 * sequence.echo_spacing
        )
        assert within('echo_spacing', sequence.echo_spacing)
        assert within('excitations', sequence.excitations)
        assert within('flip_mprage', sequence.flip_angle)
        assert RANGES['recovery'].low - 1e-3 <= after <= RANGES['recovery'].high + 1e-3
    elif sequence.kind == 'SPGR':
        assert within('repetition_spgr', sequence.repetition_time)
        assert within('flip_spgr' if sequence.contrast == 'T1w' else 'flip_pd', sequence.flip_angle)
    else:
        name = {'T1w': 'short', 'T2w': 't2', 'FLAIR': 'flair', 'PDw': 'pd'}[sequence.contrast]
        assert within(f'echo_{name}', sequence.echo_time)
        repetition = {'T1w': 'repetition_t1', 'FLAIR': 'repetition_flair'}.get(
            sequence.contrast, 'repetition_t2'
        )
        assert within(repetition, sequence.repetition_time)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_ranges_hold(seed: int):
    scanner = drawn(seed)
    hardware, field = scanner.hardware, scanner.field_strength
    assert within('field_strength', field)
    assert within('receive_coils', hardware.receive_coils)
    assert within('receive_strength', hardware.receive_strength)
    transmit = RANGES['transmit_per_tesla'].high * field + RANGES['transmit_coil'].high
    assert 0 <= hardware.transmit_deviation <= transmit + 1e-4
    assert within('gradient_error', hardware.gradient_error)
    assert hardware.off_resonance <= RANGES['off_resonance_per_tesla'].high * field + 0.01
    for protocol in scanner.protocols:
        check_sequence(protocol.sequence)
        flat = protocol.acquisition_type == '2D'
        assert within('voxel_2d' if flat else 'voxel', protocol.voxel_size[protocol.readout_axis])
        for name in ('snr', 'partial_fourier', 'taper', 'bandwidth', 'saturation'):
            assert within(name, getattr(protocol, name))
        assert all(within('measured_fraction', part) for part in protocol.measured_fraction)
        assert protocol.acceleration == 1 or within('acceleration', protocol.acceleration)
        assert protocol.scale is None or protocol.scale <= STORAGE_TOP[protocol.storage] / 4
        if flat:
            assert (
                RANGES['thickness'].low - 0.01 <= protocol.slice_thickness <= RANGES['thickness'].high + 0.01
            )


def test_ranges_say_what_they_are():
    for value in RANGES.values():
        assert value.low < value.high
        assert value.why
        assert not value.log or value.low > 0


def test_draws_go_beyond_the_presets():
    many = [drawn(seed) for seed in range(800)]

    def spread(scanners, value):
        found = [value(scanner) for scanner in scanners]
        return min(found), max(found)

    for value in (
        lambda scanner: scanner.hardware.receive_strength,
        lambda scanner: scanner.hardware.gradient_error,
        lambda scanner: scanner.hardware.transmit_deviation,
        lambda scanner: scanner.hardware.off_resonance,
        lambda scanner: scanner.field_strength,
        lambda scanner: scanner.hardware.receive_coils,
        lambda scanner: scanner.protocol('T1w').snr,
        lambda scanner: scanner.protocol('T1w').taper,
        lambda scanner: min(scanner.protocol('T1w').voxel_size),
        lambda scanner: scanner.sequence('T2w').repetition_time,
        lambda scanner: scanner.sequence('PDw').echo_time,
        lambda scanner: scanner.sequence('FLAIR').repetition_time,
        lambda scanner: scanner.sequence('FLAIR').echo_time,
        lambda scanner: scanner.sequence('T2w').echo_time,
        lambda scanner: scanner.protocol('FLAIR').bandwidth,
        lambda scanner: scanner.protocol('FLAIR').slice_thickness,
        lambda scanner: signals(scanner, 'T1w')['GM'] / signals(scanner, 'T1w')['WM'],
        lambda scanner: signals(scanner, 'T2w')['GM'] / signals(scanner, 'T2w')['WM'],
    ):
        (low, high), (least, most) = spread(PRESETS, value), spread(many, value)
        assert least <= low
        assert most >= high


@pytest.mark.parametrize(
    'arguments',
    [{'contrasts': ('T3w',)}, {'contrasts': ()}, {'contrasts': ('T1w', 'T1w')}, {'label': 'a b'}],
)
def test_impossible_draws_are_refused(arguments: dict[str, object]):
    with pytest.raises(UsageError):
        draw_scanner(np.random.default_rng(0), **{'label': 'a', **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    'make', [*(lambda i=i: PRESETS[i] for i in range(0, 24, 4)), *(lambda i=i: drawn(i) for i in range(12))]
)
def test_what_a_scanner_asks_for_can_be_simulated(make):
    scanner = make()
    torch = pytest.importorskip('torch')
    from bidsharm.simulation import artefacts

    generator = torch.Generator().manual_seed(0)
    for protocol in scanner.protocols:
        shape, hardware = (30, 30, 30), scanner.hardware
        x, y, z = protocol.voxel_size
        image = torch.rand(shape, generator=generator)
        error = artefacts.off_resonance(shape, (x, y, z), hertz=hardware.off_resonance, generator=generator)
        image = artefacts.readout_shift(
            image, error, bandwidth_per_pixel=protocol.bandwidth, axis=protocol.readout_axis
        )
        image = artefacts.slice_profile(
            image, factor=protocol.slice_factor, axis=protocol.slice_axis, gap=protocol.slice_gap
        )
        image = artefacts.kspace_window(
            image, resolution_fraction=protocol.measured_fraction, taper=protocol.taper,
            partial_fourier=protocol.partial_fourier, partial_axis=protocol.phase_axis,
        ).clamp_min(0)  # fmt: skip
        image = artefacts.motion(
            image, (x, y, z), degrees=protocol.motion_degrees, millimetres=protocol.motion_millimetres,
            events=protocol.motion_events, axis=protocol.phase_axis, generator=generator,
        )  # fmt: skip
        image = artefacts.ghosting(
            image, intensity=protocol.ghost_intensity, count=protocol.ghost_count, axis=protocol.phase_axis
        )
        stored = artefacts.store(
            image, scale=protocol.scale, kind=protocol.storage, saturation=protocol.saturation
        )
        assert stored.max() > 0
