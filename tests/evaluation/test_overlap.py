from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist, directed_hausdorff
from skimage.metrics import hausdorff_distance
from sklearn.metrics import f1_score, jaccard_score

from bidsharm.errors import UsageError
from bidsharm.evaluation import metrics
from bidsharm.evaluation import overlap as ov

SPACING = (0.7, 1.0, 3.0)


def blobs(seed: int, shape: tuple[int, int, int] = (12, 11, 9)):
    """Return two irregular masks that overlap in part, neither empty."""
    rng = np.random.default_rng(seed)
    first = rng.uniform(size=shape) < 0.15
    second = (first & (rng.uniform(size=shape) < 0.7)) | (rng.uniform(size=shape) < 0.05)
    first[2:6, 2:6, 2:5] = second[3:8, 3:6, 2:6] = True
    return first, second


def rim_points(mask):
    """Return surface voxels in mm, found neighbour by neighbour."""
    wide = np.pad(mask, 1)
    outside = np.zeros_like(wide)
    for axis in range(3):
        for step in (-1, 1):
            outside |= ~np.roll(wide, step, axis=axis)
    return np.argwhere((wide & outside)[1:-1, 1:-1, 1:-1]) * np.array(SPACING)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_distances_agree_with_all_pairs_of_surface_points(seed):
    a, b = blobs(seed)
    points_a, points_b = rim_points(a), rim_points(b)
    pairs = cdist(points_a, points_b)
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    found = ov.overlap(a, b, SPACING)
    np.testing.assert_allclose(ov.surface_distances(a, b, SPACING)[0], there, atol=1e-9)
    np.testing.assert_allclose(ov.surface_distances(a, b, SPACING)[1], back, atol=1e-9)
    assert found.hausdorff == pytest.approx(
        max(directed_hausdorff(points_a, points_b)[0], directed_hausdorff(points_b, points_a)[0])
    )
    assert found.hausdorff95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found.surface_distance == pytest.approx(np.concatenate([there, back]).mean())
    assert found.dice == pytest.approx(f1_score(b.ravel(), a.ravel()))
    assert found.jaccard == pytest.approx(jaccard_score(b.ravel(), a.ravel()))
    assert found.hausdorff95 <= found.hausdorff


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_symmetry_identity_and_order_of_voxels(seed):
    a, b = blobs(seed)
    forth, back = ov.overlap(a, b, SPACING), ov.overlap(b, a, SPACING)
    for name in ('dice', 'jaccard', 'hausdorff', 'hausdorff95', 'surface_distance'):
        assert getattr(forth, name) == pytest.approx(getattr(back, name))
    equal = ov.overlap(a, a, SPACING)
    assert (equal.dice, equal.jaccard, equal.ravd) == (1, 1, 0)
    assert (equal.hausdorff, equal.hausdorff95, equal.surface_distance) == (0, 0, 0)
    assert equal.reason == ''
    order = np.random.default_rng(seed).permutation(a.size)
    mixed = [mask.ravel()[order].reshape(a.shape) for mask in (a, b)]
    assert ov.jaccard(*mixed) == ov.jaccard(a, b)


def test_hausdorff_of_scikit_image_on_cubes_of_one_millimetre():
    a, b = blobs(3)
    rims = [mask & ~binary_erosion(mask) for mask in (a, b)]
    assert ov.overlap(a, b, (1, 1, 1)).hausdorff == pytest.approx(hausdorff_distance(*rims))


def test_distances_and_overlap_of_simpleitk():
    sitk = pytest.importorskip('SimpleITK')
    a, b = blobs(4)
    first, second = (sitk.GetImageFromArray(mask.T.astype(np.uint8)) for mask in (a, b))
    for image in (first, second):
        image.SetSpacing(SPACING)
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(first, second)
    found = ov.overlap(a, b, SPACING)
    assert found.dice == pytest.approx(measures.GetDiceCoefficient())
    assert found.jaccard == pytest.approx(measures.GetJaccardCoefficient())
    away = [
        sitk.GetArrayFromImage(
            sitk.SignedMaurerDistanceMap(
                sitk.LabelContour(image, fullyConnected=False, backgroundValue=0),
                squaredDistance=False,
                useImageSpacing=True,
            )
        ).T
        for image in (first, second)
    ]
    there, back = ov.surface_distances(a, b, SPACING)
    rims = [mask & ~binary_erosion(mask) for mask in (a, b)]
    np.testing.assert_allclose(there, np.abs(away[1][rims[0]]), atol=1e-4)
    np.testing.assert_allclose(back, np.abs(away[0][rims[1]]), atol=1e-4)


@pytest.mark.filterwarnings('ignore')
def test_distances_of_monai():
    monai = pytest.importorskip('monai.metrics')
    import torch

    a, b = (np.pad(mask, 1) for mask in blobs(5))  # MONAI takes the edge of an image for no surface
    first, second = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (a, b))
    found, options = ov.overlap(a, b, SPACING), {'include_background': True, 'spacing': list(SPACING)}
    distance = monai.compute_hausdorff_distance
    assert found.hausdorff == pytest.approx(float(distance(first, second, **options)), rel=1e-5)
    assert found.hausdorff95 == pytest.approx(
        float(distance(first, second, percentile=95, **options)), rel=1e-5
    )
    mean = monai.compute_average_surface_distance(first, second, symmetric=True, **options)
    assert found.surface_distance == pytest.approx(float(mean), rel=1e-5)


def test_slabs_by_hand():
    a, b = np.zeros((2, 20, 4, 4), bool)
    a[2:6] = True
    b[4:14] = True
    found = ov.overlap(a, b, (0.5, 9.0, 9.0))
    assert found.volume_a == pytest.approx(4 * 16 * 0.5 * 81 / 1000)
    assert found.jaccard == pytest.approx(2 / 12)
    assert found.dice == pytest.approx(4 / 14)
    assert found.ravd == pytest.approx(6 / 10)
    assert found.hausdorff == pytest.approx(8 * 0.5)  # from plane 13 to plane 5


def test_one_far_voxel_moves_the_maximum_but_not_the_95_percent():
    a = np.zeros((40, 12, 12), bool)
    a[2:12, 1:11, 1:11] = True
    b = a.copy()
    b[38, 5, 5] = True
    found = ov.overlap(a, b, (1, 1, 1))
    assert found.hausdorff == 27
    assert found.hausdorff95 == 0


def test_empty_masks_give_reasons():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    neither = ov.overlap(empty, empty, SPACING)
    assert np.isnan([neither.dice, neither.jaccard, neither.hausdorff, neither.ravd]).all()
    assert neither.reason == 'both masks are empty'
    lost = ov.overlap(empty, full, SPACING)
    assert (lost.dice, lost.jaccard, lost.ravd) == (0, 0, 1)
    assert np.isnan(lost.hausdorff)
    assert lost.reason == 'the first mask is empty'
    made_up = ov.overlap(full, empty, SPACING)
    assert np.isnan(made_up.ravd)
    assert made_up.reason == 'the second mask is empty'


def test_labels_agree_with_dice_of_the_tissues():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 8, 8, 8))
    expected = metrics.dice(a, b)
    found = ov.overlap_by_label(a, b, SPACING)
    assert {name: part.dice for name, part in found.items()} == pytest.approx(expected)
    named = ov.overlap_by_label(a, b, SPACING, {'hippocampus': 17, 'wm': 2})
    assert named['hippocampus'].reason == 'both masks are empty'
    assert named['wm'] == found['wm']


def test_volume_differences_of_structures():
    found = ov.relative_volume_differences({'a': 9, 'b': 1, 'd': 2}, {'a': 10, 'b': 0, 'c': 3})
    assert list(found) == ['a', 'b', 'c', 'd']
    assert found['a'] == pytest.approx(0.1)
    assert np.isnan([found['b'], found['c'], found['d']]).all()


def lesioned(head, diameter=12.0, height=40.0):
    truth = head.radius < diameter / 2
    return truth, head.with_ball(diameter, height)


@pytest.mark.parametrize('spacing', [(2.0, 2.0, 2.0), (1.0, 1.0, 3.0), (1.0, 1.0, 1.0)])
def test_contrast_of_a_lesion(make_head, spacing):
    head = make_head(spacing=spacing, extent=96.0)  # the middle of the head is all that counts
    lesion, data = lesioned(head)
    wm = head.tissue[2] > 0.9
    options = {'lesion': lesion, 'mask': wm, 'spacing': head.spacing}
    same = ov.lesion_contrast(data, 3 * data + 50, **options)
    # The rim is soft, so the lesion is 31 to 32 above white matter, whose noise has a standard deviation of 2; a
    # surrounding voxel that the rim reaches would double that.
    assert same.before == pytest.approx((data[lesion].mean() - 90) / 2, rel=0.06)
    assert same.after == pytest.approx(same.before, rel=1e-4)
    assert same.kept == pytest.approx(1, rel=1e-4)
    half = ov.lesion_contrast(data, head.with_ball(12, 20.0), **options)
    assert half.kept == pytest.approx(0.5, abs=0.05)
    gone = ov.lesion_contrast(data, head.data, **options)
    assert gone.kept == pytest.approx(0, abs=0.05)
    turned = ov.lesion_contrast(data, -data, **options)
    assert turned.kept == pytest.approx(-1)


def test_contrast_by_hand_uses_the_shell_only():
    data = np.zeros((1, 1, 101))
    lesion = np.zeros(data.shape, bool)
    lesion[..., 50] = True
    data[..., 50] = 10
    data[..., 49] = data[..., 51] = 5  # partial volume within the gap
    data[..., 0], data[..., 100] = 1e6, -1e6  # far away
    shell = np.abs(np.arange(101) - 50)
    data[0, 0, (shell >= 2) & (shell <= 21)] = np.tile([1.0, 3.0], 20)
    found = ov.lesion_contrast(data, data, lesion, np.ones(data.shape, bool), (1, 1, 1), gap=1.0, width=20.0)
    assert found.surrounding_voxels == 40
    assert found.before == pytest.approx((10 - 2) / 1)


def test_contrast_without_lesion_or_surroundings_has_a_reason(head):
    none = np.zeros(head.mask.shape, bool)
    lesion, data = lesioned(head)
    found = ov.lesion_contrast(data, data, none, head.mask, head.spacing)
    assert found.reason == 'there is no lesion'
    assert np.isnan(found.kept)
    assert 'too few' in ov.lesion_contrast(data, data, lesion, none, head.spacing).reason
    flat = np.full_like(data, 0.1)
    assert 'do not vary' in ov.lesion_contrast(data, flat, lesion, head.mask, head.spacing).reason


def test_detection_by_hand():
    truth, found = np.zeros((2, 30, 10, 10), bool)
    truth[1:4, 1:4, 1:4] = True  # half found
    found[1:4, 1:4, 2:4] = True
    truth[8:12, 1:6, 1:6] = True  # one voxel of 100 found: not detected, but not false either
    found[11, 5, 5] = found[12, 6, 6] = found[13, 7, 7] = True  # touch by corners: one lesion
    truth[20:22, 1:3, 1:3] = True  # missed
    found[25:28, 5:8, 5:8] = True  # made up
    found[29, 0, 0] = True  # too small to count
    result = ov.lesion_detection(found, truth, (1, 1, 1))
    assert (result.true, result.found, result.detected, result.false) == (3, 3, 1, 1)
    assert result.sensitivity == pytest.approx(1 / 3)
    assert result.false_rate == pytest.approx(1 / 3)
    assert result.f1 == pytest.approx(2 * (1 / 3) * (2 / 3) / (1 / 3 + 2 / 3))
    assert result.overlap.dice == pytest.approx(2 * 19 / (truth.sum() + found.sum()))


def test_detection_without_lesions():
    empty, full = np.zeros((5, 5, 5), bool), np.ones((5, 5, 5), bool)
    neither = ov.lesion_detection(empty, empty, (1, 1, 1))
    assert np.isnan([neither.sensitivity, neither.false_rate, neither.f1]).all()
    assert 'either' in neither.reason
    missed = ov.lesion_detection(empty, full, (1, 1, 1))
    assert (missed.sensitivity, missed.f1) == (0, 0)
    assert np.isnan(missed.false_rate)
    made_up = ov.lesion_detection(full, empty, (1, 1, 1))
    assert (made_up.false_rate, made_up.f1, made_up.false) == (1, 0, 1)
    assert np.isnan(made_up.sensitivity)
    perfect = ov.lesion_detection(full, full, (1, 1, 1))
    assert (perfect.sensitivity, perfect.false_rate, perfect.f1) == (1, 0, 1)


def test_wrong_questions_are_refused():
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(UsageError, match='differ'):
        ov.overlap(mask, mask[:2], SPACING)
    with pytest.raises(UsageError, match='voxel size'):
        ov.overlap(mask, mask, (1.0, 0.0, 1.0))
    with pytest.raises(UsageError, match='share'):
        ov.lesion_detection(mask, mask, SPACING, least_share=0)
