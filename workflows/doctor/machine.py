"""Cores, memory, limits of the system, and devices."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bidsharm.workflows.doctor.findings import Asked, Check, Finding, ok, problem, warning
from bidsharm.workflows.doctor.probe import Unanswered, ask

GROUP, DEVICES = 'Machine', 'Devices'

#: Voxels of a head at 1 mm.
USUAL_SHAPE = (176, 256, 256)
#: Less memory than this holds no step at all, in GB: the interpreter with its libraries and a few copies of a head.
LEAST_MEMORY_GB = 1.0
#: Open files that a run needs at least, and more for each process. A run with two processes went with 40 in all.
LEAST_FILES, FILES_PER_CORE = 40, 16
#: Room that PyTorch's loaders want in shared memory, in GB; Docker gives 0.064 by default.
SHARED_MEMORY_GB = 0.06
#: What tells that there is a driver of NVIDIA.
DRIVER = (Path('/proc/driver/nvidia/version'), Path('/dev/nvidiactl'), Path('/dev/dxg'))


def cores(asked: Asked) -> Iterator[Finding]:
    """Tell the cores."""
    there = os.cpu_count() or 1
    yield ok(f'{asked.cores} of {there} cores may be used; --nprocs is {asked.cores} by default.',
             usable=asked.cores, there=there)  # fmt: skip


def memory(asked: Asked) -> Iterator[Finding]:
    """Compare the memory with what steps plan with."""
    import psutil

    free = psutil.virtual_memory().available / 1e9
    needed = needed_memory_gb(asked)
    values = {'usable_gb': asked.memory_gb, 'free_gb': round(free, 1), 'needed_gb': needed}
    if min(asked.memory_gb, free) < LEAST_MEMORY_GB:
        yield problem(
            f'{min(asked.memory_gb, free):.1f} GB of memory are too few.',
            f'Give the job or the container at least {needed:g} GB.', **values,
        )  # fmt: skip
    elif asked.memory_gb < needed:
        yield warning(
            f'{asked.memory_gb:g} GB of memory may be used, and the largest step on a head of 1 mm plans with {needed:g} GB.',
            'Give the job or the container more memory, or try one scan first.', **values,
        )  # fmt: skip
    elif free < needed:
        yield warning(
            f'Only {free:.1f} GB of memory are free now; the largest step on a head of 1 mm plans with {needed:g} GB.',
            'End other programs, or say with --mem what bidsharm may use.', **values,
        )  # fmt: skip
    else:
        count = min(int(asked.memory_gb // needed), asked.cores)
        yield ok(
            f'{asked.memory_gb:g} GB of memory may be used ({free:.1f} GB are free now): enough for {count} of the '
            f'largest steps at a time ({needed:g} GB each on a head of 1 mm).', **values,
        )  # fmt: skip


def needed_memory_gb(asked: Asked) -> float:
    """Return what the largest step on a usual head plans with: brain extraction, or the method."""
    from bidsharm.workflows.base import scan_memory_gb
    from bidsharm.workflows.preprocess import EXTRACTION_GB

    try:
        method = float(ask('harmonizer', asked.harmonizer, limit_s=20)['memory_gb'])
    except Exception:  # noqa: BLE001 - the check of the method says it
        method = 0.0
    return round(max(scan_memory_gb(USUAL_SHAPE) + EXTRACTION_GB, method), 1)


def open_files(asked: Asked) -> Iterator[Finding]:
    """Compare the limit of open files with what the processes need."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 1_000_000 if soft == resource.RLIM_INFINITY else soft
    needed = LEAST_FILES + FILES_PER_CORE * asked.cores
    advice = f'Raise it: ulimit -n {max(1024, needed)}.'
    if limit < LEAST_FILES:
        yield problem(f'A process may open {limit} files, which are too few.', advice, limit=limit, hard=hard)
    elif limit < needed:
        yield warning(f'A process may open {limit} files; {needed} are on the safe side for {asked.cores} cores.',
                      advice, limit=limit, hard=hard)  # fmt: skip
    else:
        yield ok(f'A process may open {limit} files.', limit=limit, hard=hard)


def shared_memory(asked: Asked, folder: Path = Path('/dev/shm')) -> Iterator[Finding]:
    """Look at the folder of shared memory."""
    if not folder.is_dir():
        yield ok(f'There is no {folder} on this system.')
        return
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        yield warning(
            f'{folder} cannot be written.',
            'Locks of GPUs go to /tmp then; training needs --shm-size in Docker.',
        )
    elif free < SHARED_MEMORY_GB:
        yield warning(f'{folder} has {free * 1e3:.0f} MB left; training with several loaders needs more.',
                      'With Docker, add --shm-size 1g.', free_gb=round(free, 3))  # fmt: skip
    else:
        yield ok(f'{folder} has {free:.2f} GB left.', free_gb=round(free, 3))


def processes(asked: Asked) -> Iterator[Finding]:
    """Start worker processes as Nipype does."""
    try:
        ask('workers', limit_s=30)
    except Unanswered as error:
        yield problem(
            f'Worker processes cannot be started: the trial {error}.',
            'Check the limits of processes (ulimit -u) and that /dev/shm and TMPDIR can be written.',
        )
    else:
        yield ok('Worker processes can be started.')


def devices(asked: Asked) -> Iterator[Finding]:
    """Try every device."""
    try:
        seen = ask('torch', limit_s=60)
    except Unanswered as error:
        yield problem(
            f'PyTorch does not run: it {error}.', 'Install torch anew, in the version of constraints.txt.'
        )
        return
    yield from judge_devices(
        seen, asked.device, driver=has_driver(), visible=os.environ.get('CUDA_VISIBLE_DEVICES')
    )


def has_driver() -> bool:
    """Say whether this machine, or what a container sees of it, has a driver of NVIDIA."""
    return any(path.exists() for path in DRIVER) or shutil.which('nvidia-smi') is not None


def judge_devices(
    seen: Mapping[str, Any], asked: str, *, driver: bool, visible: str | None = None
) -> Iterator[Finding]:
    """Judge what PyTorch sees.

    Parameters
    ----------
    seen
        Answer of the question ``torch``.
    asked
        ``--device``.
    driver
        Whether there is a driver of NVIDIA.
    visible
        ``CUDA_VISIBLE_DEVICES``.
    """
    if seen['cpu']:
        yield problem(
            f'PyTorch computes wrongly on the CPU ({seen["cpu"]}).', 'Install another build of torch.'
        )
    else:
        yield ok(f'The CPU computes (PyTorch {seen["version"]}).', torch=seen['version'])
    for card in seen['cards']:
        yield _judge_card(card, wanted=asked in ('auto', 'cuda', card['device']))
    if seen['mps'] is not None:
        yield (
            warning(f'The Apple GPU does not compute ({seen["mps"]}).', 'Choose --device cpu.')
            if seen['mps']
            else ok('The Apple GPU computes; --device mps chooses it.')
        )
    if not seen['cards']:
        yield _no_card(seen, asked, driver=driver, visible=visible)
    elif asked.startswith('cuda:') and asked not in {card['device'] for card in seen['cards']}:
        yield problem(
            f'There is no {asked}; PyTorch sees {len(seen["cards"])} of the cards.',
            'Choose --device cuda or auto.',
        )
    if asked == 'mps' and seen['mps'] is None:
        yield problem('PyTorch finds no Apple GPU.', 'Choose --device auto or cpu.')


def _judge_card(card: Mapping[str, Any], *, wanted: bool) -> Finding:
    name = f'{card["device"]} ({card["name"]}, {card["memory_gb"]:g} GB)'
    if card['error']:
        tell = problem if wanted else warning
        return tell(f'{name} does not compute: {card["error"]}.', 'Choose --device cpu, or a torch that is made for this card and driver.',
                    **card)  # fmt: skip
    if card['free_gb'] < 2:
        return warning(
            f'{name} has {card["free_gb"]:g} GB of memory left.',
            'End what runs there, or choose another card.',
            **card,
        )
    return ok(f'{name} computes, with {card["free_gb"]:g} GB free.', **card)


def _no_card(seen: Mapping[str, Any], asked: str, *, driver: bool, visible: str | None) -> Finding:
    """Tell why there is no CUDA card; that is a problem only where one is asked for."""
    tell = problem if asked.startswith('cuda') else warning
    built = seen['cuda'] or seen['hip']
    if not driver:
        if asked.startswith('cuda'):
            return problem('There is no driver of NVIDIA, so there is no CUDA card.',
                           'Choose --device auto or cpu; in a container, pass the GPU in (docs/containers.md).')  # fmt: skip
        return ok('There is no GPU; everything runs on the CPU, and no method needs a GPU to be applied.')
    if not built:
        return tell('There is a driver of NVIDIA, but this PyTorch is made for the CPU only.',
                    'Install a CUDA build of torch (in a container, the image of DEVICE=cuda) to use the GPU.')  # fmt: skip
    if visible is not None and not [item for item in visible.split(',') if item.strip() not in ('', '-1')]:
        return tell(
            f'CUDA_VISIBLE_DEVICES is "{visible}", which hides every card.',
            'Unset it, or ask the scheduler for a GPU.',
        )
    why = f' ({seen["told"][0]})' if seen['told'] else ''
    return tell(f'There is a driver of NVIDIA, but PyTorch for CUDA {seen["cuda"]} finds no card{why}.',
                'Update the driver, or install a torch that is made for an older CUDA.')  # fmt: skip


def gpu_locks(asked: Asked) -> Iterator[Finding]:
    """Try the folder of the lock files that keep two jobs off one card."""
    from filelock import FileLock, Timeout

    from bidsharm.harmonizers.execution import lock_folder

    folder = lock_folder()
    file = folder / f'bidsharm-doctor-{os.getpid()}.lock'
    try:
        with FileLock(file, timeout=5):
            pass
    except (OSError, NotImplementedError, Timeout) as error:
        yield warning(f'No file in {folder} can be locked ({error}); jobs on one GPU would not wait for each other.',
                      'Make /dev/shm or /tmp writable.')  # fmt: skip
    else:
        yield ok(f'Jobs on one GPU wait for each other by files in {folder}.')
    finally:
        file.unlink(missing_ok=True)


CHECKS = (
    Check(GROUP, 'cores', cores),
    Check(GROUP, 'memory', memory, limit_s=40),
    Check(GROUP, 'open files', open_files),
    Check(GROUP, 'shared memory', shared_memory),
    Check(GROUP, 'processes', processes, limit_s=40),
    Check(
        DEVICES,
        'devices',
        devices,
        limit_s=70,
        stuck='A GPU driver hangs: choose --device cpu, and restart the machine.',
    ),
    Check(DEVICES, 'locks', gpu_locks),
)
