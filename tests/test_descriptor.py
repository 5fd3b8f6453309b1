"""The Boutiques descriptor says what the command line says, and tools that read it can run bidsharm."""

from __future__ import annotations

import argparse
import json
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
from boutiques.bosh import bosh

from bidsharm.cli.parser import build_parser, parse_settings
from bidsharm.errors import ExitCode
from bidsharm.settings import Settings

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / 'descriptors'
FILE = FOLDER / 'bidsharm.json'
INVOCATIONS = sorted((FOLDER / 'invocations').glob('*.json'))
DESCRIPTOR = json.loads(FILE.read_text())
INPUTS = {item['command-line-flag']: item for item in DESCRIPTOR['inputs'] if 'command-line-flag' in item}
OPTIONS = [
    action
    for action in build_parser()._actions
    if action.option_strings and action.help != argparse.SUPPRESS and action.dest not in ('help', 'version')
]


def test_it_is_what_the_command_line_makes_of_it():
    made = runpy.run_path(str(FOLDER / 'make.py'))['text']()
    assert FILE.read_text() == made, 'run `python descriptors/make.py`'


@pytest.mark.parametrize('more', [(), ('--bids',)])
def test_boutiques_accepts_it(more):
    bosh(['validate', *more, str(FILE)])


@pytest.mark.parametrize('action', OPTIONS, ids=lambda action: action.dest)
def test_every_option_is_there_as_it_is(action):
    (item,) = [INPUTS[text] for text in action.option_strings if text in INPUTS]
    assert item['optional']
    assert item['value-key'] in DESCRIPTOR['command-line'].split()
    assert (item['type'] == 'Flag') == (action.nargs == 0)
    assert item.get('list', False) == (action.nargs == '+')
    assert item.get('value-choices') == (list(action.choices) if action.choices else None)
    if item['type'] == 'Number':
        for text in (str(item['minimum']), str(item.get('maximum', 10**6))):
            assert action.type(text) == int(text)
        for text in (str(item['minimum'] - 1), '1.5'):
            with pytest.raises(argparse.ArgumentTypeError):
                action.type(text)


@pytest.mark.parametrize('action', OPTIONS, ids=lambda action: action.dest)
def test_a_default_is_told_and_left_to_the_program(action):
    (item,) = [INPUTS[text] for text in action.option_strings if text in INPUTS]
    # one in the descriptor would be put on every command line, and win over a settings file
    assert 'default-value' not in item
    default = Settings.__dataclass_fields__[action.dest].default if action.dest in vars(Settings) else None
    if action.dest in ('nprocs', 'omp_nthreads', 'mem_gb'):
        assert 'default' in item['description']
    elif default and not isinstance(default, (bool, tuple)) and item['type'] != 'Flag':
        assert 'default' in item['description']
        assert str(default) in item['description']


def test_nothing_else_is_there():
    known = {text for action in OPTIONS for text in action.option_strings}
    assert set(INPUTS) <= known
    assert len(INPUTS) == len(OPTIONS)


def test_error_codes_and_versions():
    codes = {item['code'] for item in DESCRIPTOR['error-codes']}
    assert codes == {int(code) for code in ExitCode} - {0}
    dynamic = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['dynamic']
    assert 'version' in dynamic
    from bidsharm import __version__

    assert DESCRIPTOR['tool-version'] == DESCRIPTOR['custom']['BIDSApplicationVersion'] == __version__


@pytest.mark.parametrize('file', INVOCATIONS, ids=lambda file: file.stem)
def test_an_invocation_becomes_a_command_that_is_understood(file, tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    monkeypatch.chdir(tmp_path)
    bosh(['invocation', str(FILE), '-i', str(file)])
    line = bosh(['exec', 'simulate', '-i', str(file), str(FILE)]).stdout
    make, _, command = line.strip().partition('; ')
    given = json.loads(file.read_text())
    assert shlex.split(make) == ['mkdir', '-p', given['output_dir']]
    program, *arguments = shlex.split(command)
    assert program == 'bidsharm'
    settings = parse_settings(arguments)
    assert settings.bids_dir == tmp_path / 'data'
    assert settings.output_dir == tmp_path / given.pop('output_dir')
    for name, value in given.items():
        if name not in ('bids_dir', 'mem_gb'):
            found = getattr(settings, name)
            if isinstance(found, Path):
                found = found.relative_to(tmp_path).as_posix()
            assert (list(found) if isinstance(value, list) else found) == value
    assert settings.mem_gb == (8 if 'mem_gb' in given else settings.mem_gb)


def test_the_examples_cover_both_levels():
    levels = {json.loads(file.read_text())['analysis_level'] for file in INVOCATIONS}
    assert levels == {'participant', 'group'}


def test_what_nipoppy_gets_becomes_a_command_that_is_understood(tmp_path, monkeypatch):
    from bidsharm import __version__

    folder = ROOT / 'descriptors' / 'nipoppy'
    assert json.loads((folder / 'config.json').read_text())['VERSION'] == __version__
    (tmp_path / 'data').mkdir()
    monkeypatch.chdir(tmp_path)
    text = (folder / 'invocation.json').read_text()
    for name, value in (
        ('DPATH_BIDS', 'data'), ('DPATH_PIPELINE_OUTPUT', 'out'), ('DPATH_PIPELINE_WORK', 'work'), ('PARTICIPANT_ID', '01'),
        ('SESSION_ID', 'a'),
    ):  # fmt: skip
        assert f'[[NIPOPPY_{name}]]' in text
        text = text.replace(f'[[NIPOPPY_{name}]]', value)
    assert '[[' not in text
    (tmp_path / 'invocation.json').write_text(text)
    line = bosh(['exec', 'simulate', '-i', 'invocation.json', str(FILE)]).stdout
    settings = parse_settings(shlex.split(line.strip().partition('; ')[2])[1:])
    assert (settings.bids_dir, settings.output_dir) == (tmp_path / 'data', tmp_path / 'out')
    assert (settings.participant_label, settings.session_label) == (('01',), ('a',))
    assert settings.work_dir == tmp_path / 'work'
    for pattern in json.loads((folder / 'tracker.json').read_text())['PATHS']:
        assert pattern.endswith(('_desc-harmonized_T1w.nii.gz', '_desc-T1w_qc.json'))


def test_what_babs_adds_to_the_command_is_understood(tmp_path):
    import yaml

    from bidsharm import __version__

    config = yaml.safe_load((ROOT / 'descriptors' / 'babs' / 'bidsharm.yaml').read_text())
    assert config['zip_foldernames'] == {'bidsharm': __version__.replace('.', '-')}
    given = dict(config['bids_app_args'])
    flag = given.pop('$SUBJECT_SELECTION_FLAG')
    assert given['-w'] == '$BABS_TMPDIR'
    given['-w'] = str(tmp_path / 'work')
    (tmp_path / 'data').mkdir()
    words = [word for pair in given.items() for word in pair if word]
    arguments = [str(tmp_path / 'data'), str(tmp_path / 'out'), 'participant', *words, flag, 'sub-01']
    settings = parse_settings(arguments)
    assert settings.participant_label == ('01',)
    assert (settings.offline, settings.skip_bids_validation, settings.nprocs, settings.mem_gb) == (
        True,
        True,
        4,
        8,
    )
