from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bidsharm.errors import UsageError
from bidsharm.simulation.anatomy import TISSUES, Anatomy
from bidsharm.simulation.physics import (
    PulseSequence,
    fast_spin_echo_signal,
    flair_signal,
    mprage_signal,
    spin_echo_signal,
    spoiled_gradient_echo_signal,
    tissue_signals,
)
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.relaxation import Relaxation, relaxation

UNIT = Relaxation(t1=1.0, t2=1.0, pd=0.5, source='made up')
LN2 = math.log(2)


def uniform(tissue: str, shape: tuple[int, int, int] = (40, 40, 40)) -> Anatomy:
    fractions = np.zeros((len(TISSUES), *shape), dtype=np.float32)
    fractions[TISSUES.index(tissue)] = 1
    return Anatomy(fractions, np.eye(4))


def test_spin_echo_by_hand():
    # TE = ln 2 and TR = 3 ln 2: exp(-TE/T2) = 1/2, exp(-TR/T1) = 1/8, exp(-(TR - TE/2)/T1) = sqrt(2)/8.
    expected = 0.5 * (1 - 2 * math.sqrt(2) / 8 + 1 / 8) / 2
    assert spin_echo_signal(UNIT, tr=3 * LN2, te=LN2) == pytest.approx(expected, rel=1e-12)


def test_spin_echo_of_short_te_and_long_tr_is_proton_density():
    assert spin_echo_signal(UNIT, tr=50, te=1e-9) == pytest.approx(0.5, rel=1e-6)


def test_flair_by_hand():
    expected = 0.5 * (1 - 2 / 2 + 2 * math.sqrt(2) / 8 - 1 / 8) / 2
    assert flair_signal(UNIT, tr=3 * LN2, te=LN2, ti=LN2) == pytest.approx(expected, rel=1e-12)


def test_flair_nulls_a_fluid_at_t1_ln2_when_tr_is_long():
    assert flair_signal(UNIT, tr=60, te=1e-9, ti=LN2) == pytest.approx(0, abs=1e-12)


def test_mprage_with_vanishing_flip_is_plain_inversion_recovery():
    # exp(-TI/T1) = 1/2 and exp(-TR/T1) = 1/4: 1 - 2 (1/2) / (1 + 1/4) = 1/5.
    flip = 1e-4
    signal = mprage_signal(UNIT, tr=2 * LN2, te=0, ti=LN2, flip=flip, echo_spacing=0.001, excitations=2)
    assert signal / (0.5 * math.sin(math.radians(flip))) == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize('field_strength', [0.064, 1.5, 3.0, 7.0])
@pytest.mark.parametrize('tissue', ['CSF', 'GM', 'WM', 'scalp'])
def test_mprage_equals_the_bloch_equations_stepped_to_the_steady_state(tissue: str, field_strength: float):
    t = relaxation(tissue, field_strength)
    tr, te, ti, flip, spacing, count = 2.3, 0.003, 0.9, 9.0, 0.007, 160
    z, seen = 1.0, 0.0

    def relax(z: float, time: float) -> float:
        return 1 + (z - 1) * math.exp(-time / t.t1)

    for _ in range(60):
        z = relax(-z, ti - count / 2 * spacing)
        for pulse in range(count):
            if pulse == count // 2:
                seen = z * math.sin(math.radians(flip))
            z = relax(z * math.cos(math.radians(flip)), spacing)
        z = relax(z, tr - ti - count / 2 * spacing)
    expected = t.pd * seen * math.exp(-te / t.t2_star)
    signal = mprage_signal(t, tr=tr, te=te, ti=ti, flip=flip, echo_spacing=spacing, excitations=count)
    assert signal == pytest.approx(expected, rel=1e-9)


def test_spoiled_gradient_echo_by_hand():
    # exp(-TR/T1) = 1/2 at TR = ln 2; 60 degrees: cos = 1/2, sin = sqrt(3)/2; exp(-TE/T2*) = 1/2.
    expected = 0.5 * math.sqrt(3) / 2 * (1 / 2) / (1 - 1 / 4) / 2
    assert spoiled_gradient_echo_signal(UNIT, tr=LN2, te=LN2, flip=60) == pytest.approx(expected, rel=1e-12)


def test_spoiled_gradient_echo_is_largest_at_the_ernst_angle():
    tissue, tr = relaxation('WM', 3.0), 0.02
    flips = np.linspace(1, 90, 8901)
    best = flips[np.argmax(spoiled_gradient_echo_signal(tissue, tr=tr, te=0.003, flip=flips))]
    assert best == pytest.approx(math.degrees(math.acos(math.exp(-tr / tissue.t1))), abs=0.01)


def test_fast_spin_echo_by_hand():
    # exp(-(TR - train)/T1) = 1/4, exp(-TE/T2) = 1/2, exp(-TI/T1) = 1/2.
    timing = {'tr': 3 * LN2, 'te': LN2, 'train': LN2}
    assert fast_spin_echo_signal(UNIT, **timing) == pytest.approx(0.5 * 3 / 4 / 2, rel=1e-12)
    assert fast_spin_echo_signal(UNIT, ti=LN2, **timing) == pytest.approx(
        0.5 * (1 - 1 + 1 / 4) / 2, rel=1e-12
    )


@pytest.mark.parametrize('changes', [{'train': 0.05}, {'ti': 2.0}, {'train': 3.0}])
def test_impossible_fast_spin_echo_is_refused(changes: dict[str, float]):
    with pytest.raises(UsageError):
        fast_spin_echo_signal(UNIT, **({'tr': 2.2, 'te': 0.1, 'train': 0.3, 'ti': 0.0} | changes))


SEQUENCES = (
    PulseSequence('T1w', 'MPRAGE', 2.3, 0.003, 9.0, 0.9, echo_spacing=0.007, excitations=160),
    PulseSequence('T1w', 'SPGR', 0.02, 0.004, 20.0),
    PulseSequence('T2w', 'SE', 4.0, 0.09),
    PulseSequence('T2w', 'FSE', 4.0, 0.09, echo_spacing=0.01, excitations=16),
    PulseSequence('FLAIR', 'IRSE', 9.0, 0.12, inversion_time=2.5),
    PulseSequence('FLAIR', 'IRFSE', 9.0, 0.12, inversion_time=2.5, echo_spacing=0.01, excitations=20),
)


@pytest.mark.parametrize('sequence', SEQUENCES, ids=lambda sequence: sequence.kind)
def test_a_transmit_field_acts_like_other_flip_angles(sequence: PulseSequence):
    tissue = relaxation('GM', 3.0)
    b1 = np.array([0.7, 1.0, 1.2])
    several = sequence.signal(tissue, b1=b1)
    assert several.shape == b1.shape
    assert several[1] == pytest.approx(sequence.signal(tissue), rel=1e-12)
    assert several == pytest.approx([sequence.signal(tissue, b1=value) for value in b1], rel=1e-12)
    if sequence.kind in ('MPRAGE', 'SPGR'):
        changed = replace(sequence, flip_angle=0.7 * sequence.flip_angle)
        assert several[0] == pytest.approx(changed.signal(tissue), rel=1e-12)
    else:  # the echo of a spin echo is sin(a) sin(b/2)^2 (Hahn 1950)
        assert several[0] / several[1] == pytest.approx(math.sin(math.radians(63)) ** 3, rel=1e-12)


def test_fast_spin_echoes_lose_signal_where_protons_are_bound():
    fast = SEQUENCES[3]
    for name, loss in (('WM', 0.2), ('GM', 0.2 * 6.3 / 11.2), ('CSF', 0.0)):
        tissue = relaxation(name, 3.0)
        alone = fast_spin_echo_signal(tissue, tr=4.0, te=0.09, train=0.16)
        assert fast.signal(tissue) == pytest.approx((1 - loss) * alone, rel=1e-9)


#: Typical intensity of grey matter over white matter in real scans of these contrasts (BIDSHARM_REAL_DATA: 8 T1w, 8 T2w, 7 FLAIR;
#: benchmarks/results/participant.md names the run), with some room for partial volume.
REAL_RATIOS = {'T1w': (0.55, 0.9), 'T2w': (1.25, 1.6), 'FLAIR': (1.05, 1.3)}


@pytest.mark.parametrize('scanner', PRESETS[:4], ids=lambda scanner: scanner.label)
@pytest.mark.parametrize('contrast', REAL_RATIOS)
def test_tissue_contrast_is_that_of_real_scans(scanner, contrast):
    signals = dict(
        zip(TISSUES, np.abs(tissue_signals(scanner.sequence(contrast), scanner.field_strength)), strict=True)
    )
    low, high = REAL_RATIOS[contrast]
    assert low < signals['GM'] / signals['WM'] < high


@pytest.mark.parametrize('sequence', SEQUENCES, ids=lambda sequence: sequence.kind)
def test_sidecars_hold_what_was_played(sequence: PulseSequence):
    content = sequence.sidecar()
    assert content['EchoTime'] == sequence.echo_time
    assert ('InversionTime' in content) == (sequence.kind in ('MPRAGE', 'IRSE', 'IRFSE'))
    assert content.get('EchoTrainLength', 0) == (sequence.excitations if 'FSE' in sequence.kind else 0)


@pytest.mark.parametrize('changes', [{'ti': 0.2}, {'tr': 1.2}, {'excitations': 0}, {'echo_spacing': 0.0}])
def test_impossible_mprage_is_refused(changes: dict[str, float]):
    timing = {
        'tr': 2.3,
        'te': 0.003,
        'ti': 0.9,
        'flip': 9,
        'echo_spacing': 0.007,
        'excitations': 160,
    } | changes
    with pytest.raises(UsageError):
        mprage_signal(UNIT, **timing)


def test_unknown_field_strength_names_the_known_ones():
    with pytest.raises(UsageError, match=r'0\.05 to 7\.5 T'):
        tissue_signals(PRESETS[0].sequence('T1w'), 9.4)


@pytest.mark.parametrize('scanner', PRESETS[:4], ids=lambda scanner: scanner.label)
def test_every_scanner_has_the_contrast_that_its_images_are_named_for(scanner):
    def look(contrast: str) -> dict[str, float]:
        return dict(
            zip(
                TISSUES,
                np.abs(tissue_signals(scanner.sequence(contrast), scanner.field_strength)),
                strict=True,
            )
        )

    t1w, t2w, flair = look('T1w'), look('T2w'), look('FLAIR')
    assert t1w['WM'] > 1.2 * t1w['GM'] > 1.2 * 2 * t1w['CSF']
    assert t2w['CSF'] > 1.2 * t2w['GM'] > 1.2 * 1.2 * t2w['WM']
    assert flair['GM'] > flair['WM'] > 5 * flair['CSF']
    assert t1w['skull'] == 0 < t1w['WM'] < t1w['scalp']
