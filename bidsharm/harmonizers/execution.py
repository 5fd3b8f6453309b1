"""Where a method runs: the device, its lock, and what to do when its memory does not suffice."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bidsharm.errors import ConfigurationError, ScanError, UsageError
from bidsharm.harmonizers.contract import Execution

if TYPE_CHECKING:
    from filelock import BaseFileLock

Result = TypeVar('Result')

#: Folders that all jobs of a machine share, in the order in which they are tried.
SHARED_FOLDERS = (Path('/dev/shm'), Path('/tmp'))

#: How long a job waits for a card that others hold (seconds); the lock of a process that is gone does not count.
LOCK_WAIT_S = 24 * 3600

_NO_MEMORY = re.compile(
    r'CUDA (?:error: )?out of memory|(?:CUBLAS|CUDNN|CUSPARSE|CUFFT)_(?:STATUS_)?ALLOC_FAILED|MPS backend out of memory'
)
_CARD = re.compile(r'\bCUDA\b|\bcuDNN\b|CUDNN_STATUS|CUBLAS_STATUS|CUFFT|NVIDIA|NVML', re.IGNORECASE)

_log = logging.getLogger(__name__)


def resolve_device(name: str) -> str:
    """Return the device to run on.

    Parameters
    ----------
    name
        ``auto`` (the first GPU where there is one, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Returns
    -------
    str
        ``cpu``, ``cuda:N`` or ``mps``, where N counts the cards that this process may see.

    Raises
    ------
    UsageError
        If the name is none of these.
    ConfigurationError
        If a device that was asked for by name is not there; never replaced by another one in silence.
    """
    if name == 'cpu':
        return 'cpu'
    if name not in ('auto', 'mps') and not re.fullmatch(r'cuda(:\d+)?', name):
        raise UsageError(
            f'There is no kind of device "{name}".',
            where='--device',
            fix='Choose auto, cpu, cuda, cuda:N or mps.',
        )
    try:
        import torch
    except ImportError as error:
        if name == 'auto':
            return 'cpu'
        raise _absent(name, 'PyTorch is not installed') from error
    if name == 'mps':
        if not torch.backends.mps.is_available():
            raise _absent(name, 'PyTorch finds no Apple GPU')
        return 'mps'
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == 'auto':
        return 'cuda:0' if cards else 'cpu'
    number = int(name.partition(':')[2] or 0)
    if number >= cards:
        raise _absent(name, f'PyTorch finds {cards or "no"} CUDA device{"" if cards == 1 else "s"}')
    return f'cuda:{number}'


def _absent(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f'The device "{name}" is not there: {why}.',
        where='--device',
        fix='Choose --device auto or --device cpu.',
    )


@contextlib.contextmanager
def device_lock(device: str, folder: Path | None = None) -> Iterator[None]:
    """Hold one physical GPU for the time of the block; others that want it wait. The CPU needs no lock.

    The lock is a file in a folder that all jobs and users of the machine share, and ends with the process that
    holds it. It goes by the card itself, so that jobs that see different cards as ``cuda:0`` do not wait for
    each other. Where the file cannot be opened, because somebody made it unwritable, one of this user takes its
    place: it keeps the user's own jobs apart.

    Parameters
    ----------
    device
        As returned by :func:`resolve_device`.
    folder
        Folder of the lock files, made when it is not there; by default :func:`lock_folder`.
    """
    if device in ('', 'cpu'):
        yield
        return
    folder = lock_folder() if folder is None else Path(folder)
    with contextlib.ExitStack() as stack:
        lock = _take_lock(folder, _physical_name(device))
        if lock is not None:
            stack.callback(lock.release)
        yield


def lock_folder() -> Path:
    """Return the folder of the lock files: one for the whole machine, wherever a job's ``TMPDIR`` points."""
    for folder in SHARED_FOLDERS:
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return Path(tempfile.gettempdir())


def _take_lock(folder: Path, name: str) -> BaseFileLock | None:
    """Wait for the lock of a card and return it; None, with a warning, where no file can be locked."""
    from filelock import FileLock, Timeout

    user = str(os.getuid()) if hasattr(os, 'getuid') else 'user'
    for stem in (name, f'{name}-user-{user}'):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A mode that is given holds whatever the umask: the next user has to write to the file, too.
            lock = FileLock(folder / f'{stem}.lock', mode=0o666)
            lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout:
            raise ScanError(
                f'Other jobs have held this card for more than {LOCK_WAIT_S // 3600} hours.', where=name,
                fix='Free it, or choose --device cpu.',
            ) from None  # fmt: skip
        except (OSError, NotImplementedError) as error:
            _log.warning('The lock %s.lock in %s cannot be used: %s', stem, folder, error)
        else:
            return lock
    _log.warning('Other jobs on this card are not waited for.')
    return None


def _physical_name(device: str) -> str:
    """Return a name that is the same in all processes of a machine for one card, fit for a file name."""
    name = device
    if device.startswith('cuda'):
        number = int(device.partition(':')[2] or 0)
        listed = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
        seen = [item.strip() for item in listed if item.strip()]
        name = _uuid(number) or (seen[number] if number < len(seen) else str(number))
    # The driver's tools write GPU-<uuid>, PyTorch the UUID alone.
    return 'bidsharm-gpu-' + re.sub(r'[^A-Za-z0-9.-]', '_', name.removeprefix('GPU-'))


def _uuid(number: int) -> str:
    """Return the identity of a CUDA card, or an empty string when it cannot be told."""
    try:
        import torch

        return str(getattr(torch.cuda.get_device_properties(number), 'uuid', ''))
    except (ImportError, RuntimeError, AssertionError):
        return ''


@dataclass(frozen=True)
class TileSettings:
    """How much of a volume is worked on at once.

    Parameters
    ----------
    batch
        Tiles, or slices, per step.
    tile
        Edges of a tile in voxels; None for the whole volume.
    stitch_device
        Device on which the tiles are put together.
    device
        Device on which the method runs.
    """

    batch: int = 1
    tile: tuple[int, int, int] | None = None
    stitch_device: str = 'cpu'
    device: str = 'cpu'

    def __str__(self) -> str:
        tile = 'whole volume' if self.tile is None else 'tile ' + 'x'.join(map(str, self.tile))
        return f'{self.device}, batch {self.batch}, {tile}, stitched on {self.stitch_device}'


def memory_ladder(
    start: TileSettings, *, tiles: Sequence[int] = (192, 128, 96, 64)
) -> tuple[TileSettings, ...]:
    """Return settings that need less and less device memory.

    First smaller batches, then smaller tiles, then stitching on the CPU, then everything on the CPU.

    Parameters
    ----------
    start
        What to try first.
    tiles
        Edges of the cubes to fall back to, in voxels; those that would not shrink the tile are passed over.
    """
    ladder = [start]
    while ladder[-1].batch > 1:
        ladder.append(replace(ladder[-1], batch=ladder[-1].batch // 2))
    for edge in sorted(tiles, reverse=True):
        current = ladder[-1].tile
        smaller = (edge, edge, edge) if current is None else tuple(min(edge, side) for side in current)
        if smaller != current:
            ladder.append(replace(ladder[-1], tile=(smaller[0], smaller[1], smaller[2])))
    if ladder[-1].stitch_device != 'cpu':
        ladder.append(replace(ladder[-1], stitch_device='cpu'))
    if ladder[-1].device != 'cpu':
        ladder.append(replace(ladder[-1], device='cpu'))
    return tuple(ladder)


def with_memory_ladder(
    run: Callable[[TileSettings], Result], *, execution: Execution, ladder: Sequence[TileSettings]
) -> Result:
    """Run with the first settings of the ladder that fit into the memory of the device.

    Only CUDA's out-of-memory error leads down the ladder; every other error is raised as it is. Each step
    is added to ``execution.steps``, because smaller tiles may change the result in the last digits.

    Parameters
    ----------
    run
        What to run; must be able to start again from nothing.
    execution
        Says by ``oom_fallback`` whether the CPU may take over.
    ladder
        Settings to try, as from :func:`memory_ladder`; those on the CPU are passed over when the run is
        on a GPU and ``oom_fallback`` is ``fail``.

    Raises
    ------
    ScanError
        If memory does not suffice for any of them.
    """
    may_use_cpu = execution.oom_fallback == 'cpu' or execution.device == 'cpu'
    rungs = [tile for tile in ladder if may_use_cpu or tile.device != 'cpu']
    for index, tile in enumerate(rungs):
        try:
            return run(tile)
        except Exception as error:
            if not _out_of_memory(error):
                if _card_failed(error, tile.device):
                    raise _lost(error, tile.device) from error
                raise
        # Outside the handler, where the error no longer keeps the tensors of the failed try alive.
        _free_cache()
        following = str(rungs[index + 1]) if index + 1 < len(rungs) else 'nothing smaller is left'
        step = f'out of memory with {tile}: {following}'
        execution.steps.append(step)
        _log.warning('%s', step)
    fix = '' if may_use_cpu else '--oom-fallback cpu (slower), '
    raise ScanError(
        f'The memory of {execution.device} does not suffice, even in the smallest steps ({len(rungs)} tried).',
        fix=f'Free the device, or choose {fix}--device cpu, or a harmonizer that needs less memory.',
    )


def _out_of_memory(error: Exception) -> bool:
    """Say whether a card had no memory left: PyTorch's own error, or one of the libraries below it, which only have words."""
    if type(error).__name__ == 'OutOfMemoryError':
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def _card_failed(error: Exception, device: str) -> bool:
    """Say whether it is the card, its driver or a library of CUDA that complains, not the method."""
    if device == 'cpu':
        return False
    return type(error).__name__ == 'AcceleratorError' or (
        isinstance(error, RuntimeError) and bool(_CARD.search(str(error)))
    )


def _lost(error: Exception, device: str) -> ScanError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ScanError(
        f'The device {device} failed: {said.rstrip(".")}.',
        fix='Look with nvidia-smi whether it works, and run the same command again; or choose --device cpu.',
    )


def _free_cache() -> None:
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # of a card that is not well; the next try tells
            torch.cuda.empty_cache()
