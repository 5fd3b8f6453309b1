"""Which scans are done already: by their QC record, which is written last and names what it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bidsharm.bids.atomic import remove_with_sidecar
from bidsharm.files import open_regular, read_json


def fingerprint(path: Path) -> dict[str, Any]:
    """Return size, time and SHA-256 of a file."""
    status = path.stat()
    with open_regular(path) as file:
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
        record = read_json(path)
    except (OSError, ValueError):
        return None
    ours = {'verdict', 'scan', 'subject', 'contrast'}
    return record if isinstance(record, dict) and ours <= record.keys() else None


def is_complete(
    qc_file: Path,
    root: Path,
    sources: Mapping[str, Path],
    digest: str,
    *,
    site: str | None = None,
    handoff: Path | None = None,
    handed_off: Collection[str] = (),
) -> bool:
    """Say whether a scan has been done with these settings, and its files are those that were written then.

    They are not where another process has written over them with other settings, or somebody has edited them.

    Parameters
    ----------
    qc_file
        Its QC record.
    root
        Folder of the derivatives.
    sources
        Files that it is made from, by BIDS URI: the scan, the scan that it follows, what is reused. They must be
        those of the record, and unchanged.
    digest
        Digest of the settings.
    site
        Where the scan comes from, as the data set says now; None: that does not matter.
    handoff, handed_off
        Folder of ``--fmriprep-derivatives``, and the names of the files that must lie there as they were written.
    """
    record = read_record(qc_file)
    if record is None or record.get('digest') != digest:
        return False
    if site is not None and record.get('site') != site:
        return False
    try:
        before = record['inputs']
        return (
            all((root / name).is_file() for name in record['figures'].values())
            and all(unchanged(root / name, written) for name, written in record['outputs'].items())
            and before.keys() == sources.keys()
            and all(unchanged(file, before[uri]) for uri, file in sources.items())
            and (handoff is None or _all_there(handoff, handed_off, record.get('fmriprep_derivatives', {})))
        )
    except (KeyError, TypeError, AttributeError):
        return False  # a record that someone edited proves nothing


def retire(qc_file: Path, root: Path, digest: str) -> None:
    """Take away the record of a scan that is done again, and what it names where that was made with other settings.

    Otherwise images of two methods could lie side by side: in a space that is no longer asked for, or after a failure.

    Parameters
    ----------
    qc_file
        Its QC record.
    root
        Folder of the derivatives; nothing outside it is touched.
    digest
        Digest of the settings of now.
    """
    record, place = read_record(qc_file), root.resolve()
    qc_file.unlink(missing_ok=True)
    outputs = record.get('outputs') if record and record.get('digest') != digest else None
    for name in outputs if isinstance(outputs, dict) else ():
        if lies_in(place, name) and (root / name).is_file():
            remove_with_sidecar(root / name)


def lies_in(root: Path, name: object) -> bool:
    """Say whether a relative path of a record stays in a folder, also where links lead; ``root`` must be resolved."""
    if not isinstance(name, str):
        return False
    try:
        path = (root / name).resolve()
        path.is_file()  # a name that the system refuses, for example as too long, is found here
    except (OSError, ValueError, RuntimeError):
        return False
    return path.is_relative_to(root)


def _all_there(folder: Path, names: Collection[str], written: Mapping[str, Any]) -> bool:
    return all(name in written and unchanged(folder / name, written[name]) for name in names)
