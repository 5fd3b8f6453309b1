"""Work on one scan at test time: repeated steps from a start to something better, bounded, watched and reported."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

State = TypeVar('State')


@dataclass
class Effort:
    """What was done for one scan, over all of its batches.

    Parameters
    ----------
    steps
        Most steps that any batch took.
    first, last
        Objectives before the first step and of the result, one per batch.
    """

    steps: int = 0
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)

    def note(self, steps: int, first: float, last: float) -> None:
        """Take note of a batch."""
        self.steps = max(self.steps, steps)
        self.first.append(first)
        self.last.append(last)

    def clear(self) -> None:
        """Forget everything: the scan is begun again."""
        self.steps = 0
        self.first.clear()
        self.last.clear()

    def details(self) -> dict[str, Any]:
        """Return steps and mean objectives for the record of a scan; nothing where no work was done."""
        if not self.first:
            return {}
        means = {
            'first_objective': sum(self.first) / len(self.first),
            'last_objective': sum(self.last) / len(self.last),
        }
        return {'test_time': {'steps': self.steps, **means}}


def repeated(
    step: Callable[[State, int], tuple[float, State]],
    objective: Callable[[State], float],
    start: State,
    *,
    most: int,
    effort: Effort | None,
    patience: int = 0,
) -> State:
    """Repeat a step, and return where it led.

    Parameters
    ----------
    step
        From a state and the number of the step to the objective at that state, and the next state.
    objective
        From a state to what should become small.
    start
        First state; must not be changed by the step.
    most
        Most steps.
    effort
        Takes note of steps and objectives; None for none.
    patience
        Steps without a smaller objective after which the work ends, and the best state is returned; 0 always takes all steps and returns the last
        state.

    Returns
    -------
    State
        The last state whose objective is a number, or the best one; the start where even the first step led nowhere.
    """
    here, best, best_at = start, start, 0
    values: list[float] = []
    for number in range(most + 1):
        value, coming = step(here, number) if number < most else (objective(here), here)
        if not math.isfinite(value):
            break
        values.append(value)
        if number == 0 or not patience or value < values[best_at]:
            best, best_at = here, number
        elif number - best_at >= patience:
            break
        here = coming
    if effort is not None and values:
        effort.note(len(values) - 1, values[0], values[best_at])
    return best
