"""FID, KID, Inception score and LPIPS, for a user who names the weights of their networks.

bidsharm ships no such weights. The networks are written down here without their weights, whose names are those of
torchvision's files, so a file converted to safetensors fits as it is; pickles are never opened. All were trained on
photographs: for slices of a brain they are comparable between papers rather than right. Where no weights are at hand
use :mod:`bidsharm.evaluation.features`.

Slices (:func:`~bidsharm.evaluation.features.slices`) enter in units of the reference
(:func:`~bidsharm.evaluation.similarity.reference_scale`), 0 outside the mask, clipped to [0, 1] as an image file would
be, and as three equal channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.evaluation.features import frechet_distance, kernel_distance

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
Weights = Mapping[str, Any]
Step = tuple[str, int, int] | str

NAN = float('nan')
#: Side of the images that Inception takes, its features, and the classes of the network that FID is defined by.
INCEPTION_SIDE, INCEPTION_FEATURES, INCEPTION_CLASSES = 299, 2048, 1008
#: Least side of the images that LPIPS takes.
LPIPS_SIDE = 32
#: Mean and spread of the channels that LPIPS takes away, for images in [-1, 1].
LPIPS_MEAN, LPIPS_SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
#: Convolutions of each network: number in ``features``, stride, padding. 'P' halves by a maximum, '*' is compared.
ALEXNET: tuple[Step, ...] = (
    ('0', 4, 2),
    '*',
    'P',
    ('3', 1, 2),
    '*',
    'P',
    ('6', 1, 1),
    '*',
    ('8', 1, 1),
    '*',
    ('10', 1, 1),
    '*',
)
VGG16: tuple[Step, ...] = (
    *(('0', 1, 1), ('2', 1, 1), '*', 'P', ('5', 1, 1), ('7', 1, 1), '*', 'P'),
    *(('10', 1, 1), ('12', 1, 1), ('14', 1, 1), '*', 'P', ('17', 1, 1), ('19', 1, 1), ('21', 1, 1), '*', 'P'),
    *(('24', 1, 1), ('26', 1, 1), ('28', 1, 1), '*'),
)


@dataclass(frozen=True)
class InceptionDistances:
    """What :func:`inception_distances` finds.

    Parameters
    ----------
    n, m
        Slices of the images and of the target.
    fid
        Frechet distance of the 2,048 features. With fewer slices than features it is biased upwards by far: compare
        equal numbers only.
    kid
        Kernel distance of the same features, without bias; all slices at once rather than in subsets.
    inception_score
        Of the images; it looks at the target only for the unit of the slices, and photographs' classes mean little here.
    reason
        Why something is NaN; empty when nothing is.
    """

    n: int
    m: int
    fid: float = NAN
    kid: float = NAN
    inception_score: float = NAN
    reason: str = ''


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the arrays of a safetensors file.

    Parameters
    ----------
    path
        File with the ending ``.safetensors``.

    Raises
    ------
    UsageError
        If it is another kind of file, or not readable as what it should be.
    ConfigurationError
        If there is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path)
    if file.suffix != '.safetensors':
        raise UsageError(
            'Weights are read from safetensors files only, since a pickle can run any program.',
            where=str(path),
            fix='Convert the file on a machine you trust: safetensors.torch.save_file(state_dict, name).',
        )
    if not file.is_file():
        raise ConfigurationError('There is no such weights file.', where=str(path))
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UsageError(f'This is no safetensors file: {error}.', where=str(path)) from error


def check_weights(path: str | Path, network: Literal['inception', 'lpips']) -> None:
    """Refuse weights that a network cannot be run with: it is tried on one empty image.

    Parameters
    ----------
    path
        File with the ending ``.safetensors``.
    network
        ``'inception'`` for :func:`inception_distances`, ``'lpips'`` for :func:`lpips`.

    Raises
    ------
    UsageError
        If the weights are of another network, or not readable.
    ConfigurationError
        If there is no such file.
    """
    weights, empty = load_weights(path), np.zeros((1, LPIPS_SIDE, LPIPS_SIDE))
    try:
        if network == 'inception':
            inception_features(empty, weights)
        else:
            lpips(empty, empty, weights)
    except UsageError as error:
        raise UsageError(error.what, where=str(path), fix=error.fix) from error


@contextmanager
def _fitting() -> Iterator[None]:
    """Say in plain words that a network fails, as it does deep inside where arrays have other sizes than it has."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise UsageError(
            f'The network cannot be run with these weights: {first.rstrip(".")}.',
            fix='Use a file of this very network, with the names that torchvision gives its networks.',
        ) from error


def inception_distances(images: NDArray, target: NDArray, weights: Weights) -> InceptionDistances:
    """Return FID, KID and Inception score.

    FID is defined by one network: Inception v3 of December 2015 with 1,008 classes, whose averages pass over the
    padding and whose last block takes a maximum (Heusel et al. 2017, arXiv:1706.08500). Weights of
    torchvision's own Inception, with 1,000 classes, are of another network and refused.

    Parameters
    ----------
    images
        Harmonized slices, shape (n, height, width), in units of the reference.
    target
        Slices of the target scanner, shape (m, height, width).
    weights
        Of that network by :func:`load_weights`, under torchvision's names.

    Returns
    -------
    InceptionDistances
        NaN with fewer than two slices on a side.

    Raises
    ------
    UsageError
        If the weights are not of that network, or the images are no finite slices.
    """
    if min(len(images), len(target)) < 2:
        return InceptionDistances(
            len(images), len(target), reason='two or more slices are needed on each side'
        )
    (first, logits), (second, _) = (inception_features(part, weights) for part in (images, target))
    return InceptionDistances(
        len(first),
        len(second),
        fid=frechet_distance(first, second),
        kid=kernel_distance(first, second),
        inception_score=inception_score(logits),
    )


def inception_features(images: NDArray, weights: Weights, *, batch: int = 8) -> tuple[Floats, Floats]:
    """Return the features that FID compares, and the logits.

    Parameters
    ----------
    images
        Slices, shape (n, height, width), in units of the reference; resized to 299 x 299 bilinearly.
    weights
        As for :func:`inception_distances`.
    batch
        Images at once.

    Returns
    -------
    features, logits
        Shapes (n, 2048) and (n, 1008). The logits are without their biases, as in the original Inception score.

    Raises
    ------
    UsageError
        As for :func:`inception_distances`.
    """
    import torch
    from torch.nn import functional

    classes = weights['fc.weight'].shape[0] if 'fc.weight' in weights else 0
    if classes != INCEPTION_CLASSES:
        raise UsageError(
            f'FID needs the Inception network with {INCEPTION_CLASSES} classes, and these weights have {classes}.',
            fix='Use the weights that the FID tools use, converted to safetensors, or the distances ffd and kfd.',
        )
    x = 2 * _channels(images) - 1
    features, logits = [], []
    with torch.no_grad(), _fitting():
        for part in x.split(batch):
            part = functional.interpolate(part, (INCEPTION_SIDE,) * 2, mode='bilinear', align_corners=False)
            found = _Inception(weights)(part)
            features.append(found.numpy())
            logits.append((found @ _weight(weights, 'fc.weight').T).numpy())
    return np.concatenate(features).astype(np.float64), np.concatenate(logits).astype(np.float64)


def inception_score(logits: NDArray) -> float:
    r"""Return :math:`\exp(\mathrm{mean}_i KL(p(y | x_i) \| p(y)))` over all images (Salimans et al. 2016).

    Parameters
    ----------
    logits
        Shape (n, classes).

    Returns
    -------
    float
        From 1 to the number of classes; NaN without images.
    """
    from scipy.special import log_softmax

    if not len(logits):
        return NAN
    log_p = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
    p = np.exp(log_p)
    mean = np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny)
    return float(np.exp(np.mean(np.sum(p * (log_p - np.log(mean)), axis=1))))


def lpips(images: NDArray, references: NDArray, weights: Weights) -> Floats:
    """Return the learned perceptual distance of each image to its reference (Zhang et al. 2018, arXiv:1801.03924).

    Parameters
    ----------
    images, references
        Slices, shape (n, height, width), 32 x 32 or more, in units of the reference.
    weights
        Of AlexNet or VGG16 under torchvision's names (``features.0.weight``, ...; which one is seen from the shapes),
        with those of LPIPS version 0.1 as ``lin0.model.1.weight`` to ``lin4.model.1.weight``, in one file.

    Returns
    -------
    ndarray
        Shape (n,), not negative; 0 for equal images.

    Raises
    ------
    UsageError
        If the shapes differ, images are too small or not finite, or a weight is missing.
    """
    import torch

    if images.shape != references.shape or images.ndim != 3 or min(images.shape[1:]) < LPIPS_SIDE:
        raise UsageError(
            f'Images of shape {images.shape} and {references.shape} are not equally many slices of '
            f'{LPIPS_SIDE} x {LPIPS_SIDE} or more, which LPIPS needs.',
            fix='Use images of a finer grid, or leave LPIPS away.',
        )
    mean, spread = (torch.tensor(part)[:, None, None] for part in (LPIPS_MEAN, LPIPS_SPREAD))
    total = torch.zeros(len(images))
    with torch.no_grad(), _fitting():
        pairs = ((2 * _channels(part) - 1 - mean) / spread for part in (images, references))
        layers = (_layers(part, weights) for part in pairs)
        for index, (x, y) in enumerate(zip(*layers, strict=True)):
            x, y = (part / (part.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for part in (x, y))
            linear = _weight(weights, f'lin{index}.model.1.weight')
            total += ((x - y).square() * linear.reshape(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
    return total.numpy().astype(np.float64)


class _Inception:
    """Inception v3 (Szegedy et al. 2016, arXiv:1512.00567) as FID has it; every convolution is followed by its norm."""

    def __init__(self, weights: Weights, *, count_padding: bool = False, last_maximum: bool = True) -> None:
        self.weights, self.count_padding, self.last_maximum = weights, count_padding, last_maximum

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features of images in [-1, 1], shape (n, 3, 299, 299), as (n, 2048)."""
        conv = self._conv
        x = conv(conv(x, 'Conv2d_1a_3x3', 2, 0), 'Conv2d_2a_3x3', 1, 0)
        x = self._maximum(conv(x, 'Conv2d_2b_3x3'), 2, 0)
        x = self._maximum(conv(conv(x, 'Conv2d_3b_1x1'), 'Conv2d_4a_3x3', 1, 0), 2, 0)
        for name in '5b', '5c', '5d':
            x = self._join(x, name, 'branch1x1', 'branch5x5_1 _2', 'branch3x3dbl_1 _2 _3', self._average(x))
        x = self._join(x, '6a', 'branch3x3/', 'branch3x3dbl_1 _2 _3/', self._maximum(x, 2, 0))
        for name in '6b', '6c', '6d', '6e':
            deep = 'branch7x7dbl_1 _2 _3 _4 _5'
            x = self._join(x, name, 'branch1x1', 'branch7x7_1 _2 _3', deep, self._average(x))
        short, long = 'branch3x3_1 _2/', 'branch7x7x3_1 _2 _3 _4/'
        x = self._join(x, '7a', short, long, self._maximum(x, 2, 0))
        for name in '7b', '7c':
            last = name == '7c' and self.last_maximum
            pooled = self._maximum(x, 1, 1) if last else self._average(x)
            short, long = 'branch3x3_1 _2a|_2b', 'branch3x3dbl_1 _2 _3a|_3b'
            x = self._join(x, name, 'branch1x1', short, long, pooled)
        return x.mean(dim=(2, 3))

    def _join(self, x: Tensor, block: str, *branches: str | Tensor) -> Tensor:
        """Return the branches side by side.

        A branch is a chain of names, of which ``a|b`` at its end runs two in parallel and ``/`` halves the image; or
        something pooled, which goes through ``branch_pool`` if the block has one.
        """
        import torch

        parts = []
        for branch in branches:
            if not isinstance(branch, str):
                name = f'Mixed_{block}.branch_pool'
                there = f'{name}.conv.weight' in self.weights
                parts.append(self._conv(branch, name) if there else branch)
                continue
            first, *rest = branch.rstrip('/').split()
            stem, _, _ = first.rpartition('_')
            names = [first, *(stem + part for part in rest)] if rest else [first]
            y = x
            for index, name in enumerate(names):
                half = branch.endswith('/') and index == len(names) - 1
                ends = [f'Mixed_{block}.{part}' for part in self._ends(name, stem)]
                found = [self._conv(y, end, 2, 0) if half else self._conv(y, end) for end in ends]
                y = torch.cat(found, dim=1)
            parts.append(y)
        return torch.cat(parts, dim=1)

    @staticmethod
    def _ends(name: str, stem: str) -> list[str]:
        first, *rest = name.split('|')
        return [first, *(stem + part for part in rest)]

    def _conv(self, x: Tensor, name: str, stride: int = 1, padding: int | None = None) -> Tensor:
        from torch.nn import functional

        kernel = _weight(self.weights, f'{name}.conv.weight')
        around = [side // 2 for side in kernel.shape[2:]] if padding is None else padding
        y = functional.conv2d(x, kernel, stride=stride, padding=around)
        scale, shift, mean, variance = (
            _weight(self.weights, f'{name}.bn.{part}')
            for part in ('weight', 'bias', 'running_mean', 'running_var')
        )
        return functional.relu(functional.batch_norm(y, mean, variance, scale, shift, eps=1e-3))

    def _average(self, x: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=self.count_padding)

    @staticmethod
    def _maximum(x: Tensor, stride: int, padding: int) -> Tensor:
        from torch.nn import functional

        return functional.max_pool2d(x, 3, stride, padding)


def _layers(x: Tensor, weights: Weights) -> list[Tensor]:
    """Return the five layers of AlexNet or VGG16 that LPIPS compares."""
    from torch.nn import functional

    alexnet = tuple(_weight(weights, 'features.0.weight').shape[2:]) == (11, 11)
    found = []
    for step in ALEXNET if alexnet else VGG16:
        if step == '*':
            found.append(x)
        elif isinstance(step, str):
            x = functional.max_pool2d(x, 3 if alexnet else 2, 2)
        else:
            name, stride, padding = step
            kernel, bias = (_weight(weights, f'features.{name}.{part}') for part in ('weight', 'bias'))
            x = functional.relu(functional.conv2d(x, kernel, bias, stride, padding))
    return found


def _weight(weights: Weights, name: str) -> Tensor:
    if name not in weights:
        raise UsageError(
            f'The weights have no {name!r}.',
            fix='Use a file with the names that torchvision gives its networks.',
        )
    return weights[name].float()


def _channels(images: NDArray) -> Tensor:
    """Return slices as three equal channels in [0, 1]."""
    import torch

    data = np.asarray(images, dtype=np.float32)
    if data.ndim != 3 or not np.isfinite(data).all():
        raise UsageError(f'Images of shape {data.shape} are no finite slices.')
    return torch.from_numpy(np.clip(data, 0, 1))[:, None].expand(-1, 3, -1, -1)
