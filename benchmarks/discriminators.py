"""How many steps a discriminator needs to tell scans of the target from those of other scanners, while nobody changes them.

As long as it cannot, a generator learns nothing of the target from it but what its other losses say. TRAIN is the output folder of `bidsharm` on simulated people in some
scanners (that of `zoo.py`). Every discriminator is trained alone on axial slices of the target and of all others, the batches the same for all, by the least-squares loss and Adam of CycleGAN.
The columns hold that loss, averaged over the steps up to there since the column before; a discriminator that cannot tell them apart has 0.5.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import travelling

SEED, RATE, VOXEL_MM, BATCH = 2026, 3e-4, 2.0, 8
MARKS = (300, 1000, 3000)
#: Layers of stride 2, that of stride 1 after them, norm, and spectral normalization.
NETWORKS: dict[str, dict[str, Any]] = {
    'preset "tiny"': {'widths': (8, 16), 'middle': 0, 'kind': 'none', 'spectral': True},
    'without spectral norm': {'widths': (8, 16), 'middle': 0, 'kind': 'none'},
    'wider and deeper': {'widths': (16, 32, 64), 'middle': 128, 'kind': 'none'},
    'and with instance norm': {'widths': (16, 32, 64), 'middle': 128, 'kind': 'instance'},
    'the same, spectral norm': {'widths': (16, 32, 64), 'middle': 128, 'kind': 'instance', 'spectral': True},
}


def batches(folder: Path, cache: Path, target: str) -> Any:
    """Return what draws slices of the target (`y`) and of others (`x`)."""
    from bidsharm.bids.training_input import find_training_files
    from bidsharm.harmonizers.cyclegan import CycleGAN
    from bidsharm.harmonizers.training_cache import prepare

    method = CycleGAN(settings=CycleGAN.preset('tiny', voxel_mm=VOXEL_MM, batch=BATCH))
    files = find_training_files(folder, contrasts=['T1w'], site='session')
    data = prepare(files, method.settings, cache).data
    method.sites, method.contrasts, method.target_site = data.sites, data.contrasts, target
    return method.sampler(data)


def losses(network: dict[str, Any], sampler: Any) -> list[float]:
    """Train a discriminator; return its loss at every step."""
    import torch

    from bidsharm.harmonizers.adversarial import judged, masked
    from bidsharm.nn.discriminators import PatchDiscriminator

    torch.manual_seed(SEED)
    judge, rng = PatchDiscriminator(2, **network), np.random.default_rng(SEED)
    optimizer, found = torch.optim.Adam(judge.parameters(), RATE, betas=(0.5, 0.999)), []
    for _ in range(MARKS[-1]):
        batch = {name: torch.as_tensor(value) for name, value in sampler.draw(rng).items()}
        loss = judged(judge, masked(batch['y'], batch['y_mask']), masked(batch['x'], batch['x_mask']))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def main() -> None:
    import torch

    from bidsharm.nn.blocks import count_parameters
    from bidsharm.nn.discriminators import PatchDiscriminator

    arguments = common.parser(__doc__)
    arguments.add_argument('train', type=Path, help='derivatives of bidsharm to train on')
    arguments.add_argument('work', type=Path, help='folder for prepared scans')
    arguments.add_argument('--target', default=travelling.TARGET)
    arguments.add_argument('--threads', type=int, default=1)
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    sampler, rows = batches(args.train, args.work, args.target), []
    for name, network in NETWORKS.items():
        started = time.perf_counter()
        found = losses(network, sampler)
        row: dict[str, Any] = {'discriminator': name, 'weights': count_parameters(PatchDiscriminator(2, **network))}  # fmt: skip
        row |= {
            f'to step {end}': round(float(np.mean(found[start:end])), 3)
            for start, end in zip((0, *MARKS), MARKS, strict=False)
        }
        rows.append(row | {'seconds': round(time.perf_counter() - started)})
        print(rows[-1], flush=True)
    how = (
        f'Rate {RATE:g}, {BATCH} slices of {VOXEL_MM:g} mm of each side in a batch, {args.threads} thread(s).'
    )
    common.save(
        'discriminators', title='Discriminators alone', text=common.body(__doc__, how, rows), data={'rows': rows}, seed=SEED,
    )  # fmt: skip


if __name__ == '__main__':
    main()
