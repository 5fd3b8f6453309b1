"""Harmonize a table of features, judge that, and write what it makes: for ``bidsharm-table`` and for the group level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm import __version__
from bidsharm.bids.feature_tables import (
    Choice,
    TextTable,
    check_columns,
    feature_table,
    harmonized_text,
    out_path,
    read_participants_table,
    read_table,
    write_harmonized,
)
from bidsharm.bids.sites import UNKNOWN_SITE
from bidsharm.errors import UsageError
from bidsharm.evaluation.probe import Probe
from bidsharm.evaluation.table_measures import SiteEffects, TableMeasures, measure_table
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import Execution, Site
from bidsharm.harmonizers.design import columns_of, parse_formula
from bidsharm.harmonizers.table import FeatureTable, HarmonizedTable, TableHarmonizer
from bidsharm.reports.group import FeatureComparison, FeatureVariant
from bidsharm.reports.table import write_table_report
from bidsharm.settings import Settings

#: Measures of the group tables that are harmonized: not those in the units of one scanner.
GROUP_FEATURES = 'volume_*'
#: Of the sites, for the chance lines of the group's page.
GROUP_PERMUTATIONS = 100


@dataclass(frozen=True)
class Judgement:
    """How a harmonized table is judged.

    Parameters
    ----------
    held_out
        Judge rows that the fit has not seen.
    strict
        Refuse where that is impossible, as with very small sites, instead of judging the rows of the fit.
    seed, permutations
        Of folds and chance line.
    """

    held_out: bool = True
    strict: bool = False
    seed: int = 0
    permutations: int = 200


@dataclass(frozen=True)
class Result:
    """One table after its harmonization.

    Parameters
    ----------
    method
        As fitted.
    table, found
        What went in and what came out.
    warnings
        Of fit and harmonization.
    fitted
        Rows of the fit; None where the model was there before.
    keep
        Formula of the fit.
    """

    method: TableHarmonizer
    table: FeatureTable
    found: HarmonizedTable
    warnings: tuple[str, ...]
    fitted: FeatureTable | None = None
    keep: str = ''


def table_method(name: str) -> type[TableHarmonizer]:
    """Return the class of a method for tables.

    Raises
    ------
    UsageError
        If there is no such method, or it is not for tables.
    """
    kind = registry.find(name)
    if issubclass(kind, TableHarmonizer):
        return kind
    ours = [n for n in registry.available() if registry.card(n).domain == 'table']
    raise UsageError(
        f'"{name}" harmonizes no tables of features.', where='--harmonizer', fix=f'Choose {", ".join(ours)}.'
    )


def fit_and_harmonize(
    method: TableHarmonizer, table: FeatureTable, fitted: FeatureTable, *, target: str, keep: str, seed: int
) -> Result:
    """Fit a method on some rows, and harmonize all."""
    report = method.fit(fitted, target=Site(target) if target else None, keep=keep, seed=seed)
    found = method.harmonize(table)
    said = (*report.details['warnings'], *found.warnings)
    return Result(method, table, found, tuple(dict.fromkeys(said)), fitted, keep)


def measured(result: Result, judgement: Judgement) -> TableMeasures:
    """Judge the rows that were harmonized.

    Raises
    ------
    UsageError
        If the judgement is strict and cannot be had.
    """
    if judgement.held_out and not judgement.strict:
        try:
            return measured(result, replace(judgement, strict=True))
        except UsageError:
            return measured(result, replace(judgement, held_out=False))
    used = ~result.found.left
    rows = result.table.take(used)
    matrix, names = result.method.design.matrix({**rows.covariates, '': rows.values[:, 0]})
    return measure_table(
        rows.values, result.found.values[used], rows.sites, rows.people, matrix, names,
        refit=_refit(result, rows, judgement.seed) if judgement.held_out else None,
        seed=judgement.seed, permutations=judgement.permutations,
    )  # fmt: skip


def _refit(
    result: Result, rows: FeatureTable, seed: int
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]] | None:
    """Return what fits the same method on some rows; None where nothing was fitted."""
    if result.fitted is None:
        return None
    method, fitted = result.method, set(result.fitted.keys)

    def again(train: NDArray[np.int64]) -> NDArray[np.float64]:
        chosen = rows.take(np.array([index for index in train if rows.keys[index] in fitted], dtype=np.int64))
        new = type(method)(method.execution, method.settings)
        try:
            new.fit(chosen, target=method.target, keep=result.keep, seed=seed)
            return new.harmonize(rows).values
        except UsageError as error:
            raise UsageError(
                f'Rows that a fit has not seen cannot be judged: in one of five parts: {error.what}', where='--judge',
                fix='Judge the table as it is with --judge fitted.',
            ) from error  # fmt: skip

    return again


def write_result(
    table: TextTable, path: Path, result: Result, measures: TableMeasures, *, digest: str, seed: int = 0
) -> None:
    """Write a harmonized table, its dictionary and its page.

    Parameters
    ----------
    table
        As it was read.
    path
        Of the new table.
    result, measures
        What was done, and how it is judged.
    digest
        Of the bundle of the model.
    seed
        Of the fit.
    """
    method, rows, found = result.method, result.table, result.found
    facts = _facts(table, result, digest, seed)
    left = {name for name, no in zip(method.features, method.left_features(), strict=True) if no}
    record = {
        **facts,
        'RowsLeft': [rows.keys[i] for i in found.left.nonzero()[0]],
        'Warnings': list(result.warnings),
    }
    text = harmonized_text(table, rows.features, rows.values, found.values)
    write_harmonized(table, path, text, [name for name in method.features if name not in left], record)
    used = ~found.left
    write_table_report(
        path.with_suffix('.html'), measures, title=table.path.name, method=method.card.name, features=rows.features,
        before=rows.values[used], after=found.values[used], labels=_some(rows.sites, used),
        names=_some(rows.keys, used), warnings=result.warnings,
        provenance={name: _plain(value) for name, value in facts.items()},
    )  # fmt: skip


def _facts(table: TextTable, result: Result, digest: str, seed: int) -> dict[str, Any]:
    """Return what was done."""
    method = result.method
    left = method.left_features()
    return {
        'Method': method.card.name,
        'Paper': f'{method.card.paper}{f" (doi:{method.card.doi})" if method.card.doi else ""}',
        'Target': method.target.label if method.reference is not None else 'the mean of all sites',
        'Kept': str(method.design) or 'nothing',
        'Settings': asdict(method.settings),
        'Features': list(method.features),
        'FeaturesLeft': sorted(name for name, no in zip(method.features, left, strict=True) if no),
        'Sites': list(method.sites),
        'FittedRows': len(result.fitted.keys) if result.fitted is not None else 'another table',
        'Table': table.path.name,
        'ModelDigest': digest,
        'Seed': seed,
        'bidsharm': __version__,
    }


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{key}={item}' for key, item in value.items()) or 'none'
    return ', '.join(map(str, value)) or 'none' if isinstance(value, list) else str(value)


def _some(items: Sequence[str], rows: NDArray[np.bool_]) -> list[str]:
    return [item for item, there in zip(items, rows, strict=True) if there]


# --- Group level ---


def harmonize_group_table(settings: Settings, path: Path, contrast: str) -> FeatureComparison:
    """Harmonize the volumes in a group table, beside what the images' harmonization did to them.

    Parameters
    ----------
    settings
        With ``table_harmonizer`` and ``table_keep``.
    path
        The group table; the harmonized one, its dictionary, page and model are written beside it.
    contrast
        What it is about.

    Raises
    ------
    UsageError
        If the formula names a column that there is not.
    """
    table, people = read_table(path), settings.bids_dir / 'participants.tsv'
    kept = columns_of(parse_formula(settings.table_keep))
    try:
        participants = read_participants_table(people) if kept and people.is_file() else None
        known = (*table.columns, *(participants.columns if participants else ()))
        check_columns('--table-keep', kept, known)
        choice = Choice(('site',), kept, participants=participants)
        before, after = (
            _of_group(settings, table, replace(choice, features=(f'{which}_{GROUP_FEATURES}',)))
            for which in ('before', 'after')
        )
    except UsageError as error:
        if error.where == '--table-keep':
            raise
        # The scans of one contrast may be too few, or a table of people broken: the rest of the page is made all the same.
        message = 'No volumes were measured.' if error.where == '--features' else error.what
        return FeatureComparison(contrast, settings.table_harmonizer, message=message)
    judgement = Judgement(before.method.quick, seed=settings.random_seed, permutations=GROUP_PERMUTATIONS)
    raw, both = measured(before, judgement), measured(after, judgement)
    out = out_path(table, path.parent)
    digest = bundle.save_anew(
        after.method, path.parent / 'models' / f'{path.stem}_{settings.table_harmonizer}'
    )
    write_result(table, out, after, both, digest=digest, seed=settings.random_seed)
    name = settings.table_harmonizer
    variants = (
        _variant('neither', raw.before, raw.probe_before),
        _variant(f'features only ({name})', raw.after, raw.probe_after),
        _variant('images only', both.before, both.probe_before),
        _variant(f'images, then features ({name})', both.after, both.probe_after),
    )
    return FeatureComparison(
        contrast, name, variants, out.with_suffix('.html').name, tuple(after.warnings), held_out=raw.held_out and both.held_out,
    )  # fmt: skip


def _of_group(settings: Settings, table: TextTable, choice: Choice) -> Result:
    rows = feature_table(table, choice)
    rows = replace(rows, sites=tuple('' if site == UNKNOWN_SITE else site for site in rows.sites))
    kind = table_method(settings.table_harmonizer)
    method = kind(Execution(seed=settings.random_seed))
    return fit_and_harmonize(
        method, rows, rows, target='', keep=settings.table_keep, seed=settings.random_seed
    )


def _variant(name: str, effects: SiteEffects, probe: Probe | None) -> FeatureVariant:
    known = effects.shares[np.isfinite(effects.shares)]
    return FeatureVariant(
        name,
        float(np.median(known)) if known.size else None,
        probe.accuracy if probe else None,
        probe.chance if probe else None,
    )
