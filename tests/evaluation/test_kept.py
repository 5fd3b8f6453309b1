"""What was measured is kept: a stopped evaluation goes on, and nothing that changed is taken from before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bidsharm.evaluation.kept import Kept, key_of


@dataclass(frozen=True)
class Thing:
    name: str
    numbers: tuple[int, ...]


def test_arrays_and_facts_come_back(tmp_path: Path) -> None:
    store, arrays = Kept(tmp_path / 'new'), {'a': np.arange(3.0), 'sub-01/b': np.zeros((2, 2), bool)}
    assert store.get('key') is None
    store.put('key', arrays, {'psnr': 1 / 3, 'nothing': float('nan')})
    found, facts = store.get('key') or ({}, {})
    assert facts['psnr'] == 1 / 3
    assert np.isnan(facts['nothing'])
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize('content', [b'', b'nothing', None])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes | None) -> None:
    store = Kept(tmp_path)
    store.put('key', {'a': np.arange(1000.0)}, {})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    assert store.get('key') is None


def test_no_flipped_bit_raises(tmp_path: Path) -> None:
    store, before = Kept(tmp_path), np.arange(400.0)
    store.put('key', {'a': before}, {'psnr': 1.0})
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(bytes(damaged))
        found = store.get('key')
        assert found is None or np.array_equal(found[0].get('a', before), before)


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    store = Kept(tmp_path / 'kept')
    store.put('key', {}, {})
    (tmp_path / 'kept' / 'mine.txt').touch()
    store.clear()
    assert [file.name for file in (tmp_path / 'kept').iterdir()] == ['mine.txt']
    (tmp_path / 'kept' / 'mine.txt').unlink()
    store.clear()
    assert not (tmp_path / 'kept').exists()
    Kept(None).clear()


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    """Files of arrays can hold pickles, which are programs."""
    np.savez(tmp_path / 'key.npz', facts=np.array([{'a': 1}], dtype=object))
    assert Kept(tmp_path).get('key') is None


def test_a_folder_that_cannot_be_made_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    store = Kept(tmp_path / 'file' / 'folder')
    store.put('key', {}, {})
    assert store.get('key') is None


def test_without_a_folder_nothing_is_kept() -> None:
    store = Kept(None)
    store.put('key', {}, {})
    assert store.get('key') is None


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        (('a', 'b'), ('ab', '')),
        ((('a',), 'b'), (('a', 'b'),)),
        (1, 1.0),
        (None, ''),
        (np.zeros(2), np.zeros((1, 2))),
        (np.zeros(2), np.zeros(2, np.float32)),
        (Thing('a', (1, 2)), Thing('a', (1, 3))),
        ({'a': 1}, {'a': 2}),
    ],
)
def test_what_differs_has_another_key(one: Any, other: Any) -> None:
    assert key_of(one) == key_of(one)
    assert key_of(one) != key_of(other)


def test_a_file_counts_by_its_state(tmp_path: Path) -> None:
    path = tmp_path / 'image'
    missing = key_of(path)
    path.write_text('a')
    first = key_of(path)
    os.utime(path, ns=(1, 1))
    changed = key_of(path)
    path.write_text('ab')
    os.utime(path, ns=(1, 1))
    assert len({missing, first, changed, key_of(path)}) == 4
    (tmp_path / 'link').symlink_to(path)
    assert key_of(tmp_path / 'link') == key_of(path)


def test_what_has_no_digest_is_no_key() -> None:
    with pytest.raises(TypeError, match='object has no digest'):
        key_of(object())
