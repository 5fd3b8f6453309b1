"""The participant level: query, plan, run batch by batch, report, and say what happened."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bidsharm.workflows.base import init_bidsharm_wf, subject_wf_name
from bidsharm.workflows.clusters import devices
from bidsharm.workflows.engine import (
    Failure,
    belongs,
    configure,
    draw_graph,
    keep_resources,
    load_plugin,
    of_graph,
    read_failures,
    run_graph,
)
from bidsharm.workflows.failures import forget, remember, remembered
from bidsharm.workflows.planning import (
    Plan,
    batches,
    make_plan,
    subject_plans,
    unfinished,
)
from bidsharm.workflows.progress import Progress
from bidsharm.workflows.reporting import records_of, report_subject
from bidsharm.workflows.scratch import working_folder
from bidsharm.workflows.summary import Outcome, show_outcome, show_plan, show_problems
from bidsharm.workflows.targets import ensure_target
from filelock import FileLock, Timeout
from rich.console import Console

from bidsharm import __version__
from bidsharm.bids.atomic import write_text
from bidsharm.bids.boilerplate import Boilerplate, write_boilerplate
from bidsharm.bids.dataset import prepare_root, refuse_links_out
from bidsharm.bids.handoff import prepare_handoff
from bidsharm.bids.index import INDEX_FILE, open_layout
from bidsharm.bids.names import OutputNames, ScanFile
from bidsharm.bids.query import select_scans
from bidsharm.bids.resume import read_record
from bidsharm.bids.validation import validate
from bidsharm.errors import ExitCode, NothingToDo
from bidsharm.harmonizers import registry
from bidsharm.interfaces.ants import ants_version
from bidsharm.reports.subject import ErrorEntry
from bidsharm.settings import Settings

#: Name of the graph, and of its folder in the working folder.
WORKFLOW = 'bidsharm_wf'

#: What is said of a scan that was not finished although nothing failed.
SILENT = 'It was not finished, and no step reported why.'


def run_participant(settings: Settings, console: Console) -> ExitCode:
    """Run the participant level.

    Raises
    ------
    BidsharmError
        For everything that ends the run before the first scan.
    """
    card = registry.get(settings.harmonizer).card
    # Before the data set is indexed, which may take long.
    devices(settings, card, load_plugin(settings.use_plugin))
    plan = plan_run(settings)
    boilerplate = write_boilerplate(
        settings, card=plan.method.card, target=plan.method.target_label, ants=ants_version(),
        contrasts=tuple(dict.fromkeys(scan.suffix for scan in plan.selection.scans)),
    )  # fmt: skip
    if settings.dry_run:
        show_plan(plan, settings, console)
        return ExitCode.OK
    refuse_links(plan, settings)
    prepare_root(settings)
    prepare_handoff(settings)
    if settings.boilerplate_only:
        write_citations(settings.output_dir / 'logs', boilerplate)
        console.print(boilerplate.to_markdown(), markup=False)
        return ExitCode.OK
    if settings.reports_only:
        return reports_only(plan, settings, boilerplate, console)
    write_citations(settings.output_dir / 'logs', boilerplate)
    if not settings.skip_bids_validation and (found := validate(settings.bids_dir)):
        console.print(found, markup=False, style='yellow')
    log_dir = start_log(settings)
    write_citations(log_dir, boilerplate)
    progress = Progress(console, total=len(plan.selection.scans))
    with working_folder(settings, largest_batch(plan, settings)) as work_dir, progress:
        configure(settings, log_dir)
        plan = ensure_target(plan, settings, work_dir, log_dir, progress)
        options = replace(
            plan.options,
            digest=settings.digest(model=plan.method.learnt),
            methods=boilerplate.to_dict(provenance_of(plan, settings)),
        )
        run = Run(replace(plan, options=options), settings, work_dir, log_dir, progress)
        outcome = _run_batches(run)
    show_outcome(outcome, settings, console, log_dir=log_dir)
    return outcome.exit_code


def refuse_links(plan: Plan, settings: Settings) -> None:
    """Refuse folders of results that are links to somewhere else; see :func:`~bidsharm.bids.dataset.refuse_links_out`."""
    folders = {OutputNames(scan).folder for scan in plan.selection.scans}
    folders |= {f'sub-{subject}/figures' for subject in plan.selection.subjects}
    for root in filter(None, (settings.output_dir, settings.fmriprep_derivatives)):
        refuse_links_out(root, sorted(folders))


def provenance_of(plan: Plan, settings: Settings) -> dict[str, str]:
    """Return versions and choices by name, for records and reports."""
    return {
        'bidsharm': __version__, 'harmonizer': plan.method.name, 'target': plan.method.target_label,
        'ANTs': ants_version(), 'model digest': plan.method.model_digest or 'none',
        'weights digest': plan.method.weights_digest or 'none',
        'random seed': str(settings.random_seed),
    }  # fmt: skip


def reports_only(plan: Plan, settings: Settings, boilerplate: Boilerplate, console: Console) -> ExitCode:
    """Write the reports anew from what is on disk.

    Raises
    ------
    NothingToDo
        If there is nothing on disk for the chosen subjects.
    """
    root, outcome = settings.output_dir, Outcome(left_out=list(plan.selection.left_out))
    subjects = []
    for subject in plan.selection.subjects:
        known = {str(record['scan']) for record in records_of(root, subject)}
        failures = remembered(root, subject, bids_dir=settings.bids_dir)
        if not known and not failures:
            continue
        subjects.append(subject)
        known |= {entry.scan for entry in failures}
        outcome.failures += failures
        outcome.failures += [
            ErrorEntry(scan.name, 'There is no result of it: it has not been run.', where=scan.relative,
                       fix='Run the same command without --reports-only.')
            for scan in plan.selection.of_subject(subject) if scan.name not in known
        ]  # fmt: skip
    if not subjects:
        raise NothingToDo(
            'There is no result to report on.', where=str(root), fix='Run without --reports-only first.'
        )
    _report(subjects, settings, outcome, plan, boilerplate.to_dict({}))
    show_problems(outcome, settings, console)
    return outcome.exit_code


def plan_run(settings: Settings) -> Plan:
    """Query the data set and resolve the plan."""
    layout = open_layout(settings)
    selection = select_scans(settings, layout)
    everyone = selection
    narrowed = settings.participant_label or settings.session_label or settings.run
    if narrowed and not settings.model and (settings.target != 'canonical' or _needs_cohort(settings)):
        # A target is learnt from the whole data set, so that jobs for single subjects agree on it.
        whole = replace(settings, participant_label=(), session_label=(), run=(), bids_database_dir=None)
        database = settings.bids_database_dir
        kept = database is not None and (database / INDEX_FILE).is_file()  # it holds all subjects
        everyone = select_scans(whole, layout if kept else None)
    return make_plan(settings, selection, everyone=everyone)


def _needs_cohort(settings: Settings) -> bool:
    return 'cohort' in registry.get(settings.harmonizer).card.needs_fit


def start_log(settings: Settings) -> Path:
    """Make the folder of this run and write the settings into it."""
    stamp = datetime.now(UTC).strftime('%Y%m%d-%H%M%S')
    log_dir = settings.output_dir / 'logs' / f'{stamp}_{uuid.uuid4().hex[:8]}'
    log_dir.mkdir(parents=True)
    write_text(log_dir / 'settings.toml', settings.to_toml())
    return log_dir


def write_citations(folder: Path, boilerplate: Boilerplate) -> None:
    """Write ``CITATION.md`` and ``CITATION.bib``."""
    write_text(folder / 'CITATION.md', boilerplate.to_markdown())
    write_text(folder / 'CITATION.bib', boilerplate.to_bibtex())


def largest_batch(plan: Plan, settings: Settings) -> int:
    """Return the number of scans of the largest batch."""
    groups = batches(plan.selection.subjects, batch_size(settings))
    return max(sum(len(plan.selection.of_subject(subject)) for subject in group) for group in groups)


def batch_size(settings: Settings) -> int:
    """Return how many subjects are worked on in one graph."""
    return max(2 * settings.nprocs, 4)


@dataclass(frozen=True)
class Run:
    """A plan with the folders it runs in."""

    plan: Plan
    settings: Settings
    work_dir: Path
    log_dir: Path
    progress: Progress


def _run_batches(run: Run) -> Outcome:
    plan, settings, digest = run.plan, run.settings, run.plan.options.digest
    outcome = Outcome(left_out=list(plan.selection.left_out))
    subjects = plan.selection.subjects
    for group in batches(subjects, batch_size(settings)):
        todo: dict[str, set[str]] = {}
        for subject in group:
            scans = plan.selection.of_subject(subject)
            todo[subject] = unfinished(scans, plan, settings, digest)
            done = [scan.name for scan in scans if scan.name not in todo[subject]]
            outcome.resumed += done
            run.progress.skip(len(done))
        crashes = set(run.log_dir.glob('crash-*'))
        with _claim({s: names for s, names in todo.items() if names}, run) as (mine, busy):
            _run_batch(run, mine)
        failures = read_failures(run.log_dir, since=crashes)
        _collect(run, group, failures, {name for subject in busy for name in todo[subject]}, outcome)
        _report(group, settings, outcome, plan, plan.options.methods)
        if settings.work_dir is None:  # of thousands of scans, the files of a few at a time
            shutil.rmtree(run.work_dir / WORKFLOW, ignore_errors=True)
        if settings.stop_on_first_crash and outcome.failures:
            after = subjects[subjects.index(group[-1]) + 1 :]
            outcome.not_run += [scan.name for subject in after for scan in plan.selection.of_subject(subject)]
            break
    return outcome


@contextmanager
def _claim(todo: Mapping[str, set[str]], run: Run) -> Iterator[tuple[dict[str, set[str]], list[str]]]:
    """Lock the subjects of a batch in a shared working folder; two jobs on one subject would spoil its cache.

    Yields
    ------
    mine, busy
        What this run may work on, and the subjects that another run holds.
    """
    if run.settings.work_dir is None:
        yield dict(todo), []
        return
    locks: dict[str, FileLock] = {}
    try:
        for subject in todo:
            lock = FileLock(run.work_dir / f'.sub-{subject}.lock')
            try:
                lock.acquire(timeout=10)
            except Timeout:
                continue
            locks[subject] = lock
        yield {s: names for s, names in todo.items() if s in locks}, [s for s in todo if s not in locks]
    finally:
        for subject, lock in locks.items():
            if run.settings.clean_workdir:  # what others are at stays
                shutil.rmtree(run.work_dir / WORKFLOW / subject_wf_name(subject), ignore_errors=True)
            lock.release()


def _run_batch(run: Run, todo: Mapping[str, set[str]]) -> None:
    if not todo:
        return
    plan, settings = run.plan, run.settings
    # From here on the files of these scans change: a record of earlier ones must not speak for them.
    for scan in (scan for subject in todo for scan in plan.selection.of_subject(subject)):
        if scan.name in todo[scan.subject]:
            (settings.output_dir / OutputNames(scan).qc).unlink(missing_ok=True)
    subjects = {
        subject: subject_plans(plan.selection, subject, settings, plan.options, only=names)
        for subject, names in todo.items()
    }
    workflow = init_bidsharm_wf(
        subjects=subjects,
        method=plan.method,
        output_dir=settings.output_dir,
        options=plan.options,
        name=WORKFLOW,
    )
    workflow.base_dir = str(run.work_dir)
    if settings.write_graph:
        draw_graph(workflow, run.log_dir / f'graph_{next(iter(todo))}.dot')
    run.progress.start_batch(workflow, [name for names in todo.values() for name in names])
    run_graph(workflow, settings, device=plan.options.device, on_node=run.progress.on_node)
    keep_resources(workflow, run.log_dir)


def _collect(
    run: Run, group: Sequence[str], failures: list[Failure], busy: Collection[str], outcome: Outcome
) -> None:
    """Sort the scans of a batch into done and failed, and give each failure its scan."""
    root, plan = run.settings.output_dir, run.plan
    for scan in (scan for subject in group for scan in plan.selection.of_subject(subject)):
        record = None if scan.name in busy else read_record(root / OutputNames(scan).qc)
        if record is not None and record.get('digest') == plan.options.digest:
            outcome.verdicts[scan.name] = str(record['verdict'])
            if not any(belongs(failure, scan) for failure in failures):
                forget(root, scan)
                continue
        if scan.name in busy:
            entry = ErrorEntry(
                scan.name, 'Another bidsharm is working on this subject in the same working folder.',
                where=scan.relative, fix='Give each job its own --work-dir, or wait and run again.',
            )  # fmt: skip
        else:
            entry = _explain(scan, plan.selection.anchor(scan), failures)
            if entry.what == SILENT and run.settings.stop_on_first_crash:
                outcome.not_run.append(scan.name)
                continue
            remember(root, scan, entry)
        outcome.failures.append(entry)


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
    if whole := [failure for failure in failures if of_graph(failure)]:
        return ErrorEntry(
            scan=scan.name, what=f'The run of its batch ended early: {whole[0].what}', where=scan.relative,
            fix='Mend that, and run the same command again.', details=whole[0].details,
        )  # fmt: skip
    return ErrorEntry(
        scan=scan.name, what=SILENT, where=scan.relative,
        fix='Look into nipype.log, and run the same command again.', details='',
    )  # fmt: skip


def _report(
    subjects: Sequence[str], settings: Settings, outcome: Outcome, plan: Plan, methods: Mapping[str, Any]
) -> None:
    """Write the reports of a batch; a report that cannot be written is a failure of its subject, not of the run."""
    for subject in subjects:
        names = {scan.name for scan in plan.selection.of_subject(subject)}
        errors = {
            entry.scan: entry
            for entry in remembered(settings.output_dir, subject, bids_dir=settings.bids_dir)
        }
        errors |= {failure.scan: failure for failure in outcome.failures if failure.scan in names}
        own = re.compile(rf'sub-{re.escape(subject)}(?![0-9A-Za-z+])')
        left_out = [error for error in outcome.left_out if own.search(error.where)]
        try:
            path = report_subject(
                settings.output_dir, subject, methods=methods, errors=list(errors.values()), left_out=left_out
            )
            outcome.reports.append(path)
        except Exception as error:  # noqa: BLE001 - the images are safe; the subject is named and the run goes on
            outcome.failures.append(
                ErrorEntry(scan=f'sub-{subject}', what=f'The report could not be written: {error}', where='report',
                           fix='The images are there; run again with --reports-only.', details='')
            )  # fmt: skip
