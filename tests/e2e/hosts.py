"""Hosts: the hand-off to fMRIPrep on one scan, what sMRIPrep itself finds there, and bidsharm from Python in five lines."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from stages import Failed, Stage

#: The subject of the real data that is used: one T1w, no session.
SUBJECT = 'adi'

COLLECT = """\
import json
import sys

from smriprep.utils.bids import collect_derivatives

found = collect_derivatives(sys.argv[1], sys.argv[2], ['MNI152NLin2009aSym'])
print(json.dumps(found, indent=1))
"""

FIVE_LINES = """\
import sys
import bidsharm
result = bidsharm.harmonize(sys.argv[1], harmonizer='isotone')
result.image.to_filename(sys.argv[2])
result.figure().save(sys.argv[3])
print(result.details['way'], result.image.shape, result.warnings)
"""


def run(stage: Stage) -> None:
    """Hand a T1w over to fMRIPrep, ask sMRIPrep what it finds, and harmonize the scan from Python."""
    data, subject = data_set(stage)
    hand_over(stage, data, subject)
    ask_smriprep(stage, subject)
    five_lines(stage, data, subject)


def data_set(stage: Stage) -> tuple[Path, str]:
    """Return a data set and a subject of it: a real one, else a simulated head."""
    if stage.real and (stage.real / f'sub-{SUBJECT}').is_dir():
        return stage.real, SUBJECT
    stage.say('There are no real scans here (BIDSHARM_REAL_DATA); a head is simulated.')
    data = stage.work / 'data'
    stage.run([tool('bidsharm-simulate'), data, '--subjects', '1', '--scanners', '1', '--resolution', '2'])
    return data, '01'


def tool(name: str) -> Path:
    """Return a command that is installed with this Python."""
    return Path(sys.prefix) / 'bin' / name


def python(stage: Stage, name: str, code: str, *arguments: str | Path) -> str:
    """Run a script, which the transcript shows, and return what it printed."""
    file = stage.work / name
    file.write_text(code)
    stage.say(f'```python\n{code}```')
    return stage.run([sys.executable, '-W', 'ignore', file, *arguments], tail=40)


def hand_over(stage: Stage, data: Path, subject: str) -> None:
    """Run bidsharm with ``--fmriprep-derivatives``, twice: the second time there is nothing left to do."""
    command = [
        tool('bidsharm'), data, stage.work / 'out', 'participant', '--participant-label', subject, '--contrasts', 'T1w',
        '--harmonizer', 'isotone', '--skip-bids-validation', '--fmriprep-derivatives', stage.work / 'harm',
    ]  # fmt: skip
    stage.run(command)
    again = stage.run(command)
    stage.check(
        '1 was done before' in again, 'the second run finds the scan done, with what it gave to fMRIPrep'
    )
    sidecar = json.loads(next((stage.work / 'harm').rglob('*_desc-preproc_T1w.json')).read_text())
    stage.check(sidecar['SkullStripped'] is False, 'the sidecar says that the head around the brain is there')
    stage.check(sidecar['Harmonization']['Method'] == 'isotone', 'and by which method it was harmonized')


def ask_smriprep(stage: Stage, subject: str) -> None:
    """Let sMRIPrep's own query look at the folder."""
    if find_spec('smriprep') is None:
        stage.say(
            'Skipped: what sMRIPrep finds, because smriprep is not installed (pip install bidsharm[test]).'
        )
        return
    try:
        stage.say(
            f'What sMRIPrep {version("smriprep")} finds, by the query specification that it was installed with:'
        )
    except PackageNotFoundError as error:
        raise Failed('smriprep is there, but pip does not know it') from error
    output = python(stage, 'collect.py', COLLECT, stage.work / 'harm', subject)
    found = json.loads(output[output.index('{') : output.rindex('}') + 1])
    for key in ('t1w_preproc', 't1w_mask', 't1w_dseg'):
        stage.check(Path(str(found.get(key))).is_file(), f'{key} is one file')
    labels = [Path(name).name.split('_label-')[1].split('_')[0] for name in found['t1w_tpms']]
    stage.check(labels == ['GM', 'WM', 'CSF'], 't1w_tpms are GM, WM and CSF, in this order')
    stage.check(found['transforms'] == {}, 'no transform stands in for the registration of sMRIPrep')


def five_lines(stage: Stage, data: Path, subject: str) -> None:
    """Harmonize a scan as in a notebook."""
    t1w = next((data / f'sub-{subject}').rglob('*_T1w.nii.gz'))
    image, figure = stage.work / 'harmonized.nii.gz', stage.work / 'figure.png'
    stage.say('From Python:')
    python(stage, 'five_lines.py', FIVE_LINES, t1w, image, figure)
    stage.check(image.stat().st_size > 0, 'the image was written')
    stage.check(figure.read_bytes()[:4] == b'\x89PNG', 'the figure is a picture')
