"""Where intermediate files go, and that they go away."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from bidsharm.workflows import scratch
from bidsharm.workflows.scratch import working_folder

from bidsharm.settings import Settings, from_dict


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that says how much room there is, in GB, and whether temporary files lie in memory."""
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
    (tmp_path / 'tmp').mkdir()
    (tmp_path / 'out').mkdir()

    def rooms(tmp: float, out: float, *, memory: bool = False) -> Settings:
        free = {tmp_path / 'tmp': tmp, tmp_path / 'out': out}
        monkeypatch.setattr(shutil, 'disk_usage', lambda path: Usage(0, 0, int(free[Path(path)] * 1e9)))
        monkeypatch.setattr(scratch, 'in_memory', lambda folder: memory)
        return from_dict({'bids_dir': '/', 'output_dir': str(tmp_path / 'out'), 'analysis_level': 'participant', 'mem_gb': 4.0})  # fmt: skip

    return rooms


@pytest.mark.parametrize(
    ('tmp', 'out', 'memory', 'scans', 'place'),
    [
        (10, 100, False, 1, 'tmp'),
        (10, 100, False, 40, 'out'),  # more scans at a time than there is room for
        (0.06, 100, False, 1, 'out'),  # Apptainer's --containall
        (12, 100, True, 1, 'tmp'),
        (12, 100, True, 3, 'out'),  # a quarter of 4 GB is not enough for three scans
        (0.06, 0.05, False, 1, 'tmp'),  # neither has room: not where results are
    ],
)
def test_files_go_where_there_is_room(machine, tmp_path, tmp, out, memory, scans, place):
    with working_folder(machine(tmp, out, memory=memory), scans) as folder:
        assert folder.is_dir()
        assert folder.parent == tmp_path / place
        assert place == 'tmp' or folder.name.startswith('.')  # hidden among results
        (folder / 'file').write_text('x')
    assert not folder.exists()


def test_a_folder_that_was_asked_for_stays(tmp_path):
    settings = from_dict(
        {'bids_dir': '/', 'output_dir': '/', 'analysis_level': 'participant', 'work_dir': str(tmp_path)}
    )
    with working_folder(settings, 1000) as folder:
        assert folder == tmp_path / 'bidsharm_work'
    assert folder.is_dir()


def test_folders_in_memory_are_known(tmp_path):
    memory = Path('/dev/shm')
    if not memory.is_dir():
        pytest.skip('this machine has no /dev/shm')
    assert scratch.in_memory(memory / 'bidsharm')
    assert not scratch.in_memory(Path('/usr'))
