"""Kinds of values that several commands take."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.errors import UsageError

if TYPE_CHECKING:
    from bidsharm.training.options import Budget


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
