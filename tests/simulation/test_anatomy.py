from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bidsharm.errors import UsageError
from bidsharm.imaging.templates import tissue_priors
from bidsharm.simulation.anatomy import DSEG_LABELS, HEAD_CENTRE, SEGMENTED, TISSUES, Anatomy
from bidsharm.simulation.heads import load_template
from bidsharm.simulation.people import draw_person, random_pose
from bidsharm.simulation.rendering import render, scan_grid, smooth_to
from bidsharm.simulation.warps import VENTRICLES, push, radius_before, random_warp, ventricle_walls


@pytest.fixture(scope='module')
def template() -> Anatomy:
    return load_template(step=3)


@pytest.fixture(scope='module')
def walls(template: Anatomy) -> np.ndarray:
    return ventricle_walls(template)


def world(anatomy: Anatomy) -> np.ndarray:
    voxels = np.indices(anatomy.fractions.shape[1:], dtype=float)
    return np.tensordot(anatomy.affine[:3, :3], voxels, axes=1) + anatomy.affine[:3, 3].reshape(3, 1, 1, 1)


def centre(weights: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (points * weights).sum(axis=(1, 2, 3)) / weights.sum()


def test_fractions_are_fractions(template: Anatomy):
    assert template.fractions.min() >= 0
    assert template.fractions.sum(axis=0).max() <= 1 + 1e-5
    deep = ndimage.binary_erosion(template.brain_mask)
    np.testing.assert_allclose(template.brain[deep], 1, atol=0.05)
    assert template.brain[deep].mean() > 0.9999


def test_brain_has_the_size_of_the_template(template: Anatomy):
    brain, _ = tissue_priors()
    volume = (np.asarray(brain.dataobj) > 0).sum()
    assert template.brain.sum() * template.voxel_volume == pytest.approx(volume, rel=1e-5)
    assert template.brain_mask.sum() * template.voxel_volume == pytest.approx(volume, rel=0.01)


def test_shells_lie_around_the_brain_in_order(template: Anatomy):
    distance = ndimage.distance_transform_edt(~template.brain_mask, sampling=3)
    fractions = dict(zip(TISSUES, template.fractions, strict=True))
    depth = [np.average(distance, weights=fractions[name]) for name in ('meninges', 'skull', 'scalp')]
    assert depth[0] < depth[1] < depth[2]
    head = template.fractions.sum(axis=0) > 0.5
    edge = np.ones_like(head)
    edge[1:-1, 1:-1, 1:-1] = False
    assert not (head & edge).any()  # the whole head fits
    assert np.array_equal(ndimage.binary_fill_holes(head), head)  # no air between the layers


def test_brain_only_has_no_shell():
    bare = load_template(head=False, step=3)
    assert not bare.fractions[3:].any()
    assert bare.brain.any()


def test_world_coordinates_are_those_of_the_template():
    # Points of MNI space keep their tissue on a grid with another origin and another voxel size.
    shape, affine = scan_grid(4.0)
    scan = render(load_template(), shape=shape, affine=affine)
    _, priors = tissue_priors()
    points = world(scan)[:, 10:-10:3, 10:-10:3, 10:-10:3]
    places = np.tensordot(np.linalg.inv(priors.affine)[:3, :3], points, axes=1)
    places += np.linalg.inv(priors.affine)[:3, 3].reshape(3, 1, 1, 1)
    expected = ndimage.map_coordinates(np.asarray(priors.dataobj)[..., 2], places, order=1)
    assert expected.max() > 0.9
    np.testing.assert_allclose(
        scan.fractions[TISSUES.index('WM'), 10:-10:3, 10:-10:3, 10:-10:3], expected, atol=0.02
    )


def test_grid_is_ras_and_covers_the_same_box_for_thick_slices():
    (_, _, thin), affine = scan_grid(1.5)
    (_, _, thick), thicker = scan_grid(1.5, 2)
    assert np.array_equal(np.diag(affine), [1.5, 1.5, 1.5, 1])
    assert np.array_equal(np.diag(thicker), [1.5, 1.5, 3, 1])
    assert abs(thick * 3 - thin * 1.5) <= 3
    assert affine[2, 3] - 0.75 == thicker[2, 3] - 1.5  # same lower face


@pytest.mark.parametrize('seed', range(5))
def test_warps_are_diffeomorphic_and_move_something(seed: int, walls: np.ndarray):
    warp = random_warp(np.random.default_rng(seed), velocity=2 * (-1) ** seed * walls)
    assert warp.jacobian.min() > 0.1
    assert np.sqrt((warp.displacement**2).mean()) > 1
    assert np.abs(warp.displacement).max() < 25


def test_jacobian_of_the_interpolated_map_is_positive_everywhere_in_the_head():
    warp = random_warp(np.random.default_rng(7))
    axes = (np.arange(-80, 80, 1.0), np.arange(-115, 85, 1.0), np.arange(0, 12, 1.0))
    moved = warp(np.stack(np.meshgrid(*axes, indexing='ij')))
    gradient = np.stack([np.stack(np.gradient(part)) for part in moved])
    assert np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1))).min() > 0


def test_a_warp_that_would_fold_is_refused():
    with pytest.raises(UsageError, match='folds'):
        random_warp(np.random.default_rng(0), amount=60)


def test_no_amount_is_the_identity():
    assert not random_warp(np.random.default_rng(0), amount=0).displacement.any()


def test_opposite_velocities_give_inverse_maps(walls: np.ndarray):
    widen, narrow = (random_warp(np.random.default_rng(0), amount=0, velocity=mm * walls) for mm in (2, -2))
    points = np.random.default_rng(1).uniform(-40, 40, (3, 2000)) + np.reshape(VENTRICLES, (3, 1))
    moved = np.linalg.norm(widen(points) - points, axis=0)
    left = np.linalg.norm(narrow(widen(points)) - points, axis=0)
    assert np.percentile(moved, 99) > 1
    assert np.percentile(left, 99) < 0.2  # what the 4 mm grid costs


def test_ventricles_widen_and_the_size_of_the_brain_stays(template: Anatomy, walls: np.ndarray):
    shape, affine = scan_grid(3.0)

    def render_with(millimetres: float) -> tuple[float, float]:
        warp = random_warp(np.random.default_rng(0), amount=0, velocity=millimetres * walls)
        scan = render(template, shape=shape, affine=affine, warp=warp)
        near = ((world(scan) - np.reshape(VENTRICLES, (3, 1, 1, 1))) ** 2).sum(axis=0) < 35**2
        return float(scan.fractions[0][near].sum()), float(scan.brain.sum())

    narrow, middle, wide = render_with(-1.5), render_with(0), render_with(1.5)
    assert narrow[0] < 0.87 * middle[0]
    assert middle[0] < 0.87 * wide[0]
    assert narrow[1] == pytest.approx(wide[1], rel=1e-3)


def test_pose_is_rigid_and_moves_the_head_the_other_way(template: Anatomy):
    pose = random_pose(np.random.default_rng(3))
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    assert 0 < np.linalg.norm(pose[:3, :3] @ HEAD_CENTRE + pose[:3, 3] - HEAD_CENTRE) <= 4 * np.sqrt(3)
    shape, affine = scan_grid(4.0)
    still, moved = (render(template, shape=shape, affine=affine, pose=p) for p in (None, pose))
    expected = np.linalg.inv(pose) @ [*centre(still.brain, world(still)), 1]
    np.testing.assert_allclose(centre(moved.brain, world(moved)), expected[:3], atol=0.15)
    assert moved.brain.sum() == pytest.approx(still.brain.sum(), rel=0.01)


def test_thick_slices_are_means_of_thin_ones(template: Anatomy):
    shape, affine = scan_grid(4.0)
    shape = (shape[0], shape[1], shape[2] // 2 * 2)
    thick_shape, thick_affine = scan_grid(4.0, 2)
    thin = render(template, shape=shape, affine=affine).fractions
    thick = render(template, shape=thick_shape, affine=thick_affine, slice_factor=2).fractions
    count = shape[2] // 2
    np.testing.assert_allclose(thick[..., :count], (thin[..., ::2] + thin[..., 1::2]) / 2, atol=1e-5)


def test_labels_name_the_largest_tissue_inside_the_mask(template: Anatomy):
    labels = template.labels
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert np.array_equal(labels > 0, template.brain_mask)
    for fraction, tissue in zip(template.tissue, SEGMENTED, strict=True):
        sure, code = fraction > 0.6, DSEG_LABELS[tissue]
        assert sure.any()
        assert (labels[sure] == code).all()


def test_smoothing_keeps_volumes(template: Anatomy):
    blurred = smooth_to(template, 5.0)
    np.testing.assert_allclose(
        blurred.fractions.sum(axis=(1, 2, 3)), template.fractions.sum(axis=(1, 2, 3)), rtol=1e-3
    )
    assert blurred.fractions[2].max() < template.fractions[2].max()
    assert smooth_to(template, 2.0) is template


def test_people_differ_and_are_repeatable(template: Anatomy, walls: np.ndarray):
    one, again, other = (
        draw_person(np.random.default_rng(seed), '01', template, walls) for seed in (1, 1, 2)
    )
    assert (one.size, one.relaxation) == (again.size, again.relaxation) != (other.size, other.relaxation)
    np.testing.assert_array_equal(one.head.fractions, again.head.fractions)
    assert np.array_equal(one.warp.displacement, again.warp.displacement)
    assert (one.age, one.sex) == (again.age, again.sex)
    assert np.abs(one.warp.displacement - other.warp.displacement).max() > 1
    assert 20 <= one.age <= 80
    assert one.sex in 'FM'


def test_size_is_that_of_the_head_in_the_scanner(template: Anatomy, walls: np.ndarray):
    person = draw_person(np.random.default_rng(3), '01', template, 0 * walls, texture=False)
    shape, affine = scan_grid(3.0)
    volumes = [
        float(render(person.head, shape=shape, affine=affine, pose=someone.place(np.eye(4))).brain.sum())
        for someone in (replace(person, size=1.0), replace(person, size=1.1))
    ]
    assert volumes[1] / volumes[0] == pytest.approx(1.1**3, rel=0.01)


def test_a_mass_pushes_its_surroundings_away(template: Anatomy, walls: np.ndarray):
    ill = draw_person(np.random.default_rng(5), '01', template, walls, mass_mm=15)
    well = draw_person(np.random.default_rng(5), '01', template, walls)
    centre = world(template)[:, ill.head.part('mass') > 0.5].mean(axis=1)
    ring = np.random.default_rng(0).standard_normal((3, 200))
    ring = np.reshape(centre, (3, 1)) + 30 * ring / np.linalg.norm(ring, axis=0)
    # A point of the head shows what lay nearer to the mass before.
    inwards = -(ring - np.reshape(centre, (3, 1))) / 30
    assert ((ill.warp(ring) - ring) * inwards).sum(axis=0).mean() > 3
    assert abs(((well.warp(ring) - ring) * inwards).sum(axis=0).mean()) < 3
    assert ill.warp.jacobian.min() > 0


def test_a_push_moves_a_ball_to_the_radius_that_was_asked_for():
    centre = np.array([30.0, -20.0, 20.0])
    warp = random_warp(np.random.default_rng(0), amount=0, velocity=push(centre, 7.5, 30.0))
    directions = np.random.default_rng(1).standard_normal((3, 300))
    directions /= np.linalg.norm(directions, axis=0)
    for radius in (15.0, 24.0):
        surface = centre[:, None] + radius * directions
        came_from = np.linalg.norm(warp(surface) - centre[:, None], axis=0)
        assert came_from == pytest.approx(radius_before(radius, 7.5, 30.0), abs=0.5)
        assert came_from.mean() < radius - 3


def test_a_mass_of_a_person_is_as_large_as_asked_for(template: Anatomy, walls: np.ndarray):
    volumes = []
    for seed in range(4):
        person = draw_person(np.random.default_rng(seed), '01', template, walls, mass_mm=14)
        shape, affine = scan_grid(2.0)
        seen = render(person.head, shape=shape, affine=affine, pose=person.place(np.eye(4)), warp=person.warp)
        volumes.append(float(seen.part('mass').sum()) * 8)
    # Its surface is uneven and fluid within it is spared.
    assert np.mean(volumes) == pytest.approx(4 / 3 * np.pi * 14**3, rel=0.15)


def test_the_old_have_wider_ventricles_than_the_young(template: Anatomy, walls: np.ndarray):
    def widening(seed: int) -> tuple[int, float]:
        # The same person with and without: the noise is the same, so only the ventricles differ.
        person, without = (
            draw_person(np.random.default_rng(seed), '01', template, field, texture=False)
            for field in (walls, 0 * walls)
        )
        moved = person.warp.displacement - without.warp.displacement
        return person.age, float((moved * walls).sum() / (walls**2).sum())

    drawn = {seed: int(np.random.default_rng(seed).integers(20, 81)) for seed in range(60)}
    young = [widening(seed) for seed in sorted(drawn, key=drawn.__getitem__)[:3]]
    old = [widening(seed) for seed in sorted(drawn, key=drawn.__getitem__)[-3:]]
    assert max(age for age, _ in young) < 30 < 70 < min(age for age, _ in old)
    assert max(moved for _, moved in young) < 0 < min(moved for _, moved in old)
