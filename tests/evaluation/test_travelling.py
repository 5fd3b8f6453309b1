from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from bidsharm.errors import UsageError
from bidsharm.evaluation import travelling as T

#: Table 2 of Shrout and Fleiss 1979: four judges rate six targets.
SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
)


# Variation across scanners


def test_cov_is_that_of_scipy():
    values = np.random.default_rng(0).uniform(1, 5, (7, 4, 3))
    assert T.cov(values) == pytest.approx(stats.variation(values, axis=1, ddof=1))
    assert T.cov(values[..., 0]) == pytest.approx(stats.variation(values[..., 0], axis=1, ddof=1))


def test_cov_passes_over_missing_scanners():
    found = T.cov([[1.0, 3.0, np.nan], [2.0, np.nan, np.nan], [2.0, 2.0, 2.0], [-1.0, 1.0, 0.0]])
    assert found == pytest.approx([np.sqrt(2) / 2, np.nan, 0, np.nan], nan_ok=True)
    with pytest.raises(UsageError):
        T.cov([1.0, 2.0])


# Agreement


def test_icc_of_shrout_and_fleiss():
    found = T.icc(SHROUT_FLEISS)
    assert found.agreement == pytest.approx(0.29, abs=0.005)
    assert found.consistency == pytest.approx(0.71, abs=0.005)
    # The limits that R's psych and Python's pingouin print for these data.
    assert found.agreement_interval == pytest.approx((0.019, 0.76), abs=0.005)
    assert found.consistency_interval == pytest.approx((0.34, 0.95), abs=0.005)


def test_icc_from_the_mean_squares_of_an_analysis_of_variance():
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    rng = np.random.default_rng(4)
    table = rng.normal(10, 3, (9, 1)) + rng.normal(0, 1, (1, 5)) + rng.normal(0, 1.5, (9, 5))
    row, column = np.indices(table.shape)
    data = pd.DataFrame({'y': table.ravel(), 'row': row.ravel(), 'column': column.ravel()})
    squares = anova_lm(ols('y ~ C(row) + C(column)', data).fit())['mean_sq']
    rows, columns, error = squares['C(row)'], squares['C(column)'], squares['Residual']
    found = T.icc(table)
    assert found.consistency == pytest.approx((rows - error) / (rows + 4 * error))
    assert found.agreement == pytest.approx((rows - error) / (rows + 4 * error + 5 / 9 * (columns - error)))


def test_offset_of_a_scanner_lowers_agreement_but_not_consistency():
    moved = SHROUT_FLEISS + np.array([0, 0, 0, 30])
    before, after = T.icc(SHROUT_FLEISS), T.icc(moved)
    assert after.consistency == pytest.approx(before.consistency)
    assert after.agreement < 0.1 < before.agreement


def test_limits_of_icc_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    agreement = consistency = 0
    for _ in range(1000):
        table = rng.normal(0, 2, (12, 1)) + rng.normal(0, 1, (1, 8)) + rng.normal(0, 1, (12, 8))
        found = T.icc(table)
        agreement += found.agreement_interval.low <= 4 / 6 <= found.agreement_interval.high
        consistency += found.consistency_interval.low <= 4 / 5 <= found.consistency_interval.high
    assert 0.92 <= agreement / 1000 <= 0.98
    assert 0.935 <= consistency / 1000 <= 0.965


def test_subjects_who_missed_a_scanner_are_left_out():
    more = np.vstack([SHROUT_FLEISS, [5, np.nan, 3, 4]])
    found = T.icc(more)
    assert (found.n, found.left_out) == (6, 1)
    assert found.agreement == T.icc(SHROUT_FLEISS).agreement


def test_perfect_agreement():
    same = np.tile(np.array([[0.1], [0.7], [0.3], [0.9]]), 3)
    found = T.icc(same)
    assert (found.agreement, found.consistency) == (1, 1)
    assert (found.agreement_interval, found.consistency_interval) == ((1, 1), (1, 1))
    shifted = T.icc(same + np.array([0, 0.1, 0.2]))
    assert shifted.consistency == pytest.approx(1)
    assert shifted.agreement < 1


def rated(*people: str) -> np.ndarray:
    """Return a table with a number where a person's word names a scanner, a to e."""
    rng = np.random.default_rng(0)
    return np.array([[rng.uniform() if name in word else np.nan for name in 'abcde'] for word in people])


@pytest.mark.parametrize(
    ('people', 'rows', 'scanners'),
    [
        (['abcde', 'abcde', 'abcde'], [0, 1, 2], 'abcde'),
        # Nobody who travelled was in c and d, and who was there is not asked.
        (['ab', 'ab', 'ab', 'c', 'd', 'a'], [0, 1, 2], 'ab'),
        # Three people in three scanners are more than five in two less one; of equally many the more scanners count.
        (['abc', 'abc', 'abc', 'abc', 'ab'], [0, 1, 2, 3], 'abc'),
        (['abc', 'abc', 'abc', 'abc', 'ab', 'ab'], [0, 1, 2, 3], 'abc'),
        (['abc', 'abc', 'abc', 'abc', 'ab', 'ab', 'ab'], [0, 1, 2, 3, 4, 5, 6], 'ab'),
        # To leave out one scanner alone helps nothing.
        (['abc', 'abc', 'abd', 'abd', 'ab'], [0, 1, 2, 3, 4], 'ab'),
        # Two groups of people: who has no second scanner left does not count for the first.
        (['ab', 'ab', 'ab', 'de', 'de', 'de', 'de'], [3, 4, 5, 6], 'de'),
        # Two people are no ICC, however many scanners they were in.
        (['abcde', 'abcde', 'ab'], [0, 1, 2], 'ab'),
        (['abc', 'abc'], [0, 1], 'abc'),
        (['a', 'b', 'c'], [], ''),
    ],
)
def test_complete_ratings_are_as_many_as_can_be(people, rows, scanners):
    found, columns = T.complete_ratings(rated(*people))
    assert found.tolist() == rows
    assert ''.join('abcde'[column] for column in columns) == scanners


@given(hnp.arrays(bool, st.tuples(st.integers(0, 8), st.integers(0, 6))))
@settings(max_examples=300, deadline=None)
def test_complete_ratings_are_complete(there):
    rows, columns = T.complete_ratings(np.where(there, 1.0, np.nan))
    assert there[np.ix_(rows, columns)].all()
    assert columns.size != 1
    everywhere = np.count_nonzero(there.all(axis=1))
    if everywhere > 2 and there.shape[1] > 1:
        assert rows.size > 2
        assert rows.size * columns.size >= everywhere * there.shape[1]


@pytest.mark.parametrize(
    ('table', 'reason'),
    [
        (np.ones((2, 4)), '3 or more'),
        (np.ones((5, 1)), '2 or more'),
        (np.full((5, 3), np.nan), '3 or more'),
        (np.ones((5, 3)), 'equal'),
        (np.tile([1.0, 2.0, 3.0], (5, 1)), 'do not differ'),
    ],
)
def test_icc_says_why_it_cannot(table, reason):
    found = T.icc(table)
    assert reason in found.reason
    assert found.consistency is None


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(3, 6), st.integers(2, 4)),
        elements=st.floats(-10, 10).map(np.float32),
    )
)
@settings(max_examples=300, deadline=None)
def test_icc_is_never_nan_and_lies_between_its_limits(table):
    found = T.icc(table)
    for value, interval in (
        (found.agreement, found.agreement_interval),
        (found.consistency, found.consistency_interval),
    ):
        if value is None or interval is None:
            assert found.reason
        else:
            assert np.isfinite([value, *interval]).all()
            assert interval.low - 1e-9 <= value <= interval.high + 1e-9 <= 1 + 2e-9


def test_icc_refuses_what_makes_no_sense():
    with pytest.raises(UsageError):
        T.icc([1.0, 2.0])
    with pytest.raises(UsageError):
        T.icc(SHROUT_FLEISS, confidence=95)


# Persons

SUBJECTS = ['a', 'a', 'b', 'b', 'c', 'c']
SCANNERS = ['x', 'y', 'x', 'y', 'x', 'y']


def between_points(*points: float) -> np.ndarray:
    place = np.array(points, dtype=float)
    return np.abs(place[:, None] - place[None])


def test_within_between_ratio_by_hand():
    found = T.within_between_ratio(between_points(0, 1, 10, 12), ['a', 'a', 'b', 'b'])
    assert (found.within, found.between) == (1.5, 10.5)
    assert found.ratio == pytest.approx(1.5 / 10.5)
    assert found.by_subject == {'a': pytest.approx(1 / 10.5), 'b': pytest.approx(2 / 10.5)}


def test_pairs_from_one_scanner_can_be_passed_over():
    found = T.within_between_ratio(between_points(0, 1, 10, 12), ['a', 'a', 'b', 'b'], ['x', 'y', 'x', 'y'])
    assert (found.within, found.between) == (1.5, (12 + 9) / 2)
    alone = T.within_between_ratio(between_points(0, 1, 5), ['a', 'a', 'b'], ['x', 'x', 'y'])
    assert alone.ratio is None
    assert alone.reason


def test_each_person_weighs_the_same():
    # Person a has four scans at 0 and b two scans 4 apart: by pairs the mean within would be 4/7.
    found = T.within_between_ratio(between_points(0, 0, 0, 0, 8, 12), ['a'] * 4 + ['b'] * 2)
    assert found.within == 2


def test_persons_without_a_second_scan_have_no_ratio():
    found = T.within_between_ratio(between_points(0, 1, 2), ['a', 'b', 'c'])
    assert (found.ratio, found.by_subject) == (None, {})
    assert 'no person has two scans' in found.reason
    alike = T.within_between_ratio(np.zeros((4, 4)), ['a', 'a', 'b', 'b'])
    assert alike.ratio is None
    assert 'alike' in alike.reason


def test_everybody_is_recognized_when_persons_differ_more_than_scanners():
    found = T.reidentification(between_points(0, 1, 10, 11, 20, 21), SUBJECTS, SCANNERS)
    assert (found.rate, found.by_subject) == (1, {'a': 1, 'b': 1, 'c': 1})
    assert found.chance == pytest.approx(1 / 3)


def test_only_scans_from_other_scanners_are_asked():
    # On x the persons are at 0, 1 and 2, on y at 40, 39 and 45: the nearest scan of all is never one to ask, b is
    # nearest to all of x, and c to all of y.
    found = T.reidentification(between_points(0, 40, 1, 39, 2, 45), SUBJECTS, SCANNERS)
    assert found.by_subject == {'a': 0.0, 'b': 0.5, 'c': 0.5}


def test_ties_count_by_the_share_of_the_right_ones():
    found = T.reidentification(np.zeros((6, 6)), SUBJECTS, SCANNERS)
    assert found.rate == pytest.approx(found.chance)


def test_random_distances_give_the_chance_line():
    rng = np.random.default_rng(0)
    subjects = [f's{index // 4}' for index in range(24)]
    scanners = [f'c{index % 4}' for index in range(24)]
    rates = []
    for _ in range(200):
        noise = rng.random((24, 24))
        found = T.reidentification(noise + noise.T, subjects, scanners)
        rates.append(found.rate)
    assert found.chance == pytest.approx(3 / 18)
    assert np.mean(rates) == pytest.approx(found.chance, abs=0.02)


def test_reidentification_says_why_it_cannot():
    nobody = T.reidentification(between_points(0, 1, 2), ['a', 'b', 'c'], ['x', 'y', 'z'])
    assert nobody.rate is None
    assert 'nobody' in nobody.reason
    assert T.reidentification(between_points(0, 1), ['a', 'a'], ['x', 'y']).reason


@pytest.mark.parametrize(
    'matrix',
    [np.zeros((5, 5)), np.zeros(6), -np.ones((6, 6)), np.full((6, 6), np.nan), np.triu(np.ones((6, 6)))],
)
def test_what_is_no_distance_matrix_is_refused(matrix):
    with pytest.raises(UsageError):
        T.reidentification(matrix, SUBJECTS, SCANNERS)
    with pytest.raises(UsageError):
        T.within_between_ratio(matrix, SUBJECTS)
    with pytest.raises(UsageError, match='scanners'):
        T.reidentification(np.zeros((6, 6)), SUBJECTS, SCANNERS[:5])


# What must stay as it is


@pytest.mark.parametrize('error', [T.identity_error, T.cycle_error])
def test_errors_are_in_units_of_the_reference_range(error):
    image = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    mask = np.ones(image.shape, bool)
    # The 0.5 and 99.5 % quantiles of 0..1000 are 5 and 995.
    assert error(image, image + 9.9, mask) == pytest.approx(0.01, rel=1e-5)
    assert error(1000 * image, 1000 * (image + 9.9), mask) == pytest.approx(0.01, rel=1e-4)
    assert error(image, image, mask) == 0
    wild = image.copy()
    wild[0] += 1e6
    mask[0] = False
    assert error(image, wild, mask) == 0
    assert np.isnan(error(image, image, ~np.ones(image.shape, bool)))
    assert np.isnan(error(0 * image, image, mask))
    with pytest.raises(UsageError):
        error(image, image[1:], mask)


def test_range_is_that_of_the_first_image():
    image = np.linspace(0, 100, 1000).reshape(10, 10, 10)
    mask = np.ones(image.shape, bool)
    assert T.identity_error(image, 2 * image, mask) == pytest.approx(
        2 * T.identity_error(2 * image, image, mask)
    )


# True differences between persons


def cohort(people: int, scanners: int, offset: float, seed: int = 0):
    """Return true volumes of each scan, estimates with an offset a scanner, and persons."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), scanners)
    truth = rng.normal(650, 40, people)[person]
    estimate = 0.9 * truth + offset * rng.normal(size=scanners)[np.arange(person.size) % scanners]
    return truth, estimate + rng.normal(0, 10, person.size), [f's{index:02d}' for index in person]


def test_one_scan_a_person_is_the_plain_correlation_of_scipy():
    from bidsharm.evaluation.statistics import correlation

    truth, estimate, persons = cohort(25, 1, 0)
    found = T.between_subjects(estimate, truth, persons, seed=0, resamples=2000)
    expected = stats.pearsonr(estimate, truth)
    assert found.estimate == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)
    plain = correlation(estimate, truth, seed=0, resamples=2000)
    assert found.interval == pytest.approx(plain.interval, abs=0.02)
    assert (found.n, found.left_out, found.reason) == (25, 0, '')


def test_persons_weigh_the_same_and_stay_together():
    truth, estimate, persons = cohort(12, 3, 0)
    found = T.between_subjects(estimate, truth, persons, seed=0, resamples=500)
    assert found.estimate == pytest.approx(stats.pearsonr(estimate, truth).statistic)
    # A person who is listed more often counts no more, and copies of every scan narrow nothing.
    doubled = [np.concatenate([part, part[:3]]) for part in (estimate, truth)]
    more = T.between_subjects(*doubled, persons + persons[:3], seed=0, resamples=500)
    assert more.estimate == pytest.approx(found.estimate)
    assert more.interval == pytest.approx(found.interval)
    copied = T.between_subjects(np.tile(estimate, 9), np.tile(truth, 9), persons * 9, seed=0, resamples=500)
    assert copied.interval == pytest.approx(found.interval)
    assert found.p is None
    assert 'several scans' in found.reason


def test_scanner_offsets_hide_persons_and_taking_them_away_shows_them():
    truth, estimate, persons = cohort(20, 4, 100)
    _, harmonized, _ = cohort(20, 4, 0)
    before = T.between_subjects(estimate, truth, persons, seed=0, resamples=500)
    after = T.between_subjects(harmonized, truth, persons, seed=0, resamples=500)
    assert before.interval.high < after.interval.low
    assert after.estimate > 0.9


def test_correlation_of_few_or_equal_persons_says_why_not(numbers):
    for n in range(6):
        truth, estimate, persons = cohort(n, 2, 10)
        found = T.between_subjects(estimate, truth, persons, seed=0, resamples=200)
        assert not np.isnan(numbers(found)).any()
        assert (found.estimate is None) == (n < 3)
    assert 'vary' in T.between_subjects([1, 1, 1], [1, 2, 3], list('abc'), seed=0).reason
    holes = T.between_subjects([1, 2, 3, np.nan], [2, 4, 7, 1], list('abcd'), seed=0)
    assert (holes.n, holes.left_out) == (3, 1)
    with pytest.raises(UsageError):
        T.between_subjects([1, 2], [1, 2], ['a'], seed=0)
