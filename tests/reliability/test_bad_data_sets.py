"""Every bad data set of the catalogue is planned, or refused with its reason, and is left as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bad_data_sets import CASES, Case, plan

from bidsharm.cli.run import main


@pytest.mark.parametrize(
    'case', [case for case in CASES if case.name != '1,000 subjects'], ids=lambda case: case.name
)
def test_every_data_set_ends_as_the_catalogue_says(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COLUMNS', '200')

    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        code = main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    done, wrong = plan(case, tmp_path, start)
    assert not wrong, f'{wrong}\n{done.stdout}\n{done.stderr}'
    assert not (tmp_path / 'out').exists()
