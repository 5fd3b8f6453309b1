"""bidsharm: harmonize brain MRI across scanners, with proof that the anatomy survived."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bidsharm.api import HarmonizedImage, harmonize

__all__ = ['HarmonizedImage', '__version__', 'harmonize']
__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
    # Nothing heavy is imported before it is used: `bidsharm --help` answers at once.
    if name in ('HarmonizedImage', 'harmonize'):
        return getattr(importlib.import_module('bidsharm.api'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted(__all__)
