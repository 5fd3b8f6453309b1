"""`bidsharm-docker`: what it mounts, what it hands on, and that it prints what it runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bidsharm.cli import docker
from bidsharm.cli.parser import build_parser
from bidsharm.errors import ExitCode


@pytest.fixture
def host(tmp_path, monkeypatch) -> Path:
    """A machine with data, files of every kind, and a docker that only writes down what it was told."""
    for name in ('my data', 'smri prep', 'weights', 'bundle', 'bin'):
        (tmp_path / name).mkdir()
    (tmp_path / 'filter.json').write_text('{}')
    (tmp_path / 'plugin.yml').write_text('plugin: Linear')
    (tmp_path / 'settings.toml').write_text('[bidsharm]\nharmonizer = "nyul"\n')
    (tmp_path / 'target.nii.gz').write_bytes(b'x')
    program = tmp_path / 'bin' / 'docker'
    program.write_text(
        f'#!{sys.executable}\nimport json, sys\n'
        'if sys.argv[1] == "image":\n    sys.exit(0)\n'
        f'json.dump(sys.argv, open({str(tmp_path / "told.json")!r}, "w"))\nsys.exit(7)\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}')
    monkeypatch.delenv('TEMPLATEFLOW_HOME', raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command_of(capsys, *arguments: str) -> list[str]:
    assert docker.main([*arguments, '--print-only']) == 0
    return shlex.split(capsys.readouterr().out)


def mounts_of(command: list[str]) -> dict[str, str]:
    """Return what is mounted, by place inside."""
    pairs = [command[i + 1].split(':') for i, part in enumerate(command) if part == '-v']
    return {inside: f'{path}:{mode}' for path, inside, mode in pairs}


def test_the_sidecar_of_an_acquisition_is_mounted(host, capsys):
    (host / 'sub-1_T1w.json').write_text('{}')
    command = command_of(capsys, 'my data', 'out', 'participant', '--target', 'acquisition:sub-1_T1w.json')
    assert mounts_of(command)['/files/target/sub-1_T1w.json'] == f'{host}/sub-1_T1w.json:ro'
    assert command[command.index('--target') + 1] == 'acquisition:/files/target/sub-1_T1w.json'


def test_paths_become_mounts(host, capsys):
    command = command_of(
        capsys, 'my data', 'out', 'participant', '-w', 'scratch', '-d', 'pre=smri prep', '--bids-filter-file', 'filter.json',
        '--use-plugin', 'plugin.yml', '--weights-dir', 'weights', '--model', 'bundle', '--target', 'target.nii.gz',
        '--bids-database-dir', 'db', '--config-file', 'settings.toml',
    )  # fmt: skip
    assert mounts_of(command) == {
        '/data': f'{host}/my data:ro', '/out': f'{host}/out:rw', '/work': f'{host}/scratch:rw',
        '/database': f'{host}/db:rw', '/derivatives/pre': f'{host}/smri prep:ro', '/weights': f'{host}/weights:ro',
        '/model': f'{host}/bundle:ro', '/files/bids_filter_file.json': f'{host}/filter.json:ro',
        '/files/use_plugin.yml': f'{host}/plugin.yml:ro', '/files/config_file.toml': f'{host}/settings.toml:ro',
        '/files/target/target.nii.gz': f'{host}/target.nii.gz:ro',
    }  # fmt: skip
    inner = command[command.index(f'bidsharm:{docker.__version__}') + 1 :]
    assert inner[:3] == ['/data', '/out', 'participant']
    assert str(host) not in ' '.join(inner)
    for option, value in {
        '--work-dir': '/work', '--derivatives': 'pre=/derivatives/pre', '--target': '/files/target/target.nii.gz',
        '--model': '/model', '--config-file': '/files/config_file.toml',
    }.items():  # fmt: skip
        assert inner[inner.index(option) + 1] == value
    # a container program would make them as root
    assert all((host / name).is_dir() for name in ('out', 'scratch', 'db'))


@pytest.mark.parametrize(
    'options',
    [
        ['--participant-label', 'sub-01', '02', '--contrasts', 'T1w', 'FLAIR', '--run', '1'],
        ['--harmonizer', 'nyul', '--target', 'Siemens 3T', '--site', 'session', '--model', 'mine'],
        ['--mem', '1500M', '--nprocs', '3', '--random-seed', '5', '--target-scans', '4'],
        ['--force', '--no-sloppy', '--skip-bids-validation', '--offline', '-vv', '--notrack', '--no-force'],
        [
            '--output-spaces',
            'native',
            'MNI152NLin2009cAsym:res-2',
            '--registration',
            'syn',
            '--device',
            'cpu',
        ],
    ],
)
def test_everything_else_is_handed_on(host, capsys, options):
    command = command_of(capsys, 'my data', 'out', 'group', *options)
    inner = command[command.index(f'bidsharm:{docker.__version__}') + 1 :]
    places = {'bids_dir', 'output_dir'}
    parser = build_parser()
    direct = vars(parser.parse_args(['my data', 'out', 'group', *options]))
    inside = vars(parser.parse_args([str(host / 'my data'), *inner[1:]]))
    assert {k: v for k, v in inside.items() if k not in places} == {
        k: v for k, v in direct.items() if k not in places
    }


def test_the_container_is_run_as_its_user_without_network(host, capsys):
    command = command_of(capsys, 'my data', 'out', 'participant')
    assert command[:5] == ['docker', 'run', '--rm', '--network', 'none']
    assert command[command.index('--user') + 1] == f'{os.getuid()}:{os.getgid()}'
    command = command_of(
        capsys, '-i', 'other:1', '--gpus', '--network', 'host', '-e', 'A=1', 'my data', 'out', 'participant'
    )
    assert command[command.index('--gpus') + 1] == 'all'
    assert command[command.index('-e') + 1] == 'A=1'
    assert 'other:1' in command
    assert command[command.index('--network') + 1] == 'host'


def test_it_prints_and_becomes_the_command(host):
    done = subprocess.run(
        [sys.executable, '-m', 'bidsharm.cli.docker', 'my data', 'out', 'participant', '--force'],
        capture_output=True, text=True, check=False, cwd=host,
    )  # fmt: skip
    assert done.returncode == 7  # that of the container
    import json

    told = json.loads((host / 'told.json').read_text())
    assert told[1:] == shlex.split(done.stdout)[1:]
    assert told[-1] == '--force'


@pytest.mark.parametrize(
    ('arguments', 'code', 'says'),
    [
        (['--engine', 'podman'], ExitCode.CONFIGURATION, 'podman is not installed'),
        (['--weights-dir', 'a:b'], ExitCode.USAGE, 'colon'),
        (['--config-file', 'paths.toml'], ExitCode.USAGE, 'work_dir'),
        (['--config-file', 'model.toml'], ExitCode.USAGE, 'model, target'),
        (['--engine', 'bin/other'], ExitCode.CONFIGURATION, 'No such image'),
    ],
)
def test_what_cannot_be_run_says_why(host, capsys, arguments, code, says):
    other = host / 'bin' / 'other'
    other.write_text(f'#!{sys.executable}\nimport sys\nsys.exit("Error: No such image")\n')
    other.chmod(0o755)
    (host / 'paths.toml').write_text('[bidsharm]\nwork_dir = "/scratch"\n')
    (host / 'model.toml').write_text('[bidsharm]\nmodel = "models/mine"\ntarget = "/data/ref_T1w.nii.gz"\n')
    assert docker.main(['my data', 'out', 'participant', *arguments]) == code
    assert says in capsys.readouterr().err


def test_errors_of_options_are_those_of_bidsharm(host, capsys):
    with pytest.raises(SystemExit) as stopped:
        docker.main(['nowhere', 'out', 'participant'])
    assert stopped.value.code == ExitCode.USAGE
    assert 'the folder nowhere does not exist' in capsys.readouterr().err


def test_every_option_that_is_a_path_is_mounted(host, capsys):
    """A new option with a path must not reach the container as a path of the host."""
    parser = build_parser()
    paths = [action for action in parser._actions if getattr(action.type, '__name__', '') in ('absolute_path', '_file', '_folder')]  # fmt: skip
    assert len(paths) > 6
    places = {'_folder': 'my data', '_file': 'settings.toml', 'absolute_path': 'made'}
    for action in paths:
        if not action.option_strings:
            continue
        given = places[action.type.__name__]
        command = command_of(capsys, 'my data', 'out', 'participant', action.option_strings[-1], given)
        inner = command[command.index(f'bidsharm:{docker.__version__}') + 1 :]
        assert str(host) not in ' '.join(inner), action.dest
        assert f'{host}/{given}' in [text.rsplit(':', 1)[0] for text in mounts_of(command).values()], (
            action.dest
        )


def test_who_owns_the_results_can_be_chosen(host, capsys):
    command = command_of(capsys, '-u', '1234:99', 'my data', 'out', 'participant')
    assert command.count('--user') == 1
    assert command[command.index('--user') + 1] == '1234:99'


def test_a_shell_has_the_same_mounts(host, capsys):
    usual = command_of(capsys, 'my data', 'out', 'participant')
    shell = command_of(capsys, '--shell', 'my data', 'out', 'participant')
    assert mounts_of(shell) == mounts_of(usual)
    assert shell[-4:] == ['-i', '--entrypoint', 'bash', f'bidsharm:{docker.__version__}']


def test_templates_of_the_host_are_seen_inside(host, capsys, monkeypatch):
    (host / 'templates').mkdir()
    monkeypatch.setenv('TEMPLATEFLOW_HOME', 'templates')
    command = command_of(capsys, 'my data', 'out', 'participant')
    assert mounts_of(command)['/templateflow'] == f'{host}/templates:ro'
    assert command[command.index('-e') + 1] == 'TEMPLATEFLOW_HOME=/templateflow'
    monkeypatch.setenv('TEMPLATEFLOW_HOME', 'nowhere')
    assert '-e' not in command_of(capsys, 'my data', 'out', 'participant')


def test_help_tells_both_kinds_of_options(host, capsys):
    assert docker.main(['--help']) == 0
    told = capsys.readouterr().out
    assert '--print-only' in told
    assert '--participant-label' in told


def test_it_needs_no_library(host):
    """Users of containers install the wrapper alone (pip install --no-deps)."""
    root = Path(docker.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, '-S', '-m', 'bidsharm.cli.docker', '--print-only', 'my data', 'out', 'participant',
         '--config-file', 'settings.toml', '--mem', '4G'],
        capture_output=True, text=True, check=False, env={**os.environ, 'PYTHONPATH': str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'docker run' in done.stdout


def test_a_container_program_that_does_not_answer(host, capfd, monkeypatch):
    (host / 'bin' / 'docker').write_text(f'#!{sys.executable}\nimport time\ntime.sleep(60)\n')
    monkeypatch.setattr(docker, 'ANSWER_S', 0.5)
    assert docker.main(['my data', 'out', 'participant']) == ExitCode.CONFIGURATION
    assert 'docker gave no answer for 0.5 s' in capfd.readouterr().err
