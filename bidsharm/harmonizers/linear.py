"""Methods whose map is affine in intensity: one shift and one scale per scan."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from bidsharm.errors import ScanError
from bidsharm.harmonizers.contract import Canonical, Card, Scan, Target
from bidsharm.harmonizers.standard import StandardHarmonizer, Values, check_scan

__all__ = [
    'FCM',
    'KDE',
    'LSQ',
    'Identity',
    'LinearHarmonizer',
    'Robust',
    'TScore',
    'WhiteStripe',
    'ZScore',
    'check_scan',
]

#: Percentile that stands for the bright end of the brain; higher ones follow vessels and artefacts.
BRIGHT_PERCENTILE = 90.0

#: Quantiles that stand for all voxels where a method only looks at their distribution.
SAMPLE_SIZE = 50_000

#: Order of ``Scan.tissue``.
CSF, GM, WM = range(3)

#: How ``intensity-normalization`` calls the contrasts.
MODALITIES = {'T1w': 't1', 'T2w': 't2', 'FLAIR': 'flair', 'PDw': 'pd'}

REINHOLD = (
    'Reinhold JC, Dewey BE, Carass A, Prince JL. Evaluating the impact of intensity normalization on MR image '
    'synthesis. Proc SPIE 10949:109493H, 2019.'
)
REINHOLD_DOI = '10.1117/12.2513089'


class LinearHarmonizer(StandardHarmonizer):
    """Base of the affine methods: ``(x - shift) / scale * target_scale + target_shift``.

    A method says in :meth:`measure` what shift and scale a scan has, in the scan's own units. The
    canonical target, (0, 1) unless a method says otherwise, is its own units and needs no fit. A site or a reference has the
    mean shift and scale of its scans.
    """

    standard_size: ClassVar[int] = 2
    #: Shift and scale of the canonical target.
    canonical: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @abstractmethod
    def measure(self, scan: Scan) -> tuple[float, float]:
        """Return (shift, scale) of a scan in its own units; the scale is above 0.

        Raises
        ------
        ScanError
            If the scan is unusable.
        """

    def describe(self, scan: Scan) -> Values:
        """Return shift and scale, shape (2,)."""
        shift, scale = self.measure(scan)
        return np.array([shift, _positive(scale)])

    def combine(self, descriptions: Sequence[Values], target: Target) -> Values:
        """Return the mean shift and scale, or those of the canonical target."""
        if isinstance(target, Canonical):
            return np.array(self.canonical)
        return np.mean(descriptions, axis=0)

    def fixed_standard(self) -> Values | None:
        """Return shift and scale of the canonical target: the method's own units."""
        return np.array(self.canonical)

    def parameters(self, description: Values, standard: Values) -> tuple[float, float]:
        """Return (shift, scale) of a described scan."""
        del standard
        return float(description[0]), float(description[1])

    def apply(self, values: Values, description: Values, standard: Values) -> Values:
        """Map intensities to the standard's shift and scale."""
        shift, scale = self.parameters(description, standard)
        return (values - shift) * (standard[1] / scale) + standard[0]

    def report(self, description: Values, standard: Values) -> dict[str, Any]:
        """Return shift and scale of the scan and of the target."""
        shift, scale = self.parameters(description, standard)
        return {
            'shift': shift,
            'scale': scale,
            'target_shift': float(standard[0]),
            'target_scale': float(standard[1]),
        }


class Identity(LinearHarmonizer):
    """Leave the intensities alone: the floor that every method has to beat."""

    card = Card(
        name='identity',
        title='No harmonization',
        paper='None: the intensities inside the brain mask are kept as they are.',
        targets=('canonical',),
        memory_gb=1.0,
    )

    def measure(self, scan: Scan) -> tuple[float, float]:
        """Return (0, 1)."""
        del scan
        return 0.0, 1.0


class Robust(LinearHarmonizer):
    """Divide by the 90th percentile inside the brain."""

    card = Card(
        name='robust',
        title='Scaling by the 90th percentile inside the brain',
        paper='Common practice; no single source.',
        memory_gb=1.0,
    )

    def measure(self, scan: Scan) -> tuple[float, float]:
        """Return (0, 90th percentile)."""
        return 0.0, float(np.percentile(check_scan(scan), BRIGHT_PERCENTILE))


class ZScore(LinearHarmonizer):
    """Subtract the mean and divide by the standard deviation inside the brain."""

    card = Card(
        name='zscore',
        title='Z-score inside the brain',
        paper=REINHOLD,
        doi=REINHOLD_DOI,
        licence='MIT',
        memory_gb=1.0,
    )

    def measure(self, scan: Scan) -> tuple[float, float]:
        """Return (mean, standard deviation)."""
        from intensity_normalization import ZScoreNormalizer

        fitted: Any = ZScoreNormalizer().fit(*_images(check_scan(scan)))
        return float(fitted.mean), float(fitted.std)


class TScore(ZScore):
    """Bring the mean inside the brain to 50 and the standard deviation to 10: the z-score in positive units.

    The z-score puts grey matter near 0, where most tools see background. In these units the brain of a magnitude
    image stays positive as long as its mean is less than five standard deviations above 0.
    """

    canonical = (50.0, 10.0)
    card = Card(
        name='tscore',
        title='Mean 50 and standard deviation 10 inside the brain',
        paper='McCall WA. How to Measure in Education. Macmillan, 1922, for the scale; ' + REINHOLD,
        doi=REINHOLD_DOI,
        licence='MIT',
        fidelity='adapted',
        deviations='The z-score of Reinhold et al. in units of mean 50 and standard deviation 10.',
        memory_gb=1.0,
    )


class KDE(LinearHarmonizer):
    """Divide by the intensity at which one tissue's peak of the smoothed histogram lies.

    The peak is that of white matter in T1w (the brightest), of the largest class in T2w and FLAIR, and
    of the darkest class in PDw.
    """

    card = Card(
        name='kde',
        title='Scaling by a tissue peak of the smoothed histogram',
        paper=REINHOLD,
        doi=REINHOLD_DOI,
        contrasts=tuple(MODALITIES),
        fidelity='adapted',
        deviations=(
            'The density is that of 50,000 evenly spaced quantiles instead of all voxels; its bandwidth is 1/80 of '
            'the maximum whatever the units; the peak is refined between the grid points.'
        ),
        licence='MIT',
        memory_gb=1.0,
    )

    #: Upper tail, in percent, that the package cuts off before it looks for a peak of a tissue.
    tail_cut: ClassVar[dict[str, float]] = {'T1w': 96.0, 'PDw': 99.0}

    def measure(self, scan: Scan) -> tuple[float, float]:
        """Return (0, intensity of the peak)."""
        from intensity_normalization import KDENormalizer, Modality

        sample = quantile_sample(check_scan(scan))
        kept = sample[sample <= np.percentile(sample, self.tail_cut.get(scan.contrast, 100.0))]
        # The package multiplies its bandwidth by the standard deviation: in units of that, it is what is meant.
        _positive(float(kept.max()))
        unit = _positive(float(kept.std(ddof=1)))
        fitted: Any = KDENormalizer(Modality(MODALITIES[scan.contrast])).fit(*_images(sample / unit))
        return 0.0, unit * _refine_peak(kept / unit, float(fitted.tissue_mode))


class FCM(LinearHarmonizer):
    """Divide by the mean intensity of white matter."""

    card = Card(
        name='fcm',
        title='Scaling by the white-matter mean',
        paper=REINHOLD,
        doi=REINHOLD_DOI,
        needs_apply=('tissue',),
        fidelity='adapted',
        deviations=(
            'Uses the white-matter probabilities of the scan where it was segmented; otherwise (T1w only) fuzzy '
            'c-means of 50,000 evenly spaced quantiles of the intensities, from a fixed start.'
        ),
        licence='MIT',
        memory_gb=1.0,
    )

    def measure(self, scan: Scan) -> tuple[float, float]:
        """Return (0, mean intensity of white matter)."""
        return 0.0, _tissue_mean(scan, WM, self.card.name)


class WhiteStripe(LinearHarmonizer):
    """Subtract the mean of the normal-appearing white matter and divide by its standard deviation."""

    card = Card(
        name='whitestripe',
        title='Mean and spread of a stripe of white matter',
        paper=(
            'Shinohara RT, Sweeney EM, Goldsmith J, et al. Statistical normalization techniques for magnetic '
            'resonance imaging. NeuroImage: Clinical 6:9-19, 2014.'
        ),
        doi='10.1016/j.nicl.2014.08.008',
        contrasts=tuple(MODALITIES),
        licence='MIT',
    )

    def measure(self, scan: Scan) -> tuple[float, float]:
        """Return mean and standard deviation inside the white stripe."""
        from intensity_normalization import Modality, WhiteStripeNormalizer

        values = check_scan(scan)
        fitted: Any = WhiteStripeNormalizer(modality=Modality(MODALITIES[scan.contrast])).fit(
            *_images(values)
        )
        return float(fitted.mean), float(fitted.std)


class LSQ(LinearHarmonizer):
    """Scale so that the means of CSF, GM and WM come as near as possible to standard ones (least squares).

    The standard of a contrast is (0, target scale, and the standard means of CSF, GM and WM), shape (5,);
    in canonical units the standard CSF is 1.
    """

    card = Card(
        name='lsq',
        title='Least-squares scaling to standard tissue means',
        paper=REINHOLD,
        doi=REINHOLD_DOI,
        needs_fit=('cohort',),
        needs_apply=('tissue',),
        fidelity='adapted',
        deviations=(
            'The standard means are those of all fitting scans rather than of the first. Tissue probabilities of '
            'the scan are used where it was segmented; otherwise (T1w only) fuzzy c-means of 50,000 evenly spaced '
            'quantiles of the intensities, from a fixed start.'
        ),
        licence='MIT',
        memory_gb=1.0,
    )
    standard_size: ClassVar[int] = 5

    def fixed_standard(self) -> Values | None:
        """Return None: the standard tissue means come from a cohort."""
        return None

    def measure(self, scan: Scan) -> tuple[float, float]:
        """Return (0, least-squares scale to the fitted tissue means)."""
        if scan.contrast not in self._standards:
            raise ScanError(
                f'lsq knows no standard tissue means of {scan.contrast}.',
                where=scan.name,
                fix='Fit it first.',
            )
        return self.parameters(self._described(scan), self._standards[scan.contrast])

    def describe(self, scan: Scan) -> Values:
        """Return the mean intensities of CSF, GM and WM, shape (3,)."""
        return np.array([_positive(_tissue_mean(scan, tissue, self.card.name)) for tissue in (CSF, GM, WM)])

    def combine(self, descriptions: Sequence[Values], target: Target) -> Values:
        """Return the standard means (CSF = 1) and the mean scale that the scans have against them."""
        # Only the ratios between tissues matter; unit length keeps a bright scan from outvoting the others.
        ratios = np.mean([means / np.linalg.norm(means) for means in descriptions], axis=0)
        tissue = ratios / ratios[CSF]
        if isinstance(target, Canonical):
            return np.array([0.0, 1.0, *tissue])
        unscaled = np.array([0.0, 1.0, *tissue])
        scale = np.mean([self.parameters(means, unscaled)[1] for means in descriptions])
        return np.array([0.0, scale, *tissue])

    def parameters(self, description: Values, standard: Values) -> tuple[float, float]:
        """Return (0, scale): the scale with the least squared distance to the standard means.

        For the means m of the scan and s of the standard, 1 / scale minimizes ``|m / scale - s|``, which gives
        ``scale = m.m / m.s``.
        """
        means, tissue = description, standard[2:]
        return 0.0, float(means @ means / (means @ tissue))


def quantile_sample(values: Values) -> Values:
    """Return evenly spaced order statistics, both ends included: the same distribution in fewer numbers.

    Parameters
    ----------
    values
        Any number of intensities.

    Returns
    -------
    ndarray
        At most :data:`SAMPLE_SIZE` values, sorted.
    """
    ordered = np.sort(values)
    if ordered.size <= SAMPLE_SIZE:
        return ordered
    return ordered[np.linspace(0, ordered.size - 1, SAMPLE_SIZE).round().astype(np.int64)]


def _images(values: Values) -> tuple[Any, Any]:
    """Return the brain voxels and a mask of ones as the package's images.

    The mask is explicit because the package otherwise takes every positive voxel for brain.
    """
    from intensity_normalization import create_image

    return create_image(values), create_image(np.ones_like(values))


def _refine_peak(values: Values, peak: float) -> float:
    """Return the exact place of a density peak that was found on the package's grid of 80 points."""
    from scipy.optimize import minimize_scalar

    bandwidth = float(values.max()) / 80
    step = (float(values.max()) - float(values.min())) / 79
    # The kernel ends within 6 bandwidths: voxels farther away do not move the peak.
    near = values[np.abs(values - peak) < step + 6 * bandwidth]
    found = minimize_scalar(
        lambda place: -float(np.exp(-0.5 * ((near - place) / bandwidth) ** 2).sum()),
        bounds=(peak - step, peak + step),
        method='bounded',
        options={'xatol': 1e-4 * step},
    )
    return float(found.x)


def _tissue_mean(scan: Scan, tissue: int, method: str) -> float:
    """Return the mean intensity of a tissue, from the segmentation or else (T1w only) by fuzzy c-means.

    Only in T1w does the order of intensities (CSF, GM, WM) tell the tissues apart.
    """
    values = check_scan(scan)
    if scan.tissue is not None:
        weights = np.asarray(scan.tissue)[tissue][np.asarray(scan.mask).astype(bool)].astype(np.float64)
        if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
            raise ScanError(
                'The tissue probabilities miss a tissue, or are negative or not finite.',
                where=scan.name,
                fix='Check the tissue segmentation of this scan.',
            )
        return float(np.average(values, weights=weights))
    if scan.contrast != 'T1w':
        raise ScanError(
            f'{method} needs a tissue segmentation for {scan.contrast}; it can do without only in T1w.',
            where=scan.name,
            fix='Give tissue probabilities, or choose another harmonizer for this contrast.',
        )
    from intensity_normalization import FCMNormalizer, TissueType

    sample = quantile_sample(values)
    kind = {CSF: TissueType.CSF, GM: TissueType.GM, WM: TissueType.WM}[tissue]
    with _fixed_start():
        fitted = FCMNormalizer(tissue_type=kind).fit(*_images(sample))
    return float(np.average(sample, weights=fitted.tissue_membership))


def _positive(scale: float) -> float:
    if not scale > 0:
        raise ValueError(f'the scale is {scale:g}, not above 0')
    return scale


@contextlib.contextmanager
def _fixed_start() -> Iterator[None]:
    """Start the package's fuzzy c-means, which draws from NumPy's global generator, always alike."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(before)
