"""A method of another package: found by its entry point, and run like one of ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bidsharm.workflows.engine import configure, read_failures, run_graph
from bidsharm.workflows.harmonize import Method, init_harmonize_wf
from bidsharm.workflows.planning import make_plan
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm import __version__
from bidsharm.bids.query import Selection
from bidsharm.errors import NotServed, UsageError
from bidsharm.harmonizers import registry

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def installed(install_plugin) -> Iterator[None]:
    """Make the package visible here and in the processes that the steps run in, as an installed one would be."""
    install_plugin('doubling', 'Doubling')
    yield
    sys.modules.pop('doubling', None)


@pytest.fixture
def brain(tmp_path) -> dict[str, Path]:
    """A ball with three tissues on a grid of 2 mm; what lies outside the mask is not zero."""
    radius = np.linalg.norm(np.indices((20, 20, 20)) - 9.5, axis=0)
    labels = np.select([radius < 4, radius < 6.5, radius < 8.5], [3, 2, 1], 0)
    noise = np.random.default_rng(0).normal(0, 5, labels.shape)
    data = (np.array([50, 100, 200, 300])[labels] + noise).astype(np.float32)
    tissue = np.stack([labels == index for index in (1, 2, 3)], axis=-1).astype(np.float32)
    content = {'brain': data, 'brain_mask': (labels > 0).astype(np.uint8), 'tissue': tissue}
    files = {name: tmp_path / f'{name}.nii' for name in content}
    for name, values in content.items():
        nib.Nifti1Image(values, AFFINE).to_filename(files[name])
    return files


def around(method: Method, files: dict[str, Path], base_dir: Path, *, contrast: str = 'T1w') -> pe.Workflow:
    """Put the harmonize graph into a pipeline that is not ours, and keep what comes out."""
    workflow = pe.Workflow(name='theirs', base_dir=str(base_dir))
    ours = init_harmonize_wf(method=method, contrast=contrast, scan_name=f'sub-01_{contrast}', site='north')
    for name, file in files.items():
        setattr(ours.inputs.inputnode, name, str(file))
    keep = pe.Node(
        niu.Function(
            function=save, input_names=['image', 'record', 'sidecar', 'out_file'], output_names=['out_file']
        ),
        name='keep',
    )
    keep.inputs.out_file = str(base_dir / 'kept.json')
    workflow.connect([
        (ours, keep, [
            ('outputnode.harmonized', 'image'), ('outputnode.record', 'record'), ('outputnode.sidecar', 'sidecar'),
        ]),
    ])  # fmt: skip
    return workflow


def save(image, record, sidecar, out_file):
    import json
    from pathlib import Path

    Path(out_file).write_text(json.dumps({'image': image, 'record': record, 'sidecar': sidecar}))
    return out_file


@pytest.mark.usefixtures('installed')
def test_is_found_by_its_entry_point():
    assert registry.available()['doubling'].value == 'doubling:Doubling'
    assert registry.card('doubling').targets == ('canonical',)


def test_is_not_there_when_its_package_is_not():
    assert 'doubling' not in registry.available()
    with pytest.raises(UsageError, match='no harmonizer "doubling"'):
        registry.get('doubling')


@pytest.mark.usefixtures('installed')
def test_is_planned_like_ours(make_raw, make_settings, tmp_path):
    selection = Selection((make_raw(tmp_path / 'bids', 'sub-01_T1w', site='north'),))
    plan = make_plan(make_settings(harmonizer='doubling'), selection)
    assert plan.method.card['title'] == 'Doubles'
    assert plan.fit_scans == ()
    with pytest.raises(UsageError, match='doubling cannot aim at a site'):
        make_plan(make_settings(harmonizer='doubling', target='north'), selection)


@pytest.mark.usefixtures('installed', 'clean_nipype')
def test_runs_from_end_to_end(brain, make_raw, make_settings, tmp_path):
    settings = make_settings(harmonizer='doubling', random_seed=11, nprocs=1)
    selection = Selection((make_raw(tmp_path / 'bids', 'sub-01_T1w'),))
    method = make_plan(settings, selection).method
    log_dir, base_dir = tmp_path / 'log', tmp_path / 'work'
    log_dir.mkdir()
    base_dir.mkdir()
    configure(settings, log_dir)
    run_graph(around(method, brain, base_dir), settings)
    assert read_failures(log_dir) == []
    kept = json.loads((base_dir / 'kept.json').read_text())
    image = nib.load(kept['image'])
    before = nib.load(brain['brain']).get_fdata()
    mask = np.asarray(nib.load(brain['brain_mask']).dataobj) > 0
    np.testing.assert_array_equal(image.affine, AFFINE)
    np.testing.assert_allclose(image.get_fdata()[mask], 2 * before[mask], rtol=1e-6)
    assert not image.get_fdata()[~mask].any()
    assert image.get_data_dtype() == np.float32
    execution = kept['record']['execution']
    assert (execution['device'], execution['precision'], execution['steps']) == ('cpu', 'float32', [])
    assert kept['record']['target_quantiles'] is None
    assert kept['sidecar']['Harmonization'] == {
        'Method': 'doubling', 'Paper': 'None', 'Fidelity': 'faithful', 'Target': 'canonical', 'Device': 'cpu',
        'Precision': 'float32', 'Seed': 11, 'BidsharmVersion': __version__, 'CanDrawNewStructure': False,
    }  # fmt: skip


@pytest.mark.usefixtures('clean_nipype')
def test_package_that_is_gone_when_the_step_runs_is_named(brain, make_method, make_settings, tmp_path):
    """On a cluster, the node's machine may lack it."""
    log_dir, base_dir = tmp_path / 'log', tmp_path / 'work'
    log_dir.mkdir()
    base_dir.mkdir()
    settings = make_settings(nprocs=1)
    configure(settings, log_dir)
    method = replace(make_method(), name='doubling')
    run_graph(around(method, brain, base_dir), settings)
    failures = read_failures(log_dir)
    assert [failure.node for failure in failures] == ['theirs.harmonize_wf.harmonize']
    assert 'no harmonizer "doubling"' in failures[0].what
    assert not (base_dir / 'kept.json').exists()


@pytest.mark.usefixtures('installed')
def test_contrast_that_it_does_not_handle(make_raw, make_settings, tmp_path, monkeypatch):
    card = replace(registry.card('doubling'), contrasts=('T1w',))
    monkeypatch.setattr(registry.get('doubling'), 'card', card)
    scans = tuple(make_raw(tmp_path / 'bids', f'sub-01_{suffix}') for suffix in ('T1w', 'FLAIR'))
    plan = make_plan(make_settings(harmonizer='doubling'), Selection(scans))
    assert [scan.suffix for scan in plan.selection.scans] == ['T1w']
    assert [(type(error), error.where) for error in plan.selection.left_out] == [(NotServed, 'sub-01_FLAIR')]
