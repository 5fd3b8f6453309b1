"""Boutiques: the descriptor is valid, alone and as a BIDS App, and every example becomes a command line that bidsharm understands."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from stages import ROOT, Skip, Stage

DESCRIPTORS = Path('descriptors')


def run(stage: Stage) -> None:
    """Validate the descriptor in both ways, and simulate the example invocations."""
    bosh = Path(sys.prefix) / 'bin' / 'bosh'
    if not bosh.is_file():
        raise Skip('boutiques is not installed (pip install bidsharm[test])')
    file = DESCRIPTORS / 'bidsharm.json'
    stage.run([bosh, 'validate', file])
    stage.run([bosh, 'validate', '--bids', file])
    for invocation in sorted((ROOT / DESCRIPTORS / 'invocations').glob('*.json')):
        simulate(stage, bosh, file, invocation.relative_to(ROOT))


def simulate(stage: Stage, bosh: Path, file: Path, invocation: Path) -> None:
    """Let bosh print the command of an invocation, and let bidsharm's parser read it."""
    from bidsharm.cli.parser import parse_settings

    stage.run([bosh, 'invocation', file, '-i', invocation])
    line = stage.run([bosh, 'exec', 'simulate', '-i', invocation, file]).strip().splitlines()[-1]
    make, _, command = line.partition('; ')
    given = json.loads((ROOT / invocation).read_text())
    data = stage.work / invocation.stem / given['bids_dir']
    data.mkdir(parents=True)
    program, _, *rest = shlex.split(command)
    settings = parse_settings([str(data), *rest])
    stage.check(
        program == 'bidsharm' and make.startswith('mkdir -p '),
        f'{invocation}: the command is one of bidsharm',
    )
    same = [name for name in given if as_given(getattr(settings, name, None)) == given[name]]
    other = sorted(set(given) - set(same) - {'bids_dir', 'output_dir', 'mem_gb', 'fmriprep_derivatives'})
    stage.check(
        not other, f'{invocation}: the parser understands {", ".join(sorted(same))} as they were given'
    )


def as_given(value: object) -> object:
    """Return a setting as JSON has it."""
    return list(value) if isinstance(value, tuple) else value
