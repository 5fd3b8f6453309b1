"""The benchmarks of feature tables: cohorts hold what is planted, and the measures say what is known beforehand."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture(scope='module')
def load() -> Any:
    """Import scripts of the benchmarks, which import one another by their names."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    import importlib

    known = set(sys.modules)

    def loaded(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield loaded
    sys.path[:] = before
    for name in set(sys.modules) - known:
        if (BENCHMARKS / f'{name}.py').exists():
            del sys.modules[name]


@pytest.fixture
def cohorts(load: Any) -> Any:
    return load('table_cohorts')


@pytest.fixture
def tables(load: Any) -> Any:
    return load('tables')


def kind(cohorts: Any, name: str) -> Any:
    return next(kind for kind in cohorts.KINDS if kind.name == name)


def test_site_a_is_as_the_truth_but_for_noise(cohorts: Any) -> None:
    for one in cohorts.KINDS:
        world = cohorts.draw_world(one, 5)
        people = cohorts.draw_people(world, (400, 0, 0, 0), np.random.default_rng(0))
        people = people.take(np.arange(len(people.person)), np.zeros_like(people.site))
        error = cohorts.measured(world, people, np.random.default_rng(1)) - cohorts.truth_of(world, people)
        assert np.abs(error.mean()) < 0.02
        assert error.std() == pytest.approx(cohorts.NOISE, rel=0.05)


def test_effects_of_age_sex_and_disease_are_those_planted(cohorts: Any) -> None:
    one = kind(cohorts, 'ages apart, curve')
    world = cohorts.draw_world(one, 5)
    people = cohorts.draw_people(world, (2000,) * 4, np.random.default_rng(0))
    columns = np.column_stack([np.ones(8000), cohorts.curve_of(one, people.age), people.male, people.patient])
    found = np.linalg.lstsq(columns, cohorts.truth_of(world, people), rcond=None)[0]
    assert np.abs(found - [world.mean, world.slope, world.male, world.ill]).max() < 0.12
    assert (world.ill != 0).sum() == cohorts.AFFECTED
    rest = cohorts.truth_of(world, people) - cohorts.expected(world, people)
    assert np.abs(rest.std(axis=0) - 1).max() < 0.05
    means = [people.age[people.site == site].mean() for site in range(4)]
    assert np.allclose(means, one.ages, atol=1.5)


def test_kinds_of_one_seed_share_people_and_shifts(cohorts: Any) -> None:
    first, second = (cohorts.draw_world(kind(cohorts, name), 5) for name in ('shift', 'gain'))
    assert np.array_equal(first.scanners[2].shift, second.scanners[2].shift)
    a, b = (cohorts.draw_people(w, (8,) * 4, np.random.default_rng(1)) for w in (first, second))
    assert np.array_equal(cohorts.truth_of(first, a), cohorts.truth_of(second, b))
    assert not np.array_equal(*(cohorts.measured(w, a, np.random.default_rng(2)) for w in (first, second)))


def test_a_bend_keeps_the_order_and_no_bend_changes_nothing(cohorts: Any) -> None:
    line = np.linspace(-3, 3, 21)
    assert np.array_equal(cohorts.bent(line, np.zeros(21)), line)
    for bend in (-0.7, 0.7):
        assert (np.diff(cohorts.bent(line, np.full(21, bend))) > 0).all()


def test_travellers_are_everybody_at_every_site_once(cohorts: Any) -> None:
    world = cohorts.draw_world(kind(cohorts, 'visits'), 5)
    study = cohorts.draw_people(world, (12,) * 4, np.random.default_rng(1), first=100)
    assert np.unique(study.person).size == 16
    travel = cohorts.travellers(study)
    assert sorted(set(zip(travel.person, travel.site, strict=True))) == [
        (person, site) for person in range(100, 116) for site in range(4)
    ]
    truth = cohorts.truth_of(world, travel).reshape(16, 4, -1)
    assert (truth == truth[:, :1]).all()


def test_the_judgement_of_the_truth_and_of_what_is_halved(cohorts: Any, tables: Any) -> None:
    cohort = tables.draw(kind(cohorts, 'shift, spread'), 5)
    assert not set(cohort.fit.person) & set(cohort.study.person)
    assert set(cohort.study.person) == set(cohort.travel.person)
    study, travel = (cohorts.truth_of(cohort.world, p) for p in (cohort.study, cohort.travel))
    best = tables.judged(cohort, study, travel)
    assert set(best['site, linear'].values()) == {0.25}
    assert max(best['error'].values()) == 0
    assert best['age kept'] == pytest.approx(1)
    halved = tables.judged(cohort, study / 2, travel / 2)
    assert (halved['age kept'], halved['disease kept']) == (pytest.approx(0.5), pytest.approx(0.5))
    raw = tables.judged(cohort, cohort.study_values, cohort.travel_values)
    assert np.mean(list(raw['site, linear'].values())) > 0.7
    assert np.mean(list(raw['error'].values())) > 0.4


def test_d_is_that_of_two_groups_and_of_several_features_the_mean(tables: Any) -> None:
    from bidsharm.evaluation.statistics import cohens_d

    rng = np.random.default_rng(0)
    patient = rng.random(80) < 0.4
    ill = rng.normal(size=(80, 2)) - 0.6 * patient[:, None]
    each = [cohens_d(column, list(patient), seed=0, resamples=50).estimate for column in ill.T]
    estimate, low, high = tables.disease_d(ill.tolist(), list(patient))
    assert estimate == pytest.approx(np.mean(each))
    assert low < estimate < high


def test_draws_are_pooled_by_person_and_compared_in_pairs(tables: Any) -> None:
    rng = np.random.default_rng(0)
    base = {name: {i: float(v) for i, v in enumerate(rng.random(20))} for name in tables.PERSONAL}
    better = {**base, 'error': {i: v - 0.1 - 0.01 * (i % 3) for i, v in base['error'].items()}}
    methods = {
        name: tables.pooled([one, one]) for name, one in {'nothing': {**base, 's': 1.0}, 'mine': {**better, 's': 2.0}}.items()
    }  # fmt: skip
    assert methods['mine']['s'] == 2.0
    found = tables.against(methods, 'nothing')
    assert found['mine', 'error']['people'] == 40
    assert found['mine', 'error']['difference'] == pytest.approx(-0.11, abs=0.01)
    assert found['mine', 'error']['p_t_holm'] < 1e-6
    assert found['mine', 'age error']['p_t_holm'] == 1
