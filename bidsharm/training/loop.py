"""The training loop of every method: optimizers in turn, stages, averages of weights, checkpoints that resume, an early end.

The loop knows nothing of a method but :class:`Learner`. A step draws its batch and its random numbers from the seed and the number of the
step, so an interrupted training that goes on ends in the same place as one that was not. Lightning Fabric brings devices, precision
and processes; gradients of several processes are averaged here, because adversarial methods move their networks in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bidsharm.errors import BidsharmError
from bidsharm.machine import available_cores
from bidsharm.training.options import Player, Running, Stage
from bidsharm.training.records import Best, TrainingLog, read_checkpoint, write_checkpoint
from bidsharm.training.regimes import Batch, Sampler

T = TypeVar('T')
Progress = Callable[[int, int, str], None]
#: For each optimizer in turn its losses, which are added up.
Losses = Iterator[tuple[str, Mapping[str, Tensor]]]


class TrainingFailed(BidsharmError):
    """A training cannot go on; what it had reached at its last checkpoint is kept."""


class Learner(Protocol):
    """What the loop needs of a method."""

    networks: nn.ModuleDict
    #: Set by the loop: draws another batch of the step, for methods that need more than one.
    more: Callable[[], Batch]
    #: Set by the loop: the part of the training that is over, from 0 to 1, for weights of losses that change.
    done: float

    @property
    def players(self) -> Mapping[str, Player]:
        """The optimizers, and which networks each of them moves."""

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages of the training."""

    @property
    def average(self) -> float:
        """Decay of the average of the weights; 0 for none."""

    def losses(self, batch: Batch, stage: str) -> Losses:
        """Yield a player and its losses; between two of them the first one has moved."""

    def begin(self, stage: str) -> None:
        """Prepare for a stage: freeze what is frozen in it."""

    def validation(self, batch: Batch) -> Tensor | None:
        """Return how bad a batch of validation is; None where a method has no such number."""

    def preview(self, batch: Batch) -> Sequence[Tensor]:
        """Return images to look at, each (B, C, ...), side by side: what goes in, what comes out."""


class Loop:
    """Trains one method.

    Parameters
    ----------
    learner
        The method.
    sampler
        Draws batches to train on.
    running
        Where and how.
    checks
        Draws batches of people who are not trained on; None for no validation.
    progress
        Told the step, the last step (100 parts where the budget is a time) and a few words.
    origin
        What the weights are at the start: the digest of a model; empty where they are random.
    about
        What tells this training from others, by name: a checkpoint that says otherwise is not gone on from.
    """

    def __init__(
        self,
        learner: Learner,
        sampler: Sampler,
        running: Running,
        *,
        checks: Sampler | None = None,
        progress: Progress | None = None,
        origin: str = '',
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.origin, self.about = origin, dict(about or {})
        self.learner, self.sampler, self.running, self.checks = learner, sampler, running, checks
        self.progress = progress
        self.fabric = _fabric(running)
        self.device = self.fabric.device
        learner.networks.to(self.device)
        self.optimizers = {
            name: self.fabric.setup_optimizers(
                _optimizer(player, learner.networks, fused=not self._scales_losses)
            )
            for name, player in learner.players.items()
        }
        self.means = {name: value.detach().clone() for name, value in learner.networks.state_dict().items()}
        self.step, self.seconds, self.stage, self.begun = 0, 0.0, '', False
        self.best = Best()
        self.log = TrainingLog(running.folder if self.fabric.global_rank == 0 else None)

    # --- The whole training ---

    def run(self) -> None:
        """Train until the budget is spent; leave the averaged (or best) weights in the networks.

        Raises
        ------
        TrainingFailed
            If a loss is not a number.
        """
        self._resume()
        started, before = time.monotonic(), self.seconds
        with _drawing(self.device) as ahead:
            coming = ahead.submit(self._batches, self.step)
            while (done := self._done()) < 1 and not self._tired():
                batches = coming.result()
                coming = ahead.submit(self._batches, self.step + 1)
                self._enter(done)
                self._take_step(batches, done)
                self.step += 1
                self.seconds = before + time.monotonic() - started
                if self.running.budget.minutes:
                    self.seconds = self._agreed(self.seconds)
                if self.step % self.running.interval == 0 or self._done() >= 1:
                    self._pause()
        self._finish()

    def _agreed(self, value: T) -> T:
        """Return what the first process says, for all to stop, to go on and to choose at the same step."""
        if self.fabric.world_size == 1:
            return value
        agreed: T = self.fabric.broadcast(value)
        return agreed

    def _done(self) -> float:
        return self.running.budget.done(self.step, self.seconds)

    def _tired(self) -> bool:
        last = self.stage == self.learner.stages[-1].name  # earlier stages have others that need their share
        return last and bool(self.running.patience) and self.best.waiting >= self.running.patience

    def _enter(self, done: float) -> None:
        """Begin the stage that this part of the training belongs to, from the best weights of the one before."""
        shares = np.cumsum([stage.share for stage in self.learner.stages])
        index = int(np.searchsorted(shares / shares[-1], done, side='right'))
        stage = self.learner.stages[min(index, len(shares) - 1)].name
        if stage == self.stage and self.begun:
            return
        if stage != self.stage and self.best.weights:
            # Validations of two stages may measure different things, and best weights of an early one lack what later ones learn.
            self.learner.networks.load_state_dict(self.best.weights)
            self.means = _copy(self.best.weights)
            self.best = Best()
        self.stage, self.begun = stage, True
        self.learner.networks.train()
        self.learner.begin(stage)

    def _batches(self, step: int) -> list[Batch]:
        """Draw the batches of a step."""
        seeds = (self.running.seed, self.fabric.global_rank, step)
        rng, sampler = np.random.default_rng(seeds), self._sampler_of(step)
        return [sampler.draw(rng) for _ in range(self.running.accumulate)]

    def _sampler_of(self, step: int) -> Sampler:
        return self.sampler.seeing(step // self.running.renew) if self.running.renew else self.sampler

    # --- One step ---

    def _take_step(self, batches: Sequence[Batch], done: float) -> None:
        torch.manual_seed(hash((self.running.seed, self.fabric.global_rank, self.step)) % 2**62)
        extra = np.random.default_rng((self.running.seed, self.fabric.global_rank, self.step, 1))
        self.learner.done = done
        sampler = self._sampler_of(self.step)
        self.learner.more = lambda: self._moved(sampler.draw(extra))
        with self.fabric.autocast(), _casts_anew():
            # All batches take the same turn before anything moves, as if they were one.
            going = [self.learner.losses(self._moved(batch), self.stage) for batch in batches]
            while players := [player for player in map(self._take_turn, going) if player]:
                with _outside_autocast(self.device):
                    for player in dict.fromkeys(players):
                        self._move(player, done)
        self._average()

    def _take_turn(self, losses: Iterator[tuple[str, Mapping[str, Tensor]]]) -> str:
        """Add the gradients of one batch's turn, so that only one batch's activations are in memory; return whose turn it was."""
        turn = next(losses, None)
        if turn is None:
            return ''
        with _outside_autocast(self.device):
            self._collect(*turn)
        return turn[0]

    def _collect(self, player: str, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of one batch."""
        total = torch.stack([loss.float() for loss in losses.values()]).sum() / self.running.accumulate
        if not torch.isfinite(total):
            bad = [name for name, loss in losses.items() if not torch.isfinite(loss)]
            self._stop(f'The loss "{", ".join(bad) or "sum"}" of the {player} is not a number')
        # Only the player's own weights collect gradients, though losses may depend on those of others.
        self.fabric.backward(total, inputs=self._weights_of(player))
        self.log.add({f'{player}/{name}': float(loss.detach()) for name, loss in losses.items()})

    def _move(self, player: str, done: float) -> None:
        """Let a player's optimizer take its step."""
        settings, optimizer = self.learner.players[player], self.optimizers[player]
        self._share_gradients(player)
        for group in optimizer.param_groups:
            group['lr'] = settings.rate * settings.schedule(done) * group['factor']
        if settings.clip:
            # Fabric takes the scale of half precision out of the gradients before it measures them.
            norm = self.fabric.clip_gradients(
                self.learner.networks, optimizer, max_norm=settings.clip, error_if_nonfinite=False
            )
        else:
            slopes = [weight.grad for weight in self._weights_of(player) if weight.grad is not None]
            norm = nn.utils.get_total_norm(slopes)
        if not torch.isfinite(norm) and not self._scales_losses:
            self._stop(f'A gradient of the {player} is not a number')
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @property
    def _scales_losses(self) -> bool:
        """Whether losses are scaled for half precision, whose optimizers leave a step out where the scale was too large."""
        return getattr(self.fabric.strategy.precision, 'scaler', None) is not None

    def _weights_of(self, player: str) -> list[nn.Parameter]:
        groups = self.optimizers[player].param_groups
        return [weight for group in groups for weight in group['params'] if weight.requires_grad]

    def _share_gradients(self, player: str) -> None:
        if self.fabric.world_size == 1:
            return
        weights = self._weights_of(player)
        # A weight that no process has a gradient for does not move, as in a single process.
        found = torch.tensor(
            [weight.grad is not None for weight in weights], dtype=torch.float32, device=self.device
        )
        for weight, count in zip(
            weights, self.fabric.all_reduce(found, reduce_op='sum').tolist(), strict=True
        ):
            if count:
                slope = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = self.fabric.all_reduce(slope, reduce_op='mean')

    def _stop(self, what: str) -> None:
        kept = self.step - self.step % self.running.interval
        raise TrainingFailed(
            f'{what} at step {self.step}.',
            where=str(self.running.folder or ''),
            fix=f'The checkpoint of step {kept} is kept. Lower the learning rate (--set rate=...), or look at the scans.',
        )

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.learner.average, (1 + self.step) / (10 + self.step)) if self.learner.average else 0.0
        if not keep:
            return
        for name, value in self.learner.networks.state_dict().items():
            if value.is_floating_point():
                self.means[name].lerp_(value, 1 - keep)
            else:
                self.means[name].copy_(value)

    def _moved(self, batch: Batch) -> Batch:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    # --- Between steps ---

    def _pause(self) -> None:
        """Validate, write the log, a picture and a checkpoint, and tell the progress."""
        score = self._validate()
        self.best.see(score, self.step, lambda: _copy(self._weights()))
        self.log.write(self.step, self.seconds, self.stage, score)
        if self.fabric.global_rank == 0 and self.running.folder is not None:
            self._picture()
            write_checkpoint(self.running.folder, self._state())
        if self.progress is not None:
            budget = self.running.budget
            total = budget.steps if budget.steps and not budget.minutes else 100
            at = self.step if total != 100 else round(100 * self._done())
            self.progress(at, total or 100, self.log.words())

    @torch.no_grad()
    def _validate(self) -> float | None:
        if self.checks is None:
            return None
        with self._averaged():
            self.learner.networks.eval()
            torch.manual_seed(hash((self.running.seed, 3)) % 2**62)  # methods may draw in their validation
            rng = np.random.default_rng((self.running.seed, 3))
            scores = [self.learner.validation(self._moved(self.checks.draw(rng))) for _ in range(4)]
            self.learner.networks.train()
        found = [float(score) for score in scores if score is not None]
        return self._agreed(float(np.mean(found)) if found else None)

    @torch.no_grad()
    def _picture(self) -> None:
        sampler = self.checks or self.sampler
        batch = self._moved(sampler.draw(np.random.default_rng((self.running.seed, 5))))
        with self._averaged():
            self.learner.networks.eval()
            self.log.picture(self.step, self.learner.preview(batch))
            self.learner.networks.train()

    def _averaged(self) -> _Swapped:
        return _Swapped(self.learner.networks, self._weights())

    def _weights(self) -> Mapping[str, Tensor]:
        return self.means if self.learner.average else self.learner.networks.state_dict()

    def _finish(self) -> None:
        self.learner.networks.load_state_dict(self.best.weights or dict(self._weights()))
        self.learner.networks.eval()

    # --- Checkpoints ---

    def _state(self) -> dict[str, Any]:
        return {
            'step': self.step, 'seconds': self.seconds, 'stage': self.stage, 'networks': self.learner.networks.state_dict(), 'means': self.means,
            'optimizers': {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}, 'origin': self.origin,
            'about': self.about, 'precision': self.fabric.strategy.precision.state_dict(), **self.best.state(),
        }  # fmt: skip

    def _resume(self) -> None:
        try:
            state = read_checkpoint(self.running.folder, self.device)
        except ValueError as error:
            raise TrainingFailed(
                f'The checkpoint cannot be read ({str(error).splitlines()[0]}).', where=str(self.running.folder),
                fix='Remove checkpoint.pt to begin anew.',
            ) from None  # fmt: skip
        if state is None:
            self.log.drop_after(0)
            return
        self._refuse_another(state)
        try:
            self.learner.networks.load_state_dict(state['networks'])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state['optimizers'][name])
            self.means, self.step, self.seconds = (
                dict(state['means']),
                int(state['step']),
                float(state['seconds']),
            )
            self.best, self.stage = Best.of(state), str(state['stage'])
            self.fabric.strategy.precision.load_state_dict(state.get('precision') or {})
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise TrainingFailed(
                f'The checkpoint is of another network ({str(error).splitlines()[0]}).',
                where=str(self.running.folder), fix='Give another folder, or the settings that it was made with.',
            ) from None  # fmt: skip
        self.log.drop_after(self.step)

    def _refuse_another(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that belongs to another training, though its weights may fit."""
        if state.get('origin', '') != self.origin:
            raise TrainingFailed(
                'The checkpoint is of another training: it started from '
                + ('another model.' if state.get('origin') else 'no model.'),
                where=str(self.running.folder), fix='Give another folder, or --from as it was.',
            )  # fmt: skip
        known = dict(state.get('about') or {})
        if odd := [name for name, value in self.about.items() if known.get(name, value) != value]:
            raise TrainingFailed(
                f'The checkpoint is of another training. What differs: {", ".join(odd)}.', where=str(self.running.folder),
                fix='Give another folder, or remove checkpoint.pt to begin anew.',
            )  # fmt: skip


class _Now(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Return what a function returns, as a future."""
        found: Future[T] = Future()
        found.set_result(fn(*args, **kwargs))
        return found


def _drawing(device: torch.device) -> Executor:
    """Return what draws batches: a thread of its own, unless the networks keep all cores busy, where it would only be in their way."""
    busy = device.type == 'cpu' and torch.get_num_threads() >= available_cores()
    return _Now() if busy else ThreadPoolExecutor(1)


class _Swapped:
    """Other weights in the networks for the time of a block."""

    def __init__(self, networks: nn.ModuleDict, weights: Mapping[str, Tensor]) -> None:
        self.networks, self.weights = networks, weights

    def __enter__(self) -> None:
        self.own = _copy(self.networks.state_dict())
        self.networks.load_state_dict(dict(self.weights))

    def __exit__(self, *error: object) -> None:
        self.networks.load_state_dict(self.own)


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


@contextmanager
def _casts_anew() -> Iterator[None]:
    """Cast weights each time they are used: between two turns of a step they move, and torch would go on with the casts it has."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _outside_autocast(device: torch.device) -> Any:
    """Backward and optimizer steps happen in full precision."""
    return torch.autocast(device.type, enabled=False) if device.type in ('cpu', 'cuda') else nullcontext()


def _optimizer(player: Player, networks: nn.ModuleDict, *, fused: bool) -> torch.optim.Optimizer:
    """Return a player's optimizer; fused ones take their steps in one go, but cannot be clipped where losses are scaled."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name in player.networks:
        groups.setdefault(player.factors.get(name, 1.0), []).extend(networks[name].parameters())
    return torch.optim.AdamW(
        [{'params': weights, 'factor': factor} for factor, weights in groups.items()],
        lr=player.rate, betas=player.betas, weight_decay=player.weight_decay, fused=fused,
    )  # fmt: skip


def _fabric(running: Running) -> Any:
    import warnings

    from lightning_fabric import Fabric

    # Not every job on a cluster is one of several that srun has started.
    warnings.filterwarnings('ignore', message='The `srun` command is available')

    accelerator, _, index = running.device.partition(':')
    many = running.devices * running.nodes > 1
    # Several processes have a card each, whichever one was found for a single process.
    devices: Any = [int(index)] if index and not many else running.devices
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, num_nodes=running.nodes, precision=running.precision,
            strategy='ddp' if many else 'auto',
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise TrainingFailed(
            f'The processes could not be set up: {error}', where='--devices, --nodes, --device',
            fix='With srun give --nodes and --ntasks-per-node; they must equal --nodes and --devices.',
        ) from None  # fmt: skip
    if many:
        fabric.launch()
    return fabric
