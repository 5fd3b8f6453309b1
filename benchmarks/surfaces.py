"""Surface methods on simulated people with known thickness: does the site go, and does age stay? Next to ComBat and to doing nothing.

``python benchmarks/surfaces.py`` writes ``results/surfaces.md``. Everybody of the training was seen at one site, everybody of the test at both. ComBat gets
every vertex as a feature, with age kept; the others have the preset ``tiny``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import Site
from bidsharm.harmonizers.surface import SurfaceMap, TrainedSurface
from bidsharm.harmonizers.table import FeatureTable, TableHarmonizer
from bidsharm.reports.surfaces import Pair, regional_means
from bidsharm.simulation.surfaces import Cortex, SurfaceSite, draw_cortex, measure

LEVEL, SEED, TRAINED, TESTED = 3, 0, 80, 40
OUT = Path(__file__).parent / 'results' / 'surfaces.md'
#: Sites that differ by gain and offset only, and such with a pattern over the cortex as well.
KINDS = {
    'gain and offset': (SurfaceSite('A'), SurfaceSite('B', gain=1.06, offset=0.1)),
    'a pattern, too': (SurfaceSite('A'), SurfaceSite('B', gain=1.06, offset=0.1, pattern=0.05)),
}
Harmonize = Callable[[Sequence[SurfaceMap]], NDArray[np.float64]]


def seen(cortex: Cortex, site: SurfaceSite) -> SurfaceMap:
    """Return the left hemisphere of a person at a site."""
    values = measure(cortex, site, 'L', LEVEL, SEED).astype(np.float32)
    return SurfaceMap(
        values, values > 0, 'L', name=f'{cortex.label}-{site.label}', site=site.label, person=cortex.label
    )


def nothing(maps: Sequence[SurfaceMap], ages: NDArray[np.float64]) -> Harmonize:
    """Return the maps as they are."""
    del maps, ages
    return lambda new: np.array([one.values for one in new], dtype=np.float64)


def trained(name: str) -> Callable[[Sequence[SurfaceMap], NDArray[np.float64]], Harmonize]:
    """Return what trains a surface method."""

    def fit(maps: Sequence[SurfaceMap], ages: NDArray[np.float64]) -> Harmonize:
        del ages
        kind = registry.find(name)
        assert issubclass(kind, TrainedSurface)
        method = kind(settings=kind.preset('tiny'))
        method.fit(maps, target=Site('A'), seed=SEED)
        return lambda new: np.array(
            [method.harmonize(one, Site('A')).values for one in new], dtype=np.float64
        )

    return fit


def combat(maps: Sequence[SurfaceMap], ages: NDArray[np.float64]) -> Harmonize:
    """Return ComBat of all vertices, fitted on the maps."""
    kind = registry.find('combat')
    assert issubclass(kind, TableHarmonizer)
    method, cortex = kind(), maps[0].cortex
    known = {one.person: age for one, age in zip(maps, ages, strict=True)}

    def table(some: Sequence[SurfaceMap]) -> FeatureTable:
        return FeatureTable(
            np.array([one.values[cortex] for one in some]), tuple(f'v{i}' for i in range(int(cortex.sum()))), tuple(one.site for one in some),
            people=tuple(one.person for one in some), covariates={'age': np.array([known[one.person] for one in some])},
        )  # fmt: skip

    method.fit(table(maps), target=Site('A'), keep='age')

    def apply(new: Sequence[SurfaceMap]) -> NDArray[np.float64]:
        known.update({one.person: draw_cortex(SEED, int(one.person), one.person, LEVEL).age for one in new})
        found = np.array([one.values for one in new], dtype=np.float64)
        found[:, cortex] = method.harmonize(table(new)).values
        return found

    return apply


def told(features: NDArray[np.float64], maps: Sequence[SurfaceMap]) -> float:
    """Return the accuracy of a linear classifier of the site on people that it has not seen."""
    sites, people = [one.site for one in maps], [one.person for one in maps]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    guess = cross_val_predict(model, features, sites, groups=people, cv=GroupKFold(5))
    return float(np.mean(guess == np.array(sites)))


def row(
    name: str,
    maps: Sequence[SurfaceMap],
    values: NDArray[np.float64],
    people: Sequence[Cortex],
    seconds: float,
) -> str:
    """Return a line of the table."""
    cortex = maps[0].cortex
    true = np.array([person.thickness['L'] for person in people for _ in range(2)])[:, cortex]
    ages = np.array([person.age for person in people for _ in range(2)])
    found = values[:, cortex]
    pairs = [
        Pair(o.name, o.person, o.site, 'L', o.values, v.astype(np.float32), o.cortex)
        for o, v in zip(maps, values, strict=True)
    ]
    slope, wanted = (np.polyfit(ages, one.mean(axis=1), 1)[0] for one in (found, true))
    alike = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found, true, strict=True)])
    return (
        f'| {name} | {told(found.mean(axis=1)[:, None], maps):.2f} | {told(regional_means(pairs, "after"), maps):.2f} | '
        f'{1000 * slope:.1f} (true: {1000 * wanted:.1f}) | {np.abs(found - true).mean():.3f} | {alike:.3f} | {seconds:.0f} |'
    )  # fmt: skip


def main() -> None:
    """Measure, and write the table."""
    import torch

    torch.set_num_threads(1)
    methods = {'nothing': nothing, 'combat': combat, 'cdae': trained('cdae'), 's2sgan': trained('s2sgan')}
    lines = [
        '# Surface methods on simulated thickness', '',
        (f'Written by `benchmarks/surfaces.py`: {TRAINED} people seen at one of two sites each for the training, {TESTED} others seen at both for the test, 642 vertices of one hemisphere. '
        'Site told: accuracy of a linear classifier by the mean of the hemisphere, and by 42 regional means (guessing: 0.50). Seconds are of one core, training and test.'), '',
    ]  # fmt: skip
    for kind, sites in KINDS.items():
        learnt = [draw_cortex(SEED, number, f'{number}', LEVEL) for number in range(TRAINED)]
        maps = [seen(person, sites[number % 2]) for number, person in enumerate(learnt)]
        people = [draw_cortex(SEED, number, f'{number}', LEVEL) for number in range(1000, 1000 + TESTED)]
        new = [seen(person, site) for person in people for site in sites]
        lines += [f'## Sites that differ by {kind}', '']
        lines += ['| method | site told by the mean | by regions | age, µm a year | error, mm | correlation with the truth | s |', '|---|---|---|---|---|---|---|']  # fmt: skip
        for name, fit in methods.items():
            start = time.process_time()
            values = fit(maps, np.array([person.age for person in learnt]))(new)
            lines.append(row(name, new, values, people, time.process_time() - start))
            print(lines[-1], flush=True)
        lines.append('')
    OUT.write_text('\n'.join(lines[:-1]) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
