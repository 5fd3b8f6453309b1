from __future__ import annotations

import pytest
import torch

from bidsharm.nn.blocks import count_parameters
from bidsharm.nn.resnet import ResNet, SelfAttention


def test_the_generator_has_the_weights_that_its_layers_have():
    # Kernel volume times channels in and out, biases, and scale and offset of the norms.
    first = 49 * 64 + 64 + 2 * 64
    downs = (9 * 64 * 128 + 128 + 2 * 128) + (9 * 128 * 256 + 256 + 2 * 256)
    block = 2 * (9 * 256 * 256 + 256 + 2 * 256)
    ups = (16 * 256 * 128 + 128 + 2 * 128) + (16 * 128 * 64 + 64 + 2 * 64)
    assert count_parameters(ResNet()) == first + downs + 9 * block + ups + 49 * 64 + 1


@pytest.mark.parametrize('dims', [2, 3])
def test_a_residual_head_begins_as_the_identity(dims):
    x = torch.randn(2, 1, *(16,) * dims)
    assert torch.equal(ResNet(dims=dims, width=4, blocks=1, head='residual')(x), x)
    direct = ResNet(dims=dims, width=4, blocks=1)(x)
    assert direct.shape == x.shape
    assert not torch.allclose(direct, x, atol=0.1)


def test_taps_are_the_image_and_what_every_layer_says():
    network = ResNet(width=4, blocks=3)
    taps = network.taps(torch.randn(1, 1, 16, 16))
    assert [tap.shape[1] for tap in taps] == network.channels() == [1, 4, 8, 16, 16, 16, 16]
    assert [tap.shape[2] for tap in taps] == [16, 16, 8, 4, 4, 4, 4]


def test_masks_add_up_to_one_and_the_input_begins_with_nine_tenths():
    network = ResNet(width=4, blocks=1, head='attention', masks=5)
    torch.nn.init.zeros_(network.crown.attention[-1].weight)
    x = torch.randn(2, 1, 16, 16)
    masks = network.crown.masks(network.taps(x)[-1])
    assert masks.shape == (2, 5, 16, 16)
    assert torch.allclose(masks.sum(dim=1), torch.ones(2, 16, 16))
    assert torch.allclose(masks[:, -1], torch.full((2, 16, 16), 0.9))
    contents = network.crown.contents(network.taps(x)[-1])
    wanted = 0.9 * x + 0.025 * contents.sum(dim=1, keepdim=True)
    assert torch.allclose(network(x), wanted, atol=1e-5)


@pytest.mark.parametrize('dims', [2, 3])
def test_masks_are_shares_that_combine_the_images_and_the_input(dims):
    torch.manual_seed(0)
    network = ResNet(dims=dims, width=4, blocks=1, head='attention', masks=4)
    x = 3 * torch.randn(2, 1, *(8,) * dims)
    features = network.taps(x)[-1]
    masks, contents = network.crown.masks(features), network.crown.contents(features)
    assert 0 <= masks.min() < masks.max() <= 1
    wanted = masks[:, 3:] * x
    for index in range(3):
        wanted = wanted + masks[:, index, None] * contents[:, index, None]
    assert torch.allclose(network(x), wanted, atol=1e-5)


def test_a_mask_of_1_shows_its_image_and_nothing_else():
    network = ResNet(width=4, blocks=1, head='attention', masks=4)
    x = torch.randn(1, 1, 8, 8)
    contents = network.crown.contents(network.taps(x)[-1])
    last = network.crown.attention[-1]
    torch.nn.init.zeros_(last.weight)
    for index in range(4):
        last.bias.data = torch.full((4,), -1e4)
        last.bias.data[index] = 0
        assert torch.equal(network(x), x if index == 3 else contents[:, index, None])


@pytest.mark.parametrize('dims', [2, 3])
def test_self_attention_changes_nothing_at_the_start_and_reaches_everywhere_later(dims):
    torch.manual_seed(0)
    attention = SelfAttention(dims, 16)
    x = torch.randn(1, 16, *(8,) * dims)
    assert torch.equal(attention(x), x)
    torch.nn.init.ones_(attention.weight)
    corner, middle = (0, slice(None), *(0,) * dims), (0, slice(None), *(4,) * dims)
    changed = x.clone()
    changed[corner] += 1
    assert not torch.allclose(attention(changed)[middle], attention(x)[middle], atol=1e-5)


def test_self_attention_is_the_weighted_mean_of_all_places():
    attention = SelfAttention(2, 8)
    torch.nn.init.ones_(attention.weight)
    x = torch.randn(2, 8, 3, 5)
    queries, keys, values = (
        layer(x).flatten(2) for layer in (attention.queries, attention.keys, attention.values)
    )
    shares = torch.einsum('bci,bcj->bij', queries, keys).softmax(dim=2)
    taken = torch.einsum('bij,bcj->bci', shares, values).reshape(2, 4, 3, 5)
    assert torch.allclose(attention(x), x + attention.last(taken), atol=1e-5)


def test_self_attention_lies_in_the_middle_of_the_residual_blocks():
    network = ResNet(width=4, blocks=4, self_attention=True)
    assert [type(layer).__name__ for layer in network.layers[3:]] == [
        'ResidualBlock', 'ResidualBlock', 'SelfAttention', 'ResidualBlock', 'ResidualBlock',
    ]  # fmt: skip
    x = torch.randn(1, 1, 16, 16)
    assert [tap.shape[1] for tap in network.taps(x)] == network.channels()
    assert network(x).shape == x.shape
