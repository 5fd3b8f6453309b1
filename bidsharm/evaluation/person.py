"""Measure all scans of one person, by every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bidsharm.evaluation import features, group_measures
from bidsharm.evaluation.comparisons import Problem, tolerant
from bidsharm.evaluation.kept import Kept, key_of
from bidsharm.evaluation.scan_measures import (
    Loaded,
    Place,
    Trace,
    Travelled,
    labels_of,
    load_scan,
    measure,
    method_image,
    segmented,
    volumes_of,
)
from bidsharm.evaluation.study import ORIGINAL, Options, Study, StudyScan

Progress = Callable[[str], None]
Labels = NDArray[np.uint8]


@dataclass
class Measured:
    """What was found in the scans of one person.

    Parameters
    ----------
    traces
        One a scan and method.
    targets
        By method, answers of the filter bank in the image that the method should have made.
    agreement
        By method and tissue, Dice of the person's segmentations in different scanners.
    true_volumes
        By scan and tissue, in mL, where labels are true.
    problems
        What could not be measured.
    """

    traces: list[Trace] = field(default_factory=list)
    targets: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)
    true_volumes: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def measure_person(
    scans: Sequence[StudyScan],
    study: Study,
    options: Options,
    places: Mapping[str, Place],
    progress: Progress = lambda name: None,
) -> Measured:
    """Measure all scans of one person, but for what was measured before and kept.

    Parameters
    ----------
    scans
        Scans of one person that have a place.
    study, options
        All scans, and how they are evaluated.
    places
        Where scans lie, by name.
    progress
        Called with a name for every scan and method.
    """
    found = Measured()
    target = None if study.has_truth else study.target_scan(scans[0].person)
    aim = None
    if target is not None and target.name in places:
        aim = _Target(target, places[target.name], study)
    labels: dict[str, list[tuple[str, Labels]]] = {method: [] for method in study.methods}
    for scan in scans:
        work = _Scan(scan, places[scan.name], study, options)
        facts = None
        with tolerant(found.problems, scan.name):
            facts = work.facts()
        if facts is None:
            continue
        volumes, truth = facts
        if volumes:
            found.true_volumes[scan.name] = volumes
        if truth is not None and not found.targets:
            found.targets = {method: truth for method in study.methods if method != ORIGINAL}
        for method in study.methods:
            progress(f'{scan.name}, {method}')
            is_target = target is not None and scan.name == target.name
            with tolerant(found.problems, scan.name, method):
                trace, after = work.measured(method, None if is_target else aim)
                if trace is not None:
                    found.traces.append(trace)
                    if is_target:
                        found.targets[method] = trace.filters
                if after is not None:
                    labels[method].append((scan.scanner, after))
    found.agreement = _agreement(labels)
    return found


class _Target:
    """What each method made of a person's scan in the target scanner; read when it is first asked for."""

    def __init__(self, scan: StudyScan, place: Place, study: Study) -> None:
        self.scan, self.place = scan, place
        self.key = (_files_of(scan, study), key_of(place))
        self._found: dict[str, Travelled | None] = {}

    @cached_property
    def _loaded(self) -> Loaded | None:
        with tolerant([], self.scan.name):  # said when the scan itself is measured
            return load_scan(self.scan)
        return None

    def by(self, method: str) -> Travelled | None:
        """Return the image of a method on the common grid; None where there is none that can be read."""
        if method not in self._found:
            self._found[method] = None
            with tolerant([], self.scan.name, method):
                image = None if self._loaded is None else method_image(self._loaded, method)
                if image is not None and self._loaded is not None:
                    common = self.place.grid.sample(image, self._loaded.affine, self.place.world)
                    self._found[method] = Travelled(common, self.place.mask)
        return self._found[method]


class _Scan:
    """One scan and what methods made of it; read when something of it was not kept."""

    def __init__(self, scan: StudyScan, place: Place, study: Study, options: Options) -> None:
        self.scan, self.place, self.study, self.options = scan, place, study, options
        self.kept = Kept(options.kept)

    @cached_property
    def loaded(self) -> Loaded:
        """The scan; errors are raised once more at every try."""
        return segmented(load_scan(self.scan), self.place, given=self.options.given_labels)

    @cached_property
    def _key(self) -> str:
        return key_of(_files_of(self.scan, self.study), self.place, self.options.given_labels)

    def facts(self) -> tuple[dict[str, float], NDArray[np.float64] | None]:
        """Return true volumes of tissues, and answers of the filter bank in the reference; empty and None where they are not known."""
        key = key_of('facts', self._key)
        if (known := self.kept.get(key)) is not None:
            arrays, volumes = known
            return volumes, arrays.get('truth')
        volumes, truth = {}, None
        loaded = self.loaded
        if self.scan.labels is not None and loaded.labels is not None:
            volumes = volumes_of(loaded.labels, loaded.mask, loaded.spacing)
        if loaded.reference is not None:
            common = self.place.grid.sample(loaded.reference, loaded.affine, self.place.world)
            truth = features.filter_features(common, self.place.mask, self.place.grid.spacing)
        self.kept.put(key, {} if truth is None else {'truth': truth}, volumes)
        return volumes, truth

    def measured(self, method: str, aim: _Target | None) -> tuple[Trace | None, Labels | None]:
        """Return the measures of what a method made of the scan, and its segmentation on the common grid."""
        files = self.scan.methods.get(method)
        if method != ORIGINAL and files is None:
            return None, None
        pictures = self.options.inception is not None or self.options.lpips is not None
        theirs = None if aim is None else (aim.key, aim.scan.methods.get(method))
        key = key_of(self._key, method, files, theirs, self.study.target, self.scan.scanner, pictures)
        if (known := self.kept.get(key)) is not None:
            arrays, row = known
            after = arrays.pop('after', None)
            return Trace(self.scan.name, self.scan.person, self.scan.scanner, method, row, **arrays), after
        trace, after = self._measure(method, None if aim is None else aim.by(method), pictures)
        if trace is not None:
            row = {name: float(value) for name, value in trace.row.items()}
            self.kept.put(key, trace.arrays() | ({} if after is None else {'after': after}), row)
        return trace, after

    def _measure(
        self, method: str, travelled: Travelled | None, pictures: bool
    ) -> tuple[Trace | None, Labels | None]:
        loaded, place = self.loaded, self.place
        image = method_image(loaded, method)
        if image is None:
            return None, None
        after = loaded.original_labels if method == ORIGINAL else labels_of(loaded, method, image)
        trace = measure(
            loaded, method, image, after, place, travelled, target=self.study.target, pictures=pictures
        )
        if after is None:
            return trace, None
        common = place.grid.sample(after, loaded.affine, place.world, order=0)
        return trace, np.rint(common).astype(np.uint8)


def _files_of(scan: StudyScan, study: Study) -> str:
    """Return the digest of the files that all methods share: images too, where nothing else says what is brain."""
    shared = (scan.original, scan.original_labels, scan.mask, scan.labels, scan.reference, scan.lesions)
    images = [] if scan.mask else [scan.methods[name].image for name in study.methods if name in scan.methods]
    return key_of(scan.name, shared, images, ORIGINAL in study.methods)


def _agreement(labels: Mapping[str, Sequence[tuple[str, Labels]]]) -> dict[str, dict[str, float]]:
    """Return the mean Dice of all pairs of segmentations from two scanners, by method and tissue."""
    found = {
        method: {
            name: float(np.nanmean(each))
            for name, each in group_measures.label_agreement(segmentations).items()
            if np.isfinite(each).any()
        }
        for method, segmentations in labels.items()
    }
    return {method: row for method, row in found.items() if row}
