"""What an unfinished data set says of itself, so that the same request goes on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsharm import __version__
from bidsharm.files import read_json
from bidsharm.simulation.files import write_json
from bidsharm.simulation.protocols import Scanner

#: The file that says it; there is none in a finished data set.
MARK = '.bidsharm-simulate.json'


@dataclass
class Unfinished:
    """How far a data set is.

    Parameters
    ----------
    out
        Folder of the data set.
    request
        What it is made of (:func:`request_of`).
    rows
        Rows of participants.tsv, by label.
    scans
        Names of the scans that are there with all that belongs to them.
    """

    out: Path
    request: Mapping[str, Any]
    rows: dict[str, list[str]] = field(default_factory=dict)
    scans: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, out: Path, request: Mapping[str, Any]) -> Unfinished:
        """Return how far an earlier request for the same has come; a new beginning where there was none."""
        found = read_mark(out) or {}
        try:
            known = found['request'] == request
            state = cls(out, request, dict(found['rows']), list(found['scans'])) if known else None
        except (LookupError, TypeError, ValueError):
            state = None
        if state is None:
            state = cls(out, request)
            state.write()
        return state

    def add_person(self, label: str, row: Sequence[str]) -> None:
        """Keep the row of a person."""
        self.rows[label] = list(row)
        self.write()

    def add_scan(self, name: str) -> None:
        """Keep that a scan is there."""
        self.scans.append(name)
        self.write()

    def write(self) -> None:
        """Write the mark."""
        content = {'request': self.request, 'rows': self.rows, 'scans': self.scans}
        write_json(self.out / MARK, content)

    def end(self) -> None:
        """Remove the mark: the data set is whole."""
        (self.out / MARK).unlink(missing_ok=True)


def read_mark(out: Path) -> dict[str, Any] | None:
    """Return what the mark of an unfinished data set holds; None where there is none that can be read."""
    try:
        found = read_json(out / MARK)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def request_of(
    *, scanners: Sequence[Scanner], labels: Sequence[Path] = (), **settings: Any
) -> dict[str, Any]:
    """Return what decides a data set, as JSON holds it: the arguments of :func:`bidsharm.simulation.dataset.simulate`.

    Parameters
    ----------
    scanners
        All that is known of them counts.
    labels
        Label maps, by name and content.
    settings
        The others.
    """
    content = {
        **settings,
        'scanners': [[scanner.label, hashlib.sha256(repr(scanner).encode()).hexdigest()] for scanner in scanners],
        'labels': [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in labels],
        'version': __version__,
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(content, default=list))
    return plain
