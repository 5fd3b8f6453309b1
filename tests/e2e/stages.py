"""What the stages of the end-to-end run share: commands that leave a transcript, and stages that say why they did not run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Skip(Exception):
    """This machine does not allow a stage; the message says what is missing."""


class Failed(Exception):
    """A stage did not do what it must."""


@dataclass
class Stage:
    """One stage: what it may use, and the transcript it leaves.

    Parameters
    ----------
    name
        Name of the stage, and of its transcript in ``docs/transcripts``.
    work
        An empty folder of its own.
    real
        BIDS data set with real scans, or None where there is none.
    """

    name: str
    work: Path
    real: Path | None = None
    lines: list[str] = field(default_factory=list)
    hidden: dict[str, str] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Put a sentence into the transcript, and on the screen."""
        print(f'[{self.name}] {text}', flush=True)
        self.lines.append(f'\n{text}\n')

    def run(
        self,
        command: Sequence[str | Path],
        *,
        expect: int = 0,
        tail: int = 12,
        timeout: float = 1800,
        env: Mapping[str, str] | None = None,
        quiet: bool = False,
    ) -> str:
        """Run a command and return what it printed; command and end go into the transcript.

        Parameters
        ----------
        command
            Program and arguments; no shell.
        expect
            The exit code it must end with.
        tail
            Lines of its end that the transcript keeps.
        timeout
            Seconds after which it is a failure.
        env
            Variables on top of those of this process.
        quiet
            Leave it out of the transcript (preparations that differ from machine to machine).

        Raises
        ------
        Failed
            If it ends with another exit code, or not in time.
        """
        texts = [str(part) for part in command]
        print(f'[{self.name}] $ {shlex.join(texts)}', flush=True)
        started = time.monotonic()
        try:
            done = subprocess.run(
                texts, capture_output=True, text=True, errors='replace', timeout=timeout, check=False,
                stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, cwd=ROOT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f'{shlex.join(texts)} did not end in {timeout:.0f} s') from error
        output = done.stdout + done.stderr
        print(f'[{self.name}] exit {done.returncode} after {time.monotonic() - started:.0f} s', flush=True)
        if done.returncode != expect:
            raise Failed(
                f'{shlex.join(texts)}\nended with {done.returncode}, not {expect}:\n{output[-6000:]}'
            )
        if not quiet:
            end = [line.rstrip() for line in output.rstrip().splitlines()[-tail:]]
            body = '\n'.join([f'$ {shlex.join(texts)}', *end, f'(exit code {done.returncode})'])
            self.lines.append(f'```\n{body}\n```')
        return output

    def check(self, holds: bool, what: str) -> None:
        """Demand something; it goes into the transcript as a line.

        Raises
        ------
        Failed
            If it does not hold.
        """
        if not holds:
            raise Failed(f'this does not hold: {what}')
        print(f'[{self.name}] ok: {what}', flush=True)
        self.lines.append(f'- {what}')

    def transcript(self) -> str:
        """Return the transcript, without the paths of this machine."""
        text = '\n'.join(self.lines) + '\n'
        known = {
            **self.hidden,
            str(self.work): 'WORK',
            str(self.real or '\0'): 'REAL',
            sys.prefix: 'VENV',
            str(ROOT): '.',
            f'{tempfile.gettempdir()}/': 'TMP/',  # not the /tmp of a container
        }
        for path, name in sorted(known.items(), key=lambda item: -len(item[0])):
            text = text.replace(path, name)
        return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text)
