"""What an evaluation found, and the comparison of methods by person."""

from __future__ import annotations

import math
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
    except (OSError, EOFError, ValueError) as error:
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

    def by_person(self, metric: str, method: str) -> dict[str, float]:
        """Return the mean of a measure of scans for every person."""
        rows = [(r[metric], r['person']) for r in self.scans if r['method'] == method and metric in r]
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
    tables = {name: _table(results, name) for name in COMPARED}
    # Tests of how far a measure is from what does no harm are made below; differences need two methods.
    usable = {
        name: {method: _costs(name, row) for method, row in table.items()}
        if METRICS[name].better == 'one'
        else table
        for name, table in tables.items()
        if len(table) > 1 and results.against in table
    }
    if usable:
        results.tables = models.compare_metrics(
            usable, reference=results.against, seed=options.seed, resamples=options.resamples
        )
    for name, margin in MARGINS.items():
        table = tables[name] if name in tables else _table(results, name)
        if name in UNCHANGED:
            everybody = {person for row in table.values() for person in row}
            table[ORIGINAL] = dict.fromkeys(everybody, UNCHANGED[name])
        base = table.get(ORIGINAL)
        if base:
            results.harmless[name] = {
                method: _harmless(name, margin, row, base)
                for method, row in table.items()
                if method != ORIGINAL
            }


def _table(results: Results, name: str) -> dict[str, dict[str, float]]:
    rows = {method: results.by_person(name, method) for method in results.methods}
    return {
        method: row for method, row in rows.items() if any(math.isfinite(value) for value in row.values())
    }


def _costs(name: str, row: Mapping[str, float]) -> dict[str, float]:
    """Return distances from 1, where 1 is best."""
    return {person: METRICS[name].cost(value) for person, value in row.items()}


def _harmless(
    name: str, margin: float, means: Mapping[str, float], base: Mapping[str, float]
) -> statistics.Equivalence:
    people = sorted(set(means) & set(base))
    return statistics.equivalence(
        [means[person] for person in people], [base[person] for person in people], margin=margin,
        worse='lower' if METRICS[name].better in ('higher', 'one') else 'higher',
    )  # fmt: skip
