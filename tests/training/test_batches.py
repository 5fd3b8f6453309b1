"""Batches: one shape each, scans of one contrast together; and optimizers with rates of their own."""

from __future__ import annotations

import numpy as np
import torch

from bidsharm.training.loop import _optimizer
from bidsharm.training.options import Player
from bidsharm.training.regimes import AnyScan, Domains, OtherPlaces, Unpaired
from bidsharm.training.views import Slices
from bidsharm.training.volumes import TrainingSet, TrainingVolume

VALUE = {'T1w': 1.0, 'T2w': 2.0}


def volumes() -> TrainingSet:
    """Two sites, two people, two contrasts, on a grid whose axes differ; each contrast has its own intensity."""
    shape = (32, 48, 16)
    return TrainingSet([
        TrainingVolume(
            np.full(shape, VALUE[contrast], np.float32), np.ones(shape, bool), f'{person}{site}{contrast}', str(person), site,
            site, contrast,
        )
        for person in range(2) for site in 'AB' for contrast in VALUE
    ])  # fmt: skip


def test_slices_of_a_batch_have_one_axis() -> None:
    shapes = {(32, 48): 'axial', (32, 16): 'coronal', (48, 16): 'sagittal'}
    rng = np.random.default_rng(0)
    for sampler in (
        AnyScan(volumes(), Slices(axes=(0, 1, 2)), batch=6),
        Domains(volumes(), Slices(axes=(0, 1, 2)), batch=6),
        Unpaired(volumes(), Slices(axes=(0, 1, 2)), batch=6, target='A', one_site=True),
    ):
        drawn = {shapes[tuple(sampler.draw(rng)['x'].shape[2:])] for _ in range(20)}
        assert drawn == set(shapes.values())


def test_other_places_are_of_the_same_scans() -> None:
    parts = volumes()
    for volume in parts.volumes:
        volume.values[:] += np.arange(16, dtype=np.float32) / 100  # tells slices apart, and 1 from 2
    batch = OtherPlaces(parts, Slices(), batch=8).draw(np.random.default_rng(0))
    for name in 'xyz':
        here, there = (batch[part].mean((1, 2, 3)) for part in (name, f'{name}_other'))
        assert torch.equal(here.floor(), there.floor())
        assert (here != there).sum() > 4
    assert torch.equal(batch['x'], OtherPlaces(parts, Slices(), batch=8).draw(np.random.default_rng(0))['x'])


def test_references_have_the_contrast_of_the_scan() -> None:
    rng = np.random.default_rng(0)
    for sampler in (
        Domains(volumes(), Slices(), batch=8),
        Unpaired(volumes(), Slices(), batch=8, target='A'),
    ):
        batch = sampler.draw(rng)
        assert set(batch['x'].unique().tolist()) == {1.0, 2.0}
        assert torch.equal(batch['x'].amax((1, 2, 3)), batch['y'].amax((1, 2, 3)))


def test_networks_of_one_player_may_have_their_own_rates() -> None:
    networks = torch.nn.ModuleDict({name: torch.nn.Linear(2, 1) for name in 'ab'})
    player = Player(('a', 'b'), rate=1.0, factors={'b': 0.01})
    groups = _optimizer(player, networks, fused=True).param_groups
    assert [group['factor'] for group in groups] == [1.0, 0.01]
    assert groups[1]['params'][0] is networks['b'].weight
