"""How fast bidsharm answers: --help and --version, beside an empty Python; and planning a data set of many subjects."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common

INDEX = 'import sys; from bids import BIDSLayout; BIDSLayout(sys.argv[1])'
PLAN = """
import sys
from pathlib import Path
from bidsharm.cli.parser import parse_settings
from bidsharm.workflows.participant import plan_run
from bidsharm.workflows.planning import batches, subject_plans
from bidsharm.workflows.base import init_bidsharm_wf
settings = parse_settings(sys.argv[1:])
plan = plan_run(settings)
nodes = 0
for group in batches(plan.selection.subjects, 4):
    subjects = {name: subject_plans(plan.selection, name, settings, plan.options) for name in group}
    graph = init_bidsharm_wf(
        subjects=subjects, method=plan.method, output_dir=settings.output_dir, options=plan.options
    )
    nodes += len(graph.list_node_names())
print(len(plan.selection.scans), nodes)
"""


def make_dataset(root: Path, subjects: int) -> None:
    """Write a BIDS data set of tiny scans: one T1w and its sidecar for each subject."""
    import nibabel as nib
    import numpy as np

    (root / 'dataset_description.json').write_text(json.dumps({'Name': 'many', 'BIDSVersion': '1.10.0'}))
    image = nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4))
    image.to_filename(root / 'one.nii.gz')
    content = (root / 'one.nii.gz').read_bytes()
    (root / 'one.nii.gz').unlink()
    for number in range(subjects):
        folder = root / f'sub-{number:04d}' / 'anat'
        folder.mkdir(parents=True)
        (folder / f'sub-{number:04d}_T1w.nii.gz').write_bytes(content)
        sidecar = {'Manufacturer': ('Siemens', 'GE', 'Philips')[number % 3], 'MagneticFieldStrength': 3}
        (folder / f'sub-{number:04d}_T1w.json').write_text(json.dumps(sidecar))


def answer_times(runs: int) -> list[dict[str, object]]:
    program = Path(sys.executable).with_name('bidsharm')
    commands = {
        'python -c pass': [sys.executable, '-c', 'pass'],
        'bidsharm --help': [program, '--help'],
        'bidsharm --version': [program, '--version'],
    }
    seconds = {
        name: common.repeat(
            lambda command=command: subprocess.run(command, capture_output=True, check=True), runs
        )
        for name, command in commands.items()
    }
    empty = seconds['python -c pass']
    return [
        {'command': name, 'wall s (median)': value, 'ratio to an empty Python': value / empty}
        for name, value in seconds.items()
    ]


def planning(subjects: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / 'bids'
        root.mkdir()
        make_dataset(root, subjects)
        indexing = common.measure([sys.executable, '-c', INDEX, str(root)], cwd=folder)
        arguments = [
            str(root),
            str(Path(folder) / 'out'),
            'participant',
            '--skip-bids-validation',
            '--device',
            'cpu',
        ]
        usage = common.measure([sys.executable, '-c', PLAN, *arguments], cwd=folder)
    if usage.code:
        raise SystemExit(f'planning ended with {usage.code}')
    return {'subjects': subjects, 'wall s': usage.wall_s, 'CPU s': usage.cpu_s, 'peak GB': usage.peak_gb,
            'ratio to the index of pybids alone': usage.wall_s / indexing.wall_s}  # fmt: skip


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument('--runs', type=int, default=7)
    arguments.add_argument('--subjects', type=int, default=1000)
    args = arguments.parse_args()
    answers, plan = answer_times(args.runs), planning(args.subjects)
    text = (
        common.table(answers)
        + '\nIndex, plan and all graphs of a data set with one T1w a subject:\n\n'
        + common.table([plan])
    )
    common.save(
        'startup', title='Start-up and planning', text=text, data={'answers': answers, 'planning': plan}
    )


if __name__ == '__main__':
    main()
