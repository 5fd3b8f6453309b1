"""``bidsharm-doctor``: whether this machine or container can run bidsharm, and what to do where it cannot."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm import __version__
from bidsharm.cli.arguments import Parser
from bidsharm.cli.parser import absolute_path, check_places, device_name
from bidsharm.errors import BidsharmError, ConfigurationError, ExitCode, UsageError
from bidsharm.settings import DEFAULT_HARMONIZER

if TYPE_CHECKING:
    from rich.console import Console

    from bidsharm.workflows.doctor.findings import Asked, Check, Finding

#: Colours of the verdicts, on terminals only.
STYLES = {'ok': 'green', 'warning': 'yellow', 'problem': 'bold red'}


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        prog='bidsharm-doctor',
        description='Say whether this machine, or this container, can run bidsharm, and what to do where it cannot.',
        epilog='exit codes: 0 ready, perhaps with warnings; 78 there are problems; 2 usage. Nothing is changed, and the '
        'network is not used. What --json prints can go into a bug report: it holds no home folder and no name of a user.',
        allow_abbrev=False,
    )
    parser.add_argument(
        'bids_dir', nargs='?', type=absolute_path, metavar='BIDS_DIR', help='a data set to look at'
    )
    parser.add_argument(
        'output_dir', nargs='?', type=absolute_path, metavar='OUT_DIR', help='where its results would go'
    )
    parser.add_argument('--version', action='version', version=f'bidsharm-doctor {__version__}')
    parser.add_argument('--json', action='store_true', help='print the findings as JSON')
    parser.add_argument('--no-run', action='store_true', help='leave out the tiny run on a simulated head')
    parser.add_argument(
        '--device', type=device_name, default='auto', help='auto (default), cpu, cuda, cuda:N or mps'
    )
    parser.add_argument(
        '-w', '--work-dir', type=absolute_path, metavar='DIR', help='working folder to look at'
    )
    parser.add_argument(
        '--weights-dir', type=absolute_path, metavar='DIR', help='check the model bundles there'
    )
    parser.add_argument(
        '--harmonizer',
        default=DEFAULT_HARMONIZER,
        metavar='NAME',
        help='method to look at (default: %(default)s)',
    )
    parser.add_argument('--model', type=Path, metavar='DIR', help='model bundle to check')
    parser.add_argument(
        '--output-spaces', nargs='+', default=['native'], metavar='SPACE', help='look for their templates'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (:class:`bidsharm.errors.ExitCode`)."""
    args = build_parser().parse_args(argv)
    try:
        asked = _asked(args)
    except UsageError as error:
        print(f'bidsharm-doctor: {error}', file=sys.stderr)
        return int(error.exit_code)
    from bidsharm.cli.run import quiet_libraries

    # Without a folder for temporary files there is no home folder to lend; the check of folders says so.
    with contextlib.suppress(ConfigurationError):
        quiet_libraries()
    return diagnose(asked, as_json=args.json, with_run=not args.no_run)


def _asked(args: argparse.Namespace) -> Asked:
    from bidsharm.imaging.templates import parse_space
    from bidsharm.machine import available_cores, available_memory_gb
    from bidsharm.workflows.doctor.findings import Asked

    for text in args.output_spaces:
        parse_space(text)
    return Asked(
        bids_dir=args.bids_dir, output_dir=args.output_dir, work_dir=args.work_dir, weights_dir=args.weights_dir,
        model=args.model, harmonizer=args.harmonizer, device=args.device, output_spaces=tuple(args.output_spaces),
        cores=available_cores(), memory_gb=available_memory_gb(), home=os.environ.get('HOME'),
    )  # fmt: skip


def all_checks(*, with_run: bool) -> list[Check]:
    """Return the checks in the order in which they are told."""
    from bidsharm.workflows.doctor import data, folders, machine, models, software, trial
    from bidsharm.workflows.doctor.findings import Check

    places = Check(data.GROUP, 'places', check_layout, limit_s=30)
    return [*software.CHECKS, *machine.CHECKS, *models.CHECKS, *folders.CHECKS, *data.CHECKS, places,
            *(trial.CHECKS if with_run else ())]  # fmt: skip


def check_layout(asked: Asked) -> Iterator[Finding]:
    """Say whether a run would refuse its folders."""
    from bidsharm.bids.dataset import MAIN, refuse_foreign
    from bidsharm.settings import Settings
    from bidsharm.workflows.doctor.findings import ok, problem

    if asked.bids_dir is None or asked.output_dir is None:
        yield ok('There is no pair of folders to compare.')
        return
    try:
        check_places(Settings(asked.bids_dir, asked.output_dir, work_dir=asked.work_dir))
        refuse_foreign(asked.output_dir, MAIN)
    except BidsharmError as error:
        yield problem(f'{error.where}: {error.what}', error.fix or 'Choose another folder.')
    else:
        yield ok('Data set, results and working folder do not get into each other.')


def diagnose(asked: Asked, *, as_json: bool, with_run: bool) -> int:
    """Run the checks, print what they find, and return the exit code."""
    from rich.console import Console

    from bidsharm.workflows.doctor.findings import Verdict, discreet, examine_all, user_and_home

    started = time.monotonic()
    progress = Console(stderr=True)
    with progress.status('looking') if progress.is_terminal else contextlib.nullcontext() as status:
        tell: Callable[[Check], None] = lambda check: status.update(check.name) if status else None  # noqa: E731
        found = list(examine_all(all_checks(with_run=with_run), asked, before=tell))
    user, home = user_and_home(asked)
    found = [discreet(item, home=home, user=user) for item in found]
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps(as_report(found, seconds), indent=2, ensure_ascii=False))
    else:
        show(found, seconds, Console(highlight=False, width=None if sys.stdout.isatty() else 120))
    wrong = any(item.verdict is Verdict.PROBLEM for item in found)
    return int(ExitCode.CONFIGURATION if wrong else ExitCode.OK)


def as_report(found: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """Return the findings for programs and bug reports."""
    count = _count(found)
    entries = [{**vars(item), 'verdict': str(item.verdict)} for item in found]
    content = {'bidsharm': __version__, 'ready': not count['problem'], 'problems': count['problem'], 'warnings': count['warning'],
               'seconds': round(seconds, 1), 'findings': entries}  # fmt: skip
    return content


def show(found: Sequence[Finding], seconds: float, console: Console) -> None:
    """Print the findings by groups, then once more those that need something to be done."""
    from rich.table import Table
    from rich.text import Text

    for group in dict.fromkeys(item.group for item in found):
        console.print(Text(f'\n{group}', style='bold'))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=9, no_wrap=True)
        table.add_column(width=17)
        table.add_column(ratio=1, overflow='fold')
        for item in (item for item in found if item.group == group):
            verdict = Text(f'  {item.verdict}', style=STYLES[item.verdict])
            table.add_row(verdict, item.check, Text(item.what))
        console.print(table)
    wrong = sorted(
        (item for item in found if item.verdict != 'ok'), key=lambda item: item.verdict != 'problem'
    )
    if wrong:
        console.print(Text('\nWhat to do', style='bold'))
    advice = Table.grid(padding=(0, 2, 0, 0))
    advice.add_column(width=9, no_wrap=True)
    advice.add_column(ratio=1, overflow='fold')
    for item in wrong:
        verdict = Text(f'  {item.verdict}', style=STYLES[item.verdict])
        told = Text(f'{item.check}: {item.what}', style='bold')
        advice.add_row(verdict, Text.assemble(told, f'\n{item.fix}' if item.fix else ''))
    console.print(advice)
    console.print(Text(f'\n{_last_line(found)} ({seconds:.0f} s)'))


def _last_line(found: Sequence[Finding]) -> str:
    count = _count(found)
    told = [f'{number} {name}{"" if number == 1 else "s"}' for name, number in count.items() if number]
    if count['problem']:
        return f'{" and ".join(told)}.'
    return f'Ready, with {told[0]}.' if told else 'Ready.'


def _count(found: Sequence[Finding]) -> dict[str, int]:
    return {name: sum(item.verdict == name for item in found) for name in ('problem', 'warning')}


if __name__ == '__main__':
    sys.exit(main())
