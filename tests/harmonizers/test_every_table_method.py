"""What holds for every method for tables: on features with known effects of sites, age and sex."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from bidsharm.errors import MissingNeed, UsageError
from bidsharm.evaluation.probe import site_probe
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import NEED_PHRASES, Site
from bidsharm.harmonizers.table import FeatureTable, TableHarmonizer

METHODS = sorted(name for name in registry._BUILTIN if registry.card(name).domain == 'table')
FEATURES = 12


def planted(
    rows: int = 240, seed: int = 0, visits: int = 2, first: int = 0
) -> tuple[FeatureTable, dict[str, Any]]:
    """Return features of people with two visits at one of three sites, and what was planted."""
    truth = np.random.default_rng(7)
    shift, spread = truth.normal(0, 1.5, (3, FEATURES)), truth.uniform(0.6, 1.7, (3, FEATURES))
    slope, male = truth.uniform(-0.06, -0.02, FEATURES), truth.uniform(0.3, 0.9, FEATURES)
    rng = np.random.default_rng(seed)
    people = rows // visits
    who = np.repeat(np.arange(people), visits)
    site = rng.permutation(np.arange(rows) % 3)
    age = np.repeat(rng.uniform(20, 80, people), visits) + np.tile(np.arange(visits), people) * 1.5
    sex = np.repeat(rng.integers(0, 2, people), visits)
    own = np.repeat(rng.normal(0, 0.5, (people, FEATURES)), visits, axis=0)
    clean = 100 + np.outer(age - 50, slope) + np.outer(sex, male) + own
    values = clean + shift[site] + spread[site] * rng.normal(0, 0.6, (rows, FEATURES))
    table = FeatureTable(
        values,
        tuple(f'feature {i}' for i in range(FEATURES)),
        tuple(np.array(['A', 'B', 'C'])[site]),
        keys=tuple(f'sub-{first + w:03d}_{i % visits}' for i, w in enumerate(who)),
        people=tuple(f'sub-{first + w:03d}' for w in who),
        covariates={'age': age, 'sex': np.array(['F', 'M'])[sex]},
    )
    return table, {'slope': slope, 'male': male, 'age': age, 'sex': sex}


def keep_of(name: str) -> str:
    return 's(age) + C(sex)' if registry.find(name).smooth else 'age + C(sex)'


def new(name: str, **changes: Any) -> TableHarmonizer:
    kind = registry.find(name)
    return kind(settings=kind.preset('tiny', **changes))


def hasty(name: str, **changes: Any) -> TableHarmonizer:
    """Return a method that is trained for a moment only, if it is trained at all."""
    known = [item.name for item in fields(registry.find(name).Settings)]
    return new(name, **{key: 3 for key in known if key.endswith('epochs')}, **changes)


@cache
def fitted(name: str, target: str = '') -> TableHarmonizer:
    method = new(name)
    method.fit(planted()[0], target=Site(target) if target else None, keep=keep_of(name))
    return method


@pytest.mark.parametrize('name', METHODS)
def test_the_card_says_that_it_is_for_tables(name: str) -> None:
    card = registry.card(name)
    assert (card.domain, card.output) == ('table', 'features')
    assert 'table' in card.needs_fit
    assert {*card.needs_fit, *card.needs_apply} <= set(NEED_PHRASES)
    assert not card.changes_anatomy


@pytest.mark.parametrize('name', METHODS)
def test_it_is_refused_for_images_and_named_with_its_command(name: str) -> None:
    with pytest.raises(UsageError, match='harmonizes tables of features') as caught:
        registry.get(name)
    assert 'bidsharm-table' in caught.value.fix
    assert name not in registry.could_run(NEED_PHRASES)
    assert name not in registry.could_train(NEED_PHRASES)


@pytest.mark.parametrize('name', METHODS)
def test_sites_cannot_be_told_from_new_rows_and_age_and_sex_stay(name: str) -> None:
    table, truth = planted(seed=1, first=500)
    found = fitted(name).harmonize(table)
    assert np.isfinite(found.values).all()
    assert not found.left.any()
    options: dict[str, Any] = {'seed': 0, 'permutations': 2, 'resamples': 50}
    before, after = (
        site_probe(v, table.sites, table.people, **options) for v in (table.values, found.values)
    )
    assert before.accuracy > 0.95
    assert after.accuracy < 0.47
    design = np.column_stack([np.ones(len(truth['age'])), truth['age'], truth['sex']])
    slope, male = np.linalg.lstsq(design, found.values, rcond=None)[0][1:]
    assert np.abs(slope / truth['slope'] - 1).mean() < 0.25
    assert np.abs(male - truth['male']).mean() < 0.25


@pytest.mark.parametrize('name', METHODS)
def test_new_rows_get_what_was_learnt_whatever_else_is_in_their_table(name: str) -> None:
    table, _ = planted(seed=2, first=500)
    people = np.array(table.people)
    some = np.isin(people, people[:24])
    method = fitted(name)
    all_rows = method.harmonize(table)
    few = method.harmonize(table.take(some))
    assert np.allclose(all_rows.values[some], few.values, atol=1e-9)
    assert np.array_equal(method.harmonize(table).values, all_rows.values)
    reordered = replace(table, values=table.values[:, ::-1], features=table.features[::-1])
    assert np.array_equal(method.harmonize(reordered).values, all_rows.values[:, ::-1])


@pytest.mark.parametrize('name', METHODS)
def test_the_input_is_not_changed(name: str) -> None:
    table, _ = planted(seed=3)
    before = table.values.copy()
    fitted(name).harmonize(table)
    assert np.array_equal(table.values, before)


@pytest.mark.parametrize('name', METHODS)
def test_save_and_load_give_equal_outputs(name: str, tmp_path: Any) -> None:
    table, _ = planted(seed=4)
    method = fitted(name)
    bundle.save(method, tmp_path / 'model')
    again = bundle.load_any(tmp_path / 'model')
    assert type(again) is type(method)
    assert isinstance(again, TableHarmonizer)
    assert np.array_equal(again.harmonize(table).values, method.harmonize(table).values)
    assert json.loads((tmp_path / 'model' / 'card.json').read_text())['settings']['sites'] == ['A', 'B', 'C']


@pytest.mark.parametrize('name', METHODS)
def test_the_same_fit_twice_is_the_same(name: str) -> None:
    table, _ = planted(seed=5)
    found = []
    for noise in (1, 2):
        np.random.seed(noise)
        method = hasty(name)
        method.fit(planted()[0], keep=keep_of(name))
        found.append(method.harmonize(table).values)
    assert np.array_equal(*found)


@pytest.mark.parametrize('name', METHODS)
def test_rows_that_cannot_be_harmonized_are_left_and_named(name: str) -> None:
    table, _ = planted(seed=6)
    age, sites = table.covariates['age'].copy(), list(table.sites)
    sites[0], sites[1], age[2] = 'elsewhere', '', np.nan
    sex = table.covariates['sex'].astype('<U3')
    sex[3] = 'new'
    spoilt = replace(table, sites=tuple(sites), covariates={'age': age, 'sex': sex})
    found = fitted(name).harmonize(spoilt)
    assert np.flatnonzero(found.left).tolist() == [0, 1, 2, 3]
    assert np.array_equal(found.values[:4], table.values[:4])
    said = ' '.join(found.warnings)
    for index, word in enumerate(('"elsewhere", which was not fitted', 'no site', '"age"', '"sex"')):
        assert word in said
        assert table.keys[index] in said


@pytest.mark.parametrize('name', METHODS)
def test_missing_cells_stay_missing_and_harm_no_others(name: str) -> None:
    table, _ = planted()
    values = table.values.copy()
    rng = np.random.default_rng(3)
    holes = rng.random(values.shape) < 0.05
    holes[:, 0] = False
    values[holes] = np.nan
    method = hasty(name)
    method.fit(replace(table, values=values), keep=keep_of(name))
    found = method.harmonize(replace(table, values=values)).values
    assert np.array_equal(np.isnan(found), holes)
    whole = hasty(name)
    whole.fit(table, keep=keep_of(name))
    assert np.corrcoef(found[:, 0], whole.harmonize(table).values[:, 0])[0, 1] > 0.9


@pytest.mark.parametrize('name', METHODS)
def test_features_that_do_not_vary_are_left_and_named(name: str) -> None:
    table, _ = planted()
    values = table.values.copy()
    values[:, 2] = 7.0
    values[[site == 'B' for site in table.sites], 4] = 3.0
    method = hasty(name)
    report = method.fit(replace(table, values=values), keep=keep_of(name))
    found = method.harmonize(replace(table, values=values)).values
    assert np.isfinite(found).all()
    assert np.array_equal(found[:, 2], values[:, 2])
    assert 'feature 2' in ' '.join(report.details['warnings'])


@pytest.mark.parametrize('name', METHODS)
def test_a_site_with_one_row_is_harmonized_with_a_word(name: str) -> None:
    table, _ = planted()
    rows = np.array([site != 'C' for site in table.sites])
    rows[np.flatnonzero(~rows)[0]] = True
    small = table.take(rows)
    method = hasty(name)
    report = method.fit(small, keep=keep_of(name))
    found = method.harmonize(small)
    assert np.isfinite(found.values).all()
    assert not found.left.any()
    assert 'C (1 row)' in ' '.join(report.details['warnings'])


@pytest.mark.parametrize('name', METHODS)
def test_what_cannot_be_told_from_the_sites_is_refused(name: str) -> None:
    table, _ = planted()
    fixed = {'A': 'x', 'B': 'y', 'C': 'z'}
    covariates = {**table.covariates, 'maker': np.array([fixed[site] for site in table.sites])}
    with pytest.raises(UsageError, match='"maker=y" cannot be told from the sites'):
        hasty(name).fit(replace(table, covariates=covariates), keep=f'{keep_of(name)} + maker')
    covariates['field'] = np.full(len(table.sites), 3.0)
    with pytest.raises(UsageError, match='"field" is the same in every row'):
        hasty(name).fit(replace(table, covariates=covariates), keep=f'{keep_of(name)} + field')
    covariates['double'] = 2.0 * (table.covariates['sex'] == 'M')
    with pytest.raises(UsageError, match='follows from the sites and the other kept columns'):
        hasty(name).fit(replace(table, covariates=covariates), keep=f'{keep_of(name)} + double')


@pytest.mark.parametrize('name', METHODS)
def test_fewer_rows_than_columns_are_refused(name: str) -> None:
    table, _ = planted()
    with pytest.raises(UsageError, match=r'rows are too few|different values'):
        hasty(name).fit(table.take(np.arange(4)), keep=keep_of(name))


@pytest.mark.parametrize('name', METHODS)
def test_what_is_missing_is_named(name: str) -> None:
    table, _ = planted()
    keep = keep_of(name)
    with pytest.raises(MissingNeed, match='two sites'):
        hasty(name).fit(table.take(np.array([site == 'A' for site in table.sites])), keep=keep)
    with pytest.raises(MissingNeed, match='was not fitted'):
        new(name).harmonize(table)
    with pytest.raises(UsageError, match='no column "weight"'):
        hasty(name).fit(table, keep=f'{keep} + weight')
    with pytest.raises(UsageError, match='no site "D"'):
        hasty(name).fit(table, target=Site('D'), keep=keep)
    with pytest.raises(UsageError, match='no setting "colour"'):
        registry.find(name).preset('tiny', colour=1)
    lacking = replace(table, values=table.values[:, 1:], features=table.features[1:])
    with pytest.raises(UsageError, match='feature 0'):
        fitted(name).harmonize(lacking)


@pytest.mark.parametrize('name', METHODS)
def test_other_sites_come_to_a_site_that_is_aimed_at(name: str) -> None:
    table, _ = planted(seed=8, rows=600)
    found = fitted(name, 'B').harmonize(table).values
    at = {site: np.array([s == site for s in table.sites]) for site in 'ABC'}
    scale = table.values.std(axis=0)
    aim = table.values[at['B']].mean(axis=0)
    for site in 'AC':
        before = np.abs(table.values[at[site]].mean(axis=0) - aim) / scale
        after = np.abs(found[at[site]].mean(axis=0) - aim) / scale
        assert after.mean() < 0.35 * before.mean()
