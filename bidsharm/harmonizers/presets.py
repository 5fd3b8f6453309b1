"""Settings of methods by the name of a preset, and from a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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
        For an unknown name or setting, or for a value that a setting cannot have.
    """
    if name not in ('paper', 'tiny'):
        raise UsageError(f'There is no preset "{name}".', where='--preset', fix='Choose paper or tiny.')
    kinds = get_type_hints(type(usual))
    for key, value in changes.items():
        if key not in kinds:
            raise UsageError(
                f'{method} has no setting "{key}".', where='--set', fix=f'It has: {", ".join(sorted(kinds)) or "none"}.'
            )  # fmt: skip
        if not fits(value, kinds[key]):
            raise UsageError(
                f'{key} cannot be {value!r}.', where='--set', fix=f'Give {_wanted(key, kinds[key])}.'
            )
    return replace(usual, **{**(tiny if name == 'tiny' else {}), **stored(changes)})  # type: ignore[type-var]


def fits(value: object, kind: Any) -> bool:
    """Say whether a setting of a kind (``int``, ``Literal['a', 'b']``, ``tuple[int, ...]``) may have a value; tuples may be lists."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(each) and all(map(fits, value, each))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, {int: Integral, float: Real}.get(kind, kind))


def _wanted(key: str, kind: Any) -> str:
    """Return what a setting takes, in words."""
    if get_origin(kind) in (Union, UnionType):
        return ', or '.join(_wanted(key, part).removeprefix('one of ') for part in get_args(kind))
    if get_origin(kind) is Literal:
        return f'one of {", ".join(get_args(kind))}'
    if get_origin(kind) is tuple:
        several = Ellipsis in get_args(kind)
        each = 'whole numbers' if int in get_args(kind) else 'numbers'
        return (
            f'{each} with commas, as in "{key}=2," or {key}=1,2'
            if several
            else f'{len(get_args(kind))} {each} with a comma, as in {key}=1,2'
        )
    return {bool: 'True or False', int: 'a whole number', float: 'a number'}.get(kind, 'a word')


def stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a bundle as they were before JSON made lists of their tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
