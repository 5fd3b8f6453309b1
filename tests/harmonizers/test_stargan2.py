"""StarGAN v2: its losses, who learns when, one domain, and styles of references."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsharm.harmonizers.contract import Cohort, Reference, Site
from bidsharm.harmonizers.native import on_model_grid
from bidsharm.harmonizers.stargan2 import StarGAN2, StyleTransfer
from bidsharm.training.options import Budget, Running

from .conftest import people_at_two_sites


@pytest.fixture(scope='module')
def scans():
    return [scan for scan in people_at_two_sites() if scan.contrast == 'T1w']


def untrained(kind, sites=('A', 'B'), **changes):
    method = kind(settings=kind.preset('tiny', **changes))
    method.sites, method.contrasts = sites, ('T1w',)
    torch.manual_seed(0)
    method.networks = torch.nn.ModuleDict(method.build())
    return method


def batch(sites=2):
    generator = torch.Generator().manual_seed(1)
    found = {name: torch.rand(2, 1, 16, 16, generator=generator) for name in 'xyz'}
    for name in 'xyz':
        found[f'{name}_mask'] = torch.ones(2, 1, 16, 16)
    found['x_mask'][:, :, :4] = 0
    found['x'] = found['x'] * found['x_mask']
    return {**found, 'x_site': torch.tensor([0, sites - 1]), 'y_site': torch.tensor([sites - 1, 0])}


def test_losses_are_those_of_the_paper():
    method, b = untrained(StarGAN2, identity=3.0), batch()
    net = method.networks
    styles = [torch.randn(2, 8), torch.randn(2, 8)]
    method.done = 0.75
    found = method._made(b, styles)
    fake, other = (net['generator'](b['x'], style) * b['x_mask'] for style in styles)
    own = net['style'](b['x'], b['x_site'])
    s = method.settings
    expected = {
        'adversarial': torch.log1p(torch.exp(-net['discriminator'](fake, b['y_site']))).mean(),
        'style': (net['style'](fake, b['y_site']) - styles[0]).abs().mean(),
        'diversity': -0.25 * s.diversity * (fake - other).abs().mean(),
        'cycle': s.cycle * (net['generator'](fake, own) * b['x_mask'] - b['x']).abs().mean(),
        'identity': 3 * (net['generator'](b['x'], own) * b['x_mask'] - b['x']).abs().mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=1e-4), name
    judged = method._judged(b['y'], fake.detach(), b['y_site'])
    real = b['y'].requires_grad_()
    score = net['discriminator'](real, b['y_site'])
    (slope,) = torch.autograd.grad(score.sum(), real)
    assert float(judged['penalty'].detach()) == pytest.approx(
        float(0.5 * slope.square().sum((1, 2, 3)).mean()), rel=1e-4
    )


def test_the_papers_use_no_identity_loss():
    for kind in (StarGAN2, StyleTransfer):
        assert 'identity' not in untrained(kind, ('A',), identity=0.0)._made(
            batch(1), [torch.zeros(2, 8)] * 2
        )
        assert kind.preset().identity == 0


def test_styles_of_references_train_the_generator_alone():
    method = untrained(StarGAN2)
    turns = method.losses(batch(), 'train')
    learning = []
    for player, _ in turns:
        learning.append(
            (
                player,
                {
                    name: all(w.requires_grad for w in net.parameters())
                    for name, net in method.networks.items()
                },
            )
        )
    assert [player for player, _ in learning] == ['discriminator', 'discriminator', 'generator', 'generator']
    assert [state['style'] for _, state in learning] == [True, True, True, False]
    assert all(state['generator'] and state['mapping'] for _, state in learning)
    assert all(w.requires_grad for w in method.networks['style'].parameters())


def test_with_one_domain_and_no_skips_it_is_style_transfer():
    weights = {'high_pass': 0.0, 'cycle': 7.0, 'identity': 0.0, 'downs': 2, 'middle': 1}
    one, other = untrained(StarGAN2, ('A',), **weights), untrained(StyleTransfer, ('A', 'B'), **weights)
    other.networks.load_state_dict(one.networks.state_dict())
    found = []
    for method in (one, other):
        torch.manual_seed(3)
        found.append(
            [
                (player, {k: float(v) for k, v in losses.items()})
                for player, losses in method.losses(batch(1), 'train')
            ]
        )
    assert found[0] == found[1]


def test_style_transfer_needs_no_site_labels_and_takes_any_reference(scans):
    scans = [replace(scan, site='') for scan in scans]
    method = StyleTransfer(settings=StyleTransfer.preset('tiny'))
    assert method.card.needs_fit == ('cohort',)
    some = Reference('one.nii.gz')
    method.fit(Cohort(scans), target=some, running=Running(budget=Budget(2)))
    scan = on_model_grid(scans[1], method.grid_mm)
    before = method.harmonize(scan, some).image
    another = Reference('another.nii.gz')
    method.fit(Cohort([scans[3]]), target=another)
    after = method.harmonize(scan, another)
    assert np.abs(after.image - before)[scan.mask].max() > 1e-3


def test_tissues_move_towards_the_target(scans):
    # 60 steps bring grey matter nearer with some seeds only.
    method = StarGAN2(settings=StarGAN2.preset('tiny', steps=240))
    method.fit(Cohort(scans), target=Site('A'))
    wanted, scan = (on_model_grid(scans[index], method.grid_mm) for index in (0, 1))
    found = method.harmonize(scan, Site('A')).image
    tissue = np.argmax(wanted.tissue, axis=0)
    for label in (0, 1):
        here = wanted.mask & (tissue == label)
        middle = [np.median(image[here]) for image in (found, wanted.data, scan.data)]
        assert abs(middle[0] - middle[1]) < 0.7 * abs(middle[2] - middle[1])
