"""Smooth invertible warps: what makes one head another, and how ventricles widen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, ndimage

from bidsharm.errors import UsageError
from bidsharm.simulation.anatomy import (
    FIELD_OF_VIEW,
    Anatomy,
    Float32,
    Float64,
    to_voxels,
    world_of,
)

#: Where the lateral ventricles lie: centre (RAS mm), and standard deviation of the window around it (mm).
VENTRICLES, VENTRICLES_EXTENT = (0.0, -12.0, 16.0), 30.0

_SPACING = 4.0  # mm: grid of the warps


@dataclass(frozen=True)
class Warp:
    """A diffeomorphism from a person's head to the template.

    Parameters
    ----------
    displacement
        Shape (3, X, Y, Z), float32, mm: a point x of the head is the template's x + displacement(x).
    affine
        Voxel to world (RAS mm) of the displacement's own coarse grid, shape (4, 4).
    """

    displacement: Float32
    affine: Float64

    def __call__(self, points: Float64) -> Float64:
        """Map world points of the head, shape (3, ...), to world points of the template."""
        return points + sample_vectors(self.displacement, to_voxels(self.affine, points))

    @property
    def jacobian(self) -> Float64:
        """Jacobian determinant at the points of the grid, shape (X, Y, Z); positive for a diffeomorphism."""
        spacing = np.diag(self.affine)[:3]
        gradient = np.stack([np.stack(np.gradient(component, *spacing)) for component in self.displacement])
        return np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3))


def ventricle_walls(template: Anatomy) -> Float64:
    """Return a velocity field that widens the ventricles: 1 mm where their walls are steepest.

    It points up the gradient of the blurred fluid deep in the brain, since a warp goes from the head to
    the template: what is drawn into the template's ventricles becomes ventricle in the head.

    Returns
    -------
    ndarray of shape (3, X, Y, Z)
        On the grid of the warps, in mm.
    """
    affine, shape = warp_grid()
    points = world_of(affine, shape)
    places = to_voxels(template.affine, points)
    fluid = ndimage.gaussian_filter(template.part('CSF'), 3 / np.diag(template.affine)[0])
    fluid = ndimage.map_coordinates(fluid, places, order=1, mode='constant', output=float)
    inside = ndimage.map_coordinates(template.brain, places, order=1, mode='constant', output=float) >= 0.5
    deep = ndimage.distance_transform_edt(inside, sampling=_SPACING) > 20
    distance = ((points - np.reshape(VENTRICLES, (3, 1, 1, 1))) ** 2).sum(axis=0)
    fluid *= ndimage.gaussian_filter(deep.astype(float), 1) * np.exp(-distance / (2 * VENTRICLES_EXTENT**2))
    velocity = np.stack(np.gradient(fluid))
    return velocity / np.sqrt((velocity**2).sum(axis=0)).max()


def random_warp(rng: np.random.Generator, *, amount: float = 1.0, velocity: Float64 | None = None) -> Warp:
    """Draw a smooth random diffeomorphism.

    A stationary velocity field (Gaussian noise, smoothed at two scales) is integrated by scaling and
    squaring (Arsigny et al. 2006, doi:10.1007/11866565_113), which keeps the Jacobian positive.

    Parameters
    ----------
    rng
        Source of the noise.
    amount
        Factor on the size of the velocities; 1 moves a point by some 2 to 3 mm along each axis (root mean square).
    velocity
        Added to the random one: shape (3, X, Y, Z) in mm, on the grid of :func:`ventricle_walls`.

    Raises
    ------
    UsageError
        If so much is asked for that the discrete map folds.
    """
    affine, shape = warp_grid()
    total = np.zeros((3, *shape)) if velocity is None else velocity.copy()
    for sigma, size in ((25.0, 2.5), (8.0, 0.8)):  # mm: the shape of the head, and the folds
        for component in total:
            noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma / _SPACING)
            component += amount * size * noise / noise.std()
    warp = Warp(_exponential(total / _SPACING).astype(np.float32) * np.float32(_SPACING), affine)
    if warp.jacobian.min() <= 0:
        raise UsageError(
            'The requested warp folds the head.', where='amount', fix='Ask for a smaller amount.'
        )
    return warp


def warp_grid() -> tuple[Float64, tuple[int, ...]]:
    """Return affine and shape of the coarse grid on which warps live."""
    lower, upper = (np.array(corner) for corner in FIELD_OF_VIEW)
    affine = np.diag([_SPACING, _SPACING, _SPACING, 1.0])
    affine[:3, 3] = lower
    return affine, tuple(int(n) for n in np.ceil((upper - lower) / _SPACING) + 1)


def _exponential(velocity: Float64) -> Float64:
    """Integrate a velocity field in voxels by scaling and squaring."""
    steps = max(0, int(np.ceil(np.log2(np.abs(velocity).max() / 0.25 + 1e-12))))
    displacement = velocity / 2**steps
    grid = np.indices(velocity.shape[1:], dtype=float)
    for _ in range(steps):
        displacement = displacement + sample_vectors(displacement, grid + displacement)
    return displacement


def sample_vectors(field: NDArray[np.floating], voxels: Float64) -> Float64:
    """Interpolate a vector field linearly at voxel positions, shape (3, ...)."""
    return np.stack(
        [ndimage.map_coordinates(part, voxels, order=1, mode='nearest', output=float) for part in field]
    )


def push(centre: Float64, millimetres: float, reach: float) -> Float64:
    """Return a velocity field that pushes tissue away from a point, as a growing mass does.

    Parameters
    ----------
    centre
        The point (RAS mm).
    millimetres
        Largest velocity.
    reach
        Distance from the centre at which it is largest (mm).

    Returns
    -------
    ndarray of shape (3, X, Y, Z)
        On the grid of the warps, in mm. It points inwards, since a warp goes from the head to the template.
    """
    affine, shape = warp_grid()
    offset = world_of(affine, shape) - np.reshape(centre, (3, 1, 1, 1))
    return _inwards(offset, np.sqrt((offset**2).sum(axis=0)), millimetres, reach)


def _inwards(offset: Float64, distance: Float64, millimetres: float, reach: float) -> Float64:
    """Return the velocity of a push at an offset from its centre, and at that distance (mm)."""
    return -offset / reach * millimetres * np.exp((1 - (distance / reach) ** 2) / 2)


def radius_before(radius: float, millimetres: float, reach: float) -> float:
    """Return the radius that a ball has before :func:`push` moves its surface to a radius (mm).

    Parameters
    ----------
    radius
        Radius of the ball after the push (mm).
    millimetres, reach
        As of the push, whose centre is that of the ball.
    """

    def speed(_time: float, distance: Float64) -> Float64:
        return _inwards(distance, distance, millimetres, reach)

    return float(integrate.solve_ivp(speed, (0, 1), [radius], rtol=1e-6).y[0, -1])
