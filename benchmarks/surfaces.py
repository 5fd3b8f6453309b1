"""Surface methods on simulated people with known thickness: does the site go, and does age stay? Next to ComBat and to doing nothing.

Everybody of the training was seen at one of two sites, everybody of the test at both; one hemisphere of 642 vertices. ComBat gets every vertex as a feature, with age
kept; the others have the preset `tiny`.

- site, mean / regions: balanced accuracy of a linear classifier of the site on people that it has not seen, by the mean of the hemisphere and by 42 regional means, with its
  interval over people; guessing is 0.5.
- age: slope of the mean thickness, in micrometres a year, and the true one.
- error: mean absolute difference to the true thickness of each vertex, with its interval over people. Between sites: the same difference between the two sites of a person.
- p: paired Wilcoxon tests of each person's error, and of the difference between sites, against doing nothing and against ComBat; corrected by Holm over methods, measures and both
  comparisons of a table.
- r: correlation with the true thickness over vertices. s: seconds of one core, training and test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

from bidsharm.evaluation.probe import Probe, site_probe
from bidsharm.evaluation.statistics import compare_paired, holm
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import Site
from bidsharm.harmonizers.surface import SurfaceMap, TrainedSurface
from bidsharm.harmonizers.table import FeatureTable, TableHarmonizer
from bidsharm.reports.surfaces import Pair, regional_means
from bidsharm.simulation.surfaces import Cortex, SurfaceSite, draw_cortex, measure

LEVEL, SEED, TRAINED, TESTED = 3, 0, 80, 40
MEASURES = ('error', 'between sites')
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


@dataclass(frozen=True)
class Judged:
    """What a method did to people of the test: numbers of each person in mm, and what a table shows besides."""

    error: NDArray[np.float64]
    between: NDArray[np.float64]
    shown: Mapping[str, str]

    def of(self, measure: str) -> NDArray[np.float64]:
        """Return the numbers of a measure."""
        return self.error if measure == 'error' else self.between


def told(features: NDArray[np.float64], maps: Sequence[SurfaceMap]) -> str:
    """Return how often a linear classifier tells the site of people that it has not seen, with its interval."""
    found: Probe = site_probe(
        features, [one.site for one in maps], [one.person for one in maps], seed=SEED, permutations=20, resamples=2000
    )  # fmt: skip
    interval = found.interval
    return f'{found.accuracy or 0:.2f}' + (f' ({interval.low:.2f}, {interval.high:.2f})' if interval else '')


def judged(
    maps: Sequence[SurfaceMap], values: NDArray[np.float64], people: Sequence[Cortex], seconds: float
) -> Judged:
    """Judge harmonized maps, two of each person in turn."""
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
    shown = {
        'site, mean': told(found.mean(axis=1)[:, None], maps), 'site, regions': told(regional_means(pairs, 'after'), maps),
        'age': f'{1000 * slope:.1f} (true: {1000 * wanted:.1f})', 'r': f'{alike:.3f}', 's': f'{seconds:.0f}',
    }  # fmt: skip
    error = np.abs(found - true).mean(axis=1).reshape(-1, 2).mean(axis=1)
    return Judged(error, np.abs(found[::2] - found[1::2]).mean(axis=1), shown)


def tested(found: Mapping[str, Judged]) -> dict[tuple[str, str, str], float]:
    """Return p by method, measure and what it is compared with."""
    keys = [
        (name, measure, base)
        for base in ('nothing', 'combat')
        for name in found
        if name not in (base, 'nothing')
        for measure in MEASURES
    ]
    tests = [
        compare_paired(found[name].of(measure), found[base].of(measure), seed=SEED, resamples=2000).p_wilcoxon
        for name, measure, base in keys
    ]
    return {key: float('nan') if p is None else p for key, p in zip(keys, holm(tests), strict=True)}


def rows_of(found: Mapping[str, Judged], sites: str) -> list[dict[str, Any]]:
    """Return the lines of a table."""
    tests, rows = tested(found), []
    for name, one in found.items():
        row: dict[str, Any] = {
            'sites differ by': sites,
            'method': name,
            **{k: one.shown[k] for k in ('site, mean', 'site, regions', 'age')},
        }
        for what in MEASURES:
            row[f'{what}, mm'] = common.with_interval(one.of(what), 3, seed=SEED)
            for base in ('nothing', 'combat'):
                row[f'p of {what} ({base})'] = common.p_text(tests.get((name, what, base)))
        rows.append(row | {k: one.shown[k] for k in ('r', 's')})
    return rows


def main() -> None:
    """Measure, and write the table."""
    import torch

    common.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    methods = {'nothing': nothing, 'combat': combat, 'cdae': trained('cdae'), 's2sgan': trained('s2sgan')}
    rows: list[dict[str, Any]] = []
    for kind, sites in KINDS.items():
        learnt = [draw_cortex(SEED, number, f'{number}', LEVEL) for number in range(TRAINED)]
        maps = [seen(person, sites[number % 2]) for number, person in enumerate(learnt)]
        people = [draw_cortex(SEED, number, f'{number}', LEVEL) for number in range(1000, 1000 + TESTED)]
        new = [seen(person, site) for person in people for site in sites]
        found: dict[str, Judged] = {}
        for name, fit in methods.items():
            start = time.process_time()
            values = fit(maps, np.array([person.age for person in learnt]))(new)
            found[name] = judged(new, values, people, time.process_time() - start)
            print(kind, name, found[name].shown, flush=True)
        rows += rows_of(found, kind)
    about = f'{TRAINED} people for the training, {TESTED} others for the test.'
    common.save(
        'surfaces', title='Surface methods on simulated thickness', text=common.body(__doc__, about, rows),
        data={'rows': rows}, seed=SEED,
    )  # fmt: skip


if __name__ == '__main__':
    main()
