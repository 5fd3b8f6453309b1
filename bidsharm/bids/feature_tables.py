"""Tables of features: those of bidsharm, FreeSurfer and MRIQC, or any other with a row a scan; in and out."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bidsharm.bids.atomic import write_json, write_text
from bidsharm.errors import UsageError
from bidsharm.files import MAX_TABLE, read_json, read_text
from bidsharm.harmonizers.design import is_number, odd_cell
from bidsharm.harmonizers.table import FeatureTable, some

#: How tables write that there is nothing.
MISSING = frozenset({'', 'n/a', 'na', 'nan', 'null'})
DESCRIPTION = '_desc-harmonized'
#: Columns of sites that are looked for when none is named.
SITE_COLUMNS = ('site', 'scanner', 'site_id', 'scanner_id')
#: What says who and which visit a row is of.
_KEYS = ('participant_id', 'session_id', 'bids_name', 'subject_id', 'subject', 'scan', 'run_id', 'acq_id')
#: Features of our own group tables where none are named: what was measured on harmonized images.
_OURS = ('after_volume_*',)
_SUBJECT, _SESSION = (
    re.compile(r'(?:^|[/_])(sub-[0-9A-Za-z+]+)'),
    re.compile(r'(?:^|[/_])(ses-[0-9A-Za-z+]+)'),
)


@dataclass(frozen=True)
class TextTable:
    """A table as it is written.

    Parameters
    ----------
    path
        Where it was read.
    columns
        Names of the columns, all different.
    rows
        Cells as text, each row as long as ``columns``.
    delimiter
        Between cells.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    delimiter: str = '\t'

    def column(self, name: str) -> list[str]:
        """Return the cells of a column; missing ones are empty."""
        index = self.columns.index(name)
        return [_cell(row[index]) for row in self.rows]

    @property
    def name(self) -> str:
        """The name of the file without its extension."""
        return self.path.stem


@dataclass(frozen=True)
class Choice:
    """Which columns are what.

    Parameters
    ----------
    site
        Columns of the site, joined by hyphens; a usual name by default.
    kept
        Columns that the formula uses.
    features
        Patterns of features; by default all numbers that are nothing else.
    participants
        Table of people, for columns that the table lacks.
    others
        Columns that choose rows.
    """

    site: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    participants: TextTable | None = None
    others: tuple[str, ...] = ()


def read_table(path: Path) -> TextTable:
    """Read a table; tabs or commas, by what its first line has more of.

    Raises
    ------
    UsageError
        If it cannot be read, has no rows, or rows of different length.
    """
    try:
        text = read_text(path, MAX_TABLE, encoding='utf-8-sig')
    except (OSError, ValueError) as error:
        why = getattr(error, 'strerror', None) or 'it is no text'
        raise UsageError(f'The table cannot be read: {why}.', where=str(path)) from None
    first = text.partition('\n')[0]
    delimiter = max('\t,;', key=lambda mark: (first.count(mark), mark == '\t'))
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == '\t' else csv.QUOTE_MINIMAL
    try:
        lines = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, quoting=quoting) if row]
    except csv.Error as error:
        raise UsageError(f'The table cannot be read: {error}.', where=str(path)) from None
    if len(lines) < 2:
        raise UsageError('The table has no rows.', where=str(path))
    columns = tuple(cell.strip() for cell in lines[0])
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UsageError(f'Columns have the same name: {some(twice)}.', where=str(path))
    for index, row in enumerate(lines[1:], 2):
        if len(row) != len(columns):
            raise UsageError(
                f'Line {index} has {len(row)} cells, and the first line {len(columns)}.', where=str(path)
            )
    return TextTable(path, columns, tuple(tuple(row) for row in lines[1:]), delimiter)


def read_participants_table(path: Path) -> TextTable:
    """Read a table of people: a file, or ``participants.tsv`` of a folder.

    Raises
    ------
    UsageError
        As :func:`read_table`, or if it has no ``participant_id``.
    """
    table = read_table(path / 'participants.tsv' if path.is_dir() else path)
    if 'participant_id' not in table.columns:
        raise UsageError('The table of people has no column participant_id.', where=str(table.path))
    return table


def people_of(table: TextTable) -> tuple[list[str], list[str], list[str]]:
    """Return person, session (or an empty string) and a name for each row."""
    if 'participant_id' in table.columns:
        people = [_person(cell) for cell in table.column('participant_id')]
        sessions = table.column('session_id') if 'session_id' in table.columns else [''] * len(people)
        sessions = [_session(cell) for cell in sessions]
    else:
        names_of = ('bids_name', 'subject_id', 'subject')
        first = table.column(next((n for n in names_of if n in table.columns), table.columns[0]))
        people = [match[1] if (match := _SUBJECT.search(cell)) else _person(cell) for cell in first]
        sessions = [match[1] if (match := _SESSION.search(cell)) else '' for cell in first]
    if '' in people:
        raise UsageError(
            f'Row {people.index("") + 1} does not say whose it is.', where=str(table.path),
            fix='Give a column participant_id, or the name of the scan in the first column.',
        )  # fmt: skip
    names = ['_'.join(filter(None, pair)) for pair in zip(people, sessions, strict=True)]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f'{name} ({seen[name]})'
    return people, sessions, names


def feature_table(table: TextTable, choice: Choice) -> FeatureTable:
    """Return the features, sites and kept columns of a table.

    Raises
    ------
    UsageError
        If a column is not there, or no feature is left.
    """
    people, sessions, names = people_of(table)
    known = {name: table.column(name) for name in table.columns}
    if choice.participants is not None:
        known = {**_joined(choice.participants, people, sessions, table.path), **known}
    site = choice.site or next(((name,) for name in SITE_COLUMNS if name in known), ())
    if not site:
        raise UsageError(
            f'There is no column of sites ({", ".join(SITE_COLUMNS)}).', where=str(table.path),
            fix='Name it with --site, and give --participants if it is there.',
        )  # fmt: skip
    for option, wanted in (('--site', site), ('--keep', choice.kept), ('--fit-rows', choice.others)):
        check_columns(option, wanted, known)
    features = chosen_features(table, choice, site)
    values = np.array([_numbers(table.column(name)) for name in features]).T
    labels = [[known[name][row] for name in site] for row in range(len(people))]
    return FeatureTable(
        values,
        features,
        tuple('-'.join(' '.join(part.split()) for part in parts) if all(parts) else '' for parts in labels),
        keys=tuple(names),
        people=tuple(people),
        covariates={name: _covariate(known[name]) for name in dict.fromkeys((*choice.kept, *choice.others))},
    )


def chosen_features(table: TextTable, choice: Choice, site: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that are harmonized.

    Raises
    ------
    UsageError
        If a pattern fits no column of numbers, there is none, or a column of numbers has a cell that is none.
    """
    taken = {*site, *choice.kept, *_KEYS}
    if 'participant_id' not in table.columns:
        taken.add(table.columns[0])
    patterns = choice.features or (_OURS if {'scan', 'verdict'} <= set(table.columns) else ())
    named = {name for name in table.columns if patterns and {name, escape(name)} & set(patterns)}
    numbers = [
        n for n in table.columns
        if n not in taken and (_is_numeric(table.column(n)) or (n in named and not any(table.column(n))))
    ]  # fmt: skip
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in numbers):
            near = get_close_matches(pattern, numbers, 3) or numbers[:3]
            why = (
                'is used otherwise or holds no numbers'
                if pattern in table.columns
                else 'fits no column of numbers'
            )
            raise UsageError(
                f'"{pattern}" {why}.', where='--features', fix=f'There are: {", ".join(near) or "none"}.'
            )  # fmt: skip

    def wanted(name: str) -> bool:
        return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)

    for name in (n for n in table.columns if n not in taken and n not in numbers and wanted(n)):
        _check_nearly_numeric(table, name)
    found = [n for n in numbers if wanted(n)]
    if not found:
        raise UsageError('There is no column of numbers to harmonize.', where=str(table.path))
    return tuple(found)


def harmonized_text(
    table: TextTable, features: Sequence[str], before: NDArray[Any], after: NDArray[Any]
) -> str:
    """Return a table with other numbers; columns, order, and every cell that did not change are as they were.

    Parameters
    ----------
    table
        The table that was read.
    features
        Columns that were harmonized.
    before, after
        Their numbers, shape (rows, features).
    """
    rows = [list(row) for row in table.rows]
    for column, name in enumerate(features):
        index = table.columns.index(name)
        for row, (old, new) in enumerate(zip(before[:, column], after[:, column], strict=True)):
            if math.isfinite(new) and new != old:
                rows[row][index] = f'{new:.10g}'
    out = io.StringIO()
    if table.delimiter == '\t':
        out.writelines('\t'.join(row) + '\n' for row in [table.columns, *rows])
    else:
        csv.writer(out, delimiter=table.delimiter, lineterminator='\n').writerows([table.columns, *rows])
    return out.getvalue()


def out_path(table: TextTable, folder: Path) -> Path:
    """Return where the harmonized table goes.

    Raises
    ------
    UsageError
        If the table is harmonized already.
    """
    if DESCRIPTION in table.name:
        raise UsageError('The table is a harmonized one.', where=str(table.path), fix='Give the one that it was made of.')  # fmt: skip
    return folder / f'{table.name}{DESCRIPTION}{table.path.suffix or ".tsv"}'


def write_harmonized(
    table: TextTable, path: Path, text: str, features: Sequence[str], record: Mapping[str, Any]
) -> None:
    """Write a harmonized table and its data dictionary, which is that of the table with a word on what changed.

    Parameters
    ----------
    table
        The table that was read; ``<name>.json`` beside it is its dictionary, if there is one.
    path, text
        The new table.
    features
        Columns that were harmonized.
    record
        What was done, for the key ``Harmonization``.
    """
    write_text(path, text)
    known = _dictionary(table.path.with_suffix('.json'))
    content: dict[str, Any] = {}
    for name in table.columns:
        entry = known.get(name)
        content[name] = dict(entry) if isinstance(entry, Mapping) else {}
        if name in features:
            old = str(content[name].get('Description') or name)
            content[name]['Description'] = f'{old.rstrip(".")}. Harmonized by {record["Method"]}.'
        elif not content[name]:
            content[name]['Description'] = f'{name}, as in {table.path.name}.'
    write_json(path.with_suffix('.json'), {**content, 'Harmonization': dict(record)})


def _dictionary(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _joined(
    participants: TextTable, people: Sequence[str], sessions: Sequence[str], where: Path
) -> dict[str, list[str]]:
    """Return the columns of the table of people for each row; a row of the same session goes before one without."""
    theirs, visits, _ = people_of(participants)
    place: dict[tuple[str, str], int] = {}
    for index, pair in enumerate(zip(theirs, visits, strict=True)):
        place.setdefault(pair, index)
    rows = [place.get((p, s), place.get((p, ''))) for p, s in zip(people, sessions, strict=True)]
    if all(row is None for row in rows):
        raise UsageError(
            f'Nobody of {where.name} is in the table of people: {people[0]} and others are not there.',
            where=str(participants.path), fix='Compare participant_id of both.',
        )  # fmt: skip
    columns = {name: participants.column(name) for name in participants.columns}
    return {name: [cells[row] if row is not None else '' for row in rows] for name, cells in columns.items()}


def check_columns(option: str, wanted: Sequence[str], known: Collection[str]) -> None:
    """Refuse names of columns that are not there.

    Raises
    ------
    UsageError
        With the nearest ones.
    """
    for name in wanted:
        if name not in known:
            near = get_close_matches(name, list(known), 3) or list(known)
            raise UsageError(f'There is no column "{name}".', where=option, fix=f'There are: {some(near)}.')


def _cell(text: str) -> str:
    stripped = text.strip()
    return '' if stripped.lower() in MISSING else stripped


def _person(cell: str) -> str:
    return cell if not cell or cell.startswith('sub-') else f'sub-{cell}'


def _session(cell: str) -> str:
    return cell if not cell or cell.startswith('ses-') else f'ses-{cell}'


def _is_numeric(cells: Sequence[str]) -> bool:
    there = [cell for cell in cells if cell]
    return bool(there) and all(map(is_number, there))


def _check_nearly_numeric(table: TextTable, name: str) -> None:
    cells = table.column(name)
    row = odd_cell(cells)
    if row is not None:
        raise UsageError(
            f'Column "{name}" holds numbers, and "{cells[row]}" in row {row + 1}.', where=str(table.path),
            fix='Write n/a for what is missing, or name the features without this column (--features).',
        )  # fmt: skip


def _numbers(cells: Sequence[str]) -> NDArray[np.float64]:
    return np.array([float(cell) if cell else math.nan for cell in cells])


def _covariate(cells: Sequence[str]) -> NDArray[Any]:
    return _numbers(cells) if _is_numeric(cells) else np.array(cells, dtype=str)
