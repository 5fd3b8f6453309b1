from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score
from sklearn.naive_bayes import GaussianNB

from bidsharm.errors import UsageError
from bidsharm.evaluation.transfer import Head, IntensityClassifier, cross_site_transfer, transfer

#: Label, mean and SD of GM, WM and CSF.
TISSUE = {1: (60.0, 6.0), 2: (90.0, 4.0), 3: (25.0, 8.0)}


def head(subject: str, shares=(0.5, 0.35, 0.15), n: int = 30_000, seed: int = 0, change=lambda v: v) -> Head:
    rng = np.random.default_rng([seed, *subject.encode()])
    labels = rng.choice([1, 2, 3], size=n, p=shares)
    mean, spread = (np.array([TISSUE[label][part] for label in (1, 2, 3)])[labels - 1] for part in (0, 1))
    return Head(subject, change(rng.normal(mean, spread)), labels)


def test_classifier_is_that_of_bayes_with_equal_priors():
    known, unseen = head('a'), head('b')
    found = IntensityClassifier.fit([known])(unseen.values)
    bayes = GaussianNB(priors=[1 / 3] * 3).fit(known.values[:, None], known.labels)
    assert np.mean(found == bayes.predict(unseen.values[:, None])) > 0.99
    result = transfer(IntensityClassifier.fit([known]), unseen)
    expected = f1_score(unseen.labels, found, average=None)
    assert [result.dice[name] for name in ('gm', 'wm', 'csf')] == pytest.approx(list(expected))
    assert result.mean_dice == pytest.approx(expected.mean())
    assert result.mean_dice > 0.97
    assert result.gm_fraction == pytest.approx(np.mean(found == 1))
    assert result.true_gm_fraction == pytest.approx(np.mean(unseen.labels == 1))
    assert (result.subject, result.reason) == ('b', '')


def test_shares_of_the_training_people_do_not_matter():
    few, many = head('a', (0.1, 0.8, 0.1)), head('a', (0.6, 0.1, 0.3))
    low, high = (transfer(IntensityClassifier.fit([part]), head('b')) for part in (few, many))
    assert low.gm_fraction == pytest.approx(high.gm_fraction, abs=0.01)


def test_tissues_may_have_any_order_and_shape():
    # A contrast that is bright at both ends: grey matter in the middle, white matter on two islands.
    def fold(values):
        return np.abs(values - 60)

    found = transfer(IntensityClassifier.fit([head('a', change=fold)]), head('b', change=fold))
    assert found.dice['gm'] > 0.9
    inverted = transfer(
        IntensityClassifier.fit([head('a', change=np.negative)]), head('b', change=np.negative)
    )
    assert inverted.mean_dice > 0.97


def test_a_gain_of_a_site_costs_dice_and_moves_the_grey_matter():
    classifier = IntensityClassifier.fit([head('a')])
    equal = transfer(classifier, head('b'))
    gained = transfer(classifier, head('b', change=lambda values: 1.25 * values))
    assert gained.mean_dice < equal.mean_dice - 0.1
    assert abs(gained.gm_fraction - gained.true_gm_fraction) > 0.1
    assert abs(equal.gm_fraction - equal.true_gm_fraction) < 0.02


def test_values_beyond_the_training_and_between_its_tissues_get_a_label():
    labels = np.repeat([1, 2, 3], 100)
    values = np.repeat([10.0, 20.0, 0.0], 100) + np.tile(np.linspace(-0.1, 0.1, 100), 3)
    classifier = IntensityClassifier.fit([Head('a', values, labels)])
    asked = np.array([-1e9, -1, 4, 6, 14, 16, 21, 1e9])
    np.testing.assert_array_equal(classifier(asked), [3, 3, 3, 1, 1, 2, 2, 2])


def test_heads_weigh_the_same_however_large():
    # The small head has tissues 40 brighter; in the middle, as many of both say grey as white matter.
    small, large = head('a', n=3_000, change=lambda v: v + 40), head('b', n=60_000)
    both = IntensityClassifier.fit([small, large])
    again = IntensityClassifier.fit([small] * 20 + [large] * 20)
    np.testing.assert_array_equal(both.labels, again.labels)
    assert both(np.array([100.0])) == 1  # GM of the small head, beyond nearly all WM of the large one
    alone = IntensityClassifier.fit([large])
    assert alone(np.array([100.0])) == 2


def test_order_of_voxels_and_voxels_without_label_do_not_matter():
    known = head('a')
    order = np.random.default_rng(1).permutation(known.values.size)
    padded = Head('a', np.append(known.values[order], [np.nan, 1e9]), np.append(known.labels[order], [0, 0]))
    one, other = IntensityClassifier.fit([known]), IntensityClassifier.fit([padded])
    assert (one.low, one.high) == (other.low, other.high)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_sites_are_crossed_without_training_on_the_person_under_test():
    sites = {
        'x': [head('a'), head('b', (0.6, 0.25, 0.15))],
        'y': [head('a', seed=1, change=lambda v: 1.2 * v), head('c', seed=1, change=lambda v: 1.2 * v)],
    }
    found = cross_site_transfer(sites)
    assert {pair: [part.subject for part in results] for pair, results in found.items()} == {
        ('x', 'y'): ['a', 'c'],
        ('y', 'x'): ['a', 'b'],
    }
    only_b, both = IntensityClassifier.fit(sites['x'][1:]), IntensityClassifier.fit(sites['x'])
    assert found['x', 'y'][0] == transfer(only_b, sites['y'][0])
    assert found['x', 'y'][1] == transfer(both, sites['y'][1])
    lone = cross_site_transfer({'x': [head('a')], 'y': [head('a', seed=1), head('b')]})
    assert [part.subject for part in lone['x', 'y']] == ['b']


def test_grey_matter_that_is_found_follows_the_truth_over_people():
    rng = np.random.default_rng(0)
    people = [
        head(f's{index}', (share, 0.85 - share, 0.15))
        for index, share in enumerate(rng.uniform(0.4, 0.6, 12))
    ]
    found = [transfer(IntensityClassifier.fit(people[:1]), person) for person in people[1:]]
    r = stats.pearsonr(
        [part.gm_fraction for part in found], [part.true_gm_fraction for part in found]
    ).statistic
    assert r > 0.99


def test_wrong_questions_are_refused():
    known = head('a')
    with pytest.raises(UsageError, match='no scan'):
        IntensityClassifier.fit([])
    with pytest.raises(UsageError, match='do not match'):
        IntensityClassifier.fit([Head('a', known.values[1:], known.labels)])
    with pytest.raises(UsageError, match='training voxels'):
        IntensityClassifier.fit([Head('a', known.values, np.where(known.labels == 3, 0, known.labels))])
    with pytest.raises(UsageError, match='all equal'):
        IntensityClassifier.fit([Head('a', np.ones(300), np.repeat([1, 2, 3], 100))])
    with pytest.raises(UsageError, match='not finite'):
        IntensityClassifier.fit([Head('a', np.full(300, np.nan), np.repeat([1, 2, 3], 100))])
    empty = transfer(IntensityClassifier.fit([known]), Head('b', np.empty(0), np.empty(0)))
    assert np.isnan([empty.mean_dice, empty.gm_fraction]).all()
    assert empty.reason == 'there are no voxels'


def test_a_tissue_in_neither_is_not_in_the_mean():
    known = head('a')
    grey = known.labels == 1
    found = transfer(IntensityClassifier.fit([known]), Head('b', np.full(9, 60.0), np.ones(9)))
    assert (found.dice['gm'], found.mean_dice) == (1, 1)
    assert np.isnan([found.dice['wm'], found.dice['csf']]).all()
    assert found.reason == 'no csf, wm in either'
    missed = transfer(
        IntensityClassifier.fit([known]), Head('b', known.values[grey] + 30, known.labels[grey])
    )
    assert missed.dice['wm'] == 0  # found, where there is none
    assert missed.mean_dice < 0.1
