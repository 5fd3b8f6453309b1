from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsharm.errors import ScanError
from bidsharm.imaging.icosphere import icosphere, vertex_count
from bidsharm.imaging.surfaces import (
    Resampling,
    Sphere,
    cortex,
    read_map,
    read_sphere,
    standard_sphere,
    write_map,
)


def smooth(points: np.ndarray) -> np.ndarray:
    x, y, z = points.T
    return 2.5 + 0.4 * x * y + 0.3 * z - 0.2 * x**2 * z


def irregular(count: int = 3000, seed: int = 0) -> Sphere:
    """Return a sphere of points at random, triangulated by its convex hull, as meshes of single people are."""
    from scipy.spatial import ConvexHull

    points = np.random.default_rng(seed).standard_normal((count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return Sphere(points, ConvexHull(points).simplices.astype(np.int64))


def test_a_map_comes_back_as_it_was_written(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(42).astype(np.float32)
    write_map(tmp_path / 'a.shape.gii', values, 'L')
    assert np.array_equal(read_map(tmp_path / 'a.shape.gii', 'L'), values)
    nib.freesurfer.write_morph_data(tmp_path / 'lh.thickness', values)
    assert np.array_equal(read_map(tmp_path / 'lh.thickness', 'L'), values)


def test_intent_and_metadata_of_the_input_are_kept(tmp_path: Path) -> None:
    meta = nib.gifti.GiftiMetaData({'Name': 'sub-01 thickness'})
    array = nib.gifti.GiftiDataArray(np.ones(12, np.float32), intent='NIFTI_INTENT_NONE', meta=meta)
    nib.gifti.GiftiImage(darrays=[array]).to_filename(tmp_path / 'in.func.gii')
    write_map(tmp_path / 'out.func.gii', np.zeros(12, np.float32), 'R', like=tmp_path / 'in.func.gii')
    (found,) = nib.load(tmp_path / 'out.func.gii').darrays
    assert found.intent == nib.nifti1.intent_codes['NIFTI_INTENT_NONE']
    assert found.meta['Name'] == 'sub-01 thickness'
    assert found.meta['AnatomicalStructurePrimary'] == 'CortexRight'


def test_the_wrong_hemisphere_is_refused(tmp_path: Path) -> None:
    write_map(tmp_path / 'a.shape.gii', np.ones(12, np.float32), 'L')
    with pytest.raises(ScanError, match=r'hemisphere R.*CortexLeft'):
        read_map(tmp_path / 'a.shape.gii', 'R')


@pytest.mark.parametrize('name', ['a.shape.gii', 'lh.thickness'])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'no map')
    with pytest.raises(ScanError, match=f'{name}: The file cannot be read'):
        read_map(tmp_path / name, 'L')


def test_a_surface_is_no_map_and_a_map_no_surface(tmp_path: Path) -> None:
    sphere = icosphere(1)
    arrays = [
        nib.gifti.GiftiDataArray((100 * sphere.vertices).astype(np.float32), intent='NIFTI_INTENT_POINTSET'),
        nib.gifti.GiftiDataArray(sphere.faces.astype(np.int32), intent='NIFTI_INTENT_TRIANGLE'),
    ]
    nib.gifti.GiftiImage(darrays=arrays).to_filename(tmp_path / 'a.surf.gii')
    assert read_sphere(tmp_path / 'a.surf.gii').same_as(Sphere.of_level(1))
    with pytest.raises(ScanError, match='2 arrays'):
        read_map(tmp_path / 'a.surf.gii', 'L')
    write_map(tmp_path / 'b.shape.gii', np.ones(12, np.float32), 'L')
    with pytest.raises(ScanError, match='no surface'):
        read_sphere(tmp_path / 'b.shape.gii')


def test_spheres_of_freesurfer_are_read_and_others_refused(tmp_path: Path) -> None:
    sphere = icosphere(2)
    nib.freesurfer.write_geometry(tmp_path / 'lh.sphere.reg', 100 * sphere.vertices, sphere.faces)
    assert read_sphere(tmp_path / 'lh.sphere.reg').same_as(Sphere.of_level(2))
    nib.freesurfer.write_geometry(tmp_path / 'lh.white', 100 * sphere.vertices * (1, 1, 2), sphere.faces)
    with pytest.raises(ScanError, match='no sphere'):
        read_sphere(tmp_path / 'lh.white')


def test_fsaverage_is_known_by_its_size() -> None:
    found = standard_sphere(10242)
    assert found is not None
    assert found.same_as(Sphere.of_level(5))
    assert standard_sphere(32492) is None


def test_the_same_sphere_changes_nothing() -> None:
    sphere = Sphere.of_level(4)
    # As in FreeSurfer's file.
    rounded = Sphere(np.round(sphere.vertices, 4), sphere.faces)
    values = np.random.default_rng(1).random(len(sphere.vertices)).astype(np.float32)
    valid = values > 0.2
    found, there = Resampling(rounded, sphere).carry(values, valid)
    assert np.array_equal(there, valid)
    assert np.array_equal(found[valid], values[valid])


def test_a_coarser_level_takes_its_own_vertices() -> None:
    values = np.random.default_rng(1).random(vertex_count(4)).astype(np.float32)
    valid = values > 0.1
    found, there = Resampling(Sphere.of_level(4), Sphere.of_level(3)).carry(values, valid)
    assert np.array_equal(there, valid[: vertex_count(3)])
    assert np.array_equal(found[there], values[: vertex_count(3)][there])


def test_smooth_maps_survive_the_way_over_an_irregular_mesh() -> None:
    own, sphere = irregular(), Sphere.of_level(4)
    everywhere = np.ones(len(own.vertices), bool)
    found, there = Resampling(own, sphere).carry(smooth(own.vertices), everywhere)
    assert there.all()
    assert np.abs(found - smooth(sphere.vertices)).max() < 0.01
    back = Resampling(sphere, own).carry_everywhere(found, there)
    assert np.abs(back - smooth(own.vertices)).max() < 0.01
    assert Resampling(own, sphere).weights.sum(axis=1) == pytest.approx(1)


def test_the_medial_wall_leaks_into_nothing() -> None:
    own, sphere = irregular(), Sphere.of_level(4)
    wall = own.vertices[:, 0] > 0.8
    values = np.where(wall, 1e6, smooth(own.vertices))
    found, there = Resampling(own, sphere).carry(values, ~wall)
    assert np.abs(found - smooth(sphere.vertices))[there].max() < 0.02
    assert np.array_equal(there, sphere.vertices[:, 0] < 0.8) or (
        np.abs(sphere.vertices[there != (sphere.vertices[:, 0] < 0.8), 0] - 0.8).max() < 0.05
    )
    assert np.abs(Resampling(own, sphere).carry_everywhere(values, ~wall)).max() < 10


def test_zero_and_nan_are_no_cortex() -> None:
    assert cortex(np.array([0.0, np.nan, 2.5, np.inf])).tolist() == [False, False, True, False]
