"""Every trained method on the same travelling heads, with the same budget, beside doing nothing and the classical methods.

TRAIN is the output folder of `bidsharm` on simulated people in some scanners; HELD is a data set of `bidsharm-simulate` with other anatomies in other scanners
(the Makefile has the commands). Only the target scanner is in both, for a target that nobody has seen cannot be aimed at. Every method is trained by
`bidsharm-train` with the same budget, which is far below that of its paper, and gets the held scans after N4 in their true brain masks. What it makes of them is judged
by `bidsharm-evaluate --target`: each image against what the same method made of the same person's scan in the target scanner. Methods that
need to know the scanner of a scan cannot serve scanners that they have not seen, and have no row. A method that is not better than `identity` says so by its numbers.

Two blurred images agree well, so PSNR and SSIM stand beside `detail`: the correlation of an image's gradients with those of the head as it is, without noise
(scans of the target scanner left out). `rank`: the mean place of a method over people and over PSNR, SSIM, detail and transfer. p: paired t test of each person's PSNR
against `robust`, Holm-corrected over all methods and measures of the page; raw scans are in units of their scanners, so that against `identity` any scale would do. In brackets are 95 % bootstrap intervals over people. GB: largest resident set
of the process that trained, and of the one that harmonized. weights: of networks that were trained here; that of `isotone` came trained.

WORK keeps models and images; the same command goes on where it was stopped.
"""

from __future__ import annotations

import csv
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import travelling

#: What the others are tested against.
REFERENCE = 'robust'
#: Measures of the page by which methods are ranked, beside `detail`; all are better when larger.
RANKED = ('psnr', 'ssim', 'transfer_dice')
#: Columns that show an interval.
WITH_INTERVAL = ('psnr', 'ssim', 'transfer_dice', 'ravd_gm')
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


def train(name: str, args: Any) -> dict[str, float]:
    """Train a method unless it is; return the steps that it took, their minutes, and the memory."""
    from bidsharm.errors import BidsharmError

    folder = args.work / 'models' / name
    if not (folder / 'model').exists():
        options = ['--preset', args.preset, '--budget', args.budget, '--threads', args.threads, '--interval', 100,
                   *(['--set', *args.set] if args.set else [])]  # fmt: skip
        used = common.train(
            name, args.train, folder, cache=args.work / 'cache', target=args.target, others=args.others, options=options,
        )  # fmt: skip
        if used.code:
            raise BidsharmError(
                f'The training ended with exit code {used.code}.', where=name, fix='See above for the reason.'
            )
        (folder / 'cost.json').write_text(json.dumps({'GB to train': round(used.peak_gb, 2)}))
    *_, last = csv.DictReader((folder / 'log.csv').read_text().splitlines())
    memory = json.loads((folder / 'cost.json').read_text())['GB to train']
    return {
        'steps': int(last['step']),
        'minutes': round(float(last['seconds']) / 60, 1),
        'GB to train': memory,
    }


def apply(name: str, scans: list[travelling.Travelled], args: Any) -> dict[str, float]:
    """Write what a method makes of every scan, unless it is written; return its number of weights, and the memory it took."""
    from bidsharm.harmonizers import bundle, registry
    from bidsharm.harmonizers.contract import Canonical, Cohort
    from bidsharm.harmonizers.native import harmonize_scan

    classical = name in CLASSICAL
    method = registry.get(name)() if classical else bundle.load(args.work / 'models' / name / 'model')
    target = travelling.aim_of(method, args.target)
    kept = args.work / 'models' / name / 'applied.json'
    kept.parent.mkdir(parents=True, exist_ok=True)
    forget_peak()
    wanted = travelling.missing(scans, args.work / name, keep=True)
    for person in sorted({item.person for item in wanted}):
        if classical and not isinstance(target, Canonical):
            others = [item for item in scans if item.person != person and item.scanner == args.target]
            method = registry.get(name)()
            method.fit(Cohort([replace(item.corrected, site=args.target) for item in others]), target=target)
        for item in (item for item in wanted if item.person == person):
            scan = replace(item.corrected, site=item.scanner)  # N4 is no part of the time of a method
            started = time.perf_counter()
            found = harmonize_scan(method, scan, target)
            travelling.write(item, found.image, args.work / name, time.perf_counter() - started)
    if not kept.exists():
        sizes = [] if classical else [v.size for k, v in method.state()[0].items() if k.startswith('net/')]
        kept.write_text(json.dumps({'weights': int(sum(sizes)), 'GB to apply': peak()}))
    return dict(json.loads(kept.read_text()))


def forget_peak() -> None:
    """Let the largest resident set of this process be counted from now on (proc(5), clear_refs)."""
    Path('/proc/self/clear_refs').write_text('5')


def peak() -> float:
    """Return the largest resident set since then, in GB."""
    found = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())
    if found is None:
        raise SystemExit('This kernel does not tell the largest resident set of a process.')
    return round(int(found[1]) * 1024 / 1e9, 2)


def detail(name: str, scans: list[travelling.Travelled], args: Any) -> dict[str, float]:
    """Return, by person, how well gradients of what a method made agree with those of the head without noise."""
    import nibabel as nib
    import numpy as np

    from bidsharm.evaluation.similarity import gradient_ncc
    from bidsharm.evaluation.statistics import average_by_subject

    values, people = [], []
    for item in (item for item in scans if item.scanner != args.target):
        path = item.harmonized(args.work / name)
        image = np.asarray(nib.load(path).dataobj, dtype=np.float32)[item.box]
        spacing = tuple(float(size) for size in nib.affines.voxel_sizes(item.scan.affine))
        values.append(gradient_ncc(item.canonical, image, item.scan.mask, spacing))
        people.append(item.person.removeprefix('sub-'))  # as in the evaluation
    return average_by_subject(values, people)


def by_person(record: dict[str, Any], metric: str, target: str) -> dict[str, dict[str, float]]:
    """Return the means of a measure by method and person, over the scanners that are not the target."""
    from bidsharm.evaluation.statistics import average_by_subject

    values: dict[str, list[tuple[float, str]]] = {}
    for row in record['scans']:
        if row.get(metric) is not None and row['scanner'] != target:
            values.setdefault(row['method'], []).append((row[metric], row['person']))
    return {method: average_by_subject(*zip(*found, strict=True)) for method, found in values.items()}


def ranks(tables: list[dict[str, dict[str, float]]], methods: list[str]) -> dict[str, float]:
    """Return the mean place of each method over people and measures; 1 is best."""
    import numpy as np
    from scipy.stats import rankdata

    people = sorted(tables[0][methods[0]])
    places = [
        rankdata([-table[method][person] for method in methods]) for table in tables for person in people
    ]
    return dict(zip(methods, np.mean(places, axis=0).tolist(), strict=True))


def rows_of(
    out: Path, about: dict[str, dict[str, Any]], details: dict[str, dict[str, float]], target: str
) -> list[dict[str, Any]]:
    """Return the table: measures of the page and of this script, with intervals and ranks."""
    record = json.loads((out / 'evaluation.json').read_text())
    intervals = {
        (row['method'], travelling.SHOWN[row['metric']]): [row['estimate'], row['low'], row['high']]
        for row in record['summary'] if row['metric'] in WITH_INTERVAL
    }  # fmt: skip
    places = ranks([details, *(by_person(record, metric, target) for metric in RANKED)], list(about))
    rows = []
    for found in travelling.rows_of(out):
        method = found['method']
        row = {'method': method, 'family': about[method]['family'], 'rank': places[method]}
        row |= {
            name: intervals.get((method, name), value) for name, value in found.items() if name != 'method'
        }
        row |= {'detail': list(common.mean_interval(list(details[method].values()), seed=2026))}
        rows.append(row | {key: value for key, value in about[method].items() if key != 'family'})
    return sorted(common.filled(rows), key=lambda row: row['rank'])  # methods without a training lack some


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with intervals in brackets."""
    return {
        key: f'{value[0]:.3g}' + (f' ({value[1]:.3g}, {value[2]:.3g})' if None not in value else '')
        if isinstance(value, list) and value[0] is not None
        else common.p_text(value) if key == 'p'
        else value
        for key, value in row.items()
    }  # fmt: skip


def main() -> None:
    from bidsharm.errors import BidsharmError
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
    scans = travelling.load_all(args.held)
    people, scanners = {item.person for item in scans}, {item.scanner for item in scans}
    about: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for name in (*CLASSICAL, *methods):
        print(name, flush=True)
        try:
            cost = {} if name in CLASSICAL else train(name, args)
            about[name] = {'family': registry.card(name).family, **apply(name, scans, args), **cost}
        except BidsharmError as error:  # the others go on
            problems.append(f'{name}: {error}')
    if problems:
        raise SystemExit('\n'.join(problems))
    if args.only_train:
        return
    details = {name: detail(name, scans, args) for name in about}
    out = travelling.judge(args.work, args.held, list(about), '--against', REFERENCE, '--target', args.target)
    rows = rows_of(out, about, details, args.target)
    settings = ''.join(f', {part}' for part in args.set)
    how = f'{len(people)} people, {len(scanners)} scanners, preset "{args.preset}"{settings}, budget {args.budget} each, {args.threads} thread(s).'
    text = common.body(__doc__, how, [shown(row) for row in rows])
    common.save(
        args.name,
        title='Trained methods on travelling heads',
        text=text,
        data={'rows': json.loads(json.dumps(rows))},
        seed=2026,
    )
    page = Path(__file__).parent / 'results' / f'{args.name}.html'
    page.write_text((out / 'evaluation.html').read_text())


if __name__ == '__main__':
    main()
