"""Every graph that a run can ask for, built and checked without a voxel."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import nibabel as nib
import numpy as np
import pytest
from bidsharm.workflows import planning
from bidsharm.workflows.base import (
    Options,
    ScanPlan,
    init_bidsharm_wf,
    init_single_subject_wf,
    init_target_wf,
    init_template_node,
)
from bidsharm.workflows.harmonize import init_harmonize_wf
from bidsharm.workflows.outputs import init_ds_harmonized_wf
from bidsharm.workflows.preprocess import SCAN_FIELDS, init_structural_wf, registration_inputs
from nipype.interfaces import utility as niu
from nipype.interfaces.base import isdefined
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import generate_expanded_graph

from bidsharm import workflows
from bidsharm.bids.derivatives import Precomputed, way_back
from bidsharm.bids.query import Selection
from bidsharm.errors import UsageError
from bidsharm.imaging.templates import Space, Template, bundled_files, parse_space
from bidsharm.interfaces.derivatives import SaveDerivatives, SaveQC
from bidsharm.interfaces.harmonize import FitTarget, HarmonizeScan
from bidsharm.interfaces.preprocess import ExtractBrain, PrepareTemplate
from bidsharm.settings import Settings

MODULES = ('base', 'embed', 'handoff', 'harmonize', 'outputs', 'preprocess', 'qc')
GPU_ARGUMENTS = {'sbatch_args': '--gres=gpu:1', 'overwrite': True}

#: Scans of one subject, and those of them that are still to be done (None: all).
LAYOUTS: dict[str, tuple[list[str], set[str] | None]] = {
    'T1w': (['sub-01_T1w'], None),
    'follower of the session': (['sub-01_ses-1_T1w', 'sub-01_ses-1_T2w'], None),
    'follower of another session': (['sub-01_ses-1_T1w', 'sub-01_ses-2_FLAIR'], None),
    'no T1w': (['sub-01_run-1_T2w', 'sub-01_run-2_T2w', 'sub-01_FLAIR', 'sub-01_PDw'], None),
    'only the followers are left': (
        ['sub-01_ses-1_T1w', 'sub-01_ses-1_T2w', 'sub-01_ses-1_FLAIR'],
        {'sub-01_ses-1_T2w', 'sub-01_ses-1_FLAIR'},
    ),
    'sessions, runs, acquisitions': (
        [
            'sub-01_ses-1_T1w', 'sub-01_ses-1_run-1_T1w', 'sub-01_ses-1_run-10_T1w', 'sub-01_ses-1_acq-x_T1w',
            'sub-01_ses-1_acq-x_run-1_T2w', 'sub-01_ses-1_acq-x_run-2_T2w', 'sub-01_ses-1_FLAIR', 'sub-01_ses-11_T1w',
            'sub-01_ses-11_acq-a+b_PDw',
        ],
        None,
    ),
}  # fmt: skip
SPACES = (
    ('native',),
    ('native', 'T1w'),
    ('MNI152NLin2009aSym',),
    ('MNI152NLin2009aSym:res-2', 'MNI152NLin2009aSym:res-1'),
    ('Other', 'T1w'),
    ('native', 'T1w', 'MNI152NLin2009aSym:res-1', 'MNI152NLin2009aSym:res-2', 'Other:res-1', 'Other:res-2', 'Another'),
)  # fmt: skip
PRECOMPUTED = ('none', 'mask', 'preproc', 'transforms', 'everything')


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, Path]:
    """Empty files that stand for those of a template and of another pipeline."""
    folder = tmp_path_factory.mktemp('files')
    found = {name: folder / f'{name}.nii.gz' for name in ('brain', 'head', 'mask', 'preproc')}
    found |= {name: folder / f'{name}.h5' for name in ('to', 'from', 'given')}
    for file in found.values():
        file.touch()
    return found


def template_of(space: Space, files: Mapping[str, Path]) -> Template:
    if space.name == 'MNI152NLin2009aSym':
        return Template(space, bundled_files()['T1w'])
    if space.name == 'Other':
        return Template(space, files['brain'])
    return Template(space, files['head'], files['mask'])


def precomputed_of(kind: str, files: Mapping[str, Path]) -> Precomputed:
    given = {
        'mask': {'brain_mask': files['mask']},
        'preproc': {'preproc': files['preproc'], 'brain_mask': files['mask']},
        'transforms': {'to_template': files['to'], 'from_template': files['from']},
    }
    given['everything'] = {**given['preproc'], **given['transforms']}
    return Precomputed(**given[kind], source='smriprep') if kind != 'none' else Precomputed()


def options_of(spaces: tuple[str, ...], files: Mapping[str, Path], **more: Any) -> Options:
    parsed = [parse_space(text) for text in spaces]
    templates = tuple(template_of(space, files) for space in parsed if space.name not in ('native', 'T1w'))
    return Options(
        templates=templates, t1w_space=any(space.name == 'T1w' for space in parsed), digest='d' * 16, **more
    )


def plans_of(
    make_raw, root: Path, layout: str, options: Options, given: Precomputed | None = None
) -> list[ScanPlan]:
    """Return the plans of a layout as a run would make them; ``given`` is what another pipeline has of the T1w."""
    names, only = LAYOUTS[layout]
    scans = tuple(make_raw(root, name) for name in names)
    selection = Selection(scans, structural=tuple(scan for scan in scans if scan.suffix == 'T1w'))
    plans = planning.subject_plans(selection, '01', Settings(root, root / 'out'), options, only=only)
    if given is None:
        return plans
    return [
        ScanPlan(plan.scan, plan.anchor, plan.write, *((Precomputed(), given) if plan.follows else (given,)))
        for plan in plans
    ]


def expanded(workflow: pe.Workflow) -> nx.DiGraph:
    """Flatten a graph, check names and direction, and return what would be run."""
    flat = workflow._create_flat_graph()
    names = Counter(node.fullname for node in flat.nodes())
    assert [name for name, count in names.items() if count > 1] == []
    assert nx.is_directed_acyclic_graph(flat)
    graph = generate_expanded_graph(flat)
    assert not [node.fullname for node in graph if isinstance(node.interface, niu.IdentityInterface)]
    return graph


def fed(graph: nx.DiGraph, node: pe.Node) -> set[str]:
    """Return the inputs of a node that are connected."""
    return {field for *_, data in graph.in_edges(node, data=True) for _, field in data['connect']}


def unset_inputs(graph: nx.DiGraph) -> Iterator[str]:
    """Yield the mandatory inputs that nothing sets; every input of a Merge counts as mandatory."""
    for node in graph.nodes():
        known = fed(graph, node) | {
            name for name in node.inputs.copyable_trait_names() if isdefined(getattr(node.inputs, name))
        }
        for name, trait in node.inputs.traits(mandatory=True).items():
            if not known & {name, *(trait.xor or ())}:
                yield f'{node.fullname}.{name}'
        if isinstance(node.interface, niu.Merge):
            wanted = {f'in{index}' for index in range(1, node.interface._numinputs + 1)}
            # The way of a scan to a space has one or two legs.
            missing = wanted - known
            if missing and (not node.name.startswith('moves_') or missing == wanted):
                yield from (f'{node.fullname}.{name}' for name in sorted(missing))


def written_by(node: pe.Node) -> list[str]:
    """Return the files that a sink writes, images and sidecars."""
    if isinstance(node.interface, SaveQC):
        return [node.inputs.qc_path]
    if not isinstance(node.interface, SaveDerivatives):
        return []
    names = []
    for spec in node.inputs.specs:
        paths = spec['path'] if isinstance(spec['path'], list) else [spec['path']]
        names += paths
        if spec['kind'] != 'file':
            names += [path.removesuffix('.nii.gz') + '.json' for path in paths]
    return names


def check_whole(workflow: pe.Workflow, plans: list[ScanPlan], spaces: tuple[str, ...]) -> nx.DiGraph:
    """Check the graph of one subject."""
    graph = expanded(workflow)
    assert list(unset_inputs(graph)) == []
    written = Counter(itertools.chain.from_iterable(written_by(node) for node in graph))
    assert [name for name, count in written.items() if count > 1] == []
    records = {node.inputs.qc_path: node for node in graph if isinstance(node.interface, SaveQC)}
    expected = {}
    for plan in plans:
        if plan.write:
            parsed = [parse_space(text) for text in spaces]
            *images, record = _record_last(planning.expected_outputs(plan.scan, plan.anchor, parsed))
            expected[record] = (plan, images)
    assert set(records) == set(expected)
    for record, node in records.items():
        plan, images = expected[record]
        before = nx.ancestors(graph, node)
        # The record says that everything is there: it waits for all that is announced.
        assert set(images) <= set(itertools.chain.from_iterable(written_by(other) for other in before))
        sinks = [other for other in before if isinstance(other.interface, SaveDerivatives)]
        count = 2 + len([text for text in spaces if text not in ('native', 'T1w')])
        count += any('_space-T1w_' in name for name in images)
        if not plan.follows:  # transforms to further templates, once a template whatever its resolutions
            further = [space for space in parsed if space.name not in ('native', 'T1w', 'MNI152NLin2009aSym')]
            count += len(
                {
                    label
                    for space in further
                    if (label := space.entities['space']) not in plan.space_transforms
                }
            )
        assert len(sinks) == count
        assert all(f'_{plan.scan.node}_' in f'.{sink.fullname}' for sink in sinks)
    return graph


def _record_last(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: name.endswith('_qc.json'))


def test_t1w_space_is_that_of_the_reused_t1w(files, make_raw, make_method, tmp_path):
    """Its grid is where the mask of the T1w lies; the raw T1w may have another."""
    options = options_of(('native', 'T1w'), files)
    given = precomputed_of('preproc', files)
    plans = plans_of(make_raw, tmp_path, 'follower of the session', options, given)
    workflow = init_single_subject_wf(
        plans=plans, method=make_method(), output_dir=tmp_path / 'out', options=options
    )
    (sink,) = (node for node in expanded(workflow) if node.name == 'ds_space')
    assert Path(sink.inputs.native) == given.preproc
    for spec in sink.inputs.specs:
        assert spec['sidecar']['SpatialReference'] == given.uri(given.preproc)


# One T1w (once with a follower), with every way to preprocess it.


@pytest.mark.parametrize('brain_extraction', ['deepbet', 'ants'])
@pytest.mark.parametrize('registration', ['affine', 'syn'])
@pytest.mark.parametrize('precomputed', PRECOMPUTED)
@pytest.mark.parametrize('skull_strip', ['auto', 'force', 'skip'])
def test_every_way_to_preprocess(
    brain_extraction, registration, precomputed, skull_strip, files, make_raw, make_method, tmp_path
):
    given = precomputed_of(precomputed, files)
    for index, (sloppy, device) in enumerate(itertools.product((False, True), ('cpu', 'cuda:0'))):
        spaces = SPACES[index]
        layout = 'follower of the session' if index == 1 else 'T1w'
        options = options_of(
            spaces, files, brain_extraction=brain_extraction, registration=registration, skull_strip=skull_strip,
            sloppy=sloppy, device=device,
        )  # fmt: skip
        plans = plans_of(make_raw, tmp_path, layout, options, given)
        workflow = init_single_subject_wf(
            plans=plans, method=make_method(), output_dir=tmp_path / 'out', options=options
        )
        graph = check_whole(workflow, plans, spaces)
        prep = [node for node in graph if f'.prep_{plans[0].scan.node}_wf' in node.fullname]
        names = Counter(node.name for node in prep)
        # What is given is not done again.
        assert names['n4'] == (given.preproc is None)
        one_node = brain_extraction == 'deepbet' or skull_strip == 'skip'  # skip: nothing is extracted
        assert names['brain_extraction'] == (one_node and given.brain_mask is None)
        assert names['reuse_mask'] == 1 - names['brain_extraction']
        register = [node for node in prep if node.name == 'register' and '.register_wf' in node.fullname]
        assert len(register) == (given.to_template is None)
        for node in register:
            assert node.inputs.transforms[-1] == {'affine': 'Affine', 'syn': 'SyN'}[registration]
        for node in prep:
            if isinstance(node.interface, ExtractBrain):
                assert (node.inputs.skull_strip, node.inputs.device) == (skull_strip, device)
        conform = next(node for node in prep if node.name == 'conform')
        assert conform.inputs.in_file == str(given.preproc or plans[0].scan.path)


# Every layout of a subject, with every choice of spaces, on every kind of machine.


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('spaces', SPACES, ids=' '.join)
@pytest.mark.parametrize(('device', 'arguments'), [('cpu', None), ('cuda:0', GPU_ARGUMENTS)])
def test_every_layout_and_space(layout, spaces, device, arguments, files, make_raw, make_method, tmp_path):
    options = options_of(spaces, files, sloppy=True, device=device, gpu_plugin_args=arguments)
    plans = plans_of(make_raw, tmp_path, layout, options)
    assert {plan.scan.name for plan in plans} == set(LAYOUTS[layout][0])
    method = make_method(device=device)
    workflow = init_bidsharm_wf(
        subjects={'01': plans}, method=method, output_dir=tmp_path / 'out', options=options
    )
    graph = check_whole(workflow, plans, spaces)
    nodes = [node for node in graph if isinstance(node.interface, HarmonizeScan)]
    assert sorted(node.inputs.name for node in nodes) == sorted(p.scan.name for p in plans if p.write)
    for node in nodes:
        assert node.inputs.use_gpu is (device != 'cpu')
        assert node.plugin_args == (arguments or {})


@pytest.mark.parametrize('layout', [name for name in LAYOUTS if name != 'no T1w'])
def test_given_transform_to_an_output_space_is_used(layout, files, make_raw, make_method, tmp_path):
    """What another pipeline has registered to a template is taken, for the scans that follow the T1w too."""
    names, only = LAYOUTS[layout]
    scans = tuple(make_raw(tmp_path / 'bids', name) for name in names)
    anchors = [scan for scan in scans if scan.suffix == 'T1w']
    for scan in anchors:
        stem = tmp_path / 'theirs' / scan.relative.removesuffix('_T1w.nii.gz')
        stem.parent.mkdir(parents=True, exist_ok=True)
        for way in ('from-T1w_to-Other', 'from-Other_to-T1w'):
            Path(f'{stem}_{way}_mode-image_xfm.h5').touch()
    settings = Settings(tmp_path / 'bids', tmp_path / 'out', derivatives={'theirs': tmp_path / 'theirs'})
    options = options_of(('Other',), files)
    selection = Selection(scans, structural=tuple(anchors))
    plans = planning.subject_plans(selection, '01', settings, options, only=only)
    workflow = init_single_subject_wf(
        plans=plans, method=make_method(), output_dir=tmp_path / 'out', options=options
    )
    graph = check_whole(workflow, plans, ('Other',))
    moves = {node.name: node for node in graph if node.name.startswith('moves_')}
    assert len(moves) == sum(plan.write for plan in plans)
    for plan in plans:
        if plan.write:
            theirs = plan.anchor.relative.removesuffix('_T1w.nii.gz') + '_from-T1w_to-Other_mode-image_xfm.h5'
            assert moves[f'moves_{plan.scan.node}_template_Other_1'].inputs.in1 == str(
                tmp_path / 'theirs' / theirs
            )
    assert not [node for node in graph if '.register_sub_01' in node.fullname]


def test_transforms_are_listed_from_the_space_backwards(files, make_raw, make_method, tmp_path):
    """antsApplyTransforms takes the last transform first: scan to T1w stands behind T1w to template."""
    spaces = ('T1w', 'MNI152NLin2009aSym', 'Other')
    options = options_of(spaces, files)
    plans = plans_of(make_raw, tmp_path, 'follower of another session', options)
    graph = expanded(
        init_single_subject_wf(
            plans=plans, method=make_method(), output_dir=tmp_path / 'out', options=options, name='sub_01_wf'
        )
    )
    follower, anchor = 'sub_01_ses_2_FLAIR', 'sub_01_ses_1_T1w'
    rigid = f'sub_01_wf.prep_{follower}_wf.register'
    ways = {
        f'moves_{follower}_template_T1w_1': {'in2': rigid},
        f'moves_{follower}_template_MNI152NLin2009aSym_1': {
            'in1': f'sub_01_wf.prep_{anchor}_wf.register_wf.register',
            'in2': rigid,
        },
        f'moves_{follower}_template_Other_1': {
            'in1': f'sub_01_wf.register_{anchor}_template_Other_1_wf.register',
            'in2': rigid,
        },
        f'moves_{anchor}_template_Other_1': {
            'in1': f'sub_01_wf.register_{anchor}_template_Other_1_wf.register'
        },
        f'chain_{follower}': {'in1': f'sub_01_wf.prep_{anchor}_wf.register_wf.register', 'in2': rigid},
    }
    nodes = {node.name: node for node in graph}
    for name, way in ways.items():
        edges = {
            field: (source.fullname, port)
            for source, _, data in graph.in_edges(nodes[name], data=True)
            for port, field in data['connect']
        }
        assert edges == {field: (source, 'composite_transform') for field, source in way.items()}, name


def test_follower_of_another_session_starts_from_the_centre(files, make_raw, make_method, tmp_path):
    starts = {}
    for layout in ('follower of the session', 'follower of another session'):
        plans = plans_of(make_raw, tmp_path, layout, Options())
        graph = expanded(
            init_single_subject_wf(plans=plans, method=make_method(), output_dir=tmp_path / 'out')
        )
        follower = next(plan.scan.node for plan in plans if plan.follows)
        node = next(node for node in graph if node.fullname.endswith(f'prep_{follower}_wf.register'))
        starts[layout] = isdefined(node.inputs.initial_moving_transform_com)
    assert starts == {'follower of the session': False, 'follower of another session': True}


def test_several_subjects_do_not_share_nodes(make_raw, make_method, tmp_path):
    """Labels that contain one another: sub-1, sub-11, sub-1+1."""
    subjects = {}
    for label in ('1', '11', '1+1'):
        scan = make_raw(tmp_path, f'sub-{label}_T1w')
        subjects[label] = [ScanPlan(scan, scan)]
    workflow = init_bidsharm_wf(subjects=subjects, method=make_method(), output_dir=tmp_path / 'out')
    graph = expanded(workflow)
    parts = list(nx.weakly_connected_components(graph))
    assert len(parts) == 3
    for part in parts:
        names = {name for node in part for name in written_by(node)}
        assert len({name.split('/')[0] for name in names}) == 1


def test_cohorts_of_one_template_do_not_overwrite_each_other(files, make_raw, make_method, tmp_path):
    """Either they have names of their own, or they are refused before anything is built."""
    spaces = ('MNIPediatricAsym:cohort-1', 'MNIPediatricAsym:cohort-2')
    try:
        options = options_of(spaces, files)
        plans = plans_of(make_raw, tmp_path, 'T1w', options)
        workflow = init_single_subject_wf(
            plans=plans, method=make_method(), output_dir=tmp_path / 'out', options=options
        )
    except UsageError:
        return
    check_whole(workflow, plans, spaces)


def test_nothing_is_called_t1w_where_there_is_none(make_raw, make_method, tmp_path):
    """A FLAIR that follows a T2w is not registered to a T1w, and must not say so."""
    options = Options(t1w_space=True)
    plans = plans_of(make_raw, tmp_path, 'no T1w', options)
    graph = expanded(
        init_single_subject_wf(
            plans=plans, method=make_method(), output_dir=tmp_path / 'out', options=options
        )
    )
    names = [name for node in graph for name in written_by(node)]
    assert [name for name in names if 'T1w' in name] == []
    for plan in plans:
        announced = planning.expected_outputs(plan.scan, plan.anchor, [Space('native'), Space('T1w')])
        assert set(announced) <= set(names)


# The target.


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('device', ['cpu', 'cuda:0'])
def test_target_graph(layout, device, files, make_raw, make_method, tmp_path):
    options = options_of(('Other',), files, device=device)
    plans = plans_of(make_raw, tmp_path, layout, options)
    method = make_method('histogram', target='site:A')
    graph = expanded(init_target_wf(plans=plans, method=method, out_dir=tmp_path / 'model', options=options))
    assert list(unset_inputs(graph)) == []
    (fit,) = (node for node in graph if isinstance(node.interface, FitTarget))
    used = {plan.scan.name: plan for plan in plans if plan.write}
    assert set(fit.inputs.names) == set(used)
    assert fit.inputs.contrasts == [used[name].scan.suffix for name in fit.inputs.names]
    # Names and files stand in the same order.
    for kind, port in (('images', 'brain_file'), ('masks', 'brain_mask'), ('tissues', 'tissue')):
        merge = next(node for node in graph if node.name == f'list_{kind}')
        sources = {
            field: (source.fullname, out)
            for source, _, data in graph.in_edges(merge, data=True)
            for out, field in data['connect']
        }
        for index, name in enumerate(fit.inputs.names, start=1):
            source, out = sources[f'in{index}']
            assert f'.prep_{used[name].scan.node}_wf.' in source
            assert out == port
    assert not [node for node in graph if isinstance(node.interface, (SaveDerivatives, SaveQC))]


# The harmonize node, and its use in another pipeline.


@pytest.mark.parametrize(('device', 'gpu'), [('cpu', False), ('', False), ('cuda:0', True), ('cuda:3', True)])
@pytest.mark.parametrize('arguments', [None, GPU_ARGUMENTS])
def test_harmonize_node_tells_the_scheduler(device, gpu, arguments, make_method):
    workflow = init_harmonize_wf(
        method=make_method(device=device), contrast='T1w', omp_nthreads=6, gpu_plugin_args=arguments
    )
    node = workflow.get_node('harmonize')
    assert node.interface.inputs.use_gpu is gpu
    assert node.n_procs == (1 if gpu else 6)
    assert node.mem_gb == make_method().memory_gb > 0
    assert node.plugin_args == (arguments if gpu and arguments else {})
    assert node.inputs.execution['device'] == device
    assert node.inputs.execution['threads'] == 6


def test_every_node_on_a_card_tells_the_scheduler(make_raw, make_method, tmp_path):
    """deepbet and learning need the card as much as the harmonize node does."""
    options = Options(device='cuda:0', gpu_plugin_args=GPU_ARGUMENTS)
    plans = plans_of(make_raw, tmp_path, 'T1w', options)
    method = make_method(device='cuda:0')
    graphs = [
        expanded(
            init_single_subject_wf(plans=plans, method=method, output_dir=tmp_path / 'out', options=options)
        ),
        expanded(init_target_wf(plans=plans, method=method, out_dir=tmp_path / 'model', options=options)),
    ]
    on_card = [
        node
        for graph in graphs
        for node in graph
        if 'cuda:0' in str(node.inputs.get().get('device', node.inputs.get().get('execution', '')))
    ]
    assert {node.name for node in on_card} == {'brain_extraction', 'harmonize', 'fit'}
    silent = [node.name for node in on_card if not getattr(node.inputs, 'use_gpu', False)]
    assert silent == []
    assert [node.name for node in on_card if node.plugin_args != GPU_ARGUMENTS] == []


def test_every_step_on_voxels_says_how_much_memory_it_takes(files, make_raw, make_method, tmp_path):
    """What Nipype assumes otherwise is 0.2 GB; a scheduler that believes it starts more than there is room for."""
    assumed = pe.Node(niu.Merge(1), name='x').mem_gb
    silent = set()
    for brain_extraction, layout in itertools.product(
        ('deepbet', 'ants'), ('follower of another session', 'no T1w')
    ):
        options = options_of(SPACES[-1], files, brain_extraction=brain_extraction)
        plans = plans_of(make_raw, tmp_path, layout, options)
        graphs = [
            init_single_subject_wf(
                plans=plans, method=make_method(), output_dir=tmp_path / 'out', options=options
            ),
            init_target_wf(plans=plans, method=make_method(), out_dir=tmp_path / 'model', options=options),
        ]
        silent |= {
            (type(node.interface).__name__, node.name.partition('_sub_')[0])
            for graph in graphs
            for node in expanded(graph)
            if node.mem_gb <= assumed
        }
    assert {name for kind, name in silent if kind != 'Merge'} == set()


def test_method_names_its_target(make_method):
    assert make_method(target='canonical').target_label == 'canonical'
    assert make_method(target='site:north-1.5T').target_label == 'north-1.5T'
    assert (
        make_method(target='reference:/a/b:c/sub-01_T1w.nii.gz').target_label == 'reference sub-01_T1w.nii.gz'
    )


def test_harmonize_graph_works_inside_another_pipeline(make_method, tmp_path):
    theirs = pe.Workflow(name='theirs')
    source = pe.Node(niu.IdentityInterface(fields=['image', 'mask', 'tissue']), name='source')
    for field in ('image', 'mask', 'tissue'):
        file = tmp_path / f'{field}.nii'
        file.touch()
        setattr(source.inputs, field, str(file))
    last = pe.Node(niu.Merge(2), name='last')
    ours = [
        init_harmonize_wf(method=make_method(name), contrast='T1w', name=f'{name}_wf')
        for name in ('robust', 'zscore')
    ]
    for index, workflow in enumerate(ours, start=1):
        theirs.connect([
            (source, workflow, [
                ('image', 'inputnode.brain'), ('mask', 'inputnode.brain_mask'), ('tissue', 'inputnode.tissue'),
            ]),
            (workflow, last, [('outputnode.harmonized', f'in{index}')]),
        ])  # fmt: skip
    graph = expanded(theirs)
    assert list(unset_inputs(graph)) == []
    assert {node.fullname for node in graph} == {
        'theirs.robust_wf.harmonize',
        'theirs.zscore_wf.harmonize',
        'theirs.last',
    }
    harmonize = next(node for node in graph if node.inputs.get().get('harmonizer') == 'zscore')
    assert harmonize.inputs.in_file == str(tmp_path / 'image.nii')


@pytest.mark.parametrize('given', [(), ('uncertainty',), ('unsupported',), ('uncertainty', 'unsupported')])
def test_maps_are_written_where_the_method_gives_them(given, make_raw, tmp_path):
    scan = make_raw(tmp_path / 'bids', 'sub-01_T1w')
    image = nib.Nifti1Image(np.ones((40, 40, 40), np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
    image.to_filename(tmp_path / 'image.nii')
    image.to_filename(scan.path)
    sink = init_ds_harmonized_wf(scan=scan, output_dir=tmp_path / 'out', native=scan.path)
    for field in ('harmonized', 'dseg_after', *given):
        image.to_filename(tmp_path / f'{field}.nii')
        setattr(sink.inputs.inputnode, field, str(tmp_path / f'{field}.nii'))
    sink.inputs.inputnode.sidecar = {'Harmonization': {'Method': 'any'}}
    sink.base_dir = str(tmp_path)
    sink.run()
    names = {path.name.removeprefix('sub-01_') for path in (tmp_path / 'out/sub-01/anat').iterdir()}
    wanted = {'desc-harmonized_T1w', 'desc-harmonized_dseg', *(f'desc-{name}_T1w' for name in given)}
    assert names == {f'{name}.{kind}' for name in wanted for kind in ('nii.gz', 'json')}


def test_structural_graph_works_inside_another_pipeline(make_method, tmp_path):
    """Preprocess and harmonize, without a data set around it."""
    theirs = pe.Workflow(name='theirs')
    template = init_template_node()
    prep_wf = init_structural_wf()
    prep_wf.inputs.inputnode.in_file = str(tmp_path / 'any.nii.gz')
    ours = init_harmonize_wf(method=make_method(), contrast='T1w')
    theirs.connect([
        (template, prep_wf, [
            ('coarse_brain', 'inputnode.template_coarse'), ('priors', 'inputnode.template_priors'),
            ('mask', 'inputnode.template_mask'), ('brain', 'inputnode.template_brain'),
        ]),
        (prep_wf, ours, [(f'outputnode.{name}', f'inputnode.{name}') for name in ('brain', 'brain_mask', 'tissue')]),
    ])  # fmt: skip
    graph = expanded(theirs)
    assert list(unset_inputs(graph)) == []
    assert {'conform', 'brain_extraction', 'n4', 'register', 'segment', 'harmonize'} <= {
        node.name for node in graph
    }


def test_helper_sees_what_is_missing(make_method, tmp_path):
    """The checks above would notice an input that nobody sets."""
    workflow = init_harmonize_wf(method=make_method(), contrast='T1w')
    assert sorted(unset_inputs(expanded(workflow))) == [
        'harmonize_wf.harmonize.in_file',
        'harmonize_wf.harmonize.mask_file',
    ]
    merge = pe.Workflow(name='merge')
    merge.add_nodes([pe.Node(niu.Merge(2), name='list')])
    assert list(unset_inputs(expanded(merge))) == ['merge.list.in1', 'merge.list.in2']


# Templates and registration.


def test_template_node(files):
    assert init_template_node().inputs.step == 1
    bundled = init_template_node(Template(Space('MNI152NLin2009aSym', '2'), bundled_files()['T1w']))
    assert bundled.inputs.step == 2
    assert not isdefined(bundled.inputs.image)
    head = init_template_node(Template(Space('Other', '1'), files['head'], files['mask']), name='other')
    assert isinstance(head.interface, PrepareTemplate)
    assert (head.inputs.space, head.inputs.image, head.inputs.mask) == (
        'Other', str(files['head']), str(files['mask']),
    )  # fmt: skip
    assert not isdefined(init_template_node(Template(Space('Other', '1'), files['brain'])).inputs.mask)


@pytest.mark.parametrize('sloppy', [False, True])
@pytest.mark.parametrize(
    ('kind', 'names'),
    [
        ('rigid', ['Rigid']),
        ('affine', ['Rigid', 'Affine']),
        ('syn', ['Rigid', 'Affine', 'SyN']),
        ('extraction', ['Rigid', 'Affine', 'SyN']),
    ],
)
def test_registration_inputs_fit_together(kind, names, sloppy):
    inputs = registration_inputs(kind=kind, sloppy=sloppy, seed=0)
    assert inputs['transforms'] == names
    for key, value in inputs.items():
        if isinstance(value, list):
            assert len(value) == len(names), key
    for iterations, shrink, sigmas in zip(
        inputs['number_of_iterations'], inputs['shrink_factors'], inputs['smoothing_sigmas'], strict=True
    ):
        assert len(iterations) == len(shrink) == len(sigmas)
    assert inputs['random_seed'] != 0  # 0 would be the clock
    assert registration_inputs(kind=kind, sloppy=sloppy, seed=1)['random_seed'] != inputs['random_seed']


# The functions that build graphs.


def builders() -> dict[str, Any]:
    """Return every ``init_*`` function of the workflow modules, from the module that defines it."""
    found = {}
    for module_name in MODULES:
        module = importlib.import_module(f'bidsharm.workflows.{module_name}')
        for name, function in vars(module).items():
            if name.startswith('init_') and getattr(function, '__module__', '') == module.__name__:
                found[name] = function
    return found


def test_all_modules_are_looked_at():
    folder = Path(str(workflows.__file__)).parent
    defining = {path.stem for path in folder.glob('*.py') if '\ndef init_' in path.read_text()}
    assert defining == set(MODULES)


@pytest.fixture
def needed(make_raw, make_method, tmp_path) -> dict[str, Any]:
    """Values for the keywords without default."""
    scan = make_raw(tmp_path, 'sub-01_T1w')
    method = make_method()
    return {
        'method': method, 'contrast': 'T1w', 'scan': scan, 'output_dir': tmp_path, 'out_dir': tmp_path / 'model',
        'native': scan.path, 'space': Space('MNI152NLin2009aSym', '1'), 'digest': 'd', 'sinks': 2, 'there': 'Other',
        'sources': {'bids:raw:x': scan.path}, 'folder': tmp_path / 'harm', 'transforms': {},
        'identity': {'scan': scan.name, 'contrast': 'T1w', 'harmonizer': {}},
        'plans': [ScanPlan(scan, scan)], 'subjects': {'01': [ScanPlan(scan, scan)]},
    }  # fmt: skip


@pytest.mark.parametrize('name', sorted(name for name in builders() if name.endswith('_wf')))
def test_builder_takes_keywords_only_and_says_what_goes_in_and_out(name, needed):
    function = builders()[name]
    parameters = inspect.signature(function).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert 'name' in {parameter.name for parameter in parameters}
    wanted = [item.name for item in parameters if item.default is inspect.Parameter.empty]
    workflow = function(**{key: needed[key] for key in wanted})
    assert isinstance(workflow, pe.Workflow)
    assert function(**{key: needed[key] for key in wanted}, name='other_wf').name == 'other_wf'
    expanded(workflow)
    text = function.__doc__ or ''
    sections = {line for line, under in itertools.pairwise(text.splitlines()) if set(under.strip()) == {'-'}}
    sections = {line.strip() for line in sections}
    assert 'Parameters' in sections
    nodes = workflow.list_node_names()
    for node, section in (('inputnode', 'Inputs'), ('outputnode', 'Outputs')):
        assert (node in nodes) == (section in sections), section
    documented = text.split('Parameters', 1)[1]
    for parameter in parameters:
        assert parameter.name in documented, parameter.name
    if 'inputnode' in nodes and name != 'init_ds_qc_wf':  # whose inputs are counted
        for field in workflow.get_node('inputnode').inputs.copyable_trait_names():
            assert field in documented, field


@pytest.mark.parametrize('given', [False, True])
def test_fmriprep_gets_only_transforms_that_another_pipeline_made(
    given, make_raw, make_method, files, tmp_path
):
    """fMRIPrep takes a transform that it finds in place of its own nonlinear one; ours are affine by default."""
    scan = make_raw(tmp_path, 'sub-01_T1w')
    there = tmp_path / 'sub-01_from-T1w_to-Other_mode-image_xfm.h5'
    template = tmp_path / 'sub-01_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5'
    reused = Precomputed(
        to_template=template,
        from_template=way_back(template, 'MNI152NLin2009aSym'),
        source='p',
        root=tmp_path,
    )
    plan = ScanPlan(scan, scan, handoff=tmp_path / 'harm')
    if given:
        for file in (template, reused.from_template, there, way_back(there, 'Other')):
            file.write_bytes(b'')
        plan = replace(plan, precomputed=reused, space_transforms={'Other': there})
    options = Options(templates=(Template(Space('Other', '1'), files['brain']),))
    workflow = init_single_subject_wf(
        plans=[plan], method=make_method(), output_dir=tmp_path, options=options
    )
    graph = expanded(workflow)
    assert list(unset_inputs(graph)) == []
    (collect,) = (node for node in graph if node.fullname.endswith('ds_handoff_sub_01_T1w_wf.collect'))
    (sink,) = (node for node in graph if node.name == 'ds_handoff')
    names = [str(spec['path']).rsplit('_from-', 1)[-1] for spec in sink.inputs.specs[4:]]
    assert sink.inputs.alone_in == 'sub-01/anat'
    if given:
        files_given = [template, way_back(template, 'MNI152NLin2009aSym'), there, way_back(there, 'Other')]
        assert names == [str(file).rsplit('_from-', 1)[-1] for file in files_given]
        assert [getattr(collect.inputs, f'in{index}') for index in range(5, 9)] == [
            str(file) for file in files_given
        ]
    else:
        assert names == []
        assert not hasattr(collect.inputs, 'in5')
    (harmonize,) = (node for node in graph if node.name == 'harmonize')
    assert {'head_file', 'head_sidecar'} <= fed(graph, harmonize)


def test_the_head_is_not_harmonized_for_nobody(make_raw, make_method, tmp_path):
    scan = make_raw(tmp_path, 'sub-01_T1w')
    graph = expanded(
        init_single_subject_wf(plans=[ScanPlan(scan, scan)], method=make_method(), output_dir=tmp_path)
    )
    (harmonize,) = (node for node in graph if node.name == 'harmonize')
    assert not {'head_file', 'head_sidecar'} & fed(graph, harmonize)
    assert not [node for node in graph if node.name == 'ds_handoff']


@pytest.mark.parametrize('kind', ['deepbet', 'ants', 'mask'])
def test_structural_graph_offers_all_fields(kind, files):
    given = precomputed_of('mask' if kind == 'mask' else 'none', files)
    workflow = init_structural_wf(brain_extraction='ants' if kind == 'ants' else 'deepbet', precomputed=given)
    outputs = workflow.get_node('outputnode').inputs.copyable_trait_names()
    assert set(outputs) == set(SCAN_FIELDS)


def test_functions_are_short():
    folder = Path(str(workflows.__file__)).parent
    long = []
    for path in sorted(folder.glob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines >= 100:
                    long.append(f'{path.name}:{node.name} has {lines} lines')
    assert long == []
