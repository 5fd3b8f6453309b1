"""``bidsharm-surface``: harmonize maps of cortical surfaces from several sites."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.cli.arguments import Parser, natural
from bidsharm.cli.ending import run_to_end
from bidsharm.errors import ExitCode, NothingToDo, ScanError, UsageError

#: Holds checkpoints until the training has ended.
TRAINING = 'training'

if TYPE_CHECKING:
    from bidsharm.bids.names import ScanFile
    from bidsharm.bids.surfaces import PlacedMap, Placer
    from bidsharm.harmonizers.surface import SurfaceHarmonizer, SurfaceMap, TrainedSurface
    from bidsharm.reports.surfaces import Pair


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog='bidsharm-surface',
        description='Harmonize maps on cortical surfaces, such as thickness, across sites: derivatives of fMRIPrep or subjects of FreeSurfer.',
        epilog='More: the page "surfaces" of the documentation. Exit codes: 0 done, 1 some maps failed, 2 wrong use, 3 nothing to do, 78 a model is not there.',
    )
    parser.add_argument(
        'derivatives',
        metavar='DERIVATIVES',
        type=Path,
        help='folder of derivatives, or of FreeSurfer subjects',
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='folder for maps, page and model')
    what = parser.add_argument_group('which maps')
    what.add_argument(
        '--map', default='thickness', metavar='NAME', help='suffix of the maps (default: thickness)'
    )
    what.add_argument('--space', default='', metavar='NAME', help='entity space of the maps, native for those without (default: the only one there is)')  # fmt: skip
    what.add_argument('--hemi', nargs='+', choices=('L', 'R'), default=['L', 'R'], help='default: both')
    what.add_argument('--sphere', nargs='+', type=_sphere, default=[], metavar='L|R=FILE', help='spheres of the maps, registered to fsaverage')  # fmt: skip
    what.add_argument('--site', default='', metavar='RULE', help='session, or columns of participants.tsv or fields of sidecars, joined by commas')  # fmt: skip
    what.add_argument('--participants', type=Path, metavar='FOLDER', help='data set with participants.tsv (default: DERIVATIVES)')  # fmt: skip
    how = parser.add_argument_group('how')
    how.add_argument('--harmonizer', default='', metavar='NAME', help='default: cdae, or that of --model')
    how.add_argument('--target', default='', metavar='SITE', help='site that the others are brought to')
    how.add_argument(
        '--model', type=Path, metavar='FOLDER', help='apply what was learnt before, and train nothing'
    )
    how.add_argument('--preset', choices=('paper', 'tiny'), default='paper', help='default: paper')
    how.add_argument('--set', nargs='+', default=[], type=_setting, metavar='KEY=VALUE', help='change settings of the method')  # fmt: skip
    how.add_argument('--device', default='cpu', help='cpu, cuda or mps (default: cpu)')
    how.add_argument('--seed', type=natural, default=0, metavar='N', help='default: 0')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (:class:`bidsharm.errors.ExitCode`)."""
    args = build_parser().parse_args(argv)
    return run_to_end(
        'bidsharm-surface', lambda: _run(args), stopped='stopped; the same command goes on with the training.'
    )


def _run(args: argparse.Namespace) -> ExitCode:
    from bidsharm.bids.dataset import refuse_out
    from bidsharm.bids.surfaces import GENERATOR, Placer, check_outputs, find_maps, prepare_out
    from bidsharm.cli.alone import alone_in
    from bidsharm.cli.run import quiet_libraries

    quiet_libraries()
    _check_options(args)
    method = _loaded(args) if args.model else _new(args)
    scans = find_maps(
        args.derivatives, args.map, space=args.space, hemispheres=args.hemi, site=args.site, participants=args.participants
    )  # fmt: skip
    refuse_out(args.derivatives, args.out, GENERATOR)
    check_outputs(scans, args.out)
    placer = Placer(method.level, dict(args.sphere))
    with alone_in(args.out, 'bidsharm-surface'):
        prepare_out(args.derivatives, args.out)
        if not args.model:
            _train(method, scans, placer, args)
        return _apply(method, scans, placer, args)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that have no meaning together, and a training that is not told what it needs."""
    if not args.model:
        for option, what in (
            ('site', 'where a map was made'),
            ('target', 'which site to bring the others to'),
        ):
            if not getattr(args, option):
                raise UsageError(f'A training has to know {what}.', where=f'--{option}', fix='Give it, or a model with --model.')  # fmt: skip
        return
    for option in ('set', 'target'):
        if getattr(args, option):
            raise UsageError(
                'A model that was learnt before keeps what it was learnt with.', where=f'--{option}', fix='Leave it away.'
            )  # fmt: skip


def _new(args: argparse.Namespace) -> TrainedSurface:
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import Execution
    from bidsharm.harmonizers.surface import TrainedSurface

    name = args.harmonizer or 'cdae'
    kind = registry.find(name)
    if not issubclass(kind, TrainedSurface):
        ours = [n for n in registry.available() if registry.card(n).domain == 'surface']
        raise UsageError(f'"{name}" harmonizes no cortical surfaces.', where='--harmonizer', fix=f'Choose {", ".join(ours)}.')  # fmt: skip
    return kind(Execution(device=args.device, seed=args.seed), kind.preset(args.preset, **dict(args.set)))


def _loaded(args: argparse.Namespace) -> TrainedSurface:
    from bidsharm.errors import ConfigurationError
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.contract import Execution
    from bidsharm.harmonizers.surface import TrainedSurface

    execution = Execution(device=args.device, seed=args.seed)
    method = bundle.load_any(args.model, execution, name=args.harmonizer or None)
    if not isinstance(method, TrainedSurface):
        raise ConfigurationError(
            f'The bundle was made by "{method.card.name}", which harmonizes no cortical surfaces.', where=str(args.model)
        )  # fmt: skip
    return method


def _train(
    method: TrainedSurface, scans: Sequence[ScanFile], placer: Placer, args: argparse.Namespace
) -> None:
    """Train on all maps that can be read; those that cannot are named when they are harmonized."""
    import shutil

    from rich.console import Console
    from rich.progress import Progress

    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.contract import Site
    from bidsharm.training.options import Budget, Running

    maps = []
    for scan in scans:
        try:
            one = placer.place(scan).surface
            method.check_map(one)
            maps.append(one)
        except ScanError as error:
            last = error
    if not maps:
        raise last
    running = Running(
        folder=args.out / TRAINING / _digest(method, maps, args), device=args.device, seed=args.seed,
        budget=Budget(method.settings.steps),
    )  # fmt: skip
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f'training {method.card.name}', total=None)
        method.fit(
            maps, target=Site(args.target), seed=args.seed, running=running,
            progress=lambda done, total, words: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    bundle.save_anew(method, args.out / 'models' / method.card.name)
    shutil.rmtree(args.out / TRAINING, ignore_errors=True)


def _digest(method: TrainedSurface, maps: Sequence[SurfaceMap], args: argparse.Namespace) -> str:
    """Return what tells this training from any other: only the same one goes on from its checkpoints."""
    import hashlib
    from dataclasses import asdict

    found = hashlib.sha256(repr([method.card.name, asdict(method.settings), args.target, args.seed]).encode())
    for one in maps:
        found.update(repr([one.name, one.site, one.person]).encode() + one.values.tobytes())
    return found.hexdigest()[:16]


def _apply(
    method: SurfaceHarmonizer, scans: Sequence[ScanFile], placer: Placer, args: argparse.Namespace
) -> ExitCode:
    """Harmonize and write each map, then the page; return whether all of them went well."""
    from bidsharm.bids.surfaces import write_harmonized
    from bidsharm.harmonizers import bundle

    record = _record(method, bundle.digest(args.model or args.out / 'models' / method.card.name))
    target, pairs, failed, said = _target(method), [], 0, dict[str, int]()
    for scan in scans:
        try:
            placed = placer.place(scan)
            found = method.harmonize(placed.surface, target)
        except ScanError as error:
            failed += 1
            print(f'bidsharm-surface: {error}', file=sys.stderr)
            continue
        write_harmonized(placed, found, args.out, record)
        pairs.append(_pair(placed, found.values))
        for warning in found.warnings:
            said[warning] = said.get(warning, 0) + 1
    if not pairs:
        raise NothingToDo('No map could be harmonized; see the lines above.')
    warnings = [f'{text} ({count} maps)' for text, count in said.items()]
    if failed:
        warnings.append(
            f'{failed} of {len(scans)} maps could not be harmonized; the output of the command names them.'
        )
    for text in warnings:
        print(f'bidsharm-surface: {text}', file=sys.stderr)
    print(_page(method, pairs, warnings, record, args))
    return ExitCode.SCAN_FAILED if failed else ExitCode.OK


def _target(method: Any) -> Any:
    from bidsharm.harmonizers.contract import Site

    return Site(method.target_site)


def _record(method: Any, digest: str) -> dict[str, Any]:
    """Return what sidecars and page say of the method."""
    from dataclasses import asdict

    from bidsharm import __version__
    from bidsharm.imaging.icosphere import vertex_count

    return {
        'Method': method.card.name, 'Paper': f'{method.card.paper} doi:{method.card.doi}', 'Target': method.target_site,
        'TrainedSites': list(method.sites), 'ModelDigest': digest, 'ModelVertices': vertex_count(method.level),
        'Settings': asdict(method.settings), 'Version': __version__,
    }  # fmt: skip


def _pair(placed: PlacedMap, after: Any) -> Pair:
    from bidsharm.reports.surfaces import Pair

    one = placed.surface
    return Pair(one.name, one.person, one.site, one.hemisphere, one.values, after, one.cortex)


def _page(method: Any, pairs: Sequence[Pair], warnings: Sequence[str], record: dict[str, Any], args: argparse.Namespace) -> Path:  # fmt: skip
    from bidsharm.reports.facts import facts_of
    from bidsharm.reports.surfaces import write_surface_report

    return write_surface_report(
        args.out / 'surfaces.html', pairs, method=method.card.name, measure=args.map, target=method.target_site, seed=args.seed,
        warnings=warnings, provenance=facts_of(record),
    )  # fmt: skip


def _sphere(text: str) -> tuple[str, Path]:
    side, _, file = text.partition('=')
    if side not in ('L', 'R') or not Path(file).is_file():
        raise argparse.ArgumentTypeError(f'{text!r} is not L=FILE or R=FILE with a file that is there')
    return side, Path(file)


def _setting(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition('=')
    if not sign or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    words = {'true': True, 'false': False}
    if value.lower() in words:
        return key, words[value.lower()]
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


if __name__ == '__main__':
    sys.exit(main())
