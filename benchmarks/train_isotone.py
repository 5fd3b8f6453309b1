"""Train the model of `isotone` for one contrast and write it as a bundle.

Three stages; each leaves files in WORK and is skipped when they are there:

1. brains: people are drawn from label maps (`--hold-out` names those that are kept for testing) and the MNI152 template; all contrasts share them;
2. training: scans are made as they are needed, until the time is up; the learning rate falls as a cosine of the time.
   A training that was interrupted goes on from the last multiple of 200 steps when the command is given again;
3. judge: the network, with the U-Net of `train_unet.py` where one is given, tries itself on scans of people that were not trained on, every other one strange, and a judge learns how well it did.

How the weights that ship were made is in `settings` of their `card.json`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

#: Every so many steps progress is printed and the state written.
INTERVAL = 200
#: Scans that the network is tried on at a time.
TRIES = 3000
#: What gain and curve are fitted to in a contrast, if not to the usual mean: arguments of :class:`bidsharm.nn.isotone_model.Aim`.
AIMS: dict[str, Any] = {'FLAIR': (1.0, (0.9, 0.97))}
#: Anatomies that are kept for testing, and people from each of the others.
HELD_OUT, PEOPLE = ['head-07', 'head-08', 'brain-04', 'brain-05'], 40


def draw(work: Path, labels: Path, hold_out: Sequence[str], people: int, seed: int) -> None:
    """Draw people from every anatomy that is not held out, two anatomies at a time."""
    from concurrent.futures import ProcessPoolExecutor

    folder = work / 'brains'
    if folder.exists():
        return
    maps: list[Path | None] = [
        path for path in sorted(labels.glob('*.nii.gz')) if path.name.split('.')[0] not in hold_out
    ]
    maps.append(None)
    partial = work / 'brains.part'
    partial.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(draw_from, maps, *([value] * len(maps) for value in (people, seed, partial))))
    partial.rename(folder)


def draw_from(anatomy: Path | None, people: int, seed: int, folder: Path) -> None:
    """Draw people from one anatomy and save them."""
    from bidsharm.training.brains import draw_brains

    for number, brain in enumerate(draw_brains([anatomy], people, seed=seed)):
        brain.save(folder / f'{brain.anatomy}_{number:03d}.npz')
    print(anatomy.name if anatomy else 'MNI152', people, 'people', flush=True)


def split(work: Path, kept_back: int = 4) -> tuple[list[Any], list[Any]]:
    """Return the people to train on, and the first of every anatomy, which are not."""
    from bidsharm.training.brains import Brain

    files = sorted((work / 'brains').glob('*.npz'))
    last = {f'{number:03d}' for number in range(kept_back)}
    parts: tuple[list[Any], list[Any]] = ([], [])
    for file in files:
        parts[file.stem.rpartition('_')[2] in last].append(Brain.load(file))
    return parts


def train(args: argparse.Namespace) -> int:
    """Train until the time is up; return the number of scans seen."""
    import torch

    from bidsharm.nn.isotone import IsotoneNet
    from bidsharm.training.isotone import Trainer, psnr_of, stream
    from bidsharm.training.scans import ScanSource

    torch.manual_seed(args.seed)
    some, others = split(args.work)
    checks = stream(
        ScanSource(others, args.contrast, seed=args.seed + 1, scanners=300),
        batch=8,
        seed=args.seed + 1,
        workers=0,
    )
    validation = [next(checks).to(args.device) for _ in range(6)]
    net = IsotoneNet() if args.first is None else network_of(args.first)
    trainer = Trainer(net.to(args.device), rate=args.rate)
    part = args.work / f'train_{args.contrast}.part'
    before, count = resumed(trainer, part)
    seed = args.seed + 10 * count
    source = ScanSource(some, args.contrast, seed=seed, scanners=6000)
    batches = stream(source, batch=args.batch, seed=seed, workers=1)
    started = time.perf_counter()
    while (elapsed := before + time.perf_counter() - started) < args.seconds:
        said = trainer.step(next(batches).to(args.device), elapsed / args.seconds)
        count += args.batch
        if trainer.step_number % INTERVAL == 0:
            print(round(elapsed), count, {name: round(value, 3) for name, value in said.items()},
                  f'validation {psnr_of(trainer.average, validation):.2f} dB', flush=True)  # fmt: skip
            keep(trainer.state() | {'seconds': elapsed, 'scans': count}, part)
    keep(trainer.average.state_dict(), args.work / f'net_{args.contrast}.pt')
    (args.work / f'scans_{args.contrast}').write_text(str(count))
    return count


def tried(work: Path, contrast: str, count: int, seed: int, unet: Path | None) -> Any:
    """Return how the trained networks do on scans of people they have not seen, tried by two processes."""
    from concurrent.futures import ProcessPoolExecutor

    import torch

    from bidsharm.training.isotone import Verdicts

    seeds = [seed + 1000 * number for number in range(-(-count // TRIES))]
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(try_some, seeds, *([value] * len(seeds) for value in (work, contrast, unet))))
    return Verdicts(*(torch.cat(columns) for columns in zip(*(part.values() for part in parts), strict=True)))


def try_some(seed: int, work: Path, contrast: str, unet: Path | None) -> dict[str, Any]:
    """Try the trained networks on some scans, in scanners of their own, unless they have been."""
    import torch

    from bidsharm.training.isotone import try_out
    from bidsharm.training.scans import ScanSource

    file = work / f'tries_{contrast}_{"cells" if unet is None else "drawn"}_{seed}.pt'
    if not file.exists():
        torch.set_num_threads(1)
        _, others = split(work)
        source = ScanSource(others, contrast, seed=seed, scanners=1500)
        keep(vars(try_out(reader_of(work, contrast, unet), source, TRIES)), file)
        print(contrast, seed, TRIES, 'tries', flush=True)
    return dict(torch.load(file, weights_only=True))


def reader_of(work: Path, contrast: str, unet: Path | None) -> Any:
    """Return the trained networks."""
    import torch
    from train_unet import load

    from bidsharm.nn.isotone import IsotoneNet
    from bidsharm.nn.isotone_model import Aim, Reader

    net = IsotoneNet()
    net.load_state_dict(torch.load(work / f'net_{contrast}.pt', map_location='cpu', weights_only=True))
    return Reader(net, None if unet is None else load(unet), Aim(*AIMS.get(contrast, ())))


def network_of(folder: Path) -> Any:
    """Return the network of a bundle, to go on with."""
    from bidsharm.harmonizers.bundle import read_arrays
    from bidsharm.nn.isotone_model import Model

    return Model.from_arrays(read_arrays(folder)).reader.net.train().requires_grad_(True)


def take_network(folder: Path, args: argparse.Namespace) -> None:
    """Take the network of a bundle as a trained one, and what its card says of its training."""
    from bidsharm.harmonizers.bundle import read_card

    settings = read_card(folder)['settings']
    keep(network_of(folder).state_dict(), args.work / f'net_{args.contrast}.pt')
    (args.work / f'scans_{args.contrast}').write_text(str(settings['scans']))
    args.seconds = settings['seconds']


def resumed(trainer: Any, file: Path) -> tuple[float, int]:
    """Go on from a file if there is one; return the seconds and scans that went before."""
    import torch

    if not file.exists():
        return 0.0, 0
    state = torch.load(file, weights_only=True)
    trainer.resume(state)
    return float(state['seconds']), int(state['scans'])


def keep(state: dict[str, Any], file: Path) -> None:
    """Write a state, whole or not at all."""
    import torch

    partial = file.with_suffix('.writing')
    torch.save(state, partial)
    partial.rename(file)


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('work', type=Path, help='folder for what lies between')
    arguments.add_argument('out', type=Path, help='folder of the bundle')
    common.add_labels(arguments)
    arguments.add_argument('--hold-out', nargs='*', default=HELD_OUT)
    arguments.add_argument('--contrast', default='T1w')
    arguments.add_argument(
        '--from', dest='first', type=Path, help='bundle of another contrast whose network is the start'
    )
    arguments.add_argument(
        '--network',
        type=Path,
        help='bundle of the contrast whose network is taken as it is; only a judge is trained, for which --people 4 is enough',
    )
    arguments.add_argument(
        '--unet', type=Path, help='weights of train_unet.py; gain and curve are fitted to what it draws'
    )
    arguments.add_argument('--people', type=int, default=PEOPLE, help='from each anatomy')
    arguments.add_argument('--seconds', type=float, default=10_000)
    arguments.add_argument('--batch', type=int, default=8)
    arguments.add_argument('--rate', type=float, default=1e-3)
    arguments.add_argument(
        '--tries', type=int, default=12_000, help=f'scans that the judge learns from, in multiples of {TRIES}'
    )
    arguments.add_argument('--seed', type=int, default=1)
    arguments.add_argument('--device', default='cpu')
    arguments.add_argument('--made', default='', help='a sentence for the card')
    args = arguments.parse_args()
    labels = common.labels_of(args)
    from train_unet import told

    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.isotone import Isotone
    from bidsharm.nn.isotone_model import Model
    from bidsharm.training.isotone import train_judge

    if args.out.exists():
        raise SystemExit(f'{args.out} is there already, and weights are never replaced. Move it away.')
    args.work.mkdir(parents=True, exist_ok=True)
    trained = args.work / f'net_{args.contrast}.pt'
    draw(args.work, labels, args.hold_out, args.people, args.seed)
    if args.network:
        take_network(args.network, args)
    elif not trained.exists():
        train(args)
    verdicts = tried(args.work, args.contrast, args.tries, args.seed + 2, args.unet)
    model = Model(reader_of(args.work, args.contrast, args.unet), train_judge(verdicts, seed=args.seed))
    scans = args.work / f'scans_{args.contrast}'
    settings = {
        'contrasts': [args.contrast], 'seed': args.seed, 'seconds': args.seconds, 'tries': len(verdicts.own), 'held_out': args.hold_out,
        'scans': int(scans.read_text()) if scans.exists() else None, 'made': args.made, 'unet': None if args.unet is None else told(args.unet),
        'anatomies': sorted({file.stem.rpartition('_')[0] for file in (args.work / 'brains').glob('*.npz')}),
    }  # fmt: skip
    print(bundle.write(Isotone.card, model.arrays(), settings, args.out))


if __name__ == '__main__':
    main()
