from __future__ import annotations

from dataclasses import fields, is_dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bidsharm.errors import UsageError
from bidsharm.evaluation import statistics as S

FEW = 400  # resamples, where an interval's limits are not what is looked at


def numbers(thing: Any) -> list[float]:
    """Return every number in a result, however deep."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return [value for field in fields(thing) for value in numbers(getattr(thing, field.name))]
    if isinstance(thing, dict):
        return [value for part in thing.values() for value in numbers(part)]
    if isinstance(thing, tuple):
        return [value for part in thing for value in numbers(part)]
    return [float(thing)] if isinstance(thing, int | float) else []


def textbook_bca(
    sample: np.ndarray, statistic: Any, resamples: int, rng: np.random.Generator
) -> tuple[float, ...]:
    """Return the 95 % interval of Efron and Tibshirani 1993, chapter 14, with plain loops."""
    n, normal = len(sample), stats.norm()
    seen = np.sort([statistic(sample[rng.integers(n, size=n)]) for _ in range(resamples)])
    z0 = normal.ppf(np.mean(seen < statistic(sample)))
    left_out = np.array([statistic(np.delete(sample, index, axis=0)) for index in range(n)])
    gap = left_out.mean() - left_out
    a = np.sum(gap**3) / (6 * np.sum(gap**2) ** 1.5)
    levels = [normal.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in (normal.ppf(0.025), normal.ppf(0.975))]
    return tuple(float(np.quantile(seen, level)) for level in levels)


# One number a subject


def test_average_by_subject_gives_each_person_one_number():
    found = S.average_by_subject([1, 3, 10, np.nan, np.nan, 7], ['b', 'b', 'a', 'a', 'c', 'b'])
    assert found == {'a': 10.0, 'b': pytest.approx(11 / 3)}
    assert list(found) == ['a', 'b']
    assert S.average_by_subject([np.inf, 30], ['a', 'a']) == {'a': np.inf}


def test_average_needs_a_subject_for_every_number():
    with pytest.raises(UsageError, match='2 rows have 1 labels'):
        S.average_by_subject([1, 2], ['a'])


# Two methods


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    a = rng.normal(10, 2, 12)
    return a, a - rng.gamma(1.5, 0.6, 12) + 0.3


def test_point_estimates_and_p_by_other_routes(pair):
    from statsmodels.stats.weightstats import DescrStatsW

    a, b = pair
    d = a - b
    found = S.compare_paired(a, b, seed=0, resamples=FEW)
    walsh = [(d[i] + d[j]) / 2 for i in range(12) for j in range(i, 12)]
    t, p, _ = DescrStatsW(d).ttest_mean(0)
    assert found.mean_difference == pytest.approx(d.sum() / 12)
    assert found.shift == pytest.approx(sorted(walsh)[38] / 2 + sorted(walsh)[39] / 2)
    assert found.dz == pytest.approx(t / np.sqrt(12))
    assert found.p_t == pytest.approx(p)
    assert (found.n, found.left_out, found.reason) == (12, 0, '')


@pytest.mark.parametrize('zeros', [0, 3])
def test_signed_rank_is_that_of_all_sign_patterns(zeros):
    d = np.array([0.31, -0.12, 0.55, 0.83, -0.27, 1.4, 0.64, 0.09, 0.71] + [0.0] * zeros)
    rank = stats.rankdata(np.abs(d)) * (d != 0)  # Pratt: rank with the zeros, then drop them
    seen = np.array([np.dot(rank, signs) for signs in product([0, 1], repeat=d.size)])
    observed = rank[d > 0].sum()
    expected = min(1, 2 * min(np.mean(seen >= observed), np.mean(seen <= observed)))
    assert S.compare_paired(d, 0 * d, seed=0, resamples=FEW).p_wilcoxon == pytest.approx(expected)


@pytest.mark.parametrize(
    ('field', 'statistic'),
    [
        ('mean_interval', np.mean),
        ('dz_interval', lambda d: np.mean(d) / np.std(d, ddof=1)),
        (
            'shift_interval',
            lambda d: np.median(((d[:, None] + d[None]) / 2)[np.triu_indices(len(d))]),
        ),
    ],
)
def test_intervals_are_those_of_the_textbook(pair, field, statistic):
    a, b = pair
    found = getattr(S.compare_paired(a, b, seed=1, resamples=10_000), field)
    expected = textbook_bca(a - b, statistic, 5_000, np.random.default_rng(9))
    width = expected[1] - expected[0]
    # Two bootstraps differ by their draws: a few hundredths of the width.
    assert found == pytest.approx(expected, abs=0.06 * width)
    assert found.low < statistic(a - b) < found.high


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = {'mean_interval': 0, 'shift_interval': 0, 'dz_interval': 0}
    truth = {'mean_interval': 1.0, 'shift_interval': 1.0, 'dz_interval': 0.5}
    for _ in range(200):
        found = S.compare_paired(
            rng.normal(1, 2, 20), np.zeros(20), seed=int(rng.integers(1e6)), resamples=300
        )
        for field, value in truth.items():
            low, high = getattr(found, field)
            covered[field] += low <= value <= high
    for count in covered.values():
        assert 0.87 <= count / 200 <= 0.985


def test_shift_of_many_subjects_has_the_interval_that_the_test_does_not_reject():
    d = np.random.default_rng(2).normal(0.4, 1, 150)
    found = S.compare_paired(d, 0 * d, seed=0, resamples=FEW)
    assert found.shift_interval.low < found.shift < found.shift_interval.high
    for limit in found.shift_interval:
        assert stats.wilcoxon(d - limit).pvalue == pytest.approx(0.05, abs=0.003)


def test_seed_decides_the_interval(pair):
    first = S.compare_paired(*pair, seed=5, resamples=FEW)
    assert S.compare_paired(*pair, seed=5, resamples=FEW) == first
    assert S.compare_paired(*pair, seed=6, resamples=FEW) != first


def test_comparison_turns_around_with_its_arguments(pair):
    a, b = pair
    there, back = S.compare_paired(a, b, seed=0, resamples=FEW), S.compare_paired(b, a, seed=0, resamples=FEW)
    assert back.mean_difference == -there.mean_difference
    assert back.shift == pytest.approx(-there.shift)
    assert (back.p_t, back.p_wilcoxon) == pytest.approx((there.p_t, there.p_wilcoxon))


def test_pairs_with_a_missing_or_infinite_number_are_left_out_and_counted(pair):
    a, b = pair
    plain = S.compare_paired(a, b, seed=0, resamples=FEW)
    more = S.compare_paired([*a, np.nan, np.inf, 3], [*b, 1, np.inf, np.nan], seed=0, resamples=FEW)
    assert (more.n, more.left_out) == (12, 3)
    assert more.p_t == plain.p_t


@pytest.mark.parametrize('n', range(6))
def test_few_subjects_give_no_nan_but_a_reason(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n), rng.normal(size=n)
    found = S.compare_paired(a, b, seed=0, resamples=FEW)
    assert not np.isnan(numbers(found)).any()
    assert found.reason
    assert (found.p_t is None) == (n < 3)
    assert (found.mean_interval is None) == (n < 5)


def test_a_method_that_changes_nothing_is_no_evidence_of_a_difference(pair):
    found = S.compare_paired(pair[0], pair[0], seed=0)
    assert (found.p_t, found.p_wilcoxon, found.mean_interval) == (1, 1, (0, 0))
    assert found.dz is None
    assert 'every difference is 0' in found.reason


def test_equal_differences_have_no_t_but_a_signed_rank(pair):
    found = S.compare_paired(pair[0] + 1, pair[0], seed=0)
    assert found.p_t is None
    assert found.dz is None
    assert found.p_wilcoxon < 0.01
    assert found.mean_interval == pytest.approx((1, 1))
    assert not np.isnan(numbers(found)).any()


@pytest.mark.parametrize('d', [[0, 0, 0, 0, 0, 0, 1], [1, -1, 1, -1, 1, -1], [0, 0, 0, 5, 5, 5]])
def test_differences_on_few_levels_give_no_nan(d):
    found = S.compare_paired(d, np.zeros(len(d)), seed=0, resamples=FEW)
    assert not np.isnan(numbers(found)).any()
    assert found.mean_interval.low <= np.mean(d) <= found.mean_interval.high


@pytest.mark.parametrize(
    'options', [{'resamples': 0}, {'confidence': 1.0}, {'confidence': 0.0}, {'confidence': np.nan}]
)
def test_options_out_of_range_are_refused(pair, options):
    with pytest.raises(UsageError):
        S.compare_paired(*pair, seed=0, **options)


def test_shapes_must_match():
    with pytest.raises(UsageError, match='do not match'):
        S.compare_paired([1, 2, 3], [1, 2], seed=0)
    with pytest.raises(UsageError, match='do not match'):
        S.compare_paired(np.ones((3, 2)), np.ones((3, 2)), seed=0)


# Many methods


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04 times 4 3 2 1 gives .02 .03 .06 .04, and none may fall below the one before.
    assert S.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert S.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_tests_that_were_not_made_do_not_count_in_the_family():
    assert S.holm([None, 0.01, None, 0.04]) == [None, pytest.approx(0.02), None, pytest.approx(0.04)]
    assert S.holm([None]) == [None]
    assert S.holm([]) == []
    with pytest.raises(UsageError):
        S.holm([0.1, np.nan])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_holm_is_never_milder_than_no_correction_nor_stricter_than_bonferroni(p_values):
    for raw, adjusted in zip(p_values, S.holm(p_values), strict=True):
        assert raw <= adjusted <= min(1, raw * len(p_values)) * (1 + 1e-12)


def table_of(columns: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        method: {f'{index:03d}': float(value) for index, value in enumerate(values)}
        for method, values in columns.items()
    }


def test_friedman_on_the_example_of_hollander_and_wolfe():
    # Times of 22 players for three ways to round first base; 11.1429, p = .003805.
    round_out = '540 585 520 555 590 545 540 545 525 585 525 565 560 505 550 545 555 545 550 565 570 630'
    narrow = '550 570 560 550 585 555 540 550 515 580 520 555 535 500 550 555 555 550 545 560 565 630'
    wide = '555 575 550 540 570 560 535 535 500 570 510 545 545 495 540 550 535 555 525 540 555 625'
    columns = {'out': round_out.split(), 'narrow': narrow.split(), 'wide': wide.split()}
    found = S.friedman(table_of(columns))
    assert found.statistic == pytest.approx(11.1429, abs=1e-4)
    assert found.p == pytest.approx(0.003805, abs=1e-6)
    assert found.n == 22


def test_friedman_says_why_it_cannot():
    assert 'three or more methods' in S.friedman(table_of({'a': [1, 2, 3], 'b': [2, 3, 4]})).reason
    assert 'too few' in S.friedman(table_of({'a': [1], 'b': [2], 'c': [3]})).reason
    assert 'tie' in S.friedman(table_of({'a': [1, 2, 3], 'b': [1, 2, 3], 'c': [1, 2, 3]})).reason


def long_form(
    effects: list[float], subjects: int, scanners: int, seed: int = 0, noise: float = 0.5
) -> dict[str, list[Any]]:
    """Return numbers of every method, subject and scanner with SD 1 of subjects and 2 of scanners."""
    rng = np.random.default_rng(seed)
    person, device = rng.normal(0, 1, subjects), rng.normal(0, 2, scanners)
    rows: dict[str, list[Any]] = {'values': [], 'methods': [], 'subjects': [], 'scanners': []}
    for (m, effect), i, s in product(enumerate(effects), range(subjects), range(scanners)):
        rows['values'].append(5 + effect + person[i] + device[s] + rng.normal(0, noise))
        rows['methods'].append(f'm{m}')
        rows['subjects'].append(f's{i}')
        rows['scanners'].append(f'c{s}')
    return rows


def test_mixed_model_of_two_methods_is_the_paired_t_test():
    rows = long_form([0, 0.4], 14, 1)
    del rows['scanners']
    y = np.array(rows['values']).reshape(2, 14)
    found = S.mixed_model(**rows, reference='m0')
    paired = stats.ttest_rel(y[1], y[0])
    assert found.fitted_as == 'subject intercepts'
    assert found.degrees == 13
    assert found.effects['m1'].p == pytest.approx(paired.pvalue, rel=1e-3)
    assert found.effects['m1'].interval == pytest.approx(paired.confidence_interval(), rel=1e-3)


def test_mixed_model_is_that_of_the_formula_also_with_numbers_missing():
    from statsmodels.formula.api import mixedlm

    rows = long_form([0, 0.4, -0.3], 15, 1, seed=4)
    keep = np.random.default_rng(0).random(45) > 0.2
    data = pd.DataFrame(rows)[keep]
    expected = mixedlm('values ~ methods', data, groups=data['subjects']).fit(reml=True)
    holes = np.where(keep, rows['values'], np.nan)
    found = S.mixed_model(holes, rows['methods'], rows['subjects'], reference='m0')
    assert found.rows == keep.sum()
    for name in ('m1', 'm2'):
        assert found.effects[name].estimate == pytest.approx(expected.params[f'methods[T.{name}]'], rel=1e-3)
        half = stats.t.ppf(0.975, found.degrees) * expected.bse[f'methods[T.{name}]']
        low, high = found.effects[name].interval
        assert (high - low) / 2 == pytest.approx(half, rel=1e-3)


def test_crossed_scanners_are_told_from_subjects():
    rows = long_form([0, 0.3], 25, 25)
    found = S.mixed_model(**rows, reference='m0')
    assert found.fitted_as == 'subject and scanner intercepts'
    assert found.spread['subject'] == pytest.approx(1, rel=0.35)
    assert found.spread['scanner'] == pytest.approx(2, rel=0.35)
    assert found.spread['residual'] == pytest.approx(0.5, rel=0.05)
    assert found.effects['m1'].interval.low < 0.3 < found.effects['m1'].interval.high


def test_model_that_does_not_converge_falls_back_and_says_so(monkeypatch):
    rows = long_form([0, 0.4, 0.8], 12, 1)
    mixed = S.mixed_model(rows['values'], rows['methods'], rows['subjects'], reference='m0')
    monkeypatch.setattr(S, '_fit_mixed', lambda *_: None)
    devices = [f'c{int(name[1:]) % 3}' for name in rows['subjects']]
    fixed = S.mixed_model(rows['values'], rows['methods'], rows['subjects'], reference='m0', scanners=devices)
    assert fixed.fitted_as == 'fixed subjects'
    assert 'scanner intercepts did not converge' in fixed.reason
    for name in ('m1', 'm2'):  # balanced: both models give the same
        assert fixed.effects[name].estimate == pytest.approx(mixed.effects[name].estimate, rel=1e-6)
        assert fixed.effects[name].p == pytest.approx(mixed.effects[name].p, rel=1e-2)


def test_mixed_model_does_not_depend_on_units():
    rows = long_form([0, 0.4], 10, 1)
    del rows['scanners']
    big = S.mixed_model(**rows, reference='m0')
    rows['values'] = [1e-6 * value + 100 for value in rows['values']]
    small = S.mixed_model(**rows, reference='m0')
    assert small.effects['m1'].estimate == pytest.approx(1e-6 * big.effects['m1'].estimate, rel=1e-5)
    assert small.effects['m1'].p == pytest.approx(big.effects['m1'].p, rel=1e-3)


def test_mixed_model_says_why_it_cannot():
    assert 'too few' in S.mixed_model([1, 2], ['a', 'b'], ['s', 's'], reference='a').reason
    flat = S.mixed_model([1] * 6, ['a', 'b'] * 3, ['s', 's', 't', 't', 'u', 'u'], reference='a')
    assert 'equal' in flat.reason
    lone = S.mixed_model([1, np.nan, 2, np.nan, 4, np.nan], ['a', 'b'] * 3, list('sstTuu'), reference='a')
    assert 'only one method' in lone.reason
    with pytest.raises(UsageError, match='not among the methods'):
        S.mixed_model([1, 2], ['a', 'b'], ['s', 's'], reference='c')


def test_all_methods_are_compared_with_the_reference_and_corrected_as_one_family():
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, 16)
    tables = {
        metric: table_of({name: base + gain + rng.normal(0, 0.4, 16) for name, gain in gains.items()})
        for metric, gains in {
            'psnr': {'identity': 0, 'good': 1.0, 'same': 0.0},
            'ssim': {'identity': 0, 'good': 0.3, 'same': 0.0},
        }.items()
    }
    found = S.compare_metrics(tables, reference='identity', seed=0, resamples=FEW)
    raw = [found[metric].against[name].p_wilcoxon for metric in tables for name in ('good', 'same')]
    adjusted = [found[metric].holm_wilcoxon[name] for metric in tables for name in ('good', 'same')]
    assert adjusted == pytest.approx(S.holm(raw))
    assert found['psnr'].holm_wilcoxon['good'] == pytest.approx(4 * raw[0])
    assert found['psnr'].against['good'].mean_difference > 0.7
    assert found['psnr'].holm_t['good'] < 0.01 < found['psnr'].holm_t['same']
    assert set(found['psnr'].model.effects) == {'good', 'same'}
    assert found['psnr'].omnibus.p < 0.01
    alone = S.compare_methods(tables['psnr'], reference='identity', seed=0, resamples=FEW)
    assert alone.against == found['psnr'].against
    assert alone.holm_wilcoxon['good'] == pytest.approx(2 * raw[0])


def test_subjects_are_matched_by_name_not_by_place():
    table = {
        'a': {'3': 3.5, '1': 1.5, '2': 2.5, '4': 4.5, '9': 70.0},
        'b': {'1': 1.0, '2': 2.0, '4': 4.0, '3': 3.0, '8': -70.0},
    }
    found = S.compare_methods(table, reference='b', seed=0).against['a']
    assert (found.n, found.left_out, found.mean_difference) == (4, 2, 0.5)


@pytest.mark.parametrize('n', range(5))
def test_a_table_of_few_subjects_gives_no_nan(n):
    rng = np.random.default_rng(0)
    table = table_of({name: rng.normal(size=n) for name in 'abc'})
    found = S.compare_methods(table, reference='a', seed=0, resamples=FEW)
    assert not np.isnan(numbers(found)).any()
    assert found.against['b'].n == n


def test_tables_that_make_no_question_are_refused():
    table = table_of({'a': [1, 2, 3], 'b': [1, 2, 4]})
    with pytest.raises(UsageError, match='not among the methods'):
        S.compare_methods(table, reference='c', seed=0)
    with pytest.raises(UsageError, match='only the reference'):
        S.compare_methods({'a': table['a']}, reference='a', seed=0)
    with pytest.raises(UsageError, match="'001' has no scanner"):
        S.compare_methods(table, reference='a', seed=0, scanners={'000': 'x', '002': 'x'})


# No harm


@given(st.integers(0, 10_000), st.floats(0.05, 2), st.floats(-1.5, 1.5), st.sampled_from(['higher', 'lower']))
@settings(max_examples=60, deadline=None)
def test_equivalence_is_the_interval_within_the_margins(seed, margin, shift, worse):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(shift, 1, 15), rng.normal(0, 0.5, 15)
    found = S.equivalence(a, b, margin=margin, worse=worse)
    interval = stats.ttest_rel(a, b).confidence_interval(0.90)
    assert found.interval == pytest.approx(tuple(interval))
    assert (found.equivalent == 'equivalent') == (interval.low > -margin and interval.high < margin)
    harmless = interval.high < margin if worse == 'higher' else interval.low > -margin
    assert (found.noninferior == 'not inferior') == harmless
    one_sided = stats.ttest_1samp(
        a - b, *((margin, 0, 'omit', 'less') if worse == 'higher' else (-margin, 0, 'omit', 'greater'))
    )
    assert found.p_noninferiority == pytest.approx(one_sided.pvalue)
    assert found.p_equivalence >= found.p_noninferiority


@pytest.mark.parametrize(('truth', 'low', 'high'), [(0.5, 0.03, 0.07), (-0.5, 0.03, 0.07), (0.0, 0.97, 1)])
def test_equivalence_errs_at_the_margin_as_often_as_it_says(truth, low, high):
    rng = np.random.default_rng(0)
    shown = 0
    for _ in range(1000):
        found = S.equivalence(rng.normal(truth, 0.6, 25), np.zeros(25), margin=0.5)
        shown += found.equivalent == 'equivalent'
    assert low <= shown / 1000 <= high


def test_a_wide_interval_is_called_too_few_subjects_rather_than_harm():
    found = S.equivalence([0.0, 3, -3, 1], np.zeros(4), margin=0.1)
    assert (found.equivalent, found.noninferior) == ('n too small', 'n too small')
    assert 'could not have shown it' in found.reason
    harm = S.equivalence(1 + np.array([0.01, 0.02, -0.01, 0.0]), np.zeros(4), margin=0.1)
    assert (harm.equivalent, harm.noninferior) == ('not shown', 'not shown')
    better = S.equivalence(1 + np.array([0.01, 0.02, -0.01, 0.0]), np.zeros(4), margin=0.1, worse='lower')
    assert (better.equivalent, better.noninferior) == ('not shown', 'not inferior')


def test_equal_differences_are_taken_at_their_limit():
    same = S.equivalence([1, 2, 3, 4], [1, 2, 3, 4], margin=0.1)
    assert (same.equivalent, same.p_equivalence, same.interval) == ('equivalent', 0, (0, 0))
    off = S.equivalence([2, 3, 4], [1, 2, 3], margin=0.1)
    assert (off.equivalent, off.p_equivalence) == ('not shown', 1)


@pytest.mark.parametrize('n', [0, 1, 2])
def test_equivalence_needs_three_subjects(n):
    found = S.equivalence(np.zeros(n), np.zeros(n), margin=1)
    assert (found.equivalent, found.p_equivalence) == ('n too small', None)
    assert 'too few' in found.reason


@pytest.mark.parametrize('options', [{'margin': 0}, {'margin': np.nan}, {'margin': 1, 'alpha': 0.5}, {'margin': 1, 'worse': 'x'}])  # fmt: skip
def test_equivalence_refuses_what_makes_no_sense(options):
    with pytest.raises(UsageError):
        S.equivalence([1, 2, 3], [1, 2, 3], **options)


# Biology


def test_cohens_d_by_hand_and_by_another_route():
    from statsmodels.stats.weightstats import ttest_ind

    rng = np.random.default_rng(0)
    young, old = rng.normal(600, 30, 14), rng.normal(560, 40, 19)
    values, groups = np.concatenate([old, young]), ['old'] * 19 + ['young'] * 14
    found = S.effect_size_of_biology(values, groups=groups, seed=0)
    pooled = np.sqrt((18 * old.var(ddof=1) + 13 * young.var(ddof=1)) / 31)
    assert found.estimate == pytest.approx((young.mean() - old.mean()) / pooled)
    assert found.p == pytest.approx(ttest_ind(young, old, usevar='unequal')[1])
    assert found.interval.low < found.estimate < found.interval.high
    # The usual normal interval of d is close at this size (Hedges and Olkin 1985).
    half = 1.96 * np.sqrt(33 / (14 * 19) + found.estimate**2 / (2 * 33))
    assert found.interval == pytest.approx((found.estimate - half, found.estimate + half), abs=0.35)
    turned = S.cohens_d(values, [name == 'old' for name in groups], seed=0, resamples=FEW)
    assert turned.estimate == pytest.approx(-found.estimate)


def test_correlation_with_the_truth():
    rng = np.random.default_rng(1)
    truth = rng.uniform(20, 80, 60)
    values = 700 - 2 * truth + rng.normal(0, 40, 60)
    found = S.effect_size_of_biology([*values, np.nan], ages=[*truth, 30], seed=0)
    assert (found.kind, found.n, found.left_out) == ('pearson r', 60, 1)
    assert found.estimate == pytest.approx(np.corrcoef(values, truth)[0, 1])
    fisher = np.tanh(np.arctanh(found.estimate) + np.array([-1, 1]) * 1.96 / np.sqrt(57))
    assert found.interval == pytest.approx(tuple(fisher), abs=0.06)
    expected = textbook_bca(
        np.column_stack([values, truth]), lambda part: np.corrcoef(part.T)[0, 1], 3_000, rng
    )
    assert found.interval == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize('n', range(7))
def test_effects_of_few_subjects_give_no_nan(n):
    rng = np.random.default_rng(n)
    r = S.correlation(rng.normal(size=n), rng.normal(size=n), seed=0, resamples=FEW)
    assert not np.isnan(numbers(r)).any()
    assert (r.estimate is None) == (n < 3)
    if n >= 2:
        d = S.cohens_d(rng.normal(size=n), ['a', 'b'] * (n // 2) + ['a'] * (n % 2), seed=0, resamples=FEW)
        assert not np.isnan(numbers(d)).any()
        assert (d.estimate is None) == (n // 2 < 3)


def test_effects_without_spread_say_so():
    assert 'does not vary' in S.correlation([1, 1, 1, 1], [1, 2, 3, 4], seed=0).reason
    assert 'neither group varies' in S.cohens_d([1, 1, 1, 2, 2, 2], list('aaabbb'), seed=0).reason


def test_effects_refuse_what_makes_no_sense():
    with pytest.raises(UsageError, match='Exactly one'):
        S.effect_size_of_biology([1, 2, 3], seed=0)
    with pytest.raises(UsageError, match='3 groups'):
        S.effect_size_of_biology([1, 2, 3], groups=['a', 'b', 'c'], seed=0)


# Folds


@st.composite
def designs(draw):
    scans = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=2, max_size=40))
    return [f's{person}' for person, _ in scans], [f'c{device}' for _, device in scans]


@given(designs(), st.sampled_from(['subject', 'scanner']), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_no_fold_has_a_subject_on_both_sides(design, by, count, seed):
    subjects, scanners = np.array(design[0]), np.array(design[1])
    try:
        found = S.folds(design[0], design[1], by=by, count=count, seed=seed)
    except UsageError:
        travelled = len(set(zip(*design, strict=True))) > len(set(subjects))
        few = len(set(subjects)) < count and (by == 'subject' or travelled)
        # Otherwise only a fold without anything to train on may be refused.
        assert few or by == 'scanner'
        return
    assert sorted(np.concatenate([fold.test for fold in found])) == list(range(subjects.size))
    for fold in found:
        assert fold.train.size
        assert not set(subjects[fold.train]) & set(subjects[fold.test])
        if by == 'scanner':
            assert not set(scanners[fold.train]) & set(scanners[fold.test])
            assert len(set(scanners[fold.test])) == 1


def test_folds_are_even_and_seeded():
    subjects = [f's{index // 2}' for index in range(24)]
    found = S.folds(subjects, ['c'] * 24, by='subject', count=4, seed=1)
    assert [fold.test.size for fold in found] == [6] * 4
    again = S.folds(subjects, ['c'] * 24, by='subject', count=4, seed=1)
    other = S.folds(subjects, ['c'] * 24, by='subject', count=4, seed=2)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(found, again, strict=True))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(found, other, strict=True))


def test_each_scanner_is_left_out_once_where_nobody_travelled():
    scanners = ['x'] * 3 + ['y'] * 2 + ['z'] * 4
    found = S.folds([f's{index}' for index in range(9)], scanners, by='scanner')
    assert [fold.test.tolist() for fold in found] == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    assert all(fold.train.size + fold.test.size == 9 for fold in found)


def test_folds_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match='cannot be shared out'):
        S.folds(['a', 'b'], ['x', 'y'], by='subject', count=3)
    with pytest.raises(UsageError, match='two or more scanners'):
        S.folds(['a', 'b'], ['x', 'x'], by='scanner')
    with pytest.raises(UsageError, match='not known'):
        S.folds(['a', 'b'], ['x', 'x'], by='site')


# Site probe


def probe(features, sites, subjects, permutations: int = 40) -> S.Probe:
    return S.site_probe(features, sites, subjects, seed=0, permutations=permutations, resamples=1000)


def test_probe_finds_a_planted_site_effect_and_nothing_without_one():
    rng = np.random.default_rng(0)
    sites, subjects = ['a', 'b', 'c'] * 20, [f's{index}' for index in range(60)]
    features = rng.normal(size=(60, 6))
    nothing = probe(features, sites, subjects)
    assert nothing.accuracy < nothing.chance_high
    assert nothing.p > 0.05
    assert nothing.chance == pytest.approx(1 / 3, abs=0.06)
    planted = features + 2.5 * np.outer(np.tile([0, 1, 2], 20), np.eye(6)[0])
    found = probe(planted, sites, subjects)
    assert found.interval.low > found.chance_high
    assert found.p == pytest.approx(1 / 41)
    assert found.interval.low < found.accuracy < found.interval.high


def test_probe_is_the_cross_validation_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(5)
    subjects = np.repeat(np.arange(30), 2)
    sites = np.where(subjects < 20, 'a', 'b')
    features = rng.normal(size=(60, 4)) * [1, 10, 100, 1] + np.outer(sites == 'b', [1, 0, 0, 0])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight='balanced'))
    cut = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    names, persons = (np.unique(part, return_inverse=True)[1] for part in (sites, subjects.astype(str)))
    guess = cross_val_predict(model, features, names, groups=persons, cv=cut)
    found = probe(features, list(sites), list(subjects.astype(str)), permutations=2)
    assert found.accuracy == pytest.approx(balanced_accuracy_score(names, guess))


def test_probe_cannot_recognize_a_person_instead_of_a_site():
    # Every person is unmistakable, sites mean nothing: a cross-validation that splits persons would score 1.
    rng = np.random.default_rng(2)
    person = np.repeat(np.arange(40), 6)
    signature = rng.normal(size=(40, 30))
    features = signature[person] + 0.01 * rng.normal(size=(240, 30))
    sites = np.array(['a', 'b'])[person % 2]
    found = probe(features, list(sites), [f's{index}' for index in person], permutations=20)
    assert found.accuracy < 0.7
    assert found.p > 0.05


def test_probe_of_travelling_subjects():
    rng = np.random.default_rng(3)
    person, device = np.divmod(np.arange(60), 3)
    features = 5 * rng.normal(size=(20, 4))[person] + rng.normal(size=(60, 4))
    sites, subjects = [f'c{index}' for index in device], [f's{index}' for index in person]
    assert probe(features, sites, subjects).p > 0.05
    features[:, 0] += 20 * device
    found = probe(features, sites, subjects)
    assert found.p < 0.05
    assert found.accuracy > 0.6


def test_perfect_probe_has_an_interval_without_width():
    site = np.repeat([0, 1], 10)
    found = probe(100.0 * site[:, None], list(site.astype(str)), [f's{index}' for index in range(20)], 5)
    assert (found.accuracy, found.interval) == (1, (1, 1))


@given(designs(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_permuted_sites_keep_who_travelled_and_how_often_a_site_occurs(design, seed):
    person = np.unique(design[0], return_inverse=True)[1]
    site = np.unique(design[1], return_inverse=True)[1]
    found = S._permuted(site, person, np.random.default_rng(seed))

    def homes(labels):
        return {index: sorted(labels[person == index]) for index in set(person)}

    before, after = homes(site), homes(found)
    travellers = {index for index, labels in before.items() if len(set(labels)) > 1}
    assert all(after[index] == before[index] for index in travellers)
    stay = set(before) - travellers
    assert all(len(set(after[index])) == 1 for index in stay)
    assert sorted(after[index][0] for index in stay) == sorted(before[index][0] for index in stay)


def test_probe_of_few_subjects_says_why_not():
    found = probe([[1.0], [2.0], [3.0]], ['a', 'a', 'b'], ['s', 't', 'u'])
    assert found.accuracy is None
    assert 'fewer than 2 subjects' in found.reason
    four = probe([[1.0], [2.0], [3.0], [4.0]], list('aabb'), list('stuv'), permutations=3)
    assert four.accuracy is not None
    assert four.interval is None
    assert not np.isnan(numbers(four)).any()


def test_probe_leaves_out_rows_with_a_missing_feature():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(22, 2))
    features[3, 1] = np.nan
    found = probe(features, ['a', 'b'] * 11, [f's{index}' for index in range(22)], permutations=2)
    assert (found.n, found.left_out) == (21, 1)


def test_probe_refuses_what_makes_no_sense():
    with pytest.raises(UsageError, match='only one site'):
        probe([[1.0], [2.0]], ['a', 'a'], ['s', 't'])
    with pytest.raises(UsageError, match='shape'):
        probe([1.0, 2.0], ['a', 'b'], ['s', 't'])
