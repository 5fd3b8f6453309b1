"""Fill ``docs/survey.md``: which name of bidsharm runs which paper of the survey, with its card and its figures.

``python docs/survey.py`` writes what stands between ``<!-- papers -->`` and ``<!-- end of papers -->``, and the same for ``results``, ``errata`` and
``beyond``, from ``docs/survey.toml``, the registry and ``benchmarks/results``; a test holds them together.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import NEED_PHRASES, Card

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / 'survey.md'
TABLE = DOCS / 'survey.toml'
RESULTS = DOCS.parent / 'benchmarks' / 'results'
#: Each result with its rows by method.
Sources = list[tuple[dict[str, Any], dict[str, dict[str, Any]]]]
COLUMNS = ('paper', "the survey's table", 'runs as', 'fidelity', 'needs', 'aims at', 'can draw', 'measured')


def content() -> dict[str, list[dict[str, Any]]]:
    """Return the lists of ``survey.toml``: ``paper``, ``erratum``, ``beyond`` and ``result``."""
    return tomllib.loads(TABLE.read_text(encoding='utf-8'))


def label(paper: dict[str, Any]) -> str:
    """Return how a paper is called, the same for no two of them."""
    return f'{paper["author"]} {paper["year"]} ({paper["reference"]})'


def papers() -> str:
    """Return one line for each paper."""
    lines = [f'| {" | ".join(COLUMNS)} |', '|' + '---|' * len(COLUMNS)]
    found = sources()
    return '\n'.join([*lines, *(_row(paper, found) for paper in content()['paper'])])


def _row(paper: dict[str, Any], found: Sources) -> str:
    cards = [registry.card(name) for name in paper['names']]
    cited = f'[{label(paper)}](https://doi.org/{paper["doi"]})' if paper['doi'] else label(paper)
    table = f'{paper["network"]}, {paper["dimension"]}, {", ".join(paper["contrasts"])}, people: {paper["people"]}; {paper["output"]}, {paper["supervision"]}'
    joint = ', then ' if paper['recipe'] else ', '
    cells = (
        cited, table, joint.join(f'[{name}](methods/{name}.md)' for name in paper['names']),
        _each(cards, [card.fidelity for card in cards]), _needs(cards), _each(cards, [_aims(card) for card in cards]),
        _each(cards, ['yes' if card.changes_anatomy else 'no' for card in cards]), measured(paper['names'], found),
    )  # fmt: skip
    return f'| {" | ".join(cells)} |'


def _each(cards: Sequence[Card], values: Sequence[str]) -> str:
    """Return what all methods share, or the value of each."""
    if len(set(values)) == 1:
        return values[0]
    return '; '.join(f'`{card.name}`: {value}' for card, value in zip(cards, values, strict=True))


def _needs(cards: Sequence[Card]) -> str:
    """Return what is needed to fit and to apply, in words, apart from the model bundle that every training leaves."""
    needs = [
        [key for key in dict.fromkeys((*card.needs_fit, *card.needs_apply)) if key != 'weights']
        for card in cards
    ]
    shared = [key for key in needs[0] if all(key in keys for keys in needs)]
    own = {
        card.name: [key for key in keys if key not in shared] for card, keys in zip(cards, needs, strict=True)
    }
    words = [_words(shared)] if shared else []
    return (
        '; '.join([*words, *(f'`{name}`: {_words(keys)}' for name, keys in own.items() if keys)]) or 'nothing'
    )


def _words(needs: Sequence[str]) -> str:
    return '; '.join(NEED_PHRASES[need] for need in needs)


def _aims(card: Card) -> str:
    return 'a task' if card.output == 'task' else ', '.join(card.targets)


def sources() -> Sources:
    """Return every result of ``survey.toml`` that is there, with its rows by method."""
    found = [(result, rows(result)) for result in content()['result']]
    return [(result, table) for result, table in found if table]


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the chosen rows of a result by method.

    Raises
    ------
    ValueError
        If there is such a result and nothing says which of its columns to show, or a method has several rows.
    """
    data = RESULTS / f'{result["name"]}.json'
    if not data.exists():
        return {}
    if not result['columns']:
        raise ValueError(f'{data.name} is there: say in docs/survey.toml which of its columns are shown.')
    lines = json.loads(data.read_text(encoding='utf-8'))['rows']
    chosen = [line for line in lines if all(line[key] == value for key, value in result['where'].items())]
    table = {line['method'].removesuffix(f' ({result["preset"]})'): line for line in chosen}
    if len(table) != len(chosen):
        raise ValueError(
            f'{result["name"]} has several rows of a method: choose by "where" in docs/survey.toml.'
        )
    return table


def measured(names: Sequence[str], found: Sources) -> str:
    """Return the figures of methods, each with those that it stands beside, and the result that they are of."""
    texts = []
    for result, table in found:
        shown = [
            (f'`{name}` ' if len(names) > 1 else '') + _figures(table, name, result)
            for name in names
            if name in table
        ]
        if shown:
            texts.append(
                f'{"; ".join(shown)} ([{result["name"]}](../benchmarks/results/{result["name"]}.md))'
            )
    return '; '.join(texts) or 'not measured'


def _figures(table: dict[str, dict[str, Any]], name: str, result: dict[str, Any]) -> str:
    """Return the chosen columns of a method, with those of the methods it stands beside in brackets."""
    texts = []
    for column, called in result['columns'].items():
        lacking = [who for who in (name, *result['beside']) if column not in table.get(who, {})]
        if lacking:
            raise ValueError(
                f'{result["name"]} has no "{column}" of {", ".join(lacking)}: see docs/survey.toml.'
            )
        beside = ', '.join(f'{other} {_number(table[other][column])}' for other in result['beside'])
        texts.append(f'{called} {_number(table[name][column])} ({beside})')
    return ', '.join(texts)


def _number(value: Any) -> str:
    """Return a number as text; of an estimate with its interval the estimate."""
    if isinstance(value, list):
        return _number(value[0])
    if value is None:
        return 'unknown'
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def results() -> str:
    """Return a line for each result that figures are taken from: which rows, when, where, by which command."""
    ours = {name for paper in content()['paper'] for name in paper['names']}
    lines = []
    for result, table in sources():
        if ours.isdisjoint(table):
            continue
        file = RESULTS / f'{result["name"]}.json'
        about = json.loads(file.read_text(encoding='utf-8'))['about']
        said = [about[key] for key in ('date', 'processor')]
        chosen = [f'"{text}"' for text in result['where'].values()]
        command = about['command']
        link = f'[{result["name"]}](../benchmarks/results/{result["name"]}.md)'
        lines.append(f'- {", ".join([link, *chosen, f"`{command}`", *said])}')
    return '\n'.join(lines) or 'There are none yet.'


def errata() -> str:
    """Return what the survey has wrong, of all papers and of single ones."""
    data = content()
    lines = [f'- {item["what"]}' for item in data['erratum']]
    return '\n'.join(
        [*lines, *(f'- {label(item)}: {item["differs"]}' for item in data['paper'] if item['differs'])]
    )


def beyond() -> str:
    """Return the methods of no paper of the survey, and why they are there."""
    return '\n'.join(
        f'- {", ".join(f"`{name}`" for name in item["names"])}: {item["why"]}' for item in content()['beyond']
    )


def filled(text: str) -> str:
    """Return the page with all blocks made anew."""
    for name, make in (('papers', papers), ('results', results), ('errata', errata), ('beyond', beyond)):
        before, start, rest = text.partition(f'<!-- {name} -->\n')
        _, end, after = rest.partition(f'<!-- end of {name} -->')
        text = f'{before}{start}\n{make()}\n\n{end}{after}'
    return text


if __name__ == '__main__':
    PAGE.write_text(filled(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
