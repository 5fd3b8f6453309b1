"""The icosphere: an icosahedron whose faces are split in four, again and again, with the tables that networks on it need.

Vertices and faces have the numbers that FreeSurfer gives them, so that the first ``10 * 4**level + 2`` vertices of any level are the
vertices of a coarser one, level 5 is fsaverage5, level 6 is fsaverage6 and level 7 is fsaverage, each by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError

#: The finest level: 163,842 vertices.
FINEST = 7

#: Faces of the icosahedron, counter-clockwise from outside: pole, northern row, southern row, pole.
_FACES = (
    (0, 3, 4), (0, 4, 5), (0, 5, 1), (0, 1, 2), (0, 2, 3), (3, 2, 8), (3, 8, 9), (3, 9, 4), (4, 9, 10), (4, 10, 5),
    (5, 10, 6), (5, 6, 1), (1, 6, 7), (1, 7, 2), (2, 7, 8), (8, 11, 9), (9, 11, 10), (10, 11, 6), (6, 11, 7), (7, 11, 8),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Icosphere:
    """One level of subdivision.

    Parameters
    ----------
    level
        How often the icosahedron was split.
    vertices
        Points on the unit sphere, shape (N, 3), float64.
    faces
        Numbers of their corners, shape (F, 3), counter-clockwise from outside.
    ring
        For each vertex its neighbours, counter-clockwise from the south-east, and itself, shape (N, 7), as Spherical U-Net has them. The twelve vertices with five neighbours
        stand in for their sixth themselves.
    parents
        The ends of the edge that each new vertex halves, shape (N - M, 2), where M is the number of vertices of the level before; none
        at level 0.
    """

    level: int
    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    ring: NDArray[np.int64]
    parents: NDArray[np.int64]

    @property
    def size(self) -> int:
        """The number of vertices."""
        return len(self.vertices)


def vertex_count(level: int) -> int:
    """Return the number of vertices of a level.

    Examples
    --------
    >>> [vertex_count(level) for level in (0, 5, 6, 7)]
    [12, 10242, 40962, 163842]
    """
    return 10 * 4**level + 2


def level_of(vertices: int) -> int | None:
    """Return the level that has so many vertices; None where none has."""
    return next((level for level in range(FINEST + 1) if vertex_count(level) == vertices), None)


@cache
def icosphere(level: int) -> Icosphere:
    """Return the icosphere of a level; its arrays are shared and cannot be written to.

    Parameters
    ----------
    level
        From 0 (the icosahedron, 12 vertices) to 7 (163,842 vertices).

    Raises
    ------
    UsageError
        For another level.
    """
    if not 0 <= level <= FINEST:
        raise UsageError(
            f'There is no icosphere of level {level}.', fix=f'Choose a level from 0 to {FINEST}.'
        )
    if level == 0:
        vertices, faces, parents = _icosahedron(), np.array(_FACES), np.empty((0, 2), np.int64)
    else:
        coarse = icosphere(level - 1)
        vertices, faces, parents = _split(coarse.vertices, coarse.faces)
    arrays = (vertices, faces, _ring(vertices, faces), parents)
    for array in arrays:
        array.setflags(write=False)
    return Icosphere(level, *arrays)


def _icosahedron() -> NDArray[np.float64]:
    """Return twelve points: a pole, five in the north, five in the south, the other pole."""
    height, radius = 1 / np.sqrt(5), 2 / np.sqrt(5)
    rows = [
        (radius * np.cos(angle), radius * np.sin(angle), sign * height)
        for sign, first in ((1, -72), (-1, -108))
        for angle in np.deg2rad(first + 72 * np.arange(5))
    ]
    return np.array([(0.0, 0.0, 1.0), *rows, (0.0, 0.0, -1.0)])


def _split(
    vertices: NDArray[np.float64], faces: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Split each face in four; midpoints are numbered as faces and their edges come first."""
    # FreeSurfer walks around the faces the other way.
    corners = faces[:, [0, 2, 1]]
    edges = np.stack([corners, np.roll(corners, -1, axis=1)], axis=-1).reshape(-1, 2)
    keys = np.sort(edges, axis=1) @ (len(vertices), 1)
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    parents = edges[np.sort(first)]
    middle = (len(vertices) + number[which]).reshape(-1, 3)
    points = vertices[parents].sum(axis=1)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    (a, b, c), (ab, bc, ca) = corners.T, middle.T
    # The children at the first corners come first; the other three of each face stay together.
    outer = np.stack([a, ca, ab], axis=1)
    inner = np.stack([ab, bc, b, ca, bc, ab, ca, c, bc], axis=1).reshape(-1, 3)
    return np.vstack([vertices, points]), np.vstack([outer, inner]), parents


def _ring(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each vertex its neighbours in order and itself."""
    # Each directed edge belongs to one face, so no neighbour comes twice.
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    # Spherical U-Net took its order from FreeSurfer's file of fsaverage, whose rounding decides which neighbour is the first at a few vertices.
    points = np.round(vertices, 4)
    east, north = _compass(points)
    along = points[end] - points[start]
    angle = np.arctan2((along * north[start]).sum(axis=1), (along * east[start]).sum(axis=1))
    order = np.lexsort(((angle + np.pi / 4) % (2 * np.pi), start))
    start, end = start[order], end[order]
    ring = np.tile(np.arange(len(vertices))[:, None], (1, 7))
    ring[start, np.arange(len(start)) - np.searchsorted(start, start)] = end
    return ring


def _compass(vertices: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return unit vectors to the east and to the north of each point; at the poles, which have none, the first two axes."""
    east: NDArray[np.float64] = np.stack([-vertices[:, 1], vertices[:, 0], np.zeros(len(vertices))], axis=1)
    length = np.linalg.norm(east, axis=1, keepdims=True)
    poles = length[:, 0] < 1e-9
    east = east / np.where(poles[:, None], 1, length)
    east[poles] = (1, 0, 0)
    north = np.asarray(np.cross(vertices, east), dtype=np.float64)
    north[poles] = (0, 1, 0)
    return east, north
