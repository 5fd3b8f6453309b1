"""The page about harmonized surfaces: what differed between sites before, what still differs after, and where."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.evaluation.probe import site_probe
from bidsharm.imaging.icosphere import icosphere
from bidsharm.imaging.surfaces import Resampling, Sphere
from bidsharm.reports.subject import render

Floats = NDArray[np.float64]
#: fsaverage5, which nilearn brings the surfaces of.
SHOWN = 5
#: Sites that get a row of pictures.
PICTURED = 4
_SIDES = {'L': 'left', 'R': 'right'}
_PERMUTATIONS = 40


@dataclass(frozen=True)
class Pair:
    """One map before and after, on the icosphere of the method.

    Parameters
    ----------
    name, person, site, hemisphere
        Whose it is.
    before, after
        Shape (N,).
    cortex
        Where there is cortex, shape (N,).
    """

    name: str
    person: str
    site: str
    hemisphere: str
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    cortex: NDArray[np.bool_]


@dataclass(frozen=True)
class SiteRow:
    """What the page says of a site and a hemisphere.

    Parameters
    ----------
    site, hemisphere, maps
        Which, and how many maps.
    before, after
        Mean over the cortex.
    apart_before, apart_after
        Mean over the cortex of how far the site's mean map is from the target's; None where the target has no map.
    """

    site: str
    hemisphere: str
    maps: int
    before: float
    after: float
    apart_before: float | None
    apart_after: float | None


def site_rows(pairs: Sequence[Pair], target: str) -> list[SiteRow]:
    """Return a row for each hemisphere and site."""
    rows = []
    for side in sorted({pair.hemisphere for pair in pairs}):
        some = [pair for pair in pairs if pair.hemisphere == side]
        cortex = np.all([pair.cortex for pair in some], axis=0)
        wanted = [pair.before for pair in some if pair.site == target]
        for site in sorted({pair.site for pair in some}):
            here = [pair for pair in some if pair.site == site]
            means = [
                np.mean([getattr(pair, when) for pair in here], axis=0)[cortex]
                for when in ('before', 'after')
            ]
            goal = np.mean(wanted, axis=0)[cortex] if wanted else None
            apart = [None if goal is None else float(np.abs(mean - goal).mean()) for mean in means]
            rows.append(SiteRow(site or 'unknown', side, len(here), float(means[0].mean()), float(means[1].mean()), *apart))  # fmt: skip
    return rows


def regional_means(pairs: Sequence[Pair], when: str) -> Floats:
    """Return for each map its means over 42 regions of equal size, as far as there is cortex."""
    sphere = Sphere.of_level(_level(pairs[0]))
    owner = (sphere.vertices @ icosphere(1).vertices.T).argmax(axis=1)
    rows = []
    for pair in pairs:
        inside = np.bincount(owner[pair.cortex], minlength=42)
        total = np.bincount(owner[pair.cortex], weights=getattr(pair, when)[pair.cortex], minlength=42)
        rows.append(np.where(inside > 0, total / np.maximum(inside, 1), 0))
    return np.array(rows)


def told(pairs: Sequence[Pair], when: str, seed: int) -> Any:
    """Return how well a linear classifier tells the site of a map from its regional means."""
    return site_probe(
        regional_means(pairs, when), [pair.site for pair in pairs], [pair.person for pair in pairs], seed=seed,
        permutations=_PERMUTATIONS, resamples=1000,
    )  # fmt: skip


def write_surface_report(
    out_file: Path,
    pairs: Sequence[Pair],
    *,
    method: str,
    measure: str,
    target: str,
    seed: int = 0,
    warnings: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write the page.

    Parameters
    ----------
    out_file
        Where to; it appears whole or not at all.
    pairs
        All maps before and after.
    method, measure, target
        Name of the method, kind of the maps, and the site aimed at.
    seed
        Of the probe.
    warnings
        Sentences that a reader must see.
    provenance
        What made the results; shown as a list.
    """
    probes = []
    for side in sorted({pair.hemisphere for pair in pairs}):
        some = [pair for pair in pairs if pair.hemisphere == side]
        probes.append((_SIDES[side], told(some, 'before', seed), told(some, 'after', seed)))
    sites = len({pair.site for pair in pairs})
    return render(
        out_file, 'surfaces.html.j2', title=f'Harmonized {measure}',
        sentence=f'{len(pairs)} maps of {sites} {"site" if sites == 1 else "sites"}, brought to "{target}" by {method}',
        messages=warnings, rows=site_rows(pairs, target), probes=probes, measure=measure, target=target,
        pictures=[(side, pictures(pairs, side, target)) for side in sorted({pair.hemisphere for pair in pairs})],
        sides=_SIDES, provenance=provenance or {},
    )  # fmt: skip


def pictures(pairs: Sequence[Pair], side: str, target: str) -> str:
    """Return a picture (as a data URI): the target's mean, and how far each other site is from it before and after."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels = list(_panels([pair for pair in pairs if pair.hemisphere == side], target))
    figure, axes = plt.subplots(
        len(panels), 2, figsize=(6.4, 2.5 * len(panels)), subplot_kw={'projection': '3d'}, squeeze=False
    )  # fmt: skip
    try:
        for row, (title, values, limits, colours) in zip(axes, panels, strict=True):
            _draw(figure, row, title, values, side, limits, colours)
        out = io.BytesIO()
        figure.savefig(out, format='png', dpi=70)
    finally:
        plt.close(figure)
    return f'data:image/png;base64,{base64.b64encode(out.getvalue()).decode("ascii")}'


def _panels(pairs: Sequence[Pair], target: str) -> Any:
    """Yield title, values on fsaverage5 (NaN where there is no cortex), limits and colours of each row."""
    cortex = np.all([pair.cortex for pair in pairs], axis=0)
    level = _level(pairs[0])
    show = Resampling(Sphere.of_level(level), Sphere.of_level(SHOWN))

    def mean(site: str, when: str) -> Floats:
        return np.asarray(np.mean([getattr(pair, when) for pair in pairs if pair.site == site], axis=0))

    def shown(values: Floats) -> Floats:
        moved, there = show.carry(values, cortex)
        return np.where(there, moved, np.nan)

    sites = sorted({pair.site for pair in pairs})
    base = target if target in sites else sites[0]  # a model may aim at a site that is not here
    goal = mean(base, 'before')
    inside = goal[cortex]
    yield (
        f'{base}: mean',
        shown(goal),
        np.percentile(inside, (2, 98)),
        'viridis',
    )
    others = [site for site in sites if site != base][:PICTURED]
    far = [mean(site, 'before') - goal for site in others]
    limit = max((float(np.percentile(np.abs(one[cortex]), 98)) for one in far), default=1.0) or 1.0
    for site, before in zip(others, far, strict=True):
        yield f'{site} before, from {base} before', shown(before), (-limit, limit), 'coolwarm'
        yield (
            f'{site} after, from {base} before',
            shown(mean(site, 'after') - goal),
            (-limit, limit),
            'coolwarm',
        )


def _draw(figure: Any, row: Any, title: str, values: Floats, side: str, limits: Any, colours: str) -> None:
    from nilearn import plotting

    mesh = _inflated(side)
    for axis, view in zip(row, ('lateral', 'medial'), strict=True):
        plotting.plot_surf(
            mesh, values, hemi=_SIDES[side], view=view, cmap=colours, vmin=limits[0], vmax=limits[1], colorbar=view == 'medial',
            axes=axis, figure=figure, engine='matplotlib', bg_map=None,
        )  # fmt: skip
    row[0].set_title(title, loc='left', fontsize=9)


def _inflated(side: str) -> str:
    """Return nilearn's inflated fsaverage5."""
    import nilearn

    folder = Path(nilearn.__file__).parent / 'datasets' / 'data' / 'fsaverage5'
    return str(folder / f'infl_{_SIDES[side]}.gii.gz')


def _level(pair: Pair) -> int:
    from bidsharm.imaging.icosphere import level_of

    level = level_of(len(pair.before))
    assert level is not None
    return level
