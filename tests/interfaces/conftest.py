"""Files of heads with known truth, and ANTs as if it were or were not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bidsharm.interfaces import ants
from bidsharm.simulation.acquisition import acquire
from bidsharm.simulation.heads import load_template
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.protocols import Hardware
from bidsharm.simulation.rendering import render, scan_grid


@dataclass(frozen=True)
class Head:
    """A simulated whole head at 4 mm and what it really is."""

    data: NDArray[np.float32]
    ideal: NDArray[np.float32]
    mask: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    fractions: NDArray[np.float32]  # CSF, GM, WM
    affine: NDArray[np.float64]


def save(path: Path, data: NDArray, affine: NDArray) -> str:
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units('mm')
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return str(path)


def rigid(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return a rotation about the world's origin and a shift, shape (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('xyz', degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def blobs(size: float = 3.0, count: int = 32) -> tuple[NDArray, NDArray, NDArray]:
    """Return an uneven picture, labelled landmarks in it, and the affine; the world's origin is in the middle."""
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = -size * (count - 1) / 2
    world = np.indices((count,) * 3) * size + affine[0, 3]
    reach = size * count / 2
    x, y, z = world / reach
    body = (x / 0.8) ** 2 + (y / 0.65) ** 2 + (z / 0.7) ** 2 < 1
    picture = 60.0 * body
    labels = np.zeros(body.shape, np.uint8)
    spots = [(0.4, 0.1, 0.1), (-0.35, 0.25, -0.2), (0.05, -0.35, 0.3), (-0.1, 0.0, -0.4), (0.15, 0.35, 0.25)]
    for number, (spot, value) in enumerate(zip(spots, (90, -40, 70, -30, 50), strict=True), start=1):
        distance = np.sqrt(sum((axis - at) ** 2 for axis, at in zip((x, y, z), spot, strict=True)))
        picture += value * np.exp(-((distance / (0.12 + 0.02 * number)) ** 2))
        labels[distance < 0.14] = 10 * number
    return ndimage.gaussian_filter(picture, 0.5).astype(np.float32), labels, affine


@pytest.fixture(scope='session')
def save_image() -> Callable[[Path, NDArray, NDArray], str]:
    return save


@pytest.fixture(scope='session')
def make_rigid() -> Callable[..., NDArray[np.float64]]:
    return rigid


@pytest.fixture(scope='session')
def make_blobs() -> Callable[..., tuple[NDArray, NDArray, NDArray]]:
    return blobs


@pytest.fixture(scope='session')
def head() -> Head:
    shape, affine = scan_grid(4.0)
    anatomy = render(load_template(step=3), shape=shape, affine=affine)
    protocol = replace(PRESETS[0].protocol('T1w'), taper=0.0)
    scanner = replace(PRESETS[0], hardware=Hardware(3.0), protocols=(protocol,))
    scan = acquire(anatomy, scanner, 'T1w', np.random.default_rng(0))
    return Head(
        scan.stored.astype(np.float32),
        scan.noiseless,
        anatomy.brain_mask,
        anatomy.labels,
        anatomy.tissue,
        anatomy.affine,
    )


@pytest.fixture(scope='session')
def head_files(head: Head, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of the head: whole image, brain, mask, labels, tissue (4-D), brain another scanner would give."""
    folder = tmp_path_factory.mktemp('head')
    brain = np.where(head.mask, head.data, 0).astype(np.float32)
    arrays: dict[str, Any] = {
        'image': head.data,
        'brain': brain,
        'other': (brain * 3).astype(np.float32),
        'mask': head.mask.astype(np.uint8),
        'labels': head.labels,
        'tissue': np.moveaxis(head.fractions * head.mask, 0, -1),
    }
    return {key: save(folder / f'{key}.nii', data, head.affine) for key, data in arrays.items()}


@pytest.fixture
def fresh_ants() -> Iterator[None]:
    """Forget which ANTs was found, before and after."""
    ants.has_real_ants.cache_clear()
    ants.ants_version.cache_clear()
    yield
    ants.has_real_ants.cache_clear()
    ants.ants_version.cache_clear()


@pytest.fixture
def without_real_ants(fresh_ants: None) -> None:
    """Use the stand-ins, also on a machine that has ANTs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ants.shutil, 'which', lambda tool: None)
        assert not ants.has_real_ants()  # and it remembers
