"""Copy the results of `isotone` into the cards that ship with its weights, so that no figure there is typed by hand.

``python benchmarks/card.py`` writes them; ``--check`` only says (exit code 1) whether the cards agree with ``benchmarks/results``. The digest
of the weights does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bidsharm.settings import CONTRASTS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks' / 'results'
WEIGHTS = ROOT / 'bidsharm' / 'weights' / 'isotone'
#: Results that have rows by method, for each contrast.
TABLES = {
    'T1w': ('travelling', 'travelling_site', 'travelling_noise_free', 'classical_real', 'lesions', 'cost'),
    'T2w': ('travelling_T2w', 'classical_real', 'lesions'),
    'FLAIR': ('travelling_FLAIR', 'classical_real', 'lesions'),
}


def main(arguments: list[str] | None = None) -> int:
    """Fill or check the cards; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='write nothing')
    check = parser.parse_args(arguments).check
    stale = False
    for card in sorted(WEIGHTS.glob('*/card.json')):
        before = card.read_text(encoding='utf-8')
        after = filled(before, card.parent.name)
        if after == before:
            continue
        stale = True
        print(f'{card.relative_to(ROOT)}: {"out of date" if check else "filled"}')
        if not check:
            card.write_text(after, encoding='utf-8')
    return int(check and stale)


def filled(text: str, contrast: str) -> str:
    """Return the card of a contrast with the results as they are."""
    content = json.loads(text)
    content['settings']['results'] = [
        found for name in TABLES[contrast] if (found := result_of(name, contrast))
    ]
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + '\n'


def result_of(name: str, contrast: str) -> dict[str, Any]:
    """Return one result: what made it, and the rows of the method; nothing if it was not measured."""
    file = RESULTS / f'{name}.json'
    if not file.exists():
        return {}
    record = json.loads(file.read_text())
    about = {key: record['about'][key] for key in ('command', 'date', 'seed', 'processor')}
    rows = [{key: rounded(value) for key, value in row.items()}
            for row in record['rows'] if row['method'] == 'isotone' and row.get('contrast', contrast) == contrast]  # fmt: skip
    return {'name': name, **about, 'rows': [of_contrast(row, contrast) for row in rows]}


def of_contrast(row: dict[str, Any], contrast: str) -> dict[str, Any]:
    """Return the columns that tell of a contrast; those that name none are of T1w, unless the row itself says of which it is."""
    if 'contrast' in row or not any(key.startswith('T2w ') for key in row):
        return row
    others = tuple(f'{name} ' for name in CONTRASTS[1:])
    if contrast == 'T1w':
        return {key: value for key, value in row.items() if not key.startswith(others)}
    return {key: value for key, value in row.items() if key == 'method' or key.startswith(f'{contrast} ')}


def rounded(value: Any) -> Any:
    """Return a number with three digits."""
    return float(f'{value:.3g}') if isinstance(value, float) else value


if __name__ == '__main__':
    sys.exit(main())
