"""Fill ``docs/reliability.md`` with the totals of the reliability run, and with the list of known sufferings and the tests against them.

``python docs/reliability.py`` writes what stands between ``<!-- totals -->`` and ``<!-- end of totals -->``, and the same for ``items``; a test holds
page, results and list together. The tables of single cases are filled by ``benchmarks/figures.py``.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'reliability.md'
RESULTS = ROOT / 'tests' / 'reliability' / 'results'
ITEMS = ROOT / 'tests' / 'reliability' / 'items.toml'


def totals() -> str:
    """Return one line for each kind of case of each result: how many, how many ended as they must, when and where."""
    lines = [
        '| run | kind | cases | as it must be | not run | seed | when and where |',
        '|---|---|---|---|---|---|---|',
    ]
    for file in sorted(RESULTS.glob('*.json')):
        result = json.loads(file.read_text(encoding='utf-8'))
        about = result['about']
        for kind in dict.fromkeys(row['kind'] for row in result['rows']):
            rows = [row for row in result['rows'] if row['kind'] == kind]
            good = sum(row['count'] for row in rows if row['ok'])
            cells = (
                f'`make reliability PARTS={file.stem}`', kind, sum(row['count'] for row in rows), good, len(result['not_run']),
                about['seed'], f'{about["date"]}, {about["processor"]}',
            )  # fmt: skip
            lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def items() -> str:
    """Return the list of known sufferings as a table."""
    lines = ['| | what people suffered from | where it is told | tests |', '|---|---|---|---|']
    for item in tomllib.loads(ITEMS.read_text(encoding='utf-8'))['item']:
        tests = '<br>'.join(f'`{name.removeprefix("tests/")}`' for name in item.get('tests', []))
        note = ' '.join(filter(None, [tests, item.get('note', '')]))
        lines.append(f'| {item["number"]} | {item["what"]} | {", ".join(item.get("sources", []))} | {note} |')
    return '\n'.join(lines)


def filled(text: str) -> str:
    """Return the page with both blocks made anew."""
    for name, content in (('totals', totals()), ('items', items())):
        before, start, rest = text.partition(f'<!-- {name} -->\n')
        _, end, after = rest.partition(f'<!-- end of {name} -->')
        text = f'{before}{start}\n{content}\n\n{end}{after}'
    return text


if __name__ == '__main__':
    PAGE.write_text(filled(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
