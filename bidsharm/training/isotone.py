"""Train the network of `isotone` on simulated scans.

The truth of a simulated scan is known three times over: the field that lies over it, the curve that is left when the field is
gone, and the image that should come out. Each has a loss of its own, because an image alone says little about why it is
wrong.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from bidsharm.imaging.lowres import SHAPE, SIZE_MM
from bidsharm.nn.isotone import (
    CELL_MM,
    CONTROL_MM,
    IsotoneNet,
    Prediction,
    apply_curve,
    cell_channels,
    corrected,
    global_histograms,
    sample_field,
    scan_units,
)
from bidsharm.nn.isotone_model import CANONICAL_BRIGHT
from bidsharm.training.scans import ScanSource, TrainingScan

#: Voxels of a scan at which losses are computed.
POINTS = 12_000
#: Weights of the losses: image, gain, curve under the true gain, zero, tissue, expected error.
WEIGHTS = {'image': 1.0, 'gain': 1.0, 'curve': 0.5, 'zero': 0.2, 'tissue': 0.2, 'error': 0.02}


@dataclass(frozen=True)
class Example:
    """What the network sees of a scan, and the truth at some of its voxels; batched, with a first axis B.

    Parameters
    ----------
    cells
        Shape (26, 24, 28, 24).
    places
        Points, from -1 to 1 over the field of view, shape (N, 3).
    noisy, clean
        Intensities in units of the scan, shape (N,).
    canonical, log_gain
        Shape (N,).
    zero
        Where nothing lies, in units of the scan, below the low quantile.
    tissue
        Shares of CSF, GM and WM in cells of 16 mm, and the share of brain, shape (4, 12, 14, 12).
    """

    cells: Tensor
    places: Tensor
    noisy: Tensor
    clean: Tensor
    canonical: Tensor
    log_gain: Tensor
    zero: Tensor
    tissue: Tensor


def make_example(scan: TrainingScan, generator: torch.Generator) -> Example:
    """Return an example from a scan."""
    low, span = scan_units(scan.values)
    values = (scan.values - low) / span
    per_cell = round(CELL_MM / SIZE_MM)
    cells = cell_channels(values, scan.voxels, SHAPE, per_cell)
    true = scan.true_mask.nonzero()[:, 0]
    chosen = true[torch.randint(len(true), (POINTS,), generator=generator, device=true.device)]
    extent = torch.tensor(SHAPE, device=values.device)
    places = (scan.voxels[chosen] + 0.5) / extent * 2 - 1
    return Example(
        cells, places, values[chosen], (scan.clean[chosen] - low) / span, scan.canonical[chosen],
        scan.log_gain[chosen], low / span, _tissue_cells(scan),
    )  # fmt: skip


def _tissue_cells(scan: TrainingScan) -> Tensor:
    per_cell = round(CONTROL_MM / SIZE_MM)
    counts = [n // per_cell for n in SHAPE]
    index = torch.div(scan.voxels, per_cell, rounding_mode='floor')
    cell = (index[:, 0] * counts[1] + index[:, 1]) * counts[2] + index[:, 2]
    table = scan.tissue.new_zeros(4, math.prod(counts))
    table[:3].index_add_(1, cell, scan.tissue)
    table[3] = torch.bincount(cell, minlength=table.shape[1])
    table[:3] /= table[3].clamp_min(1)
    table[3] /= per_cell**3
    return table.reshape(4, *counts)


class _Stream(IterableDataset):  # type: ignore[type-arg]
    """Examples without end, different ones in every worker."""

    def __init__(self, source: ScanSource, seed: int) -> None:
        self.source, self.seed = source, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = torch.utils.data.get_worker_info()
        seed = self.seed * 1000 + (info.id if info is not None else 0)
        torch.set_num_threads(1)
        self.source.reseed(seed)
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield vars(make_example(self.source.draw(), generator))


def losses(net: IsotoneNet, batch: Example) -> tuple[dict[str, Tensor], Tensor]:
    """Return the losses of a batch, and the squared error of the images over their range, shape (B,)."""
    seen: Prediction = net(batch.cells)
    gain = sample_field(seen.log_gain, batch.places)[:, 0]
    noisy, anchor = corrected(batch.noisy, seen.zero, gain)
    around = sample_field(seen.tissue, batch.places)
    start, slopes = net.slopes(seen.embedding, global_histograms(noisy, around))
    clean, _ = corrected(batch.clean, seen.zero, gain, anchor)
    result = apply_curve(clean, start, slopes)
    error = (result - batch.canonical).abs()
    true_gain = batch.log_gain - batch.log_gain.mean(dim=1, keepdim=True)
    _, true_anchor = corrected(batch.noisy, batch.zero, true_gain)
    true_clean, _ = corrected(batch.clean, batch.zero, true_gain, true_anchor)
    curve = apply_curve(true_clean, start, slopes)
    centred = gain - gain.mean(dim=1, keepdim=True)
    log_error = sample_field(seen.log_error, batch.places)[:, 0]
    weight = batch.tissue[:, 3:]
    tissue = ((seen.tissue - batch.tissue[:, :3]).abs() * weight).sum() / weight.sum()
    found = {
        'image': error.mean(),
        'gain': (centred - true_gain).abs().mean(),
        'curve': (curve - batch.canonical).abs().mean(),
        'zero': (seen.zero - batch.zero).abs().mean(),
        'tissue': tissue,
        'error': (error.detach().clamp_min(1e-4) * torch.exp(-log_error) + log_error).mean(),
    }
    low, high = torch.quantile(batch.canonical, torch.tensor([0.005, 0.995], device=error.device), dim=1)
    return found, (error.detach() / (high - low)[:, None]).square().mean(dim=1)


def stream(source: ScanSource, *, batch: int, seed: int, workers: int) -> Iterator[Example]:
    """Return batches of examples without end."""
    loader = DataLoader(
        _Stream(source, seed), batch_size=batch, num_workers=workers, prefetch_factor=4 if workers else None
    )
    for item in loader:
        yield Example(**item)


@torch.no_grad()
def psnr_of(net: IsotoneNet, examples: list[Example]) -> float:
    """Return the mean noise-free PSNR (dB) over examples."""
    net.eval()
    errors = torch.cat([losses(net, example)[1] for example in examples])
    net.train()
    return float((-10 * torch.log10(errors)).mean())


class Trainer:
    """AdamW, warm-up and cosine, an average of the weights over the last steps.

    Parameters
    ----------
    net
        The network.
    steps
        Number of steps in all.
    rate
        Learning rate after the warm-up.
    """

    def __init__(self, net: IsotoneNet, *, steps: int, rate: float = 1e-3, warm_up: int = 50) -> None:
        self.net, self.steps = net, steps
        self.average = copy.deepcopy(net).requires_grad_(False)
        decay = [p for p in net.parameters() if p.ndim > 1]
        plain = [p for p in net.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{'params': decay, 'weight_decay': 0.01}, {'params': plain, 'weight_decay': 0.0}], lr=rate
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: (
                min(1.0, (step + 1) / warm_up)
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
            ),
        )
        self.step_number = 0

    def step(self, batch: Example) -> dict[str, float]:
        """Take one step; return the losses."""
        found, squared = losses(self.net, batch)
        total = sum((WEIGHTS[name] * value for name, value in found.items()), start=torch.zeros(()))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.schedule.step()
        self.step_number += 1
        keep = min(0.999, 1 - 1 / (self.step_number / 10 + 1))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        return {name: float(value.detach()) for name, value in found.items()} | {
            'psnr': float((-10 * torch.log10(squared)).mean())
        }


__all__ = [
    'Example',
    'Trainer',
    'cell_channels',
    'corrected',
    'losses',
    'make_example',
    'psnr_of',
    'scan_units',
    'stream',
]


@torch.no_grad()
def calibration_rows(
    net: IsotoneNet, examples: Iterator[Example], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Let a trained network work on scans, and see how well it does.

    Parameters
    ----------
    net
        Trained.
    examples
        Batches of scans that it has not seen.
    count
        Number of scans.

    Returns
    -------
    embedding, own, robust
        What the network knows of each scan, shape (N, E), and the mean absolute errors of its image and of robust scaling, both
        without noise and over the range of the canonical image, shape (N,).
    """
    net.eval()
    embeddings, own, robust = [], [], []
    while sum(len(part) for part in own) < count:
        batch = next(examples)
        seen = net(batch.cells)
        gain = sample_field(seen.log_gain, batch.places)[:, 0]
        noisy, anchor = corrected(batch.noisy, seen.zero, gain)
        around = sample_field(seen.tissue, batch.places)
        start, slopes = net.slopes(seen.embedding, global_histograms(noisy, around))
        clean, _ = corrected(batch.clean, seen.zero, gain, anchor)
        low, high = torch.quantile(batch.canonical, torch.tensor([0.005, 0.995]), dim=1)
        span = high - low
        own.append((apply_curve(clean, start, slopes) - batch.canonical).abs().mean(dim=1) / span)
        scaled = (batch.clean + batch.zero[:, None]) / (1 + batch.zero[:, None]) * CANONICAL_BRIGHT
        robust.append((scaled - batch.canonical).abs().mean(dim=1) / span)
        embeddings.append(seen.embedding)
    return torch.cat(embeddings)[:count], torch.cat(own)[:count], torch.cat(robust)[:count]
