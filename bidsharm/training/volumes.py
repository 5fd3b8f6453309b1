"""What networks train on: brains on one grid, and who and where each of them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainingVolume:
    """One scan, ready for a network.

    Parameters
    ----------
    values
        Intensities as the network wants them, its background outside the mask, shape (X, Y, Z), float32; may lie on disk.
    mask
        Brain mask, same shape, bool.
    name, person, session, site, contrast
        Who was scanned, in which visit, where, and with which contrast.
    tissue
        Labels 0 background, 1 CSF, 2 GM, 3 WM, same shape; None where nobody segmented it.
    covariates
        Numbers known about the person (age), by name.
    unit
        Intensity of the scan that the network sees as 1 (:mod:`bidsharm.training.scaling`).
    acquisition
        Acquisition parameters by their BIDS names, as far as they are known.
    again
        Returns another visit of the same person to the same scanner, by its number; None where nobody can measure again.
    """

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    name: str
    person: str
    session: str
    site: str
    contrast: str
    tissue: NDArray[np.uint8] | None = None
    covariates: Mapping[str, float] = field(default_factory=dict)
    unit: float = 1.0
    acquisition: Mapping[str, float] = field(default_factory=dict)
    again: Callable[[int], TrainingVolume] | None = field(default=None, compare=False, repr=False)

    def take(self, number: int) -> TrainingVolume:
        """Return this volume as it was measured in another visit, where that can be had; 0 is this one."""
        return self if self.again is None or number == 0 else self.again(number)


@dataclass(frozen=True)
class TrainingSet:
    """Volumes on one grid, and how to find the ones that belong together.

    Parameters
    ----------
    volumes
        All of one shape; scans of one person lie on each other.
    background
        Value outside the brain.
    whole
        The set that these volumes were taken from, whose sites and contrasts have the numbers; None for a set of its own.
    """

    volumes: Sequence[TrainingVolume]
    background: float = 0.0
    whole: TrainingSet | None = None

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Labels of the sites that volumes are from, in order."""
        return tuple(sorted({volume.site for volume in self.volumes}))

    @cached_property
    def contrasts(self) -> tuple[str, ...]:
        """Contrasts that volumes have, in order."""
        return tuple(sorted({volume.contrast for volume in self.volumes}))

    @property
    def all_sites(self) -> tuple[str, ...]:
        """Sites of the whole training; their places are the numbers that networks see."""
        return self.sites if self.whole is None else self.whole.all_sites

    @property
    def all_contrasts(self) -> tuple[str, ...]:
        """Contrasts of the whole training; their places are the channels that networks see."""
        return self.contrasts if self.whole is None else self.whole.all_contrasts

    @cached_property
    def people(self) -> tuple[str, ...]:
        """Everyone, in order."""
        return tuple(sorted({volume.person for volume in self.volumes}))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of all volumes."""
        x, y, z = self.volumes[0].values.shape
        return x, y, z

    def at(self, site: str) -> list[TrainingVolume]:
        """Return the volumes of one site."""
        return [volume for volume in self.volumes if volume.site == site]

    def elsewhere(self, site: str) -> list[TrainingVolume]:
        """Return the volumes of all other sites."""
        return [volume for volume in self.volumes if volume.site != site]

    def pairs(self, target: str) -> list[tuple[TrainingVolume, TrainingVolume]]:
        """Return scans of the same person and contrast, elsewhere and at the target site."""
        there = {(volume.person, volume.contrast): volume for volume in self.at(target)}
        found = [(volume, there.get((volume.person, volume.contrast))) for volume in self.elsewhere(target)]
        return [(source, wanted) for source, wanted in found if wanted is not None]

    def travellers(self) -> list[dict[str, TrainingVolume]]:
        """Return, for every person and contrast seen at all sites, the volume of each site."""
        table: dict[tuple[str, str], dict[str, TrainingVolume]] = {}
        for volume in self.volumes:
            table.setdefault((volume.person, volume.contrast), {}).setdefault(volume.site, volume)
        return [row for row in table.values() if len(row) == len(self.all_sites)]

    def visits(self) -> list[dict[str, TrainingVolume]]:
        """Return, for every visit of a person to a site, the volume of each contrast."""
        table: dict[tuple[str, str, str], dict[str, TrainingVolume]] = {}
        for volume in self.volumes:
            table.setdefault((volume.person, volume.session, volume.site), {})[volume.contrast] = volume
        return list(table.values())

    def of(self, people: Sequence[str]) -> TrainingSet:
        """Return the volumes of some people."""
        some = frozenset(people)
        return TrainingSet(
            [volume for volume in self.volumes if volume.person in some], self.background, self.whole or self
        )

    def hold_out(self, share: float, seed: int) -> tuple[list[str], list[str]]:
        """Divide people as :func:`hold_out`, but train on everybody without whom a site or a contrast would be missing."""
        _, others = hold_out(self.people, share, seed)
        kept: list[str] = []
        for person in others:
            rest = self.of([one for one in self.people if one != person and one not in kept])
            if (rest.sites, rest.contrasts) == (self.sites, self.contrasts):
                kept.append(person)
        return [person for person in self.people if person not in kept], kept


def hold_out(people: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Divide people into those who are trained on and those who are kept for validation.

    Parameters
    ----------
    people
        Everyone.
    share
        Part to keep back, from 0 to 1; at least one person where it is above 0 and there are three or more.
    seed
        The same seed divides in the same way.
    """
    order = np.random.default_rng((seed, 11)).permutation(len(people))
    count = max(round(share * len(people)), 1) if share > 0 and len(people) > 2 else 0
    kept = {people[index] for index in order[:count]}
    return [person for person in people if person not in kept], [
        person for person in people if person in kept
    ]
