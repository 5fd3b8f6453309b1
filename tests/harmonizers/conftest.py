"""Phantoms with known tissues, shared by the tests of the harmonizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from bidsharm.harmonizers.contract import Cohort, Scan

MEANS = {'T1w': (300.0, 600.0, 900.0), 'T2w': (900.0, 600.0, 400.0)}
MEANS |= {'FLAIR': (200.0, 700.0, 550.0), 'PDw': (900.0, 800.0, 650.0)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch use one thread: tests run side by side, and small networks gain nothing from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(
    *,
    seed: int = 0,
    contrast: str = 'T1w',
    gain: float = 1.0,
    offset: float = 0.0,
    site: str = 'A',
    shape: tuple[int, int, int] = (24, 24, 24),
    noise: float = 20.0,
    tissue: bool = False,
    name: str = '',
) -> Scan:
    """Return a ball of WM in a shell of GM (most voxels) in a shell of CSF; noise is the same for equal seeds."""
    generator = np.random.default_rng(seed)
    axes = [(np.arange(size) - (size - 1) / 2) / (size / 2) for size in shape]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing='ij')))
    labels = np.select([radius < 0.55, radius < 0.8, radius < 0.9], [3, 2, 1], 0)
    clean = np.array([0.0, *MEANS[contrast]])[labels]
    data = (clean + noise * generator.standard_normal(shape)) * gain + offset
    mask = labels > 0
    # What lies outside the brain must not matter, so it is never zero here.
    data[~mask] = 12345.0
    probabilities = np.stack([labels == index for index in (1, 2, 3)]).astype(np.float32)
    return Scan(
        data=data.astype(np.float32),
        mask=mask,
        affine=np.eye(4),
        contrast=contrast,
        name=name or f'sub-{seed:02d}_{contrast}',
        site=site,
        tissue=probabilities if tissue else None,
    )


@pytest.fixture
def make_scan() -> Callable[..., Scan]:
    return build


@pytest.fixture
def cohort() -> Cohort:
    """Two sites of three scans: B is twice as bright as A, and every scan has a gain of its own."""
    scans = [build(seed=index, gain=1 + 0.1 * index, site='A') for index in range(3)]
    scans += [build(seed=3 + index, gain=2 + 0.2 * index, site='B') for index in range(3)]
    return Cohort(scans)


def people_at_two_sites(people: int = 4) -> list[Scan]:
    """Return scans of people who were at sites A and B, each with two contrasts, in voxels of 4 mm; B shows them by another curve."""
    scans = []
    for person in range(people):
        for contrast in ('T1w', 'T2w'):
            seen = build(seed=person, contrast=contrast, shape=(36, 40, 36), tissue=True)
            for site in ('A', 'B'):
                data = seen.data.copy()
                inside = np.maximum(data[seen.mask], 0)
                data[seen.mask] = inside if site == 'A' else 900 * (inside / 900) ** 2 + 50
                scans.append(
                    replace(
                        seen, data=data, site=site, person=f'{person}', session=site, affine=np.diag([4.0, 4, 4, 1]),
                        name=f'sub-{person}_ses-{site}_{contrast}',
                    )
                )  # fmt: skip
    return scans
