"""Which places of a feature map are compared, and by what: random patches, or those that attention finds telling (Hu et al. 2022, QS-Attn)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def telling(features: Tensor, count: int) -> Tensor:
    """Return the attention of the places that know best what they are like (Hu et al. 2022, doi:10.1109/CVPR52688.2022.01775, eq. 3 and 4).

    Every place attends to all others by the similarity of their features; the places whose attention has the lowest entropy are kept.

    Parameters
    ----------
    features
        Shape (B, places, C).
    count
        Places to keep.

    Returns
    -------
    Tensor of shape (B, count, places)
        Each row adds up to 1.
    """
    attention = (features @ features.transpose(1, 2)).softmax(dim=2)
    entropy = torch.special.entr(attention).sum(dim=2)
    chosen = entropy.topk(min(count, entropy.shape[1]), dim=1, largest=False).indices
    return attention.gather(1, chosen[:, :, None].expand(-1, -1, attention.shape[2]))


class PatchProjection(nn.Module):
    """Vectors of length 1 for places of several feature maps.

    Parameters
    ----------
    channels
        Of each feature map.
    features
        Length of a vector.
    patches
        Places of each map.
    attend_from
        Maps from this one on are attended to; earlier ones, which are large, give random places.
    """

    def __init__(
        self, channels: Sequence[int], features: int = 256, patches: int = 256, attend_from: int = 3
    ) -> None:
        super().__init__()
        self.patches, self.attend_from = patches, attend_from
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, features), nn.ReLU(), nn.Linear(features, features))
            for width in channels
        )

    def routes(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return where to look: indices of places (N,), or attention (B, N, places)."""
        found = []
        for index, here in enumerate(maps):
            flat = here.flatten(2).transpose(1, 2)
            if index >= self.attend_from:
                found.append(telling(flat, self.patches))
            else:
                found.append(torch.randperm(flat.shape[1], device=flat.device)[: self.patches])
        return found

    def forward(self, maps: Sequence[Tensor], routes: Sequence[Tensor]) -> list[Tensor]:
        """Return the vectors of each map, shape (B, N, features)."""
        found = []
        for here, route, layer in zip(maps, routes, self.layers, strict=True):
            flat = here.flatten(2).transpose(1, 2)
            picked = route @ flat if route.ndim == 3 else flat[:, route]
            found.append(functional.normalize(layer(picked), dim=2))
        return found
