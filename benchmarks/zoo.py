"""Every trained method on the same travelling heads, with the same budget, beside doing nothing and the classical methods.

TRAIN is the output folder of `bidsharm` on simulated people in some scanners; HELD is a data set of `bidsharm-simulate` with other anatomies in other scanners
(the Makefile has the commands). Only the target scanner is in both, for a target that nobody has seen cannot be aimed at. Every method is trained by
`bidsharm-train` with the same budget, which is far below that of its paper, and gets the held scans after N4 in their true brain masks. What it makes of them is judged
by `bidsharm-evaluate --target`: each image against what the same method made of the same person's scan in the target scanner. Methods that
need to know the scanner of a scan cannot serve scanners that they have not seen, and have no row. A method that is not better than `identity` says so by its numbers.

WORK keeps models and images; the same command goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import travelling

#: Methods without a training that stand beside the trained ones.
CLASSICAL = ('identity', 'robust', 'tscore', 'nyul', 'histogram', 'isotone')


def trained() -> list[str]:
    """Return the trained methods that turn an image into an image and serve any scanner."""
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.trained import TrainedHarmonizer

    kinds = {name: registry.find(name) for name in registry.available()}
    return [
        n
        for n, kind in kinds.items()
        if issubclass(kind, TrainedHarmonizer) and 'site' not in kind.card.needs_apply
    ]


def train(name: str, args: Any) -> float:
    """Train a method unless it is; return the minutes that it took."""
    from bidsharm.harmonizers import registry

    folder = args.work / 'models' / name
    if not (folder / 'model').exists():
        cache = folder / 'cache'
        contrasts = ['T1w', *args.others] if 'multi_contrast' in registry.card(name).needs_fit else ['T1w']
        folder.mkdir(parents=True, exist_ok=True)
        shared = args.work / 'cache'
        shared.mkdir(exist_ok=True)
        if not cache.exists():
            cache.symlink_to(shared.resolve())
        aim = ['--target', args.target] if 'site' in registry.card(name).targets else []
        command = [
            sys.executable, '-m', 'bidsharm.cli.train', name, args.train, folder, '--preset', args.preset, '--budget', args.budget, '--site', 'session',
            '--contrasts', *contrasts, '--threads', args.threads, '--interval', '100', *aim,
            *(['--set', *args.set] if args.set else []),
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True)
        (folder / 'minutes').write_text(f'{(time.perf_counter() - started) / 60:.2f}')
    return float((folder / 'minutes').read_text())


def apply(name: str, scans: list[travelling.Travelled], args: Any) -> int:
    """Write what a method makes of every scan, unless it is written; return its number of weights."""
    from bidsharm.harmonizers import bundle, registry
    from bidsharm.harmonizers.contract import Canonical, Cohort, Site
    from bidsharm.harmonizers.native import harmonize_scan

    classical = name in CLASSICAL
    method = registry.get(name)() if classical else bundle.load(args.work / 'models' / name / 'model')
    target: Any = Site(args.target) if 'site' in method.card.targets else Canonical()
    for person in sorted({item.person for item in scans}):
        mine = [item for item in scans if item.person == person]
        if all((args.work / name / person / f'ses-{item.scanner}').exists() for item in mine):
            continue
        if classical and not isinstance(target, Canonical):
            others = [item for item in scans if item.person != person and item.scanner == args.target]
            method = registry.get(name)()
            method.fit(Cohort([replace(item.corrected, site=args.target) for item in others]), target=target)
        for item in mine:
            started = time.perf_counter()
            found = harmonize_scan(method, replace(item.corrected, site=item.scanner), target)
            travelling.write(item, found.image, args.work / name, time.perf_counter() - started)
    if classical:
        return 0
    return sum(value.size for key, value in method.state()[0].items() if key.startswith('net/'))


def main() -> None:
    from bidsharm.cli import evaluate
    from bidsharm.harmonizers import registry

    arguments = common.parser(__doc__)
    arguments.add_argument('train', type=Path, help='derivatives of bidsharm to train on')
    arguments.add_argument('held', type=Path, help='data set of bidsharm-simulate to judge on')
    arguments.add_argument('work', type=Path, help='folder for models and images')
    arguments.add_argument('--methods', nargs='+', help='default: all')
    arguments.add_argument(
        '--others', nargs='*', default=['T2w'], help='contrasts beside T1w for methods that need several'
    )
    arguments.add_argument('--preset', default='paper')
    arguments.add_argument('--budget', default='30m', help='of each method')
    arguments.add_argument(
        '--set', nargs='*', default=[], metavar='KEY=VALUE', help='settings of all methods'
    )
    arguments.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)), help='of a training')
    arguments.add_argument('--only-train', action='store_true', help='train and apply, judge later')
    arguments.add_argument('--target', default=travelling.TARGET)
    arguments.add_argument('--name', default='zoo', help='of the result')
    args = arguments.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    methods = args.methods or trained()
    people = sorted(path.name for path in args.held.glob('sub-*'))
    sessions = sorted(path.name for path in (args.held / people[0]).glob('ses-*'))
    scans = [
        travelling.load(args.held, person, session) for person, session in itertools.product(people, sessions)
    ]
    about: dict[str, dict[str, Any]] = {}
    for name in (*CLASSICAL, *methods):
        print(name, flush=True)
        minutes = 0.0 if name in CLASSICAL else train(name, args)
        about[name] = {
            'family': registry.card(name).family,
            'weights': apply(name, scans, args),
            'minutes': round(minutes, 1),
        }
    if args.only_train:
        return
    link = args.work / 'held'
    link.unlink(missing_ok=True)
    link.symlink_to(args.held.resolve())
    os.chdir(args.work)
    out = Path('evaluation')
    code = evaluate.main([
        str(out), *(f'{name}={name}' for name in about), '--original', 'held', '--truth', 'held/derivatives/truth', '--site', 'session',
        '--against', 'identity', '--seed', '2026', '--nprocs', '2', '--target', args.target,
    ])  # fmt: skip
    if code:
        raise SystemExit(code)
    rows = [{**row, **about[row['method']]} for row in travelling.rows_of(out)]
    text = f'{len(people)} people, {len(sessions)} scanners, preset "{args.preset}"{"".join(f", {part}" for part in args.set)}, budget {args.budget} each.\n{(__doc__ or "").split(chr(10), 1)[1]}\n{common.table(rows)}'
    common.save(
        args.name,
        title='Trained methods on travelling heads',
        text=text,
        data={'rows': json.loads(json.dumps(rows))},
        seed=2026,
    )


if __name__ == '__main__':
    main()
