"""The page about a harmonized table: sites before and after, and what was to be kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from bidsharm.evaluation.probe import Probe
from bidsharm.evaluation.table_measures import KeptEffect, TableMeasures
from bidsharm.reports import plots
from bidsharm.reports.subject import render

Floats = NDArray[np.float64]
#: Features that get a plot, and those that the tables show; the rest is counted.
PLOTTED, LISTED = 6, 300


def write_table_report(
    out_file: Path,
    measures: TableMeasures,
    *,
    title: str,
    method: str,
    features: Sequence[str],
    before: Floats,
    after: Floats,
    labels: Sequence[str],
    names: Sequence[str],
    warnings: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write the page.

    Parameters
    ----------
    out_file
        Where to; it appears whole or not at all.
    measures
        What was found.
    title, method
        Heading of the page, and the name of the method.
    features, before, after
        Names and numbers of the features, shape (rows, features).
    labels, names
        Site and name of each row.
    warnings
        Sentences that a reader of the table must see.
    provenance
        What made the results.
    """
    order = sorted(range(len(features)), key=lambda i: -_or_zero(float(measures.before.shares[i])))
    shown = order[:PLOTTED]
    return render(
        out_file,
        'table.html.j2',
        title=title,
        sentence=f'{method}: {len(features)} {"feature" if len(features) == 1 else "features"}, {len(labels)} rows, '
        f'{len(measures.sites)} {"site" if len(measures.sites) == 1 else "sites"}',
        messages=messages(measures),
        warnings=list(warnings),
        sites=[(site, index, list(labels).count(site)) for index, site in enumerate(measures.sites)],
        tiles=_tiles(measures),
        probe=_probe_plot(measures),
        held_out=measures.held_out,
        strips=[(features[i], _strip(features[i], i, before, after, labels, names, measures)) for i in shown],
        rows=[_row(i, features[i], measures) for i in order[:LISTED]],
        not_listed=max(len(features) - LISTED, 0),
        chance=_percent(measures.before.chance),
        kept=[_kept_row(effect) for effect in measures.kept],
        provenance=dict(provenance or {}),
    )


def messages(measures: TableMeasures) -> list[str]:
    """Return what the numbers say, in sentences that do not say more."""
    found = []
    old, new = measures.probe_before, measures.probe_after
    if old and new and old.accuracy is not None and new.accuracy is not None:
        text = (
            f'A linear classifier told the site of a row with a balanced accuracy of {_percent(old.accuracy)} before, and of '
            f'{_percent(new.accuracy)} after (guessing: {_percent(new.chance)}).'
        )
        if new.p is not None and new.p > 0.05:
            text += ' After harmonization that is no evidence that it can.'
        elif new.p is not None:
            text += (
                ' So it still can, though not as well.'
                if new.accuracy < old.accuracy
                else ' So it still can.'
            )
        found.append(text)
    elif reason := next((p.reason for p in (old, new) if p is not None and p.reason), ''):
        found.append(f'How well the site can be told is not known: {reason}.')
    shares = [_median(part.shares) for part in (measures.before, measures.after)]
    if None not in shares:
        found.append(
            f'In the median feature, sites explained {_percent(shares[0])} of what is not due to the kept columns before, and '
            f'{_percent(shares[1])} after.'
        )
    for effect in measures.kept[:3]:
        strength = [_strength(values) for values in (effect.before, effect.after)]
        if None not in strength:
            found.append(
                f'The median partial correlation of {effect.name} was {plots.number(strength[0], 2)} before and is '
                f'{plots.number(strength[1], 2)} after.'
            )
    return found


def _strength(values: Floats) -> float | None:
    known = np.abs(values[np.isfinite(values)])
    return float(np.median(known)) if known.size else None


def _percent(value: float | None) -> str:
    return 'n/a' if value is None or not math.isfinite(value) else f'{plots.number(100 * value, 2)} %'


def _or_zero(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _accuracy(probe: Probe | None) -> str:
    return _percent(probe.accuracy if probe else None)


def _median(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None


def _tiles(measures: TableMeasures) -> list[dict[str, str]]:
    before, after = measures.before, measures.after
    return [
        {
            'label': 'Site told by a classifier',
            'before': _accuracy(measures.probe_before),
            'after': _accuracy(measures.probe_after),
        },
        {
            'label': 'Explained by site, median feature',
            'before': _percent(_median(before.shares)),
            'after': _percent(_median(after.shares)),
        },
        {
            'label': 'Largest over smallest spread, median feature',
            'before': plots.number(_median(before.ratios), 3),
            'after': plots.number(_median(after.ratios), 3),
        },
    ]


def _probe_plot(measures: TableMeasures) -> Markup:
    pairs = {'before': measures.probe_before, 'after': measures.probe_after}
    known = {name: probe for name, probe in pairs.items() if probe is not None and probe.accuracy is not None}
    message = '; '.join(
        f'{name} {_percent(probe.accuracy)}, chance {_percent(probe.chance)}' for name, probe in known.items()
    )
    return plots.forest_svg(
        {name: (probe.accuracy, probe.interval, ()) for name, probe in known.items()},
        title='How well a classifier tells the site',
        label='balanced accuracy; strokes: chance, and its upper limit',
        message=f'Balanced accuracy {message}.',
        lines={
            name: [v for v in (probe.chance, probe.chance_high) if v is not None]
            for name, probe in known.items()
        },
    )  # fmt: skip


def _strip(
    feature: str, column: int, before: Floats, after: Floats, labels: Sequence[str], names: Sequence[str],
    measures: TableMeasures,
) -> Markup:  # fmt: skip
    values = {
        site: [
            (plots.finite(before[row, column]), plots.finite(after[row, column]), names[row])
            for row in range(len(labels))
            if labels[row] == site
        ]
        for site in measures.sites
    }
    means = '; '.join(
        f'{site} {plots.number(measures.before.means[i, column])} before and {plots.number(measures.after.means[i, column])} after'
        for i, site in enumerate(measures.sites)
    )
    return plots.strip_svg(
        values, sites=measures.sites, title=f'{feature} by site', unit='', message=f'Means: {means}.'
    )


def _row(index: int, feature: str, measures: TableMeasures) -> dict[str, Any]:
    def cells(which: str) -> list[str]:
        part = getattr(measures, which)
        return [
            f'{plots.number(mean, 4)} ± {plots.number(spread, 2)}' if math.isfinite(mean) else 'n/a'
            for mean, spread in zip(part.means[:, index], part.spreads[:, index], strict=True)
        ]

    return {
        'feature': feature,
        'share_before': _percent(float(measures.before.shares[index])),
        'share_after': _percent(float(measures.after.shares[index])),
        'before': cells('before'),
        'after': cells('after'),
    }


def _kept_row(effect: KeptEffect) -> dict[str, str]:
    known = np.isfinite(effect.before) & np.isfinite(effect.after)
    change = np.abs(effect.after - effect.before)[known]
    return {
        'name': effect.name,
        'before': plots.number(_strength(effect.before), 2),
        'after': plots.number(_strength(effect.after), 2),
        'change': plots.number(float(change.max()) if change.size else None, 2),
        'flipped': str(int(np.count_nonzero(effect.before[known] * effect.after[known] < 0))),
        'known': str(int(known.sum())),
    }
