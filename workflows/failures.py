"""What went wrong with a scan stays known until it went well: a report of a later run must not forget it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from bidsharm.bids.atomic import write_json
from bidsharm.bids.dataset import read_json
from bidsharm.bids.names import ScanFile
from bidsharm.reports.subject import ErrorEntry

_log = logging.getLogger(__name__)

#: Where the failures lie, from the root of the derivatives; one file a scan, so that parallel jobs do not meet.
FOLDER = Path('logs') / 'failures'


def remember(root: Path, scan: ScanFile, entry: ErrorEntry) -> None:
    """Write down why a scan failed; a disk that is too full for it must not cost the other scans."""
    file = root / FOLDER / f'{scan.name}.json'
    try:
        write_json(file, {**asdict(entry), 'file': scan.relative})
    except OSError as error:
        _log.warning('That %s failed cannot be written down: %s', scan.name, error)


def forget(root: Path, scan: ScanFile) -> None:
    """Strike out the failure of a scan that is done."""
    with contextlib.suppress(OSError):
        (root / FOLDER / f'{scan.name}.json').unlink(missing_ok=True)


def remembered(root: Path, subject: str, *, bids_dir: Path) -> list[ErrorEntry]:
    """Return the failures of a subject that still stand; a scan that is no longer in the data set cannot fail."""
    entries = []
    names = [field.name for field in fields(ErrorEntry)]
    for file in _files(root, subject):
        content = read_json(file)
        raw = str(content.get('file', ''))
        if content.get('scan') == file.stem and raw and os.path.lexists(bids_dir / raw):
            entries.append(ErrorEntry(**{name: str(content.get(name, '')) for name in names}))
    return entries


def _files(root: Path, subject: str) -> Iterable[Path]:
    return sorted((root / FOLDER).glob(f'sub-{subject}_*.json'))
