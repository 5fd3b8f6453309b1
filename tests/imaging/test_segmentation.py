"""Tissue of simulated heads against the truth, under an atlas that does not quite fit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bidsharm.imaging import grids, segmentation
from bidsharm.imaging.templates import tissue_priors

#: How far the atlas is off (mm along the diagonal); affine registration leaves about as much.
MISPLACED_MM = 4.0


@pytest.fixture(scope='module')
def prior(make_head) -> np.ndarray:
    """A blurred and misplaced atlas on the grid of the heads: by itself it segments badly."""
    head = make_head(resolution=2.0)
    _, image = tissue_priors()
    affine = image.affine.copy()
    affine[:3, 3] += MISPLACED_MM / np.sqrt(3)
    parts = np.moveaxis(np.asarray(image.dataobj), -1, 0)
    return np.stack([
        grids.resample(ndimage.gaussian_filter(part, 2), affine, head.mask.shape, head.affine) for part in parts
    ])  # fmt: skip


#: Dice that GM, WM and CSF reach at least, and what that is more than the atlas alone reaches. A FLAIR or T2w by itself
#: says little about cortex, because a voxel half fluid looks like tissue; so they follow the T1w where there is one.
@pytest.mark.parametrize(
    ('contrast', 'least', 'gain'),
    [
        ('T1w', (0.88, 0.93, 0.57), (0.05, 0.15, 0.10)),
        ('T2w', (0.81, 0.91, 0.45), (-0.02, 0.15, 0.0)),
        ('FLAIR', (0.73, 0.78, 0.45), (-0.10, 0.04, 0.0)),
    ],
)
def test_tissue_is_found_where_it_is(contrast, least, gain, make_head, prior, overlap):
    """Whatever is bright."""
    head = make_head(contrast, resolution=2.0)
    result = segmentation.segment(head.data, head.mask, prior, head.affine)
    alone = segmentation.hard_labels(np.where(head.mask, prior + 1e-6, 0))
    for label, minimum, more in zip((1, 2, 3), least, gain, strict=True):
        found = overlap(result.labels == label, head.labels == label)
        assert found > minimum, label
        assert found - overlap(alone == label, head.labels == label) > more, label


def test_means_are_those_of_the_tissues(make_head, prior):
    head = make_head('T1w', resolution=2.0)
    csf, gm, wm = segmentation.segment(head.data, head.mask, prior, head.affine).means
    true_gm, true_wm = (head.ideal[head.fractions[k] > 0.98].mean() for k in (1, 2))
    assert gm == pytest.approx(true_gm, rel=0.05)
    assert wm == pytest.approx(true_wm, rel=0.10)
    assert csf < 0.7 * gm


def test_probabilities_are_probabilities(make_head, prior):
    head = make_head('T1w', resolution=2.0)
    result = segmentation.segment(head.data, head.mask, prior, head.affine)
    total = result.probability.sum(axis=0)
    np.testing.assert_allclose(total[head.mask], 1, atol=1e-4)
    assert not result.probability[:, ~head.mask].any()
    assert result.probability.min() >= 0
    assert result.probability.dtype == np.float32
    assert not result.labels[~head.mask].any()
    assert set(np.unique(result.labels[head.mask])) == {1, 2, 3}


@pytest.mark.parametrize(('gain', 'offset'), [(0.001, 0.0), (37.0, 0.0), (1.0, -900.0), (2.5, 4000.0)])
def test_a_linear_change_of_intensities_changes_nothing(gain, offset, make_head, prior):
    head = make_head('T1w', resolution=2.0)
    before = segmentation.segment(head.data, head.mask, prior, head.affine)
    after = segmentation.segment(gain * head.data + offset, head.mask, prior, head.affine)
    assert (before.labels != after.labels)[head.mask].mean() < 1e-4
    np.testing.assert_allclose(after.probability, before.probability, atol=2e-3)
    np.testing.assert_allclose(
        after.means, np.array(before.means) * gain + offset, rtol=1e-3, atol=1e-3 * gain
    )


def test_twice_the_same(make_head, prior):
    head = make_head('T1w', resolution=2.0)
    first, second = (segmentation.segment(head.data, head.mask, prior, head.affine) for _ in range(2))
    np.testing.assert_array_equal(first.probability, second.probability)


def test_what_lies_outside_the_mask_does_not_matter(make_head, prior):
    head = make_head('T1w', resolution=2.0)
    other = np.where(head.mask, head.data, 1e6)
    np.testing.assert_array_equal(
        segmentation.segment(head.data, head.mask, prior, head.affine).probability,
        segmentation.segment(other, head.mask, prior, head.affine).probability,
    )


def test_neighbours_agree_the_more_the_smoother(make_head, prior):
    """Noise leaves single voxels of other tissue; the neighbours overrule most of them."""
    head = make_head('T1w', resolution=2.0, snr=8.0)

    def ragged(smoothness: float) -> float:
        labels = segmentation.segment(head.data, head.mask, prior, head.affine, smoothness=smoothness).labels
        deep = ndimage.binary_erosion(head.mask, iterations=3)
        return float(np.mean([(labels != np.roll(labels, 1, axis))[deep].mean() for axis in range(3)]))

    assert ragged(0.25) < 0.9 * ragged(0.0)


def test_smoothing_bears_noise_better(make_head, prior, overlap):
    head = make_head('T1w', resolution=2.0, snr=8.0)
    rough, smooth = (
        segmentation.segment(head.data, head.mask, prior, head.affine, smoothness=value).labels
        for value in (0.0, 0.25)
    )
    assert overlap(smooth == 2, head.labels == 2) > overlap(rough == 2, head.labels == 2)


def test_intensity_overrules_the_atlas(make_head):
    """Where the atlas knows nothing of a lesion, the bright voxels in WM still are what they look like."""
    shape = (24, 24, 24)
    prior = np.zeros((3, *shape), np.float32)
    prior[0, :6], prior[1, 6:14], prior[2, 14:] = 1, 1, 1
    truth = np.argmax(prior, axis=0)
    truth[18:22, 8:16, 8:16] = 0  # fluid, deep in what the atlas calls WM
    rng = np.random.default_rng(0)
    data = np.array([30.0, 60, 90])[truth] + rng.normal(0, 3, shape)
    result = segmentation.segment(data, np.ones(shape, bool), prior, np.eye(4))
    assert (np.argmax(result.probability, axis=0) == truth).mean() > 0.98
    assert (result.labels[19:21, 9:15, 9:15] == segmentation.DSEG_LABELS['CSF']).all()


def test_a_constant_image_gives_probabilities_all_the_same():
    """Nothing to learn from: the atlas stands, and nothing becomes infinite."""
    shape = (10, 10, 10)
    prior = np.zeros((3, *shape), np.float32)
    prior[0, :3], prior[1, 3:7], prior[2, 7:] = 1, 1, 1
    result = segmentation.segment(np.full(shape, 5.0), np.ones(shape, bool), prior, np.eye(4))
    assert np.isfinite(result.probability).all()
    np.testing.assert_array_equal(np.argmax(result.probability, axis=0), np.argmax(prior, axis=0))


def test_hard_labels_follow_the_common_order():
    probability = np.zeros((3, 2, 2, 1), np.float32)
    probability[:, 0, 0, 0] = (0.6, 0.3, 0.1)
    probability[:, 0, 1, 0] = (0.1, 0.6, 0.3)
    probability[:, 1, 0, 0] = (0.1, 0.3, 0.6)
    np.testing.assert_array_equal(segmentation.hard_labels(probability)[..., 0], [[3, 1], [2, 0]])
