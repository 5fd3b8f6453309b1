"""Helpers that all interfaces share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits
from numpy.typing import NDArray

from bidsharm.imaging.grids import make_image, open_image
from bidsharm.interfaces.usage import measured

__all__ = [
    'BaseInterfaceInputSpec',
    'Interface',
    'TraitedSpec',
    'read',
    'read_mask',
    'read_tissue',
    'traits',
    'write',
]


class Interface(SimpleInterface):
    """A :class:`SimpleInterface` whose subclasses write one method, ``_compute``, that returns the outputs."""

    def _run_interface(self, runtime: Any) -> Any:
        with measured(Path(runtime.cwd)):
            self._results.update(self._compute(Path(runtime.cwd)))
        return runtime

    def _compute(self, cwd: Path) -> dict[str, Any]:
        raise TypeError(f'{type(self).__name__} has no _compute')

    def given(self, name: str, default: Any = None) -> Any:
        """Return an input, or a default where it is not defined."""
        from nipype.interfaces.base import isdefined

        value = getattr(self.inputs, name)
        return value if isdefined(value) else default


def read(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the voxels as float32, and the affine."""
    image = open_image(path)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Return a mask as bool."""
    return np.asarray(open_image(path).dataobj) > 0


def read_tissue(path: str | Path) -> NDArray[np.float32]:
    """Return a 4-D image with tissues last as an array with tissues first."""
    return np.ascontiguousarray(np.moveaxis(read(path)[0], -1, 0))


def write(path: Path, data: NDArray, affine: NDArray, dtype: type = np.float32) -> str:
    """Write an intermediate image (uncompressed: it is read back at once) and return its path."""
    make_image(data, affine, dtype).to_filename(path)
    return str(path)
