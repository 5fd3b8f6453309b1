"""Base of the methods that train networks: a method's file says its networks, its losses and its step, and nothing else.

A method sees a volume through a view (slices of one or three axes, stacks of slices, patches, the whole), in units of its own. Scaling there
and exactly back, padding, fusion, devices, memory, saving and training are the same for all.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import MissingNeed, ScanError, UsageError
from bidsharm.harmonizers.acquisition import AcquisitionModels
from bidsharm.harmonizers.building import restored_networks, untrained_networks
from bidsharm.harmonizers.contract import (
    Acquisition,
    Canonical,
    Cohort,
    Execution,
    FitReport,
    Harmonized,
    Harmonizer,
    Progress,
    Scan,
    Site,
    Target,
)
from bidsharm.harmonizers.effort import Effort
from bidsharm.harmonizers.execution import TileSettings, memory_ladder, with_memory_ladder
from bidsharm.harmonizers.network_settings import Given, NetworkSettings
from bidsharm.harmonizers.presets import changed_preset, stored
from bidsharm.harmonizers.standard import PERCENTILES, paint, target_kind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.harmonizers.fine_tuning import Start
    from bidsharm.training.options import Player, Running, Stage
    from bidsharm.training.regimes import Batch, Sampler
    from bidsharm.training.views import View
    from bidsharm.training.volumes import TrainingSet, TrainingVolume

#: How many choices of people to hold out are tried before nobody is.
HOLD_OUT_TRIES = 20


class TrainedHarmonizer(Harmonizer):
    """A harmonizer whose networks are trained on scans of several sites.

    A method defines :attr:`Preset`, :attr:`tiny`, :meth:`view`, :meth:`sampler`, :meth:`build`, :attr:`players`, :meth:`losses` and
    :meth:`translate`; and, if it can aim at targets that it was not trained for, :meth:`style_of`.
    """

    #: The settings of the paper.
    Preset: ClassVar[type[NetworkSettings]] = NetworkSettings
    #: What the ``tiny`` preset changes: networks that train in seconds on a processor.
    tiny: ClassVar[Mapping[str, Any]] = {}
    #: Parts of what :meth:`style_of` returns that acquisition parameters can tell; none for methods that cannot aim at those.
    look: ClassVar[tuple[str, ...]] = ()
    #: Set by the training loop: another batch of the same kind.
    more: Callable[[], Batch]
    #: Set while the networks are trained: the volumes they are trained on.
    data: TrainingSet
    #: Set by the training loop: the part of the training that is over, from 0 to 1.
    done: float = 0.0

    def __init__(self, execution: Execution | None = None, settings: NetworkSettings | None = None) -> None:
        super().__init__(execution)
        self.settings = settings or self.Preset()
        self.networks: nn.ModuleDict
        self.sites: tuple[str, ...] = ()
        #: Shape of the volumes of the training; smaller ones are put into one of it, for background counts in norms and means.
        self.frame: tuple[int, int, int] | None = None
        self.contrasts: tuple[str, ...] = ()
        self.target_site = ''
        self._trained = False
        self._target: tuple[str, str] = ('', '')
        self._units: dict[str, float] = {}
        self._quantiles: dict[str, NDArray[np.float64]] = {}
        self._styles: dict[str, NDArray[np.float32]] = {}
        #: What was learnt of acquisition parameters, and those that the target was given by.
        self._acquisitions = AcquisitionModels()
        self._wished: dict[str, float] = {}
        #: Number of the site that :meth:`style_of` is told scans of; -1 where it is unknown or they are of several sites.
        self.described_site = -1
        #: Weights that the training starts from, and the digest of their bundle once it has.
        self.start: Start | None = None
        self.started_from = ''

    # --- What a method says ---

    @abstractmethod
    def view(self) -> View:
        """Return how the networks see a volume."""

    @abstractmethod
    def sampler(self, data: TrainingSet) -> Sampler:
        """Return what draws batches."""

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """Return the networks by name; ``self.sites`` and ``self.contrasts`` are known."""

    @property
    @abstractmethod
    def players(self) -> Mapping[str, Player]:
        """The optimizers, and which networks each of them moves."""

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
        """Prepare for a stage; methods with frozen parts freeze them here."""
        del stage

    @abstractmethod
    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield each player with its losses in turn; between two of them the first one has moved."""

    def validation(self, batch: Batch) -> Tensor | None:
        """Return how bad the method does on a batch of people who are not trained on; None: it has no such number."""
        del batch
        return None

    @abstractmethod
    def translate(self, x: Tensor, given: Given) -> Tensor:
        """Return a harmonized batch, shape (B, 1, ...), for a batch of one scan, shape (B, C, ...)."""

    def prepare(
        self, volume: NDArray[np.float32], given: Given, batch: int
    ) -> tuple[NDArray[np.float32], Given]:
        """Work on one scan before it is translated; here is the place to adapt copies of weights to it.

        Gradients are off (``torch.enable_grad()`` turns them on), and the networks must stay as they are: what is learnt goes into
        ``given.tuned``. Steps are bounded by the settings and noted in ``given.effort``; :meth:`translate` may note work of its own there.

        Parameters
        ----------
        volume
            The scan in units of the network, shape (1, X, Y, Z).
        given
            What is known of the scan.
        batch
            Slices or patches that fit into the memory of the device at once.

        Returns
        -------
        tuple of ndarray and Given
            What the view cuts for :meth:`translate`, shape (C, X, Y, Z), and what is known now.
        """
        del batch
        return volume, given

    def style_of(
        self, scans: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
    ) -> dict[str, Tensor]:
        """Return what describes a target: from volumes of it in units of the network, shape (X, Y, Z), of one contrast."""
        del scans, masks
        return {}

    def draws(self, given: Given) -> Sequence[Given]:
        """Return what else the target could look like, drawn at random; the spread of these images is the uncertainty.

        None by default. The seed of the execution fixes what is drawn.
        """
        del given
        return ()

    def preview(self, batch: Batch) -> Sequence[Tensor]:
        """Return images to look at during the training: what goes in, what comes out, and what should, where that is known."""
        x = batch.get('x')
        if x is None:
            return []
        given = Given(site=int(batch['site'][0]) if 'site' in batch else 0, style=self._style_tensors(''))
        shown = [x, self.translate(x, given)]
        return [*shown, batch['y']] if 'y' in batch else shown

    @classmethod
    def has_style(cls) -> bool:
        """Say whether scans of a target tell something that translating needs."""
        return cls.style_of is not TrainedHarmonizer.style_of

    @classmethod
    def aims_anew(cls) -> bool:
        """Say whether scans of another target are enough to aim at it."""
        return cls.has_style()

    # --- Training ---

    @classmethod
    def preset(cls, name: str = 'paper', **changes: Any) -> NetworkSettings:
        """Return settings by name, with some of them changed.

        Parameters
        ----------
        name
            ``paper`` or ``tiny``.
        changes
            Settings to change.

        Raises
        ------
        UsageError
            For an unknown name or setting.
        """
        return changed_preset(cls.Preset(), name, cls.tiny, changes, method=cls.card.name)

    def fit(
        self,
        cohort: Cohort,
        *,
        target: Target | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        running: Running | None = None,
    ) -> FitReport:
        """Train the networks; with trained ones, learn what describes another target.

        Parameters
        ----------
        cohort
            Scans to train on; those of one person have to lie on each other. For trained networks, scans of the target.
        target
            The site to aim at.
        seed, progress
            As in the contract.
        running
            Where and how; by default on the device of the execution, for the steps of the settings.

        Raises
        ------
        MissingNeed
            If the cohort does not offer what the method needs.
        bidsharm.training.loop.TrainingFailed
            If the training cannot go on.
        """
        if self._trained:
            return self.aim(cohort, target=target)
        from bidsharm.harmonizers.training_data import training_set

        target = target or Canonical()
        return self.train(
            training_set(cohort, self.settings), target=target, running=running, seed=seed, progress=progress
        )

    def train(
        self,
        data: TrainingSet,
        *,
        target: Target,
        running: Running | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FitReport:
        """Train on volumes that lie on one grid; see :meth:`fit`."""
        import torch

        from bidsharm.training.growing import grown
        from bidsharm.training.loop import Loop
        from bidsharm.training.options import Budget, Running

        self.check_offers(data, target)
        if running is None:
            running = Running(device=self.execution.device, seed=seed, budget=Budget(self.settings.steps))
        self.frame = data.shape
        torch.manual_seed(running.seed)
        self.networks = self.untrained(data, target)
        if self.start is not None:
            self.start.fill(self)
        others = self._held_out(data, running.seed)
        self.data = data.of([person for person in data.people if person not in others])
        checks = self._checks(data.of(others))
        if running.patience:
            self._check_patience(checks)
        self._learn_units(data)
        sampler = self.sampler(self.data)
        sampler.augmentation = self.settings.augmentation
        learner = grown(self, sampler, self.settings.halvings)
        about = self._about(data, target, running.seed)
        Loop(
            learner, sampler, running, checks=checks, progress=progress, origin=self.started_from, about=about
        ).run()
        del self.data
        self._trained, self._target = True, (target_kind(target), target.label)
        self._describe(data.at(self.target_site) or list(data.volumes))
        if self.look:
            self._acquisitions = AcquisitionModels.learn(data.volumes, self._styles_at, self.look)
        return FitReport(tuple(volume.name for volume in data.volumes), {'validation': sorted(others)})

    def untrained(self, data: TrainingSet, target: Target) -> nn.ModuleDict:
        """Return networks for the sites and contrasts of volumes, which need not have been read yet.

        Raises
        ------
        UsageError
            If the settings make none.
        """
        self.sites, self.contrasts = data.sites, data.contrasts
        self.target_site = target.name if isinstance(target, Site) else ''
        return untrained_networks(self.build, self.card.name)

    def aim(self, cohort: Cohort, *, target: Target | None = None) -> FitReport:
        """Learn what describes another target from scans of it; the networks stay as they are.

        Raises
        ------
        UsageError
            If the method aims at what it was trained for and nothing else.
        """
        from bidsharm.harmonizers.training_data import training_set

        target = target or Canonical()
        if isinstance(target, Acquisition) and self.look:
            return self._aim_at_protocol(target)
        if (target_kind(target), target.label) == self._target:
            return FitReport(tuple(scan.name for scan in cohort.scans))
        if not self.aims_anew():
            raise UsageError(
                f'This {self.card.name} was trained for the target "{self._target[1]}" and knows no other.',
                where='--target', fix='Leave --target away, or train it for this one.',
            )  # fmt: skip
        data = training_set(cohort, self.settings, self.frame)
        self._target = (target_kind(target), target.label)
        self._units, self._quantiles, self._wished = {}, {}, {}
        self._learn_units(data)
        self._describe(list(data.volumes))
        return FitReport(tuple(volume.name for volume in data.volumes))

    def _aim_at_protocol(self, target: Acquisition) -> FitReport:
        """Take the style that acquisition parameters tell, and the median unit of the training."""
        model = self._acquisitions.model(target, self.card.name)
        found = model.style(target.parameters)
        self._styles = {f'{target.contrast}/{name}': value for name, value in found.items()}
        self._units, self._quantiles = {target.contrast: model.unit}, {}
        self._target, self._wished = (target_kind(target), target.label), dict(target.parameters)
        return FitReport((), {'r2': model.r2})

    def _held_out(self, data: TrainingSet, seed: int) -> list[str]:
        """Return people to validate on, with whom that is possible and without whom training is; nobody where no choice does."""
        for attempt in range(HOLD_OUT_TRIES):
            some, others = data.hold_out(self.settings.hold_out, seed + attempt)
            if self._serves(data.of(some)) and self._checks(data.of(others)) is not None:
                return others
        return []

    def _checks(self, rest: TrainingSet) -> Sampler | None:
        """Return what draws batches of validation; None where these volumes do not offer them."""
        if not self._serves(rest):
            return None
        found = self.sampler(rest)
        return found if found.suffices else None

    def check_patience(self) -> None:
        """Refuse to wait for a number that this method does not have.

        Raises
        ------
        UsageError
            If it has none, or none in its last stage.
        """
        if type(self).validation is TrainedHarmonizer.validation:
            raise _impatient(f'{self.card.name} has no number that tells how good it is')
        if not self.stages[-1].validates:
            raise _impatient(
                f'The last stage of {self.card.name} ("{self.stages[-1].name}") has no number that tells how good it is'
            )

    def _check_patience(self, checks: Sampler | None) -> None:
        """Refuse to wait for a number that nobody will see."""
        self.check_patience()
        if checks is None:
            raise _impatient('Nobody is held out from this training')

    def _about(self, data: TrainingSet, target: Target, seed: int) -> dict[str, str]:
        """Return what a checkpoint must agree with; how long a training lasts is no part of it."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != 'steps'}
        scans = sorted((volume.name, volume.person, volume.site, volume.contrast) for volume in data.volumes)
        return {
            'method': self.card.name, 'target': f'{target_kind(target)} {target.label}', 'seed': str(seed),
            'settings': _digest(settings), 'scans': _digest(scans),
        }  # fmt: skip

    def _serves(self, data: TrainingSet) -> bool:
        from bidsharm.harmonizers.training_data import offers_of

        offered = offers_of(data, self.target_site)
        return bool(data.volumes) and all(need in offered for need in self.card.needs_fit)

    def check_offers(self, data: TrainingSet, target: Target) -> None:
        """Refuse volumes that do not offer what the method needs; see :func:`~bidsharm.harmonizers.training_data.check_offers`."""
        from bidsharm.harmonizers.training_data import check_offers

        check_offers(self.card, data, target)

    def _learn_units(self, data: TrainingSet) -> None:
        for contrast in data.contrasts:
            units = [
                volume.unit
                for volume in data.at(self.target_site) or data.volumes
                if volume.contrast == contrast
            ]
            if units:
                self._units[contrast] = float(np.median(units))

    def _describe(self, volumes: Sequence[TrainingVolume]) -> None:
        """Keep the styles and the quantiles of the target's volumes, for each contrast."""
        if self.has_style():
            self._describe_styles(volumes)
        for contrast in self.contrasts:
            rows = [
                np.percentile(volume.values[volume.mask] - self.settings.offset, PERCENTILES) * self._units[contrast]
                for volume in volumes if volume.contrast == contrast
            ]  # fmt: skip
            if rows:
                self._quantiles[contrast] = np.mean(rows, axis=0)

    def _describe_styles(self, volumes: Sequence[TrainingVolume]) -> None:
        self._styles = {}
        for contrast in sorted({volume.contrast for volume in volumes}):
            found = self._styles_at([volume for volume in volumes if volume.contrast == contrast])
            self._styles |= {f'{contrast}/{name}': value for name, value in found.items()}

    def _styles_at(self, volumes: Sequence[TrainingVolume]) -> dict[str, NDArray[np.float32]]:
        """Return the style of volumes of one contrast."""
        import torch

        sites = {volume.site for volume in volumes}
        site = sites.pop() if len(sites) == 1 else ''
        self.described_site = self.sites.index(site) if site in self.sites else -1
        with torch.no_grad():
            found = self.style_of(
                [np.asarray(volume.values) for volume in volumes], [volume.mask for volume in volumes]
            )
        return {name: value.detach().float().cpu().numpy() for name, value in found.items()}

    # --- One scan ---

    def harmonize(self, scan: Scan, target: Target) -> Harmonized:
        """Return the scan as the target's scanner would have made it.

        Raises
        ------
        MissingNeed
            If the networks are not trained, or the target is another one.
        ScanError
            If the scan is unusable, or its contrast or site is not what the networks were trained on.
        """
        import torch

        from bidsharm.harmonizers.training_data import in_units

        volume, scaling = in_units(scan, self.settings)
        self._check_ready(scan, target)
        mask = np.asarray(scan.mask).astype(bool)
        device = self.execution.device
        self.networks.to(device).eval()
        torch.manual_seed(self.execution.seed)
        effort = Effort()
        with torch.no_grad():
            found, deviation = self._put_through(volume, scan, effort)
        back = replace(scaling, unit=self._units[scan.contrast])
        image = paint(scan, back.inverse(found[mask]).astype(np.float64))
        uncertainty = (
            None if deviation is None else paint(scan, (deviation[mask] * back.unit).astype(np.float64))
        )
        details = {'unit': scaling.unit, 'target_unit': back.unit, **effort.details()}
        doubts: tuple[str, ...] = ()
        if self._wished:
            model = self._acquisitions.models[scan.contrast]
            details['acquisition'] = {**self._wished, 'protocols': model.protocols, 'r2': round(model.r2, 4)}
            doubts = model.doubts(self._wished)
        return Harmonized(image, uncertainty, details, doubts)

    def _put_through(
        self, volume: NDArray[np.float32], scan: Scan, effort: Effort
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the translated volume, and its standard deviation where the method draws several."""
        from bidsharm.training.views import widened

        least = self.frame if self.frame and self.view().sees_all else volume.shape
        fill = self.settings.background
        given = Given(
            site=self.sites.index(scan.site) if scan.site in self.sites else -1,
            contrast=self.contrasts.index(scan.contrast), style=self._style_tensors(scan.contrast), effort=effort,
            companions={number: widened(other, least, fill)[0] for number, other in self._companions(scan).items()},
        )  # fmt: skip
        wide, inside = widened(volume, least, fill)
        image = self._through(wide, given)[inside]
        several = [self._through(wide, replace(other, effort=None))[inside] for other in self.draws(given)]
        return image, np.std(several, axis=0, ddof=1) if len(several) > 1 else None

    def _through(self, volume: NDArray[np.float32], given: Given) -> NDArray[np.float32]:
        view = self.view()

        def run(tile: TileSettings) -> NDArray[np.float32]:
            if given.effort is not None:
                given.effort.clear()
            self.networks.to(tile.device)  # the last steps of the ladder are on the CPU
            here = replace(given, style=_on(tile.device, given.style))
            channels, known = self.prepare(volume[None], here, tile.batch)
            return view.through(
                channels, lambda x, axis: self.translate(x, replace(known, axis=axis)),
                background=self.settings.background, batch=tile.batch, device=tile.device,
            )  # fmt: skip

        ladder = memory_ladder(TileSettings(batch=8, device=self.execution.device), tiles=())
        return with_memory_ladder(run, execution=self.execution, ladder=ladder)

    def all_contrasts(self, volume: NDArray[np.float32], given: Given) -> NDArray[np.float32]:
        """Return a channel for each contrast of the training: the scan, shape (1, X, Y, Z), its companions, background for the rest."""
        channels = np.full((len(self.contrasts), *volume.shape[1:]), self.settings.background, np.float32)
        for index, other in {**given.companions, given.contrast: volume[0]}.items():
            channels[index] = other
        return channels

    def _companions(self, scan: Scan) -> dict[int, NDArray[np.float32]]:
        """Return the other contrasts of the visit that the networks know, in units of the network."""
        from bidsharm.harmonizers.training_data import in_units

        known = set(self.contrasts) - {scan.contrast}
        others = [other for other in scan.companions if other.contrast in known]
        return {self.contrasts.index(other.contrast): in_units(other, self.settings)[0] for other in others}

    def _check_ready(self, scan: Scan, target: Target) -> None:
        if not self._trained:
            raise MissingNeed(
                f'{self.card.name} is not trained.',
                fix='Give --model, a bundle that bidsharm-train has made.',
            )
        if (target_kind(target), target.label) != self._target:
            raise MissingNeed(
                f'{self.card.name} was trained for "{self._target[1]}", not for "{target.label}".'
            )
        if scan.contrast not in self.contrasts:
            raise ScanError(
                f'{self.card.name} was trained on {", ".join(self.contrasts)}, not on {scan.contrast}.', where=scan.name,
                fix='Leave that contrast out, or train it on scans that include it.',
            )  # fmt: skip
        if scan.contrast not in self._units:
            raise ScanError(
                f'{self.card.name} has not seen {scan.contrast} at "{self._target[1]}".', where=scan.name,
                fix='Leave that contrast out, or let it learn the target from scans that include it.',
            )  # fmt: skip
        if 'site' in self.card.needs_apply and scan.site not in self.sites:
            raise ScanError(
                f'{self.card.name} has networks for the sites {", ".join(self.sites)}, not for "{scan.site}".',
                where=scan.name, fix='Train it with scans of this site, or choose a method that works on any scanner.',
            )  # fmt: skip

    def _style_tensors(self, contrast: str) -> dict[str, Any]:
        import torch

        device = next(self.networks.parameters()).device
        styles = _under(f'{contrast}/', self._styles)
        return {name: torch.from_numpy(value).to(device) for name, value in styles.items()}

    @property
    def grid_mm(self) -> float:
        """Voxel size of the grid that the networks see."""
        return self.settings.voxel_mm

    def target_quantiles(self, contrast: str) -> NDArray[np.float64] | None:
        """Return the mean quantiles of the scans of the target; see the contract."""
        return self._quantiles.get(contrast)

    # --- Bundles ---

    def take_trained(self, *, units: Mapping[str, float], kind: str, label: str) -> None:
        """Take networks that came from elsewhere for trained ones; sites, contrasts and networks are set.

        Parameters
        ----------
        units
            Intensity of the target that the networks see as 1, by contrast.
        kind, label
            Of the target.
        """
        self.networks.eval()
        self._units, self._target, self._trained = dict(units), (kind, label), True

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return weights, styles and quantiles, and what is needed to build the networks again."""
        if not self._trained:
            return {}, {}
        arrays: dict[str, NDArray[Any]] = {
            f'net/{name}': value.detach().cpu().numpy() for name, value in self.networks.state_dict().items()
        }
        arrays |= {f'style/{name}': value for name, value in self._styles.items()}
        arrays |= {f'quantiles/{name}': value for name, value in self._quantiles.items()}
        arrays |= {f'acquisition/{name}': value for name, value in self._acquisitions.arrays().items()}
        kind, label = self._target
        more: dict[str, Any] = {'started_from': self.started_from} if self.started_from else {}
        if self.look:
            more |= {'acquisition': self._acquisitions.settings(), 'acquisition_target': dict(self._wished)}
        return arrays, {
            **more, 'preset': asdict(self.settings), 'sites': list(self.sites), 'contrasts': list(self.contrasts),
            'target_kind': kind, 'target': label, 'target_site': self.target_site, 'units': dict(self._units),
            'frame': None if self.frame is None else list(self.frame),
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
        known = {item.name for item in fields(self.Preset)}
        preset = {key: value for key, value in stored(settings['preset']).items() if key in known}
        self.settings = self.Preset(**preset)
        self.sites, self.contrasts = tuple(settings['sites']), tuple(settings['contrasts'])
        self.target_site, self._units = (
            str(settings['target_site']),
            {str(k): float(v) for k, v in settings['units'].items()},
        )
        self._target = (str(settings['target_kind']), str(settings['target']))
        if settings.get('frame'):
            x, y, z = (int(size) for size in settings['frame'])
            self.frame = x, y, z
        self.started_from = str(settings.get('started_from', ''))
        self.networks = restored_networks(self.build, _under('net/', arrays))
        self._styles, self._quantiles = _under('style/', arrays), _under('quantiles/', arrays)
        self._acquisitions = AcquisitionModels.restored(
            _under('acquisition/', arrays), settings.get('acquisition', {})
        )
        self._wished = {
            str(name): float(value) for name, value in settings.get('acquisition_target', {}).items()
        }
        self._trained = True


def _impatient(why: str) -> UsageError:
    return UsageError(
        f'{why}, so nothing can be waited for.', where='--patience', fix='Leave it away; --budget ends the training.'
    )  # fmt: skip


def _digest(value: Any) -> str:
    """Return a short text that differs where values do."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _on(device: str, tensors: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    return None if tensors is None else {name: value.to(device) for name, value in tensors.items()}


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
