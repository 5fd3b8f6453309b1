"""The command line of ``bidsharm``: parsing only, nothing heavy is imported."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from bidsharm import __version__
from bidsharm.cli.arguments import Parser
from bidsharm.errors import UsageError
from bidsharm.settings import (
    CONTRASTS,
    DEFAULT_HARMONIZER,
    MAX_SEED,
    SITE_RULES,
    Settings,
    from_dict,
    is_empty_rule,
    load_values,
)

EPILOG = """exit codes: 0 all done; 1 at least one scan failed; 2 usage; 3 nothing to do; 70 internal error;
78 a device, template or weights file is missing.
A switch that a settings file turns on is turned off by its opposite: --no-force, --no-sloppy and so on.
More: bidsharm-models list (every harmonizer and what it needs), bidsharm-simulate (travelling heads to try it on)."""


def build_parser() -> Parser:
    """Return the parser; options that are not given are absent from the result, so a settings file can fill them."""
    parser = Parser(
        prog='bidsharm',
        description='Harmonize brain MRI across scanners (BIDS App), and show that the anatomy survived.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument('bids_dir', type=_folder, help='the BIDS data set; it is never changed')
    parser.add_argument('output_dir', type=absolute_path, help='where the derivatives go')
    parser.add_argument('analysis_level', choices=('participant', 'group'), help='what to run')
    parser.add_argument('--version', action='version', version=f'bidsharm {__version__}')
    _add_selection(parser)
    _add_method(parser)
    _add_preprocessing(parser)
    _add_resources(parser)
    _add_modes(parser)
    return parser


def _add_switch(group: Any, name: str, text: str) -> None:
    """Add a switch, and the opposite that turns off what a settings file turns on; the help tells it once for all."""
    field = name.removeprefix('--').replace('-', '_')
    group.add_argument(name, dest=field, action='store_true', help=text)
    group.add_argument(
        f'--no-{name.removeprefix("--")}', dest=field, action='store_false', help=argparse.SUPPRESS
    )


def _add_selection(parser: Parser) -> None:
    group = parser.add_argument_group('which scans')
    group.add_argument(
        '--participant-label', '--participant_label', nargs='+', type=_label('sub'), metavar='LABEL',
        help='subjects, with or without "sub-"',
    )  # fmt: skip
    group.add_argument(
        '--session-label', '--session-id', nargs='+', type=_label('ses'), metavar='LABEL', help='sessions'
    )
    group.add_argument('--run', '--run-id', nargs='+', type=_label('run'), metavar='RUN', help='runs')
    group.add_argument('--contrasts', '--modalities', nargs='+', choices=CONTRASTS, help='default: all four')
    group.add_argument(
        '--bids-filter-file',
        type=_file,
        metavar='JSON',
        help='pybids filters by contrast: {"t1w": {"run": 1}}',
    )
    group.add_argument(
        '-d', '--derivatives', nargs='+', type=_derivative, metavar='NAME=PATH',
        help='reuse masks, transforms and preprocessed T1w of fMRIPrep or sMRIPrep',
    )  # fmt: skip
    group.add_argument(
        '--bids-database-dir', type=absolute_path, metavar='DIR', help='keep the pybids index there'
    )
    _add_switch(group, '--skip-bids-validation', 'do not run the BIDS validator first')
    _add_switch(group, '--follow-links', 'read files and folders that are links out of the data set, too')


def _add_method(parser: Parser) -> None:
    group = parser.add_argument_group('harmonization')
    group.add_argument(
        '--harmonizer', metavar='NAME', help=f'see bidsharm-models list; default: {DEFAULT_HARMONIZER}'
    )
    group.add_argument(
        '--target',
        metavar='TARGET',
        help='canonical (default), the label of a site, the path of a reference image, or acquisition:FILE.json with a --model '
        'that can aim at acquisition parameters',
    )
    group.add_argument(
        '--target-scans',
        type=_positive,
        metavar='N',
        help='learn a target from at most N scans a contrast; default 10',
    )
    group.add_argument(
        '--site', type=_site_rule, metavar='RULE',
        help='what makes a site: a participants.tsv column, "session", sidecar fields separated by commas; default auto: '
        'Manufacturer, model, field strength and station, else the column "site"',
    )  # fmt: skip
    group.add_argument(
        '--model', metavar='DIR', help='use this model bundle: a folder, or a name in --weights-dir'
    )
    group.add_argument(
        '--weights-dir', type=absolute_path, metavar='DIR', help='where model bundles are looked for'
    )
    group.add_argument('--device', type=device_name, help='auto, cpu, cuda, cuda:N or mps; default auto')
    group.add_argument(
        '--guard',
        choices=('report', 'blend', 'refuse'),
        help='what to do with structure that a method drew and that the scan does not support: keep it and tell, take most '
        'of it back and tell (default: blend), or refuse the scan where it is much',
    )
    group.add_argument(
        '--table-harmonizer',
        metavar='NAME',
        help='group level: harmonize the volumes in the tables as well, by a method for tables such as combat; default none',
    )
    group.add_argument(
        '--table-keep',
        metavar='FORMULA',
        help='what volumes are meant to depend on, such as "age + C(sex)" of participants.tsv; default nothing',
    )
    group.add_argument(
        '--oom-fallback',
        choices=('fail', 'cpu'),
        help='when the card is too small even for small tiles; default fail',
    )


def _add_preprocessing(parser: Parser) -> None:
    group = parser.add_argument_group('preprocessing and outputs')
    group.add_argument(
        '--skull-strip',
        choices=('auto', 'force', 'skip'),
        help='default auto: see whether a scan is stripped',
    )
    group.add_argument('--brain-extraction', choices=('deepbet', 'ants'), help='default deepbet')
    group.add_argument('--registration', choices=('affine', 'syn'), help='to the template; default affine')
    group.add_argument(
        '--output-spaces', nargs='+', metavar='SPACE',
        help='native (default; the scan\'s own grid), T1w, or TemplateFlow names such as MNI152NLin2009cAsym:res-1; '
        'MNI152NLin2009aSym is built in',
    )  # fmt: skip
    group.add_argument(
        '--fmriprep-derivatives', type=absolute_path, metavar='DIR',
        help='write the harmonized T1w there too, with mask and tissues, for fmriprep --derivatives harm=DIR',
    )  # fmt: skip
    group.add_argument('--random-seed', type=_seed, metavar='N', help='default 0')
    _add_switch(group, '--sloppy', 'fewer iterations: for trying out only')


def _add_resources(parser: Parser) -> None:
    group = parser.add_argument_group('resources')
    group.add_argument(
        '-w', '--work-dir', type=absolute_path, metavar='DIR', help='keep intermediate files there'
    )
    _add_switch(group, '--clean-workdir', 'empty the working folder afterwards')
    group.add_argument(
        '--nprocs',
        '--nthreads',
        '--n-cpus',
        '--n_cpus',
        dest='nprocs',
        type=_positive,
        metavar='N',
        help='processes; default: as many as there are cores to use',
    )
    group.add_argument(
        '--omp-nthreads',
        type=_positive,
        metavar='N',
        help='threads of one step; default: --nprocs, at most 4',
    )
    group.add_argument(
        '--mem',
        '--mem-gb',
        '--memory-gb',
        dest='mem_gb',
        type=parse_memory,
        metavar='SIZE',
        help='8, 8G, 1.5GB, 8000M; default: what there is to use',
    )
    group.add_argument(
        '--use-plugin', '--nipype-plugin-file', type=_file, metavar='YAML', help='nipype plugin file'
    )
    _add_switch(group, '--resource-monitor', 'record memory and CPU of every step')
    _add_switch(group, '--offline', 'never use the network, not even for templates')


def _add_modes(parser: Parser) -> None:
    group = parser.add_argument_group('what to do')
    _add_switch(group, '--dry-run', 'say what would be done, and end')
    _add_switch(group, '--force', 'do again what is done already')
    _add_switch(group, '--reports-only', 'write the reports anew')
    _add_switch(group, '--boilerplate-only', 'print the method section and end')
    _add_switch(group, '--write-graph', 'draw the graph into the logs folder')
    _add_switch(group, '--stop-on-first-crash', 'end at the first failed scan')
    group.add_argument('--config-file', type=_file, metavar='TOML', help='settings; options given here win')
    group.add_argument('--notrack', action='store_true', help='accepted: there is no telemetry')
    _add_switch(group, '--log-json', 'say what happens as JSON lines, not as text')
    group.add_argument(
        '-v', '--verbose', action='count', help='show the log of every step; -vv: with details'
    )


def parse_settings(argv: list[str] | None = None) -> Settings:
    """Parse the command line into settings.

    Raises
    ------
    UsageError
        For combinations that cannot be.
    """
    from bidsharm.machine import available_cores, available_memory_gb

    given = vars(build_parser().parse_args(argv))
    config = given.pop('config_file', None)
    values: dict[str, Any] = {**(_load(config) if config else {}), **given}
    values['derivatives'] = _named(values.get('derivatives', {}))
    values['notrack'] = True
    values.setdefault('nprocs', available_cores())
    values.setdefault('mem_gb', available_memory_gb())
    settings = from_dict(values, where=str(config or 'command line'))
    if 'omp_nthreads' not in values:
        settings = replace(settings, omp_nthreads=min(settings.nprocs, 4))
    settings = _normalized(settings)
    check_places(settings)
    return settings


def _load(config: Path) -> dict[str, Any]:
    """Read a settings file; an amount of memory may stand there as on the command line."""
    values = load_values(config)
    if isinstance(values.get('mem_gb'), str):
        try:
            values['mem_gb'] = parse_memory(values['mem_gb'])
        except argparse.ArgumentTypeError as error:
            raise UsageError(f'The value of "mem_gb" is wrong: {error}.', where=str(config)) from None
    return values


def _normalized(settings: Settings) -> Settings:
    """Bring what came from a settings file into the form that the command line gives it."""
    changed: dict[str, Any] = {
        name: tuple(_label(entity)(text) for text in getattr(settings, name))
        for name, entity in (('participant_label', 'sub'), ('session_label', 'ses'), ('run', 'run'))
    }
    changed['derivatives'] = {name: absolute_path(str(path)) for name, path in settings.derivatives.items()}
    for name in (
        'bids_filter_file',
        'bids_database_dir',
        'weights_dir',
        'work_dir',
        'use_plugin',
        'fmriprep_derivatives',
    ):
        if getattr(settings, name) is not None:
            changed[name] = absolute_path(str(getattr(settings, name)))
    return replace(settings, **changed)


def _named(derivatives: Any) -> dict[str, Any]:
    if isinstance(derivatives, dict):
        return derivatives
    if not isinstance(derivatives, list) or not all(isinstance(item, tuple) for item in derivatives):
        raise UsageError(
            'Derivatives in a settings file are a table.', where='derivatives', fix='{ smriprep = "/path" }'
        )
    named: dict[str, str] = {}
    for name, path in derivatives:
        if name in named:
            raise UsageError(f'The name "{name}" is given twice.', where='--derivatives')
        named[name] = str(path)
    return named


def check_places(settings: Settings) -> None:
    """Refuse folders of a run that get into each other, and files that are not there.

    Raises
    ------
    UsageError
        Naming the folder or the file.
    """
    # Links are followed here: another way into the data set is a way into the data set.
    data, output = settings.bids_dir.resolve(), settings.output_dir.resolve()
    for what, option, folder in (
        ('working folder', '--work-dir', settings.work_dir),
        ('index', '--bids-database-dir', settings.bids_database_dir),
    ):
        if folder is not None and data in (folder.resolve(), *folder.resolve().parents):
            raise UsageError(f'The {what} may not lie inside the data set.', where=f'{option} {folder}')
    for option, file in (
        ('--bids-filter-file', settings.bids_filter_file),
        ('--use-plugin', settings.use_plugin),
    ):
        if file is not None and not file.is_file():
            raise UsageError('There is no such file.', where=f'{option} {file}')
    if output == data:
        raise UsageError('The output folder may not be the data set itself.', where=str(settings.output_dir))
    if output in data.parents:
        raise UsageError('The data set may not lie inside the output folder.', where=str(settings.output_dir))
    _check_handoff(settings, data, output)
    if 'raw' in settings.derivatives:
        raise UsageError(
            'The name "raw" is that of the data set itself in BIDS URIs.', where='--derivatives',
            fix=f'Name it otherwise: other={settings.derivatives["raw"]}.',
        )  # fmt: skip


def _check_handoff(settings: Settings, data: Path, output: Path) -> None:
    """Refuse a folder for fMRIPrep that is, holds or lies in another one of this run."""
    if settings.fmriprep_derivatives is None:
        return
    folder = settings.fmriprep_derivatives.resolve()
    where = f'--fmriprep-derivatives {settings.fmriprep_derivatives}'
    above = (folder, *folder.parents)
    if data == folder or folder in data.parents:
        raise UsageError('The folder for fMRIPrep may not be or hold the data set.', where=where)
    if output in above or folder in output.parents:
        raise UsageError(
            'The folder for fMRIPrep is a data set of its own, outside OUTPUT_DIR.', where=where,
            fix='Give it a folder beside OUTPUT_DIR.',
        )  # fmt: skip
    for name, given in settings.derivatives.items():
        if given.resolve() in above or folder in given.resolve().parents:
            raise UsageError(
                f'The folder for fMRIPrep is the one that is read as --derivatives {name}.', where=where,
                fix='Give it a folder of its own.',
            )  # fmt: skip


def parse_memory(text: str) -> float:
    """Read an amount of memory as GB.

    Examples
    --------
    >>> [parse_memory(text) for text in ('8', '8G', '1.5GB', '8000M')]
    [8.0, 8.0, 1.5, 8.0]
    """
    match = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*', text, flags=re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f'{text!r} is no amount of memory; write 8, 8G, 1.5GB or 8000M')
    if not match[2] and float(match[1]) >= 1000:
        raise argparse.ArgumentTypeError(
            f'{text} without a unit is in GB; write {text.strip()}M or {text.strip()}G'
        )
    scale = {'K': 1e-6, 'M': 1e-3, '': 1.0, 'G': 1.0, 'T': 1e3}[match[2].upper()]
    return float(match[1]) * scale


def absolute_path(text: str) -> Path:
    """Return a path of the command line as an absolute one."""
    path = Path(text).expanduser().absolute()
    # ".." after a link means the folder above the link's target, as the shell's programs see it.
    return path.resolve() if '..' in path.parts else path


def _folder(text: str) -> Path:
    path = absolute_path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f'the folder {text} does not exist')
    return path


def _file(text: str) -> Path:
    path = absolute_path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f'the file {text} does not exist')
    return path


def _positive(text: str) -> int:
    # "²" is a digit, but no number
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number between 0 and {MAX_SEED}')
    return int(text)


def _site_rule(text: str) -> str:
    if is_empty_rule(text):
        raise argparse.ArgumentTypeError(f'{text!r} names nothing. {SITE_RULES}')
    return text


def _label(entity: str) -> Any:
    def strip(text: str) -> str:
        return text.removeprefix(f'{entity}-')

    return strip


def device_name(text: str) -> str:
    """Return the name of a device, if it is one."""
    if not re.fullmatch(r'auto|cpu|mps|cuda(:\d+)?', text):
        raise argparse.ArgumentTypeError(f'{text!r} is no device; choose auto, cpu, cuda, cuda:N or mps')
    return text


def _derivative(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition('=')
    if not separator:
        name, path = Path(text).name, text
    if not re.fullmatch(r'[A-Za-z0-9_.-]+', name):
        raise argparse.ArgumentTypeError(f'{name!r} is no name for a derivatives folder')
    return name, absolute_path(path)
