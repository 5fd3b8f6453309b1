"""A gain and a curve that are fitted to an image: what is found, and what holds whatever the image is."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsharm.nn import isotone as parts
from bidsharm.nn.isotone_fit import fit_curve, fit_style
from bidsharm.nn.isotone_model import KNOTS, increasing

SHAPE = (48, 48, 48)


def brain() -> tuple[torch.Tensor, torch.Tensor]:
    """Return canonical intensities of a ball in shells of three tissues, and the positions of its voxels."""
    away = np.sqrt(((np.indices(SHAPE) - 23.5) ** 2).sum(axis=0))
    wave = np.cos(away)
    data = np.select([wave > 0.4, wave > -0.4], [1.0, 0.7], 0.25)
    inside = away < 22
    data = data + 0.03 * np.random.default_rng(0).standard_normal(SHAPE)
    return torch.from_numpy(data[inside]).float(), torch.from_numpy(np.argwhere(inside))


def log_gain(voxels: torch.Tensor, size: float) -> torch.Tensor:
    """Return a smooth field over the ball, 0 on average."""
    field = size * torch.sin(voxels[:, 0] / 20) * torch.cos(voxels[:, 1] / 25)
    return field - field.mean()


def test_a_gain_and_a_curve_are_found() -> None:
    canonical, voxels = brain()
    true = log_gain(voxels, 0.3)
    values = 300 * canonical.clamp_min(0.01).pow(0.7) * true.exp()
    found = fit_style(values, voxels, SHAPE, canonical, torch.zeros(1, 1, 6, 6, 6))
    places = parts.places_of(voxels, SHAPE)
    gain = parts.sample_field(found.log_gain, places)[0, 0]
    before, after = true.abs().mean(), (gain - true).abs().mean()
    assert after < 0.5 * before
    mapped = increasing((values / gain.exp() / found.scale).double().numpy(), KNOTS, found.heights)
    np.testing.assert_allclose(mapped, found.fitted.numpy(), atol=1e-4)
    # A curve alone leaves what the gain does.
    flat = values / torch.quantile(values, parts.HIGH)
    alone = np.abs(increasing(flat.double().numpy(), KNOTS, fit_curve(flat, canonical)) - canonical.numpy())
    assert np.abs(mapped - canonical.numpy()).mean() < 0.5 * alone.mean()


def test_a_gain_that_is_right_stays() -> None:
    canonical, voxels = brain()
    found = fit_style(1000 * canonical, voxels, SHAPE, canonical, torch.zeros(1, 1, 6, 6, 6))
    assert found.log_gain.abs().max() < 0.01
    assert (found.fitted - canonical).abs().mean() < 0.01


def test_a_curve_that_can_be_reached_is_found() -> None:
    values = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * parts.TOP
    slopes = np.random.default_rng(1).uniform(0.4, 2, KNOTS.size - 1)
    heights = np.concatenate([[0.1], 0.1 + np.cumsum(slopes * KNOTS[1])])
    aim = torch.from_numpy(increasing(values.double().numpy(), KNOTS, heights))
    np.testing.assert_allclose(fit_curve(values, aim), heights, atol=0.02)


def test_a_falling_curve_becomes_the_flattest_that_rises() -> None:
    values = torch.linspace(0, parts.TOP, 5000)
    slopes = np.diff(fit_curve(values, 1 - values / 2)) / KNOTS[1]
    np.testing.assert_allclose(slopes, 1 / parts.STEEPEST, rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 30))
def test_promises_hold_whatever_the_aim_is(seed: int, size: float) -> None:
    _, voxels = brain()
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(voxels), generator=generator) - 0.1
    aim = size * torch.randn(len(voxels), generator=generator)
    start = torch.randn(1, 1, 3, 3, 3, generator=generator)
    found = fit_style(values, voxels, SHAPE, aim, start)
    slopes = np.diff(found.heights) / KNOTS[1]
    assert slopes.min() > 1 / parts.STEEPEST - 1e-6
    assert slopes.max() < parts.STEEPEST + 1e-6
    places = parts.places_of(voxels, SHAPE)
    assert abs(float(parts.sample_field(found.log_gain, places).mean())) < 1e-3
    assert float(found.log_gain.abs().max()) <= 2 * parts.LARGEST_GAIN
    assert found.scale > 0
