"""The documents agree with the program: figures, links, options and methods."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import tomllib
from pathlib import Path

import numpy as np
import pytest

from bidsharm.cli import doctor, evaluate, simulate, surface, table, train
from bidsharm.cli.parser import build_parser
from bidsharm.evaluation.catalogue import METRICS
from bidsharm.evaluation.features import SLICES
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import Canonical, Scan
from bidsharm.harmonizers.linear import Identity, LinearHarmonizer
from bidsharm.harmonizers.trained import TrainedHarmonizer

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / 'README.md', ROOT / 'benchmarks' / 'README.md', *(ROOT / 'docs').glob('*.md')])
figures = runpy.run_path(str(ROOT / 'benchmarks' / 'figures.py'))
card = runpy.run_path(str(ROOT / 'benchmarks' / 'card.py'))
methods = runpy.run_path(str(ROOT / 'docs' / 'methods.py'))
reliability = runpy.run_path(str(ROOT / 'docs' / 'reliability.py'))


#: Methods that `benchmarks/classical_real.py` has not been run with; their chapters say so.
NOT_MEASURED = {'ravel'}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text()
    assert figures['filled'](text) == text, 'run `python benchmarks/figures.py`'


def test_the_page_of_reliability_counts_what_was_tried() -> None:
    text = reliability['PAGE'].read_text(encoding='utf-8')
    assert reliability['filled'](text) == text, 'run `python docs/reliability.py`'


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
    text = (ROOT / 'docs' / 'usage.md').read_text() + (ROOT / 'docs' / 'training.md').read_text()
    text += (ROOT / 'docs' / 'tables.md').read_text() + (ROOT / 'docs' / 'surfaces.md').read_text()
    named = set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', text))
    parsers = (
        build_parser(),
        doctor.build_parser(),
        simulate.build_parser(),
        evaluate.build_parser(),
        train.build_parser(),
        table.build_parser(),
        surface.build_parser(),
    )
    options = [names for parser in parsers for names in _options(parser)]
    silent = [names for names in options if names and not named & set(names)]
    assert not silent


def test_every_measure_is_defined() -> None:
    text = (ROOT / 'docs' / 'evaluation.md').read_text()
    defined = set(re.findall(r'`([a-z][a-z0-9_]*\*?)`', text))
    for name in METRICS:
        families = {name, re.sub('_(csf|gm|wm)$', '_*', name), re.sub('^task_.*', 'task_*', name)}
        assert families & defined, name


def test_numbers_of_the_protocol_are_those_of_the_code() -> None:
    text = (ROOT / 'docs' / 'evaluation.md').read_text()
    (slices,) = re.findall(r'filter bank \(`[\w/.]+`\) in (\w+) slices', text)
    assert int(slices) == SLICES


def test_tables_of_options_hold_only_options() -> None:
    known = {
        name
        for parser in (
            build_parser(),
            doctor.build_parser(),
            simulate.build_parser(),
            evaluate.build_parser(),
        )
        for names in _options(parser)
        for name in names
    }
    rows = re.findall(r'^\| `(?:-\w, |-\w`, `)?(--[a-z-]+)', (ROOT / 'docs' / 'usage.md').read_text(), re.M)
    assert len(rows) > 30
    assert not set(rows) - known


@pytest.mark.parametrize('contrast', sorted(folder.name for folder in card['WEIGHTS'].iterdir()))
def test_the_card_of_the_weights_holds_the_results(contrast: str) -> None:
    text = (card['WEIGHTS'] / contrast / 'card.json').read_text(encoding='utf-8')
    assert card['filled'](text, contrast) == text, 'run `python benchmarks/card.py`'
    emptied = json.loads(text)
    assert emptied['settings'].pop('results')
    assert card['filled'](json.dumps(emptied), contrast) == text


def test_every_method_has_a_chapter_and_a_row_of_figures() -> None:
    text = (ROOT / 'docs' / 'choosing.md').read_text()
    measured = (ROOT / 'benchmarks' / 'results' / 'classical_real.md').read_text()
    for name in _methods():
        assert f'\n### {name}\n' in text
        if name in NOT_MEASURED:
            assert 'not in the figures below' in text.partition(f'\n### {name}\n')[2].partition('\n### ')[0]
        else:
            assert f'\n| {name} |' in measured


def _registered() -> list[str]:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    return list(project['entry-points']['bidsharm.harmonizers'])


def _methods() -> list[str]:
    """Return the methods for images that are ready as they are; others have pages of their own."""
    return [
        name
        for name in _registered()
        if registry.card(name).place == 'volume' and not issubclass(registry.find(name), TrainedHarmonizer)
    ]


def test_entry_points_and_registry_name_the_same_methods() -> None:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert project['entry-points']['bidsharm.harmonizers'] == registry._BUILTIN


@pytest.mark.parametrize('name', methods['with_page']())
def test_every_method_of_another_kind_has_a_page_with_its_card(name: str) -> None:
    text = (ROOT / 'docs' / 'methods' / f'{name}.md').read_text()
    assert text.startswith(f'# {name}\n')
    assert methods['filled'](text, registry.card(name)) == text, 'run `python docs/methods.py`'
    assert len(text.partition(methods['CLOSE'])[2].split()) > 60


def test_the_list_of_trained_methods_is_whole() -> None:
    assert (ROOT / 'docs' / 'methods' / 'README.md').read_text() == methods['index'](), (
        'run `python docs/methods.py`'
    )


def _named_in(text: str) -> set[str]:
    """Return the methods that a piece of a page names."""
    return {word for word in re.findall(r'`([a-z]+)`', text) if word in _methods()}


def _piece(before: str, after: str) -> str:
    """Return what stands between two phrases of the page of outputs."""
    text = ' '.join((ROOT / 'docs' / 'outputs.md').read_text().split())
    assert text.count(before) == 1
    return text.partition(before)[2].partition(after)[0]


def test_every_method_has_its_units() -> None:
    text = _piece('For the canonical target, per method:', 'Values below 0')
    assert _named_in(text) == set(_methods())
    assert all(item.strip().startswith('`') for item in text.split(';'))


def test_every_linear_method_is_called_one() -> None:
    linear = {name for name in _methods() if issubclass(registry.get(name), LinearHarmonizer)}
    assert _named_in(_piece('A linear method (', ')')) == linear - {Identity.card.name}


def test_every_method_that_shifts_is_said_to_spoil_the_signal_to_noise_ratio() -> None:
    values = np.random.default_rng(1).normal(500, 50, (20, 20, 20)).astype(np.float32)
    tissue = np.full((3, *values.shape), 1 / 3, np.float32)
    scan = Scan(values, np.ones(values.shape, bool), np.eye(4), 'T1w', tissue=tissue)
    shifting = set()
    for name in _methods():
        method = registry.get(name)
        if issubclass(method, LinearHarmonizer) and 'cohort' not in method.card.needs_fit:
            found = method().harmonize(scan, Canonical()).details
            if found['shift'] * found['target_scale'] != found['target_shift'] * found['scale']:
                shifting.add(name)
    assert _named_in(_piece('A shift of intensities (', ')')) == shifting
