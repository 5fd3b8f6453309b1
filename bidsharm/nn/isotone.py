"""The network of `isotone`: from local histograms of a scan to a smooth gain and one increasing curve.

Everything here works on cells of 8 mm and on intensities in units of the scan itself, so neither the voxel size nor the scale or
the offset of the intensities can matter. What the network predicts is applied elsewhere, at full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Edge of a cell, and of the control grid of the gain (mm).
CELL_MM, CONTROL_MM = 8.0, 16.0
#: Quantiles of the scan that become 0 and 1.
LOW, HIGH = 0.005, 0.9
#: Bins of the histogram of a cell: their number, and the middle of the first and of the last.
BINS, FIRST, LAST = 22, -0.05, 1.525
#: Knots of the curve, and the value at the last one; the first lies at 0 and 1 is the 90th percentile after the gain is removed.
KNOTS, TOP = 20, 1.52
#: Distance between knots.
STEP = TOP / (KNOTS - 1)
#: Bounds of the slope of the curve.
STEEPEST = 6.0
#: Largest absolute logarithm of the gain.
LARGEST_GAIN = 1.5
#: Bins of the histogram of the whole scan after the gain is removed, over the range of the curve.
GLOBAL_BINS = 38
#: Powers of the share of a tissue around a voxel by which the voxel counts in the histograms of tissues.
PURITY = (2, 6)
#: Histograms of the whole scan: one of all voxels, and one for each tissue and power.
HISTOGRAMS = 1 + 3 * len(PURITY)
#: Hidden layer of the judge.
JUDGE_WIDTH = 256
#: Channels of a cell: histogram, share of the cell that is brain, place in the brain.
CHANNELS = BINS + 1 + 3


def soft_histogram(values: Tensor, cells: Tensor, count: int) -> Tensor:
    """Return histograms of cells, every value shared by the two nearest bins.

    Parameters
    ----------
    values
        Intensities in units of the scan, shape (N,).
    cells
        Index of the cell of each value, shape (N,), integer.
    count
        Number of cells.

    Returns
    -------
    Tensor of shape (22, count)
        Shares that sum to 1 in every cell that holds a value, and to 0 in others.
    """
    place = ((values - FIRST) / ((LAST - FIRST) / (BINS - 1))).clamp(0, BINS - 1)
    lower = place.floor().clamp(max=BINS - 2)
    weight = place - lower
    index = lower.long() * count + cells
    flat = torch.zeros(BINS * count, dtype=values.dtype, device=values.device)
    flat.index_add_(0, index, 1 - weight)
    flat.index_add_(0, index + count, weight)
    table = flat.reshape(BINS, count)
    return table / table.sum(dim=0).clamp_min(1e-6)


@dataclass(frozen=True)
class Prediction:
    """What the network says of a batch of scans.

    Parameters
    ----------
    log_gain
        Logarithm of the gain on the control grid, smoothed, shape (B, 1, x, y, z).
    zero
        Where an intensity of nothing lies below the low quantile, in units of the scan, shape (B,).
    log_error
        Logarithm of the expected absolute error of the result on the control grid, shape (B, 1, x, y, z).
    tissue
        Shares of CSF, GM and WM in cells of 8 mm, shape (B, 3, X, Y, Z).
    embedding
        What is known of the scan as a whole, shape (B, E).
    pooled
        Means and standard deviations of features over the brain, shape (B, 384).
    """

    log_gain: Tensor
    zero: Tensor
    log_error: Tensor
    tissue: Tensor
    embedding: Tensor
    pooled: Tensor


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv3d(width, width, 3, padding=1), nn.Conv3d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and a correction of it."""
        return x + self.conv2(functional.gelu(self.norm2(self.conv1(functional.gelu(self.norm1(x))))))


class IsotoneNet(nn.Module):
    """Predict the gain of a scan from its cells, and its curve from what is left.

    Parameters
    ----------
    width
        Channels at 16 mm; twice as many at 32 mm.
    depth
        Residual blocks at 16 mm on the way down, and at 32 mm.
    """

    def __init__(self, width: int = 64, depth: tuple[int, int] = (2, 3)) -> None:
        super().__init__()
        wide = 2 * width
        self.stem = nn.Sequential(nn.Conv3d(CHANNELS, width, 1), nn.GELU())
        self.halve = nn.Conv3d(width, width, 2, stride=2)
        self.fine = nn.Sequential(*(_Residual(width) for _ in range(depth[0])))
        self.down = nn.Conv3d(width, wide, 2, stride=2)
        self.coarse = nn.Sequential(*(_Residual(wide) for _ in range(depth[1])))
        self.merge = nn.Conv3d(width + wide, width, 1)
        self.last = nn.Sequential(_Residual(width), nn.GroupNorm(8, width), nn.GELU())
        self.gain = nn.Conv3d(width, 1, 3, padding=1)
        self.error = nn.Conv3d(width, 1, 1)
        self.tissue_near, self.tissue_around = (nn.Conv3d(width, width // 2, 1) for _ in range(2))
        self.tissue = nn.Conv3d(width // 2, 4, 1)
        self.features = pooled = 2 * (width + wide)
        self.embed = nn.Sequential(
            nn.LayerNorm(pooled),
            nn.Linear(pooled, wide),
            nn.GELU(),
            nn.Linear(wide, wide),
            nn.LayerNorm(wide),
        )
        self.zero = nn.Linear(wide, 1)
        self.curve = nn.Sequential(
            nn.Linear(wide + HISTOGRAMS * GLOBAL_BINS, 2 * wide),
            nn.GELU(),
            nn.Linear(2 * wide, 2 * wide),
            nn.GELU(),
            nn.Linear(2 * wide, KNOTS),
        )
        for head in (self.gain, self.error, self.zero, self.curve[-1]):
            for parameter in head.parameters():
                nn.init.normal_(parameter, std=1e-3)
        self.kernel: Tensor
        self.register_buffer('kernel', gaussian(14.0 / CONTROL_MM, 2))

    def forward(self, cells: Tensor) -> Prediction:
        """Look at the cells of scans.

        Parameters
        ----------
        cells
            Histograms, share of brain and place, shape (B, 26, X, Y, Z); X, Y and Z are multiples of 4.
        """
        brain = functional.avg_pool3d(cells[:, BINS : BINS + 1], 2)
        finest = self.stem(cells)
        fine = self.fine(self.halve(finest))
        coarse = self.coarse(self.down(fine))
        merged = self.last(self.merge(torch.cat([fine, _twice(coarse)], dim=1)))
        tissue = self.tissue(functional.gelu(self.tissue_near(finest) + _twice(self.tissue_around(merged))))
        gain, error = self.gain(merged), self.error(merged)
        # What is left is cheap, and half precision would show in it.
        with torch.autocast(cells.device.type, enabled=False):
            merged, coarse = merged.float(), coarse.float()
            pooled = [*_pool(merged, brain), *_pool(coarse, functional.avg_pool3d(brain, 2))]
            features = torch.cat(pooled, dim=1)
            embedding = self.embed(features)
            raw = LARGEST_GAIN * torch.tanh(gain.float() / LARGEST_GAIN)
            return Prediction(
                self._smooth(raw, brain), functional.softplus(self.zero(embedding)[:, 0] - 1.5), error.float(),
                torch.softmax(tissue.float(), dim=1)[:, :3], embedding, features,
            )  # fmt: skip

    def slopes(self, embedding: Tensor, histogram: Tensor) -> tuple[Tensor, Tensor]:
        """Return the curve: its value at 0, shape (B,), and the slopes between the knots, shape (B, 19).

        Parameters
        ----------
        embedding
            From :meth:`forward`.
        histogram
            From :func:`global_histograms`, shape (B, 266).
        """
        raw = self.curve(torch.cat([embedding, histogram], dim=1))
        return 0.2 * torch.tanh(raw[:, 0]), torch.exp(
            torch.tanh(raw[:, 1:]) * torch.log(torch.tensor(STEEPEST))
        )

    def _smooth(self, field: Tensor, brain: Tensor) -> Tensor:
        """Average neighbours on the control grid, weighted by how much brain they hold, and hold the mean at 0."""
        weight = brain + 0.02
        for axis in range(3):
            top, bottom = (convolved(part, self.kernel, axis) for part in (field * weight, weight))
            field, weight = top / bottom, bottom
        mean = (field * brain).sum(dim=(1, 2, 3, 4)) / brain.sum(dim=(1, 2, 3, 4)).clamp_min(1e-6)
        return field - mean.reshape(-1, 1, 1, 1, 1)


class Judge(nn.Module):
    """Say how well the network will do on a scan, and whether it is a scan of the kind that the network knows.

    Parameters
    ----------
    features
        Number of pooled features; histograms come on top.
    width
        Of the hidden layer.
    dropout
        Share of features, and of the hidden layer, that it does without in training: what simulated scans have in common by chance is no
        reason to doubt a real one.
    """

    def __init__(self, features: int, width: int = JUDGE_WIDTH, dropout: float = 0.2) -> None:
        super().__init__()
        size = features + HISTOGRAMS * GLOBAL_BINS
        self.dropout = dropout
        self.layers = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, width), nn.GELU(), nn.Linear(width, 3)
        )

    def forward(self, pooled: Tensor, histogram: Tensor) -> Tensor:
        """Return the logarithms of the expected errors of the network and of robust scaling, and the logit of being strange, (B, 3)."""
        norm, hidden, gelu, last = self.layers  # dropout is none of them: bundles know layers by their number
        seen = functional.dropout(norm(torch.cat([pooled, histogram], dim=1)), self.dropout, self.training)
        found: Tensor = last(functional.dropout(gelu(hidden(seen)), self.dropout, self.training))
        return found


def _twice(field: Tensor) -> Tensor:
    """Return features on a grid of twice as many points along each axis."""
    return functional.interpolate(field, scale_factor=2, mode='trilinear', align_corners=False)


def gaussian(sigma: float, reach: int) -> Tensor:
    """Return a Gaussian of a standard deviation in voxels, as far as the reach to both sides; its sum is 1."""
    kernel = torch.exp(-((torch.arange(-float(reach), reach + 1) / sigma) ** 2) / 2)
    return kernel / kernel.sum()


def convolved(field: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Convolve a field, shape (B, 1, X, Y, Z), along one of its axes in space; beyond it there is nothing."""
    form, padding = [1, 1, 1, 1, 1], [0, 0, 0]
    form[2 + axis], padding[axis] = -1, kernel.numel() // 2
    return functional.conv3d(field, kernel.reshape(form), padding=padding)


def _pool(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the brain, shape (B, C) each."""
    total = weight.sum(dim=(2, 3, 4)).clamp_min(1e-6)
    mean = (features * weight).sum(dim=(2, 3, 4)) / total
    square = ((features - mean[:, :, None, None, None]) ** 2 * weight).sum(dim=(2, 3, 4)) / total
    return mean, (square + 1e-6).sqrt()


def places_of(voxels: Tensor, shape: Sequence[int]) -> Tensor:
    """Return where voxels lie in a field of view, from -1 to 1 between its outer borders, shape (1, N, 3), for :func:`sample_field`."""
    return ((voxels + 0.5) / torch.tensor(shape, device=voxels.device) * 2 - 1)[None]


def sample_field(field: Tensor, places: Tensor) -> Tensor:
    """Return fields of the control grid at points.

    Parameters
    ----------
    field
        Shape (B, C, x, y, z).
    places
        Points in units of the extent of the grid, from -1 to 1 between its outer borders, in the order x, y, z, shape (B, N, 3).

    Returns
    -------
    Tensor of shape (B, C, N)
    """
    grid = places.flip(-1)[:, :, None, None, :]
    found = functional.grid_sample(field, grid, mode='bilinear', padding_mode='border', align_corners=False)
    return found[:, :, :, 0, 0]


def global_histograms(values: Tensor, tissue: Tensor) -> Tensor:
    """Return histograms of whole scans over the range of the curve: of all voxels, and of those in each tissue.

    Parameters
    ----------
    values
        Intensities without the gain, in units of their 90th percentile, shape (B, N).
    tissue
        Shares of CSF, GM and WM around each voxel, shape (B, 3, N).

    Returns
    -------
    Tensor of shape (B, 266)
        Each histogram sums to 10. Voxels count for a tissue by powers of its share, so that cells of one tissue count most.
    """
    step = TOP / (GLOBAL_BINS - 2)
    place = (values / step + 0.5).clamp(0, GLOBAL_BINS - 1.001)
    lower = place.floor()
    part = place - lower
    shares = [tissue.detach() ** power for power in PURITY]
    weights = torch.cat([torch.ones_like(tissue[:, :1]), *shares], dim=1)
    table = values.new_zeros(*weights.shape[:2], GLOBAL_BINS + 1)
    index = lower.long()[:, None].expand_as(weights)
    table.scatter_add_(2, index, weights * (1 - part[:, None]))
    table.scatter_add_(2, index + 1, weights * part[:, None])
    table = table[..., :GLOBAL_BINS] / weights.sum(dim=2, keepdim=True).clamp_min(1e-6)
    return 10 * table.flatten(1)


def apply_curve(values: Tensor, start: Tensor, slopes: Tensor) -> Tensor:
    """Map values by increasing piecewise linear curves.

    Parameters
    ----------
    values
        Shape (B, N); 0 is the first knot, :data:`TOP` the last, and beyond them the curve goes on straight.
    start, slopes
        From :meth:`IsotoneNet.slopes`.
    """
    heights = torch.cat([start[:, None], start[:, None] + torch.cumsum(slopes * STEP, dim=1)], dim=1)
    lower = segment_of(values)
    index = lower.long()
    return heights.gather(1, index) + (values - lower * STEP) * slopes.gather(1, index)


def segment_of(values: Tensor) -> Tensor:
    """Return the number of the knot below each value; the first and the last segment of a curve go on for ever."""
    return (values / STEP).floor().clamp(0, KNOTS - 2)


def cell_channels(values: Tensor, voxels: Tensor, shape: tuple[int, int, int], per_cell: int) -> Tensor:
    """Return the channels of all cells of a field of view.

    Parameters
    ----------
    values
        Intensities of brain voxels in units of the scan, shape (N,).
    voxels
        Their positions, shape (N, 3).
    shape
        Voxels of the field of view; whole cells.
    per_cell
        Voxels of a cell along an edge.
    """
    counts = [n // per_cell for n in shape]
    index = torch.div(voxels, per_cell, rounding_mode='floor')
    cell = (index[:, 0] * counts[1] + index[:, 1]) * counts[2] + index[:, 2]
    total = math.prod(counts)
    channels = values.new_zeros(CHANNELS, total)
    channels[:BINS] = soft_histogram(values, cell, total)
    share = torch.bincount(cell, minlength=total).to(values.dtype) / per_cell**3
    channels[BINS] = share
    centre = (voxels.to(values.dtype).mean(dim=0) + 0.5) / per_cell
    axes = [torch.arange(n, dtype=values.dtype, device=values.device) + 0.5 for n in counts]
    for axis, grid in enumerate(torch.meshgrid(*axes, indexing='ij')):
        channels[BINS + 1 + axis] = (grid.reshape(-1) - centre[axis]) * (CELL_MM / 80) * (share > 0)
    return channels.reshape(CHANNELS, *counts)


def some_of(values: Tensor, count: int = 100_000) -> Tensor:
    """Return about so many of the values, regularly chosen: enough for a quantile."""
    return values[:: max(1, len(values) // count)]


def scan_units(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the low quantile of a scan, and the distance to the high one."""
    low, high = torch.quantile(
        some_of(values, 50_000), torch.tensor([LOW, HIGH], device=values.device, dtype=values.dtype)
    )
    return low, (high - low).clamp_min(torch.finfo(values.dtype).tiny)


def corrected(
    values: Tensor, zero: Tensor, log_gain: Tensor, anchor: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return values without the gain in units of their 90th percentile, and that percentile.

    Parameters
    ----------
    values
        In units of the scan, shape (B, N).
    zero
        Shape (B,).
    log_gain
        Shape (B, N).
    anchor
        The percentile, shape (B,), when it is known.
    """
    plain = torch.exp(-log_gain) * (values + zero[:, None])
    if anchor is None:
        anchor = torch.quantile(plain, HIGH, dim=1).clamp_min(1e-3)
    return plain / anchor[:, None], anchor
