"""Find what a network can be trained on: preprocessed scans in derivatives of bidsharm, and who and where each of them is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bidsharm.bids.acquisition import acquisition_of
from bidsharm.bids.feature_tables import MISSING
from bidsharm.bids.names import ScanFile, file_name, parse_name
from bidsharm.bids.sites import UNKNOWN_SITE, read_participants, site_by_rule
from bidsharm.errors import NothingToDo, ScanError, UsageError
from bidsharm.files import read_json
from bidsharm.harmonizers.contract import Scan
from bidsharm.settings import CONTRASTS

_ENDINGS = ('.nii.gz', '.nii')
_TISSUES = ('CSF', 'GM', 'WM')


@dataclass(frozen=True)
class TrainingFile:
    """A preprocessed scan on disk.

    Parameters
    ----------
    image, mask
        Bias-corrected scan and brain mask, on one grid.
    tissue
        Probabilities of CSF, GM and WM; empty where they are missing.
    name, person, session, site, contrast
        Who was scanned, in which visit, where, with which contrast.
    covariates
        Numbers of participants.tsv.
    columns
        All cells of participants.tsv.
    entities
        BIDS entities of the scan.
    acquisition
        Acquisition parameters in the sidecar of the image.
    """

    image: Path
    mask: Path
    tissue: tuple[Path, ...]
    name: str
    person: str
    session: str
    site: str
    contrast: str
    covariates: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    entities: Mapping[str, str] = field(default_factory=dict)
    acquisition: Mapping[str, float] = field(default_factory=dict)

    @property
    def world(self) -> None:
        """Where the scan lies in the common frame is not known."""
        return

    @property
    def key(self) -> str:
        """What tells this state of the files from any other: names, sizes and times."""
        stats = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in (self.image, self.mask, *self.tissue)
        ]
        return hashlib.sha256(repr([self.name, stats]).encode()).hexdigest()

    def again(self, take: int) -> None:
        """There is no other visit under the same name."""
        return

    def read(self) -> Scan:
        """Read the scan.

        Raises
        ------
        ScanError
            If a file cannot be read, or grids differ.
        """
        from bidsharm.imaging.grids import load_checked

        image, mask = load_checked(self.image), load_checked(self.mask)
        parts = [load_checked(path) for path in self.tissue]
        if any(other.shape != image.shape for other in (mask, *parts)):
            raise ScanError(
                'Image, mask and tissues lie on different grids.',
                where=str(self.image),
                fix='Run bidsharm on it again.',
            )
        tissue = np.stack([np.asarray(part.dataobj, np.float32) for part in parts]) if parts else None
        return Scan(
            data=np.asarray(image.dataobj, np.float32), mask=np.asarray(mask.dataobj) > 0.5,
            affine=np.asarray(image.affine, float), contrast=self.contrast, name=self.name, site=self.site, tissue=tissue,
            person=self.person, session=self.session, covariates=self.covariates, acquisition=self.acquisition,
        )  # fmt: skip


def find_training_files(
    folder: Path,
    *,
    contrasts: Sequence[str] = CONTRASTS,
    site: str = '',
    participants: Path | None = None,
    person: str = '',
    subjects: Sequence[str] = (),
    images: str = 'preproc',
) -> list[TrainingFile]:
    """Return the preprocessed scans of derivatives of bidsharm.

    Parameters
    ----------
    folder
        What ``bidsharm BIDS FOLDER participant`` has written.
    contrasts
        Contrasts that are wanted.
    site
        ``session`` or a column of participants.tsv; by default the sites of the run that made them.
    participants
        Folder with participants.tsv; by default the derivatives, then the data set that they are from.
    person
        Column of participants.tsv that says which subjects are one person; by default every subject is one.
    subjects
        Labels of the subjects that are wanted; all by default.
    images
        Which images of a scan: ``preproc`` or ``harmonized``.

    Raises
    ------
    NothingToDo
        If there is none.
    UsageError
        If the folder is not there.
    """
    if not folder.is_dir():
        raise UsageError('The folder of derivatives does not exist.', where=str(folder))
    table = read_participants(participants or folder) or read_participants(_source_of(folder))
    if person and not any(person in row for row in table.values()):
        columns = sorted({name for row in table.values() for name in row})
        raise UsageError(
            f'participants.tsv has no column "{person}".', where='--person',
            fix=f'There are: {", ".join(columns)}.' if columns else 'Give the folder of participants.tsv with --participants.',
        )  # fmt: skip
    found = [
        file for path in sorted(folder.glob(f'sub-*/**/*_desc-{images}_*.nii*'))
        if (file := _training_file(path, folder, contrasts, site, person, table)) and (not subjects or _label(path) in subjects)
    ]  # fmt: skip
    if not found:
        raise NothingToDo(
            f'There is no {"preprocessed" if images == "preproc" else images} scan ({", ".join(contrasts)}).', where=str(folder),
            fix='Run `bidsharm BIDS FOLDER participant --harmonizer identity` first.',
        )  # fmt: skip
    return found


def _label(path: Path) -> str:
    return path.name.split('_', 1)[0].removeprefix('sub-')


def _training_file(
    path: Path,
    root: Path,
    contrasts: Sequence[str],
    rule: str,
    person: str,
    table: Mapping[str, Mapping[str, str]],
) -> TrainingFile | None:
    """Return what lies beside an image; None for images that are not wanted or have no mask."""
    parsed = parse_name(path.name)
    if parsed is None or parsed[1] not in contrasts or not path.name.endswith(_ENDINGS):
        return None
    entities, contrast = {key: value for key, value in parsed[0].items() if key != 'desc'}, parsed[1]
    if 'space' in entities:
        return None
    other = '' if contrast == 'T1w' else contrast
    mask = _beside(path, {**entities, 'desc': f'{other}Brain' if other else 'brain'}, 'mask')
    if mask is None:
        return None
    named = {**entities, **({'desc': other} if other else {})}
    tissue = [_beside(path, {**named, 'label': name}, 'probseg') for name in _TISSUES]
    scan = ScanFile(path, entities, contrast, root)
    row = table.get(scan.subject, {})
    return TrainingFile(
        image=path, mask=mask, tissue=tuple(part for part in tissue if part) if all(tissue) else (),
        name=file_name(entities, contrast), person=_told(row.get(person, '')) or scan.subject, session=scan.session or '',
        site=(site_by_rule(scan, table, rule) if rule else _recorded_site(path, entities, contrast)) or UNKNOWN_SITE,
        contrast=contrast, covariates=dict(_numbers(row)), columns=row, entities=entities,
        acquisition=_acquisition(path),
    )  # fmt: skip


def _told(cell: str) -> str:
    """Return a cell; empty where it says that nothing is known."""
    return '' if cell.strip().lower() in MISSING else cell.strip()


def _beside(path: Path, entities: Mapping[str, str], suffix: str) -> Path | None:
    places = (path.parent / file_name(dict(entities), suffix, ending) for ending in _ENDINGS)
    return next((place for place in places if place.is_file()), None)


def _acquisition(path: Path) -> dict[str, float]:
    """Return the acquisition parameters beside an image; none where there is no sidecar that can be read."""
    try:
        content = read_json(path.with_name(path.name.split('.', 1)[0] + '.json'))
    except (OSError, ValueError):
        return {}
    return acquisition_of(content) if isinstance(content, Mapping) else {}


def _recorded_site(path: Path, entities: Mapping[str, str], contrast: str) -> str:
    """Return the site in the record of the scan; empty where there is none."""
    record = path.parent / file_name({**entities, 'desc': contrast}, 'qc', '.json')
    try:
        content = read_json(record)
        return str(content['site'])
    except (OSError, ValueError, KeyError, TypeError):
        return ''


def _source_of(folder: Path) -> Path:
    """Return the data set that derivatives are from, where their description names a folder; else the folder itself."""
    try:
        links = read_json(folder / 'dataset_description.json')['DatasetLinks']
        text = str(links['raw'])
    except (OSError, ValueError, KeyError, TypeError):
        return folder
    place = Path(text.removeprefix('file://'))
    return place if place.is_absolute() else folder / place


def _numbers(row: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    for name, text in row.items():
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            yield name, value
