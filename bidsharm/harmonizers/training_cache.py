"""Scans of a training, prepared once: aligned, on one grid, in units of the network, in files that are read as they are needed."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import BidsharmError, ScanError
from bidsharm.harmonizers.contract import Scan
from bidsharm.machine import allow_open_files
from bidsharm.temporary import atomic_path

if TYPE_CHECKING:
    from bidsharm.harmonizers.network_settings import NetworkSettings
    from bidsharm.training.volumes import TrainingSet, TrainingVolume

#: How long a process waits for another that prepares the same scans (seconds); the lock of one that is gone does not count.
WAIT_S = 24 * 3600

Progress = Callable[[int, int, str], None]


class Source(Protocol):
    """A scan that can be read."""

    @property
    def name(self) -> str:
        """Name of the scan."""

    @property
    def person(self) -> str:
        """Who was scanned."""

    @property
    def session(self) -> str:
        """In which visit."""

    @property
    def site(self) -> str:
        """Where."""

    @property
    def contrast(self) -> str:
        """With which contrast."""

    @property
    def covariates(self) -> Mapping[str, float]:
        """Numbers known about the person."""

    @property
    def acquisition(self) -> Mapping[str, float]:
        """Acquisition parameters by their BIDS names, as far as they are known."""

    @property
    def world(self) -> NDArray[np.float64] | None:
        """From the world of the scan to that of the common frame, where that is known; None where the scan has to be aligned."""

    @property
    def key(self) -> str:
        """What tells this state of the files from any other."""

    def again(self, take: int) -> Source | None:
        """Return another visit of the same person to the same scanner, by its number; None where nobody can measure again."""

    def read(self) -> Scan:
        """Read the scan."""


@dataclass
class Prepared:
    """Volumes that can be trained on, and scans that cannot.

    Parameters
    ----------
    data
        The volumes.
    problems
        What is wrong with the others.
    """

    data: TrainingSet
    problems: list[ScanError] = field(default_factory=list)


def prepare(
    sources: Sequence[Source], settings: NetworkSettings, folder: Path, progress: Progress | None = None
) -> Prepared:
    """Lay scans on one grid and keep them in a folder; what is there already is taken from it.

    The first scan of each person is laid rigidly on the template, the others of the person on the first one; what was kept on another
    first one is prepared anew. Several processes may do this at once: one works, the others wait.

    Parameters
    ----------
    sources
        Scans, of any people in any order.
    settings
        Voxel size, scaling and background.
    folder
        Where prepared scans are kept.
    progress
        Told how many scans are ready.
    """
    from bidsharm.harmonizers.rescans import Rescans
    from bidsharm.training.volumes import TrainingSet

    rescans = Rescans(settings)
    allow_open_files()  # prepared scans stay open, each in two or three files
    folder.mkdir(parents=True, exist_ok=True)
    volumes: list[TrainingVolume] = []
    problems: list[ScanError] = []
    with _alone(folder):
        anchor: _Anchor | None = None
        for number, source in enumerate(sorted(sources, key=lambda item: (item.person, item.name)), start=1):
            if anchor is not None and anchor.source.person != source.person:
                anchor = None
            try:
                volume, scan = _prepared(source, settings, folder, anchor)
                if anchor is None and source.world is None:
                    anchor = _Anchor(source, world_of(source, settings, folder), scan)
                volumes.append(replace(volume, again=rescans.of(source)))
            except ScanError as error:
                problems.append(ScanError(error.what, where=error.where or source.name, fix=error.fix))
            if progress is not None:
                progress(number, len(sources), source.name)
    return Prepared(TrainingSet(volumes, settings.background), problems)


@dataclass
class _Anchor:
    """The first scan of a person, on which the others are laid, and how it lies; one that was kept is read when another has to be aligned."""

    source: Source
    world: NDArray[np.float64]
    scan: Scan | None

    def pair(self) -> tuple[Scan, NDArray[np.float64]]:
        """Return the scan and how it lies."""
        self.scan = self.scan or self.source.read()
        return self.scan, self.world


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare scans in a folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / '.lock')
    try:
        lock.acquire(timeout=WAIT_S)
    except Timeout:
        raise BidsharmError(
            f'Another process has been preparing scans here for more than {WAIT_S // 3600} hours.', where=str(folder),
            fix='End it, or give another output folder.',
        ) from None  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def _prepared(
    source: Source, settings: NetworkSettings, folder: Path, anchor: _Anchor | None
) -> tuple[TrainingVolume, Scan | None]:
    """Return a volume, and the scan that it was made of unless it was kept."""
    from bidsharm.harmonizers.training_data import align, in_common_frame

    stem = _stem(source, settings, folder)
    on = '' if anchor is None or source.world is not None else anchor.source.key
    kept = _kept(stem, source, on)
    if kept is not None:
        return kept, None
    scan, world = source.read(), source.world
    if world is None:
        world = align(scan, None if anchor is None else anchor.pair())
    about = _write(stem, in_common_frame(scan, world, settings), world, on)
    return _read(stem, source, about), scan


def world_of(source: Source, settings: NetworkSettings, folder: Path) -> NDArray[np.float64]:
    """Return the transform by which a scan was laid on the common grid by :func:`prepare`: from its world to that of the grid."""
    return _world(_stem(source, settings, folder))


def _stem(source: Source, settings: NetworkSettings, folder: Path) -> Path:
    chosen = [settings.voxel_mm, settings.scaling, settings.offset, settings.background, 2]
    return folder / hashlib.sha256(repr([source.key, chosen]).encode()).hexdigest()[:24]


def _world(stem: Path) -> NDArray[np.float64]:
    """Return the transform by which a kept volume was laid on the common grid."""
    return _world_in(_about(stem))


def _about(stem: Path) -> dict[str, Any]:
    return dict(json.loads(stem.with_suffix('.json').read_text()))


def _world_in(about: Mapping[str, Any]) -> NDArray[np.float64]:
    return np.array(about['world'], float).reshape(4, 4)


def _kept(stem: Path, source: Source, on: str) -> TrainingVolume | None:
    """Return a volume that was prepared before and laid on that scan; None where there is none, or it cannot be used any more."""
    try:
        about = _about(stem)
        _world_in(about)
        return _read(stem, source, about) if about['on'] == on else None
    except (OSError, ValueError, LookupError, TypeError, EOFError) as error:
        if getattr(error, 'errno', None) in (errno.EMFILE, errno.ENFILE):
            raise  # the file is as it should be
        return None


def _write(stem: Path, volume: TrainingVolume, world: NDArray[np.float64], on: str) -> dict[str, Any]:
    """Write a volume, and on which scan it was laid; the small file that says it is whole comes last, and is returned."""
    arrays = {'values': volume.values, 'mask': volume.mask}
    if volume.tissue is not None:
        arrays['tissue'] = volume.tissue
    for name, array in arrays.items():
        with atomic_path(stem.with_suffix(f'.{name}.npy')) as partial:
            np.save(partial, array)
    about = {'unit': volume.unit, 'world': world.tolist(), 'arrays': sorted(arrays), 'on': on}
    with atomic_path(stem.with_suffix('.json')) as partial:
        partial.write_text(json.dumps(about))
    return about


def _read(stem: Path, source: Source, about: Mapping[str, Any]) -> TrainingVolume:
    from bidsharm.training.volumes import TrainingVolume

    parts = {name: np.load(stem.with_suffix(f'.{name}.npy'), mmap_mode='r') for name in about['arrays']}
    return TrainingVolume(
        values=parts['values'], mask=parts['mask'], name=source.name, person=source.person, session=source.session,
        site=source.site, contrast=source.contrast, tissue=parts.get('tissue'), covariates=source.covariates,
        unit=float(about['unit']), acquisition=source.acquisition,
    )  # fmt: skip


def sketch(sources: Sequence[Source]) -> TrainingSet:
    """Return volumes without voxels, to check early whether a method is offered what it needs."""
    from bidsharm.training.volumes import TrainingSet, TrainingVolume

    nothing = np.zeros((1, 1, 1), np.float32)
    empty = TrainingVolume(nothing, nothing > 0, '', '', '', '', '')
    return TrainingSet([
        replace(
            empty, name=source.name, person=source.person, session=source.session, site=source.site, contrast=source.contrast,
            tissue=np.zeros((1, 1, 1), np.uint8) if getattr(source, 'tissue', ()) else None, covariates=source.covariates,
        )
        for source in sources
    ])  # fmt: skip
