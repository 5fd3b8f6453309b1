"""The index of names that pybids makes of a data set, and how it is kept for the next run."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.errors import UsageError
from bidsharm.settings import Settings, reason

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

#: What pybids calls the file of an index that is kept.
INDEX_FILE = 'layout_index.sqlite'


def open_layout(settings: Settings) -> BIDSLayout:
    """Index the anatomical part of the data set with pybids.

    Only ``anat`` folders of the asked-for subjects are read; indexing everything is the largest
    start-up cost of BIDS Apps. Derivatives and hidden folders are skipped. An index that is kept
    (``--bids-database-dir``) holds all subjects, because the next run may ask for others, and knows the data set
    by its real path. A dry run reads one that is there, and keeps none.

    Raises
    ------
    UsageError
        If the index that is kept cannot be used.
    """
    database = settings.bids_database_dir
    if database is None or (settings.dry_run and not (database / INDEX_FILE).is_file()):
        return _layout(settings.bids_dir, subjects=settings.participant_label)
    root = settings.bids_dir.resolve()
    try:
        if not (database / INDEX_FILE).is_file():
            _make_index(root, database)
    except OSError as error:
        raise UsageError(
            f'The index cannot be kept: {reason(error)}.',
            where=f'--bids-database-dir {database}', fix='Give a folder that can be written.',
        ) from None  # fmt: skip
    try:
        layout = _layout(root, database_path=str(database))
        known = Path(layout.root)  # what the index says, not what was asked for
    except Exception as error:  # noqa: BLE001 - pybids, SQLAlchemy and SQLite each have errors of their own
        first, *_ = [*reason(error).splitlines(), type(error).__name__]
        raise _unusable(first, database) from None
    if known.resolve() != root:
        raise _unusable(f'it was made of {known}', database)
    return layout


def _unusable(why: str, database: Path) -> UsageError:
    return UsageError(
        f'The index cannot be used: {why}.',
        where=f'--bids-database-dir {database}',
        fix=f'Delete {INDEX_FILE} there, and the next run makes it anew; or give another folder.',
    )


def _layout(root: Path, *, subjects: tuple[str, ...] = (), **options: Any) -> BIDSLayout:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    labels = '|'.join(re.escape(label) for label in subjects)
    ignore = [
        re.compile(r'/\.'),
        re.compile(r'^/?(?:derivatives|sourcedata|code|models|stimuli|work)(?:/|$)'),
        re.compile(r'/(?:func|dwi|fmap|perf|eeg|meg|ieeg|beh|pet|micr|nirs|motion|mrs)(?:/|$)'),
        *([re.compile(rf'^/?sub-(?!(?:{labels})(?:/|_|$))')] if subjects else []),
    ]
    indexer = BIDSLayoutIndexer(validate=False, ignore=ignore, index_metadata=False)
    return BIDSLayout(root, validate=False, indexer=indexer, **options)


def _make_index(root: Path, database: Path) -> None:
    """Make the index beside its place and put it there whole: jobs that start together do not see half of one."""
    database.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.building-', dir=database) as folder:
        layout = _layout(root, database_path=folder)
        layout.connection_manager.session.close()
        layout.connection_manager.engine.dispose()
        os.replace(Path(folder) / INDEX_FILE, database / INDEX_FILE)
