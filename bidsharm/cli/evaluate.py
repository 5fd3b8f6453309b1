"""``bidsharm-evaluate``: compare harmonized data sets by one protocol."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.cli.arguments import Parser, natural
from bidsharm.cli.ending import run_to_end
from bidsharm.errors import ExitCode, UsageError
from bidsharm.settings import CONTRASTS

if TYPE_CHECKING:
    from bidsharm.bids.evaluation_input import Sources
    from bidsharm.evaluation.comparisons import Results
    from bidsharm.evaluation.study import Options, Study


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog='bidsharm-evaluate',
        description='Compare harmonization methods: tables, and a page that says what each does and how sure that is.',
        epilog='What each measure is and needs: the page "evaluation" of the documentation. '
        'Exit codes: 0 all scans measured, 1 some could not be, 2 wrong use, 3 nothing to do.',
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='folder for tables and page')
    parser.add_argument(
        'datasets', metavar='[NAME=]FOLDER', nargs='+', type=_named,
        help='harmonized derivatives, of bidsharm or anyone, one data set a method (default name: that of the folder)',
    )  # fmt: skip
    images = parser.add_argument_group('images')
    images.add_argument('--suffix', default='T1w', choices=CONTRASTS, help='contrast (default: T1w)')
    images.add_argument(
        '--desc', default='harmonized', metavar='LABEL', help='desc- of the images (default: harmonized)'
    )
    images.add_argument(
        '--space', default='', metavar='LABEL[:res-N]', help='space- of the images (default: those without)'
    )
    images.add_argument(
        '--original', type=Path, metavar='FOLDER',
        help='scans before (desc-preproc, else raw), on the same grids (default: desc-preproc of the first data set)',
    )  # fmt: skip
    images.add_argument(
        '--truth', type=Path, metavar='FOLDER',
        help='true masks, dseg, desc-canonical images and lesions, as in derivatives/truth of bidsharm-simulate',
    )  # fmt: skip
    images.add_argument(
        '--returned', type=_named, nargs='+', default=[], metavar='NAME=FOLDER',
        help='scans that a method sent to another target and back, for its cycle error',
    )  # fmt: skip
    images.add_argument(
        '--aligned', action='store_true', help='all images lie in one space; do not align them'
    )
    images.add_argument(
        '--given-segmentations', action='store_true',
        help='use dseg files of the data sets (default: segment every image here, all in the same way)',
    )  # fmt: skip
    who = parser.add_argument_group('who was where')
    who.add_argument(
        '--scans', type=Path, metavar='TSV',
        help='participant_id, scanner, and where needed session_id and person (default: sites in records of bidsharm)',
    )  # fmt: skip
    who.add_argument(
        '--site', default='', metavar='RULE', help='scanner by rule, as in bidsharm; "session" for one'
    )
    who.add_argument('--target', default='', metavar='SCANNER', help='scanner at which the methods aim')
    who.add_argument(
        '--participants', type=Path, metavar='TSV', help='table of people (default: participants.tsv)'
    )
    who.add_argument('--age', default='age', metavar='COLUMN', help='column of ages (default: age)')
    who.add_argument('--group', default='sex', metavar='COLUMN', help='column of two groups (default: sex)')
    who.add_argument(
        '--task', default='', metavar='COLUMN', help='column of classes that are to be told from scans'
    )
    how = parser.add_argument_group('statistics and networks')
    how.add_argument(
        '--against',
        default='',
        metavar='NAME',
        help='method that others are compared with (default: the first data set; without --truth the scans before)',
    )
    how.add_argument('--seed', type=natural, default=0, metavar='N', help='default: 0')
    how.add_argument(
        '--resamples', type=natural, default=10_000, metavar='N', help='of the bootstrap (default: 10000)'
    )
    how.add_argument(
        '--permutations', type=natural, default=200, metavar='N', help='for chance lines (default: 200)'
    )
    how.add_argument(
        '--nprocs',
        type=natural,
        default=1,
        metavar='N',
        help='processes that people are shared out to (default: 1)',
    )
    how.add_argument(
        '--work-dir',
        type=Path,
        metavar='FOLDER',
        help='keep what is measured of each scan, so that one more method costs only itself (default: until all is done)',
    )
    how.add_argument('--no-cnn', action='store_true', help='train no network to guess the scanner')
    how.add_argument(
        '--inception', type=Path, metavar='FILE', help='safetensors of Inception v3, for FID, KID and IS'
    )
    how.add_argument('--lpips', type=Path, metavar='FILE', help='safetensors of LPIPS')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (:class:`bidsharm.errors.ExitCode`)."""
    args = build_parser().parse_args(argv)
    return run_to_end(
        'bidsharm-evaluate', lambda: _run(args), stopped='stopped; the same command goes on from there.'
    )


def _run(args: argparse.Namespace) -> ExitCode:
    from rich.console import Console

    from bidsharm.bids.atomic import make_folder
    from bidsharm.bids.evaluation_input import check_apart, find_study
    from bidsharm.bids.evaluation_output import MEASURED, PAGE, check_output, write_record, write_tables
    from bidsharm.cli.run import quiet_libraries
    from bidsharm.evaluation.kept import Kept
    from bidsharm.reports.evaluation import write_evaluation_report
    from bidsharm.temporary import swept

    quiet_libraries()
    kept = args.work_dir or args.out / MEASURED
    sources, options = _sources(args), _options(args, kept)
    inputs = [*sources.datasets.values(), *filter(None, (sources.original, sources.truth))]
    for folder in filter(None, (args.out, args.work_dir)):
        check_apart(folder, inputs)
    _check_work_dir(args)
    study = find_study(sources)
    if options.against and options.against not in study.methods:
        raise UsageError(
            f'There is no method "{options.against}".',
            where='--against',
            fix=f'There are: {", ".join(study.methods)}.',
        )
    check_output(args.out)
    if args.work_dir is not None:
        make_folder(args.work_dir, 'folder', f'--work-dir {args.work_dir}')
    _check_weights(options)
    console = Console(stderr=True, highlight=False)
    results = _evaluate(study, options, console)
    facts = _provenance(args, sources, study)
    with swept([args.out, kept]):
        write_tables(args.out, results)
        write_record(args.out, results, facts)
        people = len({row['person'] for row in results.scans})
        page = write_evaluation_report(
            args.out / PAGE,
            results,
            people=people,
            scanners=len({row['scanner'] for row in results.scans if row['scanner']}),
            provenance={name: str(value) for name, value in facts.items()},
        )
    for problem in results.problems:
        where = f'{problem.scan}, {problem.method}' if problem.method else problem.scan
        text = ' '.join(filter(None, (problem.what, problem.fix)))
        console.print(f'{where}: {text}', style='red', markup=False)
    print(page)
    if results.problems:
        return ExitCode.SCAN_FAILED
    if args.work_dir is None:
        Kept(kept).clear()
    return ExitCode.OK


def _check_work_dir(args: argparse.Namespace) -> None:
    """Refuse a working folder in the output folder, which holds nothing but an evaluation."""
    if args.work_dir is not None and args.work_dir.resolve().is_relative_to(args.out.resolve()):
        raise UsageError(
            'The working folder lies in the output folder.',
            where=f'--work-dir {args.work_dir}',
            fix='Name one elsewhere, or leave the option away.',
        )


def _check_weights(options: Options) -> None:
    """Refuse weights of other networks before the work of an hour."""
    from bidsharm.evaluation.perceptual import check_weights

    if options.inception is not None:
        check_weights(options.inception, 'inception')
    if options.lpips is not None:
        check_weights(options.lpips, 'lpips')


def _evaluate(study: Study, options: Options, console: Any) -> Results:
    """Measure and compare, and show how far it is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from bidsharm.evaluation.protocol import evaluate

    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    total = 2 * len(study.people) + len(study.methods)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task('evaluating', total=total)
        return evaluate(
            study, options, progress=lambda name: bar.update(task, advance=1, description=_escape(name))
        )


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _sources(args: argparse.Namespace) -> Sources:
    from bidsharm.bids.evaluation_input import Sources

    datasets = _by_name(args.datasets)
    returned = _by_name(args.returned)
    for name in returned:
        if name not in datasets:
            raise UsageError(f'There is no data set "{name}".', where='--returned')
    return Sources(
        datasets, suffix=args.suffix, description=args.desc, space=args.space, original=args.original,
        truth=args.truth, returned=returned, scans=args.scans, participants=args.participants, site=args.site,
        target=args.target, age=args.age, group=args.group, task=args.task,
    )  # fmt: skip


def _options(args: argparse.Namespace, kept: Path) -> Options:
    from bidsharm.evaluation.study import Options

    return Options(
        seed=args.seed, resamples=max(args.resamples, 1), permutations=max(args.permutations, 1), network=not args.no_cnn,
        against=args.against, processes=max(args.nprocs, 1), aligned=args.aligned, given_labels=args.given_segmentations, inception=args.inception, lpips=args.lpips,
        kept=kept,
    )  # fmt: skip


def _by_name(pairs: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Return folders by name.

    Raises
    ------
    UsageError
        If a name is given twice or taken.
    """
    from bidsharm.evaluation.study import ORIGINAL

    found: dict[str, Path] = {}
    for name, folder in pairs:
        if name in found or name == ORIGINAL:
            raise UsageError(
                f'The name "{name}" is taken.', where=str(folder), fix='Give another one: NAME=FOLDER.'
            )
        found[name] = folder
    return found


def _provenance(args: argparse.Namespace, sources: Sources, study: Study) -> dict[str, Any]:
    """Return what was evaluated, and with what."""
    from datetime import UTC, datetime
    from importlib.metadata import version

    from bidsharm import __version__

    facts: dict[str, Any] = {name: str(folder) for name, folder in sources.datasets.items()}
    facts |= {f'Returned, {name}': str(folder) for name, folder in (sources.returned or {}).items()}
    for label, value in (
        ('Scans before', args.original), ('Truth', args.truth), ('Who was where', args.scans), ('Scanner by', args.site),
        ('Target', args.target), ('People', args.participants), ('Inception', args.inception), ('LPIPS', args.lpips),
    ):  # fmt: skip
        if value:
            facts[label] = str(value)
    facts |= {
        'Contrast': args.suffix,
        'Scans': len(study.scans),
        'Seed': args.seed,
        'Bootstrap resamples': args.resamples,
        'Permutations': args.permutations,
        'Date': datetime.now(UTC).date().isoformat(),
        'Versions': ', '.join(
            [
                f'bidsharm {__version__}',
                *(f'{n} {version(n)}' for n in ('numpy', 'scipy', 'torch', 'antspyx')),
            ]
        ),
    }
    return facts


def _named(text: str) -> tuple[str, Path]:
    name, sign, folder = text.partition('=')
    if not sign:
        return Path(text).resolve().name, Path(text)
    if not name or not folder:
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=FOLDER')
    return name, Path(folder)


if __name__ == '__main__':
    sys.exit(main())
