"""Heads with known tissue: the MNI152 tissue maps in a simple shell of bone and scalp, warped into different people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.errors import UsageError
from bidsharm.imaging.templates import tissue_priors

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

#: Tissues of a head, in the order of the first axis of every array of fractions.
TISSUES = ('CSF', 'GM', 'WM', 'meninges', 'skull', 'scalp')
#: The tissues that the brain mask holds: the first three.
BRAIN_TISSUES = TISSUES[:3]
#: Labels of a discrete segmentation, as in ``dseg.tsv``.
DSEG_LABELS = {'GM': 1, 'WM': 2, 'CSF': 3}

#: Outer borders of the shells, in mm from the smoothed surface of the brain.
SHELL_BORDERS = {'meninges': 2.0, 'skull': 8.0, 'scalp': 13.0}
#: World box (RAS mm, lower and upper corner) that holds a whole head in any pose that is drawn here.
FIELD_OF_VIEW = ((-104.0, -140.0, -100.0), (104.0, 108.0, 112.0))
#: Heads turn about this point (RAS mm), near the centre of the brain.
HEAD_CENTRE = (0.0, -18.0, 5.0)
#: Where the lateral ventricles lie: centre (RAS mm), and standard deviation of the window around it (mm).
VENTRICLES, VENTRICLES_EXTENT = (0.0, -12.0, 16.0), 30.0

_SPACING = 4.0  # mm: grid of the warps
_MARGIN = 24.0  # mm of air around the brain of the template: the shell and what a warp may move it


@dataclass(frozen=True)
class Anatomy:
    """Tissue fractions on a grid.

    Parameters
    ----------
    fractions
        Shape (6, X, Y, Z), float32 in [0, 1], in the order of :data:`TISSUES`; what is missing to 1 is air.
    affine
        Voxel to world (RAS mm), shape (4, 4).
    """

    fractions: Float32
    affine: Float64

    @property
    def brain(self) -> Float32:
        """Fraction of brain (CSF, GM and WM inside the mask) in each voxel, shape (X, Y, Z)."""
        return self.fractions[: len(BRAIN_TISSUES)].sum(axis=0)

    @property
    def brain_mask(self) -> NDArray[np.bool_]:
        """Voxels that are at least half brain, shape (X, Y, Z)."""
        return self.brain >= 0.5

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Largest brain tissue per voxel inside the mask, as :data:`DSEG_LABELS`; 0 outside."""
        codes = np.array([DSEG_LABELS[name] for name in BRAIN_TISSUES], dtype=np.uint8)
        largest = codes[self.fractions[: len(BRAIN_TISSUES)].argmax(axis=0)]
        return np.where(self.brain_mask, largest, 0).astype(np.uint8)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


def load_template(*, head: bool = True, step: int = 1) -> Anatomy:
    """Return the average anatomy: the bundled MNI152 tissue maps, in a procedural shell.

    Parameters
    ----------
    head
        Whether to put meninges, skull and scalp around the brain.
    step
        Voxel size in mm, a whole number.

    Notes
    -----
    The shell follows the closed surface of the brain at fixed distances. It gives brain extraction
    something to remove; there is no face, no neck and no marrow.
    """
    image, priors_image = tissue_priors()
    mask = np.asarray(image.dataobj) > 0
    priors = np.asarray(priors_image.dataobj, dtype=np.float32)
    margin = int(np.ceil(_MARGIN / step)) * step
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    # Air on every side, and whole blocks of voxels.
    widths = [
        (margin, margin + (start - stop) % step) for start, stop in ((axis.start, axis.stop) for axis in box)
    ]
    total = np.where(
        mask & (priors.sum(-1) > 0), priors.sum(-1), np.inf
    )  # the maps reach a little beyond the brain
    brain = np.stack([np.pad((priors[..., k] / total)[box], widths) for k in range(len(BRAIN_TISSUES))])
    fractions = np.zeros((len(TISSUES), *(size // step for size in brain.shape[1:])), dtype=np.float32)
    fractions[: len(BRAIN_TISSUES)] = _block_mean(brain, step)
    if head:
        fractions[len(BRAIN_TISSUES) :] = _shell(fractions[: len(BRAIN_TISSUES)].sum(axis=0), float(step))
    affine = np.array(priors_image.affine, dtype=float)
    origin = np.array([axis.start - margin + (step - 1) / 2 for axis in box])
    affine[:3, 3] += affine[:3, :3] @ origin
    affine[:3, :3] *= step
    return Anatomy(fractions, affine)


def _block_mean(data: Float32, step: int) -> Float32:
    x, y, z = (size // step for size in data.shape[1:])
    return data.reshape(-1, x, step, y, step, z, step).mean(axis=(2, 4, 6))


def _shell(brain: Float32, spacing: float) -> Float32:
    """Return meninges, skull and scalp around a brain (fraction per voxel), shape (3, X, Y, Z)."""
    mask = brain >= 0.5
    coarse = max(1, round(2 / spacing))  # the surface is smooth, so 2 mm is enough and much faster
    size = spacing * coarse
    closed = _signed_distance(mask[::coarse, ::coarse, ::coarse], size) <= 10
    closed = _signed_distance(closed, size) <= -10
    distance = ndimage.gaussian_filter(_signed_distance(closed, size), 3 / size)
    if coarse > 1:
        points = np.meshgrid(*(np.arange(n) / coarse for n in mask.shape), indexing='ij')
        distance = ndimage.map_coordinates(distance, points, order=1, mode='nearest', output=np.float32)
    filled = brain
    layers = []
    for border in SHELL_BORDERS.values():
        within = np.maximum(np.clip(0.5 + (border - distance) / spacing, 0, 1), filled)
        layers.append(within - filled)
        filled = within
    return np.stack(layers).astype(np.float32)


def _signed_distance(mask: NDArray[np.bool_], spacing: float) -> Float32:
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    return (outside - inside).astype(np.float32)


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
        return points + _sample(self.displacement, _to_voxels(self.affine, points))

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
    affine, shape = _warp_grid()
    points = _world(affine, shape)
    places = _to_voxels(template.affine, points)
    fluid = ndimage.gaussian_filter(template.fractions[TISSUES.index('CSF')], 3 / np.diag(template.affine)[0])
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
    affine, shape = _warp_grid()
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


def _warp_grid() -> tuple[Float64, tuple[int, ...]]:
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
        displacement = displacement + _sample(displacement, grid + displacement)
    return displacement


def _sample(field: NDArray[np.floating], voxels: Float64) -> Float64:
    """Interpolate a vector field linearly at voxel positions, shape (3, ...)."""
    return np.stack(
        [ndimage.map_coordinates(part, voxels, order=1, mode='nearest', output=float) for part in field]
    )


def _to_voxels(affine: Float64, points: Float64) -> Float64:
    inverse = np.linalg.inv(affine)
    return np.tensordot(inverse[:3, :3], points, axes=1) + inverse[:3, 3].reshape(
        (3,) + (1,) * (points.ndim - 1)
    )


def _world(affine: Float64, shape: tuple[int, ...]) -> Float64:
    return np.tensordot(affine[:3, :3], np.indices(shape, dtype=float), axes=1) + affine[:3, 3].reshape(
        3, 1, 1, 1
    )


@dataclass(frozen=True)
class Person:
    """A simulated participant.

    Parameters
    ----------
    label
        BIDS label, without ``sub-``.
    age
        Age in years, 20 to 80. Ventricles widen with it.
    sex
        ``F`` or ``M``; without any effect on the anatomy.
    warp
        From this person's head to the template.
    """

    label: str
    age: int
    sex: str
    warp: Warp


def draw_person(rng: np.random.Generator, label: str, walls: Float64) -> Person:
    """Draw a person: age, sex and anatomy.

    Parameters
    ----------
    rng
        Source of chance.
    label
        BIDS label, without ``sub-``.
    walls
        How ventricles widen, from :func:`ventricle_walls`.
    """
    age = int(rng.integers(20, 81))
    sex = str(rng.choice(['F', 'M']))
    # The walls move out from 20 to 80 years, and people of one age differ. Round numbers, not fitted ones.
    millimetres = 1.5 * (age - 50) / 30 + 0.3 * rng.standard_normal()
    return Person(label, age, sex, random_warp(rng, velocity=millimetres * walls))


def random_pose(rng: np.random.Generator, *, degrees: float = 3.0, millimetres: float = 4.0) -> Float64:
    """Draw how a head lies in the scanner.

    Parameters
    ----------
    rng
        Source of chance.
    degrees, millimetres
        Largest rotation about, and shift along, each axis.

    Returns
    -------
    ndarray of shape (4, 4)
        Rigid map from the scanner's world to the head's, in mm.
    """
    x, y, z = np.deg2rad(rng.uniform(-degrees, degrees, 3))
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    centre = np.array(HEAD_CENTRE)
    pose = np.eye(4)
    pose[:3, :3] = about_z @ about_y @ about_x
    pose[:3, 3] = centre - pose[:3, :3] @ centre + rng.uniform(-millimetres, millimetres, 3)
    return pose


def scan_grid(resolution: float, slice_factor: int = 1) -> tuple[tuple[int, int, int], Float64]:
    """Return shape and RAS affine of a grid over the field of view.

    Parameters
    ----------
    resolution
        In-plane voxel size in mm.
    slice_factor
        How many times thicker the voxels are from foot to head.
    """
    lower, upper = (np.array(corner) for corner in FIELD_OF_VIEW)
    sizes = np.array([resolution, resolution, resolution * slice_factor])
    x, y, z = (int(n) for n in np.ceil((upper - lower) / sizes))
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = lower + sizes / 2
    return (x, y, z), affine


def smooth_to(template: Anatomy, resolution: float) -> Anatomy:
    """Blur a template so that sampling it at a coarser resolution (mm) averages instead of picking voxels."""
    size = float(np.diag(template.affine)[0])
    if resolution <= size:
        return template
    sigma = np.sqrt(resolution**2 - size**2) / (2 * np.sqrt(2 * np.log(2))) / size
    blurred = np.stack([ndimage.gaussian_filter(part, sigma, mode='constant') for part in template.fractions])
    return Anatomy(blurred, template.affine)


def render(
    template: Anatomy,
    *,
    shape: tuple[int, int, int],
    affine: Float64,
    warp: Warp | None = None,
    pose: Float64 | None = None,
    slice_factor: int = 1,
) -> Anatomy:
    """Sample a person's anatomy on the grid of a scan.

    Parameters
    ----------
    template
        Fractions on the template's grid.
    shape, affine
        The grid of the scan.
    warp
        The person; None is the template itself.
    pose
        Scanner's world to head's world, shape (4, 4); None is the identity.
    slice_factor
        Planes that are averaged into one slice, evenly spread over its thickness.
    """
    fractions = np.zeros((len(TISSUES), *shape), dtype=np.float32)
    to_head = affine if pose is None else pose @ affine
    for start, stop in _slabs(shape[2], 16):
        for plane in range(slice_factor):
            voxels = np.indices((*shape[:2], stop - start), dtype=float)
            voxels[2] += start + (plane + 0.5) / slice_factor - 0.5
            points = np.tensordot(to_head[:3, :3], voxels, axes=1) + to_head[:3, 3].reshape(3, 1, 1, 1)
            places = _to_voxels(template.affine, points if warp is None else warp(points))
            for index, part in enumerate(template.fractions):
                if part.any():
                    sampled = ndimage.map_coordinates(
                        part, places, order=1, mode='constant', output=np.float32
                    )
                    fractions[index, :, :, start:stop] += sampled
    return Anatomy(fractions / np.float32(slice_factor), affine)


def _slabs(size: int, thickness: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, thickness):
        yield start, min(start + thickness, size)
