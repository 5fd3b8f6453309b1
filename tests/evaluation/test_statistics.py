from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bidsharm.errors import UsageError
from bidsharm.evaluation import statistics as S

FEW = 400  # resamples, where an interval's limits are not what is looked at


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


def test_average_by_subject_gives_each_person_one_number():
    found = S.average_by_subject([1, 3, 10, np.nan, np.nan, 7], ['b', 'b', 'a', 'a', 'c', 'b'])
    assert found == {'a': 10.0, 'b': pytest.approx(11 / 3)}
    assert list(found) == ['a', 'b']
    assert S.average_by_subject([np.inf, 30], ['a', 'a']) == {'a': np.inf}


def test_average_needs_a_subject_for_every_number():
    with pytest.raises(UsageError, match='2 rows have 1 labels'):
        S.average_by_subject([1, 2], ['a'])


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
def test_few_subjects_give_no_nan_but_a_reason(numbers, n):
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


def test_equal_differences_have_no_t_but_a_signed_rank(numbers, pair):
    found = S.compare_paired(pair[0] + 1, pair[0], seed=0)
    assert found.p_t is None
    assert found.dz is None
    assert found.p_wilcoxon < 0.01
    assert found.mean_interval == pytest.approx((1, 1))
    assert not np.isnan(numbers(found)).any()


@pytest.mark.parametrize('d', [[0, 0, 0, 0, 0, 0, 1], [1, -1, 1, -1, 1, -1], [0, 0, 0, 5, 5, 5]])
def test_differences_on_few_levels_give_no_nan(numbers, d):
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
def test_effects_of_few_subjects_give_no_nan(numbers, n):
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
