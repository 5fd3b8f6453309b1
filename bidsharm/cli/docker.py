"""``bidsharm-docker``: the same command line as ``bidsharm``, run in a container; folders and files become mounts.

It needs nothing but Python: ``pip install --no-deps`` of bidsharm suffices for it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsharm import __version__
from bidsharm.cli.arguments import Parser
from bidsharm.cli.parser import build_parser
from bidsharm.errors import BidsharmError, ConfigurationError, UsageError
from bidsharm.settings import ACQUISITION

#: Where things lie inside the container.
DATA, OUT, WORK, DATABASE, WEIGHTS, MODEL = '/data', '/out', '/work', '/database', '/weights', '/model'
DERIVATIVES, FILES, TEMPLATES, HANDOFF = '/derivatives', '/files', '/templateflow', '/fmriprep'
#: Seconds within which a container program must tell whether it has an image.
ANSWER_S = 120
#: The image that belongs to this version.
IMAGE = f'bidsharm:{__version__}'
#: Keys of a settings file that are paths, which mean nothing inside a container.
PATH_KEYS = ('bids_dir', 'output_dir', 'work_dir', 'bids_filter_file', 'bids_database_dir', 'weights_dir', 'use_plugin', 'derivatives', 'fmriprep_derivatives')  # fmt: skip


@dataclass
class Mounts:
    """Folders and files of the host, and where the container sees them."""

    items: list[tuple[Path, str, bool]] = field(default_factory=list)

    def add(self, path: Path, inside: str, *, writable: bool = False) -> str:
        """Mount a path and return where it is inside."""
        if ':' in str(path):
            raise UsageError(
                'Container programs cannot mount a path with a colon.', where=str(path), fix='Rename it, or use a link.'
            )  # fmt: skip
        if writable:
            path.mkdir(parents=True, exist_ok=True)  # a container program would make it, and own it
        self.items.append((path, inside, writable))
        return inside

    def options(self) -> list[str]:
        """Return the mounts as options of the container program."""
        texts = [f'{path}:{inside}:{"rw" if writable else "ro"}' for path, inside, writable in self.items]
        return [part for text in texts for part in ('-v', text)]


def build_wrapper() -> Parser:
    """Return the parser of the options that are the wrapper's own."""
    parser = Parser(
        prog='bidsharm-docker',
        description='Run bidsharm in a container. All options of bidsharm are understood too, with paths of this machine.',
        epilog='The command that is run is printed first.',
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument('-h', '--help', action='store_true', help='show this help, and that of bidsharm')
    parser.add_argument('--version', action='version', version=f'bidsharm-docker {__version__}')
    parser.add_argument('-i', '--image', default=IMAGE, help='default: %(default)s')
    parser.add_argument('--engine', help='docker or podman; default: what is installed, docker first')
    parser.add_argument('-u', '--user', help='UID or UID:GID that results belong to; default: yours')
    parser.add_argument('--gpus', action='store_true', help='let the container use the GPUs')
    parser.add_argument(
        '--network',
        default='none',
        help='of the container; default none: bidsharm needs it for templates only',
    )
    parser.add_argument(
        '-e', '--env', action='append', default=[], metavar='NAME=VALUE', help='set a variable'
    )
    parser.add_argument('--shell', action='store_true', help='start a shell there instead of bidsharm')
    parser.add_argument('--print-only', action='store_true', help='print the command and end')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the command and become it; return an exit code only where that was not possible."""
    wrapper, rest = build_wrapper().parse_known_args(argv)
    if wrapper.help:
        print(build_wrapper().format_help())
        print(build_parser().format_help())
        return 0
    try:
        command = container_command(wrapper, vars(build_parser().parse_args(rest)))
        if not wrapper.print_only:
            _check_image(command[0], wrapper.image)
    except BidsharmError as error:
        print(f'bidsharm-docker: {error}', file=sys.stderr)
        return int(error.exit_code)
    print(shlex.join(command), flush=True)
    if wrapper.print_only:
        return 0
    os.execvp(command[0], command)


def container_command(wrapper: argparse.Namespace, given: dict[str, Any]) -> list[str]:
    """Return the command that runs bidsharm in a container.

    Parameters
    ----------
    wrapper
        Options of :func:`build_wrapper`.
    given
        Options of bidsharm, as its parser understands them.

    Raises
    ------
    ConfigurationError
        If there is no container program.
    UsageError
        If a path cannot be mounted.
    """
    engine = _engine(wrapper.engine)
    mounts = Mounts()
    inside = translate(given, mounts)
    command = [engine, 'run', '--rm', '--network', wrapper.network]
    if sys.stdout.isatty():
        command.append('-t')
    command += ['--user', wrapper.user] if wrapper.user else _user(engine)
    if wrapper.gpus:
        command += ['--device', 'nvidia.com/gpu=all'] if engine.endswith('podman') else ['--gpus', 'all']
    for pair in [*_templates(mounts), *wrapper.env]:
        command += ['-e', pair]
    command += mounts.options()
    if wrapper.shell:
        return [*command, '-i', '--entrypoint', 'bash', wrapper.image]
    return [*command, wrapper.image, *as_arguments(inside)]


def translate(given: dict[str, Any], mounts: Mounts) -> dict[str, Any]:
    """Return the options with the paths that the container sees, and mount what they name."""
    found = dict(given)
    found['bids_dir'] = mounts.add(given['bids_dir'], DATA)
    found['output_dir'] = mounts.add(given['output_dir'], OUT, writable=True)
    for name, inside in (
        ('work_dir', WORK),
        ('bids_database_dir', DATABASE),
        ('fmriprep_derivatives', HANDOFF),
    ):
        if name in given:
            found[name] = mounts.add(given[name], inside, writable=True)
    if 'weights_dir' in given:
        found['weights_dir'] = mounts.add(given['weights_dir'], WEIGHTS)
    if 'model' in given and Path(given['model']).is_dir():
        found['model'] = mounts.add(Path(given['model']).absolute(), MODEL)
    if 'derivatives' in given:
        found['derivatives'] = [
            f'{name}={mounts.add(path, f"{DERIVATIVES}/{name}")}' for name, path in given['derivatives']
        ]
    for name in ('bids_filter_file', 'use_plugin', 'config_file'):
        if name in given:
            found[name] = mounts.add(given[name], f'{FILES}/{name}{given[name].suffix}')
    if 'config_file' in given:
        _check_config(given['config_file'])
    kind, named = _target_kind(given.get('target', ''))
    if named.is_file():
        found['target'] = kind + mounts.add(named.absolute(), f'{FILES}/target/{named.name}')
    return found


def _target_kind(target: str) -> tuple[str, Path]:
    """Return how a target begins that names a sidecar (empty for all others), and its path."""
    kind = ACQUISITION if target.startswith(ACQUISITION) else ''
    return kind, Path(target.removeprefix(kind))


def _check_config(file: Path) -> None:
    """Refuse a settings file with paths: the container sees other ones."""
    from bidsharm.settings import load_values

    values = load_values(file)
    named = [key for key in PATH_KEYS if key in values]
    named += [key for key in ('model', 'target') if '/' in str(values.get(key, ''))]  # they may also be names
    if named:
        raise UsageError(
            f'Paths in a settings file mean nothing inside a container: {", ".join(named)}.',
            where=str(file),
            fix='Give them as options.',
        )


def as_arguments(values: dict[str, Any]) -> list[str]:
    """Return options as a command line that bidsharm's parser understands in the same way."""
    arguments: list[str] = [str(values[name]) for name in ('bids_dir', 'output_dir', 'analysis_level')]
    done = {'bids_dir', 'output_dir', 'analysis_level'}
    for action in build_parser()._actions:
        if not action.option_strings or action.dest in done or action.dest not in values:
            continue
        value = values[action.dest]
        option = next(text for text in action.option_strings if text.startswith('--'))
        if isinstance(value, bool):
            if value is not action.const:
                continue  # the opposite switch comes later
            arguments.append(option)
        elif action.nargs == 0:
            arguments += [option] * int(value)
        else:
            arguments += [option, *(str(item) for item in (value if isinstance(value, list) else [value]))]
        done.add(action.dest)
    return arguments


def _engine(name: str | None) -> str:
    for candidate in [name] if name else ['docker', 'podman']:
        if shutil.which(candidate):
            return candidate
    raise ConfigurationError(
        f'{name or "Neither docker nor podman"} is {"not " if name else ""}installed.',
        where='--engine',
        fix='Install one, or run bidsharm without a container.',
    )


def _templates(mounts: Mounts) -> list[str]:
    """Mount the host's templates, if it says where they are, and return the variable that tells the container."""
    folder = os.environ.get('TEMPLATEFLOW_HOME', '')
    if not folder or not Path(folder).is_dir():
        return []
    return [f'TEMPLATEFLOW_HOME={mounts.add(Path(folder).absolute(), TEMPLATES)}']


def _check_image(engine: str, image: str) -> None:
    """Refuse the default image where it was not built: container programs would look for it in a registry."""
    if image != IMAGE:
        return
    try:
        looked = subprocess.run(
            [engine, 'image', 'inspect', image], capture_output=True, text=True, check=False, timeout=ANSWER_S
        )
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f'{engine} gave no answer for {ANSWER_S} s.',
            where='--engine',
            fix=f'Look whether "{engine} info" works.',
        ) from None
    if looked.returncode:
        told = looked.stderr.strip().splitlines()
        raise ConfigurationError(
            f'The image cannot be used: {told[-1] if told else "no reason was given"}',
            where=image,
            fix='Build it in a copy of bidsharm, as its README.md says, or name another one with --image.',
        )


def _user(engine: str) -> list[str]:
    """Return the options that make outputs belong to who runs this."""
    if engine.endswith('podman') and os.getuid() != 0:
        return ['--userns', 'keep-id']
    return ['--user', f'{os.getuid()}:{os.getgid()}']


if __name__ == '__main__':
    sys.exit(main())
