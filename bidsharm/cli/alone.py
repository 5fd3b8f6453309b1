"""One process of a command at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bidsharm.errors import UsageError

#: Seconds that a command waits for one that is just ending.
WAIT_S = 10.0


@contextmanager
def alone_in(folder: Path, command: str) -> Iterator[None]:
    """Keep a second process of a command out of a folder; the hold ends with the process, however that ends.

    Parameters
    ----------
    folder
        It is made when it is not there.
    command
        Name of the command.

    Raises
    ------
    UsageError
        If another process is at work there, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    file = folder / f'.{command}.lock'
    lock = FileLock(file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT_S)
    except Timeout:
        raise UsageError(
            f'Another {command} is at work in this folder.', where=str(folder),
            fix='Wait until it has ended, or give another folder.',
        ) from None  # fmt: skip
    except NotImplementedError:  # a file system without locks; of two processes nobody can keep one out
        yield
        return
    except OSError as error:
        raise UsageError(f'The folder cannot be written ({error.strerror}).', where=str(folder)) from None
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        lock.release()
