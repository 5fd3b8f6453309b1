"""What surface networks train on: maps on one icosphere, drawn so that all sites are seen equally often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bidsharm.training.regimes import Example, Sampler


class SurfaceSampler(Sampler):
    """Draws maps of any site, and maps of the target.

    Parameters
    ----------
    maps
        In units of the network, 0 where there is no cortex, shape (M, N), float32.
    cortex
        Where there is cortex, same shape.
    sites
        Number of the site of each map.
    target
        Number of the target site.
    batch
        Maps in a batch.
    """

    needs = ('two_sites',)

    def __init__(
        self,
        maps: NDArray[np.float32],
        cortex: NDArray[np.bool_],
        sites: Sequence[int],
        *,
        target: int,
        batch: int,
    ) -> None:
        self.maps, self.cortex, self.sites = maps, cortex, np.asarray(sites)
        self.batch = batch
        self.at = {site: np.flatnonzero(self.sites == site) for site in sorted(set(sites))}
        self.target = str(target)
        self.others = [site for site in self.at if site != target]

    def narrowed(self, rng: np.random.Generator) -> Self:
        """Return this sampler: a map has no axes to choose from."""
        del rng
        return self

    def example(self, rng: np.random.Generator) -> Example:
        """Draw ``x`` of any site, ``y`` of the target and ``z`` of another site."""
        anywhere = list(self.at)[int(rng.integers(len(self.at)))]
        elsewhere = self.others[int(rng.integers(len(self.others)))]
        found: Example = {'site': np.asarray(anywhere, np.int64)}
        for name, site in (('x', anywhere), ('y', int(self.target)), ('z', elsewhere)):
            index = int(rng.choice(self.at[site]))
            found[name] = self.maps[index][None]
            found[f'{name}_mask'] = self.cortex[index][None].astype(np.float32)
        found['z_site'] = np.asarray(elsewhere, np.int64)
        return found
