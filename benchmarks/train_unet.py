"""Train the rival of `isotone`: a 3-D U-Net that regresses the canonical image, on the same people, scanners and scans.

WORK is that of `train_isotone.py`, whose people it learns from. It sees the whole brain at 2 mm and writes what it likes into every
voxel: unlike `isotone` it may invent. The learning rate falls as a cosine of the time; a training that was interrupted goes on when the
command is given again. `travelling.py --unet FILE` tries it; its change at 2 mm is carried to the scan's own voxels as the app does for
every method that works on a grid.
"""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from train_isotone import keep, split

#: Channels by level; each level halves the voxels.
WIDTHS = (12, 24, 48, 96)
INTERVAL = 100


def convolutions(before: int, after: int) -> nn.Sequential:
    """Return two convolutions, each with instance normalization and a leaky ReLU."""
    layers: list[nn.Module] = []
    for depth in (before, after):
        layers += [
            nn.Conv3d(depth, after, 3, padding=1, bias=False),
            nn.InstanceNorm3d(after, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Intensities and mask in, the canonical image out (Çiçek et al. 2016, doi:10.1007/978-3-319-46723-8_49)."""

    def __init__(self) -> None:
        super().__init__()
        depths = (2, *WIDTHS)
        self.down = nn.ModuleList(convolutions(a, b) for a, b in itertools.pairwise(depths))
        self.up = nn.ModuleList(convolutions(a + b, a) for a, b in itertools.pairwise(WIDTHS))
        self.last = nn.Conv3d(WIDTHS[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map shape (B, 2, X, Y, Z) to (B, 1, X, Y, Z); sizes are multiples of 8."""
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            image = block(image if level == 0 else functional.max_pool3d(image, 2))
            kept.append(image)
        for level in reversed(range(len(self.up))):
            wide = functional.interpolate(image, scale_factor=2, mode='trilinear', align_corners=False)
            image = self.up[level](torch.cat([kept[level], wide], dim=1))
        return self.last(image)


def volume(values: Tensor, voxels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what the network sees of brain voxels: intensities in units of the scan, and the mask, shape (1, 2, X, Y, Z)."""
    from bidsharm.nn.isotone import scan_units

    low, span = scan_units(values)
    image = torch.zeros(1, 2, *shape, device=values.device)
    place = tuple(voxels.T)
    image[(0, 0, *place)] = (values - low) / span
    image[(0, 1, *place)] = 1
    return image


def loss(net: nn.Module, scan: Any) -> Tensor:
    """Return the mean absolute error over brain voxels, without noise."""
    from bidsharm.imaging.lowres import SHAPE

    with torch.autocast(scan.values.device.type, torch.bfloat16):
        image = net(volume(scan.values, scan.voxels, SHAPE))
    found = image[(0, 0, *scan.voxels.T)].float()
    return (found - scan.canonical).abs()[scan.true_mask].mean()


def train(work: Path, out: Path, seconds: float, rate: float, seed: int, device: str) -> None:
    """Train until the time is up and write the running average of the weights."""
    import copy

    from bidsharm.training.scans import ScanSource

    torch.manual_seed(seed)
    some, others = split(work)
    checks = ScanSource(others, 'T1w', seed=seed + 1, scanners=300, device=device)
    validation = [checks.draw() for _ in range(24)]
    net = UNet().to(device)
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    part, before, count = out.with_suffix('.part'), 0.0, 0
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
    keep({'average': average.state_dict(), 'seconds': seconds, 'scans': count}, out)


def load(file: Path) -> UNet:
    """Return a trained network."""
    net = UNet()
    net.load_state_dict(torch.load(file, weights_only=True)['average'])
    return net.eval()


@torch.no_grad()
def harmonize(net: UNet, scan: Any) -> Any:
    """Return what the network makes of a scan, on the scan's own voxels, shape (X, Y, Z)."""
    from bidsharm.imaging.carry import carry_change
    from bidsharm.imaging.lowres import look_at

    seen = look_at(scan.data, scan.mask, scan.affine)
    place = tuple(seen.voxels.T)
    image = net(volume(torch.from_numpy(seen.values), torch.from_numpy(seen.voxels), seen.shape))[
        0, 0
    ].numpy()
    before, after = np.zeros(seen.shape, np.float32), np.zeros(seen.shape, np.float32)
    before[place], after[place] = seen.values, image[place]
    return carry_change(scan.data, scan.mask, scan.affine, before, after, seen.affine)


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('work', type=Path, help='folder that train_isotone.py has worked in')
    arguments.add_argument('out', type=Path, help='file of the weights (PyTorch)')
    arguments.add_argument('--seconds', type=float, default=7500)
    arguments.add_argument('--rate', type=float, default=1e-3)
    arguments.add_argument('--seed', type=int, default=1)
    arguments.add_argument('--device', default='cpu')
    args = arguments.parse_args()
    if not args.out.exists():
        train(args.work, args.out, args.seconds, args.rate, args.seed, args.device)


if __name__ == '__main__':
    main()
