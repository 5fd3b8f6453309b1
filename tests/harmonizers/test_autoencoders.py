"""style-blind, hail, imunity and stytr: losses, frozen parts, styles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bidsharm.harmonizers.contract import Cohort, Reference, Site
from bidsharm.harmonizers.hail import Hail
from bidsharm.harmonizers.imunity import ImUnity
from bidsharm.harmonizers.native import on_model_grid
from bidsharm.harmonizers.style_blind import StyleBlind
from bidsharm.harmonizers.stytr import StyTr
from bidsharm.nn.losses import moments
from bidsharm.training.options import Budget, Running

from .conftest import people_at_two_sites


@pytest.fixture(scope='module')
def scans():
    return [scan for scan in people_at_two_sites() if scan.contrast == 'T1w']


def untrained(kind, sites=('A', 'B'), **changes):
    method = kind(settings=kind.preset('tiny', **changes))
    method.sites, method.contrasts, method.target_site = sites, ('T1w',), 'A'
    torch.manual_seed(0)
    method.networks = torch.nn.ModuleDict(method.build())
    return method


def images(count=1, dims=2):
    return [torch.rand(2, 1, *[16] * dims) for _ in range(count)]


def same_losses(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=1e-3, abs=1e-6), name


def test_equal_copies_cost_a_style_blind_code_nothing():
    method, (x, copy, other) = untrained(StyleBlind, blindness=3.0), images(3)
    net, mask = method.networks['autoencoder'], torch.ones_like(x)
    assert float(method.blind([copy, copy], x, mask)['blindness'].detach()) == 0
    same_losses(
        method.blind([copy, other], x, mask),
        {
            'image': (net(copy) - x).abs().mean(),
            'blindness': 3 * (net.encode(copy) - net.encode(other)).square().mean(),
        },
    )


def test_style_blind_learns_the_same_code_for_altered_copies(scans):
    codes = {}
    for blindness in (0.0, 10.0):
        method = StyleBlind(settings=StyleBlind.preset('tiny', blindness=blindness, steps=60))
        method.fit(Cohort(scans), target=Site('A'))
        image = torch.from_numpy(on_model_grid(scans[0], 8.0).data[None, None, :, :, 16] / 900)
        with torch.no_grad():
            one, other = (method.networks['autoencoder'].encode(part) for part in (image, image**1.5))
        codes[blindness] = float((one - other).norm() / one.norm())
    assert codes[10.0] < 0.7 * codes[0.0]


def test_hail_compares_moments_of_features():
    method, (x, y) = untrained(Hail, content=2.0, style=5.0), images(2, 3)
    net = method.networks['autoencoder']
    code, of_y = net.encode(x), net.features(y)
    (mean, deviation), (own, spread) = moments(of_y[-1]), moments(code)

    def wide(part):
        return part[:, :, None, None, None]

    wanted = (code - wide(own)) / wide(spread) * wide(deviation) + wide(mean)
    found = net.features(net.decode(wanted))
    style = sum(
        (a - b).square().mean()
        for f, g in zip(found, of_y, strict=True)
        for a, b in zip(moments(f), moments(g), strict=True)
    )
    same_losses(
        method.transferred(x, torch.ones_like(x), y),
        {'content': 2 * (found[-1] - wanted).square().mean(), 'style': 5 * style},
    )


@pytest.mark.parametrize(
    ('kind', 'network', 'part'), [(Hail, 'autoencoder', 'encoder'), (StyTr, 'features', '')]
)
def test_features_are_frozen_in_the_second_stage(kind, network, part, scans, tmp_path):
    seen = {}

    class Watched(kind):
        def begin(self, stage):
            super().begin(stage)
            seen[stage] = {
                k: v.clone() for k, v in self.networks[network].state_dict().items() if k.startswith(part)
            }

    method = Watched(settings=kind.preset('tiny', extractor=0.5))
    method.fit(Cohort(scans), target=Site('A'), running=Running(budget=Budget(4)))
    assert list(seen) == ['features', 'transfer']
    end = method.networks[network].state_dict()
    assert all(torch.equal(end[key], value) for key, value in seen['transfer'].items())
    assert any(not torch.equal(end[key], value) for key, value in seen['features'].items())


def test_imunity_alters_the_anatomy_only():
    method = untrained(ImUnity)
    x = torch.cat([torch.zeros(4, 1, 2, 2), torch.full((4, 1, 2, 2), 0.25), torch.ones(4, 1, 2, 2)], dim=2)
    found = method.altered(x)
    assert found[:, :, :2].abs().max() == 0
    assert (found[:, :, 4:] - 1).abs().max() == 0
    powers = found[:, 0, 2, 0].log() / math.log(0.25)
    assert powers.min() >= 0.5
    assert powers.max() <= 2.0
    assert len(powers.unique()) == 4


def test_losses_of_imunity():
    method, (x, other, altered) = untrained(ImUnity), images(3)
    method.networks.eval()
    b = {'x': x, 'other': other, 'mask': torch.ones_like(x), 'site': torch.tensor([0, 1])}
    losses, fake, latent = method.rebuilt(b, altered)
    net, s = method.networks, method.settings
    found, mean, log_variance = net['generator'](altered, net['contrast'](other, None))
    assert torch.equal(fake, found)
    assert torch.equal(latent, mean)
    guess = net['classifier'](mean).log_softmax(dim=1)
    same_losses(
        losses,
        {
            'image': s.image * (found - x).abs().mean(),
            'adversarial': (net['discriminator'](found) - 1).square().mean(),
            'divergence': s.divergence
            * 0.5
            * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean(),
            'unlearning': -s.unlearning * guess.mean(),
        },
    )
    players = [player for player, _ in method.losses(b, 'train')]
    assert players == ['generator', 'discriminator', 'classifier']
    alone = untrained(ImUnity, ('A',))
    assert [player for player, _ in alone.losses(b, 'train')] == players[:2]


def test_the_bottleneck_of_imunity_is_random_in_training_only():
    method, (x,) = untrained(ImUnity), images()
    net, code = method.networks['generator'], torch.zeros(2, 8)
    assert not torch.equal(net.train()(x, code)[0], net(x, code)[0])
    assert torch.equal(net.eval()(x, code)[0], net(x, code)[0])


def test_losses_of_stytr():
    method, (x, y) = untrained(StyTr, content=2.0, style=3.0, same_image=4.0, same_features=5.0), images(2)
    others = images(2)
    b = {
        'x': x,
        'y': y,
        'x_mask': torch.ones_like(x),
        'y_mask': torch.ones_like(x),
        'x_other': others[0],
        'y_other': others[1],
    }
    net, features = method.networks['transformer'], method.networks['features'].features
    of_others = [net.style_tokens(other) for other in others]
    found, of_x, of_y = features(net(x, of_others[1])), features(x), features(y)
    same = [net(part, style) for part, style in zip((x, y), of_others, strict=True)]

    def normal(part):
        return (part - part.mean((2, 3), keepdim=True)) / (
            part.var((2, 3), keepdim=True, unbiased=False) + 1e-5
        ).sqrt()

    def distance(one, other):
        return sum((a - b).square().mean() for a, b in zip(one, other, strict=True))

    same_losses(
        method.transferred(b),
        {
            'content': 2
            * distance([normal(part) for part in found[-2:]], [normal(part) for part in of_x[-2:]]),
            'style': 3 * sum(distance(moments(f), moments(g)) for f, g in zip(found, of_y, strict=True)),
            'same_image': 4 * distance(same, [x, y]),
            'same_features': 5 * (distance(features(same[0]), of_x) + distance(features(same[1]), of_y)),
        },
    )


def test_styles_of_stytr_know_no_order_and_positions_follow_the_content():
    method, (x, y) = untrained(StyTr), images(2)
    net = method.networks['transformer'].eval()
    style = net.style_tokens(y)
    turned = style[:, torch.randperm(style.shape[1])]
    assert torch.allclose(net(x, style), net(x, turned), atol=1e-4)
    small = net.positions(torch.rand(1, 32, 5, 9))
    assert small.shape == (1, 32, 5, 9)
    flat = net.positions(torch.ones(1, 32, 5, 9))
    assert float(flat.std((2, 3)).max()) < 1e-5


@pytest.mark.parametrize('kind', [Hail, ImUnity, StyTr])
def test_another_reference_gives_another_image(kind, scans):
    method = kind(settings=kind.preset('tiny'))
    method.fit(Cohort(scans), target=Reference('one.nii'), running=Running(budget=Budget(3)))
    scan, found = on_model_grid(scans[1], method.grid_mm), []
    for number in (0, 1):
        target = Reference(f'{number}.nii')
        method.fit(Cohort([scans[number]]), target=target)
        found.append(method.harmonize(scan, target).image)
    assert np.abs(found[0] - found[1])[scan.mask].mean() > 1e-4


@pytest.mark.parametrize('kind', [StyleBlind, Hail, ImUnity, StyTr])
def test_scans_move_towards_the_target(kind, scans):
    method = kind(settings=kind.preset('tiny'))
    method.fit(Cohort(scans), target=Site('A'))
    wanted, scan = (on_model_grid(scans[index], method.grid_mm) for index in (0, 1))
    found = method.harmonize(scan, Site('A')).image
    tissue = np.argmax(wanted.tissue, axis=0)

    def off(image):
        inside = [wanted.mask & (tissue == label) for label in range(3)]
        return np.mean([abs(np.median(image[here]) - np.median(wanted.data[here])) for here in inside])

    assert off(found) < 0.85 * off(scan.data)
