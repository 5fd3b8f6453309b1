"""Whole runs on the real scans: wall time, CPU time and peak memory of each subject, then the group level.

The derivatives stay in OUT, for the other benchmarks and for the eye.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import common


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('out', type=Path, help='folder for the derivatives (replaced)')
    arguments.add_argument('--subjects', nargs='+', help='only these')
    args = arguments.parse_args()
    data = common.real_data()
    shutil.rmtree(args.out, ignore_errors=True)
    labels = args.subjects or sorted(path.name.removeprefix('sub-') for path in data.glob('sub-*'))
    program, rows = Path(sys.executable).with_name('bidsharm'), []
    for label in labels:
        command = [
            program,
            data,
            args.out,
            'participant',
            '--participant-label',
            label,
            '--skip-bids-validation',
        ]
        usage = common.measure(command, stdout=subprocess.DEVNULL)
        scans = len(list(args.out.glob(f'sub-{label}/**/*_qc.json')))
        rows.append({'subject': f'sub-{label}', 'scans': scans, 'exit code': usage.code, 'wall s': usage.wall_s,
                     'wall s a scan': usage.wall_s / max(scans, 1), 'CPU s a scan': usage.cpu_s / max(scans, 1),
                     'peak GB': usage.peak_gb})  # fmt: skip
        print(rows[-1], flush=True)
    group = common.measure([program, data, args.out, 'group'], stdout=subprocess.DEVNULL)
    total = sum(row['wall s'] for row in rows)
    scans = sum(row['scans'] for row in rows)
    text = (
        'One `bidsharm BIDS OUT participant --participant-label X` a subject, default settings, reports included. '
        'Peak memory is that of all processes together.\n\n'
        + common.table(rows)
        + f'\nAll {scans} scans: {total:.0f} s, {total / scans:.1f} s a scan. Group level: {group.wall_s:.1f} s, '
        f'{group.peak_gb:.2f} GB, exit code {group.code}.\n'
    )
    common.save('participant', title='Whole runs on real scans', text=text, seed=0,
                data={'subjects': rows, 'group': {'wall s': group.wall_s, 'peak GB': group.peak_gb}})  # fmt: skip


if __name__ == '__main__':
    main()
