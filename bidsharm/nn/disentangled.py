"""Networks that take a scan apart into anatomy, contrast and artifacts, and put it together again (Zuo et al. 2023, HACA3; its public code).

Anatomy (beta) is a label for each voxel, contrast (theta) and artifacts (eta) are a few numbers for a slice.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from bidsharm.nn.blocks import activation, conv, finish
from bidsharm.nn.discriminators import LatentClassifier, spectrally_normal
from bidsharm.nn.unet import UNet


class WideUNet(nn.Module):
    """A U-Net between two convolutions: the anatomy encoder and the decoder.

    Parameters
    ----------
    ins, outs
        Channels.
    base
        Channels of the first and last convolution; the levels have 2, 4, 8, ... times as many.
    levels
        How often sizes are halved.
    level
        Mean of what comes out at the beginning; above 0 where negative values are cut off, so that not all of them are.
    """

    def __init__(self, ins: int, outs: int, base: int, levels: int = 4, level: float = 0.0) -> None:
        super().__init__()
        self.first = conv(2, ins, base)
        self.body = UNet(
            in_channels=base, out_channels=base, widths=[base * 2 ** (level + 1) for level in range(levels + 1)],
            convs=2, act='leaky', order='conv-norm-act', down='pool', up='interpolate',
        )  # fmt: skip
        last = nn.Conv2d(base, outs, 3, padding=1)
        if level and last.bias is not None:
            nn.init.constant_(last.bias, level)
        self.last = nn.Sequential(activation('leaky'), last)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (B, C, H, W), to maps of the same size, without a last activation."""
        return self.last(self.body(self.first(x)))


class ContrastEncoder(nn.Module):
    """Mean and log variance of a slice's contrast code.

    Parameters
    ----------
    codes
        Numbers in a code.
    stride
        Of the first convolution, whose kernel has 2 * stride - 1 voxels.
    width
        Channels after it.
    """

    def __init__(self, codes: int = 2, stride: int = 9, width: int = 32) -> None:
        super().__init__()
        self.least = 8 * stride
        first = nn.Conv2d(1, width, 2 * stride - 1, stride, (stride - 1) // 2)
        parts: list[nn.Module] = [first, nn.InstanceNorm2d(width), activation('leaky')]
        for ins, outs in ((width, 2 * width), (2 * width, 2 * width)):
            parts += [nn.Conv2d(ins, outs, 4, 2, 1), nn.InstanceNorm2d(outs), activation('leaky')]
        self.body = nn.Sequential(*parts)
        self.heads = nn.ModuleList(
            nn.Sequential(
                conv(2, 2 * width, width), nn.InstanceNorm2d(width), activation('leaky'),
                nn.AdaptiveAvgPool2d(6), nn.Conv2d(width, codes, 6),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, each (B, codes), of slices, shape (B, 1, H, W)."""
        features = self.body(at_least(x, self.least))
        mean, log_variance = (head(features).flatten(1) for head in self.heads)
        return mean, log_variance


class ArtifactEncoder(nn.Module):
    """The artifact code of a slice, from patches of it.

    Parameters
    ----------
    codes
        Numbers in a code.
    patch
        Edge of a patch.
    width
        Channels of the first convolution.
    """

    def __init__(self, codes: int = 2, patch: int = 32, width: int = 16) -> None:
        super().__init__()
        self.least = 2 * patch
        self.fine = nn.Sequential(
            conv(2, 1, width, 5), nn.InstanceNorm2d(width), activation('leaky'),
            conv(2, width, 4 * width), nn.InstanceNorm2d(4 * width), activation('leaky'),
        )  # fmt: skip
        self.coarse = nn.Sequential(
            nn.Conv2d(4 * width + 1, 2 * width, patch, patch), nn.InstanceNorm2d(2 * width), activation('leaky'),
            nn.AdaptiveAvgPool2d(7), nn.Conv2d(2 * width, codes, 7),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return codes, shape (B, codes), of slices, shape (B, 1, H, W)."""
        x = at_least(x, self.least)
        return self.coarse(torch.cat([self.fine(x), x], dim=1)).flatten(1)


class Patchifier(nn.Module):
    """Features of the patches of an image or label map.

    Parameters
    ----------
    features
        Of a patch; their length is 1.
    patch
        Edge of a patch.
    width
        Channels in between.
    """

    def __init__(self, features: int = 128, patch: int = 32, width: int = 64) -> None:
        super().__init__()
        self.patch = patch
        self.body = nn.Sequential(
            nn.Conv2d(1, width, patch, patch), activation('leaky'), conv(2, width, features, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (B, patches, features), of maps, shape (B, 1, H, W)."""
        found = self.body(at_least(x, self.patch))
        return functional.normalize(found.flatten(2).transpose(1, 2), dim=2)


class ContrastAttention(nn.Module):
    """How much each contrast of a visit says about a target, from the codes of both.

    Parameters
    ----------
    codes
        Numbers in contrast and artifact code together.
    width, features
        Hidden and last size of queries and keys.
    """

    def __init__(self, codes: int, width: int = 128, features: int = 16) -> None:
        super().__init__()
        self.scale = codes**-0.5
        self.query, self.key = (
            nn.Sequential(nn.Linear(codes, width), activation('leaky'), nn.Linear(width, features), nn.LayerNorm(features))
            for _ in range(2)
        )  # fmt: skip

    def forward(self, query: Tensor, keys: Tensor, present: Tensor, temperature: float) -> Tensor:
        """Return weights of the contrasts, shape (B, N); their sum is 1, and those that are not present have 0.

        Parameters
        ----------
        query
            Codes of the target, shape (B, codes).
        keys
            Codes of the contrasts, shape (B, N, codes).
        present
            1 or 0, shape (B, N); at least one of a row is 1.
        temperature
            Divides the scores.
        """
        scores = torch.einsum('bd,bnd->bn', self.query(query), self.key(keys)) * self.scale / temperature
        return scores.masked_fill(present == 0, -torch.inf).softmax(dim=1)


class ContrastCritic(nn.Sequential):
    """Guess the contrast that anatomy was taken from (Zuo et al. 2021: a good guess means that the anatomy gives it away).

    Parameters
    ----------
    labels
        Labels of the anatomy.
    contrasts
        How many there are.
    widths
        Channels after each halving.
    spectral
        Spectral normalization of every layer.
    """

    def __init__(
        self, labels: int, contrasts: int, widths: tuple[int, ...] = (16, 32, 64), *, spectral: bool = False
    ) -> None:
        pairs = itertools.pairwise((labels, *widths))
        layers = [finish(conv(2, a, b, 4, 2), 2, b, 'none', 'leaky', 'conv-norm-act') for a, b in pairs]
        super().__init__(*layers, LatentClassifier(widths[-1], contrasts))
        if spectral:
            spectrally_normal(self)


def at_least(x: Tensor, edge: int) -> Tensor:
    """Return images, shape (B, C, H, W), padded with zeros where they are smaller than an edge."""
    extra = [max(edge - size, 0) for size in x.shape[2:]]
    return functional.pad(x, (0, extra[1], 0, extra[0])) if any(extra) else x


def one_label(logits: Tensor, draw: bool) -> Tensor:
    """Return one label for each voxel as 0 and 1, shape (B, labels, ...): drawn (Gumbel, straight through), or the likeliest."""
    if draw:
        return functional.gumbel_softmax(logits, tau=1.0, hard=True, dim=1)
    hard = functional.one_hot(logits.argmax(dim=1), logits.shape[1]).movedim(-1, 1).to(logits)
    soft = logits.softmax(dim=1)
    return hard + soft - soft.detach()


def label_map(labels: Tensor) -> Tensor:
    """Return the number of each voxel's label over the number of labels, shape (B, 1, ...)."""
    count = labels.shape[1]
    values = torch.arange(count, device=labels.device, dtype=labels.dtype) / count
    return torch.einsum('bc...,c->b...', labels, values)[:, None]


def fuse(logits: Tensor, weights: Tensor, foreground: Tensor | None = None) -> Tensor:
    """Return the weighted mean of the anatomy of several contrasts, shape (B, labels, H, W).

    Parameters
    ----------
    logits
        Shape (B, N, labels, H, W).
    weights
        Shape (B, N).
    foreground
        Where each contrast shows something, 0 or 1, shape (B, N, H, W): it has a say there only, if any contrast has (the
        foreground-aware attention of HACA3+).
    """
    there = weights[:, :, None, None].expand(*weights.shape, *logits.shape[3:])
    if foreground is not None:
        kept = there * foreground
        total = kept.sum(dim=1, keepdim=True)
        there = torch.where(total > 0, kept / total.clamp_min(1e-8), there)
    return torch.einsum('bnhw,bnchw->bchw', there, logits)
