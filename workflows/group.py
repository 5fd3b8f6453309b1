"""The group level: one table a contrast and one page over all subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bidsharm.workflows.events import Plan, ScanLeftOut
from bidsharm.workflows.logs import Journal, keep_journal
from bidsharm.workflows.progress import counted
from bidsharm.workflows.reporting import page_name, records_of, report_group
from bidsharm.workflows.summary import Outcome, concerns_of, write_summary
from rich.console import Console

from bidsharm.bids.dataset import raw_description, refuse_links_out
from bidsharm.bids.names import parse_name
from bidsharm.bids.query import absent_labels, raw_labels, same_label, select_scans, some_of
from bidsharm.errors import BidsharmError, ExitCode, NothingToDo, NotServed, UsageError
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.execution import resolve_device
from bidsharm.reports.group import FeatureComparison
from bidsharm.reports.subject import ErrorEntry
from bidsharm.settings import Settings


def run_group(settings: Settings, console: Console, arguments: Sequence[str] = ()) -> ExitCode:
    """Run the group level on what the participant level has written.

    Parameters
    ----------
    settings
        Settings of the run.
    console
        Where a person looks.
    arguments
        The command line that the settings come from; it is logged.

    Raises
    ------
    NothingToDo
        If there is no record in the output folder, or none that was asked for.
    UsageError
        If a participant, a session or the harmonizer is not there.
    ConfigurationError
        If a device that was asked for is not there.
    """
    with keep_journal(settings, console, arguments) as journal:
        _check_method(settings)
        root = settings.output_dir
        records = chosen_records(settings, records_of(root))
        if not settings.dry_run:
            refuse_links_out(root)
            journal.open(settings)
        subjects = sorted({str(record['subject']) for record in records})
        missing = missing_scans(settings, records)
        _tell_plan(settings, records, subjects, missing, journal)
        if settings.dry_run:
            return journal.finish({}, ExitCode.OK)
        title = str(raw_description(settings).get('Name', settings.bids_dir.name))
        outcome = Outcome(
            verdicts={str(record['scan']): str(record['verdict']) for record in records},
            concerns={str(record['scan']): concerns_of(record) for record in records},
            left_out=[NotServed(entry.what, where=entry.scan, fix=entry.fix) for entry in missing],
            reports=report_group(
                root, records, title=title, failed=missing, harmonize=_table_harmonizer(settings)
            ),
        )
        for path in outcome.reports:
            journal.screen.say(f'report    {path}', whole=True)
        journal.reports(outcome.reports)
        assert journal.log_dir is not None
        write_summary(
            journal.log_dir, outcome, level='group', rerun=(), seconds=journal.seconds, exit_code=int(ExitCode.OK)
        )  # fmt: skip
        return journal.finish(outcome.counts, ExitCode.OK)


def _tell_plan(
    settings: Settings,
    records: Sequence[Mapping[str, Any]],
    subjects: Sequence[str],
    missing: Sequence[ErrorEntry],
    journal: Journal,
) -> None:
    """Tell which scans the page is about, and which have no result."""
    targets = sorted({str(record.get('harmonizer', {}).get('target', '')) for record in records})
    journal.screen.say(f'{counted(len(records), "scan")} of {counted(len(subjects), "subject")}')
    journal.events.emit(
        Plan(
            subjects=list(subjects), scans=[str(record['scan']) for record in records], left_out=len(missing),
            harmonizer=settings.harmonizer, target=', '.join(targets), device=settings.device,
        )
    )  # fmt: skip
    for entry in missing:
        journal.screen.say(f'missing   {entry.scan}: {entry.what}', style='yellow')
        journal.events.emit(ScanLeftOut(entry.scan, entry.what, entry.fix, refused=False))


def _table_harmonizer(settings: Settings) -> Callable[[Path, str], FeatureComparison] | None:
    """Return what harmonizes the features of a table; None where nobody asked for it."""
    if settings.table_harmonizer == 'none':
        return None
    from bidsharm.workflows.feature_tables import harmonize_group_table

    return lambda path, contrast: harmonize_group_table(settings, path, contrast)


def _check_method(settings: Settings) -> None:
    """Refuse a harmonizer, a method for tables or a device that is not there, as the participant level does."""
    registry.get(settings.harmonizer)
    if settings.table_harmonizer != 'none':
        from bidsharm.workflows.feature_tables import table_method

        from bidsharm.harmonizers.design import parse_formula

        try:
            table_method(settings.table_harmonizer)
            parse_formula(settings.table_keep)
        except UsageError as error:
            option = '--table-keep' if error.where == '--keep' else '--table-harmonizer'
            raise UsageError(error.what, where=option, fix=error.fix) from None
    elif settings.table_keep:
        raise UsageError(
            'There is nothing to keep: no features are harmonized.', where='--table-keep',
            fix='Name a method with --table-harmonizer.',
        )  # fmt: skip
    if settings.device != 'auto':
        resolve_device(settings.device)


def chosen_records(settings: Settings, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records that the options which choose scans leave.

    Raises
    ------
    UsageError
        If a participant or session that was asked for is neither among the records nor in the data set.
    NothingToDo
        If no record is left, naming the option that removed the last one.
    """
    root = str(settings.output_dir)
    if not records:
        raise NothingToDo(
            'There is no harmonized scan in the output folder.',
            where=root,
            fix='Run the participant level first.',
        )
    for option, wanted, key in (
        ('--participant-label', settings.participant_label, 'subject'),
        ('--session-label', settings.session_label, 'session'),
    ):
        present = raw_labels(settings.bids_dir, key) | {
            label for record in records if (label := _label(record, key)) is not None
        }
        if absent := absent_labels(wanted, present, key):
            raise UsageError(
                f'Neither among the results nor in the data set: {", ".join(absent)}.',
                where=option,
                fix=f'There are: {some_of(sorted(present))}.',
            )
    kept = list(records)
    for option, wanted, key in (
        ('--participant-label', settings.participant_label, 'subject'),
        ('--session-label', settings.session_label, 'session'),
        ('--contrasts', settings.contrasts, 'contrast'),
        ('--run', settings.run, 'run'),
    ):
        left = [record for record in kept if not wanted or _chosen(_label(record, key), wanted, key)]
        if not left:
            labels = sorted({_label(record, key) or 'none' for record in kept})
            raise NothingToDo(
                f'{option} {" ".join(wanted)} leaves no harmonized scan out of {len(kept)}.',
                where=root,
                fix=f'There are: {some_of(labels)}. Others have to go through the participant level first.',
            )
        kept = left
    return kept


def _label(record: Mapping[str, Any], key: str) -> str | None:
    """Return subject, session or contrast of a record, or an entity of the name of its scan."""
    if key != 'run':
        return None if record.get(key) is None else str(record[key])
    entities, _ = parse_name(str(record['scan'])) or ({}, '')
    return entities.get(key)


def _chosen(label: str | None, wanted: Sequence[str], key: str) -> bool:
    # sub-1 and sub-01 are two people; sessions and runs are compared as the participant level does.
    return label in wanted if key == 'subject' else same_label(label, wanted)


def missing_scans(settings: Settings, records: Sequence[Mapping[str, Any]]) -> list[ErrorEntry]:
    """Return the scans of the data set that have no result: a page that is silent about them would mislead."""
    # The group level also works where the raw data, or some of them, are no longer at hand.
    subjects, sessions = (raw_labels(settings.bids_dir, key) for key in ('subject', 'session'))
    chosen: dict[str, Any] = {
        'participant_label': tuple(label for label in settings.participant_label if label in subjects),
        'session_label': tuple(label for label in settings.session_label if same_label(label, sessions)),
    }
    # No label left would mean all of them.
    if not subjects or any(getattr(settings, name) and not labels for name, labels in chosen.items()):
        return []
    try:
        # Sites stand in the records; a rule for them must not decide what is missing.
        scans = select_scans(replace(settings, site='auto', **chosen)).scans
    except BidsharmError:
        return []
    done = {str(record['scan']) for record in records}
    return [
        ErrorEntry(
            scan=scan.name, what='There is no harmonized image of it: it failed, was left out, or has not been run.',
            where=scan.relative, fix=f'See {page_name(scan.subject)}, or run the participant level again.', details='',
        )
        for scan in scans
        if scan.name not in done
    ]  # fmt: skip
