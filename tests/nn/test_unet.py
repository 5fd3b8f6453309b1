"""Parts of U-Nets that attend: gates on skip connections, and a transformer at the coarsest level."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bidsharm.nn.transformer import TransformerBottleneck, positions
from bidsharm.nn.unet import AttentionGate, UNet


def constant(gate, score):
    """Let a gate have one score everywhere."""
    nn.init.zeros_(gate.score.weight)
    nn.init.constant_(gate.score.bias, score)


def test_a_gate_weighs_the_skip_connection_by_skip_and_signal():
    gate = AttentionGate(2, 2, 1)
    with torch.no_grad():
        gate.of_skip.weight.copy_(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
        gate.of_gate.weight.fill_(2.0)
        gate.of_gate.bias.fill_(0.5)
        gate.score.weight.fill_(3.0)
        gate.score.bias.fill_(-1.0)
    skip = torch.tensor([[[[4.0, 1.0]], [[3.0, 5.0]]]])
    found = gate(skip, torch.tensor([[[[0.25, 0.5]]]]))
    # 4 - 3 + 2 * 0.25 + 0.5 = 2, and 1 - 5 + 2 * 0.5 + 0.5 < 0, which is cut off.
    weights = [1 / (1 + math.exp(-(3 * 2 - 1))), 1 / (1 + math.exp(1))]
    assert torch.allclose(found, skip * torch.tensor(weights))


@pytest.mark.parametrize('dims', [2, 3])
def test_a_closed_gate_lets_nothing_through_and_an_open_one_everything(dims):
    gate = AttentionGate(dims, 4, 4)
    skip, signal = torch.randn(2, 2, 4, *(6,) * dims).unbind()
    constant(gate, -1e4)
    assert not gate(skip, signal).any()
    constant(gate, 1e4)
    assert torch.equal(gate(skip, signal), skip)


def test_behind_closed_gates_only_the_coarsest_level_is_seen():
    network, x = UNet(widths=(4, 8, 8), gates=True), torch.randn(1, 1, 16, 16)
    levels = network.encode(x)
    others = [torch.randn_like(level) for level in levels[:-1]] + [levels[-1]]
    assert not torch.allclose(network.decode(levels, x), network.decode(others, x))
    for gate in network.gates:
        constant(gate, -1e4)
    assert torch.equal(network.decode(levels, x), network.decode(others, x))
    assert not torch.allclose(network.decode(levels, x), network.decode([*levels[:-1], levels[-1] + 1], x))


@pytest.mark.parametrize('dims', [2, 3])
def test_every_place_hears_of_the_farthest_one(dims):
    torch.manual_seed(0)
    network, x = TransformerBottleneck(16, depth=1, heads=2), torch.randn(1, 16, *(6,) * dims)
    other = x.clone()
    other[(0, slice(None), *(-1,) * dims)] *= -1  # a constant would be lost in the layer norm
    changes = (network(other) - network(x)).abs().amax(dim=1)
    assert changes.min() > 1e-5
    assert changes.flatten().argmax() == changes.numel() - 1


def test_a_u_net_sees_far_with_a_transformer_and_near_without():
    x = torch.zeros(1, 1, 32, 32)
    other = x.clone()
    other[..., -4:, -4:] = 30
    torch.manual_seed(0)
    near, far = (
        UNet(widths=(8, 16), kind='none', bottleneck=kind, depth=1, heads=2)
        for kind in ('conv', 'transformer')
    )
    assert torch.equal(near(x)[..., 0, 0], near(other)[..., 0, 0])
    assert (far(x) - far(other))[..., 0, 0].abs() > 1e-5


def test_equal_features_at_different_places_are_told_apart():
    found = TransformerBottleneck(12, depth=1, heads=2)(torch.ones(1, 12, 4, 4))
    places = found.flatten(2)[0].T
    apart = torch.cdist(places, places) + torch.eye(16)
    assert apart.min() > 1e-3


def test_positions_are_sines_and_cosines_of_each_coordinate():
    found = positions((2, 3), 8)
    assert found.shape == (6, 8)
    rates = [1.0, 10_000 ** (-2 / 4)]
    for place, (row, column) in enumerate((row, column) for row in range(2) for column in range(3)):
        wanted = [
            wave(at * rate) for at in (row, column) for wave in (math.sin, math.cos) for rate in rates
        ]  # fmt: skip
        assert found[place].tolist() == pytest.approx(wanted, abs=1e-6)
