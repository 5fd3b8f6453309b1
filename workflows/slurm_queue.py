"""Jobs in SLURM's queue: their script, and what becomes of them.

Every job leaves its exit code in a file of the run. What left the queue without one was killed, or vanished; SLURM is then
asked, and a sentence comes back. So nothing rests on accounting, which many clusters do not have.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.utils.filemanip import loadpkl

from bidsharm.errors import ConfigurationError, ScanError
from bidsharm.interfaces.isolated import end_of

#: Seconds between two looks into the queue; one look serves all jobs of a run.
POLL_S = 2.0

#: How long a shared file system may hide what a job has written (NFS keeps attributes for up to a minute).
GRACE_S = 60.0

#: How long SLURM may give no answer.
SILENCE_S = 900.0

#: How long nothing may start or end in the queue before the jobs that are left are given up.
QUEUE_LIMIT_S = float(os.environ.get('BIDSHARM_QUEUE_LIMIT_S', str(7 * 24 * 3600)))

#: Why a waiting job will never start, as ``squeue`` says it (spaces made underscores, lower case).
HOPELESS = ('dependencyneversatisfied', 'launch_failed_requeued_held', 'badconstraints')

#: What to do about a job that SLURM ended.
ADVICE = {
    'OUT_OF_MEMORY': 'Ask for more memory in sbatch_args of the plugin file.',
    'TIMEOUT': 'Ask for more time in sbatch_args of the plugin file.',
}


@dataclass
class Job:
    """One job of a run.

    Parameters
    ----------
    number
        Its number in SLURM.
    node
        The step that it runs.
    script
        Nipype's Python script of the step.
    submitted
        When it was handed over (seconds of the monotonic clock).
    gone
        When it was first seen to have left the queue.
    """

    number: int
    node: Any
    script: Path
    submitted: float
    gone: float | None = None

    @property
    def log(self) -> Path:
        """What the job prints."""
        return self.script.with_name(f'slurm-{self.number}.out')

    @property
    def dump(self) -> Path:
        """Where the script leaves its error when it could not even load the step."""
        return self.script.with_name(f'crashdump_{self.script.stem.removeprefix("pyscript_")}.pklz')

    def error(self, what: str, fix: str = '') -> str:
        """Return an error of this job, in the form in which crash files carry ours, behind what the job has printed."""
        printed = self._printed()
        if 'bidsharm.errors.' in printed:
            return printed
        last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), '')
        words = f'{what} Its last words: {last}' if last else what
        return f'{printed}\nbidsharm.errors.ScanError: {ScanError(words, where=self.node.name, fix=fix)}\n'

    def failure(self, end: int | str) -> str:
        """Return why the job failed, from its end as :meth:`Queue.end_of` gives it; nothing where it went well."""
        if self.dump.exists():
            return ''.join(loadpkl(str(self.dump))['traceback'])
        if end == 0 or isinstance(end, str):
            return '' if end == 0 else str(end)
        how = end_of(128 - end if end > 128 else end)
        return self.error(f'The job {self.number} of this step {how}.')

    def within_grace(self) -> bool:
        """Say whether a file of the job that is not there may still come up; the first call starts the clock."""
        self.gone = self.gone or time.monotonic()
        return time.monotonic() - self.gone < GRACE_S

    def _printed(self, most: int = 20000) -> str:
        try:
            return self.log.read_text(errors='replace')[-most:]
        except OSError:
            return ''


def job_template(given: str | None, folder: Path, variables: dict[str, str]) -> str:
    """Return a template for job scripts whose last line takes the next one as its command.

    Parameters
    ----------
    given
        Template of the plugin file: a path, or its text.
    folder
        Where a job leaves its exit code, in ``NUMBER.exit``.
    variables
        Environment that jobs need whatever ``--export`` says.
    """
    head = given or '#!/bin/bash'
    if os.path.isfile(head):
        head = Path(head).read_text(encoding='utf-8')
    exports = ''.join(f'export {name}={shlex.quote(value)}\n' for name, value in variables.items())
    place = shlex.quote(str(folder))
    # Nipype puts the command on a line of its own, so it can only be caught by a line that goes on there.
    keep = f'"$@"; code=$?; echo $code > {place}/$SLURM_JOB_ID.part'
    keep += f'; mv {place}/$SLURM_JOB_ID.part {place}/$SLURM_JOB_ID.exit; exit $code'
    return f'{head.rstrip()}\n{exports}/bin/bash -c {shlex.quote(keep)} job \\'


class Queue:
    """What SLURM says of the jobs of this user, asked at most every :data:`POLL_S` seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[int, tuple[str, str]] = {}
        self.answered = self.changed = time.monotonic()
        self.asked = float('-inf')

    def refresh(self) -> None:
        """Look into the queue, if the last look is old.

        Raises
        ------
        ConfigurationError
            If SLURM has not answered for :data:`SILENCE_S`.
        """
        now = time.monotonic()
        if now - self.asked < POLL_S:
            return
        self.asked = now
        code, text = ask('squeue', '--noheader', f'--user={os.getuid()}', '--format=%A|%T|%r')
        if code != 0:
            if now - self.answered > SILENCE_S:
                raise ConfigurationError(
                    f'squeue has given no answer for {SILENCE_S:.0f} s: {text.strip()}', where='--use-plugin',
                    fix='When SLURM answers again, the same command goes on.',
                )  # fmt: skip
            return
        rows = (line.split('|', 2) for line in text.splitlines() if line.count('|') >= 2)
        jobs = {int(number): (state, reason) for number, state, reason in rows if number.strip().isdigit()}
        if jobs != self.jobs:
            self.changed = now
        # The look began at `now`: what was handed over later may be missing in it.
        self.jobs, self.answered = jobs, now

    def end_of(self, job: Job) -> int | str | None:
        """Return the exit code of a job, the error why it has none, or None while it may still get one."""
        self.refresh()
        if job.number in self.jobs:
            return self._end_of_waiting(job)
        try:
            return int((self.folder / f'{job.number}.exit').read_text())
        except (OSError, ValueError):
            pass
        if self.answered <= job.submitted:
            return None
        state = self.ended_as(job.number)
        if state in ('', 'COMPLETED', 'FAILED') and job.within_grace():
            return None
        if state in ('COMPLETED', 'FAILED'):
            what = f'The job {job.number} of this step ended without its exit code.'
            return job.error(what, 'Is the working folder on a file system that all nodes see?')
        if not state:
            return job.error(f'The job {job.number} of this step vanished from SLURM.', 'Run again.')
        return job.error(
            f'SLURM ended the job {job.number} of this step: {state}.', ADVICE.get(state, 'Run again.')
        )

    def _end_of_waiting(self, job: Job) -> str | None:
        job.gone = None  # a job that was put back into the queue
        state, reason = self.jobs[job.number]
        still = time.monotonic() - self.changed
        if reason.strip('()').replace(' ', '_').lower() in HOPELESS:
            self.cancel([job.number])
            return job.error(f'The job {job.number} of this step can never start: {reason}.', 'Run again.')
        if still > QUEUE_LIMIT_S:
            self.cancel([job.number])
            what = f'The job {job.number} of this step was given up: nothing happened in the queue for {still:.0f} s'
            return job.error(f'{what} (state {state}, reason {reason}).', 'Raise BIDSHARM_QUEUE_LIMIT_S.')
        return None

    def ended_as(self, number: int) -> str:
        """Return the state in which a job ended, or nothing where SLURM does not know it any more."""
        code, text = ask('scontrol', 'show', 'job', '--oneliner', str(number))
        found = [word for word in text.split() if word.startswith('JobState=')]
        if code == 0 and found:
            return found[0].partition('=')[2]
        code, text = ask(
            'sacct', '--allocations', '--noheader', '--parsable2', '--format=State', f'--jobs={number}'
        )
        return text.split()[0] if code == 0 and text.split() else ''

    def cancel(self, numbers: Iterable[int]) -> None:
        """Cancel jobs."""
        if chosen := [str(number) for number in numbers]:
            ask('scancel', *chosen)

    def leave(self, numbers: Iterable[int]) -> None:
        """Cancel what is still in the queue and wait until it is gone: it writes into the working folder."""
        left = set(numbers)
        until = time.monotonic() + GRACE_S
        self.cancel(sorted(left))
        while left and time.monotonic() < until:
            self.asked = float('-inf')
            self.refresh()
            left &= set(self.jobs)
            time.sleep(min(POLL_S, 0.5))


def ask(*command: str) -> tuple[int, str]:
    """Run one of SLURM's programs; return its exit code and what it printed."""
    # SQUEUE_STATES and the like of a user would hide jobs from us.
    env = {name: value for name, value in os.environ.items() if not name.startswith(('SQUEUE_', 'SACCT_'))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr
