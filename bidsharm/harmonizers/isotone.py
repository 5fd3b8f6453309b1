"""`isotone`: a smooth gain, then one strictly increasing curve; nothing that is not in the scan can come out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.harmonizers.contract import Scan, Volume
from bidsharm.imaging.grids import bounding_box, crop_affine, voxel_sizes

if TYPE_CHECKING:
    import torch

    from bidsharm.nn.isotone import IsotoneNet

#: Voxel size that the network sees (mm), and its field of view in such voxels where the brain fits.
SIZE_MM, SHAPE = 2.0, (96, 112, 96)
#: The field of view grows by blocks of this many voxels where it does not.
_BLOCK = 16


@dataclass(frozen=True)
class Seen:
    """A scan as the network sees it.

    Parameters
    ----------
    values
        Intensities of brain voxels of 2 mm, shape (N,), float32.
    voxels
        Their positions in the field of view, shape (N, 3).
    shape, affine
        The field of view: voxels, and voxel to world (RAS mm); its axes are those of the world.
    """

    values: NDArray[np.float32]
    voxels: NDArray[np.int64]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


def look_at(scan: Scan) -> Seen:
    """Average a scan to voxels of 2 mm along the axes of the world, brain only."""
    box = bounding_box(scan.mask, 2)
    mask = np.asarray(scan.mask[box]).astype(np.float32)
    data = np.where(mask > 0, scan.data[box], 0).astype(np.float32)
    affine = crop_affine(scan.affine, box)
    sizes = voxel_sizes(affine)
    sigma = np.sqrt(np.maximum(SIZE_MM**2 - sizes**2, 0)) / np.sqrt(8 * np.log(2)) / sizes
    data, mask = (
        ndimage.gaussian_filter(part, sigma, mode='constant', truncate=3.0) for part in (data, mask)
    )
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in mask.shape), indexing='ij')).reshape(3, -1)
    corners = affine[:3, :3] @ corners + affine[:3, 3:]
    low, high = corners.min(axis=1), corners.max(axis=1)
    need = np.ceil((high - low) / SIZE_MM)
    shape = [int(max(usual, _BLOCK * np.ceil(n / _BLOCK))) for usual, n in zip(SHAPE, need, strict=True)]
    grid = np.diag([SIZE_MM, SIZE_MM, SIZE_MM, 1.0])
    grid[:3, 3] = (low + high) / 2 - SIZE_MM * (np.array(shape) - 1) / 2
    start = np.maximum(np.floor((low - grid[:3, 3]) / SIZE_MM), 0).astype(int)
    stop = np.minimum(np.ceil((high - grid[:3, 3]) / SIZE_MM) + 1, shape).astype(int)
    points = np.stack(
        np.meshgrid(*(np.arange(a, b) for a, b in zip(start, stop, strict=True)), indexing='ij')
    )
    to_scan = np.linalg.inv(affine) @ grid
    places = np.tensordot(to_scan[:3, :3], points, axes=1) + to_scan[:3, 3].reshape(3, 1, 1, 1)
    total, weight = (ndimage.map_coordinates(part, places, order=1, mode='constant') for part in (data, mask))
    inside = weight > 0.5
    return Seen(
        (total[inside] / weight[inside]).astype(np.float32), points[:, inside].T.astype(np.int64),
        (shape[0], shape[1], shape[2]), grid,
    )  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a scanner shows a brain, as the network understands it.

    The canonical intensity of a voxel is ``curve(exp(-gain) * (x - offset) / scale)``.

    Parameters
    ----------
    log_gain
        Control grid, shape (x, y, z), with the extent of the field of view.
    offset, scale
        In units of the scan.
    heights
        Canonical intensity at the knots of the curve, strictly increasing, shape (20,).
    embedding
        What the network knows of the scan as a whole.
    error
        Expected absolute error in canonical units on the control grid.
    """

    log_gain: NDArray[np.float32]
    offset: float
    scale: float
    heights: NDArray[np.float64]
    embedding: NDArray[np.float32]
    error: NDArray[np.float32]


def understand(net: IsotoneNet, seen: Seen, *, passes: int = 2, mirror: bool = True) -> Style:
    """Let the network look at a scan, once more after its gain is removed, and at its mirror image."""
    import torch

    from bidsharm.nn import isotone as parts

    values, voxels = torch.from_numpy(seen.values), torch.from_numpy(seen.voxels)
    extent = torch.tensor(seen.shape)
    places = ((voxels + 0.5) / extent * 2 - 1)[None]
    low, span = parts.scan_units(values)
    current = (values - low) / span
    offset = float(low)
    gain: torch.Tensor | None = None
    with torch.inference_mode():
        for _ in range(passes):
            seen_by = _look(net, current, voxels, seen.shape, mirror)
            log_gain, zero, embedding, error = seen_by
            gain = log_gain if gain is None else gain + log_gain
            field = parts.sample_field(gain, places)
            if _ == 0:
                offset -= float(zero) * float(span)
            plain = torch.exp(-field[0]) * (values - offset)
            anchor = torch.quantile(plain[:: max(1, len(plain) // 100_000)], parts.HIGH)
            low2, span2 = parts.scan_units(plain)
            current = (plain - low2) / span2
        v = plain / anchor
        start, slopes = net.slopes(embedding, parts.global_histogram(v[None]))
        step = parts.TOP / (parts.KNOTS - 1)
        heights = torch.cat([start, start + torch.cumsum(slopes[0] * step, dim=0)])
    assert gain is not None
    return Style(
        gain[0, 0].numpy(), offset, scale=float(anchor), heights=heights.double().numpy(),
        embedding=embedding[0].numpy(), error=error[0, 0].exp().numpy(),
    )  # fmt: skip


def _look(
    net: IsotoneNet, values: torch.Tensor, voxels: torch.Tensor, shape: tuple[int, int, int], mirror: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    from bidsharm.nn import isotone as parts

    cells = parts.cell_channels(values, voxels, shape, round(parts.CELL_MM / SIZE_MM))[None]
    if mirror:
        other = cells.flip(2)
        other[:, parts.BINS + 1] *= -1
        cells = torch.cat([cells, other])
    found = net(cells)
    gain, error = found.log_gain, found.log_error
    if mirror:
        gain = (gain[:1] + gain[1:].flip(2)) / 2
        error = (error[:1] + error[1:].flip(2)) / 2
    return gain, found.zero.mean(), found.embedding.mean(dim=0, keepdim=True), error


def gain_at(style: Style, seen: Seen, scan: Scan) -> NDArray[np.float64]:
    """Return the logarithm of the gain at the brain voxels of a scan, shape (N,)."""
    inside = np.stack(np.nonzero(scan.mask)).astype(float)
    to_control = np.linalg.inv(seen.affine) @ scan.affine
    per = np.array(seen.shape) / np.array(style.log_gain.shape)
    places = (to_control[:3, :3] @ inside + to_control[:3, 3:] + 0.5) / per[:, None] - 0.5
    return ndimage.map_coordinates(style.log_gain.astype(float), places, order=1, mode='nearest')


def canonical_values(
    values: NDArray[np.float64], log_gain: NDArray[np.float64], style: Style
) -> NDArray[np.float64]:
    """Return canonical intensities of a scan's brain voxels."""
    from bidsharm.nn.isotone import KNOTS, TOP

    v = np.exp(-log_gain) * (values - style.offset) / style.scale
    return _increasing(v, np.linspace(0, TOP, KNOTS), style.heights)


def _increasing(
    x: NDArray[np.float64], xp: NDArray[np.float64], fp: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate linearly; beyond the ends go on straight."""
    y = np.interp(x, xp, fp)
    below, above = x < xp[0], x > xp[-1]
    y[below] = fp[0] + (x[below] - xp[0]) * (fp[1] - fp[0]) / (xp[1] - xp[0])
    y[above] = fp[-1] + (x[above] - xp[-1]) * (fp[-1] - fp[-2]) / (xp[-1] - xp[-2])
    return y


def to_canonical(
    net: IsotoneNet, scan: Scan, *, passes: int = 1, mirror: bool = True
) -> tuple[Volume, Style]:
    """Return a scan in the canonical contrast, and its style."""
    seen = look_at(scan)
    style = understand(net, seen, passes=passes, mirror=mirror)
    inside = np.asarray(scan.mask).astype(bool)
    image = np.zeros(scan.data.shape, dtype=np.float32)
    values = np.asarray(scan.data)[inside].astype(np.float64)
    image[inside] = canonical_values(values, gain_at(style, seen, scan), style)
    return image, style


_Details = dict[str, Any]
