"""Methods that map the whole histogram: strictly increasing and piecewise linear in intensity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from bidsharm.harmonizers.contract import Canonical, Card, Scan, Target
from bidsharm.harmonizers.standard import PERCENTILES, StandardHarmonizer, Values, check_scan

#: Quantile levels of histogram matching, in percent; the outermost voxels are outliers and follow by extrapolation.
LEVELS = np.linspace(0.1, 99.9, 500)

#: Least slope of a map, as a part of its mean slope: what differs before must differ after.
LEAST_SLOPE = 1e-3


class Nyul(StandardHarmonizer):
    """Bring eleven percentiles to a standard scale, linearly in between.

    The canonical scale runs from 1 (1st percentile) to 100 (99th percentile); the scale of a site or of a
    reference is in the mean units of its scans.
    """

    card = Card(
        name='nyul',
        title='Piecewise linear map to a standard histogram',
        paper=(
            'Nyul LG, Udupa JK, Zhang X. New variants of a method of MRI scale standardization. '
            'IEEE Trans Med Imaging 19(2):143-150, 2000.'
        ),
        doi='10.1109/42.836373',
        needs_fit=('cohort',),
        deviations=(
            'Landmarks that coincide are merged and no part of the map is flat, so that it stays strictly increasing.'
        ),
        licence='MIT',
        memory_gb=1.0,
    )
    standard_size: ClassVar[int] = 11

    def describe(self, scan: Scan) -> Values:
        """Return the 0, 1, ..., 100 % quantiles, shape (101,)."""
        quantiles = np.asarray(np.percentile(check_scan(scan), PERCENTILES), np.float64)
        _require_spread(_landmarks(quantiles))
        return quantiles

    def combine(self, descriptions: Sequence[Values], target: Target) -> Values:
        """Return the standard scale: the mean landmarks, after mapping each scan's ends to the same values."""
        from intensity_normalization import NyulNormalizer, create_image

        # The 101 quantiles have the same landmarks as the image that they come from.
        images = [create_image(quantiles) for quantiles in descriptions]
        masks = [create_image(np.ones_like(quantiles)) for quantiles in descriptions]
        normalizer = NyulNormalizer()
        scale = np.asarray(normalizer.fit_population(images, masks).standard_scale, np.float64)
        if isinstance(target, Canonical):
            return scale
        low, high = np.mean([_landmarks(quantiles)[[0, -1]] for quantiles in descriptions], axis=0)
        place = (scale - normalizer.output_min_value) / (
            normalizer.output_max_value - normalizer.output_min_value
        )
        return low + place * (high - low)

    def apply(self, values: Values, description: Values, standard: Values) -> Values:
        """Map the landmarks of the scan to the standard scale."""
        return increasing_map(values, _landmarks(description), standard)

    def report(self, description: Values, standard: Values) -> dict[str, Any]:
        """Return the landmarks before and after."""
        return {'landmarks': _landmarks(description).tolist(), 'standard_scale': standard.tolist()}


class HistogramMatching(StandardHarmonizer):
    """Map quantiles to the mean quantile function of the fitting scans.

    The mean quantile function is the Wasserstein barycentre of the scans' intensity distributions, after
    each was divided by its 90th percentile. Canonical units have that percentile at 1; those of a site or of
    a reference are the mean units of its scans.
    """

    card = Card(
        name='histogram',
        title='Histogram matching to the mean distribution of a cohort',
        paper=(
            'Agueh M, Carlier G. Barycenters in the Wasserstein space. SIAM J Math Anal 43(2):904-924, 2011 '
            '(the mean of distributions); histogram matching itself is textbook image processing.'
        ),
        doi='10.1137/100805741',
        needs_fit=('cohort',),
        fidelity='adapted',
        deviations=(
            'The map is piecewise linear between 500 quantiles from 0.1 to 99.9 %, linear beyond them and nowhere flat.'
        ),
        memory_gb=1.0,
    )
    standard_size: ClassVar[int] = LEVELS.size

    def describe(self, scan: Scan) -> Values:
        """Return the quantiles at :data:`LEVELS`, shape (500,)."""
        quantiles = np.asarray(np.percentile(check_scan(scan), LEVELS), np.float64)
        _require_spread(quantiles)
        if not _bright(quantiles) > 0:
            raise ValueError('the 90th percentile is not above 0')
        return quantiles

    def combine(self, descriptions: Sequence[Values], target: Target) -> Values:
        """Return the mean quantile function."""
        mean = np.mean([quantiles / _bright(quantiles) for quantiles in descriptions], axis=0)
        if isinstance(target, Canonical):
            return mean
        return mean * np.mean([_bright(quantiles) for quantiles in descriptions])

    def apply(self, values: Values, description: Values, standard: Values) -> Values:
        """Map the quantiles of the scan to the standard ones."""
        return increasing_map(values, description, standard)

    def report(self, description: Values, standard: Values) -> dict[str, Any]:
        """Return the 90th percentile before and after."""
        return {'p90': _bright(description), 'target_p90': _bright(standard)}


def increasing_map(values: Values, source: Values, target: Values) -> Values:
    """Map intensities so that ``source`` goes to ``target``: strictly increasing, linear between the nodes.

    Beyond the nodes the map goes on with the mean slope of the outer tenth of them, so that a narrow last
    segment decides nothing alone. Nodes that coincide in the source are merged.

    Parameters
    ----------
    values
        Intensities, shape (n,).
    source, target
        Nodes, shape (k,), increasing but perhaps with ties.

    Returns
    -------
    ndarray
        Mapped intensities, shape (n,).

    Raises
    ------
    ValueError
        If the source or the target has no spread.
    """
    _require_spread(source)
    _require_spread(target)
    nodes, index = np.unique(source, return_inverse=True)
    images = np.bincount(index, weights=target) / np.bincount(index)
    slope = (images[-1] - images[0]) / (nodes[-1] - nodes[0])
    rises = np.maximum(np.diff(images), LEAST_SLOPE * slope * np.diff(nodes))
    images = images[0] + np.concatenate([[0.0], np.cumsum(rises)])
    outer = max(1, nodes.size // 10)
    low = (images[outer] - images[0]) / (nodes[outer] - nodes[0])
    high = (images[-1] - images[-1 - outer]) / (nodes[-1] - nodes[-1 - outer])
    mapped = np.interp(values, nodes, images)
    mapped += low * np.minimum(values - nodes[0], 0) + high * np.maximum(values - nodes[-1], 0)
    return mapped


def _require_spread(quantiles: Values) -> None:
    if not quantiles[-1] > quantiles[0]:
        raise ValueError('nearly all voxels have the same intensity')


def _landmarks(quantiles: Values) -> Values:
    """Return the package's landmarks (1, 10, 20, ..., 90, 99 %) out of the 101 quantiles."""
    from intensity_normalization import NyulNormalizer

    return quantiles[np.round(NyulNormalizer().percentiles).astype(np.int64)]


def _bright(quantiles: Values) -> float:
    from bidsharm.harmonizers.linear import BRIGHT_PERCENTILE

    return float(np.interp(BRIGHT_PERCENTILE, LEVELS, quantiles))
