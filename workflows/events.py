"""The log that a machine reads: what happens in a run, one JSON object a line.

Each event is a class here; its fields, with ``time`` and ``event``, are the keys of its line. ``docs/outputs.md`` tells what
they mean.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

#: Name of the file in the log folder of a run.
EVENTS_FILE = 'events.jsonl'


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    @classmethod
    def name(cls) -> str:
        """Return its name in the log: ``StepStarted`` is ``step_started``."""
        return re.sub(r'(?<!^)(?=[A-Z])', '_', cls.__name__).lower()

    def to_dict(self) -> dict[str, Any]:
        """Return its fields."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """First line of every run."""

    version: str
    level: str
    command: list[str]
    folder: str
    settings_digest: str
    host: str
    pid: int
    cores: int
    memory_gb: float
    device: str


@dataclass(frozen=True)
class Plan(Event):
    """What the run is going to do; at the group level, the scans that the page is about."""

    subjects: list[str]
    scans: list[str]
    left_out: int
    harmonizer: str
    target: str
    device: str


@dataclass(frozen=True)
class TargetLearning(Event):
    """A target is being learnt from some scans."""

    target: str
    scans: list[str]


@dataclass(frozen=True)
class BatchStarted(Event):
    """The graph of some subjects starts."""

    scans: list[str]
    steps: int


@dataclass(frozen=True)
class StepStarted(Event):
    """A step was handed to a worker, or to the cluster."""

    scan: str
    step: str
    node: str
    planned_gb: float
    threads: int


@dataclass(frozen=True)
class StepFinished(Event):
    """A step went well; what was not measured is null."""

    scan: str
    step: str
    node: str
    cached: bool
    seconds: float | None
    cpu_seconds: float | None
    peak_gb: float | None
    planned_gb: float
    threads: int


@dataclass(frozen=True)
class StepFailed(Event):
    """A step failed; why, the ``scan_failed`` of its scan tells."""

    scan: str
    step: str
    node: str
    seconds: float | None
    cpu_seconds: float | None
    peak_gb: float | None
    planned_gb: float
    threads: int


@dataclass(frozen=True)
class ScanDone(Event):
    """All files of a scan are written."""

    scan: str
    verdict: str
    concerns: str
    warnings: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class ScanFailed(Event):
    """A scan has no result."""

    scan: str
    what: str
    where: str
    fix: str
    log: str


@dataclass(frozen=True)
class ScanResumed(Event):
    """An earlier run has done the scan."""

    scan: str


@dataclass(frozen=True)
class ScanLeftOut(Event):
    """A scan is passed over; ``refused`` where that makes the exit code 1."""

    scan: str
    what: str
    fix: str
    refused: bool


@dataclass(frozen=True)
class ScanNotRun(Event):
    """The run ended before the scan's turn."""

    scan: str


@dataclass(frozen=True)
class ReportWritten(Event):
    """A page or table is there."""

    file: str


@dataclass(frozen=True)
class RunFinished(Event):
    """Last line of a run that came to its end."""

    counts: dict[str, int]
    exit_code: int
    seconds: float


@dataclass(frozen=True)
class RunInterrupted(Event):
    """Last line of a run that an error or a signal ended; ``exit_code`` is null where it is not known yet."""

    error: str
    what: str
    where: str
    fix: str
    exit_code: int | None
    seconds: float


#: All events by name.
EVENTS: dict[str, type[Event]] = {kind.name(): kind for kind in Event.__subclasses__()}


@dataclass
class EventLog:
    """Writes events, each at once and as a whole line, so that a run that is killed leaves whole lines.

    Until :meth:`open` events are kept, because a run has its folder only when it has its plan.

    Parameters
    ----------
    stream
        Where events are written as well, such as the standard output.
    """

    stream: TextIO | None = None
    _file: int | None = field(default=None, init=False)
    _kept: list[bytes] = field(default_factory=list, init=False)
    _whole: bool = field(default=True, init=False)

    def open(self, path: Path) -> None:
        """Begin the file, with what happened before."""
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        for line in self._kept:
            self._write(line)
        self._kept.clear()

    def emit(self, event: Event) -> None:
        """Write an event with the time."""
        line = _line({'time': now(), 'event': event.name(), **event.to_dict()})
        if self.stream is not None:
            try:
                self.stream.write(line.decode())
                self.stream.flush()
            except OSError:  # nobody listens any more: this ends the run, as it does for text
                self.stream = None
                raise
        if self._file is None:
            self._kept.append(line)
        else:
            self._write(line)

    def close(self) -> None:
        """End the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, line: bytes) -> None:
        """Write a line by one call; a disk that is full must not end the run, but is told."""
        assert self._file is not None
        line = line if self._whole else b'\n' + line
        written = 0
        try:
            written = os.write(self._file, line)
        except OSError as error:
            if self._whole:
                print(f'bidsharm: the event log cannot be written: {error.strerror}.', file=sys.stderr)
        self._whole = written == len(line)


def now() -> str:
    """Return the time as the log has it: UTC, ISO 8601, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec='milliseconds').replace('+00:00', 'Z')


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a file; a last line that is cut off, or one that holds none, is passed over."""
    events = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get('event') in EVENTS:
                events.append(event)
    return events


def _line(content: Mapping[str, Any]) -> bytes:
    # A name that is no UTF-8 is shown with question marks: half of the readers of JSON refuse such a line.
    return json.dumps(content, allow_nan=False, ensure_ascii=False).encode('utf-8', 'replace') + b'\n'


def _plain(value: Any) -> Any:
    """Return what JSON can hold; a number that is none becomes null."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, type(None))) else str(value)
