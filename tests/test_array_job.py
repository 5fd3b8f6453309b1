"""The array job that is handed out: what it submits, what its tasks run; with stand-ins for SLURM and for bidsharm."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'descriptors' / 'slurm' / 'array.sh'


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A data set of three subjects, and stand-ins that write down how they were called."""
    for label in ('03', '01', '02'):
        (tmp_path / 'my data' / f'sub-{label}' / 'anat').mkdir(parents=True)
    tools = tmp_path / 'bin'
    tools.mkdir()
    scripts = {
        'sbatch': '{ printf "%q " "$@"; echo "OFFSET=$ARRAY_OFFSET GROUP=$ARRAY_GROUP"; } >> "$RECORD"\n'
        'echo "$((100 + $(wc -l < "$RECORD")));cluster"',
        'scontrol': 'echo "MaxArraySize            = ${LARGEST:-1001}"',
        'bidsharm': '{ printf "%q " bidsharm "$@"; echo; } >> "$RECORD"; exit ${CODE:-0}',
        'apptainer': '{ printf "%q " apptainer "$@"; echo; } >> "$RECORD"',
    }
    for name, text in scripts.items():
        (tools / name).write_text(f'#!/bin/bash\n{text}\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tools}:{os.environ["PATH"]}')
    monkeypatch.setenv('RECORD', str(tmp_path / 'record'))
    for name in (
        'SUBJECTS',
        'BIDSHARM',
        'SBATCH_OPTIONS',
        'SLURM_ARRAY_TASK_ID',
        'TASKS',
        'IMAGE',
        'WORK_DIR',
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def call(place) -> Callable[..., list[list[str]]]:
    """Return a function that runs the script and returns the calls of the stand-ins, as words."""

    def call(*options: str, code: int = 0, **env: str) -> list[list[str]]:
        (place / 'record').unlink(missing_ok=True)
        command = ['bash', str(SCRIPT), str(place / 'my data'), str(place / 'out'), *options]
        done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        lines = (place / 'record').read_text().splitlines() if (place / 'record').exists() else []
        return [shlex.split(line) for line in lines]

    return call


def test_submits_all_subjects_and_the_group_behind_them(call, place):
    array, group = call('--harmonizer', 'nyul', SBATCH_OPTIONS='--mem=3G --qos=low')
    assert '--array=1-3' in array
    assert {'--mem=3G', '--qos=low'} <= set(array) & set(group)
    assert array[-2:] == ['OFFSET=0', 'GROUP=']
    assert array[-6:-2] == [str(place / 'my data'), str(place / 'out'), '--harmonizer', 'nyul']
    assert '--dependency=afterany:101' in group
    assert group[-1] == 'GROUP=yes'
    (listed,) = (place / 'out' / 'logs' / 'array').glob('*/subjects.txt')
    assert listed.read_text().split() == ['01', '02', '03']


def test_arrays_are_no_larger_than_the_cluster_allows(call):
    *arrays, group = call(LARGEST='3', TASKS='2')
    assert [[word for word in call if word.startswith('--array=')] for call in arrays] == [
        ['--array=1-2%2'], ['--array=1-1%2'],
    ]  # fmt: skip
    assert [call[-2] for call in arrays] == ['OFFSET=0', 'OFFSET=2']
    assert '--dependency=afterany:101:102' in group


def test_first_subject_goes_ahead_to_learn(call):
    first, others, group = call(LEARN_FIRST='yes')
    assert '--array=1' in first
    assert '--array=1-2' in others
    assert others[-2] == 'OFFSET=1'
    assert '--dependency=afterany:101' in others
    assert '--dependency=afterany:101:102' in group


@pytest.mark.parametrize(
    ('number', 'offset', 'label'), [('1', '0', '01'), ('3', '0', '03'), ('1', '1', '02')]
)
def test_a_task_runs_its_subject(number, offset, label, call, place):
    (words,) = call('--target', 'a site', SLURM_ARRAY_TASK_ID=number, ARRAY_OFFSET=offset, SLURM_CPUS_PER_TASK='4',
                    SLURM_MEM_PER_NODE='6144')  # fmt: skip
    assert words == [
        'bidsharm', str(place / 'my data'), str(place / 'out'), 'participant', '--participant-label', label,
        '--nprocs', '4', '--skip-bids-validation', '--mem', '6144M', '--target', 'a site',
    ]  # fmt: skip


def test_list_of_the_submission_counts(call, place):
    """A subject that came later would have shifted the others."""
    (place / 'list').write_text('02\n03\n')
    (words,) = call(SLURM_ARRAY_TASK_ID='1', ARRAY_LIST=str(place / 'list'))
    assert words[words.index('--participant-label') + 1] == '02'


def test_chosen_subjects(call, place):
    call(SUBJECTS='sub-03 01')
    (listed,) = (place / 'out' / 'logs' / 'array').glob('*/subjects.txt')
    assert listed.read_text().split() == ['03', '01']


def test_options_of_a_task_are_those_of_the_program(call, place):
    """What the script adds by itself is understood by the command line."""
    from bidsharm.cli.parser import build_parser

    (words,) = call(
        '--sloppy', SLURM_ARRAY_TASK_ID='2', SLURM_MEM_PER_NODE='6144', WORK_DIR=str(place / 'work')
    )
    args = build_parser().parse_args(words[1:])
    assert args.participant_label == ['02']


def test_task_beyond_the_last_subject_does_nothing(call):
    assert call(SLURM_ARRAY_TASK_ID='4') == []


@pytest.mark.parametrize('code', [1, 2, 78])
def test_exit_code_of_a_task_is_that_of_the_program(code, call):
    call(SLURM_ARRAY_TASK_ID='1', CODE=str(code), code=code)


def test_group(call, place):
    assert call(ARRAY_GROUP='yes') == [['bidsharm', str(place / 'my data'), str(place / 'out'), 'group']]


def test_image(call, place):
    (words,) = call('--derivatives', '/data/pre', SLURM_ARRAY_TASK_ID='1', IMAGE='/i/b.sif', BINDS='/data/pre',
                    WORK_DIR=str(place / 'work'), CONTAINER_OPTIONS='--nv')  # fmt: skip
    data, out, work = (str(place / name) for name in ('my data', 'out', 'work'))
    assert words[:5] == ['apptainer', 'run', '--cleanenv', '--containall', '-B']
    binds = [word for before, word in itertools.pairwise(words) if before == '-B']
    assert binds == [f'{data}:{data}:ro', f'{out}:{out}', '/data/pre:/data/pre:ro', f'{work}:{work}']
    assert words[words.index('/i/b.sif') - 1] == '--nv'
    assert words[words.index('/i/b.sif') + 1 :][:3] == [data, out, 'participant']
    assert f'{work}/sub-01' in words


def test_what_cannot_be_submitted(call, place):
    (place / 'bin' / 'sbatch').write_text('#!/bin/bash\necho "sbatch: error: no" >&2\nexit 1\n')
    assert call(code=1) == []
    for folder in (place / 'my data').iterdir():
        folder.rename(place / folder.name)
    assert call(code=3) == []


def test_all_that_can_be_set_is_explained():
    text = SCRIPT.read_text()
    used = set(re.findall(r'\$\{([A-Z_]+):[-+]', text)) - {
        'ARRAY_LIST', 'ARRAY_OFFSET', 'ARRAY_GROUP', 'SLURM_ARRAY_TASK_ID', 'SLURM_ARRAY_JOB_ID', 'SLURM_CPUS_PER_TASK',
        'SLURM_MEM_PER_NODE', 'SLURM_MEM_PER_CPU',
    }  # fmt: skip
    assert used == set(re.findall(r'^#   ([A-Z_]+)=', text, re.M))
