"""The page and the table about a group: what differed between sites before, and what still does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from bidsharm.evaluation.verdict import meaning_of
from bidsharm.reports import plots
from bidsharm.reports.subject import (
    MEASURES,
    UNKNOWN,
    VERDICTS,
    ErrorEntry,
    checks_of,
    level_of,
    margin,
    overall,
    render,
    words_of,
)

#: Above this many scans the heat map shows sites instead (or the scans farthest from the others).
MATRIX_LIMIT = 40
NO_SITE = 'no site given'
_TISSUES = (
    ('volume_gm_ml', 'Grey matter'),
    ('volume_wm_ml', 'White matter'),
    ('volume_csf_ml', 'Cerebrospinal fluid'),
)
_CONTRASTS = {
    'T1w': 'T1-weighted image',
    'T2w': 'T2-weighted image',
    'FLAIR': 'Fluid-attenuated inversion recovery image',
    'PDw': 'Proton density-weighted image',
}
_LEVELS = {
    'pass': 'Every check is within its limits',
    'warn': 'At least one check is beyond its warning limit: look at the scan',
    'fail': 'At least one check is beyond its failure limit',
}


@dataclass(frozen=True)
class Separation:
    """Mean Wasserstein distances between scans, in units of the pooled range of intensities.

    Parameters
    ----------
    between, within
        Mean over the pairs from different sites, and from the same site; None where there is no such pair.
    """

    between: float | None
    within: float | None

    @property
    def ratio(self) -> float | None:
        """Between divided by within."""
        return self.between / self.within if self.between is not None and self.within else None


@dataclass(frozen=True)
class FeatureVariant:
    """How much sites differ in the features after one way of harmonization.

    Parameters
    ----------
    name
        The way.
    share
        What the sites explain of the median feature, from 0 to 1.
    accuracy, chance
        How well a classifier tells the site, and how well guessing does.
    """

    name: str
    share: float | None
    accuracy: float | None
    chance: float | None


@dataclass(frozen=True)
class FeatureComparison:
    """Images harmonized, features harmonized, both, and neither.

    Parameters
    ----------
    contrast, method
        What was measured, and the method for tables.
    variants
        One a way; none where it was impossible.
    link
        Page of the harmonized table.
    warnings
        Sentences that a reader of the table must see.
    message
        Why it was impossible.
    held_out
        Whether the method for tables had not seen the rows that it is judged on.
    """

    contrast: str
    method: str
    variants: tuple[FeatureVariant, ...] = ()
    link: str = ''
    warnings: tuple[str, ...] = ()
    message: str = ''
    held_out: bool = False


def write_group_report(
    out_file: Path,
    *,
    scans: Sequence[Mapping[str, Any]],
    failed: Sequence[ErrorEntry] = (),
    title: str = 'Harmonization across sites',
    provenance: Mapping[str, str] | None = None,
    report_links: Mapping[str, str] | None = None,
    features: Sequence[FeatureComparison] = (),
) -> Path:
    """Write the page about all subjects.

    Parameters
    ----------
    out_file
        The HTML file; it appears whole or not at all.
    scans
        What was measured on each scan, and its verdict.
    failed
        Scans that have no harmonized image, and why.
    title
        Heading of the page.
    provenance
        What made the results.
    report_links
        Relative link to the subject's page, by subject label (without ``sub-``).
    features
        What a method for tables did to the features, by contrast.

    Returns
    -------
    pathlib.Path
        ``out_file``.
    """
    done = {str(qc.get('scan')) for qc in scans}
    lost = len({error.scan for error in failed if error.scan} - done)
    why = f'{"has" if lost == 1 else "have"} no harmonized image'  # it may not have been run yet
    level, sentence = overall([str(qc.get('verdict')) for qc in scans], lost, why)
    ordered = sorted(scans, key=concern)
    rows = [_row(qc, report_links or {}) for qc in ordered]
    counts = Counter(str(qc.get('contrast') or 'unknown contrast') for qc in scans)
    contrasts = sorted(counts, key=lambda name: (-counts[name], name))
    sites = sorted({site_of(qc) for qc in scans}, key=_natural)
    return render(
        out_file,
        'group.html.j2',
        title=title,
        level=level,
        sentence=sentence,
        concerns=[row for row in rows if row['level'] != 'pass'],
        passed=[row for row in rows if row['level'] == 'pass'],
        contrasts=[
            contrast_view(
                name, [qc for qc in scans if str(qc.get('contrast') or 'unknown contrast') == name], sites
            )
            for name in contrasts
        ],
        features=[_features_view(one) for one in features],
        errors=failed,
        provenance=dict(provenance or {}),
    )


def _features_view(one: FeatureComparison) -> dict[str, Any]:
    def percent(value: float | None) -> str:
        return 'n/a' if value is None else f'{plots.number(100 * value, 2)} %'

    rows = [(v.name, percent(v.share), percent(v.accuracy), percent(v.chance)) for v in one.variants]
    return {
        'contrast': one.contrast,
        'method': one.method,
        'rows': rows,
        'link': one.link,
        'warnings': one.warnings,
        'message': one.message,
        'held_out': one.held_out,
    }


def site_of(qc: Mapping[str, Any]) -> str:
    """Return the site of a scan, or the words for none."""
    return str(qc.get('site') or NO_SITE)


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts scanner-2 before scanner-10."""
    return [(int(part), '') if part.isdecimal() else (0, part) for part in re.split(r'(\d+)', text)]


def _checks(qc: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    checks = qc.get('checks')
    return [c for c in checks if isinstance(c, Mapping)] if isinstance(checks, (list, tuple)) else []


def concern(qc: Mapping[str, Any]) -> tuple[int, float, str]:
    """Return the key that sorts scans by concern: the verdict, then the smallest margin, then the name."""
    rank = VERDICTS.get(level_of(qc.get('verdict')), UNKNOWN)[0]
    # A scan that nobody could judge is a greater concern than one that passed.
    rank = 1 if rank == UNKNOWN[0] else rank
    return rank, min((margin(check) for check in _checks(qc)), default=float('inf')), str(qc.get('scan'))


def _row(qc: Mapping[str, Any], links: Mapping[str, str]) -> dict[str, Any]:
    checks = checks_of(qc)
    level = level_of(qc.get('verdict'))
    worst = [check for check in checks if check['concern']]
    nearest = min(checks, key=lambda check: check['margin'], default=None)
    reasons = [f'{check["label"]}: {check["value"]}, {check["crossed"]}' for check in worst]
    if level == 'pass' and nearest is not None and nearest['margin'] < float('inf'):
        reasons = [f'Nearest to a limit: {nearest["label"]}, {nearest["value"]} ({nearest["passes"]})']
    return {
        'scan': qc.get('scan') or 'unnamed scan',
        'link': safe_link(links.get(str(qc.get('subject')), '')),
        'contrast': qc.get('contrast') or '',
        'site': site_of(qc),
        'level': level,
        'words': words_of(level),
        'reasons': reasons,
    }


def safe_link(link: str) -> str:
    """Return a relative link, quoted; empty for anything that could leave the folder of the page."""
    path = str(link).replace('\\', '/')
    if (
        not path
        or path.startswith('/')
        or re.match(r'\s*[a-zA-Z][a-zA-Z0-9+.-]*:', path)
        or '..' in path.split('/')
    ):
        return ''
    return quote(path, safe='/._-')


def quantile_table(scans: Sequence[Mapping[str, Any]], which: str) -> NDArray[np.float64]:
    """Return the 101 percentiles of scans on one scale.

    Parameters
    ----------
    scans
        Scans that have percentiles.
    which
        ``before`` divides each scan by its own 90th percentile, because a scanner's units are arbitrary;
        ``after`` leaves the harmonized units.

    Returns
    -------
    numpy.ndarray
        Shape (scans, 101), in units of the median over scans of the 1st to 99th percentile range.
    """
    table = np.empty((len(scans), 101))
    for row, qc in enumerate(scans):
        quantiles = plots.quantiles_of(qc, which)
        gain = plots.p90_of(qc, 'before') if which == 'before' else 1.0
        table[row] = np.nan if quantiles is None or gain is None else quantiles / gain
    spread = float(np.median(table[:, 99] - table[:, 1])) if len(scans) else 1.0
    return table / spread if spread > 0 else table


def wasserstein_matrix(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 1-Wasserstein distance of each pair of quantile functions: their mean absolute difference.

    Parameters
    ----------
    table
        Shape (scans, 101).

    Returns
    -------
    numpy.ndarray
        Shape (scans, scans).
    """
    distances = np.empty((len(table), len(table)))
    for row, quantiles in enumerate(table):
        distances[row] = np.abs(table - quantiles).mean(axis=1)
    return distances


def classical_mds(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project points of which only distances are known onto a plane (Torgerson's classical scaling).

    Parameters
    ----------
    distances
        Shape (n, n), symmetric.

    Returns
    -------
    numpy.ndarray
        Shape (n, 2), centred; each axis points to where its largest coordinate is positive.
    """
    count = len(distances)
    centre = np.eye(count) - 1.0 / max(count, 1)
    values, vectors = np.linalg.eigh(-0.5 * centre @ distances**2 @ centre)
    points = np.zeros((count, 2))
    for axis, index in enumerate(np.argsort(values)[::-1][:2]):
        vector = vectors[:, index] * np.sign(vectors[np.argmax(np.abs(vectors[:, index])), index])
        points[:, axis] = vector * np.sqrt(max(values[index], 0.0))
    return points


def separation(distances: NDArray[np.float64], sites: Sequence[str]) -> Separation:
    """Return the mean distance of scans between and within sites.

    Parameters
    ----------
    distances
        Shape (n, n).
    sites
        Site of each scan.
    """
    label = np.array(sites, dtype=object)
    same = label[:, None] == label[None, :]
    upper = np.triu(np.ones(distances.shape, bool), 1)
    between, within = distances[upper & ~same], distances[upper & same]
    return Separation(
        float(between.mean()) if between.size else None, float(within.mean()) if within.size else None
    )


def separation_message(before: Separation, after: Separation) -> str:
    """Return what harmonization did to the distance between sites, in plain words with numbers."""
    if before.between is None or after.between is None:
        return 'All scans come from one site, so there is no difference between sites to judge.'

    def percent(share: float) -> str:
        return f'{plots.number(100 * share, 2)} %'

    text = (
        f'On average, two scans from different sites were {percent(before.between)} of the range of intensities '
        f'apart before, and are {percent(after.between)} apart after.'
    )
    if before.within is None or after.within is None:
        return (
            f'{text} No site has two scans, so how much of it is the people and not the scanner is unknown.'
        )
    text += f' Two scans from the same site were {percent(before.within)} apart, and are {percent(after.within)} apart.'
    excess = before.between - before.within, after.between - after.within
    if excess[0] <= 0:
        return f'{text} The sites did not differ by more than people do, before harmonization either.'
    if excess[1] <= 0:
        return f'{text} After harmonization, sites differ no more than people at one site do.'
    gone = 1 - excess[1] / excess[0]
    if abs(gone) < 0.01:
        return f'{text} Harmonization left the difference between sites as it was.'
    if gone < 0:
        return f'{text} Harmonization made the difference between sites larger.'
    return f'{text} Of the difference that sites added, {percent(gone)} is gone.'


def contrast_view(name: str, scans: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> dict[str, Any]:
    """Gather what the template shows of one contrast; ``sites`` are those of all contrasts, so that colours agree."""
    scans = sorted(scans, key=lambda qc: (sites.index(site_of(qc)), str(qc.get('scan'))))
    known = [
        qc
        for qc in scans
        if plots.quantiles_of(qc, 'before') is not None
        and plots.quantiles_of(qc, 'after') is not None
        and plots.p90_of(qc, 'before') is not None
    ]
    matrices = {which: wasserstein_matrix(quantile_table(known, which)) for which in ('before', 'after')}
    labels = [site_of(qc) for qc in known]
    parts = {which: separation(matrix, labels) for which, matrix in matrices.items()}
    message = separation_message(parts['before'], parts['after']) if len(known) > 1 else ''
    return {
        'name': name,
        'scans': len(scans),
        'sites': [
            (site, index, sum(site_of(qc) == site for qc in scans)) for index, site in enumerate(sites)
        ],
        'left_out': len(scans) - len(known),
        'message': message,
        'tiles': _tiles(parts) if len(known) > 1 else [],
        'densities': _density_plots(scans, sites),
        'matrices': _matrix_plots(matrices, known, labels) if len(known) > 1 else [],
        'projections': _projections(matrices, known, labels, sites) if len(known) > 2 else [],
        'volumes': _volume_plots(scans, sites),
    }


def _tiles(parts: Mapping[str, Separation]) -> list[dict[str, str]]:
    def percent(value: float | None) -> str:
        return 'n/a' if value is None else f'{plots.number(100 * value, 2)} %'

    before, after = parts['before'], parts['after']
    rows = (
        ('Distance between sites', percent(before.between), percent(after.between)),
        ('Distance within a site', percent(before.within), percent(after.within)),
        ('Between divided by within', plots.number(before.ratio, 2), plots.number(after.ratio, 2)),
    )
    return [
        {'label': label, 'before': old, 'after': new}
        for label, old, new in rows
        if (old, new) != ('n/a', 'n/a')
    ]


def _density_plots(scans: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> list[tuple[str, Markup]]:
    figures = []
    for which, label in (
        ('before', 'Intensity divided by the 90th percentile'),
        ('after', 'Intensity (harmonized scale)'),
    ):
        curves: dict[str, list[plots.Pairs]] = {site: [] for site in sites}
        for qc in scans:
            curve, gain = (
                plots.density_of(qc, which),
                plots.p90_of(qc, 'before') if which == 'before' else 1.0,
            )
            if curve is not None and gain is not None:
                curves[site_of(qc)].append((curve[0] / gain, curve[1] * gain))
        peaks = [
            f'{site} {plots.number(float(np.mean([x[int(np.argmax(y))] for x, y in own])), 2)}'
            for site, own in curves.items()
            if own
        ]
        svg = plots.densities_svg(
            curves,
            title=f'Intensities by site, {which} harmonization',
            label=label,
            message=f'Mean position of the highest peak: {", ".join(peaks)}.',
        )
        if svg:
            figures.append((which.capitalize(), svg))
    return figures


def _by_site(matrix: NDArray[np.float64], labels: Sequence[str], sites: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean distance of each pair of sites; on the diagonal within the site."""
    label = np.array(labels, dtype=object)
    table = np.full((len(sites), len(sites)), np.nan)
    for row, one in enumerate(sites):
        for column, other in enumerate(sites):
            block = matrix[np.ix_(label == one, label == other)]
            pairs = block[~np.eye(len(block), dtype=bool)] if row == column else block
            table[row, column] = pairs.mean() if pairs.size else np.nan
    return table


def _matrix_plots(
    matrices: Mapping[str, NDArray[np.float64]], scans: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> list[tuple[str, Markup]]:
    names, groups = [str(qc.get('scan')) for qc in scans], list(labels)
    shown = dict(matrices)
    sites = list(dict.fromkeys(labels))
    what = 'scans'
    if len(scans) > MATRIX_LIMIT and 1 < len(sites) <= MATRIX_LIMIT:
        shown = {which: _by_site(matrix, labels, sites) for which, matrix in matrices.items()}
        names, groups, what = sites, sites, 'sites'
    elif len(scans) > MATRIX_LIMIT:
        farthest = np.sort(np.argsort(matrices['after'].mean(axis=1))[::-1][:MATRIX_LIMIT])
        shown = {which: matrix[np.ix_(farthest, farthest)] for which, matrix in matrices.items()}
        names, groups = [names[i] for i in farthest], [groups[i] for i in farthest]
        what = f'the {MATRIX_LIMIT} scans farthest from the others'
    top = max(float(np.nanmax(matrix, initial=0.0)) for matrix in shown.values())
    figures = []
    for which, matrix in shown.items():
        mean = plots.number(
            np.nanmean(matrix[np.triu_indices(len(matrix), 1)]) if len(matrix) > 1 else None, 2
        )
        svg = plots.matrix_svg(
            matrix,
            names,
            groups,
            top=top,
            title=f'Distances between {what}, {which} harmonization',
            message=f'Mean distance {mean}, largest {plots.number(np.nanmax(matrix), 2)}, in units of the range.',
        )
        figures.append((which.capitalize(), svg))
    return figures


def _projections(
    matrices: Mapping[str, NDArray[np.float64]],
    scans: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    sites: Sequence[str],
) -> list[tuple[str, Markup]]:
    points = {which: classical_mds(matrix) for which, matrix in matrices.items()}
    largest = 1.15 * np.max([np.abs(plane).max(axis=0) for plane in points.values()], axis=0)
    limits = (float(largest[0]) or 1.0, float(largest[1]))
    figures = []
    for which, plane in points.items():
        centres = np.array([plane[[label == site for label in labels]].mean(axis=0) for site in set(labels)])
        apart = float(np.linalg.norm(centres[:, None] - centres[None], axis=2).max())
        message = (
            f'{len(plane)} scans of {len(centres)} {"site" if len(centres) == 1 else "sites"}; the two sites '
            f'farthest apart have their centres {plots.number(apart, 2)} apart.'
            if len(centres) > 1
            else f'{len(plane)} scans of one site.'
        )
        svg = plots.projection_svg(
            plane,
            labels,
            [str(qc.get('scan')) for qc in scans],
            sites=sites,
            limits=limits,
            title=f'Scans by likeness, {which} harmonization',
            message=message,
        )
        figures.append((which.capitalize(), svg))
    return figures


def _measure(qc: Mapping[str, Any], which: str, key: str) -> float | None:
    measures = qc.get('measures')
    part = measures.get(which) if isinstance(measures, Mapping) else None
    return plots.finite(part.get(key)) if isinstance(part, Mapping) else None


def _median(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return plots.number(float(np.median(known)) if known else None)


def _volume_plots(scans: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> list[tuple[str, Markup]]:
    figures = []
    for key, tissue in _TISSUES:
        values = {
            site: [
                (_measure(qc, 'before', key), _measure(qc, 'after', key), str(qc.get('scan')))
                for qc in scans
                if site_of(qc) == site
            ]
            for site in dict.fromkeys(site_of(qc) for qc in scans)
        }
        medians = [
            f'{site} {_median(e[0] for e in entries)} before and {_median(e[1] for e in entries)} after'
            for site, entries in values.items()
        ]
        svg = plots.strip_svg(
            values,
            sites=sites,
            title=f'{tissue} by site',
            unit='mL',
            message=f'Median volumes in mL: {"; ".join(medians)}.',
        )
        if svg:
            figures.append((tissue, svg))
    return figures


def group_table(scans: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return one flat row per scan, and the BIDS data dictionary of the columns.

    Parameters
    ----------
    scans
        What was measured on each scan.

    Returns
    -------
    rows
        All with the same columns in the same order, ``participant_id`` first; ``n/a`` where a value is missing.
    data_dictionary
        Description, Units and Levels by column, ready for JSON.
    """
    dictionary = _identity_columns(scans)
    for qc in scans:
        for check in _checks(qc):
            dictionary.setdefault(f'check_{_column(check.get("name"))}', _check_column(check))
    for which, words in (('before', 'before'), ('after', 'after')):
        for key, label, unit, meaning in MEASURES:
            entry = {
                'LongName': f'{label}, {words}',
                'Description': f'{meaning[:-1]}, {words} harmonization.',
            }
            dictionary[f'{which}_{key}'] = {**entry, 'Units': unit} if unit else entry
    dictionary.update(_change_columns(scans))
    rows = []
    for qc in sorted(scans, key=lambda qc: str(qc.get('scan'))):
        cells = _cells(qc)
        rows.append({column: cells.get(column, 'n/a') for column in dictionary})
    return rows, dictionary


def _column(name: Any) -> str:
    """Return a name that is safe as a column of a TSV file."""
    return re.sub(r'\W+', '_', str(name), flags=re.ASCII).strip('_').lower() or 'unnamed'


def _identity_columns(scans: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    titles: dict[str, str] = {}
    for qc in scans:
        harmonizer = qc.get('harmonizer')
        if isinstance(harmonizer, Mapping) and harmonizer.get('name'):
            titles[str(harmonizer['name'])] = str(harmonizer.get('title') or harmonizer['name'])
    contrasts = sorted({str(qc['contrast']) for qc in scans if qc.get('contrast')})
    return {
        'participant_id': {'Description': 'Participant, as in participants.tsv.'},
        'session_id': {'Description': 'Session; n/a where the data set has none.'},
        'scan': {'Description': 'Name of the scan without its extension.'},
        'contrast': {
            'Description': 'BIDS suffix of the scan.',
            'Levels': {name: _CONTRASTS.get(name, name) for name in contrasts},
        },
        'site': {'Description': 'Site or scanner that the scan comes from.'},
        'harmonizer': {'Description': 'Harmonization method.', 'Levels': titles},
        'target': {'Description': 'What the scan was harmonized to.'},
        'verdict': {'Description': 'The worst verdict over all checks.', 'Levels': dict(_LEVELS)},
    }


def _check_column(check: Mapping[str, Any]) -> dict[str, Any]:
    # What a record says of a check may be about that scan alone.
    meaning = meaning_of(str(check.get('name'))) or str(
        check.get('meaning') or check.get('label') or check.get('name')
    )
    relation = 'above' if check.get('direction') == 'max' else 'below'
    limits = ' and '.join(
        f'{verb} {relation} {plots.short_number(check.get(key)).replace(chr(0x2212), "-")}'
        for key, verb in (('warn', 'warns'), ('fail', 'fails'))
        if plots.finite(check.get(key)) is not None
    )
    entry = {
        'LongName': str(check.get('label') or check.get('name')),
        'Description': f'{meaning} The check {limits}.' if limits else meaning,
    }
    return {**entry, 'Units': str(check['unit'])} if check.get('unit') else entry


def _change_columns(scans: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    known = {
        'p95_abs': '95th percentile over the brain of the absolute change beyond the best linear map, as a share of the range.',
        'share_changed': 'Share of the voxels of the brain that changed by more than 5 % of the range beyond the best linear map.',
    }
    found = dict(known)
    for qc in scans:
        measures = qc.get('measures')
        change = measures.get('change') if isinstance(measures, Mapping) else None
        for key in change if isinstance(change, Mapping) else ():
            found.setdefault(key, f'Change between before and after: {key}.')
    return {f'change_{_column(key)}': {'Description': text} for key, text in found.items()}


def _cells(qc: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known cells of one scan."""
    harmonizer = qc.get('harmonizer')
    harmonizer = harmonizer if isinstance(harmonizer, Mapping) else {}
    cells: dict[str, Any] = {
        'participant_id': f'sub-{_text(qc.get("subject"))}' if qc.get('subject') else None,
        'session_id': f'ses-{_text(qc.get("session"))}' if qc.get('session') else None,
        'scan': qc.get('scan'),
        'contrast': qc.get('contrast'),
        'site': qc.get('site'),
        'harmonizer': harmonizer.get('name'),
        'target': harmonizer.get('target'),
        'verdict': qc.get('verdict'),
    }
    cells = {column: _text(value) for column, value in cells.items() if value not in (None, '')}
    for check in _checks(qc):
        value = plots.finite(check.get('value'))
        if value is not None:
            cells[f'check_{_column(check.get("name"))}'] = value
    measures = qc.get('measures')
    for which in ('before', 'after', 'change'):
        part = measures.get(which) if isinstance(measures, Mapping) else None
        for key in part if isinstance(part, Mapping) else ():
            value = _measure(qc, which, key)
            if value is not None:
                cells[f'{which}_{_column(key) if which == "change" else key}'] = value
    return cells


def _text(value: Any) -> str:
    """Return a text that cannot break a TSV file."""
    return re.sub(r'[\t\r\n]+', ' ', str(value)).strip()
