"""Formulas: what is one, what is none, and the numbers that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidsharm.errors import UsageError
from bidsharm.harmonizers.design import Design, check_rank, columns_of, parse_formula

COLUMNS = {
    'age': np.array([20.0, 30, 40, 50, 60, 70]),
    'sex': np.array(['F', 'M', 'F', 'M', 'M', 'F']),
    'arm': np.array([1.0, 2, 10, 1, 2, 10]),
}


def names_of(formula: str) -> list[str]:
    return Design.learn(parse_formula(formula), COLUMNS, 4).matrix(COLUMNS)[1]


@pytest.mark.parametrize(
    ('formula', 'names'),
    [
        ('', []),
        ('age', ['age']),
        ('sex', ['sex=M']),
        ('C(arm)', ['arm=2', 'arm=10']),
        (' age+C( sex ) + age ', ['age', 'sex=M']),
        ('age:C(arm)', ['age:arm=2', 'age:arm=10']),
        ('s(age)', ['s(age)0', 's(age)1', 's(age)2']),
        ('C(sex):s(age)', ['sex=M:s(age)0', 'sex=M:s(age)1', 'sex=M:s(age)2']),
    ],
)
def test_formulas_become_columns(formula: str, names: list[str]) -> None:
    assert names_of(formula) == names


@pytest.mark.parametrize(
    'formula',
    [
        'age - 1', '1 + ', 'np.log(age)', '__import__("os").system("x")', 'age*sex', 'I(age**2)', 'bs(age)', 'C(C(sex))', 's(age, 3)',
        'age:age', 'Q("age")', '`age`', '+', 'age;sex', 'C()', '(age)',
    ],
)  # fmt: skip
def test_what_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(UsageError, match='is no term') as caught:
        parse_formula(formula)
    assert caught.value.where == '--keep'


@given(st.text(max_size=60))
def test_any_text_is_a_formula_or_is_refused_in_words(text: str) -> None:
    try:
        terms = parse_formula(text)
    except UsageError:
        return
    again = parse_formula(str(Design(terms, {}, {})))
    assert again == terms
    assert all(name and name in text for name in columns_of(terms))


def test_interactions_are_products() -> None:
    design = Design.learn(parse_formula('age:C(arm)'), COLUMNS, 4)
    matrix, _ = design.matrix(COLUMNS)
    assert np.array_equal(matrix[:, 0], COLUMNS['age'] * (COLUMNS['arm'] == 2))
    assert np.array_equal(matrix[:, 1], COLUMNS['age'] * (COLUMNS['arm'] == 10))


def test_curves_are_those_of_statsmodels() -> None:
    from statsmodels.gam.api import BSplines

    x = np.random.default_rng(0).uniform(20, 80, 50)
    ours, _ = Design.learn(parse_formula('s(x)'), {'x': x}, 10).matrix({'x': x})
    assert np.allclose(ours, BSplines(x[:, None], df=[10], degree=[3]).basis)


@pytest.mark.parametrize('end', [0.0, 9.0])
@pytest.mark.parametrize('share', [0.2, 0.6])
def test_many_rows_with_one_value_are_no_trouble(end: float, share: float) -> None:
    rng = np.random.default_rng(0)
    load = np.where(np.arange(100) < 100 * share, end, rng.uniform(0, 9, 100).round(1))
    columns = {'load': load}
    design = Design.learn(parse_formula('s(load)'), columns, 10)
    matrix, names = design.matrix(columns)
    check_rank(np.ones((100, 1)), matrix, names)
    assert matrix.any(axis=0).all()
    assert design.penalty().shape == (matrix.shape[1],) * 2


def test_new_rows_are_coded_as_the_old_ones() -> None:
    design = Design.learn(parse_formula('age + C(sex) + C(arm) + s(age)'), COLUMNS, 4)
    again = Design.from_dict(design.to_dict())
    assert again == design
    some = {name: column[4:] for name, column in COLUMNS.items()}
    assert np.array_equal(again.matrix(some)[0], design.matrix(COLUMNS)[0][4:])


def test_rows_without_a_value_or_with_a_new_level_are_found() -> None:
    design = Design.learn(parse_formula('age + C(sex)'), COLUMNS, 4)
    found = design.missing({'age': np.array([1.0, np.nan]), 'sex': np.array(['F', 'X'])})
    assert found['age'].tolist() == [False, True]
    assert found['sex'].tolist() == [False, True]
    with pytest.raises(UsageError, match='no column "sex"'):
        design.missing({'age': np.array([1.0])})
    assert design.missing({'age': np.array(['old']), 'sex': np.array(['F'])})['age'].tolist() == [True]


def test_an_age_that_is_no_number_is_told_and_makes_no_groups() -> None:
    columns = {'age': np.array(['60', '70', '89+', '75', '']), 'arm': np.array(['1', '2', '2b', '1', '2'])}
    with pytest.raises(UsageError, match='"age" holds numbers, and "89\\+"') as caught:
        Design.learn(parse_formula('age'), columns, 4)
    assert 'C(age)' in caught.value.fix
    assert Design.learn(parse_formula('C(arm)'), columns, 4).matrix(columns)[1] == ['arm=2', 'arm=2b']


def test_words_have_no_curve() -> None:
    with pytest.raises(UsageError, match='holds words'):
        Design.learn(parse_formula('s(sex)'), COLUMNS, 4)


def test_columns_of_very_different_size_are_no_trouble() -> None:
    onehot = np.eye(2)[np.arange(40) % 2]
    rng = np.random.default_rng(0)
    matrix = np.column_stack([1e9 + rng.normal(size=40), 1e-9 * rng.normal(size=40)])
    check_rank(onehot, matrix[:, 1:], ['small'])
    check_rank(onehot, np.column_stack([1e4 + rng.normal(size=40), matrix[:, 1]]), ['far', 'small'])
    with pytest.raises(UsageError, match='"again" follows'):
        check_rank(onehot, np.column_stack([matrix[:, 1], 7 * matrix[:, 1]]), ['small', 'again'])


def test_a_category_with_one_level_is_refused() -> None:
    for formula in ('group', 'C(group)', 'age:C(group)'):
        with pytest.raises(UsageError, match='"group" is the same in every row'):
            Design.learn(parse_formula(formula), {**COLUMNS, 'group': np.array(['x'] * 6)}, 4)
