"""The index of names that pybids makes of a data set, and how it is kept for the next run."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.errors import UsageError
from bidsharm.files import is_utf8, leads_out, read_json
from bidsharm.settings import Settings, reason
from bidsharm.temporary import temporary_folder

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

#: What pybids calls the file of an index that is kept.
INDEX_FILE = 'layout_index.sqlite'

#: Where an index that holds what links lead to is kept, in the folder of the other one.
LINKS_FOLDER = 'follow-links'


def open_layout(settings: Settings) -> BIDSLayout:
    """Index the anatomical part of the data set with pybids.

    Only ``anat`` folders of the asked-for subjects are read; indexing everything is the largest
    start-up cost of BIDS Apps. Derivatives and hidden folders are skipped. An index that is kept
    (``--bids-database-dir``) holds all subjects, because the next run may ask for others, and knows the data set
    by its real path. A dry run reads one that is there, and keeps none. Folders that are links out of the data set are
    not looked into, unless ``--follow-links`` says so.

    Raises
    ------
    UsageError
        If the index that is kept cannot be used, or the data set cannot be indexed.
    """
    database, follow = settings.bids_database_dir, settings.follow_links
    _check_description(settings)
    if database is not None and follow:
        database = database / LINKS_FOLDER
    if database is None or (settings.dry_run and not (database / INDEX_FILE).is_file()):
        return _layout(settings.bids_dir, follow, subjects=settings.participant_label)
    root = settings.bids_dir.resolve()
    try:
        if not (database / INDEX_FILE).is_file():
            _make_index(root, database, follow)
    except OSError as error:
        raise UsageError(
            f'The index cannot be kept: {reason(error)}.',
            where=f'--bids-database-dir {database}', fix='Give a folder that can be written.',
        ) from None  # fmt: skip
    try:
        layout = _layout(root, follow, database_path=str(database))
        known = Path(layout.root)  # what the index says, not what was asked for
    except Exception as error:  # noqa: BLE001 - pybids, SQLAlchemy and SQLite each have errors of their own
        first, *_ = [*reason(error).splitlines(), type(error).__name__]
        raise _unusable(first, database) from None
    if known.resolve() != root:
        raise _unusable(f'it was made of {known}', database)
    return layout


#: What to do about a link that leads out of the data set.
COPY_OR_FOLLOW = 'Copy it into the data set, or pass --follow-links.'


def _unusable(why: str, database: Path) -> UsageError:
    return UsageError(
        f'The index cannot be used: {why}.',
        where=f'--bids-database-dir {database}',
        fix=f'Delete {INDEX_FILE} there, and the next run makes it anew; or give another folder.',
    )


def _check_description(settings: Settings) -> None:
    """Refuse a description of the data set that pybids, which reads it without being asked, cannot bear."""
    path = settings.bids_dir / 'dataset_description.json'
    try:
        if not settings.follow_links and leads_out(path, settings.bids_dir):
            raise UsageError(
                'The file is a link that leads out of the data set.', where=str(path), fix=COPY_OR_FOLLOW
            )
        content = read_json(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f'The file cannot be read: {reason(error)}.', where=str(path)) from None
    except ValueError as error:
        if 'deeply' in str(error):
            raise UsageError(f'The file cannot be read: {error}.', where=str(path)) from None
        return  # broken JSON costs the name and the licence of the data set, no more
    makers = content.get('GeneratedBy', []) if isinstance(content, dict) else None
    if not isinstance(makers, list) or not all(isinstance(maker, dict) for maker in makers):
        raise UsageError(
            'This is no description of a data set.', where=str(path),
            fix='It must be a JSON object, and GeneratedBy in it a list of objects.',
        )  # fmt: skip


class _Unwanted:
    """Tells pybids, as if it were a regular expression, what is not to be indexed.

    That is names that are not UTF-8, which its index cannot hold, and folders that are links out of the data set or lead in circles.
    """

    def __init__(self, root: Path, follow: bool) -> None:
        self.root, self.follow = root, follow

    def search(self, name: str) -> bool:
        """Say whether a path, given from the root with a slash before it, is left out."""
        if not is_utf8(name):
            return True
        path = self.root / name.lstrip('/')
        if not path.is_symlink() or not path.is_dir():
            return False
        if not self.follow and leads_out(path, self.root):
            return True
        real = Path(os.path.realpath(path))
        above = [
            Path(os.path.realpath(folder)) for folder in path.parents if folder.is_relative_to(self.root)
        ]
        return any(folder.is_relative_to(real) for folder in above)


def _layout(root: Path, follow: bool, *, subjects: tuple[str, ...] = (), **options: Any) -> BIDSLayout:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    labels = '|'.join(re.escape(label) for label in subjects)
    ignore = [
        re.compile(r'/\.'),
        re.compile(r'^/?(?:derivatives|sourcedata|code|models|stimuli|work)(?:/|$)'),
        re.compile(r'/(?:func|dwi|fmap|perf|eeg|meg|ieeg|beh|pet|micr|nirs|motion|mrs)(?:/|$)'),
        *([re.compile(rf'^/?sub-(?!(?:{labels})(?:/|_|$))')] if subjects else []),
        _Unwanted(root, follow),
    ]
    # A folder of the data set may not tell pybids how to read names: nobody can guess how such a file would be called.
    indexer = BIDSLayoutIndexer(
        validate=False, ignore=ignore, index_metadata=False, config_filename=uuid.uuid4().hex
    )
    return BIDSLayout(root, validate=False, indexer=indexer, **options)


def _make_index(root: Path, database: Path, follow: bool) -> None:
    """Make the index beside its place and put it there whole: jobs that start together do not see half of one."""
    database.mkdir(parents=True, exist_ok=True)
    with temporary_folder('.building', database) as folder:
        layout = _layout(root, follow, database_path=str(folder))
        layout.connection_manager.session.close()
        layout.connection_manager.engine.dispose()
        os.replace(folder / INDEX_FILE, database / INDEX_FILE)
