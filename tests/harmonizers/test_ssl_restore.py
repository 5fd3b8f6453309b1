"""Restoring random contrasts, and Harmonizing Flows, of which it is the first stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bidsharm.harmonizers.contract import Cohort, Scan, Site
from bidsharm.harmonizers.ssl_restore import HarmonizingFlows, SslRestore
from bidsharm.nn.blocks import count_parameters
from bidsharm.nn.gain_bias import GainAndBias
from bidsharm.training.contrasts import RandomContrast, mapped, monotone_points

SMALL: dict[str, Any] = {'voxel_mm': 1.0, 'widths': (4, 4), 'batch': 2, 'hold_out': 0.0}
FLOW: dict[str, Any] = {
    'flow_widths': (4, 4),
    'levels': 2,
    'couplings': 2,
    'test_steps': 2,
    'test_rate': 1e-4,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def scans(make_scan: Callable[..., Scan]) -> Cohort:
    return Cohort(
        [
            replace(make_scan(seed=n, shape=(16, 16, 16), site=site), person=str(n))
            for n in range(2)
            for site in 'AB'
        ]
    )


@pytest.fixture
def flows(scans: Cohort) -> HarmonizingFlows:
    made = HarmonizingFlows(
        settings=HarmonizingFlows.preset(
            'tiny', **SMALL, **FLOW, steps=8, restore_share=1.0, density_share=1.0
        )
    )
    made.fit(scans, target=Site('A'))
    return made


def test_the_network_has_the_published_layers_and_begins_as_the_identity() -> None:
    net = GainAndBias()
    pairs = [(32, 16), (48, 32), (64, 48), (64, 64)]  # each level, and the one above it
    down = sum(9 * 2 * low * high + high + 9 * 2 * high * high + high for high, low in pairs)
    joined = [(128, 64), (112, 48), (80, 32), (48, 16)]
    up = sum(9 * 2 * ins * outs + outs + 9 * 2 * outs * outs + outs for ins, outs in joined)
    assert count_parameters(net) == (9 * 16 + 16) + down + up + (64 + 1) + (16 + 1)
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(net(x), x)


def test_curves_rise_from_0_to_1_and_keep_what_lies_outside() -> None:
    points = monotone_points(50, device=torch.device('cpu'))
    assert points.shape == (50, 257)
    assert bool((points.diff(dim=1) > 0).all())
    assert points[:, [0, -1]].unique().tolist() == [0, 1]
    middle = points[:, 128]
    assert float(middle.min()) > 0.2
    assert float(middle.max()) < 0.8
    x = torch.tensor([[[[-0.5, 0.0, 0.25, 0.5, 1.0, 1.5]]]])
    curve = torch.tensor([[0.0, 0.1, 1.0]])
    torch.testing.assert_close(
        mapped(x, curve)[0, 0, 0], torch.tensor([-0.5, 0, 0.05, 0.1, 1, 1.5]), atol=1e-3, rtol=0
    )


def test_random_contrasts_keep_the_order_of_intensities_and_the_background() -> None:
    torch.manual_seed(0)
    x = torch.linspace(0.2, 1.3, 64).view(1, 1, 8, 8).repeat(40, 1, 1, 1)
    mask = torch.ones_like(x)
    mask[..., 0] = 0
    y = RandomContrast()(x, mask)
    assert not y[mask == 0].any()
    inside = y[..., 1:].flatten(1)
    assert bool((inside.diff(dim=1) >= -1e-6).all())
    assert float((y - x * mask).abs().flatten(1).amax(dim=1).min()) > 1e-3  # every image is changed


def test_the_loss_is_the_squared_error_of_what_is_restored(scans: Cohort) -> None:
    method = SslRestore(settings=SslRestore.preset('tiny', **SMALL))
    method.networks = torch.nn.ModuleDict(method.build())
    x, mask = torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    torch.manual_seed(1)
    ((player, losses),) = method.losses({'x': x, 'mask': mask}, 'train')
    torch.manual_seed(1)
    altered = method.alter(x, mask)  # what the identity leaves as it is
    assert player == 'harmonizer'
    assert float(losses['restored'].detach()) == pytest.approx(float((altered - x).square().mean()), rel=1e-5)


def test_harmonizing_flows_begins_with_ssl_restore(scans: Cohort, flows: HarmonizingFlows) -> None:
    plain = SslRestore(settings=SslRestore.preset('tiny', **SMALL, steps=4))
    plain.fit(scans, target=Site('A'))
    for name, weight in plain.networks['harmonizer'].state_dict().items():
        assert torch.equal(weight, flows.networks['harmonizer'].state_dict()[name])


def test_each_stage_moves_its_own_network(scans: Cohort, flows: HarmonizingFlows) -> None:
    flows.networks.train()
    batch = {'x': torch.rand(2, 1, 16, 16), 'mask': torch.ones(2, 1, 16, 16)}
    assert [player for player, _ in flows.losses(batch, 'restore')] == ['harmonizer']
    ((player, losses),) = flows.losses(batch, 'density')
    assert player == 'flow'
    torch.stack(list(losses.values())).sum().backward()
    assert all(weight.grad is None for weight in flows.networks['harmonizer'].parameters())
    assert any(weight.grad is not None for weight in flows.networks['flow'].parameters())


def test_altered_slices_are_pushed_away_up_to_the_floor(
    flows: HarmonizingFlows, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = iter([torch.tensor([3.0, -4.0]), torch.tensor([0.5, 7.0])])
    monkeypatch.setattr(HarmonizingFlows, 'bits', lambda self, x: next(bits))
    ((_, losses),) = flows.losses({'x': torch.rand(2, 1, 8, 8), 'mask': torch.ones(2, 1, 8, 8)}, 'density')
    assert float(losses['true']) == pytest.approx(0.5 * (3 - 1) / 2)
    assert float(losses['altered']) == pytest.approx(0.5 * (-0.5 - 1) / 2)


def test_the_adaptation_is_noted_and_leaves_the_networks_as_they_were(
    scans: Cohort, flows: HarmonizingFlows
) -> None:
    before = {name: value.clone() for name, value in flows.networks.state_dict().items()}
    first = flows.harmonize(scans.scans[1], Site('A'))
    flows.harmonize(scans.scans[2], Site('A'))
    again = flows.harmonize(scans.scans[1], Site('A'))
    assert np.array_equal(first.image, again.image)
    assert all(torch.equal(value, before[name]) for name, value in flows.networks.state_dict().items())
    noted = first.details['test_time']
    assert 1 <= noted['steps'] <= 2
    assert noted['last_objective'] <= noted['first_objective']
    flows.settings = replace(flows.settings, test_steps=0)
    assert not np.array_equal(flows.harmonize(scans.scans[1], Site('A')).image, first.image)
