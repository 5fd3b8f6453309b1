"""Scores of predictions with known errors, and the probe of embeddings by folds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from bidsharm.errors import UsageError
from bidsharm.evaluation.probe import person_folds
from bidsharm.evaluation.tasks import Judged, embedding_probe, scores_by_site


def test_regression_is_scored_over_people_and_at_each_site():
    rng = np.random.default_rng(0)
    truth = rng.uniform(20, 80, 40)
    found = truth + np.where(np.arange(40) % 2, 4.0, -1.0)
    rows = [Judged(f's{i}', f'p{i}', '', 'AB'[i % 2], 0, float(truth[i]), float(found[i])) for i in range(40)]
    overall, a, b = scores_by_site(rows, 'regression', (), resamples=200)
    assert (overall.site, overall.scans, overall.people, overall.known) == ('', 40, 40, 40)
    assert a.measures['mae'].value == pytest.approx(1)
    assert a.measures['bias'].value == pytest.approx(-1)
    assert b.measures['bias'].value == pytest.approx(4)
    assert overall.measures['mae'].value == pytest.approx(2.5)
    low, high = overall.measures['mae'].interval
    assert 1 < low < 2.5 < high < 4
    assert overall.measures['r2'].value == pytest.approx(r2_score(truth, found))


def test_a_person_with_many_scans_counts_once():
    rows = [Judged(f's{i}', 'one', '', 'A', 0, 50.0, 60.0) for i in range(9)]
    rows.append(Judged('t', 'two', '', 'A', 0, 50.0, 50.0))
    assert scores_by_site(rows, 'regression', (), resamples=50)[0].measures['mae'].value == pytest.approx(5)


def test_classification_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 60)
    share = np.clip(0.5 + 0.25 * (truth - 0.5) + 0.2 * rng.standard_normal(60), 0.01, 0.99)
    rows = [
        Judged(f's{i}', f'p{i}', '', 'A', 0, ('no', 'yes')[truth[i]], shares=(1 - share[i], share[i]))
        for i in range(60)
    ]
    found = scores_by_site(rows, 'classification', ('no', 'yes'), resamples=300)[0].measures
    assert found['balanced_accuracy'].value == pytest.approx(balanced_accuracy_score(truth, share >= 0.5))
    assert found['auc'].value == pytest.approx(roc_auc_score(truth, share))
    low, high = found['balanced_accuracy'].interval
    assert low < found['balanced_accuracy'].value < high


def test_segmentation_is_scored_by_class_and_what_is_unknown_is_left_out():
    rows = [
        Judged('a', 'p', '', 'A', 0, dice={'GM': 0.8, 'WM': 0.6}),
        Judged('b', 'q', '', 'A', 0, dice={'GM': 0.6, 'WM': float('nan')}),
        Judged('c', 'r', '', 'B', 0),
    ]
    overall, a, b = scores_by_site(rows, 'segmentation', ('GM', 'WM'), resamples=50)
    assert overall.known == a.known == 2
    assert a.measures['dice_GM'].value == pytest.approx(0.7)
    assert a.measures['dice_WM'].value == pytest.approx(0.6)
    assert a.measures['dice'].value == pytest.approx((0.7 + 0.6) / 2)
    assert b.known == 0
    assert b.measures['dice'].value is None


def test_nobody_knows():
    found = scores_by_site([Judged('a', 'p', '', 'A', 0, None, 3.0)], 'regression', ())
    assert found[0].measures['mae'].value is None
    found = scores_by_site([Judged('a', 'p', '', 'A', 0, None, shares=(0.5, 0.5))], 'classification', ('x', 'y'))  # fmt: skip
    assert found[0].measures['auc'].value is None


def test_folds_keep_people_together_and_hold_every_site():
    sites = ['A', 'B'] * 12
    people = [f'p{i // 2}' for i in range(24)]  # everybody travelled
    folds = person_folds(sites, people, count=4, seed=0)
    assert len(folds) == 4
    for train, test in folds:
        assert not {people[i] for i in train} & {people[i] for i in test}
        assert {sites[i] for i in test} == {'A', 'B'}
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(24))
    with pytest.raises(UsageError, match='fewer than two people'):
        person_folds(['A', 'B', 'B'], ['p', 'q', 'r'], count=2, seed=0)


def test_the_probe_uses_the_networks_of_each_fold():
    rng = np.random.default_rng(0)
    sites = ['A', 'B'] * 20
    people = [f'p{i}' for i in range(40)]
    tell = np.array([[1.0 if site == 'A' else -1.0] for site in sites]) + 0.1 * rng.standard_normal((40, 1))
    folds = person_folds(sites, people, count=4, seed=3)
    # The networks of each fold have axes of their own: one table for all would make no sense.
    tables = {tuple(train.tolist()): tell * (-1) ** i for i, (train, _) in enumerate(folds)}
    found = embedding_probe(lambda train: tables[tuple(train.tolist())], sites, people, folds=4, seed=3, permutations=20)  # fmt: skip
    assert found is not None
    assert found.accuracy == 1
    assert found.recall == {'A': 1, 'B': 1}
    noise = rng.standard_normal((40, 3))
    blind = embedding_probe(lambda train: noise, sites, people, folds=4, seed=3, permutations=20)
    assert blind is not None
    assert blind.accuracy < 0.75
    assert embedding_probe(lambda train: noise, ['A'] * 40, people, folds=4, seed=3) is None
