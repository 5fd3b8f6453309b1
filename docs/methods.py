"""Put the card of each method that is trained, or not for images, on top of its page in ``docs/methods``.

``python docs/methods.py`` writes what stands between ``<!-- card -->`` and ``<!-- end of card -->``; a test holds pages and cards together.
"""

from __future__ import annotations

from pathlib import Path

from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import NEED_PHRASES, Card
from bidsharm.harmonizers.trained import TrainedHarmonizer

FOLDER = Path(__file__).parent / 'methods'
OPEN, CLOSE = '<!-- card -->', '<!-- end of card -->'


#: What stands above the list of each domain, and the words for what a method needs none of.
CHAPTERS = {
    'volume': ('# Trained methods', 'Trained by `bidsharm-train` ([training.md](../training.md)); none ships with weights.'),
    'table': ('## Methods for tables of features', 'Fitted and applied by `bidsharm-table` ([tables.md](../tables.md)).'),
    'surface': ('## Methods for cortical surfaces', 'Trained and applied by `bidsharm-surface` ([surfaces.md](../surfaces.md)); none ships with weights.'),
    'task': ('## Methods that predict', 'Trained and applied by `bidsharm-task` ([tasks.md](../tasks.md)); none ships with weights.'),
}  # fmt: skip


#: How the cards of each domain name what a method is applied to.
NEEDS = {
    'volume': 'Needs for a scan',
    'table': 'Needs for a row',
    'surface': 'Needs for a map',
    'task': 'Needs for a scan',
}


def with_page(domain: str = '') -> list[str]:
    """Return the names of the built-in methods that have a page: trained ones, and all of other domains than images."""
    return [
        name
        for name in registry._BUILTIN
        if (registry.card(name).place != 'volume' or issubclass(registry.find(name), TrainedHarmonizer))
        and domain in ('', registry.card(name).place)
    ]


def card_table(card: Card) -> str:
    """Return a card as a table."""

    def phrases(needs: tuple[str, ...]) -> str:
        return '; '.join(NEED_PHRASES[need] for need in needs) or 'nothing'

    rows = {
        'What it does': card.title,
        'Paper': f'{card.paper} [doi:{card.doi}](https://doi.org/{card.doi})' if card.doi else card.paper,
        'Family': f'{card.family}, supervision: {card.supervision}',
        'Learns from': phrases(card.needs_fit),
        NEEDS[card.place]: phrases(card.needs_apply),
        'Aims at': ', '.join(card.targets) or 'a task instead of a target',
        'Fidelity': card.fidelity,
        'Differs from the paper': card.deviations or 'in nothing that is known',
    }
    return '\n'.join(['| | |', '|---|---|', *(f'| {key} | {value} |' for key, value in rows.items())])


def filled(text: str, card: Card) -> str:
    """Return a page with the card of its method."""
    head, _, rest = text.partition(OPEN)
    before, found, after = rest.partition(CLOSE)
    body = after if found else before
    return f'{head}{OPEN}\n\n{card_table(card)}\n\n{CLOSE}\n\n{body.lstrip()}'


def index() -> str:
    """Return the list of all pages."""
    lines = []
    for domain, (heading, text) in CHAPTERS.items():
        lines += [heading, '', text, '']
        lines += ['| method | what it does | learns from | aims at | fidelity |', '|---|---|---|---|---|']
        lines += [_row(name) for name in with_page(domain)] + ['']
    return '\n'.join(lines[:-1]) + '\n'


def _row(name: str) -> str:
    card = registry.card(name)
    needs = '; '.join(NEED_PHRASES[need] for need in card.needs_fit) or 'any scans'
    return f'| [{name}]({name}.md) | {card.title} | {needs} | {", ".join(card.targets) or "a task"} | {card.fidelity} |'


def main() -> None:
    """Fill all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name in with_page():
        page = FOLDER / f'{name}.md'
        if page.is_file():
            page.write_text(filled(page.read_text(), registry.card(name)))
    (FOLDER / 'README.md').write_text(index())


if __name__ == '__main__':
    main()
