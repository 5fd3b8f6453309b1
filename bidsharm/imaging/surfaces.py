"""Maps on cortical surfaces: reading and writing them, and carrying them between spheres.

A value moves to another sphere by its place on it: the triangle that holds the new vertex gives its three corners' values, weighted by barycentric
coordinates. Where a vertex of one sphere is a vertex of the other, its value is taken as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ScanError
from bidsharm.imaging.icosphere import icosphere, level_of

Values = NDArray[np.float32]
Points = NDArray[np.float64]

#: What GIFTI calls the hemispheres.
STRUCTURES = {'L': 'CortexLeft', 'R': 'CortexRight'}
#: Distance on the unit sphere within which two vertices are the same: FreeSurfer's file of fsaverage is rounded to 4 digits.
SAME = 2e-4
#: Triangles around a point that are looked at.
_NEAR = 16
_CHUNK = 20_000


def read_map(path: Path, hemisphere: str) -> Values:
    """Read one number for each vertex.

    Parameters
    ----------
    path
        A GIFTI file with one array, or a FreeSurfer morphometry file.
    hemisphere
        ``L`` or ``R``: what the name of the file says.

    Raises
    ------
    ScanError
        If it cannot be read, holds something else, or is of the other hemisphere by its own account.
    """
    if path.suffix != '.gii':
        return _read_morphometry(path)
    image = _load_gifti(path)
    arrays = image.darrays
    if len(arrays) != 1 or np.ndim(arrays[0].data) != 1:
        raise ScanError(
            f'The file holds {len(arrays)} arrays, not one map.',
            where=str(path),
            fix='Give one map in a file.',
        )
    structures = {str(meta.get('AnatomicalStructurePrimary', '')) for meta in (image.meta, arrays[0].meta)}
    other = STRUCTURES['R' if hemisphere == 'L' else 'L']
    if other in structures:
        raise ScanError(
            f'The name of the file says hemisphere {hemisphere}, and its content says {other}.',
            where=str(path),
            fix='Look which of the two is right.',
        )
    return np.asarray(arrays[0].data, dtype=np.float32)


def _read_morphometry(path: Path) -> Values:
    """Read a FreeSurfer file: a mark, three counts, and a number for each vertex."""
    try:
        content = path.read_bytes()
        values = np.asarray(nib.freesurfer.read_morph_data(path), dtype=np.float32)
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise ScanError(
            f'The file cannot be read as FreeSurfer morphometry ({error}).', where=str(path)
        ) from None
    # nibabel takes anything without the mark for a format of the 1990s, and a file that was cut off for a short one.
    if content[:3] != b'\xff\xff\xff' or len(values) != int.from_bytes(content[3:7], 'big'):
        raise ScanError(
            'The file cannot be read as FreeSurfer morphometry: it is none, or cut off.', where=str(path)
        )
    return values


def _load_gifti(path: Path) -> Any:
    try:
        return nib.GiftiImage.from_filename(path)
    except Exception as error:  # noqa: BLE001 - what a broken file makes the XML reader raise has no common base
        raise ScanError(f'The file cannot be read as GIFTI ({error}).', where=str(path)) from None


@dataclass(frozen=True, eq=False)
class Sphere:
    """A hemisphere's vertices on the unit sphere, registered to fsaverage.

    Parameters
    ----------
    vertices
        Shape (N, 3).
    faces
        Shape (F, 3).
    """

    vertices: Points
    faces: NDArray[np.int64]

    @classmethod
    def of_level(cls, level: int) -> Sphere:
        """Return the icosphere of a level."""
        found = icosphere(level)
        return cls(found.vertices, found.faces)

    def same_as(self, other: Sphere) -> bool:
        """Say whether both have the same vertices in the same order."""
        return self.vertices.shape == other.vertices.shape and bool(
            np.abs(self.vertices - other.vertices).max() < SAME
        )


def read_sphere(path: Path) -> Sphere:
    """Read a sphere: GIFTI (``.surf.gii``) or FreeSurfer geometry (``lh.sphere.reg``).

    Raises
    ------
    ScanError
        If it cannot be read, or is no sphere.
    """
    if path.suffix == '.gii':
        content = _load_gifti(path)
        parts = [content.agg_data(name) for name in ('pointset', 'triangle')]
        if any(not isinstance(part, np.ndarray) for part in parts):
            raise ScanError('The file holds no surface.', where=str(path), fix='Give a .surf.gii file.')
        vertices, faces = parts
    else:
        try:
            vertices, faces = nib.freesurfer.read_geometry(path)
        except (OSError, ValueError, IndexError) as error:
            raise ScanError(
                f'The file cannot be read as FreeSurfer geometry ({error}).', where=str(path)
            ) from None
    points = np.asarray(vertices, dtype=np.float64)
    radii = np.linalg.norm(points, axis=1)
    if not radii.size or radii.min() <= 0 or radii.max() > 1.05 * radii.min():
        raise ScanError(
            'The surface is no sphere around the origin.',
            where=str(path),
            fix='Give the sphere that is registered to fsaverage (sphere.reg).',
        )
    return Sphere(points / radii[:, None], np.asarray(faces, dtype=np.int64))


def standard_sphere(vertices: int) -> Sphere | None:
    """Return fsaverage's sphere with so many vertices (fsaverage3 to fsaverage); None where none has."""
    level = level_of(vertices)
    return None if level is None else Sphere.of_level(level)


class Resampling:
    """Carries maps from one sphere to another.

    Parameters
    ----------
    source, target
        Both registered to the same space.
    """

    def __init__(self, source: Sphere, target: Sphere) -> None:
        self.identity = source.same_as(target)
        self.source, self.target = source, target
        if not self.identity:
            self.weights = _weights(source, target.vertices)

    def carry(
        self, values: NDArray[np.floating[Any]], valid: NDArray[np.bool_]
    ) -> tuple[Values, NDArray[np.bool_]]:
        """Return a map on the target, and where it has values: where most of the weight fell on vertices with one.

        Parameters
        ----------
        values
            Shape (N,); what stands where there is no value does not matter.
        valid
            Where there is a value, shape (N,).
        """
        if self.identity:
            return np.where(valid, values, 0).astype(np.float32), valid.copy()
        total = self.weights @ valid.astype(np.float64)
        found = self.weights @ np.where(valid, values, 0).astype(np.float64)
        there = total > 0.5
        return np.where(there, found / np.where(there, total, 1), 0).astype(np.float32), there

    def carry_everywhere(
        self, values: NDArray[np.floating[Any]], valid: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return a map on all of the target; beyond the vertices with a value, the nearest one counts."""
        from scipy.spatial import cKDTree

        filled = np.asarray(values, dtype=np.float64).copy()
        if not valid.all():
            places = np.flatnonzero(valid)
            nearest = cKDTree(self.source.vertices[places]).query(self.source.vertices[~valid])[1]
            filled[~valid] = filled[places[nearest]]
        return filled if self.identity else np.asarray(self.weights @ filled)


def _weights(source: Sphere, points: Points) -> Any:
    """Return the matrix (points x vertices) of barycentric weights."""
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    corners = source.vertices[source.faces]
    tree = cKDTree(corners.mean(axis=1))
    near = min(_NEAR, len(source.faces))
    columns, shares = [], []
    for start in range(0, len(points), _CHUNK):
        some = points[start : start + _CHUNK]
        faces = tree.query(some, k=range(1, near + 1))[1]
        # A point is a sum of the corners of a triangle; inside, all three shares are positive.
        found = np.linalg.solve(corners[faces].swapaxes(2, 3), some[:, None, :, None])[..., 0]
        found /= np.abs(found).sum(axis=2, keepdims=True)
        best = found.min(axis=2).argmax(axis=1)
        rows = np.arange(len(some))
        columns.append(source.faces[faces[rows, best]])
        shares.append(found[rows, best])
    column, share = np.concatenate(columns), np.clip(np.concatenate(shares), 0, None)
    share /= share.sum(axis=1, keepdims=True)
    apart = np.linalg.norm(source.vertices[column] - points[:, None], axis=2)
    share = np.where((apart < SAME).any(axis=1)[:, None], apart == apart.min(axis=1, keepdims=True), share)
    row = np.repeat(np.arange(len(points)), 3)
    shape = (len(points), len(source.vertices))
    return csr_matrix((share.ravel(), (row, column.ravel())), shape=shape)


def write_map(path: Path, values: Values, hemisphere: str, *, like: Path | None = None) -> None:
    """Write one number for each vertex as GIFTI.

    Parameters
    ----------
    path
        Where to.
    values
        Shape (N,).
    hemisphere
        ``L`` or ``R``.
    like
        A GIFTI map whose intent and metadata are kept.
    """
    meta: dict[str, str] = {}
    intent: Any = 'NIFTI_INTENT_SHAPE'
    if like is not None and like.suffix == '.gii':
        before = _load_gifti(like)
        intent, meta = before.darrays[0].intent, dict(before.darrays[0].meta)
    structure = {'AnatomicalStructurePrimary': STRUCTURES[hemisphere]}
    array = nib.gifti.GiftiDataArray(
        np.asarray(values, dtype=np.float32),
        intent=intent,
        datatype='NIFTI_TYPE_FLOAT32',
        meta=nib.gifti.GiftiMetaData({**meta, **structure}),
    )
    image = nib.gifti.GiftiImage(darrays=[array], meta=nib.gifti.GiftiMetaData(structure))
    image.to_filename(path)


def cortex(values: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Return where a map has values: 0 and NaN stand for the medial wall."""
    return np.isfinite(values) & (values != 0)
