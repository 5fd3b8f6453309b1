"""Scans that are prepared once for a training: what is kept is taken, and what cannot be used any more is made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bidsharm.errors import BidsharmError
from bidsharm.harmonizers import training_cache, training_data
from bidsharm.harmonizers.contract import Scan
from bidsharm.harmonizers.training_cache import prepare
from bidsharm.harmonizers.unet import UNet3D


@dataclass
class Kept:
    """A scan that counts how often it is read."""

    name: str
    key: str = 'as it is'
    person: str = '01'
    session: str = ''
    site: str = 'A'
    contrast: str = 'T1w'
    covariates: dict[str, float] = field(default_factory=dict)
    acquisition: dict[str, float] = field(default_factory=dict)
    world: None = None
    reads: int = 0

    def again(self, take: int) -> None:
        return

    def read(self) -> Scan:
        self.reads += 1
        data = np.zeros((20, 24, 20), np.float32)
        data[4:16, 4:20, 4:16] = np.arange(12, dtype=np.float32)[:, None, None] + 50
        affine = np.diag([8.0, 8.0, 8.0, 1.0])
        affine[:3, 3] = (-80, -110, -70)
        return Scan(
            data=data, mask=data > 0, affine=affine, contrast='T1w', name=self.name, person=self.person
        )


@pytest.fixture
def ready(tmp_path, monkeypatch) -> Callable[[], tuple[Kept, float]]:
    """Return a function that prepares a scan, and returns it with the sum of its values."""
    monkeypatch.setattr(training_data, 'align', lambda scan, anchor: np.eye(4))
    settings = UNet3D.preset('tiny', voxel_mm=8.0)

    def run() -> tuple[Kept, float]:
        source = Kept('sub-01_T1w')
        prepared = prepare([source], settings, tmp_path / 'cache')
        assert not prepared.problems
        return source, float(np.sum(prepared.data.volumes[0].values))

    return run


def test_what_is_kept_is_not_prepared_again(ready, tmp_path):
    first, total = ready()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / 'cache').iterdir()}
    _, again = ready()
    assert first.reads == 1
    assert again == total > 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / 'cache').iterdir()} == before


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b'')


def garbage(file: Path) -> None:
    file.write_bytes(b'no such thing' * 50)


def older(file: Path) -> None:
    file.write_text(json.dumps({'arrays': ['values']}))


@pytest.mark.parametrize('spoil', [cut, empty, garbage, older, Path.unlink])
@pytest.mark.parametrize('ending', ['.json', '.values.npy', '.mask.npy'])
def test_what_cannot_be_used_is_prepared_again(spoil, ending, ready, tmp_path):
    _, total = ready()
    file = next(file for file in (tmp_path / 'cache').iterdir() if file.name.endswith(ending))
    whole = file.read_bytes()
    spoil(file)
    source, again = ready()
    assert again == total
    assert source.reads == 1
    assert file.read_bytes() == whole


def test_nobody_waits_for_ever_for_another_process(ready, tmp_path, monkeypatch):
    monkeypatch.setattr(training_cache, 'WAIT_S', 0.1)
    (tmp_path / 'cache').mkdir()
    with (
        training_cache._alone(tmp_path / 'cache'),
        pytest.raises(BidsharmError, match='Another process has been preparing scans here'),
    ):
        ready()
    ready()


@pytest.fixture
def laid(tmp_path, monkeypatch):
    """Return a function that prepares scans and returns which of them was laid on which, or on the template."""
    settings = UNet3D.preset('tiny', voxel_mm=8.0)

    def run(*sources: Kept) -> dict[str, str]:
        found = {}

        def align(scan, anchor):
            found[scan.name] = 'template' if anchor is None else anchor[0].name
            return np.eye(4)

        monkeypatch.setattr(training_data, 'align', align)
        assert not prepare(sources, settings, tmp_path / 'cache').problems
        return found

    return run


def scans_of(person: str, *contrasts: str) -> list[Kept]:
    names = [f'sub-{person}_{contrast}' for contrast in contrasts]
    return [Kept(name, key=name, person=person) for name in names]


def test_scans_of_a_person_are_laid_on_the_first_one_which_is_read_once(laid):
    one, two = scans_of('01', 'FLAIR', 'T1w', 'T2w'), scans_of('02', 'T1w', 'T2w')
    found = laid(*two, *one)
    assert found == {
        'sub-01_FLAIR': 'template', 'sub-01_T1w': 'sub-01_FLAIR', 'sub-01_T2w': 'sub-01_FLAIR',
        'sub-02_T1w': 'template', 'sub-02_T2w': 'sub-02_T1w',
    }  # fmt: skip
    assert [scan.reads for scan in (*one, *two)] == [1] * 5


def test_a_kept_first_scan_is_read_only_when_another_is_to_be_laid_on_it(laid):
    laid(*scans_of('01', 'T1w', 'T2w'))
    again = scans_of('01', 'T1w', 'T2w')
    assert laid(*again) == {}
    assert [scan.reads for scan in again] == [0, 0]
    more = scans_of('01', 'T1w', 'T2w', 'T2x')
    assert laid(*more) == {'sub-01_T2x': 'sub-01_T1w'}
    assert [scan.reads for scan in more] == [1, 0, 1]


def test_what_was_laid_on_another_scan_is_prepared_again(laid):
    assert laid(*scans_of('01', 'T1w')) == {'sub-01_T1w': 'template'}
    both = scans_of('01', 'FLAIR', 'T1w')
    assert laid(*both) == {'sub-01_FLAIR': 'template', 'sub-01_T1w': 'sub-01_FLAIR'}
    assert laid(*both) == {}


def test_a_file_that_cannot_be_opened_for_lack_of_numbers_is_no_spoilt_file(ready, monkeypatch):
    import errno

    ready()

    def full(*args, **kwargs):
        raise OSError(errno.EMFILE, 'Too many open files')

    monkeypatch.setattr(np, 'load', full)
    with pytest.raises(OSError, match='Too many open files'):
        ready()
