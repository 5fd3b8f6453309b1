from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from bidsharm.errors import UsageError
from bidsharm.simulation import artefacts
from bidsharm.simulation.artefacts import (
    CENTRE,
    add_noncentral_chi,
    add_parallel_noise,
    add_rician,
    apply_displacement,
    geometry_factor,
    ghosting,
    gradient_displacement,
    kspace_window,
    motion,
    off_resonance,
    readout_shift,
    receive_field,
    slice_profile,
    store,
    transmit_field,
)

SHAPE = (27, 33, 25)
SPACING = (8.0, 7.5, 8.5)


def seeded(seed: int = 3) -> Generator:
    return Generator().manual_seed(seed)


def blob(shape: tuple[int, int, int] = SHAPE, width: float = 0.3) -> Tensor:
    """Return a smooth bump that vanishes at the faces, a little off the centre."""
    axes = [torch.linspace(-1, 1, size) for size in shape]
    x, y, z = torch.meshgrid(*axes, indexing='ij')
    return torch.exp(-((x - 0.1) ** 2 + (y + 0.05) ** 2 + z**2) / (2 * width**2))


def point(shape: tuple[int, int, int], place: tuple[int, int, int], value: float = 1) -> Tensor:
    image = torch.zeros(shape)
    image[place] = value
    return image


def central(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    axes = [(2 * torch.arange(size) + 1 - size) / size for size in shape]
    x, y, z = torch.meshgrid(*axes, indexing='ij')
    return x**2 + y**2 + z**2 <= CENTRE**2


def curvature(field: Tensor) -> float:
    """Return the largest second difference between neighbours, relative to the range."""
    largest = max(float(field.diff(n=2, dim=axis).abs().max()) for axis in range(3))
    return largest / float(field.max() - field.min())


IMAGE_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # name: (asking for nothing, asking for something)
    'displacement': (
        lambda image: apply_displacement(image, torch.zeros(3, *SHAPE), SPACING, jacobian=True),
        lambda image: apply_displacement(
            image, gradient_displacement(SHAPE, SPACING, millimetres=9, generator=seeded()), SPACING
        ),
    ),
    'readout': (
        lambda image: readout_shift(image, torch.zeros(SHAPE), bandwidth_per_pixel=200, axis=1),
        lambda image: readout_shift(
            image,
            off_resonance(SHAPE, SPACING, hertz=150, generator=seeded()),
            bandwidth_per_pixel=200,
            axis=1,
        ),
    ),
    'kspace': (
        kspace_window,
        lambda image: kspace_window(
            image, resolution_fraction=(0.7, 0.6, 0.5), taper=0.3, partial_fourier=0.75
        ),
    ),
    'slices': (
        lambda image: slice_profile(image, factor=1, axis=2),
        lambda image: slice_profile(image, factor=4, axis=2, gap=1),
    ),
    'rician': (
        lambda image: add_rician(image, sigma=0, generator=seeded()),
        lambda image: add_rician(image, sigma=0.1, generator=seeded()),
    ),
    'chi': (
        lambda image: add_noncentral_chi(image, sigma=0, coils=8, generator=seeded()),
        lambda image: add_noncentral_chi(image, sigma=0.1, coils=8, generator=seeded()),
    ),
    'parallel': (
        lambda image: add_parallel_noise(image, sigma=0, acceleration=3, generator=seeded()),
        lambda image: add_parallel_noise(image, sigma=0.1, acceleration=3, generator=seeded()),
    ),
    'motion without events': (
        lambda image: motion(image, SPACING, degrees=4, millimetres=4, events=0, axis=1, generator=seeded()),
        lambda image: motion(image, SPACING, degrees=4, millimetres=4, events=3, axis=1, generator=seeded()),
    ),
    'motion without movement': (
        lambda image: motion(image, SPACING, degrees=0, millimetres=0, events=3, axis=0, generator=seeded()),
        lambda image: motion(image, SPACING, degrees=0, millimetres=5, events=1, axis=0, generator=seeded()),
    ),
    'ghosts': (
        lambda image: ghosting(image, intensity=0, count=4, axis=1),
        lambda image: ghosting(image, intensity=0.3, count=4, axis=1),
    ),
}


@pytest.mark.parametrize('name', IMAGE_FUNCTIONS)
def test_an_image_passes_unchanged_or_is_changed_into_a_new_one(name: str):
    nothing, something = IMAGE_FUNCTIONS[name]
    image = blob()
    before = image.clone()
    assert nothing(image) is image
    first, second = something(image), something(image)
    assert torch.equal(image, before)
    assert torch.equal(first, second)  # the same seed
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert first.shape != image.shape or float((first - image).abs().max()) > 1e-3


FIELDS: dict[str, Callable[[float, Generator], Tensor]] = {
    'receive': lambda amount, rng: receive_field(SHAPE, SPACING, coils=8, strength=amount, generator=rng),
    'transmit': lambda amount, rng: transmit_field(SHAPE, SPACING, deviation=amount, generator=rng),
    'gradients': lambda amount, rng: gradient_displacement(SHAPE, SPACING, millimetres=amount, generator=rng),
    'frequency': lambda amount, rng: off_resonance(SHAPE, SPACING, hertz=amount, generator=rng),
}


@pytest.mark.parametrize('name', FIELDS)
def test_a_field_is_flat_for_zero_and_follows_its_seed(name: str):
    draw = FIELDS[name]
    flat = draw(0, seeded())
    assert torch.equal(flat, torch.full_like(flat, 1.0 if name in ('receive', 'transmit') else 0.0))
    field = draw(0.3, seeded(1))
    assert field.shape == flat.shape
    assert field.dtype == torch.float32
    assert torch.equal(field, draw(0.3, seeded(1)))
    assert not torch.allclose(field, draw(0.3, seeded(2)), atol=0.01)
    with pytest.raises(UsageError):
        draw(-0.1, seeded())
    with pytest.raises(UsageError):
        draw(math.nan, seeded())


@settings(max_examples=20, deadline=None)
@given(coils=st.integers(1, 64), strength=st.floats(0.01, 1), seed=st.integers(0, 2**31))
def test_receive_field_has_geometric_mean_one_and_the_strength_asked_for(coils, strength, seed):
    field = receive_field(SHAPE, SPACING, coils=coils, strength=strength, generator=seeded(seed))
    inside = field[central()].double().log()
    assert field.min() > 0
    assert float(inside.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inside.abs().max()) == pytest.approx(strength, rel=1e-4)
    assert curvature(field.log()) < 0.35


def test_a_large_array_is_darker_in_the_centre_than_near_its_coils():
    field = receive_field(SHAPE, SPACING, coils=32, strength=0.4, generator=seeded())
    x, y, z = (size // 2 for size in SHAPE)
    assert field[x, y, z] < field[2, y, z]
    assert field[x, y, z] < field[x, 2, z]
    assert field[x, y, z] < field[x, y, -3]
    assert field[x, y, -3] > field[x, y, 2]  # there are no coils at the neck


def test_smooth_fields_are_interpolated_exactly_enough():
    # Against the direct evaluation of the narrowest loop profile in use, on the surface of the field of view.
    def profile(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return -1.5 * torch.log(1 + ((x - 1.15) ** 2 + (y - 0.2) ** 2 + z**2) * (100 / 40) ** 2)

    axes = [(2 * torch.arange(size) + 1 - size) / size for size in (60, 50, 40)]
    x, y, z = torch.meshgrid(*axes, indexing='ij')
    field = artefacts._smooth_field((60, 50, 40), torch.device('cpu'), profile)
    torch.testing.assert_close(field, profile(x, y, z), atol=1e-3, rtol=0)


@settings(max_examples=20, deadline=None)
@given(deviation=st.floats(0.01, 0.9), seed=st.integers(0, 2**31))
def test_transmit_field_has_mean_one_and_the_deviation_asked_for(deviation, seed):
    field = transmit_field(SHAPE, SPACING, deviation=deviation, generator=seeded(seed))
    inside = field[central()].double()
    assert field.min() >= 0
    assert float(inside.mean()) == pytest.approx(1, abs=1e-5)
    assert float((inside - 1).abs().max()) == pytest.approx(deviation, rel=1e-4)
    assert curvature(field) < (
        0.15 if field.min() > 0 else 0.25
    )  # cut off at 0 in the air of corners, it has a kink
    assert field[tuple(size // 2 for size in SHAPE)] > inside.mean()  # the centre is bright


@settings(max_examples=20, deadline=None)
@given(millimetres=st.floats(0.05, 10), seed=st.integers(0, 2**31))
def test_gradient_error_is_odd_harmonic_and_longest_at_the_edge(millimetres, seed):
    field = gradient_displacement(SHAPE, SPACING, millimetres=millimetres, generator=seeded(seed))
    length = field.norm(dim=0)
    edge = torch.ones(SHAPE, dtype=torch.bool)
    edge[1:-1, 1:-1, 1:-1] = False
    assert torch.equal(field[:, 13, 16, 12], torch.zeros(3))
    assert float(length.max()) == pytest.approx(millimetres, rel=1e-5)
    assert length[edge].max() == length.max()
    torch.testing.assert_close(field.flip(1, 2, 3), -field, atol=1e-5 * millimetres, rtol=0)
    # Half as far out, third order is an eighth and fifth order less.
    assert length[7:20, 8:25, 6:19].max() < 0.25 * millimetres


def test_gradient_error_obeys_the_laplace_equation():
    shape, spacing = (41, 41, 41), (5.0, 5.0, 5.0)
    field = gradient_displacement(shape, spacing, millimetres=5, generator=seeded()).double()
    for component in field:
        inner = component[1:-1, 1:-1, 1:-1]
        second = [
            component.diff(n=2, dim=axis)[tuple(slice(None) if i == axis else slice(1, -1) for i in range(3))]
            for axis in range(3)
        ]
        terms = torch.stack(second)
        assert inner.shape == terms.shape[1:]
        assert terms.sum(dim=0).abs().max() < 0.02 * terms.abs().max()


def test_displacement_by_whole_and_half_voxels():
    image = blob() + torch.rand(SHAPE, generator=seeded())
    displacement = torch.zeros(3, *SHAPE)
    displacement[0] = 2 * SPACING[0]
    moved = apply_displacement(image, displacement, SPACING)
    torch.testing.assert_close(moved[:-2], image[2:], atol=1e-4, rtol=0)
    assert torch.allclose(moved[-2:], torch.zeros(()), atol=1e-4)
    displacement = torch.zeros(3, *SHAPE)
    displacement[2] = -0.5 * SPACING[2]
    moved = apply_displacement(image, displacement, SPACING)
    torch.testing.assert_close(moved[..., 1:], (image[..., 1:] + image[..., :-1]) / 2, atol=1e-4, rtol=0)


def test_jacobian_keeps_the_sum_where_plain_resampling_does_not():
    image = blob(width=0.2)
    axes = [(torch.arange(size) - (size - 1) / 2) * step for size, step in zip(SHAPE, SPACING, strict=True)]
    x, y, _ = torch.meshgrid(*axes, indexing='ij')
    displacement = torch.zeros(3, *SHAPE)
    displacement[0], displacement[1] = 0.1 * x, 0.05 * x + 0.2 * y  # the map has the determinant 1.1 * 1.2
    plain = apply_displacement(image, displacement, SPACING)
    modulated = apply_displacement(image, displacement, SPACING, jacobian=True)
    torch.testing.assert_close(modulated, 1.32 * plain)
    assert float(modulated.sum() / image.sum()) == pytest.approx(1, abs=0.01)
    assert float(plain.sum() / image.sum()) == pytest.approx(1 / 1.32, abs=0.01)


def test_off_resonance_is_strongest_above_the_sinus_and_present_at_the_ears():
    shape, spacing = (52, 62, 53), (4.0, 4.0, 4.0)
    field = off_resonance(shape, spacing, hertz=120, generator=seeded())
    assert float(field.max()) == pytest.approx(120)
    assert float(field.min()) >= 0
    x, y, z = np.unravel_index(int(field.argmax()), shape)
    assert abs(x - 25.5) < 3
    assert y > 40
    assert 15 < z < 26
    for side in (13, 39):
        assert field[side, 29, 17] > 30
    assert field[25, 20, 45] < 1  # parietal lobes
    assert curvature(field) < 0.1


@settings(max_examples=25, deadline=None)
@given(
    hertz=st.floats(-500, 500).filter(lambda value: abs(value) > 1),
    bandwidth=st.floats(100, 400),
    axis=st.integers(0, 2),
)
def test_a_constant_field_moves_an_edge_by_hertz_over_bandwidth(hertz, bandwidth, axis):
    ramp = torch.zeros(40)
    ramp[20:] = 1
    ramp[18:22] = torch.tensor([0.2, 0.4, 0.6, 0.8])
    shape = [3, 3, 3]
    shape[axis] = 40
    image = ramp.reshape([-1 if i == axis else 1 for i in range(3)]).expand(shape)
    moved = readout_shift(image, torch.full(shape, hertz), bandwidth_per_pixel=bandwidth, axis=axis)
    profile = moved.movedim(axis, -1)[1, 1][8:32]
    # The sum over a window that holds the edge tells where it is.
    before = float(ramp[8:32].sum())
    assert before - float(profile.sum()) == pytest.approx(hertz / bandwidth, abs=1e-3)


def test_readout_shift_goes_towards_higher_voxels_for_a_higher_frequency():
    image = point((9, 9, 9), (4, 4, 4))
    moved = readout_shift(image, torch.full((9, 9, 9), 400.0), bandwidth_per_pixel=200, axis=1)
    torch.testing.assert_close(moved, point((9, 9, 9), (4, 6, 4)))


def test_readout_shift_keeps_the_signal_and_piles_it_up_where_the_field_falls():
    shape, spacing = (32, 40, 32), (6.0, 6.0, 6.0)
    field = off_resonance(shape, spacing, hertz=300, generator=seeded())
    image = blob(shape, 0.2)
    for signed in (field, -field):
        moved = readout_shift(image, signed, bandwidth_per_pixel=200, axis=1)
        assert float(moved.sum() / image.sum()) == pytest.approx(1, abs=0.003)
    flat = torch.ones(shape)
    moved = readout_shift(flat, field, bandwidth_per_pixel=200, axis=1)
    x, y, z = np.unravel_index(int(field.argmax()), shape)
    assert moved[x, y - 5 : y + 6, z].min() < 0.9  # spread before the peak
    assert moved[x, y : y + 9, z].max() > 1.1  # compressed behind it


def test_a_folding_field_is_refused():
    field = torch.zeros(9, 9, 9)
    field[:, :5] = 300
    with pytest.raises(UsageError, match='fold'):
        readout_shift(torch.ones(9, 9, 9), field, bandwidth_per_pixel=200, axis=1)


@pytest.mark.parametrize(('size', 'fraction', 'lines'), [(45, 0.6, 27), (40, 0.5, 20), (40, 0.525, 21)])
def test_truncation_of_a_point_is_a_dirichlet_kernel(size: int, fraction: float, lines: int):
    image = point((3, size, 2), (1, 7, 0), 2.0)
    result = kspace_window(image, resolution_fraction=(1, fraction, 1))
    angle = np.pi * (np.arange(size) - 7) / size
    with np.errstate(invalid='ignore', divide='ignore'):
        tail = np.tan(angle) if lines % 2 == 0 else np.sin(angle)
        kernel = np.sin(lines * angle) / (size * tail)
    kernel[7] = lines / size
    np.testing.assert_allclose(result[1, :, 0], 2 * kernel, atol=1e-6)
    assert torch.count_nonzero(result[0]) == 0


@settings(max_examples=25, deadline=None)
@given(
    fractions=st.tuples(*[st.floats(0.05, 1)] * 3),
    taper=st.floats(0, 1),
    shape=st.tuples(*[st.integers(1, 12)] * 3),
)
def test_window_keeps_the_mean_adds_no_energy_and_is_separable(fractions, taper, shape):
    image = torch.rand(shape, generator=seeded())
    result = kspace_window(image, resolution_fraction=fractions, taper=taper)
    assert result.shape == image.shape
    assert float(result.mean()) == pytest.approx(float(image.mean()), rel=1e-4)
    assert float((result**2).sum()) <= float((image**2).sum()) * (1 + 1e-5)
    one_by_one = image
    for axis in range(3):
        single = [1.0, 1.0, 1.0]
        single[axis] = fractions[axis]
        line = one_by_one.movedim(axis, 0).reshape(shape[axis], 1, -1)
        line = kspace_window(line, resolution_fraction=(fractions[axis], 1, 1), taper=0)
        moved = [shape[axis], *(shape[other] for other in range(3) if other != axis)]
        one_by_one = line.reshape(moved).movedim(0, axis)
    if taper == 0:
        torch.testing.assert_close(result, one_by_one, atol=1e-5, rtol=1e-4)


def test_a_full_hann_window_ends_ringing():
    image = torch.zeros(1, 64, 1)
    image[:, 20:44] = 1
    ringing = kspace_window(image, resolution_fraction=(1, 0.5, 1))
    filtered = kspace_window(image, resolution_fraction=(1, 0.5, 1), taper=1)
    assert ringing.min() < -0.05
    assert ringing.max() > 1.05
    assert filtered.min() > -0.01
    assert filtered.max() < 1.01
    assert filtered.diff(dim=1).abs().max() < ringing.diff(dim=1).abs().max()  # and it blurs
    # The filter on its own, at the middle of its flank: half the amplitude of a wave of 16 periods in 64.
    wave = torch.cos(2 * torch.pi * 16 * torch.arange(64) / 64).reshape(1, 64, 1)
    torch.testing.assert_close(kspace_window(wave, taper=1), wave / 2, atol=1e-5, rtol=0)


def test_partial_fourier_zeroes_the_early_lines():
    generator = seeded()
    image = torch.rand((4, 32, 4), generator=generator) + 1
    result = kspace_window(image, partial_fourier=0.75)
    spectrum = np.fft.fftshift(np.fft.fft(image.numpy(), axis=1), axes=1)
    spectrum[:, :8] = 0
    expected = np.abs(np.fft.ifft(np.fft.ifftshift(spectrum, axes=1), axis=1))
    np.testing.assert_allclose(result, expected, atol=1e-5)
    # A wave loses the one of its two lines that was not measured: half of it stays, of constant magnitude.
    wave = torch.cos(2 * torch.pi * 12 * torch.arange(32) / 32).reshape(1, 32, 1)
    torch.testing.assert_close(
        kspace_window(wave, partial_fourier=0.75), torch.full((1, 32, 1), 0.5), atol=1e-5, rtol=0
    )


def test_slices_are_averages_with_gaps():
    image = torch.arange(11.0).reshape(1, 1, 11).expand(2, 3, 11)
    thick = slice_profile(image, factor=3, axis=2)
    torch.testing.assert_close(thick[1, 2], torch.tensor([1.0, 4.0, 7.0]))
    spaced = slice_profile(image, factor=3, axis=2, gap=1)
    torch.testing.assert_close(spaced[0, 0], torch.tensor([1.0, 5.0, 9.0]))  # 1 + i (3 + 1)
    assert slice_profile(image, factor=3, axis=1).shape == (2, 1, 11)


@settings(max_examples=10, deadline=None)
@given(sigma=st.floats(0.01, 50), seed=st.integers(0, 2**31))
def test_rician_noise_in_air_and_in_tissue(sigma, seed):
    shape = (40, 40, 40)
    air = add_rician(torch.zeros(shape), sigma=sigma, generator=seeded(seed)).double()
    assert float(air.mean()) == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.02)
    assert float((air**2).mean()) == pytest.approx(2 * sigma**2, rel=0.03)
    signal = 30 * sigma
    tissue = add_rician(torch.full(shape, signal), sigma=sigma, generator=seeded(seed)).double()
    assert float(tissue.mean()) == pytest.approx(math.hypot(signal, sigma), rel=1e-3)
    assert float(tissue.std()) == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize('coils', [1, 2, 5, 32])
def test_noncentral_chi_in_air_and_in_tissue(coils: int):
    sigma, signal, shape = 2.0, 60.0, (40, 40, 40)
    air = add_noncentral_chi(torch.zeros(shape), sigma=sigma, coils=coils, generator=seeded()).double()
    mean = sigma * math.sqrt(2) * math.exp(math.lgamma(coils + 0.5) - math.lgamma(coils))
    assert float(air.mean()) == pytest.approx(mean, rel=0.01)
    assert float(air.var()) == pytest.approx(2 * coils * sigma**2 - mean**2, rel=0.03)
    tissue = add_noncentral_chi(
        torch.full(shape, signal), sigma=sigma, coils=coils, generator=seeded()
    ).double()
    assert float((tissue**2).mean()) == pytest.approx(signal**2 + 2 * coils * sigma**2, rel=0.002)


def test_one_coil_or_no_acceleration_is_rician():
    image = blob()
    rician = add_rician(image, sigma=0.2, generator=seeded())
    assert torch.equal(add_noncentral_chi(image, sigma=0.2, coils=1, generator=seeded()), rician)
    parallel = add_parallel_noise(image, sigma=0.2, acceleration=1, generator=seeded())
    torch.testing.assert_close(parallel, rician)


@pytest.mark.parametrize('acceleration', [2, 3, 4])
def test_parallel_noise_follows_the_geometry_factor(acceleration: int):
    shape, sigma = (48, 48, 48), 1.5
    g = geometry_factor(shape, acceleration=acceleration)
    centre, corner = (slice(20, 28),) * 3, (slice(0, 8),) * 3
    assert float(g.min()) >= 1
    assert torch.equal(g, g.flip(0, 1, 2))
    assert g[centre].mean() > 1.1
    assert float(g[corner].mean()) == pytest.approx(1, abs=0.01)
    # Means over two blocks of 512 voxels have an error of a few percent; average some draws.
    generator = seeded()
    draws = [
        add_parallel_noise(torch.zeros(shape), sigma=sigma, acceleration=acceleration, generator=generator)
        for _ in range(10)
    ]
    noise = torch.stack([draw**2 for draw in draws]).mean(dim=0)
    for region in (centre, corner):
        expected = 2 * sigma**2 * acceleration * float((g[region] ** 2).mean())
        assert float(noise[region].mean()) == pytest.approx(expected, rel=0.06)


def test_motion_keeps_the_middle_lines_and_changes_others():
    size = SHAPE[1]
    image = blob(width=0.2)
    result = motion(image, SPACING, degrees=3, millimetres=4, events=4, axis=1, generator=seeded())
    assert result.min() >= 0
    difference = float((result - image).norm() / image.norm())
    assert 0.001 < difference < 0.5
    assert float(result.mean() / image.mean()) == pytest.approx(1, abs=0.05)

    def centroid(volume: Tensor) -> Tensor:
        grids = torch.meshgrid(*[torch.arange(float(n)) for n in SHAPE], indexing='ij')
        return torch.stack([(volume * grid).sum() / volume.sum() for grid in grids])

    assert (centroid(result) - centroid(image)).abs().max() < 0.1  # 4 mm are half a voxel
    # The moments leave the middle of k-space alone.
    for lines in (size, 32, 200):
        moments = artefacts._moments(lines)
        middle, still = lines // 2, artefacts.STILL * lines / 2
        assert all(moment <= middle - int(still) or moment > middle + int(still) for moment in moments)
        assert middle not in moments
        assert middle + 1 not in moments


def test_motion_replaces_exactly_the_lines_after_the_event(monkeypatch: pytest.MonkeyPatch):
    # One event, before line 20 of 24 lines, to a head that is twice as bright: lines 8 to 11 double.
    monkeypatch.setattr(artefacts, '_moments', lambda size: [20])
    monkeypatch.setattr(artefacts, '_rigid', lambda image, *pose: 2 * image)
    image = torch.rand((3, 24, 3), generator=seeded())
    result = motion(image, SPACING, degrees=1, millimetres=1, events=1, axis=1, generator=seeded())
    spectrum = np.fft.fftshift(np.fft.fft(image.numpy(), axis=1), axes=1)
    spectrum[:, 20:] *= 2
    expected = np.abs(np.fft.ifft(np.fft.ifftshift(spectrum, axes=1), axis=1))
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_poses_are_rigid_and_in_millimetres():
    shape, spacing = (31, 31, 31), (3.0, 3.0, 4.0)
    image = point(shape, (15 + 9, 15, 15)) + point(shape, (15, 15, 15))
    # Image(R p + t): a quarter turn about z takes the point at (0, -27 mm) to the one at (27 mm, 0).
    turned = artefacts._rigid(image, spacing, [0, 0, math.pi / 2], [0, 0, 0])
    torch.testing.assert_close(
        turned, point(shape, (15, 15 - 9, 15)) + point(shape, (15, 15, 15)), atol=1e-4, rtol=0
    )
    shifted = artefacts._rigid(image, spacing, [0, 0, 0], [6.0, 6.0, 8.0])
    torch.testing.assert_close(
        shifted, point(shape, (22, 13, 13)) + point(shape, (13, 13, 13)), atol=1e-4, rtol=0
    )
    # What lies on the axis stays; off the axis, the voxels of another size see a part of it.
    axis = artefacts._rigid(point(shape, (24, 15, 15)), spacing, [1.1, 0, 0], [0, 0, 0])
    assert float(axis[24, 15, 15]) == pytest.approx(1, abs=1e-4)
    assert int(axis.argmax()) == int(point(shape, (24, 15, 15)).argmax())
    assert max(axis[:24].max(), axis[25:].max()) < 1e-4


@pytest.mark.parametrize('count', [2, 3, 4, 6])
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_ghosts_of_a_point(count: int, axis: int):
    shape = [2, 2, 2]
    shape[axis] = 24
    image = torch.zeros(shape)
    image.movedim(axis, -1)[0, 0, 5] = 1
    result = ghosting(image, intensity=0.4, count=count, axis=axis).movedim(axis, -1)
    expected = torch.zeros(24)
    for ghost in range(count):
        expected[(5 + ghost * 24 // count) % 24] = 1 - 0.4 / count if ghost == 0 else 0.4 / count
    torch.testing.assert_close(result[0, 0], expected, atol=1e-6, rtol=0)
    assert result[1].abs().max() < 1e-6


def test_ghosting_spares_the_middle_line():
    # A constant has only the middle line along the axis, so nothing happens to it.
    image = torch.full((4, 20, 4), 7.0)
    torch.testing.assert_close(ghosting(image, intensity=1, count=4, axis=1), image)


def test_store_rounds_and_clips_to_the_kind():
    image = torch.tensor([-3.0, 0.4, 0.5, 1.5, 2.6, 300.0, 5000.0, 40000.0]).reshape(2, 2, 2)
    for kind, dtype, top in (
        ('int16', np.int16, 32767),
        ('uint8', np.uint8, 255),
        ('uint12', np.uint16, 4095),
    ):
        stored = store(image, scale=1, kind=kind)
        assert stored.dtype == dtype
        expected = np.minimum([0, 0, 0, 2, 3, 300, 5000, 40000], top)
        np.testing.assert_array_equal(stored.ravel(), expected)
    np.testing.assert_array_equal(store(image, scale=10, kind='int16').ravel()[:5], [0, 4, 5, 15, 26])
    stretched = store(image, scale=None, kind='uint12')
    assert stretched.max() == 4095
    assert stretched.ravel()[6] == round(4095 / 8)


@settings(max_examples=25, deadline=None)
@given(saturation=st.floats(0, 0.5), scale=st.one_of(st.none(), st.floats(1, 20)))
def test_store_saturates_the_share_asked_for(saturation, scale):
    image = torch.randperm(1000, generator=seeded()).float().reshape(10, 10, 10)
    stored = store(image, scale=scale, kind='int16', saturation=saturation)
    clipped = round(1000 * saturation)
    assert (stored == stored.max()).sum() == clipped + 1  # the brightest of the others has the same number
    if scale is None:
        assert stored.max() == 32767
    else:
        assert stored.max() == round(scale * (999 - clipped))


def test_store_of_nothing_is_nothing():
    assert store(torch.zeros(2, 2, 2), scale=None, kind='uint8').max() == 0


IMPOSSIBLE: dict[str, Callable[[], object]] = {
    'no coils to receive': lambda: receive_field(SHAPE, SPACING, coils=0, strength=0.1, generator=seeded()),
    'vanishing transmit field': lambda: transmit_field(SHAPE, SPACING, deviation=1, generator=seeded()),
    'voxels without size': lambda: off_resonance(SHAPE, (1, 0, 1), hertz=1, generator=seeded()),
    'shape without voxels': lambda: off_resonance((3, 0, 3), SPACING, hertz=1, generator=seeded()),
    'displacement of another shape': lambda: apply_displacement(blob(), torch.ones(3, 2, 2, 2), SPACING),
    'field of another shape': lambda: readout_shift(
        blob(), torch.ones(2, 2, 2), bandwidth_per_pixel=1, axis=1
    ),
    'no bandwidth': lambda: readout_shift(blob(), torch.ones(SHAPE), bandwidth_per_pixel=0, axis=1),
    'fourth axis': lambda: readout_shift(blob(), torch.ones(SHAPE), bandwidth_per_pixel=1, axis=3),
    'no k-space': lambda: kspace_window(blob(), resolution_fraction=(1, 0, 1)),
    'more than k-space': lambda: kspace_window(blob(), resolution_fraction=(1, 1.1, 1)),
    'taper beyond full': lambda: kspace_window(blob(), taper=1.1),
    'half of the lines': lambda: kspace_window(blob(), partial_fourier=0.5),
    'no planes': lambda: slice_profile(blob(), factor=0, axis=2),
    'too many planes': lambda: slice_profile(blob(), factor=26, axis=2),
    'overlapping slices': lambda: slice_profile(blob(), factor=2, axis=2, gap=-1),
    'negative noise': lambda: add_rician(blob(), sigma=-1, generator=seeded()),
    'flat image': lambda: add_rician(torch.ones(3, 3), sigma=1, generator=seeded()),
    'no coils': lambda: add_noncentral_chi(blob(), sigma=1, coils=0, generator=seeded()),
    'deceleration': lambda: add_parallel_noise(blob(), sigma=1, acceleration=0.5, generator=seeded()),
    'too many movements': lambda: motion(
        blob(), SPACING, degrees=1, millimetres=1, events=40, axis=1, generator=seeded()
    ),
    'negative movement': lambda: motion(
        blob(), SPACING, degrees=-1, millimetres=1, events=1, axis=1, generator=seeded()
    ),
    'single ghost': lambda: ghosting(blob(), intensity=0.1, count=1, axis=1),
    'more than all amplitude': lambda: ghosting(blob(), intensity=1.1, count=2, axis=1),
    'unknown kind': lambda: store(blob(), scale=1, kind='int64'),  # type: ignore[arg-type]
    'everything saturated': lambda: store(blob(), scale=1, kind='uint8', saturation=1),
    'no scale': lambda: store(blob(), scale=0, kind='uint8'),
}


@pytest.mark.parametrize('name', IMPOSSIBLE)
def test_impossible_parameters_are_refused(name: str):
    with pytest.raises(UsageError) as caught:
        IMPOSSIBLE[name]()
    assert caught.value.where


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('partial', [1, 0.75])
def test_slices_that_are_measured_one_by_one_do_not_mix(axis, partial):
    image = torch.zeros(8, 10, 12)
    image.select(axis, 4).copy_(
        torch.rand(image.select(axis, 4).shape, generator=torch.Generator().manual_seed(0))
    )
    found = kspace_window(
        image, resolution_fraction=(1, 0.6, 1), taper=0.5, partial_fourier=partial, partial_axis=(axis + 1) % 3, slices=axis,
    )  # fmt: skip
    assert float(found.select(axis, 4).abs().max()) > 0.1
    assert not torch.allclose(found.select(axis, 4), image.select(axis, 4), atol=1e-3)
    others = [index for index in range(image.shape[axis]) if index != 4]
    assert not found.index_select(axis, torch.tensor(others)).any()
    mixed = kspace_window(image, taper=0.5)
    assert mixed.index_select(axis, torch.tensor(others)).abs().max() > 0.05
