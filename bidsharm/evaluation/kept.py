"""What was measured of a scan is kept in files, so that an evaluation that was stopped goes on, and one more method costs only itself.

A file is called by the digest of all that its content depends on: the files of the scan (where they lie, their size and when they were changed), its place on the
common grid, the options that matter, and the code that measures. Nothing of it is ever out of date; it is not found any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.evaluation import __file__ as _evaluation
from bidsharm.imaging import __file__ as _imaging
from bidsharm.temporary import atomic_path

Arrays = dict[str, NDArray[Any]]
#: How names of files end that are kept.
ENDING = '.npz'


class Kept:
    """Arrays and numbers by key.

    Parameters
    ----------
    folder
        Where they are kept; None for nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: str) -> tuple[Arrays, dict[str, Any]] | None:
        """Return what was kept, None where it was not or where the file is damaged."""
        if self.folder is None:
            return None
        try:
            with np.load(self._path(key), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return arrays, dict(json.loads(str(arrays.pop('facts'))))
        except Exception:  # noqa: BLE001 - a damaged archive raises whatever its damage leads to; all of it means: measure again
            return None

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Keep arrays, and facts that JSON can hold; what cannot be written is measured again another time."""
        if self.folder is None:
            return
        with contextlib.suppress(OSError), atomic_path(self._path(key)) as path, path.open('wb') as file:
            np.savez_compressed(file, **{**arrays, 'facts': np.array(json.dumps(facts))})  # type: ignore[arg-type]

    def clear(self) -> None:
        """Remove what was kept, and the folder if nothing else is in it."""
        if self.folder is None:
            return
        for file in self.folder.glob(f'*{ENDING}'):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f'{key}{ENDING}'


def key_of(*parts: object) -> str:
    """Return the digest of files, arrays, numbers and texts, and of what consists of them; files count by place, size and time of change."""
    digest = hashlib.sha256(_code())
    _take(digest, parts)
    return digest.hexdigest()[:32]


def _take(digest: Any, part: object) -> None:
    if isinstance(part, Path):
        part = _state(part)
    if isinstance(part, np.ndarray):
        digest.update(f'{part.dtype.str}{part.shape}'.encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(part, tuple | list):
        digest.update(f'({len(part)}'.encode())
        for one in part:
            _take(digest, one)
    elif isinstance(part, Mapping):
        _take(digest, sorted(part.items()))
    elif is_dataclass(part) and not isinstance(part, type):
        _take(digest, [getattr(part, each.name) for each in fields(part)])
    elif part is None or isinstance(part, str | int | float):
        digest.update(f'{type(part).__name__}:{part!r};'.encode())
    else:
        raise TypeError(f'{type(part).__name__} has no digest')


def _state(path: Path) -> tuple[str, int, int]:
    """Return place, size and time of change; a file that is not there is found missing by who reads it."""
    try:
        state = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path.resolve()), state.st_size, state.st_mtime_ns


@cache
def _code() -> bytes:
    """Return the digest of the code that measures: another version of it measures again."""
    digest = hashlib.sha256()
    for package in (_evaluation, _imaging):
        for path in sorted(Path(package).parent.glob('*.py')):
            digest.update(path.read_bytes())
    return digest.digest()
