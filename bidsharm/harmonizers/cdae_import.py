"""Published weights of CDAE (PyTorch) as a bundle of `cdae`.

The authors keep the encoder and the decoder of each hemisphere in a file of its own. Their layers have the names of ours, but that a block of the
encoder lies in a ``block``. Files are read as tensors only: what would run code is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.errors import UsageError
from bidsharm.files import open_regular
from bidsharm.harmonizers.cdae import CDAE

if TYPE_CHECKING:
    from torch import Tensor

#: Sites of the published training, by their numbers; the first is its target.
SITES = ('BCP', 'MAP', 'JOHN', 'NDAR')
#: File of each network that harmonizes.
FILES = {'encoder': 'nonscanner_enc.dcae.mdl', 'decoder': 'recon_dec.dcae.mdl'}
#: A file that is larger (bytes) is none of theirs.
MAX_BYTES = 50_000_000


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises
    ------
    UsageError
        If it is no file of tensors and nothing else.
    """
    import torch

    try:
        with open_regular(path, MAX_BYTES) as file:
            found = torch.load(file, map_location='cpu', weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f'This is no file of PyTorch weights: {said}', where=str(path)) from None
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UsageError('The file holds something else than named weights.', where=str(path))
    return {str(name): value for name, value in found.items()}


def import_networks(
    folders: Mapping[str, Path], unit: tuple[float, float], measure: str = 'thickness'
) -> CDAE:
    """Return `cdae` with the published weights of one or both hemispheres.

    Parameters
    ----------
    folders
        Folder of the files of each hemisphere.
    unit
        Mean and standard deviation that maps are scaled by, for those of the training are not public.
    measure
        Kind of the maps.

    Raises
    ------
    UsageError
        If there is no hemisphere, the deviation is not above 0, or weights are those of another network.
    """
    import torch

    if not folders:
        raise UsageError('There is nothing to import.', fix='Give --left, --right or both.')
    mean, deviation = unit
    if not deviation > 0:
        raise UsageError('The standard deviation must be above 0.', where='--unit')
    method = CDAE()
    method.sites, method.target_site, method.measure = SITES, SITES[0], measure
    for side, folder in folders.items():
        built: dict[str, Any] = method.build()
        for name, file in FILES.items():
            weights = {_ours(key): value for key, value in read_weights(folder / file).items()}
            try:
                built[name].load_state_dict(weights)
            except RuntimeError as error:
                raise UsageError(
                    f'The weights are of another network ({str(error).splitlines()[-1].strip()}).', where=str(folder / file),
                    fix='Give the files of the public repository of CDAE.',
                ) from None  # fmt: skip
        method.hemispheres[side] = torch.nn.ModuleDict({name: built[name] for name in method.kept}).eval()
        method.units[side] = (float(mean), float(deviation))
    return method


def _ours(name: str) -> str:
    """Return our name of a layer."""
    return name.replace('.block.', '.', 1)
