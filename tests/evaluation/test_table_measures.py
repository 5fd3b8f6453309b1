"""What a harmonization did to a table, on tables of which it is known."""

from __future__ import annotations

import numpy as np
import pytest

from bidsharm.evaluation.probe import refitted_site_probe, site_probe
from bidsharm.evaluation.table_measures import filled, kept_effects, measure_table, site_effects

EMPTY = np.zeros((80, 0))
LABELS = ['A', 'B'] * 40
PEOPLE = [f'p{i}' for i in range(80)]


def values(shift: float = 0.0, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(80, 4))
    found[1::2] += shift
    return found


def test_the_share_that_sites_explain_is_that_of_an_analysis_of_variance() -> None:
    from scipy.stats import f_oneway

    data = values(1.0)
    found = site_effects(data, LABELS, EMPTY)
    for column in range(4):
        f = f_oneway(data[0::2, column], data[1::2, column]).statistic
        assert found.shares[column] == pytest.approx(f / (f + 78))
    assert found.means.shape == (2, 4)
    assert np.allclose(found.spreads[1], data[1::2].std(axis=0, ddof=1))
    assert (found.ratios >= 1).all()


def test_its_chance_is_what_equal_sites_give() -> None:
    shares = [site_effects(values(seed=seed), LABELS, EMPTY) for seed in range(40)]
    assert np.mean([one.shares for one in shares]) == pytest.approx(shares[0].chance, rel=0.25)


def test_what_is_kept_is_not_the_sites_doing() -> None:
    age = np.arange(80.0) + 60 * (np.arange(80) % 2)
    data = 0.1 * age[:, None] + values()
    assert site_effects(data, LABELS, EMPTY).shares.min() > 0.3
    assert site_effects(data, LABELS, age[:, None]).shares.max() < 0.1


def test_missing_cells_and_constant_features() -> None:
    data = values(1.0)
    data[:10, 0], data[:, 1] = np.nan, 5.0
    data[1::2, 2] = np.nan
    found = site_effects(data, LABELS, EMPTY)
    assert np.isfinite(found.shares[[0, 3]]).all()
    assert np.isnan(found.shares[1])
    assert np.isnan(found.means[1, 2])
    assert np.isnan(found.ratios[1])


def test_kept_effects_are_partial_correlations() -> None:
    rng = np.random.default_rng(3)
    age = rng.normal(size=80) + 2 * (np.arange(80) % 2)
    before = values(3.0) + age[:, None]
    after = values(3.0) - age[:, None]
    (found,) = kept_effects(before, after, LABELS, age[:, None], ['age'])
    assert found.before.min() > 0.4
    assert found.after.max() < -0.4
    inside = [
        np.corrcoef(before[i::2, 0] - before[i::2, 0].mean(), age[i::2] - age[i::2].mean())[0, 1]
        for i in (0, 1)
    ]
    assert min(inside) - 0.05 < found.before[0] < max(inside) + 0.05


def test_kept_effects_without_numbers() -> None:
    data = values()
    data[:, 0], data[3:, 1] = 1.0, np.nan
    (found,) = kept_effects(data, data, LABELS, np.arange(80.0)[:, None], ['age'])
    assert np.isnan(found.before[:2]).all()
    assert np.isfinite(found.before[2:]).all()


def test_a_fit_that_has_seen_the_rows_looks_better_than_it_is() -> None:
    rng = np.random.default_rng(5)
    data = rng.normal(size=(40, 30))
    labels, people = ['A', 'B'] * 20, [f'p{i}' for i in range(40)]

    def centred(rows: np.ndarray) -> np.ndarray:
        found = data.copy()
        for site in (0, 1):
            own = rows[rows % 2 == site]
            found[site::2] -= data[own].mean(axis=0)
        return found

    options = {'seed': 0, 'permutations': 10, 'resamples': 100}
    seen = site_probe(centred(np.arange(40)), labels, people, **options)
    unseen = refitted_site_probe(centred, labels, people, **options)
    assert seen.accuracy < 0.3
    assert 0.35 < unseen.accuracy < 0.65
    assert 0.4 < unseen.chance < 0.6


def test_a_difference_that_a_fit_leaves_is_found() -> None:
    data = values(2.0)
    found = refitted_site_probe(lambda rows: data, LABELS, PEOPLE, seed=0, permutations=10, resamples=100)
    same = site_probe(data, LABELS, PEOPLE, seed=0, permutations=10, resamples=100)
    assert found.accuracy == same.accuracy > 0.9
    assert found.p == pytest.approx(1 / 11)


def test_one_person_a_site_has_no_probe() -> None:
    found = refitted_site_probe(lambda rows: np.zeros((3, 1)), ['A', 'A', 'B'], ['p', 'q', 'r'], seed=0)
    assert found.accuracy is None
    assert found.reason


def test_a_table_of_one_site_has_no_probe_but_numbers() -> None:
    found = measure_table(values(), values(), ['A'] * 80, PEOPLE, EMPTY, [])
    assert found.probe_before is None
    assert found.probe_after is None
    assert np.isfinite(found.before.means).all()


def test_missing_cells_are_filled_with_the_mean() -> None:
    assert filled(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 2.0]])).tolist() == [
        [1, 2],
        [3, 2],
        [2, 2],
    ]
