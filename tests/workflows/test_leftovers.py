"""Results in a working folder that cannot be used any more do not stop a run, and the others are not made anew."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest
from bidsharm.workflows.engine import configure, run_graph
from bidsharm.workflows.leftovers import drop_spoilt
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

pytestmark = pytest.mark.usefixtures('clean_nipype')


def _make(out: str) -> str:
    import os
    import pathlib

    import nibabel
    import numpy

    with open(pathlib.Path(out) / 'calls', 'a') as calls:
        calls.write('make\n')
    nibabel.Nifti1Image(numpy.ones((4, 4, 4), numpy.float32), numpy.eye(4)).to_filename('made.nii')
    return os.path.abspath('made.nii')


def _sum(image: str, out: str) -> str:
    import pathlib

    import nibabel

    with open(pathlib.Path(out) / 'calls', 'a') as calls:
        calls.write('sum\n')
    (pathlib.Path(out) / 'sum').write_text(str(nibabel.load(image).get_fdata().sum()))
    return out


def graph(base: Path, out: Path) -> pe.Workflow:
    inner = pe.Workflow(name='inner_wf')
    make = pe.Node(Function(function=_make, input_names=['out'], output_names=['image']), name='make')
    add = pe.Node(Function(function=_sum, input_names=['image', 'out'], output_names=['out']), name='add')
    make.inputs.out = add.inputs.out = str(out)
    inner.connect(make, 'image', add, 'image')
    workflow = pe.Workflow(name='outer_wf', base_dir=str(base))
    workflow.add_nodes([inner])
    return workflow


@pytest.fixture
def ran(tmp_path, make_settings) -> Callable[[], list[str]]:
    """Return a function that runs the graph and returns which steps were done."""
    settings = make_settings(nprocs=1)
    logs = tmp_path / 'logs'
    logs.mkdir()
    configure(settings, logs)
    calls = tmp_path / 'calls'

    def run(base: Path = tmp_path / 'work') -> list[str]:
        calls.write_text('')
        run_graph(graph(base, tmp_path), settings)
        assert not list(logs.glob('crash-*'))
        return calls.read_text().split()

    return run


def result_of(tmp_path: Path, node: str) -> Path:
    return tmp_path / 'work' / 'outer_wf' / 'inner_wf' / node / f'result_{node}.pklz'


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def foreign(file: Path) -> None:
    with gzip.open(file, 'wb') as stream:
        stream.write(b'cbidsharm.old_version\nResult\n.')


def other_object(file: Path) -> None:
    with gzip.open(file, 'wb') as stream:
        pickle.dump({'a': 1}, stream)


def test_what_can_be_used_is_kept(ran, tmp_path):
    assert ran() == ['make', 'sum']
    assert drop_spoilt(graph(tmp_path / 'work', tmp_path)) == []
    assert ran() == []


@pytest.mark.parametrize('spoil', [cut, foreign, other_object, lambda file: file.write_bytes(b'')])
@pytest.mark.parametrize('node', ['make', 'add'])
def test_spoilt_results_are_made_again(spoil, node, ran, tmp_path):
    ran()
    spoil(result_of(tmp_path, node))
    assert {'make': 'make', 'add': 'sum'}[node] in ran()
    assert ran() == []


def test_an_image_that_was_cut_off_is_made_again(ran, tmp_path):
    ran()
    image = result_of(tmp_path, 'make').with_name('made.nii')
    os.truncate(image, image.stat().st_size - 1)
    assert ran() == ['make', 'sum']
    assert nib.load(image).get_fdata().sum() == 64


def test_a_file_that_is_gone_is_made_again(ran, tmp_path):
    ran()
    result_of(tmp_path, 'make').with_name('made.nii').unlink()
    assert ran() == ['make', 'sum']


def test_a_folder_that_was_moved_is_worked_on(ran, tmp_path):
    ran()
    shutil.move(tmp_path / 'work', tmp_path / 'elsewhere')
    assert 'make' in ran(tmp_path / 'elsewhere')
    assert (tmp_path / 'sum').read_text() == '64.0'


def test_folders_of_other_graphs_are_left_alone(ran, tmp_path):
    ran()
    other = tmp_path / 'work' / 'outer_wf' / 'another_wf' / 'node' / 'result_node.pklz'
    other.parent.mkdir(parents=True)
    other.write_bytes(b'of another process, half written')
    assert ran() == []
    assert other.exists()
