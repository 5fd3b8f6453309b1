"""The page about predictions: how good they are at each site, and whether the features that they are made from tell the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from bidsharm.evaluation.probe import Probe
from bidsharm.evaluation.tasks import Judged, Measure, SiteScores
from bidsharm.reports import plots
from bidsharm.reports.subject import render

Kind = str
#: Scans that the table lists.
LISTED = 500
_NAMES = {
    'mae': 'Mean absolute error',
    'bias': 'Bias',
    'r2': 'R²',
    'balanced_accuracy': 'Balanced accuracy',
    'auc': 'AUC',
    'dice': 'Dice, mean',
}


def write_task_report(
    out_file: Path,
    rows: Sequence[Judged],
    scores: Sequence[SiteScores],
    *,
    kind: Kind,
    task: str,
    classes: Sequence[str],
    method: str,
    probe: Probe | None,
    embeddings: NDArray[np.float64],
    held_out: bool,
    labelled: Sequence[str],
    warnings: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write the page.

    Parameters
    ----------
    out_file
        Where to; it appears whole or not at all.
    rows, scores
        Predictions, and how good they are: over all first, then at each site.
    kind, task, classes
        What was predicted.
    method
        Name of the method.
    probe
        How well the site can be told from the features; None where that cannot be asked.
    embeddings
        Features by the model that is kept, shape (rows, E).
    held_out
        Whether each scan was predicted by networks that had not seen its person.
    labelled
        Sites whose answers were learnt from.
    warnings
        Sentences that a reader must see.
    provenance
        What made the results.
    """
    sites = [row.site for row in scores if row.site]
    return render(
        out_file, 'task.html.j2', title=f'{"Segmentation" if kind == "segmentation" else "Prediction of " + task}',
        sentence=f'{method}: {len(rows)} scans of {scores[0].people} people at {len(sites)} {"site" if len(sites) == 1 else "sites"}',
        messages=[_message(scores[0], kind), *([] if probe is None else [_probe_message(probe)])], warnings=list(warnings),
        sites=[(site, index) for index, site in enumerate(sites)], table=_score_table(scores, labelled, probe), held_out=held_out,
        plot=_plot(rows, kind, classes, sites, task), plot_title=_plotted(kind, task)[0], probe=_probe_plot(probe), projection=_projection(rows, embeddings, sites),
        heads=_heads(kind, classes), listed=[_listed(row, kind, classes) for row in rows[:LISTED]], not_listed=max(len(rows) - LISTED, 0),
        provenance=dict(provenance or {}),
    )  # fmt: skip


def _message(overall: SiteScores, kind: Kind) -> str:
    name = {'regression': 'mae', 'classification': 'balanced_accuracy', 'segmentation': 'dice'}[kind]
    found = overall.measures[name]
    if found.value is None:
        return 'Nobody knows what is true of these scans, so predictions are not judged.'
    return f'{_NAMES[name]} {_with_interval(found)}, over {overall.known} scans whose truth is known.'


def _probe_message(probe: Probe) -> str:
    assert probe.accuracy is not None
    words = 'can be told' if (probe.p or 1) < 0.05 else 'cannot be told with certainty'
    return f'The site {words} from the features: balanced accuracy {probe.accuracy:.2f}, guessing {1 / probe.sites:.2f}.'


def _with_interval(one: Measure) -> str:
    if one.value is None:
        return '–'
    limits = f' ({plots.number(one.interval.low)} to {plots.number(one.interval.high)})' if one.interval else ''  # fmt: skip
    return plots.number(one.value) + limits


def _score_table(
    scores: Sequence[SiteScores], labelled: Sequence[str], probe: Probe | None
) -> dict[str, Any]:
    names = list(scores[0].measures)
    return {
        'heads': [*(_NAMES.get(name) or f'Dice of {name.removeprefix("dice_")}' for name in names), 'Site told'],
        'rows': [
            {
                'site': row.site or 'All', 'scans': row.scans, 'people': row.people, 'known': row.known,
                'learnt': '' if not row.site or not labelled else ('yes' if row.site in labelled else 'no'),
                'cells': [*(_with_interval(row.measures[name]) for name in names), _told(row.site, probe)],
            }
            for row in scores
        ],
    }  # fmt: skip


def _told(site: str, probe: Probe | None) -> str:
    value = None if probe is None else probe.recall.get(site) if site else probe.accuracy
    return '–' if value is None else f'{value:.2f}'


def _plot(
    rows: Sequence[Judged], kind: Kind, classes: Sequence[str], sites: Sequence[str], task: str
) -> Markup:
    """Return errors, probabilities of the truth, or overlaps by site."""
    found: dict[str, list[tuple[float | None, float | None, str]]] = {site: [] for site in sites}
    for row in rows:
        found[row.site].append((None, plots.finite(_quality(row, kind, classes)), row.name))
    if not any(value is not None for some in found.values() for _, value, _ in some):
        return Markup('')
    title, unit = _plotted(kind, task)
    return plots.strip_svg(found, sites=list(sites), title=title, unit=unit, message=f'{title} of each scan, by site.')  # fmt: skip


def _plotted(kind: Kind, task: str) -> tuple[str, str]:
    """Return what the plot shows, and its unit."""
    return {
        'regression': (f'Predicted {task} less the true one', ''),
        'classification': ('Probability of the true class', ''),
        'segmentation': ('Dice, mean over classes', ''),
    }[kind]


def _quality(row: Judged, kind: Kind, classes: Sequence[str]) -> float | None:
    if kind == 'regression':
        return None if row.truth is None else row.value - float(row.truth)
    if kind == 'classification':
        return None if row.truth is None else row.shares[list(classes).index(str(row.truth))]
    known = [value for value in row.dice.values() if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _probe_plot(probe: Probe | None) -> Markup:
    if probe is None or probe.accuracy is None:
        return Markup('')
    return plots.forest_svg(
        {'features': (probe.accuracy, probe.interval, ())}, title='How well a classifier tells the site',
        label='balanced accuracy; strokes: chance, and its upper limit',
        message=f'Balanced accuracy {probe.accuracy:.2f}; chance {probe.chance or 0:.2f}.',
        lines={'features': [v for v in (probe.chance, probe.chance_high) if v is not None]},
    )  # fmt: skip


def _projection(rows: Sequence[Judged], embeddings: NDArray[np.float64], sites: Sequence[str]) -> Markup:
    """Return the features on their first two principal axes."""
    if len(rows) < 3 or not embeddings.size:
        return Markup('')
    centred = embeddings - embeddings.mean(axis=0)
    _, strengths, axes = np.linalg.svd(centred, full_matrices=False)
    if len(axes) < 2 or not strengths[1] > 0:
        return Markup('')
    points = centred @ axes[:2].T
    limits = float(np.abs(points[:, 0]).max()) * 1.1, float(np.abs(points[:, 1]).max()) * 1.1
    share = float((strengths[:2] ** 2).sum() / (strengths**2).sum())
    return plots.projection_svg(
        points, [row.site for row in rows], [row.name for row in rows], sites=list(sites), limits=limits, title='Features, first two axes',
        message=f'The two axes hold {share:.0%} of the variance.',
    )  # fmt: skip


def _heads(kind: Kind, classes: Sequence[str]) -> list[str]:
    if kind == 'regression':
        return ['Truth', 'Predicted', 'Difference']
    if kind == 'classification':
        return ['Truth', *(f'p({name})' for name in classes)]
    return [*(f'{name}, ml' for name in classes), *(f'Dice of {name}' for name in classes)]


def _listed(row: Judged, kind: Kind, classes: Sequence[str]) -> dict[str, Any]:
    if kind == 'regression':
        known = None if row.truth is None else float(row.truth)
        cells = [known, row.value, None if known is None else row.value - known]
    elif kind == 'classification':
        cells = [*row.shares]
    else:
        cells = [*(row.volumes.get(name) for name in classes), *(row.dice.get(name) for name in classes)]
    numbers = ['–' if (value := plots.finite(cell)) is None else plots.number(value) for cell in cells]
    words = [str(row.truth) if row.truth is not None else '–'] if kind == 'classification' else []
    return {'name': row.name, 'site': row.site, 'fold': row.fold + 1 if row.fold >= 0 else '–', 'cells': [*words, *numbers]}  # fmt: skip
