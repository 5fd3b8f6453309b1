"""Which scans are done already: by their QC record, which is written last and names what it was made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint(path: Path) -> dict[str, Any]:
    """Return size, time and SHA-256 of a file."""
    status = path.stat()
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return {'size': status.st_size, 'mtime_ns': status.st_mtime_ns, 'sha256': digest}


def unchanged(path: Path, before: dict[str, Any]) -> bool:
    """Say whether a file is what it was; its content is read only when size and time do not settle it."""
    try:
        status = path.stat()
        if status.st_size != before.get('size'):
            return False
        return status.st_mtime_ns == before.get('mtime_ns') or fingerprint(path)['sha256'] == before.get(
            'sha256'
        )
    except OSError:
        return False


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a QC record, or None when there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return None
    ours = {'verdict', 'scan', 'subject', 'contrast'}
    return record if isinstance(record, dict) and ours <= record.keys() else None


def is_complete(qc_file: Path, root: Path, native: Path, digest: str) -> bool:
    """Say whether a scan has been done with these settings, all of its files are there and its input is the same."""
    record = read_record(qc_file)
    if record is None or record.get('digest') != digest:
        return False
    try:
        names = [*record['outputs'], *record['figures'].values()]
        return all((root / name).is_file() for name in names) and unchanged(native, record['input'])
    except (KeyError, TypeError, AttributeError):
        return False  # a record that someone edited proves nothing
