"""What a run says on the screen: its plan before, its outcome after."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bidsharm.workflows.planning import Plan, expected_handoff, expected_outputs, unfinished
from bidsharm.workflows.progress import counted
from bidsharm.workflows.targets import known_target
from rich.console import Console

from bidsharm.bids.handoff import handed_off
from bidsharm.errors import ExitCode, NotServed, ScanError
from bidsharm.reports.subject import ErrorEntry
from bidsharm.settings import Settings


@dataclass
class Outcome:
    """What became of the scans of a run."""

    verdicts: dict[str, str] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    failures: list[ErrorEntry] = field(default_factory=list)
    left_out: list[ScanError] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)

    @property
    def exit_code(self) -> ExitCode:
        """0 when every scan is there, 1 when one failed or had to be refused."""
        refused = any(not isinstance(error, NotServed) for error in self.left_out)
        return ExitCode.SCAN_FAILED if self.failures or refused else ExitCode.OK


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
        for name in expected_handoff(scan, plan.options):
            console.print(f'  for fMRIPrep: {name}', markup=False, highlight=False)


def show_outcome(
    outcome: Outcome, settings: Settings, console: Console, *, log_dir: Path | None = None
) -> None:
    """Print the summary: done, warned, failed, why, and how to run just those again."""
    count = {verdict: list(outcome.verdicts.values()).count(verdict) for verdict in ('pass', 'warn', 'fail')}
    console.print(
        f'\n{counted(len(outcome.verdicts), "scan")} harmonized: {count["pass"]} pass, {count["warn"]} warn, '
        f'{count["fail"]} fail the anatomy check; {len(outcome.resumed)} {"was" if len(outcome.resumed) == 1 else "were"} done before.',
    )
    show_problems(outcome, settings, console, log_dir=log_dir)


def show_problems(
    outcome: Outcome, settings: Settings, console: Console, *, log_dir: Path | None = None
) -> None:
    """Print what was left out or failed, and where the reports are."""
    for error in outcome.left_out:
        console.print(f'left out  {error}', markup=False, style='yellow')
    for entry in outcome.failures:
        console.print(f'FAILED    {entry.scan}: {entry.what} {entry.fix}', markup=False, style='red')
    if outcome.not_run:
        console.print(
            f'not run   {counted(len(outcome.not_run), "scan")}: the run stopped at the first failure.',
            style='yellow',
        )
    if outcome.failures:
        subjects = sorted({entry.scan.split('_')[0].removeprefix('sub-') for entry in outcome.failures})
        console.print(f'Run just those again with --participant-label {" ".join(subjects)}', markup=False)
        if log_dir:
            console.print(f'Details: {log_dir}', markup=False, highlight=False, soft_wrap=True)
    for path in outcome.reports:
        console.print(f'report    {path}', markup=False, highlight=False, soft_wrap=True)
