"""What killed processes leave is cleared, what belongs to living ones never."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bidsharm import temporary
from bidsharm.processes import Identity, this_machine, this_process
from bidsharm.temporary import (
    OLD_DAYS,
    atomic_path,
    clear_own,
    clear_remains,
    swept,
    temporary_folder,
    temporary_path,
)

DEAD = Identity(this_machine(), 2**22 - 1, 1)
ELSEWHERE = Identity('0badcafe', os.getpid(), 1)


def left_by(owner: Identity, folder: Path, monkeypatch: pytest.MonkeyPatch, *, days: float = 0) -> Path:
    """Leave a partial file as a process would that was killed."""
    with monkeypatch.context() as patch:
        patch.setattr(temporary, 'this_process', lambda: owner)
        path = temporary_path(folder / 'sub-01_T1w.nii.gz')
    path.write_bytes(b'half')
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def test_whose_files_are_cleared(tmp_path, monkeypatch):
    dead = left_by(DEAD, tmp_path, monkeypatch)
    old = left_by(ELSEWHERE, tmp_path, monkeypatch, days=OLD_DAYS + 1)
    kept = [
        left_by(this_process(), tmp_path, monkeypatch, days=OLD_DAYS + 1),
        left_by(ELSEWHERE, tmp_path, monkeypatch, days=OLD_DAYS - 1),
        tmp_path / '.tmp-of-somebody-else',
        tmp_path / '.tmp',
        tmp_path / 'tmp-file',
    ]
    for path in kept[2:]:
        path.touch()
    clear_remains([tmp_path, tmp_path / 'missing'])
    assert not dead.exists()
    assert not old.exists()
    assert sorted(kept) == sorted(tmp_path.iterdir())


def test_folders_below_are_looked_into_only_when_asked(tmp_path, monkeypatch):
    (tmp_path / 'sub-01' / 'anat').mkdir(parents=True)
    dead = left_by(DEAD, tmp_path / 'sub-01' / 'anat', monkeypatch)
    clear_remains([tmp_path])
    assert dead.exists()
    with swept(below=[tmp_path]):
        assert not dead.exists()
        again = left_by(DEAD, tmp_path / 'sub-01', monkeypatch)
    assert not again.exists()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'file').touch()
    dead = left_by(DEAD, tmp_path, monkeypatch)
    dead.unlink()
    dead.symlink_to(tmp_path / 'data')
    clear_remains([tmp_path])
    assert not dead.is_symlink()
    assert (tmp_path / 'data' / 'file').exists()


@pytest.mark.parametrize('name', ['a' * 240 + '.nii.gz', 'ä' * 120 + '.nii.gz', '.hidden', 'a'])
def test_names_fit_and_end_like_the_final_one(tmp_path, name):
    with atomic_path(tmp_path / name) as path:
        assert len(os.fsencode(path.name)) <= 255
        assert path.name.endswith(name[-7:])
        path.write_text('whole')
    assert (tmp_path / name).read_text() == 'whole'


def test_what_a_killed_process_left_is_found_by_the_next(tmp_path):
    """From end to end: another process makes a file and a folder, and is killed."""
    code = (
        'import os\nfrom pathlib import Path\nfrom bidsharm.temporary import atomic_path, temporary_folder\n'
        f'here = Path({str(tmp_path)!r})\n'
        "with temporary_folder('.work', here) as folder, atomic_path(here / 'file.json') as path:\n"
        "    (folder / 'x').touch()\n    path.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, '-c', code], timeout=60, check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    clear_remains([tmp_path])
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith('.work-')
    with temporary_folder('.work', tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert not list(tmp_path.iterdir())


def test_a_process_that_must_end_at_once_takes_its_own_along(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary, '_open', set())
    with temporary_folder('.run', tmp_path) as folder, atomic_path(tmp_path / 'finished'):
        pass
    with temporary_folder('.run', tmp_path) as folder:
        (folder / 'x').touch()
        clear_own()
        assert [path.name for path in tmp_path.iterdir()] == ['finished']
