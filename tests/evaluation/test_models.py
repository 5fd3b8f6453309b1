from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bidsharm.errors import UsageError
from bidsharm.evaluation import models as M
from bidsharm.evaluation import statistics as S

FEW = 400  # resamples, where an interval's limits are not what is looked at


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
    found = M.friedman(table_of(columns))
    assert found.statistic == pytest.approx(11.1429, abs=1e-4)
    assert found.p == pytest.approx(0.003805, abs=1e-6)
    assert found.n == 22


def test_friedman_says_why_it_cannot():
    assert 'three or more methods' in M.friedman(table_of({'a': [1, 2, 3], 'b': [2, 3, 4]})).reason
    assert 'too few' in M.friedman(table_of({'a': [1], 'b': [2], 'c': [3]})).reason
    assert 'tie' in M.friedman(table_of({'a': [1, 2, 3], 'b': [1, 2, 3], 'c': [1, 2, 3]})).reason


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
    found = M.mixed_model(**rows, reference='m0')
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
    found = M.mixed_model(holes, rows['methods'], rows['subjects'], reference='m0')
    assert found.rows == keep.sum()
    for name in ('m1', 'm2'):
        assert found.effects[name].estimate == pytest.approx(expected.params[f'methods[T.{name}]'], rel=1e-3)
        half = stats.t.ppf(0.975, found.degrees) * expected.bse[f'methods[T.{name}]']
        low, high = found.effects[name].interval
        assert (high - low) / 2 == pytest.approx(half, rel=1e-3)


def test_crossed_scanners_are_told_from_subjects():
    rows = long_form([0, 0.3], 25, 25)
    found = M.mixed_model(**rows, reference='m0')
    assert found.fitted_as == 'subject and scanner intercepts'
    assert found.spread['subject'] == pytest.approx(1, rel=0.35)
    assert found.spread['scanner'] == pytest.approx(2, rel=0.35)
    assert found.spread['residual'] == pytest.approx(0.5, rel=0.05)
    assert found.effects['m1'].interval.low < 0.3 < found.effects['m1'].interval.high


def test_model_that_does_not_converge_falls_back_and_says_so(monkeypatch):
    rows = long_form([0, 0.4, 0.8], 12, 1)
    mixed = M.mixed_model(rows['values'], rows['methods'], rows['subjects'], reference='m0')
    monkeypatch.setattr(M, '_fit_mixed', lambda *_: None)
    devices = [f'c{int(name[1:]) % 3}' for name in rows['subjects']]
    fixed = M.mixed_model(rows['values'], rows['methods'], rows['subjects'], reference='m0', scanners=devices)
    assert fixed.fitted_as == 'fixed subjects'
    assert 'scanner intercepts did not converge' in fixed.reason
    for name in ('m1', 'm2'):  # balanced: both models give the same
        assert fixed.effects[name].estimate == pytest.approx(mixed.effects[name].estimate, rel=1e-6)
        assert fixed.effects[name].p == pytest.approx(mixed.effects[name].p, rel=1e-2)


def test_mixed_model_does_not_depend_on_units():
    rows = long_form([0, 0.4], 10, 1)
    del rows['scanners']
    big = M.mixed_model(**rows, reference='m0')
    rows['values'] = [1e-6 * value + 100 for value in rows['values']]
    small = M.mixed_model(**rows, reference='m0')
    assert small.effects['m1'].estimate == pytest.approx(1e-6 * big.effects['m1'].estimate, rel=1e-5)
    assert small.effects['m1'].p == pytest.approx(big.effects['m1'].p, rel=1e-3)


def test_mixed_model_says_why_it_cannot():
    assert 'too few' in M.mixed_model([1, 2], ['a', 'b'], ['s', 's'], reference='a').reason
    flat = M.mixed_model([1] * 6, ['a', 'b'] * 3, ['s', 's', 't', 't', 'u', 'u'], reference='a')
    assert 'equal' in flat.reason
    lone = M.mixed_model([1, np.nan, 2, np.nan, 4, np.nan], ['a', 'b'] * 3, list('sstTuu'), reference='a')
    assert 'only one method' in lone.reason
    with pytest.raises(UsageError, match='not among the methods'):
        M.mixed_model([1, 2], ['a', 'b'], ['s', 's'], reference='c')


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
    found = M.compare_metrics(tables, reference='identity', seed=0, resamples=FEW)
    raw = [found[metric].against[name].p_wilcoxon for metric in tables for name in ('good', 'same')]
    adjusted = [found[metric].holm_wilcoxon[name] for metric in tables for name in ('good', 'same')]
    assert adjusted == pytest.approx(S.holm(raw))
    assert found['psnr'].holm_wilcoxon['good'] == pytest.approx(4 * raw[0])
    assert found['psnr'].against['good'].mean_difference > 0.7
    assert found['psnr'].holm_t['good'] < 0.01 < found['psnr'].holm_t['same']
    assert set(found['psnr'].model.effects) == {'good', 'same'}
    assert found['psnr'].omnibus.p < 0.01
    alone = M.compare_methods(tables['psnr'], reference='identity', seed=0, resamples=FEW)
    assert alone.against == found['psnr'].against
    assert alone.holm_wilcoxon['good'] == pytest.approx(2 * raw[0])


def test_subjects_are_matched_by_name_not_by_place():
    table = {
        'a': {'3': 3.5, '1': 1.5, '2': 2.5, '4': 4.5, '9': 70.0},
        'b': {'1': 1.0, '2': 2.0, '4': 4.0, '3': 3.0, '8': -70.0},
    }
    found = M.compare_methods(table, reference='b', seed=0).against['a']
    assert (found.n, found.left_out, found.mean_difference) == (4, 2, 0.5)


@pytest.mark.parametrize('n', range(5))
def test_a_table_of_few_subjects_gives_no_nan(numbers, n):
    rng = np.random.default_rng(0)
    table = table_of({name: rng.normal(size=n) for name in 'abc'})
    found = M.compare_methods(table, reference='a', seed=0, resamples=FEW)
    assert not np.isnan(numbers(found)).any()
    assert found.against['b'].n == n


def test_tables_that_make_no_question_are_refused():
    table = table_of({'a': [1, 2, 3], 'b': [1, 2, 4]})
    with pytest.raises(UsageError, match='not among the methods'):
        M.compare_methods(table, reference='c', seed=0)
    with pytest.raises(UsageError, match='only the reference'):
        M.compare_methods({'a': table['a']}, reference='a', seed=0)
    with pytest.raises(UsageError, match="'001' has no scanner"):
        M.compare_methods(table, reference='a', seed=0, scanners={'000': 'x', '002': 'x'})
