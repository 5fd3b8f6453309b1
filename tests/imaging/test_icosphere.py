from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsharm.errors import UsageError
from bidsharm.imaging.icosphere import FINEST, icosphere, level_of, vertex_count

LEVELS = range(6)


def edges(faces: np.ndarray) -> set[tuple[int, int]]:
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return set(map(tuple, pairs.tolist()))


def test_the_number_of_vertices_tells_the_level() -> None:
    counts = [12, 42, 162, 642, 2562, 10242, 40962, 163842]
    assert [vertex_count(level) for level in range(FINEST + 1)] == counts
    assert [level_of(count) for count in counts] == list(range(FINEST + 1))
    assert level_of(32492) is None


@pytest.mark.parametrize('level', LEVELS)
def test_it_is_a_closed_sphere_seen_from_outside(level: int) -> None:
    sphere = icosphere(level)
    assert sphere.size == vertex_count(level)
    assert len(sphere.faces) == 20 * 4**level
    assert sphere.size - len(edges(sphere.faces)) + len(sphere.faces) == 2
    np.testing.assert_allclose(np.linalg.norm(sphere.vertices, axis=1), 1, atol=1e-12)
    a, b, c = (sphere.vertices[sphere.faces[:, corner]] for corner in range(3))
    assert (np.einsum('ij,ij->i', np.cross(b - a, c - a), a) > 0).all()
    # The triangles cover the sphere once.
    dot = [np.einsum('ij,ij->i', x, y) for x, y in ((a, b), (b, c), (c, a))]
    solid = 2 * np.arctan2(np.einsum('ij,ij->i', a, np.cross(b, c)), 1 + sum(dot))
    assert solid.sum() == pytest.approx(4 * np.pi)


@pytest.mark.parametrize('level', range(1, 6))
def test_a_coarse_level_is_the_beginning_of_a_fine_one(level: int) -> None:
    fine, coarse = icosphere(level), icosphere(level - 1)
    assert np.array_equal(fine.vertices[: coarse.size], coarse.vertices)
    assert len(fine.parents) == fine.size - coarse.size
    middle = coarse.vertices[fine.parents].sum(axis=1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    np.testing.assert_allclose(fine.vertices[coarse.size :], middle, atol=1e-12)
    assert set(map(tuple, np.sort(fine.parents, axis=1).tolist())) == edges(coarse.faces)


@pytest.mark.parametrize('level', LEVELS)
def test_rings_are_the_neighbours_in_order(level: int) -> None:
    sphere = icosphere(level)
    own = np.arange(sphere.size)
    assert np.array_equal(sphere.ring[:, 6], own)
    fives = np.flatnonzero(sphere.ring[:, 5] == own)
    assert np.array_equal(fives, np.arange(12))
    around = [(i, j) for i in own for j in sphere.ring[i, :6] if j != i]
    assert {(min(pair), max(pair)) for pair in around} == edges(sphere.faces)
    assert len(around) == 2 * len(edges(sphere.faces))
    # From one neighbour to the next is always a face, and the walk is counter-clockwise but at the south pole.
    faces = {tuple(np.roll(face, -k)) for face in sphere.faces.tolist() for k in range(3)}
    for i in own[own != 11]:
        count = 5 if i < 12 else 6
        ring = sphere.ring[i, :count]
        assert all((i, a, b) in faces for a, b in zip(ring, np.roll(ring, -1), strict=True))


def test_level_five_is_fsaverage5_itself() -> None:
    import nilearn

    folder = Path(nilearn.__file__).parent / 'datasets' / 'data' / 'fsaverage5'
    for side in ('left', 'right'):
        points, faces = nib.load(folder / f'sphere_{side}.gii.gz').agg_data()
        sphere = icosphere(5)
        unit = points / np.linalg.norm(points, axis=1, keepdims=True)
        np.testing.assert_allclose(unit, sphere.vertices, atol=1e-4)
        assert np.array_equal(faces, sphere.faces)


def test_the_order_of_neighbours_is_that_of_spherical_unet() -> None:
    # From its tables for 42 vertices: a pole, vertices with five and with six neighbours, the other pole.
    expected = {
        0: (19, 14, 12, 15, 17), 1: (20, 17, 18, 32, 33), 6: (34, 32, 30, 31, 40), 12: (16, 15, 0, 14, 13, 4),
        14: (13, 12, 0, 19, 21, 3), 11: (41, 38, 37, 39, 40),
    }  # fmt: skip
    ring = icosphere(1).ring
    assert {i: tuple(ring[i, : len(row)].tolist()) for i, row in expected.items()} == expected


def test_levels_are_shared_and_read_only() -> None:
    assert icosphere(3) is icosphere(3)
    with pytest.raises(ValueError, match='read-only'):
        icosphere(3).ring[0] = 0


@pytest.mark.parametrize('level', [-1, 8])
def test_there_are_eight_levels(level: int) -> None:
    with pytest.raises(UsageError, match='from 0 to 7'):
        icosphere(level)
