"""Flows lead back exactly, and their log-determinants are those of autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bidsharm.nn.flow import (
    ActNorm,
    Coupling,
    Flow,
    ImageDensity,
    Invertible,
    Logit,
    Mixing,
    Noise,
    Shift,
    Squeeze,
    begin_at_zero,
    glow,
    real_nvp,
)
from bidsharm.nn.spline import rational_quadratic


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def net(ins: int, outs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(ins, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, outs, 3, padding=1))


def stirred(module: nn.Module) -> nn.Module:
    """Move the weights away from where they begin, for couplings begin as the identity."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return module.double().eval()


def layers() -> dict[str, Invertible]:
    return {
        'squeeze': Squeeze(), 'actnorm': ActNorm(4), 'mixing': Mixing(4), 'shift': Shift(0.3), 'logit': Logit(),
        'affine': Coupling(net(4, 8), 4), 'affine-odd': Coupling(net(4, 8), 4, odd=True),
        'checker': Coupling(net(4, 8), 4, by='checker'), 'spline': Coupling(net(4, 4 * 11), 4, bins=4),
        'spline-checker': Coupling(net(4, 4 * 11), 4, bins=4, by='checker', odd=True),
    }  # fmt: skip


def jacobian_volume(function: object, x: torch.Tensor) -> torch.Tensor:
    """Return the log-determinant of a map of one image, from its full Jacobian."""
    slopes = torch.autograd.functional.jacobian(lambda v: function(v).flatten(), x)  # type: ignore[operator]
    return torch.linalg.slogdet(slopes.reshape(x.numel(), x.numel())).logabsdet


@pytest.mark.parametrize('name', layers())
def test_layers_lead_back_and_know_their_volume(name: str) -> None:
    layer = stirred(layers()[name])
    x = torch.rand(2, 4, 4, 4, dtype=torch.float64)
    y, volume = layer(x)
    torch.testing.assert_close(layer.inverse(y), x, atol=1e-8, rtol=0)  # type: ignore[operator]
    wanted = [jacobian_volume(lambda v: layer(v)[0], one[None]) for one in x]
    torch.testing.assert_close(volume.double(), torch.stack(wanted), atol=1e-6, rtol=1e-6)
    if name not in ('squeeze', 'shift'):
        assert not torch.equal(y.reshape(x.shape), x)


@pytest.mark.parametrize('kind', ['glow-spline', 'glow-affine', 'real-nvp'])
def test_whole_flows(kind: str) -> None:
    made = {
        'glow-spline': lambda: glow(2, levels=2, steps=2, width=5),
        'glow-affine': lambda: glow(2, levels=2, steps=2, width=5, bins=0),
        'real-nvp': lambda: real_nvp(2, net, levels=2, couplings=2),
    }[kind]()
    flow = stirred(made)
    assert isinstance(flow, Flow)
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    latents, volume = flow(x)
    assert sum(latent.numel() for latent in latents) == x.numel()
    torch.testing.assert_close(flow.inverse(latents), x, atol=1e-7, rtol=0)
    wanted = jacobian_volume(lambda v: torch.cat([part.flatten() for part in flow(v)[0]]), x)
    torch.testing.assert_close(volume[0], wanted, atol=1e-5, rtol=1e-6)


def test_a_flow_in_three_dimensions_leads_back_in_single_precision() -> None:
    flow = stirred(glow(3, levels=2, steps=2, width=5)).float()
    x = torch.rand(2, 1, 8, 8, 4)
    torch.testing.assert_close(flow.inverse(flow(x)[0]), x, atol=1e-4, rtol=0)  # type: ignore[operator]


def test_squeeze_puts_neighbours_into_channels() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y, _ = Squeeze()(x)
    assert y[0, :, 0, 0].tolist() == [0, 1, 4, 5]


def test_actnorm_standardizes_the_first_batch_of_the_training_only() -> None:
    layer = ActNorm(3)
    x = 5 + 2 * torch.randn(4, 3, 16, 16)
    layer.eval()
    assert torch.equal(layer(x)[0], x)
    layer.train()
    first = layer(x)[0]
    assert float(first.detach().mean().abs()) < 1e-5
    assert float(first.detach().std()) == pytest.approx(1, abs=0.01)
    scale = layer.log_scale.clone()
    layer(3 * x)
    assert torch.equal(layer.log_scale, scale)


def test_splines_rise_are_the_identity_outside_and_where_nothing_is_learnt() -> None:
    x = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    zeros = torch.zeros(301, 4, dtype=torch.float64)
    y, slopes = rational_quadratic(x, zeros, zeros, zeros[:, :3], bound=1)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(slopes, torch.zeros_like(x), atol=1e-12, rtol=0)
    widths, heights, steep = (
        3 * torch.randn(size, dtype=torch.float64).expand(301, size) for size in (4, 4, 3)
    )
    y, _ = rational_quadratic(x, widths, heights, steep, bound=1)
    assert bool((y.diff() > 0).all())
    outside = x.abs() >= 1
    assert torch.equal(y[outside], x[outside])
    assert float((y - x).abs().max()) > 0.1


def test_couplings_keep_one_part() -> None:
    layer = stirred(Coupling(net(1, 2), 1, by='checker'))
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    moved = (layer(x)[0] != x)[0, 0]
    assert moved.tolist() == [[(i + j) % 2 == 1 for j in range(4)] for i in range(4)]


def test_bits_per_dimension_of_a_flow_that_does_nothing() -> None:
    model = ImageDensity(Flow([[Shift(0.0)]]), Noise(), grey_levels=256, span=1.0)
    x = torch.full((1, 1, 64, 64), 0.5)
    # A standard normal around 0.5 + 1/512 on average, and 256 grey levels.
    wanted = 8 + (0.5 * math.log(2 * math.pi) + 0.5 * 0.502**2) / math.log(2)
    assert float(model(x)) == pytest.approx(wanted, abs=1e-2)


def test_uniform_noise_costs_nothing_and_learnt_noise_knows_its_density() -> None:
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    noise, spread = Noise()(x)
    assert bool(((noise >= 0) & (noise < 1)).all())
    assert spread.tolist() == [0, 0]
    learnt = Noise([stirred(Coupling(net(2, 2), 1, by='checker'))]).double()  # type: ignore[list-item]
    torch.manual_seed(3)
    found, spread = learnt(x)
    assert bool(((found >= 0) & (found <= 1)).all())
    torch.manual_seed(3)
    plain = torch.rand_like(x)

    def through(v: torch.Tensor) -> torch.Tensor:
        logits = learnt.logit(v)[0]
        return learnt.layers[0](logits, 2 * x[:1] - 1)[0].sigmoid()

    wanted = jacobian_volume(through, plain[:1])
    assert float(spread[0]) == pytest.approx(float(wanted), abs=1e-4)


def test_images_come_back_from_their_latents() -> None:
    model = ImageDensity(glow(2, levels=2, steps=2, width=5), Noise(), grey_levels=4096, span=1.5)
    model.load_state_dict(stirred(model).float().state_dict())
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(model.float().decode(model.encode(x)), x, atol=1e-4, rtol=0)


def test_images_of_latents_have_the_grey_levels_that_there_are() -> None:
    model = ImageDensity(Flow([[Shift(0.0)]]), Noise(), grey_levels=256, span=2.0)
    found = model.decode([torch.tensor([[[[-50.0, 0.25, 30.0]]]])])
    torch.testing.assert_close(found, torch.tensor([[[[0.0, 0.5 - 1 / 256, 2.0]]]]))


def test_a_layer_that_begins_at_zero_is_the_identity_in_a_coupling() -> None:
    layer = Coupling(begin_at_zero(nn.Conv2d(4, 8, 1)), 4)
    x = torch.rand(1, 4, 3, 3)
    assert torch.equal(layer(x)[0], x)
