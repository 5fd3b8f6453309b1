"""The protocol of an evaluation: every measure of every scan and method, then the statistics over people.

The order of work: brains are aligned once for all methods; then, person by person, every scan is read once and every method's image of
it is measured; then methods are measured as a whole; then they are compared, the person being the unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import BidsharmError, NothingToDo
from bidsharm.evaluation import group_measures, statistics
from bidsharm.evaluation.catalogue import METRICS, SCAN_METRICS
from bidsharm.evaluation.comparisons import Problem, Results, compare, tolerant
from bidsharm.evaluation.group_measures import Value, gm_fractions
from bidsharm.evaluation.intervals import bootstrap, joined
from bidsharm.evaluation.person import Measured, Progress, measure_person
from bidsharm.evaluation.placement import grid_of, place_person, places_of
from bidsharm.evaluation.scan_measures import Place, Trace
from bidsharm.evaluation.study import ORIGINAL, Options, Study, StudyScan
from bidsharm.imaging.alignment import Grid
from bidsharm.processes import begin_worker, end_processes, this_process

T = TypeVar('T')
People = Mapping[str, Sequence[StudyScan]]


def evaluate(study: Study, options: Options, *, progress: Progress = lambda name: None) -> Results:
    """Measure and compare methods.

    Parameters
    ----------
    study
        Scans, and what methods made of them.
    options
        How.
    progress
        Called with the name of what is worked on: twice a person, and once a method.

    Raises
    ------
    NothingToDo
        If no scan can be measured.
    """
    results = Results(study.methods, options.against or _usual_rival(study))
    places = _places(study, options, results, progress)
    people = {
        person: [s for s in study.scans if s.person == person and s.name in places] for person in study.people
    }
    tasks = {p: (scans, study, options, _places_of(scans, places)) for p, scans in people.items() if scans}
    measured = _each(_measured, tasks, options.processes, lambda name: progress(f'{name}: measures'))
    for one in measured:
        results.problems += one.problems
    results.problems += _without_image(study)
    traces = {m: [t for one in measured for t in one.traces if t.method == m] for m in study.methods}
    truths = {method: _carried(method, found, results.problems) for method, found in traces.items()}
    fractions = gm_fractions(traces)
    for method in study.methods:
        progress(f'{method}: all scans')
        whole = _Whole(method, traces[method], fractions[method], truths[method])
        results.values[method] = _method(whole, measured, study, options, results.problems)
    results.scans = [_row(trace) for found in traces.values() for trace in found]
    compare(results, options)
    return results


def _places(study: Study, options: Options, results: Results, progress: Progress) -> dict[str, Place]:
    """Return where scans lie."""
    grid = grid_of(study.scans, aligned=options.aligned)
    tasks = {
        p: ([s for s in study.scans if s.person == p], grid, options.aligned, options.kept)
        for p in study.people
    }
    placed = _each(_placed, tasks, options.processes, lambda name: progress(f'{name}: alignment'))
    places, elsewhere = places_of(placed, grid)
    results.problems += [problem for one in placed for problem in one.problems] + elsewhere
    if not places:
        raise NothingToDo(
            'No scan could be measured.', fix='; '.join(f'{p.scan}: {p.what}' for p in results.problems[:3])
        )
    return places


def _places_of(scans: Sequence[StudyScan], places: Mapping[str, Place]) -> dict[str, Place]:
    return {scan.name: places[scan.name] for scan in scans}


def _each(
    function: Callable[[Any], T], tasks: Mapping[str, Any], processes: int, progress: Progress
) -> list[T]:
    """Run a function for every person, in processes of their own where more than one is asked for."""
    found = []
    if processes < 2 or len(tasks) < 2:
        for name, task in tasks.items():
            progress(name)
            found.append(function(task))
        return found
    try:
        with ProcessPoolExecutor(
            min(processes, len(tasks)), get_context('spawn'), begin_worker, (this_process(),)
        ) as pool:
            try:
                for name, result in zip(tasks, pool.map(function, tasks.values()), strict=True):
                    progress(name)
                    found.append(result)
            except KeyboardInterrupt:  # nobody waits for those that are being worked on
                end_processes(child.pid for child in active_children() if child.pid)
                raise
    except BrokenProcessPool:
        raise BidsharmError(
            'A process was ended from outside, most likely because memory ran out.',
            fix='Use a smaller --nprocs, or give the job more memory.',
        ) from None
    return found


def _placed(task: tuple[Sequence[StudyScan], Grid, bool, Path | None]) -> Any:
    scans, grid, aligned, kept = task
    return place_person(scans, grid, aligned=aligned, kept=kept)


def _measured(task: tuple[Sequence[StudyScan], Study, Options, dict[str, Place]]) -> Measured:
    scans, study, options, places = task
    return measure_person(scans, study, options, places)


# --- Methods ---


class _Whole(NamedTuple):
    """All scans of a method, the fraction of grey matter in each, and the true fractions by scan."""

    method: str
    traces: list[Trace]
    fractions: list[float]
    truth: dict[str, float]


def _without_image(study: Study) -> list[Problem]:
    """Return, for each method that lacks images of some scans, how many: its means are of fewer people, and perhaps of easier ones."""
    found = []
    for method in (name for name in study.methods if name != ORIGINAL):
        lacking = [scan.name for scan in study.scans if method not in scan.methods]
        if lacking:
            some = ', '.join(lacking[:3]) + (' and others' if len(lacking) > 3 else '')
            what = f'This data set has no image of {len(lacking)} of {len(study.scans)} scans: {some}.'
            fix = 'Its means rest on the others. Where the method failed, count that against it.'
            found.append(Problem('all scans', method, what, fix=fix))
    return found


def _carried(method: str, traces: list[Trace], problems: list[Problem]) -> dict[str, float]:
    """Add to the scans of a method what classifiers of other scanners find there; return true fractions of grey matter by scan."""
    with tolerant(problems, 'all scans', method):
        return group_measures.add_transfer(traces) if traces else {}
    return {}


def _method(
    whole: _Whole, measured: Sequence[Measured], study: Study, options: Options, problems: list[Problem]
) -> dict[str, Value]:
    """Return all measures of a method; what cannot be computed costs itself only."""
    method, traces, fractions, truth = whole
    if not traces:
        return {}
    volumes = {name: row for one in measured for name, row in one.true_volumes.items()}
    targets = [one.targets[method] for one in measured if method in one.targets]
    with tolerant(problems, 'all scans', method):
        group_measures.add_lpips(traces, options.lpips)
    values = _means(traces, options) | _agreement(method, measured, options)
    parts: tuple[Callable[[], dict[str, Value]], ...] = (
        lambda: group_measures.correlations(traces, truth, volumes, options),
        lambda: group_measures.across_scanners(traces, study),
        lambda: group_measures.distribution(traces, targets, study),
        lambda: group_measures.sites(traces, options),
        lambda: group_measures.biology(traces, fractions, study, options),
        lambda: group_measures.task(traces, fractions, study, options),
        lambda: group_measures.perceptual(traces, options.inception),
    )
    for part in parts:
        with tolerant(problems, 'all scans', method):
            values |= part()
    return values


def _means(traces: Sequence[Trace], options: Options) -> dict[str, Value]:
    """Return means over people of all measures of scans."""
    values = {}
    for metric in SCAN_METRICS:
        rows = [(t.row[metric.name], t.person) for t in traces if metric.name in t.row]
        if rows:
            numbers, people = zip(*rows, strict=True)
            by_person = statistics.average_by_subject(numbers, people)
            without = len(set(people)) - len(by_person)
            value = _mean(by_person, options)
            said = f'{without} of {len(set(people))} people have no number' if without else ''
            values[metric.name] = replace(value, reason=joined([value.reason, said]))
    return values


def _agreement(method: str, measured: Sequence[Measured], options: Options) -> dict[str, Value]:
    rows = [one.agreement[method] for one in measured if method in one.agreement]
    names = sorted({name for row in rows for name in row})
    return {
        f'scanner_dice_{name}': _mean(
            {str(i): row[name] for i, row in enumerate(rows) if name in row}, options
        )
        for name in names
    }


def _mean(by_person: Mapping[str, float], options: Options) -> Value:
    """Return the mean over people with its bootstrap interval."""
    numbers = np.array([value for value in by_person.values() if not math.isnan(value)])
    if not np.isfinite(numbers).all() or not numbers.size:
        estimate = float(numbers.mean()) if numbers.size else math.nan
        return Value(estimate, n=int(numbers.size), reason='no finite number')
    interval, reason = bootstrap((numbers,), _average, options.seed, options.resamples, 0.95, batch=1000)
    return Value(float(numbers.mean()), interval, int(numbers.size), reason=reason)


def _average(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(values.mean(axis=axis))


def _row(trace: Trace) -> dict[str, Any]:
    where = {
        'method': trace.method, 'scan': trace.scan, 'person': trace.person, 'scanner': trace.scanner,
    }  # fmt: skip
    return where | {name: value for name, value in trace.row.items() if name in METRICS}


def _usual_rival(study: Study) -> str:
    """Return the method that others are compared with: the first; the scans before only where their units can be compared."""
    rivals = [name for name in study.methods if name != ORIGINAL or not study.has_truth]
    return rivals[0] if rivals and len(study.methods) > 1 else study.methods[0]
