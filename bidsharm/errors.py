"""Errors that a user can act on: each says what happened, where, and what to do."""

from __future__ import annotations

import errno
import re
from enum import IntEnum

#: What may be wrong with the place that something is read from or written to: what to say, and what to do.
SYSTEM_ERRORS = {
    errno.ENOSPC: ('The disk is full.', 'Make room and run the same command again.'),
    errno.EDQUOT: ('Your quota is used up.', 'Make room and run the same command again.'),
    errno.EROFS: ('The file system can only be read.', 'Give a folder that can be written.'),
    errno.EACCES: ('There is no permission for it.', 'Have the permission changed, or give another folder.'),
    errno.EPERM: ('There is no permission for it.', 'Have the permission changed, or give another folder.'),
    errno.EIO: ('The disk reports an error.', 'Have the disk looked at, or use another one.'),
    errno.ESTALE: ('The file system is gone.', 'Run the same command again when it is back.'),
    errno.EAGAIN: (
        'No more processes may be started.',
        'Raise the limit (ulimit -u), or choose a smaller --nprocs.',
    ),
    errno.EMFILE: ('Too many files are open.', 'Raise the limit (ulimit -n).'),
    errno.ENFILE: ('Too many files are open on this machine.', 'Run the same command again later.'),
}
#: NumPy's words for a disk that is full, where the system's own number is lost.
UNWRITTEN = re.compile(r'\d+ requested and \d+ written')
#: The same for memory.
NO_MEMORY = ('There is not enough memory.', 'Give it more, or let it work on less at a time.')


class ExitCode(IntEnum):
    """Exit codes of the commands (documented in ``docs/usage.md``)."""

    OK = 0
    SCAN_FAILED = 1
    USAGE = 2
    NOTHING_TO_DO = 3
    INTERNAL = 70
    CONFIGURATION = 78


class BidsharmError(Exception):
    """Base of all errors that bidsharm raises on purpose.

    Parameters
    ----------
    what
        What is wrong, in one plain sentence.
    where
        The file, scan or option that it concerns.
    fix
        What the user can do about it.
    """

    exit_code: ExitCode = ExitCode.SCAN_FAILED

    def __init__(self, what: str, *, where: str = '', fix: str = '') -> None:
        self.what, self.where, self.fix = what, str(where), fix
        super().__init__(what, self.where, fix)

    def __str__(self) -> str:
        place = f'{self.where}: ' if self.where else ''
        advice = f' {self.fix}' if self.fix else ''
        return f'{place}{self.what}{advice}'

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive pickling between nipype's worker processes otherwise.
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[BidsharmError], what: str, where: str, fix: str) -> BidsharmError:
    return kind(what, where=where, fix=fix)


class ScanError(BidsharmError):
    """One scan cannot be processed; the others go on."""


class NotServed(ScanError):
    """The method or the target cannot serve this scan; it is passed over, and that is no failure."""


class UsageError(BidsharmError):
    """The command line or a settings file asks for something impossible."""

    exit_code = ExitCode.USAGE


class NothingToDo(BidsharmError):
    """No scan matches what was asked for."""

    exit_code = ExitCode.NOTHING_TO_DO


class ConfigurationError(BidsharmError):
    """A device, template or weights file that was asked for is not there."""

    exit_code = ExitCode.CONFIGURATION


class MissingNeed(UsageError):
    """The data set does not offer what the chosen harmonizer needs."""
