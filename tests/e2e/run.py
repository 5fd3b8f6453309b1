"""The end-to-end run: containers, clusters and hosts as their users type them.

``python tests/e2e/run.py`` runs every stage that this machine allows and names those that it skipped, and why. With
``--transcripts`` the commands and their ends are written to ``docs/transcripts``. Exit code 1 if a stage failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from stages import ROOT, Failed, Skip, Stage

#: Modules beside this one, in the order in which they run; each has ``run(stage)``.
STAGES = ('descriptor', 'hosts', 'slurm', 'image', 'apptainer')


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('stages', nargs='*', choices=[*STAGES, []], help='default: all of them')
    parser.add_argument('--transcripts', action='store_true', help='write docs/transcripts')
    args = parser.parse_args(arguments)
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix='bidsharm-e2e-') as work:
        for name in args.stages or STAGES:
            folder = Path(work) / name
            folder.mkdir()
            outcomes[name] = run_stage(name, folder, args.transcripts)
    print()
    for name, outcome in outcomes.items():
        print(f'{name}: {outcome}')
    failed = sum(outcome.startswith('failed') for outcome in outcomes.values())
    skipped = sum(outcome.startswith('skipped') for outcome in outcomes.values())
    print(f'{len(outcomes) - failed - skipped} passed, {failed} failed, {skipped} skipped')
    return int(failed > 0)


def run_stage(name: str, work: Path, transcripts: bool) -> str:
    """Run one stage and return its outcome in words."""
    real = os.environ.get('BIDSHARM_REAL_DATA')
    stage = Stage(name, work, Path(real) if real else None)
    started = time.monotonic()
    module = importlib.import_module(name)
    try:
        module.run(stage)
    except Skip as reason:
        return f'skipped: {reason}'
    except Failed as error:
        print(error)
        return f'failed: {str(error).splitlines()[0]}'
    except Exception as error:  # noqa: BLE001 - the other stages go on
        traceback.print_exc()
        return f'failed: {type(error).__name__}: {error}'
    if transcripts:
        write_transcript(stage, str(module.__doc__), time.monotonic() - started)
    return f'passed in {time.monotonic() - started:.0f} s'


def write_transcript(stage: Stage, doc: str, seconds: float) -> None:
    """Write what a stage did to ``docs/transcripts``."""
    made = f'*`python tests/e2e/run.py --transcripts {stage.name}`, {date.today()}, {seconds:.0f} s, {platform.machine()}, {os.cpu_count()} cores.*'
    folder = ROOT / 'docs' / 'transcripts'
    folder.mkdir(exist_ok=True)
    text = f'# {stage.name}\n\n{doc.strip()}\n\n{made}\n\n{stage.transcript()}'
    (folder / f'{stage.name}.md').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    sys.exit(main())
