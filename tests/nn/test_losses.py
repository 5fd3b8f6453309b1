"""Losses against values worked out by hand and by other packages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bidsharm.nn.losses import GAN_LOSSES, adversarial_loss, hinge_gan, reverse_gradient, ssim_loss


def test_the_hinge_loss_pays_nothing_beyond_one():
    scores = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    assert float(hinge_gan(scores, True)) == pytest.approx((3 + 1 + 0.5 + 0) / 4)
    assert float(hinge_gan(scores, False)) == pytest.approx((0 + 1 + 1.5 + 4) / 4)


def test_what_a_generator_pays_for_its_scores():
    scores = torch.tensor([-1.0, 0.5])
    assert float(adversarial_loss(scores)) == pytest.approx((4 + 0.25) / 2)
    assert float(adversarial_loss(scores, 'logistic')) == pytest.approx(
        (math.log1p(math.e) + math.log1p(math.exp(-0.5))) / 2
    )
    assert float(adversarial_loss(scores, 'hinge')) == pytest.approx(0.25)


@pytest.mark.parametrize('kind', GAN_LOSSES)
def test_losses_of_several_discriminators_are_added_up(kind):
    one, other = torch.tensor([[0.3, -0.2]]), torch.tensor([2.0])
    for real in (True, False):
        loss = GAN_LOSSES[kind]
        assert float(loss([one, other], real)) == pytest.approx(float(loss(one, real) + loss(other, real)))
    assert float(adversarial_loss([one, other], kind)) == pytest.approx(
        float(adversarial_loss(one, kind) + adversarial_loss(other, kind))
    )


@pytest.mark.parametrize('dims', [2, 3])
def test_the_loss_of_structural_similarity_is_that_of_scikit_image(dims):
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    one = rng.uniform(size=(24,) * dims).astype(np.float32)
    other = np.clip(one + rng.normal(0, 0.2, one.shape), 0, 1).astype(np.float32)
    wanted = structural_similarity(
        one, other, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]
    inside = wanted[(slice(5, -5),) * dims]  # windows that lie in the image
    x, y = (torch.from_numpy(image)[None, None] for image in (one, other))
    assert float(ssim_loss(x, y)) == pytest.approx(1 - inside.mean(), abs=1e-4)
    assert float(ssim_loss(x, x)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('weight', [0.5, 3.0])
def test_a_reversed_gradient_is_minus_the_weight_times_it(weight):
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    found = reverse_gradient(x, weight)
    assert torch.equal(found.detach(), x.detach())
    (found * torch.tensor([2.0, 4.0])).sum().backward()
    assert torch.equal(x.grad, -weight * torch.tensor([2.0, 4.0]))
