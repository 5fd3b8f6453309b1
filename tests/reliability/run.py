"""The reliability run: bad input, bad machines, kills, hostile files and fuzzing, in numbers that the short tests do not reach.

``python tests/reliability/run.py`` runs every part and takes hours; ``python tests/reliability/run.py kills --seed 3`` runs one. Each part
writes ``tests/reliability/results/PART.json`` and ``.md``, which docs/reliability.md shows. Exit code 1 if something did not end as it must.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from shared import Part, save

#: Modules beside this one; each has ``run(part)``.
PARTS = ('scans', 'kills', 'machines', 'hostile', 'fuzz')


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('parts', nargs='*', choices=[*PARTS, []], help='default: all of them')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(arguments)
    wrong = 0
    for name in args.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix=f'bidsharm-{name}-', ignore_cleanup_errors=True) as work:
            part = Part(name, Path(work), args.seed)
            started = time.monotonic()
            importlib.import_module(name).run(part)
            save(part, time.monotonic() - started)
            wrong += sum(not row.ok for row in part.rows)
    return int(wrong > 0)


if __name__ == '__main__':
    sys.exit(main())
