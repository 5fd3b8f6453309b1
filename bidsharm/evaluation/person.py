"""Measure all scans of one person, by every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bidsharm.evaluation import features, group_measures
from bidsharm.evaluation.comparisons import Problem, tolerant
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
    """Measure all scans of one person.

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
    travelled = {}
    if target is not None and target.name in places:
        travelled = _travelled(target, places[target.name], study)
    labels: dict[str, list[Labels]] = {method: [] for method in study.methods}
    for scan in scans:
        loaded: Loaded | None = None
        place = places[scan.name]
        with tolerant(found.problems, scan.name):
            loaded = segmented(load_scan(scan), place, given=options.given_labels)
            if scan.labels is not None and loaded.labels is not None:
                found.true_volumes[scan.name] = volumes_of(loaded.labels, loaded.mask, loaded.spacing)
            if loaded.reference is not None and not found.targets:
                found.targets = _truth(loaded, place, study)
        if loaded is None:
            continue
        for method in study.methods:
            progress(f'{scan.name}, {method}')
            is_target = target is not None and scan.name == target.name
            with tolerant(found.problems, scan.name, method):
                own = None if is_target else travelled.get(method)
                trace, after = _one(loaded, method, place, own, study, options)
                if trace is not None:
                    found.traces.append(trace)
                    if is_target:
                        found.targets[method] = trace.filters
                if after is not None:
                    labels[method].append(after)
    found.agreement = _agreement(labels)
    return found


def _travelled(target: StudyScan, place: Place, study: Study) -> dict[str, Travelled]:
    """Return what each method made of a person's scan in the target scanner."""
    ignored: list[Problem] = []  # said when the scan itself is measured
    found: dict[str, Travelled] = {}
    with tolerant(ignored, target.name):
        loaded = load_scan(target)
        for method in study.methods:
            with tolerant(ignored, target.name, method):
                image = method_image(loaded, method)
                if image is not None:
                    common = place.grid.sample(image, loaded.affine, place.world)
                    found[method] = Travelled(common, place.mask)
    return found


def _truth(loaded: Loaded, place: Place, study: Study) -> dict[str, NDArray[np.float64]]:
    """Return what the target's image of a person looks like, where simulation tells."""
    assert loaded.reference is not None
    common = place.grid.sample(loaded.reference, loaded.affine, place.world)
    filters = features.filter_features(common, place.mask, place.grid.spacing)
    return {method: filters for method in study.methods if method != ORIGINAL}


def _one(
    loaded: Loaded, method: str, place: Place, travelled: Travelled | None, study: Study, options: Options
) -> tuple[Trace | None, Labels | None]:
    """Measure what one method made of one scan; return its segmentation on the common grid, too."""
    image = method_image(loaded, method)
    if image is None:
        return None, None
    pictures = options.inception is not None or options.lpips is not None
    after = loaded.original_labels if method == ORIGINAL else labels_of(loaded, method, image)
    trace = measure(loaded, method, image, after, place, travelled, target=study.target, pictures=pictures)
    if after is None:
        return trace, None
    common = place.grid.sample(after, loaded.affine, place.world, order=0)
    return trace, np.rint(common).astype(np.uint8)


def _agreement(labels: Mapping[str, Sequence[Labels]]) -> dict[str, dict[str, float]]:
    """Return the mean Dice of all pairs of segmentations, by method and tissue."""
    return {
        method: {
            name: float(np.nanmean(each))
            for name, each in group_measures.label_agreement(volumes).items()
            if np.isfinite(each).any()
        }
        for method, volumes in labels.items()
        if len(volumes) > 1
    }
