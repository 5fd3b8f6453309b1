"""What the scheduler tells of the steps, turned into events and into the table ``resources.tsv``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsharm.workflows.events import EventLog, StepFailed, StepFinished, StepStarted

from bidsharm.bids.atomic import write_json
from bidsharm.bids.names import ScanFile
from bidsharm.interfaces.usage import USAGE_FILE, read_usage

#: Table of what the steps used, in the log folder of a run, with its dictionary beside it.
RESOURCES_FILE = 'resources.tsv'

#: A step is named in the summary when it takes this many times the memory that was planned,
OVER = 1.2
#: and at least so many GB more: the plan of small steps is the interpreter, more or less.
OVER_GB = 0.1

#: Columns of the table and what they hold.
COLUMNS = {
    'scan': 'Scan that the step works on; n/a for the template of a subject and for learning a target',
    'step': 'Step, as a path through the graph of the scan',
    'seconds': 'Wall-clock seconds of the step itself, without waiting for a worker or in the queue of a cluster',
    'cpu_seconds': 'CPU seconds of the step and the programs that it started',
    'peak_gb': 'Peak of the memory of the step and the programs that it started, in GB of 1e9 bytes; memory shared '
    'with other processes counts in parts, memory of a GPU does not count',
    'planned_gb': 'Memory that the scheduler plans for the step, in GB',
    'threads': 'Threads that the scheduler plans for the step',
    'state': 'finished or failed',
}


@dataclass
class Excess:
    """A step that took more memory than planned: the most it took, what was planned then, and how often."""

    peak_gb: float
    planned_gb: float
    count: int = 1


@dataclass
class StepRecorder:
    """Takes the messages of the scheduler.

    Parameters
    ----------
    events
        Where events go.
    log_dir
        Where the table goes; None: no table.
    """

    events: EventLog
    log_dir: Path | None = None
    over: dict[str, Excess] = field(default_factory=dict)
    _scans: dict[str, str] = field(default_factory=dict, init=False)
    _started: dict[str, float] = field(default_factory=dict, init=False)

    def know(self, scans: Iterable[ScanFile]) -> None:
        """Learn the names of scans, by which steps are told apart."""
        self._scans |= {scan.node: scan.name for scan in scans}

    def on_node(self, node: Any, status: str) -> None:
        """Take a message: ``start``, ``end`` or ``exception``."""
        if getattr(node, 'run_without_submitting', False):  # it only puts lists together
            return
        name = str(node.fullname)
        if status == 'start':
            self._start(node, name)
        elif status == 'exception':
            self._end(node, name, failed=True)
        elif name in self._started or _has_result(node):  # the plugin "Linear" also tells what it passed over
            self._end(node, name, failed=False)

    def _start(self, node: Any, name: str) -> None:
        self._started[name] = time.monotonic()
        # What an earlier run measured here must not pass for this one.
        with contextlib.suppress(OSError):
            (Path(node.output_dir()) / USAGE_FILE).unlink(missing_ok=True)
        self.events.emit(StepStarted(*self.place(name), node=name, **_planned(node)))

    def _end(self, node: Any, name: str, *, failed: bool) -> None:
        scan, step = self.place(name)
        began = self._started.pop(name, None)
        used = read_usage(Path(node.output_dir())) if began is not None else None
        cached = used is None and not failed
        figures: dict[str, float | None] = dict.fromkeys(('seconds', 'cpu_seconds', 'peak_gb'))
        figures |= used or {}
        if used is None and failed and began is not None:  # its process is gone; at least this is known
            figures['seconds'] = round(time.monotonic() - began, 3)
        common: dict[str, Any] = {'scan': scan, 'step': step, 'node': name, **figures, **_planned(node)}
        self.events.emit(StepFailed(**common) if failed else StepFinished(cached=cached, **common))
        if not cached:
            self._tabulate({**common, 'state': 'failed' if failed else 'finished'})

    def _tabulate(self, row: dict[str, Any]) -> None:
        """Add a row, at once: a run that is killed leaves what it knows."""
        peak, planned = row['peak_gb'], row['planned_gb']
        if peak is not None and peak > max(OVER * planned, planned + OVER_GB):
            known = self.over.get(row['step'])
            count = known.count + 1 if known else 1
            worst = known if known and known.peak_gb >= peak else Excess(peak, planned)
            self.over[row['step']] = Excess(worst.peak_gb, worst.planned_gb, count)
        if self.log_dir is None:
            return
        table = self.log_dir / RESOURCES_FILE
        with contextlib.suppress(OSError):  # the event log tells that the disk is full
            if not table.exists():
                write_json(
                    table.with_suffix('.json'),
                    {name: {'Description': text} for name, text in COLUMNS.items()},
                )
                table.write_text('\t'.join(COLUMNS) + '\n')
            with table.open('a', encoding='utf-8') as file:
                file.write(
                    '\t'.join('n/a' if row[name] in (None, '') else str(row[name]) for name in COLUMNS) + '\n'
                )

    def place(self, node: str) -> tuple[str, str]:
        """Return the scan of a node by its full name (empty: none), and the name of the step without it.

        Examples
        --------
        >>> recorder = StepRecorder(EventLog())
        >>> recorder.place('bidsharm_wf.sub_01_wf.template')
        ('', 'template')
        """
        parts = node.split('.')[1:]
        if len(parts) > 1 and parts[0].startswith('sub_'):
            del parts[0]
        scan, steps = '', []
        for part in parts:
            found = self._scan_in(part) if part.endswith('_wf') else None
            if found:
                scan = self._scans[found]
                part = part.replace(f'_{found}', '')
            steps.append(part.removesuffix('_wf'))
        return scan, '.'.join(steps)

    def _scan_in(self, part: str) -> str | None:
        """Return the longest name of a scan within the name of a graph."""
        words = part.split('_')
        runs = ('_'.join(words[a:b]) for a in range(len(words)) for b in range(a + 1, len(words) + 1))
        return max((run for run in runs if run in self._scans), key=len, default=None)


def _planned(node: Any) -> dict[str, Any]:
    return {'planned_gb': float(node.mem_gb), 'threads': int(node.n_procs)}


def _has_result(node: Any) -> bool:
    return (Path(node.output_dir()) / f'result_{node.name}.pklz').exists()
