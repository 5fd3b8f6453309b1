"""A stand-in for SLURM's programs: jobs run at once on this machine. ``fake_slurm.py sbatch|squeue|scontrol|scancel ...``

State lies in the folder ``FAKE_SLURM``: ``calls.jsonl`` holds how ``sbatch`` was called, ``N.state`` how job N is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ['FAKE_SLURM'])
FINAL = ('COMPLETED', 'FAILED', 'CANCELLED')


def sbatch(arguments: list[str]) -> int:
    if (ROOT / 'refuse').exists():
        print('sbatch: error: invalid partition specified: moon', file=sys.stderr)
        return 1
    number = 1
    while True:
        try:
            (ROOT / f'{number}.state').touch(exist_ok=False)
            break
        except FileExistsError:
            number += 1
    with (ROOT / 'calls.jsonl').open('a') as file:
        file.write(json.dumps(arguments) + '\n')
    write(number, 'PENDING')
    job = subprocess.Popen(
        [sys.executable, __file__, 'job', str(number), *arguments], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (ROOT / f'{number}.pid').write_text(str(job.pid))
    print(number if '--parsable' in arguments else f'Submitted batch job {number}')
    return 0


def job(arguments: list[str]) -> int:
    number, script = int(arguments[0]), arguments[-1]
    output = value(arguments, '-o', '--output').replace('%j', str(number))
    for other in filter(None, value(arguments, '', '--dependency').removeprefix('afterok:').split(':')):
        while read(int(other)) not in FINAL:
            time.sleep(0.05)
        if read(int(other)) != 'COMPLETED':
            write(number, 'CANCELLED')
            return 0
    write(number, 'RUNNING')
    with open(output, 'w') as log:
        code = subprocess.run(
            ['bash', script], stdout=log, stderr=log, check=False,
            env={**os.environ, 'SLURM_JOB_ID': str(number)},
        ).returncode  # fmt: skip
    write(number, 'FAILED' if code else 'COMPLETED')
    return 0


def squeue(arguments: list[str]) -> int:
    numbers = sorted(int(file.stem) for file in ROOT.glob('*.state'))
    for number in numbers:
        if read(number) not in FINAL:
            print(f'{number}|{read(number)}|None')
    return 0


def scontrol(arguments: list[str]) -> int:
    print(f'JobId={arguments[-1]} JobState={read(int(arguments[-1]))} Reason=None')
    return 0


def scancel(arguments: list[str]) -> int:
    for number in map(int, arguments):
        if read(number) not in FINAL:
            write(number, 'CANCELLED')
            os.killpg(int((ROOT / f'{number}.pid').read_text()), signal.SIGKILL)
    return 0


def value(arguments: list[str], short: str, long: str) -> str:
    for index, word in enumerate(arguments):
        if short and word == short:
            return arguments[index + 1]
        if word.startswith(f'{long}='):
            return word.partition('=')[2]
    return ''


def read(number: int) -> str:
    return (ROOT / f'{number}.state').read_text()


def write(number: int, state: str) -> None:
    part = ROOT / f'{number}.part'
    part.write_text(state)
    part.replace(ROOT / f'{number}.state')


if __name__ == '__main__':
    commands = {'sbatch': sbatch, 'job': job, 'squeue': squeue, 'scontrol': scontrol, 'scancel': scancel}
    sys.exit(commands[sys.argv[1]](sys.argv[2:]))
