"""A trained network of `isotone` and what is known about it: how it reads a scan, and when it should not be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from bidsharm.imaging.lowres import SIZE_MM, LowResolution
from bidsharm.nn import isotone as parts

#: How bright a scan is that is only scaled: at this quantile (percent) of the brain it has this level in the canonical contrast. In T2w the 90th
#: percentile lies in fluid, of which people have more or less: it differs by 22 % between people in the canonical contrast, the median by 2.4 %.
_ANCHORS = {'T2w': (50.0, 0.476)}
#: The same for all other contrasts.
_ANCHOR = (90.0, 1.0)
#: Intensity, in units of the 90th percentile of a scan without its gain, at the knots of a curve.
KNOTS = np.linspace(0, parts.TOP, parts.KNOTS)


def anchor(contrast: str) -> tuple[float, float]:
    """Return which percentile of the brain has which level in the canonical contrast, for scans that are only scaled."""
    return _ANCHORS.get(contrast, _ANCHOR)


@dataclass(frozen=True)
class Style:
    """How a scanner shows a brain, as the network understands it.

    The canonical intensity of a voxel is ``curve(exp(-log_gain) * (x - offset) / scale)``.

    Parameters
    ----------
    log_gain
        Control grid, shape (x, y, z), with the extent of the field of view; its mean over the brain is 0.
    offset, scale
        In units of the scan.
    heights
        Canonical intensity at :data:`KNOTS`, strictly increasing, shape (20,).
    error
        Expected absolute error in canonical units on the control grid.
    expected_error, expected_error_robust
        Mean absolute error of the canonical image over its range, as expected of this style and of robust scaling.
    strangeness
        Probability that this is no scan of the kind that the network has learnt from, between 0 and 1.
    """

    log_gain: NDArray[np.float32]
    offset: float
    scale: float
    heights: NDArray[np.float64]
    error: NDArray[np.float32]
    expected_error: float
    expected_error_robust: float
    strangeness: float

    def curve(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return canonical intensities of values without gain, offset and scale."""
        return increasing(values, KNOTS, self.heights)


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
class _Look:
    """What one pass of the network gives."""

    log_gain: Tensor
    log_error: Tensor
    tissue: Tensor
    zero: float
    embedding: Tensor
    pooled: Tensor


class Model:
    """A trained network and its judge.

    Parameters
    ----------
    net, judge
        Both trained; they are put into evaluation mode.
    device
        Where they are.
    """

    def __init__(self, net: parts.IsotoneNet, judge: parts.Judge, device: str = 'cpu') -> None:
        self.net = net.eval().requires_grad_(False).to(device)
        self.judge = judge.eval().requires_grad_(False).to(device)
        self.device = device

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all weights by name, in half precision."""
        return {
            f'{kind}/{name}': value.cpu().half().numpy()
            for kind, module in (('net', self.net), ('judge', self.judge))
            for name, value in module.state_dict().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], device: str = 'cpu') -> Model:
        """Take back what :meth:`arrays` returned.

        Raises
        ------
        RuntimeError
            If arrays are missing or of other shapes.
        """
        net = parts.IsotoneNet()
        hidden = arrays.get('judge/layers.1.weight', ())  # judges differ in width
        judge = parts.Judge(net.features, len(hidden) or parts.JUDGE_WIDTH)
        for kind, module in (('net', net), ('judge', judge)):
            module.load_state_dict(
                {
                    name.removeprefix(f'{kind}/'): torch.from_numpy(np.asarray(array, dtype=np.float32))
                    for name, array in arrays.items()
                    if name.startswith(f'{kind}/')
                }
            )
        return cls(net, judge, device)

    @torch.inference_mode()
    def understand(self, seen: LowResolution, *, passes: int = 1) -> Style:
        """Let the network look at a scan and at its mirror image, and again when the gain it found is removed.

        Parameters
        ----------
        seen
            The scan.
        passes
            How often it looks.
        """
        values = torch.from_numpy(seen.values).to(self.device)
        voxels = torch.from_numpy(seen.voxels).to(self.device)
        places = ((voxels + 0.5) / torch.tensor(seen.shape, device=self.device) * 2 - 1)[None]
        low, span = parts.scan_units(values)
        look = self._look((values - low) / span, voxels, seen.shape)
        offset, total = float(low - look.zero * span), look.log_gain
        first = look
        for _ in range(passes - 1):
            plain = self._without_gain(values - offset, total, places)
            low, span = parts.scan_units(plain)
            look = self._look((plain - low) / span, voxels, seen.shape)
            total = total + look.log_gain
        plain = self._without_gain(values - offset, total, places)
        anchor = torch.quantile(_some(plain), parts.HIGH).clamp_min(1e-6 * float(span))
        around = parts.sample_field(look.tissue, places)
        histograms = parts.global_histograms((plain / anchor)[None], around)
        start, slopes = self.net.slopes(look.embedding, histograms)
        rise = torch.cumsum(slopes[0].double() * (parts.TOP / (parts.KNOTS - 1)), dim=0)
        heights = torch.cat([start.double(), start.double() + rise])
        own, robust, strange = self.judge(first.pooled, histograms)[0].tolist()
        return Style(
            log_gain=total[0, 0].cpu().numpy(), offset=offset, scale=float(anchor), heights=heights.cpu().numpy(),
            error=look.log_error[0, 0].exp().cpu().numpy(), expected_error=math.exp(own),
            expected_error_robust=math.exp(robust), strangeness=1 / (1 + math.exp(-strange)),
        )  # fmt: skip

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

    @staticmethod
    def _without_gain(values: Tensor, log_gain: Tensor, places: Tensor) -> Tensor:
        return torch.exp(-parts.sample_field(log_gain, places)[0, 0]) * values


def _some(values: Tensor) -> Tensor:
    """Return at most some hundred thousand values, enough for a quantile."""
    return values[:: max(1, len(values) // 100_000)]


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
