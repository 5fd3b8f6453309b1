"""The contract for cortical surfaces, and the base of the methods that train networks on them.

A map lies on the icosphere of a method's level, one hemisphere at a time, and each hemisphere has networks of its own. What is no cortex is left as
it is. Reading files and carrying maps from other spheres and back is not the method's business.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bidsharm.errors import MissingNeed, ScanError, UsageError
from bidsharm.harmonizers.building import restored_networks, untrained_networks
from bidsharm.harmonizers.contract import (
    NEED_PHRASES,
    Execution,
    FitReport,
    HarmonizationMethod,
    Progress,
    Site,
    Target,
)
from bidsharm.harmonizers.presets import changed_preset, stored
from bidsharm.imaging.icosphere import vertex_count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bidsharm.training.options import Player, Running, Stage
    from bidsharm.training.regimes import Batch
    from bidsharm.training.surfaces import SurfaceSampler

#: Fewer vertices of cortex than this do not describe a map.
MIN_VERTICES = 50


@dataclass(frozen=True)
class SurfaceMap:
    """One map of one hemisphere.

    Parameters
    ----------
    values
        One number for each vertex of an icosphere, shape (N,), float32; what stands outside the cortex does not matter.
    cortex
        Where there is cortex, shape (N,), bool.
    hemisphere
        ``L`` or ``R``.
    measure
        What the numbers are: ``thickness``, ``sulc``, ...
    name
        For messages.
    site
        Site label, or an empty string.
    person
        Who it is of.
    """

    values: NDArray[np.float32]
    cortex: NDArray[np.bool_]
    hemisphere: str
    measure: str = 'thickness'
    name: str = ''
    site: str = ''
    person: str = ''


@dataclass(frozen=True)
class HarmonizedSurface:
    """The result for one map.

    Parameters
    ----------
    values
        Harmonized numbers, shape (N,), float32; as they were where there is no cortex.
    details
        Numbers worth recording, JSON types only.
    warnings
        Sentences that a reader of the map must see.
    """

    values: NDArray[np.float32]
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class SurfaceHarmonizer(HarmonizationMethod):
    """A harmonization method for maps on cortical surfaces."""

    @property
    @abstractmethod
    def level(self) -> int:
        """Level of the icosphere that maps must lie on."""

    @abstractmethod
    def fit(
        self,
        maps: Sequence[SurfaceMap],
        *,
        target: Target,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FitReport:
        """Learn from maps of several sites.

        Raises
        ------
        MissingNeed
            If the maps do not offer what the card says is needed.
        """

    @abstractmethod
    def harmonize(self, surface: SurfaceMap, target: Target) -> HarmonizedSurface:
        """Return the map as the target's scanner would have made it.

        Raises
        ------
        ScanError
            If this map cannot be harmonized.
        """


@dataclass(frozen=True, kw_only=True)
class SurfaceSettings:
    """Settings that all trained surface methods have.

    Parameters
    ----------
    level
        Of the icosphere: 6 has 40,962 vertices.
    batch, steps
        Of the training.
    rate
        Learning rate.
    """

    level: int = 6
    batch: int = 1
    steps: int = 100_000
    rate: float = 5e-4


class TrainedSurface(SurfaceHarmonizer):
    """A surface method whose networks are trained on maps of several sites; the base of the methods of this package.

    A method defines :attr:`Preset`, :attr:`tiny`, :meth:`build`, :attr:`players`, :meth:`losses`, :attr:`kept` and :meth:`translate`.
    """

    Preset: ClassVar[type[SurfaceSettings]] = SurfaceSettings
    #: What the ``tiny`` preset changes: networks that train in seconds on a processor.
    tiny: ClassVar[Mapping[str, Any]] = {}
    #: Networks that a trained method needs; the others are for training only.
    kept: ClassVar[tuple[str, ...]] = ()
    #: Set by the training loop.
    more: Callable[[], Batch]
    done: float = 0.0
    average: float = 0.0

    def __init__(self, execution: Execution | None = None, settings: Any = None) -> None:
        super().__init__(execution)
        self.settings = settings if settings is not None else self.Preset()
        #: Networks of the hemisphere at work.
        self.networks: nn.ModuleDict
        self.hemispheres: dict[str, nn.ModuleDict] = {}
        self.units: dict[str, tuple[float, float]] = {}
        self.sites: tuple[str, ...] = ()
        self.target_site = ''
        self.measure = ''

    # --- What a method says ---

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """Return the networks of a hemisphere by name; ``self.sites`` is known."""

    @property
    @abstractmethod
    def players(self) -> Mapping[str, Player]:
        """The optimizers, and which networks each of them moves."""

    @abstractmethod
    def losses(self, batch: Batch, stage: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield each player with its losses in turn; between two of them the first one has moved."""

    @abstractmethod
    def translate(self, x: Tensor, site: int) -> Tensor:
        """Return harmonized maps, shape (B, 1, N); the site is -1 where it is not known."""

    # --- For the training loop ---

    @property
    def stages(self) -> Sequence[Stage]:
        """One stage."""
        from bidsharm.training.options import Stage

        return (Stage(),)

    def begin(self, stage: str) -> None:
        """Nothing is frozen."""
        del stage

    def validation(self, batch: Batch) -> Tensor | None:
        """Maps of different people have no number that says how good a translation is."""
        del batch
        return None

    def preview(self, batch: Batch) -> Sequence[Tensor]:
        """Maps on spheres are no pictures."""
        del batch
        return ()

    # --- Training ---

    @property
    def level(self) -> int:
        """Level of the icosphere that maps must lie on."""
        return int(self.settings.level)

    @classmethod
    def preset(cls, name: str = 'paper', **changes: Any) -> Any:
        """Return settings by name (``paper`` or ``tiny``), with some of them changed.

        Raises
        ------
        UsageError
            For an unknown name or setting.
        """
        return changed_preset(cls.Preset(), name, cls.tiny, changes, method=cls.card.name)

    def fit(
        self,
        maps: Sequence[SurfaceMap],
        *,
        target: Target,
        seed: int = 0,
        progress: Progress | None = None,
        running: Running | None = None,
    ) -> FitReport:
        """Train the networks of each hemisphere that there are maps of.

        Parameters
        ----------
        maps
            Of at least two sites, on the icosphere of the method.
        target
            One of the sites.
        seed, progress
            Of the training.
        running
            How the training runs; its seed and budget win.

        Raises
        ------
        MissingNeed
            If there are fewer than two sites, or no map of the target.
        UsageError
            For maps of different kinds.
        """
        import torch

        from bidsharm.training.loop import Loop
        from bidsharm.training.options import Budget, Running

        self._check_maps(maps, target)
        assert isinstance(target, Site)
        self.sites, self.target_site = tuple(sorted({one.site for one in maps})), target.name
        self.measure, self.hemispheres, self.units = maps[0].measure, {}, {}
        if running is None:
            running = Running(device=self.execution.device, seed=seed, budget=Budget(self.settings.steps))
        for hemisphere in sorted({one.hemisphere for one in maps}):
            some = [one for one in maps if one.hemisphere == hemisphere]
            self.units[hemisphere] = self._unit([one for one in some if one.site == target.name])
            sampler = self._sampler(some, hemisphere)
            folder = running.folder / f'hemi-{hemisphere}' if running.folder else None
            torch.manual_seed(running.seed)
            self.networks = untrained_networks(self.build, self.card.name)
            Loop(self, sampler, replace(running, folder=folder), progress=progress).run()
            self.hemispheres[hemisphere] = torch.nn.ModuleDict(
                {name: self.networks[name] for name in self.kept}
            )
        return FitReport(tuple(one.name for one in maps))

    def _check_maps(self, maps: Sequence[SurfaceMap], target: Target) -> None:
        if not isinstance(target, Site):
            raise UsageError(
                f'{self.card.name} aims at a site.', where='--target', fix='Name one of the sites.'
            )
        for one in maps:
            self.check_map(one)
        measures = sorted({one.measure for one in maps})
        if len(measures) > 1:
            raise UsageError(f'The maps are of different kinds: {", ".join(measures)}.', fix='Give one kind.')
        for hemisphere in sorted({one.hemisphere for one in maps}) or ['L']:
            sites = sorted({one.site for one in maps if one.hemisphere == hemisphere} - {''})
            if len(sites) < 2:
                raise MissingNeed(
                    f'{self.card.name} needs {NEED_PHRASES["two_sites"]}; hemisphere {hemisphere} has {", ".join(sites) or "none"}.',
                    fix='See --site.',
                )  # fmt: skip
            if target.name not in sites:
                raise MissingNeed(
                    f'No map of hemisphere {hemisphere} comes from the site "{target.name}".', where='--target',
                    fix=f'There are: {", ".join(sites)}.',
                )  # fmt: skip
        without = [one.name for one in maps if not one.site]
        if without:
            raise UsageError(f'{without[0]} has no site ({len(without)} in all).', fix='See --site.')

    def check_map(self, surface: SurfaceMap) -> None:
        """Refuse a map with :class:`~bidsharm.errors.ScanError` that cannot be used."""
        wanted = vertex_count(self.level)
        if len(surface.values) != wanted or len(surface.cortex) != wanted:
            raise ScanError(
                f'The map has {len(surface.values)} vertices; {self.card.name} works on {wanted}.',
                where=surface.name,
            )
        inside = surface.values[surface.cortex]
        if len(inside) < MIN_VERTICES:
            raise ScanError(f'The map has values at {len(inside)} vertices only.', where=surface.name)
        if not np.isfinite(inside).all():
            raise ScanError('The map has values on the cortex that are no numbers.', where=surface.name)
        if inside.std() == 0:
            raise ScanError('The map has the same value everywhere.', where=surface.name)

    def _unit(self, maps: Sequence[SurfaceMap]) -> tuple[float, float]:
        """Return mean and standard deviation over the cortex of several maps."""
        inside = np.concatenate([one.values[one.cortex] for one in maps]).astype(np.float64)
        return float(inside.mean()), float(inside.std())

    def _scaled(self, surface: SurfaceMap) -> NDArray[np.float32]:
        mean, deviation = self.units[surface.hemisphere]
        return np.where(surface.cortex, (surface.values - mean) / deviation, 0).astype(np.float32)

    def _sampler(self, maps: Sequence[SurfaceMap], hemisphere: str) -> SurfaceSampler:
        from bidsharm.training.surfaces import SurfaceSampler

        sites = [self.sites.index(one.site) for one in maps]
        return SurfaceSampler(
            np.stack([self._scaled(one) for one in maps]), np.stack([one.cortex for one in maps]), sites,
            target=self.sites.index(self.target_site), batch=self.settings.batch,
        )  # fmt: skip

    # --- One map ---

    def harmonize(self, surface: SurfaceMap, target: Target) -> HarmonizedSurface:
        """Return the map as the target's scanner would have made it.

        Raises
        ------
        MissingNeed
            If the method is not trained, or for another target.
        ScanError
            If the map is unusable, or of another kind or hemisphere than those of the training.
        """
        import torch

        self._check_ready(surface, target)
        mean, deviation = self.units[surface.hemisphere]
        self.networks = self.hemispheres[surface.hemisphere].to(self.execution.device).eval()
        x = torch.from_numpy(self._scaled(surface))[None, None].to(self.execution.device)
        site = self.sites.index(surface.site) if surface.site in self.sites else -1
        with torch.no_grad():
            found = self.translate(x, site)[0, 0].float().cpu().numpy()
        values = np.where(surface.cortex, found * deviation + mean, surface.values).astype(np.float32)
        return HarmonizedSurface(values, {'mean': mean, 'deviation': deviation}, self.cautions(surface))

    def cautions(self, surface: SurfaceMap) -> tuple[str, ...]:
        """Return sentences that a reader of a map must see."""
        if surface.site in self.sites:
            return ()
        return (f'The training has not seen the site "{surface.site or "unknown"}".',)

    def _check_ready(self, surface: SurfaceMap, target: Target) -> None:
        if not self.hemispheres:
            raise MissingNeed(f'{self.card.name} is not trained.', fix='Fit it, or load its bundle.')
        if not isinstance(target, Site) or target.name != self.target_site:
            raise MissingNeed(
                f'This {self.card.name} was trained for "{self.target_site}", not for "{target.label}".'
            )
        self.check_map(surface)
        if surface.hemisphere not in self.hemispheres:
            raise ScanError(
                f'This {self.card.name} was trained on the hemisphere {", ".join(self.hemispheres)} only.',
                where=surface.name,
            )
        if surface.measure != self.measure:
            raise ScanError(
                f'This {self.card.name} was trained on {self.measure}, not on {surface.measure}.',
                where=surface.name,
            )

    # --- Bundles ---

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return weights by hemisphere, and what is needed to build the networks again."""
        if not self.hemispheres:
            return {}, {}
        arrays = {
            f'{side}/{name}': value.detach().cpu().numpy()
            for side, networks in self.hemispheres.items()
            for name, value in networks.state_dict().items()
        }
        return arrays, {
            'preset': asdict(self.settings), 'sites': list(self.sites), 'target': self.target_site, 'measure': self.measure,
            'units': {side: list(unit) for side, unit in self.units.items()},
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
        self.sites, self.target_site = tuple(settings['sites']), str(settings['target'])
        self.measure = str(settings['measure'])
        self.units = {side: (float(unit[0]), float(unit[1])) for side, unit in settings['units'].items()}
        for side in self.units:
            own = {
                name.removeprefix(f'{side}/'): value
                for name, value in arrays.items()
                if name.startswith(f'{side}/')
            }
            self.hemispheres[side] = restored_networks(self._build_kept, own)

    def _build_kept(self) -> dict[str, nn.Module]:
        built = self.build()
        return {name: built[name] for name in self.kept}


def of_cortex(x: Tensor, mask: Tensor) -> Tensor:
    """Return maps with 0 where there is no cortex."""
    return x * mask
