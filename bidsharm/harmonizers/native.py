"""Harmonizing a scan on its own grid, whichever grid the method works on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bidsharm.harmonizers.contract import Harmonized, Harmonizer, Scan, Target, Volume


def harmonize_scan(method: Harmonizer, scan: Scan, target: Target) -> Harmonized:
    """Harmonize a scan on its own grid, whichever grid the method works on.

    A method that works on a model grid sees the scan resampled; its change is carried back to the native
    voxels (:func:`bidsharm.imaging.carry.carry_change`). What it drew there without support of the scan is measured, and taken back unless it is to
    be kept (:mod:`bidsharm.harmonizers.guard`).

    Raises
    ------
    ScanError
        If the method drew too much, and such scans are to be refused.
    """
    if method.card.geometry == 'native':
        return method.harmonize(scan, target)
    from bidsharm.harmonizers.guard import inspect, restrained, warnings_of
    from bidsharm.imaging.carry import carry_change, local_change, smooth_curves
    from bidsharm.imaging.grids import resample

    size_mm, mode = getattr(method, 'grid_mm', 1.0), method.execution.guard
    on_grid = on_model_grid(scan, size_mm)
    result = method.harmonize(on_grid, target)
    change = local_change(on_grid.data, result.image, on_grid.affine)
    curves = smooth_curves(on_grid.data, result.image, on_grid.affine)
    mask = np.asarray(on_grid.mask).astype(bool)
    finding = inspect(curves, on_grid.data, result.image, mask, on_grid.affine)
    warnings = (*result.warnings, *warnings_of(finding, mode, scan.name))
    image = carry_change(scan.data, scan.mask, scan.affine, change, unexplained=mode == 'report')
    if mode != 'report':
        image = restrained(image, curves, finding.span, scan.data, scan.mask, scan.affine)

    def here(values: Volume) -> Volume:
        return np.where(scan.mask, resample(values, on_grid.affine, scan.data.shape, scan.affine), 0).astype(
            np.float32
        )

    uncertainty = None if result.uncertainty is None else here(result.uncertainty)
    details = {**result.details, 'carried_back_from_mm': size_mm, 'guard': finding.details(mode)}
    return Harmonized(image, uncertainty, details, warnings, unsupported=here(finding.map))


def _only_brain(scan: Scan) -> Scan:
    return replace(scan, data=np.where(scan.mask, scan.data, 0))


def on_model_grid(scan: Scan, size_mm: float) -> Scan:
    """Return a scan on the isotropic grid that a network sees; a scan that lies on one already stays there; outside the brain it is 0.

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
        return replace(_only_brain(scan), companions=tuple(map(_only_brain, scan.companions)))
    shape, affine = model_grid(scan.mask, scan.affine, size_mm=size_mm)

    def moved(one: Scan) -> Scan:
        data = resample(_only_brain(one).data, one.affine, shape, affine, order=3)
        mask = resample(one.mask, one.affine, shape, affine) > 0.5
        tissue = None
        if one.tissue is not None:
            tissue = np.stack([resample(part, one.affine, shape, affine) for part in one.tissue])
        return replace(one, data=np.where(mask, data, 0), mask=mask, affine=affine, tissue=tissue)

    return replace(moved(scan), companions=tuple(moved(other) for other in scan.companions))
