"""CSF, GM and WM from one contrast: a mixture of Gaussians under an atlas prior, with neighbours that agree.

The model is that of Ashburner and Friston (2005, doi:10.1016/j.neuroimage.2005.02.018) without its warps: the
probability of a voxel's intensity is a mixture of Gaussians whose weights are the atlas's probabilities at that
voxel. Every class may have several Gaussians, because CSF with its partial volume is not one. A mean-field Potts
term (Zhang et al. 2001, doi:10.1109/42.906424) smooths the result. Nothing assumes which tissue is bright, so T1w,
T2w, FLAIR and PDw are treated alike, and a linear change of intensities leaves the result as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.imaging.grids import Affine, Floats, bounding_box, voxel_sizes

#: Order of tissues in every 4-D array of this package.
TISSUES = ('CSF', 'GM', 'WM')
#: Value of each tissue in a dseg image (BIDS common labels).
DSEG_LABELS = {'GM': 1, 'WM': 2, 'CSF': 3}


@dataclass(frozen=True)
class Segmentation:
    """Result of :func:`segment`.

    Parameters
    ----------
    probability
        CSF, GM, WM; shape (3, X, Y, Z), float32, sums to 1 inside the mask and to 0 outside.
    means
        Mean intensity of each tissue.
    iterations
        How many EM steps were taken.
    """

    probability: Floats
    means: tuple[float, float, float]
    iterations: int

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Hard labels: 0 background, 1 GM, 2 WM, 3 CSF."""
        return hard_labels(self.probability)


def hard_labels(probability: NDArray) -> NDArray[np.uint8]:
    """Return the most probable tissue per voxel as dseg labels (0 where all are 0)."""
    lookup = np.array([DSEG_LABELS[name] for name in TISSUES], dtype=np.uint8)
    labels = lookup[np.argmax(probability, axis=0)]
    return np.where(probability.sum(axis=0) > 0, labels, np.uint8(0)).astype(np.uint8)


def segment(
    data: NDArray,
    mask: NDArray[np.bool_],
    prior: NDArray,
    affine: Affine,
    *,
    smoothness: float = 0.25,
    max_iterations: int = 40,
    tolerance: float = 1e-4,
) -> Segmentation:
    """Segment one scan into CSF, GM and WM.

    Parameters
    ----------
    data
        Bias-corrected intensities (X, Y, Z).
    mask
        Brain mask.
    prior
        Probabilities of CSF, GM and WM on the same grid, shape (3, X, Y, Z).
    affine
        Voxel to world; neighbours further apart count less.
    smoothness
        Weight of the neighbours.
    max_iterations, tolerance
        EM stops when no mean moves by more than ``tolerance`` of the intensity range.

    Returns
    -------
    Segmentation
    """
    box = bounding_box(mask)
    inside = mask[box]
    values = np.asarray(data[box][inside], dtype=np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    span = max(high - low, np.finfo(float).tiny)
    values = np.clip((values - low) / span, -0.2, 1.2)
    weights = _prior_weights(np.stack([p[box][inside] for p in prior]))
    mixture, steps = _fit(values, weights, max_iterations, tolerance)
    unary = weights * mixture.likelihood(values)
    posterior = _smooth(unary / (unary.sum(axis=0) + 1e-30), unary, inside, affine, smoothness)
    probability = np.zeros((3, *mask.shape), dtype=np.float32)
    for index in range(3):
        view = probability[index][box]
        view[inside] = posterior[index]
    means = mixture.tissue_means * span + low
    return Segmentation(probability, (float(means[0]), float(means[1]), float(means[2])), steps)


def _prior_weights(prior: NDArray, floor: float = 0.02) -> NDArray[np.float64]:
    """Normalize the atlas; a floor lets intensities overrule it where anatomy and atlas disagree."""
    weights = np.clip(prior, 0, 1).astype(np.float64) + floor
    return weights / weights.sum(axis=0)


@dataclass
class _Mixture:
    """Gaussians of all tissues: two for CSF (pure, and mixed with GM), one for GM, one for WM."""

    owner: NDArray[np.int64]
    share: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    @property
    def tissue_means(self) -> NDArray[np.float64]:
        total = np.array([self.share[self.owner == k].sum() for k in range(3)])
        return np.array([(self.share * self.mean)[self.owner == k].sum() for k in range(3)]) / total

    def density(self, values: NDArray) -> NDArray[np.float64]:
        scaled = (values - self.mean[:, None]) ** 2 / self.variance[:, None]
        return self.share[:, None] * np.exp(-0.5 * scaled) / np.sqrt(2 * np.pi * self.variance[:, None])

    def likelihood(self, values: NDArray) -> NDArray[np.float64]:
        parts = self.density(values)
        return np.stack([parts[self.owner == k].sum(axis=0) for k in range(3)]) + 1e-12


def _fit(values: NDArray, weights: NDArray, max_iterations: int, tolerance: float) -> tuple[_Mixture, int]:
    """Fit the mixture on a regular sample of the voxels (EM)."""
    step = max(values.size // 200_000, 1)
    values, weights = values[::step], weights[:, ::step]
    mixture = _start(values, weights)
    for iteration in range(1, max_iterations + 1):  # noqa: B007 - it is the second result
        parts = mixture.density(values) * weights[mixture.owner]
        parts /= parts.sum(axis=0) + 1e-30
        mass = parts.sum(axis=1) + 1e-9
        mean = (parts @ values) / mass
        variance = np.maximum((parts * (values - mean[:, None]) ** 2).sum(axis=1) / mass, 4e-4)
        total = np.array([mass[mixture.owner == k].sum() for k in range(3)])
        moved = np.abs(mean - mixture.mean).max()
        mixture = _Mixture(mixture.owner, mass / total[mixture.owner], mean, variance)
        if moved < tolerance:
            break
    return mixture, iteration


def _start(values: NDArray, weights: NDArray) -> _Mixture:
    """Start from the median intensity where the atlas is sure of a tissue."""
    medians, spreads = [], []
    for tissue in weights:
        sure = tissue >= np.quantile(tissue, 0.9)
        medians.append(np.median(values[sure]))
        spreads.append(max(float(np.std(values[sure])), 0.05))
    # CSF gets a second Gaussian half-way to GM: sulci hold little pure fluid at 1 mm.
    owner = np.array([0, 0, 1, 2])
    mean = np.array([medians[0], 0.5 * (medians[0] + medians[1]), medians[1], medians[2]])
    deviation = np.array([spreads[0], spreads[0], 0.07, 0.05])
    return _Mixture(owner, np.array([0.5, 0.5, 1.0, 1.0]), mean, deviation**2)


def _smooth(
    posterior: NDArray,
    unary: NDArray,
    inside: NDArray[np.bool_],
    affine: Affine,
    smoothness: float,
    passes: int = 2,
) -> NDArray[np.float32]:
    """Let neighbours agree: mean-field steps of a Potts model whose weights fall with distance."""
    sizes = voxel_sizes(affine)
    sigma = 0.7 * sizes.min() / sizes
    result = posterior
    for _ in range(passes):
        support = np.empty_like(result, dtype=np.float32)
        for index in range(3):
            volume = np.zeros(inside.shape, dtype=np.float32)
            volume[inside] = result[index]
            support[index] = ndimage.gaussian_filter(volume, sigma, truncate=2)[inside]
        result = unary * np.exp(6 * smoothness * support)
        result /= result.sum(axis=0) + 1e-30
    return result.astype(np.float32)
