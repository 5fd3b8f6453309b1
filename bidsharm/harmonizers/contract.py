"""What every harmonizer promises: the card, the scan, the target, and the two verbs ``fit`` and ``harmonize``."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]
Progress = Callable[[int, int, str], None]
#: Intensities on any grid and its affine in, harmonized intensities on that grid out.
Map = Callable[[Volume, NDArray[np.float64]], Volume]

#: What a method may need, and how a sentence names it when it is missing.
NEED_PHRASES: dict[str, str] = {
    'cohort': 'several scans of the same contrast to learn a common scale from',
    'site': 'site labels for the scans',
    'two_sites': 'scans of at least two sites',
    'travellers': 'people who were scanned at every site',
    'reference': 'a reference image or a site as target',
    'paired': 'scans of the same people at several sites',
    'multi_contrast': 'several contrasts of the same session',
    'tissue': 'a tissue segmentation of each scan',
    'weights': 'a model bundle',
    'table': 'a table of features',
    'visits': 'people with several visits',
    'answers': 'what it shall predict, for some scans at least',
    'answers_of_two_sites': 'what it shall predict, for scans of at least two sites',
    'site_without_answers': 'scans of a site whose answers it does not learn from (--labelled names the others)',
    'kept': 'columns of what people differ by (--keep)',
}


@dataclass(frozen=True)
class Card:
    """What a method is and what it needs; printed by ``bidsharm-models`` and copied into every sidecar.

    Parameters
    ----------
    name
        Registry name, as given to ``--harmonizer``.
    title
        The method in a few words.
    paper, doi
        Reference, and its DOI where there is one.
    family
        Family of the survey (``classical``, ``unet``, ``gan``, ...).
    supervision
        How it learns: ``none``, ``unpaired`` or ``paired``.
    domain, output
        What goes in (volume, surface, table) and what comes out (image, features, task).
    geometry
        ``native`` methods map intensities on the scan's own grid; ``grid`` methods work on a 1 mm
        model grid, and the workflow carries their change back to the native grid.
    contrasts
        BIDS suffixes that it handles; empty means every contrast.
    needs_fit, needs_apply
        Keys of :data:`NEED_PHRASES` needed to learn a target and to harmonize one scan.
    targets
        Which targets it can aim at, of ``canonical``, ``site``, ``reference``, ``acquisition``.
    companions
        Whether it looks at the other contrasts of a visit, where there are some, to harmonize a scan.
    changes_anatomy
        Whether the method could, in principle, draw structure that is not in its input.
    fidelity
        How close this implementation is to the paper: ``faithful``, ``adapted`` or ``minimal``.
    deviations
        In what it differs from the paper.
    licence
        Licence of the implementation that is used.
    uses_device
        Whether it runs on ``--device`` (otherwise it is CPU-only).
    memory_gb
        Peak memory for a 1 mm head, in GB: what the scheduler is told.
    """

    name: str
    title: str
    paper: str
    doi: str = ''
    family: str = 'classical'
    supervision: Literal['none', 'unpaired', 'paired'] = 'none'
    domain: Literal['volume', 'surface', 'table'] = 'volume'
    output: Literal['image', 'features', 'task'] = 'image'
    geometry: Literal['native', 'grid'] = 'native'
    contrasts: tuple[str, ...] = ()
    needs_fit: tuple[str, ...] = ()
    needs_apply: tuple[str, ...] = ()
    targets: tuple[Literal['canonical', 'site', 'reference', 'acquisition'], ...] = (
        'canonical',
        'site',
        'reference',
    )
    companions: bool = False
    changes_anatomy: bool = False
    fidelity: Literal['faithful', 'adapted', 'minimal'] = 'faithful'
    deviations: str = ''
    licence: str = 'Apache-2.0'
    uses_device: bool = False
    memory_gb: float = 1.5

    @property
    def place(self) -> str:
        """Where it is used: ``task`` for methods that give no image, else the domain."""
        return 'task' if self.output == 'task' else self.domain

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON types."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Scan:
    """One preprocessed scan: bias-corrected intensities on its own grid, with its brain mask.

    Parameters
    ----------
    data
        Intensities, shape (X, Y, Z), float32, any linear scale.
    mask
        Brain mask, shape (X, Y, Z), bool.
    affine
        Voxel to world (RAS+ mm), shape (4, 4).
    contrast
        BIDS suffix (``T1w``, ``T2w``, ``FLAIR``, ``PDw``).
    name
        Name for messages, for example ``sub-01_ses-1_T1w``.
    site
        Site label, or an empty string.
    tissue
        Probabilities of CSF, GM and WM, shape (3, X, Y, Z), float32 in [0, 1]; None when not segmented.
    person, session
        Who was scanned, and in which visit; scans of one person belong together in a training.
    covariates
        Numbers known about the person (age), by name.
    companions
        Scans of other contrasts of the visit, on the same grid; they need no companions of their own.
    labels
        What a network shall learn to segment, where that is not the tissues: 0 outside the brain, 1, 2, ... inside; shape (X, Y, Z), uint8.
    acquisition
        Acquisition parameters by their BIDS names (:data:`bidsharm.harmonizers.acquisition.PARAMETERS`), as far as they are known.
    """

    data: Volume
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    contrast: str
    name: str = ''
    site: str = ''
    tissue: Volume | None = None
    person: str = ''
    session: str = ''
    covariates: Mapping[str, float] = field(default_factory=dict)
    companions: tuple[Scan, ...] = ()
    labels: NDArray[np.uint8] | None = None
    acquisition: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Canonical:
    """The method's own standard contrast."""

    label: ClassVar[str] = 'canonical'


@dataclass(frozen=True)
class Site:
    """The average look of one site's scans."""

    name: str

    @property
    def label(self) -> str:
        """The label written to sidecars."""
        return self.name


@dataclass(frozen=True)
class Reference:
    """The look of one given image."""

    path: str

    @property
    def label(self) -> str:
        """The label written to sidecars: the file's name, never the folder it lies in."""
        return f'reference:{Path(self.path).name}'


@dataclass(frozen=True)
class Acquisition:
    """The look that scans of a protocol would have.

    Parameters
    ----------
    name
        Of the sidecar with the acquisition parameters.
    contrast
        BIDS suffix that they are for.
    parameters
        By their BIDS names; not needed to harmonize with a model that aims at this target already.
    """

    name: str
    contrast: str = ''
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The label written to sidecars."""
        return f'acquisition:{self.name}'


Target = Canonical | Site | Reference | Acquisition


@dataclass(frozen=True)
class Cohort:
    """Scans to learn from, and what they offer."""

    scans: Sequence[Scan]

    @property
    def offers(self) -> frozenset[str]:
        """Keys of :data:`NEED_PHRASES` that these scans satisfy."""
        offers = set()
        if len(self.scans) > 1:
            offers.add('cohort')
        if self.scans and all(scan.site for scan in self.scans):
            offers.add('site')
        if self.scans and all(scan.tissue is not None for scan in self.scans):
            offers.add('tissue')
        if self.scans:
            offers.add('reference')
        return frozenset(offers)


@dataclass(frozen=True)
class Execution:
    """Where and how to run: resolved once, recorded in every sidecar."""

    device: str = 'cpu'
    precision: str = 'float32'
    threads: int = 1
    seed: int = 0
    oom_fallback: Literal['fail', 'cpu'] = 'fail'
    guard: Literal['report', 'blend', 'refuse'] = (
        'blend'  # structure that a method drew: keep, remove, or refuse the scan
    )
    steps: list[str] = field(default_factory=list)  # what the out-of-memory ladder did


@dataclass(frozen=True)
class FitReport:
    """What a fit used: names of the scans, and anything the method wants to say."""

    scans: tuple[str, ...]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Harmonized:
    """The result for one scan.

    Parameters
    ----------
    image
        Harmonized intensities on the grid of the input, float32, exactly 0 outside the mask.
    uncertainty
        Standard deviation per voxel in the same units, or None when the method cannot tell.
    details
        Numbers worth recording (the fitted scale, for example), JSON types only.
    warnings
        Sentences that a reader of the image must see; they go into the QC record and the report.
    beyond
        The map that made ``image``, where it holds outside the mask too: it takes intensities in the units of the scan. None
        where the method knows the brain only. See :mod:`bidsharm.harmonizers.beyond`.
    unsupported
        Structure that the method drew without support of the scan, in the same units; None for methods that cannot draw. See
        :mod:`bidsharm.harmonizers.guard`.
    """

    image: Volume
    uncertainty: Volume | None = None
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    beyond: Map | None = None
    unsupported: Volume | None = None


class HarmonizationMethod(ABC):
    """What methods of all domains have in common: a card, an execution, and a state that goes into a bundle.

    Subclasses say what goes in: :class:`Harmonizer` takes volumes,
    :class:`~bidsharm.harmonizers.table.TableHarmonizer` tables of features.
    """

    card: ClassVar[Card]

    def __init__(self, execution: Execution | None = None) -> None:
        self.execution = execution or Execution()

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return what was learned: named arrays, and JSON-safe settings."""
        return {}, {}

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take back what :meth:`state` returned."""
        del arrays, settings  # a method without a state has nothing to take back


class Harmonizer(HarmonizationMethod):
    """A harmonization method for volumes.

    An instance carries what it learned. ``harmonize`` must depend on nothing but the instance,
    the scan, the target and the seed, so that jobs running in parallel agree.
    """

    @classmethod
    def aims_anew(cls) -> bool:
        """Say whether a model can learn another target than that it was trained for, by :meth:`fit`, with its networks as they are."""
        return False

    @classmethod
    def weights_digest(cls) -> str:
        """Return a digest of the weights that ship with the method; empty for a method without."""
        return ''

    def fit(
        self,
        cohort: Cohort,
        *,
        target: Target | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FitReport:
        """Learn the target from a cohort, one standard per contrast.

        Methods with a fixed canonical contrast need no fit for :class:`Canonical`.

        Raises
        ------
        bidsharm.errors.MissingNeed
            If the cohort does not offer what the card says is needed.
        """
        return FitReport(tuple(scan.name for scan in cohort.scans))

    @abstractmethod
    def harmonize(self, scan: Scan, target: Target) -> Harmonized:
        """Return the scan as the target's scanner would have made it.

        Raises
        ------
        bidsharm.errors.ScanError
            If this scan cannot be harmonized (constant, no brain, a contrast not fitted).
        """

    def target_quantiles(self, contrast: str) -> NDArray[np.float64] | None:
        """Return how intensities are distributed at the target, for measuring the distance to it.

        Parameters
        ----------
        contrast
            BIDS suffix.

        Returns
        -------
        ndarray or None
            The 0, 1, ..., 100 % quantiles of the intensities inside the mask, shape (101,), that the fitted
            scans have after being harmonized to the target (mean over scans); None when that is not known.
        """
        del contrast  # a method that was not fitted knows no target distribution
        return None
