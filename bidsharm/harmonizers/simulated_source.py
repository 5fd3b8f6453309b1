"""Travelling heads as the scans of a training, without a data set on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError
from bidsharm.harmonizers.contract import Scan
from bidsharm.imaging.lowres import SHAPE, SIZE_MM

if TYPE_CHECKING:
    from bidsharm.harmonizers.network_settings import NetworkSettings
    from bidsharm.training.travelling import People, TravellingSource

#: How scanners are called: the label in a bundle says that nobody was scanned there.
SITE = 'simulated{}'
#: Changes with every change of what is drawn.
VERSION = 1


class Travels:
    """All visits of a simulation.

    Parameters
    ----------
    people
        Whom to scan.
    scanners
        Number of scanners.
    contrasts
        BIDS suffixes.
    seed
        Of everything that is drawn but the people.
    """

    def __init__(self, people: People, scanners: int, contrasts: Sequence[str], seed: int) -> None:
        self.people, self.scanners, self.contrasts, self.seed = (
            people,
            scanners,
            tuple(dict.fromkeys(contrasts)),
            seed,
        )
        self._machines: dict[str, TravellingSource] = {}

    def sources(self) -> list[SimulatedSource]:
        """Return every person in every scanner with every contrast."""
        return [
            SimulatedSource(self, person, scanner, contrast)
            for person in range(len(self.people)) for scanner in range(self.scanners) for contrast in self.contrasts
        ]  # fmt: skip

    def machines(self, contrast: str) -> TravellingSource:
        """Return the scanners of a contrast."""
        from bidsharm.training.travelling import TravellingSource

        if contrast not in self._machines:
            self._machines[contrast] = TravellingSource(
                self.people, contrast, scanners=self.scanners, seed=self.seed
            )
        return self._machines[contrast]


@dataclass(frozen=True)
class SimulatedSource:
    """A visit, as :func:`bidsharm.harmonizers.training_cache.prepare` takes it; the scan is made when it is read.

    Parameters
    ----------
    travels
        The simulation that it belongs to.
    number, scanner
        Of the person and of the scanner.
    contrast
        BIDS suffix.
    take
        Which visit of this person to this scanner: noise, mask and what a bias correction leaves differ between visits.
    """

    travels: Travels
    number: int
    scanner: int
    contrast: str
    take: int = 0
    #: Every scan has a segmentation.
    tissue: tuple[str, ...] = ('CSF', 'GM', 'WM')

    @property
    def person(self) -> str:
        """Who is scanned."""
        return self.travels.people.label(self.number)

    @property
    def site(self) -> str:
        """Where."""
        return SITE.format(self.scanner + 1)

    @property
    def session(self) -> str:
        """In which visit: one for each scanner."""
        return self.site

    @property
    def name(self) -> str:
        """Name of the scan."""
        return f'{self.person}_{self.site}_{self.contrast}'

    @property
    def covariates(self) -> Mapping[str, float]:
        """The age, once the person is drawn."""
        age = self.travels.people.age(self.number)
        return {} if age is None else {'age': age}

    @property
    def acquisition(self) -> Mapping[str, float]:
        """Acquisition parameters of the scanner."""
        return self.travels.machines(self.contrast).acquisition(self.scanner)

    @property
    def key(self) -> str:
        """What tells this scan from any other."""
        travels = self.travels
        parts = [
            VERSION, travels.people.key(self.number), travels.scanners, travels.seed, self.scanner, self.contrast,
            *([self.take] if self.take else []),
        ]  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @cached_property
    def world(self) -> NDArray[np.float64]:
        """From the world of the scan to that of the common frame: it lies there already."""
        return np.eye(4)

    def again(self, take: int) -> SimulatedSource:
        """Return another visit of the same person to the same scanner."""
        return replace(self, take=take)

    def read(self) -> Scan:
        """Make the scan: brain voxels of 2 mm, around the middle of the common frame."""
        visit = self.travels.machines(self.contrast).visit(self.number, self.scanner, self.take)
        place = tuple(visit.scan.voxels.numpy().T)
        data, mask = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
        tissue = np.zeros((3, *SHAPE), np.float32)
        data[place], mask[place] = visit.scan.values.numpy(), True
        tissue[(slice(None), *place)] = visit.scan.tissue.numpy()
        affine = np.diag([SIZE_MM, SIZE_MM, SIZE_MM, 1.0])
        affine[:3, 3] = _middle() - SIZE_MM * visit.centre
        return Scan(
            data=data, mask=mask, affine=affine, contrast=self.contrast, name=self.name, site=self.site, tissue=tissue,
            person=self.person, session=self.session, covariates=self.covariates, acquisition=self.acquisition,
        )  # fmt: skip


def _middle() -> NDArray[np.float64]:
    """Return the middle of the common frame in the world (mm)."""
    from bidsharm.harmonizers.training_data import common_frame

    grid = common_frame(SIZE_MM)
    last = np.array([*(n - 1 for n in grid.shape), 0])
    return np.asarray((grid.affine @ (last / 2 + [0, 0, 0, 1]))[:3])


def check_size(settings: NetworkSettings, method: str) -> None:
    """Refuse networks that see finer voxels than are simulated.

    Raises
    ------
    UsageError
        If they do.
    """
    if settings.voxel_mm < SIZE_MM:
        raise UsageError(
            f'Simulated scans have voxels of {SIZE_MM:g} mm, and {method} sees voxels of {settings.voxel_mm:g} mm.',
            where='--set', fix=f'Give --set voxel_mm={SIZE_MM:g}, or train on scans.',
        )  # fmt: skip


def simulated(
    maps: Sequence[Path], *, people: int, scanners: int, contrasts: Sequence[str], seed: int, folder: Path
) -> list[SimulatedSource]:
    """Return travelling heads to train on.

    Parameters
    ----------
    maps
        Label maps that people are drawn from; none for the MNI152 template.
    people, scanners
        Their numbers; everybody goes through every scanner.
    contrasts
        BIDS suffixes, all in every visit.
    seed
        The same seed gives the same scans.
    folder
        Where people are kept.
    """
    from bidsharm.training.travelling import People

    drawn = People(list(maps) or [None], people, seed=seed, folder=folder)
    return Travels(drawn, scanners, contrasts, seed).sources()
