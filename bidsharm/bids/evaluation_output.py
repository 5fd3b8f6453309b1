"""Tables of an evaluation: TSV with a JSON that says what the columns are, and one JSON with everything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bidsharm.bids.atomic import write_json, write_text
from bidsharm.errors import UsageError
from bidsharm.evaluation.catalogue import COMPARED, GROUP_METRICS, MARGINS, METRICS, SCAN_METRICS
from bidsharm.evaluation.comparisons import Results
from bidsharm.evaluation.intervals import Interval, joined
from bidsharm.evaluation.kept import ENDING
from bidsharm.evaluation.models import MethodTable
from bidsharm.evaluation.statistics import Equivalence
from bidsharm.temporary import clear_remains

PAGE = 'evaluation.html'
RECORD = 'evaluation.json'
TABLES = ('scans', 'summary', 'comparisons')
#: Folder for what was measured of each scan, while an evaluation is not at its end.
MEASURED = 'measured'
#: What an evaluation writes.
OURS = {PAGE, RECORD, MEASURED, *(f'{name}.{kind}' for name in TABLES for kind in ('tsv', 'json'))}

_WHERE = {
    'method': 'Data set, by the name that it was given',
    'scan': 'File name of the scan without description and extension',
    'person': 'Who was scanned',
    'scanner': 'Where',
}
_SUMMARY = {
    'method': _WHERE['method'],
    'metric': 'Measure: see the record',
    'estimate': 'Mean over people, or the measure of all scans',
    'low': 'Lower end of the 95 % interval',
    'high': 'Upper end of the 95 % interval',
    'n': 'People that it rests on',
    'chance': 'What guessing gives',
    'chance_high': '95 % quantile of guessing',
    'p': 'Of a permutation test against guessing, or of a correlation',
    'reason': 'Why something is missing, or what was left out',
}
_COMPARISONS = {
    'metric': 'Measure; of lesion_kept the distance from 1',
    'method': _WHERE['method'],
    'against': 'The method that it is compared with',
    'n': 'People with both',
    'left_out': 'People in whom the measure has no number after the method, so that no harm could be tested',
    'difference': 'Mean difference, method minus the other',
    'difference_low': 'Lower end of its 95 % bootstrap interval',
    'difference_high': 'Upper end of its 95 % bootstrap interval',
    'shift': 'Hodges-Lehmann shift',
    'shift_low': 'Lower end of its 95 % interval: by bootstrap, and of more than 100 people from the signed-rank test',
    'shift_high': 'Upper end of that interval',
    'dz': 'Cohen dz: mean difference over the standard deviation of the differences',
    'dz_low': 'Lower end of its 95 % bootstrap interval',
    'dz_high': 'Upper end of its 95 % bootstrap interval',
    'p_t': 'Paired t test',
    'p_wilcoxon': 'Wilcoxon signed-rank test',
    'p_t_holm': 'Paired t test, corrected over all methods and measures by Holm',
    'p_wilcoxon_holm': 'Signed-rank test, corrected likewise',
    'p_friedman': 'Friedman test over all methods',
    'mixed': 'Effect of the method against the other, in one linear model of all methods and people',
    'mixed_low': 'Lower end of its 95 % interval',
    'mixed_high': 'Upper end of its 95 % interval',
    'p_mixed': 't test of that effect, in the model that fitted_as names',
    'fitted_as': 'How that model was fitted. Subject intercepts: a linear mixed model with a random intercept of the person; '
    'fixed subjects: least squares with an effect of each person, where the former did not converge',
    'margin': 'Largest mean change that counts as no harm, if the measure has one',
    'change': 'Mean change of the measure itself against the scans before',
    'change_low': 'Lower end of its 90 % interval, which lies within the margin where no harm is shown at 0.05',
    'change_high': 'Upper end of its 90 % interval',
    'p_equivalence': 'Two one-sided tests: within the margin of the scans before',
    'p_noninferiority': 'One-sided test: not worse than the scans before by the margin',
    'equivalent': 'Verdict of the two one-sided tests at 0.05',
    'noninferior': 'Verdict of the one-sided test at 0.05',
    'reason': 'Why something is missing, or was done in another way',
}


def check_output(out: Path) -> None:
    """Refuse a folder that holds something else.

    Raises
    ------
    UsageError
        If anything is in it that no evaluation writes, or it cannot be made.
    """
    measured = out / MEASURED
    try:
        out.mkdir(parents=True, exist_ok=True)
        clear_remains([out, measured])
        others = {path.name for path in out.iterdir()} - OURS
        if measured.is_dir():
            others |= {path.name for path in measured.iterdir() if path.suffix != ENDING}
    except OSError as error:
        raise UsageError(f'The output folder cannot be made: {error.strerror}.', where=str(out)) from None
    if others:
        raise UsageError(
            'The output folder holds something else than an evaluation.',
            where=str(out),
            fix='Name an empty folder.',
        )


def write_tables(out: Path, results: Results) -> None:
    """Write ``scans``, ``summary`` and ``comparisons`` as TSV and JSON."""
    names = [m.name for m in SCAN_METRICS if any(m.name in row for row in results.scans)]
    described = {name: METRICS[name].meaning for name in names}
    _write(out / 'scans.tsv', results.scans, {**_WHERE, **described})
    _write(out / 'summary.tsv', summary_rows(results), _SUMMARY)
    _write(out / 'comparisons.tsv', comparison_rows(results), _COMPARISONS)


def write_record(out: Path, results: Results, provenance: Mapping[str, Any]) -> None:
    """Write one JSON with everything that the page shows."""
    write_json(
        out / RECORD,
        {
            'provenance': dict(provenance),
            'methods': list(results.methods),
            'against': results.against,
            'metrics': {name: asdict(metric) for name, metric in METRICS.items()},
            'summary': [_plain(row) for row in summary_rows(results)],
            'comparisons': [_plain(row) for row in comparison_rows(results)],
            'scans': [_plain(row) for row in results.scans],
            'problems': [asdict(problem) for problem in results.problems],
        },
    )


def summary_rows(results: Results) -> list[dict[str, Any]]:
    """Return one row a method and measure."""
    rows = []
    for method in results.methods:
        for metric in (*SCAN_METRICS, *GROUP_METRICS):
            value = results.values.get(method, {}).get(metric.name)
            if value is not None:
                low, high = value.interval or (None, None)
                rows.append({
                    'method': method, 'metric': metric.name, 'estimate': value.estimate, 'low': low, 'high': high,
                    'n': value.n, 'chance': value.chance, 'chance_high': value.chance_high, 'p': value.p,
                    'reason': value.reason,
                })  # fmt: skip
    return rows


def comparison_rows(results: Results) -> list[dict[str, Any]]:
    """Return one row a measure and method: differences, and tests of no harm."""
    rows = []
    for name in dict.fromkeys((*COMPARED, *MARGINS)):
        table, harmless = results.tables.get(name), results.harmless.get(name, {})
        for method in results.methods:
            parts = []
            if table is not None and method in table.against:
                parts.append(_difference(table, method))
            if method in harmless:
                parts.append(_no_harm(harmless[method]))
            if parts:
                # Of both tests the people of the difference are told.
                row = {**parts[-1], **parts[0], 'reason': joined([part['reason'] for part in parts])}
                rows.append({'metric': name, 'method': method, 'against': results.against, **row})
    return rows


def _difference(table: MethodTable, method: str) -> dict[str, Any]:
    found, effect = table.against[method], table.model.effects.get(method)
    note = f'model: {table.model.reason}' if table.model.reason else ''
    return {
        'n': found.n, 'difference': found.mean_difference, **_limits('difference', found.mean_interval),
        'shift': found.shift, **_limits('shift', found.shift_interval),
        'dz': found.dz, **_limits('dz', found.dz_interval), 'p_t': found.p_t, 'p_wilcoxon': found.p_wilcoxon,
        'p_t_holm': table.holm_t[method], 'p_wilcoxon_holm': table.holm_wilcoxon[method],
        'p_friedman': table.omnibus.p, 'mixed': effect.estimate if effect else None,
        **_limits('mixed', effect.interval if effect else None), 'p_mixed': effect.p if effect else None,
        'fitted_as': table.model.fitted_as, 'reason': joined([found.reason, note]),
    }  # fmt: skip


def _no_harm(found: Equivalence) -> dict[str, Any]:
    return {
        'n': found.n, 'left_out': found.left_out, 'margin': found.margin, 'change': found.difference, **_limits('change', found.interval),
        'p_equivalence': found.p_equivalence, 'p_noninferiority': found.p_noninferiority,
        'equivalent': found.equivalent, 'noninferior': found.noninferior,
        'reason': f'no harm: {found.reason}' if found.reason else '',
    }  # fmt: skip


def _limits(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f'{name}_low': low, f'{name}_high': high}


def _write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    lines = ['\t'.join(columns)]
    lines += ['\t'.join(_cell(row.get(name)) for name in columns) for row in rows]
    write_text(path, '\n'.join(lines) + '\n')
    write_json(path.with_suffix('.json'), {name: {'Description': text} for name, text in columns.items()})


def _cell(value: Any) -> str:
    """Return a value as BIDS tables have it."""
    if value is None or value == '' or (isinstance(value, float) and math.isnan(value)):
        return 'n/a'
    if isinstance(value, float):
        return f'{value:.6g}'
    return ' '.join(str(value).split())


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that JSON can hold; what is not finite becomes null or a word."""
    return {name: _number(value) for name, value in row.items()}


def _number(value: Any) -> Any:
    value = value.item() if hasattr(value, 'item') else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
