"""Settings against invention: every method with a discriminator has them, and they reach its networks and losses."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from bidsharm.errors import UsageError
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.adversarial import AdversarialSettings
from bidsharm.harmonizers.contract import Cohort, Site
from bidsharm.harmonizers.trained import TrainedHarmonizer
from bidsharm.harmonizers.training_data import training_set
from bidsharm.nn.blocks import count_parameters
from bidsharm.training.options import Budget, Running

from .conftest import people_at_two_sites

TRAINED = [name for name in registry._BUILTIN if issubclass(registry.find(name), TrainedHarmonizer)]
#: Networks that play against a generator, and networks that only guess and whose guesses others must not spoil.
JUDGES, OTHERS = ('Discriminator', 'Judges', 'MultiScale', 'Critic'), ('LatentClassifier',)


def prepared(name, **changes):
    """Return a method with fresh networks for two sites."""
    kind = registry.get(name)
    method = kind(settings=kind.preset('tiny', **{'batch': 2, **changes}))
    method.sites, method.contrasts, method.target_site = ('A', 'B'), ('T1w', 'T2w'), 'A'
    torch.manual_seed(0)
    method.networks = nn.ModuleDict(method.build())
    return method


@cache
def judges(name):
    """Return the names of a method's networks that hold a discriminator, by the classes of their parts."""
    with torch.device('meta'):
        method = prepared(name)
    return [
        key
        for key, network in method.networks.items()
        if any(type(part).__name__.endswith(JUDGES) for part in network.modules())
    ]


@cache
def people():
    return people_at_two_sites(2)


ADVERSARIAL = [name for name in TRAINED if judges(name)]


def total_of_judges(name, **changes):
    """Return the sum of the losses of the players that move discriminators, and that of all others, in the first step."""
    method = prepared(name, spectral=False, **changes)
    data = training_set(Cohort(people()), method.settings)
    batch = method.sampler(data).draw(np.random.default_rng(0))
    own = {key for key, player in method.players.items() if set(player.networks) & set(judges(name))}
    stage = method.stages[0].name
    method.begin(stage)
    torch.manual_seed(1)
    found = {True: 0.0, False: 0.0}
    for player, losses in method.losses(batch, stage):
        found[player in own] += sum(float(loss.detach()) for loss in losses.values())
    return found[True], found[False]


def test_the_adversarial_methods_of_the_survey_are_found():
    known = {
        'cyclegan',
        'iguane',
        'ugatit',
        'qs-attn',
        'mcdgan',
        'unit',
        'ssgan',
        'stargan2',
        'styletransfer',
    }
    known |= {'munit', 'murd', 'imunity', 'calamiti', 'unet3d-cgan'}
    assert known <= set(ADVERSARIAL)
    assert not {'unet3d', 'haca3', 'mispel', 'dlest'} & set(ADVERSARIAL)


@pytest.mark.parametrize('name', ADVERSARIAL)
def test_every_method_with_a_discriminator_has_the_settings(name):
    kind = registry.get(name)
    assert issubclass(kind.Preset, AdversarialSettings)
    assert kind.Preset().spectral is (name == 'ugatit')
    assert kind.Preset().penalty == (1.0 if name in ('stargan2', 'styletransfer') else 0.0)


@pytest.mark.parametrize('name', ADVERSARIAL)
def test_spectral_normalization_reaches_the_layers_of_the_discriminators_alone(name):
    plain, normal = prepared(name, spectral=False), prepared(name, spectral=True)
    assert count_parameters(plain.networks) == count_parameters(normal.networks)
    for key, network in normal.networks.items():
        layers = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)]
        spectral = [hasattr(part, 'parametrizations') for part in layers if part.kernel_size[0] > 1]
        assert all(spectral) if key in judges(name) else not any(spectral)
    for network in plain.networks.values():
        assert not any(hasattr(part, 'parametrizations') for part in network.modules())


@pytest.mark.parametrize('name', ADVERSARIAL)
def test_the_penalty_raises_the_loss_of_the_discriminators_alone(name):
    without, others = total_of_judges(name, penalty=0.0)
    small, same = total_of_judges(name, penalty=1.0)
    large, _ = total_of_judges(name, penalty=3.0)
    assert small > without
    assert large - without == pytest.approx(3 * (small - without), rel=1e-3)
    assert same == others


@pytest.mark.parametrize('name', ADVERSARIAL)
def test_the_adversarial_loss_that_is_asked_for_reaches_discriminators_and_generators(name):
    if name in ('calamiti', 'dewey2020'):  # their critic guesses contrasts
        with pytest.raises(UsageError, match='does not use gan_loss'):
            total_of_judges(name, gan_loss='hinge')
        return
    found = [total_of_judges(name, gan_loss=kind) for kind in ('least_squares', 'logistic', 'hinge')]
    for player in zip(*found, strict=True):
        assert len(set(player)) == 3


def test_an_unknown_adversarial_loss_is_refused():
    with pytest.raises(UsageError, match="gan_loss cannot be 'wasserstein'"):
        registry.get('cyclegan').preset('tiny', gan_loss='wasserstein')


class Seen(Exception):
    """Ends a training when the first batch is seen."""


def first_batch(name, **changes):
    """Return what the losses of a method see in the first step of a training."""
    kind = registry.get(name)
    method = kind(settings=kind.preset('tiny', **{'batch': 2, 'hold_out': 0.0, **changes}))
    seen = []

    def losses(batch, stage):
        seen.append(batch)
        raise Seen

    method.losses = losses
    with pytest.raises(Seen):
        method.fit(Cohort(people()), target=Site('A'))
    return seen[0]


@pytest.mark.parametrize('name', ADVERSARIAL)
def test_examples_are_changed_where_the_settings_say_so_and_nowhere_else(name):
    plain, contrast = first_batch(name), first_batch(name, augment_gamma=0.3, augment_gain=0.2)
    geometry = first_batch(name, augment_angle=15.0, augment_scale=0.1)
    images = 'images' if 'images' in plain else 'x'
    for changed in (contrast, geometry):
        assert changed.keys() == plain.keys()
        assert not torch.equal(changed[images], plain[images])
        assert all(changed[key].shape == value.shape for key, value in plain.items())
    again = first_batch(name)
    assert all(torch.equal(again[key], value) for key, value in plain.items())


@pytest.mark.parametrize('name', ADVERSARIAL)
def test_the_first_half_of_a_training_sees_images_of_half_the_size(name):
    kind = registry.get(name)
    larger = {'edge': 32} if hasattr(kind.Preset(), 'edge') else {}
    settings = kind.preset('tiny', batch=2, hold_out=0.25, progressive=1, **larger)
    plain = first_batch(name, **larger)
    images = 'images' if 'images' in plain else 'x'
    method = kind(settings=settings)
    sizes, losses = [], method.losses

    def noted(batch, stage):
        sizes.append(max(batch[images].shape[2:]))
        yield from losses(batch, stage)

    method.losses = noted
    steps = 8 * len(method.stages)
    method.fit(Cohort(people()), target=Site('A'), running=Running(budget=Budget(steps)))
    full = max(plain[images].shape[2:])
    assert len(sizes) == steps
    assert set(sizes) == {full // 2, full}
    if len(method.stages) == 1:
        assert sizes == [full // 2] * (steps // 2) + [full] * (steps // 2)
    scan = next(scan for scan in people() if scan.site == 'B' and scan.contrast == 'T1w')
    found = method.harmonize(scan, Site('A')).image
    assert found.shape == scan.data.shape
    assert np.isfinite(found).all()
    assert found[scan.mask].std() > 0


def test_a_training_with_growing_images_that_was_interrupted_ends_in_the_same_place(tmp_path):
    kind, ends = registry.get('cyclegan'), []
    for stops in ([8], [2, 6, 8]):
        for stop in stops:
            method = kind(
                settings=kind.preset('tiny', batch=2, hold_out=0.5, progressive=1, augment_angle=10.0)
            )
            running = Running(folder=tmp_path / str(len(stops)), budget=Stopped(8, stop), interval=2)
            method.fit(Cohort(people()), target=Site('A'), running=running)
        ends.append(method.networks.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    rows = (tmp_path / '3' / 'log.csv').read_text()
    assert 'train at 1/2' in rows


class Stopped(Budget):
    """A budget that ends a training before its time, as a killed job does."""

    def __init__(self, steps, stop):
        super().__init__(steps)
        object.__setattr__(self, 'stop', stop)

    def done(self, step, seconds):
        return 1.0 if step >= self.stop else super().done(step, seconds)


def test_images_that_become_too_small_are_refused():
    kind = registry.get('cyclegan')
    method = kind(settings=kind.preset('tiny', batch=2, progressive=5))
    with pytest.raises(UsageError, match='1/32 of their size'):
        method.fit(Cohort(people()), target=Site('A'), running=Running(budget=Budget(6)))
    with pytest.raises(UsageError, match='progressive'):
        kind.preset('tiny', progressive=0.5)


@pytest.mark.parametrize('setting', ['penalty', 'augment_gain', 'augment_angle'])
def test_settings_that_are_no_amount_are_refused(setting):
    for value in (-0.1, float('nan'), 'much'):
        with pytest.raises(UsageError, match=setting):
            registry.get('cyclegan').preset('tiny', **{setting: value})


def test_tasks_that_translate_have_the_settings_too():
    for name in ('uda-image', 'unit-seg'):
        assert issubclass(registry.find(name).Preset, AdversarialSettings)


def test_spectral_normalization_bounds_every_layer_of_a_discriminator():
    from bidsharm.nn.discriminators import DomainDiscriminator

    torch.manual_seed(0)
    judge = DomainDiscriminator(2, 1, 2, width=4, most=8, downs=2, spectral=True)
    for _ in range(50):  # the largest singular value is found step by step
        judge(torch.randn(1, 1, 16, 16), torch.tensor([0]))
    judge.eval()
    layers = [part for part in judge.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert len(layers) > 5
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).detach()) == pytest.approx(
            1, abs=0.02
        )
