"""MURD and MUNIT: losses, whose networks are used, uncertainty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsharm.errors import UsageError
from bidsharm.harmonizers.contract import Cohort, Reference, Site
from bidsharm.harmonizers.munit import Munit
from bidsharm.harmonizers.murd import Murd
from bidsharm.harmonizers.native import on_model_grid
from bidsharm.harmonizers.stargan2 import StarGAN2
from bidsharm.training.options import Budget, Running

from .conftest import people_at_two_sites


@pytest.fixture(scope='module')
def scans():
    return [scan for scan in people_at_two_sites() if scan.contrast == 'T1w']


def untrained(kind, **changes):
    method = kind(settings=kind.preset('tiny', **changes))
    method.sites, method.contrasts, method.target_site = ('A', 'B'), ('T1w',), 'A'
    torch.manual_seed(0)
    method.networks = torch.nn.ModuleDict(method.build())
    return method


def batch(channels):
    found = {name: torch.rand(2, channels, 16, 16) for name in 'xyz'}
    found |= {f'{name}_mask': torch.ones(2, 1, 16, 16) for name in 'xyz'}
    return {**found, 'x_site': torch.tensor([1, 1]), 'y_site': torch.tensor([0, 0])}


def test_murd_weighs_its_losses_as_the_paper_does():
    s = Murd.preset()
    weights = (
        s.adversarial,
        s.content,
        s.style_weight,
        s.cycle,
        s.identity,
        s.alignment,
        s.diversity,
        s.gradient,
    )
    assert weights == (1, 10, 10, 10, 10, 0.01, 1, 0.1)
    assert (s.axes, s.neighbours, s.fuse) == ((0, 1, 2), 1, 'mean')


def test_losses_of_murd():
    method, b = untrained(Murd, adversarial=1.0, diversity=2.0, content=3.0), batch(3)
    net, styles = method.networks, [torch.randn(2, 8), torch.randn(2, 8)]
    found, fake = method.made(b, styles)
    content, own = net['content'](b['x']), net['style'](b['x'], b['x_site'])
    other, back = net['decoder'](content, styles[1]), net['decoder'](net['content'](fake), own)
    slopes = [(back - b['x']).diff(dim=axis).abs().mean() for axis in (2, 3)]
    flat = content.flatten(2)
    mean, variance = flat.mean(2), flat.var(2, unbiased=False) + 1e-5
    expected = {
        'adversarial': torch.log1p(torch.exp(-net['discriminator'](fake, b['y_site']))).mean(),
        'content': 3 * (net['content'](fake) - content).abs().mean(),
        'style': 10 * (net['style'](fake, b['y_site']) - styles[0]).abs().mean(),
        'cycle': 10 * ((back - b['x']).abs().mean() + 0.1 * (slopes[0] + slopes[1])),
        'identity': 10 * (net['decoder'](content, own) - b['x']).abs().mean(),
        'alignment': 0.01 * 0.5 * (mean**2 + variance - variance.log() - 1).mean(),
        'diversity': -2 * (fake - other).abs().mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=1e-3), name


@pytest.mark.parametrize('kind', [Murd, StarGAN2])
def test_outlines_of_neighbouring_slices_tell_nothing_of_made_images(kind):
    method, b = untrained(kind, neighbours=1), batch(3)
    for channel, edge in enumerate((4, 8, 12)):  # the brain grows from slice to slice
        for name in 'xyz':
            b[name][:, channel, edge:] = 0
    b |= {f'{name}_mask': (b[name][:, 1:2] != 0).float() for name in 'xyz'}
    shown = []
    method.networks['discriminator'].register_forward_pre_hook(lambda net, given: shown.append(given[0]))
    for _ in method.losses(b, ''):
        pass
    assert len(shown) >= 3
    for images in shown:
        assert [int((part != 0).any(-1).any(0).sum()) for part in images.unbind(1)] == [4, 8, 12]


def test_murd_gives_the_middle_slice_and_aims_at_other_images(scans):
    method = Murd(settings=Murd.preset('tiny'))
    method.fit(Cohort(scans), target=Site('A'), running=Running(budget=Budget(2)))
    scan = on_model_grid(scans[1], method.grid_mm)
    before = method.harmonize(scan, Site('A'))
    assert before.image.shape == scan.data.shape
    some = Reference('some.nii.gz')
    method.fit(Cohort([scans[3]]), target=some)
    assert np.abs(method.harmonize(scan, some).image - before.image).max() > 0


def test_losses_of_munit():
    method, b = untrained(Munit, cycle=0.0, adversarial=1.0, image=10.0), batch(1)
    style = torch.randn(2, 4)
    found, fake = method.way(b, 'xy', (1, 0), style)
    net = method.networks
    content = net['content'][1](b['x'])
    made = net['decoder'][0](content, style)
    assert torch.equal(fake, made)
    same = net['decoder'][1](content, net['style'][1](b['x'], None))
    expected = {
        'image': 10 * (same - b['x']).abs().mean(),
        'content': 0.1 * (net['content'][0](made) - content).abs().mean(),
        'style': 0.1 * (net['style'][0](made, None) - style).abs().mean(),
        'adversarial': torch.stack(
            [(score - 1).square().mean() for score in net['discriminator'][0](made)]
        ).mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=1e-4), name


def test_the_rate_of_munit_is_halved_every_100_000_steps():
    for player in untrained(Munit, steps=250_000).players.values():
        assert [player.schedule(step / 250_000) for step in (0, 99_999, 100_000, 199_999, 200_000)] == [
            1,
            1,
            0.5,
            0.5,
            0.25,
        ]
    assert Munit().players['generators'].schedule(1.0 - 1e-9) == 0.5
    assert untrained(Munit).players['generators'].schedule(0.999) == 1


def test_uncertainty_of_munit_is_the_spread_over_styles(scans):
    method = Munit(settings=Munit.preset('tiny'))
    method.fit(Cohort(scans), target=Site('A'), running=Running(budget=Budget(3)))
    scan = on_model_grid(scans[1], method.grid_mm)
    spreads = []
    for deviation in (0.0, 0.2, 2.0):
        method._styles['T1w/deviation'] = np.full((1, 4), deviation, np.float32)
        found = method.harmonize(scan, Site('A'))
        assert found.uncertainty[~scan.mask].max() == 0
        assert np.array_equal(found.uncertainty, method.harmonize(scan, Site('A')).uncertainty)
        spreads.append(float(found.uncertainty[scan.mask].mean()))
    assert spreads[0] == 0
    assert 0 < spreads[1] < spreads[2]
    alone = Munit(settings=Munit.preset('tiny', samples=0))
    alone.restore(*method.state())
    assert alone.settings.samples == 4
    alone.settings = Munit.preset('tiny', samples=0)
    assert alone.harmonize(scan, Site('A')).uncertainty is None


def test_munit_has_no_decoder_for_a_site_of_no_training(scans):
    method = Munit(settings=Munit.preset('tiny'))
    method.fit(Cohort(scans), target=Site('A'), running=Running(budget=Budget(1)))
    strange = [replace(scan, site='C') for scan in scans if scan.site == 'B']
    with pytest.raises(UsageError, match='It can aim at A, B'):
        method.fit(Cohort(strange), target=Site('C'))


def test_munit_decodes_as_the_site_that_it_aims_at(scans):
    method = Munit(settings=Munit.preset('tiny'))
    method.fit(Cohort(scans), target=Site('A'), running=Running(budget=Budget(2)))
    assert int(method._styles['T1w/site'][0]) == 0
    method.fit(Cohort([scan for scan in scans if scan.site == 'B']), target=Site('B'))
    assert int(method._styles['T1w/site'][0]) == 1


@pytest.mark.parametrize('kind', [Murd, Munit])
def test_gray_matter_moves_towards_the_target(kind, scans):
    method = kind(settings=kind.preset('tiny'))
    method.fit(Cohort(scans), target=Site('A'))
    wanted, scan = (on_model_grid(scans[index], method.grid_mm) for index in (0, 1))
    found = method.harmonize(scan, Site('A')).image
    gray = wanted.mask & (np.argmax(wanted.tissue, axis=0) == 1)
    middle = [np.median(image[gray]) for image in (found, wanted.data, scan.data)]
    assert abs(middle[0] - middle[1]) < 0.7 * abs(middle[2] - middle[1])
