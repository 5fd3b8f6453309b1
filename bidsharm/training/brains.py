"""Brains to train on: people drawn from label maps once, at the resolution that training needs, and kept as small files.

Drawing a person takes seconds, scanning one milliseconds; so people are drawn beforehand, and every scan of the training is a new
scanner looking at one of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bidsharm.imaging.lowres import SIZE_MM
from bidsharm.simulation.anatomy import BRAIN_TISSUES, TISSUES, Anatomy, to_voxels, world_of
from bidsharm.simulation.heads import BRAIN_CENTRE, TEMPLATE_SIZE, load_labels, load_template
from bidsharm.simulation.pathology import add_lesions, widen_sulci
from bidsharm.simulation.people import (
    CORTEX_MM,
    CORTEX_SPREAD,
    SIZE,
    SIZE_SPREAD,
    VENTRICLES_MM,
    VENTRICLES_SPREAD,
)
from bidsharm.simulation.rendering import smooth_to
from bidsharm.simulation.warps import random_warp, ventricle_walls

#: Tissues of a brain, in the order of :attr:`Brain.fractions`; 'sulci' is the fluid outside the ventricles, with its membranes.
KINDS = ('CSF', 'sulci', 'GM', 'deep GM', 'WM', 'lesion', 'around')
#: Half the field of view around the middle of the brain (mm).
_HALF = np.array([84.0, 104.0, 84.0])
#: How far around the brain voxels are kept, for masks that are too wide (voxels).
_RIM = 2
#: Standard deviations of the texture that is kept as 1 in steps.
_TEXTURE_STEP = 1 / 32


@dataclass(frozen=True)
class Brain:
    """A brain at 2 mm, brain voxels only.

    Parameters
    ----------
    inside
        Voxels that are kept: the brain and a rim around it, shape (X, Y, Z).
    fractions
        Fraction of each of :data:`KINDS` in 1/255, shape (7, N), uint8.
    texture
        Fields of T1 and proton density in 1/32 standard deviations, shape (2, N), int8.
    anatomy
        Name of the label map that it was drawn from.
    age
        Years.
    """

    inside: NDArray[np.bool_]
    fractions: NDArray[np.uint8]
    texture: NDArray[np.int8]
    anatomy: str
    age: float

    def save(self, path: Path) -> None:
        """Write to a compressed ``.npz``."""
        np.savez_compressed(
            path, shape=self.inside.shape, inside=np.packbits(self.inside), fractions=self.fractions,
            texture=self.texture, anatomy=self.anatomy, age=self.age,
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Brain:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as kept:
            shape = tuple(int(n) for n in kept['shape'])
            inside = np.unpackbits(kept['inside'], count=int(np.prod(shape))).reshape(shape).astype(bool)
            return cls(inside, kept['fractions'], kept['texture'], str(kept['anatomy']), float(kept['age']))


def draw_brains(
    maps: Sequence[Path | None], count: int, *, seed: int, degrees: float = 12.0, first: int = 0
) -> Iterator[Brain]:
    """Draw people, the same number from every anatomy.

    Parameters
    ----------
    maps
        Label maps; None stands for the MNI152 template.
    count
        Number of people in all.
    seed
        The same seed gives the same people.
    degrees
        How far heads are turned about each axis, at most.
    first
        So many people of each anatomy are passed over.
    """
    for turn, path in enumerate(maps):
        name = 'MNI152' if path is None else path.name.split('.')[0]
        head = load_template(head=False) if path is None else load_labels(path, head=False)
        walls = ventricle_walls(head)
        for number in range(turn + first * len(maps), count, len(maps)):
            rng = np.random.default_rng((seed, zlib.crc32(name.encode()), number))
            yield _draw(rng, head, walls, name, TEMPLATE_SIZE if path is None else 1.0, degrees)


def _draw(
    rng: np.random.Generator,
    head: Anatomy,
    walls: NDArray[np.float64],
    name: str,
    usual_size: float,
    degrees: float,
) -> Brain:
    """Draw one person: as :func:`bidsharm.simulation.people.draw_person`, but with wider spreads, for a training."""
    age = float(rng.uniform(20, 80))
    later = (age - 50) / 30
    ventricles = VENTRICLES_MM * later + 3 * VENTRICLES_SPREAD * rng.standard_normal()
    cortex = float(np.clip(CORTEX_MM * later + 2 * CORTEX_SPREAD * rng.standard_normal(), 0, 1.5))
    size = usual_size * SIZE[str(rng.choice(['F', 'M']))] * (1 + 1.5 * SIZE_SPREAD * rng.standard_normal())
    head = widen_sulci(head, cortex)
    if rng.random() < 0.3:
        head = add_lesions(head, int(rng.integers(3, 40)), rng)
    warp = random_warp(rng, velocity=ventricles * walls, amount=float(rng.uniform(0.7, 1.3)))
    affine = np.diag([SIZE_MM, SIZE_MM, SIZE_MM, 1.0])
    affine[:3, 3] = np.array(BRAIN_CENTRE) - _HALF
    shape = tuple(int(n) for n in np.round(2 * _HALF / SIZE_MM))
    points = world_of(affine, shape)
    centre = np.array(BRAIN_CENTRE).reshape(3, 1, 1, 1)
    points = _turned(rng, points - centre, size, degrees) + centre
    places = to_voxels(head.affine, warp(points))
    parts = _sample(_split(head), places)
    brain = parts[: len(KINDS) - 1].sum(axis=0) >= 0.5
    inside = ndimage.binary_dilation(brain, iterations=_RIM)
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    inside = inside[box]
    fractions = np.round(255 * np.clip(parts[(slice(None), *box)][:, inside], 0, 1)).astype(np.uint8)
    return Brain(inside, fractions, _texture(rng, inside), name, age)


def _turned(
    rng: np.random.Generator, points: NDArray[np.float64], size: float, degrees: float
) -> NDArray[np.float64]:
    """Turn points about the origin by up to some degrees about each axis, and shrink them to the anatomy."""
    from scipy.spatial.transform import Rotation

    matrix = Rotation.from_euler('xyz', rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix() / size
    return np.tensordot(matrix, points, axes=1)


def _split(head: Anatomy) -> Anatomy:
    """Return a head whose tissues are :data:`KINDS`, blurred to the voxels of the training."""
    fluid = head.part('CSF')
    soft = head.part('soft tissue')
    # Sulcal fluid is where membranes are, or near the surface of the brain.
    depth = ndimage.distance_transform_edt(head.brain >= 0.5, sampling=np.diag(head.affine)[:3])
    sulcal = np.clip((20 - depth) / 5, 0, 1).astype(np.float32)
    kept = {
        'CSF': (1 - sulcal) * fluid, 'sulci': sulcal * fluid + soft, 'GM': head.part('GM'), 'deep GM': head.part('deep GM'),
        'WM': head.part('WM'), 'lesion': head.part('lesion', 'mass'),
        'around': head.part(*(name for name in TISSUES if name not in (*BRAIN_TISSUES, 'soft tissue'))),
    }  # fmt: skip
    return smooth_to(replace(head, fractions=np.stack([kept[name] for name in KINDS]), texture=None), SIZE_MM)


def _sample(head: Anatomy, places: NDArray[np.float64]) -> NDArray[np.float32]:
    result = np.zeros((len(head.fractions), *places.shape[1:]), dtype=np.float32)
    for part, sampled in zip(head.fractions, result, strict=True):
        if part.any():
            ndimage.map_coordinates(part, places, order=1, mode='constant', output=sampled)
    return result


def _texture(rng: np.random.Generator, inside: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return two fields of noise smoothed to 2 and to 6 mm, half of the variance each."""
    fields = []
    for _ in range(2):
        field = np.zeros(inside.shape, dtype=np.float32)
        for sigma in (2.0, 6.0):
            noise = ndimage.gaussian_filter(
                rng.standard_normal(inside.shape, dtype=np.float32), sigma / SIZE_MM
            )
            field += np.float32(np.sqrt(0.5) / noise.std()) * noise
        fields.append(np.clip(np.round(field[inside] / _TEXTURE_STEP), -127, 127).astype(np.int8))
    return np.stack(fields)
