"""Where intermediate files go, and that they go away."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bidsharm.settings import Settings
from bidsharm.temporary import clear_remains, swept, temporary_folder

#: Intermediate files of one scan, in GB (408 MB were measured for a T1w of 1 mm; docs/containers.md).
GB_PER_SCAN = 0.5
#: Part of the memory that intermediate files may take where the folder for temporary files lies in memory.
MEMORY_SHARE = 0.25


@contextmanager
def working_folder(settings: Settings, scans: int) -> Iterator[Path]:
    """Give the working folder: the one asked for, or a temporary one that goes away.

    Parameters
    ----------
    settings
        Working folder, output folder, memory.
    scans
        Scans that are worked on before intermediate files are removed.
    """
    if settings.work_dir is not None:
        folder = settings.work_dir / 'bidsharm_work'
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with room_for(settings, GB_PER_SCAN * scans) as folder:
        yield folder


def room_for(settings: Settings, needed: float) -> AbstractContextManager[Path]:
    """Give a temporary folder: where such folders belong, or in the output folder where that has the room and they have not.

    Apptainer's ``--containall`` gives 64 MB for temporary files, and in containers they often lie in memory, which is
    limited too.

    Parameters
    ----------
    settings
        Output folder, and the memory that may be used.
    needed
        Room, in GB.
    """
    usual = Path(tempfile.gettempdir())
    room = free_gb(usual)
    if in_memory(usual):
        room = min(room, MEMORY_SHARE * settings.mem_gb)
    if room < needed and free_gb(settings.output_dir) > room:
        return temporary_folder('.work', settings.output_dir)
    clear_remains([settings.output_dir], prefix='.work')
    return temporary_folder('bidsharm', usual)


def sweeping(settings: Settings, subjects: Iterable[str] = ()) -> AbstractContextManager[None]:
    """Remove what killed processes have left of the files that they were writing: before the block, and after it.

    Parameters
    ----------
    settings
        The folders that are written to.
    subjects
        Look into the folders of these; into those that are common to all by default.
    """
    roots = [settings.output_dir, *filter(None, [settings.fmriprep_derivatives])]
    if subjects:
        return swept(below=[root / f'sub-{subject}' for root in roots for subject in subjects])
    return swept([*roots, settings.output_dir / 'models'], below=[settings.output_dir / 'logs'])


def free_gb(folder: Path) -> float:
    """Return the free room where a folder lies, in GB."""
    return shutil.disk_usage(folder).free / 1e9


def in_memory(folder: Path) -> bool:
    """Return whether what is written to a folder takes memory, not disk."""
    import psutil

    mounts = {Path(item.mountpoint): item.fstype for item in psutil.disk_partitions(all=True)}
    resolved = folder.resolve()
    nearest = next((place for place in (resolved, *resolved.parents) if place in mounts), None)
    return nearest is not None and mounts[nearest] in ('tmpfs', 'ramfs')
