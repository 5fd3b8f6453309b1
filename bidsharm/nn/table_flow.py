"""An invertible map of rows of features that depends on their causes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bidsharm.nn.spline import rational_quadratic

#: Splines act on this many spreads to each side; beyond, noise is features.
BOUND = 5.0
#: Logarithms of spreads stay within plus and minus this.
WIDEST = 4.0


class CausedFlow(nn.Module):
    """Noise to features and back, given site and other causes.

    The last step towards the features is a shift and a spread of each; before it come coupling layers, in which one half of the
    features sets splines of the other half. At the start all splines are the identity.

    Parameters
    ----------
    features, sites, causes
        How many there are; causes are columns beside the site.
    couplings
        Coupling layers; the halves take turns. None with one feature.
    width, bins
        Hidden size of the networks, and bins of the splines.
    """

    def __init__(
        self, features: int, sites: int, causes: int, *, couplings: int, width: int, bins: int
    ) -> None:
        super().__init__()
        self.shift = nn.Linear(sites + causes, features, bias=False)
        self.spread = nn.Linear(sites, features, bias=False)
        for layer in (self.shift, self.spread):
            nn.init.zeros_(layer.weight)
        self.bins, self.features = bins, features
        count = couplings if features > 1 else 0
        self.nets = nn.ModuleList()
        for index in range(count):
            fixed, free = self._halves(index)
            last = nn.Linear(width, len(free) * (3 * bins - 1))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.nets.append(nn.Sequential(nn.Linear(len(fixed) + sites + causes, width), nn.Tanh(), last))

    def _halves(self, index: int) -> tuple[list[int], list[int]]:
        """Return the features that set the splines of a layer, and those that are changed; every other pair is cut in another way."""
        order = list(range(self.features))
        first = order[::2] if index % 4 < 2 else order[: max(self.features // 2, 1)]
        second = [place for place in order if place not in first]
        return (first, second) if index % 2 == 0 else (second, first)

    def forward(self, x: Tensor, site: Tensor, causes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise of rows, and the logarithm of the determinant."""
        context = torch.cat([site, causes], dim=1)
        log_spread = WIDEST * torch.tanh(self.spread(site) / WIDEST)
        u = (x - self.shift(context)) * torch.exp(-log_spread)
        log_det = -log_spread.sum(dim=1)
        for index in range(len(self.nets)):
            u, gain = self._coupled(index, u, context, backwards=False)
            log_det = log_det + gain
        return u, log_det

    def backwards(self, u: Tensor, site: Tensor, causes: Tensor) -> Tensor:
        """Return the features of noise."""
        context = torch.cat([site, causes], dim=1)
        for index in reversed(range(len(self.nets))):
            u, _ = self._coupled(index, u, context, backwards=True)
        return self.shift(context) + torch.exp(WIDEST * torch.tanh(self.spread(site) / WIDEST)) * u

    def _coupled(self, index: int, u: Tensor, context: Tensor, *, backwards: bool) -> tuple[Tensor, Tensor]:
        fixed, free = self._halves(index)
        numbers = self.nets[index](torch.cat([u[:, fixed], context], dim=1))
        widths, heights, slopes = numbers.view(len(u), len(free), -1).split(
            [self.bins, self.bins, self.bins - 1], dim=-1
        )
        made, gain = rational_quadratic(u[:, free], widths, heights, slopes, bound=BOUND, backwards=backwards)
        found = u.clone()
        found[:, free] = made
        return found, gain.sum(dim=1)
