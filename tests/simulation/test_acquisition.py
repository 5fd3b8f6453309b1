"""Signals of mixed tissue under uneven fields, against the signal equations voxel by voxel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bidsharm.errors import UsageError
from bidsharm.simulation.acquisition import (
    TEXTURE,
    acquire,
    canonical_image,
    gradient_error,
    signal_image,
    tissue_of_person,
)
from bidsharm.simulation.anatomy import TISSUES, Anatomy
from bidsharm.simulation.physics import PulseSequence, tissue_signals
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.protocols import Hardware, Scanner, draw_scanner
from bidsharm.simulation.relaxation import relaxation

MPRAGE = PulseSequence('T1w', 'MPRAGE', 2.3, 0.003, 9.0, 0.9, echo_spacing=0.007, excitations=160)
T2W = PulseSequence('T2w', 'FSE', 6.0, 0.1, echo_spacing=0.0105, excitations=16)
SHAPE = (4, 3, 5)


def mixed(seed: int = 0) -> torch.Tensor:
    """Every tissue a little, everywhere."""
    fractions = np.random.default_rng(seed).dirichlet(np.ones(len(TISSUES)), SHAPE)
    return torch.from_numpy(np.moveaxis(fractions, -1, 0).astype(np.float32))


@pytest.mark.parametrize('sequence', [MPRAGE, T2W], ids=['MPRAGE', 'FSE'])
@pytest.mark.parametrize('field_strength', [0.064, 1.5, 3.0, 7.0])
def test_tissues_add_up_with_their_signs(sequence, field_strength):
    fractions = mixed()
    expected = np.tensordot(tissue_signals(sequence, field_strength), fractions.numpy(), axes=1)
    np.testing.assert_allclose(
        signal_image(fractions, sequence, field_strength), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('sequence', [MPRAGE, T2W], ids=['MPRAGE', 'FSE'])
def test_the_transmit_field_turns_less_or_more(sequence):
    fractions = mixed()
    transmit = torch.from_numpy(np.random.default_rng(1).uniform(0.6, 1.4, SHAPE).astype(np.float32))
    image = signal_image(fractions, sequence, 3.0, transmit=transmit)
    for place in np.ndindex(SHAPE):
        signals = [sequence.signal(relaxation(name, 3.0), b1=float(transmit[place])) for name in TISSUES]
        assert float(image[place]) == pytest.approx(
            float(fractions[(slice(None), *place)].numpy() @ signals), rel=0.02
        )
    even = signal_image(fractions, sequence, 3.0, transmit=torch.ones(SHAPE))
    torch.testing.assert_close(even, signal_image(fractions, sequence, 3.0), rtol=1e-3, atol=1e-5)


def test_people_differ_in_their_tissue():
    fractions, factors = mixed(), {'WM': (1.1, 0.95)}
    found = tissue_of_person('WM', 3.0, factors)
    usual = relaxation('WM', 3.0)
    assert (found.t1 / usual.t1, found.pd / usual.pd) == (pytest.approx(1.1), pytest.approx(0.95))
    assert tissue_of_person('GM', 3.0, factors) == relaxation('GM', 3.0)
    change = signal_image(fractions, MPRAGE, 3.0, factors=factors) - signal_image(fractions, MPRAGE, 3.0)
    expected = MPRAGE.signal(found) - MPRAGE.signal(usual)
    np.testing.assert_allclose(change, expected * fractions[TISSUES.index('WM')], rtol=1e-3, atol=1e-6)


def test_texture_is_a_small_change_of_t1_and_proton_density():
    white = torch.zeros((len(TISSUES), *SHAPE))
    white[TISSUES.index('WM')] = 1
    texture = torch.zeros((2, *SHAPE))
    texture[0, 0], texture[1, 1] = 1.0, -2.0
    image = signal_image(white, MPRAGE, 3.0, texture=texture)
    t1, pd = TEXTURE['WM']
    plain = MPRAGE.signal(relaxation('WM', 3.0))
    longer = MPRAGE.signal(tissue_of_person('WM', 3.0, {'WM': (np.exp(t1), 1.0)}))
    assert float(image[0, 0, 0]) == pytest.approx(longer, rel=2e-3)
    assert float(image[1, 0, 0]) == pytest.approx(plain * (1 - 2 * pd), rel=1e-5)
    assert float(image[2, 0, 0]) == pytest.approx(plain, rel=1e-5)
    fluid = torch.zeros((len(TISSUES), *SHAPE))
    fluid[TISSUES.index('CSF')] = 1
    torch.testing.assert_close(
        signal_image(fluid, MPRAGE, 3.0, texture=texture), signal_image(fluid, MPRAGE, 3.0)
    )


# Whole scans


def uniform(tissue: str, shape: tuple[int, int, int] = (40, 40, 40)) -> Anatomy:
    fractions = np.zeros((len(TISSUES), *shape), np.float32)
    fractions[TISSUES.index(tissue)] = 1
    return Anatomy(fractions, np.diag([2.0, 2, 2, 1]))


def ideal_scanner(contrast: str = 'T1w', hardware: dict[str, Any] | None = None, **protocol: Any) -> Scanner:
    """Return the first scanner without any error, but for what is given."""
    plain: dict[str, Any] = {
        'snr': 10_000.0, 'taper': 0.0, 'measured_fraction': (1.0, 1.0, 1.0), 'partial_fourier': 1.0, 'scale': 500.0
    }  # fmt: skip
    chosen = replace(PRESETS[0].protocol(contrast), **{**plain, **protocol})
    return replace(PRESETS[0], hardware=Hardware(3.0, **(hardware or {})), protocols=(chosen,))


def scan_of(anatomy: Anatomy, scanner: Scanner, seed: int = 0, contrast: str = 'T1w') -> Any:
    return acquire(anatomy, scanner, contrast, np.random.default_rng(seed))


@pytest.mark.parametrize('contrast', ['T1w', 'T2w', 'FLAIR', 'PDw'])
def test_without_errors_the_scan_is_the_noiseless_image(contrast, small_head):
    scan = scan_of(small_head, ideal_scanner(contrast), contrast=contrast)
    assert np.abs(scan.stored - scan.noiseless).max() < 1  # rounding, and the last bit of noise
    assert scan.stored.dtype == np.int16
    white = small_head.part('WM') > 0.99
    np.testing.assert_allclose(scan.noiseless[white], 500, rtol=0.04)  # a trace of fluid is bright in a T2w


@pytest.mark.parametrize('snr', [10.0, 40.0])
@pytest.mark.parametrize('coils', [1, 8])
def test_the_requested_snr_is_reached(snr, coils):
    scanner = ideal_scanner(snr=snr, combined_coils=coils, hardware={'receive_coils': 8}, scale=5000.0)
    stored = scan_of(uniform('WM'), scanner).stored.astype(float)
    assert 5000 / stored.std() == pytest.approx(snr, rel=0.05)
    # A magnitude is biased upwards: its second moment is that of signal and noise.
    expected = 5000**2 * (1 + 2 * coils / snr**2)
    assert (stored**2).mean() == pytest.approx(expected, rel=0.01)


def test_parallel_imaging_is_noisier_in_the_middle():
    scanner = ideal_scanner(snr=30.0, acceleration=3.0, hardware={'receive_coils': 8}, scale=5000.0)
    stored = scan_of(uniform('WM'), scanner).stored.astype(float)
    edge, middle = stored[:4].std(), stored[16:24, 16:24, 16:24].std()
    assert middle > 1.2 * edge
    assert edge > 1.5 * 5000 / 30


def test_every_error_leaves_its_mark_and_the_truth_alone(small_head):
    plain = scan_of(small_head, ideal_scanner())
    errors: dict[str, Scanner] = {
        'receive': ideal_scanner(hardware={'receive_coils': 8, 'receive_strength': 0.3}),
        'transmit': ideal_scanner(hardware={'transmit_deviation': 0.3}),
        'frequency': ideal_scanner(hardware={'off_resonance': 150.0}, bandwidth=120.0),
        'window': ideal_scanner(measured_fraction=(1.0, 0.6, 1.0), taper=0.5),
        'motion': ideal_scanner(motion_degrees=3.0, motion_millimetres=3.0, motion_events=3),
        'ghosts': ideal_scanner(ghost_intensity=0.2, ghost_count=2),
        'saturation': ideal_scanner(saturation=0.2),
    }
    seen = []
    for name, scanner in errors.items():
        scan = scan_of(small_head, scanner)
        np.testing.assert_array_equal(scan.noiseless, plain.noiseless, err_msg=name)
        changed = np.abs(scan.stored.astype(float) - plain.stored)
        assert changed.max() > 10, name
        seen.append(changed.sum())
    assert len(set(seen)) == len(errors)


def test_a_scan_depends_on_its_seed_only(small_head):
    scanner = PRESETS[1]
    one, again, other = (scan_of(small_head, scanner, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.stored, again.stored)
    assert (one.stored != other.stored).mean() > 0.3


def test_what_vendors_stretch_fills_the_range(small_head):
    scan = scan_of(small_head, ideal_scanner(storage='uint12', scale=None))
    assert (scan.stored.dtype, scan.stored.max()) == (np.uint16, 4095)
    assert np.abs(scan.stored - scan.noiseless).max() < 2


@pytest.mark.parametrize('seed', range(4))
def test_scanners_drawn_at_random_scan(seed, small_head):
    scanner = draw_scanner(np.random.default_rng(seed), f'r{seed}')
    for contrast in scanner.contrasts:
        scan = scan_of(small_head, scanner, contrast=contrast)
        inside = small_head.brain_mask
        assert np.isfinite(scan.noiseless).all()
        assert np.corrcoef(scan.stored[inside], scan.noiseless[inside])[0, 1] > 0.3


def test_the_canonical_image_is_that_of_the_first_scanner(small_head):
    image = canonical_image(small_head, 'T1w')
    np.testing.assert_allclose(
        image * 500, scan_of(small_head, ideal_scanner()).noiseless, rtol=1e-4, atol=1e-3
    )
    with pytest.raises(UsageError, match='no bold'):
        canonical_image(small_head, 'bold')


def test_gradients_move_the_corners_most():
    shape, affine = (40, 44, 36), np.diag([5.0, 5, 5, 1])
    assert gradient_error(shape, affine, Hardware(3.0), np.random.default_rng(0)) is None
    error = gradient_error(shape, affine, Hardware(3.0, gradient_error=2.0), np.random.default_rng(0))
    length = np.sqrt((error**2).sum(axis=0))
    assert length.max() == pytest.approx(2, rel=1e-3)
    assert length[15:25, 17:27, 13:23].max() < 0.3
