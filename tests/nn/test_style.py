"""Styles: adaptive norms, high-pass filters, layers for each site, sizes."""

from __future__ import annotations

import pytest
import torch

from bidsharm.harmonizers.stargan2 import StyleTransfer
from bidsharm.nn.blocks import count_parameters
from bidsharm.nn.discriminators import MultiScale
from bidsharm.nn.losses import moments
from bidsharm.nn.style import (
    AdaIN,
    ContentEncoder,
    Heads,
    ResidualTrunk,
    StyledDecoder,
    StyledGenerator,
    StyleMapping,
    high_pass,
    transfer_moments,
)


def test_adaptive_norm_is_one_plus_scale_times_normal_plus_offset():
    layer = AdaIN(2, 1, 2)
    with torch.no_grad():
        layer.of_style.weight.copy_(torch.eye(2))
        layer.of_style.bias.zero_()
    x = torch.tensor([[[[1.0, 3.0]]]])  # mean 2, deviation 1
    found = layer(x, torch.tensor([[0.5, 10.0]]))
    assert found.flatten().tolist() == pytest.approx([10 - 1.5, 10 + 1.5], abs=1e-4)


@pytest.mark.parametrize('dims', [2, 3])
def test_moments_are_handed_over(dims):
    x = torch.randn(2, 3, *[6] * dims) * 4 + 7
    mean, deviation = torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[0.5, 2.0, 3.0]])
    found = moments(transfer_moments(x, mean, deviation))
    assert torch.allclose(found[0], mean.expand(2, -1), atol=1e-4)
    assert torch.allclose(found[1], deviation.expand(2, -1), atol=1e-3)


@pytest.mark.parametrize('dims', [2, 3])
def test_high_pass_knows_no_constants_and_no_slopes(dims):
    slope = torch.arange(5.0).view(1, 1, 5, *[1] * (dims - 1)).expand(1, 2, *[5] * dims) + 3
    inner = (slice(None), slice(None), *[slice(1, -1)] * dims)
    assert high_pass(slope)[inner].abs().max() < 1e-4
    peak = torch.zeros(1, 1, *[5] * dims)
    peak[(0, 0, *[2] * dims)] = 1
    assert high_pass(peak).max() == 3**dims - 1


def test_an_unknown_site_gets_the_mean_of_all_layers():
    heads, x = Heads(4, 3, 2), torch.randn(5, 4)
    by_site = [heads(x, torch.full((5,), site)) for site in range(2)]
    assert not torch.allclose(*by_site)
    assert torch.allclose(heads(x, None), (by_site[0] + by_site[1]) / 2, atol=1e-6)


def test_each_site_has_its_own_mapping():
    mapping, noise = StyleMapping(4, 8, 3, 2), torch.randn(1, 4).expand(2, -1)
    first, second = mapping(noise, torch.tensor([0, 1]))
    assert not torch.allclose(first, second)
    assert torch.allclose(mapping(noise, torch.tensor([1, 1]))[0], second)


@pytest.mark.parametrize('shape', [(1, 3), (17, 30), (64, 64)])
def test_trunks_take_any_size(shape):
    assert ResidualTrunk(2, 1, width=4, most=8, downs=3)(torch.randn(2, 1, *shape)).shape == (2, 8)


@pytest.mark.parametrize(('high', 'dims'), [(0.0, 2), (1.0, 2), (1.0, 3)])
def test_the_generator_keeps_sizes_and_listens_to_the_style(high, dims):
    net = StyledGenerator(dims=dims, width=4, most=8, downs=2, middle=1, style=3, high_pass=high)
    x = torch.randn(2, 1, *[8, 12, 4][:dims])
    one, other = net(x, torch.zeros(2, 3)), net(x, torch.ones(2, 3))
    assert one.shape == x.shape
    assert not torch.allclose(one, other, atol=1e-3)


def test_content_and_style_become_an_image():
    content = ContentEncoder(2, 3, width=4, downs=2, blocks=1)(torch.randn(2, 3, 16, 24))
    assert content.shape == (2, 16, 4, 6)
    for up, hidden in (('interpolate', 8), ('transpose', 0)):
        net = StyledDecoder(2, 3, width=4, downs=2, blocks=1, style=5, hidden=hidden, up=up)
        assert net(content, torch.randn(2, 5)).shape == (2, 3, 16, 24)


def test_the_networks_are_as_large_as_the_published_ones():
    # The published weights of the averaged networks (generator, mapping, style encoder) take 225,609,752 bytes.
    method = StyleTransfer()
    networks = method.build()
    count = sum(count_parameters(networks[name]) for name in ('generator', 'mapping', 'style'))
    assert 4 * count == pytest.approx(225_609_752, rel=2e-3)


def test_sizes_that_are_too_small_for_the_layers_are_left_out():
    judge = MultiScale(3, (4, 8, 8, 8))
    assert [len(judge(torch.randn(1, 1, size, size))) for size in (64, 48, 16)] == [3, 2, 1]
