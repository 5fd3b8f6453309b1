"""Copy tables of results into the documents, so that no figure there is typed by hand.

A document says where a table belongs and which columns it takes::

    <!-- figures: classical_real | method=identity,nyul | visits distance | transfer -->
    <!-- end of figures -->

Values behind a column choose rows.

``python benchmarks/figures.py`` writes the tables between the two lines; ``--check`` only says (exit code 1) which
documents no longer agree with ``benchmarks/results`` and ``tests/reliability/results``.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = (ROOT / 'benchmarks' / 'results', ROOT / 'tests' / 'reliability' / 'results')
DOCUMENTS = (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
BLOCK = re.compile(
    r'(?P<open><!-- figures: (?P<spec>[^>]+) -->\n)(?P<body>.*?)(?P<close><!-- end of figures -->)', re.S
)


def main(arguments: list[str] | None = None) -> int:
    """Fill or check all documents; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit with 1 where a table is out of date'
    )
    check = parser.parse_args(arguments).check
    stale = [path for path in DOCUMENTS if filled(path.read_text()) != path.read_text()]
    for path in stale:
        print(f'{path.relative_to(ROOT)}: {"out of date" if check else "filled"}')
        if not check:
            path.write_text(filled(path.read_text()))
    return int(check and bool(stale))


def filled(text: str) -> str:
    """Return a document with every table made anew from the results."""
    return BLOCK.sub(lambda match: match['open'] + _figures(match['spec']) + match['close'], text)


def _figures(spec: str) -> str:
    """Return the chosen columns of a result's table, and when, where and how it was measured."""
    name, *wanted = (part.strip() for part in spec.split('|'))
    columns = [part.partition('=')[0] for part in wanted]
    chosen = {
        header: set(re.split(',(?! )', values))
        for header, _, values in (part.partition('=') for part in wanted)
        if values
    }
    file = next(folder / f'{name}.md' for folder in RESULTS if (folder / f'{name}.md').exists())
    lines = file.read_text().splitlines()
    header, _, *rows = (
        [cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')
    )
    rows = [
        row for row in rows if all(row[header.index(column)] in values for column, values in chosen.items())
    ]
    if not rows:
        raise SystemExit(f'No row of {name} is left by: {spec.strip()}')
    kept = [header.index(column) for column in columns] or range(len(header))
    about = dict(
        line[2:].split(': ', 1)
        for line in lines
        if line.startswith(('- date: ', '- command: ', '- processor: '))
    )
    table = [[row[index] for index in kept] for row in (header, *rows)]
    table.insert(1, ['---'] * len(table[0]))
    text = '\n'.join(f'| {" | ".join(row)} |' for row in table)
    return f'\n{text}\n\n*`{about["command"]}`, {about["date"]}, {about["processor"]}.*\n\n'


if __name__ == '__main__':
    sys.exit(main())
