"""Reference numbers of neuroCombat and neuroHarmonize for the tests of ``combat`` and ``combat-gam``.

neuroHarmonize needs NumPy 1, so they run in an environment of their own::

    python -m venv peers
    peers/bin/pip install neuroCombat==0.2.12 neuroHarmonize==2.5.2
    peers/bin/python tests/harmonizers/reference/combat.py

writes ``combat.json`` beside this file: the table that goes in, and what comes out of each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROWS, FEATURES = 48, 6
OUT = Path(__file__).with_name('combat.json')


def table() -> tuple[np.ndarray, pd.DataFrame]:
    """Return features (rows, features) and who they are of: three sites with known effects, a bent effect of age."""
    rng = np.random.default_rng(20)
    site = np.repeat([0, 1, 2], [20, 16, 12])
    age = rng.uniform(20, 80, ROWS) + 4 * site
    sex = rng.integers(0, 2, ROWS)
    shift, spread = rng.normal(0, 0.8, (3, FEATURES)), rng.uniform(0.6, 1.6, (3, FEATURES))
    bent = np.outer((age - 50) / 15 + ((age - 50) / 20) ** 2, rng.uniform(0.4, 1, FEATURES))
    noise = rng.normal(0, 1, (ROWS, FEATURES)) * spread[site]
    values = 10 + bent + 0.7 * sex[:, None] + shift[site] + noise
    people = pd.DataFrame(
        {'site': np.array(['a', 'b', 'c'])[site], 'age': age.round(2), 'sex': np.array(['F', 'M'])[sex]}
    )
    return values.round(5), people


def neurocombat(values: np.ndarray, people: pd.DataFrame, **options: Any) -> list[list[float]]:
    """Return what neuroCombat makes of the table."""
    from neuroCombat import neuroCombat

    np.int = int  # type: ignore[attr-defined]  # it was written for an older NumPy
    frame = people.copy()
    found = neuroCombat(values.T, frame, 'site', categorical_cols=['sex'], continuous_cols=['age'], **options)
    return np.asarray(found['data']).T.round(8).tolist()


def neuroharmonize(values: np.ndarray, people: pd.DataFrame) -> list[list[float]]:
    """Return what neuroHarmonize makes of the table with a smooth effect of age."""
    from neuroHarmonize import harmonizationLearn

    frame = pd.DataFrame({'SITE': people['site'], 'age': people['age'], 'male': (people['sex'] == 'M') * 1.0})
    _, adjusted = harmonizationLearn(values, frame, smooth_terms=['age'])
    return np.asarray(adjusted).round(8).tolist()


def main() -> None:
    """Write the file."""
    values, people = table()
    content = {
        'values': values.tolist(),
        **{name: people[name].tolist() for name in people},
        'parametric': neurocombat(values, people),
        'nonparametric': neurocombat(values, people, parametric=False),
        'none': neurocombat(values, people, eb=False),
        'reference b': neurocombat(values, people, ref_batch='b'),
        'mean only, none': neurocombat(values, people, eb=False, mean_only=True),
        'smooth age': neuroharmonize(values, people),
    }
    OUT.write_text(json.dumps(content).replace('], [', '],\n [').replace(', "', ',\n"') + '\n')


if __name__ == '__main__':
    main()
