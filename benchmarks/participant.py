"""Whole runs on the real scans: wall time, CPU time and peak memory of each subject, of each scan alone, and of the group.

The derivatives of the subjects stay in OUT, for the other benchmarks and for the eye; those of the single scans do not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

from bidsharm.bids.names import ScanFile
from bidsharm.bids.query import Selection, anchor_of, select_scans
from bidsharm.settings import from_dict

PROGRAM = Path(sys.executable).with_name('bidsharm')

#: Entities that no option of the command line selects, and what a BIDS filter file calls them.
FILTERED = {
    'sample': 'sample', 'acq': 'acquisition', 'ce': 'ceagent', 'rec': 'reconstruction', 'dir': 'direction',
    'mod': 'modality', 'echo': 'echo', 'flip': 'flip', 'inv': 'inv', 'mt': 'mt', 'part': 'part',
}  # fmt: skip


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('out', type=Path, help='folder for the derivatives (replaced)')
    arguments.add_argument('--subjects', nargs='+', help='only these')
    arguments.add_argument(
        '--scans', nargs='+', help='of these subjects, only these scans alone: names without extension'
    )
    args = arguments.parse_args()
    data = common.real_data()
    shutil.rmtree(args.out, ignore_errors=True)
    labels = args.subjects or sorted(path.name.removeprefix('sub-') for path in data.glob('sub-*'))
    rows = [subject_row(data, args.out, label) for label in labels]
    group = common.measure([PROGRAM, data, args.out, 'group'], stdout=subprocess.DEVNULL)
    settings = {'bids_dir': data, 'output_dir': args.out, 'participant_label': labels}
    selection = select_scans(from_dict(settings))
    chosen = [scan for scan in selection.scans if not args.scans or scan.name in args.scans]
    single = [scan_row(data, scan, selection) for scan in chosen]
    total = sum(row['wall s'] for row in rows)
    scans = sum(row['scans'] for row in rows)
    text = (
        'One `bidsharm BIDS OUT participant --participant-label X` a subject, default settings, reports included. '
        'Peak memory is that of all processes together.\n\n'
        + common.table(rows)
        + f'\nAll {scans} scans: {total:.0f} s, {total / scans:.1f} s a scan. Group level: {group.wall_s:.1f} s, '
        f'{group.peak_gb:.2f} GB, exit code {group.code}.\n\n'
        'Each scan alone, in an output folder of its own: the start of the program and the report are paid for each '
        'time. A scan that follows another one (it takes its brain mask and its way to the template from there) '
        'includes the preprocessing of that one.\n\n' + common.table(single)
    )
    common.save('participant', title='Whole runs on real scans', text=text, seed=0,
                data={'subjects': rows, 'group': {'wall s': group.wall_s, 'peak GB': group.peak_gb},
                      'scans': single})  # fmt: skip


def subject_row(data: Path, out: Path, label: str) -> dict[str, Any]:
    """Run all scans of a subject together; the derivatives stay."""
    command = [PROGRAM, data, out, 'participant', '--participant-label', label, '--skip-bids-validation']
    usage = common.measure(command, stdout=subprocess.DEVNULL)
    scans = len(list(out.glob(f'sub-{label}/**/*_qc.json')))
    row = {'subject': f'sub-{label}', 'scans': scans, 'exit code': usage.code, 'wall s': usage.wall_s,
           'wall s a scan': usage.wall_s / max(scans, 1), 'CPU s a scan': usage.cpu_s / max(scans, 1),
           'peak GB': usage.peak_gb}  # fmt: skip
    print(row, flush=True)
    return row


def scan_row(data: Path, scan: ScanFile, selection: Selection) -> dict[str, Any]:
    """Run one scan alone, in a folder that goes again."""
    anchor = anchor_of(scan, [*selection.structural, scan])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'out'
        command = [PROGRAM, data, out, 'participant', '--skip-bids-validation']
        command += options_for(scan, selection.scans, Path(folder) / 'filter.json')
        usage = common.measure(command, stdout=subprocess.DEVNULL)
        done = [path.name for path in out.glob('sub-*/**/*_qc.json')]
    if usage.code == 0 and len(done) != 1:
        raise SystemExit(f'{scan.name} did not run alone: {", ".join(done) or "nothing was harmonized"}.')
    row = {'scan': scan.name, 'follows': 'itself' if anchor == scan else anchor.name, 'exit code': usage.code,
           'wall s': usage.wall_s, 'CPU s': usage.cpu_s, 'peak GB': usage.peak_gb}  # fmt: skip
    print(row, flush=True)
    return row


def options_for(scan: ScanFile, scans: Sequence[ScanFile], filter_file: Path) -> list[str]:
    """Return the options that select one scan; the filter file is written only where labels do not suffice."""
    options = ['--participant-label', scan.subject, '--contrasts', scan.suffix]
    labels = {key: scan.entities[key] for key in ('ses', 'run') if key in scan.entities}
    for key, option in (('ses', '--session-label'), ('run', '--run')):
        options += [option, labels[key]] if key in labels else []
    same = [
        other
        for other in scans
        if (other.subject, other.suffix) == (scan.subject, scan.suffix)
        and labels.items() <= other.entities.items()
    ]
    if len(same) > 1:
        known = {**FILTERED, **{'ses': 'session', 'run': 'run'}}
        entities = {
            name: scan.entities.get(key, 'Query.NONE') for key, name in known.items() if key not in labels
        }
        filter_file.write_text(json.dumps({scan.suffix.lower(): entities}))
        options += ['--bids-filter-file', str(filter_file)]
    return options


if __name__ == '__main__':
    main()
