"""Folders that a run writes to: room, locks, renames, time."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bidsharm.workflows.doctor.findings import Asked, Check, Finding, ok, problem, warning

GROUP = 'Folders'
#: Seconds by which the time of a file may differ from that of the machine; FAT counts in steps of 2.
MOST_SKEW_S = 5.0
#: Room for the results of one scan, in GB (0.062 were measured for a T1w of 1 mm; docs/clusters.md).
RESULTS_GB = 0.1
_HANGS = 'The file system does not answer; locks or the disk behind it hang. Choose another folder.'


@dataclass(frozen=True)
class Facts:
    """What was found out about a folder.

    Parameters
    ----------
    folder, place
        The folder, and the nearest one above it that is there: itself, if it is.
    error
        Why nothing can be written there, if so; the rest is not known then.
    free_gb
        Room that is left.
    in_memory
        Whether it takes memory, not disk.
    locks, renames, links, ignores_case
        Whether file locks work, a file can take the place of another, links can be made, and names that differ in case are one.
    skew_s
        Seconds by which new files are older than they should be.
    """

    folder: Path
    place: Path
    error: str = ''
    free_gb: float = 0.0
    in_memory: bool = False
    locks: bool = True
    renames: bool = True
    links: bool = True
    ignores_case: bool = False
    skew_s: float = 0.0


def look_at(folder: Path) -> Facts:
    """Try out a folder by files in a hidden folder that goes away again."""
    from bidsharm.workflows.scratch import free_gb, in_memory

    place = nearest(folder)
    if not place.is_dir():
        return Facts(folder, place, error='it is no folder')
    try:
        with tempfile.TemporaryDirectory(
            prefix='.bidsharm-doctor-', dir=place, ignore_cleanup_errors=True
        ) as name:
            here = Path(name)
            return Facts(
                folder, place, free_gb=free_gb(place), in_memory=in_memory(place), locks=_can_lock(here), renames=_can_rename(here),
                links=_can_link(here), ignores_case=_ignores_case(here), skew_s=_skew(here),
            )  # fmt: skip
    except OSError as error:
        return Facts(folder, place, error=error.strerror or str(error))


def nearest(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    return next(item for item in (folder.absolute(), *folder.absolute().parents) if item.exists())


def _can_lock(folder: Path) -> bool:
    """Say whether a lock keeps others out."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / 'lock', timeout=5):
            FileLock(folder / 'lock').acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    return False


def _can_rename(folder: Path) -> bool:
    """Say whether a new file takes the place of an old one, and a folder that of an empty one."""
    (folder / 'old').write_text('old')
    (folder / 'new').write_text('new')
    (folder / 'full').mkdir()
    (folder / 'full' / 'file').touch()
    (folder / 'empty').mkdir()
    try:
        os.replace(folder / 'new', folder / 'old')
        os.replace(folder / 'full', folder / 'empty')
    except OSError:
        return False
    return (folder / 'old').read_text() == 'new' and (folder / 'empty' / 'file').exists()


def _can_link(folder: Path) -> bool:
    try:
        (folder / 'link').symlink_to(folder / 'old')
    except (OSError, NotImplementedError):
        return False
    return True


def _ignores_case(folder: Path) -> bool:
    (folder / 'case').touch()
    return (folder / 'CASE').exists()


def _skew(folder: Path) -> float:
    file = folder / 'now'
    file.touch()
    return time.time() - file.stat().st_mtime


def judge(
    label: str, option: str, facts: Facts, *, needed_gb: float, most_gb: float | None = None
) -> Iterator[Finding]:
    """Judge a folder.

    Parameters
    ----------
    label, option
        What it is called, and what chooses another one.
    facts
        What is known of it.
    needed_gb
        Room that the smallest run needs there.
    most_gb
        Room that the largest batch takes there.
    """
    made = '' if facts.place == facts.folder else f' (to be made in {facts.place})'
    name = f'The {label} {facts.folder}{made}'
    if facts.error:
        yield problem(
            f'{name} cannot be written ({facts.error}).',
            f'Check its permissions, or choose another with {option}.',
        )
        return
    if facts.free_gb < needed_gb:
        yield problem(
            f'{name} has {facts.free_gb:.2f} GB left; one scan takes {needed_gb:g} GB.',
            f'Make room, or choose another with {option}.',
        )
    elif most_gb is not None and facts.free_gb < most_gb:
        yield warning(
            f'{name} has {facts.free_gb:.1f} GB left; a batch of scans takes up to {most_gb:g} GB.',
            f'Make room, choose another with {option}, or use a smaller --nprocs.',
        )
    if not facts.locks:
        yield warning(f'Files in {facts.place} cannot be locked; jobs side by side may disturb each other there.',
                      f'Run one job at a time, or choose another with {option}.')  # fmt: skip
    if not facts.renames:
        yield problem(f'In {facts.place} a file cannot take the place of another, so results cannot be written whole.',
                      f'Choose a folder on another file system with {option}.')  # fmt: skip
    if not facts.links:
        yield warning(
            f'In {facts.place} no links can be made, which Nipype likes to use.',
            f'Choose another with {option}.',
        )
    if abs(facts.skew_s) > MOST_SKEW_S:
        late = 'behind' if facts.skew_s > 0 else 'ahead of'
        yield warning(f'The clock of {facts.place} is {abs(facts.skew_s):.0f} s {late} that of this machine; times of files and logs do not agree.',
                      'Set both clocks (NTP).')  # fmt: skip
    notes = [f'{facts.free_gb:.1f} GB left', *(['in memory'] if facts.in_memory else []),
             *(['upper and lower case are the same there'] if facts.ignores_case else [])]  # fmt: skip
    yield ok(
        f'{name} can be written ({", ".join(notes)}).',
        **{**vars(facts), 'folder': str(facts.folder), 'place': str(facts.place)},
    )


def temporary(asked: Asked) -> Iterator[Finding]:
    """Look at the folder for temporary files."""
    from bidsharm.workflows.scratch import GB_PER_SCAN, MEMORY_SHARE

    try:
        folder = Path(tempfile.gettempdir())
    except OSError:
        yield problem('There is no folder for temporary files.',
                      'Set TMPDIR to a folder that can be written; with docker run --read-only, add --tmpfs /tmp.')  # fmt: skip
        return
    if asked.work_dir is not None:
        yield from judge('temporary folder', 'TMPDIR', look_at(folder), needed_gb=0.01)
        return
    facts = look_at(folder)
    elsewhere = _room(asked.output_dir)
    needed = GB_PER_SCAN * _batch(asked)
    room = min(facts.free_gb, MEMORY_SHARE * asked.memory_gb) if facts.in_memory else facts.free_gb
    if not facts.error and room < needed and elsewhere > room:
        yield warning(
            f'The temporary folder {folder} has room for {room:.1f} GB, and a batch of scans takes up to {needed:g} GB; intermediate files go to '
            'the output folder.', 'Give a folder on a local disk with --work-dir.',
        )  # fmt: skip
        return
    yield from judge('temporary folder', 'TMPDIR or --work-dir', facts, needed_gb=GB_PER_SCAN, most_gb=needed)
    if facts.in_memory and room < needed:
        yield warning(
            f'{folder} lies in memory, of which bidsharm would use {room:.1f} GB, and a batch of scans takes up to {needed:g} GB.',
            'Give a folder on a disk with --work-dir.',
        )


def _batch(asked: Asked) -> int:
    """Return the scans of a batch of one scan a subject."""
    from bidsharm.workflows.participant import batch_size

    from bidsharm.settings import Settings

    return batch_size(Settings(Path(), Path(), nprocs=asked.cores))


def _room(folder: Path | None) -> float:
    if folder is None:
        return 0.0
    facts = look_at(folder)
    return 0.0 if facts.error else facts.free_gb


def working(asked: Asked) -> Iterator[Finding]:
    """Look at ``--work-dir``."""
    from bidsharm.workflows.scratch import GB_PER_SCAN

    if asked.work_dir is None:
        yield ok('No --work-dir is given; intermediate files go away after each batch.')
        return
    facts = look_at(asked.work_dir)
    yield from judge(
        'working folder', '--work-dir', facts, needed_gb=GB_PER_SCAN, most_gb=GB_PER_SCAN * _batch(asked)
    )
    if facts.in_memory:
        yield warning(f'The working folder {facts.place} lies in memory, and what is kept there is lost with the machine.',
                      'Give a folder on a disk with --work-dir.')  # fmt: skip
    if any(sign in str(asked.work_dir) for sign in '[]'):
        yield warning('The path of the working folder holds square brackets, and Nipype cannot find finished steps there again.',
                      'Give a --work-dir without them.')  # fmt: skip


def output(asked: Asked) -> Iterator[Finding]:
    """Look at the folder of results."""
    if asked.output_dir is None:
        yield ok('No output folder is given: bidsharm-doctor BIDS_DIR OUT_DIR looks at it.')
        return
    facts = look_at(asked.output_dir)
    yield from judge('output folder', 'OUTPUT_DIR', facts, needed_gb=RESULTS_GB)
    if facts.in_memory and not facts.error:
        yield warning(
            f'The output folder {facts.place} lies in memory, and results are lost with the machine.',
            'Give a folder on a disk.',
        )


def home(asked: Asked) -> Iterator[Finding]:
    """Look at the home folder, which is not needed."""
    lent = 'bidsharm makes one for the length of each run'
    if not asked.home:
        yield ok(f'HOME is not set; {lent}.')
    elif not os.access(asked.home, os.W_OK):
        yield ok(f'The home folder {asked.home} cannot be written; {lent}.')
    else:
        yield ok(f'The home folder {asked.home} can be written.')
    with contextlib.suppress(OSError):
        if shutil.disk_usage(asked.home or '/').free == 0 and asked.home:
            yield warning(
                f'The disk of the home folder {asked.home} is full.', 'Make room, or run with HOME unset.'
            )


def _bounded(name: str, look: Callable[[Asked], Iterator[Finding]]) -> Check:
    return Check(GROUP, name, look, limit_s=30, stuck=_HANGS)


CHECKS = (
    _bounded('home', home),
    _bounded('temporary files', temporary),
    _bounded('working folder', working),
    _bounded('output folder', output),
)
