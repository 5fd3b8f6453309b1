"""Put the card of each trained method on top of its page in ``docs/methods``.

``python docs/methods.py`` writes what stands between ``<!-- card -->`` and ``<!-- end of card -->``; a test holds pages and cards together.
"""

from __future__ import annotations

from pathlib import Path

from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import NEED_PHRASES, Card
from bidsharm.harmonizers.trained import TrainedHarmonizer

FOLDER = Path(__file__).parent / 'methods'
OPEN, CLOSE = '<!-- card -->', '<!-- end of card -->'


def trained() -> list[str]:
    """Return the names of the built-in methods that are trained."""
    return [name for name in registry._BUILTIN if issubclass(registry.get(name), TrainedHarmonizer)]


def card_table(card: Card) -> str:
    """Return a card as a table."""

    def phrases(needs: tuple[str, ...]) -> str:
        return '; '.join(NEED_PHRASES[need] for need in needs) or 'nothing'

    rows = {
        'What it does': card.title,
        'Paper': f'{card.paper} [doi:{card.doi}](https://doi.org/{card.doi})' if card.doi else card.paper,
        'Family': f'{card.family}, supervision: {card.supervision}',
        'Learns from': phrases(card.needs_fit),
        'Needs for a scan': phrases(card.needs_apply),
        'Aims at': ', '.join(card.targets),
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
    lines = [
        '# Trained methods',
        '',
        'Trained by `bidsharm-train` ([training.md](../training.md)); none ships with weights.',
        '',
    ]
    lines += ['| method | what it does | learns from | aims at | fidelity |', '|---|---|---|---|---|']
    for name in trained():
        card = registry.card(name)
        needs = '; '.join(NEED_PHRASES[need] for need in card.needs_fit) or 'any scans'
        lines.append(
            f'| [{name}]({name}.md) | {card.title} | {needs} | {", ".join(card.targets)} | {card.fidelity} |'
        )
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Fill all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name in trained():
        page = FOLDER / f'{name}.md'
        if page.is_file():
            page.write_text(filled(page.read_text(), registry.card(name)))
    (FOLDER / 'README.md').write_text(index())


if __name__ == '__main__':
    main()
