"""Files that appear whole or not at all, and the folders that they go to."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bidsharm.errors import UsageError
from bidsharm.temporary import atomic_path


def write_text(path: Path, text: str) -> bool:
    """Write text atomically; return False when the file already held exactly this text.

    Files at the root of a shared output folder are left alone when nothing changed, so that a second
    user without permission to replace them can still run.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding='utf-8') == text:
            return False
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')
    return True


def write_json(path: Path, content: Mapping[str, Any]) -> bool:
    """Write JSON atomically, strict (no NaN)."""
    return write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + '\n')


def copy_file(source: Path, path: Path) -> None:
    """Copy a file atomically."""
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)


def make_folder(folder: Path, called: str, where: str) -> None:
    """Make a folder that the user named, and those above it, unless it is there.

    Parameters
    ----------
    folder
        The folder.
    called
        What it is, for the error: ``output folder``.
    where
        Where the user named it.

    Raises
    ------
    UsageError
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f'The {called} cannot be made: {error.strerror}.', where=where) from None


def remove_with_sidecar(image: Path) -> None:
    """Remove an image and the JSON file that tells about it, as far as they are there."""
    image.unlink(missing_ok=True)
    image.with_name(image.name.replace('.nii.gz', '.json')).unlink(missing_ok=True)
