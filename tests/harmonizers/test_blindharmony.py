"""BlindHarmony: the mean of the target, the gradient of the correlation, and a walk that leaves the flow as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsharm.errors import UsageError
from bidsharm.harmonizers.blindharmony import BlindHarmony, fitted
from bidsharm.harmonizers.contract import Cohort, Scan, Site
from bidsharm.harmonizers.network_settings import Given
from bidsharm.nn.correlation import more_alike, unlikeness


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def scans(make_scan: Callable[..., Scan]) -> list[Scan]:
    return [
        replace(make_scan(seed=n, shape=(16, 16, 16), site=site, gain=1 + (site == 'B')), person=str(n))
        for n in range(2) for site in 'AB'
    ]  # fmt: skip


@pytest.fixture
def method(scans: list[Scan]) -> BlindHarmony:
    made = BlindHarmony(
        settings=BlindHarmony.preset(
            'tiny', voxel_mm=1.0, width=4, batch=2, steps=3, hold_out=0.0, mean_size=8
        )
    )
    made.fit(Cohort(scans), target=Site('A'))
    return made


def test_the_gradient_of_the_correlation_is_that_of_the_formula() -> None:
    x, source = torch.rand(2, 1, 5, 4, dtype=torch.float64), torch.rand(2, 1, 5, 4, dtype=torch.float64)
    moved = more_alike(x, source, 0.3)
    for one, its, other in zip(x, moved, source, strict=True):
        a, b = one - one.mean(), other - other.mean()
        size = a.square().mean().sqrt()
        b = b / b.square().mean().sqrt()
        slope = b / size - (a * b).mean() * a / size**3
        torch.testing.assert_close(its - one, 0.3 * slope)
    assert unlikeness(moved, source) < unlikeness(x, source)


def test_empty_images_count_for_nothing() -> None:
    x = torch.rand(2, 1, 4, 4)
    source = x.clone()
    source[1] = 0
    assert unlikeness(x, source) == pytest.approx(0, abs=1e-6)
    assert unlikeness(x, torch.zeros_like(x)) == 0


def test_the_mean_of_the_target_is_laid_over_the_brain(method: BlindHarmony) -> None:
    volume = np.zeros((12, 12, 12), np.float32)
    volume[2:10, 3:11, 4:12] = 0.7
    mean = method.style_of([volume], [volume > 0])['mean']
    torch.testing.assert_close(mean, torch.full((8, 8, 8), 0.7))
    other = np.zeros((1, 20, 20, 20), np.float32)
    other[0, 1:17, 2:6, 3:19] = 2
    channels, _ = method.prepare(other, Given(style={'mean': mean}), 1)
    assert np.array_equal(channels[0], other[0])
    np.testing.assert_allclose(channels[1], 0.35 * other[0], rtol=1e-5)
    assert fitted(volume, (6, 5, 4)).shape == (6, 5, 4)


def test_without_shrinking_a_step_is_the_gradient_of_the_correlation(method: BlindHarmony) -> None:
    method.settings = replace(method.settings, shrink=0.0, test_steps=1)
    x = 0.1 + torch.rand(2, 2, 16, 16)
    with torch.no_grad():
        found = method.translate(x, Given())
    wanted = more_alike(x[:, 1:], x[:, :1], method.settings.fidelity).clamp(0, method.settings.span)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_shrinking_makes_images_likelier(method: BlindHarmony) -> None:
    flow, x = method.networks['flow'], torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        latents = flow.encode(x)  # type: ignore[operator]
        nearer = flow.encode(flow.decode([0.9 * latent for latent in latents]))  # type: ignore[operator]
    for one, other in zip(latents, nearer, strict=True):
        torch.testing.assert_close(other, 0.9 * one, atol=1e-3, rtol=0)


def test_the_flow_of_one_target_aims_at_no_other(method: BlindHarmony, scans: list[Scan]) -> None:
    with pytest.raises(UsageError, match='trained for the target "A"'):
        method.fit(Cohort([scan for scan in scans if scan.site == 'B']), target=Site('B'))


def test_the_walk_is_bounded_noted_and_leaves_the_flow_as_it_is(
    method: BlindHarmony, scans: list[Scan]
) -> None:
    before = {name: value.clone() for name, value in method.networks.state_dict().items()}
    first = method.harmonize(scans[1], Site('A'))
    method.harmonize(scans[3], Site('A'))
    assert np.array_equal(method.harmonize(scans[1], Site('A')).image, first.image)
    assert all(torch.equal(value, before[name]) for name, value in method.networks.state_dict().items())
    noted = first.details['test_time']
    assert noted['steps'] == 4
    assert noted['last_objective'] < noted['first_objective']
