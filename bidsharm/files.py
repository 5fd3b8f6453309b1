"""Reading files that somebody else made: regular files only, up to a size, and none outside the folder that was given."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any

#: A file of JSON, TOML or YAML that is larger (bytes) is none.
MAX_TEXT = 16_000_000
#: A table that is larger (bytes) is none: half a million people with a dozen columns fit.
MAX_TABLE = 64_000_000
#: Whole numbers with more digits are read as floating-point numbers, as most programs do.
_DIGITS = 30


def open_regular(path: Path, most: int | None = None) -> BufferedReader:
    """Open a file for reading; a pipe, a device or a socket is refused before anything waits for it.

    Parameters
    ----------
    path
        The file.
    most
        Largest size in bytes; any by default.

    Raises
    ------
    OSError
        With a reason in words, if it is no regular file, too large, or cannot be opened.
    """
    _check(os.stat(path), path, most)
    # It may have been exchanged since: what is open now counts, and opening a pipe does not wait.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_CLOEXEC', 0))
    try:
        _check(os.fstat(descriptor), path, most)
        return os.fdopen(descriptor, 'rb')
    except BaseException:
        os.close(descriptor)
        raise


def _check(status: os.stat_result, path: Path, most: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, 'it is a folder', str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, 'it is no regular file, but a pipe, a device or a socket', str(path))
    if most is not None and status.st_size > most:
        raise OSError(errno.EFBIG, f'it is larger than {most / 1e6:.0f} MB', str(path))


def is_special(path: Path) -> bool:
    """Say whether a path is there and is neither a regular file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file; errors as :func:`open_regular`, also where the memory does not suffice."""
    with open_regular(path, most) as file:
        try:
            return file.read()
        except MemoryError:
            raise OSError(errno.ENOMEM, 'it does not fit into memory', str(path)) from None


def read_text(path: Path, most: int = MAX_TEXT, *, encoding: str = 'utf-8') -> str:
    """Return the text of a regular file; errors as :func:`open_regular`, and ``ValueError`` where it is no text."""
    return read_bytes(path, most).decode(encoding)


def read_json(path: Path, *, encoding: str = 'utf-8') -> Any:
    """Read a JSON file; errors as :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, encoding=encoding))


def parse_json(text: str) -> Any:
    """Return the content of a JSON text, such that it can be written again.

    NaN, infinite and unbounded numbers are no JSON and become None; halves of surrogate pairs become question marks; of a key that is
    there twice the last value counts.

    Raises
    ------
    ValueError
        If it is no JSON, or nested too deeply.
    """
    try:
        content = json.loads(text, parse_constant=_nothing, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    if '\\ud' in text or '\\uD' in text:
        whole = json.dumps(content, ensure_ascii=False).encode('utf-8', 'replace')
        content = json.loads(whole)
    return content


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of a TOML text.

    Raises
    ------
    ValueError
        If it is no TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def _nothing(_: str) -> None:
    return None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _whole(text: str) -> int | float | None:
    return int(text) if len(text) <= _DIGITS else _finite(text)


def is_utf8(name: str) -> bool:
    """Say whether a name of a file is text, and not bytes in some other encoding."""
    return not any('\ud800' <= c <= '\udfff' for c in name)


def shown(name: str) -> str:
    """Return a name of a file as it may stand in a message, a page or a terminal: what is no printable character is spelled out."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in name)


def leads_out(path: Path, folder: Path) -> bool:
    """Say whether links lead from a path in a folder to a place outside.

    What git-annex (DataLad) keeps for the folder counts as inside, also where the folder is only a part of the repository.
    """
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real.is_relative_to(root):
        return False
    return not any(_is_annexed(real, above / '.git') for above in root.parents)


def _is_annexed(real: Path, git: Path) -> bool:
    """Say whether a file is content that an annex of a repository, or of one inside it, keeps."""
    if not real.is_relative_to(git):
        return False
    parts = real.relative_to(git).parts
    return ('annex', 'objects') in itertools.pairwise(parts)
