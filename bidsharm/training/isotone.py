"""Train the network of `isotone` on simulated scans.

The truth of a simulated scan is known three times over: the field that lies over it, the curve that is left when the field is
gone, and the image that should come out. Each has a loss of its own, because an image alone says little about why it is
wrong.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from bidsharm.imaging.lowres import SHAPE, SIZE_MM, LowResolution
from bidsharm.nn.isotone import (
    CELL_MM,
    IsotoneNet,
    Judge,
    Prediction,
    apply_curve,
    cell_channels,
    corrected,
    global_histograms,
    places_of,
    sample_field,
    scan_units,
)
from bidsharm.nn.isotone_model import Reader
from bidsharm.nn.isotone_model import anchor as anchor_of
from bidsharm.training.scans import ScanSource, TrainingScan

#: Voxels of a scan at which losses are computed.
POINTS = 16_000
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
        Shares of CSF, GM and WM in cells of 8 mm, and the share of brain, shape (4, 24, 28, 24).
    """

    cells: Tensor
    places: Tensor
    noisy: Tensor
    clean: Tensor
    canonical: Tensor
    log_gain: Tensor
    zero: Tensor
    tissue: Tensor

    def to(self, device: str) -> Example:
        """Return the example on a device."""
        return Example(**{name: value.to(device) for name, value in vars(self).items()})


def make_example(scan: TrainingScan, generator: torch.Generator) -> Example:
    """Return an example from a scan."""
    low, span = scan_units(scan.values)
    values = (scan.values - low) / span
    per_cell = round(CELL_MM / SIZE_MM)
    cells = cell_channels(values, scan.voxels, SHAPE, per_cell)
    true = scan.true_mask.nonzero()[:, 0]
    chosen = true[torch.randint(len(true), (POINTS,), generator=generator, device=true.device)]
    places = places_of(scan.voxels[chosen], SHAPE)[0]
    return Example(
        cells, places, values[chosen], (scan.clean[chosen] - low) / span, scan.canonical[chosen],
        scan.log_gain[chosen], low / span, _tissue_cells(scan),
    )  # fmt: skip


def _tissue_cells(scan: TrainingScan) -> Tensor:
    per_cell = round(CELL_MM / SIZE_MM)
    counts = [n // per_cell for n in SHAPE]
    index = torch.div(scan.voxels, per_cell, rounding_mode='floor')
    cell = (index[:, 0] * counts[1] + index[:, 1]) * counts[2] + index[:, 2]
    table = scan.tissue.new_zeros(4, math.prod(counts))
    table[:3].index_add_(1, cell, scan.tissue)
    table[3] = torch.bincount(cell, minlength=table.shape[1])
    table[:3] /= table[3].clamp_min(1)
    table[3] /= per_cell**3
    return table.reshape(4, *counts)


class _Stream(IterableDataset[dict[str, Tensor]]):
    """Examples without end, different ones in every worker."""

    def __init__(self, source: ScanSource, seed: int) -> None:
        self.source, self.seed = source, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = torch.utils.data.get_worker_info()
        seed = self.seed * 1000 + (info.id if info is not None else 0)
        if info is not None:  # a worker is one process of several
            torch.set_num_threads(1)
        self.source.reseed(seed)
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield vars(make_example(self.source.draw(), generator))


def losses(net: IsotoneNet, batch: Example) -> tuple[dict[str, Tensor], Tensor]:
    """Return the losses of a batch, and the squared error of the images over their range, shape (B,)."""
    with torch.autocast(batch.cells.device.type, torch.bfloat16, enabled=net.training):
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
    rate
        Learning rate after the warm-up.
    warm_up
        Steps in which the rate rises to it.
    """

    def __init__(self, net: IsotoneNet, *, rate: float = 1e-3, warm_up: int = 50) -> None:
        self.net, self.rate, self.warm_up = net, rate, warm_up
        self.average = copy.deepcopy(net).requires_grad_(False)
        decay = [p for p in net.parameters() if p.ndim > 1]
        plain = [p for p in net.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{'params': decay, 'weight_decay': 0.01}, {'params': plain, 'weight_decay': 0.0}], lr=rate
        )
        self.step_number = self._resumed = 0

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs to go on from here."""
        return {
            'net': self.net.state_dict(), 'average': self.average.state_dict(),
            'optimizer': self.optimizer.state_dict(), 'step_number': self.step_number,
        }  # fmt: skip

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the rate rises once more. Without an optimizer in it, moments start at 0."""
        self.net.load_state_dict(state['net'])
        self.average.load_state_dict(state['average'])
        if 'optimizer' in state:
            self.optimizer.load_state_dict(state['optimizer'])
        self.step_number = self._resumed = int(state['step_number'])

    def step(self, batch: Example, done: float) -> dict[str, float]:
        """Take one step; return the losses.

        Parameters
        ----------
        batch
            Scans.
        done
            Part of the training that is over, from 0 to 1; the learning rate follows its cosine.
        """
        rising = min(1.0, (self.step_number - self._resumed + 1) / self.warm_up)
        for group in self.optimizer.param_groups:
            group['lr'] = self.rate * rising * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, done))))
        found, squared = losses(self.net, batch)
        total = sum((WEIGHTS[name] * value for name, value in found.items()), start=torch.zeros(()))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.step_number += 1
        keep = min(0.999, 1 - 1 / (self.step_number / 10 + 1))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        return {name: float(value.detach()) for name, value in found.items()} | {
            'psnr': float((-10 * torch.log10(squared)).mean())
        }


@dataclass(frozen=True)
class Verdicts:
    """How a trained network did on scans; rows of a training of its judge.

    Parameters
    ----------
    features, histograms
        What the judge goes by, shapes (N, F) and (N, 266).
    own, robust
        Mean absolute errors of the image of the network and of robust scaling, without noise and over the range of the canonical
        image, shape (N,); they mean nothing for strange scans.
    strange
        Whether a scan is no scan of the contrast, shape (N,).
    """

    features: Tensor
    histograms: Tensor
    own: Tensor
    robust: Tensor
    strange: Tensor


@torch.no_grad()
def try_out(reader: Reader, source: ScanSource, count: int) -> Verdicts:
    """Let trained networks read scans, every other one strange, and see how well they do."""
    rows = [_tried(reader, source, strange=number % 2 == 1) for number in range(count)]
    return Verdicts(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _tried(reader: Reader, source: ScanSource, *, strange: bool) -> tuple[Tensor, ...]:
    """Return a row of the verdicts; the style is read from the scan, and tried on what it would be without noise."""
    scan = source.draw_strange() if strange else source.draw()
    values, clean, voxels = (part.cpu().numpy() for part in (scan.values, scan.clean, scan.voxels))
    read = reader.read(LowResolution(values.astype(np.float32), voxels, SHAPE, np.eye(4)))
    places = places_of(scan.voxels, SHAPE)
    gain = sample_field(torch.from_numpy(read.found.log_gain)[None, None].to(places), places)[0, 0]
    image = read.found.canonical(clean, gain.cpu().numpy())
    percent, level = anchor_of(source.contrast)
    scaled = clean / max(float(np.percentile(values, percent)), 1e-6) * level
    true, canonical = scan.true_mask.cpu().numpy(), scan.canonical.cpu().numpy()
    span = max(float(np.subtract(*np.percentile(canonical[true], [99.5, 0.5]))), 1e-6)
    errors = [float(np.mean(np.abs(part - canonical)[true])) / span for part in (image, scaled)]
    return (
        read.features.cpu(), read.histograms.cpu(), torch.tensor(errors[:1]), torch.tensor(errors[1:]), torch.tensor([strange]),
    )  # fmt: skip


def train_judge(verdicts: Verdicts, *, seed: int, steps: int = 8000, jitter: float = 1.5) -> Judge:
    """Teach a judge what the verdicts say: expected errors (L1 of logarithms) and strangeness (cross-entropy).

    Parameters
    ----------
    verdicts
        How the networks did.
    seed
        Of the first weights, the order, and the noise.
    steps
        Of 128 scans each.
    jitter
        What the judge goes by is jittered while it learns what is strange, by Gaussian noise of so many standard deviations of each number over all scans. It
        keeps real scans from looking strange (docs/decisions.md), and lets more simulated strangers through. Errors are learnt without.
    """
    torch.manual_seed(seed)
    judge = Judge(verdicts.features.shape[1])
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    usual = ~verdicts.strange
    errors = torch.log(torch.stack([verdicts.own, verdicts.robust], dim=1).clamp_min(1e-4))
    inputs = verdicts.features, verdicts.histograms
    noise = [jitter * part.std(dim=0) for part in inputs]
    for _ in range(steps):
        chosen = torch.randint(len(usual), (128,))
        clean = [part[chosen] for part in inputs]
        known = usual[chosen]
        strange = judge(
            *(part + size * torch.randn_like(part) for part, size in zip(clean, noise, strict=True))
        )[:, 2]
        loss = functional.binary_cross_entropy_with_logits(strange, verdicts.strange[chosen].float())
        loss = loss + (judge(*clean)[known, :2] - errors[chosen][known]).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()
