"""Which scanner or site a scan is from: the rules of ``--site``."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path

from bidsharm.bids.metadata import LEADS_OUT
from bidsharm.bids.names import ScanFile
from bidsharm.files import MAX_TABLE, leads_out, read_text
from bidsharm.settings import reason

#: Sidecar fields that tell one scanner from another, in the order in which they appear in a site label.
SCANNER_FIELDS = ('Manufacturer', 'ManufacturersModelName', 'MagneticFieldStrength', 'StationName')

#: The site of a scan that the rule of ``--site`` gives no value.
UNKNOWN_SITE = 'unknown'

#: How the name of a maker begins (small letters), and what it is called.
MAKERS = {
    'siemens': 'Siemens', 'ge ': 'GE', 'ge_': 'GE', 'ge-': 'GE', 'general electric': 'GE',
    'philips': 'Philips', 'canon': 'Canon', 'toshiba': 'Toshiba', 'hitachi': 'Hitachi', 'fujifilm': 'Fujifilm',
    'bruker': 'Bruker', 'uih': 'UIH', 'united imaging': 'UIH', 'shanghai united': 'UIH', 'gehc': 'GE', 'gems': 'GE', 'hyperfine': 'Hyperfine', 'esaote': 'Esaote',
}  # fmt: skip

#: Field strengths (tesla) of scanners for people; a magnet is sold as 3 T and runs at 2.89 T.
USUAL_TESLA = (0.064, 0.2, 0.23, 0.3, 0.35, 0.4, 0.5, 0.55, 0.6, 0.7, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.7, 5.0, 7.0, 9.4,
               10.5, 11.7)  # fmt: skip


def read_participants(bids_dir: Path) -> dict[str, dict[str, str]]:
    """Read ``participants.tsv`` by subject label; an unreadable table is an empty one.

    A byte-order mark and duplicate rows are tolerated: the first row of a subject counts.
    """
    return check_participants(bids_dir, follow_links=True)[0]


def check_participants(
    bids_dir: Path, *, follow_links: bool = False
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Return what :func:`read_participants` returns, and a sentence if the table is there and cannot be read.

    Parameters
    ----------
    bids_dir
        Folder of the data set.
    follow_links
        Whether a table that is a link out of the data set counts.
    """
    path = bids_dir / 'participants.tsv'
    table: dict[str, dict[str, str]] = {}
    try:
        if not follow_links and leads_out(path, bids_dir):
            raise ValueError(LEADS_OUT)
        file = io.StringIO(read_text(path, MAX_TABLE, encoding='utf-8-sig'), newline='')
        for row in csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE):
            label = (row.get('participant_id') or '').strip().removeprefix('sub-')
            if label:
                table.setdefault(label, {k: (v or '').strip() for k, v in row.items() if isinstance(k, str)})
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError, csv.Error) as error:
        return table, (f'participants.tsv cannot be read ({reason(error)}); what it says is missing.',)
    return table, ()


def site_of(scan: ScanFile, participants: Mapping[str, Mapping[str, str]], rule: str) -> str:
    """Return the label of the scanner or site of a scan.

    Parameters
    ----------
    rule
        ``auto``: the scanner by its sidecar fields (:data:`SCANNER_FIELDS`), else the column ``site`` of
        participants.tsv, else ``unknown``. Otherwise names, separated by commas, each either a column of
        participants.tsv, ``session``, or a sidecar field; sidecar fields win over columns.

    Returns
    -------
    str
        Letters, digits, points and hyphens only, so that it can stand in a file name.
    """
    return site_by_rule(scan, participants, rule) or UNKNOWN_SITE


def site_by_rule(scan: ScanFile, participants: Mapping[str, Mapping[str, str]], rule: str) -> str:
    """Return the label of a site, or an empty string where the rule finds no value."""
    row = participants.get(scan.subject, {})
    if rule == 'auto':
        values = [label_of(scan.metadata.get(name), name) for name in SCANNER_FIELDS]
        return '-'.join(filter(None, values)) or label_of(row.get('site'))
    names = [name.strip() for name in rule.split(',') if name.strip()]
    known = {**row, **scan.metadata, 'session': scan.session}
    return '-'.join(filter(None, (label_of(known.get(name), name) for name in names)))


def label_of(value: object, name: str = '') -> str:
    """Turn a metadata value into a part of a site label; missing values give an empty string.

    One scanner is written in several ways by its own software and by converters, so makers get one spelling, and
    field strengths (``3``, ``"3"``, ``2.89362``) their nominal value.

    Parameters
    ----------
    value
        What the sidecar or the table says.
    name
        Name of the field.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in ('', 'n/a')):
        return ''
    if name == 'MagneticFieldStrength':
        value, unit = _nominal_tesla(value)
    else:
        unit = ''
    if name == 'Manufacturer':
        value = _maker(str(value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return re.sub(r'[^0-9A-Za-z.]+', '', str(value))[:40] + unit


def _nominal_tesla(value: object) -> tuple[object, str]:
    """Return the usual field strength next to a measured one (in tesla), and the unit."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return value, ''
    try:
        tesla = float(re.sub(r'(?i)\s*t(esla)?$', '', str(value).strip()))
    except ValueError:
        return value, ''
    if not math.isfinite(tesla):
        return value, ''
    near = [usual for usual in USUAL_TESLA if abs(tesla - usual) <= 0.05 * usual]
    return (min(near, key=lambda usual: abs(tesla - usual)) if near else tesla), 'T'


def _maker(text: str) -> str:
    """Return the short name of a maker of scanners: ``SIEMENS`` and ``Siemens Healthineers`` are Siemens."""
    words = f'{text.strip().casefold()} '
    return next((name for start, name in MAKERS.items() if words.startswith(start)), text)
