"""SLURM: both plugins and the array job, on two simulated subjects and a third whose scan is cut off.

Where `sinfo` answers, that cluster is used; the folder for temporary files (`TMPDIR`) must be one that its nodes see. Else
`BIDSHARM_SLURM_START` may name a script that starts one: called with `start DIR` it prints `export` lines, with `stop DIR` it
ends it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from stages import ROOT, Failed, Skip, Stage

PROGRAM = Path(sys.executable).with_name('bidsharm')
#: One thread, so that two runs give the same bits; few iterations, so that it is over soon.
OPTIONS = ('--sloppy', '--skip-bids-validation', '--omp-nthreads', '1')


def run(stage: Stage) -> None:
    """Run the stage."""
    with cluster(stage) as env:
        make_data(stage)
        local = stage.work / 'local'
        stage.run([PROGRAM, stage.work / 'two', local, 'participant', *OPTIONS])
        slurm(stage, env, local)
        gpu(stage, env)
        graph(stage, env, local)
        array(stage, env)
        train(stage, env, local)


@contextmanager
def cluster(stage: Stage) -> Iterator[dict[str, str]]:
    """Give the environment in which SLURM answers; start one where there is none and it is told how."""
    if shutil.which('sinfo') and subprocess.run(['sinfo'], capture_output=True, timeout=60).returncode == 0:
        yield {}
        return
    script = os.environ.get('BIDSHARM_SLURM_START')
    if not script:
        raise Skip('no SLURM answers here, and BIDSHARM_SLURM_START names no script that starts one')
    folder = stage.work / 'cluster'
    done = subprocess.run([script, 'start', folder], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise Skip(f'SLURM could not be started: {done.stderr.strip()[-300:]}')
    try:
        words = [word for word in shlex.split(done.stdout) if '=' in word]
        yield dict(word.split('=', 1) for word in words)
    finally:
        subprocess.run([script, 'stop', folder], capture_output=True, timeout=60)


def make_data(stage: Stage) -> None:
    """Simulate two subjects; a second data set has a third one whose scan is cut off."""
    two, three = stage.work / 'two', stage.work / 'three'
    command = [
        PROGRAM.with_name('bidsharm-simulate'),
        two,
        '--subjects',
        '2',
        '--scanners',
        '1',
        '--resolution',
        '2',
    ]
    stage.run(command, tail=1)
    shutil.copytree(two, three)
    (whole,) = (two / 'sub-01').rglob('*_T1w.nii.gz')
    cut = three / str(whole.relative_to(two)).replace('sub-01', 'sub-03')
    cut.parent.mkdir(parents=True)
    cut.write_bytes(whole.read_bytes()[:60000])


def plugin_file(stage: Stage, name: str, more: str = '') -> Path:
    """Write a plugin file for a small cluster."""
    path = stage.work / f'{name}.yml'
    path.write_text(f'plugin: {name}\nplugin_args:\n  sbatch_args: "--mem=2G --cpus-per-task=1"\n{more}')
    stage.lines.append(f'```\n$ cat {path}\n{path.read_text()}```')
    return path


def slurm(stage: Stage, env: dict[str, str], local: Path) -> None:
    """Every step is a job, submitted when those before it are done."""
    stage.say('Every step is a job, submitted when those before it are done.')
    file, out = plugin_file(stage, 'SLURM'), stage.work / 'slurm'
    work = ['--work-dir', stage.work / 'slurm-work', '--use-plugin', file]
    stage.run([PROGRAM, stage.work / 'two', out, 'participant', *OPTIONS, *work], env=env, timeout=600)
    same(stage, local, out, ('01', '02'))
    stage.check(not queue(env), 'no job is left in the queue')


def gpu(stage: Stage, env: dict[str, str]) -> None:
    """Only the harmonize step asks for a GPU. Here a comment stands for the request: the cluster need not have any."""
    stage.say(
        'Only harmonizing asks for a GPU. A comment stands for `--gres=gpu:1` here, because the cluster need not have one; '
        'the machine that submits is not asked. The steps before it are known from the run above.'
    )
    gpu_args = 'gpu_plugin_args:\n  sbatch_args: "--mem=2G --comment=gpu"\n  overwrite: true\n'
    file = plugin_file(stage, 'SLURM', gpu_args)
    work = ['--work-dir', stage.work / 'slurm-work', '--use-plugin', file]
    command = [PROGRAM, stage.work / 'two', stage.work / 'gpu', 'participant', *OPTIONS, *work]
    method = ['--harmonizer', 'isotone', '--device', 'cuda', '--participant-label', '01']
    cards = has_cuda()
    known = set(jobs(env))
    said = stage.run([*command, *method], env=env, timeout=600, expect=0 if cards else 1)
    asked = {name: 'gpu' in comment for number, (name, comment) in jobs(env).items() if number not in known}
    stage.check(bool(asked), f'steps submitted: {", ".join(sorted(asked))}')
    stage.check([name for name in asked if asked[name]] == ['harmonize'], 'harmonize alone asked for a GPU')
    if not cards:
        stage.check('"cuda:0" is not there' in said, 'its job found none, and said so')


def graph(stage: Stage, env: dict[str, str], local: Path) -> None:
    """All steps are submitted at once; one scan is broken, and one job is cancelled from outside."""
    stage.say(
        'All steps are submitted at once, with their dependencies. The scan of sub-03 is cut off; while this runs, a job of '
        'sub-02 is cancelled from outside (`scancel`).'
    )
    file, out = plugin_file(stage, 'SLURMGraph'), stage.work / 'graph'
    batch = stage.work / 'graph-work' / 'bidsharm_work' / 'bidsharm_wf' / 'batch'
    assassin = threading.Thread(target=cancel_one, args=(batch, env), daemon=True)
    assassin.start()
    work = ['--work-dir', stage.work / 'graph-work', '--use-plugin', file]
    command = [PROGRAM, stage.work / 'three', out, 'participant', *OPTIONS, *work]
    said = stage.run(command, env=env, expect=1, timeout=600, tail=16)
    same(stage, local, out, ('01',))
    lines = {line.split()[1][:6]: line for line in said.splitlines() if line.startswith('FAILED')}
    stage.check(set(lines) == {'sub-02', 'sub-03'}, 'each cost its own subject only')
    stage.check('CANCELLED' in lines['sub-02'], 'the cancelled job is called that')
    stage.check('cut off' in lines['sub-03'], 'the broken scan is called that')
    stage.check(not queue(env), 'no job is left in the queue')


def array(stage: Stage, env: dict[str, str]) -> None:
    """One subject a task, on one output folder, with a target that is learnt once; then the same command again."""
    stage.say('The array job: one subject a task, one output folder, a target that all tasks share.')
    out = stage.work / 'array'
    settings = {'BIDSHARM': str(PROGRAM), 'SBATCH_OPTIONS': '--mem=3G --cpus-per-task=1'}
    stage.lines.append(
        '```\n$ export ' + shlex.join(f'{name}={value}' for name, value in settings.items()) + '\n```'
    )
    command = [
        ROOT / 'descriptors' / 'slurm' / 'array.sh',
        stage.work / 'three',
        out,
        *OPTIONS[:1],
        '--harmonizer',
        'nyul',
    ]
    for again in (False, True):
        said = stage.run(command, env={**env, **settings})
        arrays, group = said.split('arrays ')[1].split(',')[0], said.split('level: ')[1].split()[0]
        wait(env, stage)
        ends = exits(env, arrays)
        stage.check(ends == {'1': '0', '2': '0', '3': '1'}, f'exit codes of the tasks: {ends}')
        stage.check(exits(env, group) == {'': '0'}, 'the group level ran behind them')
        logs = sorted((out / 'logs' / 'array').iterdir())[-1]
        texts = [next(logs.glob(f'*_{number}.out')).read_text() for number in (1, 2, 3)]
        for text in texts:
            end = [
                line for line in text.splitlines() if line.startswith(('sub-', 'FAILED', '1 scan', '0 scans'))
            ]
            stage.lines.append('```\n' + '\n'.join(end) + '\n```')
        if again:
            done = [' 1 was done before' in text for text in texts]
            stage.check(
                done == [True, True, False], 'what was done is passed over, what failed is tried again'
            )
    bundles = [path.name for path in (out / 'models').iterdir() if path.is_dir()]
    stage.check(len(bundles) == 1, f'one target was learnt: {bundles[0]}')
    digests = {model_of(path) for path in out.glob('sub-*/**/*_desc-harmonized_T1w.json')}
    stage.check(len(digests) == 1, 'and all images were made with it')


def train(stage: Stage, env: dict[str, str], local: Path) -> None:
    """Two processes that `srun` starts train one model; on a cluster of one node both run there."""
    stage.say('`srun` starts two processes, which train one model with the average of their gradients.')
    (record,) = {json.loads(path.read_text())['site'] for path in local.glob('sub-*/**/*_desc-T1w_qc.json')}
    out = stage.work / 'trained'
    command = [
        PROGRAM.with_name('bidsharm-train'), 'ssl-restore', local, out, '--target', record, '--preset', 'tiny', '--budget', '20', '--interval', '10',
        '--device', 'cpu', '--threads', '1', '--devices', '2', '--nodes', '1',
    ]  # fmt: skip
    srun = ['srun', '--nodes', '1', '--ntasks-per-node', '2', '--cpus-per-task', '1', '--mem', '4G']
    said = stage.run([*srun, *command], env=env, timeout=600)
    stage.check('MEMBER: 2/2' in said, 'both processes took part')
    stage.check(said.count(str(out / 'model')) == 1, 'one of them wrote the model')
    stage.run([PROGRAM.with_name('bidsharm-models'), 'check', out / 'model'])


def model_of(sidecar: Path) -> str:
    """Return the digest of the bundle that an image was made with."""
    return str(json.loads(sidecar.read_text())['Harmonization']['ModelDigest'])


def same(stage: Stage, left: Path, right: Path, labels: tuple[str, ...]) -> None:
    """Demand that two output folders hold the same images of some subjects."""
    count = 0
    for label in labels:
        files = sorted(path.relative_to(left) for path in (left / f'sub-{label}').rglob('*.nii.gz'))
        others = sorted(path.relative_to(right) for path in (right / f'sub-{label}').rglob('*.nii.gz'))
        if files != others:
            raise Failed(f'{files} is not {others}')
        for name in files:
            one, two = nib.load(left / name), nib.load(right / name)
            equal = np.array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
            if not equal or not np.array_equal(one.affine, two.affine):
                raise Failed(f'{name} differs from that of the local run')
            count += 1
    stage.check(
        count > 0, f'{count} images of {", ".join(labels)} equal those of the local run, voxel by voxel'
    )


def has_cuda() -> bool:
    """Say whether PyTorch finds a card here."""
    import torch

    return bool(torch.cuda.is_available())


def ask(env: dict[str, str], *command: str) -> str:
    """Return what one of SLURM's programs prints."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **env}, check=False
    ).stdout


def queue(env: dict[str, str]) -> list[str]:
    """Return the jobs of this user that are in the queue."""
    return ask(env, 'squeue', '--noheader', f'--user={os.getuid()}', '--format=%A').split()


def records(env: dict[str, str]) -> list[dict[str, str]]:
    """Return what SLURM remembers of its jobs."""
    lines = ask(env, 'scontrol', 'show', 'job', '--oneliner').splitlines()
    return [dict(word.split('=', 1) for word in line.split() if '=' in word) for line in lines]


def jobs(env: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Return name and comment of the jobs that SLURM remembers, by their number."""
    return {
        item['JobId']: (item.get('JobName', ''), item.get('Comment', ''))
        for item in records(env)
        if 'JobId' in item
    }


def exits(env: dict[str, str], number: str) -> dict[str, str]:
    """Return the exit codes of a job or of the tasks of an array."""
    found = [item for item in records(env) if number in (item.get('JobId'), item.get('ArrayJobId'))]
    return {item.get('ArrayTaskId', ''): item['ExitCode'].split(':')[0] for item in found}


def wait(env: dict[str, str], stage: Stage, limit: float = 600) -> None:
    """Wait until the queue is empty."""
    until = time.monotonic() + limit
    while queue(env):
        if time.monotonic() > until:
            raise Failed(f'after {limit:.0f} s jobs are still in the queue')
        time.sleep(1)


def cancel_one(batch: Path, env: dict[str, str], limit: float = 300) -> None:
    """Cancel the first job of sub-02 that runs."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        for item in records(env):
            ours = str(batch) in item.get('Command', '') and '.sub_02_wf.' in item.get('Command', '')
            if ours and item.get('JobState') == 'RUNNING' and item.get('JobName') == 'conform':
                ask(env, 'scancel', item['JobId'])
                return
        time.sleep(0.2)
