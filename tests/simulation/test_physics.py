from __future__ import annotations

import math

import numpy as np
import pytest

from bidsharm.errors import UsageError
from bidsharm.simulation.anatomy import TISSUES, Anatomy
from bidsharm.simulation.physics import (
    RELAXATION,
    PulseSequence,
    Relaxation,
    acquire,
    add_noise,
    bias_field,
    flair_signal,
    ideal_image,
    mprage_signal,
    quantize,
    spin_echo_signal,
    tissue_signals,
)
from bidsharm.simulation.scanners import SCANNERS

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


@pytest.mark.parametrize('field_strength', [1.5, 3.0])
@pytest.mark.parametrize('tissue', ['CSF', 'GM', 'WM', 'scalp'])
def test_mprage_equals_the_bloch_equations_stepped_to_the_steady_state(tissue: str, field_strength: float):
    t = RELAXATION[field_strength][tissue]
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
    expected = t.pd * seen * math.exp(-te / t.t2)
    signal = mprage_signal(t, tr=tr, te=te, ti=ti, flip=flip, echo_spacing=spacing, excitations=count)
    assert signal == pytest.approx(expected, rel=1e-9)


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
    with pytest.raises(UsageError, match=r'1\.5, 3'):
        tissue_signals(SCANNERS[0].sequence('T1w'), 2.0)


@pytest.mark.parametrize('scanner', SCANNERS, ids=lambda scanner: scanner.label)
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
    assert flair['GM'] > flair['WM'] > 10 * flair['CSF']
    assert t1w['skull'] == 0 < t1w['WM'] < t1w['scalp']


def test_partial_volume_mixes_signed_signals_before_the_magnitude():
    sequence = PulseSequence('T1w', 'IRSE', 10, 0.001, inversion_time=0.9)
    signals = tissue_signals(sequence, 3.0)
    csf, wm = signals[TISSUES.index('CSF')], signals[TISSUES.index('WM')]
    assert csf < 0 < wm
    half = Anatomy((uniform('CSF').fractions + uniform('WM').fractions) / 2, np.eye(4))
    image = ideal_image(half, sequence, 3.0, 100)
    np.testing.assert_allclose(image, 100 * abs(csf + wm) / 2 / abs(wm), rtol=1e-5)


@pytest.mark.parametrize('scanner', SCANNERS, ids=lambda scanner: scanner.label)
def test_white_matter_gets_the_scale_of_the_scanner(scanner):
    for contrast in ('T1w', 'T2w', 'FLAIR'):
        image = ideal_image(uniform('WM'), scanner.sequence(contrast), scanner.field_strength, scanner.scale)
        np.testing.assert_allclose(image, scanner.scale, rtol=1e-6)


def test_without_bias_and_noise_the_scan_is_the_ideal_image_rounded():
    rng = np.random.default_rng(0)
    ideal = rng.uniform(0, 900, (12, 10, 8)).astype(np.float32)
    assert np.array_equal(
        acquire(ideal, bias_strength=0, snr=np.inf, white_matter=500, rng=rng),
        np.rint(ideal).astype(np.int16),
    )
    whole = np.rint(ideal)
    assert np.array_equal(acquire(whole, bias_strength=0, snr=np.inf, white_matter=500, rng=rng), whole)


@pytest.mark.parametrize('snr', [10, 40])
def test_the_requested_snr_is_reached(snr: float):
    ideal = np.full((40, 40, 40), 800, dtype=np.float32)
    scan = acquire(ideal, bias_strength=0, snr=snr, white_matter=800, rng=np.random.default_rng(1)).astype(
        float
    )
    assert scan.mean() / scan.std() == pytest.approx(snr, rel=0.02)


def test_noise_of_air_is_rayleigh_and_of_signal_is_rician():
    rng = np.random.default_rng(2)
    air = add_noise(np.zeros((60, 60, 60), dtype=np.float32), 5, rng)
    assert air.mean() == pytest.approx(5 * math.sqrt(math.pi / 2), rel=0.01)
    assert air.std() == pytest.approx(5 * math.sqrt(2 - math.pi / 2), rel=0.01)
    signal = add_noise(np.full((60, 60, 60), 20, dtype=np.float32), 5, rng)
    assert (signal.astype(float) ** 2).mean() == pytest.approx(
        20**2 + 2 * 5**2, rel=0.01
    )  # second moment of Rice


def test_bias_field_is_smooth_bounded_and_absent_at_zero():
    assert np.all(bias_field((9, 8, 7), 0, np.random.default_rng(3)) == 1)
    field = np.log(bias_field((50, 50, 50), 0.3, np.random.default_rng(3)))
    assert np.abs(field).max() == pytest.approx(0.3, rel=1e-4)
    assert max(np.abs(step).max() for step in np.gradient(field)) < 0.3 * 0.25
    assert field.std() > 0.02
    other = np.log(bias_field((50, 50, 50), 0.3, np.random.default_rng(4)))
    assert np.abs(field - other).max() > 0.05


def test_bias_multiplies_the_signal_but_not_the_noise():
    ideal = np.full((30, 30, 30), 1000, dtype=np.float32)
    scan = acquire(ideal, bias_strength=0.4, snr=np.inf, white_matter=1000, rng=np.random.default_rng(5))
    field = bias_field((30, 30, 30), 0.4, np.random.default_rng(5))
    assert np.abs(scan - 1000 * field).max() <= 0.5
    air = acquire(0 * ideal, bias_strength=0.4, snr=10, white_matter=1000, rng=np.random.default_rng(5))
    assert air[:10].mean() == pytest.approx(air[-10:].mean(), rel=0.05)


def test_quantize_rounds_and_clips():
    image = np.array([-3, 0.4, 0.6, 40000], dtype=np.float32)
    assert quantize(image).tolist() == [0, 0, 1, 32767]
    assert quantize(image).dtype == np.int16
