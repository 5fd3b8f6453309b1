"""Simulated heads with known tissue, and image files of every make, for the tests of the functions on arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from bidsharm.simulation.acquisition import acquire
from bidsharm.simulation.heads import load_template
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.protocols import Hardware
from bidsharm.simulation.rendering import render, scan_grid, smooth_to


@dataclass(frozen=True)
class Head:
    """A simulated whole head and what it really is."""

    data: NDArray[np.float32]  # with bias and noise
    ideal: NDArray[np.float32]  # without
    mask: NDArray[np.bool_]
    labels: NDArray[np.uint8]  # 1 GM, 2 WM, 3 CSF
    fractions: NDArray[np.float32]  # CSF, GM, WM
    affine: NDArray[np.float64]


def oblique(degrees: tuple[float, float, float], sizes: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return an affine with turned axes, an origin far from 0, and voxels of these sizes."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler('xyz', degrees, degrees=True).as_matrix() * sizes
    affine[:3, 3] = (-31.5, 12.25, -7.75)
    return affine


def world(affine: NDArray, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the world coordinates of all voxels, shape (3, X, Y, Z)."""
    voxels = np.indices(shape[:3], dtype=float)
    return np.tensordot(affine[:3, :3], voxels, axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)


def dice(a: NDArray, b: NDArray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def polynomial_field(
    shape: tuple[int, int, int], strength: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a smooth positive field, the exponential of a polynomial of degree 3 with a largest absolute value."""
    degrees = np.add.outer(np.add.outer(np.arange(4), np.arange(4)), np.arange(4))
    weights = rng.standard_normal((4, 4, 4)) * np.where(
        (degrees > 0) & (degrees <= 3), 1 / np.maximum(degrees, 1), 0
    )
    field = np.polynomial.legendre.leggrid3d(*(np.linspace(-1, 1, size) for size in shape), weights)
    return np.exp(strength * field / np.abs(field).max()).astype(np.float32)


def write_nifti(path: Path, data: NDArray, affine: NDArray | None = None, **header: Any) -> Path:
    """Write an image; ``sform`` and ``qform`` give the codes, other words are fields of the header."""
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    sform, qform = header.pop('sform', 1), header.pop('qform', 1)
    if affine is not None and not np.isfinite(affine).all():
        image = nib.Nifti1Image(data, np.eye(4))
    image.set_qform(image.affine, code=qform)
    image.set_sform(image.affine, code=sform)
    image.header.set_xyzt_units(header.pop('units', 'mm'))
    for key, value in header.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


@pytest.fixture(scope='session')
def make_affine() -> Callable[..., NDArray[np.float64]]:
    return oblique


@pytest.fixture(scope='session')
def world_of() -> Callable[..., NDArray[np.float64]]:
    return world


@pytest.fixture(scope='session')
def overlap() -> Callable[[NDArray, NDArray], float]:
    return dice


@pytest.fixture(scope='session')
def write_image() -> Callable[..., Path]:
    return write_nifti


@pytest.fixture(scope='session')
def make_head() -> Callable[..., Head]:
    """Return a function that scans the average anatomy in the first simulated scanner."""
    templates: dict[float, Any] = {}
    anatomies: dict[float, Any] = {}

    def make(
        contrast: str = 'T1w', *, resolution: float = 3.0, snr: float = 40.0, bias: float = 0.0, seed: int = 0
    ) -> Head:
        if resolution not in anatomies:
            step = 3 if resolution >= 3 else 2
            templates.setdefault(step, load_template(step=step))
            shape, affine = scan_grid(resolution)
            sharp = smooth_to(templates[step], resolution)
            anatomies[resolution] = render(sharp, shape=shape, affine=affine)
        anatomy = anatomies[resolution]
        protocol = replace(PRESETS[0].protocol(contrast), snr=snr, taper=0.0)
        scanner = replace(PRESETS[0], hardware=Hardware(3.0, 8, bias), protocols=(protocol,))
        scan = acquire(anatomy, scanner, contrast, np.random.default_rng(seed))
        return Head(
            scan.stored.astype(np.float32),
            scan.noiseless,
            anatomy.brain_mask,
            anatomy.labels,
            anatomy.tissue,
            anatomy.affine,
        )

    return make


@pytest.fixture(scope='session')
def head(make_head: Callable[..., Head]) -> Head:
    """A T1w head at 3 mm, without bias."""
    return make_head()


@pytest.fixture(scope='session')
def smooth_field() -> Callable[..., NDArray[np.float32]]:
    """Return a function that draws a smooth positive field with a known largest logarithm."""

    def make(shape: tuple[int, int, int], strength: float = 0.3, seed: int = 0) -> NDArray[np.float32]:
        return polynomial_field(shape, strength, np.random.default_rng(seed))

    return make
