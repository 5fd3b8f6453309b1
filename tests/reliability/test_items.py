"""The list of what users of comparable software have suffered is whole, and the tests that it names are there."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ITEMS: list[dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name('items.toml').read_text(encoding='utf-8')
)['item']
COUNT = 40


@functools.cache
def functions(file: str) -> frozenset[str]:
    """Return the functions and methods of a file as pytest names them, without importing it."""
    body = ast.parse((ROOT / file).read_text(encoding='utf-8')).body
    classes = [item for item in body if isinstance(item, ast.ClassDef)]
    return frozenset(
        [item.name for item in body if isinstance(item, ast.FunctionDef)]
        + [
            f'{cls.name}::{item.name}'
            for cls in classes
            for item in cls.body
            if isinstance(item, ast.FunctionDef)
        ]
    )


def test_every_item_is_there_once() -> None:
    assert [item['number'] for item in ITEMS] == list(range(1, COUNT + 1))


@pytest.mark.parametrize('item', ITEMS, ids=lambda item: str(item['number']))
def test_an_item_is_kept_from_happening(item: dict[str, Any]) -> None:
    assert set(item) <= {'number', 'what', 'sources', 'tests', 'note'}
    assert item['what'][0].isupper()
    assert not item['what'].endswith('.')
    assert len(set(item['tests'])) == len(item['tests']) > 0
    missing = []
    for name in item['tests']:
        file, _, function = name.partition('::')
        if not (ROOT / file).is_file() or function not in functions(file):
            missing.append(name)
    assert not missing
    # At least one of them runs every day, not in a long run only.
    assert any(re.match('test_|Test', name.partition('::')[2]) for name in item['tests'])


def test_a_test_that_is_gone_would_be_noticed() -> None:
    assert 'test_every_item_is_there_once' in functions('tests/reliability/test_items.py')
    assert 'TestModels::test_damaged_weights' in functions('tests/workflows/test_doctor.py')
    assert 'test_nobody_wrote_this' not in functions('tests/reliability/test_items.py')
