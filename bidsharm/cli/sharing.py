"""``bidsharm-models export`` and ``import``: a bundle as one file, on its way to another lab."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


def add_commands(commands: Any) -> None:
    """Add both commands to a parser's subparsers."""
    export = commands.add_parser('export', help='make one file of a model bundle, for another lab')
    export.add_argument('folder', metavar='FOLDER', type=Path, help='folder of the bundle')
    export.add_argument('file', metavar='FILE.tar', type=Path, help='file that is made')
    export.add_argument(
        '--rename', nargs='+', default=[], metavar='OLD=NEW', help='other names for sites, or for the image that was the target'
    )  # fmt: skip
    export.add_argument(
        '--keep-names', action='store_true', help='write names of images and subjects that the bundle holds'
    )
    taken = commands.add_parser('import', help='make a model bundle of a file of export, and check it')
    taken.add_argument('file', metavar='FILE.tar', type=Path, help='file of bidsharm-models export')
    taken.add_argument('folder', metavar='FOLDER', type=Path, help='folder of the bundle, which is made')
    taken.add_argument('--digest', default='', metavar='SHA256', help='digest that the bundle must have')


def export_file(args: argparse.Namespace) -> int:
    """Make a file of a bundle, and say which names are in it."""
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.bundle_file import export_bundle

    found = export_bundle(args.folder, args.file, rename=_pairs(args.rename), keep_names=args.keep_names)
    print(f'{args.file}: {bundle.read_card(args.folder)["name"]}')
    print(f'  names      {", ".join(found.names) or "none"}')
    print(f'  digest     {found.digest}')
    return 0


def import_file(args: argparse.Namespace) -> None:
    """Make a bundle of a file."""
    from bidsharm.harmonizers.bundle_file import import_bundle

    import_bundle(args.file, args.folder, digest=args.digest)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        old, separator, new = text.partition('=')
        if not separator or not old or not new or not new.isprintable():
            raise UsageError(f'"{text}" is not OLD=NEW.', where='--rename')
        found[old] = new
    return found
