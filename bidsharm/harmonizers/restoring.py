"""Networks from the weights of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn


def restored_networks(
    build: Callable[[], Mapping[str, nn.Module]], arrays: Mapping[str, NDArray[Any]]
) -> nn.ModuleDict:
    """Return networks with the weights of a bundle.

    Parameters
    ----------
    build
        Makes the networks by name, as the settings of the bundle say.
    arrays
        Weights by name.

    Raises
    ------
    ConfigurationError
        If the weights are those of another network.
    """
    import torch

    weights = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    try:
        with torch.device('meta'):  # settings of a bundle may ask for networks that no memory holds
            torch.nn.ModuleDict(dict(build())).load_state_dict(weights, assign=True)
        networks = torch.nn.ModuleDict(dict(build()))
        networks.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigurationError(
            f'The weights are of another network ({str(error).splitlines()[-1].strip()}).',
            fix='Train the method again.',
        ) from None
    return networks.eval()
