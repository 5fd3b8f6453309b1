from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsharm.errors import UsageError
from bidsharm.evaluation import probe as P


@st.composite
def designs(draw):
    scans = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=2, max_size=40))
    return [f's{person}' for person, _ in scans], [f'c{device}' for _, device in scans]


@given(designs(), st.sampled_from(['subject', 'scanner']), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_no_fold_has_a_subject_on_both_sides(design, by, count, seed):
    subjects, scanners = np.array(design[0]), np.array(design[1])
    try:
        found = P.folds(design[0], design[1], by=by, count=count, seed=seed)
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
    found = P.folds(subjects, ['c'] * 24, by='subject', count=4, seed=1)
    assert [fold.test.size for fold in found] == [6] * 4
    again = P.folds(subjects, ['c'] * 24, by='subject', count=4, seed=1)
    other = P.folds(subjects, ['c'] * 24, by='subject', count=4, seed=2)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(found, again, strict=True))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(found, other, strict=True))


@pytest.mark.parametrize('by', ['subject', 'scanner'])
def test_training_never_lacks_a_class_that_two_people_have(by):
    for seed in range(20):
        subjects = [f's{index // 2}' for index in range(20)]
        classes = np.array(['rare' if index < 4 else 'usual' for index in range(20)])
        found = P.folds(subjects, ['x', 'y'] * 10, by=by, classes=list(classes), seed=seed)
        assert sorted(np.concatenate([fold.test for fold in found])) == list(range(20))
        for fold in found:
            assert set(classes[fold.train]) == {'rare', 'usual'}
    with pytest.raises(UsageError, match='labels'):
        P.folds(subjects, ['x', 'y'] * 10, by=by, classes=['a'])


def test_each_scanner_is_left_out_once_where_nobody_travelled():
    scanners = ['x'] * 3 + ['y'] * 2 + ['z'] * 4
    found = P.folds([f's{index}' for index in range(9)], scanners, by='scanner')
    assert [fold.test.tolist() for fold in found] == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    assert all(fold.train.size + fold.test.size == 9 for fold in found)


def test_folds_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match='cannot be shared out'):
        P.folds(['a', 'b'], ['x', 'y'], by='subject', count=3)
    with pytest.raises(UsageError, match='two or more scanners'):
        P.folds(['a', 'b'], ['x', 'x'], by='scanner')
    with pytest.raises(UsageError, match='not known'):
        P.folds(['a', 'b'], ['x', 'x'], by='site')


def probe(features, sites, subjects, permutations: int = 40) -> P.Probe:
    return P.site_probe(features, sites, subjects, seed=0, permutations=permutations, resamples=1000)


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
    found = P._permuted(site, person, np.random.default_rng(seed))

    def homes(labels):
        return {index: sorted(labels[person == index]) for index in set(person)}

    before, after = homes(site), homes(found)
    travellers = {index for index, labels in before.items() if len(set(labels)) > 1}
    assert all(after[index] == before[index] for index in travellers)
    stay = set(before) - travellers
    assert all(len(set(after[index])) == 1 for index in stay)
    assert sorted(after[index][0] for index in stay) == sorted(before[index][0] for index in stay)


def test_probe_of_few_subjects_says_why_not(numbers):
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


def brains(people: int, seed: int) -> np.ndarray:
    """Return one smooth random volume a person on a common one, of 20 voxels a side."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    common = gaussian_filter(rng.normal(size=(20, 20, 20)), 3) * 20
    own = np.stack([gaussian_filter(rng.normal(size=(20, 20, 20)), 2) * 5 for _ in range(people)])
    return (100 + 10 * (common + own)).astype(np.float32)


def network(volumes, sites, subjects, **options) -> P.Probe:
    return P.volume_probe(volumes, sites, subjects, seed=0, count=3, epochs=25, resamples=1000, **options)


def test_network_finds_a_texture_that_no_mean_shows_and_nothing_without_one():
    rng = np.random.default_rng(1)
    volumes, site = brains(36, 0), np.tile([0, 1], 18)
    sites, subjects = list(site.astype(str)), [f's{index}' for index in range(36)]
    nothing = network(volumes, sites, subjects)
    assert nothing.p > 0.05
    assert nothing.accuracy < nothing.chance_high
    assert nothing.chance == pytest.approx(0.5, abs=0.03)
    # Noise of zero mean in one site: linear classifiers of voxels cannot see it.
    noisy = volumes + 8 * rng.normal(size=volumes.shape) * site[:, None, None, None]
    found = network(noisy, sites, subjects)
    assert found.accuracy > 0.9
    assert found.interval.low > found.chance_high
    assert found.p < 0.01
    assert (found.n, found.left_out, found.sites) == (36, 0, 2)
    assert network(noisy, sites, subjects) == found


def test_network_sees_a_gain_since_no_scan_is_scaled_by_itself():
    volumes, site = brains(24, 2), np.tile([0, 1], 12)
    gained = volumes * (1 + 0.25 * site)[:, None, None, None]
    found = network(gained, list(site.astype(str)), [f's{index}' for index in range(24)])
    assert found.accuracy > 0.9


def test_network_cannot_recognize_a_person_instead_of_a_site(numbers):
    rng = np.random.default_rng(2)
    person = np.repeat(np.arange(12), 4)
    volumes = brains(12, 3)[person] + rng.normal(size=(48, 20, 20, 20)).astype(np.float32)
    sites = np.array(['a', 'b'])[person % 2]
    found = network(volumes, list(sites), [f's{index}' for index in person])
    assert found.p > 0.05
    assert found.n == 12
    assert not np.isnan(numbers(found)).any()


def test_network_leaves_the_seed_of_others_alone_and_holes_out():
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    volumes = brains(6, 0)
    volumes[5, 0, 0, 0] = np.nan
    found = P.volume_probe(volumes, list('ababab'), list('stuvwx'), seed=0, epochs=1, resamples=10)
    assert torch.rand(1) == expected
    assert (found.n, found.left_out) == (5, 1)


def test_network_refuses_what_makes_no_sense():
    with pytest.raises(UsageError, match='only one site'):
        network(brains(2, 0), ['a', 'a'], ['s', 't'])
    with pytest.raises(UsageError, match='shape'):
        network(brains(2, 0)[0], ['a', 'b'], ['s', 't'])
    assert 'fewer than 2' in network(brains(2, 0), ['a', 'b'], ['s', 't']).reason


def test_blocks_are_means_inside_the_mask_by_hand():
    from skimage.measure import block_reduce

    rng = np.random.default_rng(0)
    volumes = rng.uniform(50, 60, (2, 14, 12, 10))
    mask = np.zeros((14, 12, 10), bool)
    mask[1:13, 2:10, 1:9] = True
    found = P.low_resolution(iter(volumes), mask, (1.0, 1.5, 3.1), block_mm=6.0)
    expected = [block_reduce(volume[1:13, 2:10, 1:9], (6, 4, 2), np.mean) for volume in volumes]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Voxels outside the mask do not count, whatever they hold; a block without any of it is 0.
    stripes = mask & (np.indices(mask.shape)[0] % 2 == 1)
    stripes[:7, 2:6, 1:3] = False
    found = P.low_resolution([np.where(stripes, 7.0, np.nan)], stripes, (1.0, 1.5, 3.1))[0]
    assert found.shape == (2, 2, 4)
    assert found[0, 0, 0] == 0
    assert np.count_nonzero(found == 7) == 15


def test_blocks_need_a_mask_and_one_grid():
    with pytest.raises(UsageError, match='mask'):
        P.low_resolution([], np.zeros((4, 4, 4), bool), (1, 1, 1))
    with pytest.raises(UsageError, match='does not fit'):
        P.low_resolution([np.zeros((4, 4, 5))], np.ones((4, 4, 4), bool), (1, 1, 1))
    with pytest.raises(UsageError, match='not above 0'):
        P.low_resolution([], np.ones((4, 4, 4), bool), (1, 1, 1), block_mm=0)
    assert P.low_resolution([], np.ones((4, 4, 4), bool), (3, 3, 3)).shape == (0, 2, 2, 2)
