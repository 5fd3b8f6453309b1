"""What the command lines of several commands have in common: how they refuse, and kinds of values."""

from __future__ import annotations

import argparse
import ast
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from bidsharm.training.options import Budget


class Parser(argparse.ArgumentParser):
    """A parser that says in a line or two what is wrong, and which option may have been meant."""

    def error(self, message: str) -> Any:
        """Print the message, and exit with the code for usage."""
        unknown = message.partition('unrecognized arguments:')[2].split()
        hints = [f'Did you mean {near}?' for word in unknown if (near := self._near(word))]
        self.exit(int(ExitCode.USAGE), '\n'.join([f'{self.prog}: {message}', *hints, self._more()]) + '\n')

    def _near(self, word: str) -> str:
        """Return the options that look like a word; nothing where none does."""
        if not word.startswith('--'):
            return ''
        known = [
            option
            for action in self._actions
            if action.help != argparse.SUPPRESS
            for option in action.option_strings
        ]
        return ' or '.join(difflib.get_close_matches(word.partition('=')[0], known, n=2, cutoff=0.7))

    def _more(self) -> str:
        """Return how the command is called, as far as one line holds it."""
        words = [' '.join(_words_of(action)) for action in self._actions if not action.option_strings]
        return f'usage: {" ".join([self.prog, "[options]", *words])}\n{self.prog} --help tells the options.'


class Command(Parser):
    """The parser of one command among several: it refuses by itself what it does not know, and so can tell what is near."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what was parsed; nothing may be left."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f'unrecognized arguments: {" ".join(rest)}')
        return found, rest


def _words_of(action: argparse.Action) -> list[str]:
    name = str(action.metavar or action.dest)
    if action.metavar is None and action.choices is not None:
        name = '{' + ','.join(map(str, action.choices)) + '}'
    return {'*': [f'[{name}', '...]'], '+': [name, f'[{name}', '...]'], '?': [f'[{name}]']}.get(
        str(action.nargs), [name]
    )


def count(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


def natural(text: str) -> int:
    """Return a whole number, 0 or above."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number, 0 or above')
    return int(text)


def setting(text: str) -> tuple[str, Any]:
    """Return name and value of a setting; values are Python literals, or words."""
    key, separator, value = text.partition('=')
    if not separator or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def budget(text: str) -> Budget:
    """Return when a training ends: a number of steps, or a time."""
    from bidsharm.training.options import Budget

    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([mh]?)', text)
    if not match or float(match[1]) <= 0 or (not match[2] and not text.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r} is no budget; write 20000 (steps), 90m or 8h')
    if not match[2]:
        return Budget(steps=int(text))
    return Budget(minutes=float(match[1]) * (60 if match[2] == 'h' else 1))


def label_maps(given: Sequence[Path]) -> list[Path]:
    """Return the label maps that were given; those of a folder are taken by name."""
    found: list[Path] = []
    for path in given:
        files = sorted(path.glob('*.nii*')) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise UsageError(
                'There is no label map.', where=f'--labels {path}', fix='Give NIfTI files, or a folder.'
            )
        found += files
    return found
