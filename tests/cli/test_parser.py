"""The command line: every option reaches the settings, and nonsense is refused with the code for usage."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys

import pytest

from bidsharm import __version__
from bidsharm.cli.parser import build_parser, parse_memory, parse_settings
from bidsharm.errors import UsageError
from bidsharm.machine import available_cores, available_memory_gb
from bidsharm.settings import Settings, from_dict


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a data set, a filter file and a plugin file, where the command is typed."""
    for folder in ('bids/sub-01/anat', 'smriprep', 'other'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'filters.json').write_text('{}')
    (tmp_path / 'plugin.yml').write_text('plugin: Linear')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*options, level='participant'):
    return parse_settings(['bids', 'out', level, *map(str, options)])


def refused(capsys, *options):
    """Return what is said when argparse refuses."""
    with pytest.raises(SystemExit) as caught:
        parse(*options)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == '', 'complaints do not go into a pipe'
    return said.err


OPTIONS = [
    ('--participant-label 01 sub-02 sub', {'participant_label': ('01', '02', 'sub')}),
    ('--participant_label sub-01', {'participant_label': ('01',)}),
    ('--session-label ses-a b', {'session_label': ('a', 'b')}),
    ('--session-id a', {'session_label': ('a',)}),
    ('--run 1 run-02', {'run': ('1', '02')}),
    ('--run-id 1', {'run': ('1',)}),
    ('--contrasts T2w FLAIR', {'contrasts': ('T2w', 'FLAIR')}),
    ('--modalities PDw', {'contrasts': ('PDw',)}),
    ('--bids-filter-file filters.json', {'bids_filter_file': '{here}/filters.json'}),
    ('-d smri=smriprep other', {'derivatives': {'smri': '{here}/smriprep', 'other': '{here}/other'}}),
    ('--derivatives other', {'derivatives': {'other': '{here}/other'}}),
    ('--bids-database-dir index', {'bids_database_dir': '{here}/index'}),
    ('--skip-bids-validation', {'skip_bids_validation': True}),
    ('--harmonizer nyul', {'harmonizer': 'nyul'}),
    ('--target northA', {'target': 'northA'}),
    ('--target-scans 3', {'target_scans': 3}),
    ('--site session', {'site': 'session'}),
    ('--model mine', {'model': 'mine'}),
    ('--weights-dir w', {'weights_dir': '{here}/w'}),
    ('--device cuda:1', {'device': 'cuda:1'}),
    ('--device mps', {'device': 'mps'}),
    ('--oom-fallback cpu', {'oom_fallback': 'cpu'}),
    ('--guard refuse', {'guard': 'refuse'}),
    ('--table-harmonizer combat', {'table_harmonizer': 'combat'}),
    ('--table-keep age', {'table_keep': 'age'}),
    ('--skull-strip force', {'skull_strip': 'force'}),
    ('--brain-extraction ants', {'brain_extraction': 'ants'}),
    ('--registration syn', {'registration': 'syn'}),
    ('--output-spaces native T1w MNI152NLin2009cAsym:res-2',
     {'output_spaces': ('native', 'T1w', 'MNI152NLin2009cAsym:res-2')}),
    ('--random-seed 3', {'random_seed': 3}),
    ('--random-seed 2147483646', {'random_seed': 2147483646}),
    ('--sloppy', {'sloppy': True}),
    ('-w work', {'work_dir': '{here}/work'}),
    ('--fmriprep-derivatives harm', {'fmriprep_derivatives': '{here}/harm'}),
    ('--work-dir /elsewhere', {'work_dir': '/elsewhere'}),
    ('--clean-workdir', {'clean_workdir': True}),
    ('--nprocs 3', {'nprocs': 3, 'omp_nthreads': 3}),
    ('--nthreads 3', {'nprocs': 3, 'omp_nthreads': 3}),
    ('--n-cpus 9', {'nprocs': 9, 'omp_nthreads': 4}),
    ('--n_cpus 9', {'nprocs': 9, 'omp_nthreads': 4}),
    ('--nprocs 3 --omp-nthreads 2', {'nprocs': 3, 'omp_nthreads': 2}),
    ('--mem 1500M', {'mem_gb': 1.5}),
    ('--mem-gb 3', {'mem_gb': 3.0}),
    ('--use-plugin plugin.yml', {'use_plugin': '{here}/plugin.yml'}),
    ('--resource-monitor', {'resource_monitor': True}),
    ('--log-json', {'log_json': True}),
    ('--offline', {'offline': True}),
    ('--follow-links', {'follow_links': True}),
    ('--dry-run', {'dry_run': True}),
    ('--force', {'force': True}),
    ('--reports-only', {'reports_only': True}),
    ('--boilerplate-only', {'boilerplate_only': True}),
    ('--write-graph', {'write_graph': True}),
    ('--stop-on-first-crash', {'stop_on_first_crash': True}),
    ('--notrack', {}),
    ('--force --no-force', {}),
    ('--no-skip-bids-validation --no-sloppy --no-clean-workdir --no-resource-monitor --no-offline --no-follow-links', {}),
    ('--no-dry-run --no-reports-only --no-boilerplate-only --no-write-graph --no-stop-on-first-crash', {}),
    ('--log-json --no-log-json', {}),
    ('-v', {'verbose': 1}),
    ('-vv --verbose', {'verbose': 3}),
]  # fmt: skip


def expected(here, changes):
    """Return the settings of a plain call with some changes, through the plain types of a settings file."""
    base = parse().to_dict()
    return from_dict({**base, **json.loads(json.dumps(changes).replace('{here}', str(here)))})


@pytest.mark.parametrize(('options', 'changes'), OPTIONS, ids=[options for options, _ in OPTIONS])
def test_every_option_lands_where_it_belongs_and_nowhere_else(here, options, changes):
    assert parse(*options.split()) == expected(here, changes)


def test_no_option_is_forgotten():
    """Every option of the parser is in the table above, by one of its spellings, and is a setting."""
    typed = {
        word for options, _ in OPTIONS for word in options.replace('-vv', '-v').split() if word[0] == '-'
    }
    fields = {item.name for item in dataclasses.fields(Settings)}
    for action in build_parser()._actions:
        if action.dest in ('help', 'version', 'config_file'):
            continue
        assert action.dest in fields, action.dest
        assert not action.option_strings or typed & set(action.option_strings), action.option_strings
        assert action.dest == 'version' or action.help, action.dest


def test_defaults(here):
    settings = parse()
    assert (settings.bids_dir, settings.output_dir) == (here / 'bids', here / 'out')
    assert settings.nprocs == available_cores()
    assert settings.omp_nthreads == min(available_cores(), 4)
    assert settings.mem_gb == available_memory_gb()
    machine = {'nprocs', 'omp_nthreads', 'mem_gb'}
    plain = Settings(here / 'bids', here / 'out').to_dict()
    assert {k: v for k, v in settings.to_dict().items() if k not in machine} == {
        k: v for k, v in plain.items() if k not in machine
    }
    assert parse(level='group').analysis_level == 'group'


# --- memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'gigabytes'),
    [
        ('8', 8), ('8G', 8), ('8GB', 8), ('1.5GB', 1.5), ('8000M', 8), ('8000MB', 8), ('8g', 8), (' 8 GB ', 8), ('8GiB', 8),
        ('2T', 2000), ('500000K', 0.5),
    ],
)  # fmt: skip
def test_memory(text, gigabytes):
    assert parse_memory(text) == pytest.approx(gigabytes)


def test_megabytes_without_a_unit_are_not_taken_for_terabytes():
    with pytest.raises(argparse.ArgumentTypeError, match='write 16000M or 16000G'):
        parse_memory('16000')


@pytest.mark.parametrize(
    'text', ['', '0', '0.0G', '-8', 'G', '8X', '8GG', 'eight', '8 8', '1e3', 'nan', 'inf', '8G;', '٨x', '1.']
)
def test_memory_that_is_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match='no amount of memory'):
        parse_memory(text)


# --- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options',
    [
        ['--mem', 'lots'], ['--nprocs', '0'], ['--nprocs', '-1'], ['--nprocs', '1.5'], ['--omp-nthreads', 'all'],
        ['--target-scans', '0'], ['--contrasts', 'T2star'], ['--contrasts'], ['--skull-strip', 'yes'], ['--brain-extraction', 'bet'],
        ['--registration', 'rigid'], ['--device', 'gpu'], ['--device', 'cuda:x'], ['--oom-fallback', 'never'],
        ['--random-seed', 'x'], ['--random-seed', '-1'], ['--random-seed', '2147483647'], ['--random-seed', '1.0'],
        ['--site', ''], ['--site', ' '], ['--site', ','], ['--no-notrack'], ['--bids-filter-file', 'gone.json'], ['--use-plugin', 'gone.yml'], ['--config-file', 'gone.toml'],
        ['--bids-filter-file', 'bids'], ['-d', '=smriprep'], ['-d', 'a b=smriprep'], ['--participant-label'], ['--no-such-option'],
        ['--skip-bids'], ['--dry'],
    ],
    ids=' '.join,
)  # fmt: skip
def test_nonsense_is_refused(here, capsys, options):
    said = refused(capsys, *options)
    assert said.startswith('bidsharm: ')
    assert '--help' in said
    assert options[0] in said or options[-1] in said


@pytest.mark.parametrize(
    'arguments', [[], ['bids'], ['bids', 'out'], ['bids', 'out', 'subject'], ['gone', 'out', 'participant']]
)
def test_positions_are_needed(here, arguments):
    with pytest.raises(SystemExit) as caught:
        parse_settings(arguments)
    assert caught.value.code == 2


def test_a_number_that_only_looks_like_one(here, capsys):
    """'²'.isdigit() is true in Python, int('²') an error."""
    for option in ('--nprocs', '--target-scans', '--random-seed'):
        said = refused(capsys, option, '²')
        assert option in said
        assert "'²' is not a whole number" in said


def test_derivatives_of_one_name(here):
    with pytest.raises(UsageError, match='"a" is given twice'):
        parse('-d', 'a=smriprep', 'a=other')


def test_derivatives_may_not_take_the_name_of_the_raw_data(here):
    """bids:raw: must keep meaning the data set itself."""
    with pytest.raises(UsageError, match='"raw"'):
        parse('-d', 'raw=smriprep')


@pytest.mark.parametrize('option', ['--work-dir', '--bids-database-dir'])
@pytest.mark.parametrize(
    'folder',
    ['bids', 'bids/', 'bids/work', 'bids/derivatives/a/b', 'other/../bids/work', 'link/work', 'link'],
)
def test_nothing_is_kept_inside_the_data_set(here, option, folder):
    os.symlink(here / 'bids', here / 'link')
    with pytest.raises(UsageError, match='inside the data set') as caught:
        parse(option, folder)
    assert option in caught.value.where


@pytest.mark.parametrize('folder', ['bids2', 'bids/../work', '.'])
def test_folders_beside_the_data_set_are_fine(here, folder):
    assert parse('-w', folder).work_dir == (here / folder).resolve()


def test_the_data_set_behind_a_link_is_protected_too(here):
    os.symlink(here / 'bids', here / 'link')
    with pytest.raises(UsageError, match='inside the data set'):
        parse_settings(['link', 'out', 'participant', '-w', 'bids/work'])


@pytest.mark.parametrize('folder', ['bids', 'bids/.', 'other/../bids', 'link', '.', '..', '/'])
def test_the_output_is_another_folder(here, folder):
    os.symlink(here / 'bids', here / 'link')
    with pytest.raises(UsageError):
        parse_settings(['bids', folder, 'participant'])


def test_the_output_may_be_among_the_derivatives(here):
    assert parse_settings(['bids', 'bids/derivatives/bidsharm', 'participant']).output_dir.is_absolute()


def test_one_folder_has_one_spelling(here):
    """What is written beside the results must not depend on how a path was typed."""
    plain = parse('-d', 'a=smriprep')
    for bids, out, other in (
        ('bids/', './out/', './smriprep/'),
        ('other/../bids', 'bids/../out', 'bids/sub-01/../../smriprep'),
        (str(here / 'bids'), str(here / 'out'), str(here / 'smriprep')),
    ):
        again = parse_settings([bids, out, 'participant', '-d', f'a={other}'])
        assert again == plain
        assert again.digest() == plain.digest()


# --- settings file ----------------------------------------------------------------------------------------


@pytest.fixture
def config(here):
    def write(text):
        (here / 'config.toml').write_text(text)
        return ['--config-file', 'config.toml']

    return write


def test_the_command_line_wins_over_the_file(here, config):
    options = config(
        '[bidsharm]\nharmonizer = "nyul"\nsloppy = true\nnprocs = 7\nrun = ["1"]\n'
        'bids_dir = "/other"\noutput_dir = "/other/out"\nderivatives = { a = "/a" }\n'
    )
    assert parse(*options) == expected(
        here,
        {'harmonizer': 'nyul', 'sloppy': True, 'nprocs': 7, 'omp_nthreads': 4, 'run': ['1'], 'derivatives': {'a': '/a'}},
    )  # fmt: skip
    won = parse(*options, '--harmonizer', 'zscore', '--nprocs', '2', '--run', '3', '-d', 'b=other')
    assert (won.harmonizer, won.sloppy, won.nprocs, won.run) == ('zscore', True, 2, ('3',))
    assert won.derivatives == {'b': here / 'other'}


def test_an_option_given_as_its_default_wins_too(here, config):
    options = config('target = "A"\nskull_strip = "force"\ncontrasts = ["T2w"]\n')
    won = parse(*options, '--target', 'canonical', '--skull-strip', 'auto')
    assert (won.target, won.skull_strip, won.contrasts) == ('canonical', 'auto', ('T2w',))


SWITCHES = [name for name, value in Settings('b', 'o').to_dict().items() if value is False]


@pytest.mark.parametrize('name', SWITCHES)
def test_a_switch_of_the_file_can_be_turned_off(here, config, name):
    options = config(f'{name} = true\n')
    assert getattr(parse(*options), name) is True
    assert getattr(parse(*options, f'--no-{name.replace("_", "-")}'), name) is False


def test_settings_of_a_run_start_it_again(here, config):
    first = parse('--harmonizer', 'nyul', '-d', 'a=smriprep', '--mem', '3', '-w', 'work', '--run', '1')
    assert parse(*config(first.to_toml())) == first


def test_values_of_a_file_mean_what_they_mean_on_the_command_line(here, config):
    """Labels with their prefix, paths from the current folder."""
    options = config(
        'participant_label = ["sub-01"]\nsession_label = ["ses-a"]\nrun = ["run-1", 2]\n'
        'work_dir = "work"\nweights_dir = "other/../w"\nderivatives = { a = "smriprep" }\n'
    )
    assert parse(*options) == parse(
        '--participant-label', 'sub-01', '--session-label', 'ses-a', '--run', 'run-1', '2',
        '-w', 'work', '--weights-dir', 'w', '-d', 'a=smriprep',
    )  # fmt: skip


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('harmonizr = "nyul"', 'Did you mean "harmonizer"?'),
        ('nprocs = "abc"', 'wrong type'),
        ('nprocs = "4"', 'wrong type'),
        ('nprocs = 0', 'above 0'),
        ('mem_gb = "8X"', 'write 8, 8G, 1.5GB or 8000M'),
        ('mem_gb = ["8G"]', 'wrong type'),
        ('random_seed = -1', 'between 0 and 2147483646'),
        ('site = " ,"', 'participants.tsv'),
        ('bids_filter_file = "gone.json"', 'gone.json: There is no such file.'),
        ('use_plugin = "gone.yml"', 'gone.yml: There is no such file.'),
        ('mem_gb = nan', 'above 0'),
        ('contrasts = ["T2star"]', 'no contrast'),
        ('derivatives = ["a=smriprep"]', 'table'),
        ('derivatives = "smriprep"', 'table'),
        ('derivatives = 3', 'table'),
        ('derivatives = { a = 3 }', 'wrong type'),
        ('derivatives = { raw = "/x" }', '"raw"'),
        ('work_dir = "bids/work"', 'inside the data set'),
        ('qc_thresholds = { a = 1 }', 'wrong type'),
        ('skull_strip = "yes"', 'cannot be'),
        ('bidsharm = 3', 'table'),
        ('= 3', 'cannot be read'),
    ],
)
def test_wrong_settings_files(here, config, text, said):
    with pytest.raises(UsageError) as caught:
        parse(*config(text))
    assert said in str(caught.value)


def test_memory_of_a_file_is_written_as_on_the_command_line(here, config):
    for text in ('"1500M"', '1.5', '" 1.5 GB "'):
        assert parse(*config(f'mem_gb = {text}')).mem_gb == 1.5


def test_there_is_no_telemetry_to_turn_on(here, config):
    assert parse(*config('notrack = false')).notrack is True


# --- start-up ---------------------------------------------------------------------------------------------

HEAVY = ('torch', 'nipype', 'numpy', 'pandas', 'nibabel', 'matplotlib', 'bids', 'scipy', 'nilearn', 'ants', 'sklearn')  # fmt: skip


@pytest.mark.parametrize('option', ['--help', '--version', '--no-such-option'])
def test_help_imports_nothing_heavy(option):
    program = (
        'import sys\nfrom bidsharm.cli.run import main\n'
        f'try:\n    main([{option!r}])\nexcept SystemExit as end:\n    code = end.code\n'
        'print("\\nLOADED", code or 0, *sorted({name.split(".")[0] for name in sys.modules}))'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    _, code, *loaded = done.stdout.splitlines()[-1].split()
    assert code == ('2' if option == '--no-such-option' else '0')
    assert sorted(set(loaded) & set(HEAVY)) == []
    assert 'bidsharm' in loaded


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(['--version'])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == f'bidsharm {__version__}'


def test_help_fits_and_names_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(['--help'])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert said.count('--no-') < 4, 'one line tells of the opposites of all switches'
    assert '--no-force' in said
    for word in ('--participant-label', 'exit codes', '3 nothing to do', '70', '78', 'bidsharm-models'):
        assert word in said
