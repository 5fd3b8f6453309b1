"""Write `bidsharm.json`, the Boutiques descriptor, from the command line itself, so that the two cannot drift apart.

``python descriptors/make.py`` writes it; a test says when it is out of date. Options that only undo a switch of a settings file are not in it.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import bidsharm
from bidsharm.cli import parser as cli
from bidsharm.errors import ExitCode

FILE = Path(__file__).with_name('bidsharm.json')

#: Values that are numbers, and their smallest and largest.
NUMBERS = {cli._positive: (1, None), cli._seed: (0, cli.MAX_SEED)}
#: Options that name something that is there already.
EXISTING = ('bids_filter_file', 'weights_dir', 'use_plugin', 'config_file')
MEANINGS = {
    ExitCode.SCAN_FAILED: 'At least one scan failed; the others are done, and the report says which and why.',
    ExitCode.USAGE: 'The command line, a settings file or the data set cannot be used as given.',
    ExitCode.NOTHING_TO_DO: 'No scan matches what was asked for.',
    ExitCode.INTERNAL: 'An error of bidsharm itself; the log has the details.',
    ExitCode.CONFIGURATION: 'A device, template or weights file is missing.',
}


def describe() -> dict[str, Any]:
    """Return the descriptor (schema 0.5) as a mapping."""
    options = [
        action
        for action in cli.build_parser()._actions
        if action.option_strings
        and action.help != argparse.SUPPRESS
        and action.dest not in ('help', 'version')
    ]
    first = ('participant_label', 'session_label')  # the schema for BIDS Apps wants them there
    options.sort(key=lambda action: first.index(action.dest) if action.dest in first else len(first))
    keys = ' '.join(_key(action) for action in options)
    return {
        'schema-version': '0.5',
        'name': 'bidsharm',
        'tool-version': bidsharm.__version__,
        'description': 'Harmonize brain MRI across scanners, with proof per scan that the anatomy survived (BIDS App).',
        'author': 'The bidsharm developers',
        'command-line': f'mkdir -p [OUTPUT_DIR]; bidsharm [BIDS_DIR] [OUTPUT_DIR] [ANALYSIS_LEVEL] {keys}',
        'inputs': [*_positional(), *(_option(action) for action in options)],
        'groups': [
            {
                'id': 'output_folder',
                'name': 'Output folder',
                'members': ['output_dir', 'output_dir_existing'],
                'mutually-exclusive': True,
                'one-is-required': True,
            }
        ],
        'output-files': [
            {
                'id': 'results',
                'name': 'Derivatives',
                'description': 'BIDS derivatives: harmonized images, masks, tissues, transforms, quality, reports.',
                'path-template': '[OUTPUT_DIR]',
            }
        ],
        'error-codes': [{'code': int(code), 'description': text} for code, text in MEANINGS.items()],
        'suggested-resources': {'cpu-cores': 2, 'ram': 4, 'walltime-estimate': 120},
        'tags': {'domain': ['neuroinformatics', 'mri', 'harmonization'], 'application-type': ['bids']},
        'custom': {'BIDSApplicationVersion': bidsharm.__version__},
    }  # fmt: skip


def _positional() -> list[dict[str, Any]]:
    """Return the three arguments of every BIDS App.

    `bosh validate --bids` wants the output folder twice, as a name and as a path that exists. `bosh exec` of boutiques 0.5.33 fills in
    the first of them only, so the one that always works comes first.
    """
    folder = {'value-key': '[OUTPUT_DIR]', 'optional': True}
    return [
        {'id': 'bids_dir', 'name': 'Data set', 'type': 'File', 'value-key': '[BIDS_DIR]',
         'description': 'The BIDS data set; it is never changed'},
        {'id': 'output_dir', 'name': 'Output folder', 'type': 'String', **folder,
         'description': 'where the derivatives go; it is made if need be'},
        {'id': 'output_dir_existing', 'name': 'Output folder that exists', 'type': 'File', **folder,
         'description': 'for programs that want a path here; bosh itself needs output_dir'},
        {'id': 'analysis_level', 'name': 'Analysis level', 'type': 'String', 'value-key': '[ANALYSIS_LEVEL]',
         'value-choices': ['participant', 'group'], 'description': 'what to run'},
    ]  # fmt: skip


def _option(action: argparse.Action) -> dict[str, Any]:
    """Return one option as an input."""
    found: dict[str, Any] = {
        'id': action.dest,
        'name': action.dest.replace('_', ' ').capitalize(),
        'description': action.help,
        'value-key': _key(action),
        'command-line-flag': _long(action),
        'optional': True,
        'type': _type(action),
    }
    if action.nargs == '+':
        found['list'] = True
    if action.choices:
        found['value-choices'] = list(action.choices)
    if found['type'] == 'Number':
        low, high = NUMBERS[action.type]  # type: ignore[index]
        found |= {'integer': True, 'minimum': low} | ({'maximum': high} if high else {})
    return found


def _type(action: argparse.Action) -> str:
    if action.nargs == 0:
        return 'Flag'
    if action.type in NUMBERS:
        return 'Number'
    return 'File' if action.dest in EXISTING else 'String'


def _long(action: argparse.Action) -> str:
    """Return the first long spelling of an option."""
    return next(text for text in action.option_strings if text.startswith('--'))


def _key(action: argparse.Action) -> str:
    return f'[{re.sub("[^A-Z]", "_", action.dest.upper())}]'


def text() -> str:
    """Return the descriptor as it is written."""
    return json.dumps(describe(), indent=2, ensure_ascii=False) + '\n'


if __name__ == '__main__':
    FILE.write_text(text(), encoding='utf-8')
    print(FILE.name)
