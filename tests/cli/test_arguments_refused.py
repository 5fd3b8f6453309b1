"""How all commands refuse what they do not understand: in a few lines, with the option that may have been meant."""

from __future__ import annotations

from importlib import import_module

import pytest

from bidsharm.cli.arguments import Parser

COMMANDS = {
    'parser': 'bidsharm', 'task': 'bidsharm-task', 'train': 'bidsharm-train', 'models': 'bidsharm-models', 'table': 'bidsharm-table',
    'surface': 'bidsharm-surface', 'simulate': 'bidsharm-simulate', 'evaluate': 'bidsharm-evaluate', 'doctor': 'bidsharm-doctor',
}  # fmt: skip


@pytest.fixture
def parser() -> Parser:
    found = Parser(prog='measure')
    found.add_argument('scan', metavar='SCAN')
    found.add_argument('rest', nargs='*', metavar='MORE')
    found.add_argument('--contrast', choices=('T1w', 'T2w'))
    found.add_argument('--threads', type=int)
    return found


def said(parser: Parser, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    return err


def test_an_option_that_was_nearly_right_is_named(parser, capsys):
    lines = said(parser, capsys, 'a', '--contrats', 'T1w').splitlines()
    assert lines[0].startswith('measure: unrecognized arguments: --contrats')
    assert lines[1] == 'Did you mean --contrast?'


def test_a_value_after_the_sign_does_not_hide_the_option(parser, capsys):
    assert 'Did you mean --contrast?' in said(parser, capsys, 'a', '--contrats=T1w')


@pytest.mark.parametrize('words', [['a', '--zebra'], ['a', '--threads', 'x'], ['a', '--contrast', 'T3w'], []])
def test_nothing_is_suggested_where_nothing_is_near(parser, capsys, words):
    assert 'Did you mean' not in said(parser, capsys, *words)


def test_the_call_is_told_in_one_line(parser, capsys):
    assert said(parser, capsys).splitlines()[1:] == [
        'usage: measure [options] SCAN [MORE ...]',
        'measure --help tells the options.',
    ]


@pytest.mark.parametrize('module', COMMANDS)
def test_every_command_refuses_alike(module, capsys):
    lines = said(
        import_module(f'bidsharm.cli.{module}').build_parser(), capsys, 'a', 'b', 'c', '--no-such-thing'
    )
    assert lines.startswith(f'{COMMANDS[module]}')
    assert f'{COMMANDS[module]} --help tells the options.' in lines
    assert len(lines.splitlines()) == 3


def test_a_command_of_several_refuses_by_itself(capsys):
    parser = import_module('bidsharm.cli.models').build_parser()
    lines = said(parser, capsys, 'import', 'FILE.tar', 'FOLDER', '--digst', 'X').splitlines()
    assert lines == [
        'bidsharm-models import: unrecognized arguments: --digst X',
        'Did you mean --digest?',
        'usage: bidsharm-models import [options] FILE.tar FOLDER',
        'bidsharm-models import --help tells the options.',
    ]
