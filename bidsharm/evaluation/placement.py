"""Where the scans of an evaluation lie: one common grid, and a rigid transform for every scan, the same for all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bidsharm.errors import ScanError
from bidsharm.evaluation.comparisons import Problem, tolerant
from bidsharm.evaluation.kept import Arrays, Kept, key_of
from bidsharm.evaluation.metrics import Mask
from bidsharm.evaluation.scan_measures import Loaded, Place, as_brain, load_scan
from bidsharm.evaluation.study import StudyScan
from bidsharm.imaging.alignment import Brain, Grid, common_grid, rigid, stretched, template_brain
from bidsharm.imaging.grids import Affine, bounding_box, crop_affine

#: A brain that shares less of the usual brain than this lies elsewhere.
LEAST_SHARED = 0.3


@dataclass
class Placed:
    """Where scans of one person lie.

    Parameters
    ----------
    worlds
        From the world of each scan to that of the common grid, by name.
    masks
        Brain on the common grid.
    problems
        Scans that could not be placed.
    """

    worlds: dict[str, Affine] = field(default_factory=dict)
    masks: dict[str, Mask] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def grid_of(scans: Sequence[StudyScan], *, aligned: bool) -> Grid:
    """Return the common grid: that of the first scan that can be read, where all scans lie in one space already, else MNI152.

    Parameters
    ----------
    scans
        All scans.
    aligned
        Whether they lie in one space.
    """
    problems: list[Problem] = []
    for scan in scans if aligned else ():
        with tolerant(problems, scan.name):
            loaded = load_scan(scan)
            box = bounding_box(loaded.mask, 5)
            x, y, z = loaded.mask[box].shape
            return Grid((x, y, z), crop_affine(loaded.affine, box))
    return common_grid()


def place_person(
    scans: Sequence[StudyScan], grid: Grid, *, aligned: bool, kept: Path | None = None
) -> Placed:
    """Lay the scans of one person on the common grid: the first on the template, the others on the first.

    Parameters
    ----------
    scans
        Scans of one person.
    grid
        The common grid.
    aligned
        Leave every scan where it is.
    kept
        Folder of places that were found before, if any.
    """
    store = Kept(kept)
    key = key_of('place', [(scan.name, _files_of(scan)) for scan in scans], grid, aligned)
    if (known := store.get(key)) is not None:
        return Placed(_by_name(known[0], 'world'), _by_name(known[0], 'mask'))
    placed = _place(scans, grid, aligned=aligned)
    if not placed.problems:
        arrays = {f'world/{name}': world for name, world in placed.worlds.items()}
        store.put(key, arrays | {f'mask/{name}': mask for name, mask in placed.masks.items()}, {})
    return placed


def _files_of(scan: StudyScan) -> list[Path]:
    """Return the files that say where a scan lies."""
    images = [files.image for files in scan.methods.values()]
    return [scan.original or images[0], *([scan.mask] if scan.mask else images)]


def _by_name(arrays: Arrays, kind: str) -> Arrays:
    return {
        name.removeprefix(f'{kind}/'): array for name, array in arrays.items() if name.startswith(f'{kind}/')
    }


def _place(scans: Sequence[StudyScan], grid: Grid, *, aligned: bool) -> Placed:
    placed = Placed()
    first: tuple[Brain, Affine] | None = None
    for scan in scans:
        with tolerant(placed.problems, scan.name):
            loaded = load_scan(scan)
            world = np.eye(4)
            if not aligned:
                brain = as_brain(loaded)
                world = _world(brain, first, scan.name)
                first = first or (brain, world)
            mask = _mask(loaded, grid, world)
            placed.worlds[scan.name], placed.masks[scan.name] = world, mask
    return placed


def _world(brain: Brain, first: tuple[Brain, Affine] | None, name: str) -> Affine:
    if first is None:
        return rigid(brain, template_brain(), name=name)
    return np.asarray(first[1] @ rigid(brain, first[0], name=name))


def _mask(loaded: Loaded, grid: Grid, world: Affine) -> Mask:
    mask = np.asarray(grid.sample(loaded.mask.astype(np.float32), loaded.affine, world) > 0.5)
    if not mask.any():
        raise ScanError('It lies outside the common grid.', where=loaded.scan.name)
    return mask


def places_of(placed: Sequence[Placed], grid: Grid) -> tuple[dict[str, Place], list[Problem]]:
    """Return the place of every scan, and which scans lie elsewhere than all others.

    Parameters
    ----------
    placed
        By person.
    grid
        The common grid.
    """
    worlds = {name: world for one in placed for name, world in one.worlds.items()}
    masks = {name: mask for one in placed for name, mask in one.masks.items()}
    lost = _elsewhere(masks)
    kept = {name: mask for name, mask in masks.items() if name not in lost}
    what = 'Its brain hardly overlaps with the others after alignment.'
    problems = [Problem(name, '', what, fix='Look at its brain mask.') for name in lost]
    if not kept:
        return {}, problems
    shared = np.asarray(np.logical_and.reduce(list(kept.values())))
    places = {
        name: Place(grid, worlds[name], mask, shared, stretched(mask, grid)) for name, mask in kept.items()
    }
    return places, problems


def _elsewhere(masks: Mapping[str, Mask]) -> list[str]:
    """Return scans that share too little of the usual brain."""
    if not masks:
        return []
    usual = np.mean(list(masks.values()), axis=0) >= 0.5
    return [name for name, mask in masks.items() if (mask & usual).sum() < LEAST_SHARED * usual.sum()]
