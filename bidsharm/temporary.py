"""Files and folders that appear whole or not at all, and what is left of those whose process was killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bidsharm.processes import Identity, this_process

#: Days after which something temporary of a machine that cannot be asked counts as left behind.
OLD_DAYS = 7.0
#: A file name may have so many bytes.
_MOST_BYTES = 255
_NAME = re.compile(r'\.?[a-z-]+-(?P<owner>[0-9a-f]{8}-\d+-\d+)-[0-9a-f]{8}(?:-.*)?', re.DOTALL)

#: What this process has not finished.
_open: set[Path] = set()


def temporary_path(path: Path, kind: str = '.tmp') -> Path:
    """Return an unused name beside a path, which tells what process it belongs to.

    It starts with a dot and ends like the final one, so that writers that look at the extension work, and BIDS readers pass over it.

    Parameters
    ----------
    path
        Where the result will be.
    kind
        How the name starts.
    """
    start = f'{kind}-{this_process()}-{uuid.uuid4().hex[:8]}-'
    # Of a long name the end stays, with the extension.
    end = os.fsencode(path.name)[-(_MOST_BYTES - len(start)) :]
    return path.with_name(start + end.decode(errors='replace').lstrip('\N{REPLACEMENT CHARACTER}'))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its name when the block ends well (:func:`temporary_path`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    _open.add(temporary)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _open.discard(temporary)


@contextlib.contextmanager
def temporary_folder(prefix: str, within: Path, mode: int = 0o700) -> Iterator[Path]:
    """Give a folder that goes away when the block ends; what killed processes have left of the same kind goes, too.

    Parameters
    ----------
    prefix
        How its name starts, without the hyphen.
    within
        The folder that it is made in.
    mode
        Its permissions, of which the umask takes away.
    """
    clear_remains([within], prefix=prefix)
    folder = within / f'{prefix}-{this_process()}-{uuid.uuid4().hex[:8]}'
    _open.add(folder)
    try:
        folder.mkdir(mode)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _open.discard(folder)


def clear_remains(folders: Iterable[Path], *, prefix: str = '.tmp', below: bool = False) -> None:
    """Remove what killed processes have left, and never what belongs to one that runs.

    Of other machines that is not known; what they have left is removed when it is older than :data:`OLD_DAYS`.

    Parameters
    ----------
    folders
        Where to look; they may be missing.
    prefix
        How the names start.
    below
        Look into the folders in them, too.
    """
    for folder in folders:
        for place, inside, files in os.walk(folder):
            for name in (*inside, *files):
                if name.startswith(f'{prefix}-') and _left_behind(Path(place, name)):
                    _remove(Path(place, name))
            inside[:] = [name for name in inside if below and not name.startswith('.')]


@contextlib.contextmanager
def swept(folders: Sequence[Path] = (), *, below: Sequence[Path] = ()) -> Iterator[None]:
    """Remove what is left of files that killed processes were writing: of earlier ones before the block, and once more after it.

    Parameters
    ----------
    folders
        Where to look.
    below
        Where to look, and in all folders inside, too.
    """
    try:
        clear_remains(folders)
        clear_remains(below, below=True)
        yield
    finally:
        clear_remains(folders)
        clear_remains(below, below=True)


def clear_own() -> None:
    """Remove what this process has not finished; for one that must end at once."""
    for path in list(_open):
        _remove(path)


def _left_behind(path: Path) -> bool:
    found = _NAME.fullmatch(path.name)
    owner = Identity.parse(found['owner']) if found else None
    if owner is None:
        return False
    if owner.here:
        return not owner.alive
    try:
        return time.time() - path.lstat().st_mtime > OLD_DAYS * 86400
    except OSError:
        return False


def _remove(path: Path) -> None:
    # Another run may be clearing at the same time, and somebody else's files cannot be removed.
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
