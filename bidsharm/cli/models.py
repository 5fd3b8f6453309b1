"""``bidsharm-models``: which harmonization methods there are, what they need, and whether a bundle is whole."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.cli.arguments import Command, Parser
from bidsharm.cli.ending import run_to_end
from bidsharm.cli.sharing import add_commands, export_file, import_file
from bidsharm.errors import BidsharmError

if TYPE_CHECKING:
    from bidsharm.harmonizers.contract import Card

#: What the list calls the needs, short enough for a column.
SHORT_NEEDS = {
    'cohort': 'cohort',
    'site': 'sites',
    'reference': 'reference',
    'paired': 'pairs',
    'two_sites': '2 sites',
    'travellers': 'travellers',
    'multi_contrast': 'contrasts',
    'tissue': 'tissues',
    'weights': 'model',
    'table': 'table',
    'visits': 'visits',
    'kept': 'kept',
}


#: Seconds that reading published weights may take.
IMPORT_LIMIT_S = 300


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        prog='bidsharm-models', description='Show harmonization methods, and check model bundles.'
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', parser_class=Command)
    listing = commands.add_parser('list', help='list all methods')
    listing.add_argument('--json', action='store_true', help='print the cards as JSON')
    show = commands.add_parser('show', help='print the card of one method')
    show.add_argument('name', metavar='NAME', help='name of the method')
    show.add_argument('--json', action='store_true', help='print the card as JSON')
    check = commands.add_parser('check', help='check that a model bundle is whole and can be loaded')
    check.add_argument('folder', metavar='FOLDER', type=Path, help='folder of the bundle')
    add_commands(commands)
    iguane = commands.add_parser(
        'import-iguane', help='make a model bundle from the published weights of IGUANe'
    )
    iguane.add_argument('file', metavar='FILE.h5', type=Path, help='iguane_weights.h5 of its repository')
    iguane.add_argument('folder', metavar='FOLDER', type=Path, help='folder of the bundle, which is made')
    cdae = commands.add_parser('import-cdae', help='make a model bundle from the published weights of CDAE')
    cdae.add_argument('folder', metavar='FOLDER', type=Path, help='folder of the bundle, which is made')
    for side in ('left', 'right'):
        cdae.add_argument(
            f'--{side}', type=Path, metavar='FOLDER', help=f'its published files of the {side} hemisphere'
        )
    cdae.add_argument(
        '--unit', nargs=2, type=float, required=True, metavar=('MEAN', 'SD'), help='of the thickness of your maps, for those of its training are not public'
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    argv
        Arguments after the name of the command; those of the process by default.
    """
    arguments = build_parser().parse_args(argv)
    return run_to_end('bidsharm-models', lambda: _run(arguments), stopped='stopped.')


def _run(arguments: argparse.Namespace) -> int:
    try:
        if arguments.command == 'list':
            return _list(as_json=arguments.json)
        if arguments.command == 'show':
            return _show(arguments.name, as_json=arguments.json)
        if arguments.command == 'export':
            return export_file(arguments)
        if arguments.command == 'import':
            import_file(arguments)
            return _check(arguments.folder)
        if arguments.command == 'import-iguane':
            return _import_iguane(arguments.file, arguments.folder)
        if arguments.command == 'import-cdae':
            return _import_cdae(arguments)
        return _check(arguments.folder)
    except BidsharmError as error:
        # What lies below speaks of options of `bidsharm`, which this command does not have.
        if error.where.startswith('--'):
            error.where = ''
        raise


def _cards() -> tuple[list[Card], dict[str, str]]:
    """Return the cards of all methods, and what is wrong with those that cannot be loaded."""
    from bidsharm.errors import ConfigurationError
    from bidsharm.harmonizers import registry

    cards, broken = [], {}
    for name in registry.available():
        try:
            cards.append(registry.card(name))
        except ConfigurationError as error:
            broken[name] = error.what
    return cards, broken


def _list(*, as_json: bool) -> int:
    cards, broken = _cards()
    if as_json:
        content = {'harmonizers': [card.to_dict() for card in cards], 'broken': broken}
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_table(cards))
    console.print(
        "Aims at: canonical = the method's own standard contrast, site = the look of one site, reference = the "
        'look of one image. Needs: cohort = several scans to learn from, tissues = a segmentation of every scan, which bidsharm '
        'makes itself, model = a bundle of bidsharm-train, which needs: pairs = people scanned at two sites, travellers = people '
        'scanned at all sites, contrasts = several in a visit. '
        '"bidsharm-models show NAME" tells more.'
    )
    for what in broken.values():
        console.print(f'Left out: {what}', markup=False)
    return 0


def _table(cards: Sequence[Card]) -> Any:
    """Return the list as a table for 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, show_lines=False)
    table.add_column('Name', no_wrap=True, style='bold')
    table.add_column('What it does', ratio=1, min_width=13, overflow='fold')
    table.add_column('Aims at', min_width=9)
    table.add_column('Needs', min_width=10, overflow='fold')
    table.add_column('Fidelity', min_width=8, overflow='fold')
    table.add_column('May\nalter\nanatomy', min_width=7)
    for card in cards:
        needs = dict.fromkeys((*card.needs_fit, *card.needs_apply))
        table.add_row(
            card.name,
            card.title,
            '\n'.join(card.targets),
            '\n'.join(SHORT_NEEDS.get(need, need) for need in needs) or '-',
            card.fidelity,
            'yes' if card.changes_anatomy else 'no',
        )
    return table


def _show(name: str, *, as_json: bool) -> int:
    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.contract import NEED_PHRASES

    card = registry.card(name)
    if as_json:
        print(json.dumps(card.to_dict(), indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def phrases(needs: Sequence[str]) -> str:
        return '; '.join(NEED_PHRASES.get(need, need) for need in needs) or 'nothing'

    rows = {
        'Name': card.name,
        'What it does': card.title,
        'Paper': card.paper,
        'DOI': f'https://doi.org/{card.doi}' if card.doi else '-',
        'Family': f'{card.family}, supervision: {card.supervision}',
        'Works on': f'{card.domain} -> {card.output}, {card.geometry} geometry',
        'Contrasts': ', '.join(card.contrasts) or 'all',
        'Aims at': ', '.join(card.targets) or '-',
        'Learns from': phrases(card.needs_fit),
        'Needs per scan': phrases(card.needs_apply),
        'Looks at': 'other contrasts of the visit too' if card.companions else 'the scan alone',
        'May change anatomy': 'yes' if card.changes_anatomy else 'no',
        'Fidelity': card.fidelity,
        'Differs from paper': card.deviations or '-',
        'Runs on': 'GPU or CPU' if card.uses_device else 'CPU',
        'Memory': f'{card.memory_gb:g} GB' + (' for a 1 mm head' if card.place == 'volume' else ''),
        'Licence': card.licence,
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value in rows.items():
        table.add_row(Text(key, style='bold'), Text(value))
    for key, value in _settings(name):
        table.add_row(Text(key, style='bold'), Text(value))
    Console(highlight=False).print(table)
    return 0


def _settings(name: str) -> list[tuple[str, str]]:
    """Return the settings of a method that has some and their defaults, as one row; nothing for other methods."""
    from dataclasses import asdict

    from bidsharm.harmonizers import registry
    from bidsharm.harmonizers.surface import TrainedSurface
    from bidsharm.harmonizers.table import TableHarmonizer
    from bidsharm.harmonizers.task import TrainedTask
    from bidsharm.harmonizers.trained import TrainedHarmonizer

    def line(title: str, settings: Mapping[str, Any]) -> tuple[str, str]:
        return title, ', '.join(f'{key}={value}' for key, value in settings.items())

    kind = registry.find(name)
    if issubclass(kind, TrainedTask):
        segments, others = 'segmentation' in kind.kinds, kind.kinds != ('segmentation',)
        rows = [line('Settings', asdict(kind.preset('paper', kind.kinds[0])))]
        rows += [line('Of segmentations', kind.segmenting)] if segments and others and kind.segmenting else []
        rows += [line('Preset "tiny"', kind.tiny)] if others else []
        return rows + ([line('"tiny", segmenting', kind.tiny_segmenting)] if segments else [])
    if not issubclass(kind, (TrainedHarmonizer, TableHarmonizer, TrainedSurface)):
        return []
    return [line('Settings', asdict(kind.preset())), line('Preset "tiny"', kind.tiny)]


def _import_iguane(file: Path, folder: Path) -> int:
    import tempfile

    from bidsharm.interfaces.isolated import run_isolated

    with tempfile.TemporaryDirectory() as work:
        # One wrong byte in a file of HDF5 keeps its library busy for ever.
        request = {'name': str(file.absolute()), 'folder': str(folder.absolute())}
        run_isolated('import-iguane', request, Path(work), limit_s=IMPORT_LIMIT_S)
    print(f'{folder}: --harmonizer iguane --model {folder}')
    return 0


def _import_cdae(arguments: argparse.Namespace) -> int:
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.cdae_import import import_networks

    given = {'L': arguments.left, 'R': arguments.right}
    folders = {side: folder for side, folder in given.items() if folder is not None}
    mean, deviation = arguments.unit
    bundle.save(import_networks(folders, (mean, deviation)), arguments.folder)
    print(f'{arguments.folder}: bidsharm-surface DERIVATIVES OUT --model {arguments.folder}')
    return 0


def _check(folder: Path) -> int:
    from bidsharm.harmonizers import bundle

    harmonizer = bundle.load_any(folder)
    content = bundle.read_card(folder)
    target = content['settings'].get('target') or 'none'
    print(f'{folder}: whole')
    print(f'  method     {harmonizer.card.name} (saved by bidsharm {content.get("bidsharm", "?")})')
    print(f'  target     {target}')
    print(f'  contrasts  {", ".join(content.get("contrasts", [])) or "none"}')
    if origin := content['settings'].get('started_from'):
        print(f'  began as   {origin}')
    print(f'  digest     {bundle.digest(folder)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
