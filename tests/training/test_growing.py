"""Images that grow in the course of a training: what coarse ones show, and when they are shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from bidsharm.errors import UsageError
from bidsharm.training.growing import Growing, coarse, grown
from bidsharm.training.options import Stage


def test_blocks_are_averaged_over_the_brain_and_the_background_stays() -> None:
    image = torch.tensor([[[[1.0, 3, -1, -1], [5, 7, -1, 9], [2, 4, 0, 0], [-1, -1, 0, 8]]]])
    mask = torch.tensor([[[[1.0, 1, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]]]])
    found = coarse({'x': image, 'x_mask': mask, 'x_site': torch.tensor([1])}, 2, background=-1.0)
    # A block of four voxels; one of which a quarter is brain; one of which half is; and one whose brain holds zeros.
    assert found['x'][0, 0].tolist() == [[4.0, -1.0], [3.0, 2.0]]
    assert found['x_mask'][0, 0].tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert found['x_site'].tolist() == [1]


def test_brain_outside_a_shared_mask_stays_and_contrasts_that_are_missing_are_empty() -> None:
    images = torch.zeros(1, 2, 4, 4)
    images[:, 0] = 6
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :2] = 1
    found = coarse({'images': images, 'mask': mask, 'present': torch.tensor([[1.0, 0.0]])}, 2)
    assert (found['images'][:, 0] == 6).all()
    assert (found['images'][:, 1] == 0).all()
    assert found['mask'][0, 0].tolist() == [[1, 0], [0, 0]]
    assert found['present'].tolist() == [[1, 0]]


def test_labels_go_by_majority_and_agree_with_the_mask() -> None:
    labels = torch.tensor([[[1, 1, 0, 3], [1, 2, 0, 0], [0, 0, 2, 3], [2, 2, 3, 0]]])
    found = coarse({'x_tissue': labels, 'x_mask': (labels[:, None] > 0).float()}, 2)
    assert found['x_tissue'].tolist() == [[[1, 0], [2, 3]]]
    assert torch.equal(found['x_tissue'][:, None] > 0, found['x_mask'] > 0)
    assert coarse({'tissue': torch.zeros(1, 4, 4, dtype=torch.int64)}, 2)['tissue'].shape == (1, 2, 2)


@pytest.mark.parametrize(
    ('size', 'factor', 'expected'), [(32, 2, 16), (160, 4, 48), (16, 4, 4), (10, 4, 3), (24, 1, 32)]
)
def test_large_sizes_stay_multiples_of_what_networks_can_halve(size: int, factor: int, expected: int) -> None:
    for dims in (2, 3):
        image = torch.ones(1, 1, *(size,) * dims)
        found = coarse({'x': image}, factor, multiple=16)['x']
        assert found.shape[2:] == (expected,) * dims
        inside = size // factor
        for axis in range(2, 2 + dims):
            found = found.narrow(axis, 0, inside)
        assert (found == 1).all()


class Learner:
    """Notes what it sees."""

    stages = (Stage('codes', 1.0), Stage('fusion', 1.0, grows=False), Stage('train', 2.0))
    average = done = 0.0
    players: ClassVar[dict[str, Any]] = {}
    networks, more = torch.nn.ModuleDict(), None

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def begin(self, stage: str) -> None:
        self.seen.append(stage)

    def losses(self, batch: Any, stage: str) -> Any:
        self.seen.append((stage, batch['x'].shape[-1]))
        yield 'player', {}

    def validation(self, batch: Any) -> Any:
        return batch['x'].shape[-1]

    preview = validation


def growing(halvings: int) -> tuple[Learner, Growing]:
    learner = Learner()
    return learner, Growing(learner, halvings, background=0.0, multiple=16)  # type: ignore[arg-type]


def test_each_stage_that_grows_is_divided_into_equal_parts() -> None:
    _, some = growing(2)
    assert [(part.name, round(part.share, 6)) for part in some.stages] == [
        ('codes at 1/4', 0.333333), ('codes at 1/2', 0.333333), ('codes', 0.333333), ('fusion', 1.0),
        ('train at 1/4', 0.666667), ('train at 1/2', 0.666667), ('train', 0.666667),
    ]  # fmt: skip


def test_losses_see_small_images_and_the_names_of_the_learners_own_stages() -> None:
    learner, some = growing(1)
    batch = {'x': torch.ones(1, 1, 32, 32)}
    for part in some.stages:
        some.begin(part.name)
        list(some.losses(batch, part.name))
        some.more = lambda: batch
        learner.seen.append(learner.more()['x'].shape[-1])  # type: ignore[misc]
        assert some.validation(batch) == 32
    assert learner.seen == [
        'codes', ('codes', 16), 16, 'codes', ('codes', 32), 32, 'fusion', ('fusion', 32), 32,
        'train', ('train', 16), 16, 'train', ('train', 32), 32,
    ]  # fmt: skip


def test_what_the_loop_sets_reaches_the_learner() -> None:
    learner, some = growing(1)
    some.done = 0.25
    assert learner.done == some.done == 0.25


def test_networks_of_a_fixed_size_refuse_and_say_why() -> None:
    learner, some = growing(1)
    flat = torch.nn.Linear(32 * 32, 1)

    def losses(batch: Any, stage: str) -> Any:
        yield 'player', {'score': flat(batch['x'].flatten(1)).sum()}

    learner.losses = losses  # type: ignore[method-assign]
    some.begin('train at 1/2')
    with pytest.raises(UsageError, match=r'1/2 of their size \(16 x 16 voxels\).*cannot be multiplied'):
        list(some.losses({'x': torch.ones(1, 1, 32, 32)}, 'train at 1/2'))
    some.begin('train')
    assert list(some.losses({'x': torch.ones(1, 1, 32, 32)}, 'train'))


def test_without_halvings_the_learner_itself_is_trained() -> None:
    learner = Learner()
    assert grown(learner, SimpleNamespace(), 0) is learner  # type: ignore[arg-type]
