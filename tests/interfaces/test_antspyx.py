"""The command-line stand-ins by themselves."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from bidsharm.interfaces import antspyx


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'bidsharm.interfaces.antspyx', *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    'arguments', [(), ('antsBrainExtraction.sh',), ('--version',), ('os.system', 'true')]
)
def test_only_known_tools_are_run(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    for tool in antspyx.TOOLS:
        assert tool in done.stderr


def test_version_is_that_of_antspyx_and_does_not_pass_for_ants():
    done = run('antsRegistration', '--version')
    assert done.returncode == 0
    assert importlib.metadata.version('antspyx') in done.stdout
    assert 'ANTs Version' not in done.stdout


def test_every_tool_is_in_the_library():
    library = antspyx.load_library()
    for tool in antspyx.TOOLS:
        assert callable(getattr(library, tool))


def test_the_package_around_the_library_is_not_imported():
    code = (
        'import sys; from bidsharm.interfaces.antspyx import load_library; load_library(); '
        'print([name for name in ("ants", "pandas", "matplotlib", "numpy") if name in sys.modules])'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "'ants'" not in done.stdout
    assert 'pandas' not in done.stdout


def test_without_antspyx_the_error_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='antspyx'):
        antspyx.load_library()


def test_a_failure_of_the_tool_is_the_failure_of_the_process(tmp_path):
    missing = str(tmp_path / 'missing.nii')
    done = run(
        'antsApplyTransforms', '-d', '3', '-i', missing, '-r', missing, '-o', str(tmp_path / 'out.nii')
    )
    assert done.returncode != 0
    assert not (tmp_path / 'out.nii').exists()


def test_a_tool_does_its_work_and_ends_well(tmp_path):
    """Resampling onto another grid without any transform: world coordinates are shared."""
    data = np.random.default_rng(0).random((10, 11, 12)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nib.Nifti1Image(data, affine).to_filename(tmp_path / 'in.nii')
    moved = affine.copy()
    moved[:3, 3] = (4, 2, 6)
    nib.Nifti1Image(np.zeros((6, 6, 6), np.float32), moved).to_filename(tmp_path / 'grid.nii')
    done = run(
        'antsApplyTransforms', '-d', '3', '-i', str(tmp_path / 'in.nii'), '-r', str(tmp_path / 'grid.nii'),
        '-o', str(tmp_path / 'out.nii'), '-n', 'Linear', '-t', 'identity',
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    np.testing.assert_allclose(nib.load(tmp_path / 'out.nii').get_fdata(), data[2:8, 1:7, 3:9], atol=1e-6)
