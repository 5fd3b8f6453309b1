"""The contract for tables: rows of features with the site of each, in and out.

A cell without a number stays without one, and is not learnt from. A row that cannot be harmonized (no site, a site that was not fitted, no
value of a kept column) is left as it is and named; so is a feature that does not vary. No number becomes NaN.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ConfigurationError, MissingNeed, UsageError
from bidsharm.harmonizers.contract import (
    NEED_PHRASES,
    Canonical,
    Execution,
    FitReport,
    HarmonizationMethod,
    Progress,
    Site,
    Target,
)
from bidsharm.harmonizers.design import EMPTY, Column, Design, Floats, check_rank, parse_formula
from bidsharm.harmonizers.presets import changed_preset

#: Names in a sentence before the rest is counted.
_NAMED = 5
#: Sites with fewer rows than this get a word of caution.
FEW_ROWS = 10
#: Spread as a share of the size of a feature below which it counts as constant.
CONSTANT = 1e-9


@dataclass(frozen=True)
class FeatureTable:
    """Features of scans or visits, one a row.

    Parameters
    ----------
    values
        Shape (rows, features), float64; NaN where a feature is missing, never infinite.
    features
        Name of each column, all different.
    sites
        Site of each row; empty where it is not known.
    keys
        Name of each row, for messages.
    people
        Who each row is of; by default everybody has one row.
    covariates
        Other columns by name: float64 with NaN where missing, or words that are empty where missing.
    """

    values: Floats
    features: tuple[str, ...]
    sites: tuple[str, ...]
    keys: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    covariates: Mapping[str, Column] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64, ndmin=2)
        rows = len(self.sites)
        object.__setattr__(self, 'values', values)
        object.__setattr__(self, 'keys', tuple(self.keys) or tuple(f'row {i + 1}' for i in range(rows)))
        object.__setattr__(self, 'people', tuple(self.people) or self.keys)
        if values.shape != (rows, len(self.features)) or not values.size:
            raise UsageError(
                f'The table has the shape {values.shape}, with {rows} sites and {len(self.features)} names of features.'
            )
        lengths = {len(self.keys), len(self.people), *(len(column) for column in self.covariates.values())}
        if lengths != {rows}:
            raise UsageError('Rows, names, people and covariates of the table differ in number.')
        if len(set(self.features)) != len(self.features):
            raise UsageError('Two features of the table have the same name.')
        if np.isinf(values).any():
            row, column = np.argwhere(np.isinf(values))[0]
            raise UsageError(
                f'"{self.features[column]}" of {self.keys[row]} is infinite.', fix='Write n/a for what is missing.'
            )  # fmt: skip

    def take(self, rows: NDArray[Any]) -> FeatureTable:
        """Return some of the rows, by number or by a mask."""
        index = np.arange(len(self.sites))[rows]
        return replace(
            self,
            values=self.values[index],
            sites=tuple(self.sites[i] for i in index),
            keys=tuple(self.keys[i] for i in index),
            people=tuple(self.people[i] for i in index),
            covariates={name: column[index] for name, column in self.covariates.items()},
        )

    @property
    def offers(self) -> frozenset[str]:
        """Keys of ``NEED_PHRASES`` that the table satisfies."""
        known = {site for site in self.sites if site}
        offers = {'table', 'cohort'}
        if known:
            offers.add('site')
        if len(known) > 1:
            offers.add('two_sites')
        if len(set(self.people)) < len(self.people):
            offers.add('visits')
        return frozenset(offers)


@dataclass(frozen=True)
class HarmonizedTable:
    """A harmonized table.

    Parameters
    ----------
    values
        Shape (rows, features), as in the table that went in; NaN only where a cell was missing.
    left
        Rows that were left as they are, shape (rows,), bool.
    warnings
        Sentences that a reader of the table must see.
    details
        Numbers worth recording, JSON types only.
    """

    values: Floats
    left: NDArray[np.bool_]
    warnings: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NoSettings:
    """Settings of a method that has none."""


class TableHarmonizer(HarmonizationMethod):
    """A harmonization method for tables of features.

    ``harmonize`` depends on nothing but the instance and the table, so new rows of known sites get what was learnt from others.
    Subclasses write :meth:`learn` and :meth:`apply` for rows that are complete but for missing cells.
    """

    Settings: ClassVar[type[Any]] = NoSettings
    #: Settings with which a fit takes seconds.
    tiny: ClassVar[Mapping[str, Any]] = {}
    #: Whether what is kept may hold smooth curves.
    smooth: ClassVar[bool] = False
    #: Whether a fit takes so little time that it can be repeated to judge rows that it has not seen.
    quick: ClassVar[bool] = True

    def __init__(self, execution: Execution | None = None, settings: Any = None) -> None:
        super().__init__(execution)
        self.settings = settings if settings is not None else self.Settings()
        self.features: tuple[str, ...] = ()
        self.sites: tuple[str, ...] = ()
        self.target: Target = Canonical()
        self.design = EMPTY

    @classmethod
    def preset(cls, name: str = 'paper', **changes: Any) -> Any:
        """Return settings by name (``paper`` or ``tiny``), with some of them changed.

        Raises
        ------
        UsageError
            For an unknown name, setting or value.
        """
        return changed_preset(cls.Settings(), name, cls.tiny, changes, method=cls.card.name)

    # --- Fit ---

    def fit(
        self,
        table: FeatureTable,
        *,
        target: Target | None = None,
        keep: str = '',
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FitReport:
        """Learn what differs between the sites of a table.

        Parameters
        ----------
        table
            Rows of all sites; those without a site or a kept column are not learnt from.
        target
            :class:`Canonical` for the mean of all sites, or a site that the others are brought to.
        keep
            Formula of what the features are meant to depend on, see :mod:`bidsharm.harmonizers.design`.
        seed, progress
            For methods that are trained.

        Returns
        -------
        FitReport
            Names of the rows; ``details['warnings']`` holds sentences that a reader must see.

        Raises
        ------
        MissingNeed
            If the table does not offer what the card says is needed.
        UsageError
            If the formula cannot be had from these rows, or the target is no site of them.
        """
        terms = parse_formula(keep)
        self._check_formula(keep, terms)
        warnings: list[str] = []
        used = self._complete(table, Design(terms, {}, {}), warnings)
        self._check_needs(used)
        self.features, self.sites = table.features, tuple(sorted(set(used.sites)))
        self.target = target or Canonical()
        self._check_target()
        functions = getattr(self.settings, 'functions', 0)
        self.design = Design.learn(terms, used.covariates, functions)
        matrix, names = self.design.matrix({**used.covariates, '': np.zeros(len(used.sites))})
        check_rank(self.onehot(used.sites), matrix, names)
        counts = {site: used.sites.count(site) for site in self.sites}
        few = [
            f'{site} ({count} {"row" if count == 1 else "rows"})'
            for site, count in counts.items()
            if count < FEW_ROWS
        ]
        if few:
            warnings.append(
                f'Sites with fewer than {FEW_ROWS} rows are harmonized with little certainty: {some(few)}.'
            )
        warnings += self.learn(used, matrix, seed=seed, progress=progress)
        return FitReport(used.keys, {'warnings': warnings, 'sites': counts})

    @abstractmethod
    def learn(
        self, table: FeatureTable, matrix: Floats, *, seed: int, progress: Progress | None
    ) -> list[str]:
        """Learn from complete rows, with what is kept as numbers; return sentences that a reader must see."""

    @abstractmethod
    def apply(self, table: FeatureTable, matrix: Floats) -> Floats:
        """Return the features of rows whose sites were fitted; what it returns for missing cells does not matter."""

    def left_features(self) -> NDArray[np.bool_]:
        """Return which features the method leaves as they are, shape (features,)."""
        return np.zeros(len(self.features), dtype=bool)

    # --- Harmonize ---

    def harmonize(self, table: FeatureTable) -> HarmonizedTable:
        """Return the table as if its target had measured it.

        Parameters
        ----------
        table
            Rows of sites that were fitted; other rows are left as they are, and named in a warning.

        Raises
        ------
        MissingNeed
            If the method was not fitted.
        UsageError
            If a feature or a column that is kept is not in the table.
        """
        if not self.sites:
            raise MissingNeed(
                f'{self.card.name} was not fitted.', fix='Fit it on a table, or load its bundle.'
            )
        order = self._order(table)
        warnings: list[str] = []
        there = self._usable(table, self.design, warnings, self.sites)
        for name, count in self.design.outside(table.covariates).items():
            warnings.append(
                f'{counted(count, "row")} beyond the values of "{name}" that were fitted got the effect at their end.'
            )
        values = table.values.copy()
        if there.any():
            rows = table.take(there)
            rows = replace(rows, values=rows.values[:, order], features=self.features)
            matrix, _ = self.design.matrix({**rows.covariates, '': np.zeros(len(rows.sites))})
            found = self.apply(rows, matrix)
            keep = np.isnan(rows.values) | self.left_features()
            values[np.ix_(there, order)] = np.where(keep, rows.values, found)
        return HarmonizedTable(values, ~there, tuple(warnings))

    def onehot(self, sites: Sequence[str]) -> Floats:
        """Return which fitted site each row is from, shape (rows, sites)."""
        return (np.asarray(sites)[:, None] == np.asarray(self.sites)[None]).astype(np.float64)

    def site_index(self, sites: Sequence[str]) -> NDArray[np.int64]:
        """Return the number of the fitted site of each row."""
        return np.array([self.sites.index(site) for site in sites], dtype=np.int64)

    @property
    def reference(self) -> int | None:
        """The number of the site that the others are brought to; None for the mean of all."""
        return self.sites.index(self.target.name) if isinstance(self.target, Site) else None

    # --- State ---

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return what was learned; subclasses add their arrays."""
        return {}, {
            'features': list(self.features),
            'sites': list(self.sites),
            'target': self.target.label if isinstance(self.target, Site) else '',
            'design': self.design.to_dict(),
            'settings': asdict(self.settings),
        }

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take back what :meth:`state` returned."""
        del arrays
        self.settings = self.preset(**settings['settings'])
        self.features, self.sites = tuple(settings['features']), tuple(settings['sites'])
        self.target = Site(settings['target']) if settings['target'] else Canonical()
        if isinstance(self.target, Site) and self.target.name not in self.sites:
            raise ConfigurationError('The target of the bundle is none of its sites.')
        self.design = Design.from_dict(settings['design'])

    # --- Checks ---

    def _check_formula(self, keep: str, terms: Sequence[Any]) -> None:
        curved = any(factor.kind == 'smooth' for term in terms for factor in term)
        if curved and not self.smooth:
            raise UsageError(
                f'{self.card.name} keeps no smooth curves, and s() is one.', where='--keep',
                fix='Choose --harmonizer combat-gam, or keep the column as it is.',
            )  # fmt: skip
        if 'kept' in self.card.needs_fit and not terms:
            raise MissingNeed(
                f'{self.card.name} needs {NEED_PHRASES["kept"]}.',
                where='--keep',
                fix='For example --keep "age + C(sex)".',
            )
        if self.smooth and not curved:
            raise UsageError(
                f'{self.card.name} needs a smooth term.', where='--keep',
                fix=f'Write s(column) in the formula{f" ({keep})" if keep else ""}, or choose --harmonizer combat.',
            )  # fmt: skip

    def _check_needs(self, table: FeatureTable) -> None:
        missing = [
            need
            for need in self.card.needs_fit
            if need not in table.offers and need in ('two_sites', 'visits')
        ]
        if missing:
            sites = sorted(set(table.sites))
            raise MissingNeed(
                f'{self.card.name} needs {NEED_PHRASES[missing[0]]}; the {counted(len(table.sites), "row")} that can be used '
                f'{"has" if len(table.sites) == 1 else "have"} {some(sites) or "no site"}.'
                if missing[0] == 'two_sites'
                else f'{self.card.name} needs {NEED_PHRASES[missing[0]]}; everybody has one row.',
                fix='See --site.' if missing[0] == 'two_sites' else 'Choose --harmonizer combat.',
            )

    def _check_target(self) -> None:
        if isinstance(self.target, Site) and self.target.name not in self.sites:
            raise UsageError(
                f'There is no site "{self.target.name}".', where='--reference', fix=f'There are: {some(self.sites)}.',
            )  # fmt: skip

    def _complete(self, table: FeatureTable, design: Design, warnings: list[str]) -> FeatureTable:
        """Return the rows that can be learnt from, and say which cannot."""
        said: list[str] = []
        there = self._usable(table, design, said)
        warnings += [sentence.replace('left as it is', 'not learnt from') for sentence in said]
        if not there.any():
            raise MissingNeed(
                f'No row can be learnt from. {" ".join(said)}', fix='See --site, --keep and --participants.'
            )
        return table.take(there)

    def _usable(
        self,
        table: FeatureTable,
        design: Design,
        warnings: list[str],
        sites: Sequence[str] | None = None,
    ) -> NDArray[np.bool_]:
        """Return the rows with a site (one of ``sites``) and all kept columns, and say which others there are."""
        labels = np.asarray(table.sites, dtype=str)
        reasons = {'no site': labels == ''}
        if sites is not None:
            for site in sorted(set(table.sites) - set(sites) - {''}):
                reasons[f'site "{site}", which was not fitted'] = labels == site
        if self.design is design:
            without = design.missing(table.covariates)
        else:
            without = {name: _absent(name, table.covariates) for name in design.columns}
        reasons |= {f'no value of "{name}" that can be used': rows for name, rows in without.items()}
        there = np.ones(len(labels), dtype=bool)
        for reason, rows in reasons.items():
            if (rows & there).any():
                who = [table.keys[i] for i in np.flatnonzero(rows & there)]
                warnings.append(
                    f'{counted(len(who), "row")} with {reason} {"is" if len(who) == 1 else "are"} left as it is: {some(who)}.'
                )
            there &= ~rows
        return there

    def _order(self, table: FeatureTable) -> NDArray[np.int64]:
        """Return where each fitted feature is in a table."""
        absent = [name for name in self.features if name not in table.features]
        if absent:
            raise UsageError(
                f'The table lacks features that were fitted: {some(absent)}.',
                fix='Give a table with the same columns, or fit anew.',
            )
        return np.array([table.features.index(name) for name in self.features], dtype=np.int64)


def _absent(name: str, covariates: Mapping[str, Column]) -> NDArray[np.bool_]:
    """Return which rows lack a value."""
    if name not in covariates:
        known = ', '.join(covariates) or 'none'
        raise UsageError(f'There is no column "{name}".', where='--keep', fix=f'There are: {known}.')
    column = covariates[name]
    return np.asarray(~np.isfinite(column) if column.dtype.kind == 'f' else column == '')


def some(names: Sequence[str]) -> str:
    """Return the first names for a sentence, and how many more there are."""
    shown = ', '.join(names[:_NAMED])
    return f'{shown} and {len(names) - _NAMED} more' if len(names) > _NAMED else shown


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'
