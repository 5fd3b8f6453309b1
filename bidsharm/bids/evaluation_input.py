"""Find what an evaluation is about: harmonized scans of several data sets, who was where, and the truth, if any."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bidsharm.bids.dataset import read_json
from bidsharm.bids.metadata import Listings, read_metadata
from bidsharm.bids.names import ScanFile, file_name, parse_name
from bidsharm.bids.sites import UNKNOWN_SITE, read_participants, site_by_rule
from bidsharm.errors import NothingToDo, UsageError
from bidsharm.evaluation.study import ORIGINAL, MethodFiles, Study, StudyScan
from bidsharm.files import MAX_TABLE, read_text
from bidsharm.settings import CONTRASTS, reason

_ENDINGS = ('.nii.gz', '.nii')
#: Entities that say how an image was made, not which scan it is.
_MADE = ('desc', 'space', 'res')
#: Step of bidsharm whose memory counts, as its logs call it.
_STEP = 'harmonize.harmonize'


@dataclass(frozen=True)
class Sources:
    """What was named on the command line.

    Parameters
    ----------
    datasets
        Folder of each method's derivatives, by name.
    suffix
        Contrast: ``T1w``, ``T2w``, ``FLAIR`` or ``PDw``.
    description
        ``desc`` of harmonized images.
    space
        ``space`` of the images that are compared, with ``:res-N`` where there are several; empty: those without.
    original
        Folder of the scans before (``desc-preproc``, or raw); the first data set by default, if it holds some.
    truth
        Folder with true labels, canonical images and lesions, as ``bidsharm-simulate`` writes it.
    returned
        Folders of scans that came back from another target, by method.
    scans
        Table of who was where: ``participant_id``, ``scanner``, and where needed ``session_id`` and ``person``.
    participants
        Table of people; that of the first data set, or of the truth, by default.
    site
        Rule of the app's ``--site``, for the scanner.
    target
        Scanner at which methods aim.
    age, group, task
        Columns of the table of people.
    """

    datasets: Mapping[str, Path]
    suffix: str = 'T1w'
    description: str = 'harmonized'
    space: str = ''
    original: Path | None = None
    truth: Path | None = None
    returned: Mapping[str, Path] | None = None
    scans: Path | None = None
    participants: Path | None = None
    site: str = ''
    target: str = ''
    age: str = 'age'
    group: str = 'sex'
    task: str = ''


@dataclass(frozen=True)
class _Image:
    """An image of a data set, and which scan it is of."""

    path: Path
    key: tuple[tuple[str, str], ...]
    root: Path
    grid: Mapping[str, str]

    @property
    def entities(self) -> dict[str, str]:
        return dict(self.key)


def find_study(sources: Sources) -> Study:
    """Find all scans of an evaluation.

    Raises
    ------
    UsageError
        If a folder or a table is missing or cannot be understood.
    NothingToDo
        If no data set holds a harmonized scan.
    """
    found = {name: _images(folder, sources, sources.description) for name, folder in sources.datasets.items()}
    empty = [name for name, images in found.items() if not images]
    if len(empty) == len(found):
        raise NothingToDo(
            f'There is no desc-{sources.description} image with the suffix {sources.suffix}.',
            where=', '.join(str(folder) for folder in sources.datasets.values()),
            fix='See --suffix, --desc and --space.',
        )
    if empty:
        raise UsageError(
            f'There is no desc-{sources.description} {sources.suffix} image.',
            where=str(sources.datasets[empty[0]]),
            fix='Leave the data set away, or see --suffix, --desc and --space.',
        )
    originals = _originals(sources)
    places = _Places(sources)
    peaks = {name: _peaks(folder) for name, folder in sources.datasets.items()}
    keys = list(dict.fromkeys(key for images in found.values() for key in images))
    scans = tuple(
        _scan(
            key,
            {name: images[key] for name, images in found.items() if key in images},
            originals,
            places,
            sources,
            peaks,
        )
        for key in sorted(keys)
    )
    methods = tuple(found)
    if any(scan.original for scan in scans):
        methods = (ORIGINAL, *methods)
    study = Study(scans, methods, sources.target)
    if sources.target and sources.target not in study.scanners:
        raise UsageError(
            f'No scan is from the scanner "{sources.target}".',
            where='--target',
            fix=f'There are: {", ".join(study.scanners) or "none; see --scans and --site"}.',
        )
    labels: dict[str, list[str]] = {}
    for key, scan in zip(sorted(keys), scans, strict=True):
        labels.setdefault(scan.person, []).append(dict(key)['sub'])
    return _with_people(study, sources, labels)


# --- Images ---


def _images(folder: Path, sources: Sources, description: str) -> dict[tuple[tuple[str, str], ...], _Image]:
    """Return images of a data set by scan."""
    if not folder.is_dir():
        raise UsageError('There is no such folder.', where=str(folder))
    found: dict[tuple[tuple[str, str], ...], _Image] = {}
    for path, entities in _named(folder, sources.suffix):
        if entities.get('desc', '') != description or not _in_space(entities, sources.space):
            continue
        grid = {name: value for name, value in entities.items() if name in ('space', 'res')}
        key = tuple((name, value) for name, value in entities.items() if name not in _MADE)
        if key in found:
            raise UsageError(
                f'Two images are of one scan: {found[key].path.name} and {path.name}.',
                where=str(folder),
                fix='Choose one by --space LABEL:res-N, or take the other one out of the folder.',
            )
        found[key] = _Image(path, key, folder, grid)
    return found


def _in_space(entities: Mapping[str, str], wanted: str) -> bool:
    """Say whether an image lies in ``LABEL`` or ``LABEL:res-N``."""
    label, _, resolution = wanted.partition(':res-')
    return entities.get('space', '') == label and resolution in ('', entities.get('res', ''))


def _named(folder: Path, suffix: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield images of a suffix in folders of subjects, by name."""
    for subject in sorted(folder.glob('sub-*')):
        for path in sorted(subject.rglob(f'*_{suffix}.nii*')):
            parsed = parse_name(path.name)
            if (
                parsed
                and parsed[1] == suffix
                and path.name.endswith(_ENDINGS)
                and not path.name.startswith('.')
            ):
                yield path, parsed[0]


def _originals(sources: Sources) -> dict[tuple[tuple[str, str], ...], _Image]:
    """Return scans before harmonization: bias-corrected ones, else raw ones of a folder that was named."""
    folder = sources.original or next(iter(sources.datasets.values()))
    found = _images(folder, sources, 'preproc')
    return found or (_images(folder, sources, '') if sources.original else {})


def _beside(image: _Image, description: str, suffix: str, **more: str) -> Path | None:
    """Return a file of the same scan and grid in the same data set."""
    return _of_scan(image.path.parent, image.entities, description, suffix, **image.grid, **more)


def _of_scan(
    folder: Path, entities: Mapping[str, str], description: str, suffix: str, **more: str
) -> Path | None:
    named = {**entities, **more, **({'desc': description} if description else {})}
    for ending in _ENDINGS:
        path = folder / file_name(named, suffix, ending)
        if path.exists():
            return path
    return None


# --- Scans ---


def _scan(
    key: tuple[tuple[str, str], ...],
    images: Mapping[str, _Image],
    originals: Mapping[tuple[tuple[str, str], ...], _Image],
    places: _Places,
    sources: Sources,
    peaks: Mapping[str, Mapping[str, float]],
) -> StudyScan:
    """Gather all files of a scan."""
    first, before = next(iter(images.values())), originals.get(key)
    scan = file_name(dict(key), sources.suffix)
    other = sources.suffix != 'T1w'
    brain = f'{sources.suffix}Brain' if other else 'brain'
    person, scanner = places.of(list(images.values()))
    known = _truth(first, sources)
    beside = (_beside(image, brain, 'mask') for image in (before, *images.values()) if image)
    return StudyScan(
        name=scan,
        person=person,
        scanner=scanner,
        methods={
            name: _method(image, name, sources, peaks[name].get(scan)) for name, image in images.items()
        },
        original=before.path if before else None,
        original_labels=_beside(before, sources.suffix if other else '', 'dseg') if before else None,
        mask=known.get('mask') or next(filter(None, beside), None),
        labels=known.get('labels'),
        # Methods that aim at a scanner do not aim at the canonical contrast.
        reference=None if sources.target else known.get('reference'),
        lesions=known.get('lesions'),
    )


def _method(image: _Image, name: str, sources: Sources, peak_gb: float | None) -> MethodFiles:
    """Return the files of one method and scan."""
    other = sources.suffix != 'T1w'
    record = _record(image, sources.suffix).get('harmonizer')
    seconds = record.get('seconds') if isinstance(record, dict) else None
    back = None
    folder = (sources.returned or {}).get(name)
    if folder is not None:
        relative = image.path.parent.relative_to(image.root)
        back = _of_scan(folder / relative, image.entities, sources.description, sources.suffix, **image.grid)
    return MethodFiles(
        image=image.path,
        labels=_beside(image, f'{sources.suffix}Harmonized' if other else 'harmonized', 'dseg'),
        uncertainty=_beside(image, 'uncertainty', sources.suffix),
        lesions=_beside(image, '', 'mask', label='lesion'),
        returned=back,
        seconds=float(seconds) if isinstance(seconds, (int, float)) else None,
        peak_gb=peak_gb,
    )


def _peaks(folder: Path) -> dict[str, float]:
    """Return the peak of memory of the harmonizer by scan, from the logs of bidsharm; the last run of a scan counts."""
    found: dict[str, float] = {}
    for table in sorted(folder.glob('logs/*/resources.tsv')):  # folders begin with the time
        with contextlib.suppress(UsageError):  # a log that cannot be read says nothing
            for row in _read_table(table):
                peak = _number(row.get('peak_gb'))
                if row.get('step') == _STEP and row.get('state') == 'finished' and peak is not None:
                    found[row.get('scan', '')] = peak
    return found


def _record(image: _Image, suffix: str) -> dict[str, Any]:
    """Return the QC record that bidsharm wrote beside an image, if any."""
    return read_json(image.path.parent / file_name({**image.entities, 'desc': suffix}, 'qc', '.json'))


def _truth(image: _Image, sources: Sources) -> dict[str, Path | None]:
    """Return what is known of a scan from simulation or from experts."""
    if sources.truth is None:
        return {}
    folder = sources.truth / image.path.parent.relative_to(image.root)
    named = _truth_name(image, folder, sources.suffix)
    reference = _of_scan(folder, image.entities, 'canonical', sources.suffix, **image.grid)
    return {**_labelled(image, folder, named), 'reference': reference}


def _labelled(image: _Image, folder: Path, named: str) -> dict[str, Path | None]:
    """Return true mask, labels and lesions that are named by a contrast, or by none."""
    entities = image.entities
    return {
        'mask': _of_scan(folder, entities, f'{named}Brain' if named else 'brain', 'mask', **image.grid),
        'labels': _of_scan(folder, entities, named, 'dseg', **image.grid),
        'lesions': _of_scan(folder, entities, named, 'mask', label='lesion', **image.grid),
    }


def _truth_name(image: _Image, folder: Path, suffix: str) -> str:
    """Return the contrast that the labels on the grid of a scan are named by; the grid of the first contrast has no name.

    Contrasts of a session may lie on several grids, and one that shares a grid with another may go by its name.
    """
    found = {
        name: files
        for name in dict.fromkeys(['', suffix, *CONTRASTS])
        if (files := [file for file in _labelled(image, folder, name).values() if file])
    }
    if len(found) > 1:
        for name, files in found.items():
            if _lie_alike(image.path, files[0]):
                return name
    return next(iter(found), '')


def _lie_alike(first: Path, second: Path) -> bool:
    """Say whether two images share their grid; one that cannot be read shares none."""
    import nibabel as nib

    from bidsharm.imaging.grids import same_grid

    try:
        return same_grid(nib.load(first), nib.load(second))  # type: ignore[arg-type]
    except (OSError, nib.filebasedimages.ImageFileError):
        return False


# --- People and scanners ---


class _Places:
    """Who was where."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.rows = None if sources.scans is None else _read_scans(sources.scans)
        self.people = _participants(sources)
        self.listed: Listings = {}

    def of(self, images: Sequence[_Image]) -> tuple[str, str]:
        """Return person and scanner of a scan: by the table, else by the rule, else by the first record of bidsharm that has it.

        Raises
        ------
        UsageError
            If the table does not know the scan.
        """
        image = images[0]
        entities = image.entities
        subject, session = entities['sub'], entities.get('ses', '')
        if self.rows is not None:
            found = self.rows.get((subject, session)) or self.rows.get((subject, ''))
            if found is None:
                raise UsageError(
                    f'It has no row for sub-{subject}{f", ses-{session}" if session else ""}.',
                    where=str(self.sources.scans),
                )
            return found
        if self.sources.site:
            metadata, _ = read_metadata(image.path, image.root, listed=self.listed)
            file = ScanFile(image.path, entities, self.sources.suffix, image.root, metadata=metadata)
            return subject, site_by_rule(file, self.people, self.sources.site)
        sites = (_record(one, self.sources.suffix).get('site') for one in images)
        return subject, next((s for s in sites if isinstance(s, str) and s not in ('', UNKNOWN_SITE)), '')


def _read_scans(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Read the table of who was where."""
    rows = _read_table(path)
    columns = set(rows[0]) if rows else set()
    missing = {'participant_id', 'scanner'} - columns
    if missing:
        raise UsageError(
            f'It lacks the column "{min(missing)}".',
            where=str(path),
            fix='Columns: participant_id, scanner, and where needed session_id and person; separated by tabs.',
        )
    found = {}
    for row in rows:
        subject = row['participant_id'].removeprefix('sub-')
        session = (row.get('session_id') or '').removeprefix('ses-')
        person = (row.get('person') or '').removeprefix('sub-')
        unknown = ('', 'n/a')
        place = '' if row['scanner'] in unknown else row['scanner']
        found[subject, '' if session in unknown else session] = (
            subject if person in unknown else person,
            place,
        )
    return found


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        file = io.StringIO(read_text(path, MAX_TABLE, encoding='utf-8-sig'), newline='')
        return [
            {str(k).strip(): (v or '').strip() for k, v in row.items() if isinstance(k, str)}
            for row in csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE)
        ]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f'The table cannot be read: {reason(error)}.', where=str(path)) from None


def _participants(sources: Sources) -> dict[str, dict[str, str]]:
    """Return the table of people by label."""
    if sources.participants is not None:
        rows = _read_table(sources.participants)
        if not rows or 'participant_id' not in rows[0]:
            raise UsageError('It lacks the column "participant_id".', where=str(sources.participants))
        return {row['participant_id'].removeprefix('sub-'): row for row in rows}
    folders = list(sources.datasets.values())
    if sources.truth is not None:
        folders += [sources.truth, sources.truth.parent.parent]
    for folder in folders:
        table = read_participants(folder)
        if table:
            return table
    return {}


def _with_people(study: Study, sources: Sources, labels: Mapping[str, Sequence[str]]) -> Study:
    """Add ages, groups and classes.

    Parameters
    ----------
    study, sources
        The scans, and what was named.
    labels
        Participant of each scan, by person.
    """
    table = _participants(sources)
    if sources.task and not any(row.get(sources.task) for row in table.values()):
        raise UsageError(f'The table of people has no column "{sources.task}".', where='--task')
    owners = {label: person for person, each in labels.items() for label in each}
    rows = {person: _rows_of(person, labels[person], owners, table) for person in sorted(labels)}
    return replace(
        study,
        ages={person: ages[0] for person, each in rows.items() if (ages := _ages(each, sources.age))},
        groups=_words(rows, sources.group),
        classes=_words(rows, sources.task) if sources.task else {},
    )


def _rows_of(
    person: str, labels: Sequence[str], owners: Mapping[str, str], table: Mapping[str, dict[str, str]]
) -> list[dict[str, str]]:
    """Return what the table says of a person: the own row, then those of the participants that the person is."""
    # A participant who is called like the person may be somebody else.
    own = [person] if owners.get(person, person) == person else []
    return [table[name] for name in dict.fromkeys([*own, *labels]) if name in table]


def _ages(rows: Sequence[Mapping[str, str]], column: str) -> list[float]:
    return [age for row in rows if (age := _number(row.get(column))) is not None]


def _words(rows: Mapping[str, Sequence[Mapping[str, str]]], column: str) -> dict[str, str]:
    """Return the first word of a column that is known of each person."""
    found = {
        person: [row[column] for row in each if row.get(column, '') not in ('', 'n/a')]
        for person, each in rows.items()
    }
    return {person: words[0] for person, words in found.items() if words}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or '')
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def check_apart(out: Path, folders: Sequence[Path]) -> None:
    """Refuse to write into what is evaluated.

    Raises
    ------
    UsageError
        If the folder is one of the inputs, or lies in one.
    """
    resolved = out.resolve()
    for folder in folders:
        if resolved.is_relative_to(folder.resolve()):
            raise UsageError(
                'The folder lies in a data set that is evaluated.',
                where=str(out),
                fix='Name another one.',
            )
