"""Every bad scan of the catalogue is read and put back, or refused with its reason; so is whatever else a header can say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).parent))
import random_scans
from bad_scans import CASES, DONE, REFUSED, WARNED, Case, Head, load_head
from shared import app, checksums

from bidsharm.errors import ScanError
from bidsharm.imaging import grids


@pytest.fixture(scope='module')
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    """A simulated head at 4 mm."""
    folder = tmp_path_factory.mktemp('simulated') / 'bids'
    done = app(
        folder, '--subjects', 1, '--scanners', 'northA', '--resolution', 4, '--contrasts', 'T1w', 'T2w', command='bidsharm-simulate'
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return load_head(folder)


def scan_of(stem: Path) -> Path:
    """Return the image that a case has written."""
    return next(path for path in stem.parent.glob(f'{stem.name}.nii*'))


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) > 70


def test_what_only_a_run_can_tell_is_run() -> None:
    assert all(case.run for case in CASES if not case.reading)


@pytest.mark.parametrize('case', [case for case in CASES if not case.large], ids=lambda case: case.name)
def test_every_scan_ends_as_the_catalogue_says(case: Case, head: Head, tmp_path: Path) -> None:
    stem = tmp_path / 'sub-01_T1w'
    truth = case.make(head, stem)
    path = scan_of(stem)
    before = {} if path.is_symlink() else checksums(tmp_path)
    if case.ends == REFUSED and case.reading:
        with pytest.raises(ScanError) as caught:
            grids.conform(path)
        assert re.search(case.message, str(caught.value)), str(caught.value)
        assert caught.value.where == path.name
    else:
        result = grids.conform(path)
        if case.reading:
            assert (WARNED if result.warnings else DONE) == case.ends, result.warnings
            assert re.search(case.message, ' '.join(result.warnings)), result.warnings
        check_back(path, result.image, truth)
    if before:
        assert checksums(tmp_path) == before


def check_back(path: Path, image: nib.Nifti1Image, truth: np.ndarray | None) -> None:
    """What was read lies on the voxels of the file again: values, shape, affine; the truth fits them."""
    raw = nib.load(path)
    back = grids.to_native(image, raw)
    assert back.shape == raw.shape[:3]
    np.testing.assert_allclose(back.affine, raw.affine, atol=1e-4)
    expected = np.asarray(raw.dataobj, dtype=np.float32).reshape(raw.shape[:3])
    expected = np.where(np.isfinite(expected), expected, 0)
    np.testing.assert_array_equal(np.asarray(back.dataobj), expected)
    if truth is not None:
        assert truth.shape == back.shape
        assert truth.any()


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(file=random_scans.files())
def test_any_file_is_read_exactly_or_refused_in_words(
    file: tuple[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp('any') / f'sub-01_T1w{file[0]}'
    path.write_bytes(file[1])
    assert random_scans.check(path) in ('done', 'refused')
