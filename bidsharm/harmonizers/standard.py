"""What the one-to-one intensity maps share: checks of a scan, and one learned standard per contrast."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ConfigurationError, MissingNeed, ScanError, UsageError
from bidsharm.harmonizers.contract import (
    NEED_PHRASES,
    Acquisition,
    Canonical,
    Card,
    Cohort,
    Execution,
    FitReport,
    Harmonized,
    Harmonizer,
    Map,
    Progress,
    Reference,
    Scan,
    Site,
    Target,
    Volume,
)

Values = NDArray[np.float64]

#: Fewer brain voxels than this do not describe a scan: every method here rests on its distribution.
MIN_VOXELS = 100

#: Levels of the target distribution that every fit keeps, in percent.
PERCENTILES = np.arange(101.0)


def check_scan(scan: Scan) -> Values:
    """Return the intensities inside the mask, after refusing scans that nothing can be learned from.

    Parameters
    ----------
    scan
        Any scan; voxels outside the mask may hold anything.

    Returns
    -------
    ndarray
        Intensities inside the mask in C order, shape (n,), float64, finite, at least two different values.

    Raises
    ------
    ScanError
        If shapes disagree, the mask holds fewer than :data:`MIN_VOXELS` voxels, or the intensities inside
        it are not finite or all equal.
    """
    shape = np.shape(scan.data)
    if len(shape) != 3 or np.shape(scan.mask) != shape:
        raise ScanError(
            f'The image {shape} and its brain mask {np.shape(scan.mask)} are not on one 3-D grid.',
            where=scan.name,
            fix='Give a mask with the same grid as the image.',
        )
    if scan.tissue is not None and np.shape(scan.tissue) != (3, *shape):
        raise ScanError(
            f'The tissue probabilities have shape {np.shape(scan.tissue)} instead of {(3, *shape)}.',
            where=scan.name,
            fix='Give CSF, GM and WM on the grid of the image.',
        )
    values = np.asarray(scan.data)[_inside(scan)].astype(np.float64)
    if values.size < MIN_VOXELS:
        size = f'only {values.size} voxels' if values.size else 'no voxel'
        raise ScanError(
            f'The brain mask holds {size}.',
            where=scan.name,
            fix='Check the brain extraction, or give your own mask as a derivative.',
        )
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise ScanError(
            f'{bad} voxels inside the brain mask are not finite (NaN or infinite).',
            where=scan.name,
            fix='Replace them in the input image, or leave this scan out.',
        )
    if values.min() == values.max():
        raise ScanError(
            f'All voxels inside the brain mask have the same intensity ({values[0]:g}).',
            where=scan.name,
            fix='The file is probably a mask or was damaged in conversion; convert it again or leave it out.',
        )
    return values


def paint(scan: Scan, values: Values) -> Volume:
    """Return a volume on the scan's grid with ``values`` inside its mask and exactly 0 outside.

    Raises
    ------
    ScanError
        If the values do not fit into float32.
    """
    with np.errstate(over='ignore'):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise ScanError(
            'The harmonized intensities are not finite.',
            where=scan.name,
            fix='The intensities of this scan are out of any usual range; check the input image.',
        )
    image = np.zeros(np.shape(scan.data), dtype=np.float32)
    image[_inside(scan)] = narrow
    return image


def pointwise(change: Callable[[Values], Values]) -> Map:
    """Return a map of intensities alone, the same at every place, for :attr:`Harmonized.beyond`."""

    def beyond(data: Volume, affine: NDArray[np.float64]) -> Volume:
        del affine  # one and the same map everywhere
        levels = np.asarray(data, np.float64)
        return change(levels.ravel()).reshape(levels.shape).astype(np.float32)

    return beyond


def _numerical_errors() -> tuple[type[Exception], ...]:
    """Return what fails on odd intensities; called, and so importing the package, only once something did."""
    from intensity_normalization.domain.exceptions import IntensityNormalizationError

    return ArithmeticError, ValueError, np.linalg.LinAlgError, IntensityNormalizationError


def _inside(scan: Scan) -> NDArray[np.bool_]:
    return np.asarray(scan.mask).astype(bool)


def target_kind(target: Target) -> str:
    """Return ``canonical``, ``site`` or ``reference``, the words of ``Card.targets``."""
    kinds = {Canonical: 'canonical', Site: 'site', Reference: 'reference', Acquisition: 'acquisition'}
    return kinds[type(target)]


def alternatives(offers: Iterable[str]) -> str:
    """Return the names of the methods that run with what is offered, for the end of a sentence."""
    from bidsharm.harmonizers import registry

    return ', '.join(registry.could_run(offers)) or 'none'


def missing(card: Card, need: str, offers: Iterable[str]) -> MissingNeed:
    """Return what is said where a method lacks something, with the methods that could run instead.

    Parameters
    ----------
    card
        Of the method.
    need
        Key of ``NEED_PHRASES``.
    offers
        What there is.
    """
    return MissingNeed(
        f'{card.name} needs {NEED_PHRASES[need]}, which is not there; '
        f'methods that could run instead: {alternatives(offers)}.'
    )


class StandardHarmonizer(Harmonizer):
    """Base of methods that map intensities one to one towards one standard per contrast.

    A method describes each scan by a few numbers, combines the descriptions of the fitting scans into
    a standard, and maps the intensities of a scan by its own description and that standard. What is
    learned is small, so a fit reads each scan once and keeps none.

    An instance holds the standards of one target at a time; a new fit replaces them.
    """

    #: Length of the standard of one contrast.
    standard_size: ClassVar[int]

    def __init__(self, execution: Execution | None = None) -> None:
        super().__init__(execution)
        self._target: tuple[str, str] | None = None  # kind and label of the fitted target
        self._standards: dict[str, Values] = {}
        self._quantiles: dict[str, Values] = {}

    @abstractmethod
    def describe(self, scan: Scan) -> Values:
        """Return the numbers that the map of this scan depends on.

        Raises
        ------
        ScanError
            If they cannot be measured.
        """

    @abstractmethod
    def combine(self, descriptions: Sequence[Values], target: Target) -> Values:
        """Return the standard of several scans of one contrast, shape (standard_size,)."""

    @abstractmethod
    def apply(self, values: Values, description: Values, standard: Values) -> Values:
        """Map intensities of the described scan to the standard."""

    def fixed_standard(self) -> Values | None:
        """Return the canonical standard of methods that need no fit for it."""
        return None

    def report(self, description: Values, standard: Values) -> dict[str, Any]:
        """Return what the sidecar should say about one scan."""
        del description, standard
        return {}

    @property
    def fitted_contrasts(self) -> tuple[str, ...]:
        """Contrasts that the fit has seen."""
        return tuple(sorted(self._standards))

    def target_quantiles(self, contrast: str) -> NDArray[np.float64] | None:
        """Return the mean quantiles of the fitted scans at the target; see the contract."""
        return self._quantiles.get(contrast)

    def fit(
        self,
        cohort: Cohort,
        *,
        target: Target | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FitReport:
        """Learn one standard per contrast.

        For a :class:`Site` only the scans of that site are used; for a :class:`Canonical` and a
        :class:`Reference` all of them. A scan that cannot be described is left out and named in the
        report, as is a contrast with too few scans; only when nothing is left is it an error.

        Parameters
        ----------
        cohort
            Scans to learn from; read one after the other.
        target
            What to aim at; the canonical contrast by default.
        seed
            Not used: nothing here is random.
        progress
            Called with (done, total, scan name).

        Raises
        ------
        MissingNeed
            If the cohort does not offer what the card says is needed.
        UsageError
            If the method cannot aim at this target.
        ScanError
            If no scan can be used.
        """
        del seed
        target = target or Canonical()
        self._check_target(target)
        self._check_offers(cohort, target)
        described, skipped = self._describe_all(cohort, target, progress)
        needs_more = 'cohort' in self.card.needs_fit and isinstance(target, Canonical)
        left_out = sorted(contrast for contrast, found in described.items() if needs_more and len(found) < 2)
        usable = {contrast: found for contrast, found in described.items() if contrast not in left_out}
        if not usable:
            raise skipped[0] if skipped else missing(self.card, 'cohort', ())
        standards, quantiles = {}, {}
        for contrast, found in usable.items():
            standard = self.combine([description for _, description, _ in found], target)
            mapped = [self.apply(levels, description, standard) for _, description, levels in found]
            standards[contrast], quantiles[contrast] = standard, np.mean(mapped, axis=0)
        self._target = (target_kind(target), target.label)
        self._standards, self._quantiles = standards, quantiles
        details: dict[str, Any] = {
            'target': target.label,
            'scans_per_contrast': {contrast: len(found) for contrast, found in sorted(usable.items())},
        }
        if skipped:
            details['skipped'] = [{'scan': error.where, 'reason': error.what} for error in skipped]
        if left_out:
            details['contrasts_with_too_few_scans'] = left_out
        return FitReport(tuple(name for found in usable.values() for name, _, _ in found), details)

    def harmonize(self, scan: Scan, target: Target) -> Harmonized:
        """Map one scan to the target.

        Returns
        -------
        Harmonized
            Float32 on the scan's own grid, exactly 0 outside the mask.

        Raises
        ------
        ScanError
            If the scan is unusable, or its contrast was not fitted.
        MissingNeed
            If the target has to be learned and was not.
        """
        self._check_target(target)
        standard = self._standard_for(scan, target)
        values = check_scan(scan)
        description = self._described(scan)
        return Harmonized(
            paint(scan, self.apply(values, description, standard)), details=self.report(description, standard),
            beyond=pointwise(lambda levels: self.apply(levels, description, standard)),
        )  # fmt: skip

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the standards and the target's quantiles by contrast, and the name of the target."""
        arrays: dict[str, NDArray[Any]] = {}
        for contrast in self.fitted_contrasts:
            arrays[f'{contrast}/standard'] = self._standards[contrast]
            arrays[f'{contrast}/target_quantiles'] = self._quantiles[contrast]
        kind, label = self._target or ('', '')
        return arrays, {'target_kind': kind, 'target': label, 'contrasts': list(self.fitted_contrasts)}

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take back what :meth:`state` returned.

        Raises
        ------
        ConfigurationError
            If names, shapes or values are not those of this method.
        """
        contrasts = list(settings.get('contrasts', []))
        expected = {f'{contrast}/standard': (self.standard_size,) for contrast in contrasts}
        expected |= {f'{contrast}/target_quantiles': (PERCENTILES.size,) for contrast in contrasts}
        found = {name: tuple(array.shape) for name, array in arrays.items()}
        if found != expected or not all(np.isfinite(array).all() for array in arrays.values()):
            raise ConfigurationError(
                f'The stored numbers do not fit the method {self.card.name}: '
                f'{found or "none"} instead of {expected or "none"}.',
                fix='Fit the method again.',
            )
        kind = str(settings.get('target_kind', ''))
        self._target = (kind, str(settings.get('target', ''))) if kind else None
        self._standards = {name: np.asarray(arrays[f'{name}/standard'], np.float64) for name in contrasts}
        self._quantiles = {
            name: np.asarray(arrays[f'{name}/target_quantiles'], np.float64) for name in contrasts
        }

    def _describe_all(
        self, cohort: Cohort, target: Target, progress: Progress | None
    ) -> tuple[dict[str, list[tuple[str, Values, Values]]], list[ScanError]]:
        """Return name, description and 101 quantiles of each usable scan by contrast, and what went wrong."""
        described: dict[str, list[tuple[str, Values, Values]]] = defaultdict(list)
        skipped: list[ScanError] = []
        total = len(cohort.scans)
        for done, scan in enumerate(cohort.scans, start=1):
            if not isinstance(target, Site) or scan.site == target.name:
                try:
                    levels = np.asarray(np.percentile(check_scan(scan), PERCENTILES), np.float64)
                    described[scan.contrast].append((scan.name, self._described(scan), levels))
                except ScanError as error:
                    skipped.append(error)
            if progress is not None:
                progress(done, total, scan.name)
        if skipped and not described:
            raise skipped[0]
        return described, skipped

    def _described(self, scan: Scan) -> Values:
        """Describe a scan; whatever the mathematics stumble over becomes an error that names the scan."""
        if self.card.contrasts and scan.contrast not in self.card.contrasts:
            raise ScanError(
                f'{self.card.name} handles {", ".join(self.card.contrasts)}, not {scan.contrast}.',
                where=scan.name,
                fix='Choose another harmonizer for this contrast.',
            )
        try:
            description = np.asarray(self.describe(scan), np.float64)
        except _numerical_errors() as error:
            raise ScanError(
                f'{self.card.name} found no usable intensity scale in this scan ({error}).',
                where=scan.name,
                fix='Look at the image and its brain mask, or choose another harmonizer.',
            ) from error
        if not np.isfinite(description).all():
            raise ScanError(
                f'{self.card.name} measured an intensity scale that is not finite.',
                where=scan.name,
                fix='Look at the image and its brain mask, or choose another harmonizer.',
            )
        return description

    def _standard_for(self, scan: Scan, target: Target) -> Values:
        fitted = self._target == (target_kind(target), target.label)
        if fitted and scan.contrast in self._standards:
            return self._standards[scan.contrast]
        if isinstance(target, Canonical) and (fixed := self.fixed_standard()) is not None:
            return fixed
        if fitted:
            raise ScanError(
                f'{self.card.name} was not fitted to {scan.contrast} but to {", ".join(self.fitted_contrasts)}.',
                where=scan.name,
                fix=f'Fit it on scans that include {scan.contrast}, or leave that contrast out.',
            )
        if isinstance(target, Canonical):
            raise missing(self.card, next(iter(self.card.needs_fit), 'cohort'), ())
        learned = f'; it was fitted to "{self._target[1]}"' if self._target else ''
        raise MissingNeed(
            f'{self.card.name} has not learned the target "{target.label}"{learned}.',
            fix='Fit it on scans of that target first.',
        )

    def _check_target(self, target: Target) -> None:
        if target_kind(target) not in self.card.targets:
            raise UsageError(
                f'{self.card.name} cannot aim at a {target_kind(target)} target.',
                fix=f'It can aim at: {", ".join(self.card.targets)}.',
            )

    def _check_offers(self, cohort: Cohort, target: Target) -> None:
        """Refuse a cohort that lacks what this target needs; a site or a reference needs one scan only."""
        offers = cohort.offers
        if not offers:
            raise missing(self.card, 'reference' if isinstance(target, Reference) else 'cohort', offers)
        if isinstance(target, Site):
            sites = sorted({scan.site for scan in cohort.scans if scan.site})
            if not sites:
                raise missing(self.card, 'site', offers)
            if target.name not in sites:
                raise MissingNeed(
                    f'No scan comes from the site "{target.name}".', fix=f'There are: {", ".join(sites)}.'
                )
        required = self.card.needs_fit if isinstance(target, Canonical) else ()
        for need in required:
            if need not in offers:
                raise missing(self.card, need, offers)
