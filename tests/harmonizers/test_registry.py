from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import Canonical

PLUGIN = Path(__file__).parent / 'plugin'


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that makes entry points visible, as an installed package would."""

    def add(lines, package='others'):
        info = tmp_path / f'{package}-1.0.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n')
        (info / 'entry_points.txt').write_text('[bidsharm.harmonizers]\n' + '\n'.join(lines) + '\n')

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(PLUGIN))
    yield add
    sys.modules.pop('doubling', None)


def test_the_table_of_built_in_methods_is_that_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / 'pyproject.toml').read_text())
    assert project['project']['entry-points'][registry.GROUP] == registry._BUILTIN


def test_built_in_methods_are_there():
    assert set(registry._BUILTIN) <= set(registry.available())
    for name in registry._BUILTIN:
        assert registry.find(name).card.name == name


@pytest.mark.parametrize(('wrong', 'near'), [('zsore', 'zscore'), ('Robust', 'robust'), ('nyull', 'nyul')])
def test_an_unknown_name_brings_the_nearest(wrong, near):
    with pytest.raises(UsageError, match=f'"{wrong}".*{near}'):
        registry.get(wrong)


def test_an_unknown_name_like_none_brings_all():
    with pytest.raises(UsageError, match=r'identity, robust.*histogram'):
        registry.get('qqqqqq')


def test_another_package_is_found_and_runs(install, make_scan, tmp_path):
    install(['doubling = doubling:Doubling'])
    assert 'doubling' in registry.available()
    scan = make_scan()
    harmonizer = registry.get('doubling')()
    image = harmonizer.harmonize(scan, Canonical()).image
    assert np.array_equal(image[scan.mask], 2 * scan.data[scan.mask])
    assert 'doubling' in registry.could_run(())
    bundle.save(harmonizer, tmp_path / 'model')
    assert type(bundle.load(tmp_path / 'model')).__name__ == 'Doubling'
    assert harmonizer.target_quantiles('T1w') is None


def test_a_broken_package_breaks_only_itself(install):
    install(['gone = package_that_is_not_there:Thing', 'doubling = doubling:Doubling'])
    assert {'gone', 'doubling', 'robust'} <= set(registry.available())
    with pytest.raises(ConfigurationError, match=r'"gone".*ModuleNotFoundError'):
        registry.get('gone')
    assert 'gone' not in registry.could_run(())
    assert 'doubling' in registry.could_run(())


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('other = doubling:Doubling', 'calls itself "doubling"'),
        ('other = doubling:np', 'not a subclass'),
        ('other = bidsharm.harmonizers.contract:Harmonizer', 'no card'),
    ],
)
def test_what_is_no_harmonizer_is_refused(install, line, message):
    install([line])
    with pytest.raises(ConfigurationError, match=message):
        registry.get('other')


def test_no_package_can_take_the_name_of_a_built_in_method(install, caplog):
    install(['robust = doubling:Doubling'])
    assert registry.get('robust').__name__ == 'Robust'
    assert 'name is taken' in caplog.text


def test_an_installed_bidsharm_offers_through_its_own_entry_points(install):
    install([f'{name} = {value}' for name, value in registry._BUILTIN.items()], package='bidsharm')
    assert registry.available()['robust'].dist is not None
    assert list(registry.available())[: len(registry._BUILTIN)] == list(registry._BUILTIN)


def test_could_run_depends_on_what_is_offered():
    def could(*offers):
        return {*registry.could_run(offers)} & {*registry._BUILTIN}

    alone = {'identity', 'robust', 'zscore', 'tscore', 'kde', 'whitestripe', 'isotone'}
    assert could() == alone
    assert could('tissue') == alone | {'fcm'}
    assert could('cohort') == alone | {'nyul', 'histogram'}
    assert could('cohort', 'tissue') == {
        n
        for n in registry._BUILTIN
        if registry.card(n).place == 'volume' and 'weights' not in registry.card(n).needs_apply
    }


def test_could_train_depends_on_what_is_offered():
    assert 'deepharmony' not in registry.could_train({'two_sites', 'site'})
    assert {'iguane', 'cyclegan'} <= {*registry.could_train({'two_sites', 'site'})}
    assert {'deepharmony', 'unet3d'} <= {*registry.could_train({'paired'})}
    assert not {*registry.could_train({'paired'})} & {'tscore', 'isotone'}


@pytest.mark.parametrize(('domain', 'kind'), [('table', 'Doubling'), ('volume', 'Tables')])
def test_a_card_of_another_domain_than_the_class_is_refused(install, monkeypatch, domain, kind):
    from dataclasses import replace

    install(['doubling = doubling:Doubling'])
    found = registry.find('doubling')
    if kind == 'Tables':
        import sys

        from bidsharm.harmonizers.combat import ComBat

        monkeypatch.setattr(
            sys.modules['doubling'], 'Doubling', type('Tables', (ComBat,), {'card': found.card})
        )
    else:
        monkeypatch.setattr(found, 'card', replace(found.card, domain=domain))
    with pytest.raises(ConfigurationError, match=f'of the domain "{domain}" by its card'):
        registry.find('doubling')
