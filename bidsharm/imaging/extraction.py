"""Brain extraction with deepbet (Fisch et al. 2024, doi:10.1016/j.compbiomed.2024.108845); MIT, weights in its wheel."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from bidsharm.errors import ScanError


def deepbet_mask(in_file: Path, out_file: Path, *, device: str = 'cpu') -> dict[str, Any]:
    """Write the brain mask of a whole head.

    Parameters
    ----------
    in_file
        Image in canonical axis order.
    out_file
        Where the mask goes (uint8, same grid).
    device
        ``cpu``, or a CUDA device; ``cuda`` is the first one.

    Returns
    -------
    dict
        ``volume_ml`` of the mask.

    Raises
    ------
    ScanError
        If no brain was found, or memory did not suffice.
    """
    from deepbet import BrainExtraction

    from bidsharm.imaging.grids import make_image, open_image
    from bidsharm.imaging.masks import volume_ml

    image = open_image(in_file)
    on_card = device.startswith('cuda')
    try:
        # deepbet takes the current card and has no option for another.
        with _current_card(int(device.partition(':')[2] or 0)) if on_card else contextlib.nullcontext():
            _, mask, _ = BrainExtraction(no_gpu=not on_card).run(image)
    except (AssertionError, ValueError, IndexError, RuntimeError) as error:
        if 'out of memory' in str(error):
            raise ScanError(
                f'The memory of {device} does not suffice for deepbet.',
                fix='Free the device, or choose --device cpu.',
            ) from None
        if "can't allocate memory" in str(error):  # PyTorch's words for the memory of the machine
            raise ScanError(
                'There is not enough memory for deepbet.',
                fix='Give the job more, or choose a smaller --nprocs.',
            ) from None
        raise ScanError(
            f'deepbet found no brain in it ({str(error).splitlines()[0] if str(error) else type(error).__name__}).',
            fix='Look at the scan; try --brain-extraction ants, or give a mask with --derivatives; '
            'for a stripped scan, --skull-strip skip.',
        ) from None
    found = np.asarray(mask.dataobj) > 0
    make_image(found, image.affine, np.uint8).to_filename(out_file)
    return {'volume_ml': volume_ml(found, image.affine)}


def _current_card(number: int) -> contextlib.AbstractContextManager[None]:
    """Make a CUDA card the one that ``torch.device('cuda')`` stands for."""
    import torch

    return torch.cuda.device(number)
