"""From records on disk to reports: one page a subject, one for all."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsharm import __version__
from bidsharm.bids.atomic import write_json, write_text
from bidsharm.bids.resume import lies_in, read_record
from bidsharm.errors import ScanError
from bidsharm.reports.group import FeatureComparison, group_table, write_group_report
from bidsharm.reports.subject import ErrorEntry, ScanEntry, SkippedEntry, write_subject_report
from bidsharm.settings import CONTRASTS

_log = logging.getLogger(__name__)

_LABEL = re.compile(r'[0-9A-Za-z+]+')


def records_of(root: Path, subject: str | None = None) -> list[dict[str, Any]]:
    """Return the QC records of a subject, or of all, in the order of their names.

    What a record says becomes names of files and content of pages. One that names things outside ``root``, or
    labels that are no labels, is left out like one that cannot be read.
    """
    pattern = f'sub-{subject}' if subject else 'sub-*'
    files = sorted({*root.glob(f'{pattern}/anat/*_qc.json'), *root.glob(f'{pattern}/ses-*/anat/*_qc.json')})
    place, records = root.resolve(), []
    for file in files:
        record = read_record(file)
        if record is None:
            continue
        if _is_trusted(record, place):
            records.append(record)
        else:
            _log.warning('This record is ignored, because it is not one that this version writes: %s', file)
    return sorted(records, key=lambda record: str(record.get('scan', '')))


def _is_trusted(record: Mapping[str, Any], root: Path) -> bool:
    """Say whether labels and paths of a record are such as a run writes; ``root`` must be resolved."""
    subject, contrast = record.get('subject'), record.get('contrast')
    if not isinstance(subject, str) or not _LABEL.fullmatch(subject) or contrast not in CONTRASTS:
        return False
    if not all(isinstance(record.get(key, ''), str) for key in ('scan', 'site', 'verdict')):
        return False
    figures, outputs = record.get('figures', {}), record.get('outputs', {})
    if not isinstance(figures, dict) or not isinstance(outputs, dict):
        return False
    return all(lies_in(root, name) for name in (*figures.values(), *outputs))


def page_name(subject: str) -> str:
    """Return the name of a subject's page in the folder of the derivatives."""
    return f'sub-{subject}.html'


def report_subject(
    root: Path,
    subject: str,
    *,
    methods: Mapping[str, Any],
    errors: Sequence[ErrorEntry] = (),
    left_out: Sequence[ScanError] = (),
) -> Path:
    """Write the page of a subject (:func:`page_name`) from everything that is on disk for a subject.

    Parameters
    ----------
    root
        Folder of the derivatives.
    subject
        Label of the subject.
    methods
        How this run works (:meth:`bidsharm.bids.boilerplate.Boilerplate.to_dict`); it stands in the page only where
        there is no result yet. A result tells itself how it was made.
    errors, left_out
        Scans that failed, and scans that were not meant to be done.
    """
    failed = {error.scan for error in errors}
    records = [record for record in records_of(root, subject) if record.get('scan') not in failed]
    entries = []
    for record in records:
        figures = {
            name: root / path for name, path in record.get('figures', {}).items() if (root / path).is_file()
        }
        entries.append(ScanEntry(qc=record, figures=figures, outputs=tuple(record.get('outputs', {}))))
    told = methods_of(records) if records else methods
    return write_subject_report(
        root / page_name(subject),
        subject=subject,
        scans=entries,
        skipped=[SkippedEntry(scan=item.where, reason=item.what) for item in left_out],
        errors=list(errors),
        methods_text=str(told.get('text', '')),
        references=list(told.get('references', [])),
        provenance=dict(told.get('provenance', {})),
    )


def methods_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how the results of some records were made; where they differ, each way with its scans."""
    ways: dict[str, list[str]] = {}
    references: dict[str, None] = {}
    provenance: dict[str, dict[str, None]] = {}
    for record in records:
        told = _typed(record.get('methods'), dict)
        text = str(told.get('text') or 'How this was made was not recorded.')
        ways.setdefault(text, []).append(str(record.get('scan', '')))
        references |= dict.fromkeys(str(line) for line in _typed(told.get('references'), list))
        for name, value in _typed(told.get('provenance'), dict).items():
            provenance.setdefault(str(name), {})[str(value)] = None
    texts = list(ways)
    if len(ways) > 1:
        texts = [f'{", ".join(scans)}:\n\n{text}' for text, scans in ways.items()]
    return {
        'text': '\n\n'.join(texts),
        'references': list(references),
        'provenance': {name: ' / '.join(values) for name, values in provenance.items()},
    }


def _typed(value: Any, kind: type) -> Any:
    """Return a value of a record, or an empty one of the kind that it should be."""
    return value if isinstance(value, kind) else kind()


def report_group(
    root: Path,
    records: Sequence[Mapping[str, Any]],
    *,
    title: str,
    failed: Sequence[ErrorEntry] = (),
    harmonize: Callable[[Path, str], FeatureComparison] | None = None,
) -> list[Path]:
    """Write ``group.html`` and, for each contrast, ``group_<contrast>.tsv`` with its dictionary.

    Parameters
    ----------
    root, records, title, failed
        Output folder, what was measured, and what the page says of it.
    harmonize
        Harmonizes the features of a table and writes them beside it; takes the table and its contrast.
    """
    written, features = [], []
    for contrast in dict.fromkeys(str(record['contrast']) for record in records):
        rows, dictionary = group_table([record for record in records if record['contrast'] == contrast])
        table = root / f'group_{contrast}.tsv'
        write_text(table, _tsv(rows, list(dictionary)))
        write_json(table.with_suffix('.json'), dictionary)
        written.append(table)
        for ending in ('tsv', 'json', 'html'):  # those of an earlier run are about other numbers
            (root / f'{table.stem}_desc-harmonized.{ending}').unlink(missing_ok=True)
        if harmonize is not None:
            features.append(harmonize(table, contrast))
    links = {str(record['subject']): page_name(str(record['subject'])) for record in records}
    links = {subject: name for subject, name in links.items() if (root / name).is_file()}
    page = write_group_report(
        root / 'group.html', scans=records, failed=list(failed), title=title,
        provenance={'bidsharm': __version__}, report_links=links, features=features,
    )  # fmt: skip
    pages = [root / one.link for one in features if one.link]
    return [page, *written, *pages]


def _tsv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    def cell(value: Any) -> str:
        if value is None or value == '':
            return 'n/a'
        text = f'{value:.6g}' if isinstance(value, float) else str(value)
        return text.replace('\t', ' ').replace('\n', ' ')

    lines = ['\t'.join(columns), *('\t'.join(cell(row.get(name)) for name in columns) for row in rows)]
    return '\n'.join(lines) + '\n'
