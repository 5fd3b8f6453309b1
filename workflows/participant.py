"""The participant level: query, plan, run batch by batch, report, and say what happened."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from bidsharm.workflows.base import init_bidsharm_wf
from bidsharm.workflows.engine import (
    Failure,
    belongs,
    configure,
    draw_graph,
    read_failures,
    run_graph,
)
from bidsharm.workflows.planning import (
    Plan,
    batches,
    expected_outputs,
    make_plan,
    subject_plans,
    unfinished,
)
from bidsharm.workflows.progress import Progress, counted
from bidsharm.workflows.reporting import report_subject
from bidsharm.workflows.targets import ensure_target, known_target
from filelock import FileLock, Timeout
from rich.console import Console

from bidsharm.bids.atomic import write_text
from bidsharm.bids.boilerplate import Boilerplate, write_boilerplate
from bidsharm.bids.dataset import prepare_root
from bidsharm.bids.names import OutputNames, ScanFile
from bidsharm.bids.query import open_layout, select_scans
from bidsharm.bids.resume import read_record
from bidsharm.bids.validation import validate
from bidsharm.errors import ExitCode, NotServed, ScanError
from bidsharm.interfaces.ants import ants_version
from bidsharm.reports.subject import ErrorEntry
from bidsharm.settings import Settings


@dataclass
class Outcome:
    """What became of the scans of a run."""

    verdicts: dict[str, str] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    failures: list[ErrorEntry] = field(default_factory=list)
    left_out: list[ScanError] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)

    @property
    def exit_code(self) -> ExitCode:
        """0 when every scan is there, 1 when one failed or had to be refused."""
        refused = any(not isinstance(error, NotServed) for error in self.left_out)
        return ExitCode.SCAN_FAILED if self.failures or refused else ExitCode.OK


def run_participant(settings: Settings, console: Console) -> ExitCode:
    """Run the participant level.

    Raises
    ------
    BidsharmError
        For everything that ends the run before the first scan.
    """
    plan = plan_run(settings)
    boilerplate = write_boilerplate(
        settings, card=plan.method.card, target=plan.method.target_label, ants=ants_version(),
        contrasts=tuple(dict.fromkeys(scan.suffix for scan in plan.selection.scans)),
    )  # fmt: skip
    if settings.dry_run:
        show_plan(plan, settings, console)
        return ExitCode.OK
    prepare_root(settings)
    write_citations(settings.output_dir, boilerplate)
    if settings.boilerplate_only:
        console.print(boilerplate.to_markdown(), markup=False)
        return ExitCode.OK
    if settings.reports_only:
        outcome = Outcome(left_out=list(plan.selection.left_out))
        _report(plan.selection.subjects, settings, boilerplate, outcome, plan)
        _show_problems(outcome, settings, console)
        return outcome.exit_code
    if not settings.skip_bids_validation and (found := validate(settings.bids_dir)):
        console.print(found, markup=False, style='yellow')
    log_dir = start_log(settings)
    with working_folder(settings) as work_dir:
        configure(settings, log_dir)
        plan = ensure_target(plan, settings, work_dir, log_dir)
        digest = settings.digest(model=plan.method.model_digest)
        plan = replace(plan, options=replace(plan.options, digest=digest))
        outcome = _run_batches(plan, settings, work_dir, log_dir, boilerplate, console)
    show_outcome(outcome, settings, console, log_dir=log_dir)
    return outcome.exit_code


def plan_run(settings: Settings) -> Plan:
    """Query the data set and resolve the plan."""
    layout = open_layout(settings)
    selection = select_scans(settings, layout)
    everyone = selection
    narrowed = settings.participant_label or settings.session_label or settings.run
    if narrowed and (settings.target != 'canonical' or _needs_cohort(settings)):
        # A target is learnt from the whole data set, so that jobs for single subjects agree on it.
        whole = replace(settings, participant_label=(), session_label=(), run=(), bids_database_dir=None)
        everyone = select_scans(whole)
    return make_plan(settings, selection, everyone=everyone)


def _needs_cohort(settings: Settings) -> bool:
    from bidsharm.harmonizers import registry

    return 'cohort' in registry.get(settings.harmonizer).card.needs_fit


def start_log(settings: Settings) -> Path:
    """Make the folder of this run and write the settings into it."""
    stamp = datetime.now(UTC).strftime('%Y%m%d-%H%M%S')
    log_dir = settings.output_dir / 'logs' / f'{stamp}_{uuid.uuid4().hex[:8]}'
    log_dir.mkdir(parents=True)
    write_text(log_dir / 'settings.toml', settings.to_toml())
    return log_dir


def write_citations(root: Path, boilerplate: Boilerplate) -> None:
    """Write ``logs/CITATION.md`` and ``logs/CITATION.bib``."""
    write_text(root / 'logs' / 'CITATION.md', boilerplate.to_markdown())
    write_text(root / 'logs' / 'CITATION.bib', boilerplate.to_bibtex())


@contextmanager
def working_folder(settings: Settings) -> Iterator[Path]:
    """Give the working folder: the one asked for, or a temporary one that goes away."""
    if settings.work_dir is None:
        with tempfile.TemporaryDirectory(prefix='bidsharm-') as folder:
            yield Path(folder)
        return
    folder_path = settings.work_dir / 'bidsharm_work'
    folder_path.mkdir(parents=True, exist_ok=True)
    yield folder_path
    if settings.clean_workdir:
        shutil.rmtree(folder_path, ignore_errors=True)


def _run_batches(
    plan: Plan, settings: Settings, work_dir: Path, log_dir: Path, boilerplate: Boilerplate, console: Console
) -> Outcome:
    outcome = Outcome(left_out=list(plan.selection.left_out))
    digest = plan.options.digest
    size = max(2 * settings.nprocs, 4)
    with Progress(console, total=len(plan.selection.scans)) as progress:
        for group in batches(plan.selection.subjects, size):
            todo = {
                subject: unfinished(plan.selection.of_subject(subject), settings, digest) for subject in group
            }
            for subject in group:
                done = [
                    scan.name for scan in plan.selection.of_subject(subject) if scan.name not in todo[subject]
                ]
                outcome.resumed += done
                progress.skip(len(done))
            crashes = set(log_dir.glob('crash-*'))
            with _claim({s: names for s, names in todo.items() if names}, settings, work_dir) as mine:
                _run_batch(plan, mine, settings, work_dir, log_dir, progress)
            failures = read_failures(log_dir, since=crashes)
            _collect(plan, group, settings, failures, digest, outcome)
            _report(group, settings, boilerplate, outcome, plan)
            if settings.stop_on_first_crash and outcome.failures:
                break
    return outcome


@contextmanager
def _claim(todo: Mapping[str, set[str]], settings: Settings, work_dir: Path) -> Iterator[dict[str, set[str]]]:
    """Lock the subjects of a batch in a shared working folder; two jobs on one subject would spoil its cache."""
    if settings.work_dir is None:
        yield dict(todo)
        return
    locks = []
    try:
        for subject in todo:
            lock = FileLock(work_dir / f'.sub-{subject}.lock')
            try:
                lock.acquire(timeout=10)
            except Timeout:
                raise ScanError(
                    f'Another bidsharm is working on sub-{subject} in this working folder.', where=str(work_dir),
                    fix='Give each job its own --work-dir, or wait.',
                ) from None  # fmt: skip
            locks.append(lock)
        yield dict(todo)
    finally:
        for lock in locks:
            lock.release()


def _run_batch(
    plan: Plan,
    todo: Mapping[str, set[str]],
    settings: Settings,
    work_dir: Path,
    log_dir: Path,
    progress: Progress,
) -> None:
    if not todo:
        return
    subjects = {
        subject: subject_plans(plan.selection, subject, settings, plan.options, only=names)
        for subject, names in todo.items()
    }
    workflow = init_bidsharm_wf(
        subjects=subjects, method=plan.method, output_dir=settings.output_dir, options=plan.options
    )
    workflow.base_dir = str(work_dir)
    if settings.write_graph:
        draw_graph(workflow, log_dir / f'graph_{next(iter(todo))}.dot')
    progress.start_batch(workflow, [name for names in todo.values() for name in names])
    run_graph(workflow, settings, device=plan.options.device, on_node=progress.on_node)


def _collect(
    plan: Plan,
    group: Sequence[str],
    settings: Settings,
    failures: list[Failure],
    digest: str,
    outcome: Outcome,
) -> None:
    """Sort the scans of a batch into done and failed, and give each failure its scan."""
    root = settings.output_dir
    for subject in group:
        for scan in plan.selection.of_subject(subject):
            record = read_record(root / OutputNames(scan).qc)
            if record is not None and record.get('digest') == digest:
                outcome.verdicts[scan.name] = str(record['verdict'])
                if not any(belongs(failure, scan) for failure in failures):
                    continue
            outcome.failures.append(_explain(scan, plan.selection.anchor(scan), failures))


def _explain(scan: ScanFile, anchor: ScanFile, failures: list[Failure]) -> ErrorEntry:
    own = [failure for failure in failures if belongs(failure, scan)]
    if own:
        first = own[0]
        return ErrorEntry(scan=scan.name, what=first.what, where=first.where or scan.relative, fix=first.fix,
                          details=first.details)  # fmt: skip
    behind = [failure for failure in failures if belongs(failure, anchor)]
    if behind and anchor != scan:
        return ErrorEntry(
            scan=scan.name, what=f'It follows {anchor.name}, which failed: {behind[0].what}', where=scan.relative,
            fix='Mend or remove that scan, or give its mask with --derivatives.', details=behind[0].details,
        )  # fmt: skip
    return ErrorEntry(
        scan=scan.name, what='It was not finished, and no step reported why.', where=scan.relative,
        fix='Look into nipype.log, and run the same command again.', details='',
    )  # fmt: skip


def _report(
    subjects: Sequence[str], settings: Settings, boilerplate: Boilerplate, outcome: Outcome, plan: Plan
) -> None:
    """Write the reports of a batch; a report that cannot be written is a failure of its subject, not of the run."""
    for subject in subjects:
        names = {scan.name for scan in plan.selection.of_subject(subject)}
        errors = [failure for failure in outcome.failures if failure.scan in names]
        own = re.compile(rf'sub-{re.escape(subject)}(?![0-9A-Za-z+])')
        left_out = [error for error in outcome.left_out if own.search(error.where)]
        provenance = {
            'harmonizer': plan.method.name, 'target': plan.method.target_label, 'ANTs': ants_version(),
            'model digest': plan.method.model_digest or 'none', 'random seed': str(settings.random_seed),
        }  # fmt: skip
        try:
            path = report_subject(
                settings.output_dir, subject, boilerplate=boilerplate, errors=errors, left_out=left_out,
                provenance=provenance,
            )  # fmt: skip
            outcome.reports.append(path)
        except Exception as error:  # noqa: BLE001 - the images are safe; the subject is named and the run goes on
            outcome.failures.append(
                ErrorEntry(scan=f'sub-{subject}', what=f'The report could not be written: {error}', where='report',
                           fix='The images are there; run again with --reports-only.', details='')
            )  # fmt: skip


def show_plan(plan: Plan, settings: Settings, console: Console) -> None:
    """Print what a run would do."""
    from rich.table import Table

    table = Table(
        title=f'{counted(len(plan.selection.subjects), "subject")}, {counted(len(plan.selection.scans), "scan")}'
    )
    for column in ('scan', 'site', 'follows', 'state'):
        table.add_column(column)
    plan = known_target(plan, settings)
    digest = settings.digest(model=plan.method.model_digest)
    todo = unfinished(plan.selection.scans, settings, digest)
    for scan in plan.selection.scans:
        anchor = plan.selection.anchor(scan)
        to_learn = plan.fit_scans and not plan.method.model_digest
        state = 'to do' if scan.name in todo or to_learn else 'done'
        table.add_row(scan.name, scan.site, '' if anchor == scan else anchor.name, state)
    console.print(table)
    console.print(
        f'Harmonizer: {plan.method.name}, target: {plan.method.target_label}, device: {plan.options.device}'
    )
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


def show_outcome(
    outcome: Outcome, settings: Settings, console: Console, *, log_dir: Path | None = None
) -> None:
    """Print the summary: done, warned, failed, why, and how to run just those again."""
    count = {verdict: list(outcome.verdicts.values()).count(verdict) for verdict in ('pass', 'warn', 'fail')}
    console.print(
        f'\n{counted(len(outcome.verdicts), "scan")} harmonized: {count["pass"]} pass, {count["warn"]} warn, '
        f'{count["fail"]} fail the anatomy check; {len(outcome.resumed)} {"was" if len(outcome.resumed) == 1 else "were"} done before.',
    )
    _show_problems(outcome, settings, console, log_dir=log_dir)


def _show_problems(
    outcome: Outcome, settings: Settings, console: Console, *, log_dir: Path | None = None
) -> None:
    """Print what was left out or failed, and where the reports are."""
    for error in outcome.left_out:
        console.print(f'left out  {error}', markup=False, style='yellow')
    for entry in outcome.failures:
        console.print(f'FAILED    {entry.scan}: {entry.what} {entry.fix}', markup=False, style='red')
    if outcome.failures:
        subjects = sorted({entry.scan.split('_')[0].removeprefix('sub-') for entry in outcome.failures})
        console.print(f'Run just those again with --participant-label {" ".join(subjects)}', markup=False)
        if log_dir:
            console.print(f'Details: {log_dir}', markup=False, highlight=False, soft_wrap=True)
    for path in outcome.reports:
        console.print(f'report    {path}', markup=False, highlight=False, soft_wrap=True)
