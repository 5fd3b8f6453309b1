"""What an earlier run has left in the working folder: steps of which the result cannot be used are done again."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import load_resultfile

_log = logging.getLogger('nipype.workflow')


def drop_spoilt(workflow: pe.Workflow) -> list[Path]:
    """Forget the steps of a graph whose results cannot be read any more, and return their folders.

    A power cut, a full disk, a folder that was moved or another version of a library leaves them. Nipype would take such a step for done,
    and fail in every run from then on.

    Parameters
    ----------
    workflow
        The graph, with ``base_dir`` set. Of a shared folder only its own part is looked at.
    """
    root = Path(workflow.base_dir) / workflow.name
    dropped = []
    for name in sorted(node.name for node in workflow._graph.nodes()):
        for file in sorted((root / name).rglob('result_*.pklz')):
            if not _usable(file):
                _log.warning('[Node] Its result cannot be used, it is done again: %s', file.parent)
                _forget(file)
                dropped.append(file.parent)
    return dropped


def _usable(result_file: Path) -> bool:
    try:
        result = load_resultfile(result_file, resolve=False)
        outputs = result.outputs.get() if result.outputs is not None else {}
        return all(_whole(Path(path)) for path in _files(list(outputs.values())))
    except Exception:  # noqa: BLE001 - a broken pickle may raise anything
        return False


def _files(value: Any) -> Iterator[str]:
    """Yield the absolute paths in a value of a result."""
    if isinstance(value, str) and os.path.isabs(value):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _files(item)


def _whole(path: Path) -> bool:
    """Say whether a file is there, and an image that is not compressed has all its voxels."""
    size = path.stat().st_size
    if path.suffix != '.nii' or path.is_dir():
        return True
    image: Any = nib.load(path)
    voxels = image.dataobj
    return bool(size >= voxels.offset + voxels.dtype.itemsize * math.prod(voxels.shape))


def _forget(result_file: Path) -> None:
    """Take away what makes Nipype think that a step is done."""
    for file in [result_file, *result_file.parent.glob('_0x*.json'), *result_file.parent.glob('_*.pklz')]:
        with contextlib.suppress(OSError):
            file.unlink()
