"""Settings: what is written can be read, what is wrong is refused, what matters changes the digest."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from bidsharm.errors import UsageError
from bidsharm.settings import CONTRASTS, MAX_SEED, RESULT_FIELDS, Settings, from_dict, load_values, reason

BASE = Settings(Path('/data/bids'), Path('/data/out'))

#: A value other than the default for every field.
OTHER = {
    'bids_dir': Path('/data/ünïcode dir'), 'output_dir': Path('/data/"quoted"\\out'), 'analysis_level': 'group',
    'participant_label': ('01', 'sub'), 'session_label': ('a',), 'run': ('1', '02'), 'contrasts': ('FLAIR', 'T1w'),
    'bids_filter_file': Path('/f.json'), 'derivatives': {'smriprep': Path('/s'), 'a.b': Path('/t')},
    'bids_database_dir': Path('/db'), 'skip_bids_validation': True, 'follow_links': True, 'harmonizer': 'nyul', 'target': 'site "A"\nx',
    'target_scans': 3, 'site': 'a,b', 'model': Path('/m'), 'weights_dir': Path('/w'), 'skull_strip': 'force',
    'brain_extraction': 'ants', 'registration': 'syn', 'output_spaces': ('T1w', 'MNI:res-1'), 'random_seed': 7,
    'sloppy': True, 'qc_thresholds': {'dice_gm': {'warn': 0.9, 'fail': 1}}, 'work_dir': Path('/work'), 'fmriprep_derivatives': Path('/harm'),
    'clean_workdir': True, 'nprocs': 5, 'omp_nthreads': 3, 'mem_gb': 0.1 + 0.2, 'use_plugin': Path('/p.yml'),
    'device': 'cuda:1', 'oom_fallback': 'cpu', 'guard': 'refuse', 'table_harmonizer': 'combat', 'table_keep': 'age', 'offline': True, 'reports_only': True, 'boilerplate_only': True,
    'dry_run': True, 'force': True, 'stop_on_first_crash': True, 'resource_monitor': True, 'write_graph': True,
    'notrack': False, 'verbose': 2, 'log_json': True,
}  # fmt: skip

FIELDS = [item.name for item in dataclasses.fields(Settings)]


def test_the_table_of_this_file_is_whole():
    assert set(OTHER) == set(FIELDS)
    assert [name for name in FIELDS if OTHER[name] == getattr(BASE, name)] == []


# --- reading and writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize('settings', [BASE, Settings(**OTHER)], ids=['defaults', 'everything'])
def test_round_trip(settings, tmp_path):
    file = tmp_path / 'settings.toml'
    file.write_text(settings.to_toml(), encoding='utf-8')
    again = from_dict(load_values(file))
    assert again == settings
    assert again.digest() == settings.digest()
    for name in FIELDS:
        assert type(getattr(again, name)) is type(getattr(settings, name)), name


@pytest.mark.parametrize('name', FIELDS)
def test_every_field_is_written(name):
    text = dataclasses.replace(BASE, **{name: OTHER[name]}).to_toml()
    assert getattr(from_dict(tomllib.loads(text)['bidsharm']), name) == OTHER[name]


def test_table_may_be_named_or_not(tmp_path):
    named, bare = tmp_path / 'named.toml', tmp_path / 'bare.toml'
    named.write_text('[bidsharm]\ntarget = "A"\nrun = [1, "02"]\n')
    bare.write_text('target = "A"\nrun = [1, "02"]\n')
    assert load_values(named) == load_values(bare) == {'target': 'A', 'run': [1, '02']}
    values = {'bids_dir': '/a', 'output_dir': '/b', **load_values(named)}
    assert from_dict(values).run == ('1', '02')


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (b'[bidsharm]\nharmoniser = "x"', 'Did you mean "harmonizer"?'),
        (b'nproc = 3', 'Did you mean "nprocs"?'),
        (b'zzzz = 3', 'Known keys: bids_dir'),
        (b'bidsharm = 3', 'must be a table'),
        (b'bidsharm = [1]', 'must be a table'),
        (b'target = ', 'cannot be read'),
        (b'\xff', 'cannot be read'),
    ],
)
def test_wrong_files(tmp_path, content, said):
    file = tmp_path / 'settings.toml'
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_values(file)
    assert said in str(caught.value)
    assert caught.value.where == str(file)


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match='does not exist'):
        load_values(tmp_path / 'gone.toml')
    with pytest.raises(UsageError, match='cannot be read'):
        load_values(tmp_path)


# --- what is refused --------------------------------------------------------------------------------------


def wrong_values():
    """Yield for every field values that TOML can hold and that are of another type."""
    for name, kind in ((item.name, str(item.type)) for item in dataclasses.fields(Settings)):
        wrong: list[object] = [[['x']], {'a': {'b': 'c'}}, {'a': 1.5}]
        if not kind.startswith('tuple'):
            wrong.append(['x'])
        else:
            wrong += ['text', [1.5], [True]]
        if kind not in ('int', 'float'):
            wrong.append(3)
        if kind != 'float':
            wrong.append(2.5)
        if kind != 'bool':
            wrong.append(True)
        if kind in ('bool', 'int', 'float') or kind.startswith('dict'):
            wrong.append('text')
        for value in wrong:
            yield pytest.param(name, value, id=f'{name}-{value}')


@pytest.mark.parametrize(('name', 'value'), list(wrong_values()))
def test_wrong_types_are_refused(name, value):
    with pytest.raises(UsageError, match='wrong type') as caught:
        from_dict({'bids_dir': '/a', 'output_dir': '/b', name: value}, where='here')
    assert f'"{name}"' in caught.value.what
    assert caught.value.where == 'here'


CHOICES = {name: get_args(hint) for name, hint in get_type_hints(Settings).items() if 'Literal' in str(hint)}


@pytest.mark.parametrize('name', CHOICES)
@pytest.mark.parametrize('value', ['', 'other', "auto', 'force", 'uto'])
def test_other_choices_are_refused(name, value):
    with pytest.raises(UsageError, match='cannot be') as caught:
        from_dict({'bids_dir': '/a', 'output_dir': '/b', name: value})
    assert all(choice in caught.value.fix for choice in CHOICES[name])


@pytest.mark.parametrize('name', CHOICES)
def test_every_choice_is_accepted(name):
    assert len(CHOICES) == 6
    for choice in CHOICES[name]:
        assert getattr(from_dict({'bids_dir': '/a', 'output_dir': '/b', name: choice}), name) == choice


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('contrasts', ['T1w', 'T2star']), ('contrasts', ['t1w']), ('nprocs', 0), ('nprocs', -1), ('omp_nthreads', 0),
        ('mem_gb', 0), ('mem_gb', -8.0), ('mem_gb', float('nan')), ('target_scans', 0),
        ('random_seed', -1), ('random_seed', 2**31 - 1), ('site', ''), ('site', ' '), ('site', ','), ('site', ' , ,'),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(name, value):
    with pytest.raises(UsageError):
        from_dict({'bids_dir': '/a', 'output_dir': '/b', name: value})


def test_seeds_that_ants_can_take():
    """ANTs gets the seed plus one: 0 would mean the clock, and more than 31 bits another seed."""
    for seed in (0, 2**31 - 2):
        assert from_dict({'bids_dir': '/a', 'output_dir': '/b', 'random_seed': seed}).random_seed == seed
    assert MAX_SEED + 1 == 2**31 - 1


def test_reasons_are_words(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_values(tmp_path)
    assert 'Errno' not in caught.value.what
    assert str(tmp_path) not in caught.value.what
    assert reason(ValueError('the reason')) == reason(OSError('the reason')) == 'the reason'


def test_unknown_key_names_the_nearest():
    with pytest.raises(UsageError, match='Did you mean "skull_strip"') as caught:
        from_dict({'bids_dir': '/a', 'output_dir': '/b', 'skullstrip': 'auto'}, where='file.toml')
    assert str(caught.value).startswith('file.toml: Unknown key "skullstrip".')


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.target = 'x'  # type: ignore[misc]


# --- digest -----------------------------------------------------------------------------------------------


#: What can make a harmonized scan look different; said here a second time, so that neither list changes unseen.
DECISIVE = {
    'harmonizer', 'target', 'model', 'target_scans', 'site', 'skull_strip', 'brain_extraction',
    'registration', 'output_spaces', 'random_seed', 'sloppy', 'qc_thresholds', 'oom_fallback', 'guard',
}  # fmt: skip


@pytest.mark.parametrize('name', FIELDS)
def test_the_digest_follows_exactly_what_decides_the_result(name):
    changed = dataclasses.replace(BASE, **{name: OTHER[name]})
    assert (changed.digest() != BASE.digest()) is (name in DECISIVE)


def test_result_fields_are_fields():
    assert set(RESULT_FIELDS) == DECISIVE <= set(FIELDS)
    assert len(set(RESULT_FIELDS)) == len(RESULT_FIELDS)


def test_the_digest_takes_the_model_in():
    assert BASE.digest(model='a') != BASE.digest(model='b')
    assert BASE.digest(model='a') == BASE.digest(model='a')
    assert BASE.digest(model='a') != BASE.digest(other='a')


def test_the_digest_is_the_same_on_every_machine():
    """Results of one release must be recognized by the next process: no hash of Python's, no order of a dict."""
    one = dataclasses.replace(BASE, derivatives={'a': Path('/a'), 'b': Path('/b')})
    two = dataclasses.replace(BASE, derivatives={'b': Path('/b'), 'a': Path('/a')})
    assert one.digest() == two.digest()
    assert set(BASE.digest()) <= set('0123456789abcdef')
    assert len(BASE.digest()) == 16


def test_contrasts_in_their_order():
    assert BASE.contrasts == CONTRASTS == ('T1w', 'T2w', 'FLAIR', 'PDw')
