"""``bidsharm-table``: harmonize features of scans from several sites, one row a scan."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsharm.cli.arguments import Parser, natural
from bidsharm.cli.ending import run_to_end
from bidsharm.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from bidsharm.bids.feature_tables import Choice, TextTable
    from bidsharm.harmonizers.table import FeatureTable, TableHarmonizer
    from bidsharm.workflows.feature_tables import Result


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog='bidsharm-table',
        description='Harmonize tables of features across sites: group tables of bidsharm, tables of FreeSurfer and MRIQC, or any other.',
        epilog='More: the page "tables" of the documentation. Exit codes: 0 done, 1 failed, 2 wrong use, 78 a model is not there.',
    )
    parser.add_argument('tables', metavar='TABLE', nargs='+', type=Path, help='TSV or CSV, one row a scan')
    parser.add_argument('out', metavar='OUT', type=Path, help='folder for tables, pages and models')
    what = parser.add_argument_group('what is in the tables')
    what.add_argument(
        '--participants', type=Path, metavar='TSV', help='table of people (or the data set with it), joined by participant_id'
    )  # fmt: skip
    what.add_argument(
        '--site', default='', metavar='COLUMN', help='column of the site, or several, joined by commas (default: site or scanner)'
    )  # fmt: skip
    what.add_argument(
        '--features', nargs='+', default=[], metavar='PATTERN', help='columns to harmonize, * for any text (default: all numbers)'
    )  # fmt: skip
    what.add_argument(
        '--keep', default='', metavar='FORMULA', help='what features are meant to depend on, such as "age + C(sex)"'
    )  # fmt: skip
    what.add_argument(
        '--incomplete', choices=('stop', 'leave'), default='stop',
        help='rows without a site or a kept column, or of a site that the model does not know: stop, or leave them as they are (default: stop)',
    )  # fmt: skip
    how = parser.add_argument_group('how')
    how.add_argument('--harmonizer', default='', metavar='NAME', help='default: combat, or that of --model')
    how.add_argument(
        '--set', nargs='+', default=[], type=_setting, metavar='KEY=VALUE', help='change settings of the method'
    )  # fmt: skip
    how.add_argument('--preset', choices=('paper', 'tiny'), default='paper', help='default: paper')
    how.add_argument(
        '--reference',
        default='',
        metavar='SITE',
        help='site to bring the others to (default: the mean of all)',
    )
    how.add_argument(
        '--fit-rows', default=None, type=_pair, metavar='COLUMN=VALUE', help='fit on these rows only, and harmonize all'
    )  # fmt: skip
    how.add_argument(
        '--model', type=Path, metavar='FOLDER', help='apply what was learnt before, and fit nothing: OUT/models of that run, or a bundle'
    )  # fmt: skip
    how.add_argument(
        '--judge', choices=('held-out', 'fitted'), default=None,
        help='tell the site of rows that a fit has not seen, or of the table as it is (default: held-out for methods that take seconds)',
    )  # fmt: skip
    how.add_argument(
        '--permutations',
        type=natural,
        default=200,
        metavar='N',
        help='of sites, for the chance line (default: 200)',
    )
    how.add_argument('--seed', type=natural, default=0, metavar='N', help='default: 0')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (:class:`bidsharm.errors.ExitCode`)."""
    args = build_parser().parse_args(argv)
    return run_to_end('bidsharm-table', lambda: _run(args), stopped='stopped; the same command begins anew.')


def _run(args: argparse.Namespace) -> ExitCode:
    from bidsharm.bids.feature_tables import out_path, read_participants_table, read_table
    from bidsharm.cli.run import quiet_libraries

    quiet_libraries()
    _check_options(args)
    tables = [read_table(path) for path in args.tables]
    paths = [out_path(table, args.out) for table in tables]
    if len({path.stem for path in paths}) < len(paths):
        raise UsageError('Two tables have the same name.', fix='Run them one by one, or rename one.')
    people = read_participants_table(args.participants) if args.participants else None
    choice = _choice(args, people)
    for table, path in zip(tables, paths, strict=True):
        result = _harmonized(table, choice, args)
        _written(table, path, result, args)
        for text in result.warnings:
            print(f'bidsharm-table: {table.path.name}: {text}', file=sys.stderr)
        print(path)
    return ExitCode.OK


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that have no meaning together."""
    if not args.model:
        return
    for option in ('keep', 'reference', 'set', 'fit_rows'):
        if getattr(args, option):
            raise UsageError(
                'A model that was learnt before keeps what it was learnt with.',
                where=f'--{option.replace("_", "-")}', fix='Leave it away, or leave --model away to fit anew.',
            )  # fmt: skip


def _choice(args: argparse.Namespace, people: TextTable | None) -> Choice:
    from bidsharm.bids.feature_tables import Choice
    from bidsharm.harmonizers.design import columns_of, parse_formula

    return Choice(
        site=tuple(filter(None, (name.strip() for name in args.site.split(',')))),
        kept=columns_of(parse_formula(args.keep)),
        features=tuple(args.features),
        participants=people,
        others=(args.fit_rows[0],) if args.fit_rows else (),
    )


def _harmonized(table: TextTable, choice: Choice, args: argparse.Namespace) -> Result:
    """Fit on a table or take the model, and harmonize."""
    from bidsharm.bids.feature_tables import feature_table
    from bidsharm.workflows.feature_tables import Result, fit_and_harmonize

    if args.model:
        method = _model(args, table.name)
        features = choice.features or _escaped(method.features)
        rows = feature_table(table, replace(choice, kept=method.design.columns, features=features))
        found = method.harmonize(rows)
        result = Result(method, rows, found, found.warnings)
    else:
        rows = feature_table(table, choice)
        result = fit_and_harmonize(
            _new(args), rows, _rows_to_fit(rows, args), target=args.reference, keep=args.keep, seed=args.seed
        )
    if result.found.left.any() and args.incomplete == 'stop':
        raise UsageError(
            ' '.join(text for text in result.found.warnings if 'left as' in text), where=str(table.path),
            fix='Complete the rows or take them out, or leave them unharmonized with --incomplete leave.',
        )  # fmt: skip
    return result


def _new(args: argparse.Namespace) -> TableHarmonizer:
    from bidsharm.harmonizers.contract import Execution
    from bidsharm.workflows.feature_tables import table_method

    kind = table_method(args.harmonizer or 'combat')
    return kind(Execution(seed=args.seed), kind.preset(args.preset, **dict(args.set)))


def _model(args: argparse.Namespace, name: str) -> TableHarmonizer:
    """Return the model for a table: the bundle of its name in a folder of models, or the folder itself."""
    from bidsharm.errors import ConfigurationError
    from bidsharm.harmonizers import bundle
    from bidsharm.harmonizers.contract import Execution
    from bidsharm.harmonizers.table import TableHarmonizer

    folder = _model_folder(args.model, name)
    method = bundle.load_any(folder, Execution(seed=args.seed), name=args.harmonizer or None)
    if not isinstance(method, TableHarmonizer):
        raise ConfigurationError(f'The bundle was made by "{method.card.name}", which harmonizes no tables.', where=str(folder))  # fmt: skip
    return method


def _model_folder(model: Path, name: str) -> Path:
    return model / name if (model / name).is_dir() else model


def _escaped(features: Sequence[str]) -> tuple[str, ...]:
    from glob import escape

    return tuple(escape(name) for name in features)


def _rows_to_fit(rows: FeatureTable, args: argparse.Namespace) -> FeatureTable:
    if not args.fit_rows:
        return rows
    from bidsharm.harmonizers.design import words_of

    column, value = args.fit_rows
    there = words_of(rows.covariates[column]) == value
    if not there.any():
        known = sorted(set(words_of(rows.covariates[column])) - {''})
        raise UsageError(
            f'No row has {column} {value}.', where='--fit-rows', fix=f'There are: {", ".join(known[:10])}.'
        )
    return rows.take(there)


def _written(table: TextTable, path: Path, result: Result, args: argparse.Namespace) -> None:
    """Write the table, its dictionary, its page and the model."""
    from bidsharm.harmonizers import bundle
    from bidsharm.workflows.feature_tables import Judgement, measured, write_result

    judge = args.judge or ('held-out' if result.method.quick else 'fitted')
    measures = measured(
        result, Judgement(judge == 'held-out', bool(args.judge), args.seed, max(args.permutations, 1))
    )
    if args.model:
        digest = bundle.digest(_model_folder(args.model, table.name))
    else:
        digest = bundle.save_anew(result.method, args.out / 'models' / table.name)
    write_result(table, path, result, measures, digest=digest, seed=args.seed)


# --- Arguments ---


def _setting(text: str) -> tuple[str, Any]:
    key, value = _pair(text)
    if not key.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition('=')
    if not (sign and key and value):
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=VALUE')
    return key, value


if __name__ == '__main__':
    sys.exit(main())
