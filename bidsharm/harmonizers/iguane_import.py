"""Published weights of IGUANe (Keras, HDF5) as a bundle of `iguane`.

Keras keeps kernels as (x, y, z, in, out), those of transposed convolutions as (x, y, z, out, in); both become PyTorch's order by the same permutation. Layers
lie in the file in the order in which the network was built.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.files import open_regular

if TYPE_CHECKING:
    from torch import nn

    from bidsharm.harmonizers.cyclegan import Iguane

#: Median of a brain in the published preprocessing, and so in its results.
MEDIAN = 500.0
#: More numbers than the largest array of the generator has.
MAX_WEIGHTS = 100_000_000
#: Name of the site that the published generator leads to.
SITE = 'iguane'


def read_keras(path: Path) -> list[NDArray[np.float32]]:
    """Return the arrays of a Keras weights file, layer by layer.

    Raises
    ------
    UsageError
        If it is no such file.
    ConfigurationError
        If h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise ConfigurationError('Reading HDF5 files needs h5py.', fix='pip install h5py') from None
    try:
        with open_regular(path) as opened, h5py.File(opened, 'r') as file:
            root = file.get('model_weights', file)
            layers = [_inside(root, _text(name)) for name in root.attrs['layer_names']]
            names = [(layer, _text(name)) for layer in layers for name in layer.attrs['weight_names']]
            return [_array(_inside(layer, name)) for layer, name in names]
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, MemoryError) as error:
        raise UsageError(f'This is no file of Keras weights: {error}.', where=str(path)) from None


def _inside(group: Any, name: str) -> Any:
    """Return what lies in a group under a path, without following links of HDF5, which may lead to other files."""
    import h5py

    for part in filter(None, name.split('/')):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f'"{name}" is missing, or a link')
        group = group[part]
    return group


def _array(found: Any) -> NDArray[np.float32]:
    """Return a data set that lies in this very file, and is no larger than a network."""
    import h5py

    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ValueError('weights lie in another file')
    if found.size is None or found.size > MAX_WEIGHTS:
        raise ValueError('an array is larger than any of the generator')
    return np.asarray(found, dtype=np.float32)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def import_generator(arrays: list[NDArray[np.float32]], where: str = '') -> Iguane:
    """Return `iguane` with the weights of a published generator; it aims at the site ``iguane`` and has no way back.

    Parameters
    ----------
    arrays
        As :func:`read_keras` returns them: of each convolution kernel and bias, then scale and offset of its norm.
    where
        For messages.

    Raises
    ------
    UsageError
        If their number or their shapes are not those of the generator.
    """
    import torch

    from bidsharm.harmonizers.cyclegan import Iguane
    from bidsharm.harmonizers.training_data import common_frame

    method = Iguane()
    method.sites, method.contrasts, method.target_site = (SITE,), ('T1w',), SITE
    method.frame = common_frame(method.settings.voxel_mm).shape
    method.networks = torch.nn.ModuleDict(method.build())
    weights = [weight for layer in _in_order(method.networks['generator']) for weight in layer.parameters()]
    if len(weights) != len(arrays):
        raise UsageError(
            f'The file holds {len(arrays)} arrays; the generator has {len(weights)}.', where=where
        )
    with torch.no_grad():
        for number, (weight, array) in enumerate(zip(weights, arrays, strict=True)):
            given = np.transpose(array, (4, 3, 0, 1, 2)) if array.ndim == 5 else array
            if given.shape != tuple(weight.shape):
                raise UsageError(
                    f'Array {number} has shape {array.shape}, which does not fit {tuple(weight.shape)}.',
                    where=where,
                )
            weight.copy_(torch.from_numpy(np.ascontiguousarray(given)))
    method.take_trained(units={'T1w': MEDIAN}, kind='site', label=SITE)
    return method


def _in_order(generator: nn.Module) -> list[nn.Module]:
    """Return the parts of a generator in the order in which Keras has built them."""
    net = generator.body
    parts: list[nn.Module] = [net.encoders[0]]  # type: ignore[index, union-attr, list-item]
    for down, encoder in zip(net.downs, list(net.encoders)[1:], strict=True):  # type: ignore[arg-type, union-attr]
        parts += [down, encoder]
    for up, decoder in zip(net.ups, net.decoders, strict=True):  # type: ignore[arg-type, union-attr]
        parts += [up, decoder]
    return [*parts, net.last]  # type: ignore[list-item, union-attr]
