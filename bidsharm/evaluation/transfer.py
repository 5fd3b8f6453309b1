"""Whether tissue looks the same from every site: a classifier fixed on one site's scans, used on another's.

The classifier sees nothing but the intensity of a voxel, so nothing but intensities can carry over or fail to: it
knows no anatomy that could make up for a contrast that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import UsageError
from bidsharm.evaluation.metrics import dice
from bidsharm.imaging.segmentation import DSEG_LABELS, TISSUES

Floats = NDArray[np.float64]

NAN = float('nan')
#: Bins of a histogram, and the quantiles of the training values that they span.
BINS, SPAN = 256, (0.001, 0.999)
#: Width of the smoothing of a histogram, in bins; and of a second, faint one that fills bins without training voxels.
SMOOTH, FILL, FILL_SHARE = 2.0, 24.0, 1e-3
#: A tissue with fewer training voxels than this has no histogram.
LEAST_VOXELS = 50


class Head(NamedTuple):
    """One harmonized scan with the truth.

    Parameters
    ----------
    subject
        Whose it is.
    values
        Harmonized intensities of the brain, shape (N,).
    labels
        True tissues of the same voxels, shape (N,): 1 GM, 2 WM, 3 CSF, and 0 for voxels that do not count.
    scan
        Name of the scan, to tell several of one person apart.
    """

    subject: str
    values: NDArray
    labels: NDArray
    scan: str = ''


@dataclass(frozen=True)
class Transfer:
    """What a classifier of one site finds in a scan of another.

    Parameters
    ----------
    subject
        Whose scan it is.
    dice
        Dice of ``csf``, ``gm`` and ``wm`` with the truth, each in [0, 1].
    mean_dice
        Their mean.
    gm_fraction, true_gm_fraction
        Share of grey matter in the brain, as found and as it is. Over subjects they should correlate: see
        :func:`~bidsharm.evaluation.travelling.between_subjects`.
    reason
        Why something is NaN; empty when nothing is.
    scan
        Name of the scan, as given.
    """

    subject: str
    dice: dict[str, float]
    mean_dice: float
    gm_fraction: float
    true_gm_fraction: float
    reason: str = ''
    scan: str = ''


@dataclass(frozen=True)
class IntensityClassifier:
    """Which tissue an intensity is.

    Parameters
    ----------
    low, high
        Ends of the bins, in the unit of the intensities.
    labels
        Label of the likeliest tissue in each bin, shape (256,).
    """

    low: float
    high: float
    labels: NDArray[np.uint8]

    @classmethod
    def fit(cls, heads: Sequence[Head]) -> IntensityClassifier:
        """Return the classifier that the scans of one site teach.

        Bayes' rule on histograms of 256 bins, one a tissue, smoothed by a Gaussian of 2 bins; bins that no training
        voxel fell near go to the tissue whose wider surroundings are fullest. It needs neither Gaussian tissues nor
        an order of them, and every voxel enters, so nothing is drawn at random.

        All tissues have the same prior, whatever their shares in the training scans: those shares are the anatomy
        of the training site's people, and with them as prior the classifier would push the grey matter of everybody
        towards theirs, which is the very quantity that is looked at.

        Parameters
        ----------
        heads
            One or more scans; each weighs the same, however many voxels it has.

        Raises
        ------
        UsageError
            If there are no scans, sizes do not match, values are not finite or all equal, or a tissue has fewer than
            50 voxels.
        """
        if not heads:
            raise UsageError('There is no scan to train the classifier on.')
        parts = [_checked(head) for head in heads]
        low, high = np.quantile(np.concatenate([values for values, _ in parts]), SPAN)
        if not high > low:
            raise UsageError('The intensities of the training scans are all equal.')
        wanted = [DSEG_LABELS[name] for name in TISSUES]
        likelihood = np.zeros((len(wanted), BINS))
        for values, labels in parts:
            index = _bins(values, low, high)
            counts = np.array([np.bincount(index[labels == label], minlength=BINS) for label in wanted])
            totals = counts.sum(axis=1, keepdims=True)
            likelihood += counts / np.maximum(totals, 1)
        least = min(sum(np.count_nonzero(labels == label) for _, labels in parts) for label in wanted)
        if least < LEAST_VOXELS:
            raise UsageError(f'A tissue has {least} training voxels, and {LEAST_VOXELS} are needed.')
        likelihood /= likelihood.sum(axis=1, keepdims=True)
        near, far = (ndimage.gaussian_filter1d(likelihood, width, mode='nearest') for width in (SMOOTH, FILL))
        best = np.argmax(near + FILL_SHARE * far, axis=0)
        return cls(float(low), float(high), np.array(wanted, dtype=np.uint8)[best])

    def __call__(self, values: NDArray) -> NDArray[np.uint8]:
        """Return the label of each intensity, same shape; those beyond the bins count as at their ends."""
        return self.labels[_bins(np.asarray(values, dtype=np.float64), self.low, self.high)]


def transfer(classifier: IntensityClassifier, head: Head) -> Transfer:
    """Return how well a classifier finds the tissues of a scan.

    Parameters
    ----------
    classifier
        From another site's scans, by :meth:`IntensityClassifier.fit`.
    head
        The scan and its truth.

    Returns
    -------
    Transfer
        NaN, with the reason, for a scan without voxels; the Dice of a tissue in neither is NaN and not in the mean.

    Raises
    ------
    UsageError
        If sizes do not match or values are not finite.
    """
    values, labels = _checked(head)
    if not values.size:
        nothing = {name.lower(): NAN for name in TISSUES}
        return Transfer(head.subject, nothing, NAN, NAN, NAN, 'there are no voxels', head.scan)
    found = classifier(values)
    overlap = {name: float(score) for name, score in dice(found, labels).items()}
    missing = [name for name, score in overlap.items() if np.isnan(score)]
    return Transfer(
        head.subject,
        overlap,
        mean_dice=float(np.mean([overlap[name] for name in overlap if name not in missing])),
        gm_fraction=float(np.mean(found == DSEG_LABELS['GM'])),
        true_gm_fraction=float(np.mean(labels == DSEG_LABELS['GM'])),
        reason=f'no {", ".join(missing)} in either' if missing else '',
        scan=head.scan,
    )


def cross_site_transfer(sites: Mapping[str, Sequence[Head]]) -> dict[tuple[str, str], list[Transfer]]:
    """Return how well the classifier of each site finds the tissues of every other site's scans.

    Parameters
    ----------
    sites
        Harmonized scans by site.

    Returns
    -------
    dict
        By training and test site, one :class:`Transfer` a test scan, in the order given. A person who was at both
        sites is taken out of the training, so no one is recognized; a scan for which nobody is left to train on is
        left out.

    Raises
    ------
    UsageError
        As for :meth:`IntensityClassifier.fit`.
    """
    found: dict[tuple[str, str], list[Transfer]] = {}
    for source, known in sites.items():
        everybody = {head.subject for head in known}
        fitted: dict[str | None, IntensityClassifier] = {}
        for target in sites:
            if target == source:
                continue
            found[source, target] = []
            for head in sites[target]:
                absent = head.subject if head.subject in everybody else None
                others = [other for other in known if other.subject != absent]
                if not others:
                    continue
                if absent not in fitted:
                    fitted[absent] = IntensityClassifier.fit(others)
                found[source, target].append(transfer(fitted[absent], head))
    return found


def _bins(values: Floats, low: float, high: float) -> NDArray[np.int64]:
    place = np.floor((values - low) * (BINS / (high - low)))
    return np.clip(place, 0, BINS - 1).astype(np.int64)


def _checked(head: Head) -> tuple[Floats, NDArray[np.int64]]:
    """Return values and labels of the voxels that count."""
    values, labels = np.asarray(head.values, dtype=np.float64), np.asarray(head.labels)
    if values.ndim != 1 or values.shape != labels.shape:
        raise UsageError(
            f'Values of shape {values.shape} and labels of shape {labels.shape} do not match.',
            where=head.subject,
            fix='Give the values and labels of the voxels of the brain.',
        )
    used = np.isin(labels, list(DSEG_LABELS.values()))
    values, labels = values[used], labels[used].astype(np.int64)
    if not np.isfinite(values).all():
        raise UsageError('Values of the brain are not finite.', where=head.subject)
    return values, labels
