"""What simulated data sets of all kinds share: random numbers that belong to names, and files that are whole or not there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bidsharm.temporary import atomic_path


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return a stream of random numbers that belongs to these names."""
    return np.random.default_rng([seed, *(zlib.crc32(str(name).encode()) for name in names)])


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, strict (no NaN)."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + '\n').encode())


def write_tsv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Write a table."""
    write_bytes(path, ''.join('\t'.join(row) + '\n' for row in (header, *rows)).encode())
