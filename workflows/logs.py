"""The folder that a run logs into, and what a person reads: on the screen, and with times in ``run.log``."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bidsharm.workflows.events import (
    EVENTS_FILE,
    EventLog,
    ReportWritten,
    RunFinished,
    RunInterrupted,
    RunStarted,
    now,
)
from rich.console import Console

from bidsharm import __version__
from bidsharm.bids.atomic import write_text
from bidsharm.errors import BidsharmError, ExitCode
from bidsharm.settings import Settings

#: Name of the file that a person reads, in the log folder of a run.
RUN_LOG = 'run.log'


def start_log(settings: Settings) -> Path:
    """Make the folder of this run and write the settings into it."""
    stamp = datetime.now(UTC).strftime('%Y%m%d-%H%M%S')
    log_dir = settings.output_dir / 'logs' / f'{stamp}_{uuid.uuid4().hex[:8]}'
    log_dir.mkdir(parents=True)
    write_text(log_dir / 'settings.toml', settings.to_toml())
    return log_dir


class Screen:
    """Says things to a person: on a console, and in a file once :meth:`open` has named it.

    Parameters
    ----------
    console
        Where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.file: Path | None = None

    def open(self, file: Path) -> None:
        """Write from here on to a file as well."""
        self.file = file

    def say(self, text: str, *, style: str | None = None, whole: bool = False) -> None:
        """Print lines and write them down.

        Parameters
        ----------
        text
            Lines; nothing in them is markup.
        style
            Colour on the screen.
        whole
            Let the terminal break long lines, so that what is copied from it stays whole.
        """
        self.console.print(
            text, markup=False, highlight=False, style=style, soft_wrap=True if whole else None
        )
        self.note(text)

    def note(self, text: str) -> None:
        """Write lines to the file only."""
        if self.file is None:
            return
        lines = ''.join(f'{now()}  {line}\n' for line in text.splitlines() if line.strip())
        # The run is worth more than its log: a full disk is told by what fails to be written.
        with contextlib.suppress(OSError), self.file.open('a', encoding='utf-8', errors='replace') as file:
            file.write(lines)


@dataclass
class Journal:
    """All that a run tells while it goes on.

    Parameters
    ----------
    screen, events
        For people and for machines.
    arguments
        Command line of the run, without the name of the program.
    """

    screen: Screen
    events: EventLog = field(default_factory=EventLog)
    arguments: tuple[str, ...] = ()
    log_dir: Path | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long the run has been going on."""
        return time.monotonic() - self.began

    def open(self, settings: Settings) -> Path:
        """Make the log folder of this run and return it; what was told before comes in, too."""
        self.log_dir = start_log(settings)
        self.events.open(self.log_dir / EVENTS_FILE)
        self.screen.open(self.log_dir / RUN_LOG)
        self.screen.note(f'bidsharm {__version__}: {shlex.join(["bidsharm", *self.arguments])}')
        return self.log_dir

    def reports(self, paths: Sequence[Path]) -> None:
        """Tell of pages and tables."""
        for path in paths:
            self.events.emit(ReportWritten(str(path)))

    def finish(self, counts: Mapping[str, int], exit_code: ExitCode) -> ExitCode:
        """Tell that the run has come to its end, and return its exit code."""
        self.events.emit(RunFinished(dict(counts), int(exit_code), round(self.seconds, 1)))
        self.screen.note(f'finished with exit code {int(exit_code)} after {self.seconds:.0f} s')
        return exit_code


@contextlib.contextmanager
def keep_journal(settings: Settings, console: Console, arguments: Sequence[str]) -> Iterator[Journal]:
    """Tell that a run starts, and what ended it if that is an error or a signal.

    Parameters
    ----------
    settings, console
        Of the run.
    arguments
        Its command line, without the name of the program.
    """
    events = EventLog(sys.stdout if settings.log_json else None)
    journal = Journal(Screen(console), events, tuple(arguments))
    try:
        events.emit(
            RunStarted(
                version=__version__, level=settings.analysis_level, command=['bidsharm', *arguments], folder=os.getcwd(),
                settings_digest=settings.digest(), host=platform.node(), pid=os.getpid(), cores=settings.nprocs,
                memory_gb=settings.mem_gb, device=settings.device,
            )
        )  # fmt: skip
        yield journal
    except BaseException as error:
        interrupted = interruption(error, journal.seconds)
        journal.screen.note(f'ended early: {interrupted.what} {interrupted.fix}')
        events.emit(interrupted)
        raise
    finally:
        events.close()


def interruption(error: BaseException, seconds: float) -> RunInterrupted:
    """Return an error or a signal as an event."""
    kind = type(error).__name__
    if isinstance(error, BidsharmError):
        return RunInterrupted(
            kind, error.what, error.where, error.fix, int(error.exit_code), round(seconds, 1)
        )
    if isinstance(error, KeyboardInterrupt):
        what = 'It was told to stop, by Ctrl-C or a signal.'
        code = int(ExitCode.SCAN_FAILED)
        return RunInterrupted(kind, what, '', 'The same command goes on from there.', code, round(seconds, 1))
    where = str(getattr(error, 'filename', None) or '')
    code = int(ExitCode.SCAN_FAILED if isinstance(error, MemoryError) else ExitCode.INTERNAL)
    known = None if isinstance(error, OSError) else code
    return RunInterrupted(kind, str(error)[:500] or kind, where, '', known, round(seconds, 1))
