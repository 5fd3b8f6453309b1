"""The benchmarks of feature tables: cohorts hold what is planted, and the measures say what is known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def cohorts(benchmark_script: Any) -> Any:
    return benchmark_script('table_cohorts')


@pytest.fixture
def tables(benchmark_script: Any) -> Any:
    return benchmark_script('tables')


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
    one = kind(cohorts, 'ages apart (curve)')
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
    cohort = tables.draw(kind(cohorts, 'shift and spread'), 5)
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


# --- Images, features, or both ---


@pytest.fixture
def hybrid(benchmark_script: Any) -> Any:
    return benchmark_script('hybrid')


def written(folder: Path) -> tuple[Path, Path]:
    """Write a group table of 12 people in 3 scanners, and the table of people: scanner b shifts what is measured before."""
    rng = np.random.default_rng(0)
    ages, true = rng.uniform(20, 80, 12), rng.normal([600, 500, 300], 20, (12, 3))
    true[:, 0] -= 2 * (ages - 50)
    people = ['participant_id\tage\tsex\tgm_ml\twm_ml\tcsf_ml']
    head = [f'{which}_volume_{tissue}_ml' for which in ('before', 'after') for tissue in ('wm', 'gm', 'csf')]
    rows = ['\t'.join(['participant_id', 'session_id', 'scan', 'verdict', 'site', *head])]
    for index, (age, volumes) in enumerate(zip(ages, true, strict=True)):
        name = f'sub-{index:02d}'
        people.insert(1, '\t'.join([name, f'{age:.1f}', 'FM'[index % 2], *(f'{v:.3f}' for v in volumes)]))
        for scanner in 'abc':
            shifted = volumes + 40 * (scanner == 'b') + rng.normal(0, 1, 3)
            numbers = [*shifted[[1, 0, 2]], *volumes[[1, 0, 2]]]
            rows.append('\t'.join([name, f'ses-{scanner}', f'{name}_ses-{scanner}_T1w', 'pass', scanner, *(f'{v:.3f}' for v in numbers)]))  # fmt: skip
    (folder / 'group_T1w.tsv').write_text('\n'.join(rows) + '\n')
    (folder / 'participants.tsv').write_text('\n'.join(people) + '\n')
    return folder / 'group_T1w.tsv', folder / 'participants.tsv'


def test_volumes_are_read_by_person_scanner_and_tissue(hybrid: Any, tmp_path: Path) -> None:
    table, people = written(tmp_path)
    volumes = hybrid.volumes_of(hybrid.feature_rows(table, people, 'after'))
    truth, ages = hybrid.true_volumes(people, volumes.people, volumes.scanners)
    assert volumes.scanners == ('a', 'b', 'c')
    assert volumes.people == truth.people
    assert np.allclose(volumes.values, truth.values)
    assert ages.shape == (12,)
    rows = hybrid.feature_rows(table, people, 'after')
    with pytest.raises(SystemExit, match='every scanner once'):
        hybrid.volumes_of(rows.take(np.arange(35)))


def test_features_are_harmonized_by_a_fit_without_the_person(hybrid: Any, tmp_path: Path) -> None:
    table, people = written(tmp_path)
    rows = hybrid.feature_rows(table, people, 'before')
    odd = np.asarray(rows.people) == 'sub-03'
    other = hybrid.replace(rows, values=np.where(odd[:, None], rows.values * 1.5, rows.values))
    first, second = (hybrid.held_out(one).values[odd] for one in (rows, other))
    # The fit is the same for a person whatever the person's own numbers are: what comes out is a straight line of them.
    method = hybrid_combat(rows.take(~odd), hybrid.KEEP)
    assert np.allclose(first, method.harmonize(rows.take(odd)).values)
    assert np.allclose(second, method.harmonize(other.take(odd)).values)


def hybrid_combat(rows: Any, keep: str) -> Any:
    from bidsharm.harmonizers.combat import ComBat

    method = ComBat()
    method.fit(rows, keep=keep)
    return method


def test_measures_of_the_truth_of_scanners_that_differ_and_of_combat(
    hybrid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hybrid, 'PERMUTATIONS', 20)
    table, people = written(tmp_path)
    before = hybrid.feature_rows(table, people, 'before')
    truth, ages = hybrid.true_volumes(people, tuple(sorted(set(before.people))), ('a', 'b', 'c'))
    ways = {
        name: hybrid.measures(one, truth, ages)
        for name, one in {'truth': truth, 'nothing': hybrid.volumes_of(before), 'features only': hybrid.volumes_of(hybrid.held_out(before))}.items()
    }  # fmt: skip
    assert max(ways['truth']['CoV']) == pytest.approx(0, abs=1e-9)
    assert (ways['truth']['age r'] < -0.5, ways['truth']['age kept']) == (True, pytest.approx(1))
    assert ways['nothing']['site'] > ways['nothing']['site chance high']
    assert ways['features only']['site'] <= ways['features only']['site chance high']
    assert np.mean(ways['features only']['CoV']) < 0.2 * np.mean(ways['nothing']['CoV'])
    assert ways['features only']['ICC']['gm'] > ways['nothing']['ICC']['gm']
    tests = hybrid.compared(ways, 'nothing')
    assert set(tests) == {('features only', 'CoV'), ('features only', 'error')}
    assert tests['features only', 'CoV']['p_t_holm'] < 0.001
    cells = hybrid.line('features only', ways['features only'], {'nothing': tests})
    assert (cells['p (nothing)'], cells['p (images only)']) == ('<0.001', '')
    assert hybrid.line('truth', ways['truth'], {})['age kept'] == '1.00'
