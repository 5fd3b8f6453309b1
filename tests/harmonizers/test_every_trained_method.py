"""What holds for every method that is trained: on people scanned at two sites, with the preset that trains in seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from bidsharm.errors import MissingNeed, ScanError, UsageError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import NEED_PHRASES, Canonical, Cohort, Site
from bidsharm.harmonizers.trained import TrainedHarmonizer
from bidsharm.nn.blocks import count_parameters
from bidsharm.training.options import Budget, Running

METHODS = sorted(name for name in registry._BUILTIN if issubclass(registry.find(name), TrainedHarmonizer))
#: Steps of the trainings that only have to work.
FEW = 4
#: Weights that no loss reaches.
STILL = {
    # The variance of the contrast code: without a bound on it nothing is drawn.
    'dewey2020': {f'contrast.heads.1.{layer}' for layer in ('0.weight', '0.bias', '4.weight', '4.bias')},
}


def target_of(name):
    return Site('A') if 'site' in registry.card(name).targets else Canonical()


def settings_of(name, **changes):
    return registry.get(name).preset('tiny', hold_out=0.25, batch=2, **changes)


@cache
def trained(name):
    """Return a method after a few steps, and the scans that it has seen."""
    scans = people()
    method = registry.get(name)(settings=settings_of(name))
    report = method.fit(Cohort(scans), target=target_of(name), running=Running(budget=Budget(FEW)))
    return method, scans, report


def people():
    """Four people at two sites with two contrasts each; site B shows them with another curve."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location('phantoms', Path(__file__).with_name('conftest.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.people_at_two_sites()


@pytest.mark.parametrize('name', METHODS)
def test_the_card_says_what_it_needs_and_how_near_it_is_to_the_paper(name):
    card = registry.card(name)
    assert card.geometry == 'grid'
    assert 'weights' in card.needs_apply
    assert card.needs_fit or card.supervision == 'none'
    assert {*card.needs_fit, *card.needs_apply} <= set(NEED_PHRASES)
    assert card.changes_anatomy
    assert card.uses_device
    assert card.fidelity == 'faithful' or len(card.deviations) > 20


@pytest.mark.parametrize('name', METHODS)
def test_the_tiny_preset_is_tiny(name):
    method, _, report = trained(name)
    assert count_parameters(method.networks) < 1_000_000
    assert len(report.scans) > 0


@pytest.mark.parametrize('name', METHODS)
def test_the_paper_preset_can_be_built(name):
    method = registry.get(name)()
    method.sites, method.contrasts, method.target_site = ('A', 'B'), ('T1w', 'T2w'), 'A'
    with torch.device('meta'):
        networks = method.build()
    assert sum(count_parameters(network) for network in networks.values()) > 10_000
    assert {part for player in method.players.values() for part in player.networks} <= set(networks)


@pytest.mark.parametrize('name', METHODS)
def test_images_are_float32_on_the_grid_and_zero_outside(name):
    method, scans, _ = trained(name)
    scan = next(scan for scan in scans if scan.site == 'B' and scan.contrast == 'T1w')
    odd = replace(
        scan, data=scan.data[1:, :-3, 2:], mask=scan.mask[1:, :-3, 2:], tissue=scan.tissue[:, 1:, :-3, 2:]
    )
    before = odd.data.copy()
    found = method.harmonize(odd, target_of(name))
    assert found.image.dtype == np.float32
    assert found.image.shape == odd.data.shape
    assert np.isfinite(found.image).all()
    assert np.count_nonzero(found.image[~odd.mask]) == 0
    assert found.image[odd.mask].std() > 0
    assert np.array_equal(odd.data, before)
    assert json.loads(json.dumps(found.details, allow_nan=False)) == found.details


@pytest.mark.parametrize('name', METHODS)
def test_a_scan_gives_the_same_image_whatever_came_before_and_after_saving(name, tmp_path):
    method, scans, _ = trained(name)
    one, other = [scan for scan in scans if scan.site == 'B' and scan.contrast == 'T1w'][:2]
    first = method.harmonize(one, target_of(name)).image
    method.harmonize(other, target_of(name))
    torch.manual_seed(123)
    assert np.array_equal(method.harmonize(one, target_of(name)).image, first)
    bundle.save(method, tmp_path / 'model')
    again = bundle.load(tmp_path / 'model')
    assert np.array_equal(again.harmonize(one, target_of(name)).image, first)
    assert np.array_equal(again.target_quantiles('T1w'), method.target_quantiles('T1w'))


@pytest.mark.parametrize('name', METHODS)
def test_a_training_moves_every_weight_and_none_that_a_stage_freezes(name):
    method = registry.get(name)(settings=settings_of(name))
    fresh, frozen = {}, {}
    build, begin = method.build, method.begin

    def built():
        networks = build()
        fresh.update({key: weight.detach().clone() for key, weight in named(networks)})
        return networks

    def stood_still():
        now = dict(named(method.networks))
        return all(torch.equal(now[key], value) for key, value in frozen.items())

    def begun(stage):
        assert stood_still(), stage
        begin(stage)
        frozen.clear()
        frozen.update({key: w.detach().clone() for key, w in named(method.networks) if not w.requires_grad})

    method.build, method.begin = built, begun
    method.fit(
        Cohort(people()), target=target_of(name), running=Running(budget=Budget(8 * len(method.stages)))
    )
    assert stood_still()
    still = {key for key, weight in named(method.networks) if torch.equal(weight, fresh[key])}
    assert still == STILL.get(name, set())


def named(networks):
    """Return the weights of networks with their names."""
    return [
        (f'{key}.{name}', w) for key, network in networks.items() for name, w in network.named_parameters()
    ]


@pytest.mark.parametrize('name', METHODS)
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(name, tmp_path):
    scans, steps = people(), 6
    ends = []
    for stops in ([steps], [2, steps]):
        folder = tmp_path / str(len(stops))
        for stop in stops:
            method = registry.get(name)(settings=settings_of(name))
            running = Running(folder=folder, budget=Stopped(steps, stop), interval=2)
            method.fit(Cohort(scans), target=target_of(name), running=running)
        ends.append({key: value.detach().clone() for key, value in method.networks.state_dict().items()})
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
    rows = (tmp_path / '2' / 'log.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows[1:]] == ['2', '4', '6']


class Stopped(Budget):
    """A budget that ends a training before its time, as a killed job does."""

    def __init__(self, steps, stop):
        super().__init__(steps)
        object.__setattr__(self, 'stop', stop)

    def done(self, step, seconds):
        return 1.0 if step >= self.stop else super().done(step, seconds)


@pytest.mark.parametrize('name', METHODS)
def test_what_is_missing_is_named(name):
    card = registry.card(name)
    scans = [scan for scan in people() if scan.site == 'A' and scan.contrast == 'T1w'][:1]
    method = registry.get(name)(settings=settings_of(name))
    poor = Cohort([replace(scan, tissue=None) for scan in scans])
    needs = {'paired', 'two_sites', 'travellers', 'multi_contrast', 'tissue'} & set(card.needs_fit)
    if needs:
        with pytest.raises(MissingNeed) as caught:
            method.fit(poor, target=target_of(name))
        assert any(NEED_PHRASES[need] in caught.value.what for need in needs)
    with pytest.raises(MissingNeed, match='not trained'):
        registry.get(name)().harmonize(scans[0], target_of(name))


@pytest.mark.parametrize('name', METHODS)
def test_scans_that_it_was_not_trained_for_are_refused_in_words(name):
    method, scans, _ = trained(name)
    scan = next(scan for scan in scans if scan.site == 'B' and scan.contrast == 'T1w')
    with pytest.raises(ScanError, match='FLAIR'):
        method.harmonize(replace(scan, contrast='FLAIR'), target_of(name))
    with pytest.raises(MissingNeed):
        method.harmonize(scan, Site('elsewhere'))
    if 'site' in registry.card(name).needs_apply:
        with pytest.raises(ScanError, match='elsewhere'):
            method.harmonize(replace(scan, site='elsewhere'), target_of(name))


@pytest.mark.parametrize('name', METHODS)
def test_unknown_settings_are_refused(name):
    with pytest.raises(UsageError, match='no setting "wdiths"'):
        registry.get(name).preset('tiny', wdiths=3)
