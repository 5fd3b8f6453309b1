"""Every paper of the survey's Table 3 has a name that runs, and docs/survey.md shows it as the registry and the results have it."""

from __future__ import annotations

import itertools
import json
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bidsharm.harmonizers import registry

ROOT = Path(__file__).parent.parent
survey = runpy.run_path(str(ROOT / 'docs' / 'survey.py'))
CONTENT: dict[str, list[dict[str, Any]]] = survey['content']()
PAPERS = CONTENT['paper']
#: Fields of a paper, and what they may hold (None: any text that is not empty).
FIELDS: dict[str, set[str] | None] = {
    'author': None,
    'title': None,
    'network': None,
    'people': None,
    'dimension': {'2D', '2.5D', '3D', '2D & 3D'},
    'output': {'direct', 'indirect', 'both'},
    'supervision': {'paired', 'contrasts', 'unpaired', 'self', 'task'},
}
NAMES = sorted({name for paper in PAPERS for name in paper['names']})
BEYOND = [name for item in CONTENT['beyond'] for name in item['names']]


def _steps() -> set[str]:
    """Return the steps of recipes that are of no other paper."""
    alone = {name for paper in PAPERS if not paper['recipe'] for name in paper['names']}
    return set(NAMES) - alone


def _names(paper: dict[str, Any], text: str) -> bool:
    """Return whether one of the references in a text begins with the first author of a paper, and has its year."""
    return any(
        re.match(rf'{re.escape(paper["author"])}\b', cited) and str(paper['year']) in cited
        for cited in text.split('; ')
    )


def test_there_are_38_papers() -> None:
    assert len(PAPERS) == 38
    assert len({paper['reference'] for paper in PAPERS}) == 38
    assert [paper['year'] for paper in PAPERS] == sorted(paper['year'] for paper in PAPERS)


@pytest.mark.parametrize('paper', PAPERS, ids=survey['label'])
def test_a_paper_has_all_fields(paper: dict[str, Any]) -> None:
    for field, allowed in FIELDS.items():
        assert paper[field]
        assert allowed is None or paper[field] in allowed
    assert set(paper) == {
        *FIELDS, 'year', 'reference', 'doi', 'contrasts', 'code', 'downstream', 'names', 'recipe', 'differs',
    }  # fmt: skip
    assert 2019 <= paper['year'] <= 2024
    assert re.fullmatch(r'(10\.\d{4,}/\S+)?', paper['doi'])
    assert paper['contrasts']
    assert set(paper['contrasts']) <= {'T1w', 'T2w', 'FLAIR', 'PDw'}
    assert isinstance(paper['code'], bool)
    assert isinstance(paper['downstream'], bool)
    assert paper['names']


def test_the_table_counts_as_the_text_of_the_survey_does() -> None:
    # The text counts its own table: 13 % U-Net, 24 % GAN, 13 % VAE, two transformers, three flows, 29 % custom, the rest two at once;
    # 66 % T1w only, 63 % with a downstream task, 15 with code.
    kinds = Counter(
        'custom' if 'Custom' in network
        else 'gan' if network in ('GAN', 'CycleGAN', 'StarGAN')
        else 'two' if ' and ' in network or '-VAE' in network
        else network
        for network in (paper['network'] for paper in PAPERS)
    )  # fmt: skip
    assert kinds == {
        'U-Net': 5, 'gan': 9, 'VAE': 5, 'Transformers': 2, 'Flow-based generative model': 3, 'custom': 11, 'two': 3,
    }  # fmt: skip
    assert sum(paper['contrasts'] == ['T1w'] for paper in PAPERS) == round(0.66 * 38)
    assert sum(paper['downstream'] for paper in PAPERS) == round(0.63 * 38)
    assert sum(paper['code'] for paper in PAPERS) == 15


def test_the_years_are_miscounted_as_the_errata_say() -> None:
    years = Counter(paper['year'] for paper in PAPERS)
    assert years[2022] == years[2023] == 11
    assert any('has 11 of each, 29%' in item['what'] for item in CONTENT['erratum'])


@pytest.mark.parametrize('name', NAMES)
def test_every_name_runs_and_has_a_page(name: str) -> None:
    method = registry.find(name)()
    assert method.card.name == name
    assert (ROOT / 'docs' / 'methods' / f'{name}.md').is_file()


@pytest.mark.parametrize('name', [name for name in NAMES if name not in _steps()])
def test_the_card_of_a_name_cites_the_paper(name: str) -> None:
    cited = registry.card(name).paper
    assert any(_names(paper, cited) for paper in PAPERS if name in paper['names'])


def test_a_recipe_names_its_steps_in_their_order() -> None:
    assert [(paper['author'], paper['names']) for paper in PAPERS if paper['recipe']] == [
        ('Shao', ['calamiti', 'erm'])
    ]
    assert registry.card('calamiti').output == 'image'
    assert registry.card('erm').output == 'task'


def test_every_method_is_of_the_survey_or_said_not_to_be() -> None:
    assert len(BEYOND) == len(set(BEYOND))
    assert all(item['why'] for item in CONTENT['beyond'])
    missing = set(registry._BUILTIN) - set(NAMES) - set(BEYOND)
    assert not missing, 'put them into docs/survey.toml: into a paper, or into "beyond" with a reason'
    assert not set(NAMES) & set(BEYOND)
    assert set(BEYOND) <= set(registry._BUILTIN)


@pytest.mark.parametrize('name', BEYOND)
def test_no_method_beyond_the_survey_cites_a_paper_of_it(name: str) -> None:
    card = registry.card(name)
    assert not [survey['label'](paper) for paper in PAPERS if _names(paper, card.paper)]
    assert card.doi not in {paper['doi'] for paper in PAPERS} - {''}


def test_what_comes_out_is_what_the_paper_gives() -> None:
    for paper in PAPERS:
        outputs = {registry.card(name).output == 'task' for name in paper['names']}
        wanted = {'direct': {False}, 'indirect': {True}, 'both': {False, True}}[paper['output']]
        assert outputs == (wanted if not paper['recipe'] else {False, True}), survey['label'](paper)


def test_the_page_is_up_to_date() -> None:
    text = survey['PAGE'].read_text(encoding='utf-8')
    assert survey['filled'](text) == text, 'run `python docs/survey.py`'


def test_the_page_has_a_row_for_every_paper_and_links_every_name() -> None:
    block = (
        survey['PAGE'].read_text(encoding='utf-8').partition('<!-- papers -->')[2].partition('<!-- end')[0]
    )
    lines = [line for line in block.splitlines() if line.startswith('|')][2:]
    for paper, line in itertools.zip_longest(PAPERS, lines):
        assert survey['label'](paper) in line
        assert all(f'](methods/{name}.md)' in line for name in paper['names'])


def _written(folder: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a result into a folder, and let figures be taken from there."""
    (folder / 'zoo.json').write_text(json.dumps({'about': {}, 'rows': rows}))
    monkeypatch.setitem(survey['rows'].__globals__, 'RESULTS', folder)


ZOO = {
    'name': 'zoo',
    'where': {},
    'preset': '',
    'columns': {'PSNR': 'PSNR in dB'},
    'beside': ['identity'],
}


def test_figures_come_from_the_result_and_stand_beside_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines: list[dict[str, Any]] = [
        {'method': 'identity', 'PSNR': 20.04},
        {'method': 'iguane (paper)', 'PSNR': [23.456, 22.0, 25.0]},
    ]
    _written(tmp_path, lines, monkeypatch)
    result = {**ZOO, 'preset': 'paper'}
    found = [(result, survey['rows'](result))]
    text = 'PSNR in dB 23.5 (identity 20) ([zoo](../benchmarks/results/zoo.md))'
    assert survey['measured'](['iguane'], found) == text
    assert survey['measured'](['iguane', 'murd'], found) == f'`iguane` {text}'
    assert survey['measured'](['murd'], found) == survey['measured'](['iguane'], []) == 'not measured'
    monkeypatch.setitem(survey['papers'].__globals__, 'sources', lambda: found)
    assert survey['papers']().count(f'| {text} |') == 1


def test_a_result_that_is_not_there_has_no_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(survey['rows'].__globals__, 'RESULTS', tmp_path)
    assert survey['sources']() == []


def test_a_result_without_its_columns_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _written(tmp_path, [{'method': who, 'PSNR': 20.0} for who in ('identity', 'iguane')], monkeypatch)
    with pytest.raises(ValueError, match='which of its columns'):
        survey['rows']({**ZOO, 'columns': {}})
    result = {**ZOO, 'columns': {'SSIM': 'SSIM'}}
    with pytest.raises(ValueError, match='no "SSIM" of iguane, identity'):
        survey['measured'](['iguane'], [(result, survey['rows'](result))])


def test_rows_of_a_method_are_chosen_and_never_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {'method': who, 'PSNR': n, 'at': n} for who in ('identity', 'iguane') for n in (1, 2)
    ]
    _written(tmp_path, lines, monkeypatch)
    with pytest.raises(ValueError, match='several rows'):
        survey['rows'](ZOO)
    assert survey['rows']({**ZOO, 'where': {'at': 2}})['iguane']['PSNR'] == 2
