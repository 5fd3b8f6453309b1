"""People who travel between simulated scanners: the same person, lying the same way, once in each of a few scanners.

:mod:`bidsharm.training.scans` shows a network as many scanners as there are steps; here it is a few that stay what they are, as the sites of a
study: contrast, tone and what the protocol makes of tissues belong to the scanner, noise, masks and what a bias correction leaves to the visit.
A scan depends on the seed, the person, the scanner and the number of the visit alone, so it is the same whenever it is made.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from bidsharm.temporary import atomic_path
from bidsharm.training.brains import Brain, draw_brains
from bidsharm.training.scans import ScanSource, Signals, TrainingScan, enlarge

#: Scanners that are drawn for each that is chosen.
_DRAWN = 60
#: Signal to noise that a usual scanner has at least.
_SNR = 12.0
#: How far heads are turned, at most: what a rigid alignment leaves of how people lie, and how brains lie in heads (degrees).
_DEGREES = 4.0

#: What a file raises that is missing, cut off or something else.
_UNREADABLE = (OSError, ValueError, LookupError, EOFError, BadZipFile, zlib.error)


class People(Sequence[Brain]):
    """Brains that are drawn when they are first asked for, and kept as files.

    Parameters
    ----------
    maps
        Label maps, each for the same number of people; None stands for the MNI152 template.
    count
        Number of people.
    seed
        The same seed gives the same people.
    folder
        Where they are kept.
    """

    def __init__(self, maps: Sequence[Path | None], count: int, *, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self._contents = {path: _content(path) for path in maps}
        # The same anatomy in two files would give the same people twice.
        maps = list({content: path for path, content in self._contents.items()}.values())
        shares = np.array_split(np.arange(count), min(len(maps), count))
        #: Of each person the anatomy, and the number among those who have it; people of one anatomy come in turn.
        self.drawn_from = [
            (path, number) for path, share in zip(maps, shares, strict=False) for number in range(len(share))
        ]
        self._places = {path: place for place, path in enumerate(maps, start=1)}
        self._coming: tuple[Path | None, int, Iterator[Brain]] | None = None

    def __len__(self) -> int:
        return len(self.drawn_from)

    @overload
    def __getitem__(self, index: int) -> Brain: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Brain]: ...
    def __getitem__(self, index: int | slice) -> Brain | Sequence[Brain]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        file = self.file(index)
        try:
            return Brain.load(file)
        except _UNREADABLE:  # not drawn yet, or cut off
            brain = self._drawn(index)
        with atomic_path(file) as partial:
            brain.save(partial)
        return brain

    def label(self, index: int) -> str:
        """Return what a person is called, in the order of the numbers; it stays when there are more people."""
        path, number = self.drawn_from[index]
        return f'a{self._places[path]:03d}p{number + 1:04d}'

    def key(self, index: int) -> str:
        """Return what tells a person from any other."""
        path, number = self.drawn_from[index]
        return hashlib.sha256(repr([self._contents[path], number, self.seed, 1]).encode()).hexdigest()[:24]

    def file(self, index: int) -> Path:
        """Return the file that keeps a person."""
        return self.folder / f'{self.key(index)}.npz'

    def age(self, index: int) -> float | None:
        """Return the age of a person in years; None where they are not drawn yet."""
        try:
            with np.load(self.file(index), allow_pickle=False) as kept:
                return float(kept['age'])
        except _UNREADABLE:
            return None

    def _drawn(self, index: int) -> Brain:
        """Draw a person; those who are asked for in turn share the work that an anatomy takes."""
        path, number = self.drawn_from[index]
        if self._coming is None or self._coming[:2] != (path, number):
            count = sum(other == path for other, _ in self.drawn_from)
            coming = draw_brains([path], count, seed=self.seed, degrees=_DEGREES, first=number)
        else:
            coming = self._coming[2]
        brain = next(coming)
        self._coming = (path, number + 1, coming)
        return brain


def _content(path: Path | None) -> str:
    return 'MNI152' if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Visit:
    """A person in a scanner.

    Parameters
    ----------
    scan
        What comes out.
    centre
        Middle of the person's brain in voxels of the field of view, shape (3,); the same in all scanners.
    """

    scan: TrainingScan
    centre: np.ndarray


class TravellingSource(ScanSource):
    """Scan people in each of a few scanners, as they look after a bias correction.

    Parameters
    ----------
    people
        Whom to scan.
    contrast
        BIDS suffix.
    scanners
        Their number.
    seed
        Of scanners and visits.
    """

    def __init__(self, people: People, contrast: str, *, scanners: int, seed: int) -> None:
        super().__init__([], contrast, seed=seed, scanners=_DRAWN * scanners)
        self.people, self.seed = people, seed
        self.chosen = usual(self.signals, scanners)

    def visit(self, person: int, scanner: int, take: int = 0) -> Visit:
        """Return a scan of a person in a scanner.

        Parameters
        ----------
        person, scanner
            Their numbers.
        take
            Which visit of this person to this scanner.
        """
        self.brains = [self.people[person]]
        who = self.people.key(person)
        self._begin('person', who)
        voxels, flat, mixture, kinds, texture = self._place(0)
        jitter = self._people()
        again = (take,) if take else ()
        self._begin('visit', who, scanner, *again)
        number = self.chosen[scanner]
        transmit = 1 + float(self.signals.transmit[number]) * enlarge(self._field(self.transmit), flat)
        self._begin('scanner', scanner)
        signal, white = self._signal(number, mixture, texture, transmit, jitter)
        power = self._tone()
        self._begin('measurement', who, scanner, *again)
        log_receive = self._receive(number, flat, white.log())
        clean = (signal * log_receive.exp()).abs().clamp_min(1e-6) ** power
        canonical, log_gain = self._canonical(mixture, texture, jitter), power * (log_receive + white.log())
        scan = self._acquired(number, clean, canonical, log_gain, voxels, flat, kinds)
        middle = (voxels.amin(dim=0) + voxels.amax(dim=0)).double() / 2
        return Visit(scan, middle.cpu().numpy())

    def acquisition(self, scanner: int) -> dict[str, float]:
        """Return the acquisition parameters of a scanner by their BIDS names."""
        return self.signals.acquisition(self.chosen[scanner])

    def _begin(self, *what: object) -> None:
        """Start random numbers that depend on what is named, and on the seed."""
        text = repr((self.seed, self.contrast if what[0] != 'person' else '', *what))
        self.reseed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))

    def _receive(self, number: int, flat: Tensor, log_white: Tensor) -> Tensor:
        """Return the logarithm of what a bias correction has left of all that is smooth."""
        receive = float(self.signals.receive[number]) * self._field(self.receive)
        rough = self._noise(self._uniform(20, 50)) * self._uniform(0, 0.03)
        left = self._uniform(-0.1, 0.2)
        return enlarge(left * receive + rough, flat) - (1 - left) * log_white


def usual(signals: Signals, count: int) -> list[int]:
    """Return scanners as studies have them, whose contrasts of grey to white matter differ as far as such scanners do.

    Parameters
    ----------
    signals
        Scanners that were drawn.
    count
        How many to choose.
    """
    middle = signals.signal.shape[2] // 2
    ratio = signals.signal[:, 2, middle].abs().cpu().numpy()  # of GM, relative to WM
    thickest, snr = (one.cpu().numpy() for one in (signals.voxel.amax(dim=1), signals.snr))
    # Of those with enough signal, the half with the finer voxels.
    good = np.flatnonzero(snr > _SNR) if np.sum(snr > _SNR) >= 2 * count else np.argsort(-snr)[: 2 * count]
    fair = good[np.argsort(thickest[good], kind='stable')[: max(count, len(good) // 2)]]
    ranked = fair[np.argsort(ratio[fair], kind='stable')]
    places = np.linspace(0.05, 0.95, count) if count > 1 else np.array([0.5])
    return [int(ranked[round(place * (len(ranked) - 1))]) for place in places]
