"""Small brains whose age, group and tissues are known, seen by two scanners: what the tests of task methods share."""

from __future__ import annotations

import numpy as np

from bidsharm.training.volumes import TrainingSet, TrainingVolume

SHAPE = (16, 16, 16)


def brain(person: int, site: str, *, age: float, seed: int = 0) -> TrainingVolume:
    """Return a ball of WM in shells of GM and CSF; the older, the smaller the ball. Site B shows it by another curve.

    Scans of one site differ in gain and curve, too, as those of real scanners do: without that the least trace tells the site.
    """
    rng = np.random.default_rng((seed, person, ord(site)))
    axes = [(np.arange(size) - (size - 1) / 2) / (size / 2) for size in SHAPE]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing='ij')))
    inner = 0.75 - 0.5 * (age - 20) / 60
    tissue = np.select([radius < inner, radius < 0.85, radius < 0.95], [3, 2, 1], 0).astype(np.uint8)
    values = np.array([0, 0.3, 0.6, 0.9], np.float32)[tissue]
    power = {'A': 1.0, 'B': 1.7}[site] + 0.12 * rng.standard_normal()
    values = np.exp(0.05 * rng.standard_normal()) * values**power
    mask = tissue > 0
    values = np.where(mask, values + 0.03 * rng.standard_normal(SHAPE), 0).astype(np.float32)
    return TrainingVolume(
        values, mask, f'sub-{person}_ses-{site}_T1w', f'{person}', site, site, 'T1w', tissue, {'age': age}
    )


def cohort(people: int = 12, seed: int = 0) -> tuple[TrainingSet, dict[str, float], dict[str, str]]:
    """Return people who were at site A or at B, their ages, and which of them are old."""
    rng = np.random.default_rng((seed, 7))
    ages = rng.uniform(20, 80, people)
    volumes = [brain(i, 'AB'[i % 2], age=float(ages[i]), seed=seed) for i in range(people)]
    age = {volume.name: float(ages[i]) for i, volume in enumerate(volumes)}
    return TrainingSet(volumes), age, {name: 'old' if one > 50 else 'young' for name, one in age.items()}
