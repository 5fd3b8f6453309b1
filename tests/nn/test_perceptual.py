"""Fixed random features: the same everywhere, blind to nothing, and a loss that can be learnt from."""

from __future__ import annotations

import torch

from bidsharm.nn.perceptual import FixedFeatures


def shapes(edge: int = 48) -> torch.Tensor:
    """Two slices: a disc and a ring."""
    place = torch.stack(torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing='ij')).float()
    radius = (place - edge / 2).norm(dim=0)
    return torch.stack([(radius < 15).float(), ((radius > 8) & (radius < 15)).float()])[:, None]


def test_filters_are_the_same_every_time_and_not_saved():
    one, other = FixedFeatures(), FixedFeatures()
    assert one.state_dict() == {}
    assert not list(one.parameters())
    x = shapes()
    for a, b in zip(one(x), other(x), strict=True):
        assert torch.equal(a, b)
    assert [tuple(found.shape[1:]) for found in one(x)] == [(16, 48, 48), (32, 24, 24), (64, 12, 12)]


def test_no_layer_dies_or_grows():
    """Noise of any scale is seen at that scale in every block."""
    features, noise = FixedFeatures(), torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    for found in features(noise):
        assert 0.05 < found.std() < 2
    for one, ten in zip(features(noise), features(10 * noise), strict=True):
        torch.testing.assert_close(10 * one, ten, rtol=1e-4, atol=1e-4)


def test_distance_by_hand_and_its_gradient():
    features, (disc, ring) = FixedFeatures((4, 8)), shapes()[:, None]
    assert features.distance(disc, disc) == 0
    by_hand = torch.stack(
        [(a - b).abs().mean() for a, b in zip(features(disc), features(ring), strict=True)]
    ).mean()
    torch.testing.assert_close(features.distance(disc, ring), by_hand)
    found = ring.clone().requires_grad_()
    optimizer = torch.optim.Adam([found], 0.02)
    before = features.distance(found, disc).item()
    for _ in range(60):
        optimizer.zero_grad()
        features.distance(found, disc).backward()
        optimizer.step()
    assert features.distance(found, disc).item() < 0.3 * before
    assert (found - disc).abs().mean() < 0.5 * (ring - disc).abs().mean()
