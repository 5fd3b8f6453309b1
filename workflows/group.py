"""The group level: one table a contrast and one page over all subjects."""

from __future__ import annotations

from bidsharm.workflows.reporting import records_of, report_group
from rich.console import Console

from bidsharm.bids.dataset import read_json
from bidsharm.errors import ExitCode, NothingToDo
from bidsharm.settings import Settings


def run_group(settings: Settings, console: Console) -> ExitCode:
    """Run the group level on what the participant level has written.

    Raises
    ------
    NothingToDo
        If there is no record in the output folder.
    """
    root = settings.output_dir
    records = records_of(root)
    if not records:
        raise NothingToDo(
            'There is no harmonized scan in the output folder.',
            where=str(root),
            fix='Run the participant level first.',
        )
    console.print(f'{len(records)} scans of {len({record["subject"] for record in records})} subjects')
    title = str(read_json(settings.bids_dir / 'dataset_description.json').get('Name', settings.bids_dir.name))
    for path in report_group(root, title=title):
        console.print(f'report    {path}', markup=False, highlight=False, soft_wrap=True)
    return ExitCode.OK
