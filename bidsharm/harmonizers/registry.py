"""Which methods there are: entry points in the group ``bidsharm.harmonizers``, ours and those of others alike."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.harmonizers.contract import Card, HarmonizationMethod, Harmonizer

GROUP = 'bidsharm.harmonizers'

#: The methods of this package, for when it is used from a checkout that was not installed.
_BUILTIN = {
    'identity': 'bidsharm.harmonizers.linear:Identity',
    'robust': 'bidsharm.harmonizers.linear:Robust',
    'zscore': 'bidsharm.harmonizers.linear:ZScore',
    'tscore': 'bidsharm.harmonizers.linear:TScore',
    'kde': 'bidsharm.harmonizers.linear:KDE',
    'fcm': 'bidsharm.harmonizers.linear:FCM',
    'whitestripe': 'bidsharm.harmonizers.linear:WhiteStripe',
    'lsq': 'bidsharm.harmonizers.linear:LSQ',
    'nyul': 'bidsharm.harmonizers.histogram:Nyul',
    'histogram': 'bidsharm.harmonizers.histogram:HistogramMatching',
    'ravel': 'bidsharm.harmonizers.ravel:Ravel',
    'isotone': 'bidsharm.harmonizers.isotone:Isotone',
    'deepharmony': 'bidsharm.harmonizers.unet:DeepHarmony',
    'deepharmony-many-to-one': 'bidsharm.harmonizers.unet:DeepHarmonyManyToOne',
    'unet3d': 'bidsharm.harmonizers.unet:UNet3D',
    'res-unet': 'bidsharm.harmonizers.unet:ResUNet',
    'att-unet': 'bidsharm.harmonizers.unet:AttUNet',
    'trans-unet': 'bidsharm.harmonizers.unet:TransUNet',
    'unet3d-cgan': 'bidsharm.harmonizers.unet:UNet3DCGAN',
    'res-unet-cgan': 'bidsharm.harmonizers.unet:ResUNetCGAN',
    'att-unet-cgan': 'bidsharm.harmonizers.unet:AttUNetCGAN',
    'trans-unet-cgan': 'bidsharm.harmonizers.unet:TransUNetCGAN',
    'osman': 'bidsharm.harmonizers.unet:Osman',
    'iguane': 'bidsharm.harmonizers.cyclegan:Iguane',
    'cyclegan': 'bidsharm.harmonizers.cyclegan:CycleGAN',
    'cyclegan3d': 'bidsharm.harmonizers.cyclegan:CycleGAN3D',
    'aggan': 'bidsharm.harmonizers.cyclegan:AttentionGAN',
    'ugatit': 'bidsharm.harmonizers.ugatit:Ugatit',
    'qs-attn': 'bidsharm.harmonizers.cut:QueryAttention',
    'mcdgan': 'bidsharm.harmonizers.mcdgan:DiscrepancyGAN',
    'unit': 'bidsharm.harmonizers.unit:SharedCode',
    'ssgan': 'bidsharm.harmonizers.ssgan:SemiSupervised',
    'ssl-restore': 'bidsharm.harmonizers.ssl_restore:SslRestore',
    'harmonizing-flows': 'bidsharm.harmonizers.ssl_restore:HarmonizingFlows',
    'mispel': 'bidsharm.harmonizers.mispel:Mispel',
    'blindharmony': 'bidsharm.harmonizers.blindharmony:BlindHarmony',
    'stargan2': 'bidsharm.harmonizers.stargan2:StarGAN2',
    'styletransfer': 'bidsharm.harmonizers.stargan2:StyleTransfer',
    'rectified-flow': 'bidsharm.harmonizers.rectified_flow:RectifiedFlow',
    'dlest': 'bidsharm.harmonizers.dlest:Dlest',
    'haca3': 'bidsharm.harmonizers.drl:HACA3',
    'calamiti': 'bidsharm.harmonizers.drl:Calamiti',
    'dewey2020': 'bidsharm.harmonizers.drl:Dewey2020',
    'single-modality': 'bidsharm.harmonizers.drl:SingleModality',
    'murd': 'bidsharm.harmonizers.murd:Murd',
    'munit': 'bidsharm.harmonizers.munit:Munit',
    'style-blind': 'bidsharm.harmonizers.style_blind:StyleBlind',
    'hail': 'bidsharm.harmonizers.hail:Hail',
    'imunity': 'bidsharm.harmonizers.imunity:ImUnity',
    'stytr': 'bidsharm.harmonizers.stytr:StyTr',
    'combat': 'bidsharm.harmonizers.combat:ComBat',
    'combat-gam': 'bidsharm.harmonizers.combat:ComBatGAM',
    'covbat': 'bidsharm.harmonizers.combat:CovBat',
    'longcombat': 'bidsharm.harmonizers.longcombat:LongComBat',
    'gcvae': 'bidsharm.harmonizers.gcvae:GcVAE',
    'causal-flow': 'bidsharm.harmonizers.causal_flow:CausalFlow',
    's2sgan': 'bidsharm.harmonizers.s2sgan:S2SGAN',
    'cdae': 'bidsharm.harmonizers.cdae:CDAE',
    'erm': 'bidsharm.harmonizers.erm:PlainTask',
    'unlearning': 'bidsharm.harmonizers.unlearning:Unlearning',
    'ad2a': 'bidsharm.harmonizers.ad2a:AttentionAdaptation',
    'learn-to-ignore': 'bidsharm.harmonizers.learn_to_ignore:LearnToIgnore',
    'uda-latent': 'bidsharm.harmonizers.uda:LatentAdaptation',
    'uda-image': 'bidsharm.harmonizers.uda:ImageAdaptation',
    'unit-seg': 'bidsharm.harmonizers.unit_task:SharedCodeTask',
}

#: What methods that give no images do, by :attr:`Card.place`, and the command that runs them.
ELSEWHERE = {
    'table': ('harmonizes tables of features, not images', 'bidsharm-table'),
    'surface': ('harmonizes cortical surfaces, not images', 'bidsharm-surface'),
    'task': ('predicts something of images and gives none', 'bidsharm-task'),
}

_log = logging.getLogger(__name__)


def available() -> dict[str, EntryPoint]:
    """Return the entry point of every method by name: built-in ones first, then others by name.

    Nothing is imported. A method of another package cannot take the name of a built-in one.
    """
    ours = {name: EntryPoint(name, value, GROUP) for name, value in _BUILTIN.items()}
    others: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.dist is not None and point.dist.name == 'bidsharm':
            ours[point.name] = point
        elif point.name in _BUILTIN or point.name in others:
            _log.warning('The harmonizer "%s" of %s is ignored: the name is taken.', point.name, point.value)
        else:
            others[point.name] = point
    return {**ours, **dict(sorted(others.items()))}


def get(name: str) -> type[Harmonizer]:
    """Return the class of a method for volumes.

    Parameters
    ----------
    name
        As printed by ``bidsharm-models list``.

    Raises
    ------
    UsageError
        If there is no method of that name, or it does not harmonize volumes.
    ConfigurationError
        As :func:`find`.
    """
    found = find(name)
    if issubclass(found, Harmonizer):
        return found
    what, command = ELSEWHERE[found.card.place]
    raise UsageError(
        f'"{name}" {what}.',
        where='--harmonizer',
        fix=f'Run it with {command} --harmonizer {name}.',
    )


def find(name: str) -> type[HarmonizationMethod]:
    """Return the class of a method of any domain.

    Parameters
    ----------
    name
        As printed by ``bidsharm-models list``.

    Raises
    ------
    UsageError
        If there is no method of that name.
    ConfigurationError
        If the package that offers it cannot be imported, or offers something else than a harmonizer.
    """
    points = available()
    if name not in points:
        near = difflib.get_close_matches(name.lower(), points, n=3)
        known = f'Did you mean {" or ".join(near)}?' if near else f'There are: {", ".join(points)}.'
        raise UsageError(f'There is no harmonizer "{name}".', where='--harmonizer', fix=known)
    point = points[name]
    try:
        found = point.load()
    except Exception as error:
        raise ConfigurationError(
            f'The harmonizer "{name}" ({point.value}) cannot be loaded: {type(error).__name__}: {error}.',
            fix='Repair or remove the package that offers it.',
        ) from error
    problem = _problem(found, name)
    if problem:
        raise ConfigurationError(
            f'The harmonizer "{name}" ({point.value}) {problem}.',
            fix='Repair or remove the package that offers it.',
        )
    return found


def _problem(found: object, name: str) -> str:
    """Return what keeps an object from being the harmonizer of this name, or an empty string."""
    if not (inspect.isclass(found) and issubclass(found, HarmonizationMethod)):
        return 'is not a subclass of Harmonizer'
    if not isinstance(getattr(found, 'card', None), Card):
        return 'has no card'
    if found.card.name != name:
        return f'calls itself "{found.card.name}" in its card'
    if inspect.isabstract(found):
        return 'does not implement harmonize'
    if issubclass(found, Harmonizer) != (found.card.place not in ELSEWHERE):
        return f'is of the domain "{found.card.place}" by its card, and of another one by its class'
    return ''


def card(name: str) -> Card:
    """Return the card of a method of any domain; errors as :func:`find`."""
    return find(name).card


def could_train(offers: Iterable[str]) -> list[str]:
    """Return the methods for volumes that can be trained on what is offered; the arguments are those of :func:`could_run`."""
    offered = frozenset(offers)
    cards = [
        found
        for name in available()
        if (found := _card_or_none(name)) and found.place == 'volume' and 'weights' in found.needs_apply
    ]
    return [found.name for found in cards if offered.issuperset(found.needs_fit)]


def _card_or_none(name: str) -> Card | None:
    """Return a card; None for somebody else's broken package, which `bidsharm-models list` names."""
    try:
        return card(name)
    except ConfigurationError:
        return None


def could_run(offers: Iterable[str]) -> list[str]:
    """Return the methods for volumes whose needs are all offered, for their canonical target.

    Parameters
    ----------
    offers
        Keys of ``NEED_PHRASES``, such as ``Cohort.offers``.
    """
    offered = frozenset(offers)
    names = []
    for name in available():
        found = _card_or_none(name)
        if (
            found
            and found.place == 'volume'
            and offered.issuperset((*found.needs_fit, *found.needs_apply))
            and 'canonical' in found.targets
        ):
            names.append(name)
    return names
