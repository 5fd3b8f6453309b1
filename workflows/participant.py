"""The participant level: query, plan, run batch by batch, report, and say what happened."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bidsharm.workflows.base import ScanPlan, init_bidsharm_wf, subject_wf_name
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
from bidsharm.workflows.events import (
    Event,
    ReportWritten,
    RunInterrupted,
    ScanDone,
    ScanFailed,
    ScanLeftOut,
    ScanNotRun,
    ScanResumed,
)
from bidsharm.workflows.events import Plan as PlanMade
from bidsharm.workflows.failures import forget, remember, remembered
from bidsharm.workflows.logs import Journal, interruption, keep_journal
from bidsharm.workflows.planning import (
    Plan,
    batches,
    make_plan,
    subject_plans,
    unfinished,
)
from bidsharm.workflows.progress import Progress, counted
from bidsharm.workflows.reporting import page_name, records_of, report_subject
from bidsharm.workflows.scratch import sweeping, working_folder
from bidsharm.workflows.steps import StepRecorder
from bidsharm.workflows.summary import (
    Outcome,
    concerns_of,
    rerun_command,
    show_outcome,
    show_plan,
    show_problems,
    write_summary,
)
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
from bidsharm.bids.resume import read_record, retire
from bidsharm.bids.validation import validate
from bidsharm.errors import ExitCode, NothingToDo, NotServed
from bidsharm.harmonizers import registry
from bidsharm.interfaces.ants import ants_version
from bidsharm.reports.subject import ErrorEntry
from bidsharm.settings import Settings

#: Name of the graph, and of its folder in the working folder.
WORKFLOW = 'bidsharm_wf'

#: What is said of a scan that was not finished although nothing failed.
SILENT = 'It was not finished, and no step reported why.'


def run_participant(settings: Settings, console: Console, arguments: Sequence[str] = ()) -> ExitCode:
    """Run the participant level.

    Parameters
    ----------
    settings
        Settings of the run.
    console
        Where a person looks.
    arguments
        The command line that the settings come from; it is logged, and told for running again what failed.

    Raises
    ------
    BidsharmError
        For everything that ends the run before the first scan.
    """
    with keep_journal(settings, console, arguments) as journal:
        card = registry.get(settings.harmonizer).card
        # Before the data set is indexed, which may take long.
        devices(settings, card, load_plugin(settings.use_plugin))
        plan = plan_run(settings)
        boilerplate = write_boilerplate(
            settings, card=plan.method.card, target=plan.method.target_label, ants=ants_version(),
            contrasts=tuple(dict.fromkeys(scan.suffix for scan in plan.selection.scans)),
        )  # fmt: skip
        tell_plan(plan, settings, journal)
        if settings.dry_run:
            show_plan(plan, settings, console)
            return journal.finish({}, ExitCode.OK)
        refuse_links(plan, settings)
        prepare_root(settings)
        prepare_handoff(settings)
        if settings.boilerplate_only:
            write_citations(settings.output_dir / 'logs', boilerplate)
            console.print(boilerplate.to_markdown(), markup=False)
            return journal.finish({}, ExitCode.OK)
        if settings.reports_only:
            return reports_only(plan, settings, boilerplate, journal)
        write_citations(settings.output_dir / 'logs', boilerplate)
        return harmonize(plan, settings, boilerplate, journal)


def tell_plan(plan: Plan, settings: Settings, journal: Journal) -> None:
    """Tell what is going to be done, and what is not."""
    chosen, method = plan.selection, plan.method
    device = str(method.execution['device'] if method.uses_gpu else plan.options.device)
    journal.events.emit(
        PlanMade(
            subjects=list(chosen.subjects), scans=[scan.name for scan in chosen.scans], left_out=len(chosen.left_out),
            harmonizer=method.name, target=method.target_label, device=device,
        )
    )  # fmt: skip
    for error in chosen.left_out:
        refused = not isinstance(error, NotServed)
        journal.events.emit(ScanLeftOut(error.where, error.what, error.fix, refused))


def harmonize(plan: Plan, settings: Settings, boilerplate: Boilerplate, journal: Journal) -> ExitCode:
    """Harmonize the scans of a plan, and say what became of them, also if something ends this early."""
    log_dir = journal.open(settings)
    write_citations(log_dir, boilerplate)
    journal.screen.note(
        f'{counted(len(plan.selection.subjects), "subject")}, {counted(len(plan.selection.scans), "scan")}; '
        f'harmonizer: {plan.method.name}, target: {plan.method.target_label}'
    )
    recorder = StepRecorder(journal.events, log_dir)
    recorder.know([*plan.selection.scans, *plan.selection.structural, *plan.fit_scans])
    progress = Progress(journal.screen, total=len(plan.selection.scans), recorder=recorder)
    outcome = Outcome(left_out=list(plan.selection.left_out), over=recorder.over)
    try:
        if not settings.skip_bids_validation and (found := validate(settings.bids_dir)):
            journal.screen.say(found, style='yellow')
        needed = largest_batch(plan, settings)
        with sweeping(settings), working_folder(settings, needed) as work_dir, progress:
            configure(settings, log_dir)
            plan = ensure_target(plan, settings, work_dir, log_dir, progress)
            options = replace(
                plan.options,
                digest=settings.digest(model=plan.method.learnt),
                methods=boilerplate.to_dict(provenance_of(plan, settings)),
            )
            plan = replace(plan, options=options)
            _run_batches(Run(plan, settings, work_dir, log_dir, progress, outcome))
    except BaseException as error:
        _settle(outcome, plan, settings)
        with contextlib.suppress(OSError):  # what ended the run is more to the point
            _summarize(outcome, plan, settings, journal, interruption(error, journal.seconds))
            journal.screen.say(f'Details: {log_dir}', whole=True)
        raise
    rerun = _summarize(outcome, plan, settings, journal)
    show_outcome(outcome, journal.screen, rerun=rerun, log_dir=log_dir)
    return journal.finish(outcome.counts, outcome.exit_code)


def _settle(outcome: Outcome, plan: Plan, settings: Settings) -> None:
    """Sort the scans of a run that ended early and whose batch has not been looked at: done, or not run."""
    known = {*outcome.verdicts, *outcome.not_run, *(entry.scan for entry in outcome.failures)}
    # With --force a record may be that of an earlier run; the digest comes with the target.
    tells = bool(plan.options.digest) and not settings.force
    for scan in (scan for scan in plan.selection.scans if scan.name not in known):
        record = read_record(settings.output_dir / OutputNames(scan).qc) if tells else None
        if record is not None and record.get('digest') == plan.options.digest:
            _take(record, scan, outcome)
        else:
            outcome.not_run.append(scan.name)


def _take(record: Mapping[str, Any], scan: ScanFile, outcome: Outcome) -> None:
    """Note the verdict of a scan that is done, and what it rests on."""
    outcome.verdicts[scan.name] = verdict = str(record['verdict'])
    if verdict != 'pass':
        outcome.concerns[scan.name] = concerns_of(record)


def _summarize(
    outcome: Outcome, plan: Plan, settings: Settings, journal: Journal, end: RunInterrupted | None = None
) -> list[str]:
    """Write the summary into the log folder, and return the command that runs again what has to be."""
    rerun = rerun_command(journal.arguments, plan, outcome, settings)
    if journal.log_dir is not None:
        write_summary(
            journal.log_dir, outcome, level='participant', rerun=rerun, seconds=journal.seconds,
            exit_code=end.exit_code if end else int(outcome.exit_code), interrupted=end.what if end else '',
        )  # fmt: skip
    return rerun


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


def reports_only(plan: Plan, settings: Settings, boilerplate: Boilerplate, journal: Journal) -> ExitCode:
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
    log_dir = journal.open(settings)
    _report(subjects, settings, outcome, plan, boilerplate.to_dict({}))
    journal.reports(outcome.reports)
    rerun = _summarize(outcome, plan, settings, journal)
    show_problems(outcome, journal.screen, rerun=rerun, log_dir=log_dir)
    return journal.finish(outcome.counts, outcome.exit_code)


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


#: How long a run waits for a subject that another one holds (seconds).
CLAIM_S = 10.0


@dataclass(frozen=True)
class Run:
    """A plan with the folders it runs in."""

    plan: Plan
    settings: Settings
    work_dir: Path
    log_dir: Path
    progress: Progress
    outcome: Outcome = field(default_factory=Outcome)

    def tell(self, event: Event) -> None:
        """Write an event into the log."""
        self.progress.recorder.events.emit(event)


def _run_batches(run: Run) -> Outcome:
    plan, settings, digest, outcome = run.plan, run.settings, run.plan.options.digest, run.outcome
    subjects = plan.selection.subjects
    for group in batches(subjects, batch_size(settings)):
        todo: dict[str, set[str]] = {}
        for subject in group:
            scans = plan.selection.of_subject(subject)
            todo[subject] = unfinished(scans, plan, settings, digest)
            _pass_over(run, [scan.name for scan in scans if scan.name not in todo[subject]])
        crashes = set(run.log_dir.glob('crash-*'))
        wanted = {subject: names for subject, names in todo.items() if names}
        with sweeping(settings, group), _claim(wanted, run) as (mine, busy):
            _run_batch(run, _still_unfinished(run, mine))
            failures = read_failures(run.log_dir, since=crashes)
            # Before another run may begin anew with a subject, and take its records away.
            _collect(run, group, failures, {name for subject in busy for name in todo[subject]}, outcome)
        reports = len(outcome.reports)
        # Of subjects that another run is at, that one knows more.
        _report([s for s in group if s not in busy], settings, outcome, plan, plan.options.methods)
        for path in outcome.reports[reports:]:
            run.tell(ReportWritten(str(path)))
        if settings.work_dir is None:  # of thousands of scans, the files of a few at a time
            shutil.rmtree(run.work_dir / WORKFLOW, ignore_errors=True)
        if settings.stop_on_first_crash and (outcome.failures or outcome.not_run):
            after = subjects[subjects.index(group[-1]) + 1 :]
            late = [scan.name for subject in after for scan in plan.selection.of_subject(subject)]
            outcome.not_run += late
            for name in late:
                run.tell(ScanNotRun(name))
            break
    return outcome


def _pass_over(run: Run, names: Sequence[str]) -> None:
    """Note scans that are done already."""
    run.outcome.resumed += names
    run.progress.skip(len(names))
    for name in names:
        run.tell(ScanResumed(name))


def _still_unfinished(run: Run, todo: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return what is left to do: another run may have finished scans since they were looked at, while this one waited for it."""
    left: dict[str, set[str]] = {}
    for subject, names in todo.items():
        scans = run.plan.selection.of_subject(subject)
        now = unfinished(scans, run.plan, run.settings, run.plan.options.digest) & names
        _pass_over(run, sorted(names - now))
        if now:
            left[subject] = now
    return left


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
                lock.acquire(timeout=CLAIM_S)
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
    # From here on the files of these scans change: a record of earlier ones must not speak for them, nor may images of another
    # method lie beside new ones.
    for scan in (scan for subject in todo for scan in plan.selection.of_subject(subject)):
        if scan.name in todo[scan.subject]:
            retire(settings.output_dir / OutputNames(scan).qc, settings.output_dir, plan.options.digest)
    for subject in todo:  # the page speaks for them, too, and is written when the batch is over
        (settings.output_dir / page_name(subject)).unlink(missing_ok=True)
    failed: set[str] = set()
    while todo:
        crashes = set(run.log_dir.glob('crash-*'))
        subjects = {
            subject: subject_plans(
                plan.selection, subject, settings, plan.options, only=names, companions=plan.method.uses_companions, failed=failed,
            )
            for subject, names in todo.items()
        }  # fmt: skip
        _run_plans(run, subjects)
        failures = read_failures(run.log_dir, since=crashes)
        if settings.stop_on_first_crash and failures:
            return
        todo, failed = _without_companions(run, subjects, failures, failed)


def _run_plans(run: Run, subjects: Mapping[str, Sequence[ScanPlan]]) -> None:
    """Run the graph of some subjects."""
    plan, settings = run.plan, run.settings
    workflow = init_bidsharm_wf(
        subjects=subjects,
        method=plan.method,
        output_dir=settings.output_dir,
        options=plan.options,
        name=WORKFLOW,
    )
    workflow.base_dir = str(run.work_dir)
    if settings.write_graph:
        draw_graph(workflow, run.log_dir / f'graph_{next(iter(subjects))}.dot')
    run.progress.start_batch(
        workflow, [item.scan.name for items in subjects.values() for item in items if item.write]
    )
    run_graph(workflow, settings, device=plan.options.device, on_node=run.progress.on_node)
    keep_resources(workflow, run.log_dir)


def _without_companions(
    run: Run, subjects: Mapping[str, Sequence[ScanPlan]], failures: list[Failure], failed: set[str]
) -> tuple[dict[str, set[str]], set[str]]:
    """Return the scans that were not finished only because a companion failed, and the names of all companions that failed.

    A bad scan must not cost the others of its visit.
    """
    plans = [item for items in subjects.values() for item in items]
    broken = {
        other.name
        for item in plans
        for other in item.companions
        if any(belongs(failure, other) for failure in failures)
    }
    todo: dict[str, set[str]] = {}
    for subject, items in subjects.items():
        for item in (
            item for item in items if item.write and broken & {other.name for other in item.companions}
        ):
            # Its record is written last, and earlier ones were taken away.
            done = (run.settings.output_dir / OutputNames(item.scan).qc).exists()
            own = any(belongs(failure, scan) for failure in failures for scan in (item.scan, item.anchor))
            if not done and not own:
                todo.setdefault(subject, set()).add(item.scan.name)
    return todo, failed | broken


def _collect(
    run: Run, group: Sequence[str], failures: list[Failure], busy: Collection[str], outcome: Outcome
) -> None:
    """Sort the scans of a batch into done and failed, and give each failure its scan."""
    root, plan, resumed = run.settings.output_dir, run.plan, set(outcome.resumed)
    for scan in (scan for subject in group for scan in plan.selection.of_subject(subject)):
        record = None if scan.name in busy else read_record(root / OutputNames(scan).qc)
        if record is not None and record.get('digest') == plan.options.digest:
            _take(record, scan, outcome)
            if not any(belongs(failure, scan) for failure in failures):
                forget(root, scan)
                if scan.name not in resumed:
                    run.tell(done_event(record, scan))
                continue
        log = ''
        if scan.name in busy:
            entry = ErrorEntry(
                scan.name, 'Another bidsharm is working on this subject in the same working folder.',
                where=scan.relative, fix='Give each job its own --work-dir, or wait and run again.',
            )  # fmt: skip
        else:
            entry, log = _explain(scan, plan.selection.anchor(scan), failures)
            if entry.what == SILENT and run.settings.stop_on_first_crash:
                outcome.not_run.append(scan.name)
                run.tell(ScanNotRun(scan.name))
                continue
            remember(root, scan, entry)
        outcome.failures.append(entry)
        outcome.logs[scan.name] = log
        run.tell(ScanFailed(scan.name, entry.what, entry.where, entry.fix, log))


def done_event(record: Mapping[str, Any], scan: ScanFile) -> ScanDone:
    """Return what a QC record tells of its scan."""
    warnings, outputs = record.get('warnings', []), record.get('outputs', {})
    return ScanDone(
        scan.name,
        str(record['verdict']),
        concerns_of(record),
        [str(item) for item in warnings],
        list(outputs),
    )


def _explain(scan: ScanFile, anchor: ScanFile, failures: list[Failure]) -> tuple[ErrorEntry, str]:
    """Return why a scan was not finished, and the name of the crash file that tells more."""
    own = [failure for failure in failures if belongs(failure, scan)]
    if own:
        first = own[0]
        entry = ErrorEntry(scan=scan.name, what=first.what, where=first.where or scan.relative, fix=first.fix,
                           details=first.details)  # fmt: skip
        return entry, _name(first)
    behind = [failure for failure in failures if belongs(failure, anchor)]
    if behind and anchor != scan:
        return ErrorEntry(
            scan=scan.name, what=f'It follows {anchor.name}, which failed: {behind[0].what}', where=scan.relative,
            fix='Mend or remove that scan, or give its mask with --derivatives.', details=behind[0].details,
        ), _name(behind[0])  # fmt: skip
    if shared := [failure for failure in failures if _of_subject(failure, scan)]:
        return ErrorEntry(
            scan=scan.name, what=f'A step that all scans of the subject need failed: {shared[0].what}',
            where=shared[0].where or scan.relative, fix=shared[0].fix or 'Mend that, and run the same command again.',
            details=shared[0].details,
        ), _name(shared[0])  # fmt: skip
    if whole := [failure for failure in failures if of_graph(failure)]:
        return ErrorEntry(
            scan=scan.name, what=f'The run of its batch ended early: {whole[0].what}', where=scan.relative,
            fix='Mend that, and run the same command again.', details=whole[0].details,
        ), _name(whole[0])  # fmt: skip
    return ErrorEntry(
        scan=scan.name, what=SILENT, where=scan.relative,
        fix='Look into nipype.log, and run the same command again.', details='',
    ), 'nipype.log'  # fmt: skip


def _of_subject(failure: Failure, scan: ScanFile) -> bool:
    """Say whether a failed node works for all scans of a subject: it lies in the graph of the subject, and in none below."""
    graphs = failure.node.split('.')[:-1]
    return bool(graphs) and graphs[-1] == subject_wf_name(scan.subject)


def _name(failure: Failure) -> str:
    return failure.file.name if failure.file else ''


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
