"""What the benchmarks share: the machine, memory of a process tree, and results on disk."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

#: What runs, before it changes to another folder.
SCRIPT = Path(sys.argv[0]).resolve()
RESULTS = Path(__file__).resolve().parent / 'results'


def pyplot() -> Any:
    """Return what draws pictures, without a screen."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    return plt


def keep_picture(figure: Any, path: Path, pad: float = 1.08) -> None:
    """Write a figure for the documents, and forget it."""
    figure.tight_layout(pad=pad)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot().close(figure)


def machine() -> dict[str, str]:
    """Describe the machine and the versions, in words that name no place."""
    model = platform.processor() or 'unknown processor'
    info = Path('/proc/cpuinfo')
    if info.exists():
        names = [
            line.split(':', 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith('model name')
        ]
        model = names[0] if names else model
    memory_gb = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
    packages = ('bidsharm', 'nipype', 'antspyx', 'torch', 'numpy')
    return {
        'processor': f'{len(os.sched_getaffinity(0))} cores of {model}',
        'memory': f'{memory_gb:.0f} GB',
        'system': f'{platform.system()}, Python {platform.python_version()}',
        'versions': ', '.join(f'{name} {version(name)}' for name in packages),
    }


def real_data() -> Path:
    """Return the folder of the real scans, or end with a sentence."""
    folder = os.environ.get('BIDSHARM_REAL_DATA', '')
    if not Path(folder or '/nowhere').is_dir():
        raise SystemExit('Set BIDSHARM_REAL_DATA to the folder of the real scans (a BIDS data set).')
    return Path(folder)


@dataclass(frozen=True)
class Usage:
    """What a command took: wall seconds, CPU seconds of the tree, and its largest resident memory together (GB)."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    code: int


def measure(command: Sequence[object], **options: Any) -> Usage:
    """Run a command and watch its whole process tree (proportional set size, every 0.5 s)."""
    before, started = os.times(), time.perf_counter()
    with subprocess.Popen([str(part) for part in command], **options) as process:
        peak, done = [0.0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, done))
        watcher.start()
        code = process.wait()
        done.set()
        watcher.join()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Usage(time.perf_counter() - started, cpu, peak[0], code)


def train(
    name: str,
    derivatives: Path,
    folder: Path,
    *,
    cache: Path,
    target: str,
    others: Sequence[str],
    options: Sequence[object],
    **how: Any,
) -> Usage:
    """Train a method by `bidsharm-train`; the sessions are the sites.

    Parameters
    ----------
    name
        Registry name.
    derivatives
        What bidsharm made of the scans.
    folder
        For model and log.
    cache
        Folder for what is read of the scans; all methods share it.
    target
        Session to aim at, where the method aims at a site.
    others
        Contrasts beside T1w, for methods that need several.
    options
        More of the command line.
    **how
        Options of `measure`.
    """
    from bidsharm.harmonizers import registry

    card = registry.card(name)
    for made in (folder, cache):
        made.mkdir(parents=True, exist_ok=True)
    link = folder / 'cache'
    if not link.exists():
        link.symlink_to(cache.resolve())
    contrasts = ['T1w', *(others if 'multi_contrast' in card.needs_fit else ())]
    aim = ['--target', target] if 'site' in card.targets else []
    command = [sys.executable, '-m', 'bidsharm.cli.train', name, derivatives, folder, '--site', 'session']
    return measure([*command, '--contrasts', *contrasts, *aim, *options], **how)


def _watch(pid: int, peak: list[float], done: threading.Event) -> None:
    import psutil

    while not done.wait(0.5):
        total = 0
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        for process in tree:
            try:
                total += process.memory_full_info().pss
            except (psutil.Error, OSError):
                continue
        peak[0] = max(peak[0], total / 1e9)


def repeat(function: Callable[[], Any], times: int) -> float:
    """Return the median wall seconds of a function."""
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table; the first row names the columns."""
    columns = list(rows[0])
    lines = ['| ' + ' | '.join(columns) + ' |', '|' + '---|' * len(columns)]
    lines += ['| ' + ' | '.join(_cell(row.get(column)) for column in columns) + ' |' for row in rows]
    return '\n'.join(lines) + '\n'


def filled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows that all have the columns of any of them; None where one has no such value."""
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def p_text(p: float | None) -> str:
    """Return a p for a table; nothing where there is none."""
    return '' if p is None else '<0.001' if p < 0.001 else f'{p:.3f}'


def mean_interval(
    numbers: ArrayLike, *, seed: int, resamples: int = 2000
) -> tuple[float, float | None, float | None]:
    """Return a mean over people and the ends of its bootstrap interval; without ends where there is none."""
    import numpy as np

    from bidsharm.evaluation.intervals import bootstrap

    values = np.asarray(numbers)
    interval, _ = bootstrap((values,), np.mean, seed, resamples, 0.95, batch=1000)
    mean = float(values.mean())
    return (mean, None, None) if interval is None else (mean, interval.low, interval.high)


def with_interval(numbers: ArrayLike, digits: int, *, seed: int, resamples: int = 2000) -> str:
    """Return a mean over people with its bootstrap interval, for a table."""
    mean, low, high = mean_interval(numbers, seed=seed, resamples=resamples)
    ends = '' if low is None else f' ({low:.{digits}f}, {high:.{digits}f})'
    return f'{mean:.{digits}f}{ends}'


def body(description: str | None, about: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return the text of a page: how it was measured, what a script says of itself after its title, and the table."""
    return '\n\n'.join([about, (description or '').split('\n', 1)[1].strip(), table(rows)])


def _cell(value: Any) -> str:
    if value is None:
        return ''
    return (
        f'{value:.3g}'
        if isinstance(value, float) and abs(value) < 100
        else f'{value:.0f}'
        if isinstance(value, float)
        else str(value)
    )


def save(
    name: str, *, title: str, text: str, data: dict[str, Any], seed: int | None = None, folder: Path = RESULTS
) -> None:
    """Write ``NAME.json`` and ``NAME.md`` into a folder: what was measured, when, where and with which command."""
    folder.mkdir(exist_ok=True)
    script = SCRIPT.relative_to(Path(__file__).resolve().parents[1])
    command = f'python {script} ' + shlex.join(_public(part) for part in sys.argv[1:])
    about = {
        'date': datetime.now(UTC).strftime('%Y-%m-%d'),
        'command': command.strip(),
        'seed': 'none' if seed is None else str(seed),
        **machine(),
    }
    (folder / f'{name}.json').write_text(json.dumps({'about': about, **data}, indent=1) + '\n')
    lines = ''.join(f'- {key}: {value}\n' for key, value in about.items())
    page = f'# {title}\n\n{text}\n{lines}'
    (folder / f'{name}.md').write_text(page)
    print(page)


def _public(argument: str) -> str:
    """Replace a path by its last part in capitals: results name no place."""
    return Path(argument).name.upper() if argument.startswith('/') else argument


def add_labels(arguments: argparse.ArgumentParser) -> None:
    """Add the option that names the folder of label maps."""
    arguments.add_argument(
        '--labels', type=Path, default=os.environ.get('BIDSHARM_LABELS'), help='folder of label maps'
    )


def labels_of(args: argparse.Namespace) -> Path:
    """Return the folder of label maps; without one the benchmark ends, and says so."""
    if args.labels is None:
        raise SystemExit('Name the folder of label maps: --labels, or BIDSHARM_LABELS.')
    return Path(args.labels)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a benchmark."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
