"""Kills: SIGTERM and SIGKILL at random moments of participant, group, train and simulate; what is left, and what the same command makes of it.

At each point a command is started, the signal goes to its first process only, and then must hold: the command ends in time and says so; no
process that it has started lives on; no file is partial under its final name; nothing temporary is left (after SIGKILL: only until the
next run); and the same command, run again, ends well with the outputs of a run that nobody disturbed.

``BIDSHARM_KILLS=3`` takes so many points of each command (default: 50), ``BIDSHARM_KILLS_OF=group,train`` these commands only.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from shared import LIMIT_S, CannotRun, Part, Row, command_line, heads

POINTS = int(os.environ.get('BIDSHARM_KILLS', '50'))
#: Seconds in which a command that is told to stop must end, and in which the processes of one that was killed must be gone.
END_S, ORPHANS_S = 20.0, 5.0
#: By this variable of the environment all processes of a point are found, also those whose parents are gone.
MARK = 'BIDSHARM_KILL_POINT'
QUICK = (
    '--sloppy', '--skip-bids-validation', '--nprocs', 2, '--omp-nthreads', 1, '--offline', '--device', 'cpu',
)  # fmt: skip
#: Fields of records that tell when, and how long.
TIMES = ('mtime_ns', 'seconds')


@dataclass(frozen=True)
class Command:
    """A command that can be killed.

    Parameters
    ----------
    name
        What it is called in the table.
    line
        Gives program and arguments for a folder of this point.
    out
        Its output folder in that folder.
    prepare
        Fills the folder before.
    when_done
        Its exit code where all that it makes is there already.
    """

    name: str
    line: Callable[[Path], list[str]]
    out: str = 'out'
    prepare: Callable[[Path], object] = Path.mkdir
    when_done: int = 0


@dataclass
class Undisturbed:
    """What a run that nobody disturbed takes and leaves."""

    seconds: float
    contents: dict[str, str]


@dataclass
class Point:
    """One kill: where it is done, and what was wrong."""

    command: Command
    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    wrong: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.folder / self.command.out

    @property
    def temporary(self) -> Path:
        """The folder for temporary files."""
        return self.folder / 'tmp'

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command."""
        self.temporary.mkdir(exist_ok=True)
        with (self.folder / 'said.log').open('wb') as said:
            return subprocess.Popen(
                self.command.line(self.folder), stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, 'OMP_NUM_THREADS': '1', 'TMPDIR': str(self.temporary), MARK: self.mark},
            )  # fmt: skip

    def words(self) -> str:
        """Return what it has said."""
        return (self.folder / 'said.log').read_text(errors='replace')

    def alive(self) -> list[psutil.Process]:
        """Return the processes of this point, wherever they hang."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def to_the_end(self, expected: int = 0) -> None:
        """Run the command as a user would run it again, and check its exit code."""
        program = self.start()
        try:
            code = program.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.wrong.append('run again, it hangs')
            code = expected
        if code != expected:
            self.wrong.append(f'run again, it ends with {code}: {self.words()[-300:]}')
        for process in self.alive():
            process.kill()


def kill(point: Point, number: signal.Signals, wait_s: float) -> None:
    """Start, wait, send the signal, and check what is there afterwards."""
    program = point.start()
    try:
        program.wait(wait_s)
    except subprocess.TimeoutExpired:
        program.send_signal(number)
    ended = time.monotonic()
    try:
        code = program.wait(END_S)
    except subprocess.TimeoutExpired:
        point.wrong.append(f'it runs on {END_S:g} s after {number.name}')
        program.kill()
        code = program.wait()
    _check_code(point, number, code)
    while (left := point.alive()) and time.monotonic() < ended + ORPHANS_S + (
        END_S if number == signal.SIGTERM else 0
    ):
        time.sleep(0.1)
    for process in left:
        point.wrong.append(f'a process lives on: {" ".join(process.cmdline())[:120]}')
        process.kill()
    point.wrong += [f'partial: {name}' for name in partial(point.out)]
    if number == signal.SIGTERM and code == 1:
        point.wrong += [f'left after SIGTERM: {name}' for name in remains(point)]


def _check_code(point: Point, number: signal.Signals, code: int) -> None:
    """Check how the command ended; at its very end, and before Python has come to its first line, a signal is not ours to take."""
    words = point.words()
    if code == 0 or code == -number == -signal.SIGKILL:
        return
    unheard = code == -signal.SIGTERM and 'stopped' not in words and 'Traceback' not in words
    if unheard and not remains(point):
        return
    if number != signal.SIGTERM or code != 1 or 'stopped; ' not in words or 'Traceback' in words:
        point.wrong.append(f'after {number.name} it ends with {code}: {words[-300:]}')


def remains(point: Point) -> list[str]:
    """Return what is temporary in the folders of a point."""
    outputs = [path for path in point.out.rglob('.*') if re.match(r'\.(tmp|work|run|building)-', path.name)]
    return [
        path.relative_to(point.folder).as_posix()
        for path in [*outputs, *point.temporary.glob('bidsharm*'), *point.folder.glob('work/*/.run-*')]
    ]


def partial(out: Path) -> list[str]:
    """Return the files under their final names that are not whole."""
    wrong = []
    for path in _files(out):
        try:
            _content(path)
        except Exception as error:  # noqa: BLE001 - whatever a reader says of it, it is not whole
            wrong.append(f'{path.relative_to(out)} ({type(error).__name__}: {error})')
    return wrong


def contents(out: Path) -> dict[str, str]:
    """Return what is in every file of the results, without times, as check sums by path."""
    return {path.relative_to(out).as_posix(): _content(path) for path in _files(out)}


def _files(out: Path) -> Iterator[Path]:
    """Yield the files of the results; logs are of a run, and locks and marks are of nobody."""
    for path in sorted(out.rglob('*')):
        parts = path.relative_to(out).parts
        if path.is_file() and parts[0] != 'logs' and not any(part.startswith('.') for part in parts):
            yield path


def _content(path: Path) -> str:
    """Return a check sum of what is in a file; whatever is not whole is an error."""
    data = path.read_bytes()
    if path.name.endswith('.nii.gz'):
        import nibabel as nib
        import numpy as np

        image = nib.load(path)
        data = np.asarray(image.dataobj).tobytes() + image.affine.tobytes() + image.header.binaryblock
    elif path.suffix == '.json':
        data = json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
    elif path.suffix == '.html':
        assert data.rstrip().endswith(b'</html>')
        data = re.sub(rb'<dt>Time</dt><dd>[^<]*</dd>', b'', data)
    elif path.suffix == '.tsv':
        assert data.endswith(b'\n')
        assert len({row.count(b'\t') for row in data.splitlines()}) == 1
    elif path.suffix == '.h5':
        data = _hdf5(path)
    elif path.suffix in ('.png', '.webp'):
        from PIL import Image

        data = Image.open(path).convert('RGB').tobytes()
    elif path.suffix == '.npy':
        import numpy as np

        data = np.load(path).tobytes()
    elif path.suffix == '.pt':
        import torch

        data = ' '.join(torch.load(path, weights_only=True)).encode()
    elif path.name == 'log.csv':
        data = b'\n'.join(re.sub(rb'^(\d+),[^,]*', rb'\1', row) for row in data.splitlines())
    elif path.name == 'model.safetensors':
        from bidsharm.harmonizers.bundle import digest

        digest(path.parent)
    return hashlib.sha256(data).hexdigest()


def _timeless(content: Any, name: str = '') -> Any:
    """Return a record without what differs between two runs: times, and check sums of files that hold some (HDF5)."""
    if isinstance(content, dict):
        return {
            key: _timeless(value, key)
            for key, value in content.items()
            if key not in TIMES and not (key == 'sha256' and name.endswith('.h5'))
        }
    return [_timeless(value) for value in content] if isinstance(content, list) else content


def _hdf5(path: Path) -> bytes:
    import h5py

    found: list[bytes] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.append(name.encode() + item[()].tobytes()) if hasattr(item, 'shape') and item.dtype.kind in 'fiu' else None)  # fmt: skip
    return b''.join(found)


def undisturbed(command: Command, folder: Path) -> Undisturbed:
    """Run a command to its end, and keep what it leaves."""
    command.prepare(folder)
    point = Point(command, folder)
    started = time.monotonic()
    point.to_the_end()
    seconds = time.monotonic() - started
    if point.wrong:
        raise CannotRun(f'{command.name}: {"; ".join(point.wrong)}')
    found = contents(point.out)
    shutil.rmtree(folder)
    return Undisturbed(seconds, found)


def try_point(
    command: Command, folder: Path, number: signal.Signals, share: float, expected: Undisturbed
) -> Point:
    """Kill a command after a share of its usual time, run it again, and compare with what it leaves undisturbed."""
    command.prepare(folder)
    point = Point(command, folder)
    kill(point, number, share * expected.seconds)
    # The signal may come after the last file, while Python ends.
    done = not partial(point.out) and contents(point.out) == expected.contents and not remains(point)
    point.to_the_end(command.when_done if done else 0)
    found = contents(point.out) if not (broken := partial(point.out)) else {}
    point.wrong += [f'partial in the end: {name}' for name in broken]
    differ = sorted(
        name for name in found.keys() | expected.contents if found.get(name) != expected.contents.get(name)
    )
    if differ:
        point.wrong.append(f'differs from an undisturbed run: {", ".join(differ[:5])}')
    point.wrong += [f'left in the end: {name}' for name in remains(point)]
    shutil.rmtree(folder, ignore_errors=True)
    return point


def participant(data: Path, method: str, *more: str) -> Callable[[Path], list[str]]:
    """Return how the participant level is called; a folder ``work`` is one of the point."""
    return lambda here: command_line(
        data, here / 'out', 'participant', '--harmonizer', method, *QUICK,
        *(here / name if name == 'work' else name for name in more),
    )  # fmt: skip


def commands(work: Path) -> list[tuple[Command, int]]:
    """Return the commands, and their share of the points of their kind; data that they need are made."""
    one = heads(work / 'one')
    two = heads(work / 'two', subjects=2, scanners=('northA', 'southB'), resolution=4)
    derivatives = work / 'derivatives'
    done = subprocess.run(
        command_line(two, derivatives, 'participant', '--harmonizer', 'zscore', *QUICK), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=LIMIT_S, check=False, env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    if done.returncode:
        raise CannotRun(done.stdout + done.stderr)

    def copy(here: Path) -> None:
        shutil.copytree(derivatives, here / 'out')

    return [
        (Command('participant', participant(one, 'zscore')), 4),
        (Command('participant, with --work-dir', participant(one, 'zscore', '--work-dir', 'work')), 5),
        (Command('participant, learning a target', participant(two, 'nyul')), 1),
        (Command('group', lambda here: command_line(two, here / 'out', 'group'), prepare=copy), 10),
        (Command('train', lambda here: command_line(
            'cyclegan', derivatives, here / 'out', '--target', 'southB', '--site', 'session', '--preset', 'tiny', '--threads', 1,
            '--device', 'cpu', '--set', 'batch=2', 'voxel_mm=8.0', '--budget', 40, '--interval', 5, command='bidsharm-train',
        )), 10),
        (Command('simulate', lambda here: command_line(
            here / 'out', '--subjects', 2, '--scanners', 2, '--resolution', 5, command='bidsharm-simulate',
        ), when_done=2), 10),
    ]  # fmt: skip


def sweep(part: Part, command: Command, points: int) -> list[Row]:
    """Kill a command at some moments; half of them with each signal."""
    choice = random.Random(f'{part.seed} {command.name}')
    folder = part.work / hashlib.sha256(command.name.encode()).hexdigest()[:8]
    expected = undisturbed(command, folder)
    print(
        f'[kills] {command.name}: {expected.seconds:.1f} s undisturbed, {len(expected.contents)} files',
        flush=True,
    )
    told: dict[signal.Signals, list[Point]] = {signal.SIGTERM: [], signal.SIGKILL: []}
    for index in range(points):
        number = (signal.SIGTERM, signal.SIGKILL)[index % 2]
        share = choice.random()
        point = try_point(command, folder, number, share, expected)
        told[number].append(point)
        said = '; '.join(point.wrong) or 'survived'
        print(
            f'[kills] {command.name} {index + 1}/{points}: {number.name} at {100 * share:.0f} %: {said}',
            flush=True,
        )
    return [_row(command, number, tried) for number, tried in told.items() if tried]


def _row(command: Command, number: signal.Signals, tried: Sequence[Point]) -> Row:
    bad = [point for point in tried if point.wrong]
    happened = f'{len(bad)} of {len(tried)} did not survive' if bad else 'survived'
    message = '; '.join(dict.fromkeys(text for point in bad for text in point.wrong))[:1000]
    return Row('kill', f'{command.name}: {number.name}', happened, message, not bad, len(tried))


def run(part: Part) -> None:
    """Kill every command; two at a time."""
    chosen = os.environ.get('BIDSHARM_KILLS_OF', '')
    listed = [
        (command, max(1, round(POINTS * share / 10)))
        for command, share in commands(part.work)
        if not chosen or command.name.split(',')[0] in chosen.split(',')
    ]
    # The long ones first, so that both cores have work until the end.
    with ThreadPoolExecutor(2) as pool:
        for rows in pool.map(lambda item: sweep(part, *item), listed):
            for row in rows:
                part.add(row)
