"""What a table's harmonization has to keep: a small formula, and the columns of numbers that it stands for.

The grammar is ``term + term + ...``; a term is a factor or an interaction ``factor:factor``; a factor is ``column``, ``C(column)`` for
categories, or ``s(column)`` for a smooth curve. Nothing of a formula is ever run as code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError

Floats = NDArray[np.float64]
#: Numbers (NaN where missing) or words (empty where missing), one a row.
Column = NDArray[Any]

_FACTOR = re.compile(r'(?:(?P<kind>[Cs])\(\s*(?P<inner>[\w.-]+)\s*\)|(?P<name>[\w.-]+))')
DEGREE = 3
#: A column that the others leave less than this share of is no column of its own.
_SINGULAR = 1e-7


class Factor(NamedTuple):
    """One column of a formula, and how it is used."""

    name: str
    kind: Literal['plain', 'category', 'smooth'] = 'plain'

    def __str__(self) -> str:
        return {'plain': '{}', 'category': 'C({})', 'smooth': 's({})'}[self.kind].format(self.name)


Term = tuple[Factor, ...]


def parse_formula(text: str) -> tuple[Term, ...]:
    """Return the terms of a formula.

    Parameters
    ----------
    text
        For example ``age + C(sex) + age:C(sex)``; empty for none.

    Raises
    ------
    UsageError
        If it is not of the grammar.
    """
    if not text.strip():
        return ()
    terms = []
    for piece in text.split('+'):
        matches = [_FACTOR.fullmatch(part.strip()) for part in piece.split(':')]
        factors = tuple(_factor(match) for match in matches if match)
        if len(factors) != len(matches) or len(set(factors)) != len(factors):
            raise UsageError(
                f'"{piece.strip()[:80]}" is no term of a formula.',
                where='--keep',
                fix='Write columns, C(column) for categories or s(column) for smooth curves, joined by +, and by : for interactions.',
            )
        if factors not in terms:
            terms.append(factors)
    return tuple(terms)


def _factor(match: re.Match[str]) -> Factor:
    if match['kind'] == 'C':
        return Factor(match['inner'], 'category')
    return Factor(match['inner'], 'smooth') if match['kind'] else Factor(match['name'])


def columns_of(terms: Sequence[Term]) -> tuple[str, ...]:
    """Return the names of the columns that a formula uses, each once."""
    return tuple(dict.fromkeys(factor.name for term in terms for factor in term))


@dataclass(frozen=True)
class Design:
    """A formula with what it learnt from the rows of a fit, so that new rows are coded in the same way.

    Parameters
    ----------
    terms
        The formula.
    levels
        Levels of categories by column; the first is the one that others are compared with.
    knots
        Knots of the cubic B-splines by column.
    """

    terms: tuple[Term, ...] = ()
    levels: Mapping[str, tuple[str, ...]] = None  # type: ignore[assignment]
    knots: Mapping[str, tuple[float, ...]] = None  # type: ignore[assignment]

    @classmethod
    def learn(cls, terms: Sequence[Term], covariates: Mapping[str, Column], functions: int) -> Design:
        """Return the design of a formula, with levels and knots from rows that have all columns.

        Parameters
        ----------
        terms
            The formula; words count as categories without being told.
        covariates
            Columns of the rows of the fit.
        functions
            B-splines of each smooth term, including the one that the intercept makes redundant.

        Raises
        ------
        UsageError
            If a column is not there, a curve is asked for words, or of too few values.
        """
        levels: dict[str, tuple[str, ...]] = {}
        knots: dict[str, tuple[float, ...]] = {}
        fixed = tuple(tuple(_resolved(factor, covariates) for factor in term) for term in terms)
        for factor in (factor for term in fixed for factor in term):
            column = covariates[factor.name]
            if factor.kind == 'category':
                levels[factor.name] = tuple(sorted(set(words_of(column)), key=_natural))
                if len(levels[factor.name]) < 2:
                    raise _singular(f'"{factor.name}" is the same in every row')
            elif factor.kind == 'smooth':
                knots[factor.name] = _knots(column, functions, factor)
        return cls(fixed, levels, knots)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table that it needs."""
        return columns_of(self.terms)

    def missing(self, covariates: Mapping[str, Column]) -> dict[str, NDArray[np.bool_]]:
        """Return, for each column, which rows have no value that can be used.

        Raises
        ------
        UsageError
            If a column is not there.
        """
        found = {}
        for name in self.columns:
            column = _column(name, covariates)
            if name in self.levels:
                found[name] = ~np.isin(words_of(column), self.levels[name])
            else:
                found[name] = ~np.isfinite(column) if column.dtype.kind == 'f' else np.ones(column.size, bool)
        return found

    def outside(self, covariates: Mapping[str, Column]) -> dict[str, int]:
        """Return the number of rows beyond the ends of each smooth curve, which goes on flat there."""
        found = {}
        for name, knots in self.knots.items():
            values = covariates[name][np.isfinite(covariates[name])]
            count = int(np.count_nonzero((values < knots[0]) | (values > knots[-1])))
            if count:
                found[name] = count
        return found

    def matrix(self, covariates: Mapping[str, Column]) -> tuple[Floats, list[str]]:
        """Return the numbers that stand for the formula, shape (rows, columns), and the names of the columns.

        All values have to be there: see :meth:`missing`.
        """
        rows = next((len(column) for column in covariates.values()), 0)
        blocks, names = [np.empty((rows, 0))], []
        for term in self.terms:
            block, labels = np.ones((rows, 1)), ['']
            for factor in term:
                part, own = self._coded(factor, covariates)
                block = (block[:, :, None] * part[:, None, :]).reshape(rows, -1)
                labels = [f'{a}:{b}' if a else b for a in labels for b in own]
            blocks.append(block)
            names += labels
        return np.concatenate(blocks, axis=1), names

    def penalty(self) -> Floats | None:
        """Return what bends cost: the integral of the squared second derivative as a form of the coefficients, or None without curves.

        Shape (columns, columns), in the order of :meth:`matrix`; each curve on the scale where its trace is 1.
        """
        blocks = []
        for term in self.terms:
            sizes = [self._width(factor) for factor in term]
            block = np.zeros((int(np.prod(sizes)),) * 2)
            for place, factor in enumerate(term):
                if factor.kind == 'smooth':
                    before, after = int(np.prod(sizes[:place])), int(np.prod(sizes[place + 1 :]))
                    block += np.kron(
                        np.kron(np.eye(before), _bending(self.knots[factor.name])), np.eye(after)
                    )
            blocks.append(block / max(float(np.trace(block)), 1e-300))
        if not self.knots:
            return None
        total, start = np.zeros((sum(map(len, blocks)),) * 2), 0
        for block in blocks:
            total[start : start + len(block), start : start + len(block)] = block
            start += len(block)
        return total

    def _width(self, factor: Factor) -> int:
        if factor.kind == 'category':
            return len(self.levels[factor.name]) - 1
        return len(self.knots[factor.name]) - DEGREE - 2 if factor.kind == 'smooth' else 1

    def _coded(self, factor: Factor, covariates: Mapping[str, Column]) -> tuple[Floats, list[str]]:
        column = _column(factor.name, covariates)
        if factor.kind == 'category':
            others = self.levels[factor.name][1:]
            words = words_of(column)
            coded = np.array([words == level for level in others], float).reshape(len(others), -1).T
            return coded, [f'{factor.name}={level}' for level in others]
        if factor.kind == 'smooth':
            basis = _basis(column, self.knots[factor.name])[:, 1:]
            return basis, [f's({factor.name}){index}' for index in range(basis.shape[1])]
        return column.astype(np.float64)[:, None], [factor.name]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {
            'formula': str(self),
            'levels': {k: list(v) for k, v in self.levels.items()},
            'knots': {k: list(v) for k, v in self.knots.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Design:
        """Return what :meth:`to_dict` gave."""
        return cls(
            parse_formula(content['formula']),
            {k: tuple(map(str, v)) for k, v in content['levels'].items()},
            {k: tuple(map(float, v)) for k, v in content['knots'].items()},
        )

    def __str__(self) -> str:
        return ' + '.join(':'.join(map(str, term)) for term in self.terms)


EMPTY = Design((), {}, {})


def check_rank(onehot: Floats, matrix: Floats, names: Sequence[str]) -> None:
    """Refuse what is to be kept where it cannot be told from the sites, or from what else is kept.

    Parameters
    ----------
    onehot
        Which site each row is from, shape (rows, sites).
    matrix, names
        Of :meth:`Design.matrix`.

    Raises
    ------
    UsageError
        If there are too few rows, or a column depends on the sites or the columns before it.
    """
    rows, columns = len(matrix), onehot.shape[1] + matrix.shape[1]
    if matrix.shape[1] and rows <= columns:
        raise UsageError(
            f'{rows} rows are too few for {onehot.shape[1]} sites and {matrix.shape[1]} columns to keep.',
            where='--keep', fix='Keep fewer columns, or fit on more rows.',
        )  # fmt: skip
    basis = onehot / np.sqrt(np.maximum(onehot.sum(axis=0), 1))
    for index, name in enumerate(names):
        column = matrix[:, index]
        spread = column - column.mean()
        size = float(np.linalg.norm(spread))
        if size <= _SINGULAR * max(float(np.linalg.norm(column)), 1e-300):
            raise _singular(f'"{name}" is the same in every row')
        sites_left = _left(spread, basis[:, : onehot.shape[1]])
        if np.linalg.norm(sites_left) <= _SINGULAR * size:
            raise _singular(
                f'"{name}" cannot be told from the sites: it is the same in all rows of each site, or follows from the site'
            )
        left = _left(_left(spread, basis), basis)
        if np.linalg.norm(left) <= _SINGULAR * size:
            raise _singular(f'"{name}" follows from the sites and the other kept columns')
        basis = np.column_stack([basis, left / np.linalg.norm(left)])


def _left(column: Floats, basis: Floats) -> Floats:
    return column - basis @ (basis.T @ column)


def _singular(what: str) -> UsageError:
    return UsageError(
        f'{what}, so its effect cannot be kept.',
        where='--keep',
        fix='Leave the column away, or add rows that tell them apart.',
    )


def _column(name: str, covariates: Mapping[str, Column]) -> Column:
    if name not in covariates:
        known = ', '.join(covariates) or 'none'
        raise UsageError(f'There is no column "{name}".', where='--keep', fix=f'There are: {known}.')
    return covariates[name]


def _resolved(factor: Factor, covariates: Mapping[str, Column]) -> Factor:
    """Return a factor with words as categories."""
    column = _column(factor.name, covariates)
    if column.dtype.kind == 'f':
        return factor
    if factor.kind == 'smooth':
        raise UsageError(f'"{factor.name}" holds words, so it has no smooth curve.', where='--keep')
    row = odd_cell(column.tolist())
    if factor.kind != 'category' and row is not None:
        raise UsageError(
            f'"{factor.name}" holds numbers, and "{column[row]}".', where='--keep',
            fix=f'Write a number there, or n/a; or C({factor.name}) if the numbers are names of groups.',
        )  # fmt: skip
    return Factor(factor.name, 'category')


def is_number(cell: str) -> bool:
    """Say whether a cell of a table is a finite number; what Python alone takes for one is a word."""
    try:
        return '_' not in cell and cell.isascii() and math.isfinite(float(cell))
    except ValueError:
        return False


def odd_cell(cells: Sequence[str]) -> int | None:
    """Return the row of the first word (an age of "89+") in a column whose cells are numbers for the most part; None where they are not."""
    words = [row for row, cell in enumerate(cells) if cell and not is_number(cell)]
    return words[0] if words and 2 * len(words) < sum(map(bool, cells)) else None


def words_of(column: Column) -> NDArray[np.str_]:
    """Return a column as words; 1.0 and 1 are one level, and missing ones are empty."""
    if column.dtype.kind != 'f':
        return column.astype(str)
    return np.array([f'{value:.12g}' if np.isfinite(value) else '' for value in column], dtype=str)


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return np.inf, text


def _knots(column: Column, functions: int, factor: Factor) -> tuple[float, ...]:
    """Return knots at quantiles, as ``statsmodels.gam`` places them."""
    distinct = np.unique(column).size
    if functions <= DEGREE or distinct < functions:
        raise UsageError(
            f'{factor} needs {max(functions, DEGREE + 1)} different values and has {distinct}.',
            where='--keep', fix=f'Set fewer functions (--set functions={DEGREE + 1} or more), or keep the column as it is.',
        )  # fmt: skip
    inner = np.quantile(column, np.linspace(0, 1, functions - DEGREE + 1)[1:-1])
    low, high = float(column.min()), float(column.max())
    # Where many rows share a value, knots would meet.
    inner = np.unique(inner[(inner > low) & (inner < high)])
    return (*[low] * (DEGREE + 1), *map(float, inner), *[high] * (DEGREE + 1))


def _basis(column: Column, knots: Sequence[float]) -> Floats:
    from scipy.interpolate import BSpline

    inside = np.clip(column, knots[0], knots[-1])
    return np.asarray(BSpline.design_matrix(inside, np.asarray(knots), DEGREE).toarray())


def _bending(knots: Sequence[float]) -> Floats:
    """Return the integral of the products of second derivatives of all B-splines but the first."""
    from scipy.interpolate import BSpline

    grid = np.asarray(knots)
    edges = np.unique(grid)
    places, weights = np.polynomial.legendre.leggauss(3)  # exact for squares of lines
    half = np.diff(edges)[:, None] / 2
    x = (half * places + (edges[1:] + edges[:-1])[:, None] / 2).ravel()
    functions = BSpline(grid, np.eye(len(grid) - DEGREE - 1), DEGREE).derivative(2)(x)[:, 1:]
    return np.asarray(functions.T @ (functions * (half * weights).ravel()[:, None]))
