"""U-Nets that learn from pairs: losses by hand, and what the presets of the papers ask for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bidsharm.harmonizers import registry
from bidsharm.harmonizers.unet import Osman, UNet3D, UNet3DCGAN

from .small_gans import Add, built, totals


class Difference(nn.Module):
    """Score input and output, which stand side by side, by input less output."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(1.0))

    def forward(self, pair):
        return self.number * (pair[:, :1] - pair[:, 1:])


def batch():
    """A scan of 2s, the same person at the target with 3s, and a brain of three voxels of four."""
    ones = torch.ones(1, 1, 2, 2)
    return {'x': 2 * ones, 'y': 3 * ones, 'mask': torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])}


def test_without_a_discriminator_the_loss_is_the_mean_absolute_difference_in_the_brain():
    method = built(UNet3D)
    method.networks = nn.ModuleDict({'generator': Add(0.5)})
    # 2 becomes 2.5 where it should be 3, at three of four voxels.
    assert totals(method, batch()) == {'generator': {'l1': pytest.approx(0.75 * 0.5)}}
    assert float(method.validation(batch()).detach()) == pytest.approx(0.75 * 0.5)


def test_structural_similarity_joins_the_loss_where_it_has_a_weight():
    method = built(UNet3D, ssim=0.5)
    method.networks = nn.ModuleDict({'generator': Add(0.25)})
    mask = torch.zeros(1, 1, 16, 16, 16)
    mask[..., 4:12, 4:12, 4:12] = 1
    x = 0.5 * torch.rand(mask.shape, generator=torch.manual_seed(0))
    found = totals(method, {'x': x, 'y': x + 0.25, 'mask': mask})['generator']
    assert found == {'l1': pytest.approx(0, abs=1e-6), 'ssim': pytest.approx(0, abs=1e-6)}
    found = totals(method, {'x': x, 'y': x, 'mask': mask})['generator']
    method.settings = UNet3D.preset('tiny', ssim=1.0)
    assert 0 < found['ssim'] < 0.5
    assert totals(method, {'x': x, 'y': x, 'mask': mask})['generator']['ssim'] == pytest.approx(
        2 * found['ssim']
    )


def test_losses_of_the_conditional_discriminator_are_those_worked_out_by_hand():
    method = built(UNet3DCGAN, adversarial=2.0)
    method.networks = nn.ModuleDict({'generator': Add(0.5), 'discriminator': Difference()})
    found = totals(method, batch())
    # The output is 2.5 in the brain, so its pair scores -0.5 there and 2 outside; the pair of the true image scores -1 and 2.
    assert found['generator'] == {
        'l1': pytest.approx(100 * 0.75 * 0.5), 'adversarial': pytest.approx(2 * (3 * 1.5**2 + 1) / 4),
    }  # fmt: skip
    real, fake = (3 * 2**2 + 1) / 4, (3 * 0.5**2 + 2**2) / 4
    assert found['discriminator'] == {'adversarial': pytest.approx(0.5 * (real + fake))}


def test_the_discriminator_learns_from_its_own_turn_alone():
    method = built(UNet3DCGAN)
    method.networks = nn.ModuleDict({'generator': Add(0.5), 'discriminator': Difference()})
    turns = dict(method.losses(batch(), ''))
    turns['discriminator']['adversarial'].backward()
    assert method.networks['generator'].number.grad is None
    turns['generator']['adversarial'].backward()
    assert float(method.networks['generator'].number.grad) != 0
    assert method.players['generator'].networks == ('generator',)
    assert method.players['discriminator'].networks == ('discriminator',)


@pytest.mark.parametrize('name', ['unet3d', 'res-unet', 'att-unet', 'trans-unet'])
def test_the_conditional_variants_differ_by_discriminator_weight_and_rate_alone(name):
    from dataclasses import asdict

    plain, judged = (asdict(registry.get(one).preset()) for one in (name, f'{name}-cgan'))
    different = {key for key, value in plain.items() if judged[key] != value}
    assert different == {'adversarial', 'l1', 'rate'}
    assert (judged['adversarial'], judged['l1']) == (1, 100)


def test_osman_pools_and_has_batch_norm():
    with torch.device('meta'):
        network = built(Osman).networks['generator']
    kinds = {type(part) for part in network.modules()}
    assert {nn.BatchNorm2d, nn.MaxPool2d} <= kinds
    assert nn.InstanceNorm2d not in kinds
