"""What is special to MCD-GAN, to UNIT and to ssGAN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bidsharm.harmonizers.mcdgan import DiscrepancyGAN
from bidsharm.harmonizers.network_settings import Given
from bidsharm.harmonizers.ssgan import SemiSupervised
from bidsharm.harmonizers.unit import SharedCode
from bidsharm.nn.kspace import density, image_of, magnitude, measured, spectrum, with_phase

from .small_gans import Add, batch_of, built, totals


class Guess(nn.Module):
    """Say the same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.view(1, -1, 1, 1, 1).expand(len(x), -1, *x.shape[2:])


# --- MCD-GAN ---


def test_disagreement_is_the_mean_difference_of_probabilities_in_the_brain():
    method = built(DiscrepancyGAN)
    method.networks['one'] = Guess([0.0, 0.0, -50.0, -50.0])
    method.networks['other'] = Guess([0.0, -50.0, -50.0, -50.0])
    image, mask = torch.randn(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    mask[..., :2] = 1
    # 1/2, 1/2, 0, 0 against 1, 0, 0, 0
    assert float(method.disagreement(image, mask)) == pytest.approx(0.25)
    method.networks['other'] = method.networks['one']
    assert float(method.disagreement(image, mask)) == 0


def test_classifiers_learn_twice_then_the_generator_then_the_discriminator():
    method, batch = built(DiscrepancyGAN, discrepancy=2.0), batch_of((16, 16, 16))
    batch |= {'x_tissue': torch.zeros(2, 16, 16, 16, dtype=torch.long)}
    batch |= {'y_tissue': torch.ones(2, 16, 16, 16, dtype=torch.long)}
    method.networks['one'] = Guess([0.0, 0.0, 0.0, 0.0])
    method.networks['other'] = Guess([50.0, 0.0, 0.0, 0.0])
    order = [(player, {name: float(loss.detach()) for name, loss in losses.items()}) for player, losses in method.losses(batch, '')]  # fmt: skip
    assert [player for player, _ in order] == ['classifiers', 'classifiers', 'generator', 'discriminator']
    assert order[0][1]['classes'] == pytest.approx(math.log(4) + 50)
    # The classifiers want to disagree about generated scans, the generator wants them to agree.
    assert order[1][1]['agreement'] == pytest.approx(-2 * 0.375)
    assert order[2][1]['discrepancy'] == pytest.approx(2 * 0.375)
    assert order[2][1]['keep'] == 0  # the generator begins as the identity


# --- UNIT ---


def test_losses_of_unit_worked_out_by_hand():
    method = built(
        SharedCode,
        noise=0.0,
        adversarial=10.0,
        reconstruction=100.0,
        divergence=0.1,
        cycle=100.0,
        cycle_divergence=0.1,
    )
    zero = {
        name: Add(0.0)
        for name in ('shared_in', 'shared_out', 'encode_source', 'encode_target', 'of_source', 'of_target')
    }
    method.networks = nn.ModuleDict({**zero, 'decode_source': Add(0.0), 'decode_target': Add(0.5)})
    ones = torch.ones(1, 1, 2, 2, 2)
    batch = {'x': ones, 'y': 2 * ones, 'x_mask': ones, 'y_mask': ones}
    found = totals(method, batch)['autoencoders']
    # x is decoded as x and moved to 1.5, y is decoded as 2.5 and moved to 2; the ways back end at 1.5 and 2.5.
    assert found['reconstruction'] == pytest.approx(100 * 0.5)
    assert found['divergence'] == pytest.approx(0.1 * (1 + 4))
    assert found['cycle'] == pytest.approx(100 * (0.5 + 0.5))
    assert found['cycle divergence'] == pytest.approx(0.1 * (1.5**2 + 2**2))
    assert found['adversarial'] == pytest.approx(10 * (0.5**2 + 1**2))


def test_a_scan_of_the_target_is_encoded_as_one():
    method = built(SharedCode)
    names = ('shared_in', 'shared_out', 'encode_source', 'encode_target', 'decode_target')
    method.networks = nn.ModuleDict({name: Add(10**number) for number, name in enumerate(names)})
    x = torch.zeros(1, 1, 2, 2, 2)
    assert float(method.translate(x, Given(site=1)).detach().mean()) == 1 + 10 + 100 + 10_000
    assert float(method.translate(x, Given(site=-1)).detach().mean()) == 1 + 10 + 100 + 10_000
    assert float(method.translate(x, Given(site=0)).detach().mean()) == 1 + 10 + 1000 + 10_000


# --- ssGAN ---


@pytest.mark.parametrize('acceleration', [2.0, 4.0])
def test_k_space_is_measured_densely_in_the_centre_and_as_often_as_asked(acceleration):
    chance = density((48, 40), acceleration)
    assert float(chance.mean()) == pytest.approx(1 / acceleration, rel=1e-3)
    assert chance[0, 0] == 1
    assert chance[24, 20] == chance.min()
    assert (measured((48, 40), 1.0, chance) == 1).all()


def test_images_come_back_from_their_spectra():
    image = torch.randn(2, 2, 16, 12)
    assert torch.allclose(image_of(spectrum(image)), image, atol=1e-5)
    real = torch.rand(1, 1, 8, 8)
    assert torch.allclose(magnitude(with_phase(real)), real)
    assert float(spectrum(with_phase(real))[0, 0, 0, 0]) == pytest.approx(float(real.sum()))


def paired(seed=0):
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(1, 1, 32, 32, generator=draw) for _ in range(2))
    return {'x': x, 'y': y, 'mask': torch.ones(1, 1, 32, 32)}


def test_what_was_not_measured_does_not_matter():
    method, batch = built(SemiSupervised), paired()
    first = totals(method, batch)
    torch.manual_seed(0)
    there = measured((32, 32), 4.0, batch['x'])
    mirrored = there.flip(0, 1).roll((1, 1), (0, 1))
    hidden = torch.argwhere((there + mirrored) == 0)[0]
    wave = torch.zeros(32, 32, dtype=torch.complex64)
    wave[tuple(hidden)] = 100.0
    changed = {**batch, 'y': batch['y'] + torch.fft.ifft2(wave).real[None, None]}
    assert not torch.allclose(changed['y'], batch['y'], atol=0.01)
    assert totals(method, changed)['generator'] == pytest.approx(first['generator'], rel=1e-4)
    wave = torch.zeros(32, 32, dtype=torch.complex64)
    wave[0, 0] = 400.0
    changed = {**batch, 'y': batch['y'] + torch.fft.ifft2(wave).real[None, None]}
    assert totals(method, changed)['generator']['image'] > 1.2 * first['generator']['image']


def test_losses_of_a_fully_measured_pair_worked_out_by_hand():
    method, batch = built(SemiSupervised, target_acceleration=1.0), paired()
    found = totals(method, batch)['generator']
    difference = (
        batch['x'] - batch['y']
    ).abs().mean() / 2  # the imaginary half is equal; the generator begins as the identity
    assert found['image'] == pytest.approx(float(100 * difference), rel=1e-4)
    knee = 5000 / 256**2 * 32**2
    spectra = [torch.fft.fft2(batch[name][:, 0]) for name in 'xy']
    gap = [
        torch.tanh(part(spectra[0]) / knee) - torch.tanh(part(spectra[1]) / knee)
        for part in (torch.real, torch.imag)
    ]
    wanted = 100 * 30 * torch.stack(gap).abs().mean()
    assert found['k-space'] == pytest.approx(float(wanted), rel=1e-4)
