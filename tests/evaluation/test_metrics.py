from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from bidsharm.evaluation import metrics
from bidsharm.evaluation.distributions import tissue_values

MONOTONE = {
    'steeper': lambda v: v**2 / 100,
    'flatter': lambda v: 10 * np.sqrt(np.maximum(v, 0)),
    'curved': lambda v: 50 * np.tanh((v - 50) / 40),
    'turned around': lambda v: 200 - v,
}


def test_volumes_count_probabilities_in_millilitres():
    tissue = np.zeros((3, 10, 10, 10), np.float32)
    tissue[0, :5], tissue[1, 5:], tissue[2, :1] = 0.5, 1.0, 0.25
    assert metrics.tissue_volumes(tissue, 8.0) == pytest.approx({'csf': 2.0, 'gm': 4.0, 'wm': 0.2})


def test_relative_volume_difference():
    assert metrics.relative_volume_difference(90, 100) == pytest.approx(0.1)
    assert metrics.relative_volume_difference(110, 100) == pytest.approx(0.1)
    assert np.isnan(metrics.relative_volume_difference(5, 0))


def test_dice_by_hand():
    a = np.array([0, 1, 1, 1, 1, 2, 2, 0])
    b = np.array([0, 1, 1, 2, 2, 2, 2, 1])
    found = metrics.dice(a, b)
    assert found['gm'] == pytest.approx(2 * 2 / (4 + 3))
    assert found['wm'] == pytest.approx(2 * 2 / (2 + 4))
    assert np.isnan(found['csf'])


def test_dice_of_swapped_labels_is_zero(head):
    labels = np.array([3, 1, 2])[np.argmax(head.tissue, axis=0)] * head.mask
    swapped = np.array([0, 2, 1, 3])[labels]
    assert metrics.dice(labels, labels) == {'csf': 1, 'gm': 1, 'wm': 1}
    assert metrics.dice(labels, swapped) == {'csf': 1, 'gm': 0, 'wm': 0}


def test_gradient_is_that_of_a_plane_up_to_the_edge_of_the_mask():
    spacing = (0.7, 0.8, 3.0)
    axes = np.meshgrid(*[np.arange(9) * size for size in spacing], indexing='ij')
    plane = 2 * axes[0] - 5 * axes[1] + 1.5 * axes[2]
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 2:7, 2:7] = True
    mask[4, 4, 8] = True  # a voxel without neighbours
    gradient = metrics.masked_gradient(np.where(mask, plane, 1e4), mask, spacing)
    alone = np.flatnonzero(np.argwhere(mask)[:, 2] == 8)
    assert pytest.approx(np.tile([2, -5, 1.5], (125, 1)), abs=1e-3) == np.delete(gradient, alone, axis=1).T
    assert gradient[:, alone].ravel().tolist() == [0, 0, 0]


@pytest.mark.parametrize('contrast', ['T1w', 'T2w', 'FLAIR'])
@pytest.mark.parametrize('spacing', [(2.0, 2.0, 2.0), (1.5, 1.5, 4.0)])
def test_linear_maps_keep_every_score_perfect(make_head, contrast, spacing):
    head = make_head(contrast, spacing)
    for gain, offset in ((0.02, -3.0), (-4.0, 500.0)):
        after = head.mapped(lambda data, a=gain, b=offset: a * data + b)
        scores = metrics.edge_scores(head.data, after, head.mask, head.spacing)
        assert scores.direction == pytest.approx(1, abs=1e-4)
        assert scores.magnitude == pytest.approx(1, abs=1e-4)
        assert scores.new == pytest.approx(0, abs=1e-4)
        assert metrics.ssim(head.data, after, head.mask) == pytest.approx(1, abs=1e-4)
        assert metrics.local_change(head.data, after, head.mask, head.spacing) == 0
        change = metrics.change_map(head.data, after, head.mask)
        assert metrics.change_summary(change, head.mask) == pytest.approx(
            {'p95_abs': 0, 'share_changed': 0}, abs=1e-4
        )


@pytest.mark.parametrize('name', MONOTONE)
def test_monotone_maps_of_smooth_data_move_no_edge(smooth_head, name):
    head = smooth_head
    after = head.mapped(MONOTONE[name])
    scores = metrics.edge_scores(head.data, after, head.mask, head.spacing)
    assert scores.direction > 0.99
    assert scores.new < 0.005
    assert metrics.local_change(head.data, after, head.mask, head.spacing) == 0


@pytest.mark.parametrize('name', MONOTONE)
def test_monotone_maps_of_noisy_data_invent_next_to_nothing(head, name):
    after = head.mapped(MONOTONE[name])
    scores = metrics.edge_scores(head.data, after, head.mask, head.spacing)
    assert scores.direction > 0.97
    assert scores.new < 0.02
    assert metrics.local_change(head.data, after, head.mask, head.spacing) == 0


def test_edges_of_an_unrelated_image_do_not_agree(head):
    other = np.random.default_rng(5).standard_normal(head.mask.shape).astype(np.float32)
    direction, magnitude = metrics.edge_agreement(head.data, other, head.mask, head.spacing)
    assert direction < 0.05
    assert abs(magnitude) < 0.05
    assert metrics.new_edges(head.data, other, head.mask, head.spacing) == pytest.approx(2 / 3, abs=0.1)


def test_contrast_turned_around_in_one_half_only_costs_agreement(smooth_head):
    head = smooth_head
    half = np.arange(head.mask.shape[0])[:, None, None] < head.mask.shape[0] // 2
    after = head.mapped(lambda data: np.where(half, data, 120 - data))
    assert metrics.edge_agreement(head.data, after, head.mask, head.spacing)[0] < 0.1


def test_an_erased_brain_keeps_no_edge(head):
    after = head.mapped(np.ones_like)
    direction, magnitude = metrics.edge_agreement(head.data, after, head.mask, head.spacing)
    assert direction == 0
    assert np.isnan(magnitude)
    assert np.isnan(metrics.new_edges(head.data, after, head.mask, head.spacing))
    assert np.isnan(metrics.ssim(head.data, after, head.mask))
    assert np.isnan(metrics.local_change(head.data, after, head.mask, head.spacing))
    assert np.isnan(
        metrics.change_summary(metrics.change_map(head.data, after, head.mask), head.mask)['p95_abs']
    )


def test_a_scan_without_contrast_supports_no_edge(head):
    flat = head.mapped(np.ones_like)
    assert np.isnan(metrics.edge_agreement(flat, head.data, head.mask, head.spacing)[0])
    assert metrics.new_edges(flat, head.data, head.mask, head.spacing) == pytest.approx(1)
    assert metrics.ssim(flat, head.data, head.mask) < 0.5


@pytest.mark.parametrize('height', [30.0, -30.0])
def test_an_invented_ball_raises_new_edges_and_change(head, height):
    after = head.with_ball(24, height)
    same = metrics.edge_scores(head.data, head.data, head.mask, head.spacing)
    scores = metrics.edge_scores(head.data, after, head.mask, head.spacing)
    assert same.new < 1e-6
    assert scores.new > 0.02
    change = metrics.change_map(head.data, after, head.mask)
    assert np.abs(change[head.radius < 8]).mean() > 0.3
    assert np.abs(change[head.mask & (head.radius > 20)]).mean() < 0.05
    summary = metrics.change_summary(change, head.mask)
    assert summary['share_changed'] == pytest.approx(np.mean(head.radius[head.mask] < 12), rel=0.5)


def test_new_edges_in_a_noise_free_plain_are_all_new():
    before = np.zeros((24, 24, 24), np.float32)
    before[:4] = 100
    after = before.copy()
    after[14:18, 10:14, 10:14] = 50
    mask = np.ones(before.shape, bool)
    old = metrics.masked_gradient(before, mask, (1, 1, 1))
    both = metrics.masked_gradient(after, mask, (1, 1, 1))
    expected = 1 - (old**2).sum() / (both**2).sum()
    assert metrics.new_edges(before, after, mask, (1, 1, 1)) == pytest.approx(expected, rel=1e-4)


def test_a_clear_edge_where_the_input_shows_noise_is_new_even_along_its_gradient():
    ramp = np.broadcast_to(0.01 * np.arange(32.0)[:, None, None], (32, 12, 12))
    before = ramp + 50.0 * (ramp > 0.055)
    after = before + 20.0 * (ramp > 0.205)
    mask = np.ones(before.shape, bool)
    # Two planes of voxels on either side of each step: (25.01, 25.01) and (10.01, 10.01) per mm along the first axis.
    expected = 10.01**2 / (10.01**2 + 25.01**2)
    assert metrics.new_edges(before, after, mask, (1, 1, 1)) == pytest.approx(expected, rel=1e-3)
    # A step of the output that the noise level hides, or one where the input has a step, is not new.
    assert metrics.new_edges(before, before + 0.02 * (ramp > 0.205), mask, (1, 1, 1)) == pytest.approx(
        0, abs=1e-6
    )
    assert metrics.new_edges(before, before + 20.0 * (ramp > 0.055), mask, (1, 1, 1)) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize('spacing', [(2.0, 2.0, 2.0), (1.0, 1.0, 3.0)])
@pytest.mark.parametrize(('diameter', 'height'), [(8, 30.0), (12, -25.0), (20, 30.0)])
def test_local_change_measures_an_invented_ball(make_head, spacing, diameter, height):
    head = make_head(spacing=spacing, extent=134.0)
    after = head.with_ball(diameter, height, x=20.0)
    found = metrics.local_change(head.data, after, head.mask, head.spacing)
    # Blocks of 2 mm blur the rim of the ball, so its volume is known to a rim of about a block.
    smallest, largest = (np.pi / 6 * (diameter + rim) ** 3 / 1000 for rim in (-2, 2.5))
    assert smallest < found < largest
    assert (
        metrics.ssim(head.data, after, head.mask) > 0.97
    )  # which is why the whole-brain score is not enough


def test_local_change_allows_smooth_fields_and_noise(head):
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in head.mask.shape], indexing='ij')
    field = np.exp(0.25 * axes[0] - 0.2 * axes[1] ** 2 + 0.1 * axes[2])
    assert metrics.local_change(head.data, head.mapped(lambda v: v * field), head.mask, head.spacing) < 0.05
    grain = 2 * np.random.default_rng(7).standard_normal(head.mask.shape)
    assert metrics.local_change(head.data, head.mapped(lambda v: v + grain), head.mask, head.spacing) < 0.05


def test_local_change_allows_a_contrast_that_varies_smoothly(head):
    first = np.linspace(-1, 1, head.mask.shape[0])[:, None, None]
    after = head.mapped(lambda v: 75 + (1 + 0.8 * first) * (v - 75))
    assert np.abs(metrics.change_map(head.data, after, head.mask)).max() > 0.2
    assert metrics.local_change(head.data, after, head.mask, head.spacing) < 0.05


def _scaled_pair(before, after, mask):
    """Do by plain means what ssim promises: output to [0, 1], input fitted onto it, mean outside the mask."""
    output = after[mask].astype(np.float64)
    low, high = np.quantile(output, [0.01, 0.99])
    output = (output - low) / (high - low)
    design = np.column_stack([before[mask], np.ones(output.size)]).astype(np.float64)
    fitted = design @ np.linalg.lstsq(design, output, rcond=None)[0]
    x, y = (np.full(mask.shape, output.mean()) for _ in range(2))
    x[mask], y[mask] = fitted, output
    return x, y


@pytest.mark.parametrize('alter', [*MONOTONE.values(), lambda v: v + 10 * np.sin(v)])
def test_ssim_agrees_with_scikit_image(head, alter):
    after = head.mapped(alter)
    x, y = _scaled_pair(head.data, after, head.mask)
    _, full = structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
    )
    found = metrics.ssim(head.data, after, head.mask)
    assert found == pytest.approx(full[head.mask].mean(), abs=1e-4)


def test_ssim_does_not_depend_on_units_or_on_the_field_of_view(head):
    after = head.mapped(lambda v: v**2)
    score = metrics.ssim(head.data, after, head.mask)
    assert score < 0.99
    shifted = head.mapped(lambda v: 0.001 * v**2 - 7)
    assert metrics.ssim(50 * head.data, shifted, head.mask) == pytest.approx(score, abs=1e-4)
    wide = [np.pad(part, 9) for part in (head.data, after, head.mask)]
    assert metrics.ssim(*wide) == pytest.approx(score, abs=1e-6)
    tight = head.mask.any(axis=(1, 2))
    assert metrics.ssim(head.data[tight], after[tight], head.mask[tight]) == pytest.approx(score, abs=1e-6)


def test_change_is_in_units_of_the_outputs_range():
    before = np.linspace(0, 1, 2000).reshape(20, 10, 10)
    mask = np.ones(before.shape, bool)
    mask[0] = False
    bump = np.where(np.arange(2000).reshape(before.shape) % 2 == 0, 10.0, -10.0)
    after = (100 * before + bump) * mask
    change = metrics.change_map(before, after, mask)
    low, high = np.quantile(after[mask], [0.01, 0.99])
    assert np.abs(change[mask]) == pytest.approx(np.full(mask.sum(), 10 / (high - low)), rel=0.02)
    assert not change[~mask].any()
    assert metrics.change_summary(change, mask)['share_changed'] == 1


def test_linear_map_recovers_the_map_and_a_constant_has_no_gain():
    x = np.random.default_rng(3).normal(500, 20, 4000).astype(np.float32)
    assert metrics.linear_map(x, -2.5 * x + 4) == pytest.approx((-2.5, 4), rel=1e-3)
    assert metrics.linear_map(np.full(4000, 0.1, np.float32), x) == pytest.approx((0, x.mean()), rel=1e-5)


def test_noise_measures_by_their_formulas():
    generator = np.random.default_rng(4)
    values = {name: generator.normal(mean, 2, 500) for name, mean in (('csf', 30), ('gm', 60), ('wm', 90))}
    gm, wm = values['gm'], values['wm']
    contrast = abs(gm.mean() - wm.mean())
    assert metrics.cnr(values) == pytest.approx(contrast / np.sqrt(gm.var() + wm.var()))
    assert metrics.cjv(values) == pytest.approx((gm.std() + wm.std()) / contrast)
    assert metrics.snr(wm) == pytest.approx(wm.mean() / wm.std())
    scaled = {name: 4 * part + 100 for name, part in values.items()}
    assert metrics.cnr(scaled) == pytest.approx(metrics.cnr(values))
    assert metrics.cjv(scaled) == pytest.approx(metrics.cjv(values))


def test_noise_measures_of_what_does_not_vary_are_not_a_number():
    flat = {name: np.full(100, 5.0) for name in ('csf', 'gm', 'wm')}
    empty = {name: np.zeros(0) for name in ('csf', 'gm', 'wm')}
    for values in (flat, empty):
        assert np.isnan([metrics.cnr(values), metrics.cjv(values), metrics.snr(values['gm'])]).all()


def test_contrast_kept_ignores_tissues_that_looked_alike_before(head):
    generator = np.random.default_rng(6)
    before = {name: generator.normal(mean, 2, 2000) for name, mean in (('csf', 10), ('gm', 80), ('wm', 80.2))}
    lost = {**before, 'wm': before['wm'] + 60, 'csf': before['csf'] + 35}
    ratio, pair = metrics.contrast_kept(before, lost)
    assert pair == ('csf', 'gm')
    assert ratio == pytest.approx(0.5, abs=0.01)
    nothing, none = metrics.contrast_kept(dict.fromkeys(before, before['gm']), before)
    assert np.isnan(nothing)
    assert none is None


def test_pure_voxels_carry_the_noise_that_was_put_in(make_head):
    head = make_head(noise=3.0)
    values = tissue_values(head.data, head.tissue)
    assert metrics.snr(values['wm']) == pytest.approx(head.means[2] / 3, rel=0.05)
