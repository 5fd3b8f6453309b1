"""Settings of all methods: what they take, and what is said of anything else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest

from bidsharm.errors import UsageError
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.presets import changed_preset, fits

#: Methods whose settings can be changed.
SET = [name for name in registry.available() if hasattr(registry.find(name), 'preset')]


@dataclass(frozen=True)
class Some:
    """One setting of each kind."""

    word: Literal['a', 'b'] = 'a'
    either: Literal['a', 'b'] | Literal['c'] = 'a'
    flag: bool = False
    count: int = 1
    size: float = 1.0
    several: tuple[int, ...] = (1, 2)
    two: tuple[float, float] = (0.5, 2.0)
    text: str = ''


def changed(**changes: Any) -> Some:
    return changed_preset(Some(), 'paper', {}, changes, method='some')


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'word': 'c'}, "word cannot be 'c'. Give one of a, b."),
        ({'word': 1}, 'word cannot be 1. Give one of a, b.'),
        ({'either': 'd'}, 'Give a, b, or c.'),
        ({'flag': 'yes'}, 'Give True or False.'),
        ({'flag': 1}, 'Give True or False.'),
        ({'count': 1.5}, 'Give a whole number.'),
        ({'count': True}, 'Give a whole number.'),
        ({'size': 'large'}, 'Give a number.'),
        ({'size': False}, 'Give a number.'),
        ({'several': 3}, 'as in "several=2," or several=1,2'),
        ({'several': (1, 2.5)}, 'Give whole numbers'),
        ({'two': (1, 2, 3)}, 'Give 2 numbers with a comma'),
        ({'text': 1}, 'Give a word.'),
        ({'colour': 1}, 'some has no setting "colour"'),
    ],
)
def test_what_a_setting_cannot_be_is_said(changes, said):
    with pytest.raises(UsageError) as error:
        changed(**changes)
    assert said in str(error.value)


def test_what_a_setting_can_be_is_taken():
    found = changed(
        word='b', either='c', flag=True, count=np.int64(2), size=3, several=[4], two=(1, 2.5), text='x'
    )
    assert found == Some('b', 'c', True, 2, 3, (4,), (1, 2.5), 'x')


@pytest.mark.parametrize('name', SET)
def test_every_setting_of_a_method_has_a_kind_that_its_presets_fit(name):
    for preset in ('paper', 'tiny'):
        settings = registry.find(name).preset(preset)
        kinds = get_type_hints(type(settings))
        for item in fields(settings):
            assert fits(getattr(settings, item.name), kinds[item.name]), item.name
            assert not fits(object(), kinds[item.name]), item.name


@pytest.mark.parametrize('name', SET)
def test_a_wrong_value_of_any_setting_is_refused(name):
    kind = registry.find(name)
    for item in fields(kind.preset()):
        with pytest.raises(UsageError, match=f'{item.name} cannot be'):
            kind.preset('tiny', **{item.name: None})


@pytest.mark.parametrize(
    'change',
    [{'voxel_mm': 0}, {'batch': 0}, {'steps': -5}, {'rate': 0}, {'average': 1}, {'hold_out': -0.1}, {'axes': (2, 3)}, {'penalty': -1}],
    ids=str,
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(change):
    with pytest.raises(UsageError, match=f'{next(iter(change))} is'):
        registry.find('cyclegan').preset('tiny', **change)
    assert registry.find('cyclegan').preset('tiny', average=0, hold_out=0, steps=1)


@pytest.mark.parametrize(
    ('name', 'change'),
    [('deepharmony-many-to-one', {'adversarial': 1.0}), ('qs-attn', {'cycle': 1.0}), ('ugatit', {'masks': 4}), ('haca3', {'gan_loss': 'hinge'})],
)  # fmt: skip
def test_settings_that_a_method_does_without_are_refused(name, change):
    with pytest.raises(UsageError, match=f'does not use {next(iter(change))}'):
        registry.find(name).preset('tiny', **change)


def test_settings_are_checked_without_torch():
    code = 'import sys; from bidsharm.harmonizers import registry; registry.find("cyclegan").preset("tiny", head="residual"); print("torch" in sys.modules)'
    said = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == 'False'
