"""The guard of methods that may draw: structure in their change that the scan does not support is found, measured and, as asked, kept, removed or refused.

The change of a method is described by a curve of the scan's intensities that changes over centimetres
(:func:`bidsharm.imaging.carry.smooth_curves`). Brightness, contrast and fields are such curves. A structure that appears where the scan shows
none, or one that vanishes, is not: it is what the curves leave unexplained. Where the image that is carried back departs from them by more
than a little, it is drawn back to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.imaging.carry import SmoothCurves
from bidsharm.imaging.grids import Affine, Floats, voxel_sizes

Mode = Literal['report', 'blend', 'refuse']
MODES: tuple[Mode, ...] = ('report', 'blend', 'refuse')

#: Standard deviation of the average over which structure counts (mm): noise of single voxels does not.
STRUCTURE_MM = 1.5
#: What counts is the height that structure reaches in a connected volume of so many millilitres: less may be an edge or a vessel.
VOLUME_ML = 0.3
#: Unsupported structure, relative to the range of the harmonized brain, from which a scan is worth a look, and from which it is refused.
WARN, FAIL = 0.15, 0.3
#: Structure up to this part of the range is carried back as it is; of what is higher, less and less.
ALLOWED = 0.03


@dataclass(frozen=True)
class Finding:
    """What the guard found in one scan.

    Parameters
    ----------
    score
        Unsupported structure relative to the range of the harmonized brain; 0 for a change of brightness and contrast alone.
    map
        Unsupported structure in the units of the harmonized brain, averaged over some millimetres, shape (X, Y, Z) of the model grid.
    span
        Range of the harmonized brain.
    """

    score: float
    map: NDArray[np.float32]
    span: float

    @property
    def verdict(self) -> Literal['pass', 'warn', 'fail']:
        """Pass below :data:`WARN`, fail from :data:`FAIL` on."""
        return 'pass' if self.score < WARN else 'warn' if self.score < FAIL else 'fail'

    def details(self, mode: Mode) -> dict[str, Any]:
        """Return what the record of the scan says."""
        return {
            'mode': mode,
            'score': round(self.score, 4),
            'warn': WARN,
            'fail': FAIL,
            'verdict': self.verdict,
        }


def inspect(
    curves: SmoothCurves, before: NDArray, after: NDArray, mask: NDArray[np.bool_], affine: Affine
) -> Finding:
    """Measure the structure in a change that the scan does not support.

    Parameters
    ----------
    curves
        What brightness, contrast and fields explain of the change (:func:`bidsharm.imaging.carry.smooth_curves`).
    before, after
        The scan and the method's own image, shape (X, Y, Z).
    mask
        Brain, same shape.
    affine
        Of the grid.

    Returns
    -------
    Finding
        Its score is the height that the absolute map reaches in a connected volume of :data:`VOLUME_ML`, over the 0.5 to 99.5 % range of the image.
    """
    structure = _averaged(after - curves.apply(before, affine), mask, affine)
    low, high = np.percentile(after[mask], [0.5, 99.5])
    span = max(float(high - low), float(np.finfo(np.float32).tiny))
    voxels = VOLUME_ML * 1000 / float(np.prod(voxel_sizes(affine)))
    return Finding(_height(np.abs(structure) / span, voxels), structure, span)


def _averaged(values: NDArray, mask: NDArray[np.bool_], affine: Affine) -> Floats:
    """Return values averaged over :data:`STRUCTURE_MM` inside the brain."""
    sigma = STRUCTURE_MM / voxel_sizes(affine)
    norm = np.maximum(ndimage.gaussian_filter(mask.astype(np.float32), sigma), 1e-4)
    inside = np.where(mask, values, 0).astype(np.float32)
    return np.where(mask, ndimage.gaussian_filter(inside, sigma) / norm, 0).astype(np.float32)


def _height(values: NDArray, voxels: float) -> float:
    """Return the height above which so many voxels hang together, to a thousandth of the highest one."""
    low, high = 0.0, float(values.max(initial=0))
    for _ in range(10):
        middle = (low + high) / 2
        pieces, count = ndimage.label(values >= middle)
        if count and np.bincount(pieces.ravel())[1:].max() >= voxels:
            low = middle
        else:
            high = middle
    return low


def restrained(
    image: NDArray, curves: SmoothCurves, span: float, data: NDArray, mask: NDArray[np.bool_], affine: Affine
) -> Floats:
    """Return an image that was carried back, with structure that the scan does not support taken back.

    Where the image departs from the curves by up to :data:`ALLOWED` of the range it stays; where it departs by more, it is drawn back to
    them, the more the further away it was.

    Parameters
    ----------
    image
        From :func:`bidsharm.imaging.carry.carry_change`, shape (X, Y, Z).
    curves
        Of the change.
    span
        Range of the harmonized brain (:class:`Finding`).
    data, mask, affine
        The scan on its own grid.
    """
    explained = curves.apply(data, affine)
    departure = image - explained
    height = np.abs(_averaged(departure, mask, affine)) / span
    share = np.minimum(1, (ALLOWED / np.maximum(height, 1e-6)) ** 3)
    return np.where(mask, explained + departure * share, 0).astype(np.float32)


def warnings_of(finding: Finding, mode: Mode, name: str) -> tuple[str, ...]:
    """Return sentences for a reader of the image.

    Raises
    ------
    ScanError
        If the score is too high and such scans are to be refused.
    """
    if finding.verdict == 'pass':
        return ()
    amount = f'{100 * finding.score:.0f} % of the range of the brain'
    if mode == 'refuse' and finding.verdict == 'fail':
        raise ScanError(
            f'The method drew structure that the scan does not support ({amount}; the limit is {100 * FAIL:.0f} %).',
            where=name, fix='Look at the map with --guard report, or choose a method that cannot draw.',
        )  # fmt: skip
    done = (
        'It was kept'
        if mode == 'report'
        else 'Most of it was removed; of structure wider than two centimetres a part is left'
    )
    return (f'The method drew structure that the scan does not support ({amount}). {done}.',)
