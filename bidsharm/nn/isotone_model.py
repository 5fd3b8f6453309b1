"""A trained network of `isotone` and what is known about it: how it reads a scan, and when it should not be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.utils import convert_conv3d_weight_memory_format

from bidsharm.imaging.lowres import SIZE_MM, LowResolution
from bidsharm.nn import isotone as parts
from bidsharm.nn.isotone_fit import fit_style
from bidsharm.nn.isotone_unet import CanonicalUNet, draw

#: How bright a scan is that is only scaled: at this quantile (percent) of the brain it has this level in the canonical contrast. In T2w the 90th
#: percentile lies in fluid, of which people have more or less: it differs by 22 % between people in the canonical contrast, the median by 2.4 %.
_ANCHORS = {'T2w': (50.0, 0.476)}
#: The same for all other contrasts.
_ANCHOR = (90.0, 1.0)
#: Intensity, in units of the 90th percentile of a scan without its gain, at the knots of a curve.
KNOTS = np.linspace(0, parts.TOP, parts.KNOTS)
#: Features that tell how far the fit is from the drawing and from the network for cells.
AGREEMENT = 2

_AIM = 'aim/shares'  # among the weights: what an Aim has of numbers


def anchor(contrast: str) -> tuple[float, float]:
    """Return which percentile of the brain has which level in the canonical contrast, for scans that are only scaled."""
    return _ANCHORS.get(contrast, _ANCHOR)


@dataclass(frozen=True)
class GainAndCurve:
    """How a scanner shows a brain.

    The canonical intensity of a voxel is ``curve(exp(-log_gain) * (x - offset) / scale)``.

    Parameters
    ----------
    log_gain
        On a regular grid with the extent of the field of view, shape (x, y, z); its mean over the brain is 0.
    offset, scale
        In units of the scan.
    heights
        Canonical intensity at :data:`KNOTS`, strictly increasing, shape (20,).
    error
        Expected absolute error in canonical units on the control grid.
    """

    log_gain: NDArray[np.float32]
    offset: float
    scale: float
    heights: NDArray[np.float64]
    error: NDArray[np.float32]

    def canonical(self, values: NDArray[np.float64], log_gain: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return canonical intensities of values, given the logarithm of the gain where they lie; same shapes."""
        return increasing((values - self.offset) / np.exp(log_gain) / self.scale, KNOTS, self.heights)


@dataclass(frozen=True)
class Style(GainAndCurve):
    """A gain and a curve, and what is expected of them.

    Parameters
    ----------
    expected_error, expected_error_robust
        Mean absolute error of the canonical image over its range, as expected of this style and of robust scaling.
    strangeness
        Probability that this is no scan of the kind that the network has learnt from, between 0 and 1.
    """

    expected_error: float
    expected_error_robust: float
    strangeness: float


def increasing(
    x: NDArray[np.float64], xp: NDArray[np.float64], fp: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate linearly between knots; beyond the ends go on straight."""
    y = np.interp(x, xp, fp)
    below, above = x < xp[0], x > xp[-1]
    y[below] = fp[0] + (x[below] - xp[0]) * (fp[1] - fp[0]) / (xp[1] - xp[0])
    y[above] = fp[-1] + (x[above] - xp[-1]) * (fp[-1] - fp[-2]) / (xp[-1] - xp[-2])
    return y


@dataclass(frozen=True)
class Aim:
    """What the gain and the curve are fitted to: a mean of the drawing and of what the network for cells says by itself.

    Parameters
    ----------
    drawn
        Share of the drawing.
    spared
        Between these quantiles of the brain, as the network for cells shows it, the share of the drawing falls to 0. What is brighter than
        most tissue, as lesions are in FLAIR, is rare, and a drawing dims what is rare. (1, 1) spares nothing.
    """

    drawn: float = 0.6
    spared: tuple[float, float] = (1.0, 1.0)

    def of(self, drawing: Tensor, seen: Tensor) -> Tensor:
        """Return the mean of a drawing and of what the network for cells makes of the same voxels, shape (V,)."""
        share: float | Tensor = self.drawn
        if self.spared[0] < 1:
            low, high = (torch.quantile(parts.some_of(seen), quantile) for quantile in self.spared)
            share = self.drawn * ((high - seen) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        return seen + share * (drawing - seen)

    def array(self) -> NDArray[np.float32]:
        """Return the numbers as they are kept among the weights, shape (3,)."""
        return np.array([self.drawn, *self.spared], dtype=np.float32)

    @classmethod
    def from_array(cls, array: NDArray[Any]) -> Self:
        """Take back what :meth:`array` returned.

        Raises
        ------
        RuntimeError
            If these are no shares.
        """
        if array.shape != (3,) or not ((array >= 0) & (array <= 1)).all() or array[1] > array[2]:
            raise RuntimeError('aim: a share and two increasing quantiles are needed')
        drawn, low, high = (float(value) for value in array)
        return cls(drawn, (low, high))


@dataclass(frozen=True)
class _Look:
    """What one pass of the network gives."""

    log_gain: Tensor
    log_error: Tensor
    tissue: Tensor
    zero: float
    embedding: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Reading:
    """A gain and a curve, and what the judge goes by.

    Parameters
    ----------
    found
        The gain and the curve. Where there is a drawing, their error is what it would be if the expected error were 1: it is the network
        for cells that says where errors lie, and the judge how large they are.
    features
        Of the network, shape (1, F); behind them, where there is a drawing, logarithms of how far the fit is from it and from what the
        network for cells says by itself.
    histograms
        From :func:`bidsharm.nn.isotone.global_histograms`, shape (1, 266).
    """

    found: GainAndCurve
    features: Tensor
    histograms: Tensor


class Reader:
    """The trained networks that read the style of a scan.

    Parameters
    ----------
    net
        The network that looks at cells.
    unet
        The network that draws the canonical image; without it the gain and the curve are those of the first.
    aim
        What they are fitted to, where there is a drawing.
    """

    def __init__(
        self, net: parts.IsotoneNet, unet: CanonicalUNet | None = None, aim: Aim | None = None
    ) -> None:
        self.net = net.eval().requires_grad_(False)
        self.aim = aim or Aim()
        self.unet = None
        if unet is not None:
            self.unet = unet.eval().requires_grad_(False)
            convert_conv3d_weight_memory_format(self.unet, torch.channels_last_3d)
        self.device = 'cpu'

    def to(self, device: str) -> None:
        """Move the networks to a device."""
        self.net.to(device)
        if self.unet is not None:
            self.unet.to(device)
        self.device = device

    @property
    def features(self) -> int:
        """How many features the judge goes by."""
        return self.net.features + (0 if self.unet is None else AGREEMENT)

    @torch.inference_mode()
    def read(self, seen: LowResolution) -> Reading:
        """Look at a scan and at its mirror image; where there is a drawing, fit the gain and the curve to it."""
        values = torch.from_numpy(seen.values).to(self.device)
        voxels = torch.from_numpy(seen.voxels).to(self.device)
        places = parts.places_of(voxels, seen.shape)
        low, span = parts.scan_units(values)
        look = self._look((values - low) / span, voxels, seen.shape)
        offset = float(low - look.zero * span)
        plain = torch.exp(-parts.sample_field(look.log_gain, places)[0, 0]) * (values - offset)
        anchor = torch.quantile(parts.some_of(plain), parts.HIGH).clamp_min(1e-6 * float(span))
        histograms = parts.global_histograms((plain / anchor)[None], parts.sample_field(look.tissue, places))
        start, slopes = self.net.slopes(look.embedding, histograms)
        rise = torch.cumsum(slopes[0].double() * parts.STEP, dim=0)
        heights = torch.cat([start.double(), start.double() + rise]).cpu().numpy()
        gain, scale, features = look.log_gain, float(anchor), look.pooled
        error = look.log_error.exp()
        if self.unet is not None:
            drawn = draw(self.unet, values, voxels)
            before = parts.apply_curve((plain / anchor)[None], start, slopes)[0]
            fit = fit_style(values - offset, voxels, seen.shape, self.aim.of(drawn, before), gain)
            agreement = [float((fit.fitted - other).abs().mean()) for other in (drawn, before)]
            features = torch.cat([features, torch.tensor([agreement], device=self.device).log()], dim=1)
            gain, scale, heights = fit.log_gain, fit.scale, fit.heights
            low, high = torch.quantile(
                parts.some_of(fit.fitted), torch.tensor([0.005, 0.995], device=self.device)
            )
            error = error * (high - low) / parts.sample_field(error, places).mean()
        log_gain, expected = (part[0, 0].cpu().numpy() for part in (gain, error))
        return Reading(GainAndCurve(log_gain, offset, scale, heights, expected), features, histograms)

    def _look(self, values: Tensor, voxels: Tensor, shape: tuple[int, int, int]) -> _Look:
        cells = parts.cell_channels(values, voxels, shape, round(parts.CELL_MM / SIZE_MM))[None]
        mirrored = cells.flip(2)
        mirrored[:, parts.BINS + 1] *= -1
        found = self.net(torch.cat([cells, mirrored]))
        gain, error, tissue = (
            (field[:1] + field[1:].flip(2)) / 2 for field in (found.log_gain, found.log_error, found.tissue)
        )
        embedding, pooled = (part.mean(dim=0, keepdim=True) for part in (found.embedding, found.pooled))
        return _Look(gain, error, tissue, float(found.zero.mean()), embedding, pooled)


class Model:
    """What reads a scan, and its judge.

    Parameters
    ----------
    reader
        Trained networks.
    judge
        Trained on how well they did; it is put into evaluation mode.
    """

    def __init__(self, reader: Reader, judge: parts.Judge) -> None:
        self.reader = reader
        self.judge = judge.eval().requires_grad_(False)

    def to(self, device: str) -> Self:
        """Move the networks to a device; return this model."""
        self.reader.to(device)
        self.judge.to(device)
        return self

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all weights by name, in half precision."""
        modules = {'net': self.reader.net, 'judge': self.judge, 'unet': self.reader.unet}
        weights = {
            f'{kind}/{name}': value.cpu().half().contiguous().numpy()
            for kind, module in modules.items()
            if module is not None
            for name, value in module.state_dict().items()
        }
        return weights if self.reader.unet is None else {**weights, _AIM: self.reader.aim.array()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Model:
        """Take back what :meth:`arrays` returned.

        Raises
        ------
        RuntimeError
            If arrays are missing or of other shapes.
        """
        unet = CanonicalUNet() if any(name.startswith('unet/') for name in arrays) else None
        aim = Aim.from_array(np.asarray(arrays[_AIM])) if _AIM in arrays else Aim()
        reader = Reader(parts.IsotoneNet(), unet, aim)
        hidden = arrays.get('judge/layers.1.weight', ())  # judges differ in width
        judge = parts.Judge(reader.features, len(hidden) or parts.JUDGE_WIDTH)
        for kind, module in (('net', reader.net), ('judge', judge), ('unet', unet)):
            if module is not None:
                module.load_state_dict(
                    {
                        name.removeprefix(f'{kind}/'): torch.from_numpy(np.asarray(array, dtype=np.float32))
                        for name, array in arrays.items()
                        if name.startswith(f'{kind}/')
                    }
                )
        return cls(reader, judge)

    @torch.inference_mode()
    def understand(self, seen: LowResolution) -> Style:
        """Read the style of a scan, and judge it."""
        read = self.reader.read(seen)
        own, robust, strange = self.judge(read.features, read.histograms)[0].tolist()
        size = 1.0 if self.reader.unet is None else math.exp(own)
        found = {**vars(read.found), 'error': read.found.error * np.float32(size)}
        return Style(
            **found, expected_error=math.exp(own), expected_error_robust=math.exp(robust),
            strangeness=1 / (1 + math.exp(-strange)),
        )  # fmt: skip


def field_at(
    field: NDArray[np.float32], seen: LowResolution, mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a field of the control grid at the brain voxels of a scan.

    Parameters
    ----------
    field
        Shape (x, y, z), with the extent of the field of view of the low resolution.
    seen
        The scan in low resolution.
    mask, affine
        Brain mask of the scan, shape (X, Y, Z), and its grid.

    Returns
    -------
    ndarray of shape (N,)
        In C order.
    """
    inside = np.stack(np.nonzero(mask)).astype(float)
    to_field = np.linalg.inv(seen.affine) @ affine
    per = (np.array(seen.shape) / np.array(field.shape))[:, None]
    places = (to_field[:3, :3] @ inside + to_field[:3, 3:] + 0.5) / per - 0.5
    return ndimage.map_coordinates(field.astype(float), places, order=1, mode='nearest')
