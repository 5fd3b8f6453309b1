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

from .small_gans import Add, batch_of, built, totals


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


class Moves(nn.Module):
    """Add a number, and guess the site by a multiple of the mean, as the classifiers of both means do."""

    def __init__(self, number, slope):
        super().__init__()
        self.number, self.slope = number, slope

    def forward(self, x):
        return x + self.number, self.slope * x.mean(dim=(1, 2, 3))[:, None].expand(-1, 2)


def softplus(x):
    return math.log1p(math.exp(x))


def test_losses_of_ugatit_are_those_worked_out_by_hand():
    method = built(Ugatit, cycle=10.0, identity=5.0, activation=1000.0)
    zero = torch.zeros(())
    method.networks = nn.ModuleDict(
        {'generator': Moves(0.5, 1.0), 'backward': Moves(-0.2, -2.0), 'of_target': Add(zero), 'of_source': Add(zero)}
    )  # fmt: skip
    ones, mask = torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    found = totals(method, {'x': 2 * ones, 'y': 3 * ones, 'x_mask': mask, 'y_mask': mask})
    # In the brain x becomes 2.5 and y 2.8, both ways end at 2.3 and 3.3, what should stay moves by 0.5 and 0.2. Means over slice and background: 1.5, 2.25.
    made = found['generators']
    assert made['adversarial'] == pytest.approx((3 * 1.5**2 + 1) / 4 + (3 * 1.8**2 + 1) / 4)
    assert made['cycle'] == pytest.approx(10 * 0.75 * (0.3 + 0.3))
    assert made['identity'] == pytest.approx(5 * 0.75 * (0.5 + 0.2))
    # The way to the target says 1.5 of x (1 is right) and 2.25 of y (0 is right); the way back says -4.5 of y (1) and -3 of x (0).
    guesses = softplus(-1.5) + softplus(2.25) + softplus(4.5) + softplus(-3.0)
    assert made['attention'] == pytest.approx(1000 * guesses, rel=1e-5)
    judged = found['discriminators']
    assert judged['of_target'] == pytest.approx((3 * 2**2 + 1) / 4 + 0.75 * 2.5**2)
    assert judged['of_source'] == pytest.approx((3 * 1**2 + 1) / 4 + 0.75 * 2.8**2)


def test_both_discriminators_count_with_patches_and_whole_images():
    method = built(Ugatit)
    scores = method.networks['of_target'](torch.randn(2, 1, 16, 16))
    assert [score.ndim for score in scores] == [4, 2, 4, 2]


def test_generators_pay_for_each_of_their_discriminators():
    method = built(Ugatit)
    scores = [torch.zeros(2, 1), torch.full((2, 1), 3.0)]
    method.parts = lambda batch: (*(lambda x: (x, torch.zeros(1)),) * 2, *(lambda x: scores,) * 2)
    losses = dict(next(iter(method.losses(batch_of((16, 16)), '')))[1])
    assert float(losses['adversarial']) == 2 * (
        1 + 4
    )  # two ways, each with a score that is 1 and one that is 2 from real


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


class Turning(nn.Module):
    """Add a number; features of a tap are the image and its double."""

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)))

    def taps(self, x):
        return [x, 2 * x]

    def forward(self, x):
        return x + self.number


class Circle(nn.Module):
    """Take each voxel for an angle, and return its place on the unit circle."""

    def routes(self, maps):
        return maps

    def forward(self, maps, routes):
        assert [route.shape for route in routes] == [here.shape for here in maps]
        return [torch.stack([here.flatten(1).cos(), here.flatten(1).sin()], dim=2) for here in maps]


@pytest.fixture
def turning():
    """QS-Attn whose features are angles, with a generator that adds half a radian."""
    method = built(QueryAttention, taps=(0, 1), temperature=0.5, contrast=4.0)
    method.networks = nn.ModuleDict(
        {'generator': Turning(0.5), 'projection': Circle(), 'discriminator': Add(torch.zeros(()))}
    )
    return method


def test_likeness_by_hand(turning):
    x = torch.tensor([[[[0.0, math.pi / 2]]]])
    # The similarity of a place with itself is 1, with the other one 0 in the first tap and -1 in the second, each over 0.5.
    same = (softplus(-2.0) + softplus(-4.0)) / 2
    assert float(turning.alike(x, x).detach()) == pytest.approx(same)
    other = (softplus(2.0) + softplus(4.0)) / 2
    assert float(turning.alike(x.flip(3), x).detach()) == pytest.approx(other)


def test_losses_of_qs_attn_are_those_worked_out_by_hand(turning):
    x, y = torch.tensor([[[[0.0, math.pi / 2]]]]), torch.tensor([[[[math.pi, 0.0]]]])
    ones = torch.ones(1, 1, 1, 2)
    found = totals(turning, {'x': x, 'y': y, 'x_mask': ones, 'y_mask': ones})

    def likeness(turn, apart):
        """Return the loss of two places that are turned, and that lie apart: one has the other before it, one behind."""
        angles = [(tap * turn, tap * apart) for tap in (1, 2)]
        angles += [(a, -b) for a, b in angles]
        return sum(softplus(2 * (math.cos(a - b) - math.cos(a))) for a, b in angles) / 4

    made = found['generator']
    assert made['contrast'] == pytest.approx(0.5 * 4 * likeness(0.5, math.pi / 2), rel=1e-5)
    assert made['identity'] == pytest.approx(0.5 * 4 * likeness(0.5, math.pi), rel=1e-5)
    moved = (0.5, math.pi / 2 + 0.5)
    assert made['adversarial'] == pytest.approx(sum((value - 1) ** 2 for value in moved) / 2, rel=1e-5)
    real, fake = ((math.pi - 1) ** 2 + 1) / 2, sum(value**2 for value in moved) / 2
    assert found['discriminator']['adversarial'] == pytest.approx(0.5 * (real + fake), rel=1e-5)


def test_the_projection_learns_with_the_generator_and_there_is_no_way_back():
    method = built(QueryAttention)
    assert method.players['generator'].networks == ('generator', 'projection')
    assert set(method.networks) == {'generator', 'discriminator', 'projection'}
    losses = dict(next(iter(method.losses(batch_of((32, 32)), '')))[1])
    assert set(losses) == {'adversarial', 'contrast', 'identity'}
    sum(losses.values()).backward()
    assert all(weight.grad is not None for weight in method.networks['projection'].parameters())
