"""How well segmentations agree, in overlap and in millimetres, and whether lesions survive.

Compare the segmentations that one method made of an image before and after harmonization, or of the scans of one
person from two scanners. Whatever cannot be computed, most often because a structure is in neither segmentation, is
NaN in the result, with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

from bidsharm.errors import UsageError
from bidsharm.evaluation.metrics import Mask, Spacing, relative_volume_difference
from bidsharm.imaging.grids import bounding_box
from bidsharm.imaging.segmentation import DSEG_LABELS

Floats = NDArray[np.float64]

NAN = float('nan')
#: Lesions smaller than this many voxels are not counted as lesions (Commowick et al. 2018 use 3 mm^3).
LEAST_LESION_VOXELS = 3
#: Gap between a lesion and its surroundings, for partial volume, and width of the surroundings, in mm.
LESION_GAP, LESION_SURROUNDINGS = 1.0, 5.0
#: Fewer voxels of surroundings than this say nothing.
LEAST_SURROUNDINGS = 20
#: Voxels that touch by a corner belong to one lesion.
_CORNERS = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Overlap:
    r"""Agreement of two masks :math:`A` and :math:`B`.

    Parameters
    ----------
    volume_a, volume_b
        Volumes in ml.
    dice
        :math:`2 |A \cap B| / (|A| + |B|)`, in [0, 1].
    jaccard
        :math:`|A \cap B| / |A \cup B| = D / (2 - D)`, in [0, 1].
    ravd
        :math:`|V_a - V_b| / V_b`: relative to the second mask.
    hausdorff, hausdorff95
        Largest, and larger of the two directed 95 %, distance from the surface of one to the nearest surface of the
        other, mm.
    surface_distance
        Average symmetric surface distance, mm: the mean over the surface voxels of both.
    reason
        Why something is NaN; empty when nothing is.
    """

    volume_a: float
    volume_b: float
    dice: float = NAN
    jaccard: float = NAN
    ravd: float = NAN
    hausdorff: float = NAN
    hausdorff95: float = NAN
    surface_distance: float = NAN
    reason: str = ''


@dataclass(frozen=True)
class LesionContrast:
    r"""How far lesions stand out from what surrounds them, in standard deviations of the surroundings.

    Parameters
    ----------
    lesion_voxels, surrounding_voxels
        Voxels used.
    before, after
        :math:`C = (\mu_{lesion} - \mu_{around}) / \sigma_{around}`, signed: positive for bright lesions. A linear map
        with a positive gain leaves it unchanged; smoothing raises it, so read it next to
        :func:`~bidsharm.evaluation.similarity.gradient_ncc`.
    kept
        ``after / before``: 1 when the contrast is kept, 0 when the lesions are gone, negative when their sign has
        turned (which a harmonization to another contrast may do rightly).
    reason
        Why something is NaN; empty when nothing is.
    """

    lesion_voxels: int
    surrounding_voxels: int
    before: float = NAN
    after: float = NAN
    kept: float = NAN
    reason: str = ''


@dataclass(frozen=True)
class Detection:
    """Which lesions are found.

    Parameters
    ----------
    true, found
        Numbers of lesions in the truth and in the segmentation.
    detected
        True lesions of which enough is found.
    false
        Found lesions that share no voxel with the truth: false structures.
    sensitivity
        ``detected / true`` (LTPR), in [0, 1].
    false_rate
        ``false / found`` (LFPR), in [0, 1].
    f1
        Harmonic mean of the sensitivity and ``1 - false_rate``, in [0, 1].
    overlap
        Of all lesion voxels together, the segmentation first and the truth second, so ``overlap.ravd`` is relative
        to the true load.
    reason
        Why something is NaN; empty when nothing is.
    """

    true: int
    found: int
    detected: int
    false: int
    overlap: Overlap
    sensitivity: float = NAN
    false_rate: float = NAN
    f1: float = NAN
    reason: str = ''


def jaccard(a: NDArray, b: NDArray) -> float:
    r"""Return the Jaccard index :math:`|A \cap B| / |A \cup B|` of two masks.

    Parameters
    ----------
    a, b
        Masks, same shape.

    Returns
    -------
    float
        In [0, 1]; NaN when both are empty.

    Raises
    ------
    UsageError
        If the shapes differ.
    """
    first, second = _masks(a, b)
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else NAN


def surface_distances(a: NDArray, b: NDArray, spacing: Spacing) -> tuple[Floats, Floats]:
    """Return how far each surface voxel of one mask is from the surface of the other.

    A surface voxel is a voxel of the mask with a face to the outside; the edge of the image counts as outside.
    Distances are between the centres of voxels, exact for voxels of any sides.

    Parameters
    ----------
    a, b
        Masks, shape (X, Y, Z).
    spacing
        Voxel size in mm.

    Returns
    -------
    a_to_b, b_to_a
        Distances in mm, shapes (N,) and (M,) for the surface voxels of each, in C order; both empty when one of the
        masks is.

    Raises
    ------
    UsageError
        If the shapes differ or a voxel size is not above 0.
    """
    first, second = _masks(a, b)
    _check_spacing(spacing, first.ndim)
    if not (first.any() and second.any()):
        return np.empty(0), np.empty(0)
    box = ndimage.find_objects((first | second).astype(np.uint8))[0]
    one, other = (part[box] & ~ndimage.binary_erosion(part[box]) for part in (first, second))
    return _distances(one, other, spacing), _distances(other, one, spacing)


def _distances(one: Mask, other: Mask, spacing: Spacing) -> Floats:
    """Return how far each voxel of one surface is from the other; most lie on both, which costs nothing."""
    apart = np.argwhere(one & ~other)
    away = np.zeros(one.shape)
    if apart.size:
        tree = spatial.KDTree(np.argwhere(other) * spacing)
        away[tuple(apart.T)] = tree.query(apart * spacing)[0]
    return away[one]


def overlap(a: NDArray, b: NDArray, spacing: Spacing) -> Overlap:
    r"""Return the overlap of two masks and the distances between their surfaces.

    The 95 % Hausdorff distance is :math:`\max(q_{95}\{d(s, S_b)\}_{s \in S_a}, q_{95}\{d(s, S_a)\}_{s \in S_b})`, the
    larger of the two directed ones, as Metrics Reloaded has it (Maier-Hein et al. 2024,
    doi:10.1038/s41592-023-02151-z); some tools pool both directions instead.

    Parameters
    ----------
    a, b
        Masks, shape (X, Y, Z); for ``ravd`` the second is the original one.
    spacing
        Voxel size in mm.

    Returns
    -------
    Overlap
        Of two empty masks everything but the volumes is NaN. Of one empty mask Dice and Jaccard are 0 and distances
        NaN: an infinite one would swallow every mean of a table.

    Raises
    ------
    UsageError
        If the shapes differ or a voxel size is not above 0.
    """
    first, second = _masks(a, b)
    _check_spacing(spacing, first.ndim)
    sizes = np.count_nonzero(first), np.count_nonzero(second)
    volume_a, volume_b = (float(size * np.prod(spacing) / 1000) for size in sizes)
    base = Overlap(volume_a, volume_b, ravd=relative_volume_difference(volume_a, volume_b))
    if not any(sizes):
        return replace(base, reason='both masks are empty')
    index = jaccard(first, second)
    base = replace(base, jaccard=index, dice=2 * index / (1 + index))
    if index == 1:  # equal masks are common (linear methods), and distances are slow
        return replace(base, hausdorff=0.0, hausdorff95=0.0, surface_distance=0.0)
    there, back = surface_distances(first, second, spacing)
    if not there.size:
        return replace(base, reason=f'the {"second" if sizes[0] else "first"} mask is empty')
    return replace(
        base,
        hausdorff=float(max(there.max(), back.max())),
        hausdorff95=float(max(np.quantile(there, 0.95), np.quantile(back, 0.95))),
        surface_distance=float((there.sum() + back.sum()) / (there.size + back.size)),
    )


def overlap_by_label(
    a: NDArray, b: NDArray, spacing: Spacing, labels: Mapping[str, int] | None = None
) -> dict[str, Overlap]:
    """Return the overlap of each structure of two label images.

    Parameters
    ----------
    a, b
        Labels, shape (X, Y, Z), from the same segmentation method; for ``ravd`` the second is the original one.
    spacing
        Voxel size in mm.
    labels
        Label of each structure by name; by default the tissues of a dseg image, as ``csf``, ``gm`` and ``wm``.

    Returns
    -------
    dict
        :class:`Overlap` by name; a structure in neither image is there too, as NaN with a reason.

    Raises
    ------
    UsageError
        If the shapes differ or a voxel size is not above 0.
    """
    names = labels or {name.lower(): value for name, value in sorted(DSEG_LABELS.items())}
    return {name: overlap(a == value, b == value, spacing) for name, value in names.items()}


def relative_volume_differences(
    harmonized: Mapping[str, float], original: Mapping[str, float]
) -> dict[str, float]:
    r"""Return :math:`rAVD = |V_h - V_o| / V_o` of each structure.

    Parameters
    ----------
    harmonized, original
        Volume by structure, same unit, from the same segmentation method.

    Returns
    -------
    dict
        rAVD by structure, in the order of the original and then of what is only in the harmonized; NaN where a
        structure is missing on one side or its original volume is 0.
    """
    names = [*original, *(name for name in harmonized if name not in original)]
    return {
        name: relative_volume_difference(harmonized.get(name, NAN), original.get(name, NAN)) for name in names
    }


def lesion_contrast(
    before: NDArray,
    after: NDArray,
    lesion: NDArray,
    mask: NDArray,
    spacing: Spacing,
    *,
    gap: float = LESION_GAP,
    width: float = LESION_SURROUNDINGS,
) -> LesionContrast:
    """Return the contrast of lesions to their surroundings before and after harmonization.

    The surroundings are the voxels of the mask that touch no lesion, not even by a corner, and whose distance from
    the nearest one is above ``gap`` and at most ``gap + width``.

    Parameters
    ----------
    before, after
        Intensities, shape (X, Y, Z), each in its own units.
    lesion
        Lesion mask, same shape: one mask for both images.
    mask
        Where surroundings may lie, same shape: white matter, best, since CSF beside a lesion adds to the spread.
    spacing
        Voxel size in mm.
    gap, width
        In mm.

    Returns
    -------
    LesionContrast
        NaN without lesions, with fewer than 20 voxels of surroundings, or where these do not vary.

    Raises
    ------
    UsageError
        If the shapes differ or a voxel size is not above 0.
    """
    ill, allowed = _masks(lesion, mask)
    _same_shape(before, after, ill)
    _check_spacing(spacing, ill.ndim)
    if not ill.any():
        return LesionContrast(0, 0, reason='there is no lesion')
    box = bounding_box(ill, math.ceil((gap + width) / min(spacing)) + 1)
    before, after, ill, allowed = (part[box] for part in (before, after, ill, allowed))
    away = ndimage.distance_transform_edt(~ill, sampling=spacing)
    # A gap narrower than a voxel would leave the voxels that the lesion fills in part among the surroundings.
    touching = ndimage.binary_dilation(ill, _CORNERS)
    around = allowed & ~touching & (away > gap) & (away <= gap + width)
    base = LesionContrast(int(np.count_nonzero(ill)), int(np.count_nonzero(around)))
    if base.surrounding_voxels < LEAST_SURROUNDINGS:
        return replace(base, reason=f'{base.surrounding_voxels} voxels of surroundings are too few')
    first, second = (_contrast(data, ill, around) for data in (before, after))
    kept = second / first if np.isfinite([first, second]).all() and first != 0 else NAN
    reasons = {
        'the surroundings do not vary or are not finite': np.isnan(first) or np.isnan(second),
        'there was no contrast before': first == 0,
    }
    return replace(
        base,
        before=first,
        after=second,
        kept=kept,
        reason='; '.join(text for text, applies in reasons.items() if applies),
    )


def lesion_detection(
    found: NDArray,
    truth: NDArray,
    spacing: Spacing,
    *,
    least_share: float = 0.1,
    least_voxels: int = LEAST_LESION_VOXELS,
) -> Detection:
    """Return which lesions a segmentation finds, and how many it makes up.

    A lesion is a set of voxels that touch by a face, edge or corner. A true one is detected when at least
    ``least_share`` of it is found (Commowick et al. 2018, doi:10.1038/s41598-018-31911-7, in its simplest form); a found
    one that shares no voxel with the truth is false. Run it on segmentations of the scan before and after
    harmonization, with lesions inserted by simulation where no truth is known.

    Parameters
    ----------
    found, truth
        Lesion masks, shape (X, Y, Z).
    spacing
        Voxel size in mm.
    least_share
        Share of a true lesion that must be found, in (0, 1].
    least_voxels
        Smaller lesions are not counted, in neither mask; they do count in ``overlap``.

    Returns
    -------
    Detection
        Sensitivity is NaN without true lesions and the false rate without found ones; F1 is then 0 where one of both
        has lesions, and NaN where neither has.

    Raises
    ------
    UsageError
        If the shapes differ, or the share or a voxel size is out of range.
    """
    segmented, real = _masks(found, truth)
    if not 0 < least_share <= 1:
        raise UsageError(f'The share {least_share} is not above 0 and up to 1.')
    hits = _shares(real, segmented, least_voxels) >= least_share
    right = _shares(segmented, real, least_voxels) > 0
    base = Detection(
        hits.size,
        right.size,
        int(hits.sum()),
        int(np.count_nonzero(~right)),
        overlap(segmented, real, spacing),
    )
    if not (hits.size or right.size):
        return replace(base, reason='there are no lesions in either mask')
    sensitivity, precision = (float(part.mean()) if part.size else NAN for part in (hits, right))
    if np.isnan([sensitivity, precision]).any():
        missing = 'true lesions' if np.isnan(sensitivity) else 'found ones'
        f1, reason = 0.0, f'there are no {missing}'
    else:
        total = sensitivity + precision
        f1, reason = (2 * sensitivity * precision / total if total > 0 else 0.0), ''
    return replace(base, sensitivity=sensitivity, false_rate=1 - precision, f1=f1, reason=reason)


def _contrast(data: NDArray, inside: Mask, around: Mask) -> float:
    """Return the difference of the means over the spread around; NaN where that vanishes up to rounding."""
    lesion, other = (np.asarray(data[where], dtype=np.float64) for where in (inside, around))
    if not (np.isfinite(lesion).all() and np.isfinite(other).all()):
        return NAN
    spread = float(other.std())
    least = 1e-7 * float(np.abs(other).max())
    return float(lesion.mean() - other.mean()) / spread if spread > least else NAN


def _shares(lesions: Mask, other: Mask, least_voxels: int) -> Floats:
    """Return the share of each lesion that is in the other mask, for lesions that are large enough."""
    index, _ = ndimage.label(lesions, structure=_CORNERS)
    sizes = np.bincount(index[lesions])
    covered = np.bincount(index[lesions & other], minlength=sizes.size)
    used = sizes >= max(least_voxels, 1)
    return covered[used] / sizes[used]


def _masks(a: NDArray, b: NDArray) -> tuple[Mask, Mask]:
    _same_shape(a, b)
    return np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)


def _same_shape(*arrays: NDArray) -> None:
    if len({np.shape(array) for array in arrays}) > 1:
        shapes = ', '.join(str(np.shape(array)) for array in arrays)
        raise UsageError(f'Shapes {shapes} differ.', fix='Bring the images to one grid.')


def _check_spacing(spacing: Spacing, dimensions: int) -> None:
    if len(spacing) != dimensions or not all(size > 0 and np.isfinite(size) for size in spacing):
        raise UsageError(f'The voxel size {tuple(spacing)} does not fit {dimensions} dimensions.')
