"""ComBat and its relatives: against their authors' numbers, against statsmodels, and on what each is special for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bidsharm.errors import MissingNeed, UsageError
from bidsharm.harmonizers.combat import ComBat, ComBatGAM, CovBat, penalized
from bidsharm.harmonizers.contract import Site
from bidsharm.harmonizers.design import Design, parse_formula
from bidsharm.harmonizers.longcombat import LongComBat, intercepts, random_intercept
from bidsharm.harmonizers.table import FeatureTable, TableHarmonizer

REFERENCE = json.loads((Path(__file__).parent / 'reference' / 'combat.json').read_text())


def table() -> FeatureTable:
    """The table that neuroCombat and neuroHarmonize were given (reference/combat.py)."""
    return FeatureTable(
        np.array(REFERENCE['values']),
        tuple('abcdef'),
        tuple(REFERENCE['site']),
        covariates={'age': np.array(REFERENCE['age']), 'sex': np.array(REFERENCE['sex'])},
    )


def harmonized(kind: type[TableHarmonizer], keep: str, target: str = '', **settings: Any) -> np.ndarray:
    method = kind(settings=kind.preset(**settings))
    method.fit(table(), target=Site(target) if target else None, keep=keep)
    return method.harmonize(table()).values


@pytest.mark.parametrize(
    ('name', 'target', 'settings'),
    [
        ('parametric', '', {}),
        ('nonparametric', '', {'prior': 'nonparametric'}),
        ('none', '', {'prior': 'none'}),
        ('reference b', 'b', {}),
        ('mean only, none', '', {'prior': 'none', 'mean_only': True}),
    ],
)
def test_combat_gives_the_numbers_of_neurocombat(name: str, target: str, settings: dict[str, Any]) -> None:
    found = harmonized(ComBat, 'age + C(sex)', target, **settings)
    assert np.abs(found - np.array(REFERENCE[name])).max() < 1e-5
    assert np.abs(found - table().values).max() > 0.5


def test_smooth_combat_is_near_to_neuroharmonize() -> None:
    found, theirs = harmonized(ComBatGAM, 's(age) + C(sex)'), np.array(REFERENCE['smooth age'])
    moved = np.abs(theirs - table().values).mean()
    assert np.abs(found - theirs).mean() < 0.1 * moved


def test_a_reference_site_stays_as_it_is() -> None:
    at = np.array(REFERENCE['site']) == 'b'
    for kind, keep in ((ComBat, 'age'), (CovBat, 'age'), (ComBatGAM, 's(age)')):
        found = harmonized(kind, keep, 'b')
        assert np.allclose(found[at], table().values[at], atol=1e-10)
        assert not np.allclose(found[~at], table().values[~at], atol=0.1)


@pytest.mark.parametrize('kind', [ComBat, CovBat, ComBatGAM])
def test_a_reference_with_one_row_has_no_spread_to_offer(kind: type) -> None:
    full = table()
    rows = np.array([site != 'b' for site in full.sites])
    rows[list(full.sites).index('b')] = True
    with pytest.raises(UsageError, match='single usable row'):
        kind().fit(full.take(rows), target=Site('b'), keep='s(age)' if kind is ComBatGAM else '')


def test_without_shrinking_the_sites_have_the_same_mean_and_spread() -> None:
    found = harmonized(ComBat, '', prior='none')
    sites = np.array(REFERENCE['site'])
    means = np.array([found[sites == site].mean(axis=0) for site in 'abc'])
    spreads = np.array([found[sites == site].std(axis=0, ddof=1) for site in 'abc'])
    assert np.ptp(means, axis=0).max() < 1e-9
    assert np.ptp(spreads, axis=0).max() < 1e-9


def test_mean_only_leaves_the_spread_of_each_site() -> None:
    found, sites = harmonized(ComBat, '', mean_only=True), np.array(REFERENCE['site'])
    for site in 'abc':
        at = sites == site
        assert np.allclose(found[at].std(axis=0), table().values[at].std(axis=0))


@pytest.mark.parametrize('prior', ['parametric', 'nonparametric'])
def test_estimates_are_shrunk_towards_those_of_other_features(prior: str) -> None:
    plain, shrunk = ComBat(settings=ComBat.preset(prior='none')), ComBat(settings=ComBat.preset(prior=prior))
    for method in (plain, shrunk):
        method.fit(table(), keep='age + C(sex)')
    for name in ('gamma', 'delta'):
        wide, narrow = (getattr(method.estimates, name) for method in (plain, shrunk))
        assert (narrow.std(axis=1) < wide.std(axis=1)).all()


def test_one_feature_is_not_shrunk_and_says_so() -> None:
    one = table()
    one = replace(one, values=one.values[:, :1], features=('a',))
    method = ComBat()
    report = method.fit(one, keep='age')
    assert any('no others to learn a prior from' in text for text in report.details['warnings'])
    assert np.isfinite(method.harmonize(one).values).all()


def test_a_feature_that_a_site_lacks_is_left_in_its_new_rows() -> None:
    full = table()
    values = full.values.copy()
    at = np.array(full.sites) == 'c'
    values[at, 1] = np.nan
    method = ComBat()
    report = method.fit(replace(full, values=values), keep='age')
    assert any('Site "c" has no value of b' in text for text in report.details['warnings'])
    found = method.harmonize(full).values
    assert np.isfinite(found).all()
    assert np.allclose(found[at, 1], full.values[at, 1])


def test_a_feature_that_is_kept_away_is_left_as_it_is() -> None:
    full = table()
    values = full.values.copy()
    values[:, 3] = 2 * full.covariates['age'] + 1
    method = ComBat()
    method.fit(replace(full, values=values), keep='age')
    assert np.array_equal(method.harmonize(replace(full, values=values)).values[:, 3], values[:, 3])


def test_a_site_without_spread_in_a_feature_keeps_it() -> None:
    full = table()
    values = full.values.copy()
    at = np.array(full.sites) == 'a'
    values[at, 0] = 4.0
    method = ComBat()
    report = method.fit(replace(full, values=values))
    assert any('Site "a" does not vary in a' in text for text in report.details['warnings'])
    assert np.ptp(method.harmonize(replace(full, values=values)).values[at, 0]) < 1e-9


# --- Smooth terms ---


def bent(rows: int = 300) -> tuple[FeatureTable, np.ndarray, np.ndarray]:
    """Sites of different ages, a bent effect of age, and site shifts."""
    rng = np.random.default_rng(4)
    site = np.arange(rows) % 2
    age = np.where(site, rng.uniform(10, 60, rows), rng.uniform(30, 85, rows))
    curve = 3 * np.sin(age / 14)
    shift = np.array([0.0, 2.0])[site]
    values = curve[:, None] + shift[:, None] + rng.normal(0, 0.3, (rows, 5))
    one = FeatureTable(values, tuple('abcde'), tuple(np.array(['a', 'b'])[site]), covariates={'age': age})
    return one, curve, site


def test_a_curve_is_kept_where_a_line_is_not_enough() -> None:
    one, curve, site = bent()
    errors = {}
    for kind, keep in ((ComBat, 'age'), (ComBatGAM, 's(age)')):
        method = kind()
        method.fit(one, keep=keep)
        rest = method.harmonize(one).values.mean(axis=1) - curve
        errors[keep] = abs(rest[site == 0].mean() - rest[site == 1].mean())
    assert errors['s(age)'] < 0.1
    assert errors['s(age)'] < 0.3 * errors['age']


def test_rows_beyond_the_curve_get_its_end_and_a_word() -> None:
    one, *_ = bent()
    method = ComBatGAM()
    method.fit(one, keep='s(age)')
    age = one.covariates['age'].copy()
    age[:2] = 120.0, 500.0
    found = method.harmonize(replace(one, covariates={'age': age}))
    assert np.isfinite(found.values).all()
    assert any('2 rows beyond the values of "age"' in text for text in found.warnings)


def test_the_strength_of_the_penalty_has_the_least_generalized_cross_validation() -> None:
    from bidsharm.harmonizers.combat import STRENGTHS

    one, *_ = bent(60)
    design = Design.learn(parse_formula('s(age)'), one.covariates, 8)
    matrix, penalty = design.matrix(one.covariates)[0], design.penalty()
    assert penalty is not None
    full = np.column_stack([np.eye(2)[np.arange(60) % 2], matrix])
    y = one.values[:, :1]
    scores, fits = [], []
    for strength in STRENGTHS * np.sum(matrix**2):
        normal = full.T @ full
        normal[2:, 2:] += strength * penalty
        hat = full @ np.linalg.solve(normal, full.T)
        scores.append(np.sum((y - hat @ y) ** 2) / (60 - np.trace(hat)) ** 2)
        fits.append(hat @ y)
    best = fits[int(np.argmin(scores))]
    assert np.allclose(full @ penalized(full, y, penalty), best, atol=1e-4)


def test_the_penalty_is_nought_for_lines_only() -> None:
    x = np.linspace(0, 10, 50)
    design = Design.learn(parse_formula('s(x)'), {'x': x}, 8)
    basis, penalty = design.matrix({'x': x})[0], design.penalty()
    full = np.column_stack([np.ones(50), basis])
    for y, bends in ((2 * x + 1, False), (x**2, True)):
        coefficients = np.linalg.lstsq(full, y, rcond=None)[0][1:]
        assert (coefficients @ penalty @ coefficients > 1e-8) == bends


def test_curves_are_for_the_method_that_has_them() -> None:
    with pytest.raises(UsageError, match='combat-gam'):
        ComBat().fit(table(), keep='s(age)')
    with pytest.raises(UsageError, match='needs a smooth term'):
        ComBatGAM().fit(table(), keep='age')
    with pytest.raises(MissingNeed, match='what people differ by'):
        ComBatGAM().fit(table())
    few = replace(table(), covariates={'age': np.arange(48.0) % 4})
    with pytest.raises(UsageError, match='different values'):
        ComBatGAM().fit(few, keep='s(age)')


# --- Covariance ---


def test_covbat_makes_the_covariances_of_sites_alike() -> None:
    rng = np.random.default_rng(2)
    mixed = np.array([[1, 0.9, 0.8, 0], [0, 0.4, 0.3, 0], [0, 0, 0.5, 0], [0, 0, 0, 1]])
    values = np.concatenate([rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) @ mixed])
    one = FeatureTable(values, tuple('abcd'), ('A',) * 200 + ('B',) * 200)

    def apart(kind: type[TableHarmonizer]) -> float:
        method = kind(settings=kind.preset(**({'variance': 1.0} if kind is CovBat else {})))
        method.fit(one)
        found = method.harmonize(one).values
        return float(np.linalg.norm(np.cov(found[:200].T) - np.cov(found[200:].T)))

    assert apart(CovBat) < 0.75 * apart(ComBat)


# --- Several visits ---


def visits(people: int = 60, each: int = 3) -> tuple[FeatureTable, np.ndarray]:
    """People with visits at two scanners, with large differences between people."""
    rng = np.random.default_rng(9)
    who = np.repeat(np.arange(people), each)
    site = rng.integers(0, 2, who.size)
    time = np.tile(np.arange(each), people).astype(float)
    own = np.repeat(rng.normal(0, 3, (people, 4)), each, axis=0)
    values = 50 + own - 0.5 * time[:, None] + np.array([0, 2.0])[site][:, None]
    values = values + rng.normal(0, 0.5, values.shape) * np.array([1, 2.0])[site][:, None]
    one = FeatureTable(
        values,
        tuple('abcd'),
        tuple(np.array(['x', 'y'])[site]),
        people=tuple(f'p{w}' for w in who),
        covariates={'time': time},
    )
    return one, site


def test_the_random_intercept_is_that_of_statsmodels() -> None:
    import statsmodels.api as sm

    one, site = visits()
    person = np.unique(one.people, return_inverse=True)[1]
    x = np.column_stack([np.eye(2)[site], one.covariates['time']])
    theirs = sm.MixedLM(one.values[:, 0], x, groups=person).fit(reml=True)
    ours = random_intercept(one.values[:, 0], x, person)
    assert np.allclose(ours.coefficients, theirs.fe_params, atol=1e-3)
    assert ours.sigma**2 == pytest.approx(theirs.scale, rel=1e-3)
    assert ours.ratio * ours.sigma**2 == pytest.approx(float(theirs.cov_re[0, 0]), rel=1e-2)
    blup = intercepts(one.values[:, 0] - x @ ours.coefficients, person, ours.ratio)
    expected = np.array([float(theirs.random_effects[p].iloc[0]) for p in person])
    assert np.allclose(blup, expected, atol=1e-2)


def test_people_without_differences_have_no_intercept() -> None:
    rng = np.random.default_rng(1)
    person = np.repeat(np.arange(40), 2)
    found = random_intercept(rng.normal(size=80), np.ones((80, 1)), person)
    assert found.ratio < 0.3


def test_longcombat_estimates_sites_from_visits_of_the_same_person() -> None:
    one, site = visits()
    shift = {}
    for kind in (ComBat, LongComBat):
        method = kind()
        method.fit(one, keep='time')
        change = method.harmonize(one).values - one.values
        shift[kind] = change[site == 0].mean(axis=0) - change[site == 1].mean(axis=0)
    assert np.abs(shift[LongComBat] - 2).max() < 0.35
    assert np.abs(shift[LongComBat] - 2).mean() < np.abs(shift[ComBat] - 2).mean()


def test_longcombat_needs_people_with_several_visits() -> None:
    with pytest.raises(MissingNeed, match='several visits'):
        LongComBat().fit(table())


# --- Tables ---


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'values': np.full((48, 6), np.inf)}, 'infinite'),
        ({'features': tuple('abcdea')}, 'same name'),
        ({'sites': ('a',)}, 'shape'),
        ({'people': ('p',)}, 'differ in number'),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(table(), **changes)


@pytest.mark.parametrize('settings', [{'prior': 'flat'}, {'mean_only': 2}])
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ComBat.preset(**settings)
    with pytest.raises(UsageError):
        CovBat.preset(variance=0)
