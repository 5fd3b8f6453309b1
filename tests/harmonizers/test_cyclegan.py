"""Losses of the cycle-consistent methods, how they relate, and the gradient penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.adversarial import AdversarialSettings, judged
from bidsharm.harmonizers.contract import Cohort, Site
from bidsharm.harmonizers.cyclegan import CycleGAN, CycleGAN3D, Iguane

from .conftest import people_at_two_sites
from .small_gans import Add, Slope, batch_of, built, totals


def test_losses_are_those_worked_out_by_hand():
    method = built(CycleGAN, cycle=10.0, identity=5.0)
    zero = torch.zeros(())
    method.networks = nn.ModuleDict(
        {'generator': Add(0.5), 'backward': Add(-0.2), 'of_target': Add(zero), 'of_source': Add(zero)}
    )
    ones = torch.ones(1, 1, 2, 2)
    mask = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])  # the last pixel is background
    batch = {'x': 2 * ones, 'y': 3 * ones, 'x_mask': mask, 'y_mask': mask}
    found = totals(method, batch)
    # In the brain x becomes 2.5 and y 2.8, both ways end at 2.3 and 3.3, the generators move what should stay by 0.5 and 0.2; background is 0.
    judged_real = (3 * 1.5**2 + 1) / 4 + (3 * 1.8**2 + 1) / 4
    assert found['generators']['adversarial'] == pytest.approx(judged_real)
    assert found['generators']['cycle'] == pytest.approx(10 * 0.75 * (0.3 + 0.3))
    assert found['generators']['identity'] == pytest.approx(5 * 0.75 * (0.5 + 0.2))
    assert found['discriminators']['of_target'] == pytest.approx((3 * 2**2 + 1) / 4 + 0.75 * 2.5**2)
    assert found['discriminators']['of_source'] == pytest.approx((3 * 1**2 + 1) / 4 + 0.75 * 2.8**2)


def test_iguane_of_one_other_site_has_the_losses_of_cyclegan3d_with_its_networks():
    iguane, other = built(Iguane), built(CycleGAN3D)
    same = {key: getattr(iguane.settings, key) for key in ('cycle', 'identity', 'penalty', 'background')}
    other.settings = CycleGAN3D.preset('tiny', **same)
    names = ('backward', 'of_target', 'of_source')
    other.networks = nn.ModuleDict(
        {'generator': iguane.networks['generator'], **{name: iguane.networks[name][0] for name in names}}
    )
    batch = batch_of((16, 16, 16))
    for network in iguane.networks.values():
        network.eval()  # spectral norms would go on iterating
    for weight in iguane.networks['generator'].body.last.parameters():
        nn.init.normal_(weight)
    first, second = totals(iguane, batch), totals(other, batch)
    assert first == second
    assert first['generators']['cycle'] > 0


def test_iguane_has_one_generator_for_all_sites_and_one_back_to_each():
    method = built(Iguane, sites=('A', 'B', 'C'))
    to_b, to_c = (method.parts(batch_of((16, 16, 16), site=site)) for site in (1, 2))
    assert to_b[0] is to_c[0]
    assert all(one is not other for one, other in zip(to_b[1:], to_c[1:], strict=True))
    assert to_b[1] is method.networks['backward'][0]


def test_iguane_sees_the_median_of_a_brain_and_the_background_as_zero(make_scan):
    from bidsharm.harmonizers.training_data import training_set

    settings = Iguane.preset('tiny', voxel_mm=1.0)
    volume = training_set(Cohort([make_scan(), make_scan(seed=1)]), settings).volumes[0]
    assert np.median(volume.values[volume.mask]) == pytest.approx(0, abs=1e-6)
    assert -1 < volume.values[volume.mask].min() < -0.4
    assert (volume.values[~volume.mask] == 0).all()


def test_the_penalty_is_half_the_squared_slope_at_real_images():
    weights = torch.tensor([[1.0, 2.0], [-2.0, 0.0]])
    real, fake = torch.ones(3, 1, 2, 2), torch.zeros(3, 1, 2, 2)
    without = judged(Slope(weights), real, fake)
    assert float(without.detach()) == pytest.approx(0)  # real images score 1, fake ones 0
    assert float(
        judged(Slope(weights), real, fake, AdversarialSettings(penalty=0.1)).detach()
    ) == pytest.approx(0.1 * 0.5 * 9)


def test_no_gradient_reaches_the_generator_from_the_discriminators_loss():
    made = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = judged(Slope(torch.ones(2, 2)), torch.ones(1, 1, 2, 2), made * 2, AdversarialSettings(penalty=1.0))
    loss.backward()
    assert made.grad is None


@pytest.mark.parametrize('name', ['iguane', 'hail'])
def test_how_much_background_a_file_has_does_not_matter(name, tmp_path):
    from dataclasses import replace

    scans = [scan for scan in people_at_two_sites() if scan.contrast == 'T1w']
    kind = registry.get(name)
    method = kind(settings=kind.preset('tiny', steps=2, hold_out=0.0))
    method.fit(Cohort(scans), target=Site('A'))
    bundle.save(method, tmp_path / 'model')
    again = bundle.load(tmp_path / 'model')
    scan = next(scan for scan in scans if scan.site == 'B')
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(scan.mask))
    small = replace(
        scan,
        data=scan.data[box],
        mask=scan.mask[box],
        tissue=None if scan.tissue is None else scan.tissue[:, *box],
    )
    assert small.data.shape != scan.data.shape
    whole = again.harmonize(scan, Site('A')).image[box]
    part = again.harmonize(small, Site('A')).image
    change = np.abs(whole - scan.data[box])[small.mask].mean()
    assert np.abs(whole - part)[small.mask].mean() < 0.1 * change


@pytest.mark.parametrize('name', ['iguane', 'ssgan'])
def test_the_tiny_preset_comes_nearer_to_the_target(name):
    scans = [scan for scan in people_at_two_sites() if scan.contrast == 'T1w']
    kind = registry.get(name)
    method = kind(settings=kind.preset('tiny'))
    method.fit(Cohort(scans), target=Site('A'))
    here, there = (next(scan for scan in scans if scan.site == site) for site in 'BA')
    # Before: the scan in units of the target, which is all that scaling does.
    unit = float(np.median(there.data[there.mask]) / np.median(here.data[here.mask]))
    before = np.abs(unit * here.data - there.data)[there.mask].mean()
    after = np.abs(method.harmonize(here, Site('A')).image - there.data)[there.mask].mean()
    assert after < 0.75 * before
