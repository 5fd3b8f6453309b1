"""What is special to U-GAT-IT and to QS-Attn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from bidsharm.harmonizers.cut import QueryAttention
from bidsharm.harmonizers.ugatit import Ugatit
from bidsharm.nn.patches import PatchProjection, telling
from bidsharm.nn.ugatit import ClassActivation, LayerInstanceNorm, UgatitGenerator

from .small_gans import batch_of, built


def test_the_norm_shades_from_instance_to_layer():
    x = 3 * torch.randn(2, 4, 8, 8) + torch.arange(4.0).view(1, 4, 1, 1)
    norm = LayerInstanceNorm(4, 1.0, given=False)
    assert torch.allclose(norm(x), functional.instance_norm(x), atol=1e-5)
    norm.share.data.fill_(0.0)
    assert torch.allclose(norm(x), functional.layer_norm(x, (4, 8, 8)), atol=1e-5)
    norm.share.data.fill_(0.25)
    mixed = 0.25 * functional.instance_norm(x) + 0.75 * functional.layer_norm(x, (4, 8, 8))
    assert torch.allclose(norm(x), mixed, atol=1e-5)


def test_the_share_stays_between_0_and_1_and_given_scales_are_used():
    norm = LayerInstanceNorm(2, 0.9, given=True)
    norm.share.data = torch.tensor([1.7, -0.3])
    x = torch.randn(1, 2, 4, 4)
    found = norm(x, (torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])))
    assert norm.share.tolist() == [1.0, 0.0]
    assert torch.allclose(found[:, 0], 2 * functional.instance_norm(x)[:, 0], atol=1e-5)
    assert torch.allclose(found[:, 1], torch.full((1, 4, 4), 5.0))


def test_attention_weighs_channels_by_what_the_classifier_thinks_of_them():
    attention = ClassActivation(2, 2)
    attention.of_mean.weight.data = torch.tensor([[1.0, 0.0]])
    attention.of_largest.weight.data = torch.tensor([[0.0, 3.0]])
    attention.merge.weight.data = torch.eye(2, 4).view(2, 4, 1, 1)
    attention.merge.bias.data.zero_()
    x = torch.stack([torch.full((2, 2), 4.0), torch.tensor([[0.0, 1.0], [2.0, 5.0]])])[None]
    features, logits = attention(x)
    assert logits.tolist() == [[4.0, 15.0]]
    assert torch.equal(features[0, 0], x[0, 0])
    assert (features[0, 1] == 0).all()


@pytest.mark.parametrize('dims', [2, 3])
def test_the_generator_of_ugatit_keeps_sizes_and_begins_as_the_identity(dims):
    x = torch.randn(2, 1, *(16,) * dims)
    image, logits = UgatitGenerator(dims, 4, 1, 'residual')(x)
    assert torch.equal(image, x)
    assert logits.shape == (2, 2)


def test_losses_of_ugatit_at_the_start():
    method = built(Ugatit, activation=1000.0)
    for name in ('generator', 'backward'):
        for classifier in ('of_mean', 'of_largest'):
            nn.init.zeros_(getattr(method.networks[name].attention, classifier).weight)
    losses = dict(next(iter(method.losses(batch_of((16, 16)), '')))[1])
    # Nobody knows anything: each of four guesses costs log 2; and as the identity the generators keep everything.
    assert float(losses['attention'].detach()) == pytest.approx(4000 * math.log(2))
    assert float(losses['cycle'].detach()) == float(losses['identity'].detach()) == 0


def test_the_places_that_know_best_what_they_are_like_are_kept():
    features = torch.tensor([[[9.0, 0.0], [0.1, 0.1], [0.0, 0.1], [0.0, 9.0]]])
    attention = telling(features, 2)
    assert attention.shape == (1, 2, 4)
    assert torch.allclose(attention.sum(dim=2), torch.ones(1, 2))
    assert sorted(attention.argmax(dim=2)[0].tolist()) == [0, 3]
    assert attention.max(dim=2).values.min() > 0.99


def test_output_and_input_are_compared_at_the_same_places():
    torch.manual_seed(0)
    projection = PatchProjection([2, 3], features=8, patches=5, attend_from=1)
    maps = [torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4)]
    routes = projection.routes(maps)
    assert routes[0].shape == (5,)
    assert routes[1].shape == (1, 5, 16)
    first, again = projection(maps, routes), projection(maps, routes)
    for one, other in zip(first, again, strict=True):
        assert one.shape == (1, 5, 8)
        assert torch.equal(one, other)
        assert torch.allclose(one.norm(dim=2), torch.ones(1, 5))


def test_an_image_is_more_like_itself_than_like_another():
    method = built(QueryAttention)
    batch = batch_of((32, 32))
    with torch.no_grad():
        torch.manual_seed(0)
        same, other = method.alike(batch['x'], batch['x']), method.alike(batch['y'], batch['x'])
    assert same < other


def test_the_projection_learns_with_the_generator_and_there_is_no_way_back():
    method = built(QueryAttention)
    assert method.players['generator'].networks == ('generator', 'projection')
    assert set(method.networks) == {'generator', 'discriminator', 'projection'}
    losses = dict(next(iter(method.losses(batch_of((32, 32)), '')))[1])
    assert set(losses) == {'adversarial', 'contrast', 'identity'}
    sum(losses.values()).backward()
    assert all(weight.grad is not None for weight in method.networks['projection'].parameters())
