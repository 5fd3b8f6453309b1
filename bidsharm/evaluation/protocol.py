"""The protocol of an evaluation: every measure of every scan and method, then the statistics over people.

The order of work: brains are aligned once for all methods; then, person by person, every scan is read once and every method's image of
it is measured; then methods are measured as a whole; then they are compared, the person being the unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import BidsharmError, NothingToDo, ScanError
from bidsharm.evaluation import features, group_measures, statistics
from bidsharm.evaluation.catalogue import METRICS, SCAN_METRICS
from bidsharm.evaluation.comparisons import Problem, Results, compare
from bidsharm.evaluation.group_measures import Value
from bidsharm.evaluation.intervals import bootstrap
from bidsharm.evaluation.metrics import Mask
from bidsharm.evaluation.scan_measures import (
    Loaded,
    Place,
    Trace,
    Travelled,
    as_brain,
    labels_of,
    load_scan,
    measure,
    method_image,
    segmented,
    volumes_of,
)
from bidsharm.evaluation.study import ORIGINAL, Options, Study, StudyScan
from bidsharm.imaging.alignment import Brain, Grid, common_grid, rigid, stretched, template_brain
from bidsharm.imaging.grids import Affine, bounding_box, crop_affine

Progress = Callable[[str], None]
Labels = NDArray[np.uint8]
#: A brain that shares less of the usual brain than this lies elsewhere.
LEAST_SHARED = 0.3
#: What reading and measuring a scan may raise because of the scan.
_OF_A_SCAN = (BidsharmError, OSError, EOFError, ValueError)


def evaluate(study: Study, options: Options, *, progress: Progress = lambda name: None) -> Results:
    """Measure and compare methods.

    Parameters
    ----------
    study
        Scans, and what methods made of them.
    options
        How.
    progress
        Called with the name of what is worked on: once a scan, once a scan and method, once a method.

    Raises
    ------
    NothingToDo
        If no scan can be measured.
    """
    run = _Run(study, options, progress)
    run.place()
    if not run.places:
        raise NothingToDo(
            'No scan could be measured.',
            fix='; '.join(f'{p.scan}: {p.what}' for p in run.results.problems[:3]),
        )
    for person in dict.fromkeys(scan.person for scan in study.scans):
        run.person([s for s in study.scans if s.person == person and s.name in run.places])
    for method in study.methods:
        progress(f'{method}, all scans')
        run.results.values[method] = run.method(method)
    run.results.scans = [_row(trace) for method in study.methods for trace in run.traces[method]]
    compare(run.results, options)
    return run.results


@dataclass
class _Run:
    """One evaluation while it is made."""

    study: Study
    options: Options
    progress: Progress
    places: dict[str, Place] = field(default_factory=dict)
    true_volumes: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        methods = self.study.methods
        self.results = Results(methods, self.options.against or _usual_rival(self.study))
        self.traces: dict[str, list[Trace]] = {name: [] for name in methods}
        self.targets: dict[str, list[NDArray[np.float64]]] = {name: [] for name in methods}
        self.agreement: dict[str, dict[str, dict[str, float]]] = {name: {} for name in methods}

    @contextmanager
    def tolerant(self, scan: str, method: str = '') -> Any:
        """Let a bad scan cost that scan only."""
        try:
            yield
        except _OF_A_SCAN as error:
            said = _said(error)
            self.results.problems.append(Problem(scan, method, *said))

    # --- Where scans lie ---

    def place(self) -> None:
        """Align all scans: a person's with that person's first, and that one with the template."""
        grid = self._own_grid() if self.options.aligned else common_grid()
        firsts: dict[str, tuple[Brain, Affine]] = {}
        worlds: dict[str, Affine] = {}
        masks: dict[str, Mask] = {}
        for scan in self.study.scans:
            self.progress(f'{scan.name}, alignment')
            with self.tolerant(scan.name):
                loaded = load_scan(scan)
                world = np.eye(4) if self.options.aligned else _world(loaded, firsts)
                mask = grid.sample(loaded.mask.astype(np.float32), loaded.affine, world) > 0.5
                if not mask.any():
                    raise ScanError('It lies outside the common grid.', where=scan.name)
                worlds[scan.name], masks[scan.name] = world, mask
        if not masks:
            return
        usual = np.mean(list(masks.values()), axis=0) >= 0.5
        for name, mask in list(masks.items()):
            if (mask & usual).sum() < LEAST_SHARED * usual.sum():
                what = 'Its brain hardly overlaps with the others after alignment.'
                self.results.problems.append(Problem(name, '', what, fix='Look at its brain mask.'))
                del masks[name]
        shared = np.asarray(np.logical_and.reduce(list(masks.values())))
        self.places = {
            name: Place(grid, worlds[name], mask, shared, stretched(mask, grid))
            for name, mask in masks.items()
        }

    def _own_grid(self) -> Grid:
        """Return the grid of the first scan that can be read, for scans that lie in one space already."""
        for scan in self.study.scans:
            try:
                loaded = load_scan(scan)
            except _OF_A_SCAN:
                continue
            box = bounding_box(loaded.mask, 5)
            x, y, z = loaded.mask[box].shape
            return Grid((x, y, z), crop_affine(loaded.affine, box))
        return common_grid()

    # --- Scans ---

    def person(self, scans: Sequence[StudyScan]) -> None:
        """Measure all scans of one person."""
        if not scans:
            return
        target = None if self.study.has_truth else self.study.target_scan(scans[0].person)
        travelled = self._travelled(target) if target is not None and target.name in self.places else {}
        labels: dict[str, list[Labels]] = {method: [] for method in self.study.methods}
        for number, scan in enumerate(scans):
            given = self.options.given_labels
            loaded = segmented(load_scan(scan), self.places[scan.name], given=given)
            if scan.labels is not None and loaded.labels is not None:
                self.true_volumes[scan.name] = volumes_of(loaded.labels, loaded.mask, loaded.spacing)
            if loaded.reference is not None and number == 0:
                self._keep_target(loaded)
            for method in self.study.methods:
                self.progress(f'{scan.name}, {method}')
                with self.tolerant(scan.name, method):
                    own = travelled.get(method) if target is None or scan.name != target.name else None
                    self._one(loaded, method, own, labels)
        for method, volumes in labels.items():
            if len(volumes) > 1:
                found = group_measures.label_agreement(volumes)
                self.agreement[method][scans[0].person] = {
                    name: float(np.nanmean(each)) for name, each in found.items() if np.isfinite(each).any()
                }

    def _travelled(self, target: StudyScan) -> dict[str, Travelled]:
        """Return what each method made of a person's scan in the target scanner."""
        place, loaded = self.places[target.name], load_scan(target)
        found = {}
        for method in self.study.methods:
            try:
                image = method_image(loaded, method)
            except _OF_A_SCAN:
                continue  # said when the scan itself is measured
            if image is not None:
                found[method] = Travelled(place.grid.sample(image, loaded.affine, place.world), place.mask)
        return found

    def _one(
        self, loaded: Loaded, method: str, travelled: Travelled | None, labels: dict[str, list[Labels]]
    ) -> None:
        """Measure what one method made of one scan."""
        image = method_image(loaded, method)
        if image is None:
            return
        scan, place = loaded.scan, self.places[loaded.scan.name]
        pictures = self.options.inception is not None or self.options.lpips is not None
        after = loaded.original_labels
        if method != ORIGINAL:
            after = labels_of(loaded, method, image)
        trace = measure(
            loaded, method, image, after, place, travelled, target=self.study.target, pictures=pictures
        )
        self.traces[method].append(trace)
        if not self.study.has_truth and self.study.target and scan.scanner == self.study.target:
            self.targets[method].append(trace.filters)
        if after is not None:
            common = place.grid.sample(after, loaded.affine, place.world, order=0)
            labels[method].append(np.rint(common).astype(np.uint8))

    def _keep_target(self, loaded: Loaded) -> None:
        """Keep what the target's image of a person looks like, where simulation tells."""
        assert loaded.reference is not None
        place = self.places[loaded.scan.name]
        common = place.grid.sample(loaded.reference, loaded.affine, place.world)
        filters = features.filter_features(common, place.mask, place.grid.spacing)
        for method in self.study.methods:
            if method != ORIGINAL:
                self.targets[method].append(filters)

    # --- Methods ---

    def method(self, method: str) -> dict[str, Value]:
        """Return all measures of a method; what cannot be computed costs itself only."""
        traces, options, study = self.traces[method], self.options, self.study
        if not traces:
            return {}
        truth: dict[str, float] = {}
        with self.tolerant('all scans', method):
            truth = group_measures.add_transfer(traces)
        if options.lpips is not None:
            group_measures.add_lpips(traces, options.lpips)
        values = _means(traces, options) | _agreement(self.agreement[method], options)
        parts: tuple[Callable[[], dict[str, Value]], ...] = (
            lambda: group_measures.correlations(traces, truth, self.true_volumes, options),
            lambda: group_measures.across_scanners(traces, study),
            lambda: group_measures.distribution(traces, self.targets[method], study),
            lambda: group_measures.sites(traces, options),
            lambda: group_measures.biology(traces, study, options),
            lambda: group_measures.task(traces, study, options),
        )
        for part in parts:
            with self.tolerant('all scans', method):
                values |= part()
        if options.inception is not None:
            values |= group_measures.perceptual(traces, options.inception)
        return values


def _usual_rival(study: Study) -> str:
    """Return the method that others are compared with: the first; the scans before only where their units can be compared."""
    rivals = [name for name in study.methods if name != ORIGINAL or not study.has_truth]
    return rivals[0] if rivals and len(study.methods) > 1 else study.methods[0]


def _said(error: Exception) -> tuple[str, str, str]:
    """Return what an error says: what, where, what to do."""
    if isinstance(error, BidsharmError):
        return error.what, error.where, error.fix
    return str(error) or type(error).__name__, '', ''


def _world(loaded: Loaded, firsts: dict[str, tuple[Brain, Affine]]) -> Affine:
    """Return where a scan lies in the space of the template."""
    brain, scan = as_brain(loaded), loaded.scan
    if scan.person in firsts:
        first, onwards = firsts[scan.person]
        return np.asarray(onwards @ rigid(brain, first, name=scan.name))
    world = rigid(brain, template_brain(), name=scan.name)
    firsts[scan.person] = brain, world
    return world


def _means(traces: Sequence[Trace], options: Options) -> dict[str, Value]:
    """Return means over people of all measures of scans."""
    values = {}
    for metric in SCAN_METRICS:
        rows = [(t.row[metric.name], t.person) for t in traces if metric.name in t.row]
        if rows:
            numbers, people = zip(*rows, strict=True)
            values[metric.name] = _mean(statistics.average_by_subject(numbers, people), options)
    return values


def _agreement(by_person: Mapping[str, Mapping[str, float]], options: Options) -> dict[str, Value]:
    names = sorted({name for row in by_person.values() for name in row})
    return {
        f'scanner_dice_{name}': _mean(
            {person: row[name] for person, row in by_person.items() if name in row}, options
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
