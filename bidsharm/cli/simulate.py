"""``bidsharm-simulate``: travelling heads with known truth, as a BIDS data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.cli.arguments import Parser, count, label_maps, natural
from bidsharm.cli.ending import run_to_end
from bidsharm.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from bidsharm.simulation.protocols import Scanner


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog='bidsharm-simulate',
        description='Simulate people who travel between scanners, and write a BIDS data set with the truth beside it.',
        epilog='Every person is scanned in every scanner. The truth is in OUT/derivatives/truth.',
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='folder of the data set')
    parser.add_argument(
        '--subjects', type=count, default=2, metavar='N', help='number of people (default: 2)'
    )
    parser.add_argument(
        '--scanners', nargs='+', default=['2'], metavar='M|LABEL|FILE',
        help='number of built-in scanners, their labels, "all", or a JSON or TOML file of scanners (default: 2)',
    )  # fmt: skip
    parser.add_argument(
        '--draw',
        type=natural,
        default=0,
        metavar='K',
        help='draw so many scanners at random as well (default: 0)',
    )
    parser.add_argument(
        '--contrasts', nargs='+', default=['T1w'], choices=('T1w', 'T2w', 'FLAIR', 'PDw'), help='default: T1w'
    )
    parser.add_argument(
        '--labels', nargs='+', type=Path, default=[], metavar='FILE|FOLDER',
        help='FreeSurfer-like label maps that heads are made from, in turn (default: the MNI152 template)',
    )  # fmt: skip
    parser.add_argument(
        '--resolution', type=_millimetres, default=1.5, metavar='MM',
        help='enlarge voxels until none is smaller; 0: as the protocols say (default: 1.5)',
    )  # fmt: skip
    parser.add_argument(
        '--lesions',
        type=natural,
        default=0,
        metavar='N',
        help='lesions as of multiple sclerosis, in every person',
    )
    parser.add_argument(
        '--mass',
        type=_millimetres,
        default=0.0,
        metavar='MM',
        help='radius of a tumour-like mass in every person',
    )
    parser.add_argument('--no-texture', action='store_true', help='tissue that is the same everywhere')
    parser.add_argument(
        '--seed', type=natural, default=0, metavar='N', help='same seed, same data (default: 0)'
    )
    parser.add_argument('--list-scanners', action=_ListScanners, help='list the built-in scanners and stop')
    parser.add_argument('--brain-only', action='store_true', help='leave away everything around the brain')
    parser.add_argument('--force', action='store_true', help='replace the simulated data set that is in OUT')
    parser.add_argument(
        '--surfaces', action='store_true', help='maps of cortical thickness instead of scans: with --subjects, a number of --scanners, --seed, --force'
    )  # fmt: skip
    parser.add_argument(
        '--level', type=natural, default=5, metavar='N', help='of the surfaces: 5 for fsaverage5, up to 7 (default: 5)'
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (:class:`bidsharm.errors.ExitCode`)."""
    args = build_parser().parse_args(argv)
    return run_to_end('bidsharm-simulate', lambda: _run(args), stopped=_stopped(args))


def _stopped(args: argparse.Namespace) -> str:
    """Return how to go on after an interruption."""
    if args.surfaces:
        return 'stopped; the same command with --force begins anew.'
    without = ' without --force' if args.force else ''
    return f'stopped; the same command{without} goes on from there.'


def _run(args: argparse.Namespace) -> ExitCode:
    from bidsharm.cli.alone import alone_in
    from bidsharm.simulation.dataset import prepare_folder
    from bidsharm.simulation.unfinished import request_of

    if args.surfaces:
        return _surfaces(args)
    options: dict[str, Any] = {
        'subjects': args.subjects, 'scanners': _scanners_of(args), 'contrasts': list(dict.fromkeys(args.contrasts)),
        'labels': label_maps(args.labels), 'resolution': args.resolution, 'seed': args.seed, 'head': not args.brain_only,
        'lesions': args.lesions, 'mass_mm': args.mass, 'texture': not args.no_texture,
    }  # fmt: skip
    with alone_in(args.out, 'bidsharm-simulate'):
        prepare_folder(args.out, force=args.force, request=request_of(**options))
        _write(args.out, options)
    return ExitCode.OK


def _surfaces(args: argparse.Namespace) -> ExitCode:
    """Simulate surfaces, which take seconds."""
    from bidsharm.cli.alone import alone_in
    from bidsharm.simulation.dataset import prepare_folder
    from bidsharm.simulation.surfaces import simulate_surfaces, sites_of

    if len(args.scanners) != 1 or not args.scanners[0].isdecimal() or not int(args.scanners[0]):
        raise UsageError('Surfaces have sites of their own.', where='--scanners', fix='Give their number.')
    with alone_in(args.out, 'bidsharm-simulate'):
        prepare_folder(args.out, force=args.force)
        sites = sites_of(int(args.scanners[0]) + args.draw, args.seed)
        simulate_surfaces(args.out, subjects=args.subjects, sites=sites, level=args.level, seed=args.seed)
    print(f'Wrote {args.out}', file=sys.stderr)
    return ExitCode.OK


def _write(out: Path, options: Mapping[str, Any]) -> None:
    """Simulate, and show how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from bidsharm.simulation.dataset import simulate

    console = Console(stderr=True)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task('simulating', total=None)
        simulate(
            out,
            **options,
            progress=lambda done, total, name: bar.update(
                task, completed=done, total=total, description=name
            ),
        )
    console.print(f'Wrote {out}')


def _scanners_of(args: argparse.Namespace) -> list[Scanner]:
    """Return the scanners that were asked for, and those drawn."""
    import numpy as np

    from bidsharm.settings import check_keys
    from bidsharm.simulation.presets import PRESETS
    from bidsharm.simulation.protocols import draw_scanner, read_scanners

    known = {scanner.label: scanner for scanner in PRESETS}
    chosen: list[Scanner] = []
    for text in args.scanners:
        if text == 'all':
            chosen += PRESETS
        elif text.isdecimal():
            if int(text) > len(PRESETS):
                raise UsageError(
                    f'There are {len(PRESETS)} built-in scanners.',
                    where='--scanners',
                    fix='Draw more with --draw.',
                )
            chosen += PRESETS[: int(text)]
        elif Path(text).suffix in ('.json', '.toml'):
            chosen += read_scanners(Path(text))
        else:
            check_keys({text: None}, tuple(known), where='--scanners')
            chosen.append(known[text])
    for number in range(1, args.draw + 1):
        rng = np.random.default_rng([args.seed, number])
        chosen.append(
            draw_scanner(rng, f'drawn{number:02d}')
        )  # with all contrasts, for grids are named by the first one
    return chosen


class _ListScanners(argparse.Action):
    """Print the built-in scanners."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from bidsharm.simulation.presets import PRESETS

        for scanner in PRESETS:
            protocol = scanner.protocol('T1w')
            sizes = ' x '.join(f'{size:g}' for size in protocol.voxel_size)
            print(
                f'{scanner.label:10} {scanner.field_strength:5g} T  T1w {protocol.sequence.kind:6} {sizes:20} '
                f'{protocol.source}'
            )
        parser.exit()


def _millimetres(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f'{text!r} is not a length in mm')
    return value


if __name__ == '__main__':
    sys.exit(main())
