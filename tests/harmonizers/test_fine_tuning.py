"""Trainings that start from a trained model: what they begin with, what they end with, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bidsharm.cli.models import main
from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import Canonical, Cohort, Execution, Site
from bidsharm.harmonizers.cyclegan import Iguane
from bidsharm.harmonizers.fine_tuning import Start, method_from
from bidsharm.harmonizers.trained import TrainedHarmonizer
from bidsharm.training.loop import TrainingFailed
from bidsharm.training.options import Budget, Running

from .conftest import people_at_two_sites

METHODS = sorted(name for name in registry._BUILTIN if issubclass(registry.find(name), TrainedHarmonizer))
#: Weights that belong to single sites, by the beginning of their names.
OF_SITES = {
    'iguane': ('backward.', 'of_target.', 'of_source.'), 'imunity': ('classifier.body.2',), 'mispel': ('encoders.', 'decoders.'),
    'munit': ('content.', 'style.', 'decoder.', 'discriminator.'),
    'murd': ('mapping.own.', 'style.heads.', 'discriminator.heads.'), 'stargan2': ('mapping.own.', 'style.heads.', 'discriminator.heads.'),
}  # fmt: skip


def built(name, sites, target='A', contrasts=('T1w', 'T2w'), seed=0, **changes):
    """Return a method with networks of random weights."""
    kind = registry.find(name)
    method = kind(settings=kind.preset('tiny', **changes))
    method.sites, method.contrasts, method.target_site = sites, contrasts, target
    torch.manual_seed(seed)
    method.networks = nn.ModuleDict(dict(method.build()))
    for weight in method.networks.parameters():  # none may start as 0 in both
        nn.init.normal_(weight)
    return method


def start_of(method, digest='d' * 64):
    return Start(
        dict(method.networks.state_dict()), method.sites, method.contrasts, method.target_site, digest
    )


@pytest.mark.parametrize('name', METHODS)
def test_on_the_same_sites_every_weight_is_that_of_the_model(name):
    old, new = built(name, ('A', 'B')), built(name, ('A', 'B'), seed=1)
    start_of(old).fill(new)
    assert new.started_from == 'd' * 64
    weights = new.networks.state_dict()
    for key, value in old.networks.state_dict().items():
        assert torch.equal(weights[key], value), key


@pytest.mark.parametrize('name', METHODS)
def test_parts_of_new_sites_start_anew_and_all_others_do_not(name):
    # The new site comes before one that is known, so parts have to move.
    old, new = built(name, ('A', 'C', 'D')), built(name, ('A', 'B', 'D'), seed=1)
    fresh = {key: value.clone() for key, value in new.networks.state_dict().items()}
    start_of(old).fill(new)
    before, after = old.networks.state_dict(), new.networks.state_dict()
    own = OF_SITES.get(name, ())
    parted = [key for key in after if key.startswith(own)] if own else []
    assert bool(parted) == bool(own)
    for key, value in after.items():
        if key not in parted:
            assert torch.equal(value, before[key]), key
            continue
        prefix = next(part for part in own if key.startswith(part))
        if prefix.endswith(('heads.', 'body.2')):
            then, now, random = (one[key].view(3, -1) for one in (before, after, fresh))
            assert torch.equal(now[0], then[0])
            assert torch.equal(now[1], random[1])
            assert torch.equal(now[2], then[2])
            continue
        number = int(key.removeprefix(prefix).split('.')[0])
        # Of IGUANe's sources, which are all sites but the target, B is the first.
        label = ('B', 'D')[number] if name == 'iguane' else ('A', 'B', 'D')[number]
        assert torch.equal(value, fresh[key] if label == 'B' else before[key]), key


def test_a_published_generator_can_be_tuned_for_own_sites():
    """The model has one site and no way back; what is carried is its generator."""
    old, new = built('iguane', ('iguane',), 'iguane'), built('iguane', ('A', 'B'), seed=1)
    fresh = {key: value.clone() for key, value in new.networks.state_dict().items()}
    start_of(old).fill(new)
    for key, value in new.networks.state_dict().items():
        expected = old.networks.state_dict() if key.startswith('generator') else fresh
        assert torch.equal(value, expected[key]), key


def test_a_method_that_is_nothing_but_parts_of_other_sites_is_refused():
    with pytest.raises(
        UsageError, match='mispel consists of parts for single sites, and the model has none for C, D'
    ):
        start_of(built('mispel', ('A', 'B'))).fill(built('mispel', ('C', 'D')))


def test_settings_that_change_the_networks_are_refused():
    old = built('iguane', ('A', 'B'))
    with pytest.raises(UsageError, match='the networks are others') as caught:
        start_of(old).fill(built('iguane', ('A', 'B'), widths=(4, 12)))
    assert caught.value.where == '--set'
    start_of(old).fill(built('iguane', ('A', 'B'), rate=1e-5, batch=1))


def test_other_contrasts_are_refused_where_the_networks_are_for_contrasts():
    with pytest.raises(UsageError, match='are for T1w, T2w, not for T1w, FLAIR'):
        start_of(built('calamiti', ('A', 'B'))).fill(
            built('calamiti', ('A', 'B'), contrasts=('T1w', 'FLAIR'))
        )
    start_of(built('cyclegan', ('A', 'B'))).fill(built('cyclegan', ('A', 'B'), contrasts=('FLAIR',)))


# --- Whole trainings ---


def at(scans, names):
    """Return the scans with other names of their sites."""
    return Cohort([replace(scan, site=names[scan.site]) for scan in scans if scan.contrast == 'T1w'])


def steps(count, folder=None, **more):
    return Running(folder=folder, budget=Budget(count), interval=2, **more)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A bundle of a few steps at the sites A and B."""
    method = Iguane(settings=Iguane.preset('tiny', hold_out=0.0))
    method.fit(at(people_at_two_sites(), {'A': 'A', 'B': 'B'}), target=Site('A'), running=steps(3))
    folder = tmp_path_factory.mktemp('models') / 'iguane'
    bundle.save(method, folder)
    return folder


def tuned(model, count, folder=None, start=None, **changes):
    """Return a method that was tuned on scans of the sites A and C for some steps, from step 0."""
    method = method_from(start or model, Iguane, Execution(), changes)
    method.fit(
        at(people_at_two_sites(), {'A': 'A', 'B': 'C'}), target=Site('A'), running=steps(count, folder)
    )
    return method


def test_a_training_begins_with_the_weights_of_the_model_and_moves_them(model):
    method, before = method_from(model, Iguane, Execution(), {'rate': 1e-3}), bundle.load(model)
    assert method.settings == replace(before.settings, rate=1e-3)
    seen = []
    begin = method.begin
    method.begin = lambda stage: (
        seen.append({k: v.clone() for k, v in method.networks.state_dict().items()}),
        begin(stage),
    )
    method.fit(at(people_at_two_sites(), {'A': 'A', 'B': 'C'}), target=Site('A'), running=steps(2))
    model_weights = before.networks['generator'].state_dict()
    for key, value in model_weights.items():
        assert torch.equal(seen[0][f'generator.{key}'], value), key
    after = method.networks['generator'].state_dict()
    assert any(not torch.equal(after[key], value) for key, value in model_weights.items())
    assert method.sites == ('A', 'C')


def test_the_new_bundle_names_the_model_that_it_started_from(model, tmp_path, capsys):
    bundle.save(tuned(model, 2), tmp_path / 'one')
    assert bundle.read_card(tmp_path / 'one')['settings']['started_from'] == bundle.digest(model)
    again = bundle.load(tmp_path / 'one')
    assert again.state()[1]['started_from'] == bundle.digest(model)
    assert 'started_from' not in bundle.read_card(model)['settings']
    assert main(['check', str(tmp_path / 'one')]) == 0
    assert f'began as   {bundle.digest(model)}' in capsys.readouterr().out
    scan = at(people_at_two_sites(), {'A': 'A', 'B': 'C'}).scans[1]
    assert np.isfinite(again.harmonize(scan, Site('A')).image).all()


def test_an_interrupted_tuning_ends_where_an_uninterrupted_one_does(model, tmp_path):
    whole = tuned(model, 4, tmp_path / 'whole')
    method = method_from(model, Iguane, Execution(), {})
    cohort = at(people_at_two_sites(), {'A': 'A', 'B': 'C'})
    method.fit(cohort, target=Site('A'), running=replace(steps(4, tmp_path / 'cut'), budget=Stopped(4, 2)))
    parted = tuned(model, 4, tmp_path / 'cut')
    for key, value in whole.networks.state_dict().items():
        assert torch.equal(value, parted.networks.state_dict()[key]), key


class Stopped(Budget):
    """A budget that ends a training before its time, as a killed job does."""

    def __init__(self, steps, stop):
        super().__init__(steps)
        object.__setattr__(self, 'stop', stop)

    def done(self, step, seconds):
        return 1.0 if step >= self.stop else super().done(step, seconds)


def test_another_start_is_another_training(model, tmp_path):
    first = tuned(model, 2, tmp_path / 'out')
    bundle.save(first, tmp_path / 'first')
    with pytest.raises(TrainingFailed, match='started from another model'):
        tuned(model, 4, tmp_path / 'out', start=tmp_path / 'first')
    plain = Iguane(settings=bundle.load(model).settings)
    with pytest.raises(TrainingFailed, match='started from another model'):
        plain.fit(
            at(people_at_two_sites(), {'A': 'A', 'B': 'C'}),
            target=Site('A'),
            running=steps(4, tmp_path / 'out'),
        )
    plain = Iguane(settings=bundle.load(model).settings)
    plain.fit(
        at(people_at_two_sites(), {'A': 'A', 'B': 'C'}),
        target=Site('A'),
        running=steps(2, tmp_path / 'plain'),
    )
    with pytest.raises(TrainingFailed, match='started from no model'):
        tuned(model, 4, tmp_path / 'plain')


def test_models_that_cannot_be_a_start_are_refused(model, tmp_path):
    with pytest.raises(UsageError, match='one of iguane, and a training of cyclegan'):
        method_from(model, registry.find('cyclegan'), Execution(), {})
    with pytest.raises(UsageError, match='no setting "wdiths"'):
        method_from(model, Iguane, Execution(), {'wdiths': 3})
    with pytest.raises(ConfigurationError, match='no model bundle'):
        method_from(tmp_path / 'none', Iguane, Execution(), {})
    bundle.save(Iguane(), tmp_path / 'untrained')
    with pytest.raises(UsageError, match='not trained'):
        method_from(tmp_path / 'untrained', Iguane, Execution(), {})


def test_a_method_without_a_site_to_aim_at_is_tuned_too(tmp_path):
    kind = registry.find('mispel')
    method = kind(settings=kind.preset('tiny', hold_out=0.0))
    cohort = at(people_at_two_sites(), {'A': 'A', 'B': 'B'})
    method.fit(cohort, target=Canonical(), running=steps(2))
    bundle.save(method, tmp_path / 'model')
    again = method_from(tmp_path / 'model', kind, Execution(), {})
    again.fit(cohort, target=Canonical(), running=steps(2))
    assert again.started_from == bundle.digest(tmp_path / 'model')
