"""Networks from settings: untrained ones, and those with the weights of a bundle."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from torch import nn

#: What a constructor of networks raises for sizes that do not go together.
_NO_NETWORK = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def untrained_networks(build: Callable[[], Mapping[str, nn.Module]], method: str) -> nn.ModuleDict:
    """Return networks as settings say.

    Parameters
    ----------
    build
        Makes the networks by name.
    method
        Name of the method, for messages.

    Raises
    ------
    UsageError
        If the settings, each of which may be what it is, make no networks together, or some layer without weights.
    """
    import torch

    try:
        with warnings.catch_warnings():  # what torch warns of is said below, in words
            warnings.filterwarnings('ignore', message='Initializing zero-element tensors')
            networks = torch.nn.ModuleDict(dict(build()))
        if any(weights.numel() == 0 for weights in networks.parameters()):
            raise ValueError('a layer would have no weights')
    except _NO_NETWORK as error:
        raise UsageError(
            f'These settings make no networks for {method} ({_lines(error)[0]}).', where='--set',
            fix='Look at its widths and numbers of layers; without --set they are those of its paper.',
        ) from error  # fmt: skip
    return networks


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
    except _NO_NETWORK as error:
        raise ConfigurationError(
            f'The weights are of another network ({_lines(error)[-1].strip()}).',
            fix='Train the method again.',
        ) from None
    return networks.eval()


def _lines(error: Exception) -> list[str]:
    """Return what an error says; its name where it says nothing."""
    return str(error).splitlines() or [type(error).__name__]
