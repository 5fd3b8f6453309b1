"""The documents agree with the program: figures, links, options and methods."""

from __future__ import annotations

import argparse
import re
import runpy
import tomllib
from pathlib import Path

import pytest

from bidsharm.cli import simulate
from bidsharm.cli.parser import build_parser

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / 'README.md', ROOT / 'benchmarks' / 'README.md', *(ROOT / 'docs').glob('*.md')])
figures = runpy.run_path(str(ROOT / 'benchmarks' / 'figures.py'))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text()
    assert figures['filled'](text) == text, 'run `python benchmarks/figures.py`'


def test_a_table_is_cut_out_of_a_result() -> None:
    text = '<!-- figures: lesions | method=nyul | contrast -->\nstale\n<!-- end of figures -->'
    filled = figures['filled'](text)
    assert 'stale' not in filled
    rows = [line for line in filled.splitlines() if line.startswith('|')]
    assert rows == [
        '| method | contrast |',
        '| --- | --- |',
        *(f'| nyul | {c} |' for c in ('T1w', 'T2w', 'FLAIR')),
    ]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: f'{page.parent.name}-{page.name}')
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r'\]\(([^)#]+?)(?:#[^)]*)?\)', page.read_text())
    broken = [link for link in links if '://' not in link and not (page.parent / link).exists()]
    assert not broken


def _options(parser: argparse.ArgumentParser) -> list[list[str]]:
    return [[name for name in action.option_strings if name.startswith('--')] for action in parser._actions]


def test_every_option_is_explained() -> None:
    text = (ROOT / 'docs' / 'usage.md').read_text()
    named = set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', text))
    silent = [names for names in _options(build_parser()) if names and not named & set(names)]
    assert not silent


def test_tables_of_options_hold_only_options() -> None:
    known = {
        name
        for parser in (build_parser(), simulate.build_parser())
        for names in _options(parser)
        for name in names
    }
    rows = re.findall(r'^\| `(?:-\w, |-\w`, `)?(--[a-z-]+)', (ROOT / 'docs' / 'usage.md').read_text(), re.M)
    assert len(rows) > 30
    assert not set(rows) - known


def test_every_method_has_a_chapter_and_a_row_of_figures() -> None:
    text = (ROOT / 'docs' / 'choosing.md').read_text()
    measured = (ROOT / 'benchmarks' / 'results' / 'classical_real.md').read_text()
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    for name in project['entry-points']['bidsharm.harmonizers']:
        assert f'\n### {name}\n' in text
        assert f'\n| {name} |' in measured
