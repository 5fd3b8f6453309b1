"""Train the rival of `isotone`: a 3-D U-Net that regresses the canonical image, on the same people, scanners and scans.

WORK may be that of `train_isotone.py`; its people are drawn there if they are missing. The network sees the whole brain at 2 mm and writes what it likes into every
voxel: unlike `isotone` it may invent. The learning rate falls as a cosine of the time; a training that was interrupted goes on when the
command is given again, and one that has ended can be gone on with (`--from`). `travelling.py --unet FILE` tries it; its change at 2 mm is carried to the scan's own voxels as the app does for
every method that works on a grid.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from train_isotone import HELD_OUT, PEOPLE, draw, keep, split

#: Channels at 4, 8 and 16 mm.
WIDTHS = (16, 48, 96)
#: Sizes of a volume are multiples of it.
BLOCK = 8
INTERVAL = 100


def convolutions(before: int, after: int) -> nn.Sequential:
    """Return two convolutions, each with group normalization and a leaky ReLU."""
    layers: list[nn.Module] = []
    for depth in (before, after):
        layers += [
            nn.Conv3d(depth, after, 3, padding=1, bias=False),
            nn.GroupNorm(8, after),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Intensities and mask in, the canonical image out (Çiçek et al. 2016, doi:10.1007/978-3-319-46723-8_49).

    So that two cores can train it, blocks of 2 x 2 x 2 voxels are channels at 4 mm on the way down and become voxels again on the way
    up, where the input joins them once more (sub-pixel convolution: Shi et al. 2016, doi:10.1109/CVPR.2016.207).
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(convolutions(a, b) for a, b in itertools.pairwise((2 * 8, *WIDTHS)))
        self.up = nn.ModuleList(convolutions(a + b, a) for a, b in itertools.pairwise(WIDTHS))
        self.spread = nn.Conv3d(WIDTHS[0], 8 * 8, 1)
        self.last = nn.Sequential(
            nn.Conv3d(8 + 2, 8, 3, padding=1), nn.LeakyReLU(0.01, inplace=True), nn.Conv3d(8, 1, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map shape (B, 2, X, Y, Z) to (B, 1, X, Y, Z); sizes are multiples of 8."""
        deep, kept = blocks_to_channels(image), []
        for level, block in enumerate(self.down):
            deep = block(deep if level == 0 else functional.max_pool3d(deep, 2))
            kept.append(deep)
        for level in reversed(range(len(self.up))):
            deep = self.up[level](
                torch.cat([kept[level], functional.interpolate(deep, scale_factor=2)], dim=1)
            )
        change: Tensor = self.last(torch.cat([image, channels_to_blocks(self.spread(deep))], dim=1))
        return image[:, :1] + change


def blocks_to_channels(image: Tensor) -> Tensor:
    """Turn shape (B, C, 2X, 2Y, 2Z) into (B, 8C, X, Y, Z)."""
    batch, depth, *sizes = image.shape
    x, y, z = (n // 2 for n in sizes)
    parts = image.reshape(batch, depth, x, 2, y, 2, z, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return parts.reshape(batch, depth * 8, x, y, z).contiguous(memory_format=torch.channels_last_3d)


def channels_to_blocks(image: Tensor) -> Tensor:
    """Turn shape (B, 8C, X, Y, Z) into (B, C, 2X, 2Y, 2Z)."""
    batch, depth, x, y, z = image.shape
    parts = image.reshape(batch, depth // 8, 2, 2, 2, x, y, z).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.reshape(batch, depth // 8, 2 * x, 2 * y, 2 * z)


def volume(values: Tensor, voxels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what the network sees of brain voxels, cut to the brain, and where in it they lie.

    Shape (1, 2, X, Y, Z): intensities in units of the scan, and the mask.
    """
    from bidsharm.nn.isotone import scan_units

    low, span = scan_units(values)
    place = voxels - voxels.amin(dim=0)
    sizes = [int(-(-(n + 1) // BLOCK)) * BLOCK for n in place.amax(dim=0)]
    image = torch.zeros(1, 2, *sizes, device=values.device)
    where = tuple(place.T)
    image[(0, 0, *where)] = (values - low) / span
    image[(0, 1, *where)] = 1
    return image.contiguous(memory_format=torch.channels_last_3d), where


def predict(net: nn.Module, values: Tensor, voxels: Tensor) -> Tensor:
    """Return the canonical intensity of brain voxels, shape (V,)."""
    image, where = volume(values, voxels)
    with torch.autocast(values.device.type, torch.bfloat16):
        found: Tensor = net(image)[(0, 0, *where)]
    return found.float()


def loss(net: nn.Module, scan: Any) -> Tensor:
    """Return the mean absolute error over brain voxels, without noise."""
    found = predict(net, scan.values, scan.voxels)
    return (found - scan.canonical).abs()[scan.true_mask].mean()


def train(args: argparse.Namespace) -> None:
    """Train until the time is up and write the running average of the weights."""
    import copy

    from bidsharm.training.scans import ScanSource

    out, seconds, rate, seed, device = args.out, args.seconds, args.rate, args.seed, args.device
    torch.manual_seed(seed)
    some, others = split(args.work)
    checks = ScanSource(others, 'T1w', seed=seed + 1, scanners=300, device=device)
    validation = [checks.draw() for _ in range(24)]
    net = UNet() if args.first is None else load(args.first).train()
    net = net.to(device, memory_format=torch.channels_last_3d)
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    part, before, count = out.with_suffix('.part'), 0.0, told(args.first)['scans']
    if part.exists():
        state = torch.load(part, weights_only=True)
        net.load_state_dict(state['net'])
        average.load_state_dict(state['average'])
        optimizer.load_state_dict(state['optimizer'])
        before, count = state['seconds'], state['scans']
    source = ScanSource(some, 'T1w', seed=seed + 10 * count, scanners=6000, device=device)
    started = time.perf_counter()
    while (elapsed := before + time.perf_counter() - started) < seconds:
        for group in optimizer.param_groups:
            group['lr'] = (
                rate * min(1, (count + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * elapsed / seconds))
            )
        optimizer.zero_grad(set_to_none=True)
        error = loss(net, source.draw())
        error.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        count += 1
        memory = min(0.999, 1 - 1 / (count / 10 + 1))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(now, 1 - memory)
        if count % INTERVAL == 0:
            with torch.no_grad():
                held = float(np.mean([float(loss(average, scan)) for scan in validation]))
            print(round(elapsed), count, f'training {float(error):.4f} validation {held:.4f}', flush=True)
            keep(
                {'net': net.state_dict(), 'average': average.state_dict(), 'optimizer': optimizer.state_dict(),
                 'seconds': elapsed, 'scans': count},
                part,
            )  # fmt: skip
    about = {'seconds': round(seconds) + told(args.first)['seconds'], 'scans': count, 'seed': seed}
    halves = {name: value.cpu().half().contiguous() for name, value in average.state_dict().items()}
    save_file(halves, out, {key: str(value) for key, value in about.items()})


def told(file: Path | None) -> dict[str, int]:
    """Return how many seconds and scans went into a trained network; 0 without one."""
    if file is None:
        return {'seconds': 0, 'scans': 0}
    with safe_open(file, 'pt') as content:
        about = content.metadata()
    return {key: int(about[key]) for key in ('seconds', 'scans')}


def load(file: Path) -> UNet:
    """Return a trained network."""
    net = UNet().to(memory_format=torch.channels_last_3d)
    net.load_state_dict(load_file(file))
    return net.eval()


@torch.no_grad()
def harmonize(net: UNet, scan: Any) -> Any:
    """Return what the network makes of a scan, on the scan's own voxels, shape (X, Y, Z)."""
    from bidsharm.imaging.carry import carry_change, local_change
    from bidsharm.imaging.lowres import look_at

    seen = look_at(scan.data, scan.mask, scan.affine)
    place = tuple(seen.voxels.T)
    before, after = np.zeros(seen.shape, np.float32), np.zeros(seen.shape, np.float32)
    before[place] = seen.values
    after[place] = predict(net, torch.from_numpy(seen.values), torch.from_numpy(seen.voxels)).numpy()
    return carry_change(scan.data, scan.mask, scan.affine, local_change(before, after, seen.affine))


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('work', type=Path, help='folder for what lies between')
    arguments.add_argument('out', type=Path, help='file of the weights (safetensors)')
    common.add_labels(arguments)
    arguments.add_argument('--from', dest='first', type=Path, help='file of weights to start from')
    arguments.add_argument('--seconds', type=float, default=7500)
    arguments.add_argument('--rate', type=float, default=1e-3)
    arguments.add_argument('--seed', type=int, default=1)
    arguments.add_argument('--device', default='cpu')
    args = arguments.parse_args()
    labels = common.labels_of(args)
    draw(args.work, labels, HELD_OUT, PEOPLE, args.seed)
    if not args.out.exists():
        train(args)


if __name__ == '__main__':
    main()
