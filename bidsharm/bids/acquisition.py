"""Acquisition parameters in sidecars: repetition, echo and inversion time, flip angle and field, where they are numbers that can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bidsharm.errors import UsageError
from bidsharm.files import read_json
from bidsharm.harmonizers.acquisition import PARAMETERS
from bidsharm.harmonizers.contract import Acquisition
from bidsharm.settings import CONTRASTS, reason


def acquisition_of(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Return the acquisition parameters in metadata: those that are finite numbers above 0, in the units of BIDS."""
    found = {}
    for name in PARAMETERS:
        value = metadata.get(name)
        if (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and value > 0
        ):
            found[name] = float(value)
    return found


def read_acquisition(path: Path) -> Acquisition:
    """Return the target that a sidecar describes; its contrast is the end of its name.

    Raises
    ------
    UsageError
        If it cannot be read, or its name does not end as the sidecar of a contrast.
    """
    where = f'--target acquisition:{path}'
    contrast = path.name.removesuffix('.json').rsplit('_', 1)[-1]
    if contrast not in CONTRASTS or path.suffix != '.json':
        raise UsageError(
            'This is not the name of a sidecar of a scan.', where=where,
            fix=f'It must end with the contrast that is meant, as sub-01_T1w.json does ({", ".join(CONTRASTS)}).',
        )  # fmt: skip
    try:
        content = read_json(path, encoding='utf-8-sig')
    except (OSError, ValueError) as error:
        raise UsageError(f'The sidecar cannot be read ({reason(error)}).', where=where) from None
    if not isinstance(content, dict):
        raise UsageError('The sidecar is no JSON object.', where=where)
    return Acquisition(path.name, contrast, acquisition_of(content))
