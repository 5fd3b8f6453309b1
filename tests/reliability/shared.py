"""What the parts of the reliability run share: commands with a bound, small heads, and tables of what happened."""

from __future__ import annotations

import hashlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / 'results'

#: Seconds after which a command counts as hung.
LIMIT_S = 900


class CannotRun(Exception):
    """This machine does not allow a check; the message says what is missing."""


@dataclass(frozen=True)
class Row:
    """One thing that was tried.

    Parameters
    ----------
    kind
        The table that it belongs to: ``scan``, ``data set``, ``machine``, ``kill``, ``hostile file``, ``fuzz`` ...
    what
        What was tried, in a few words.
    happened
        What happened: ``done``, ``done, with a warning``, ``refused``, ``left out``, ``run refused``, ``survived`` ...
    message
        What the user is told, if anything.
    ok
        Whether it is what must happen, by comparison.
    count
        How many cases the row stands for.
    """

    kind: str
    what: str
    happened: str
    message: str = ''
    ok: bool = False
    count: int = 1


@dataclass
class Part:
    """One part of the run: a folder to work in, the seed, and the rows.

    Parameters
    ----------
    name
        Name of the module, and of its result.
    work
        An empty folder.
    seed
        Of every random choice.
    """

    name: str
    work: Path
    seed: int = 0
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep a row, and say it."""
        self.rows.append(row)
        sign = 'ok   ' if row.ok else 'WRONG'
        print(f'[{self.name}] {sign} {row.what}: {row.happened} {row.message[:160]}', flush=True)

    def skip(self, what: str) -> None:
        """Name a check that this machine does not allow; it stands in the result, too."""
        self.skipped.append(what)
        print(f'[{self.name}] not run: {what}', flush=True)


def app(
    *arguments: object,
    command: str = 'bidsharm',
    limit_s: float = LIMIT_S,
    env: Mapping[str, str] | None = None,
    **more: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command of the package as a user would; one that does not end in time raises ``TimeoutExpired``.

    Parameters
    ----------
    arguments
        Of the command line.
    command
        ``bidsharm``, ``bidsharm-train`` ...
    limit_s
        Seconds after which it counts as hung.
    env
        Variables on top of those of this process.
    **more
        To :func:`subprocess.run`.
    """
    return subprocess.run(
        command_line(*arguments, command=command), capture_output=True, text=True, errors='replace', timeout=limit_s, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1', **(env or {})}, **more,
    )  # fmt: skip


def command_line(*arguments: object, command: str = 'bidsharm') -> list[str]:
    """Return program and arguments of a command of the package."""
    module = {'bidsharm': 'run'}.get(command, command.removeprefix('bidsharm-'))
    return [sys.executable, '-m', f'bidsharm.cli.{module}', *map(str, arguments)]


def heads(
    out: Path,
    *,
    subjects: int = 1,
    scanners: Sequence[str] = ('northA',),
    resolution: float = 2.5,
    seed: int = 0,
) -> Path:
    """Simulate small heads once a day and machine, and copy them to ``out``; returns ``out``."""
    key = f'{subjects}-{"-".join(scanners)}-{resolution:g}-{seed}'
    kept = Path(tempfile.gettempdir()) / f'bidsharm-reliability-{os.getuid()}' / key
    if not (kept / 'participants.json').exists():
        shutil.rmtree(kept, ignore_errors=True)
        done = app(
            kept, '--subjects', subjects, '--scanners', *scanners, '--resolution', resolution, '--seed', seed,
            command='bidsharm-simulate',
        )  # fmt: skip
        if done.returncode:
            raise CannotRun(done.stdout + done.stderr)
    shutil.copytree(kept, out, symlinks=True)
    return out


def checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by its path from there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def save(part: Part, seconds: float) -> None:
    """Write ``results/PART.json`` and ``.md``."""
    shown = [replace(row, message=row.message.replace(f'{part.work}/', '')) for row in part.rows]
    rows = [
        {
            'kind': row.kind, 'input': _cell(row.what), 'what happens': _cell(row.happened), 'message': _cell(row.message),
            'cases': row.count, 'as it must be': 'yes' if row.ok else 'NO',
        }
        for row in shown
    ]  # fmt: skip
    measuring = runpy.run_path(str(ROOT / 'benchmarks' / 'common.py'))
    skipped = ''.join(f'- not run: {what}\n' for what in part.skipped)
    measuring['save'](
        part.name, title=f'Reliability: {part.name}', text=measuring['table'](rows) + '\n' + skipped, seed=part.seed, folder=RESULTS,
        data={'rows': [vars(row) for row in shown], 'not_run': part.skipped, 'seconds': round(seconds)},
    )  # fmt: skip


def _cell(text: str) -> str:
    return ' '.join(text.split()).replace('|', '/').replace('<', '&lt;')
