"""What an evaluation is about: scans, who was in which scanner, and what each method made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: Name of the row that says what was there before any method.
ORIGINAL = 'original'


@dataclass(frozen=True)
class MethodFiles:
    """What one method made of a scan; all on the grid of the scan.

    Parameters
    ----------
    image
        Harmonized image.
    labels
        Its segmentation (1 GM, 2 WM, 3 CSF), if any.
    uncertainty
        Standard deviation of each voxel in units of the image, if any.
    lesions
        Lesions found in it, if any.
    returned
        The scan after the way to another target and back, if any.
    seconds, peak_gb
        Time and peak of memory, in GB of 1e9 bytes, that the harmonizer took, if known.
    """

    image: Path
    labels: Path | None = None
    uncertainty: Path | None = None
    lesions: Path | None = None
    returned: Path | None = None
    seconds: float | None = None
    peak_gb: float | None = None


@dataclass(frozen=True)
class StudyScan:
    """One scan, whatever was made of it.

    Parameters
    ----------
    name
        File name without extension and description, as ``sub-01_ses-a_T1w``.
    person, scanner
        Who was scanned, and where; the scanner is empty where nobody knows.
    methods
        What methods made of it, by name.
    original
        The scan before, if there is one.
    original_labels
        Its segmentation, if any.
    mask
        Brain mask; without one the brain is what is not 0 in every image.
    labels
        True tissues (1 GM, 2 WM, 3 CSF), if known.
    reference
        The same head as the target scanner would have it, on the same grid, if known.
    lesions
        True lesions, if known.
    """

    name: str
    person: str
    scanner: str
    methods: Mapping[str, MethodFiles]
    original: Path | None = None
    original_labels: Path | None = None
    mask: Path | None = None
    labels: Path | None = None
    reference: Path | None = None
    lesions: Path | None = None


@dataclass(frozen=True)
class Study:
    """All scans of an evaluation.

    Parameters
    ----------
    scans
        Scans, in order.
    methods
        Names of the methods, in the order of the tables; ``original`` first, where there are originals.
    target
        Scanner at which methods aim, or empty.
    ages, groups, classes
        Age, group and class to be told (of a downstream task) by person.
    """

    scans: tuple[StudyScan, ...]
    methods: tuple[str, ...]
    target: str = ''
    ages: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)

    @property
    def scanners(self) -> tuple[str, ...]:
        """Scanners, sorted; unknown ones left out."""
        return tuple(sorted({scan.scanner for scan in self.scans if scan.scanner}))

    @property
    def people(self) -> tuple[str, ...]:
        """People, in the order of their scans."""
        return tuple(dict.fromkeys(scan.person for scan in self.scans))

    @property
    def has_truth(self) -> bool:
        """Whether references of scans are known without anybody having travelled."""
        return any(scan.reference for scan in self.scans)

    def target_scan(self, person: str) -> StudyScan | None:
        """Return the first scan of a person in the target scanner."""
        if not self.target:
            return None
        return next((s for s in self.scans if s.person == person and s.scanner == self.target), None)


@dataclass(frozen=True)
class Options:
    """How an evaluation is made.

    Parameters
    ----------
    seed
        Of every random number.
    resamples
        Bootstrap resamples.
    permutations
        Of the chance line of the linear probe; the network has five times as many.
    network
        Whether a network is trained to guess scanners.
    against
        Method that the others are compared with; the first by default.
    aligned
        Whether all images lie in one space already.
    given_labels
        Take segmentations from the data sets; otherwise every image is segmented here, all in the same way.
    processes
        Processes that people are shared out to.
    inception, lpips
        Files of weights (safetensors) of these networks, if any.
    kept
        Folder for what was measured of each scan; None to keep nothing.
    """

    seed: int = 0
    resamples: int = 10_000
    permutations: int = 200
    network: bool = True
    against: str = ''
    aligned: bool = False
    given_labels: bool = False
    processes: int = 1
    inception: Path | None = None
    lpips: Path | None = None
    kept: Path | None = None
