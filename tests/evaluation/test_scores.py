from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from bidsharm.errors import UsageError
from bidsharm.evaluation.scores import auc, classification_scores


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_two_classes_agree_with_scikit_learn(seed, n, ties):
    rng = np.random.default_rng(seed)
    truth = np.concatenate([[0, 1], rng.integers(0, 2, n)])
    score = np.clip(0.3 * truth + rng.uniform(0, 0.7, truth.size), 0, 1)
    score = np.round(score, 1) if ties else score
    score[:2] = 0.5, 0.6  # something is predicted
    guess = (score >= 0.5).astype(int)
    found = classification_scores(list(truth), score)
    assert found.accuracy == pytest.approx(sk.accuracy_score(truth, guess))
    assert found.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert found.precision == pytest.approx(sk.precision_score(truth, guess))
    assert found.recall == pytest.approx(sk.recall_score(truth, guess))
    assert found.f1 == pytest.approx(sk.f1_score(truth, guess))
    assert found.auc == pytest.approx(sk.roc_auc_score(truth, score))
    assert (found.n, found.left_out, found.classes, found.reason) == (truth.size, 0, (0, 1), '')
    columns = classification_scores(list(truth), np.column_stack([1 - score - 1e-9, score]))
    assert columns.auc == pytest.approx(found.auc)
    assert columns.f1 == pytest.approx(found.f1)


@given(st.integers(0, 2**32 - 1), st.integers(3, 5), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_many_classes_agree_with_scikit_learn(seed, classes, n):
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(classes), rng.integers(0, classes, n)])
    score = rng.uniform(size=(truth.size, classes)) + 0.4 * np.eye(classes)[truth]
    score /= score.sum(axis=1, keepdims=True)
    guess = score.argmax(axis=1)
    found = classification_scores(['abcde'[index] for index in truth], score)
    options = {'average': 'macro', 'zero_division': 0.0, 'labels': range(classes)}
    assert found.accuracy == pytest.approx(sk.accuracy_score(truth, guess))
    assert found.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert found.precision == pytest.approx(sk.precision_score(truth, guess, **options))
    assert found.recall == pytest.approx(sk.recall_score(truth, guess, **options))
    assert found.f1 == pytest.approx(sk.f1_score(truth, guess, **options))
    assert found.auc == pytest.approx(sk.roc_auc_score(truth, score, multi_class='ovr', average='macro'))
    assert found.classes == tuple('abcde'[:classes])


def test_what_is_not_defined_is_nan_with_a_reason():
    never = classification_scores([0, 0, 1], [0.1, 0.2, 0.3])
    assert np.isnan(never.precision)
    assert (never.recall, never.f1, never.auc) == (0, 0, 1)
    assert never.reason == 'no row is predicted as 1, so there is no precision'
    alone = classification_scores([False, False], [0.1, 0.9], classes=[False, True])
    assert np.isnan([alone.recall, alone.auc]).all()
    assert (alone.precision, alone.f1, alone.accuracy, alone.balanced_accuracy) == (0, 0, 0.5, 0.5)
    neither = classification_scores([0, 0], [0.1, 0.2], classes=[0, 1])
    assert np.isnan([neither.precision, neither.recall, neither.f1, neither.auc]).all()
    assert neither.reason.count(';') == 2
    one = classification_scores(['b'] * 2, np.eye(3)[[1, 2]], classes='abc')
    assert np.isnan(one.auc)
    assert (one.precision, one.recall, one.f1) == (1, 0.5, pytest.approx(2 / 3))
    none = classification_scores([0, 1], [np.nan, np.inf])
    assert (none.n, none.left_out) == (0, 2)
    assert np.isnan(none.accuracy)
    assert none.reason


def test_rows_without_a_score_are_left_out_and_counted():
    plain = classification_scores([0, 1, 1, 0], [0.2, 0.8, 0.4, 0.6])
    more = classification_scores([0, 1, 1, 0, 1], [0.2, 0.8, 0.4, 0.6, np.nan])
    assert (more.n, more.left_out) == (4, 1)
    assert (more.auc, more.f1) == (plain.auc, plain.f1)


def test_area_by_pairs():
    rng = np.random.default_rng(0)
    member, score = rng.uniform(size=30) < 0.4, np.round(rng.normal(size=30), 1)
    pairs = score[member][:, None] - score[~member][None, :]
    assert auc(member, score) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def test_wrong_questions_are_refused():
    with pytest.raises(UsageError, match='not two or more'):
        classification_scores([1, 1], [0.1, 0.2])
    with pytest.raises(UsageError, match='not among'):
        classification_scores([1, 2], [0.1, 0.2], classes=[0, 1])
    with pytest.raises(UsageError, match='do not fit'):
        classification_scores([0, 1, 2], [0.1, 0.2, 0.3])
