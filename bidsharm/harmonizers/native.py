"""Harmonizing a scan on its own grid, whichever grid the method works on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bidsharm.harmonizers.contract import Harmonized, Harmonizer, Scan, Target


def harmonize_scan(method: Harmonizer, scan: Scan, target: Target) -> Harmonized:
    """Harmonize a scan on its own grid, whichever grid the method works on.

    A method that works on a model grid sees the scan resampled; its change is carried back to the native
    voxels (:func:`bidsharm.imaging.carry.carry_change`).
    """
    if method.card.geometry == 'native':
        return method.harmonize(scan, target)
    from bidsharm.imaging.carry import carry_change
    from bidsharm.imaging.grids import resample

    size_mm = getattr(method, 'grid_mm', 1.0)
    on_grid = on_model_grid(scan, size_mm)
    affine = on_grid.affine
    result = method.harmonize(on_grid, target)
    image = carry_change(scan.data, scan.mask, scan.affine, on_grid.data, result.image, affine)
    uncertainty = result.uncertainty
    if uncertainty is not None:
        uncertainty = resample(uncertainty, affine, scan.data.shape, scan.affine)
    details = {**result.details, 'carried_back_from_mm': size_mm}
    return Harmonized(image, uncertainty, details, result.warnings)


def on_model_grid(scan: Scan, size_mm: float) -> Scan:
    """Return a scan on the isotropic grid that a network sees; a scan that lies on one already stays as it is.

    Parameters
    ----------
    scan
        Any scan.
    size_mm
        Edge of a voxel.
    """
    from bidsharm.imaging.carry import model_grid
    from bidsharm.imaging.grids import resample, voxel_sizes

    fits = all(size % 16 == 0 for size in scan.data.shape)
    if fits and np.allclose(voxel_sizes(scan.affine), size_mm, rtol=0, atol=1e-3):
        return scan
    shape, affine = model_grid(scan.mask, scan.affine, size_mm=size_mm)
    data = resample(np.where(scan.mask, scan.data, 0), scan.affine, shape, affine, order=3)
    mask = resample(scan.mask, scan.affine, shape, affine) > 0.5
    tissue = None
    if scan.tissue is not None:
        tissue = np.stack([resample(part, scan.affine, shape, affine) for part in scan.tissue])
    return replace(scan, data=np.where(mask, data, 0), mask=mask, affine=affine, tissue=tissue)
