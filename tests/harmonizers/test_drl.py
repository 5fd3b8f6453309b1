"""The disentangled methods: sizes, losses by hand, which network learns when, and what a scan is made from."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch

from bidsharm.harmonizers.contract import Cohort, Site
from bidsharm.harmonizers.disentangled import inside, some_of
from bidsharm.harmonizers.drl import HACA3, Calamiti, Dewey2020, SingleModality
from bidsharm.harmonizers.native import harmonize_scan, on_model_grid
from bidsharm.nn.blocks import count_parameters
from bidsharm.nn.disentangled import ContrastAttention, fuse, label_map, one_label
from bidsharm.nn.fusion import FusionNet
from bidsharm.nn.losses import distance_nce, patch_nce
from bidsharm.training.degradation import degraded
from bidsharm.training.options import Budget, Running
from bidsharm.training.regimes import Orientations
from bidsharm.training.views import Slices


def people(count=3):
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location('phantoms', Path(__file__).with_name('conftest.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.people_at_two_sites(count)


@cache
def trained(kind, steps=8, **changes):
    method = kind(settings=kind.preset('tiny', batch=2, hold_out=0.0, **changes))
    method.fit(Cohort(people()), target=Site('A'), running=Running(budget=Budget(steps)))
    return method


def grid(scan):
    return on_model_grid(scan, 8.0)


# --- Sizes and relations ---


def test_networks_of_haca3_have_the_size_of_the_public_code():
    method = HACA3()
    method.contrasts = ('FLAIR', 'PDw', 'T1w', 'T2w')
    with torch.device('meta'):
        sizes = {name: count_parameters(network) for name, network in method.build().items()}
    published = {'anatomy': 2.16e6, 'decoder': 8.64e6, 'artifact': 2.14e6, 'contrast': 0.15e6}
    for name, size in published.items():
        assert sizes[name] == pytest.approx(size, abs=5000)
    assert sizes['fusion'] == pytest.approx(12_800, abs=50)


def test_calamiti_is_haca3_that_swaps_and_knows_no_artifacts():
    changes = {'attention': 'swap', 'eta': 0, 'contrastive': 0.0, 'confusion': 0.1, 'drop_target': 0.0}
    ours, theirs = asdict(HACA3.preset('paper', **changes)), asdict(Calamiti.preset('paper'))
    assert ours == theirs
    one, other = trained(Calamiti), trained(HACA3, **changes)
    assert one.networks.keys() == other.networks.keys()
    for key, value in one.networks.state_dict().items():
        assert torch.equal(value, other.networks.state_dict()[key]), key
    scan = grid(people(1)[1])
    assert np.array_equal(one.harmonize(scan, Site('A')).image, other.harmonize(scan, Site('A')).image)


def test_each_method_has_the_parts_that_its_paper_has():
    def parts(kind):
        method = kind(settings=kind.preset('tiny'))
        method.contrasts = ('T1w', 'T2w')
        return set(method.build())

    common = {'anatomy', 'contrast', 'decoder'}
    assert parts(HACA3) == common | {'attention', 'artifact', 'patchifier', 'fusion'}
    assert parts(Calamiti) == common | {'critic', 'fusion'}
    assert parts(Dewey2020) == common | {'critic'}
    assert parts(SingleModality) == common
    assert [stage.name for stage in HACA3().stages] == ['artifacts', 'within', 'across', 'fusion']
    assert [stage.name for stage in Dewey2020().stages] == ['within']


# --- Anatomy and attention by hand ---


def test_labels_are_the_likeliest_and_become_shares_of_their_number():
    logits = torch.tensor([[[[0.0, 3.0]], [[1.0, 0.0]], [[2.0, 0.0]], [[0.5, 0.0]], [[0.0, 0.0]]]])
    labels = one_label(logits, draw=False)
    assert torch.allclose(labels.sum(dim=1), torch.ones(1, 1, 2))
    assert torch.allclose(label_map(labels), torch.tensor([[[[2 / 5, 0.0]]]]))
    drawn = one_label(logits.expand(4, -1, -1, -1), draw=True)
    assert set(drawn.detach().unique().round(decimals=5).tolist()) <= {0.0, 1.0}


def test_gradients_pass_through_labels():
    logits = torch.randn(1, 5, 2, 2, requires_grad=True)
    label_map(one_label(logits, draw=False)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_attention_gives_nothing_to_absent_contrasts():
    attention = ContrastAttention(4)
    query, keys = torch.randn(2, 4), torch.randn(2, 3, 4)
    weights = attention(query, keys, torch.tensor([[1.0, 0, 1], [0, 1, 0]]), 10.0)
    assert torch.allclose(weights.sum(dim=1), torch.ones(2))
    assert weights[0, 1] == 0
    assert weights[1].tolist() == [0, 1, 0]


def test_a_contrast_counts_only_where_it_shows_something_if_another_one_does():
    logits = torch.stack([torch.full((1, 1, 3), 1.0), torch.full((1, 1, 3), 3.0)])[None]
    weights = torch.tensor([[0.25, 0.75]])
    shown = torch.tensor([[[[1.0, 1, 0]], [[1.0, 0, 0]]]])
    assert fuse(logits, weights)[0, 0, 0].tolist() == [2.5, 2.5, 2.5]
    assert fuse(logits, weights, shown)[0, 0, 0].tolist() == [2.5, 1.0, 2.5]


def test_sources_never_run_out_and_the_target_is_left_out_where_others_are():
    torch.manual_seed(0)
    present = torch.tensor([[1.0, 1, 1], [0, 1, 0], [1, 0, 1]])
    target = torch.tensor([0, 1, 2])
    counts = set()
    for _ in range(50):
        left = some_of(present, target, 1.0, few=True)
        assert (left <= present).all()
        assert (left.sum(dim=1) >= 1).all()
        assert left[0, 0] == 0
        assert left[1, 1] == 1
        assert left[2].tolist() == [1, 0, 0]
        counts.add(int(left[0].sum()))
    assert counts == {1, 2}
    assert torch.equal(some_of(present, None, 0.0, few=False), present)


# --- Losses by hand ---


def test_losses_are_those_computed_by_hand():
    found, wanted, mask = torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert inside(found, wanted, mask) == 2.0
    codes = torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[[2.0]]])
    assert float(distance_nce(*codes, temperature=1.0)) == pytest.approx(math.log(1 + math.exp(-3)))
    one = torch.tensor([[[1.0, 0.0]]])
    assert float(patch_nce(one, one, 1.0)) == 0.0
    more = torch.tensor([[[0.0, 1.0]]])
    assert float(patch_nce(one, one, 1.0, negatives=more)) == pytest.approx(math.log(1 + math.exp(-1)))


def test_weights_multiply_the_losses():
    method = trained(HACA3)
    method.networks.eval()
    torch.manual_seed(0)
    batch = {
        'images': torch.rand(2, 2, 16, 16), 'present': torch.ones(2, 2), 'mask': torch.ones(2, 1, 16, 16),
    }  # fmt: skip
    _, losses = next(method.losses(batch, 'within'))
    error = method._draw(
        task := method._task(batch), method._anatomy(task.sources), task.style
    ).image - task.wanted  # fmt: skip
    assert float(losses['reconstruction'].detach()) == pytest.approx(
        10 * float(error.detach().abs().mean()), rel=1e-5
    )
    codes = method._codes(task.style)
    kl = 0.5 * (codes.mean.square() + codes.log_variance.exp() - 1 - codes.log_variance).mean()
    assert float(losses['kl'].detach()) == pytest.approx(1e-5 * float(kl.detach()), rel=1e-4)


class Labelling(torch.nn.Module):
    """The label of a voxel is its intensity in fifths."""

    def forward(self, x):
        labels = (5 * x[:, 0]).floor().long().clamp(0, 4)
        return 100 * torch.nn.functional.one_hot(labels, 5).movedim(-1, 1).to(x)


class Averaging(torch.nn.Module):
    """The code of an image is a multiple of its mean, twice; a variance of 1 where one is asked for."""

    def __init__(self, factor, *, variance=False):
        super().__init__()
        self.factor, self.variance = torch.nn.Parameter(torch.tensor(factor)), variance

    def forward(self, x):
        code = self.factor * x.mean(dim=(1, 2, 3))[:, None].expand(-1, 2)
        return (code, torch.zeros_like(code)) if self.variance else code


class Adding(torch.nn.Module):
    """Draw the label of a voxel plus the first number of the contrast."""

    def forward(self, x):
        return x[:, :1] + x[:, 1:2]


class Sharing(torch.nn.Module):
    """Attend to all contrasts alike."""

    def forward(self, query, keys, allowed, temperature):
        return allowed / allowed.sum(dim=1, keepdim=True)


class Circle(torch.nn.Module):
    """The features of a voxel are its place on the unit circle; an intensity of 0.2 is a quarter of the way round."""

    def forward(self, x):
        angles = x.flatten(1) * 2.5 * torch.pi
        return torch.stack([angles.cos(), angles.sin()], dim=2)


class Totals:
    """Features that are the sum of an image."""

    def distance(self, found, wanted):
        return (found.sum() - wanted.sum()).abs()


@pytest.fixture
def by_hand():
    """HACA3 with networks whose losses can be worked out by hand."""
    method = HACA3(settings=HACA3.preset('tiny'))
    method.networks = torch.nn.ModuleDict({
        'anatomy': Labelling(), 'contrast': Averaging(1.0, variance=True), 'decoder': Adding(), 'attention': Sharing(),
        'artifact': Averaging(2.0), 'patchifier': Circle(),
    }).eval()  # fmt: skip
    method._features = Totals()
    return method


def test_reconstruction_perceptual_and_cycle_losses_of_haca3_are_those_worked_out_by_hand(by_hand):
    ones = torch.ones(1, 1, 1, 2)
    batch = {'images': torch.tensor([[[[0.5, 0.7]]]]), 'present': torch.ones(1, 1), 'mask': ones}
    (_, within), (_, across) = by_hand.losses(batch, 'across')
    # Labels 2 and 3 of five, contrast 0.6: 1.0 and 1.2 are drawn where 0.5 and 0.7 should be.
    assert {name: float(loss.detach()) for name, loss in within.items()} == {
        'reconstruction': pytest.approx(10 * 0.5), 'perceptual': pytest.approx(0.5 * 1.0), 'kl': pytest.approx(1e-5 * 0.5 * 0.6**2),
    }  # fmt: skip
    # What was drawn has contrast 1.1 instead of 0.6, artifacts 2.2 instead of 1.2, and the last label (0.8) instead of 0.4 and 0.6.
    assert float(across['cycle'].detach()) == pytest.approx(0.05 * (0.5 + 1.0 + 0.05 * 0.3))


@pytest.mark.parametrize('people', [1, 2])
def test_the_contrastive_loss_of_haca3_is_that_worked_out_by_hand(by_hand, people):
    # Two contrasts have the labels 0 and 1 in each other's places; both images lie opposite to label 0 and a quarter away from label 1.
    logits = Labelling()(torch.tensor([[[0.1, 0.3]], [[0.3, 0.1]]])[:, None])[None].expand(
        people, -1, -1, -1, -1
    )
    images, present = torch.full((people, 2, 1, 2), 0.4), torch.ones(people, 2)
    task = by_hand._task({'images': images, 'present': present, 'mask': torch.ones(people, 1, 1, 2)})
    found = float(by_hand._code_losses(task, logits, by_hand._codes(task.style))['contrastive'])
    # By a temperature of 0.1: the partner scores 0, its other place 10, four places of images -10 or 0; with a second person, as many of their labels.
    more = 2 * (math.exp(10) + 1) if people == 2 else 0
    terms = [math.log(1 + math.exp(10) + 4 * math.exp(image) + more) for image in (-10, 0)]
    assert found == pytest.approx(0.5 * sum(terms) / 2, rel=1e-5)


# --- What learns when ---


def test_each_stage_moves_its_own_networks_only():
    method = HACA3(settings=HACA3.preset('tiny', batch=2, hold_out=0.4))
    seen, begin = {}, method.begin

    def remember(stage):
        seen[stage] = {key: value.detach().clone() for key, value in method.networks.state_dict().items()}
        begin(stage)

    method.begin = remember
    method.fit(Cohort(people()), target=Site('A'), running=Running(budget=Budget(28), interval=2))
    states = [*seen.values(), method.networks.state_dict()]
    moved = []
    for before, after in itertools.pairwise(states):
        keys = {key.split('.')[0] for key in before if not torch.equal(before[key], after[key])}
        moved.append(keys)
    translator = {'anatomy', 'contrast', 'decoder', 'attention', 'patchifier'}
    assert list(seen) == ['artifacts', 'within', 'across', 'fusion']
    # Within and across, the best weights of the validation may be those that a stage began with.
    assert moved[0] == {'artifact'}
    assert moved[1] <= translator
    assert moved[1] | moved[2] == translator
    assert moved[3] == {'fusion'}


def test_the_cycle_and_the_critic_have_turns_of_their_own():
    method = trained(Calamiti)
    batch = {
        'images': torch.rand(2, 2, 16, 16), 'present': torch.ones(2, 2), 'mask': torch.ones(2, 1, 16, 16),
    }  # fmt: skip
    turns = [(player, set(losses)) for player, losses in method.losses(batch, 'across')]
    assert turns == [
        ('translator', {'reconstruction', 'perceptual', 'kl', 'confusion'}), ('critic', {'contrast'}), ('translator', {'cycle'}),
    ]  # fmt: skip
    assert len(list(method.losses(batch, 'within'))) == 2


@pytest.mark.parametrize('kind', [Calamiti, Dewey2020])
def test_a_contrast_is_drawn_from_its_own_anatomy_as_often_as_from_another(kind):
    """Were it always another one's, to turn the contrast around would be all there is to learn."""
    method = trained(kind)
    method.networks.train()
    torch.manual_seed(0)
    images = torch.rand(400, 2, 16, 16)
    task = method._task({'images': images, 'present': torch.ones(400, 2), 'mask': torch.ones(400, 1, 16, 16)})
    source = images[torch.arange(400), method._weights(task, torch.zeros(400, 2)).argmax(dim=1)]
    own = (source == task.wanted[:, 0]).flatten(1).all(dim=1).float().mean()
    method.networks.eval()
    assert 0.4 < float(own) < 0.6


# --- Fusion ---


def test_fusion_begins_as_the_mean_and_a_view_uses_it():
    network = FusionNet()
    x = torch.rand(1, 3, 6, 5, 4)
    assert torch.allclose(network(x), x.mean(dim=1, keepdim=True), atol=1e-6)
    volume = np.random.default_rng(0).random((1, 6, 5, 4), dtype=np.float32)

    def scaled(x, axis):
        return x * (axis + 1)

    view = Slices(axes=(0, 1, 2), fuse='learnt', network=network, multiple=1)
    found = view.through(volume, scaled, background=0.0, batch=4, device='cpu')
    assert np.allclose(found, 2 * volume[0], atol=1e-5)
    median = replace(view, fuse='median').through(volume, scaled, background=0.0, batch=4, device='cpu')
    assert np.allclose(median, 2 * volume[0], atol=1e-5)


def test_fusion_sees_background_outside_the_brain_as_in_its_training():
    class Noted(torch.nn.Module):
        def forward(self, x):
            self.seen = x.numpy()[0]
            return x.mean(dim=1, keepdim=True)

    volume = np.zeros((1, 6, 5, 4), np.float32)
    volume[0, 1:4, 1:4, 1:3] = np.random.default_rng(0).random((3, 3, 2), dtype=np.float32) + 0.1
    brain, network = volume[0] != 0, Noted()
    view = Slices(axes=(0, 1, 2), fuse='learnt', network=network, multiple=1)
    view.through(volume, lambda x, axis: x + 0.5, background=0.0, batch=4, device='cpu')
    assert not network.seen[:, ~brain].any()
    np.testing.assert_allclose(network.seen[:, brain], np.tile(volume[0][brain] + 0.5, (3, 1)))


# --- Scans ---


def test_companions_are_used_where_they_are_given():
    scans = people()
    t1, t2 = (next(s for s in scans if s.site == 'B' and s.contrast == c) for c in ('T1w', 'T2w'))
    both = grid(replace(t1, companions=(t2,)))
    assert both.companions[0].data.shape == both.data.shape
    method = trained(HACA3)
    alone = method.harmonize(grid(t1), Site('A')).image
    assert not np.array_equal(method.harmonize(both, Site('A')).image, alone)
    unknown = replace(both, companions=(replace(both.companions[0], contrast='FLAIR'),))
    assert np.array_equal(method.harmonize(unknown, Site('A')).image, alone)
    swapping = trained(Calamiti)
    assert np.array_equal(
        swapping.harmonize(both, Site('A')).image, swapping.harmonize(grid(t1), Site('A')).image
    )
    native = harmonize_scan(method, replace(t1, companions=(t2,)), Site('A'))
    assert native.image.shape == t1.data.shape


def test_another_target_is_learnt_from_its_scans():
    scans = people()
    method = HACA3(settings=HACA3.preset('tiny', batch=2, hold_out=0.0))
    method.fit(Cohort(scans), target=Site('A'), running=Running(budget=Budget(8)))
    weights = {key: value.clone() for key, value in method.networks.state_dict().items()}
    before = method._styles['T1w/theta'].copy()
    method.fit(Cohort([scan for scan in scans if scan.site == 'B']), target=Site('B'))
    assert set(method._styles) == {'T1w/theta', 'T1w/eta', 'T2w/theta', 'T2w/eta'}
    assert not np.array_equal(method._styles['T1w/theta'], before)
    assert all(torch.equal(value, weights[key]) for key, value in method.networks.state_dict().items())
    assert method.harmonize(grid(scans[0]), Site('B')).image.any()


def test_foreground_attention_trains():
    assert trained(HACA3, attention='fg_bg').harmonize(grid(people(1)[0]), Site('A')).image.any()


# --- Batches ---


def test_orientations_show_one_scan_along_two_axes():
    from bidsharm.harmonizers.training_data import training_set

    settings = SingleModality.preset('tiny')
    data = training_set(Cohort(people(1)), settings)
    values = np.arange(np.prod(data.shape), dtype=np.float32).reshape(data.shape)
    data = replace(data, volumes=[replace(volume, values=values) for volume in data.volumes])
    sampler = Orientations(data, Slices(axes=(0, 1, 2)), batch=2, flip=False)
    batch = sampler.draw(np.random.default_rng(0))

    def axis(image):
        steps = {1, data.shape[2], data.shape[1] * data.shape[2]}
        there = {int(image[0, 0, 1] - image[0, 0, 0]), int(image[0, 1, 0] - image[0, 0, 0])}
        return steps - there

    assert axis(batch['x'][0]) == axis(batch['x'][1])
    assert axis(batch['x'][0]) != axis(batch['other'][0])


def test_artifacts_change_the_brain_and_stay_in_it():
    slices = torch.zeros(2, 24, 20)
    slices[:, 4:20, 4:16] = torch.rand(2, 16, 12) + 0.5
    kinds = []
    for seed in range(12):
        made = degraded(slices, torch.Generator().manual_seed(seed))
        again = degraded(slices, torch.Generator().manual_seed(seed))
        assert torch.equal(made, again)
        assert (made[slices == 0] == 0).all()
        assert not torch.equal(made, slices)
        kinds.append(float((made - slices).abs().mean()))
    assert min(kinds) > 0.01
