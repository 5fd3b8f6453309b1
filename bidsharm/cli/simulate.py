"""``bidsharm-simulate``: travelling heads with known truth, as a BIDS data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bidsharm.errors import BidsharmError, ExitCode


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='bidsharm-simulate',
        description='Simulate people who travel between scanners, and write a BIDS data set with the truth beside it.',
        epilog='Every person is scanned in every scanner. The truth is in OUT/derivatives/truth.',
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='folder of the data set')
    parser.add_argument(
        '--subjects', type=_count, default=2, metavar='N', help='number of people (default: 2)'
    )
    parser.add_argument(
        '--scanners', type=int, default=2, choices=(1, 2, 3, 4), help='number of scanners (default: 2)'
    )
    parser.add_argument(
        '--contrasts', nargs='+', default=['T1w'], choices=('T1w', 'T2w', 'FLAIR'), help='default: T1w'
    )
    parser.add_argument(
        '--resolution',
        type=float,
        default=1.5,
        choices=(1.0, 1.5, 2.0),
        help='voxel size in mm (default: 1.5)',
    )
    parser.add_argument(
        '--seed', type=_seed, default=0, metavar='N', help='same seed, same data (default: 0)'
    )
    parser.add_argument('--brain-only', action='store_true', help='leave away everything around the brain')
    parser.add_argument('--force', action='store_true', help='replace the simulated data set that is in OUT')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (:class:`bidsharm.errors.ExitCode`)."""
    args = build_parser().parse_args(argv)
    try:
        _run(args)
    except BidsharmError as error:
        print(f'bidsharm-simulate: {error}', file=sys.stderr)
        return int(error.exit_code)
    except OSError as error:
        print(f'bidsharm-simulate: {error.filename or args.out}: {error.strerror or error}', file=sys.stderr)
        return int(ExitCode.SCAN_FAILED)
    return int(ExitCode.OK)


def _run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from bidsharm.simulation.dataset import prepare_folder, simulate
    from bidsharm.simulation.scanners import SCANNERS

    prepare_folder(args.out, force=args.force)
    console = Console(stderr=True)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        contrasts = list(dict.fromkeys(args.contrasts))
        task = bar.add_task('simulating', total=args.subjects * args.scanners * len(contrasts))
        simulate(
            args.out,
            subjects=args.subjects,
            scanners=SCANNERS[: args.scanners],
            contrasts=contrasts,
            resolution=args.resolution,
            seed=args.seed,
            head=not args.brain_only,
            progress=lambda done, total, name: bar.update(
                task, completed=done, total=total, description=name
            ),
        )
    console.print(f'Wrote {args.out}')


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number, 0 or above')
    return int(text)


if __name__ == '__main__':
    sys.exit(main())
