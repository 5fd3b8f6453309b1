"""What a network shall predict of scans: columns of participants.tsv, tissues of derivatives, or label maps of one's own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.bids.feature_tables import read_table
from bidsharm.bids.names import parse_name
from bidsharm.bids.training_input import TrainingFile
from bidsharm.errors import NothingToDo, UsageError
from bidsharm.harmonizers.contract import Scan
from bidsharm.harmonizers.task import Kind, Task
from bidsharm.imaging.segmentation import DSEG_LABELS

#: A column with more different values is no classification, and a segmentation has no more labels.
MOST_CLASSES = 20
#: A column of numbers with fewer different values is taken for classes.
LEAST_NUMBERS = 6
#: What the brain outside the chosen labels is called.
OTHER = 'other brain'
TISSUES = ('CSF', 'GM', 'WM')
_MISSING = ('', 'n/a', 'nan', 'na', 'none')
_SAME = ('sub', 'ses', 'acq', 'rec', 'run')


@dataclass(frozen=True)
class LabelledFile(TrainingFile):
    """A preprocessed scan with a label map of its voxels.

    Parameters
    ----------
    label_map
        The map; None for a scan without one.
    indices
        Values of the map that are the labels 2, 3, ... of the scan; 1 is the rest of the brain.
    """

    label_map: Path | None = None
    indices: tuple[int, ...] = field(default=())

    @property
    def key(self) -> str:
        """What tells this state of the files from any other."""
        if self.label_map is None:
            return super().key
        stat = self.label_map.stat()
        mine = [
            super().key,
            self.label_map.name,
            stat.st_size,
            stat.st_mtime_ns,
            self.indices,
        ]
        return hashlib.sha256(repr(mine).encode()).hexdigest()

    def read(self) -> Scan:
        """Read the scan with its labels: 1 for the brain outside the chosen ones, then these in order.

        Raises
        ------
        ScanError
            If a file cannot be read.
        """
        scan = super().read()
        if self.label_map is None:
            return replace(scan, tissue=None)
        given = _on_grid(self.label_map, scan)
        labels = scan.mask.astype(np.uint8)
        for number, index in enumerate(self.indices, start=2):
            labels[scan.mask & (given == index)] = number
        return replace(scan, tissue=None, labels=labels)


def _on_grid(path: Path, scan: Scan) -> NDArray[np.int64]:
    """Return a label map on the grid of a scan, by nearest neighbours where it has another."""
    from bidsharm.imaging.grids import load_checked, resample

    image = load_checked(path)
    labels = np.asarray(image.dataobj)
    affine = np.asarray(image.affine, float)
    if labels.shape != scan.data.shape or not np.allclose(affine, scan.affine, atol=1e-3):
        labels = resample(labels.astype(np.float32), affine, scan.data.shape, scan.affine, order=0)
    return np.round(labels).astype(np.int64)


def column_task(
    files: Sequence[TrainingFile], column: str, kind: Kind | None = None
) -> tuple[Task, dict[str, float | str | None]]:
    """Return a task that is a column of participants.tsv, and its values by name of the scan (None where it has none).

    Raises
    ------
    UsageError
        If there is no such column, or its values do not fit the kind.
    """
    if not any(column in file.columns for file in files):
        columns = sorted({name for file in files for name in file.columns} - {'participant_id'})
        raise UsageError(
            f'participants.tsv has no column "{column}" for these scans.', where='--task', fix=f'It has: {", ".join(columns) or "none"}.',
        )  # fmt: skip
    cells = {file.name: file.columns.get(column, '').strip() for file in files}
    known = {name: text for name, text in cells.items() if text.lower() not in _MISSING}
    numbers = {name: value for name, text in known.items() if (value := _number(text)) is not None}
    if kind is None:
        many = len(set(numbers.values())) >= LEAST_NUMBERS
        kind = 'regression' if known and len(numbers) == len(known) and many else 'classification'
    if kind == 'regression':
        if len(numbers) < len(known):
            bad = next(text for name, text in known.items() if name not in numbers)
            raise UsageError(f'"{bad}" in the column "{column}" is no number.', where='--task', fix='Give --kind classification.')  # fmt: skip
        return Task('regression', column), {name: numbers.get(name) for name in cells}
    classes = tuple(sorted(set(known.values())))
    if len(classes) > MOST_CLASSES:
        raise UsageError(
            f'The column "{column}" has {len(classes)} different values.', where='--task', fix=f'At most {MOST_CLASSES} classes can be told apart.',
        )  # fmt: skip
    return Task('classification', column, classes), {name: known.get(name) for name in cells}


def tissue_task(files: Sequence[TrainingFile]) -> tuple[Task, dict[str, float | str | None]]:
    """Return the task of segmenting the tissues that the derivatives hold, and the scans that have them."""
    values = tuple(DSEG_LABELS[name] for name in TISSUES)
    return Task('segmentation', 'dseg', TISSUES, values), {
        file.name: 'yes' if file.tissue else None for file in files
    }


def label_task(
    files: Sequence[TrainingFile], folder: Path, names: Sequence[str] = ()
) -> tuple[Task, list[TrainingFile], dict[str, float | str | None]]:
    """Return the task of segmenting the labels of ``dseg`` files, the scans with their maps, and which of them have one.

    Parameters
    ----------
    files
        Preprocessed scans.
    folder
        Holds files that end in ``_dseg.nii.gz``, named like the scans (sub, ses, acq, rec, run), and ``dseg.tsv``.
    names
        Labels to learn, by name or number; all that dseg.tsv lists by default.

    Raises
    ------
    NothingToDo
        If no scan has a label map.
    UsageError
        If a label is unknown, or there are too many.
    """
    maps = _label_maps(folder)
    indices = _indices(folder, names)
    found: list[TrainingFile] = []
    for file in files:
        base = {item: getattr(file, item) for item in TrainingFile.__dataclass_fields__}
        found.append(LabelledFile(**base, label_map=maps.get(_key(file.entities)), indices=tuple(indices.values())))  # fmt: skip
    there: dict[str, float | str | None] = {
        file.name: 'yes' if getattr(file, 'label_map', None) else None for file in found
    }
    if not any(there.values()):
        raise NothingToDo(
            'No scan has a label map.', where=str(folder), fix='Name the maps like the scans: sub-01_ses-2_dseg.nii.gz.'
        )  # fmt: skip
    return Task('segmentation', 'dseg', (OTHER, *indices), (0, *indices.values())), found, there


def _label_maps(folder: Path) -> dict[tuple[str, ...], Path]:
    if not folder.is_dir():
        raise UsageError('The folder with label maps does not exist.', where=str(folder))
    found: dict[tuple[str, ...], Path] = {}
    for path in sorted(folder.glob('sub-*/**/*_dseg.nii*')):
        parsed = parse_name(path.name)
        # A map without "desc" comes first; those in other spaces do not lie on the scan.
        if parsed and 'space' not in parsed[0] and (_key(parsed[0]) not in found or 'desc' not in parsed[0]):
            found[_key(parsed[0])] = path
    return found


def _key(entities: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(entities.get(name, '') for name in _SAME)


def _indices(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Return the values of the labels to learn by their names."""
    table = folder / 'dseg.tsv'
    known: dict[str, int] = {}
    if table.is_file():
        rows = read_table(table)
        if {'index', 'name'} <= set(rows.columns):
            pairs = zip(rows.column('name'), rows.column('index'), strict=True)
            known = {name: int(index) for name, index in pairs if index.isdecimal() and int(index)}
    wanted = list(names) or list(known)
    chosen = {name: known.get(name, int(name) if name.isdecimal() else -1) for name in wanted}
    if missing := [name for name, index in chosen.items() if index < 0]:
        raise UsageError(
            f'There is no label "{missing[0]}".', where='--classes', fix=f'dseg.tsv has: {", ".join(known) or "nothing; give numbers"}.',
        )  # fmt: skip
    if not 0 < len(chosen) <= MOST_CLASSES:
        raise UsageError(
            f'{len(chosen)} labels are to be learnt.', where='--classes', fix=f'Name 1 to {MOST_CLASSES} of them.',
        )  # fmt: skip
    return chosen


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def at_sites(files: Sequence[TrainingFile], truth: Mapping[str, Any], sites: Sequence[str]) -> dict[str, Any]:
    """Return the answers of scans of some sites only, all for none.

    Raises
    ------
    UsageError
        If a site has no scan.
    """
    there = {file.site for file in files}
    for site in sites:
        if site not in there:
            raise UsageError(f'No scan comes from the site "{site}".', where='--labelled', fix=f'There are: {", ".join(sorted(there))}.')  # fmt: skip
    site_of = {file.name: file.site for file in files}
    return {name: value for name, value in truth.items() if not sites or site_of[name] in sites}
