from __future__ import annotations

import json

import numpy as np
import pytest

from bidsharm.errors import ScanError, UsageError
from bidsharm.evaluation.distributions import quantiles, wasserstein
from bidsharm.evaluation.verdict import DEFAULT_THRESHOLDS, Threshold, assess, overall, parse_thresholds


def judge(head, after, **more):
    """Assess, and require that the record is strict JSON."""
    given = {
        'before': head.data,
        'after': after,
        'mask': head.mask,
        'tissue_before': head.tissue,
        'tissue_after': head.tissue,
        'spacing': head.spacing,
        'contrast': head.contrast,
        'priors': head.tissue,
    }
    record = assess(**{**given, **more})
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    return record


def checks_by_name(record):
    return {check['name']: check for check in record['checks']}


@pytest.mark.parametrize('contrast', ['T1w', 'T2w', 'FLAIR'])
@pytest.mark.parametrize('spacing', [(2.0, 2.0, 2.0), (1.5, 1.5, 4.0)])
def test_doing_nothing_passes_every_check_with_perfect_values(make_head, contrast, spacing):
    head = make_head(contrast, spacing)
    record = judge(head, head.data, target_quantiles=quantiles(head.data, head.mask))
    perfect = dict.fromkeys(('dice_csf', 'dice_gm', 'dice_wm', 'edge_agreement', 'ssim', 'cnr_kept'), 1.0)
    perfect |= dict.fromkeys(
        ('ravd_csf', 'ravd_gm', 'ravd_wm', 'new_edges', 'local_change', 'background'), 0.0
    )
    perfect |= {'target_distance': 0.0, 'finite': 0.0}
    found = {name: check['value'] for name, check in checks_by_name(record).items()}
    assert {name: found[name] for name in perfect} == pytest.approx(perfect, abs=1e-4)
    assert {check['verdict'] for check in record['checks']} == {'pass'}
    assert record['verdict'] == 'pass'


def test_every_threshold_is_a_check_and_every_check_is_told_in_words(head):
    record = judge(head, head.data)
    assert set(checks_by_name(record)) == {*DEFAULT_THRESHOLDS, 'finite'}
    for check in record['checks']:
        keys = {'name', 'label', 'value', 'unit', 'warn', 'fail', 'direction', 'verdict', 'meaning'}
        assert set(check) == keys
        assert check['label'][0].isupper()
        assert check['meaning'].endswith('.')


def test_a_linear_harmonization_passes_and_reports_its_units(head):
    after = head.mapped(lambda data: 0.01 * data - 0.2)
    record = judge(head, after)
    assert record['verdict'] == 'pass'
    before, then = record['measures']['before'], record['measures']['after']
    assert then['peak_wm'] == pytest.approx(0.01 * before['peak_wm'] - 0.2, abs=1e-4)
    assert then['cjv'] == pytest.approx(before['cjv'], rel=1e-3)
    assert before['p90'] == pytest.approx(np.quantile(head.data[head.mask], 0.9), rel=1e-5)
    expected = head.tissue.sum(axis=(1, 2, 3)) * 8 / 1000
    volumes = [before['volume_csf_ml'], before['volume_gm_ml'], before['volume_wm_ml']]
    assert volumes == pytest.approx(expected, rel=1e-4)


def test_quantiles_and_histograms_have_the_promised_sizes(head):
    target = quantiles(head.data, head.mask)
    record = judge(head, head.data, target_quantiles=target)
    for which in ('before', 'after', 'target'):
        assert record['quantiles'][which] == pytest.approx(target, rel=1e-6)
        drawn = record['histogram'][which]
        assert (len(drawn['edges']), len(drawn['density'])) == (129, 128)
        assert np.dot(np.diff(drawn['edges']), drawn['density']) == pytest.approx(1, abs=0.02)
    assert record['histogram']['target']['edges'] == record['histogram']['after']['edges']


def test_swapped_tissues_fail(head):
    record = judge(head, head.data, tissue_after=head.tissue[[0, 2, 1]])
    checks = checks_by_name(record)
    assert checks['dice_gm']['value'] == 0
    assert checks['dice_csf']['value'] == 1
    gm, wm = (float(head.tissue[index].sum()) for index in (1, 2))
    assert checks['ravd_gm']['value'] == pytest.approx(abs(wm - gm) / gm, rel=1e-4)
    assert record['verdict'] == 'fail'


@pytest.mark.parametrize(('diameter', 'verdict'), [(10, 'warn'), (20, 'fail')])
def test_an_invented_lesion_is_noticed_though_the_segmentation_is_not(head, diameter, verdict):
    record = judge(head, head.with_ball(diameter, 30.0, x=15.0))
    assert record['verdict'] == verdict
    blamed = [check['name'] for check in record['checks'] if check['verdict'] != 'pass']
    assert 'local_change' in blamed
    assert not any(name.startswith('dice') for name in blamed)


def test_a_displaced_brain_fails(head):
    record = judge(head, np.roll(head.data, 3, axis=0) * head.mask)
    assert record['verdict'] == 'fail'
    assert checks_by_name(record)['edge_agreement']['verdict'] != 'pass'


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_voxel_without_a_number_fails_and_nothing_is_made_up(head, bad):
    after = head.data.copy()
    after[tuple(np.argwhere(head.mask)[1234])] = bad
    record = judge(head, after, target_quantiles=np.linspace(0, 100, 101))
    checks = checks_by_name(record)
    assert record['verdict'] == 'fail'
    assert (checks['finite']['value'], checks['finite']['verdict']) == (1, 'fail')
    for name in ('edge_agreement', 'new_edges', 'ssim', 'local_change', 'target_distance', 'cnr_kept'):
        assert checks[name]['value'] is None
        assert checks[name]['verdict'] == 'not available'
        assert 'the harmonized image holds no number at 1 voxel inside the mask.' in checks[name]['meaning']
    assert record['quantiles']['after'] is None
    assert record['histogram']['after'] is None
    assert record['measures']['after']['peak_wm'] is None
    assert record['measures']['before']['peak_wm'] is not None
    assert record['histogram']['target'] is not None


def test_a_constant_output_fails(head):
    record = judge(head, head.mapped(np.ones_like))
    checks = checks_by_name(record)
    assert record['verdict'] == 'fail'
    assert checks['edge_agreement']['verdict'] == 'fail'
    assert checks['ssim']['verdict'] == 'not available'


def test_a_scan_that_is_constant_from_the_start_does_not_pass(head):
    flat = head.mapped(np.ones_like)
    record = judge(head, flat, before=flat)
    assert record['verdict'] == 'warn'
    assert checks_by_name(record)['edge_agreement']['verdict'] == 'not available'


def test_background_must_be_exactly_zero(head):
    after = head.data.copy()
    after[0, 0, 0] = -1e-6
    record = judge(head, after)
    assert record['verdict'] == 'fail'
    assert checks_by_name(record)['background']['value'] == pytest.approx(1e-6)


def test_without_a_target_the_distance_is_not_available_and_costs_nothing(head):
    record = judge(head, head.data)
    check = checks_by_name(record)['target_distance']
    assert (check['value'], check['verdict']) == (None, 'not available')
    assert 'no distribution of the target' in check['meaning']
    assert record['quantiles']['target'] is None
    assert record['verdict'] == 'pass'


def test_distance_to_the_target_is_in_units_of_its_range(head):
    levels = quantiles(head.data, head.mask)
    target = 2 * levels + 30
    record = judge(head, head.data, target_quantiles=target)
    check = checks_by_name(record)['target_distance']
    assert check['value'] == pytest.approx(wasserstein(levels, target) / (target[99] - target[1]), rel=1e-6)
    assert check['verdict'] == 'fail'


def test_a_missing_tissue_is_not_a_pass(head):
    without = head.tissue * np.array([0, 1, 1], np.float32)[:, None, None, None]
    record = judge(head, head.data, tissue_before=without, tissue_after=without)
    checks = checks_by_name(record)
    assert checks['dice_csf']['verdict'] == checks['ravd_csf']['verdict'] == 'not available'
    assert record['measures']['before']['peak_csf'] is None
    assert record['verdict'] == 'warn'


@pytest.mark.parametrize(
    ('radius', 'name', 'verdict'),
    [(66, None, 'pass'), (50, 'brain_volume_low', 'warn'), (30, 'brain_volume_low', 'fail')],
)
def test_brain_volume_is_checked(head, radius, name, verdict):
    mask = head.radius < radius
    record = judge(
        head, head.data * mask, mask=mask, tissue_before=head.tissue * mask, tissue_after=head.tissue * mask
    )
    checks = checks_by_name(record)
    assert checks['brain_volume_low']['value'] == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.02)
    if name is not None:
        assert checks[name]['verdict'] == verdict
    assert checks['brain_volume_high']['verdict'] == 'pass'


@pytest.mark.parametrize('contrast', ['T1w', 'T2w', 'FLAIR'])
def test_maps_of_the_template_that_do_not_fit(contrast, make_head):
    """Maps that lie the wrong way explain little of a scan, whatever its contrast; maps that are a little off do."""
    head = make_head(contrast)
    turned = [np.roll(head.tissue, step, axis=3) for step in (2, 16)]
    near, far = (checks_by_name(judge(head, head.data, priors=maps))['template_fit'] for maps in turned)
    assert near['verdict'] == 'pass'
    assert far['verdict'] in ('warn', 'fail')
    assert far['value'] < 0.5 * near['value']


def test_without_maps_of_a_template_nothing_is_said_of_them(head):
    record = judge(head, head.data, priors=None)
    assert checks_by_name(record)['template_fit']['verdict'] == 'not available'
    assert record['verdict'] == 'pass'


@pytest.mark.parametrize(('axis', 'cut'), [(0, 8), (0, 20), (1, 14), (2, 30)])
def test_a_brain_that_the_field_of_view_cuts_off(axis, cut, head):
    parts = {
        name: np.delete(getattr(head, name), np.s_[:cut], axis=axis + (name == 'tissue'))
        for name in ('data', 'mask', 'tissue')
    }
    record = judge(
        head, parts['data'], before=parts['data'], mask=parts['mask'], tissue_before=parts['tissue'],
        tissue_after=parts['tissue'], priors=parts['tissue'],
    )  # fmt: skip
    check = checks_by_name(record)['cut_off']
    depth = (cut + 0.5) * 2.0 - 72.0  # of the first voxels that are left, from the centre
    assert check['value'] == pytest.approx(np.pi * (66**2 - depth**2) / 100, rel=0.03)
    assert check['verdict'] == (
        'pass' if check['value'] <= 50 else 'fail' if check['value'] > 100 else 'warn'
    )
    assert record['verdict'] != 'pass' or check['value'] <= 50


@pytest.mark.parametrize('named', ['T1w', 'T2w', 'FLAIR'])
@pytest.mark.parametrize('contrast', ['T1w', 'T2w', 'FLAIR'])
def test_a_scan_of_another_contrast_than_its_name_says(contrast, named, make_head):
    head = make_head(contrast)
    verdict = checks_by_name(judge(head, head.data, contrast=named))['tissue_order']['verdict']
    # CSF is dark in T1w and FLAIR: one named as the other is seen only where grey matter is brighter than white.
    seen = contrast != named and (contrast, named) != ('T1w', 'FLAIR')
    assert (verdict != 'pass') == seen


def test_inverted_intensities_are_seen(head):
    inverted = head.mapped(lambda data: 200 - data)
    check = checks_by_name(judge(head, inverted, before=inverted))['tissue_order']
    assert check['verdict'] == 'fail'


def test_a_harmonization_that_turns_the_contrast_round_is_seen(head):
    inverted = head.mapped(lambda data: 200 - data)
    check = checks_by_name(judge(head, inverted))['tissue_order']
    assert check['verdict'] == 'fail'
    assert 'the scan before has the right order' in check['meaning']
    # Of a scan that had another order from the start nothing more is asked.
    turned = checks_by_name(judge(head, head.data, before=inverted))['tissue_order']
    assert turned['value'] == checks_by_name(judge(head, inverted, before=inverted))['tissue_order']['value']


def test_no_order_of_tissues_is_asked_of_a_pdw(head):
    record = judge(head, head.data, contrast='PDw')
    assert checks_by_name(record)['tissue_order']['verdict'] == 'not available'
    assert record['verdict'] == 'pass'


def test_the_result_does_not_depend_on_the_field_of_view(head):
    after = head.mapped(lambda data: data**1.5)
    wide = {
        'before': np.pad(head.data, 6),
        'mask': np.pad(head.mask, 6),
        'tissue_before': np.pad(head.tissue, ((0, 0), (6, 6), (6, 6), (6, 6))),
        'tissue_after': np.pad(head.tissue, ((0, 0), (6, 6), (6, 6), (6, 6))),
        'priors': np.pad(head.tissue, ((0, 0), (6, 6), (6, 6), (6, 6))),
    }
    assert judge(head, np.pad(after, 6), **wide) == judge(head, after)


def test_given_thresholds_replace_the_defaults(head):
    after = head.mapped(lambda data: data**2)
    assert judge(head, after)['verdict'] == 'pass'
    strict = judge(head, after, thresholds={'ssim': Threshold(1.0, 0.999)})
    assert strict['verdict'] == 'fail'
    check = checks_by_name(strict)['ssim']
    assert (check['warn'], check['fail'], check['verdict']) == (1.0, 0.999, 'fail')


def test_shapes_that_differ_and_an_empty_mask_are_errors(head):
    with pytest.raises(ScanError, match='differ in shape'):
        judge(head, head.data[1:])
    with pytest.raises(ScanError, match='differ in shape'):
        judge(head, head.data, tissue_after=head.tissue[:2])
    with pytest.raises(ScanError, match='no voxel'):
        judge(head, head.data, mask=np.zeros_like(head.mask))


@pytest.mark.parametrize(
    ('direction', 'verdicts'),
    [('min', ['fail', 'warn', 'warn', 'pass']), ('max', ['pass', 'pass', 'warn', 'fail'])],
)
def test_a_limit_itself_is_still_good(direction, verdicts):
    limits = (0.9, 0.5) if direction == 'min' else (0.5, 0.9)
    threshold = Threshold(*limits, direction)
    assert [threshold.judge(value) for value in (0.49, 0.5, 0.89, 0.91)] == verdicts
    assert threshold.judge(0.9) == ('pass' if direction == 'min' else 'warn')
    assert threshold.judge(float('nan')) == 'not available'


@pytest.mark.parametrize('limits', [(0.5, 0.9, 'min'), (0.9, 0.5, 'max'), (float('nan'), 0.5, 'min')])
def test_limits_in_the_wrong_order_are_refused(limits):
    with pytest.raises(UsageError):
        Threshold(*limits)


def test_overall_is_the_worst_and_never_silently_good():
    def verdicts(**names):
        return overall([{'name': name, 'verdict': verdict} for name, verdict in names.items()])

    assert verdicts(ssim='pass', dice_gm='pass') == 'pass'
    assert verdicts(ssim='pass', dice_gm='warn') == 'warn'
    assert verdicts(ssim='fail', dice_gm='warn') == 'fail'
    assert verdicts(ssim='pass', dice_gm='not available') == 'warn'
    assert verdicts(ssim='pass', target_distance='not available') == 'pass'
    assert verdicts(target_distance='not available') == 'warn'


def test_parsed_thresholds_keep_direction_and_missing_limits():
    parsed = parse_thresholds({'dice_gm': {'warn': 0.95}, 'new_edges': {'warn': 0, 'fail': 1}})
    assert parsed == {
        'dice_gm': Threshold(0.95, DEFAULT_THRESHOLDS['dice_gm'].fail, 'min'),
        'new_edges': Threshold(0.0, 1.0, 'max'),
    }
    assert parse_thresholds({}) == {}


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'dice_mg': {'warn': 0.9}}, 'Did you mean .*dice_gm'),
        ({'finite': {'warn': 5, 'fail': 5}}, 'no QC check'),
        ({'ssim': {'wrn': 0.9}}, '"warn" and "fail" only'),
        ({'ssim': 0.9}, '"warn" and "fail" only'),
        ({'ssim': {'warn': '0.9'}}, 'not a number'),
        ({'ssim': {'warn': True}}, 'not a number'),
        ({'ssim': {'warn': 0.1, 'fail': 0.9}}, 'QC threshold "ssim"'),
    ],
)
def test_thresholds_that_make_no_sense_are_explained(given, message):
    with pytest.raises(UsageError, match=message):
        parse_thresholds(given)
