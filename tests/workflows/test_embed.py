"""bidsharm's graph inside somebody else's pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bidsharm.workflows.embed import init_harmonize_t1w_wf, method_of
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import Cohort, Scan, Site
from bidsharm.simulation.acquisition import acquire
from bidsharm.simulation.heads import load_template
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.rendering import render, scan_grid


@pytest.fixture(scope='module')
def head(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A simulated head at 3 mm in LAS, and its true mask."""
    folder = tmp_path_factory.mktemp('head')
    shape, affine = scan_grid(3.0)
    anatomy = render(load_template(step=2), shape=shape, affine=affine)
    found = acquire(anatomy, PRESETS[0], 'T1w', np.random.default_rng(0))
    turned = affine @ np.diag([-1.0, 1, 1, 1])
    turned[:3, 3] += affine[:3, 0] * (shape[0] - 1)
    for name, data in (('t1w', found.stored.astype(np.int16)), ('mask', anatomy.brain_mask.astype(np.uint8))):
        nib.Nifti1Image(data[::-1], turned).to_filename(folder / f'{name}.nii.gz')
    return folder / 't1w.nii.gz', folder / 'mask.nii.gz'


def double(in_file: str) -> str:
    """A step of the host: an image twice as bright."""
    from pathlib import Path

    import nibabel as nib

    image = nib.load(in_file)
    out = Path.cwd() / 'double.nii.gz'
    nib.Nifti1Image(image.get_fdata() * 2, image.affine).to_filename(out)
    return str(out)


def brightness(in_file: str, mask: str, verdict: str) -> tuple[float, str]:
    """Another one: the mean inside a mask."""
    import nibabel as nib

    return float(nib.load(in_file).get_fdata()[nib.load(mask).get_fdata() > 0].mean()), verdict


def host(head: tuple[Path, Path], base: Path, **options: object) -> pe.Workflow:
    """A pipeline of somebody else with a step before and a step after."""
    workflow = pe.Workflow(name='host_wf', base_dir=str(base))
    before = pe.Node(niu.Function(function=double, output_names=['out']), name='before')
    before.inputs.in_file = str(head[0])
    harmonize_wf = init_harmonize_t1w_wf(given_mask=True, sloppy=True, **options)
    harmonize_wf.inputs.inputnode.in_mask = str(head[1])
    after = pe.Node(niu.Function(function=brightness, output_names=['mean', 'verdict']), name='after')
    workflow.connect([
        (before, harmonize_wf, [('out', 'inputnode.t1w')]),
        (harmonize_wf, after, [
            ('outputnode.harmonized', 'in_file'), ('outputnode.brain_mask', 'mask'), ('outputnode.verdict', 'verdict'),
        ]),
    ])  # fmt: skip
    return workflow


@pytest.fixture(scope='module')
def ran(head: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, pe.Node]:
    graph = host(head, tmp_path_factory.mktemp('host')).run()
    return {node.fullname.removeprefix('host_wf.'): node for node in graph.nodes}


def outputs(ran: dict[str, pe.Node], name: str) -> Path:
    return Path(ran[f'harmonize_t1w_wf.native_{name}'].result.outputs.out_file)


def test_the_host_gets_a_harmonized_brain_and_a_verdict(ran):
    found = ran['after'].result.outputs
    assert found.mean == pytest.approx(50, abs=0.01)  # tscore, whatever the brightness
    assert found.verdict in ('pass', 'warn')
    record = json.loads(Path(ran['harmonize_t1w_wf.qc_wf.assess'].result.outputs.qc).read_text())
    assert record['verdict'] == found.verdict
    assert record['notes']['brain_mask'] == 'given by the pipeline around'


def test_images_are_on_the_grid_of_the_t1w(ran, head):
    t1w, mask = nib.load(head[0]), nib.load(head[1])
    inside = np.asarray(mask.dataobj) > 0
    for name in ('harmonized', 'head', 'preproc', 'brain_mask', 'dseg', 'dseg_after'):
        image = nib.load(outputs(ran, name))
        assert image.shape == t1w.shape
        np.testing.assert_allclose(image.affine, t1w.affine)
    np.testing.assert_array_equal(np.asarray(nib.load(outputs(ran, 'brain_mask')).dataobj) > 0, inside)
    harmonized, whole = (nib.load(outputs(ran, name)).get_fdata() for name in ('harmonized', 'head'))
    np.testing.assert_allclose(whole[inside], harmonized[inside])
    assert not harmonized[~inside].any()
    assert (whole[~inside] > 30).mean() > 0.02  # scalp


def test_the_mask_is_found_where_none_is_given():
    workflow = init_harmonize_t1w_wf()
    assert workflow.get_node('prep_wf.brain_extraction_wf.brain_extraction') is not None
    assert 'in_mask' not in workflow.get_node('inputnode').inputs.copyable_trait_names()
    corrected = init_harmonize_t1w_wf(correct_bias=False)
    assert workflow.get_node('prep_wf.bias_correction_wf.n4') is not None
    assert corrected.get_node('prep_wf.bias_correction_wf.n4') is None


def test_a_bundle_brings_its_target(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.ones((20, 20, 20), bool)
    data = (500 + 100 * rng.standard_normal(mask.shape)).astype(np.float32)
    scans = [Scan(data * gain, mask, np.eye(4), 'T1w', f'sub-{gain}', 'B') for gain in (1, 2)]
    learnt = registry.get('nyul')()
    learnt.fit(Cohort(scans), target=Site('B'))
    bundle.save(learnt, tmp_path / 'bundle')
    method = method_of('nyul', tmp_path / 'bundle')
    assert method.target == 'site:B'
    assert method.model_digest == bundle.digest(tmp_path / 'bundle')
    with pytest.raises(UsageError, match='Learn a bundle'):
        method_of('nyul')
    with pytest.raises(ConfigurationError, match='not found'):
        method_of('nyul', tmp_path / 'nowhere')


# --- Splicing ---


def stand_in(name: str) -> pe.Workflow:
    """Another method with the fields of ours: the brain as it came, and a mark."""
    workflow = pe.Workflow(name=name)
    given = ['brain', 'brain_mask', 'tissue', 'preproc', 'mask_sidecar']
    results = ['harmonized', 'uncertainty', 'record', 'sidecar', 'head', 'head_sidecar']
    inputnode = pe.Node(niu.IdentityInterface(fields=given), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=results), name='outputnode')
    workflow.connect([(inputnode, outputnode, [('brain', 'harmonized'), ('preproc', 'head')])])
    outputnode.inputs.record = {'details': {'method': 'theirs'}}
    outputnode.inputs.sidecar = {}
    return workflow


def test_niworkflows_can_put_another_method_in(head, tmp_path):
    splicer = pytest.importorskip('niworkflows.engine.splicer', reason='niworkflows is not installed')
    workflow = host(head, tmp_path)
    splicer.splice_workflow(workflow, {'harmonize.method': stand_in('theirs_wf')})
    names = workflow.list_node_names()
    assert not any('.harmonize_wf.' in name for name in names)
    graph = workflow.run()
    nodes = {node.fullname.removeprefix('host_wf.'): node for node in graph.nodes}
    record = json.loads(Path(nodes['harmonize_t1w_wf.qc_wf.assess'].result.outputs.qc).read_text())
    assert record['notes']['harmonizer'] == {'method': 'theirs'}
    assert nodes['after'].result.outputs.mean > 100  # the brightness of the scanner, twice


def test_every_component_has_a_tag_of_its_own(head, tmp_path):
    splicer = pytest.importorskip('niworkflows.engine.splicer', reason='niworkflows is not installed')
    workflow = pe.Workflow(name='host_wf')
    workflow.add_nodes([init_harmonize_t1w_wf()])
    tags = {name: node.name for name, node in splicer._fetch_tags(workflow).items()}
    assert tags == {
        'anat.harmonize': 'harmonize_t1w_wf', 'harmonize.brain-extraction': 'brain_extraction_wf',
        'harmonize.bias-correction': 'bias_correction_wf', 'harmonize.registration': 'register_wf',
        'harmonize.method': 'harmonize_wf', 'harmonize.quality': 'qc_wf',
    }  # fmt: skip


def test_niworkflows_is_not_needed():
    code = 'import sys, bidsharm.workflows.embed; print(any(m.split(".")[0] in ("niworkflows", "smriprep") for m in sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'False'
