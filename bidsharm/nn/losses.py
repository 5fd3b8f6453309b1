"""Losses of several methods. All return a mean, so that weights mean the same for every size of image and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.names import GanLoss


def l1(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    return functional.l1_loss(found, wanted)


def l2(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared difference."""
    return functional.mse_loss(found, wanted)


def least_squares_gan(scores: Tensor | Sequence[Tensor], real: bool) -> Tensor:
    """Return the least-squares adversarial loss: scores to 1 for real, to 0 for fake (Mao et al. 2017, eq. 2).

    Parameters
    ----------
    scores
        Of one discriminator, or of several, whose losses are averaged.
    real
        What the scores should say.
    """
    return _summed(lambda score: (score - float(real)).square().mean(), scores)


def logistic_gan(scores: Tensor | Sequence[Tensor], real: bool) -> Tensor:
    """Return the binary cross-entropy of scores (logits) with ``real`` (Goodfellow et al. 2014, eq. 1, the generator's as in its section 3).

    Parameters
    ----------
    scores, real
        As for :func:`least_squares_gan`.
    """
    cross_entropy = functional.binary_cross_entropy_with_logits
    return _summed(lambda score: cross_entropy(score, torch.full_like(score, float(real))), scores)


def hinge_gan(scores: Tensor | Sequence[Tensor], real: bool) -> Tensor:
    """Return the hinge loss of a discriminator: scores above 1 for real, below -1 for fake (Miyato et al. 2018, eq. 16).

    Parameters
    ----------
    scores, real
        As for :func:`least_squares_gan`.
    """
    return _summed(lambda score: functional.relu(1 - score if real else 1 + score).mean(), scores)


def adversarial_loss(scores: Tensor | Sequence[Tensor], kind: GanLoss = 'least_squares') -> Tensor:
    """Return the adversarial loss of a generator: low where a discriminator takes its images for real.

    Parameters
    ----------
    scores
        Of the generator's images.
    kind
        Name of the loss. With ``hinge`` the scores should be as high as they can be (Miyato et al. 2018, eq. 17).
    """
    if kind == 'hinge':
        return _summed(lambda score: -score.mean(), scores)
    return GAN_LOSSES[kind](scores, True)


def _summed(loss: Callable[[Tensor], Tensor], scores: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the sum of a loss over discriminators, as MUNIT and U-GAT-IT have it."""
    many = [scores] if isinstance(scores, Tensor) else list(scores)
    return torch.stack([loss(score) for score in many]).sum()


#: Losses of discriminators by name; each takes scores, and whether their images are real.
GAN_LOSSES: dict[GanLoss, Callable[[Tensor | Sequence[Tensor], bool], Tensor]] = {
    'least_squares': least_squares_gan, 'logistic': logistic_gan, 'hinge': hinge_gan,
}  # fmt: skip


def gradient_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """Return R1: half the squared gradient of the scores of real images (Mescheder et al. 2018, eq. 9).

    Parameters
    ----------
    scores
        Of the images.
    images
        Real images that require gradients, shape (B, C, ...).
    """
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return 0.5 * slope.square().flatten(1).sum(dim=1).mean()


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence of Gaussians from the standard one, summed over a code and averaged over the batch."""
    total = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return total.flatten(1).sum(dim=1).mean()


def gradient_l1(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference of finite differences, summed over the axes of space."""
    axes = range(2, found.ndim)
    return torch.stack([l1(found.diff(dim=axis), wanted.diff(dim=axis)) for axis in axes]).sum()


def local_correlation(x: Tensor, y: Tensor, size: int = 9) -> Tensor:
    """Return the mean squared local correlation of two images, from 0 to 1 (Avants et al. 2008).

    Parameters
    ----------
    x, y
        Images of one channel, shape (B, 1, ...).
    size
        Edge of the window, in voxels.
    """
    average = functional.avg_pool3d if x.ndim == 5 else functional.avg_pool2d

    def mean(values: Tensor) -> Tensor:
        return average(values, size, 1, size // 2, count_include_pad=False)

    mean_x, mean_y = mean(x), mean(y)
    covariance = mean(x * y) - mean_x * mean_y
    variances = (mean(x * x) - mean_x.square()) * (mean(y * y) - mean_y.square())
    return (covariance.square() / (variances.clamp_min(0) + 1e-5)).mean()


def ssim_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 less the structural similarity of images whose values lie between 0 and 1 (Wang et al. 2004, eq. 13).

    Parameters
    ----------
    found, wanted
        Images, shape (B, C, ...), of at least 11 voxels along each axis.
    """
    from monai.losses.ssim_loss import SSIMLoss

    loss: Tensor = SSIMLoss(spatial_dims=found.ndim - 2)(found, wanted)
    return loss


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return the correlation of the voxels of each pair of images, averaged over the batch."""
    x, y = (values.flatten(1) - values.flatten(1).mean(dim=1, keepdim=True) for values in (x, y))
    norms = x.norm(dim=1) * y.norm(dim=1)
    return ((x * y).sum(dim=1) / norms.clamp_min(1e-8)).mean()


def confusion(logits: Tensor) -> Tensor:
    """Return how far guesses are from saying nothing: the mean of -log p over all classes (Tzeng et al. 2015, eq. 3)."""
    return -functional.log_softmax(logits, dim=1).mean()


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 less the Dice overlap of every class but the first, averaged.

    Parameters
    ----------
    logits
        Shape (B, classes, ...).
    labels
        Integer classes, shape (B, ...).
    """
    shares = logits.softmax(dim=1)[:, 1:]
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].to(shares)
    axes = (0, *range(2, logits.ndim))
    overlap = 2 * (shares * truth).sum(axes)
    return 1 - ((overlap + 1) / (shares.sum(axes) + truth.sum(axes) + 1)).mean()


def patch_nce(
    found: Tensor, wanted: Tensor, temperature: float = 0.07, negatives: Tensor | None = None
) -> Tensor:
    """Return the contrastive loss of patches: each should be like itself and unlike the others (Park et al. 2020, eq. 3).

    Parameters
    ----------
    found, wanted
        Features of the same patches in output and input, of length 1, shape (B, patches, features).
    temperature
        Divides the similarities.
    negatives
        Features of other patches to be unlike of, shape (B, more patches, features).
    """
    alike = found @ wanted.detach().transpose(1, 2) / temperature
    same = torch.arange(alike.shape[1], device=alike.device).expand(alike.shape[0], -1)
    if negatives is not None:
        alike = torch.cat([alike, found @ negatives.detach().transpose(1, 2) / temperature], dim=2)
    return functional.cross_entropy(alike.flatten(0, 1), same.flatten())


def distance_nce(found: Tensor, wanted: Tensor, negatives: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the contrastive loss of codes by their squared distances: each should be nearer to its partner than to the others.

    Parameters
    ----------
    found, wanted
        Codes and their partners, shape (B, numbers).
    negatives
        Codes to be far from, shape (B, N, numbers).
    temperature
        Divides the distances.
    """
    others = torch.cat([wanted[:, None], negatives], dim=1)
    scores = -(found[:, None] - others).square().sum(dim=2) / temperature
    return functional.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long))


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *slopes: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * slopes[0], None  # type: ignore[attr-defined]


def reverse_gradient(x: Tensor, weight: float = 1.0) -> Tensor:
    """Return the input; its gradient is turned round on the way back (Ganin et al. 2016, eq. 2)."""
    return _Reversal.apply(x, weight)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel over space, each of shape (B, C)."""
    flat = features.flatten(2)
    return flat.mean(dim=2), (flat.var(dim=2, unbiased=False) + 1e-5).sqrt()


def moment_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared differences of means and of standard deviations of channels (Huang and Belongie 2017, eq. 13)."""
    return sum(
        (l2(a, b) for a, b in zip(moments(found), moments(wanted), strict=True)), start=found.new_zeros(())
    )


@contextmanager
def held(*modules: nn.Module) -> Iterator[None]:
    """Keep the weights of modules from learning for the time of a block; gradients still pass through them."""
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def frozen(module: nn.Module) -> nn.Module:
    """Return a module whose weights do not learn; gradients still pass through it."""
    return module.eval().requires_grad_(False)
