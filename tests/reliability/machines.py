"""Bad machines: full disks, little memory, no network, jumping clocks, crashing and hanging programs, several processes at once.

Each check runs the app as a user would and compares the exit code, the words, and every file that is left with what a normal run writes.
Most of them need root and Linux (small file systems in memory, network and mount namespaces, control groups of version 1); what cannot be
done is named in the result. ``BIDSHARM_MACHINES=disk,clock`` runs only the groups of these names.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared import CannotRun, Part, Row, checksums, command_line, heads

#: Options of every run.
QUICK = (
    '--harmonizer', 'zscore', '--sloppy', '--skip-bids-validation', '--nprocs', '2', '--omp-nthreads', '1', '--device', 'cpu',
)  # fmt: skip
#: The target of methods that learn one.
AIM = ('--site', 'session', '--target', 'northA')
#: Where one scan is enough.
ONE = ('--participant-label', '01')
#: Seconds after which a command counts as hung.
LIMIT_S = 900
#: Seconds after which a step counts as hung where a program does hang; a busy machine needs half of it for brain extraction.
HANGS_S = 120
#: An identity without a name and without any right.
NOBODY = 54321
MEMORY_GROUPS = Path('/sys/fs/cgroup/memory')
#: Words for what no step said; a user can do nothing with them.
VAGUE = ('no step reported why', 'internal error', 'Traceback (most recent call last)')
STUBS = ('N4BiasFieldCorrection', 'antsApplyTransforms', 'antsRegistration')


@dataclass
class Ended:
    """How a command ended; ``full`` for a run that reused nothing."""

    code: int
    text: str
    seconds: float
    full: bool = False

    @property
    def words(self) -> str:
        """What it says about the first thing that failed."""
        lines = [line.strip() for line in self.text.splitlines()]
        told = [line for line in lines if line.startswith(('FAILED', 'bidsharm', 'left out'))]
        return ' '.join((told or lines[-1:] or [''])[0].split())


@dataclass
class Bench:
    """Two small heads and what a normal run makes of them.

    Parameters
    ----------
    part
        Where rows go.
    data
        The data set.
    whole
        Output folder of a normal run.
    normal
        Contents of the results of normal runs, by path: of one that did all steps, and of one that took brain masks, bias-corrected scans,
        transforms and tissues from ``whole``, as most checks do to save time.
    kept
        Check sums of the data set.
    """

    part: Part
    data: Path
    whole: Path
    normal: dict[bool, dict[str, str]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def folder(self, name: str = 'out') -> Path:
        """Return a path that is not used yet."""
        self.count += 1
        return self.part.work / f'{self.count:03d}-{name}'

    def run(
        self, out: Path, *more: object, level: str = 'participant', data: Path | None = None, **how: Any
    ) -> Ended:
        """Run the app; ``full`` does all steps, ``network`` allows to look for templates."""
        offline = () if how.pop('network', False) else ('--offline',)
        full = how.pop('full', False)
        reused = () if full else ('--derivatives', f'whole={self.whole}')
        ended = call(command_line(data or self.data, out, level, *QUICK, *offline, *reused, *more), **how)
        return replace(ended, full=full)

    def placeless(self, text: str) -> str:
        """Return a message without the place of this run on this machine."""
        return re.sub(r'\b\d{3}-(?=\w)', '', text.replace(f'{self.part.work}/', ''))

    def subjects_done(self, out: Path, *, full: bool) -> list[str]:
        """Return the subjects of which all results equal those of a normal run."""
        found, normal = results(out), self.normal[full]
        return [subject for subject in ('sub-01', 'sub-02') if _of(found, subject) == _of(normal, subject)]

    def judge(
        self,
        what: str,
        ended: Ended,
        out: Path,
        *,
        code: int | Sequence[int],
        done: Sequence[str] | None = None,
        words: Sequence[str] = (),
        also: Mapping[str, bool] | None = None,
        kind: str = 'machine',
    ) -> None:
        """Compare how a run ended with how it must end, and keep the row.

        Parameters
        ----------
        what
            What was done to the machine.
        ended, out
            The run, and its output folder.
        code
            Exit codes that are right.
        done
            Subjects whose results must be those of a normal run; None where that may be any.
        words
            The output must hold one of these.
        also
            Further demands, by name.
        """
        wrong = [name for name, held in (also or {}).items() if not held]
        codes = (code,) if isinstance(code, int) else code
        if ended.code not in codes:
            wrong.append(f'exit code {ended.code}')
        if words and not any(word.lower() in ended.text.lower() for word in words):
            wrong.append('the message does not say why')
        wrong += [f'it says "{vague}"' for vague in VAGUE if vague in ended.text]
        wrong += [f'{name} is not whole' for name in broken(out)]
        if done is not None and (found := self.subjects_done(out, full=ended.full)) != list(done):
            wrong.append(f'{", ".join(found) or "no subject"} done instead of {", ".join(done) or "none"}')
        if checksums(self.data) != self.kept:
            wrong.append('the data set was changed')
        happened = {
            0: 'done',
            1: 'scan named, run ends',
            2: 'refused',
            78: 'refused',
            -9: 'the kernel ends the run itself',
        }.get(ended.code, f'code {ended.code}')
        message = '' if ended.code == 0 else self.placeless(ended.words)
        if wrong:
            happened += f' ({"; ".join(wrong)})'
            (self.part.work / f'wrong-{len(self.part.rows)}.txt').write_text(ended.text)
            print(ended.text[-3000:])
        self.part.add(Row(kind, what, happened, message, ok=not wrong))


def call(
    command: Sequence[object],
    *,
    prefix: Sequence[object] = (),
    env: Mapping[str, str | None] | None = None,
    limit_s: float = LIMIT_S,
    **more: Any,
) -> Ended:
    """Run a command to its end; all that it has started goes with it where it takes too long.

    Parameters
    ----------
    command
        Program and arguments.
    prefix
        What it is run by: ``setpriv``, ``unshare`` ...
    env
        Variables on top of those of this process; None takes one away.
    limit_s
        Seconds after which it counts as hung.
    **more
        To :class:`subprocess.Popen`.
    """
    changed = {**os.environ, 'OMP_NUM_THREADS': '1', **(env or {})}
    environment = {name: value for name, value in changed.items() if value is not None}
    streams: dict[str, Any] = {
        'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True, 'errors': 'replace',
    }  # fmt: skip
    started = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in (*prefix, *command)],
        env=environment,
        start_new_session=True,
        **{**streams, **more},
    )
    try:
        text, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return Ended(process.returncode, (text or '') + (errors or ''), time.monotonic() - started)


def results(out: Path) -> dict[str, str]:
    """Return check sums of the results, by path, without what tells times; records only by what they conclude."""
    found = {
        name: digest
        for name, digest in checksums(out).items()
        if name.startswith('sub-')
        and '/' in name
        and not name.endswith(('.h5', '_qc.json'))
        and '/.' not in name
    }
    for file in out.glob('sub-*/**/*_qc.json'):
        try:
            record = json.loads(file.read_text())
            told = [record['verdict'], record['digest'], sorted(record['outputs']), sorted(record['figures'])]
        except (ValueError, KeyError) as error:
            told = [f'broken: {error}']
        found[file.relative_to(out).as_posix()] = json.dumps(told)
    return found


def _of(found: Mapping[str, str], subject: str) -> dict[str, str]:
    return {name: value for name, value in found.items() if name.startswith(f'{subject}/')}


def broken(out: Path) -> list[str]:
    """Return the files under their final names that are not whole."""
    import nibabel as nib

    wrong = []
    for file in sorted(out.rglob('*')) if out.is_dir() else ():
        name = file.relative_to(out).as_posix()
        if (
            not file.is_file()
            or any(part.startswith('.') for part in file.relative_to(out).parts)
            or name.startswith('logs/')
        ):
            continue
        try:
            if name.endswith('.nii.gz'):
                nib.load(file).get_fdata()
            elif name.endswith('.json'):
                json.loads(file.read_text())
            elif name.endswith('.tsv'):
                rows = file.read_text().splitlines()
                assert len({row.count('\t') for row in rows}) == 1
            elif name.endswith('.html'):
                assert '</html>' in file.read_text()[-200:]
            elif not file.stat().st_size and not name.endswith('.lock'):
                raise ValueError('empty')
        except Exception:  # noqa: BLE001 - whatever a reader raises, the file is not whole
            wrong.append(name)
    return wrong


# --- What is done to machines ---


@contextlib.contextmanager
def small_disk(place: Path, options: str) -> Iterator[Path]:
    """Mount a small file system in memory."""
    need_root()
    place.mkdir(parents=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', place], check=True)
    try:
        yield place
    finally:
        subprocess.run(['umount', '-l', place], check=False)


def remount(place: Path, options: str) -> None:
    """Change a mounted file system."""
    subprocess.run(['mount', '-o', f'remount,{options}', place], check=True)


@contextlib.contextmanager
def little_memory(name: str, megabytes: int) -> Iterator[list[str]]:
    """Give the words in front of a command by which it and all that it starts get so much memory in all."""
    need_root()
    if not (MEMORY_GROUPS / 'memory.limit_in_bytes').exists():
        raise CannotRun('memory limits (no control groups of version 1)')
    group = MEMORY_GROUPS / f'bidsharm-{os.getpid()}-{name}'
    group.mkdir()
    (group / 'memory.limit_in_bytes').write_text(str(megabytes << 20))
    with contextlib.suppress(OSError):
        (group / 'memory.memsw.limit_in_bytes').write_text(str(megabytes << 20))
    try:
        yield ['sh', '-c', f'echo $$ > {group}/tasks && exec "$@"', 'sh']
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.2)


def need_root() -> None:
    """End the check where this is not root."""
    if os.geteuid() != 0:
        raise CannotRun('checks that need root')


def need(program: str) -> str:
    """Return the path of a program, or end the check."""
    if (found := shutil.which(program)) is None:
        raise CannotRun(f'checks that need {program}')
    return found


def nobody() -> list[str]:
    """Return the words in front of a command by which an identity without a name runs it, which may read all and write nothing."""
    need_root()
    may = (
        '--inh-caps=+dac_read_search',
        '--ambient-caps=+dac_read_search',
    )  # this Python may lie in a home folder
    return [need('setpriv'), f'--reuid={NOBODY}', f'--regid={NOBODY}', '--clear-groups', *may]


def like_anybody() -> list[str]:
    """Return the words in front of a command by which root is bound by the rights of files like anybody."""
    need_root()
    return [need('setpriv'), '--bounding-set=-all', '--inh-caps=-all']


def fake_ants(folder: Path, evil: str, *, tool: str) -> dict[str, str]:
    """Put programs on the PATH that do as ANTs does, but for one of them on the scans of the first subject."""
    folder.mkdir()
    for name in STUBS:
        special = f'case "$PWD" in *sub_01*) {evil};; esac\n' if name == tool else ''
        asked = 'if [ "$1" = --version ]; then echo "ANTs Version: 2.5.0"; exit 0; fi\n'
        file = folder / name
        file.write_text(
            f'#!/bin/sh\n{asked}{special}exec "{sys.executable}" -m bidsharm.interfaces.antspyx {name} "$@"\n'
        )
        file.chmod(0o755)
    return {'PATH': f'{folder}:{os.environ["PATH"]}'}


def saboteur(folder: Path, error: str, where: str) -> dict[str, str]:
    """Have every Python process meet an error of the system when a file whose name holds some text takes its final name."""
    folder.mkdir()
    (folder / 'sitecustomize.py').write_text(
        'import errno, os\n'
        'replace = os.replace\n'
        'def sabotaged(source, target, **more):\n'
        f'    if {where!r} in os.fspath(target):\n'
        f'        raise OSError(errno.{error}, os.strerror(errno.{error}), os.fspath(target))\n'
        '    return replace(source, target, **more)\n'
        'os.replace = os.rename = sabotaged\n'
    )
    return {'PYTHONPATH': os.pathsep.join(filter(None, (str(folder), os.environ.get('PYTHONPATH', ''))))}


# --- Disks ---

NO_ROOM = ('disk is full', 'no room', 'no space')


def disk(bench: Bench) -> None:
    """Disks that fill, at different moments."""
    for size in ('200k', '4m'):
        with small_disk(bench.folder(), f'size={size}') as place:
            out = place / 'out'
            ended = bench.run(out)
            bench.judge(f'output folder: {size} of room', ended, out, code=1, words=NO_ROOM)
            remount(place, 'size=200m')
            ended = bench.run(out)
            bench.judge(
                f'the same, after room was made ({size})', ended, out, code=0, done=['sub-01', 'sub-02']
            )
    with small_disk(bench.folder(), 'size=200m,nr_inodes=30') as place:
        out = place / 'out'
        ended = bench.run(out)
        bench.judge('output folder: no more files may be made (inodes)', ended, out, code=1, words=NO_ROOM)
    with small_disk(bench.folder('work'), 'size=40m') as work:
        out = bench.folder()
        ended = bench.run(out, '-w', work, full=True)
        bench.judge('working folder: 40m of room', ended, out, code=1, words=NO_ROOM)
        remount(work, 'size=1000m')
        ended = bench.run(out, '-w', work, full=True)
        bench.judge('the same, after room was made (40m)', ended, out, code=0, done=['sub-01', 'sub-02'])
    with small_disk(bench.folder('tmp'), 'size=1m') as temporary:
        out = bench.folder()
        ended = bench.run(out, *ONE, env={'TMPDIR': str(temporary)})
        bench.judge('folder for temporary files: 1m of room', ended, out, code=0, done=['sub-01'])


def disk_commands(bench: Bench) -> None:
    """The other commands on full disks."""
    normal = bench.whole
    for name, size, arguments in (
        ('simulate', '1m', ('--subjects', 1, '--scanners', 1, '--resolution', 2.5)),
        ('train', '100k', ('--preset', 'tiny', '--budget', 4, '--device', 'cpu')),
        ('evaluate', '8k', ('--no-cnn', '--resamples', 10, '--permutations', 5)),
        ('group', '4k', ()),
    ):
        with small_disk(bench.folder(name), f'size={size}') as place:
            out = place / 'out'
            if name == 'group':
                out = place
                remount(place, 'size=100m')
                shutil.copytree(normal, out, dirs_exist_ok=True)
                used = shutil.disk_usage(place).used
                remount(place, f'size={used + 4096}')
                command = command_line(bench.data, out, 'group')
            elif name == 'evaluate':
                command = command_line(out, f'zscore={normal}', *arguments, command='bidsharm-evaluate')
            elif name == 'train':
                command = command_line(
                    'blindharmony', normal, out, *AIM, *arguments, command='bidsharm-train'
                )
            else:
                command = command_line(out, *arguments, command='bidsharm-simulate')
            ended = call(command)
            bench.judge(f'{name}: {size} of room', ended, out, code=1, words=NO_ROOM)


def rights(bench: Bench) -> None:
    """Folders that may not be written, scans that may not be read, quotas."""
    with small_disk(bench.folder(), 'size=50m') as place:
        remount(place, 'ro')
        ended = bench.run(place / 'out')
        bench.judge(
            'output on a file system that can only be read',
            ended,
            place / 'out',
            code=(1, 2),
            words=('read-only', 'can only be read', 'cannot be'),
        )
    out = bench.folder()
    out.mkdir(mode=0o755)
    ended = bench.run(out, prefix=nobody(), env={'HOME': '/nonexistent'})
    bench.judge(
        'output folder of somebody else', ended, out, code=(1, 2), words=('cannot be written', 'permission')
    )
    data, out = bench.folder('data'), bench.folder()
    shutil.copytree(bench.data, data)
    scan = next((data / 'sub-02').rglob('*_T1w.nii.gz'))
    scan.chmod(0o600)
    os.chown(scan, NOBODY, NOBODY)
    ended = bench.run(out, prefix=like_anybody(), data=data)
    bench.judge(
        'one scan may not be read',
        ended,
        out,
        code=1,
        done=['sub-01'],
        words=('permission',),
        also={'sub-02 is named': 'sub-02' in ended.text},
    )
    for error, words in (
        ('EDQUOT', ('quota',)),
        ('EROFS', ('read-only', 'can only be read')),
        ('EIO', ('disk reports an error', 'input/output')),
    ):
        out = bench.folder()
        env = saboteur(bench.folder('sabotage'), error, 'sub-01_ses-northA_desc-harmonized_T1w.nii.gz')
        ended = bench.run(out, env=env)
        bench.judge(
            f'{error} when one image takes its final name (simulated)',
            ended,
            out,
            code=1,
            done=['sub-02'],
            words=words,
        )
    ended = bench.run(out)
    bench.judge(
        'the same command on a machine that is well again', ended, out, code=0, done=['sub-01', 'sub-02']
    )


# --- Memory ---


def memory(bench: Bench) -> None:
    """Little memory."""
    for megabytes in (250, 600):
        with little_memory(str(megabytes), megabytes) as prefix:
            out = bench.folder()
            ended = bench.run(out, prefix=prefix, full=True)
            bench.judge(
                f'{megabytes} MB of memory for all processes together', ended, out, code=(1, -9), words=('memory', 'killed') if ended.code != -9 else (),
                also={'it ends by itself': ended.seconds < LIMIT_S},
            )  # fmt: skip
    with little_memory('2000', 2000) as prefix:
        out = bench.folder()
        bench.judge(
            '2 GB of memory for all processes together',
            bench.run(out, prefix=prefix, full=True),
            out,
            code=0,
            done=['sub-01', 'sub-02'],
        )
    for gigabytes in (1, 3):
        out = bench.folder()
        ended = bench.run(out, *ONE, full=True, prefix=[need('prlimit'), f'--as={int(gigabytes * 2**30)}'])
        bench.judge(
            f'{gigabytes:g} GB of addresses for each process (ulimit -v)',
            ended,
            out,
            code=(0, 1),
            words=() if ended.code == 0 else ('memory',),
        )


# --- Programs ---


def programs(bench: Bench) -> None:
    """Programs that crash, hang, and lie."""
    cases = (
        ('crashes (SIGSEGV)', 'kill -SEGV $$', 'antsRegistration', ('SIGSEGV',)),
        ('crashes (SIGSEGV)', 'kill -SEGV $$', 'N4BiasFieldCorrection', ('SIGSEGV',)),
        ('hangs', 'sleep 100000 & wait', 'N4BiasFieldCorrection', ('took more than',)),
        (
            'hangs and does not let itself be ended',
            'trap "" TERM INT; sleep 100000',
            'antsRegistration',
            ('took more than',),
        ),
        (
            'says that all is well and writes nothing',
            'exit 0',
            'N4BiasFieldCorrection',
            ('N4BiasFieldCorrection ended without an error but did not write',),
        ),
        ('ends with code 3', 'echo out of luck >&2; exit 3', 'antsApplyTransforms', ('out of luck',)),
    )
    for what, evil, tool, words in cases:
        out, stubs = bench.folder(), bench.folder('bin')
        ended = bench.run(
            out, full=True, env={**fake_ants(stubs, evil, tool=tool), 'BIDSHARM_STEP_LIMIT_S': str(HANGS_S)}
        )
        left = subprocess.run(
            ['pgrep', '-f', 'sleep 100000'], capture_output=True, text=True, check=False
        ).stdout
        bench.judge(
            f'{tool} {what}', ended, out, code=1, words=words,
            also={'sub-01 is named': 'FAILED    sub-01' in ended.text, 'sub-02 is finished': (out / 'sub-02.html').exists()
                  and 'FAILED    sub-02' not in ended.text, 'nothing keeps running': not left.strip()},
        )  # fmt: skip


# --- Clocks ---


#: What time of day it is, shifted by so many seconds as stand in a file; other clocks go on, as they do when somebody sets this one.
CLOCK = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    char text[32] = {0};
    const char *name = getenv("SHIFT_FILE");
    int file = name ? open(name, O_RDONLY) : -1;
    if (file < 0) return 0;
    ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    return got > 0 ? atol(text) : 0;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    long code = syscall(SYS_clock_gettime, id, now);
    if (!code && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return (int)code;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


def wrong_clock(folder: Path) -> tuple[dict[str, str], Path]:
    """Return variables under which programs see a shifted time of day, and the file that says by how many seconds."""
    folder.mkdir()
    (folder / 'clock.c').write_text(CLOCK)
    library, file = folder / 'clock.so', folder / 'shift'
    subprocess.run([need('cc'), '-shared', '-fPIC', '-O1', '-o', library, folder / 'clock.c'], check=True)
    file.write_text('0')
    return {'LD_PRELOAD': str(library), 'SHIFT_FILE': str(file)}, file


def clock(bench: Bench) -> None:
    """Clocks that are wrong, and clocks that jump."""
    env, shift = wrong_clock(bench.folder('clock'))
    for year in (1999, 2040):
        out, work = bench.folder(), bench.folder('work')
        shift.write_text(str(round((year - datetime.now(UTC).year) * 365.25 * 86400)))
        ended = bench.run(out, '-w', work, env=env)
        dated = any(folder.name.startswith(f'{year}') for folder in (out / 'logs').iterdir())
        bench.judge(
            f'the clock is in {year}',
            ended,
            out,
            code=0,
            done=['sub-01', 'sub-02'],
            also={'it was believed': dated},
        )
        again = bench.run(out, '-w', work)
        bench.judge(
            f'the run after that, with the right clock ({year})', again, out, code=0, done=['sub-01', 'sub-02'],
            also={'nothing is done again': '2 were done before' in again.text},
        )  # fmt: skip
    for way, seconds in (('forward', 86400), ('backward', -86400)):
        out = bench.folder()
        shift.write_text('0')
        jump = subprocess.Popen(['sh', '-c', f'sleep 6; echo {seconds} > {shift}; sleep 6; echo 0 > {shift}'])
        try:
            ended = bench.run(out, env=env)
        finally:
            jump.wait(60)
        bench.judge(f'the clock jumps a day {way}, and back', ended, out, code=0, done=['sub-01', 'sub-02'])
    data, out = bench.folder('data'), bench.folder()
    shutil.copytree(bench.data, data)
    for file in data.rglob('*'):
        os.utime(file, (2**31, 2**31))
    bench.judge(
        'all files of the data set are from 2038',
        bench.run(out, data=data),
        out,
        code=0,
        done=['sub-01', 'sub-02'],
    )
    again = bench.run(out, data=data)
    bench.judge(
        'the run after that',
        again,
        out,
        code=0,
        done=['sub-01', 'sub-02'],
        also={'nothing is done again': '2 were done before' in again.text},
    )


# --- Several processes ---


def together(bench: Bench) -> None:
    """Several processes on one output folder."""
    both = ['sub-01', 'sub-02']
    out = bench.folder()
    ended = at_once(bench, [(out, '--participant-label', label) for label in ('01', '02')])
    _judge_all(bench, 'two processes, a subject each', ended, out, done=both)
    out = bench.folder()
    ended = at_once(bench, [(out,), (out,)])
    _judge_all(bench, 'two processes on the same subjects', ended, out, done=both)
    out = bench.folder()
    ended = at_once(bench, [(out, '-w', bench.folder('work')) for _ in range(2)])
    _judge_all(bench, 'the same, a working folder each', ended, out, done=both)
    out, work = bench.folder(), bench.folder('work')
    ended = at_once(bench, [(out, '-w', work) for _ in range(4)])
    # A subject that another one is at is not waited for; one of the four does the work.
    told = all(one.code == 0 or 'Another bidsharm is working on' in one.text for one in ended)
    _judge_all(
        bench,
        'four processes on the same subjects and one working folder',
        ended,
        out,
        done=both,
        codes=(0, 1),
        also={'they say so': told},
    )
    again = bench.run(out, '-w', work)
    bench.judge(
        'one run after these',
        again,
        out,
        code=0,
        done=both,
        also={'nothing is done again': '2 were done before' in again.text},
    )
    beside = subprocess.Popen(
        [
            'sh',
            '-c',
            'while true; do "$@" > /dev/null 2>&1; done',
            'sh',
            *command_line(bench.data, out, 'group'),
        ],
        start_new_session=True,
    )
    try:
        ended = [bench.run(out, '--force')]
    finally:
        os.killpg(beside.pid, signal.SIGKILL)
        beside.wait(30)
    _judge_all(bench, 'group level again and again beside a run', ended, out, done=both)
    last = call(command_line(bench.data, out, 'group'))
    bench.judge(
        'group level after that',
        last,
        out,
        code=0,
        done=both,
        also={'the table has both': _rows(out / 'group_T1w.tsv') == 2},
    )


def together_commands(bench: Bench) -> None:
    """Two trainings, two simulations, two that learn a target."""
    normal = bench.whole
    out = bench.folder('simulated')
    line = command_line(
        out, '--subjects', 1, '--scanners', 1, '--resolution', 2.5, command='bidsharm-simulate'
    )
    ended = start_at_once([line, line])
    _judge_commands(
        bench,
        'two simulations into one folder',
        ended,
        out,
        refused='Another bidsharm-simulate',
        or_late='The folder is not empty',
    )
    out = bench.folder('training')
    line = command_line(
        'blindharmony',
        normal,
        out,
        *AIM,
        '--preset',
        'tiny',
        '--budget',
        300,
        '--interval',
        50,
        '--device',
        'cpu',
        command='bidsharm-train',
    )
    ended = start_at_once([line, line])
    _judge_commands(bench, 'two trainings into one folder', ended, out, refused='Another bidsharm-train')
    out = bench.folder()
    options = ('--harmonizer', 'nyul', *AIM)
    ended = at_once(bench, [(out, *options, '--participant-label', label) for label in ('01', '02')])
    models = [item for item in (out / 'models').iterdir() if not item.name.startswith('.')]
    _judge_all(
        bench,
        'two processes that learn the same target',
        ended,
        out,
        done=None,
        also={'one model': len(models) == 1},
    )


def _rows(file: Path) -> int:
    return len(file.read_text().splitlines()) - 1 if file.is_file() else -1


def at_once(bench: Bench, runs: Sequence[Sequence[object]]) -> list[Ended]:
    """Start runs together and wait for all."""
    reused = ('--derivatives', f'whole={bench.whole}')
    lines = [
        command_line(bench.data, out, 'participant', *QUICK, '--offline', *reused, *more)
        for out, *more in runs
    ]
    return start_at_once(lines)


def start_at_once(commands: Sequence[Sequence[str]]) -> list[Ended]:
    """Start commands together and wait for all."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(call, commands))


def _judge_all(
    bench: Bench, what: str, ended: Sequence[Ended], out: Path, *, done: Sequence[str] | None,
    codes: Sequence[int] = (0,), also: Mapping[str, bool] | None = None,
) -> None:  # fmt: skip
    worst = max(ended, key=lambda one: (one.code != 0, any(word in one.text for word in VAGUE)))
    fine = {
        **(also or {}),
        'all end as they must': all(one.code in codes for one in ended),
        'one ends well': any(one.code == 0 for one in ended) or len(codes) > 1,
    }
    vague = {f'none says "{word}"': not any(word in one.text for one in ended) for word in VAGUE}
    bench.judge(what, worst, out, code=codes, done=done, also={**fine, **vague})


def _judge_commands(
    bench: Bench, what: str, ended: Sequence[Ended], out: Path, *, refused: str, or_late: str = ''
) -> None:
    """One of two does the work; the other one is told so, or what it finds if the first has ended while it waited."""
    second = max(ended, key=lambda one: one.code)
    demands = {
        'one ends well': sorted(one.code for one in ended) == [0, 2],
        'the other one is told': refused in second.text or (bool(or_late) and or_late in second.text),
    }
    bench.judge(what, second, out, code=2, also=demands)


# --- Working folders and caches ---


def work(bench: Bench) -> None:
    """Working folders that moved, and such as are spoilt."""
    first, moved = bench.folder('work'), bench.folder('moved')
    bench.run(bench.folder(), '-w', first)
    first.rename(moved)
    out = bench.folder()
    bench.judge(
        'the working folder was moved', bench.run(out, '-w', moved), out, code=0, done=['sub-01', 'sub-02']
    )
    cut = 0
    for number, file in enumerate(sorted(moved.rglob('*.pklz'))):
        content = file.read_bytes()
        file.write_bytes((content[: len(content) // 2], b'', b'no pickle at all')[number % 3])
        cut += 1
    out = bench.folder()
    ended = bench.run(out, '-w', moved)
    bench.judge(
        f'all {cut} result files in the working folder are cut off or empty',
        ended,
        out,
        code=0,
        done=['sub-01', 'sub-02'],
    )
    for file in moved.rglob('result_*.pklz'):
        _foreign_pickle(file)
    out = bench.folder()
    ended = bench.run(out, '-w', moved)
    bench.judge(
        'results in the working folder are of a version that is no longer there',
        ended,
        out,
        code=0,
        done=['sub-01', 'sub-02'],
    )
    for file in moved.rglob('*.nii'):
        file.write_bytes(file.read_bytes()[:1000])
    out = bench.folder()
    ended = bench.run(out, '-w', moved)
    bench.judge(
        'all images in the working folder are cut off',
        ended,
        out,
        code=(0, 1),
        words=() if ended.code == 0 else ('working folder', 'work'),
    )


def _foreign_pickle(file: Path) -> None:
    """Write a pickle of a class that nobody has."""
    import gzip

    with gzip.open(file, 'wb') as stream:
        stream.write(b'cbidsharm.old_version\nResult\n.')


def caches(bench: Bench) -> None:
    """Caches of other versions, and broken ones."""
    for what, content in (
        ('is garbage', b'no database'),
        ('is cut off', b'SQLite format 3\x00' + b'\x00' * 80),
    ):
        database, out = bench.folder('database'), bench.folder()
        database.mkdir()
        (database / 'layout_index.sqlite').write_bytes(content)
        ended = bench.run(out, '--bids-database-dir', database)
        bench.judge(f'the kept index {what}', ended, out, code=2, words=('index cannot be used',))
    database, out = bench.folder('database'), bench.folder()
    database.mkdir()
    _old_index(database / 'layout_index.sqlite')
    ended = bench.run(out, '--bids-database-dir', database)
    bench.judge(
        'the kept index is of another version of pybids', ended, out, code=2, words=('index cannot be used',)
    )
    templates, out = bench.folder('templateflow'), bench.folder()
    brain = templates / 'tpl-MNI152NLin2009cAsym' / 'tpl-MNI152NLin2009cAsym_res-01_desc-brain_T1w.nii.gz'
    brain.parent.mkdir(parents=True)
    brain.write_bytes(next(bench.data.rglob('*_T1w.nii.gz')).read_bytes()[:5000])
    ended = bench.run(
        out, '--output-spaces', 'MNI152NLin2009cAsym', env={'TEMPLATEFLOW_HOME': str(templates)}
    )
    bench.judge('a template file is cut off', ended, out, code=78, words=('template file cannot be read',))
    out = bench.folder()
    options = ('--harmonizer', 'nyul', *AIM)
    bench.run(out, *options)
    bundle = next(item for item in (out / 'models').iterdir() if item.is_dir())
    card = json.loads((bundle / 'card.json').read_text())
    for what, text in (
        ('of another format', json.dumps({**card, 'format': 99})),
        ('cut off', json.dumps(card)[:100]),
    ):
        (bundle / 'card.json').write_text(text)
        ended = bench.run(out, *options, '--force')
        bench.judge(
            f'a model in the output folder is {what}',
            ended,
            bench.part.work / 'none',
            code=(0, 78),
            words=() if ended.code == 0 else ('bundle',),
        )


def _old_index(file: Path) -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute('CREATE TABLE files (path TEXT)')
        connection.commit()


# --- Network ---


def network(bench: Bench) -> None:
    """No network, and one in which everything gets lost."""
    need_root()
    unshare = [need('unshare'), '--net', '--mount']
    out = bench.folder()
    bench.judge(
        'no network, bundled template',
        bench.run(out, network=True, prefix=unshare),
        out,
        code=0,
        done=['sub-01', 'sub-02'],
    )
    resolver = bench.folder('resolv.conf')
    resolver.write_text('nameserver 10.99.0.1\n')
    script = (
        f'mount --bind {resolver} /etc/resolv.conf && ip link set lo up && ip address add 10.99.0.2/32 dev lo && '
        'ip route add default dev lo && exec "$@"'  # what comes back for somebody else is dropped
    )
    need('ip')
    hole = [*unshare, 'sh', '-c', script, 'sh']
    for what, prefix, limit in (
        ('no network', unshare, None),
        ('a network that answers nothing', hole, None),
        ('the same, at most 5 s', hole, '5'),
    ):
        out = bench.folder()
        env = {'TEMPLATEFLOW_HOME': str(bench.folder('templateflow')), 'BIDSHARM_DOWNLOAD_LIMIT_S': limit}
        ended = bench.run(out, '--output-spaces', 'MNI152NLin2009cAsym', network=True, prefix=prefix, env=env)
        bench.judge(
            f'{what}, template that is not at hand',
            ended,
            out,
            code=78,
            words=('could not be fetched',),
            also={'soon': ended.seconds < 120},
        )
    out = bench.folder()
    bench.judge(
        'a network that answers nothing, bundled template',
        bench.run(out, network=True, prefix=hole),
        out,
        code=0,
        done=['sub-01', 'sub-02'],
    )


# --- Surroundings ---


def surroundings(bench: Bench) -> None:
    """Odd users, homes, terminals, locales and limits."""
    one = ONE
    done = ['sub-01']

    def check(what: str, *more: object, **how: Any) -> None:
        out = how.pop('out', None) or bench.folder()
        bench.judge(what, bench.run(out, *one, *more, **how), out, code=0, done=done)

    check('HOME is not set', env={'HOME': None})
    out = bench.folder()
    out.mkdir()
    out.chmod(0o777)
    check(
        'a user without a name or a home folder',
        prefix=nobody(),
        env={'HOME': '/nonexistent', 'USER': None, 'LOGNAME': None},
        out=out,
    )
    out = bench.folder()
    check('umask 077', prefix=['sh', '-c', 'umask 077; exec "$@"', 'sh'], out=out)
    private = [path for path in out.rglob('*') if path.stat().st_mode & 0o077]
    bench.part.add(
        Row(
            'machine',
            'what a run with umask 077 has written is private',
            'done' if not private else f'{private[:3]}',
            ok=not private,
        )
    )
    _strange_names(bench, one, done)
    check('standard input is closed', prefix=['sh', '-c', 'exec "$@" <&-', 'sh'])
    check('standard output is closed', prefix=['sh', '-c', 'exec "$@" >&-', 'sh'])
    check('standard output and error are closed', prefix=['sh', '-c', 'exec "$@" >&- 2>&-', 'sh'])
    check('standard output is a full disk (/dev/full)', prefix=['sh', '-c', 'exec "$@" > /dev/full', 'sh'])
    out = bench.folder()
    bench.judge(
        'nobody reads on (| head -1)', bench.run(out, *one, prefix=['bash', '-c', '"$@" | head -1', 'bash']), out, code=0,
    )  # fmt: skip
    again = bench.run(out, *one)
    bench.judge('the same command after that', again, out, code=0, done=done)
    check('one core', prefix=[need('taskset'), '-c', '0'])
    check('at most 64 open files', prefix=['sh', '-c', 'ulimit -n 64; exec "$@"', 'sh'])
    out = bench.folder()
    out.mkdir()
    out.chmod(0o777)
    ended = bench.run(
        out, *one, prefix=[need('prlimit'), '--nproc=6', *nobody()], env={'HOME': '/nonexistent'}
    )
    bench.judge(
        'at most 6 processes and threads',
        ended,
        out,
        code=(0, 1),
        words=() if ended.code == 0 else ('process', 'thread'),
    )
    _read_only_root(bench, one, done)
    ended = bench.run(bench.folder(), '--device', 'cuda')
    bench.judge(
        'a GPU is asked for and there is none',
        ended,
        bench.part.work / 'none',
        code=78,
        words=('is not there',),
    )


def _strange_names(bench: Bench, one: Sequence[str], done: Sequence[str]) -> None:
    data, out = bench.folder('Köpfe 头 $(x)'), bench.folder('Ergebnis é')
    shutil.copytree(bench.data, data)
    for locale in ('C',):
        ended = bench.run(
            out,
            *one,
            '--force',
            data=data,
            env={'LC_ALL': locale, 'LANG': locale},
        )
        bench.judge(f'locale {locale}, folders with ü, 头, spaces and $()', ended, out, code=0, done=done)


def _read_only_root(bench: Bench, one: Sequence[str], done: Sequence[str]) -> None:
    """Everything can only be read but the output folder and the folder for temporary files."""
    need_root()
    with small_disk(bench.folder('root'), 'size=400m') as place:
        (place / 'tmp').mkdir()
        (place / 'out').mkdir()
        script = 'mount -o remount,ro,bind / && exec "$@"'
        prefix = [need('unshare'), '--mount', 'sh', '-c', script, 'sh']
        ended = bench.run(
            place / 'out', *one, prefix=prefix, env={'TMPDIR': str(place / 'tmp'), 'HOME': '/root'}
        )
        bench.judge('the root file system can only be read', ended, place / 'out', code=0, done=done)
    with small_disk(bench.folder('root'), 'size=400m') as place:
        (place / 'out').mkdir()
        prefix = [
            need('unshare'),
            '--mount',
            'sh',
            '-c',
            'mount -o remount,ro,bind / && mount -o remount,ro,bind /dev/shm; exec "$@"',
            'sh',
        ]
        ended = bench.run(place / 'out', *one, prefix=prefix)
        bench.judge(
            'the same without a folder for temporary files',
            ended,
            place / 'out',
            code=(0, 78),
            words=() if ended.code == 0 else ('temporary',),
        )


#: The groups of checks, in the order in which they run.
GROUPS: dict[str, Callable[[Bench], None]] = {
    'disk': disk, 'disk_commands': disk_commands, 'rights': rights, 'memory': memory, 'programs': programs, 'clock': clock,
    'together': together, 'together_commands': together_commands, 'work': work, 'caches': caches, 'network': network,
    'surroundings': surroundings,
}  # fmt: skip


def run(part: Part) -> None:
    """Run the checks."""
    part.work.chmod(0o755)
    bench = Bench(part, heads(part.work / 'data', subjects=2), part.work / 'whole')
    again = bench.folder('normal')
    for out, full in ((bench.whole, True), (again, False)):
        ended = bench.run(out, full=full)
        if ended.code:
            raise CannotRun(ended.text)
        bench.normal[full] = results(out)
    bench.kept = checksums(bench.data)
    chosen = os.environ.get('BIDSHARM_MACHINES', '').split(',')
    for name, check in GROUPS.items():
        if chosen != [''] and name not in chosen:
            continue
        started = time.monotonic()
        try:
            check(bench)
        except CannotRun as missing:
            part.skip(str(missing))
        except subprocess.TimeoutExpired as late:
            part.add(Row('machine', name, 'hung', str(late)[:300], ok=False))
        print(f'[{part.name}] {name}: {time.monotonic() - started:.0f} s', flush=True)
        for old in part.work.iterdir():
            if old not in (bench.data, bench.whole) and old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
