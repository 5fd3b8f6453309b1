"""What a command asks of file systems, counted from its system calls with strace."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Calls that a server of files has to answer from its directory: names, attributes, locks are not data.
METADATA = {
    'open', 'openat', 'creat', 'stat', 'lstat', 'newfstatat', 'statx', 'access', 'faccessat', 'faccessat2', 'readlink',
    'readlinkat', 'mkdir', 'mkdirat', 'rmdir', 'unlink', 'unlinkat', 'rename', 'renameat', 'renameat2', 'link', 'linkat',
    'symlink', 'symlinkat', 'chmod', 'fchmodat', 'utimensat', 'getdents64', 'statfs', 'flock', 'truncate',
}  # fmt: skip
READ = {'read', 'pread64', 'readv', 'preadv', 'preadv2'}
WRITE = {'write', 'pwrite64', 'writev', 'pwritev', 'pwritev2'}
LINE = re.compile(r'^(?P<call>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)')
NAME = re.compile(r'"([^"]*)"')
PLACE = re.compile(r'<(/[^>]*)>')


def trace(
    command: Sequence[str | Path], areas: Mapping[str, Sequence[Path]], folder: Path
) -> dict[str, Counter[str]]:
    """Run a command and return, for each area, how often it was asked what.

    Parameters
    ----------
    command
        Program and arguments.
    areas
        Folders by the name of their area; the first that holds a path counts.
    folder
        Where the command runs.

    Returns
    -------
    dict
        For each area ``metadata``, ``opened``, ``read`` (bytes) and ``written`` (bytes). What is read through memory maps
        is not seen.
    """
    calls = ','.join(sorted(METADATA | READ | WRITE))
    counts = {name: Counter[str]() for name in areas}
    with tempfile.TemporaryDirectory() as logs:
        options = ['-ff', '-y', '-qq', '-s', '0', '--seccomp-bpf', '-e', f'trace={calls}', '-o', f'{logs}/p']
        done = subprocess.run(['strace', *options, *map(str, command)], cwd=folder, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(f'{command[0]} ended with {done.returncode} under strace.')
        for log in Path(logs).iterdir():
            with log.open(errors='replace') as lines:
                for line in lines:
                    _count(line, areas, counts)
    return counts


def _count(line: str, areas: Mapping[str, Sequence[Path]], counts: Mapping[str, Counter[str]]) -> None:
    found = LINE.match(line)
    if not found:
        return
    call, result = found['call'], int(found['result'])
    path = _path(found['arguments'])
    area = next(
        (name for name, roots in areas.items() if any(path.is_relative_to(root) for root in roots)), None
    )
    if area is None:
        return
    if call in READ | WRITE:
        counts[area]['read' if call in READ else 'written'] += max(result, 0)
        return
    counts[area]['metadata'] += 1
    if call in ('open', 'openat', 'creat') and result >= 0:
        counts[area]['opened'] += 1


def _path(arguments: str) -> Path:
    """Return the path that a call is about; a relative one starts at its folder, where the call names it."""
    place, name = PLACE.search(arguments), NAME.search(arguments)
    if name is None or not name[1]:
        return Path(place[1] if place else '/')
    return Path(place[1] if place else '/', name[1])
