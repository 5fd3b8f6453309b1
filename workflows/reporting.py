"""From records on disk to reports: one page a subject, one for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsharm import __version__
from bidsharm.bids.atomic import write_json, write_text
from bidsharm.bids.boilerplate import Boilerplate
from bidsharm.bids.resume import read_record
from bidsharm.errors import ScanError
from bidsharm.reports.group import group_table, write_group_report
from bidsharm.reports.subject import ErrorEntry, ScanEntry, SkippedEntry, write_subject_report


def records_of(root: Path, subject: str | None = None) -> list[dict[str, Any]]:
    """Return the QC records of a subject, or of all, in the order of their names."""
    pattern = f'sub-{subject}' if subject else 'sub-*'
    files = sorted({*root.glob(f'{pattern}/anat/*_qc.json'), *root.glob(f'{pattern}/ses-*/anat/*_qc.json')})
    records = [record for file in files if (record := read_record(file)) is not None]
    return sorted(records, key=lambda record: str(record.get('scan', '')))


def report_subject(
    root: Path,
    subject: str,
    *,
    boilerplate: Boilerplate,
    errors: Sequence[ErrorEntry] = (),
    left_out: Sequence[ScanError] = (),
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write ``sub-XX.html`` from everything that is on disk for a subject."""
    entries = []
    failed = {error.scan for error in errors}
    for record in records_of(root, subject):
        if record.get('scan') in failed:
            continue
        figures = {
            name: root / path for name, path in record.get('figures', {}).items() if (root / path).is_file()
        }
        entries.append(ScanEntry(qc=record, figures=figures, outputs=record.get('outputs', [])))
    skipped = [SkippedEntry(scan=item.where, reason=item.what) for item in left_out]
    return write_subject_report(
        root / f'sub-{subject}.html',
        subject=subject,
        scans=entries,
        skipped=skipped,
        errors=list(errors),
        methods_html_free_text=boilerplate.text,
        references=boilerplate.references,
        provenance={'bidsharm': __version__, **(provenance or {})},
    )


def report_group(
    root: Path, records: Sequence[Mapping[str, Any]], *, title: str, failed: Sequence[ErrorEntry] = ()
) -> list[Path]:
    """Write ``group.html`` and, for each contrast, ``group_<contrast>.tsv`` with its dictionary."""
    written = []
    for contrast in dict.fromkeys(str(record['contrast']) for record in records):
        rows, dictionary = group_table([record for record in records if record['contrast'] == contrast])
        table = root / f'group_{contrast}.tsv'
        write_text(table, _tsv(rows, list(dictionary)))
        write_json(table.with_suffix('.json'), dictionary)
        written.append(table)
    links = {str(record['subject']): f'sub-{record["subject"]}.html' for record in records}
    links = {subject: name for subject, name in links.items() if (root / name).is_file()}
    page = write_group_report(
        root / 'group.html', scans=records, failed=list(failed), title=title,
        provenance={'bidsharm': __version__}, report_links=links,
    )  # fmt: skip
    return [page, *written]


def _tsv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    def cell(value: Any) -> str:
        if value is None or value == '':
            return 'n/a'
        text = f'{value:.6g}' if isinstance(value, float) else str(value)
        return text.replace('\t', ' ').replace('\n', ' ')

    lines = ['\t'.join(columns), *('\t'.join(cell(row.get(name)) for name in columns) for row in rows)]
    return '\n'.join(lines) + '\n'
