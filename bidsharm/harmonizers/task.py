"""The contract for methods that answer a question instead of handing back an image, and the base of those that train networks for it.

Such a method predicts age, a diagnosis or a segmentation, from features that shall not tell the scanner. What it hands back is a prediction and the
features (the embedding). Reading labels, dividing people into folds and writing results is not the method's business.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import MissingNeed, UsageError
from bidsharm.harmonizers.building import restored_networks, untrained_networks
from bidsharm.harmonizers.contract import (
    NEED_PHRASES,
    Execution,
    FitReport,
    HarmonizationMethod,
    Progress,
)
from bidsharm.harmonizers.execution import TileSettings, memory_ladder, with_memory_ladder
from bidsharm.harmonizers.network_settings import NetworkSettings
from bidsharm.harmonizers.presets import changed_preset, stored

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player, Running, Stage
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet, TrainingVolume

Kind = Literal['regression', 'classification', 'segmentation']
#: What is known of scans, by their names: a number, or the name of a class.
Truth = Mapping[str, float | str | None]


@dataclass(frozen=True)
class Task:
    """What is predicted.

    Parameters
    ----------
    kind
        A number, one of several classes, or a label for each voxel.
    name
        Column of participants.tsv, or ``dseg``.
    classes
        Of a classification in order; of a segmentation the names of the labels 1, 2, ...
    values
        Of a segmentation: what stands for these labels in files; 0 for one that is not told from the background there.
    """

    kind: Kind
    name: str
    classes: tuple[str, ...] = ()
    values: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        """Numbers that a network says: for a segmentation per voxel, with the background first."""
        return {'regression': 1, 'classification': len(self.classes)}.get(self.kind, len(self.classes) + 1)


@dataclass(frozen=True)
class Prediction:
    """What a method says of one scan.

    Parameters
    ----------
    embedding
        Features from which the answer is made, shape (E,).
    value
        Of a regression, in units of its column; NaN otherwise.
    shares
        Of a classification: the probability of each class, shape (classes,).
    labels
        Of a segmentation: 0 background, 1, 2, ... the classes; shape (X, Y, Z) of the volume, uint8.
    """

    embedding: NDArray[np.float32]
    value: float = float('nan')
    shares: NDArray[np.float32] | None = None
    labels: NDArray[np.uint8] | None = None


class TaskMethod(HarmonizationMethod):
    """A method that predicts something of a volume."""

    #: Kinds of tasks that it can be trained for.
    kinds: ClassVar[tuple[Kind, ...]] = ('regression', 'classification')

    @abstractmethod
    def fit(
        self,
        data: TrainingSet,
        truth: Truth,
        *,
        task: Task,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FitReport:
        """Learn to predict.

        Parameters
        ----------
        data
            Volumes on one grid; for a segmentation their ``tissue`` holds the labels.
        truth
            Answers by name of the scan; for a segmentation the scans named here (with any value) are those whose labels may be learnt from.
            Scans without an answer take part in making features alike.
        task
            What is predicted.
        seed, progress
            As in the contract of volumes.

        Raises
        ------
        MissingNeed
            If the scans do not offer what the card says is needed.
        UsageError
            If the method cannot be trained for this kind of task.
        """

    @abstractmethod
    def predict(self, volume: TrainingVolume) -> Prediction:
        """Return what the method says of a volume on the grid that it was trained on."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings(NetworkSettings):
    """Settings that all task networks have.

    Parameters
    ----------
    widths, convs
        Channels of the levels of the encoder of scalar tasks, and convolutions in each (Dinsdale et al. 2021).
    code, hidden
        Length of its code, and of the hidden layer of each head.
    levels
        Channels of the levels of the U-Net of segmentations.
    edge
        Edge of the patches of a segmentation, in voxels; 0 for whole volumes. Scalar tasks always see whole volumes.
    """

    voxel_mm: float = 2.0
    widths: tuple[int, ...] = (32, 64, 64, 96, 96, 96)
    convs: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    code: int = 96
    hidden: int = 32
    levels: tuple[int, ...] = (16, 32, 64, 128)
    edge: int = 0
    batch: int = 16
    steps: int = 20_000
    rate: float = 1e-4
    hold_out: float = 0.15


class TrainedTask(TaskMethod):
    """A task method whose networks are trained by the loop that all methods share.

    A method defines :meth:`build`, :meth:`losses` and, where they are not the usual ones, :attr:`players`, :meth:`read` and :meth:`sampler`.
    """

    Preset: ClassVar[type[TaskSettings]] = TaskSettings
    #: What changes for segmentations: finer voxels, in patches.
    segmenting: ClassVar[Mapping[str, Any]] = {'voxel_mm': 1.0, 'edge': 64, 'batch': 4}
    #: What the ``tiny`` preset changes.
    tiny: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 8.0, 'widths': (8, 16, 16), 'convs': (1, 1, 1), 'code': 16, 'hidden': 16, 'batch': 8, 'steps': 120, 'rate': 3e-3,
    }  # fmt: skip
    #: What it changes for segmentations.
    tiny_segmenting: ClassVar[Mapping[str, Any]] = {
        'voxel_mm': 4.0, 'levels': (8, 16, 16), 'edge': 32, 'batch': 2, 'steps': 160, 'rate': 5e-3, 'hidden': 16,
    }  # fmt: skip
    more: Callable[[], Batch]
    done: float = 0.0

    def __init__(self, execution: Execution | None = None, settings: TaskSettings | None = None) -> None:
        super().__init__(execution)
        self.settings: Any = settings or self.Preset()
        self.networks: nn.ModuleDict
        self.task = Task('regression', '')
        self.sites: tuple[str, ...] = ()
        #: Sites whose answers were learnt from.
        self.labelled_sites: tuple[str, ...] = ()
        self.contrasts: tuple[str, ...] = ()
        #: Mean and standard deviation of the answers of a regression; networks see standardized ones.
        self.unit = (0.0, 1.0)
        self._trained = False

    @classmethod
    def preset(cls, name: str = 'paper', kind: Kind = 'regression', **changes: Any) -> TaskSettings:
        """Return settings by name for a kind of task, with some of them changed.

        Raises
        ------
        UsageError
            For an unknown name or setting.
        """
        usual, tiny = cls.Preset(), cls.tiny
        if kind == 'segmentation':
            usual, tiny = replace(usual, **cls.segmenting), cls.tiny_segmenting
        return changed_preset(usual, name, tiny, changes, method=cls.card.name)

    # --- What a method says ---

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """Return the networks by name; ``self.task`` and ``self.sites`` are known."""

    @property
    @abstractmethod
    def players(self) -> Mapping[str, Player]:
        """The optimizers, and which networks each of them moves."""

    @abstractmethod
    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield each player with its losses in turn; between two of them the first one has moved."""

    def before(self, image: Tensor, site: str) -> Tensor:
        """Return a whole scan, shape (1, 1, X, Y, Z), as the networks shall read it; as it is by default."""
        del site
        return image

    def sampler(self, data: TrainingSet, truth: Truth) -> Sampler:
        """Return what draws batches."""
        from bidsharm.training.labelled import Labelled

        s = self.settings
        answers = None if self.task.kind == 'segmentation' else self.coded(truth)
        return Labelled(
            data,
            self.view(),
            batch=s.batch,
            answers=answers,
            labelled=[*truth],
            sites=self.sites,
            flip=s.flip,
        )

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages of the training, one by default."""
        from bidsharm.training.options import Stage

        return (Stage(),)

    @property
    def average(self) -> float:
        """Decay of the average of the weights."""
        return self.settings.average

    def begin(self, stage: str) -> None:
        """Prepare for a stage."""
        del stage

    def validation(self, batch: Batch) -> Tensor | None:
        """Return the loss of the task on people who are not trained on."""
        return self.task_loss(self.read(batch['x'])[0], batch)

    def preview(self, batch: Batch) -> Sequence[Tensor]:
        """Return scans and, of a segmentation, what is said of them."""
        if self.task.kind != 'segmentation':
            return [batch['x']]
        found = self.read(batch['x'])[0].argmax(dim=1, keepdim=True).float()
        return [batch['x'], found / max(len(self.task.classes), 1)]

    # --- For methods ---

    def view(self) -> View:
        """Return whole volumes, or patches of segmentations."""
        from bidsharm.training.views import Patches, Whole

        if self.task.kind == 'segmentation' and self.settings.edge:
            return Patches(self.settings.edge)
        return Whole()

    def coded(self, truth: Truth) -> dict[str, float | int | None]:
        """Return answers as networks see them: standardized numbers, or numbers of classes."""
        if self.task.kind == 'regression':
            mean, spread = self.unit
            return {k: None if v is None else (float(v) - mean) / spread for k, v in truth.items()}
        return {k: None if v is None else self.task.classes.index(str(v)) for k, v in truth.items()}

    def task_loss(self, said: Tensor, batch: Batch, truth: str = 'truth') -> Tensor:
        """Return the loss of the answers that are known: squares, cross-entropy, or cross-entropy and Dice of voxels.

        Parameters
        ----------
        said
            Of the networks.
        batch
            Holds what is asked for and, for some samplers, which of it is ``known``.
        truth
            Name of what is asked for.
        """
        import torch
        from torch.nn.functional import cross_entropy

        from bidsharm.nn.losses import soft_dice

        wanted = batch[truth]
        if 'known' in batch:
            some = batch['known'] > 0
            said, wanted = said[some], wanted[some]
        if not len(said):
            return said.sum()
        if self.task.kind == 'regression':
            return torch.nn.functional.mse_loss(said[:, 0], wanted.to(said))
        if self.task.kind == 'classification':
            return cross_entropy(said, wanted)
        return cross_entropy(said, wanted) + soft_dice(said, wanted)

    def backbone(self) -> tuple[nn.Module, nn.Module, int]:
        """Return the usual network, its head, and the length of its embedding.

        Of scalar tasks the encoder of Dinsdale et al. (2021) and a hidden layer; of segmentations a U-Net (whose last layer is a part of it).
        """
        from torch import nn

        from bidsharm.nn.task import Head, VolumeEncoder
        from bidsharm.nn.unet import UNet

        s = self.settings
        if self.task.kind == 'segmentation':
            net = UNet(
                dims=3, out_channels=self.task.outputs, widths=s.levels, convs=2, order='conv-norm-act'
            )
            return net, nn.Identity(), s.levels[-1]
        return VolumeEncoder(s.widths, s.convs, s.code), Head(s.code, s.hidden, self.task.outputs), s.code

    def backbone_and_domain(self) -> dict[str, nn.Module]:
        """Return the usual network and its head, and a classifier that tells the site from the embedding."""
        from bidsharm.nn.discriminators import LatentClassifier

        encoder, head, code = self.backbone()
        domain = LatentClassifier(code, len(self.sites), self.settings.hidden)
        return {'encoder': encoder, 'head': head, 'domain': domain}

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the networks say of images, shape (B, outputs) or (B, outputs, X, Y, Z), and the embedding, shape (B, E).

        By default that of networks named ``encoder`` and ``head``; the embedding of a U-Net is the mean of its bottleneck.
        """
        from bidsharm.nn.unet import UNet

        encoder, head = self.networks['encoder'], self.networks['head']
        if self.task.kind != 'segmentation':
            code = encoder(x)
            return head(code), code
        assert isinstance(encoder, UNet)
        levels = encoder.encode(x)
        return encoder.decode(levels, x), levels[-1].flatten(2).mean(dim=2)

    # --- Training ---

    def fit(
        self,
        data: TrainingSet,
        truth: Truth,
        *,
        task: Task,
        seed: int = 0,
        progress: Progress | None = None,
        running: Running | None = None,
    ) -> FitReport:
        """Train the networks; see the contract. ``running`` says where and how."""
        import torch

        from bidsharm.training.growing import grown
        from bidsharm.training.loop import Loop
        from bidsharm.training.options import Budget, Running

        truth = {name: value for name, value in truth.items() if value is not None}
        self.check_offers(data, truth, task)
        self.labelled_sites = tuple(sorted({one.site for one in data.volumes if one.name in truth}))
        if running is None:
            running = Running(device=self.execution.device, seed=seed, budget=Budget(self.settings.steps))
        torch.manual_seed(running.seed)
        self.networks = self.untrained(data, task)
        self._learn_unit(truth)
        some, others = data.hold_out(self.settings.hold_out, running.seed)
        rest, kept = self._part(data, truth, others), self._part(data, truth, some)
        if rest is None or kept is None:
            kept, rest = (data, truth), None
        checks = self.sampler(*rest) if rest else None
        sampler = self.sampler(*kept)
        sampler.augmentation = self.settings.augmentation
        learner = grown(self, sampler, self.settings.halvings)
        Loop(learner, sampler, running, checks=checks, progress=progress).run()
        self._trained = True
        return FitReport(
            tuple(volume.name for volume in data.volumes), {'validation': sorted(others) if rest else []}
        )

    def untrained(self, data: TrainingSet, task: Task) -> nn.ModuleDict:
        """Return networks for a task and the sites of volumes, which need not have been read yet.

        Raises
        ------
        UsageError
            If the settings make none.
        """
        self.task, self.sites, self.contrasts = task, data.sites, data.contrasts
        return untrained_networks(self.build, self.card.name)

    def _part(
        self, data: TrainingSet, truth: Truth, people: Sequence[str]
    ) -> tuple[TrainingSet, Truth] | None:
        """Return the scans of some people and their answers; None where they do not offer what is needed."""
        part = data.of(people)
        names = {volume.name for volume in part.volumes}
        answers = {name: value for name, value in truth.items() if name in names}
        if not self._offers(part, answers).issuperset(self.card.needs_fit):
            return None
        return part, answers

    def _learn_unit(self, truth: Truth) -> None:
        if self.task.kind != 'regression':
            return
        values = np.array([float(value) for value in truth.values() if value is not None])
        self.unit = (float(values.mean()), float(values.std()) or 1.0)

    def check_offers(self, data: TrainingSet, truth: Truth, task: Task) -> None:
        """Refuse scans and tasks that the method cannot be trained on; raises as :meth:`fit`."""
        if task.kind not in self.kinds:
            raise UsageError(
                f'{self.card.name} cannot be trained for a {task.kind}.', where='--task', fix=f'It can: {", ".join(self.kinds)}.',
            )  # fmt: skip
        if task.kind != 'regression' and len(task.classes) < (2 if task.kind == 'classification' else 1):
            raise UsageError(
                f'The task "{task.name}" has {len(task.classes)} classes, which is nothing to tell apart.', where='--task',
                fix='Choose a column with two or more values.',
            )  # fmt: skip
        offered = self._offers(data, truth)
        for need in self.card.needs_fit:
            if need not in offered:
                raise MissingNeed(f'{self.card.name} needs {NEED_PHRASES[need]}, which is not there.')

    @staticmethod
    def _offers(data: TrainingSet, truth: Truth) -> frozenset[str]:
        named = {volume.name for volume in data.volumes if truth.get(volume.name) is not None}
        sites = {volume.site for volume in data.volumes if volume.name in named}
        found = {
            'answers': bool(named),
            'two_sites': len(data.sites) > 1,
            'answers_of_two_sites': len(sites) > 1,
            'site_without_answers': bool(set(data.sites) - sites),
        }
        return frozenset(name for name, there in found.items() if there)

    # --- One scan ---

    def predict(self, volume: TrainingVolume) -> Prediction:
        """Return what the networks say of a volume on the grid of the training."""
        import torch

        if not self._trained:
            raise MissingNeed(f'{self.card.name} is not trained.', fix='Train it with bidsharm-task.')
        device = self.execution.device
        self.networks.to(device).eval()

        def run(tile: TileSettings) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            image = torch.from_numpy(np.array(volume.values, np.float32))[None, None].to(tile.device)
            self.networks.to(tile.device)
            image = self.before(image, volume.site)
            return self._segmented(image) if self.task.kind == 'segmentation' else self._answered(image)

        with torch.no_grad():
            ladder = memory_ladder(TileSettings(batch=1, device=device), tiles=())
            said, embedding = with_memory_ladder(run, execution=self.execution, ladder=ladder)
        if self.task.kind == 'segmentation':
            labels = np.where(volume.mask, said.argmax(axis=0), 0).astype(np.uint8)
            return Prediction(embedding, labels=labels)
        if self.task.kind == 'regression':
            mean, spread = self.unit
            return Prediction(embedding, value=float(said[0]) * spread + mean)
        shares = np.exp(said - said.max())
        return Prediction(embedding, shares=(shares / shares.sum()).astype(np.float32))

    def _answered(self, image: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        said, embedding = self.read(image)
        return said[0].float().cpu().numpy(), embedding[0].float().cpu().numpy()

    def _segmented(self, image: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return scores of each class, shape (outputs, X, Y, Z), and the mean embedding of the patches."""
        from monai.inferers import sliding_window_inference

        embeddings: list[Tensor] = []

        def one(patch: Tensor) -> Tensor:
            said, embedding = self.read(patch)
            embeddings.append(embedding)
            return said

        edge = self.settings.edge or max(image.shape[2:])
        sizes = tuple(min(edge, size) for size in image.shape[2:])
        said = sliding_window_inference(image, sizes, 1, one, overlap=0.25, mode='gaussian')
        import torch

        assert isinstance(said, torch.Tensor)
        return said[0].float().cpu().numpy(), torch.cat(embeddings).mean(dim=0).float().cpu().numpy()

    # --- Bundles ---

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return weights, and what is needed to build the networks again."""
        if not self._trained:
            return {}, {}
        arrays = {name: value.detach().cpu().numpy() for name, value in self.networks.state_dict().items()}
        return arrays, {
            'preset': asdict(self.settings), 'task': asdict(self.task), 'sites': list(self.sites),
            'labelled_sites': list(self.labelled_sites), 'contrasts': list(self.contrasts), 'unit': list(self.unit),
        }  # fmt: skip

    def restore(self, arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        """Take back what :meth:`state` returned.

        Raises
        ------
        ConfigurationError
            If the weights are those of another network.
        """
        if not settings:
            return
        self.settings = self.Preset(**stored(settings['preset']))
        task = settings['task']
        self.task = Task(
            task['kind'], str(task['name']), tuple(str(one) for one in task['classes']), tuple(int(one) for one in task['values'])
        )  # fmt: skip
        self.sites, self.contrasts = tuple(settings['sites']), tuple(settings['contrasts'])
        self.labelled_sites = tuple(settings['labelled_sites'])
        self.unit = (float(settings['unit'][0]), float(settings['unit'][1]))
        self.networks = restored_networks(self.build, arrays)
        self._trained = True
