"""Rigid alignment finds the same every time: a training that is prepared again after a kill must not differ."""

from __future__ import annotations

import os

import numpy as np

from bidsharm.imaging.alignment import Brain, rigid, template_brain


def test_an_alignment_is_the_same_every_time() -> None:
    fixed = template_brain()
    moved = fixed.affine.copy()
    moved[:3, 3] += (4, -3, 2)
    brain = Brain(fixed.data, fixed.mask, moved)
    names = ('ANTS_RANDOM_SEED', 'ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS')
    before = [os.environ.get(name) for name in names]
    first, second = (rigid(brain, fixed) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[:3, 3], (-4, 3, -2), atol=0.5)
    assert [os.environ.get(name) for name in names] == before
