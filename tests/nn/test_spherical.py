from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsharm.errors import UsageError
from bidsharm.imaging.icosphere import icosphere, vertex_count
from bidsharm.nn.spherical import (
    MidpointUp,
    RingConv,
    RingPool,
    RingUp,
    SphericalEncoder,
    SphericalJudge,
    SphericalUNet,
)


def draw(channels: int, level: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, vertex_count(level), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('level', range(5))
def test_convolution_is_a_weighted_sum_over_the_ring(level: int) -> None:
    torch.manual_seed(0)
    conv, x = RingConv(3, 2, level), draw(3, level)
    found = conv(x)
    weight = conv.weight.weight.view(2, 3, 7)
    expected = torch.zeros_like(found)
    for place in range(7):
        neighbour = torch.from_numpy(icosphere(level).ring[:, place].copy())
        expected += torch.einsum('oc,bcn->bon', weight[:, :, place], x[:, :, neighbour])
    assert torch.allclose(found, expected + conv.weight.bias[:, None], atol=1e-5)


@pytest.mark.parametrize('level', range(1, 6))
def test_levels_follow_each_other(level: int) -> None:
    assert RingPool(level)(draw(3, level)).shape == (2, 3, vertex_count(level - 1))
    assert MidpointUp(level - 1)(draw(3, level - 1)).shape == (2, 3, vertex_count(level))
    assert RingUp(3, 4, level - 1)(draw(3, level - 1)).shape == (2, 4, vertex_count(level))


def test_a_constant_stays_a_constant() -> None:
    x = torch.full((1, 2, vertex_count(3)), 1.5)
    assert torch.allclose(RingPool(3)(x), torch.tensor(1.5))
    assert torch.allclose(MidpointUp(3)(x), torch.tensor(1.5))
    found = RingConv(2, 5, 3)(x)
    # Vertices with five neighbours see themselves twice, which makes no difference here.
    assert torch.allclose(found, found[:, :, :1].expand_as(found), atol=1e-6)


def test_interpolation_keeps_old_vertices_and_halves_edges() -> None:
    x = torch.from_numpy(icosphere(2).vertices.T[None].copy()).float()
    found = MidpointUp(2)(x)
    assert torch.equal(found[:, :, : x.shape[2]], x)
    middle = icosphere(2).vertices[icosphere(3).parents].mean(axis=1)
    np.testing.assert_allclose(found[0, :, x.shape[2] :].T, middle, atol=1e-6)


def test_transposed_convolution_is_the_sum_of_what_vertices_send() -> None:
    torch.manual_seed(0)
    up, x = RingUp(2, 1, 1), draw(2, 1)
    made = up.weight(x.transpose(1, 2))
    found = up(x)
    coarse, fine = vertex_count(1), icosphere(2)
    assert torch.allclose(found[:, 0, :coarse], made[:, :, 6])
    for new in (coarse, fine.size - 1):
        sent = [
            made[:, parent, int(np.flatnonzero(fine.ring[parent] == new)[0])]
            for parent in fine.parents[new - coarse]
        ]
        assert torch.allclose(found[:, 0, new], torch.stack(sent).mean(dim=0))


@pytest.mark.parametrize('norm', ['group', 'channel', 'none'])
def test_unet_returns_a_map_and_all_of_it_learns(norm: str) -> None:
    torch.manual_seed(0)
    net, x = SphericalUNet(1, 2, (4, 8, 8), 3, norm=norm), draw(1, 3)  # type: ignore[arg-type]
    found = net(x)
    assert found.shape == (2, 2, vertex_count(3))
    (found * draw(2, 3, seed=1)).mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
    # A convolution before a norm of its own channel cannot move by its bias; everything else can.
    still = {name for name, weight in net.named_parameters() if not weight.grad.abs().max() > 1e-12}  # type: ignore[union-attr]
    assert all(name.endswith('weight.bias') for name in still)


def test_a_residual_unet_begins_as_the_identity() -> None:
    net, x = SphericalUNet(1, 1, (4, 8), 2, residual=True), draw(1, 2)
    assert torch.equal(net(x), x)


def test_weights_are_all_that_is_saved() -> None:
    net = SphericalUNet(1, 1, (4, 8), 2)
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


def test_encoder_and_judge_end_at_the_coarse_level() -> None:
    encoder = SphericalEncoder(1, (4, 8, 16), 4)
    assert encoder.level == 2
    assert encoder(draw(1, 4)).shape == (2, 16, vertex_count(2))
    assert SphericalJudge(1, (4, 8), 3)(draw(1, 3)).shape == (2, 1, vertex_count(2))
    with pytest.raises(UsageError, match='no icosphere of level -1'):
        SphericalEncoder(1, (4, 8), 0)


def test_filters_see_directions() -> None:
    # Turning the sphere about its axis by a fifth carries the levels into themselves; about another axis it does not.
    torch.manual_seed(0)
    conv, x = RingConv(1, 1, 2), draw(1, 2)
    sphere = icosphere(2).vertices
    angle = 2 * np.pi / 5
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moved = ((sphere @ turn.T)[:, None] - sphere[None]) ** 2
    order = torch.from_numpy(moved.sum(axis=2).argmin(axis=1))
    turned = torch.empty_like(x)
    turned[:, :, order] = x
    there = torch.empty_like(x)
    there[:, :, order] = conv(x)
    apart = (conv(turned) - there).abs().amax(dim=(0, 1))
    north = torch.from_numpy(np.abs(sphere[:, 2]) < 0.999)
    assert apart[north].max() < 1e-5
    assert apart[~north].max() > 1e-3  # at the poles east is an axis of its own
