"""Work at test time: bounded, noted, and never worse than where it began if it may wait."""

from __future__ import annotations

import math

import pytest

from bidsharm.harmonizers.effort import Effort, repeated


def test_steps_are_bounded_and_noted() -> None:
    effort = Effort()
    found = repeated(lambda x, n: (x * x, x / 2), lambda x: x * x, 8.0, most=3, effort=effort)
    assert found == 1.0
    assert effort.details() == {'test_time': {'steps': 3, 'first_objective': 64.0, 'last_objective': 1.0}}


def test_batches_are_averaged_and_forgotten() -> None:
    effort = Effort()
    effort.note(2, 1.0, 0.5)
    effort.note(5, 3.0, 1.5)
    assert effort.details()['test_time'] == {'steps': 5, 'first_objective': 2.0, 'last_objective': 1.0}
    effort.clear()
    assert effort.details() == {}


def test_with_patience_the_best_state_is_returned() -> None:
    effort = Effort()
    values = [3.0, 2.0, 5.0, 6.0, 0.0]
    found = repeated(
        lambda x, n: (values[x], x + 1), lambda x: values[x], 0, most=4, effort=effort, patience=2
    )
    assert found == 1
    assert effort.details()['test_time']['last_objective'] == 2.0


def test_without_patience_the_last_state_is_returned() -> None:
    values = [3.0, 2.0, 5.0]
    assert repeated(lambda x, n: (values[x], x + 1), lambda x: values[x], 0, most=2, effort=None) == 2


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_what_is_not_a_number_is_not_kept(bad: float) -> None:
    effort = Effort()
    values = [3.0, 2.0, bad, 1.0]
    assert repeated(lambda x, n: (values[x], x + 1), lambda x: values[x], 0, most=3, effort=effort) == 1
    assert effort.details()['test_time']['steps'] == 1


def test_no_steps_give_the_start() -> None:
    effort = Effort()
    assert repeated(lambda x, n: (x, x + 1), lambda x: x, 4, most=0, effort=effort) == 4
    assert effort.steps == 0
