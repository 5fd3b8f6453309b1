"""The rectified flow: edges that forget the contrast, a straight way, coordinates, and a bounded refinement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bidsharm.harmonizers.contract import Cohort, Scan, Site
from bidsharm.harmonizers.rectified_flow import RectifiedFlow, edges
from bidsharm.training.places import PlacedTarget, coordinates
from bidsharm.training.views import Patches
from bidsharm.training.volumes import TrainingSet, TrainingVolume


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def method() -> RectifiedFlow:
    made = RectifiedFlow(
        settings=RectifiedFlow.preset('tiny', voxel_mm=1.0, widths=(4, 4), batch=2, hold_out=0.0)
    )
    made.networks = torch.nn.ModuleDict(made.build())
    return made


def test_edges_hardly_see_the_contrast() -> None:
    x, mask = torch.zeros(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16)
    mask[..., 1:15, 1:15, 1:15] = 1
    x[..., 1:8, 1:15, 1:15], x[..., 8:15, 1:15, 1:15] = 0.4, 0.9
    first, inverse, brighter = (edges(image, mask, 5) for image in (x, (1.3 - x) * mask, 2 * x))
    torch.testing.assert_close(first, inverse)
    assert float((first - brighter).abs().max()) < 0.15
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
    assert float(first[0, 0, 7, 8, 8]) > 0.5  # between the halves
    assert float(first[0, 0, 4, 8, 8]) == 0
    assert float(first[0, 0, 1, 8, 8]) == 0  # the rim is no edge


def test_coordinates_run_over_the_box_around_the_brain() -> None:
    mask = np.zeros((9, 7, 8), bool)
    mask[2:7, 1:6, 4:5] = True
    found = coordinates(mask)
    assert found.shape == (3, 9, 7, 8)
    assert found[0, :, 0, 0].tolist() == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
    assert found[1, 0, [1, 3, 5], 0].tolist() == [-1, 0, 1]
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(coordinates(mask, (2, 1, 3), (4, 4, 4)), found[:, 2:6, 1:5, 3:7])


def test_a_mirrored_patch_knows_where_it_lies() -> None:
    values = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    volume = TrainingVolume(values, np.ones((8, 8, 8), bool), 'a', 'a', '', 'A', 'T1w')
    sampler = PlacedTarget(TrainingSet([volume]), Patches(8), batch=1, target='A')
    drawn = [sampler.example(np.random.default_rng(seed)) for seed in range(12)]
    mirrored = [not np.array_equal(one['x'][0], values) for one in drawn]
    assert {True, False} == set(mirrored)
    for one in drawn:
        np.testing.assert_allclose(one['where'], coordinates(volume.mask), atol=1e-6)


def test_the_loss_is_the_distance_to_the_straight_way(
    method: RectifiedFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, mask = torch.rand(2, 1, 8, 8, 8), torch.ones(2, 1, 8, 8, 8)
    outline = edges(x, mask, method.settings.window)
    batch = {'x': x, 'mask': mask, 'where': torch.zeros(2, 3, 8, 8, 8)}
    monkeypatch.setattr(RectifiedFlow, 'velocity', lambda self, here, known, time: x - outline + 0.5)
    ((player, losses),) = method.losses(batch, 'train')
    assert player == 'velocity'
    assert float(losses['straight']) == pytest.approx(0.25)


def test_midpoint_steps_end_where_they_should(method: RectifiedFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    known = torch.rand(1, 4, 8, 8, 8)
    # The velocity 2 t leads 1 further; midpoint steps are exact for it.
    monkeypatch.setattr(
        RectifiedFlow,
        'velocity',
        lambda self, here, known, time: 2 * time.view(-1, 1, 1, 1, 1) * torch.ones_like(here),
    )
    brain = torch.zeros(1, 1, 8, 8, 8)
    brain[..., 2:6, :, :] = 1
    torch.testing.assert_close(method._way(known, brain), known[:, :1] + brain)  # outside nothing moves


def test_the_refinement_is_bounded_and_noted(make_scan: Callable[..., Scan]) -> None:
    scans = [
        replace(make_scan(seed=n, shape=(16, 16, 16), site=site, gain=1 + (site == 'B')), person=str(n))
        for n in range(2) for site in 'AB'
    ]  # fmt: skip
    made = RectifiedFlow(
        settings=RectifiedFlow.preset('tiny', voxel_mm=1.0, widths=(4, 4), batch=2, hold_out=0.0, steps=3)
    )
    made.fit(Cohort(scans), target=Site('A'))
    before = {name: value.clone() for name, value in made.networks.state_dict().items()}
    found = made.harmonize(scans[1], Site('A'))
    assert all(torch.equal(value, before[name]) for name, value in made.networks.state_dict().items())
    noted = found.details['test_time']
    assert noted['steps'] == 6
    assert noted['last_objective'] < noted['first_objective']
    made.settings = replace(made.settings, test_steps=0)
    assert not np.array_equal(made.harmonize(scans[1], Site('A')).image, found.image)
