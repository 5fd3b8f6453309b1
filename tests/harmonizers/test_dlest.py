"""DLEST: Langevin steps by hand, the losses of both stages, and codes that do not depend on their batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bidsharm.harmonizers.contract import Cohort, Scan, Site
from bidsharm.harmonizers.dlest import Dlest
from bidsharm.harmonizers.effort import Effort
from bidsharm.nn.latent import Autoencoder


class Bowl(nn.Module):
    """Half the squared codes, summed over channels: its slope is the codes themselves."""

    def forward(self, codes: Tensor) -> Tensor:
        return 0.5 * codes.square().sum(dim=1, keepdim=True)


@pytest.fixture
def method() -> Dlest:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Dlest(
        settings=Dlest.preset(
            'tiny', voxel_mm=1.0, widths=(4, 4), code=3, energy_width=4, batch=2, hold_out=0.0
        )
    )
    made.networks = nn.ModuleDict(made.build())
    return made


def test_langevin_steps_go_downhill_and_back_to_where_they_came_from(method: Dlest) -> None:
    method.networks['energy'] = Bowl()
    method.settings = replace(method.settings, pace=0.1, shake=0.0, content=0.5, test_steps=2)
    codes, effort = torch.rand(2, 3, 4, 4), Effort()
    # First 0.9 z; then 0.9 z less 0.1 (0.9 z + 2 * 0.5 * (0.9 z - z)) = 0.82 z.
    torch.testing.assert_close(method.moved(codes, effort), 0.82 * codes)
    noted = effort.details()['test_time']
    assert noted['steps'] == 2
    assert noted['first_objective'] == pytest.approx(0.5 * 3 * float(codes.square().mean()), rel=1e-5)
    assert noted['last_objective'] < noted['first_objective']


def test_the_noise_is_the_same_for_every_slice_and_every_time(method: Dlest) -> None:
    method.settings = replace(method.settings, shake=0.1)
    codes = torch.rand(3, 3, 4, 4)
    together = method.moved(codes)
    for number in range(3):
        torch.testing.assert_close(method.moved(codes[[number]]), together[[number]], atol=1e-6, rtol=0)
    still = replace(method.settings, shake=0.0)
    method.settings = still
    assert not torch.allclose(method.moved(codes), together, atol=1e-3)


def test_losses_of_both_stages(method: Dlest, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones(2, 1, 8, 8)
    batch = {'x': ones, 'y': 2 * ones, 'x_mask': ones, 'y_mask': ones}
    monkeypatch.setattr(Autoencoder, 'encode', lambda self, x: x)
    monkeypatch.setattr(Autoencoder, 'decode', lambda self, codes: codes - 0.5)
    ((player, first),) = method.losses(batch, 'generation')
    assert player == 'autoencoder'
    assert float(first['restored']) == pytest.approx(0.5)
    assert float(first['small']) == pytest.approx(method.settings.small * 2.5)
    method.networks['energy'] = Bowl()
    method.settings = replace(method.settings, pace=0.1, shake=0.0, test_steps=1, calm=0.1)
    ((player, second),) = method.losses(batch, 'translation')
    low, high = 0.5 * 2**2, 0.5 * 0.9**2
    assert player == 'energy'
    assert float(second['contrast']) == pytest.approx(low - high)
    assert float(second['calm']) == pytest.approx(0.1 * (low**2 + high**2))


def test_the_energy_alone_moves_in_the_second_stage(method: Dlest) -> None:
    ones = torch.rand(2, 1, 8, 8)
    batch = {'x': ones, 'y': 2 * ones, 'x_mask': torch.ones_like(ones), 'y_mask': torch.ones_like(ones)}
    ((_, losses),) = method.losses(batch, 'translation')
    torch.stack(list(losses.values())).sum().backward()
    assert all(weight.grad is None for weight in method.networks['autoencoder'].parameters())
    assert all(weight.grad is not None for weight in method.networks['energy'].parameters())


def test_an_autoencoder_gives_back_the_size_of_its_input() -> None:
    net = Autoencoder(3, (4, 6, 8), 5)
    x = torch.rand(1, 1, 8, 12, 16)
    assert net.encode(x).shape == (1, 5, 2, 3, 4)
    assert net(x).shape == x.shape


def test_a_scan_gives_one_image_and_leaves_the_networks(make_scan: Callable[..., Scan]) -> None:
    torch.set_num_threads(1)
    scans = [
        replace(make_scan(seed=n, shape=(16, 16, 16), site=site, gain=1 + (site == 'B')), person=str(n))
        for n in range(2) for site in 'AB'
    ]  # fmt: skip
    made = Dlest(
        settings=Dlest.preset(
            'tiny', voxel_mm=1.0, widths=(4, 4), code=3, energy_width=4, batch=2, steps=6, hold_out=0.0
        )
    )
    made.fit(Cohort(scans), target=Site('A'))
    before = {name: value.clone() for name, value in made.networks.state_dict().items()}
    first = made.harmonize(scans[1], Site('A'))
    made.harmonize(scans[3], Site('A'))
    assert np.array_equal(made.harmonize(scans[1], Site('A')).image, first.image)
    assert all(torch.equal(value, before[name]) for name, value in made.networks.state_dict().items())
    assert first.details['test_time']['steps'] == made.settings.test_steps
