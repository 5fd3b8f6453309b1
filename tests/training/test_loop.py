"""The training loop on a method small enough to compute by hand."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bidsharm.training.loop import Loop, TrainingFailed
from bidsharm.training.options import Budget, Player, Running, Stage, linear_after_half, polynomial
from bidsharm.training.regimes import AnyScan, Sampler, Visits
from bidsharm.training.views import Whole
from bidsharm.training.volumes import TrainingSet, TrainingVolume, hold_out


class Numbers(Sampler):
    """Batches that hold the number 2."""

    def __init__(self, value=2.0):
        super().__init__(TrainingSet([]), Whole(), batch=1)
        self.value = value

    def example(self, rng):
        return {'x': np.full((1, 2, 2), self.value, np.float32)}


class Two:
    """Two players with one weight each: the first wants `a = 3`, the second wants `b = a`."""

    average = 0.0
    stages = (Stage(),)

    def __init__(self, players=None, broken_at=10**9):
        self.networks = nn.ModuleDict({'a': nn.Linear(1, 1, bias=False), 'b': nn.Linear(1, 1, bias=False)})
        for net in self.networks.values():
            nn.init.constant_(net.weight, 1.0)
        self.players = players or {'first': Player(('a',), 0.1), 'second': Player(('b',), 0.1)}
        self.seen, self.stage_names, self.count, self.broken_at = [], [], 0, broken_at

    def begin(self, stage):
        self.stage_names.append(stage)

    def losses(self, batch, stage):
        a, b = self.networks['a'].weight, self.networks['b'].weight
        self.count += 1
        bad = float('nan') if self.count > self.broken_at else 1.0
        before = a.item()
        yield 'first', {'pull': bad * (a - 3).square().sum(), 'other': 0 * b.sum()}
        self.seen.append((before, a.item(), b.grad))
        yield 'second', {'follow': (b - a).square().sum()}

    def validation(self, batch):
        return (self.networks['a'].weight - 1.5).abs().sum()

    def preview(self, batch):
        return [batch['x'], batch['x']]


def run(learner, tmp_path=None, steps=20, **changes):
    loop = Loop(learner, Numbers(), Running(folder=tmp_path, budget=Budget(steps), **changes))
    loop.run()
    return loop


def test_players_move_in_turn_and_only_their_own_weights():
    learner = Two()
    run(learner, steps=3)
    for before, after, foreign in learner.seen:
        assert after > before  # the first one has moved when the losses go on
        assert foreign is None  # and the second one has no gradient of it
    assert learner.networks['b'].weight.item() > 1


def test_in_half_precision_networks_that_have_moved_are_used_as_they_are():
    class Seen(Two):
        def losses(self, batch, stage):
            x = torch.ones(1, 1)
            for name in ('first', 'second'):
                said = self.networks['a'](x)
                assert said.dtype == torch.bfloat16
                self.seen.append((float(said.detach()), self.networks['a'].weight.item()))
                yield (
                    name,
                    {
                        'pull': (said.float() - 3).square().sum(),
                        'other': (self.networks['b'](x).float() - 3).square().sum(),
                    },
                )

    learner, cached = Seen(), torch.is_autocast_cache_enabled()
    run(learner, steps=2, precision='bf16-mixed')
    for said, weight in learner.seen:
        assert said == pytest.approx(weight, rel=0.01)
    assert learner.seen[1] > learner.seen[0]
    assert torch.is_autocast_cache_enabled() is cached


def test_a_frozen_player_stays():
    learner = Two({'first': Player(('a',), 0.1), 'second': Player(('b',), 0.0)})
    run(learner)
    assert learner.networks['b'].weight.item() == 1


def test_the_schedule_is_followed():
    learner = Two(
        {
            'first': Player(('a',), 0.1, schedule=lambda done: 0.0 if done >= 0.5 else 1.0),
            'second': Player(('b',), 0.1),
        }
    )
    run(learner, steps=10)
    values = [after for _, after, _ in learner.seen]
    assert values[4] > values[0]
    assert values[5:] == [values[4]] * 5
    assert [linear_after_half(part) for part in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
    assert polynomial(0.5) == pytest.approx(0.55)


class Measured(Sampler):
    """Batches that hold the number of the visit, and of the one that is drawn besides."""

    def __init__(self):
        self.volume = TrainingVolume(
            np.zeros((2, 2, 2), np.float32),
            np.ones((2, 2, 2), bool),
            'x',
            'x',
            '',
            'A',
            'T1w',
            again=self.again,
        )
        super().__init__(TrainingSet([self.volume]), Whole(), batch=1)

    def again(self, take):
        return replace(self.volume, values=np.full((2, 2, 2), take, np.float32))

    def example(self, rng):
        return {'x': self.image(self.volume, self.view.choose(self.volume.mask, rng))}


@pytest.mark.parametrize(('renew', 'seen'), [(0, [0] * 7), (2, [0, 0, 1, 1, 2, 2, 3]), (7, [0] * 7)])
def test_scans_that_can_be_measured_again_are_those_of_the_next_visit(renew, seen):
    learner, found = Two(), []
    losses = learner.losses

    def watched(batch, stage):
        found.append((float(batch['x'].mean()), float(learner.more()['x'].mean())))
        return losses(batch, stage)

    learner.losses = watched
    Loop(learner, Measured(), Running(budget=Budget(7), renew=renew)).run()
    assert found == [(take, take) for take in seen]


def test_gradients_of_several_batches_make_one_step():
    one, two = Two(), Two()
    run(one, steps=2)
    run(two, steps=2, accumulate=3)
    assert one.networks['a'].weight.item() == pytest.approx(two.networks['a'].weight.item(), rel=1e-5)
    assert two.count == 6


class Again(Two):
    """A player that moves twice in a step: up towards 3, then down by the gradient that it has there."""

    def losses(self, batch, stage):
        a = self.networks['a'].weight
        yield 'first', {'pull': (a - 3).square().sum()}
        yield 'first', {'back': (a + batch['x'].mean()).square().sum()}


@pytest.mark.parametrize('accumulate', [2, 4])
def test_a_player_that_moves_twice_does_so_with_several_batches_too(accumulate):
    one, several = Again(), Again()
    run(one, steps=3)
    run(several, steps=3, accumulate=accumulate)
    assert one.networks['a'].weight.item() == pytest.approx(several.networks['a'].weight.item(), rel=1e-6)


class Steep(Two):
    """A loss that is a number, and a gradient that is none, from a step on."""

    def losses(self, batch, stage):
        for player, losses in super().losses(batch, stage):
            a = self.networks['a'].weight
            steep = (0 * a).abs().sqrt().sum() if self.count > 7 else 0 * a.sum()
            yield player, losses | {'steep': steep} if player == 'first' else losses


@pytest.mark.parametrize('steps', [20, 8])
def test_a_gradient_that_is_no_number_ends_it_and_the_checkpoint_stays(tmp_path, steps):
    learner = Steep()
    with pytest.raises(TrainingFailed, match='A gradient of the first is not a number at step 7'):
        run(learner, tmp_path, steps=steps, interval=4)
    state = torch.load(tmp_path / 'checkpoint.pt', weights_only=True)
    assert state['step'] == 4
    assert all(torch.isfinite(value).all() for value in state['networks'].values())
    assert all(torch.isfinite(value).all() for value in learner.networks.state_dict().values())


@pytest.fixture
def half_precision(monkeypatch):
    """Let the loop scale its losses on a CPU, as it does on a GPU."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import MixedPrecision

    from bidsharm.training import loop

    monkeypatch.setattr(
        loop,
        '_fabric',
        lambda running: Fabric(accelerator='cpu', plugins=[MixedPrecision('16-mixed', 'cpu')]),
    )


def test_half_precision_clips_true_gradients_and_goes_on_with_its_scale(half_precision, tmp_path):
    learner = Two({'first': Player(('a',), 0.1, clip=1.0), 'second': Player(('b',), 0.1)})
    loop = Loop(learner, Numbers(), Running(folder=tmp_path, budget=Budget(4), interval=2))
    slopes = []
    loop.optimizers['first'].optimizer.register_step_pre_hook(
        lambda *_: slopes.append(learner.networks['a'].weight.grad.item())
    )
    loop.run()
    assert slopes[0] == pytest.approx(-1)  # 2 (a - 3) = -4, cut to 1
    scaler = loop.fabric.strategy.precision.scaler
    scaler.update(512.0)
    loop._pause()
    again = Loop(Two(), Numbers(), Running(folder=tmp_path, budget=Budget(4), interval=2))
    again.run()
    assert again.fabric.strategy.precision.scaler.get_scale() == 512


PROCESSES = """
import json, sys
import torch
from test_loop import Numbers, Two
from bidsharm.training.loop import Loop
from bidsharm.training.options import Budget, Running

class Own(Two):
    def losses(self, batch, stage):
        a, b = self.networks['a'].weight, self.networks['b'].weight
        yield 'first', {'pull': (a - 3 - torch.rand(())).square().sum()}
        yield 'second', {'follow': (b - a).square().sum()}

    def validation(self, batch):
        return torch.rand(()) + self.networks['a'].weight.abs().sum()

learner = Own()
loop = Loop(learner, Numbers(), Running(budget=Budget(minutes=0.03), devices=2, interval=3), checks=Numbers())
loop.run()
found = {'step': loop.step, 'best': loop.best.score, 'a': learner.networks['a'].weight.item()}
open(f'{sys.argv[1]}/{loop.fabric.global_rank}.json', 'w').write(json.dumps(found))
"""


@pytest.mark.parametrize(
    ('device', 'devices', 'nodes', 'asked'),
    [('cuda:2', 1, 1, [2]), ('cuda:0', 4, 1, 4), ('cuda:0', 1, 2, 1), ('cpu', 2, 1, 2), ('cpu', 1, 1, 1)],
)
def test_several_processes_have_a_card_each(monkeypatch, device, devices, nodes, asked):
    import lightning_fabric

    from bidsharm.training.loop import _fabric

    given = {}

    class Fake:
        def __init__(self, **options):
            given.update(options)

        def launch(self):
            given['launched'] = True

    monkeypatch.setattr(lightning_fabric, 'Fabric', Fake)
    _fabric(Running(device=device, devices=devices, nodes=nodes))
    assert given['devices'] == asked
    assert ('launched' in given) == (devices * nodes > 1)


def test_processes_stop_together_and_have_the_same_weights(tmp_path):
    import json
    import os
    import subprocess
    import sys
    from pathlib import Path

    script = tmp_path / 'two.py'
    script.write_text(PROCESSES)
    where = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, 'PYTHONPATH': where}, timeout=300, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2))
    assert first == second
    assert first['step'] > 3


def test_stages_share_the_budget():
    learner = Two()
    learner.stages = (Stage('warm', 1), Stage('long', 3))
    run(learner, steps=8)
    assert learner.stage_names == ['warm', 'long']


def test_a_loss_that_is_no_number_ends_it_and_the_checkpoint_stays(tmp_path):
    with pytest.raises(TrainingFailed, match='"pull" of the first is not a number at step 7') as caught:
        run(Two(broken_at=7), tmp_path, interval=5)
    assert 'step 5' in caught.value.fix
    state = torch.load(tmp_path / 'checkpoint.pt', weights_only=True)
    assert state['step'] == 5
    assert all(torch.isfinite(value).all() for value in state['networks'].values())


def test_the_best_validation_is_kept_and_patience_ends_it(tmp_path):
    learner = Two()
    loop = Loop(
        learner,
        Numbers(),
        Running(folder=tmp_path, budget=Budget(500), interval=1, patience=5),
        checks=Numbers(),
    )
    loop.run()
    assert loop.step < 100  # a passes 1.5 after a few steps, and five more did not do better
    assert learner.networks['a'].weight.item() == pytest.approx(1.5, abs=0.06)


def test_the_average_of_the_weights_lags_behind(tmp_path):
    learner = Two()
    learner.average = 0.99
    loop = Loop(learner, Numbers(), Running(budget=Budget(30)))
    raw = []
    inner = learner.losses

    def losses(batch, stage):
        yield from inner(batch, stage)
        raw.append(learner.networks['a'].weight.item())

    learner.losses = losses
    loop.run()
    assert 1 < learner.networks['a'].weight.item() < raw[-1]


def test_log_and_pictures(tmp_path):
    run(Two(), tmp_path, steps=7, interval=3)
    with (tmp_path / 'log.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['step'] for row in rows] == ['3', '6', '7']
    pulls = [float(row['first/pull']) for row in rows]
    assert pulls[0] > pulls[1] > pulls[2]
    assert sorted(path.name for path in (tmp_path / 'examples').iterdir()) == [
        f'step-{step:07d}.png' for step in (3, 6, 7)
    ]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run(Two(), tmp_path, steps=4, interval=2)
    other = Two()
    other.networks['a'] = nn.Linear(3, 1)
    with pytest.raises(TrainingFailed, match='another network'):
        run(other, tmp_path)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath('ran').touch, ())

    torch.save({'step': Evil()}, tmp_path / 'checkpoint.pt')
    with pytest.raises(TrainingFailed, match='cannot be read'):
        run(Two(), tmp_path)
    assert not (tmp_path / 'ran').exists()


def test_people_are_divided_the_same_way_each_time():
    people = [f'{number:02d}' for number in range(20)]
    some, others = hold_out(people, 0.1, 5)
    assert (len(some), len(others)) == (18, 2)
    assert sorted([*some, *others]) == people
    assert hold_out(people, 0.1, 5) == (some, others)
    assert hold_out(['a', 'b'], 0.5, 0) == (['a', 'b'], [])


def scanned(person, site, contrast):
    one = np.zeros((2, 2, 2), np.float32)
    return TrainingVolume(one, one > 1, f'{person}{site}{contrast}', person, '', site, contrast)


def test_a_part_keeps_the_numbers_of_the_whole():
    data = TrainingSet(
        [scanned(p, s, c) for p, s, c in [('1', 'A', 'T1w'), ('2', 'B', 'FLAIR'), ('3', 'C', 'T1w')]]
    )
    part = data.of(['3'])
    assert (part.sites, part.contrasts) == (('C',), ('T1w',))
    assert (part.all_sites, part.all_contrasts) == (('A', 'B', 'C'), ('FLAIR', 'T1w'))
    assert part.of(['3']).all_sites == ('A', 'B', 'C')
    assert int(AnyScan(part, Whole(), batch=1).site(part.volumes[0])) == 2
    volume = part.volumes[0]
    images, present, _ = Visits(part, Whole(), batch=1, least=1)._stack(
        {'T1w': volume}, Whole().choose(volume.mask, np.random.default_rng(0)), False
    )
    assert images.shape[0] == 2
    assert present.tolist() == [0, 1]


@pytest.mark.parametrize('seed', range(8))
def test_nobody_is_held_out_who_alone_was_at_a_site_or_has_a_contrast(seed):
    rows = [(str(n), 'A', 'T1w') for n in range(6)] + [('b', 'B', 'T1w'), ('f', 'A', 'FLAIR')]
    data = TrainingSet([scanned(*row) for row in rows])
    some, others = data.hold_out(0.5, seed)
    assert sorted([*some, *others]) == sorted(data.people)
    assert {'b', 'f'} <= set(some)
    assert data.of(some).sites == data.sites
    assert others


def test_batches_are_drawn_meanwhile_only_where_a_core_is_free(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from bidsharm.training import loop

    cpu, gpu = torch.device('cpu'), torch.device('cuda')
    threads = torch.get_num_threads()
    monkeypatch.setattr(loop, 'available_cores', lambda: threads)
    assert not isinstance(loop._drawing(cpu), ThreadPoolExecutor)
    assert isinstance(loop._drawing(gpu), ThreadPoolExecutor)
    monkeypatch.setattr(loop, 'available_cores', lambda: threads + 1)
    assert isinstance(loop._drawing(cpu), ThreadPoolExecutor)
    with loop._drawing(cpu) as drawing:
        assert drawing.submit(max, 2, 3).result() == 3


def test_batches_of_a_step_do_not_wait_for_each_other_in_memory():
    """Each batch's gradients are gathered before the next batch is worked on, so no two graphs are alive at once."""

    class Watched(Two):
        log: ClassVar[list[str]] = []

        def losses(self, batch, stage):
            a = self.networks['a'].weight
            self.log.append('forward')
            loss = (a - 3).square().sum()
            loss.register_hook(lambda grad: self.log.append('backward'))
            yield 'first', {'pull': loss}

    learner = Watched()
    run(learner, steps=2, accumulate=3)
    assert learner.log == ['forward', 'backward'] * 6


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    def train(steps, **about):
        running = Running(folder=tmp_path, budget=Budget(steps), interval=2)
        loop = Loop(Two(), Numbers(), running, about={'target': 'A', 'seed': '0'} | about)
        loop.run()
        return loop

    train(4)
    assert train(6).step == 6
    with pytest.raises(TrainingFailed, match=r'another training\. What differs: target, seed') as caught:
        train(8, target='B', seed='1')
    assert 'remove checkpoint.pt' in caught.value.fix
    (tmp_path / 'checkpoint.pt').unlink()
    train(2, target='B')
    with (tmp_path / 'log.csv').open() as file:
        assert [row['step'] for row in csv.DictReader(file)] == ['2']  # nothing of the one before
