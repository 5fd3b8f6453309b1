"""What tests of several rooms start from."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope='session')
def block_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label map: a block of white matter in a shell of cortex in fluid."""
    labels = np.zeros((60, 76, 60), np.int16)
    for margin, label in ((8, 24), (10, 3), (14, 2)):
        labels[margin:-margin, margin:-margin, margin:-margin] = label
    labels[28:32, 34:42, 28:32] = 4
    path = tmp_path_factory.mktemp('maps') / 'block.nii.gz'
    nib.Nifti1Image(labels, np.diag([2.0, 2, 2, 1])).to_filename(path)
    return path


@pytest.fixture(scope='module')
def benchmark_script() -> Iterator[Callable[[str], ModuleType]]:
    """Import a script of the benchmarks by its name; they import one another so."""
    folder = Path(__file__).parents[1] / 'benchmarks'
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    yield importlib.import_module
    sys.path[:] = before
    for name in set(sys.modules) - known:
        if (folder / f'{name}.py').exists():
            del sys.modules[name]
