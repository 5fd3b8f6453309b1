"""One tiny run from end to end: a head of 3 mm is simulated and harmonized as a user would do it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bidsharm.workflows.doctor.findings import Asked, Check, Finding, ok, problem, warning
from bidsharm.workflows.doctor.folders import nearest

GROUP = 'Trial'
#: Seconds after which the simulation and the run count as hung.
SIMULATE_S, RUN_S = 90.0, 300.0
#: Room for the head, intermediate files and results, in GB (0.25 were measured). Apptainer may give 0.064 for temporary files.
ROOM_GB = 0.3
SCAN = 'sub-01_ses-northA'
#: What has to be there afterwards, from the output folder.
EXPECTED = {
    'harmonized image': f'sub-01/ses-northA/anat/{SCAN}_desc-harmonized_T1w.nii.gz',
    'QC record': f'sub-01/ses-northA/anat/{SCAN}_desc-T1w_qc.json',
    'report': 'sub-01.html',
}
_FINISHED = re.compile(r'Finished "([^"]+)", elapsed time ([0-9.]+)s')


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    said: str
    seconds: float


def run(module: str, *arguments: str, limit_s: float) -> Ended:
    """Run a command of the package; code -1000 if it took too long."""
    started = time.monotonic()
    command = [sys.executable, '-m', f'bidsharm.cli.{module}', *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors='replace', timeout=limit_s, check=False, stdin=subprocess.DEVNULL
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ended(-1000, f'it took more than {limit_s:g} s and was stopped', limit_s)
    return Ended(done.returncode, done.stdout + done.stderr, time.monotonic() - started)


def room_for_trial(asked: Asked) -> Path | None:
    """Return a folder with enough room: where temporary files belong, else beside those of the run."""
    from bidsharm.workflows.scratch import free_gb

    given = [nearest(folder) for folder in (asked.work_dir, asked.output_dir) if folder is not None]
    places = [Path(tempfile.gettempdir()), *given]
    return next((place for place in places if os.access(place, os.W_OK) and free_gb(place) >= ROOM_GB), None)


def trial(asked: Asked) -> Iterator[Finding]:
    """Simulate a head and harmonize it."""
    place = room_for_trial(asked)
    if place is None:
        yield warning(
            f'There is no folder with {ROOM_GB:g} GB of room for a tiny run, so none was made.',
            'Give a folder with room as OUT_DIR or --work-dir.',
        )
        return
    with tempfile.TemporaryDirectory(
        prefix='.bidsharm-doctor-', dir=place, ignore_cleanup_errors=True
    ) as name:
        heads, out = Path(name) / 'heads', Path(name) / 'out'
        made = run(
            'simulate',
            str(heads),
            '--subjects',
            '1',
            '--scanners',
            'northA',
            '--resolution',
            '3',
            limit_s=SIMULATE_S,
        )
        if made.code:
            yield problem(
                f'No head could be simulated ({_last(made, name)}).', 'See what bidsharm-simulate OUT says.'
            )
            return
        done = run(
            'run', str(heads), str(out), 'participant', '--harmonizer', 'zscore', '--sloppy', '--skip-bids-validation', '--offline',
            '--device', asked.device, limit_s=RUN_S,
        )  # fmt: skip
        yield from judge_run(done, made.seconds, out)


def judge_run(done: Ended, simulated_s: float, out: Path) -> Iterator[Finding]:
    """Judge how the run ended and what it left behind.

    Parameters
    ----------
    done
        How the run ended.
    simulated_s
        How long the simulation took.
    out
        Output folder.
    """
    advice = 'Try it by hand: bidsharm-simulate heads --resolution 3, then bidsharm heads out participant --sloppy -v.'
    if done.code:
        yield problem(f'A tiny run failed ({_last(done, str(out.parent))}).', advice, code=done.code)
        return
    missing = [label for label, path in EXPECTED.items() if not _is_file(out / path)]
    if missing:
        yield problem(f'A tiny run ended well, but wrote no {", no ".join(missing)}.', advice)
        return
    steps = seconds_by_step(out / 'logs')
    longest = sorted(steps, key=lambda step: -steps[step])[:4]
    told = ', '.join(f'{step} {steps[step]:.1f} s' for step in longest)
    yield ok(
        f'One head of 3 mm was simulated in {simulated_s:.0f} s and harmonized in {done.seconds:.0f} s'
        f'{f" (longest steps: {told})" if told else ""}.',
        simulated_s=round(simulated_s, 1), run_s=round(done.seconds, 1), steps_s=steps,
    )  # fmt: skip


def _is_file(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def seconds_by_step(logs: Path) -> dict[str, float]:
    """Return the seconds of each step that Nipype's log tells of."""
    found: dict[str, float] = {}
    for file in logs.glob('*/nipype.log'):
        for step, seconds in _FINISHED.findall(file.read_text(encoding='utf-8', errors='replace')):
            found[step] = round(found.get(step, 0.0) + float(seconds), 2)
    return found


def _last(ended: Ended, folder: str) -> str:
    """Return the code and the last line that says something, without the folder of the trial."""
    lines = [line.strip() for line in ended.said.splitlines() if line.strip()]
    if len(lines) > 1 and 'an internal error' in lines[-1]:  # the line before names it
        lines.pop()
    said = (lines or ['it said nothing'])[-1].replace(f'{folder}/', '')[:300]
    return said if ended.code == -1000 else f'code {ended.code}: {said}'


CHECKS = (
    Check(GROUP, 'tiny run', trial, limit_s=SIMULATE_S + RUN_S + 20),
)  # fmt: skip
