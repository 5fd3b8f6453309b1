"""What an evaluation found, and the comparison of methods by person."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bidsharm.errors import BidsharmError
from bidsharm.evaluation import models, statistics
from bidsharm.evaluation.catalogue import COMPARED, MARGINS, METRICS, UNCHANGED
from bidsharm.evaluation.group_measures import Value
from bidsharm.evaluation.study import ORIGINAL, Options


@dataclass(frozen=True)
class Problem:
    """A scan, or what a method made of one, that could not be measured.

    Parameters
    ----------
    scan
        Name of the scan.
    method
        Name of the method; empty where no method's image of the scan can be measured.
    what, where, fix
        The error in plain words, its place, and what to do.
    """

    scan: str
    method: str
    what: str
    where: str = ''
    fix: str = ''


@contextmanager
def tolerant(problems: list[Problem], scan: str, method: str = '') -> Iterator[None]:
    """Let a bad scan cost that scan only: write down what is wrong, and go on after the block.

    Parameters
    ----------
    problems
        Where to.
    scan, method
        What is worked on.
    """
    try:
        yield
    except BidsharmError as error:
        problems.append(Problem(scan, method, error.what, error.where, error.fix))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        problems.append(Problem(scan, method, str(error) or type(error).__name__))


@dataclass
class Results:
    """What an evaluation found.

    Parameters
    ----------
    methods
        In the order of the tables.
    against
        The method that others are compared with.
    scans
        One row a scan and method: ``method``, ``scan``, ``person``, ``scanner``, and measures.
    values
        Measures by method and name.
    tables
        Comparisons by measure.
    harmless
        Tests of no harm by measure and method.
    problems
        What could not be measured.
    """

    methods: tuple[str, ...]
    against: str
    scans: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, dict[str, Value]] = field(default_factory=dict)
    tables: dict[str, models.MethodTable] = field(default_factory=dict)
    harmless: dict[str, dict[str, statistics.Equivalence]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def by_person(self, metric: str, method: str, *, costs: bool = False) -> dict[str, float]:
        """Return the mean of a measure of scans for every person; with ``costs`` of how bad each scan is."""
        cost = METRICS[metric].cost if costs else float
        rows = [(cost(r[metric]), r['person']) for r in self.scans if r['method'] == method and metric in r]
        if not rows:
            return {}
        values, people = zip(*rows, strict=True)
        return statistics.average_by_subject(values, people)


def compare(results: Results, options: Options) -> None:
    """Compare methods by person on :data:`~bidsharm.evaluation.catalogue.COMPARED`, and test that they do no harm.

    Parameters
    ----------
    results
        ``tables`` and ``harmless`` are filled.
    options
        Seed and resamples.
    """
    tables = {name: _table(results, name) for name in dict.fromkeys((*COMPARED, *MARGINS))}
    # Where 1 is best, what counts is how far a scan is from it: two errors must not make up for each other.
    differences = {
        name: _table(results, name, costs=True) if METRICS[name].better == 'one' else tables[name]
        for name in COMPARED
    }
    for name in set(UNCHANGED).intersection(differences):  # scans before are unchanged whatever methods do
        differences[name] = {method: row for method, row in differences[name].items() if method != ORIGINAL}
    usable = {name: row for name, row in differences.items() if len(row) > 1 and results.against in row}
    if usable:
        results.tables = models.compare_metrics(
            usable, reference=results.against, seed=options.seed, resamples=options.resamples
        )
    for name in MARGINS:
        tested = {
            method: _harmless(results, name, method, row)
            for method, row in tables[name].items()
            if method != ORIGINAL
        }
        if tested:
            results.harmless[name] = tested


def _table(results: Results, name: str, *, costs: bool = False) -> dict[str, dict[str, float]]:
    rows = {method: results.by_person(name, method, costs=costs) for method in results.methods}
    return {
        method: row for method, row in rows.items() if any(math.isfinite(value) for value in row.values())
    }


def _harmless(results: Results, name: str, method: str, means: Mapping[str, float]) -> statistics.Equivalence:
    """Test that scans are not changed by a method; people in whom it made nothing that could be measured are counted as left out."""
    people = sorted({row['person'] for row in results.scans if row['method'] == method and name in row})
    return statistics.equivalence(
        [means.get(person, math.nan) for person in people], [UNCHANGED[name]] * len(people), margin=MARGINS[name],
        worse='lower' if METRICS[name].better in ('higher', 'one') else 'higher',
    )  # fmt: skip
