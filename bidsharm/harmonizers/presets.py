"""Settings of methods by the name of a preset, and from a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from bidsharm.errors import UsageError

Settings = TypeVar('Settings')


def changed_preset(
    usual: Settings, name: str, tiny: Mapping[str, Any], changes: Mapping[str, Any], *, method: str
) -> Settings:
    """Return settings by name, with some of them changed.

    Parameters
    ----------
    usual
        The settings of the paper, a dataclass.
    name
        ``paper`` or ``tiny``.
    tiny
        What the second one changes.
    changes
        Settings to change.
    method
        Name of the method, for messages.

    Raises
    ------
    UsageError
        For an unknown name or setting.
    """
    if name not in ('paper', 'tiny'):
        raise UsageError(f'There is no preset "{name}".', where='--preset', fix='Choose paper or tiny.')
    known = {item.name for item in fields(usual)}  # type: ignore[arg-type]
    for key in changes:
        if key not in known:
            raise UsageError(
                f'{method} has no setting "{key}".', where='--set', fix=f'It has: {", ".join(sorted(known)) or "none"}.'
            )  # fmt: skip
    return replace(usual, **{**(tiny if name == 'tiny' else {}), **changes})  # type: ignore[type-var]


def stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a bundle as they were before JSON made lists of their tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
