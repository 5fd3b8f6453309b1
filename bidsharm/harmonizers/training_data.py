"""From a cohort of scans to what networks train on, and what a set of volumes offers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import MissingNeed, ScanError, UsageError
from bidsharm.harmonizers.contract import NEED_PHRASES, Acquisition, Card, Cohort, Scan, Site, Target
from bidsharm.harmonizers.registry import could_train
from bidsharm.harmonizers.standard import target_kind

if TYPE_CHECKING:
    from bidsharm.harmonizers.network_settings import NetworkSettings
    from bidsharm.imaging.alignment import Grid
    from bidsharm.training.scaling import Scaling
    from bidsharm.training.volumes import TrainingSet, TrainingVolume

#: Field of view of a training, along the axes of RAS order (mm); that of IGUANe (Roca et al. 2024).
FRAME_MM = (160.0, 192.0, 160.0)


def training_set(
    cohort: Cohort, settings: NetworkSettings, frame: tuple[int, int, int] | None = None
) -> TrainingSet:
    """Return the scans of a cohort as volumes of one grid.

    Scans keep their axes; each brain is put into the middle of the common field of view. To have scans of one person lie on each
    other, align them before.

    Parameters
    ----------
    cohort
        Scans on grids of their own.
    settings
        Voxel size, scaling and background.
    frame
        Volumes are nowhere smaller; None is no such bound.

    Raises
    ------
    MissingNeed
        If there is no scan.
    ScanError
        If a scan is unusable.
    """
    from bidsharm.harmonizers.native import on_model_grid
    from bidsharm.training.volumes import TrainingSet

    scans = [on_model_grid(scan, settings.voxel_mm) for scan in cohort.scans]
    if not scans:
        raise MissingNeed('There is no scan to learn from.')
    sizes = np.max([scan.data.shape for scan in scans] + ([] if frame is None else [frame]), axis=0)
    shape = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
    return TrainingSet([volume_of(scan, settings, shape) for scan in scans], settings.background)


def volume_of(scan: Scan, settings: NetworkSettings, shape: tuple[int, int, int]) -> TrainingVolume:
    """Return one scan in units of the network, in the middle of a field of view of a given shape."""
    from bidsharm.training.volumes import TrainingVolume

    volume, scaling = in_units(scan, settings)
    mask = np.asarray(scan.mask).astype(bool)
    return TrainingVolume(
        values=centred(volume, shape, settings.background), mask=centred(mask, shape, False), name=scan.name,
        person=scan.person or scan.name, session=scan.session, site=scan.site, contrast=scan.contrast,
        tissue=None if scan.tissue is None and scan.labels is None else centred(labels_of(scan), shape, 0), covariates=scan.covariates,
        unit=scaling.unit, acquisition=scan.acquisition,
    )  # fmt: skip


def in_units(scan: Scan, settings: NetworkSettings) -> tuple[NDArray[np.float32], Scaling]:
    """Return a scan in units of the network, its background outside the mask, and the scaling that leads back.

    Raises
    ------
    ScanError
        If the scan is unusable, or the intensity that should become 1 is not above 0.
    """
    from bidsharm.harmonizers.standard import check_scan
    from bidsharm.training.scaling import measure

    values = check_scan(scan)
    try:
        scaling = measure(values, settings.scaling, settings.offset)
    except ValueError as error:
        raise ScanError(
            f'There is no scale: {error}.', where=scan.name, fix='Look at the image, or leave this scan out.'
        ) from None
    volume = np.full(scan.data.shape, settings.background, np.float32)
    volume[np.asarray(scan.mask).astype(bool)] = scaling.forward(values.astype(np.float32))
    return volume, scaling


def labels_of(scan: Scan) -> NDArray[np.uint8]:
    """Return the labels of a scan, or else the likeliest tissue of each voxel: 0 outside the brain, 1 CSF, 2 GM, 3 WM."""
    if scan.labels is not None:
        # A voxel at the border of the brain may have lost its label on the way here.
        return np.where(scan.mask, np.maximum(scan.labels, 1), 0).astype(np.uint8)
    assert scan.tissue is not None
    return np.where(scan.mask, 1 + np.argmax(scan.tissue, axis=0), 0).astype(np.uint8)


def centred(volume: NDArray, shape: tuple[int, int, int], fill: float) -> NDArray:
    """Return a volume in the middle of another shape, cut or filled."""
    out = np.full(shape, fill, dtype=volume.dtype)
    here, there = [], []
    for size, wanted in zip(volume.shape, shape, strict=True):
        shift = (wanted - size) // 2
        here.append(slice(max(-shift, 0), max(-shift, 0) + min(size, wanted)))
        there.append(slice(max(shift, 0), max(shift, 0) + min(size, wanted)))
    out[tuple(there)] = volume[tuple(here)]
    return out


def offers_of(data: TrainingSet, target: str = '') -> frozenset[str]:
    """Return the needs (keys of ``NEED_PHRASES``) that volumes satisfy.

    Parameters
    ----------
    data
        Volumes.
    target
        Site that is aimed at; pairs need it.
    """
    found = {
        'cohort': len(data.volumes) > 1,
        'site': bool(data.volumes) and all(volume.site for volume in data.volumes),
        'two_sites': len(data.sites) > 1 and all(data.sites) and (not target or target in data.sites),
        'paired': bool(target) and bool(data.pairs(target)),
        'travellers': len(data.sites) > 1 and bool(data.travellers()),
        'multi_contrast': any(len(visit) > 1 for visit in data.visits()),
        'tissue': bool(data.volumes) and all(volume.tissue is not None for volume in data.volumes),
        'reference': bool(data.volumes),
    }
    return frozenset(name for name, there in found.items() if there)


def check_offers(card: Card, data: TrainingSet, target: Target) -> None:
    """Refuse volumes that do not offer what a method needs.

    Parameters
    ----------
    card
        Of the method.
    data
        Volumes to train on.
    target
        What it is to aim at.

    Raises
    ------
    MissingNeed
        With one sentence that names what is missing, and the methods that could run instead.
    UsageError
        If the method cannot be trained for such a target.
    """
    if isinstance(target, Acquisition):
        raise UsageError(
            'A training cannot aim at acquisition parameters.', where='--target',
            fix='Train for a site, or for all scans; the model may aim at them afterwards.',
        )  # fmt: skip
    if target_kind(target) not in card.targets:
        raise UsageError(
            f'{card.name} cannot be trained for a {target_kind(target)} target.', where='--target',
            fix=f'It can: {", ".join(card.targets)}.',
        )  # fmt: skip
    if isinstance(target, Site) and target.name not in data.sites:
        raise MissingNeed(
            f'No scan comes from the site "{target.name}".',
            fix=f'There are: {", ".join(data.sites) or "none"}.',
        )
    offered = offers_of(data, target.name if isinstance(target, Site) else '')
    for need in card.needs_fit:
        if need not in offered:
            raise MissingNeed(
                f'{card.name} needs {NEED_PHRASES[need]}, which is not there; '
                f'methods that could be trained instead: {", ".join(could_train(offered)) or "none"}.'
            )


@cache
def common_frame(voxel_mm: float) -> Grid:
    """Return the grid that all scans of a training are laid on: 160 x 192 x 160 mm around the brain of the template.

    Sizes are rounded up to multiples of 16 voxels.
    """
    from bidsharm.imaging.alignment import Grid, template_brain
    from bidsharm.imaging.grids import bounding_box

    brain = template_brain()
    box = bounding_box(brain.mask, 0)
    middle = np.array([(part.start + part.stop - 1) / 2 for part in box] + [1.0])
    shape = tuple(int(np.ceil(length / voxel_mm / 16)) * 16 for length in FRAME_MM)
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = (brain.affine @ middle)[:3] - voxel_mm * (np.array(shape) - 1) / 2
    return Grid((shape[0], shape[1], shape[2]), affine)


def in_common_frame(scan: Scan, world: NDArray[np.float64], settings: NetworkSettings) -> TrainingVolume:
    """Return a scan in units of the network on the grid of :func:`common_frame`.

    Parameters
    ----------
    scan
        Any scan.
    world
        From the world of the scan to that of the grid, rigid, shape (4, 4).
    settings
        Voxel size, scaling and background.
    """
    grid = common_frame(settings.voxel_mm)
    return volume_of(laid_on(scan, grid, world), settings, grid.shape)


def laid_on(scan: Scan, grid: Grid, world: NDArray[np.float64]) -> Scan:
    """Return a scan on a common grid.

    Parameters
    ----------
    scan
        Any scan.
    grid
        Where it goes.
    world
        From the world of the scan to that of the grid, rigid, shape (4, 4).
    """
    mask = grid.sample(scan.mask.astype(np.float32), scan.affine, world) > 0.5
    data = grid.sample(np.where(scan.mask, scan.data, 0), scan.affine, world, order=3)
    tissue = None
    if scan.tissue is not None:
        tissue = np.stack([grid.sample(part, scan.affine, world) for part in scan.tissue])
    labels = None
    if scan.labels is not None:
        labels = resampled_labels(scan.labels, world @ scan.affine, grid.shape, grid.affine)
    return replace(
        scan, data=np.where(mask, data, 0).astype(np.float32), mask=mask, affine=grid.affine, tissue=tissue, labels=labels,
    )  # fmt: skip


def resampled_labels(
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    onto: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Return labels on another grid that shares their world.

    Each label is sampled linearly, and the one with the largest share of a voxel wins.

    Parameters
    ----------
    labels, affine
        Shape (X, Y, Z), 0 for none, and their grid.
    shape, onto
        The other grid.
    """
    from bidsharm.imaging.grids import resample

    best = np.zeros(shape, np.uint8)
    most = 1 - resample((labels > 0).astype(np.float32), affine, shape, onto, order=1)
    for label in range(1, int(labels.max(initial=0)) + 1):
        share = resample((labels == label).astype(np.float32), affine, shape, onto, order=1)
        best[share > most] = label
        most = np.maximum(most, share)
    return best


def align(scan: Scan, anchor: tuple[Scan, NDArray[np.float64]] | None) -> NDArray[np.float64]:
    """Return the rigid transform that lays a scan on the template, by way of another scan of the same person where there is one.

    Raises
    ------
    ScanError
        If it cannot be aligned.
    """
    from bidsharm.imaging.alignment import Brain, rigid, template_brain

    brain = Brain(scan.data, scan.mask, scan.affine)
    if anchor is None:
        return rigid(brain, template_brain(), name=scan.name)
    first, world = anchor
    return np.asarray(world @ rigid(brain, Brain(first.data, first.mask, first.affine), name=scan.name))
