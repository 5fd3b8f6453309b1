"""deepharmony-many-to-one: all contrasts of a visit go in, those of the target come out."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bidsharm.harmonizers.contract import Cohort, Site
from bidsharm.harmonizers.native import on_model_grid
from bidsharm.harmonizers.training_data import training_set
from bidsharm.harmonizers.unet import DeepHarmony, DeepHarmonyManyToOne
from bidsharm.nn.blocks import count_parameters
from bidsharm.training.options import Budget, Running
from bidsharm.training.regimes import PairedVisits
from bidsharm.training.views import Slices


@pytest.fixture(scope='module')
def scans():
    spec = importlib.util.spec_from_file_location('phantoms', Path(__file__).with_name('conftest.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.people_at_two_sites(3)


def settings():
    return DeepHarmonyManyToOne.preset('tiny', batch=2, hold_out=0.0)


def test_with_one_contrast_it_is_deepharmony():
    sizes = []
    for kind in (DeepHarmony, DeepHarmonyManyToOne):
        method = kind(settings=settings())
        method.contrasts = ('T1w',)
        sizes.append(count_parameters(method.build()['generator']))
    assert sizes[0] == sizes[1]
    method.contrasts = ('T1w', 'T2w')
    assert method.build()['generator'](torch.zeros(1, 2, 32, 32)).shape == (1, 2, 32, 32)


def test_only_contrasts_that_went_in_and_are_known_at_the_target_count():
    method = DeepHarmonyManyToOne(settings=settings())
    seen = []

    class Plus(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x + 1

    method.networks = torch.nn.ModuleDict({'generator': Plus()})
    images = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]]])
    batch = {
        'images': images, 'others': torch.zeros_like(images), 'present': torch.ones(1, 3),
        'others_present': torch.tensor([[1.0, 1, 0]]), 'mask': torch.tensor([[[[1.0, 0.0]]]]),
    }  # fmt: skip
    # The second contrast is left out, the third is not known there: what counts is the first one, in the brain.
    assert float(method._error(batch, torch.tensor([[1.0, 0, 1]]))) == 2.0
    assert seen[0][0, 1].abs().sum() == 0
    assert float(method.validation(batch)) == 3.0


def test_pairs_are_visits_of_one_person(scans):
    some = [scan for scan in scans if (scan.person, scan.site, scan.contrast) != ('0', 'A', 'T2w')]
    data = training_set(Cohort(some), settings())
    sampler = PairedVisits(data, Slices(), batch=4, target='A')
    assert len(sampler.pairs) == 3
    for elsewhere, there in sampler.pairs:
        assert {v.site for v in elsewhere.values()} == {'B'}
        assert {v.site for v in there.values()} == {'A'}
        assert {v.person for v in elsewhere.values()} == {v.person for v in there.values()}
    batch = sampler.draw(np.random.default_rng(0))
    assert batch['images'].shape == batch['others'].shape
    assert batch['images'].shape[:2] == (4, 2)
    lacking = batch['others_present'][:, 1] == 0
    assert (batch['others'][lacking, 1] == 0).all()


def test_companions_change_the_image(scans):
    method = DeepHarmonyManyToOne(settings=settings())
    method.fit(Cohort(scans), target=Site('A'), running=Running(budget=Budget(6)))
    t1, t2 = (next(s for s in scans if s.site == 'B' and s.contrast == name) for name in ('T1w', 'T2w'))
    alone = on_model_grid(t1, method.grid_mm)
    both = on_model_grid(replace(t1, companions=(t2,)), method.grid_mm)
    first, second = (method.harmonize(scan, Site('A')).image for scan in (alone, both))
    assert first.any()
    assert not np.array_equal(first, second)
