"""Settings, each of which may be what it is, that make no networks together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.building import restored_networks, untrained_networks
from bidsharm.harmonizers.contract import Canonical, Site
from bidsharm.harmonizers.task import Task
from bidsharm.training.volumes import TrainingSet, TrainingVolume


def scans() -> TrainingSet:
    """Return two people in two scanners."""
    box = np.ones((4, 4, 4), np.float32)
    return TrainingSet(
        [
            TrainingVolume(
                values=box, mask=box > 0, name=f'{person}{site}', person=person, session=site, site=site, contrast='T1w',
                tissue=None, covariates={}, unit=1.0, acquisition={},
            )
            for person in 'ab' for site in 'AB'
        ],
        0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'changes'),
    [
        ('deepharmony', {'widths': (4, 0)}),
        ('deepharmony', {'widths': ()}),
        ('unet3d-cgan', {'discriminator': ()}),
        ('cyclegan', {'width': 0}),
        ('trans-unet', {'heads': 5}),
        ('haca3', {'levels': -1}),
        ('stytr', {'channels': 7}),
    ],
)
def test_they_are_refused_in_words(name: str, changes: dict[str, Any]) -> None:
    kind = registry.find(name)
    target = Canonical() if 'canonical' in kind.card.targets else Site('A')
    assert kind(settings=kind.preset('tiny')).untrained(scans(), target)
    with pytest.raises(UsageError, match=f'no networks for {name} '):
        kind(settings=kind.preset('tiny', **changes)).untrained(scans(), target)


def test_those_of_tasks_are_refused_as_well() -> None:
    kind = registry.find('unlearning')
    task = Task('regression', 'age')
    assert kind(settings=kind.preset('tiny')).untrained(scans(), task)
    with pytest.raises(UsageError, match='no networks for unlearning '):
        kind(settings=kind.preset('tiny', widths=())).untrained(scans(), task)


def test_an_error_without_words_is_named() -> None:
    def build() -> dict[str, torch.nn.Module]:
        raise AssertionError

    with pytest.raises(UsageError, match=r'\(AssertionError\)'):
        untrained_networks(build, 'some')
    with pytest.raises(ConfigurationError, match=r'\(AssertionError\)'):
        restored_networks(build, {})
