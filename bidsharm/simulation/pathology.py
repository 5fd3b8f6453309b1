"""What age and disease do to a head: wider sulci, lesions, a mass; and the texture that all tissue has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import UsageError
from bidsharm.simulation.anatomy import TISSUES, Anatomy, Float32, Float64

#: Scales (mm, standard deviation of a Gaussian) that texture is made of, and the share of its variance at each.
TEXTURE_SCALES = {2.0: 0.5, 6.0: 0.5}
#: Radii of lesions as of multiple sclerosis (mm): median and logarithmic spread. Most are a few millimetres large.
LESION_RADIUS_MM, LESION_SPREAD = 2.5, 0.4
#: How fast the density of lesions falls with the distance from the ventricles (mm).
LESION_REACH_MM = 10.0

_BLUR = 2  # voxels that a border is blurred over, on either side
_DRY = 0.1  # a sulcus with less fluid is closed


def widen_sulci(head: Anatomy, millimetres: float) -> Anatomy:
    """Turn the outermost cortex into fluid, as atrophy does.

    The border of fluid moves into cortex along its normal, at the same speed everywhere: df/dt = |grad f| for the fraction f
    of fluid, by upwind differences (Osher and Sethian 1988, doi:10.1016/0021-9991(88)90002-2). Where a sulcus is too narrow to
    be filled by fluid, f is taken in parts of the largest nearby, for its banks move as fast as others.

    Parameters
    ----------
    head
        The head; it is left as it is.
    millimetres
        Thickness of cortex that is lost where it borders on fluid; 0 returns the head itself.

    Raises
    ------
    UsageError
        If it is negative, or thicker than cortex.
    """
    if not 0 <= millimetres <= 2:
        raise UsageError(f'Cortex cannot lose {millimetres:g} mm.', where='millimetres', fix='Use 0 to 2.')
    if millimetres == 0:
        return head
    spacing = np.diag(head.affine)[:3]
    # A front that moves by more than a voxel over the root of 3 in a step is not stable.
    steps = int(np.ceil(millimetres / (0.5 * spacing.min())))
    nearby = [1 + 2 * (_BLUR + int(millimetres / size)) for size in spacing]
    fractions = head.fractions.copy()
    cortex, fluid = fractions[TISSUES.index('GM')], fractions[TISSUES.index('CSF')]
    beside = head.part('meninges', 'soft tissue')  # membranes lie in the fluid of sulci
    for _ in range(steps):
        wet = fluid + beside
        fullest = ndimage.maximum_filter(wet, size=nearby)
        lost = millimetres / steps * _upwind_slope(wet, spacing) / np.maximum(fullest, _DRY)
        lost = np.minimum(lost, cortex)
        cortex -= lost
        fluid += lost
    return replace(head, fractions=fractions)


def _upwind_slope(values: Float32, spacing: Float64) -> Float32:
    """Return the size of the gradient towards larger neighbours (per mm), shape as that of the values."""
    squares = np.zeros_like(values)
    for axis, size in enumerate(spacing):
        part, square = np.moveaxis(values, axis, 0), np.moveaxis(squares, axis, 0)
        rise = np.zeros_like(part)
        step = np.diff(part, axis=0) / np.float32(size)
        rise[:-1] = np.maximum(step, 0)
        rise[1:] = np.maximum(rise[1:], -step)
        square += rise**2
    return np.sqrt(squares)


def add_lesions(head: Anatomy, count: int, rng: np.random.Generator) -> Anatomy:
    """Put lesions as of multiple sclerosis into white matter, most of them beside the ventricles.

    Parameters
    ----------
    head
        The head; it is left as it is.
    count
        How many; they may run into each other.
    rng
        Source of places, sizes and shapes.

    Raises
    ------
    UsageError
        If there is no white matter to put them in.
    """
    if count < 1:
        return head
    spacing = np.diag(head.affine)[:3]
    weights = _lesion_density(head, spacing)
    total = weights.sum()
    if total <= 0:
        raise UsageError('The head has no deep white matter for lesions.', where='lesions')
    places = np.unravel_index(
        np.searchsorted(np.cumsum(weights.ravel()) / total, rng.random(count)), weights.shape
    )
    amount = np.zeros(weights.shape, dtype=np.float32)
    for place in zip(*places, strict=True):
        radius = LESION_RADIUS_MM * np.exp(LESION_SPREAD * rng.standard_normal())
        _paint_blob(amount, place, radius, spacing, rng)
    return _replace_tissue(head, amount, 'lesion', ('WM', 'deep GM'))


def _lesion_density(head: Anatomy, spacing: Float64) -> Float64:
    """Return how likely a lesion lies at each voxel, not normalized: deep white matter near fluid deep in the brain."""
    depth = ndimage.distance_transform_edt(head.brain_mask, sampling=spacing)
    ventricles = (head.part('CSF') > 0.5) & (depth > 20)
    if not ventricles.any():
        return np.zeros(depth.shape)
    away = ndimage.distance_transform_edt(~ventricles, sampling=spacing)
    near = np.exp(-away / LESION_REACH_MM) + 0.03  # some lie anywhere
    return np.where(head.part('WM') > 0.9, near, 0.0) * (depth > 6)


def _paint_blob(
    amount: Float32, place: tuple[np.intp, ...], radius: float, spacing: Float64, rng: np.random.Generator
) -> None:
    """Add a lump of uneven surface to an image of fractions, in place."""
    reach = np.ceil(1.8 * radius / spacing).astype(int) + 1
    low = [max(0, int(p) - int(r)) for p, r in zip(place, reach, strict=True)]
    high = [min(n, int(p) + int(r) + 1) for n, p, r in zip(amount.shape, place, reach, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    offsets = [(np.arange(a, b) - p) * step for a, b, p, step in zip(low, high, place, spacing, strict=True)]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*offsets, indexing='ij')))
    noise = ndimage.gaussian_filter(rng.standard_normal(distance.shape), 0.6 * radius / spacing)
    surface = radius * (1 + 0.25 * noise / max(float(noise.std()), 1e-6))
    inside = np.clip(0.5 + (surface - distance) / spacing.mean(), 0, 1)
    amount[box] = np.maximum(amount[box], inside.astype(np.float32))


def add_mass(
    head: Anatomy, radius: float, rim: float, rng: np.random.Generator
) -> tuple[Anatomy, NDArray[np.float64]]:
    """Put a tumour-like mass with a rim of oedema into a hemisphere.

    Parameters
    ----------
    head
        The head; it is left as it is.
    radius
        Radius of the mass in mm.
    rim
        How far from its middle the oedema reaches in white matter, in mm; it has the relaxation of a lesion.
    rng
        Source of place and shape.

    Returns
    -------
    head, centre
        The head with the mass, and the middle of the mass (RAS mm), for :func:`bidsharm.simulation.warps.push`.

    Raises
    ------
    UsageError
        If there is no room for it.
    """
    spacing = np.diag(head.affine)[:3]
    depth = ndimage.distance_transform_edt(head.brain_mask, sampling=spacing)
    side = np.abs(np.arange(depth.shape[0]) - depth.shape[0] / 2) * spacing[0] > radius + 8
    room = np.flatnonzero((depth > 1.2 * radius) & (head.part('WM') > 0.9) & side[:, None, None])
    if not room.size:
        raise UsageError('There is no room for the mass.', where='mass', fix='Use a smaller one.')
    place = np.unravel_index(room[int(rng.integers(room.size))], depth.shape)
    core, oedema = np.zeros(depth.shape, dtype=np.float32), np.zeros(depth.shape, dtype=np.float32)
    _paint_blob(core, place, radius, spacing, rng)
    _paint_blob(oedema, place, rim, spacing, rng)
    swollen = _replace_tissue(head, oedema, 'lesion', ('WM',))
    whole = _replace_tissue(swollen, core, 'mass', ('WM', 'GM', 'deep GM', 'lesion'))
    return whole, head.affine[:3, :3] @ np.array(place, dtype=float) + head.affine[:3, 3]


def _replace_tissue(head: Anatomy, amount: Float32, by: str, tissues: tuple[str, ...]) -> Anatomy:
    fractions = head.fractions.copy()
    for name in tissues:
        taken = fractions[TISSUES.index(name)] * amount
        fractions[TISSUES.index(name)] -= taken
        fractions[TISSUES.index(by)] += taken
    return replace(head, fractions=fractions)


def add_texture(head: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Give the tissue of a head a texture of its own, which every scanner sees.

    Two independent fields, for T1 and for proton density, of mean 0 and standard deviation 1, each a sum of smoothed noise
    at :data:`TEXTURE_SCALES`.
    """
    spacing = float(np.diag(head.affine)[:3].mean())
    shape = head.fractions.shape[1:]
    texture = np.zeros((2, *shape), dtype=np.float32)
    for field in texture:
        for scale, share in TEXTURE_SCALES.items():
            noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), scale / spacing)
            field += np.float32(np.sqrt(share) / noise.std()) * noise
    return replace(head, texture=texture)
