"""Train the U-Net that draws the canonical image, on the same people, scanners and scans as the network for cells of `isotone`.

WORK may be that of `train_isotone.py`; its people are drawn there if they are missing. `isotone` fits a gain and one curve to what the U-Net draws
(`train_isotone.py --unet FILE`). Without the fit it is also the rival of `isotone` that may invent: it writes what it likes into every voxel of 2 mm, and
`travelling.py --unet FILE` carries that change to the scan's own voxels as the app does for every method that works on a grid. The learning rate falls as a
cosine of the time; a training that was interrupted goes on when the command is given again, and one that has ended can be gone on with (`--from`).
"""

from __future__ import annotations

import argparse
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
from train_isotone import HELD_OUT, PEOPLE, keep, split
from train_isotone import draw as draw_people

from bidsharm.nn.isotone_unet import CanonicalUNet, draw

INTERVAL = 100


def loss(net: nn.Module, scan: Any) -> Tensor:
    """Return the mean absolute error over brain voxels, without noise; the network works in bfloat16."""
    with torch.autocast(scan.values.device.type, torch.bfloat16):
        found = draw(net, scan.values, scan.voxels)
    return (found.float() - scan.canonical).abs()[scan.true_mask].mean()


def train(args: argparse.Namespace) -> None:
    """Train until the time is up and write the running average of the weights."""
    import copy

    from bidsharm.training.scans import ScanSource

    out, seconds, rate, seed, device = args.out, args.seconds, args.rate, args.seed, args.device
    torch.manual_seed(seed)
    some, others = split(args.work)
    checks = ScanSource(others, args.contrast, seed=seed + 1, scanners=300, device=device)
    validation = [checks.draw() for _ in range(24)]
    net = CanonicalUNet() if args.first is None else load(args.first).train()
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
    source = ScanSource(some, args.contrast, seed=seed + 10 * count, scanners=6000, device=device)
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


def load(file: Path) -> CanonicalUNet:
    """Return a trained network."""
    net = CanonicalUNet().to(memory_format=torch.channels_last_3d)
    net.load_state_dict(load_file(file))
    return net.eval()


@torch.no_grad()
def harmonize(net: CanonicalUNet, scan: Any) -> Any:
    """Return what the network makes of a scan, on the scan's own voxels, shape (X, Y, Z)."""
    from bidsharm.imaging.carry import carry_change, local_change
    from bidsharm.imaging.lowres import look_at

    seen = look_at(scan.data, scan.mask, scan.affine)
    place = tuple(seen.voxels.T)
    before, after = np.zeros(seen.shape, np.float32), np.zeros(seen.shape, np.float32)
    before[place] = seen.values
    after[place] = draw(net, torch.from_numpy(seen.values), torch.from_numpy(seen.voxels)).numpy()
    return carry_change(scan.data, scan.mask, scan.affine, local_change(before, after, seen.affine))


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('work', type=Path, help='folder for what lies between')
    arguments.add_argument('out', type=Path, help='file of the weights (safetensors)')
    common.add_labels(arguments)
    arguments.add_argument('--contrast', default='T1w', choices=['T1w', 'T2w', 'FLAIR'])
    arguments.add_argument('--from', dest='first', type=Path, help='file of weights to start from')
    arguments.add_argument('--seconds', type=float, default=7500)
    arguments.add_argument('--rate', type=float, default=1e-3)
    arguments.add_argument('--seed', type=int, default=1)
    arguments.add_argument('--device', default='cpu')
    args = arguments.parse_args()
    labels = common.labels_of(args)
    draw_people(args.work, labels, HELD_OUT, PEOPLE, args.seed)
    if not args.out.exists():
        train(args)


if __name__ == '__main__':
    main()
