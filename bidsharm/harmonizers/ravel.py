"""RAVEL (Fortin et al. 2016): what moves the intensities of cerebrospinal fluid from scan to scan is taken off the whole brain.

The factors are learned from a cohort that is laid on one grid in the space of the template. A scan that comes later is laid on the same grid;
its share of each factor is what its own fluid says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ConfigurationError, MissingNeed, ScanError, UsageError
from bidsharm.harmonizers.contract import (
    Canonical,
    Card,
    Cohort,
    Execution,
    FitReport,
    Harmonized,
    Harmonizer,
    Progress,
    Scan,
    Target,
)
from bidsharm.harmonizers.linear import MODALITIES
from bidsharm.harmonizers.registered import COMMON_MM, Look, common_grid, corrected, look_at, spread
from bidsharm.harmonizers.standard import (
    PERCENTILES,
    Values,
    alternatives,
    check_scan,
    missing,
    paint,
    target_kind,
)
from bidsharm.harmonizers.unwanted import Factors, learn

#: Fewer control voxels than this (0.4 ml) say nothing reliable about a scan.
LEAST_CONTROLS = 50
#: Directions in which scans can still differ after the mean, the kept covariates and the factors are accounted for.
LEAST_FREEDOM = 2
#: A score beyond this multiple of the largest of the cohort is extrapolation.
FAR = 2.0


class Ravel(Harmonizer):
    """White Stripe, then the part of the first unwanted factors is taken off every voxel.

    Parameters
    ----------
    execution
        Where and how to run.
    factors
        How many factors are removed (b of the paper, 1 there).

    Notes
    -----
    Fit: ``V = alpha 1' + beta X' + gamma Z' + R`` on the common grid, Z from the control voxels, which are those that are cerebrospinal
    fluid in all scans; see :mod:`bidsharm.harmonizers.unwanted`. Harmonize: the scores z of a scan are the least-squares solution on its own
    control voxels, and ``gamma z`` is taken off at its own voxels. For scans of the cohort z is their row of Z, so the result on the common
    grid is that of the paper.
    """

    card = Card(
        name='ravel',
        title='Factors of unwanted variation, seen in the fluid, taken off the whole brain',
        paper=(
            'Fortin J-P, Sweeney EM, Muschelli J, Crainiceanu CM, Shinohara RT. Removing inter-subject technical variability in '
            'magnetic resonance imaging studies. NeuroImage 132:198-212, 2016.'
        ),
        doi='10.1016/j.neuroimage.2016.02.036',
        geometry='grid',
        contrasts=tuple(MODALITIES),
        needs_fit=('cohort', 'tissue'),
        targets=('canonical',),
        changes_anatomy=True,
        fidelity='adapted',
        deviations=(
            'Scans are laid on the template rigidly and stretched along its axes, at 2 mm; the paper bends them. Control voxels are centred '
            'over scans before the singular value decomposition. Scans that were not in the cohort get their scores by least squares on '
            'their own control voxels; the paper corrects a cohort at once. Where not all scans of the cohort have brain, the coefficient of '
            'the nearest place where they have is used. Covariates are kept where scans bring them; the app brings none. '
            'Unless --guard report is given, the guard removes structure of the correction that the scan does not show.'
        ),
    )  # fmt: skip

    def __init__(self, execution: Execution | None = None, *, factors: int = 1) -> None:
        super().__init__(execution)
        self.factors = factors
        self._learned: dict[str, Factors] = {}
        self._quantiles: dict[str, Values] = {}

    def fit(
        self,
        cohort: Cohort,
        *,
        target: Target | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FitReport:
        """Learn the factors of each contrast.

        A scan that cannot be used is left out and named in the report, as is a contrast that cannot be learned; only when nothing is left
        is it an error. Covariates that all scans of a contrast bring are kept.

        Parameters
        ----------
        cohort
            Segmented scans.
        target
            The canonical contrast; there is no other.
        seed
            Not used: nothing here is random.
        progress
            Called with (done, total, scan name).

        Raises
        ------
        MissingNeed
            If the cohort has no tissues, too few scans, no fluid in common, or does not differ there.
        UsageError
            If the target is another.
        ScanError
            If no scan can be used.
        """
        del seed
        self._check_target(target or Canonical())
        self._check_offers(cohort)
        looks, skipped = self._look_at_all(cohort, progress)
        learned: dict[str, Factors] = {}
        problems: dict[str, MissingNeed] = {}
        quantiles, details, names = {}, {}, []
        for contrast in sorted({scan.contrast for scan, _ in looks}):
            found = [(scan, look) for scan, look in looks if scan.contrast == contrast]
            kept = _covariates([scan for scan, _ in found])
            try:
                learned[contrast] = self._learn(found, kept, contrast)
            except MissingNeed as problem:
                problems[contrast] = problem
                continue
            levels = [self._quantiles_of(scan, look, learned[contrast]) for scan, look in found]
            quantiles[contrast] = np.mean(levels, axis=0)
            details[contrast] = {
                'scans': len(found),
                'control_voxels': int(learned[contrast].controls.size),
                'kept': sorted(kept),
            }
            names += [scan.name for scan, _ in found]
        if not learned:
            raise next(iter(problems.values())) if problems else skipped[0]
        self._learned, self._quantiles = learned, quantiles
        said: dict[str, Any] = {'target': Canonical.label, 'contrasts': details}
        if skipped:
            said['skipped'] = [{'scan': error.where, 'reason': error.what} for error in skipped]
        if problems:
            said['left_out'] = {contrast: problem.what for contrast, problem in problems.items()}
        return FitReport(tuple(names), said)

    def harmonize(self, scan: Scan, target: Target) -> Harmonized:
        """Take the unwanted factors off one scan.

        Returns
        -------
        Harmonized
            In the units of White Stripe: white matter near 0 with standard deviation near 1. Float32 on the scan's own grid, exactly 0
            outside the mask.

        Raises
        ------
        ScanError
            If the scan is unusable, cannot be aligned, has too little fluid where the cohort has, or its contrast was not fitted.
        MissingNeed
            If nothing was fitted.
        """
        self._check_target(target)
        check_scan(scan)
        learned = self._for(scan)
        look = look_at(scan)
        scores, controls = self._scores(scan, look, learned)
        details = {
            'shift': look.shift,
            'scale': look.scale,
            'scores': scores.tolist(),
            'control_voxels': controls,
        }
        far = np.abs(scores) > FAR * learned.largest
        warnings = (
            (
                f'Its fluid differs from that of the cohort more than {FAR:g} times as much as any scan that ravel learned from.',
            )
            if far.any()
            else ()
        )
        return Harmonized(
            paint(scan, corrected(scan, look, learned.unwanted(scores))), details=details, warnings=warnings
        )

    def target_quantiles(self, contrast: str) -> NDArray[np.float64] | None:
        """Return the mean quantiles of the corrected scans of the cohort; see the contract."""
        return self._quantiles.get(contrast)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the factors and the target's quantiles by contrast."""
        arrays: dict[str, NDArray[Any]] = {}
        for contrast, found in self._learned.items():
            arrays[f'{contrast}/controls'] = found.controls
            arrays[f'{contrast}/baseline'] = found.baseline
            arrays[f'{contrast}/loadings'] = found.loadings
            arrays[f'{contrast}/gamma'] = found.gamma
            arrays[f'{contrast}/largest'] = found.largest
            arrays[f'{contrast}/target_quantiles'] = self._quantiles[contrast]
        label = Canonical.label if self._learned else ''
        return arrays, {'target': label, 'contrasts': sorted(self._learned), 'factors': self.factors}

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take back what :meth:`state` returned.

        Raises
        ------
        ConfigurationError
            If names, shapes or values are not those of this method.
        """
        contrasts, factors = (
            [str(name) for name in settings.get('contrasts', [])],
            int(settings.get('factors', 1)),
        )
        size = int(np.prod(common_grid().shape))
        expected: dict[str, tuple[int, ...]] = {}
        for name in contrasts:
            count = np.size(arrays.get(f'{name}/controls', ()))
            shapes = {'controls': (count,), 'baseline': (count,), 'loadings': (count, factors), 'gamma': (factors, size),
                      'largest': (factors,), 'target_quantiles': (PERCENTILES.size,)}  # fmt: skip
            expected |= {f'{name}/{part}': shape for part, shape in shapes.items()}
        fits = {name: tuple(array.shape) for name, array in arrays.items()} == expected
        fits = fits and all(np.isfinite(array).all() for array in arrays.values())
        for name in contrasts if fits else ():
            places = arrays[f'{name}/controls']
            fits = fits and places.dtype.kind == 'i' and bool(((places >= 0) & (places < size)).all())
        if not fits:
            raise ConfigurationError(
                'The stored numbers do not fit the method ravel.', fix='Fit the method again.'
            )
        parts = ('controls', 'baseline', 'loadings', 'gamma', 'largest')
        self.factors = factors
        self._learned = {name: Factors(*(arrays[f'{name}/{part}'] for part in parts)) for name in contrasts}
        self._quantiles = {
            name: np.asarray(arrays[f'{name}/target_quantiles'], np.float64) for name in contrasts
        }

    def _look_at_all(
        self, cohort: Cohort, progress: Progress | None
    ) -> tuple[list[tuple[Scan, Look]], list[ScanError]]:
        looks: list[tuple[Scan, Look]] = []
        skipped: list[ScanError] = []
        for done, scan in enumerate(cohort.scans, start=1):
            try:
                looks.append((scan, look_at(scan)))
            except ScanError as error:
                skipped.append(error)
            if progress is not None:
                progress(done, len(cohort.scans), scan.name)
        return looks, skipped

    def _learn(self, found: Sequence[tuple[Scan, Look]], kept: dict[str, Values], contrast: str) -> Factors:
        """Learn the factors of one contrast."""
        least = self.factors + len(kept) + 1 + LEAST_FREEDOM
        if len(found) < least:
            raise MissingNeed(
                f'ravel needs at least {least} usable scans of a contrast to learn from; of {contrast} there '
                f'{"is" if len(found) == 1 else "are"} {len(found)}.',
                fix=f'Give more scans, or choose one of: {alternatives({"tissue"})}.',
            )
        looks = [look for _, look in found]
        controls = np.all([look.fluid for look in looks], axis=0)
        if np.count_nonzero(controls) < LEAST_CONTROLS:
            raise MissingNeed(
                f'The {contrast} scans have {np.count_nonzero(controls)} voxels of {COMMON_MM:g} mm in common that are fluid in all of them; '
                f'ravel needs {LEAST_CONTROLS}.',
                fix='Look at the segmentations, leave out the scan with the smallest ventricles, or choose another harmonizer.',
            )
        columns = np.column_stack([*kept.values()]) if kept else None
        try:
            learned = learn(
                np.stack([look.values for look in looks]), controls, factors=self.factors, kept=columns
            )
        except ValueError as error:
            raise MissingNeed(
                f'ravel cannot learn {self.factors} {"factor" if self.factors == 1 else "factors"} from the {contrast} scans: {error}.',
                fix='Are they copies of one scan? Give other scans, or choose another harmonizer.',
            ) from error
        everywhere = np.all([look.inside for look in looks], axis=0)
        return replace(learned, gamma=spread(learned.gamma, everywhere))

    def _quantiles_of(self, scan: Scan, look: Look, learned: Factors) -> Values:
        scores = learned.scores(look.values, look.fluid)
        return np.asarray(
            np.percentile(corrected(scan, look, learned.unwanted(scores)), PERCENTILES), np.float64
        )

    def _scores(self, scan: Scan, look: Look, learned: Factors) -> tuple[Values, int]:
        """Return the scores of a scan and from how many control voxels they are."""
        count = int(np.count_nonzero(look.fluid[learned.controls]))
        try:
            if count < LEAST_CONTROLS:
                raise ValueError(
                    f'it has {count} voxels of fluid where the cohort has, and needs {LEAST_CONTROLS}'
                )
            return learned.scores(look.values, look.fluid), count
        except ValueError as error:
            raise ScanError(
                f'ravel cannot tell the unwanted factors of this scan: {error}.',
                where=scan.name,
                fix='Look at its mask and its segmentation, or choose another harmonizer.',
            ) from error

    def _for(self, scan: Scan) -> Factors:
        if not self._learned:
            raise missing(self.card, 'cohort', ())
        if scan.contrast not in self._learned:
            raise ScanError(
                f'ravel was not fitted to {scan.contrast} but to {", ".join(sorted(self._learned))}.',
                where=scan.name,
                fix=f'Fit it on scans that include {scan.contrast}, or leave that contrast out.',
            )
        return self._learned[scan.contrast]

    def _check_target(self, target: Target) -> None:
        if not isinstance(target, Canonical):
            raise UsageError(
                f'ravel cannot aim at a {target_kind(target)} target.', fix='It can aim at: canonical.'
            )

    def _check_offers(self, cohort: Cohort) -> None:
        for need in self.card.needs_fit:
            if need not in cohort.offers:
                raise missing(self.card, need, cohort.offers)


def _covariates(scans: Sequence[Scan]) -> dict[str, Values]:
    """Return the covariates that all scans bring and in which they differ, in units of their spread."""
    names = set.intersection(*({*scan.covariates} for scan in scans))
    columns = {
        name: np.array([scan.covariates[name] for scan in scans], np.float64) for name in sorted(names)
    }
    return {
        name: (column - column.mean()) / column.std()
        for name, column in columns.items()
        if np.isfinite(column).all() and column.std() > 0
    }
