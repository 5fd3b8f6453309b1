"""Standard streams that cannot stop a run: closed, full, or with nobody who reads them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def sure_streams() -> Iterator[None]:
    """Have standard streams for the time of the block to which writing always works.

    What is said on the screen is a convenience; a terminal that was closed, a full disk behind ``> log.txt`` or the end of ``| head`` must not
    cost a scan. Streams that were closed lead nowhere, so that no file which is opened takes their number, and programs that are started
    write into it.
    """
    _open_numbers()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_sure(stream, number) for number, stream in ((1, before[0]), (2, before[1])))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = (
            old or new for old, new in zip(before, (sys.stdout, sys.stderr), strict=True)
        )


def _open_numbers() -> None:
    """Open what is closed of the first three file descriptors; a new one takes the lowest number that is free."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _sure(stream: TextIO | None, number: int) -> Any:
    if stream is None:
        return os.fdopen(os.dup(number), 'w', encoding='utf-8', errors='backslashreplace')
    return _Sure(stream)


class _Sure:
    """A stream whose writing never fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or give the stream up."""
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
        except UnicodeEncodeError:  # a name that the terminal has no letters for
            encoding = self._stream.encoding or 'ascii'
            return self.write(text.encode(encoding, 'backslashreplace').decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Write what is waiting, or give the stream up."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """Lead the stream nowhere, also for programs that are started from here."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()
