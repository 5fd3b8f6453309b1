"""What the networks for tables share: units of the features, training in batches, weights in the bundle."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import UsageError
from bidsharm.harmonizers.contract import Progress
from bidsharm.harmonizers.design import Floats
from bidsharm.harmonizers.table import CONSTANT, FeatureTable, TableHarmonizer, counted, some

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: Standardized features beyond this many spreads are drawn to it: a network says nothing about them.
FARTHEST = 8.0


class NetworkTableHarmonizer(TableHarmonizer):
    """A method for tables whose networks are trained.

    Features are standardized over the rows of the fit, and missing cells are the mean. All is in double precision, so that a row gives
    the same result whatever rows are beside it.
    """

    quick = False
    #: Sizes of the networks need more than this many features that vary.
    least: ClassVar[int] = 1

    def learn(
        self, table: FeatureTable, matrix: Floats, *, seed: int, progress: Progress | None
    ) -> list[str]:
        """Train the networks."""
        import torch

        self._set_units(table, matrix)
        units, context = self._units(table.values), self._context(matrix)
        warnings = self._said(table)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = self._built()
            for network in self.networks.values():
                network.train()
            self.train_networks(
                torch.from_numpy(units), torch.from_numpy(self.site_index(table.sites)), torch.from_numpy(context),
                progress or _silent,
            )  # fmt: skip
        self._rest()
        return warnings

    @abstractmethod
    def build(self, features: int, sites: int, kept: int) -> dict[str, nn.Module]:
        """Return new networks for so many features, sites and kept columns."""

    @abstractmethod
    def train_networks(self, units: Tensor, site: Tensor, kept: Tensor, progress: Progress) -> None:
        """Train the networks on standardized features, numbers of sites and standardized kept columns."""

    @abstractmethod
    def mapped(self, units: Tensor, site: Tensor, kept: Tensor) -> Tensor:
        """Return standardized features at the target."""

    def apply(self, table: FeatureTable, matrix: Floats) -> Floats:
        """Map the features to the target; rows of a reference stay as they are, and what lies beyond the bounds of the units stays beyond."""
        import torch

        plain, site = self._standard(table.values), self.site_index(table.sites)
        units = np.clip(plain, -FARTHEST, FARTHEST)
        with torch.no_grad():
            found = self.mapped(
                torch.from_numpy(units), torch.from_numpy(site), torch.from_numpy(self._context(matrix))
            ).numpy()
        values = np.zeros_like(table.values)
        values[:, self.usable] = (found + plain - units) * self.scale[self.usable] + self.centre[self.usable]
        if self.reference is not None:
            same = site == self.reference
            values[same] = table.values[same]
        return values

    def left_features(self) -> NDArray[np.bool_]:
        """Return which features do not vary."""
        return np.asarray(~self.usable)

    def weights(self) -> Floats:
        """Return how much each site counts for the target, shape (sites,): one of them, or all by their rows."""
        if self.reference is None:
            return self.shares
        return np.asarray(np.eye(len(self.sites))[self.reference])

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return units and weights."""
        _, settings = super().state()
        if not self.sites:
            return {}, settings
        arrays = {name: np.asarray(getattr(self, name), dtype=np.float64) for name in _UNITS}
        for key, network in self.networks.items():
            arrays |= {f'{key}.{name}': value.numpy() for name, value in network.state_dict().items()}
        return arrays, settings

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take units and weights back."""
        import torch

        super().restore(arrays, settings)
        for name in _UNITS:
            setattr(self, name, arrays[name])
        self.usable = arrays['usable'] > 0
        self.networks = self._built()
        for key, network in self.networks.items():
            start = f'{key}.'
            own = {
                name.removeprefix(start): torch.from_numpy(array)
                for name, array in arrays.items()
                if name.startswith(start)
            }
            network.load_state_dict(own)
        self._rest()

    def _built(self) -> dict[str, nn.Module]:
        built = self.build(int(self.usable.sum()), len(self.sites), self.kept_centre.size)
        return {name: network.double() for name, network in built.items()}

    def _rest(self) -> None:
        for network in self.networks.values():
            network.eval()
            network.requires_grad_(False)

    def _set_units(self, table: FeatureTable, matrix: Floats) -> None:
        there = np.isfinite(table.values)
        count = np.maximum(there.sum(axis=0), 1)
        filled = np.where(there, table.values, 0.0)
        self.centre = filled.sum(axis=0) / count
        spread = np.sqrt(np.where(there, (table.values - self.centre) ** 2, 0.0).sum(axis=0) / count)
        self.usable = spread > CONSTANT * np.maximum(np.abs(filled).max(axis=0), 1e-300)
        self.scale = np.where(self.usable, spread, 1.0)
        self.kept_centre, self.kept_scale = matrix.mean(axis=0), np.maximum(matrix.std(axis=0), 1e-300)
        self.shares = self.onehot(table.sites).mean(axis=0)
        if self.usable.sum() < self.least:
            raise UsageError(f'{self.card.name} needs {counted(self.least, "feature")} that vary.')

    def _standard(self, values: Floats) -> Floats:
        """Return the features that vary in units of their spread; 0, the mean, where there is no number."""
        plain = (values - self.centre) / self.scale
        return np.where(np.isfinite(plain), plain, 0.0)[:, self.usable]

    def _units(self, values: Floats) -> Floats:
        return np.clip(self._standard(values), -FARTHEST, FARTHEST)

    def _context(self, matrix: Floats) -> Floats:
        return np.asarray((matrix - self.kept_centre) / self.kept_scale)

    def _said(self, table: FeatureTable) -> list[str]:
        left = [name for name, good in zip(self.features, self.usable, strict=True) if not good]
        warnings = (
            [f'{counted(len(left), "feature")} ({some(left)}) does not vary: left as it is.'] if left else []
        )
        missing = int(np.isnan(table.values).sum())
        if missing:
            warnings.append(f'{counted(missing, "missing cell")} counted as the mean for the networks.')
        return warnings


_UNITS = ('centre', 'scale', 'usable', 'kept_centre', 'kept_scale', 'shares')


def _silent(done: int, total: int, text: str) -> None:
    del done, total, text


def batches(rows: int, size: int) -> Iterator[Tensor]:
    """Yield the numbers of the rows in random order; no batch of one row is left over."""
    import torch

    order = torch.randperm(rows)
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


def epochs(
    count: int,
    rows: int,
    size: int,
    step: Callable[[Tensor], None],
    after: Callable[[], Any],
    progress: Callable[[int], None],
) -> None:
    """Call a step for each batch of each epoch, and what comes after each epoch."""
    for epoch in range(count):
        for batch in batches(rows, size):
            step(batch)
        after()
        progress(epoch + 1)


def mlp(sizes: Iterable[int], dropout: float = 0.0) -> nn.Sequential:
    """Return layers with tanh between them."""
    from itertools import pairwise

    from torch import nn

    layers: list[nn.Module] = []
    for low, high in pairwise(sizes):
        layers += [nn.Linear(low, high), nn.Tanh()] + ([nn.Dropout(dropout)] if dropout else [])
    while not isinstance(layers[-1], nn.Linear):
        layers.pop()
    return nn.Sequential(*layers)


def onehot(site: Tensor, sites: int) -> Tensor:
    """Return numbers of sites as indicators in double precision."""
    from torch.nn import functional

    return functional.one_hot(site, sites).double()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
