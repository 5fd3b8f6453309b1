"""The group level: one table a contrast and one page over all subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bidsharm.workflows.progress import counted
from bidsharm.workflows.reporting import records_of, report_group
from rich.console import Console

from bidsharm.bids.dataset import read_json
from bidsharm.bids.query import select_scans
from bidsharm.errors import BidsharmError, ExitCode, NothingToDo
from bidsharm.reports.subject import ErrorEntry
from bidsharm.settings import Settings


def run_group(settings: Settings, console: Console) -> ExitCode:
    """Run the group level on what the participant level has written.

    Raises
    ------
    NothingToDo
        If there is no record in the output folder.
    """
    root, chosen = settings.output_dir, set(settings.participant_label)
    records = [record for record in records_of(root) if not chosen or record['subject'] in chosen]
    if not records:
        raise NothingToDo(
            'There is no harmonized scan in the output folder.',
            where=str(root),
            fix='Run the participant level first.',
        )
    subjects = {record['subject'] for record in records}
    console.print(f'{counted(len(records), "scan")} of {counted(len(subjects), "subject")}')
    title = str(read_json(settings.bids_dir / 'dataset_description.json').get('Name', settings.bids_dir.name))
    missing = missing_scans(settings, records)
    for entry in missing:
        console.print(f'missing   {entry.scan}: {entry.what}', markup=False, style='yellow')
    if settings.dry_run:
        return ExitCode.OK
    for path in report_group(root, records, title=title, failed=missing):
        console.print(f'report    {path}', markup=False, highlight=False, soft_wrap=True)
    return ExitCode.OK


def missing_scans(settings: Settings, records: Sequence[Mapping[str, Any]]) -> list[ErrorEntry]:
    """Return the scans of the data set that have no result: a page that is silent about them would mislead."""
    if not any(settings.bids_dir.glob('sub-*')):
        return []  # the group level also works where the raw data are no longer at hand
    try:
        scans = select_scans(settings).scans
    except BidsharmError:
        return []
    done = {str(record['scan']) for record in records}
    return [
        ErrorEntry(
            scan=scan.name, what='There is no harmonized image of it: it failed, was left out, or has not been run.',
            where=scan.relative, fix=f'See sub-{scan.subject}.html, or run the participant level again.', details='',
        )
        for scan in scans
        if scan.name not in done
    ]  # fmt: skip
