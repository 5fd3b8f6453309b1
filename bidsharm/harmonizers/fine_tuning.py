"""Training that goes on from a trained model, on scans of other sites.

Networks that all sites share keep their weights. Of networks that have parts for single sites, those of sites that the model knows by their
label keep theirs, and those of other sites start anew.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.errors import UsageError
from bidsharm.harmonizers.presets import changed_preset

if TYPE_CHECKING:
    from torch import Tensor

    from bidsharm.harmonizers.contract import Execution
    from bidsharm.harmonizers.trained import TrainedHarmonizer

Shapes = Mapping[str, tuple[int, ...]]
#: Gives a weight of the model for a name in the new networks, or leaves it as it is.
_Carry = Callable[[str, 'Tensor'], 'Tensor']


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Parameters
    ----------
    weights
        Of the model's networks, by name.
    sites, contrasts, target_site
        That it was trained on.
    digest
        Of its bundle.
    """

    weights: Mapping[str, Tensor]
    sites: tuple[str, ...]
    contrasts: tuple[str, ...]
    target_site: str
    digest: str

    def fill(self, method: TrainedHarmonizer) -> None:
        """Give networks that were just built the weights of the model, as far as they are for the same sites.

        Raises
        ------
        UsageError
            If settings or contrasts make other networks of it, or all weights are those of other sites.
        """
        own = _shapes(method, method.sites, method.contrasts, method.target_site)
        self._check_networks(method)
        if _shapes(method, method.sites, (*method.contrasts, ''), method.target_site) != own:
            self._check_contrasts(method)
        more = _shapes(method, (*method.sites, ''), method.contrasts, method.target_site)
        carried = 0
        weights = {}
        for name, fresh in method.networks.state_dict().items():
            weights[name], count = self._carried(name, fresh, method, own, more)
            carried += count
        if not carried:
            raise UsageError(
                f'{method.card.name} consists of parts for single sites, and the model has none for {", ".join(method.sites)}.',
                where='--from', fix=f'It has parts for: {", ".join(self.sites)}. Train it anew.',
            )  # fmt: skip
        method.networks.load_state_dict(weights)
        method.started_from = self.digest

    def _carried(
        self, name: str, fresh: Tensor, method: TrainedHarmonizer, own: Shapes, more: Shapes
    ) -> tuple[Tensor, int]:
        """Return a weight of the new networks, and how many of its numbers are those of the model."""
        found = fresh.clone()
        if (listed := _place_in_list(name, own, more)) is not None:
            start, number, end = listed
            label = _labels(start, own, method.sites, method.target_site)[number]
            known = _labels(start, _shapes_of(self.weights), self.sites, self.target_site)
            if label not in known:
                return found, 0
            name = f'{start}{known.index(label)}{end}'
        elif more[name] != own[name]:
            return self._rows(name, found, method.sites)
        found.copy_(self.weights[name])
        return found, found.numel()

    def _rows(self, name: str, found: Tensor, sites: Sequence[str]) -> tuple[Tensor, int]:
        """Fill what belongs to known sites into a weight whose first axis runs over sites."""
        rows = len(found) // len(sites)
        known = [site for site in sites if site in self.sites]
        for site in known:
            here, there = sites.index(site) * rows, self.sites.index(site) * rows
            found[here : here + rows] = self.weights[name][there : there + rows]
        return found, len(known)

    def _check_networks(self, method: TrainedHarmonizer) -> None:
        """Refuse settings with which the networks are others than those of the model."""
        wanted = _shapes(method, self.sites, self.contrasts, self.target_site)
        there = _shapes_of(self.weights)
        other = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        if other:
            raise UsageError(
                f'With these settings the networks are others than those of the model ({len(other)} weights, {other[0]} first).',
                where='--set', fix='Change only what does not change the networks, or train without --from.',
            )  # fmt: skip

    def _check_contrasts(self, method: TrainedHarmonizer) -> None:
        if method.contrasts != self.contrasts:
            raise UsageError(
                f'The networks of this {method.card.name} are for {", ".join(self.contrasts)}, not for {", ".join(method.contrasts)}.',
                where='--contrasts', fix='Give scans of the same contrasts, or train without --from.',
            )  # fmt: skip


def method_from(
    folder: Path, kind: type[TrainedHarmonizer], execution: Execution, changes: Mapping[str, Any]
) -> TrainedHarmonizer:
    """Return an untrained method with the settings of a bundle, whose training will start from the weights of that.

    Parameters
    ----------
    folder
        A bundle.
    kind
        The method.
    execution
        Where it runs.
    changes
        Settings to change.

    Raises
    ------
    UsageError
        If the bundle is of another method, or not trained; or for an unknown setting.
    ConfigurationError
        If it is not whole.
    """
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.trained import TrainedHarmonizer

    found = str(bundle.read_card(folder)['name'])
    if found != kind.card.name:
        raise UsageError(
            f'The model is one of {found}, and a training of {kind.card.name} starts from its own.', where='--from',
            fix=f'Train {found}, or give another model.',
        )  # fmt: skip
    digest, model = bundle.digest(folder), bundle.load(folder)
    assert isinstance(model, TrainedHarmonizer)
    if not model.state()[0]:
        raise UsageError('The model is not trained.', where='--from')
    method = kind(execution, changed_preset(model.settings, 'paper', {}, changes, method=found))
    weights = {name: value.detach().cpu() for name, value in model.networks.state_dict().items()}
    method.start = Start(weights, model.sites, model.contrasts, model.target_site, digest)
    return method


def _shapes(
    method: TrainedHarmonizer, sites: tuple[str, ...], contrasts: tuple[str, ...], target: str
) -> Shapes:
    """Return the shapes of the weights that the networks would have for such data."""
    import torch

    other = copy.copy(method)
    other.sites, other.contrasts, other.target_site = sites, contrasts, target
    with torch.device('meta'):
        return _shapes_of(torch.nn.ModuleDict(dict(other.build())).state_dict())


def _shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in weights.items()}


def _place_in_list(name: str, own: Shapes, more: Shapes) -> tuple[str, int, str] | None:
    """Return what stands before the number of a site in a name, that number, and what comes after; None where there is none.

    Parameters
    ----------
    name
        Of a weight.
    own, more
        Of the networks as they are, and with one site more: a list that is longer then has a part for each site.
    """
    for found in re.finditer(r'(?<=\.)\d+(?=\.|$)', name):
        start = name[: found.start()]
        if _count(start, more) > _count(start, own):
            return start, int(found[0]), name[found.end() :]
    return None


def _numbers(start: str, shapes: Shapes) -> Iterator[int]:
    for name in shapes:
        if name.startswith(start) and (head := name[len(start) :].split('.', 1)[0]).isdigit():
            yield int(head)


def _count(start: str, shapes: Shapes) -> int:
    return max(_numbers(start, shapes), default=-1) + 1


def _labels(start: str, shapes: Shapes, sites: tuple[str, ...], target: str) -> list[str]:
    """Return the site of each part of a list: of all sites, or of all but the target."""
    return [site for site in sites if site != target] if _count(start, shapes) < len(sites) else list(sites)
