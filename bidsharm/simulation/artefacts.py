"""From the ideal image to the stored scan: coils, distortion, k-space, motion, noise and stored numbers.

Everything here is a function of torch tensors and computes where its tensors are, so one code serves the
writer of data sets on a CPU and a training source on a GPU. Common to all functions:

- An image is a float32 tensor (X, Y, Z) with voxel axes towards right, anterior and superior (``axis`` 0, 1
  and 2). The isocentre of the scanner is the middle of the field of view, which the head is taken to fill.
- ``spacing`` is the voxel size in millimetres along the three axes.
- What is random is drawn from ``generator``, which lives on the device of the image; fields are made on the
  device of the generator. A seed gives the same numbers on the same kind of device, not across devices.
- No input is changed. A parameter that asks for nothing returns the very tensor that came in, and fields
  that ask for nothing are exactly 1 or 0 everywhere.
- Impossible parameters raise :class:`~bidsharm.errors.UsageError`.

A scan goes through them about in this order: transmit field (in the signal equation), gradients, slices,
off-resonance, receive field, k-space, motion, ghosts, noise, storage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from bidsharm.errors import UsageError

Shape: TypeAlias = tuple[int, int, int]
Triple: TypeAlias = tuple[float, float, float]

#: Semi-axes of the central ellipsoid, in which fields are normalized, over half the field of view: a head in
#: a field of view with the usual margin.
CENTRE = 0.75
#: Share of the phase-encode lines, around the middle of k-space, during which nobody moves.
STILL = 0.08
#: Number of nodes per axis that a smooth field is computed on before it is interpolated.
_NODES = 32


# --- Requirements and coordinates ---


def _require(condition: bool, what: str, *, where: str, fix: str = '') -> None:
    if not condition:
        raise UsageError(what, where=where, fix=fix)


def _require_amount(value: float, name: str) -> None:
    """Refuse negative, infinite and undefined amounts."""
    _require(
        math.isfinite(value) and value >= 0, f'{value:g} is not a finite amount of 0 or more.', where=name
    )


def _require_axis(axis: int) -> None:
    _require(axis in (0, 1, 2), f'There is no axis {axis}.', where='axis', fix='Use 0, 1 or 2.')


def _require_grid(shape: Shape, spacing: Triple) -> None:
    _require(
        len(shape) == 3 and min(shape) >= 1, f'{tuple(shape)} is not the shape of a volume.', where='shape'
    )
    _require(
        len(spacing) == 3 and all(math.isfinite(size) and size > 0 for size in spacing),
        f'{tuple(spacing)} are not three positive voxel sizes.',
        where='spacing',
    )


def _shape_of(image: Tensor) -> Shape:
    _require(image.ndim == 3, f'An image has three axes, not {image.ndim}.', where='image')
    x, y, z = image.shape
    return x, y, z


def _relative(size: int, device: torch.device) -> Tensor:
    """Return the voxel centres along an axis: 0 at the isocentre, -1 and 1 at the outer faces."""
    return (2 * torch.arange(size, device=device, dtype=torch.float32) + 1 - size) / size


def _along(values: Tensor, axis: int) -> Tensor:
    """Give a vector two axes of size 1, so that it broadcasts along one axis of a volume."""
    return values.reshape([-1 if position == axis else 1 for position in range(3)])


def _axes(shape: Shape, scale: Triple, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the voxel centres along the three axes, broadcastable, from -scale to scale."""
    x, y, z = (_along(_relative(shape[axis], device) * scale[axis], axis) for axis in range(3))
    return x, y, z


def _half_extent(shape: Shape, spacing: Triple) -> Triple:
    """Return half the size of the field of view in millimetres."""
    return shape[0] * spacing[0] / 2, shape[1] * spacing[1] / 2, shape[2] * spacing[2] / 2


def _central_ellipsoid(shape: Shape, device: torch.device) -> Tensor:
    x, y, z = _axes(shape, (1, 1, 1), device)
    return x**2 + y**2 + z**2 <= CENTRE**2


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def _gaussian(shape: Shape, scale: Triple, centre: Triple, width: Triple, device: torch.device) -> Tensor:
    """Return a Gaussian of height 1, the product of three one-dimensional ones."""
    axes = _axes(shape, scale, device)
    x, y, z = (
        torch.exp(-(((values - middle) / sigma) ** 2) / 2)
        for values, middle, sigma in zip(axes, centre, width, strict=True)
    )
    return x * y * z


def _smooth_field(shape: Shape, device: torch.device, function: Callable[..., Tensor]) -> Tensor:
    """Compute a smooth function of the relative position on Chebyshev nodes and interpolate it to all voxels.

    The interpolation is three matrix products, one per axis, and for functions as smooth as coil profiles its
    error falls exponentially with the number of nodes.
    """
    polynomials = np.polynomial.chebyshev
    nodes = polynomials.chebpts1(_NODES)
    inverse = np.linalg.inv(polynomials.chebvander(nodes, _NODES - 1))
    points = torch.tensor(nodes, device=device, dtype=torch.float32)
    field = function(*(_along(points, axis) for axis in range(3)))
    for size in shape:
        voxels = (2 * np.arange(size) + 1 - size) / size
        matrix = polynomials.chebvander(voxels, _NODES - 1) @ inverse
        # Each product takes the first axis away and puts the voxels last, so three of them restore the order.
        field = torch.tensordot(
            field, torch.tensor(matrix, device=device, dtype=torch.float32), dims=([0], [1])
        )
    return field


# --- Radio-frequency fields ---


def receive_field(
    shape: Shape, spacing: Triple, *, coils: int, strength: float, generator: Generator
) -> Tensor:
    """Draw the sensitivity of a receive array whose coils are combined by the root of the sum of squares.

    Loops lie on an ellipsoid around the head, open towards the neck, with jitter in place and gain. The
    profile of a loop is its field on the axis, ``(1 + d² / R²)^(-3/2)`` with the distance d from its centre
    and its radius R (Biot and Savart), taken in all directions; the combination is the root of the sum of
    squares (Roemer et al. 1990, Magn Reson Med 16:192). Few loops are large and reach deep, many are small
    and leave the centre dark. The logarithm is then scaled to ``strength``, which sets how uneven it is.

    Parameters
    ----------
    shape, spacing
        Grid; spacing in mm.
    coils
        Number of receive channels, at least 1.
    strength
        Largest absolute logarithm of the field inside the central ellipsoid; 0 for a uniform coil.
    generator
        Source of the places and gains of the coils.

    Returns
    -------
    Tensor of shape (X, Y, Z)
        Positive, with geometric mean 1 in the central ellipsoid (see :data:`CENTRE`).
    """
    _require_grid(shape, spacing)
    _require(coils >= 1, f'{coils} coils receive nothing.', where='coils', fix='Use 1 or more.')
    _require_amount(strength, 'strength')
    device = generator.device
    if strength == 0:
        return torch.ones(shape, device=device)
    half = _half_extent(shape, spacing)
    # A spiral from below the ears to the vertex spreads the loops evenly (golden angle).
    turn = torch.arange(coils, device=device) * (math.pi * (3 - math.sqrt(5)))
    turn = turn + _uniform(1, 0, 2 * math.pi, generator) + _uniform(coils, -0.1, 0.1, generator)
    height = (torch.arange(coils, device=device) + 0.5) / coils * 1.6 - 0.6
    ring = (1 - height**2).sqrt()
    centres = 1.15 * torch.stack([ring * turn.cos(), ring * turn.sin(), height], dim=1)
    gains = torch.exp(0.15 * torch.randn(coils, generator=generator, device=device))
    radius = max(2.3 * math.prod(half) ** (1 / 3) / math.sqrt(coils), 40.0)

    def log_sensitivity(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        total = torch.zeros((), device=device)
        for centre, gain in zip(centres, gains, strict=True):
            squares = [
                ((values - middle) * size) ** 2
                for values, middle, size in zip((x, y, z), centre, half, strict=True)
            ]
            total = total + gain**2 * (1 + (squares[0] + squares[1] + squares[2]) / radius**2) ** -3
        return total.log() / 2

    field = _smooth_field(shape, device, log_sensitivity)
    inside = field[_central_ellipsoid(shape, device)]
    largest = (inside - inside.mean()).abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.exp((field - inside.mean()) * (strength / largest))


def transmit_field(shape: Shape, spacing: Triple, *, deviation: float, generator: Generator) -> Tensor:
    """Draw the transmit field (B1+) as a factor on the nominal flip angle.

    Waves that interfere in the head brighten its centre and darken its sides, which is the regular part; a
    random polynomial of degree 3 stands for the differences between heads and coils. B1 was measured to vary
    by 23 % at 4 T and 42 % at 7 T over the head (Vaughan et al. 2001, Magn Reson Med 46:24); about in
    proportion to the field that makes a ``deviation`` of 0.05 to 0.1 at 1.5 T, 0.2 at 3 T, and 0.4 to 0.5 at
    7 T. The shape follows no one coil.

    Parameters
    ----------
    shape, spacing
        Grid; spacing in mm.
    deviation
        Largest absolute difference from 1 inside the central ellipsoid; below 1, and 0 for a perfect field.
    generator
        Source of the polynomial.

    Returns
    -------
    Tensor of shape (X, Y, Z)
        Not negative, with mean 1 in the central ellipsoid.
    """
    _require_grid(shape, spacing)
    _require_amount(deviation, 'deviation')
    _require(deviation < 1, f'The field cannot vanish: {deviation:g} is 1 or more.', where='deviation')
    device = generator.device
    if deviation == 0:
        return torch.ones(shape, device=device)
    order = torch.arange(4, device=device)
    degree = order.reshape(4, 1, 1) + order.reshape(1, 4, 1) + order
    weights = torch.randn(4, 4, 4, generator=generator, device=device) / degree.clamp_min(1)
    weights = torch.where((degree >= 1) & (degree <= 3), weights, 0)
    pattern = weights
    for size in shape:
        basis = np.polynomial.legendre.legvander((2 * np.arange(size) + 1 - size) / size, 3)
        pattern = torch.tensordot(
            pattern, torch.tensor(basis, device=device, dtype=torch.float32), dims=([0], [1])
        )
    central = _central_ellipsoid(shape, device)
    size_of = _half_extent(shape, spacing)
    width = 0.6 * math.prod(size_of) ** (1 / 3)
    bright = _gaussian(shape, size_of, (0, 0, 0), (width, width, width), device)
    tiny = torch.finfo(torch.float32).tiny
    pattern = bright + pattern * (0.25 / pattern[central].abs().max().clamp_min(tiny))
    pattern = pattern - pattern[central].mean()
    pattern = pattern * (deviation / pattern[central].abs().max().clamp_min(tiny))
    return (1 + pattern).clamp_min(0)  # only the corners, where there is air, can come below


# --- Geometry ---


def gradient_displacement(
    shape: Shape, spacing: Triple, *, millimetres: float, generator: Generator
) -> Tensor:
    """Draw the geometric error that imperfect gradients leave after the vendor's correction.

    Each coordinate is off by the unwanted part of its gradient: the harmonics of order 3 and 5 with the
    symmetry of the coil, as vendors tabulate them (Janke et al. 2004, Magn Reson Med 52:115; Jovicich et al.
    2006, NeuroImage 30:436). With the bore along z and ρ² = x² + y² these are ``z³ - 3/2 zρ²`` and
    ``z⁵ - 5 z³ρ² + 15/8 zρ⁴`` for z, and ``x (4z² - ρ²)`` and ``x (8z⁴ - 12 z²ρ² + ρ⁴)`` for x,
    likewise for y. They grow so fast that the brain sees much less of the error than the corners.

    Parameters
    ----------
    shape, spacing
        Grid; spacing in mm.
    millimetres
        Longest displacement in the field of view, which is in its outermost voxels; 0 for none.
    generator
        Source of the six coefficients.

    Returns
    -------
    Tensor of shape (3, X, Y, Z)
        Displacement along x, y and z in mm, zero at the isocentre, odd in the position; for
        :func:`apply_displacement`.
    """
    _require_grid(shape, spacing)
    _require_amount(millimetres, 'millimetres')
    device = generator.device
    if millimetres == 0:
        return torch.zeros((3, *shape), device=device)
    half = _half_extent(shape, spacing)
    radius = math.hypot(*half)
    x, y, z = _axes(shape, (half[0] / radius, half[1] / radius, half[2] / radius), device)
    rho, square = x**2 + y**2, z**2
    third = torch.randn(3, generator=generator, device=device)
    fifth = 0.3 * torch.randn(3, generator=generator, device=device)
    field = torch.empty((3, *shape), device=device)
    across3, across5 = (4 * square - rho) / 4, (8 * square**2 - 12 * square * rho + rho**2) / 8
    field[0] = x * (third[0] * across3 + fifth[0] * across5)
    field[1] = y * (third[1] * across3 + fifth[1] * across5)
    field[2] = z * (
        third[2] * (square - 1.5 * rho) + fifth[2] * (square**2 - 5 * square * rho + 1.875 * rho**2)
    )
    longest = (field**2).sum(dim=0).max().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return field * (millimetres / longest)


def apply_displacement(
    image: Tensor, displacement: Tensor, spacing: Triple, *, jacobian: bool = False
) -> Tensor:
    """Resample an image so that each voxel shows what lies ``displacement`` away from it.

    Linear interpolation; outside the field of view there is nothing.

    Parameters
    ----------
    image
        (X, Y, Z).
    displacement
        (3, X, Y, Z) in mm, from a voxel of the result to its place in ``image``.
    spacing
        Voxel size in mm.
    jacobian
        Multiply with the local change of volume, as a scan does that encodes the signal of a larger piece of
        tissue into one voxel; the sum of the image is then kept (Jovicich et al. 2006, NeuroImage 30:436).
    """
    shape = _shape_of(image)
    _require_grid(shape, spacing)
    _require(
        tuple(displacement.shape) == (3, *shape),
        f'A displacement of shape {tuple(displacement.shape)} does not fit an image of shape {shape}.',
        where='displacement',
    )
    if not bool(displacement.any()):
        return image
    axes = _axes(shape, (1, 1, 1), image.device)
    half = _half_extent(shape, spacing)
    # grid_sample counts axes from the last one, and positions from -1 to 1 between the outer faces.
    grid = torch.stack([axes[axis] + displacement[axis] / half[axis] for axis in (2, 1, 0)], dim=-1)
    result = _sample(image, grid)
    if not jacobian:
        return result
    return result * _determinant(displacement, spacing)


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    return torch.nn.functional.grid_sample(
        image[None, None], grid[None], mode='bilinear', padding_mode='zeros', align_corners=False
    )[0, 0]


def _determinant(displacement: Tensor, spacing: Triple) -> Tensor:
    """Return the volume that the map ``position + displacement`` makes of a unit of volume."""

    def slope(component: int, axis: int) -> Tensor:
        field = displacement[component]
        if field.shape[axis] == 1:
            return torch.full_like(field, float(component == axis))
        derivative = torch.gradient(field, spacing=spacing[axis], dim=axis)[0]
        return derivative + 1 if component == axis else derivative

    (a, b, c), (d, e, f), (g, h, i) = (
        tuple(slope(component, axis) for axis in range(3)) for component in range(3)
    )
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def off_resonance(shape: Shape, spacing: Triple, *, hertz: float, generator: Generator) -> Tensor:
    """Draw a map of the frequency error that the head itself causes, after shimming.

    Air in the head disturbs the field most above the sphenoid sinus and beside the ear canals (Jenkinson et
    al. 2004, Magn Reson Med 52:471): three Gaussians there, 22 and 16 mm wide (standard deviation), with
    jitter in place and strength. Their places are relative to the field of view.

    Parameters
    ----------
    shape, spacing
        Grid; spacing in mm.
    hertz
        Largest frequency error in the field of view.
    generator
        Source of places and strengths.

    Returns
    -------
    Tensor of shape (X, Y, Z)
        Frequency error in Hz, not negative.
    """
    _require_grid(shape, spacing)
    _require_amount(hertz, 'hertz')
    device = generator.device
    field = torch.zeros(shape, device=device)
    if hertz == 0:
        return field
    half = _half_extent(shape, spacing)
    for place, width, low, high in (
        ((0.0, 0.5, -0.2), 22.0, 1.0, 1.0),
        ((-0.5, -0.05, -0.35), 16.0, 0.4, 0.8),
        ((0.5, -0.05, -0.35), 16.0, 0.4, 0.8),
    ):
        jitter = _uniform(3, -4, 4, generator).tolist()
        x, y, z = (place[axis] * half[axis] + jitter[axis] for axis in range(3))
        field += _uniform(1, low, high, generator) * _gaussian(
            shape, half, (x, y, z), (width, width, width), device
        )
    return field * (hertz / field.max().clamp_min(torch.finfo(torch.float32).tiny))


def readout_shift(image: Tensor, field_hz: Tensor, *, bandwidth_per_pixel: float, axis: int) -> Tensor:
    """Distort an image along the readout as off-resonant signal is read at the wrong place.

    Signal at voxel x appears at ``x + field(x) / bandwidth``, brighter where it is compressed and darker
    where it is spread (Jezzard and Balaban 1995, Magn Reson Med 34:65). The source of each voxel is found by
    fixed-point iteration and interpolated linearly; signal shifted out of the field of view is lost.

    Parameters
    ----------
    image
        (X, Y, Z).
    field_hz
        (X, Y, Z), frequency error in Hz, of either sign.
    bandwidth_per_pixel
        Receiver bandwidth of one voxel in Hz; positive. Anatomical scans have 100 to 400.
    axis
        Readout direction.
    """
    shape = _shape_of(image)
    _require_axis(axis)
    _require(
        bandwidth_per_pixel > 0 and not math.isnan(bandwidth_per_pixel),
        f'A bandwidth of {bandwidth_per_pixel:g} Hz reads nothing.',
        where='bandwidth_per_pixel',
    )
    _require(
        tuple(field_hz.shape) == shape, 'The field does not have the shape of the image.', where='field_hz'
    )
    if not bool(field_hz.any()):
        return image
    shift = (field_hz / bandwidth_per_pixel).movedim(axis, -1).contiguous()
    _require(
        shift.shape[-1] == 1 or bool(shift.diff(dim=-1).min() > -0.9),
        'The field changes so fast that the image would fold over itself.',
        where='field_hz, bandwidth_per_pixel',
        fix='Use a weaker field or a larger bandwidth.',
    )
    target = torch.arange(shift.shape[-1], device=image.device, dtype=torch.float32)
    source = target - shift
    for _ in range(4):
        source = target - _interpolate(shift, source, outside='edge')
    result = _interpolate(image.movedim(axis, -1).contiguous(), source, outside='nothing')
    if shift.shape[-1] > 1:
        result = result * torch.gradient(source, dim=-1)[0]
    return result.movedim(-1, axis).contiguous()


def _interpolate(values: Tensor, position: Tensor, *, outside: Literal['edge', 'nothing']) -> Tensor:
    """Interpolate linearly along the last axis at fractional voxel positions."""
    last = values.shape[-1] - 1
    if outside == 'edge':
        position = position.clamp(0, last)
    lower = position.floor()
    weight = position - lower
    index = lower.long()
    first, second = (values.gather(-1, (index + step).clamp(0, last)) for step in (0, 1))
    if outside == 'nothing':
        first = torch.where((index >= 0) & (index <= last), first, 0)
        second = torch.where((index >= -1) & (index < last), second, 0)
    return first + weight * (second - first)


# --- k-space ---


def _lines(size: int, device: torch.device) -> Tensor:
    """Return the signed line number of each frequency of a transform along an axis."""
    return torch.fft.fftfreq(size, 1 / size, device=device).round()


def kspace_window(
    image: Tensor,
    *,
    resolution_fraction: Triple = (1, 1, 1),
    taper: float = 0,
    partial_fourier: float = 1,
    partial_axis: int = 1,
    slices: int | None = None,
) -> Tensor:
    """Keep the middle of k-space, filter it, and fill the rest with zeros as interpolating scanners do.

    Truncation blurs and rings, the point spread being a Dirichlet kernel, and the filter trades ringing for
    blur (Bernstein et al. 2001, J Magn Reson Imaging 14:270). The filter is a Tukey window along each axis
    (Harris 1978, Proc IEEE 66:51). Partial Fourier leaves the early lines of one axis unmeasured and fills
    them with zeros too (McGibney et al. 1993, Magn Reson Med 30:51).

    Parameters
    ----------
    image
        (X, Y, Z).
    resolution_fraction
        Measured part of k-space per axis, in (0, 1]; it is rounded to whole lines, and 0.5 doubles the size
        of a resolved voxel. An even number of lines ends in two that count half each.
    taper
        Part of the measured extent over which the filter falls, in [0, 1]: 0 for no filter, 1 for a Hann
        window. It acts along all axes that k-space has.
    partial_fourier
        Measured part of the lines of ``partial_axis``, in (0.5, 1].
    partial_axis
        Phase-encode direction.
    slices
        Axis along which slices were measured one by one, which has no k-space; None for volumes.

    Returns
    -------
    Tensor of shape (X, Y, Z)
        Its mean is that of the image, and ringing may make it negative; with partial Fourier it is the
        magnitude.
    """
    shape = _shape_of(image)
    _require_axis(partial_axis)
    _require(
        len(resolution_fraction) == 3 and all(0 < part <= 1 for part in resolution_fraction),
        f'{tuple(resolution_fraction)} are not three parts of k-space.',
        where='resolution_fraction',
        fix='Use numbers above 0, at most 1.',
    )
    _require(0 <= taper <= 1, f'{taper:g} is not between 0 and 1.', where='taper')
    _require(
        0.5 < partial_fourier <= 1,
        f'{partial_fourier:g} of the lines do not determine an image.',
        where='partial_fourier',
        fix='Use more than 0.5, at most 1.',
    )
    measured = [max(1, round(part * size)) for part, size in zip(resolution_fraction, shape, strict=True)]
    axes = [
        axis for axis in range(3)
        if axis != slices and shape[axis] > 1 and (taper > 0 or measured[axis] < shape[axis])
    ]  # fmt: skip
    if axes:
        # The halved last axis of a real transform needs the windows of its non-negative frequencies only.
        spectrum = torch.fft.rfftn(image, dim=axes)
        for axis in axes:
            window = _tukey(shape[axis], measured[axis], taper, image.device)
            spectrum *= _along(window[: spectrum.shape[axis]], axis)
        image = torch.fft.irfftn(spectrum, s=[shape[axis] for axis in axes], dim=axes)
    return _skip_lines(image, measured[partial_axis], partial_fourier, partial_axis)


def _skip_lines(image: Tensor, measured: int, fraction: float, axis: int) -> Tensor:
    """Zero the earliest of the measured lines, and return the magnitude if there are any."""
    skipped = round((1 - fraction) * measured)
    if skipped == 0:
        return image
    kept = _lines(image.shape[axis], image.device) >= skipped - measured // 2
    return torch.fft.ifft(torch.fft.fft(image, dim=axis) * _along(kept, axis), dim=axis).abs()


def _tukey(size: int, measured: int, taper: float, device: torch.device) -> Tensor:
    """Return the window over the frequencies of one axis, in the order of the transform."""
    distance = _lines(size, device).abs() / (measured / 2)
    window = (distance < 1).float()
    if measured < size:
        window[distance == 1] = 0.5
    else:
        window[:] = 1
    if taper > 0:
        fall = ((distance - (1 - taper)) / max(taper, 1e-6)).clamp(0, 1)  # less than that is no taper
        window = window * (1 + torch.cos(math.pi * fall)) / 2
    return window


def slice_profile(image: Tensor, *, factor: int, axis: int, gap: int = 0) -> Tensor:
    """Average neighbouring planes into thick slices, with a box for a profile.

    The first slice begins with the first plane, and planes at the end that fill no slice are left out. The
    affine is the caller's business: slice i lies at plane ``(factor - 1) / 2 + i (factor + gap)``.

    Parameters
    ----------
    image
        (X, Y, Z).
    factor
        Planes in a slice, at least 1.
    axis
        Slice direction.
    gap
        Planes between two slices that are never measured.

    Returns
    -------
    Tensor
        Along ``axis`` there are ``(planes - factor) // (factor + gap) + 1`` slices.
    """
    _shape_of(image)
    _require_axis(axis)
    _require(
        1 <= factor <= image.shape[axis],
        f'A slice of {factor} planes cannot be cut from {image.shape[axis]}.',
        where='factor',
    )
    _require(gap >= 0, f'A gap of {gap} planes is negative.', where='gap')
    if factor == 1 and gap == 0:
        return image
    return image.unfold(axis, factor, factor + gap).mean(dim=-1)


# --- Noise ---


def add_rician(image: Tensor, *, sigma: float, generator: Generator) -> Tensor:
    """Return the magnitude of an image with complex Gaussian noise (Gudbjartsson and Patz 1995, MRM 34:910).

    Parameters
    ----------
    image
        (X, Y, Z), without noise.
    sigma
        Standard deviation of the real and of the imaginary noise, in units of the image.
    generator
        Source of the noise.
    """
    _shape_of(image)
    _require_amount(sigma, 'sigma')
    return image if sigma == 0 else _rician(image, sigma, generator)


def _rician(image: Tensor, sigma: float | Tensor, generator: Generator) -> Tensor:
    real, imaginary = (
        torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
        for _ in range(2)
    )
    return torch.hypot(image + sigma * real, sigma * imaginary)


def add_noncentral_chi(image: Tensor, *, sigma: float, coils: int, generator: Generator) -> Tensor:
    """Return the root of the sum of squares of coils with independent complex Gaussian noise.

    The noise is noncentral chi with two degrees of freedom per coil (Constantinides et al. 1997, Magn Reson
    Med 38:852). How the signal is shared between the coils does not matter, so one carries it all.

    Parameters
    ----------
    image
        (X, Y, Z), without noise: the root of the sum of squares of the coils' signals.
    sigma
        Standard deviation of the real and of the imaginary noise of a coil, in units of the image.
    coils
        Number of coils, at least 1; with 1 this is :func:`add_rician`.
    generator
        Source of the noise.
    """
    _shape_of(image)
    _require_amount(sigma, 'sigma')
    _require(coils >= 1, f'{coils} coils receive nothing.', where='coils', fix='Use 1 or more.')
    if sigma == 0:
        return image
    magnitude = _rician(image, sigma, generator)
    if coils == 1:
        return magnitude
    # The squares of a further coil sum to twice an exponential, -2 log(U). Logarithms being slow, they are
    # taken of products, of four so as not to underflow.
    others = torch.zeros_like(magnitude)
    for start in range(0, coils - 1, 4):
        product = torch.ones_like(magnitude)
        for _ in range(min(4, coils - 1 - start)):
            product *= 1 - torch.rand(magnitude.shape, generator=generator, device=magnitude.device)
        others -= 2 * product.log_()
    return (magnitude**2 + sigma**2 * others).sqrt()


def geometry_factor(shape: Shape, *, acceleration: float, device: torch.device | str = 'cpu') -> Tensor:
    """Return how much a parallel reconstruction amplifies noise: hardly at the edge, most in the centre.

    A smooth stand-in for the g-factor of Pruessmann et al. 1999, Magn Reson Med 42:952, whose pattern
    depends on every coil: ``1 + 0.12 (R - 1)² b`` with a bump b that is 1 at the isocentre. So g reaches
    1.1, 1.5 and 2.1 for accelerations of 2, 3 and 4, about what head arrays show.

    Parameters
    ----------
    shape
        Grid; the bump is relative to it.
    acceleration
        Reduction factor R, at least 1.
    device
        Where to compute.
    """
    _require(
        math.isfinite(acceleration) and acceleration >= 1,
        f'An acceleration of {acceleration:g} is below 1 or no number.',
        where='acceleration',
    )
    bump = _gaussian(shape, (1, 1, 1), (0, 0, 0), (0.45, 0.45, 0.45), torch.device(device))
    return 1 + 0.12 * (acceleration - 1) ** 2 * bump


def add_parallel_noise(image: Tensor, *, sigma: float, acceleration: float, generator: Generator) -> Tensor:
    """Return the magnitude of an accelerated image: Rician noise that varies over space.

    The standard deviation is ``sigma g sqrt(R)`` with the :func:`geometry_factor` g (Pruessmann et al. 1999,
    Magn Reson Med 42:952), and the distribution after a reconstruction in image space stays Rician
    (Aja-Fernández et al. 2014, arXiv:1402.4067).

    Parameters
    ----------
    image
        (X, Y, Z), without noise.
    sigma
        Standard deviation of the real and of the imaginary noise without acceleration, in units of the image.
    acceleration
        Reduction factor R, at least 1; with 1 this is :func:`add_rician`.
    generator
        Source of the noise.
    """
    shape = _shape_of(image)
    _require_amount(sigma, 'sigma')
    amplification = geometry_factor(shape, acceleration=acceleration, device=image.device)
    if sigma == 0:
        return image
    return _rician(image, sigma * math.sqrt(acceleration) * amplification, generator)


# --- Motion and ghosts ---


def motion(
    image: Tensor,
    spacing: Triple,
    *,
    degrees: float,
    millimetres: float,
    events: int,
    axis: int,
    generator: Generator,
) -> Tensor:
    """Stitch k-space from poses of a head that moves at some moments of the scan, and return the magnitude.

    The phase-encode lines along ``axis`` are measured in order, each with the other directions of k-space at
    once. At each event the head takes another pose and keeps it until the next (Shaw et al. 2019, Proc Mach
    Learn Res 102:427). No event comes in the :data:`STILL` middle of the lines, and these keep the pose of
    the input: they hold most of the energy, so the truth about the anatomy stays in place.

    Parameters
    ----------
    image
        (X, Y, Z), not negative.
    spacing
        Voxel size in mm.
    degrees, millimetres
        Largest rotation about and translation along each axis of the scanner; all angles and distances up to
        these are equally likely.
    events
        How often the head moves; 0 for a still head.
    axis
        Phase-encode direction.
    generator
        Source of moments and poses.
    """
    shape = _shape_of(image)
    _require_grid(shape, spacing)
    _require_axis(axis)
    _require_amount(degrees, 'degrees')
    _require_amount(millimetres, 'millimetres')
    size = shape[axis]
    moments = _moments(size)
    _require(
        0 <= events <= len(moments),
        f'{events} movements do not fit into {size} lines.',
        where='events',
        fix=f'Use 0 to {len(moments)}.',
    )
    if events == 0 or (degrees == 0 and millimetres == 0):
        return image
    chosen = torch.randperm(len(moments), generator=generator, device=generator.device)[:events].tolist()
    borders = [0, *sorted(moments[index] for index in chosen), size]
    spectrum = torch.fft.fft(image, dim=axis)
    order = torch.fft.fftshift(torch.arange(size, device=image.device))  # from time to place in the spectrum
    for start, stop in pairwise(borders):
        if start <= size // 2 < stop:
            continue  # the middle of k-space, in the pose of the input
        angles = torch.deg2rad(_uniform(3, -degrees, degrees, generator)).tolist()
        shifts = _uniform(3, -millimetres, millimetres, generator).tolist()
        moved = torch.fft.fft(_rigid(image, spacing, angles, shifts), dim=axis)
        lines = order[start:stop]
        spectrum.index_copy_(axis, lines, moved.index_select(axis, lines))
    return torch.fft.ifft(spectrum, dim=axis).abs()


def _moments(size: int) -> list[int]:
    """Return the lines, in order of time, before which a head may move."""
    middle, still = size // 2, max(1, round(STILL * size / 2))
    return [line for line in range(1, size) if line <= middle - still or line > middle + still]


def _rigid(image: Tensor, spacing: Triple, angles: list[float], shifts: list[float]) -> Tensor:
    """Resample a moved head: rotations about x, y, z (radians) around the isocentre, and a shift in mm."""
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        rotation = turn @ rotation
    half = np.array(_half_extent(_shape_of(image), spacing))
    # In the coordinates of grid_sample: relative to half the field of view, the last axis first.
    matrix = np.column_stack([rotation * half[None, :] / half[:, None], np.array(shifts) / half])
    matrix = matrix[::-1][:, [2, 1, 0, 3]]
    theta = torch.tensor(matrix.copy(), device=image.device, dtype=image.dtype)
    grid = torch.nn.functional.affine_grid(theta[None], [1, 1, *image.shape], align_corners=False)
    return _sample(image, grid[0])


def ghosting(image: Tensor, *, intensity: float, count: int, axis: int) -> Tensor:
    """Weaken every ``count``-th phase-encode line, which repeats the image along ``axis``.

    A disturbance with a period of ``count`` lines makes copies at multiples of ``size / count`` voxels (Wood
    and Henkelman 1985, Med Phys 12:143): the image is left with the amplitude ``1 - intensity / count``, and
    each of the ``count - 1`` ghosts has ``intensity / count``, exactly so where ``count`` divides the size.
    The middle line is spared, so the complex mean is kept; what is returned is the magnitude.

    Parameters
    ----------
    image
        (X, Y, Z), not negative.
    intensity
        Lost part of the amplitude of the weak lines, in [0, 1].
    count
        Period in lines, from 2 to the number of lines. With 2, even and odd lines differ.
    axis
        Phase-encode direction.
    """
    _require_axis(axis)
    size = _shape_of(image)[axis]
    _require(0 <= intensity <= 1, f'{intensity:g} is not between 0 and 1.', where='intensity')
    if intensity == 0:
        return image
    _require(
        2 <= count <= size,
        f'Every {count}th of {size} lines makes no ghosts.',
        where='count',
        fix='Use 2 or more.',
    )
    weak = torch.remainder(_lines(size, image.device), count) == count // 2
    factors = torch.where(weak, 1 - intensity, 1.0)
    return torch.fft.ifft(torch.fft.fft(image, dim=axis) * _along(factors, axis), dim=axis).abs()


# --- Storage ---

_KINDS: dict[str, tuple[type[np.integer[Any]], int]] = {
    'int16': (np.int16, 32767),
    'uint8': (np.uint8, 255),
    'uint12': (np.uint16, 4095),
}


def store(
    image: Tensor,
    *,
    scale: float | None,
    kind: Literal['int16', 'uint8', 'uint12'],
    saturation: float = 0,
) -> NDArray[np.integer[Any]]:
    """Scale, clip and round an image to the integers that a scanner stores.

    Parameters
    ----------
    image
        (X, Y, Z).
    scale
        Stored number for an image value of 1; None stretches the brightest value that is not saturated to the
        largest number of ``kind``, as vendors do that use their whole range.
    kind
        ``int16``, ``uint8``, or the twelve bits of ``uint12``, which are handed out as uint16.
    saturation
        Part of all voxels, the brightest, that are clipped to the value of the next one below, in [0, 1).

    Returns
    -------
    ndarray of shape (X, Y, Z)
        int16, uint8 or uint16, on the CPU. Halves are rounded to even, negative values become 0, and values
        above 32767, 255 or 4095 become these.
    """
    _shape_of(image)
    _require(
        kind in _KINDS, f'There is no kind {kind!r}.', where='kind', fix=f'Use one of {", ".join(_KINDS)}.'
    )
    _require(0 <= saturation < 1, f'{saturation:g} is not in [0, 1).', where='saturation')
    _require(
        scale is None or (math.isfinite(scale) and scale > 0),
        'A scale is positive and finite.',
        where='scale',
        fix='Use None for the whole range.',
    )
    dtype, top = _KINDS[kind]
    clipped = min(round(saturation * image.numel()), image.numel() - 1)
    values = image
    if clipped > 0:
        values = image.clamp_max(torch.topk(image.flatten(), clipped + 1).values[-1])
    if scale is None:
        highest = float(values.max())
        scale = top / highest if highest > 0 else 1.0
    return (values * scale).round().clamp(0, top).cpu().numpy().astype(dtype)
