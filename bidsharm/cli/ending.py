"""How a command ends: with its exit code and plain words, when it is done, when something is wrong, and when it is told to stop."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from bidsharm.cli.streams import sure_streams
from bidsharm.errors import NO_MEMORY, SYSTEM_ERRORS, UNWRITTEN, BidsharmError, ExitCode

#: Seconds that a command has to clean up after a signal. Schedulers kill after half a minute.
GRACE_S = 8.0
#: Signals by which a scheduler, a container or a closed terminal tells a process to end.
_SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal has told the command to stop; it cleans up as after Ctrl-C."""


def run_to_end(command: str, work: Callable[[], int], *, stopped: str) -> int:
    """Run a command and return its exit code; whatever goes wrong is said on standard error.

    Parameters
    ----------
    command
        Name of the command.
    work
        What it does; returns its exit code.
    stopped
        What is said when it was told to stop before its end.
    """
    with sure_streams():
        try:
            with _signals_stop(command, stopped):
                return _run(command, work)
        except KeyboardInterrupt as error:
            if isinstance(error, Stopped):  # Ctrl-C reaches the others, too
                from bidsharm.processes import end_children

                end_children()
            return _say(command, stopped, ExitCode.SCAN_FAILED)


def _run(command: str, work: Callable[[], int]) -> int:
    try:
        return int(work())
    except BidsharmError as error:
        return _say(command, str(error), error.exit_code)
    except MemoryError:
        return _say(command, ' '.join(NO_MEMORY), ExitCode.SCAN_FAILED)
    except OSError as error:
        if (words := _words(error)) is None:
            return _our_fault(command)
        return _say(command, words, ExitCode.SCAN_FAILED)
    except Exception:  # noqa: BLE001 - the last resort: a traceback, and a code that says it was our fault
        return _our_fault(command)


def _say(command: str, words: str, code: ExitCode) -> int:
    with contextlib.suppress(OSError, ValueError):  # a closed terminal must not change how it ends
        print(f'{command}: {words}', file=sys.stderr, flush=True)
    return int(code)


def _our_fault(command: str) -> int:
    import traceback

    with contextlib.suppress(OSError, ValueError):
        traceback.print_exc()
    return _say(command, 'an internal error; please report the lines above.', ExitCode.INTERNAL)


def _words(error: OSError) -> str | None:
    """Return an error of the system in words; None where it says nothing that a user can act on."""
    place = f'{os.fsdecode(error.filename)}: ' if isinstance(error.filename, str | bytes) else ''
    number = errno.ENOSPC if error.errno is None and UNWRITTEN.fullmatch(str(error)) else error.errno
    if number in SYSTEM_ERRORS:
        return place + ' '.join(SYSTEM_ERRORS[number])
    return f'{place}{error.strerror}.' if place and error.strerror else None


@contextlib.contextmanager
def _signals_stop(command: str, stopped: str) -> Iterator[None]:
    """Have signals stop the block like Ctrl-C, and end the process if it does not follow in time.

    Python looks at signals between two steps of its own. A long computation in a library does not come to that, and an
    exception may get lost where Python ignores them; so a thread watches over the end.
    """
    # `nohup` has a process ignore SIGHUP, which then has to stay so.
    watched = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread() or not watched:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def stop(number: int, frame: FrameType | None) -> None:
        for other in watched:
            signal.signal(other, signal.SIG_IGN)  # nothing shall interrupt the cleaning up
        with contextlib.suppress(OSError):  # it may have come while the descriptor was put aside
            os.write(writer, bytes([number]))
        raise Stopped

    def leave() -> None:
        # A forked process has work of its own; what its parent does about signals does not concern it.
        for number in watched:
            signal.signal(number, signal.SIG_DFL)
        os.close(reader)
        os.close(writer)

    _on_fork.append(leave)
    before = {number: signal.signal(number, stop) for number in watched}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = threading.Thread(
        target=_watch, args=(reader, frozenset(map(int, watched)), command, stopped), daemon=True
    )
    watch.start()
    try:
        yield
    finally:
        told = any(signal.getsignal(number) is signal.SIG_IGN for number in watched)
        signal.set_wakeup_fd(woken)
        _on_fork.remove(leave)
        if not told:  # else the process is about to end, and the thread sees to that
            for number, handler in before.items():
                signal.signal(number, handler)
        os.close(writer)


#: What a forked process does first, once.
_on_fork: list[Callable[[], None]] = []
#: Where signals are told, while that is put aside.
_descriptor = -1


def _put_aside() -> None:
    """Take the descriptor for signals away while a process is forked: what reaches the child is not for its parent."""
    global _descriptor
    with contextlib.suppress(ValueError):  # not the main thread
        _descriptor = signal.set_wakeup_fd(-1)


def _take_back() -> None:
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(_descriptor, warn_on_full_buffer=False)


def _leave() -> None:
    while _on_fork:
        _on_fork.pop()()


os.register_at_fork(before=_put_aside, after_in_parent=_take_back, after_in_child=_leave)


def _watch(reader: int, watched: frozenset[int], command: str, stopped: str) -> None:
    """Wait for a signal, and then for the end of the process, which must come in time."""
    with os.fdopen(reader, 'rb', buffering=0) as signals:
        while not watched.intersection(arrived := signals.read(1)):
            if not arrived:  # the block has ended
                return
    threading.Event().wait(GRACE_S)
    from bidsharm.processes import end_children
    from bidsharm.temporary import clear_own

    end_children()
    clear_own()
    _say(command, stopped, ExitCode.SCAN_FAILED)
    os._exit(ExitCode.SCAN_FAILED)
