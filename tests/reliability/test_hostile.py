"""Files that want to harm: what can be tried in seconds; the long run (hostile.py) adds whole commands and more bombs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hostile
from shared import CannotRun


@pytest.mark.parametrize('case', hostile.CASES, ids=lambda case: case.name[:60])
def test_nothing_is_executed_and_nothing_leads_outside(case: hostile.Case, tmp_path: Path) -> None:
    happened, said, good = case.check(tmp_path)
    assert good, f'{happened}: {said}'


@pytest.mark.parametrize(
    'name', ['an extension of 2 GB, in gzip', 'a header that promises 3 GB in a file of 500 bytes']
)
def test_bombs(name: str, tmp_path: Path) -> None:
    happened, said, good = hostile.try_bomb(name, tmp_path, limit_s=300)
    assert good, f'{happened}: {said}'


def test_pages_hold_nothing_that_is_live(tmp_path: Path) -> None:
    pages = hostile.hostile_pages(tmp_path)
    assert [hostile.live_parts(page.read_text(encoding='utf-8')) for page in pages] == [[], []]


def test_pages_are_inert_in_chromium(tmp_path: Path) -> None:
    page = hostile.hostile_pages(tmp_path)[0]
    try:
        happened, said, good = hostile.check_page(page, tmp_path)
    except CannotRun as missing:
        pytest.skip(str(missing))
    assert good, f'{happened}: {said}'


def test_a_page_that_runs_something_is_found(tmp_path: Path) -> None:
    """The check itself can fail."""
    page = tmp_path / 'live.html'
    page.write_text(f'<!doctype html><title>A title</title><body>{hostile.PAYLOAD}</body>')
    assert '<iframe>' in hostile.live_parts(page.read_text())
    try:
        _, said, good = hostile.check_page(page, tmp_path)
    except CannotRun as missing:
        pytest.skip(str(missing))
    assert not good
    assert 'the title changed' in said
    assert hostile.HOST in said
