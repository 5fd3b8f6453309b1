"""What is in the data set: the scans that a run is about, their sites, and how they belong together."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.bids.index import COPY_OR_FOLLOW, open_layout
from bidsharm.bids.metadata import Listings, read_metadata
from bidsharm.bids.names import ScanFile, parse_name
from bidsharm.bids.sites import SCANNER_FIELDS, UNKNOWN_SITE, check_participants, label_of, site_by_rule
from bidsharm.errors import NothingToDo, ScanError, UsageError
from bidsharm.files import is_special, is_utf8, leads_out, read_json, shown
from bidsharm.settings import CONTRASTS, Settings, check_keys, reason

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

#: What is said of a scan whose name cannot be trusted.
NO_RAW_NAME = 'This is not the BIDS name of a raw scan in this folder.'
#: Keys of a BIDS filter file, one per contrast; upper and lower case are the same.
FILTER_KEYS = {name.lower(): name for name in CONTRASTS}


@dataclass(frozen=True)
class Selection:
    """The scans of a run, and those left out with the reason."""

    scans: tuple[ScanFile, ...]
    left_out: tuple[ScanError, ...] = ()
    structural: tuple[
        ScanFile, ...
    ] = ()  # every T1w of the subjects, whatever the session, run and contrast asked for

    def anchor(self, scan: ScanFile) -> ScanFile:
        """Return the scan that ``scan`` follows (:func:`anchor_of`)."""
        return anchor_of(scan, [*self.structural, *self.scans])

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject labels in order."""
        return tuple(dict.fromkeys(scan.subject for scan in self.scans))

    def of_subject(self, subject: str) -> tuple[ScanFile, ...]:
        """Return the scans of one subject."""
        return tuple(scan for scan in self.scans if scan.subject == subject)


def select_scans(settings: Settings, layout: BIDSLayout | None = None) -> Selection:
    """Choose the scans that match the settings.

    Raises
    ------
    UsageError
        If a participant or session that was asked for is not in the data set, the filter file is wrong, or
        the rule of ``--site`` names nothing that a scan of the data set has.
    NothingToDo
        If nothing is left, naming the filter that removed the last scan.
    """
    _check_labels(settings)
    layout = layout or open_layout(settings)
    filters = read_filter_file(settings.bids_filter_file) if settings.bids_filter_file else {}
    refused: list[ScanError] = refused_folders(settings)
    listed: Listings = {}
    by_contrast = {
        name: _find(settings, layout, name, filters, refused if name in settings.contrasts else [], listed)
        for name in dict.fromkeys((*settings.contrasts, 'T1w'))
    }
    contrasts = dict.fromkeys(settings.contrasts)
    kept = _narrow(settings, [scan for contrast in contrasts for scan in by_contrast[contrast]], refused)
    scans, left_out = _refuse_doubtful(kept)
    left_out = refused + left_out
    participants, problems = check_participants(settings.bids_dir, follow_links=settings.follow_links)
    _check_site_rule(settings, scans, participants)
    structural, _ = _refuse_doubtful(by_contrast['T1w'])
    scans, structural = ([_warned(scan, problems) for scan in group] for group in (scans, structural))
    label = functools.partial(_with_site, participants=participants, rule=settings.site)
    return Selection(
        tuple(sorted(map(label, scans), key=_order)),
        tuple(left_out),
        tuple(sorted(map(label, structural), key=_order)),
    )


def _warned(scan: ScanFile, problems: tuple[str, ...]) -> ScanFile:
    return replace(scan, warnings=(*scan.warnings, *problems)) if problems else scan


def _with_site(scan: ScanFile, *, participants: Mapping[str, Mapping[str, str]], rule: str) -> ScanFile:
    site = site_by_rule(scan, participants, rule)
    if site or rule == 'auto':
        return replace(scan, site=site or UNKNOWN_SITE)
    warning = f'No value of --site {rule} for this scan: its site is {UNKNOWN_SITE}.'
    return replace(scan, site=UNKNOWN_SITE, warnings=(*scan.warnings, warning))


def _check_site_rule(
    settings: Settings, scans: Sequence[ScanFile], participants: Mapping[str, Mapping[str, str]]
) -> None:
    """Refuse a rule of ``--site`` that gives no scan a site: all scanners would count as one, in silence."""
    rule = settings.site
    if not scans or rule == 'auto' or any(site_by_rule(scan, participants, rule) for scan in scans):
        return
    if settings.participant_label or settings.session_label or settings.run:
        # A job for one subject goes on where the same command for all of them would.
        select_scans(
            replace(settings, participant_label=(), session_label=(), run=(), bids_database_dir=None)
        )
        return
    columns = dict.fromkeys(name for row in participants.values() for name in row if name != 'participant_id')
    found = {name for scan in scans for name, value in scan.metadata.items() if label_of(value, name)}
    fields = [*(name for name in SCANNER_FIELDS if name in found), *sorted(found - {*SCANNER_FIELDS})]
    session = ' There are sessions: "session".' if any(scan.session for scan in scans) else ''
    raise UsageError(
        f'No scan has a value of "{rule}".',
        where='--site',
        fix=f'Columns of participants.tsv: {some_of(list(columns))}. Sidecar fields: {some_of(fields)}.{session}',
    )


def _order(scan: ScanFile) -> tuple[str, str, int, str]:
    return scan.subject, scan.session or '', CONTRASTS.index(scan.suffix), scan.name


def _find(
    settings: Settings,
    layout: BIDSLayout,
    contrast: str,
    filters: Mapping[str, Mapping[str, Any]],
    refused: list[ScanError],
    listed: Listings,
) -> list[ScanFile]:
    """Return the images of a contrast; those whose names or files cannot be trusted go to ``refused``.

    Subject and folder are read from the end of the path: pybids takes the first ``sub-`` or ``func`` of the
    whole path, which may lie above the data set.
    """
    query: dict[str, Any] = {
        'suffix': contrast,
        'extension': ['.nii', '.nii.gz'],
        **filters.get(contrast, {}),
    }
    root, scans = settings.bids_dir, []
    for image in layout.get(**query):
        # An index that is kept knows the data set by its real path, the user perhaps by a link.
        path = root / Path(image.path).relative_to(layout.root)
        folders = path.relative_to(root).parts[:-1]
        if len(folders) < 2 or not folders[0].startswith('sub-') or folders[-1] != 'anat':
            continue
        if settings.participant_label and folders[0].removeprefix('sub-') not in settings.participant_label:
            continue
        parsed = parse_name(path.name)
        if parsed is None or not _is_raw_name(parsed[0], folders):
            refused.append(
                ScanError(
                    NO_RAW_NAME,
                    where=_place(path, root),
                    fix='Rename, move or remove the file.',
                )
            )
            continue
        if (error := _untrusted(path, settings)) is not None:
            refused.append(error)
            continue
        entities, suffix = parsed
        if entities.get('part', 'mag') != 'mag':
            continue  # phase, real and imaginary parts are no pictures of anatomy
        metadata, warnings = read_metadata(path, root, follow_links=settings.follow_links, listed=listed)
        scans.append(ScanFile(path, entities, suffix, root, metadata=metadata, warnings=warnings))
    return scans


def _untrusted(path: Path, settings: Settings) -> ScanError | None:
    """Return what is wrong with the file of a scan before anybody opens it; a link that leads nowhere fails later, alone."""
    where = _place(path, settings.bids_dir)
    if not settings.follow_links and os.path.exists(path) and leads_out(path, settings.bids_dir):
        return ScanError(
            'The file is a link that leads out of the data set.', where=where, fix=COPY_OR_FOLLOW
        )
    if is_special(path):
        return ScanError('This is a pipe, a device or a socket, no file.', where=where, fix='Remove it.')
    return None


def _place(path: Path, root: Path) -> str:
    return shown(path.relative_to(root).as_posix())


def refused_folders(settings: Settings) -> list[ScanError]:
    """Return what the index does not hold though it looks like a scan or a folder of scans.

    That is folders that are links out of the data set, folders that are called like scans, and names that are not UTF-8.
    """
    root, errors = settings.bids_dir, []
    wanted = settings.participant_label
    subjects = [root / f'sub-{label}' for label in wanted] if wanted else _folders(root, 'sub-')
    for folder in [place for subject in subjects for place in (subject, *_folders(subject, 'ses-'))]:
        for place in (folder, folder / 'anat'):
            if place.is_symlink() and not settings.follow_links and leads_out(place, root):
                errors.append(
                    ScanError(
                        'The folder is a link that leads out of the data set.',
                        where=_place(place, root), fix=COPY_OR_FOLLOW,
                    )
                )  # fmt: skip
                break
        else:
            errors += _strange(folder / 'anat', settings)
    return errors


def _strange(folder: Path, settings: Settings) -> Iterator[ScanError]:
    """Yield what is called like a scan in a folder and is none, or has a name that is not UTF-8 or has points in it."""
    root = settings.bids_dir
    for entry in _entries(folder):
        ending = entry.name.partition('.')[2]
        if entry.name.startswith('.') or not ending.endswith(('nii', 'nii.gz')):
            continue
        place = _place(Path(entry.path), root)
        if not is_utf8(entry.path.removeprefix(str(root))):
            yield ScanError('The name is not UTF-8.', where=place, fix='Rename the file or its folder.')
        elif entry.name.startswith('sub-') and entry.is_dir():
            yield ScanError('This is a folder, no file.', where=place, fix='Remove it.')
        elif ending not in ('nii', 'nii.gz') and _is_called(ending, settings.contrasts):
            yield ScanError(NO_RAW_NAME, where=place, fix='Rename, move or remove the file.')


def _is_called(ending: str, contrasts: Iterable[str]) -> bool:
    return ending.removesuffix('.gz').removesuffix('.nii').endswith(tuple(f'_{name}' for name in contrasts))


def _folders(folder: Path, start: str) -> list[Path]:
    """Return the folders in a folder whose names have a beginning."""
    return [Path(entry.path) for entry in _entries(folder) if entry.name.startswith(start) and entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, in order; nothing where it cannot be looked into."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_raw_name(entities: Mapping[str, str], folders: Sequence[str]) -> bool:
    """Say whether a name gives each scan outputs of its own.

    Subject and session must be those of the folders, and the entities that tell our outputs apart must be free.
    """
    expected = [f'sub-{entities.get("sub", "")}', *([f'ses-{entities["ses"]}'] if 'ses' in entities else [])]
    return list(folders[:-1]) == expected and not entities.keys() & {'space', 'res', 'label', 'desc'}


def _check_labels(settings: Settings) -> None:
    for option, wanted, kind in (
        ('--participant-label', settings.participant_label, 'subject'),
        ('--session-label', settings.session_label, 'session'),
    ):
        if not wanted:
            continue  # listing the folders of a thousand subjects takes a while on a network
        present = raw_labels(settings.bids_dir, kind)
        if absent := absent_labels(wanted, present, kind):
            raise UsageError(
                f'Not in the data set: {", ".join(absent)}.',
                where=option,
                fix=f'There are: {some_of(sorted(present))}.',
            )


def raw_labels(bids_dir: Path, kind: str) -> set[str]:
    """Return the labels of the subjects or sessions that have a folder in the data set.

    pybids takes what is called ``ses-`` in the path to the data set for sessions, too.
    """
    folders = bids_dir.glob({'subject': 'sub-*', 'session': 'sub-*/ses-*'}[kind])
    return {folder.name.partition('-')[2] for folder in folders if folder.is_dir()}


def absent_labels(wanted: Iterable[str], present: Iterable[str], kind: str) -> list[str]:
    """Return the labels that are not there; sub-1 and sub-01 are two people, ses-1 and ses-01 one session."""
    if kind == 'subject':
        return sorted(set(wanted) - set(present))
    return sorted(label for label in set(wanted) if not same_label(label, present))


def some_of(labels: Sequence[str], most: int = 12) -> str:
    """Return the first labels as words of a sentence, and how many more there are."""
    rest = f' and {len(labels) - most} more' if len(labels) > most else ''
    return (shown(', '.join(labels[:most])) or 'none') + rest


def _narrow(settings: Settings, scans: list[ScanFile], refused: Sequence[ScanError]) -> list[ScanFile]:
    """Apply the session and run filters one by one, so that the one that empties the list can be named."""
    if not scans:
        filtered = f' with the filter file {settings.bids_filter_file}' if settings.bids_filter_file else ''
        raise NothingToDo(
            f'No {", ".join(settings.contrasts)} image was found{filtered}.',
            where=str(settings.bids_dir),
            fix=' '.join(_advice(refused))
            if refused
            else 'Check the folder, --participant-label, --contrasts and --bids-filter-file.',
        )
    for option, wanted, entity in (
        ('--session-label', settings.session_label, 'ses'),
        ('--run', settings.run, 'run'),
    ):
        if not wanted:
            continue
        kept = [scan for scan in scans if same_label(scan.entities.get(entity), wanted)]
        if not kept:
            present = sorted({scan.entities.get(entity, 'none') for scan in scans})
            raise NothingToDo(
                f'{option} {" ".join(wanted)} leaves no scan out of {len(scans)}.',
                where=str(settings.bids_dir),
                fix=f'There are: {some_of(present)}.',
            )
        scans = kept
    return scans


def _advice(refused: Sequence[ScanError]) -> Iterator[str]:
    """Yield what is wrong with files that cannot be used, what to do, and where they are."""
    places: dict[tuple[str, str], list[str]] = {}
    for error in refused:
        places.setdefault((error.what, error.fix), []).append(error.where)
    for (what, fix), where in places.items():
        yield f'{what} {fix} ({some_of(where)})'


def same_label(label: str | None, wanted: Iterable[str]) -> bool:
    """Compare labels; index labels such as run-1 and run-01 are the same."""
    if label is None:
        return False
    return any(label == w or (label.isdecimal() and w.isdecimal() and int(label) == int(w)) for w in wanted)


def _refuse_doubtful(scans: list[ScanFile]) -> tuple[list[ScanFile], list[ScanError]]:
    """Leave out scans whose outputs would overwrite each other."""
    count = Counter(scan.name.lower() for scan in scans)
    kept, refused = [], []
    for scan in scans:
        if count[scan.name.lower()] == 1:
            kept.append(scan)
            continue
        refused.append(
            ScanError(
                'Several files would have the same outputs (.nii beside .nii.gz, or names that differ only in case).',
                where=scan.relative,
                fix='Keep one of them.',
            )
        )
    return kept, refused


def read_filter_file(path: Path) -> dict[str, dict[str, Any]]:
    """Read a BIDS filter file; keys are contrasts in either case, values pybids queries.

    ``"Query.NONE"``, ``"Query.ANY"`` and ``"Query.OPTIONAL"`` have pybids' meaning.

    Raises
    ------
    UsageError
        If the file is not JSON, a contrast is unknown, or a filter is not an entity of pybids.
    """
    from bids.layout import Query

    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UsageError('The filter file does not exist.', where=str(path)) from None
    except (OSError, ValueError) as error:
        raise UsageError(f'The filter file cannot be read: {reason(error)}.', where=str(path)) from None
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UsageError(
            'The filter file must hold one object per contrast.', where=str(path), fix='{"t1w": {"run": 1}}'
        )
    lowered = {str(key).lower(): value for key, value in content.items()}
    if len(lowered) < len(content):
        raise UsageError('A contrast is there twice, in upper and lower case.', where=str(path))
    check_keys(lowered, tuple(FILTER_KEYS), where=str(path))
    # __members__ holds the aliases too: Query.ANY is one
    queries = {f'Query.{name}': item for name, item in Query.__members__.items()}
    filters: dict[str, dict[str, Any]] = {}
    for key, value in lowered.items():
        check_keys(value, FILTER_ENTITIES, where=f'{path} ({key})')
        for name, entry in value.items():
            _check_filter(name, entry, FILTER_KEYS[key], tuple(queries), where=f'{path} ({key})')
        filters[FILTER_KEYS[key]] = {
            name: [queries.get(item, item) for item in entry]
            if isinstance(entry, list)
            else queries.get(entry, entry)
            for name, entry in value.items()
        }
    return filters


def _check_filter(name: str, entry: object, contrast: str, queries: tuple[str, ...], *, where: str) -> None:
    entries = entry if isinstance(entry, list) else [entry]
    if not entries or not all(isinstance(item, (str, int, float)) for item in entries):
        raise UsageError(
            f'The filter "{name}" must be a label or a list of labels, not {entry!r}.', where=where
        )
    for item in entries:
        if str(item).startswith('Query.'):
            check_keys({str(item): None}, queries, where=f'{where}, {name}')
    allowed = {'suffix': [contrast], 'extension': ['.nii', '.nii.gz', 'nii', 'nii.gz'], 'datatype': ['anat']}
    for item in entries:
        if name in allowed and item not in allowed[name]:
            raise UsageError(
                f'The filter "{name}" of {contrast} cannot be {item!r}.',
                where=where, fix=f'Leave it out, or choose from {", ".join(allowed[name])}.',
            )  # fmt: skip


#: Entities that a filter may name, as pybids calls them.
FILTER_ENTITIES = (
    'subject', 'session', 'sample', 'acquisition', 'ceagent', 'reconstruction', 'direction', 'run', 'modality',
    'echo', 'flip', 'inv', 'mt', 'part', 'suffix', 'extension', 'datatype',
)  # fmt: skip


def anchor_of(scan: ScanFile, scans: Iterable[ScanFile]) -> ScanFile:
    """Return the scan that gives ``scan`` its brain mask and its way to the template.

    A T1w is its own anchor. Other contrasts follow the T1w of their session, else the first T1w of the
    subject. A subject without any T1w falls back on the first scan of the session, by the order of
    :data:`bidsharm.settings.CONTRASTS`.
    """
    if scan.suffix == 'T1w':
        return scan
    scans = [other for other in scans if other.subject == scan.subject]
    enhanced = [other for other in scans if other.suffix == 'T1w']
    structural = [other for other in enhanced if 'ce' not in other.entities] or enhanced
    same_session = [other for other in structural if other.session == scan.session]
    if structural:
        return (same_session or structural)[0]
    first = next(other for other in scans if other.session == scan.session)
    return scan if first.suffix == scan.suffix else first
