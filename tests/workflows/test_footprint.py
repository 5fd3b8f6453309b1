"""What a run leaves behind and what it needs around it: few files, no home folder, no templates, no place where it is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bidsharm.simulation.dataset import simulate

#: Files that one scan may leave, in the working folder and among the results: file systems of clusters count them.
#: 240 and 32 were there when this was written.
WORKING, RESULTS = 360, 50


def files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


@pytest.mark.slow
def test_one_scan_leaves_few_files_and_needs_no_home(tmp_path: Path) -> None:
    heads, out, work = tmp_path / 'heads', tmp_path / 'out', tmp_path / 'work'
    simulate(heads, subjects=1, resolution=3.0)
    (heads / 'sub-01' / 'ses-southB').rename(tmp_path / 'elsewhere')
    nowhere = tmp_path / 'nowhere'
    nowhere.mkdir()
    nowhere.chmod(0o555)
    environment = {
        name: value for name, value in os.environ.items() if name not in ('HOME', 'XDG_CACHE_HOME')
    }
    environment |= {'TEMPLATEFLOW_HOME': str(nowhere / 'templates'), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-P', '-m', 'bidsharm', heads, out, 'participant', '-w', work, '--sloppy', '--skip-bids-validation',
         '--output-spaces', 'native', 'MNI152NLin2009aSym:res-2'],
        capture_output=True, text=True, timeout=600, check=False, env=environment, cwd=nowhere,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert 0 < files(work) <= WORKING
    assert 0 < files(out / 'sub-01') <= RESULTS
    assert (
        files(out) - files(out / 'sub-01') <= 20
    )  # of the data set, its logs and the page, whatever the number of scans
    assert not list(nowhere.iterdir())
