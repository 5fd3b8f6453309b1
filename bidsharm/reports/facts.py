"""Records of how something was made, in words for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def facts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record with its values as text: lists and settings joined by commas."""
    return {key: _plain(value) for key, value in record.items()}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{key}={item}' for key, item in value.items())
    return ', '.join(map(str, value)) if isinstance(value, list) else str(value)
