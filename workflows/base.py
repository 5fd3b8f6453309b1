"""Graphs of a subject, of a batch of subjects, and of learning a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsharm.workflows.handoff import init_ds_handoff_wf
from bidsharm.workflows.harmonize import Method, init_harmonize_wf
from bidsharm.workflows.outputs import (
    init_ds_harmonized_wf,
    init_ds_preproc_wf,
    init_ds_qc_wf,
    init_ds_space_wf,
    init_ds_transforms_wf,
)
from bidsharm.workflows.preprocess import (
    TEMPLATE_FIELDS,
    init_follower_wf,
    init_structural_wf,
    init_template_registration_wf,
)
from bidsharm.workflows.qc import init_qc_wf
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.bids.derivatives import Precomputed
from bidsharm.bids.names import ScanFile
from bidsharm.bids.sidecars import raw_uri, template_uri
from bidsharm.imaging.templates import BUNDLED, Space, Template
from bidsharm.interfaces.harmonize import FitTarget
from bidsharm.interfaces.preprocess import PrepareTemplate


def scan_memory_gb(shape: Sequence[int]) -> float:
    """Return the memory of one step on a whole scan: a dozen float32 copies, and the interpreter.

    Parameters
    ----------
    shape
        Size of the scan in voxels.
    """
    return round(0.4 + 12 * 4 * math.prod(shape[:3]) / 1e9, 2)


@dataclass(frozen=True)
class ScanPlan:
    """What is to be done with one scan.

    Parameters
    ----------
    scan
        The raw scan.
    anchor
        The scan it follows (itself for a T1w).
    write
        False for a T1w that is only needed by a scan that follows it.
    precomputed
        Files of other pipelines, for an anchor.
    anchor_precomputed
        The same for the anchor of a scan that follows.
    space_transforms
        Given transforms of its anchor to output templates, by the label of the space (``MNIInfant+2``).
    shape
        Size of the raw scan in voxels, for the memory estimate.
    handoff
        Folder of the derivatives for fMRIPrep, for the T1w that goes there.
    companions
        Scans of other contrasts of the visit that the method looks at, too.
    failed_companions
        Names of those that it does without, for they failed.
    """

    scan: ScanFile
    anchor: ScanFile
    write: bool = True
    precomputed: Precomputed = field(default_factory=Precomputed)
    anchor_precomputed: Precomputed = field(default_factory=Precomputed)
    space_transforms: Mapping[str, Path] = field(default_factory=dict)
    shape: tuple[int, ...] = (256, 256, 256)
    handoff: Path | None = None
    companions: tuple[ScanFile, ...] = ()
    failed_companions: tuple[str, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether the scan follows another."""
        return self.scan != self.anchor

    @property
    def mem_gb(self) -> float:
        """Memory of one step on the whole scan."""
        return scan_memory_gb(self.shape)

    @property
    def native(self) -> Path:
        """The image whose grid results come back to."""
        return self.precomputed.preproc or self.scan.path

    @property
    def reused(self) -> Precomputed:
        """Files of other pipelines that the result rests on."""
        return self.anchor_precomputed if self.follows else self.precomputed

    @property
    def anchor_native(self) -> tuple[Path, str]:
        """The image whose grid results in T1w space come back to, and its BIDS URI."""
        preproc = self.reused.preproc
        return (preproc, self.reused.uri(preproc)) if preproc else (self.anchor.path, raw_uri(self.anchor))

    @property
    def handed_transforms(self) -> dict[str, Path]:
        """Transforms that fMRIPrep gets, by template: those of another pipeline, for ours are too coarse to replace its own."""
        own = {BUNDLED: self.reused.to_template} if self.reused.to_template else {}
        return {**own, **self.space_transforms}

    @property
    def sources(self) -> dict[str, Path]:
        """All files that the result is made from, by BIDS URI (given transforms to output spaces by their template)."""
        reused = {self.reused.uri(file): file for file in self.reused.files.values()}
        ways = {f'transform to {name}': file for name, file in self.space_transforms.items()}
        raw = {raw_uri(scan): scan.path for scan in (self.scan, self.anchor, *self.companions)}
        return {**raw, **reused, **ways}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be known of the result."""
        without = [
            f'It was harmonized without {name}, which failed. When that is mended, the same command does it again.'
            for name in self.failed_companions
        ]
        return (*self.scan.warnings, *self.reused.warnings, *without)


@dataclass(frozen=True)
class Options:
    """How the graphs do their work; a part of the settings, so that other pipelines can build the graphs too."""

    brain_extraction: str = 'deepbet'
    skull_strip: str = 'auto'
    registration: str = 'affine'
    device: str = 'cpu'
    omp_nthreads: int = 1
    sloppy: bool = False
    seed: int = 0
    templates: tuple[Template, ...] = ()
    t1w_space: bool = False
    thresholds: dict[str, Any] = field(default_factory=dict)
    digest: str = ''
    methods: dict[str, Any] = field(default_factory=dict)
    gpu_plugin_args: dict[str, Any] | None = None


def init_template_node(template: Template | None = None, *, name: str = 'template') -> pe.Node:
    """Return the node that prepares a template (the bundled one by default)."""
    node = pe.Node(PrepareTemplate(), name=name, mem_gb=1.0)
    if template is not None and template.space.name != BUNDLED:
        node.inputs.space = template.space.name
        node.inputs.image = str(template.brain)
        if template.mask:
            node.inputs.mask = str(template.mask)
    elif template is not None:
        node.inputs.step = int(template.space.resolution or 1)
    return node


def init_bidsharm_wf(
    *,
    subjects: Mapping[str, Sequence[ScanPlan]],
    method: Method,
    output_dir: Path,
    options: Options | None = None,
    name: str = 'bidsharm_wf',
) -> pe.Workflow:
    """Build the graph of several subjects.

    Parameters
    ----------
    subjects
        What to do with the scans of each subject (:class:`ScanPlan`).
    method
        The chosen harmonizer.
    output_dir
        Root of the derivatives.
    options
        How the work is done.
    name
        Name of the workflow.
    """
    workflow = pe.Workflow(name=name)
    for subject, plans in subjects.items():
        workflow.add_nodes([
            init_single_subject_wf(
                plans=plans, method=method, output_dir=output_dir, options=options,
                name=subject_wf_name(subject),
            )
        ])  # fmt: skip
    return workflow


def subject_wf_name(subject: str) -> str:
    """Return the name of a subject's graph, and of its folder in the working folder."""
    return 'sub_' + ''.join(c if c.isalnum() else '_' for c in subject) + '_wf'


def init_single_subject_wf(
    *,
    plans: Sequence[ScanPlan],
    method: Method,
    output_dir: Path,
    options: Options | None = None,
    name: str = 'single_subject_wf',
) -> pe.Workflow:
    """Build the graph of one subject: every scan goes its own way, T2w, FLAIR and PDw behind their T1w.

    Parameters
    ----------
    plans
        What to do with each scan; anchors must be among them.
    method, output_dir, options, name
        As in :func:`init_bidsharm_wf`.
    """
    options = options or Options()
    workflow = pe.Workflow(name=name)
    template = init_template_node()
    spaces = {
        item.space: init_template_node(item, name=_space_name(item.space)) for item in options.templates
    }
    structural: dict[str, pe.Workflow] = {}
    prepared: dict[str, pe.Workflow] = {}
    for plan in sorted(plans, key=lambda item: item.follows):
        prepared[plan.scan.name] = prep_wf = _connect_prep(workflow, plan, structural, template, options)
        if not plan.follows:
            _connect_registrations(workflow, plan, prep_wf, spaces, options)
    for plan in (plan for plan in plans if plan.write):
        prep_wf = prepared[plan.scan.name]
        _connect_scan(workflow, plan, prep_wf, structural, template, spaces, method, output_dir, options)
        _connect_companions(workflow, plan, prepared)
    return workflow


def _connect_companions(workflow: pe.Workflow, plan: ScanPlan, prepared: Mapping[str, pe.Workflow]) -> None:
    """Give the harmonization of a scan the other contrasts of the visit, and the way from each to the scan."""
    harmonize_wf = workflow.get_node(f'harmonize_{plan.scan.node}_wf')
    for index, other in enumerate(plan.companions, 1):
        prep_wf = prepared[other.name]
        # From the companion to their T1w, and from there to the scan; antsApplyTransforms takes the last of the list first.
        ways = [(prepared[plan.scan.name], 'outputnode.from_anchor')] if plan.follows else []
        ways += [(prep_wf, 'outputnode.to_anchor')] if other != plan.anchor else []
        moves = pe.Node(
            niu.Merge(len(ways)), name=f'from_{other.suffix}_to_{plan.scan.node}', run_without_submitting=True
        )
        for place, (source, field_name) in enumerate(ways, 1):
            workflow.connect(source, field_name, moves, f'in{place}')
        workflow.connect([
            (prep_wf, harmonize_wf, [('outputnode.brain', f'inputnode.companion{index}')]),
            (moves, harmonize_wf, [('out', f'inputnode.companion{index}_transforms')]),
        ])  # fmt: skip


def _connect_prep(
    workflow: pe.Workflow,
    plan: ScanPlan,
    structural: dict[str, pe.Workflow],
    template: pe.Node,
    options: Options,
) -> pe.Workflow:
    """Add the preprocessing of one scan; an anchor is remembered in ``structural`` for those that follow it."""
    prep_wf = _init_prep_wf(plan, options)
    prep_wf.inputs.inputnode.in_file = str(plan.scan.path)
    if plan.follows:
        anchored = ('coarse_head', 'brain_mask', 'tissue', 'to_template', 'from_template')
        source = structural[plan.anchor.name]
        pairs = [(f'outputnode.{item}', f'inputnode.anchor_{item}') for item in anchored]
    else:
        source = template
        outputs = ('coarse_brain', 'mask', 'coarse_head', 'priors', 'brain')
        pairs = [(item, f'inputnode.{target}') for item, target in zip(outputs, TEMPLATE_FIELDS, strict=True)]
        structural[plan.scan.name] = prep_wf
    workflow.connect([(source, prep_wf, pairs)])
    return prep_wf


def _init_prep_wf(plan: ScanPlan, options: Options) -> pe.Workflow:
    shared: dict[str, Any] = {
        'scan_name': plan.scan.name, 'omp_nthreads': options.omp_nthreads, 'mem_gb': plan.mem_gb,
        'sloppy': options.sloppy, 'seed': options.seed, 'name': f'prep_{plan.scan.node}_wf',
    }  # fmt: skip
    if plan.follows:
        return init_follower_wf(
            same_session=plan.scan.session == plan.anchor.session, anchor=plan.anchor.suffix, **shared
        )
    return init_structural_wf(
        brain_extraction=options.brain_extraction, skull_strip=options.skull_strip,
        registration=options.registration, precomputed=plan.precomputed, device=options.device,
        gpu_plugin_args=options.gpu_plugin_args, **shared,
    )  # fmt: skip


def _space_name(space: Space) -> str:
    return f'template_{space.name}_{space.resolution or "1"}' + (f'_{space.cohort}' if space.cohort else '')


def _connect_registrations(
    workflow: pe.Workflow,
    plan: ScanPlan,
    prep_wf: pe.Workflow,
    spaces: Mapping[Space, pe.Node],
    options: Options,
) -> None:
    """Register an anchor to every further template, once for all scans that follow it."""
    for space, template in spaces.items():
        given = plan.space_transforms.get(space.entities['space'])
        if space.name == BUNDLED or given:
            continue
        register_wf = init_template_registration_wf(
            kind=options.registration, omp_nthreads=options.omp_nthreads, sloppy=options.sloppy, seed=options.seed,
            name=f'register_{plan.scan.node}_{_space_name(space)}_wf',
        )  # fmt: skip
        workflow.connect([
            (prep_wf, register_wf, [('outputnode.coarse_brain', 'inputnode.coarse_brain')]),
            (template, register_wf, [('coarse_brain', 'inputnode.template_coarse')]),
        ])  # fmt: skip


def _connect_scan(
    workflow: pe.Workflow,
    plan: ScanPlan,
    prep_wf: pe.Workflow,
    structural: Mapping[str, pe.Workflow],
    template: pe.Node,
    spaces: Mapping[Space, pe.Node],
    method: Method,
    output_dir: Path,
    options: Options,
) -> None:
    """Add harmonization, QC and sinks of one scan."""
    scan, node = plan.scan, plan.scan.node
    harmonize_wf = init_harmonize_wf(
        method=method, contrast=scan.suffix, scan_name=scan.name, site=scan.site, companions=plan.companions,
        omp_nthreads=options.omp_nthreads, mem_gb=plan.mem_gb, gpu_plugin_args=options.gpu_plugin_args, name=f'harmonize_{node}_wf',
    )  # fmt: skip
    qc_wf = init_qc_wf(
        identity=identity_of(scan, method), notes=notes_of(plan, options), thresholds=options.thresholds,
        warnings=plan.warnings,
        omp_nthreads=options.omp_nthreads, mem_gb=plan.mem_gb, name=f'qc_{node}_wf',
    )  # fmt: skip
    ds_preproc_wf = init_ds_preproc_wf(
        scan=scan, output_dir=output_dir, native=plan.native, reused=plan.reused,
        anchor=plan.anchor if plan.follows else None, name=f'ds_preproc_{node}_wf',
    )  # fmt: skip
    ds_harmonized_wf = init_ds_harmonized_wf(
        scan=scan, output_dir=output_dir, native=plan.native, name=f'ds_harmonized_{node}_wf'
    )
    chain = pe.Node(niu.Merge(2 if plan.follows else 1), name=f'chain_{node}', run_without_submitting=True)
    out = 'outputnode.{}'.format
    workflow.connect([
        (prep_wf, chain, [(out('to_template'), 'in1')]),
        (prep_wf, harmonize_wf, [(out(item), f'inputnode.{item}') for item in ('brain', 'brain_mask', 'tissue')]),
        (prep_wf, qc_wf, [
            (out(item), f'inputnode.{item}')
            for item in ('preproc', 'brain', 'brain_mask', 'priors', 'tissue', 'dseg', 'conform_warnings', 'mask_warnings')
        ]),
        (harmonize_wf, qc_wf, [(out(item), f'inputnode.{item}') for item in ('harmonized', 'record')]),
        (prep_wf, qc_wf, [(out('mask_method'), 'inputnode.mask_method')]),
        (template, qc_wf, [('brain', 'inputnode.template_brain')]),
        (chain, qc_wf, [('out', 'inputnode.transforms')]),
        (prep_wf, ds_preproc_wf, [
            (out(item), f'inputnode.{item}') for item in ('preproc', 'brain_mask', 'dseg', 'tissue', 'mask_sidecar')
        ]),
        (prep_wf, ds_preproc_wf, [
            (out('to_anchor' if plan.follows else 'to_template'), 'inputnode.forward'),
            (out('from_anchor' if plan.follows else 'from_template'), 'inputnode.backward'),
        ]),
        (harmonize_wf, ds_harmonized_wf, [
            (out(item), f'inputnode.{item}') for item in ('harmonized', 'uncertainty', 'unsupported', 'sidecar')
        ]),
        (qc_wf, ds_harmonized_wf, [(out('dseg_after'), 'inputnode.dseg_after')]),
    ])  # fmt: skip
    if plan.follows:
        workflow.connect(prep_wf, out('to_anchor'), chain, 'in2')
    sinks = [ds_preproc_wf, ds_harmonized_wf]
    sinks += _connect_spaces(
        workflow, plan, prep_wf, harmonize_wf, qc_wf, structural, spaces, output_dir, options
    )  # fmt: skip
    sinks += _connect_transforms(workflow, plan, spaces, output_dir)
    handoff_wf = _connect_handoff(workflow, plan, prep_wf, harmonize_wf)
    ds_qc_wf = init_ds_qc_wf(
        scan=scan, output_dir=output_dir, digest=options.digest, methods=options.methods, sources=plan.sources,
        sinks=len(sinks), handoff=handoff_wf is not None, name=f'ds_qc_{node}_wf',
    )  # fmt: skip
    workflow.connect(qc_wf, out('qc'), ds_qc_wf, 'inputnode.qc')
    workflow.connect(qc_wf, out('figures'), ds_qc_wf, 'inputnode.figures')
    for index, sink in enumerate(sinks, start=1):
        workflow.connect(sink, out('fingerprints'), ds_qc_wf, f'inputnode.saved{index}')
    if handoff_wf is not None:
        workflow.connect(handoff_wf, out('fingerprints'), ds_qc_wf, 'inputnode.handoff')


def _connect_handoff(
    workflow: pe.Workflow,
    plan: ScanPlan,
    prep_wf: pe.Workflow,
    harmonize_wf: pe.Workflow,
) -> pe.Workflow | None:
    """Let the head be harmonized too, and add the sink for fMRIPrep, for a T1w that goes there."""
    if plan.handoff is None:
        return None
    sink = init_ds_handoff_wf(
        scan=plan.scan, folder=plan.handoff, native=plan.native, transforms=plan.handed_transforms, reused=plan.reused,
        name=f'ds_handoff_{plan.scan.node}_wf',
    )  # fmt: skip
    workflow.connect([
        (prep_wf, harmonize_wf, [
            (f'outputnode.{field}', f'inputnode.{field}') for field in ('preproc', 'mask_sidecar')
        ]),
        (prep_wf, sink, [(f'outputnode.{field}', f'inputnode.{field}') for field in ('brain_mask', 'dseg', 'tissue')]),
        (harmonize_wf, sink, [
            ('outputnode.head', 'inputnode.head'), ('outputnode.head_sidecar', 'inputnode.sidecar'),
        ]),
    ])  # fmt: skip
    return sink


def _connect_spaces(
    workflow: pe.Workflow,
    plan: ScanPlan,
    prep_wf: pe.Workflow,
    harmonize_wf: pe.Workflow,
    qc_wf: pe.Workflow,
    structural: Mapping[str, pe.Workflow],
    spaces: Mapping[Space, pe.Node],
    output_dir: Path,
    options: Options,
) -> list[pe.Workflow]:
    """Add the sinks of the output spaces; return them."""
    wanted: list[Space] = list(spaces)
    if options.t1w_space and plan.follows and plan.anchor.suffix == 'T1w':
        wanted.append(Space('T1w'))
    sinks = []
    for space in wanted:
        label = f'{plan.scan.node}_{_space_name(space)}'
        sink = init_ds_space_wf(
            scan=plan.scan, output_dir=output_dir, space=space,
            native=plan.anchor_native[0] if space.name == 'T1w' else None,
            reference=plan.anchor_native[1] if space.name == 'T1w' else _reference_of(space, options),
            omp_nthreads=options.omp_nthreads, mem_gb=plan.mem_gb, name=f'ds_{label}_wf',
        )  # fmt: skip
        moves = pe.Node(niu.Merge(2), name=f'moves_{label}', run_without_submitting=True)
        _connect_way(workflow, plan, space, moves, prep_wf, structural)
        reference = (
            (structural[plan.anchor.name], 'outputnode.brain_mask')
            if space.name == 'T1w'
            else (spaces[space], 'brain')
        )
        workflow.connect([
            (harmonize_wf, sink, [
                ('outputnode.harmonized', 'inputnode.harmonized'), ('outputnode.sidecar', 'inputnode.sidecar'),
            ]),
            (prep_wf, sink, [('outputnode.brain_mask', 'inputnode.brain_mask')]),
            (qc_wf, sink, [('outputnode.dseg_after', 'inputnode.dseg_after')]),
            (moves, sink, [('out', 'inputnode.transforms')]),
            (reference[0], sink, [(reference[1], 'inputnode.reference')]),
        ])  # fmt: skip
        sinks.append(sink)
    return sinks


def _connect_transforms(
    workflow: pe.Workflow, plan: ScanPlan, spaces: Mapping[Space, pe.Node], output_dir: Path
) -> list[pe.Workflow]:
    """Add the sinks of the transforms between an anchor and the further templates; return them."""
    sinks: dict[str, pe.Workflow] = {}
    for space in spaces:
        label = space.entities['space']
        register_wf = workflow.get_node(f'register_{plan.scan.node}_{_space_name(space)}_wf')
        # One template at two resolutions is one space: the first speaks for it.
        if plan.follows or register_wf is None or label in sinks:
            continue
        sinks[label] = init_ds_transforms_wf(
            scan=plan.scan, output_dir=output_dir, there=label,
            name=f'ds_{plan.scan.node}_{_space_name(space)}_xfm_wf',
        )  # fmt: skip
        workflow.connect([
            (register_wf, sinks[label], [
                ('outputnode.to_template', 'inputnode.forward'), ('outputnode.from_template', 'inputnode.backward'),
            ]),
        ])  # fmt: skip
    return list(sinks.values())


def _reference_of(space: Space, options: Options) -> str:
    """Say what image defines a template space."""
    template = next(item for item in options.templates if item.space == space)
    return template_uri(template)


def _connect_way(
    workflow: pe.Workflow,
    plan: ScanPlan,
    space: Space,
    moves: pe.Node,
    prep_wf: pe.Workflow,
    structural: Mapping[str, pe.Workflow],
) -> None:
    """Connect the transforms from a scan to a space; antsApplyTransforms takes the last of the list first."""
    if plan.follows:
        workflow.connect(prep_wf, 'outputnode.to_anchor', moves, 'in2')
    given = plan.space_transforms.get(space.entities['space'])
    if space.name == 'T1w':
        return
    if given:
        moves.inputs.in1 = str(given)
    elif space.name == BUNDLED:
        workflow.connect(prep_wf, 'outputnode.to_template', moves, 'in1')
    else:
        register_wf = workflow.get_node(f'register_{plan.anchor.node}_{_space_name(space)}_wf')
        workflow.connect(register_wf, 'outputnode.to_template', moves, 'in1')


def identity_of(scan: ScanFile, method: Method) -> dict[str, Any]:
    """Return who a scan is and what is done to it, for its QC record."""
    card = method.card
    return {
        'subject': scan.subject,
        'session': scan.session,
        'scan': scan.name,
        'contrast': scan.suffix,
        'site': scan.site,
        'harmonizer': {
            **{key: card.get(key, '') for key in ('title', 'paper', 'doi', 'fidelity', 'changes_anatomy')},
            'name': method.name,
            'target': method.target_label,
            'model_digest': method.model_digest or None,
            'weights_digest': method.weights_digest or None,
            'seed': method.execution.get('seed', 0),
        },
    }


def notes_of(plan: ScanPlan, options: Options) -> dict[str, Any]:
    """Return how the steps were done, for the QC record."""
    from bidsharm.interfaces.ants import ants_version

    bias = f'taken from {plan.precomputed.source}' if plan.precomputed.preproc else f'N4 ({ants_version()})'
    if plan.precomputed.to_template and not plan.follows:
        registration = f'taken from {plan.precomputed.source}'
    else:
        way = f'rigid to {plan.anchor.name}' if plan.follows else options.registration
        registration = f'{way} ({ants_version()})'
    return {
        'bias_correction': bias,
        'registration': registration,
        'follows': plan.anchor.name if plan.follows else None,
        'precomputed': plan.reused.uris,
    }


def init_target_wf(
    *,
    plans: Sequence[ScanPlan],
    method: Method,
    out_dir: Path,
    options: Options | None = None,
    name: str = 'target_wf',
) -> pe.Workflow:
    """Preprocess the scans that a target is learnt from, and learn it.

    Parameters
    ----------
    plans
        The scans (``write`` marks those that count) and their anchors.
    method
        The chosen harmonizer, without a bundle yet.
    out_dir
        Where the bundle goes.
    options, name
        As in :func:`init_bidsharm_wf`.
    """
    options = options or Options()
    workflow = pe.Workflow(name=name)
    template = init_template_node()
    structural: dict[str, pe.Workflow] = {}
    used = [plan for plan in sorted(plans, key=lambda item: item.follows) if plan.write]
    names = {'images': 'brain', 'masks': 'brain_mask', 'tissues': 'tissue'}
    lists = {
        key: pe.Node(niu.Merge(len(used)), name=f'list_{key}', run_without_submitting=True) for key in names
    }
    for plan in sorted(plans, key=lambda item: item.follows):
        prep_wf = _connect_prep(workflow, plan, structural, template, options)
        if plan in used:
            for key, field_name in names.items():
                workflow.connect(prep_wf, f'outputnode.{field_name}', lists[key], f'in{used.index(plan) + 1}')
    fit = pe.Node(
        FitTarget(
            harmonizer=method.name, target=method.target, out_dir=str(out_dir), execution=method.execution,
            model_dir=method.model_dir, model_digest=method.model_digest,
            contrasts=[plan.scan.suffix for plan in used], names=[plan.scan.name for plan in used],
            sites=[plan.scan.site for plan in used], num_threads=options.omp_nthreads, use_gpu=method.uses_gpu,
        ),
        name='fit', n_procs=1 if method.uses_gpu else options.omp_nthreads,
        mem_gb=method.memory_gb + 0.5 * len(used),
    )  # fmt: skip
    if method.uses_gpu and options.gpu_plugin_args:
        fit.plugin_args = options.gpu_plugin_args
    workflow.connect([(lists[key], fit, [('out', key)]) for key in names])
    return workflow
