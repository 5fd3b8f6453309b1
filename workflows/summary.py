"""What a run says: its plan before, its outcome after, on the screen and in ``summary.json``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsharm.workflows.logs import Screen
from bidsharm.workflows.planning import Plan, expected_handoff, expected_outputs, plan_scan, unfinished
from bidsharm.workflows.progress import counted
from bidsharm.workflows.steps import Excess
from bidsharm.workflows.targets import known_target
from rich.console import Console

from bidsharm import __version__
from bidsharm.bids.atomic import write_json
from bidsharm.bids.handoff import handed_off
from bidsharm.bids.names import ScanFile
from bidsharm.errors import ExitCode, NotServed, ScanError
from bidsharm.evaluation.verdict import counts_against
from bidsharm.reports.subject import ErrorEntry
from bidsharm.settings import Settings

#: Name of the summary in the log folder of a run.
SUMMARY_FILE = 'summary.json'

#: Scans with the same reason are told on one line if they are more than this; and so many of them are named.
NAMED = 3
#: So many lines of one kind are on the screen; the rest is in the files.
LINES = 20

_SCAN = re.compile(r'\bsub-[0-9A-Za-z+]+(?:_[0-9A-Za-z+-]+)*(?:\.nii(?:\.gz)?)?')


@dataclass
class Outcome:
    """What became of the scans of a run.

    Parameters
    ----------
    verdicts
        Of all scans that are done.
    concerns
        What was found about those whose verdict is not ``pass``.
    resumed
        Those that had been done before.
    failures, logs
        Those that failed, and the crash files that tell more about them.
    left_out
        Those that were not meant to be done.
    not_run
        Those whose turn did not come.
    reports
        Pages and tables.
    over
        Steps that took more memory than planned.
    """

    verdicts: dict[str, str] = field(default_factory=dict)
    concerns: dict[str, str] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    failures: list[ErrorEntry] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    left_out: list[ScanError] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)
    over: dict[str, Excess] = field(default_factory=dict)

    @property
    def exit_code(self) -> ExitCode:
        """0 when every scan is there, 1 when one failed, had to be refused, or had no turn."""
        refused = any(not isinstance(error, NotServed) for error in self.left_out)
        return ExitCode.SCAN_FAILED if self.failures or self.not_run or refused else ExitCode.OK

    @property
    def counts(self) -> dict[str, int]:
        """How many scans ended how; ``done`` is the sum of the verdicts, and holds what was done before."""
        verdicts = list(self.verdicts.values())
        return {
            'done': len(verdicts), **{name: verdicts.count(name) for name in ('pass', 'warn', 'fail')},
            'resumed': len(self.resumed), 'failed': len(self.failures), 'left_out': len(self.left_out),
            'not_run': len(self.not_run),
        }  # fmt: skip


def show_plan(plan: Plan, settings: Settings, console: Console) -> None:
    """Print what a run would do."""
    from rich.table import Table

    table = Table(
        title=f'{counted(len(plan.selection.subjects), "subject")}, {counted(len(plan.selection.scans), "scan")}'
    )
    for column in ('scan', 'site', 'follows', 'state'):
        table.add_column(column)
    plan = known_target(plan, settings)
    digest = settings.digest(model=plan.method.learnt)
    todo = unfinished(plan.selection.scans, plan, settings, digest)
    for scan in plan.selection.scans:
        anchor = plan.selection.anchor(scan)
        to_learn = plan.fit_scans and not plan.method.model_digest
        state = 'to do' if scan.name in todo or to_learn else 'done'
        table.add_row(scan.name, scan.site, '' if anchor == scan else anchor.name, state)
    console.print(table)
    device = plan.method.execution['device'] if plan.method.uses_gpu else plan.options.device
    console.print(f'Harmonizer: {plan.method.name}, target: {plan.method.target_label}, device: {device}')
    weights = plan.method.model_dir or ('learnt from the data set' if plan.fit_scans else 'none needed')
    console.print(f'Weights: {weights}')
    for scan in plan.fit_scans:
        console.print(f'  learns from {scan.name}', markup=False)
    for error in plan.selection.left_out:
        console.print(f'Left out: {error}', markup=False)
    console.print('Outputs expected:')
    for scan in plan.selection.scans:
        for name in expected_outputs(scan, plan.selection.anchor(scan), plan.spaces):
            console.print(f'  {name}', markup=False, highlight=False)
    for_fmriprep = handed_off(plan.selection.scans) if settings.fmriprep_derivatives else frozenset()
    for scan in (scan for scan in plan.selection.scans if scan.name in for_fmriprep):
        for name in expected_handoff(plan_scan(scan, scan, settings, plan.options)):
            console.print(f'  for fMRIPrep: {name}', markup=False, highlight=False)


def show_outcome(
    outcome: Outcome, screen: Screen, *, rerun: Iterable[str] = (), log_dir: Path | None = None
) -> None:
    """Say the summary: done, warned, failed, why, and how to run just those again."""
    count = outcome.counts
    screen.say(
        f'\n{counted(count["done"], "scan")} harmonized: {count["pass"]} pass, {count["warn"]} warn, '
        f'{count["fail"]} fail the anatomy check; {count["resumed"]} {"was" if count["resumed"] == 1 else "were"} done before.',
    )
    for verdict in ('warn', 'fail'):
        named = [
            (outcome.concerns.get(scan, ''), scan) for scan, is_ in outcome.verdicts.items() if is_ == verdict
        ]
        _say_grouped(screen, f'{verdict:<10}', named, style='yellow')
    for step, excess in outcome.over.items():
        times = '' if excess.count == 1 else f' ({excess.count} times more than planned)'
        screen.say(
            f'memory    The step {step} took {excess.peak_gb:.1f} GB, planned {excess.planned_gb:.1f}{times}: give --mem '
            'less than there is, or run fewer processes, so that this has room.',
            style='yellow',
        )  # fmt: skip
    show_problems(outcome, screen, rerun=rerun, log_dir=log_dir)


def show_problems(
    outcome: Outcome, screen: Screen, *, rerun: Iterable[str] = (), log_dir: Path | None = None
) -> None:
    """Say what was left out or failed, how to run just that again, and where the reports are."""
    left_out = [(f'{error.what} {error.fix}'.strip(), error.where) for error in outcome.left_out]
    _say_grouped(screen, 'left out  ', left_out, style='yellow')
    failed = [(f'{entry.what} {entry.fix}'.strip(), entry.scan) for entry in outcome.failures]
    _say_grouped(screen, 'FAILED    ', failed, style='red')
    if outcome.not_run:
        screen.say(
            f'not run   {counted(len(outcome.not_run), "scan")}: the run stopped at the first failure.', style='yellow'
        )  # fmt: skip
    if rerun := list(rerun):
        screen.say(f'Run just those again:\n  {shlex.join(rerun)}', whole=True)
    if log_dir and outcome.failures:
        screen.say(f'Details: {log_dir}', whole=True)
    for path in outcome.reports[:LINES]:
        screen.say(f'report    {path}', whole=True)
    if len(outcome.reports) > LINES:
        screen.say(f'report    and {len(outcome.reports) - LINES} more beside them')


def _say_grouped(screen: Screen, label: str, reasons: Iterable[tuple[str, str]], *, style: str) -> None:
    """Say reasons with the scans that they are about; one line for many scans with the same reason."""
    lines = []
    for reason, names in grouped(reasons):
        if len(names) <= NAMED:
            lines += [f'{label}{name}: {told}' if told else f'{label}{name}' for name, told in names.items()]
        else:
            first = ', '.join(list(names)[:NAMED])
            lines.append(
                f'{label}{len(names)} scans: {reason} '.rstrip(' :')
                + f' {first} and {len(names) - NAMED} more'
            )
    for line in lines[:LINES]:
        screen.say(line, style=style)
    if len(lines) > LINES:
        screen.say(f'{label}and {len(lines) - LINES} more; all are in {SUMMARY_FILE} of the log folder', style=style)  # fmt: skip


def grouped(reasons: Iterable[tuple[str, str]]) -> list[tuple[str, dict[str, str]]]:
    """Group names by their reason; reasons that differ only in the scan that they name are the same.

    Returns
    -------
    groups
        Each reason, with the names and what was said of each.
    """
    groups: dict[str, dict[str, str]] = {}
    for reason, name in reasons:
        groups.setdefault(_SCAN.sub('...', reason).removeprefix('...: '), {})[name] = reason
    return list(groups.items())


def concerns_of(record: Mapping[str, Any]) -> str:
    """Return in words which checks of a QC record did not pass."""
    return ', '.join(
        str(check.get('label') or check.get('name'))
        for check in record.get('checks', [])
        if counts_against(check)
    )


def rerun_command(arguments: Iterable[str], plan: Plan, outcome: Outcome, settings: Settings) -> list[str]:
    """Return the command line that runs again just what failed or was not run; empty where all went well.

    Parameters
    ----------
    arguments
        Arguments of this run.
    plan, outcome, settings
        Of this run.
    """
    names = {entry.scan for entry in outcome.failures} | set(outcome.not_run)
    scans = [scan for scan in plan.selection.scans if scan.name in names or f'sub-{scan.subject}' in names]
    if not scans:
        return []
    options = {'--participant-label': dict.fromkeys(scan.subject for scan in scans)}
    if sessions := _narrower(scans, plan):
        options['--session-label'] = dict.fromkeys(sessions)
    command = [
        'bidsharm',
        *without_options(arguments, [name for option in options for name in _SPELLINGS[option]]),
    ]
    # Later options win. What is done need not be done again, but what was not run may have a result to be replaced.
    forced = settings.force and not outcome.not_run
    added = ['--no-force'] * forced + ['--no-reports-only'] * settings.reports_only
    added += [word for option, labels in options.items() for word in (option, *labels)]
    end = command.index('--') if '--' in command else len(command)
    return [*command[:end], *added, *command[end:]]


#: All spellings of the options that choose subjects and sessions.
_SPELLINGS = {
    '--participant-label': ('--participant-label', '--participant_label'),
    '--session-label': ('--session-label', '--session-id'),
}


def _narrower(scans: Iterable[ScanFile], plan: Plan) -> list[str]:
    """Return the sessions of some scans, if they are fewer than their subjects have and hold what these scans follow."""
    scans = list(scans)
    sessions = [scan.session for scan in scans if scan.session is not None]
    subjects = {scan.subject for scan in scans}
    all_of_them = {scan.session for scan in plan.selection.scans if scan.subject in subjects}
    anchors = {plan.selection.anchor(scan).session for scan in scans}
    if len(sessions) < len(scans) or set(sessions) == all_of_them or not anchors <= set(sessions):
        return []
    return sorted(set(sessions))


def without_options(arguments: Iterable[str], options: Iterable[str]) -> list[str]:
    """Return a command line without some options that take one or more values.

    Examples
    --------
    >>> without_options(['bids', 'out', 'participant', '--run', '1', '2', '-v'], ['--run'])
    ['bids', 'out', 'participant', '-v']
    """
    options, kept, inside = tuple(options), [], False
    for word in arguments:
        if word.startswith('-'):
            inside = word in options
            if inside or word.startswith(tuple(f'{option}=' for option in options)):
                continue
        elif inside:
            continue
        kept.append(word)
    return kept


def write_summary(
    log_dir: Path,
    outcome: Outcome,
    *,
    level: str,
    rerun: Iterable[str],
    seconds: float,
    exit_code: int | None,
    interrupted: str = '',
) -> None:
    """Write ``summary.json``."""
    resumed = set(outcome.resumed)
    done = [
        {'scan': name, 'verdict': verdict, 'reason': outcome.concerns.get(name, ''), 'resumed': name in resumed}
        for name, verdict in outcome.verdicts.items()
    ]  # fmt: skip
    failed = [
        {'scan': item.scan, 'what': item.what, 'where': item.where, 'fix': item.fix, 'log': outcome.logs.get(item.scan, '')}
        for item in outcome.failures
    ]  # fmt: skip
    left_out = [
        {'scan': item.where, 'what': item.what, 'fix': item.fix, 'refused': not isinstance(item, NotServed)}
        for item in outcome.left_out
    ]
    content: Mapping[str, Any] = {
        'version': __version__, 'level': level, 'exit_code': exit_code, 'interrupted': interrupted,
        'seconds': round(seconds, 1), 'counts': outcome.counts,
        'scans': {'done': done, 'failed': failed, 'left_out': left_out, 'not_run': outcome.not_run},
        'over_planned_memory': [{'step': step, **vars(excess)} for step, excess in outcome.over.items()],
        'rerun': list(rerun), 'reports': [str(path) for path in outcome.reports],
    }  # fmt: skip
    write_json(log_dir / SUMMARY_FILE, content)
