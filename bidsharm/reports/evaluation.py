"""The page of an evaluation: which method does what, how sure that is, and what could not be measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bidsharm.evaluation.catalogue import COMPARED, METRICS, Metric
from bidsharm.evaluation.comparisons import Results
from bidsharm.evaluation.group_measures import Value
from bidsharm.evaluation.intervals import Interval
from bidsharm.evaluation.models import MethodTable
from bidsharm.evaluation.study import ORIGINAL
from bidsharm.reports import plots
from bidsharm.reports.subject import ErrorEntry, render

#: Columns of the first table: what matters most, in this order, as far as it could be measured.
OVERVIEW = (
    'psnr', 'ssim', 'mae', 'wasserstein', 'transfer_dice', 'transfer_gm_r', 'ravd_gm', 'lesion_kept', 'new_edges',
    'reidentification', 'icc_agreement_gm', 'site_linear', 'site_cnn', 'age_r',
)  # fmt: skip
#: Measures that get a plot.
PLOTTED = (
    'psnr', 'ssim', 'mae', 'transfer_dice', 'gradient_ncc', 'ravd_gm', 'lesion_kept', 'new_edges', 'identity_error',
)  # fmt: skip
#: What a method must not remove goes next to what it should.
BESIDE = (('site_linear', 'site_cnn'), ('age_r', 'group_d', 'transfer_gm_r', 'volume_r_gm'))
_FEW = 5


@dataclass(frozen=True)
class Cell:
    """A number of a table.

    Parameters
    ----------
    text
        The number.
    detail
        Its interval or chance line.
    best
        Whether it is the best of its column.
    """

    text: str
    detail: str = ''
    best: bool = False


def write_evaluation_report(
    out_file: Path, results: Results, *, people: int, scanners: int, provenance: Mapping[str, str]
) -> Path:
    """Write the page.

    Parameters
    ----------
    out_file
        Where to.
    results
        What was found.
    people, scanners
        How many there were.
    provenance
        What was evaluated, and with what; shown as a list.
    """
    names = [name for name in OVERVIEW if _known(results, name)]
    return render(
        out_file,
        'evaluation.html.j2',
        title='Harmonization methods compared',
        sentence=_counted(len([m for m in results.methods if m != ORIGINAL]), people, scanners),
        messages=messages(results, people),
        overview=_table(results, names),
        plots=[
            (METRICS[name].label, _plot(results, METRICS[name])) for name in PLOTTED if _known(results, name)
        ],
        beside=[
            [(METRICS[n].label, _plot(results, METRICS[n])) for n in part if _known(results, n)]
            for part in BESIDE
        ],
        comparisons=_comparisons(results),
        against=results.against,
        harmless=_harmless(results),
        everything=_table(results, [name for name in METRICS if _known(results, name)]),
        metrics=METRICS,
        missing=_missing(results),
        errors=[ErrorEntry(_where(p.scan, p.method), p.what, p.where, p.fix) for p in results.problems],
        provenance=provenance,
    )


def messages(results: Results, people: int) -> list[str]:
    """Return what the numbers say, in sentences that do not say more."""
    said = []
    for name in ('psnr', 'transfer_dice'):
        best = _best(results, name)
        if best is not None:
            said.append(f'{METRICS[name].label} is best after {best}{_evidence(results, name, best)}.')
    if people < _FEW:
        said.append(
            f'{_count(people, "person", "people")} are too few for intervals, and for most tests: '
            'differences between neighbours in the tables are no evidence.'
        )
    return said


def _evidence(results: Results, name: str, best: str) -> str:
    """Return whether the best method differs from the one that all are compared with."""
    table = results.tables.get(name)
    if table is None:
        return ''
    if best == results.against:
        shown = [method for method in table.against if _differs(table, method) == 'differs']
        return f', from which {len(shown)} of {_count(len(table.against), "other", "others")} are shown to differ'
    if best not in table.against:
        return ''
    signed, t = table.holm_wilcoxon.get(best), table.holm_t.get(best)
    if signed is None or t is None:
        return f'; not tested against {results.against}: {table.against[best].reason or "too few people"}'
    how = f'Holm-corrected p = {_p(signed)} by the signed-rank test, {_p(t)} by the paired t test'
    return f', and {_differs(table, best)} from {results.against} ({how})'


def _differs(table: MethodTable, method: str) -> str:
    """Say whether a method differs from the one that all are compared with: both tests have to find it."""
    signed, t = table.holm_wilcoxon.get(method), table.holm_t.get(method)
    shown = signed is not None and t is not None and max(signed, t) < 0.05
    return 'differs' if shown else 'is not shown to differ'


def _best(results: Results, name: str) -> str | None:
    """Return the method with the best value, None where several share it; a method that was measured in fewer people than others is none."""
    metric, most = METRICS[name], _most(results, name)
    found: dict[str, tuple[float, str]] = {}
    for method in results.methods:
        value = results.values.get(method, {}).get(name)
        if value is not None and math.isfinite(value.estimate) and value.n == most:
            cost = _cost(results, name, method, value.estimate)
            found[method] = cost, plots.number(cost if metric.better == 'one' else value.estimate)
    if len(found) < 2 or not metric.better:
        return None
    best = min(found, key=lambda method: found[method][0])
    return None if [text for _, text in found.values()].count(found[best][1]) > 1 else best


def _cost(results: Results, name: str, method: str, estimate: float) -> float:
    """Return what is lower for better methods; where 1 is best, the mean distance of scans from it, and not that of their mean."""
    by_person = results.by_person(name, method, costs=True) if METRICS[name].better == 'one' else {}
    return sum(by_person.values()) / len(by_person) if by_person else METRICS[name].cost(estimate)


def _most(results: Results, name: str) -> int:
    """Return the largest number of people (or scans) that a measure rests on, over methods."""
    return max((row[name].n for row in results.values.values() if name in row), default=0)


def _known(results: Results, name: str) -> bool:
    return any(math.isfinite(row[name].estimate) for row in results.values.values() if name in row)


# --- Tables ---


def _table(results: Results, names: Sequence[str]) -> dict[str, Any]:
    """Return a table of methods (rows) and measures (columns)."""
    best = {name: _best(results, name) for name in names}
    most = {name: _most(results, name) for name in names}
    rows = []
    for method in results.methods:
        values = results.values.get(method, {})
        cells = [_cell(values.get(n), best=best[n] == method, most=most[n]) for n in names]
        rows.append((method, cells))
    return {'columns': [METRICS[name] for name in names], 'rows': rows}


def _cell(value: Value | None, *, best: bool, most: int) -> Cell:
    if value is None or math.isnan(value.estimate):
        return Cell('–')
    detail = _range(value.interval)
    if value.chance is not None:
        detail = f'{detail}; chance {plots.number(value.chance)}'.removeprefix('; ')
    if value.n < most:
        detail = f'{detail}; n = {value.n}, not {most}'.removeprefix('; ')
    return Cell('∞' if math.isinf(value.estimate) else plots.number(value.estimate), detail, best)


def _range(interval: Interval | None) -> str:
    return '' if interval is None else f'{plots.number(interval.low)} to {plots.number(interval.high)}'


def _comparisons(results: Results) -> list[dict[str, str]]:
    rows = []
    for name in COMPARED:
        table = results.tables.get(name)
        for method in results.methods if table else ():
            found = table.against.get(method) if table else None
            if table is None or found is None:
                continue
            rows.append({
                'metric': METRICS[name].label, 'method': method, 'n': str(found.n),
                'difference': plots.number(found.mean_difference),
                'interval': _range(found.mean_interval) or '–',
                'dz': plots.number(found.dz) if found.dz is not None else '–', 'dz_interval': _range(found.dz_interval),
                't': _p(table.holm_t.get(method)), 'wilcoxon': _p(table.holm_wilcoxon.get(method)),
            })  # fmt: skip
    return rows


def _harmless(results: Results) -> list[dict[str, str]]:
    rows = []
    for name, by_method in results.harmless.items():
        for method, one in by_method.items():
            rows.append({
                'metric': METRICS[name].label, 'method': method, 'margin': plots.number(one.margin),
                'n': f'{one.n} of {one.n + one.left_out}' if one.left_out else str(one.n),
                'difference': plots.number(one.difference) if one.difference is not None else '–',
                'p': _p(one.p_equivalence), 'verdict': one.equivalent, 'not_worse': one.noninferior,
            })  # fmt: skip
    return rows


def _missing(results: Results) -> list[tuple[str, list[str]]]:
    """Return what could not be measured for any method, by what it would need."""
    found: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        if not _known(results, name):
            reasons = {
                row[name].reason for row in results.values.values() if name in row and row[name].reason
            }
            found.setdefault('; '.join(sorted(reasons)) or f'needs {metric.needs}', []).append(metric.label)
    return sorted(found.items())


# --- Plots ---


def _plot(results: Results, metric: Metric) -> Markup:
    """Return the plot of one measure."""
    rows, lines = {}, {}
    for method in results.methods:
        value = results.values.get(method, {}).get(metric.name)
        if value is None or not math.isfinite(value.estimate):
            continue
        people = [v for v in results.by_person(metric.name, method).values() if math.isfinite(v)]
        rows[method] = (value.estimate, value.interval, people)
        lines[method] = [v for v in (value.chance, value.chance_high) if v is not None]
    better = {'higher': 'higher is better', 'lower': 'lower is better', 'one': '1 is best', '': ''}[
        metric.better
    ]
    if metric.name.startswith('site_'):
        better = 'strokes: chance, and its upper limit'
    label = ', '.join(filter(None, (metric.unit, better))) or metric.label
    message = '; '.join(f'{method}: {plots.number(row[0])}' for method, row in rows.items())
    return plots.forest_svg(rows, title=metric.label, label=label, message=message, lines=lines)


# --- Words ---


def _counted(methods: int, people: int, scanners: int) -> str:
    """Return how much was compared."""
    parts = [_count(methods, 'method', 'methods'), _count(people, 'person', 'people')]
    if scanners:
        parts.append(_count(scanners, 'scanner', 'scanners'))
    return ', '.join(parts)


def _count(number: int, one: str, many: str) -> str:
    return f'{number} {one if number == 1 else many}'


def _where(scan: str, method: str) -> str:
    return f'{scan}, {method}' if method else scan


def _p(value: float | None) -> str:
    if value is None:
        return '–'
    return '< 0.001' if value < 0.001 else f'{value:.3f}'
