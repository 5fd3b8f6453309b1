"""What a check finds, and how checks are run: each in bounded time, and none of them can end the others."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from bidsharm.errors import BidsharmError
from bidsharm.settings import DEFAULT_HARMONIZER

#: User names that say nothing about a person, or that are words of messages.
NAMELESS = frozenset({'', 'root', 'bidsharm', 'user', 'data', 'out', 'home', 'tmp', 'work', 'nobody'})


class Verdict(StrEnum):
    """How a check ended."""

    OK = 'ok'
    WARNING = 'warning'
    PROBLEM = 'problem'


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Parameters
    ----------
    verdict
        A problem keeps bidsharm from running, or from running as it was asked to; a warning does not.
    what
        One plain sentence.
    fix
        What to do.
    values
        The same in numbers and names, for programs.
    group, check
        Where it belongs; filled in by :func:`examine`.
    seconds
        How long the check took; filled in by :func:`examine`.
    """

    verdict: Verdict
    what: str
    fix: str = ''
    values: dict[str, Any] = field(default_factory=dict)
    group: str = ''
    check: str = ''
    seconds: float = 0.0


def ok(what: str, **values: Any) -> Finding:
    """Return a finding of something that is as it should be."""
    return Finding(Verdict.OK, what, values=values)


def warning(what: str, fix: str = '', **values: Any) -> Finding:
    """Return a finding of something that does not keep bidsharm from running."""
    return Finding(Verdict.WARNING, what, fix, values)


def problem(what: str, fix: str = '', **values: Any) -> Finding:
    """Return a finding of something that keeps bidsharm from running as it was asked to."""
    return Finding(Verdict.PROBLEM, what, fix, values)


@dataclass(frozen=True)
class Asked:
    """What the command line asks about; everything may be left out.

    Parameters
    ----------
    bids_dir, output_dir, work_dir, weights_dir
        Folders of a run.
    model
        Bundle of ``--model``.
    harmonizer, device, output_spaces
        As in ``bidsharm``.
    cores, memory_gb
        What this process may use.
    home
        The home folder that the process was started with; None where it has none.
    """

    bids_dir: Path | None = None
    output_dir: Path | None = None
    work_dir: Path | None = None
    weights_dir: Path | None = None
    model: Path | None = None
    harmonizer: str = DEFAULT_HARMONIZER
    device: str = 'auto'
    output_spaces: tuple[str, ...] = ('native',)
    cores: int = 1
    memory_gb: float = 8.0
    home: str | None = None


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Parameters
    ----------
    group, name
        Heading, and what the check is called below it.
    look
        Yields what it finds, at least one finding.
    limit_s
        Seconds after which it counts as stuck.
    stuck
        What to do then.
    """

    group: str
    name: str
    look: Callable[[Asked], Iterable[Finding]]
    limit_s: float = 15.0
    stuck: str = 'Run this command again when the machine is less busy.'


def examine(check: Check, asked: Asked) -> list[Finding]:
    """Run one check in a thread of its own; an error or a hang becomes a finding of that check."""
    found: list[Finding] = []

    def work() -> None:
        try:
            for finding in check.look(asked):
                found.append(finding)
        except BidsharmError as error:
            found.append(problem(': '.join(filter(None, (error.where, error.what))), error.fix))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checks go on
            found.append(
                problem(f'The check itself failed ({type(error).__name__}: {error}).', 'Please report it.')
            )

    started = time.monotonic()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(check.limit_s)
    results = list(found)
    if thread.is_alive():
        results.append(problem(f'There was no answer within {check.limit_s:g} s.', check.stuck))
    if not results:
        results.append(problem('The check ended without an answer.', 'Please report it.'))
    seconds = round(time.monotonic() - started, 2)
    return [replace(item, group=check.group, check=check.name, seconds=seconds) for item in results]


def examine_all(
    checks: Sequence[Check], asked: Asked, *, before: Callable[[Check], None] = lambda check: None
) -> Iterator[Finding]:
    """Run checks one after the other.

    Parameters
    ----------
    checks
        What to look at.
    asked
        What is asked about.
    before
        Called with each check before it is run.
    """
    for check in checks:
        before(check)
        yield from examine(check, asked)


def discreet(finding: Finding, *, home: str, user: str) -> Finding:
    """Return a finding without the home folder and the name of the user.

    Parameters
    ----------
    finding
        Any one.
    home, user
        Those of the user; empty where there are none.
    """
    patterns = []
    if home.rstrip('/').count('/') > 1 or home == '/root':
        patterns.append(re.compile(rf'{re.escape(home.rstrip("/"))}(?=\W*$|[^\w.-])'))
    if user not in NAMELESS:
        patterns.append(re.compile(rf'(?<=/){re.escape(user)}(?=\W*$|[^\w.-])'))

    def hide(value: Any) -> Any:
        if isinstance(value, str):
            for pattern in patterns:
                value = pattern.sub('~', value)
            return value
        if isinstance(value, dict):
            return {key: hide(item) for key, item in value.items()}
        return [hide(item) for item in value] if isinstance(value, (list, tuple)) else value

    return replace(finding, what=hide(finding.what), fix=hide(finding.fix), values=hide(finding.values))


def user_and_home(asked: Asked) -> tuple[str, str]:
    """Return the name of the user and the home folder, empty where there are none, as in containers."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ''
    return user, asked.home or ''
