"""Networks that tell real images, sites or features apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from bidsharm.nn.blocks import activation, conv, norm
from bidsharm.nn.names import Norm
from bidsharm.nn.style import Heads, ResidualTrunk, halved, widths_of


def spectrally_normal(module: nn.Module) -> nn.Module:
    """Return a module whose convolutions and linear layers divide their weights by their largest singular value (Miyato et al. 2018)."""
    for part in list(module.modules()):
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            spectral_norm(part)
    return module


class PatchDiscriminator(nn.Module):
    """A score for each patch of an image (Isola et al. 2017, doi:10.1109/CVPR.2017.632).

    With three layers of stride 2 and two more, as by default, each score sees 70 voxels along each axis.

    Parameters
    ----------
    dims
        2 or 3.
    in_channels
        2 for a discriminator that sees input and output (conditional).
    widths
        Channels of the strided layers.
    kind
        Norm; the first layer has none.
    last_kernel
        Kernel of the last convolution.
    middle
        Channels of a layer of stride 1 before the last one; 0 for none.
    padding_value
        What the image is padded with before the first layer (IGUANe: -1, which is its background).
    spectral
        Divide every weight by its largest singular value (Miyato et al. 2018, arXiv:1802.05957).
    """

    def __init__(
        self,
        dims: int = 2,
        in_channels: int = 1,
        *,
        widths: Sequence[int] = (64, 128, 256),
        kind: Norm = 'instance',
        last_kernel: int = 4,
        middle: int = 512,
        padding_value: float = 0.0,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self.padding, self.padding_value = [1, 1] * dims, padding_value

        def layer(ins: int, outs: int, kernel: int, stride: int, *, bias: bool) -> nn.Module:
            made = conv(dims, ins, outs, kernel, stride, bias=bias)
            return spectral_norm(made) if spectral else made

        first = layer(in_channels, widths[0], 4, 2, bias=middle > 0)
        first.padding = (0,) * dims  # type: ignore[assignment]  # the image is padded with a value of choice instead
        parts: list[nn.Module] = [first, activation('leaky')]
        for ins, outs in itertools.pairwise(widths):
            parts += [
                layer(ins, outs, 4, 2, bias=kind == 'none'),
                norm(kind, dims, outs),
                activation('leaky'),
            ]
        width = widths[-1]
        if middle:
            parts += [
                layer(width, middle, 4, 1, bias=kind == 'none'),
                norm(kind, dims, middle),
                activation('leaky'),
            ]
            width = middle
        parts.append(layer(width, 1, last_kernel, 1, bias=True))
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores, shape (B, 1, ...), larger where the image looks real."""
        return self.body(functional.pad(x, self.padding, value=self.padding_value))


class MultiScale(nn.Module):
    """Patch discriminators for an image, its half size, and so on (Wang et al. 2018, arXiv:1711.11585), as MUNIT has them.

    Parameters
    ----------
    scales
        Number of sizes.
    widths
        Channels of the strided layers of each; sizes below 2 to their number are left out.
    spectral
        Spectral normalization, as of a :class:`PatchDiscriminator`.
    """

    def __init__(
        self, scales: int = 3, widths: Sequence[int] = (64, 128, 256, 512), *, spectral: bool = False
    ) -> None:
        super().__init__()
        self.smallest = 2 ** len(widths)
        self.scales = nn.ModuleList(
            PatchDiscriminator(2, widths=widths, kind='none', middle=0, last_kernel=1, spectral=spectral)
            for _ in range(scales)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the scores of each size."""
        found: list[Tensor] = []
        for judge in self.scales:
            if not found or min(x.shape[2:]) >= self.smallest:
                found.append(judge(x))
            x = halved(x)
        return found


class DomainDiscriminator(nn.Module):
    """Shared layers and one real-or-fake score per site (StarGAN v2, Choi et al. 2020, doi:10.1109/CVPR42600.2020.00821).

    Parameters
    ----------
    dims, channels
        Axes of space, and channels of images.
    sites
        Number of sites.
    width, most, downs
        Channels at the finest level and at most; halvings.
    spectral
        Spectral normalization of every layer.
    """

    def __init__(
        self, dims: int, channels: int, sites: int, *, width: int = 64, most: int = 512, downs: int = 6, spectral: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.body = ResidualTrunk(dims, channels, width=width, most=most, downs=downs)
        self.heads = Heads(widths_of(width, downs, most)[-1], 1, sites)
        if spectral:
            spectrally_normal(self)

    def forward(self, x: Tensor, site: Tensor) -> Tensor:
        """Return one score for each image at its site, shape (B,)."""
        return self.heads(self.body(x), site)[:, 0]


class LatentClassifier(nn.Module):
    """Guess the site from features (a domain classifier, Ganin et al. 2016).

    Parameters
    ----------
    features
        Length of a vector, or channels of a map, which is averaged over space.
    classes
        Number of sites.
    width
        Of the hidden layer.
    """

    def __init__(self, features: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (B, classes)."""
        return self.body(x.flatten(2).mean(dim=2) if x.ndim > 2 else x)
