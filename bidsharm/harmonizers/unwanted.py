"""Factors of unwanted variation: found in voxels that should be alike in all scans, removed everywhere else too.

After Fortin et al. 2016 (doi:10.1016/j.neuroimage.2016.02.036). The model of the intensities of n scans in m voxels is::

    V = alpha 1' + beta X' + gamma Z' + R

with the mean scan alpha, covariates X that are to be kept, and b unwanted factors Z. Control voxels know no beta, so Z is seen there:
it is made of the first b right singular vectors of the centred control voxels. What is removed is ``gamma Z'``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Differences below this part are the rounding of single precision.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Factors:
    """What was learned from a cohort.

    Parameters
    ----------
    controls
        Control voxels, as places in the flat volume, shape (c,).
    baseline
        Their mean over scans, shape (c,).
    loadings
        What one unit of each factor does to them: left singular vectors times singular values, shape (c, b).
    gamma
        What one unit of each factor does to every voxel, shape (b, m).
    largest
        Largest absolute score of a scan of the cohort for each factor, shape (b,).
    """

    controls: NDArray[np.int64]
    baseline: Floats
    loadings: Floats
    gamma: NDArray[np.float32]
    largest: Floats

    def scores(self, values: NDArray[np.float32], usable: NDArray[np.bool_]) -> Floats:
        """Return how much of each factor is in a scan, by least squares over its control voxels.

        For a scan of the cohort with all control voxels this is its row of Z, since the left singular vectors are orthonormal.

        Parameters
        ----------
        values
            A scan, shape (m,).
        usable
            Voxels that may be looked at, shape (m,).

        Returns
        -------
        ndarray
            Shape (b,).

        Raises
        ------
        ValueError
            If the usable control voxels do not determine the factors.
        """
        rows = usable[self.controls]
        loadings = self.loadings[rows]
        if np.linalg.matrix_rank(loadings) < loadings.shape[1]:
            raise ValueError('the control voxels do not determine the factors')
        left = values[self.controls[rows]].astype(np.float64) - self.baseline[rows]
        return np.asarray(np.linalg.lstsq(loadings, left, rcond=None)[0])

    def unwanted(self, scores: Floats) -> NDArray[np.float32]:
        """Return what is to be taken off a scan with these scores, shape (m,)."""
        return np.asarray(scores @ self.gamma, dtype=np.float32)


def learn(
    values: NDArray[np.float32], controls: NDArray[np.bool_], *, factors: int = 1, kept: Floats | None = None
) -> Factors:
    """Find the factors of a cohort and what they do to each voxel.

    Parameters
    ----------
    values
        One scan a row, voxel by voxel at the same places, shape (n, m).
    controls
        Control voxels, shape (m,).
    factors
        How many factors, b.
    kept
        Covariates X of the scans whose part is estimated along and stays, shape (n, p).

    Raises
    ------
    ValueError
        If the control voxels have fewer than b directions of variation, or a factor is a combination of the covariates.
    """
    seen = values[:, controls].astype(np.float64)
    baseline = seen.mean(axis=0)
    scans, spread, voxels = np.linalg.svd(seen - baseline, full_matrices=False)
    if spread.size < factors or not spread[factors - 1] > ROUNDING * np.linalg.norm(seen):
        raise ValueError('the scans do not differ in the control voxels')
    scores = scans[:, :factors]
    covariates = np.empty((len(values), 0)) if kept is None else kept
    design = np.column_stack([np.ones(len(values)), covariates, scores])
    if np.linalg.matrix_rank(design / np.linalg.norm(design, axis=0), tol=ROUNDING) < design.shape[1]:
        raise ValueError('a factor is a combination of the covariates that are to be kept')
    # Of all coefficients only those of the factors are needed.
    solve = np.linalg.pinv(design)[-factors:]
    return Factors(
        controls=np.flatnonzero(controls).astype(np.int64),
        baseline=baseline,
        loadings=voxels[:factors].T * spread[:factors],
        gamma=_in_pieces(solve, values),
        largest=np.abs(scores).max(axis=0),
    )


def _in_pieces(solve: Floats, values: NDArray[np.float32], size: int = 100_000) -> NDArray[np.float32]:
    """Return ``solve @ values`` in double precision, without a copy of all scans in it."""
    pieces = [solve @ values[:, start : start + size] for start in range(0, values.shape[1], size)]
    return np.concatenate(pieces, axis=1).astype(np.float32)
