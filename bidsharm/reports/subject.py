"""The page about one subject: the verdict first, then the evidence, then how it was made.

One HTML file with everything inside it. Its content security policy forbids the network, and every text is escaped
by jinja2, so that a strange file name is shown rather than run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from bidsharm.evaluation.verdict import counts_against
from bidsharm.reports import plots
from bidsharm.temporary import atomic_path

_TEMPLATES = Path(__file__).parent / 'templates'
_DOI = re.compile(r'(?:https?://(?:dx\.)?doi\.org/|doi:\s*)?(10\.\d{4,9}/[^\s"\'<>]+)', re.IGNORECASE)
_MIME = {'.webp': 'image/webp', '.png': 'image/png', '.jpg': 'image/jpeg', '.jpeg': 'image/jpeg'}

#: Verdicts: rank (worst first) and the words that the pages use.
VERDICTS = {'fail': (0, 'Failed'), 'warn': (1, 'Needs a look'), 'pass': (2, 'Passed')}
UNKNOWN = (3, 'Not available')

#: Figures of a scan that the page has a place for.
FIGURES = ('before', 'after', 'contours', 'change', 'mask', 'registration')

#: Measures of a scan: column, label, unit and meaning.
MEASURES: tuple[tuple[str, str, str, str], ...] = (
    ('volume_gm_ml', 'Grey matter volume', 'mL', 'Volume labelled grey matter.'),
    ('volume_wm_ml', 'White matter volume', 'mL', 'Volume labelled white matter.'),
    ('volume_csf_ml', 'CSF volume', 'mL', 'Volume labelled cerebrospinal fluid.'),
    ('cnr_gm_wm', 'Contrast-to-noise, GM-WM', '', 'Distance of the two tissues in units of their spread.'),
    ('cjv', 'Joint variation, GM-WM', '', 'Coefficient of joint variation of GM and WM; lower is better.'),
    ('snr_wm', 'Signal-to-noise, WM', '', 'Signal-to-noise ratio of white matter.'),
    ('snr_gm', 'Signal-to-noise, GM', '', 'Signal-to-noise ratio of grey matter.'),
    ('peak_csf', 'CSF peak', 'arbitrary', 'Typical intensity of cerebrospinal fluid.'),
    ('peak_gm', 'GM peak', 'arbitrary', 'Typical intensity of grey matter.'),
    ('peak_wm', 'WM peak', 'arbitrary', 'Typical intensity of white matter.'),
    ('p90', '90th percentile', 'arbitrary', 'The 90th percentile of intensity inside the brain mask.'),
)


@dataclass(frozen=True)
class ScanEntry:
    """One harmonized scan.

    Parameters
    ----------
    qc
        What was measured on it, and its verdict.
    figures
        Figure files by name, as :func:`bidsharm.reports.figures.draw_scan_figures` returns them.
    outputs
        Names of the written files, relative to the output folder.
    """

    qc: Mapping[str, Any]
    figures: Mapping[str, Path] = field(default_factory=dict)
    outputs: Sequence[str] = ()


@dataclass(frozen=True)
class SkippedEntry:
    """One scan that was left out on purpose, and why."""

    scan: str
    reason: str


@dataclass(frozen=True)
class ErrorEntry:
    """One thing that went wrong.

    Parameters
    ----------
    scan
        The scan, or an empty string when it concerns the subject.
    what, where, fix
        The error in plain words, its place, and what to do.
    details
        The traceback.
    """

    scan: str
    what: str
    where: str = ''
    fix: str = ''
    details: str = ''


def write_subject_report(
    out_file: Path,
    *,
    subject: str,
    scans: Sequence[ScanEntry],
    skipped: Sequence[SkippedEntry] = (),
    errors: Sequence[ErrorEntry] = (),
    methods_text: str = '',
    references: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write the page about one subject.

    Parameters
    ----------
    out_file
        The HTML file; it appears whole or not at all.
    subject
        Subject label, without ``sub-``.
    scans, skipped, errors
        What was harmonized, left out, and what went wrong; any of them may be empty.
    methods_text
        Methods as plain text: paragraphs parted by empty lines, ``#`` headings, ``**strong**``, ``*emphasis*`` and
        backticks. It is escaped; HTML in it is shown as text.
    references
        Plain text, one per entry; DOIs become links.
    provenance
        What made the results: version, command, date, ...

    Returns
    -------
    pathlib.Path
        ``out_file``.
    """
    level, sentence = overall([str(entry.qc.get('verdict')) for entry in scans], lost_scans(scans, errors))
    return render(
        out_file,
        'subject.html.j2',
        title=f'sub-{subject}',
        subject=subject,
        level=level,
        sentence=sentence,
        scans=[_scan_view(entry, f'scan-{index}') for index, entry in enumerate(scans, start=1)],
        skipped=skipped,
        errors=errors,
        methods=markdown_lite(methods_text),
        references=[link_dois(reference) for reference in references],
        provenance=dict(provenance or {}),
    )


def lost_scans(scans: Sequence[ScanEntry], errors: Sequence[ErrorEntry]) -> int:
    """Return how many scans have an error and no result."""
    done = {str(entry.qc.get('scan')) for entry in scans}
    return len({error.scan for error in errors if error.scan} - done)


def overall(verdicts: Sequence[str], lost: int, why: str = 'could not be processed') -> tuple[str, str]:
    """Return the worst level and the verdict over several scans in plain words.

    Parameters
    ----------
    verdicts
        ``pass``, ``warn`` or ``fail``, per scan.
    lost
        Scans without a result.
    why
        What is said of those.
    """
    count = {name: sum(verdict == name for verdict in verdicts) for name in VERDICTS}
    unknown = len(verdicts) - sum(count.values())
    total = len(verdicts) + lost
    notes = []
    if count['warn']:
        notes.append(f'{count["warn"]} need{"s" if count["warn"] == 1 else ""} a look')
    if count['fail']:
        notes.append(f'{count["fail"]} failed')
    if unknown:
        notes.append(f'{unknown} could not be judged')
    if lost:
        notes.append(f'{lost} {why}')
    level = 'fail' if count['fail'] or lost else 'warn' if count['warn'] or unknown else 'pass'
    if total == 0:
        return 'unknown', 'No scan was harmonized'
    if not verdicts:
        return level, f'No scan was harmonized; {notes[0]}'
    if not notes:
        return level, {1: 'The scan passed', 2: 'Both scans passed'}.get(total, f'All {total} scans passed')
    if total == 1:
        words = {'warn': 'needs a look', 'fail': 'failed the checks'}
        return level, f'The scan {words.get(verdicts[0], "could not be judged")}'
    return level, f'{count["pass"]} of {total} scans passed; {"; ".join(notes)}'


def _part(mapping: Any, key: str) -> Mapping[str, Any]:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def level_of(verdict: Any) -> str:
    """Return the verdict as a CSS-safe word: ``pass``, ``warn``, ``fail`` or ``unknown``."""
    return verdict if isinstance(verdict, str) and verdict in VERDICTS else 'unknown'


def words_of(level: str) -> str:
    """Return the words for a verdict."""
    return VERDICTS.get(level, UNKNOWN)[1]


def with_unit(value: Any, unit: Any, *, limit: bool = False) -> str:
    """Return a number with its unit, for reading; a limit comes without trailing zeros."""
    text = plots.short_number(value) if limit else plots.number(value)
    unit = '' if unit in (None, '', 'arbitrary', 'a.u.', '1', 'ratio', 'fraction') else str(unit)
    return f'{text}\u202f{unit}' if unit and plots.finite(value) is not None else text


def checks_of(qc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the checks of a scan for display, the worst first."""
    checks = qc.get('checks')
    views = []
    for check in checks if isinstance(checks, (list, tuple)) else ():
        if not isinstance(check, Mapping):
            continue
        level = level_of(check.get('verdict'))
        unit, least = check.get('unit'), check.get('direction') != 'max'
        relation, word = ('below', 'at least') if least else ('above', 'at most')
        limits = {name: with_unit(check.get(name), unit, limit=True) for name in ('warn', 'fail')}
        crossed = f'{relation} {limits[level]}' if limits.get(level) else ''
        concern = counts_against(check)
        views.append(
            {
                'name': check.get('name', ''),
                'label': check.get('label') or check.get('name') or 'Check',
                'value': with_unit(check.get('value'), unit),
                'passes': f'{word} {limits["warn"]}',
                'fails': f'{relation} {limits["fail"]}',
                'crossed': 'could not be computed' if concern and level == 'unknown' else crossed,
                'level': level,
                'concern': concern,
                'words': words_of(level),
                'meaning': check.get('meaning') or '',
                'bullet': plots.bullet_svg(check),
                'margin': margin(check),
            }
        )
    return sorted(views, key=lambda view: (VERDICTS.get(view['level'], UNKNOWN)[0], view['margin']))


def margin(check: Mapping[str, Any]) -> float:
    """Return how far a value is on the good side of its warning limit, in steps from warning to failure.

    Negative beyond the limit; infinite where there is no value, and where none of what must not be there was found: that cannot be better.
    """
    value, warn, fail = (plots.finite(check.get(key)) for key in ('value', 'warn', 'fail'))
    if value is None or warn is None or (value == warn == 0 and check.get('direction') == 'max'):
        return float('inf')
    step = abs(warn - fail) if fail is not None and fail != warn else abs(warn) or 1.0
    return (value - warn if check.get('direction') != 'max' else warn - value) / step


def _scan_view(entry: ScanEntry, anchor: str) -> dict[str, Any]:
    """Gather what the template shows of one scan."""
    qc = entry.qc
    checks = checks_of(qc)
    level = level_of(qc.get('verdict'))
    warnings = qc.get('warnings')
    return {
        'anchor': anchor,
        'name': qc.get('scan') or 'unnamed scan',
        'session': qc.get('session') or '',
        'contrast': qc.get('contrast') or '',
        'site': qc.get('site') or '',
        'level': level,
        'words': words_of(level),
        'checks': checks,
        'concerns': [check for check in checks if check['concern']],
        'unmeasured': [check for check in checks if check['level'] == 'unknown' and not check['concern']],
        'warnings': list(warnings) if isinstance(warnings, (list, tuple)) else [],
        'harmonizer': _harmonizer_view(_part(qc, 'harmonizer')),
        'figures': {name: data_uri(entry.figures.get(name)) for name in FIGURES},
        'histogram': plots.histogram_svg(qc),
        'histogram_message': plots.histogram_message(qc),
        'zero_moved': (plots.harmonized_units(qc) or (0, 0))[1] != 0,
        'change_message': change_message(qc),
        'measures': _measures_view(qc),
        'outputs': list(entry.outputs),
        'notes': dict(_part(qc, 'notes')),
    }


def _harmonizer_view(harmonizer: Mapping[str, Any]) -> dict[str, Any]:
    seconds = plots.finite(harmonizer.get('seconds'))
    rows = {
        'Method': harmonizer.get('title') or harmonizer.get('name'),
        'Selected as': harmonizer.get('name'),
        'Target': harmonizer.get('target'),
        'Paper': harmonizer.get('paper'),
        'DOI': harmonizer.get('doi'),
        'Implementation': harmonizer.get('fidelity'),
        'Model': harmonizer.get('model_digest'),
        'Weights': harmonizer.get('weights_digest'),
        'Device': ', '.join(str(harmonizer[key]) for key in ('device', 'precision') if harmonizer.get(key)),
        'Seed': harmonizer.get('seed'),
        'Time': f'{plots.number(seconds, 2)} s' if seconds is not None else None,
    }
    invents = harmonizer.get('changes_anatomy')
    return {
        'title': rows['Method'] or 'unknown method',
        'target': harmonizer.get('target') or '',
        'invents': invents if isinstance(invents, bool) else None,
        'rows': {name: link_dois(str(value)) for name, value in rows.items() if value not in (None, '')},
    }


def change_message(qc: Mapping[str, Any]) -> str:
    """Return how much changed beyond a linear rescaling, in one sentence, or an empty string."""
    change = _part(_part(qc, 'measures'), 'change')
    most = plots.finite(change.get('p95_abs'))
    if most is None:
        return ''
    size = f'within {plots.number(100 * most, 2)}' if most >= 1e-4 else 'below 0.01'
    return f'In 95 % of the brain the change beyond a plain rescaling stays {size} % of the range of intensities.'


def _measures_view(qc: Mapping[str, Any]) -> list[dict[str, str]]:
    before, after = (_part(_part(qc, 'measures'), which) for which in ('before', 'after'))
    rows = []
    for key, label, unit, meaning in MEASURES:
        if key not in before and key not in after:
            continue
        first, second = plots.finite(before.get(key)), plots.finite(after.get(key))
        change = ''
        # A scanner's units are arbitrary: a change in per cent of them says nothing.
        if unit != 'arbitrary' and first not in (None, 0) and second is not None:
            percent = 100 * (second - first) / abs(first or 1.0)
            text = f'{percent:+.1f}' if abs(percent) >= 0.05 else '0'
            change = f'{text}\u202f%'.replace('-', '\u2212')
        rows.append(
            {
                'label': label,
                'before': with_unit(before.get(key), unit),
                'after': with_unit(after.get(key), unit),
                'change': change,
                'meaning': meaning,
            }
        )
    return rows


def data_uri(path: Path | None) -> str:
    """Return an image file as a data URI; empty when it cannot be read or is no image."""
    if path is None:
        return ''
    mime = _MIME.get(Path(path).suffix.lower())
    try:
        content = Path(path).read_bytes()
    except OSError:
        return ''
    return f'data:{mime};base64,{base64.b64encode(content).decode("ascii")}' if mime and content else ''


def link_dois(text: str) -> Markup:
    """Escape a text and turn the DOIs in it into links."""
    parts, at = [], 0
    for match in _DOI.finditer(text):
        doi = match.group(1).rstrip('.,;)]')
        end = match.start(1) + len(doi)
        shown = text[match.start() : end]
        parts += [
            escape(text[at : match.start()]),
            Markup('<a href="https://doi.org/{}" rel="noreferrer">{}</a>').format(doi, shown),
        ]
        at = end
    return Markup('').join([*parts, escape(text[at:])])


def markdown_lite(text: str) -> Markup:
    """Return paragraphs, headings, strong, emphasis and code as HTML; everything else is escaped."""
    blocks = []
    for block in re.split(r'\n\s*\n', text.strip()):
        heading = re.match(r'#{1,6}\s+([^\n]+)\n?', block)
        if heading:
            blocks.append(f'<h4>{_inline(heading.group(1))}</h4>')
            block = block[heading.end() :]
        if block.strip():
            blocks.append(f'<p>{_inline(" ".join(block.split()))}</p>')
    return Markup('\n'.join(blocks))


def _inline(text: str) -> str:
    html = str(link_dois(text))
    # Links keep their characters: only the text between tags is marked up.
    pieces = re.split(r'(<a .*?</a>)', html)
    for index in range(0, len(pieces), 2):
        piece = re.sub(r'`([^`]+)`', r'<code>\1</code>', pieces[index])
        piece = re.sub(r'\*\*(\S(?:.*?\S)?)\*\*', r'<strong>\1</strong>', piece)
        pieces[index] = re.sub(r'(?<!\w)\*(\S(?:.*?\S)?)\*(?!\w)', r'<em>\1</em>', piece)
    return ''.join(pieces)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals['legend_marker'] = plots.legend_marker
    environment.globals['words_of'] = words_of
    return environment


def render(out_file: Path, template: str, **context: Any) -> Path:
    """Fill a template with styles and script inlined, and write it in one step.

    Parameters
    ----------
    out_file
        Where to; a file that is there is replaced.
    template
        Name in the folder ``templates``.
    **context
        What the template shows.
    """
    script = (_TEMPLATES / 'report.js').read_text(encoding='utf-8').strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')
    html = (
        _environment()
        .get_template(template)
        .render(
            style=Markup((_TEMPLATES / 'report.css').read_text(encoding='utf-8')),
            script=Markup(script),
            script_digest=digest,
            **context,
        )
    )
    out_file = Path(out_file)
    with atomic_path(out_file) as partial:
        # Surrogates stand for undecodable bytes of file names: they must not stop a report.
        partial.write_text(html, encoding='utf-8', errors='replace')
    return out_file
