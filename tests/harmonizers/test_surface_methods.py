"""What holds for every method that harmonizes cortical surfaces, on simulated people whose true thickness is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bidsharm.errors import ConfigurationError, MissingNeed, ScanError, UsageError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import Canonical, Execution, Reference, Site
from bidsharm.harmonizers.surface import SurfaceMap, TrainedSurface
from bidsharm.imaging.icosphere import vertex_count
from bidsharm.simulation.surfaces import AGING, SurfaceSite, draw_cortex, measure

METHODS = [name for name in registry._BUILTIN if registry.card(name).domain == 'surface']
LEVEL = 3
#: Sites that see all of the cortex in the same way, so that the mean tells everything that there is to harmonize.
SITES = (SurfaceSite('A'), SurfaceSite('B', gain=1.1, offset=0.2))


@pytest.fixture(autouse=True, scope='module')
def one_thread_for_fits() -> Iterator[None]:
    """Let torch use one thread in fixtures of the module, too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seen(number: int, site: SurfaceSite, side: str = 'L', level: int = LEVEL) -> SurfaceMap:
    cortex = draw_cortex(3, number, f'{number}', level)
    values = measure(cortex, site, side, level, 3).astype(np.float32)
    return SurfaceMap(
        values, values > 0, side, name=f'{number}-{site.label}', site=site.label, person=f'{number}'
    )


def strangers(count: int = 40, side: str = 'L') -> list[SurfaceMap]:
    """Return people who were seen at one site each."""
    return [seen(number, SITES[number % 2], side) for number in range(count)]


def small(name: str, **changes: object) -> TrainedSurface:
    kind = registry.find(name)
    assert issubclass(kind, TrainedSurface)
    return kind(settings=kind.preset('tiny', **changes))


@pytest.fixture(scope='module', params=METHODS)
def trained(request: pytest.FixtureRequest) -> TrainedSurface:
    method = small(request.param)
    method.fit(strangers(), target=Site('A'))
    return method


@pytest.mark.parametrize('name', METHODS)
def test_the_card_says_what_it_is(name: str) -> None:
    card = registry.card(name)
    assert card.domain == 'surface'
    assert card.output == 'image'
    assert card.targets == ('site',)
    assert card.needs_fit == ('two_sites',)
    assert card.needs_apply == ('weights',)
    assert card.fidelity == 'faithful' or len(card.deviations) > 20


def test_the_site_goes_and_age_stays(trained: TrainedSurface) -> None:
    people = range(100, 130)
    ages = np.array([draw_cortex(3, number, f'{number}', LEVEL).age for number in people])
    true = [draw_cortex(3, number, f'{number}', LEVEL).thickness['L'] for number in people]
    at = {site.label: [seen(number, site) for number in people] for site in SITES}
    after = {label: [trained.harmonize(one, Site('A')) for one in maps] for label, maps in at.items()}
    cortex = at['A'][0].cortex

    def means(maps: list) -> np.ndarray:
        return np.array([one.values[cortex].mean() for one in maps])

    apart = np.abs(means(at['B']) - means(at['A'])).mean()
    assert np.abs(means(after['B']) - means(after['A'])).mean() < 0.4 * apart
    errors = [
        np.mean([np.abs(one.values - wanted)[cortex].mean() for one, wanted in zip(maps, true, strict=True)])
        for maps in (at['B'], after['B'])
    ]
    assert errors[1] < 0.6 * errors[0]
    slope = np.polyfit(ages, means(after['B']), 1)[0]
    wanted = np.polyfit(ages, [one[cortex].mean() for one in true], 1)[0]
    assert wanted == pytest.approx(AGING, rel=0.4)
    assert slope == pytest.approx(wanted, rel=0.25)
    # People stay who they are.
    alike = [
        np.corrcoef(one.values[cortex], wanted[cortex])[0, 1]
        for one, wanted in zip(after['B'], true, strict=True)
    ]
    assert np.mean(alike) > 0.95


def test_a_map_of_the_target_hardly_changes(trained: TrainedSurface) -> None:
    one = seen(200, SITES[0])
    found = trained.harmonize(one, Site('A')).values
    assert np.abs(found - one.values)[one.cortex].mean() < 0.02


def test_what_is_no_cortex_is_left_as_it_is(trained: TrainedSurface) -> None:
    one = seen(201, SITES[1])
    values = one.values.copy()
    values[~one.cortex] = np.nan
    found = trained.harmonize(replace(one, values=values), Site('A'))
    assert np.isnan(found.values[~one.cortex]).all()
    assert np.array_equal(found.values[one.cortex], trained.harmonize(one, Site('A')).values[one.cortex])
    assert found.values.dtype == np.float32
    assert json.loads(json.dumps(found.details, allow_nan=False)) == found.details


def test_the_input_is_not_changed(trained: TrainedSurface) -> None:
    one = seen(202, SITES[1])
    before = one.values.copy()
    trained.harmonize(one, Site('A'))
    assert np.array_equal(one.values, before)


def test_a_bundle_gives_the_same(trained: TrainedSurface, tmp_path: Path) -> None:
    bundle.save(trained, tmp_path / 'model')
    found = bundle.load_any(tmp_path / 'model')
    assert type(found) is type(trained)
    one = seen(203, SITES[1])
    assert np.array_equal(found.harmonize(one, Site('A')).values, trained.harmonize(one, Site('A')).values)  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match='harmonizes cortical surfaces, not images'):
        bundle.load(tmp_path / 'model')


def test_an_unknown_site_is_served_with_a_word(trained: TrainedSurface) -> None:
    found = trained.harmonize(replace(seen(204, SITES[1]), site='Z'), Site('A'))
    assert any('"Z"' in warning for warning in found.warnings)
    assert np.isfinite(found.values).all()
    assert not trained.harmonize(seen(204, SITES[1]), Site('A')).warnings


@pytest.mark.parametrize('name', METHODS)
def test_the_same_seed_gives_the_same(name: str) -> None:
    one = seen(205, SITES[1])
    found = []
    for seed in (0, 0, 1):
        method = small(name, steps=3)
        method.fit(strangers(6), target=Site('A'), seed=seed)
        found.append(method.harmonize(one, Site('A')).values)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize('name', METHODS)
def test_each_hemisphere_has_networks_of_its_own(name: str) -> None:
    method = small(name, steps=2)
    method.fit([*strangers(4, 'L'), *strangers(4, 'R')], target=Site('B'))
    assert set(method.hemispheres) == {'L', 'R'}
    assert method.units['L'] != method.units['R']
    for side in 'LR':
        assert np.isfinite(method.harmonize(seen(1, SITES[0], side), Site('B')).values).all()
    left = small(name, steps=2)
    left.fit(strangers(4, 'L'), target=Site('B'))
    with pytest.raises(ScanError, match='hemisphere L only'):
        left.harmonize(seen(1, SITES[0], 'R'), Site('B'))


@pytest.mark.parametrize('name', METHODS)
def test_what_cannot_be_trained_is_refused(name: str) -> None:
    method, maps = small(name, steps=1), strangers(4)
    with pytest.raises(MissingNeed, match='not trained'):
        method.harmonize(maps[0], Site('A'))
    with pytest.raises(MissingNeed, match='at least two sites; hemisphere L has A'):
        method.fit([one for one in maps if one.site == 'A'], target=Site('A'))
    with pytest.raises(MissingNeed, match='comes from the site "C"'):
        method.fit(maps, target=Site('C'))
    for target in (Canonical(), Reference('a.gii')):
        with pytest.raises(UsageError, match='aims at a site'):
            method.fit(maps, target=target)
    with pytest.raises(UsageError, match='has no site'):
        method.fit([*maps, replace(maps[0], site='')], target=Site('A'))
    with pytest.raises(UsageError, match='sulc, thickness'):
        method.fit([*maps, replace(maps[0], measure='sulc')], target=Site('A'))
    with pytest.raises(MissingNeed, match='two sites'):
        method.fit([], target=Site('A'))


BAD = {
    'has 12 vertices': lambda one: replace(one, values=one.values[:12], cortex=one.cortex[:12]),
    'at 0 vertices only': lambda one: replace(one, cortex=np.zeros_like(one.cortex)),
    'no numbers': lambda one: replace(one, values=np.full_like(one.values, np.nan)),
    'same value': lambda one: replace(one, values=np.ones_like(one.values)),
    'not on sulc': lambda one: replace(one, measure='sulc'),
}


@pytest.mark.parametrize('message', BAD)
def test_a_bad_map_is_named(trained: TrainedSurface, message: str) -> None:
    with pytest.raises(ScanError, match=message):
        trained.harmonize(BAD[message](replace(seen(206, SITES[1]), name='sub-07')), Site('A'))


def test_another_target_is_refused(trained: TrainedSurface) -> None:
    with pytest.raises(MissingNeed, match='trained for "A", not for "B"'):
        trained.harmonize(seen(207, SITES[0]), Site('B'))


@pytest.mark.parametrize('name', METHODS)
def test_presets_and_their_settings(name: str) -> None:
    kind = registry.find(name)
    assert issubclass(kind, TrainedSurface)
    assert vertex_count(kind.preset().level) == 40962
    assert kind.preset('tiny', steps=7).steps == 7
    with pytest.raises(UsageError, match='no preset'):
        kind.preset('huge')
    with pytest.raises(UsageError, match='no setting "colour"'):
        kind.preset(colour=1)


@pytest.mark.parametrize('name', METHODS)
def test_images_are_not_harmonized_by_it(name: str) -> None:
    with pytest.raises(UsageError, match='bidsharm-surface'):
        registry.get(name)


def test_cdae_needs_its_code_for_sites_it_has_not_seen() -> None:
    method = small('cdae', steps=2)
    method.fit(strangers(4), target=Site('A'), seed=1)
    known, unknown = (
        method.harmonize(replace(seen(208, SITES[1]), site=site), Site('A')).values for site in ('B', 'Z')
    )
    # Untrained, a code holds little: what is kept of a map of a known site, and is not of an unknown one.
    one = seen(208, SITES[1])
    assert np.corrcoef(known[one.cortex], one.values[one.cortex])[0, 1] > 0.9
    assert np.corrcoef(unknown[one.cortex], one.values[one.cortex])[0, 1] < 0.9


def test_losses_of_cdae_are_those_of_the_script() -> None:
    import torch

    from bidsharm.training.options import Running

    method = small('cdae', steps=1)
    method.execution = Execution()
    method.fit(strangers(4), target=Site('A'), running=Running(seed=0))
    assert set(method.players) == {'autoencoder', 'classifier', 'adversary', 'cycle'}
    torch.manual_seed(0)
    method.networks = torch.nn.ModuleDict(method.build())
    batch = {'x': torch.randn(2, 1, 642), 'x_mask': torch.ones(2, 1, 642), 'site': torch.tensor([0, 1])}
    batch |= {'z': torch.randn(2, 1, 642), 'z_mask': torch.ones(2, 1, 642), 'z_site': torch.tensor([1, 1])}
    found = dict(method.losses(batch, 'train'))
    net = method.networks
    code = net['encoder'](batch['x'])
    site = torch.eye(2)
    rebuilt = net['decoder'](code, site)
    apart = (rebuilt - batch['x']).abs().mean() + 3 * (rebuilt - batch['x']).square().mean()
    assert torch.allclose(found['autoencoder']['rebuilt'], apart)
    guess = net['of_code'](code)
    entropy = -(site * guess.log() + (1 - site) * (1 - guess).log()).mean()
    assert torch.allclose(found['classifier']['code'], 0.5 * entropy)
    half = -0.5 * (guess.log() + (1 - guess).log()).mean()
    assert torch.allclose(found['adversary']['code'], 0.4 * half)
    moved = net['decoder'](net['encoder'](batch['z']), torch.tensor([[1.0, 0], [1, 0]]))
    flat = [(x - x.mean(dim=2, keepdim=True)).flatten(1) for x in (moved, batch['z'])]
    r = ((flat[0] * flat[1]).sum(1) / flat[0].norm(dim=1) / flat[1].norm(dim=1)).mean()
    assert torch.allclose(found['cycle']['correlation'], 10 * (1 - r), atol=1e-4)
