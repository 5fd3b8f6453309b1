"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its name when the block ends well.

    The temporary name starts with a dot and ends like the final one, so that writers that look at the
    extension work, and BIDS readers pass over it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix='.tmp-', suffix=f'-{path.name}')
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; what is shared through the folder should follow the umask.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


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
