"""Readers of files that somebody else made bear what nobody would make; the long run (fuzz.py) tries many more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fuzz


@pytest.mark.parametrize('name', [reader.name for reader in fuzz.READERS.values() if reader.quick])
def test_only_errors_of_the_package_come_out(name: str, tmp_path: Path) -> None:
    reader = fuzz.READERS[name]
    found = fuzz.search(reader, tmp_path / 'files', reader.quick)
    assert not found.error
    assert found.cases >= reader.quick


def test_a_reader_that_breaks_is_found(tmp_path: Path) -> None:
    """The search itself can fail: a reader that stumbles over a byte-order mark is caught."""

    def read(data: bytes, folder: Path) -> None:
        data.decode('ascii')

    found = fuzz.search(fuzz.Reader('weak', read, lambda: [b'abc']), tmp_path / 'files', 200)
    assert 'UnicodeDecodeError' in found.error
