"""Harmonizing a scan on its own grid, whichever grid the method works on."""

from __future__ import annotations

import numpy as np

from bidsharm.harmonizers.contract import Harmonized, Harmonizer, Scan, Target


def harmonize_scan(method: Harmonizer, scan: Scan, target: Target) -> Harmonized:
    """Harmonize a scan on its own grid, whichever grid the method works on.

    A method that works on a model grid sees the scan resampled; its change is carried back to the native
    voxels (:func:`bidsharm.imaging.carry.carry_change`).
    """
    if method.card.geometry == 'native':
        return method.harmonize(scan, target)
    from bidsharm.imaging.carry import carry_change, model_grid
    from bidsharm.imaging.grids import resample

    shape, affine = model_grid(scan.mask, scan.affine)
    data = resample(np.where(scan.mask, scan.data, 0), scan.affine, shape, affine, order=3)
    mask = resample(scan.mask, scan.affine, shape, affine) > 0.5
    tissue = None
    if scan.tissue is not None:
        tissue = np.stack([resample(part, scan.affine, shape, affine) for part in scan.tissue])
    on_grid = Scan(np.where(mask, data, 0), mask, affine, scan.contrast, scan.name, scan.site, tissue)
    result = method.harmonize(on_grid, target)
    image = carry_change(scan.data, scan.mask, scan.affine, on_grid.data, result.image, affine)
    uncertainty = result.uncertainty
    if uncertainty is not None:
        uncertainty = resample(uncertainty, affine, scan.data.shape, scan.affine)
    details = {**result.details, 'carried_back_from_mm': 1.0}
    return Harmonized(image, uncertainty, details, result.warnings)
