"""``bidsharm-train``: train a method on preprocessed scans, or learn another target for a trained one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from bidsharm.cli.arguments import Parser, budget, count, label_maps, natural, setting
from bidsharm.cli.bars import Bars
from bidsharm.cli.ending import run_to_end
from bidsharm.errors import BidsharmError, ExitCode, UsageError
from bidsharm.settings import CONTRASTS, MAX_SEED

if TYPE_CHECKING:
    from bidsharm.harmonizers.contract import Target
    from bidsharm.harmonizers.trained import TrainedHarmonizer
    from bidsharm.harmonizers.training_cache import Source
    from bidsharm.training.options import Budget, Running

#: Names inside the output folder.
MODEL, CACHE = 'model', 'cache'
#: In place of a folder: scans that are simulated; how many by default, and after how many steps everybody is scanned again.
SIMULATED, PEOPLE, SCANNERS, RENEW = 'simulated', 20, 4, 1000


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog='bidsharm-train',
        description='Train a harmonization method on scans that bidsharm has preprocessed, or on simulated ones.',
        epilog='The model is OUT/model: bidsharm BIDS OUT participant --harmonizer NAME --model OUT/model. The same command goes on with a '
        'training that was interrupted. On several machines start it by srun or torchrun with --nodes. '
        'Exit codes: 0 trained; 1 the training failed, or scans had to be left out; 2 wrong use; 3 no scans; 78 no such device.',
        allow_abbrev=False,
    )
    parser.add_argument(
        'harmonizer', metavar='NAME', help='method; bidsharm-models list tells what each needs'
    )
    parser.add_argument(
        'derivatives', metavar='DERIVATIVES', type=_place, help='output folder of bidsharm; or the word "simulated", for travelling heads'
    )  # fmt: skip
    parser.add_argument(
        'out', metavar='OUT', type=Path, help='folder for model, checkpoints, log and pictures'
    )
    data = parser.add_argument_group('scans')
    data.add_argument('--target', default='', metavar='SITE', help='site that scans shall look like')
    data.add_argument('--contrasts', nargs='+', choices=CONTRASTS, default=['T1w'], help='default: T1w')
    data.add_argument(
        '--participant-label',
        nargs='+',
        default=[],
        metavar='LABEL',
        help='subjects to train on (default: all)',
    )
    data.add_argument(
        '--site',
        default='',
        metavar='RULE',
        help='"session" or a column of participants.tsv (default: the sites of that run)',
    )
    data.add_argument(
        '--person', default='', metavar='COLUMN', help='column that says which subjects are one person'
    )
    data.add_argument('--participants', type=Path, metavar='FOLDER', help='folder with participants.tsv')
    drawn = parser.add_argument_group(
        'simulated scans', 'Everybody goes through every scanner: simulated1, simulated2...'
    )
    drawn.add_argument('--people', type=count, metavar='N', help='number of people (default: 20)')
    drawn.add_argument('--scanners', type=count, metavar='N', help='number of scanners (default: 4)')
    drawn.add_argument(
        '--labels', nargs='+', type=Path, metavar='FILE|FOLDER',
        help='FreeSurfer-like label maps that people are drawn from (default: the MNI152 template)',
    )  # fmt: skip
    drawn.add_argument(
        '--renew', type=natural, metavar='N',
        help='steps after which everybody is scanned again in every scanner (default: 1000; 0: never)',
    )  # fmt: skip
    how = parser.add_argument_group('training')
    how.add_argument('--preset', choices=('paper', 'tiny'), help='default: paper')
    how.add_argument(
        '--from', dest='start', type=Path, metavar='MODEL',
        help='start from the weights of a model of the same method, with its settings',
    )  # fmt: skip
    how.add_argument(
        '--set',
        nargs='+',
        default=[],
        type=setting,
        metavar='KEY=VALUE',
        help='change settings of the method',
    )
    how.add_argument(
        '--budget',
        type=budget,
        metavar='N|TIME',
        help='steps (20000) or time (90m, 8h); default: that of the preset',
    )
    how.add_argument(
        '--interval', type=count, default=200, metavar='N', help='steps between checkpoints (default: 200)'
    )
    how.add_argument(
        '--patience',
        type=int,
        default=0,
        metavar='N',
        help='end after N intervals without a better validation (default: never)',
    )
    how.add_argument('--seed', type=int, default=0, metavar='N', help='default: 0')
    where = parser.add_argument_group('machines')
    where.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:N or mps (default: auto)')
    where.add_argument(
        '--devices', type=count, default=1, metavar='N', help='processes of one device each, on each machine'
    )
    where.add_argument('--nodes', type=count, default=1, metavar='N', help='machines')
    where.add_argument(
        '--precision',
        choices=('32-true', 'bf16-mixed', '16-mixed'),
        default='32-true',
        help='default: 32-true',
    )
    where.add_argument(
        '--accumulate', type=count, default=1, metavar='N', help='batches whose gradients make a step'
    )
    where.add_argument('--threads', type=count, metavar='N', help='threads of one process')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (:class:`bidsharm.errors.ExitCode`)."""
    args = build_parser().parse_args(argv)
    return run_to_end(
        'bidsharm-train',
        lambda: _run(args),
        stopped='stopped; the same command goes on from the last checkpoint.',
    )


def _run(args: argparse.Namespace) -> ExitCode:
    from bidsharm.processes import as_parent, tether
    from bidsharm.temporary import swept
    from bidsharm.training.records import PICTURES

    # Of several processes the first starts the others, which end with it.
    tether()
    os.environ.update(as_parent())
    with swept([args.out, args.out / CACHE, args.out / PICTURES]):
        return _train(args)


def _train(args: argparse.Namespace) -> ExitCode:
    from bidsharm.cli.alone import alone_in
    from bidsharm.cli.run import quiet_libraries
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.training_cache import prepare
    from bidsharm.training.records import CHECKPOINT

    quiet_libraries()
    if not 0 <= args.seed <= MAX_SEED:
        raise UsageError(f'The seed must lie between 0 and {MAX_SEED}.', where='--seed')
    method = _method(args)
    files = _simulated(args, method) if args.derivatives is None else _found(args)
    target = _target(args, method, files)
    running = _running(args, method)
    if running.patience:
        method.check_patience()  # before scans are prepared
    first = _is_first()
    if (args.out / MODEL).exists():
        if first:
            print(f'{args.out / MODEL}: is trained already; to train anew, remove it and {CHECKPOINT}.')
        return ExitCode.OK
    # Of the processes of one training, the first one holds the folder.
    with alone_in(args.out, 'bidsharm-train') if first else nullcontext(), Bars(first) as progress:
        prepared = prepare(files, method.settings, args.out / CACHE, progress('preparing'))
        method.train(
            prepared.data, target=target, running=running, seed=args.seed, progress=progress('training')
        )
        if first:
            bundle.save(method, args.out / MODEL)
    if first:
        for problem in prepared.problems:
            print(f'bidsharm-train: left out: {problem}', file=sys.stderr)
        print(args.out / MODEL)
    return ExitCode.SCAN_FAILED if prepared.problems else ExitCode.OK


def _place(text: str) -> Path | None:
    """Return a folder; None for the word that stands for simulated scans (``./simulated`` is a folder)."""
    return None if text == SIMULATED else Path(text)


def _found(args: argparse.Namespace) -> Sequence[Source]:
    """Return the scans of derivatives."""
    from bidsharm.bids.training_input import find_training_files

    _refuse(
        args,
        ('people', 'scanners', 'labels', 'renew'),
        f'Give {SIMULATED} in place of DERIVATIVES, or leave it.',
    )
    return find_training_files(
        args.derivatives, contrasts=args.contrasts, site=args.site, participants=args.participants, person=args.person,
        subjects=[label.removeprefix('sub-') for label in args.participant_label],
    )  # fmt: skip


def _simulated(args: argparse.Namespace, method: TrainedHarmonizer) -> Sequence[Source]:
    """Return scans that are made when they are read."""
    from bidsharm.harmonizers.simulated_source import check_size, simulated

    _refuse(
        args,
        ('participant_label', 'site', 'person', 'participants'),
        'Simulated scans have no such thing; leave it.',
    )
    check_size(method.settings, method.card.name)
    return simulated(
        label_maps(args.labels or []), people=args.people or PEOPLE, scanners=args.scanners or SCANNERS, contrasts=args.contrasts, seed=args.seed,
        folder=args.out / CACHE,
    )  # fmt: skip


def _refuse(args: argparse.Namespace, names: Sequence[str], fix: str) -> None:
    """Refuse options that concern another kind of scans."""
    for name in names:
        if getattr(args, name) not in (None, '', []):
            option = f'--{name.replace("_", "-")}'
            raise UsageError(f'{option} does not concern these scans.', where=option, fix=fix)


def _is_first() -> bool:
    """Say whether this is the first of the processes that Fabric, torchrun or srun has started."""
    ranks = ('RANK',) if 'RANK' in os.environ else ('LOCAL_RANK', 'NODE_RANK', 'SLURM_PROCID')
    return all(os.environ.get(name, '0') == '0' for name in ranks)


def _method(args: argparse.Namespace) -> TrainedHarmonizer:
    """Return the method with its settings, untrained."""
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Execution
    from bidsharm.harmonizers.execution import resolve_device
    from bidsharm.harmonizers.trained import TrainedHarmonizer

    try:
        kind = registry.get(args.harmonizer)
    except BidsharmError as error:
        error.where = 'NAME'  # `bidsharm` has an option for it
        raise
    if not issubclass(kind, TrainedHarmonizer):
        raise UsageError(
            f'{args.harmonizer} is not trained.', where='NAME', fix='Use it as it is: bidsharm --harmonizer.'
        )
    execution = Execution(device=resolve_device(args.device), seed=args.seed, threads=args.threads or 1)
    if args.start is None:
        return kind(execution, kind.preset(args.preset or 'paper', **dict(args.set)))
    if args.preset:
        raise UsageError('The settings are those of the model.', where='--preset', fix='Leave it, or --from.')
    from bidsharm.harmonizers.fine_tuning import method_from

    return method_from(args.start, kind, execution, dict(args.set))


def _target(args: argparse.Namespace, method: TrainedHarmonizer, files: Sequence[Source]) -> Target:
    """Return the target, after checking that the scans offer what the method needs, and that its settings make networks."""
    from bidsharm.harmonizers.contract import Canonical, Site
    from bidsharm.harmonizers.training_cache import sketch

    data = sketch(files)
    if not args.target and 'canonical' not in method.card.targets:
        sites = ', '.join(f'{site} ({len(data.at(site))} scans)' for site in data.sites)
        raise UsageError(
            f'{method.card.name} needs a site to aim at.', where='--target', fix=f'There are: {sites}.'
        )
    target = Site(args.target) if args.target else Canonical()
    method.check_offers(data, target)
    # Settings that make no networks are told now, not after minutes of preparing.
    method.untrained(data, target)
    return target


def _running(args: argparse.Namespace, method: TrainedHarmonizer) -> Running:
    import torch

    from bidsharm.training.options import Budget, Running

    if args.threads:
        torch.set_num_threads(args.threads)
    budget: Budget = args.budget or Budget(steps=method.settings.steps)
    renew = RENEW if args.renew is None else args.renew  # of scans on disk there is no other visit
    return Running(
        folder=args.out, device=method.execution.device, devices=args.devices, nodes=args.nodes, precision=args.precision,
        accumulate=args.accumulate, interval=args.interval, patience=args.patience, seed=args.seed, renew=renew,
        budget=budget,
    )  # fmt: skip


if __name__ == '__main__':
    sys.exit(main())
