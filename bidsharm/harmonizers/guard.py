"""The guard of methods that may draw: structure in their change that the scan does not support is found, measured and, as asked, kept, removed or refused.

At every place the change of a method is described as a linear function of the scan's intensities around it (the guided filter of He et al.
2013). Brightness, contrast and smooth fields are such functions. A structure that appears where the scan shows none, or one that vanishes, is
not: it is what the function leaves unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.imaging.carry import LocalChange
from bidsharm.imaging.grids import voxel_sizes

Mode = Literal['report', 'blend', 'refuse']
MODES: tuple[Mode, ...] = ('report', 'blend', 'refuse')

#: Standard deviation of the average over which structure counts (mm): noise of single voxels does not.
STRUCTURE_MM = 1.5
#: What counts is the structure that this share of the brain stays below, in percent.
HIGH_PERCENTILE = 99.5
#: Unsupported structure, relative to the range of the harmonized brain, from which a scan is worth a look, and from which it is refused.
WARN, FAIL = 0.05, 0.15


@dataclass(frozen=True)
class Finding:
    """What the guard found in one scan.

    Parameters
    ----------
    score
        Unsupported structure relative to the range of the harmonized brain; 0 for a change of brightness and contrast alone.
    map
        Unsupported structure in the units of the harmonized brain, averaged over some millimetres, shape (X, Y, Z) of the model grid.
    """

    score: float
    map: NDArray[np.float32]

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


def inspect(change: LocalChange, after: NDArray[np.floating], mask: NDArray[np.bool_]) -> Finding:
    """Measure the structure in a change that the scan does not support.

    Parameters
    ----------
    change
        The change as linear functions (:func:`bidsharm.imaging.carry.local_change`).
    after
        The method's own image, shape (X, Y, Z).
    mask
        Brain, same shape.

    Returns
    -------
    Finding
        Its score is the 99.5th percentile of the absolute map over the 0.5 to 99.5 % range of the image.
    """
    weight = mask.astype(np.float32)
    sigma = STRUCTURE_MM / voxel_sizes(change.affine)
    norm = np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-4)
    structure = np.where(mask, ndimage.gaussian_filter(change.unexplained * weight, sigma) / norm, 0)
    low, high = np.percentile(after[mask], [0.5, 99.5])
    span = max(float(high - low), float(np.finfo(np.float32).tiny))
    score = float(np.percentile(np.abs(structure[mask]), HIGH_PERCENTILE)) / span
    return Finding(score, structure.astype(np.float32))


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
        else 'It was removed where it is finer than a centimetre; of wider structure some is left'
    )
    return (f'The method drew structure that the scan does not support ({amount}). {done}.',)
