"""Who is kept back from a training, and what can be waited for."""

from __future__ import annotations

import numpy as np
import pytest

from bidsharm.errors import UsageError
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import Site
from bidsharm.training.volumes import TrainingSet, TrainingVolume

TARGET_ONLY = ('blindharmony', 'rectified-flow', 'style-blind', 'ssl-restore')


def data_of(places: str) -> TrainingSet:
    """Return scans of people, one each, at the sites that a text names by a letter."""
    values = np.ones((4, 4, 4), np.float32)
    return TrainingSet([
        TrainingVolume(values, values > 0, f'sub-{number:02d}', f'{number:02d}', '', site, 'T1w')
        for number, site in enumerate(places)
    ])  # fmt: skip


def ready(name: str, data: TrainingSet, **changes):
    kind = registry.get(name)
    method = kind(settings=kind.preset('tiny', **changes))
    method.networks = method.untrained(data, Site('A'))
    return method


@pytest.mark.parametrize('name', TARGET_ONLY)
@pytest.mark.parametrize('seed', range(5))
def test_methods_that_learn_the_target_alone_are_validated_there(name, seed):
    data = data_of('AAABBBBBBBBBBBB')
    method = ready(name, data, hold_out=0.2)
    others = method._held_out(data, seed)
    checks = method._checks(data.of(others))
    assert len(others) == 3
    assert {volume.site for volume in checks.data.at('A')} == {'A'}
    assert len(data.of(others).at('A')) < 3  # some are left to learn from


@pytest.mark.parametrize('seed', range(3))
def test_nobody_is_kept_back_with_whom_nothing_can_be_validated(seed):
    data = data_of('AAABBB')
    method = ready('cyclegan', data, hold_out=0.1)  # one person, who was at one site, is no pair of sites
    assert method._held_out(data, seed) == []


def test_sites_that_a_method_learns_from_are_among_those_kept_back():
    data = data_of('AAAAABBBBB')
    for seed in range(5):
        others = ready('cyclegan', data, hold_out=0.3)._held_out(data, seed)
        assert {volume.site for volume in data.of(others).volumes} == {'A', 'B'}


def test_patience_is_refused_where_no_number_will_be_seen():
    data = data_of('AABB')
    with pytest.raises(UsageError, match='Nobody is held out'):
        ready('unet3d', data)._check_patience(None)
    with pytest.raises(UsageError, match='cyclegan has no number'):
        ready('cyclegan', data)._check_patience(object())
    with pytest.raises(UsageError, match='last stage of haca3'):
        ready('haca3', data, fuse='learnt')._check_patience(object())
    ready('haca3', data, fuse='median')._check_patience(object())
    ready('unet3d', data)._check_patience(object())
