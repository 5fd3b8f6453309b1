"""Graphs of preprocessing: brain mask, bias field, registration, tissue; for a T1w and for what follows it."""

from __future__ import annotations

from typing import Any

from bidsharm.workflows.tags import tag
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.bids.derivatives import Precomputed
from bidsharm.interfaces.ants import ApplyTransforms, N4BiasFieldCorrection, Registration
from bidsharm.interfaces.preprocess import (
    ApplyField,
    CoarseCopy,
    ConformScan,
    CutHead,
    ExtractBrain,
    ReuseMask,
    SegmentTissue,
    ShrinkImage,
    UpperHead,
)

#: Memory of brain extraction beyond that of any step on the scan, in GB.
EXTRACTION_GB = 1.5
#: What every preprocessed scan offers to the later graphs.
SCAN_FIELDS = [
    'preproc', 'brain', 'brain_mask', 'mask_method', 'mask_sidecar', 'priors', 'tissue', 'dseg',
    'to_template', 'from_template', 'to_anchor', 'from_anchor', 'coarse_brain', 'coarse_head',
    'conform_warnings', 'mask_warnings',
]  # fmt: skip
EXTRACTION_FIELDS = ['template_coarse', 'template_mask', 'template_head']
MASK_FIELDS = ['mask_method', 'mask_sidecar', 'mask_warnings']
BRAIN_FIELDS = ['preproc', 'brain', 'brain_mask', 'coarse_brain', 'coarse_head']
TEMPLATE_FIELDS = [*EXTRACTION_FIELDS, 'template_priors', 'template_brain']


def registration_inputs(*, kind: str, sloppy: bool, seed: int) -> dict[str, Any]:
    """Return the inputs of antsRegistration for copies at 2 mm.

    Parameters
    ----------
    kind
        ``rigid`` (between contrasts), ``affine``, ``syn`` (affine, then a diffeomorphism by local correlation), or
        ``extraction`` (the same by mutual information, which bears a skull better).
    sloppy
        Fewer iterations, for tests.
    seed
        Seed of the metric's sampling.
    """
    linear = {'rigid': ['Rigid'], 'affine': ['Rigid', 'Affine']}
    names = linear.get(kind, ['Rigid', 'Affine', 'SyN'])
    stages: list[dict[str, Any]] = []
    for name in names:
        if name == 'SyN':
            stages.append(_syn_stage(kind, sloppy))
            continue
        # The last linear stage goes down to 2 mm, unless SyN follows and does.
        fine = name == names[-1] and not sloppy
        stages.append({'parameters': (0.1,), 'metric': 'MI', 'bins': 32, 'sampling': 'Regular', 'share': 0.25,
                       'iterations': [200, 100, 50] if fine else [200, 100], 'threshold': 1e-6,
                       'shrink': [3, 2, 1] if fine else [3, 2], 'sigmas': [1.5, 1, 0] if fine else [1.5, 1]})  # fmt: skip
    return {
        'dimension': 3,
        'float': True,
        'transforms': names,
        'transform_parameters': [stage['parameters'] for stage in stages],
        'metric': [stage['metric'] for stage in stages],
        'metric_weight': [1.0] * len(stages),
        'radius_or_number_of_bins': [stage['bins'] for stage in stages],
        'sampling_strategy': [stage['sampling'] for stage in stages],
        'sampling_percentage': [stage['share'] for stage in stages],
        'number_of_iterations': [stage['iterations'] for stage in stages],
        'convergence_threshold': [stage['threshold'] for stage in stages],
        'convergence_window_size': [10] * len(stages),
        'shrink_factors': [stage['shrink'] for stage in stages],
        'smoothing_sigmas': [[float(value) for value in stage['sigmas']] for stage in stages],
        'sigma_units': ['vox'] * len(stages),
        'use_histogram_matching': False,
        'winsorize_lower_quantile': 0.005,
        'winsorize_upper_quantile': 0.995,
        'write_composite_transform': True,
        'random_seed': seed + 1,  # 0 means "from the clock" to ANTs
    }


def _syn_stage(kind: str, sloppy: bool) -> dict[str, Any]:
    """Return the SyN stage; what these few iterations cost in accuracy and save in time: docs/decisions.md."""
    stage: dict[str, Any] = {
        'parameters': (0.1, 3.0, 0.0),
        'sampling': 'None',
        'share': 1.0,
        'threshold': 1e-5,
    }
    if kind == 'extraction':
        stage |= {
            'metric': 'MI',
            'bins': 32,
            'iterations': [60, 40, 10],
            'shrink': [4, 2, 1],
            'sigmas': [2, 1, 0],
        }
    else:
        stage |= {'metric': 'CC', 'bins': 2, 'iterations': [40, 20], 'shrink': [4, 2], 'sigmas': [2, 1]}
    if sloppy:
        stage |= {'iterations': [10, 5], 'shrink': [4, 2], 'sigmas': [2, 1]}
    return stage


@tag('harmonize.bias-correction')
def init_bias_correction_wf(
    *,
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    sloppy: bool = False,
    correct: bool = True,
    name: str = 'bias_correction_wf',
) -> pe.Workflow:
    """Remove the bias field inside the brain and cut the brain out.

    N4 runs on a 2 mm copy; its field is carried back to the full grid.

    Parameters
    ----------
    omp_nthreads
        Threads of N4.
    mem_gb
        Memory of one step on the whole scan.
    sloppy
        Fewer iterations, for tests.
    correct
        False for a scan that another pipeline has corrected: only the cutting is done.
    name
        Name of the workflow.

    Inputs
    ------
    in_file
        Conformed scan.
    in_mask
        Brain mask.

    Outputs
    -------
    preproc, brain, brain_mask, coarse_brain, coarse_head
        See :class:`bidsharm.interfaces.preprocess.ApplyField`.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['in_file', 'in_mask']), name='inputnode')
    fields = ['preproc', 'brain', 'brain_mask', 'coarse_brain', 'coarse_head']
    outputnode = pe.Node(niu.IdentityInterface(fields=fields), name='outputnode')
    apply_field = pe.Node(ApplyField(), name='apply_field', mem_gb=mem_gb)
    workflow.connect([
        (inputnode, apply_field, [('in_file', 'in_file'), ('in_mask', 'mask_file')]),
        (apply_field, outputnode, [
            ('out_file', 'preproc'), ('brain_file', 'brain'), ('brain_mask', 'brain_mask'),
            ('coarse_brain', 'coarse_brain'), ('coarse_head', 'coarse_head'),
        ]),
    ])  # fmt: skip
    if not correct:
        return workflow
    coarse_copy = pe.Node(CoarseCopy(), name='coarse_copy', mem_gb=mem_gb)
    # Three levels end at a spline every 50 mm; a fourth fits anatomy (benchmarks/bias_levels.py).
    n4 = pe.Node(
        N4BiasFieldCorrection(
            dimension=3, shrink_factor=2, bspline_fitting_distance=200.0, save_bias=True,
            n_iterations=[20, 20] if sloppy else [50] * 3, convergence_threshold=1e-7, num_threads=omp_nthreads,
        ),
        name='n4', n_procs=omp_nthreads, mem_gb=0.5,
    )  # fmt: skip
    workflow.connect([
        (inputnode, coarse_copy, [('in_file', 'in_file'), ('in_mask', 'mask_file')]),
        (coarse_copy, n4, [('out_file', 'input_image'), ('out_mask', 'mask_image')]),
        (coarse_copy, apply_field, [('shift', 'shift')]),
        (n4, apply_field, [('bias_image', 'field_file')]),
    ])  # fmt: skip
    return workflow


@tag('harmonize.brain-extraction')
def init_brain_extraction_wf(
    *,
    scan_name: str = '',
    method: str = 'deepbet',
    skull_strip: str = 'auto',
    device: str = 'cpu',
    gpu_plugin_args: dict[str, Any] | None = None,
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    sloppy: bool = False,
    seed: int = 0,
    name: str = 'brain_extraction_wf',
) -> pe.Workflow:
    """Make a brain mask.

    Parameters
    ----------
    scan_name
        Name of the scan, for messages.
    method
        ``deepbet``; or ``ants``: the template's mask, brought over by registration (:func:`init_ants_extraction_wf`).
    skull_strip
        ``auto`` sees that a scan is stripped, ``force`` strips regardless, ``skip`` takes what is not background.
    device
        Where deepbet runs.
    gpu_plugin_args
        Plugin arguments for its node when that is a GPU.
    omp_nthreads, mem_gb, sloppy, seed, name
        As in the other workflows.

    Inputs
    ------
    in_file
        Conformed scan.
    template_coarse, template_mask, template_head
        Template (``ants`` only).

    Outputs
    -------
    out_mask, mask_method, mask_sidecar, mask_warnings
        Mask on the grid of the scan; what made it; ``SkullStripped`` for the sidecar; doubts.
    """
    workflow = pe.Workflow(name=name)
    given = ['in_file', *EXTRACTION_FIELDS]
    inputnode = pe.Node(niu.IdentityInterface(fields=given), name='inputnode')
    fields = ['out_mask', 'mask_method', 'mask_sidecar', 'mask_warnings']
    outputnode = pe.Node(niu.IdentityInterface(fields=fields), name='outputnode')
    results = [
        ('out_mask', 'out_mask'), ('method', 'mask_method'), ('sidecar', 'mask_sidecar'), ('warnings', 'mask_warnings'),
    ]  # fmt: skip
    if (
        method == 'deepbet' or skull_strip == 'skip'
    ):  # then the mask is what is not background, whatever the method
        brain_extraction = pe.Node(
            ExtractBrain(
                name=scan_name, skull_strip=skull_strip, device=device, num_threads=omp_nthreads,
                use_gpu=device not in ('cpu', ''),
            ),
            name='brain_extraction', n_procs=omp_nthreads if device in ('cpu', '') else 1, mem_gb=mem_gb + EXTRACTION_GB,
        )  # fmt: skip
        if device not in ('cpu', '') and gpu_plugin_args:
            brain_extraction.plugin_args = gpu_plugin_args
        workflow.connect([
            (inputnode, brain_extraction, [('in_file', 'in_file')]),
            (brain_extraction, outputnode, results),
        ])  # fmt: skip
        return workflow

    ants_wf = init_ants_extraction_wf(omp_nthreads=omp_nthreads, mem_gb=mem_gb, sloppy=sloppy, seed=seed)
    reuse_mask = pe.Node(
        ReuseMask(
            name=scan_name, method='ANTs registration to the template', judge='deepbet' if skull_strip == 'auto' else 'nobody',
            num_threads=omp_nthreads,
        ),
        name='reuse_mask', n_procs=omp_nthreads, mem_gb=mem_gb + EXTRACTION_GB,
    )  # fmt: skip
    workflow.connect([
        (inputnode, ants_wf, [(field, f'inputnode.{field}') for field in given]),
        (ants_wf, reuse_mask, [('outputnode.out_mask', 'mask_file')]),
        (inputnode, reuse_mask, [('in_file', 'in_file')]),
        (reuse_mask, outputnode, results),
    ])  # fmt: skip
    return workflow


def init_ants_extraction_wf(
    *,
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    sloppy: bool = False,
    seed: int = 0,
    name: str = 'ants_extraction_wf',
) -> pe.Workflow:
    """Bring the template's brain mask to a scan by registration, in two steps.

    First head to head (affine; the template stands in a simple shell of bone and scalp); what that finds is cut out
    generously and registered brain to brain (SyN).

    Parameters
    ----------
    omp_nthreads, mem_gb, sloppy, seed, name
        As in the other workflows.

    Inputs
    ------
    in_file
        Conformed scan.
    template_coarse, template_head, template_mask
        Template: its brain and its head at 2 mm, and its brain mask.

    Outputs
    -------
    out_mask
        Probability of brain on the grid of the scan.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['in_file', *EXTRACTION_FIELDS]), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=['out_mask']), name='outputnode')
    upper_head = pe.Node(UpperHead(), name='upper_head', mem_gb=mem_gb)
    cut_head = pe.Node(CutHead(), name='cut_head', mem_gb=0.5)
    find_brain, refine = (
        pe.Node(
            Registration(
                **registration_inputs(kind=kind, sloppy=sloppy, seed=seed), initial_moving_transform_com=1,
                num_threads=omp_nthreads,
            ),
            name=step, n_procs=omp_nthreads, mem_gb=2.0,
        )
        for step, kind in (('find_brain', 'affine'), ('refine', 'extraction'))
    )  # fmt: skip
    warp_found, warp_mask = (
        pe.Node(
            ApplyTransforms(dimension=3, interpolation='Linear', float=True, num_threads=omp_nthreads),
            name=step, mem_gb=mem_gb,
        )
        for step in ('warp_found', 'warp_mask')
    )  # fmt: skip
    workflow.connect([
        (inputnode, upper_head, [('in_file', 'in_file')]),
        (inputnode, find_brain, [('template_head', 'fixed_image')]),
        (upper_head, find_brain, [('out_file', 'moving_image')]),
        (inputnode, warp_found, [('template_mask', 'input_image')]),
        (upper_head, warp_found, [('out_file', 'reference_image')]),
        (find_brain, warp_found, [('inverse_composite_transform', 'transforms')]),
        (upper_head, cut_head, [('out_file', 'in_file')]),
        (warp_found, cut_head, [('output_image', 'mask_file')]),
        (inputnode, refine, [('template_coarse', 'fixed_image')]),
        (cut_head, refine, [('out_file', 'moving_image')]),
        (inputnode, warp_mask, [('template_mask', 'input_image'), ('in_file', 'reference_image')]),
        (refine, warp_mask, [('inverse_composite_transform', 'transforms')]),
        (warp_mask, outputnode, [('output_image', 'out_mask')]),
    ])  # fmt: skip
    return workflow


def init_structural_wf(
    *,
    scan_name: str = '',
    brain_extraction: str = 'deepbet',
    skull_strip: str = 'auto',
    registration: str = 'affine',
    precomputed: Precomputed | None = None,
    given_mask: bool = False,
    correct_bias: bool = True,
    device: str = 'cpu',
    gpu_plugin_args: dict[str, Any] | None = None,
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    sloppy: bool = False,
    seed: int = 0,
    name: str = 'structural_wf',
) -> pe.Workflow:
    """Preprocess a scan that stands on its own (a T1w, or another contrast where there is no T1w).

    Parameters
    ----------
    scan_name
        Name of the scan, for messages.
    brain_extraction, skull_strip, device, gpu_plugin_args
        See :func:`init_brain_extraction_wf`.
    registration
        ``affine`` or ``syn``.
    precomputed
        Files of other pipelines that replace steps.
    given_mask
        The mask comes in by ``in_mask``; none is looked for.
    correct_bias
        False for a scan whose bias field another pipeline has removed.
    omp_nthreads, mem_gb, sloppy, seed, name
        As in the other workflows.

    Inputs
    ------
    in_file, in_mask
        Raw scan; its brain mask on any grid of the same world (only with ``given_mask``).
    template_coarse, template_mask, template_head, template_priors, template_brain
        From :class:`bidsharm.interfaces.preprocess.PrepareTemplate`.

    Outputs
    -------
    preproc, brain, brain_mask
        Bias-corrected whole image; cut to the brain, and the mask on that grid.
    tissue, dseg, priors
        Tissue probabilities, labels, and the template's priors on that grid.
    to_template, from_template
        Composite transforms.
    and the rest of ``SCAN_FIELDS``
    """
    given = precomputed or Precomputed()
    workflow = pe.Workflow(name=name)
    for_mask = [*EXTRACTION_FIELDS, *(['in_mask'] if given_mask else [])]
    inputs = ['in_file', *dict.fromkeys([*TEMPLATE_FIELDS, *for_mask])]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=SCAN_FIELDS), name='outputnode')
    conform = pe.Node(ConformScan(), name='conform', mem_gb=mem_gb)
    if given.preproc:
        conform.inputs.in_file = str(given.preproc)
    else:
        workflow.connect(inputnode, 'in_file', conform, 'in_file')
    mask_wf = _mask_source(
        given, given_mask, scan_name, brain_extraction, skull_strip, device, gpu_plugin_args, omp_nthreads, mem_gb, sloppy, seed
    )  # fmt: skip
    correct = correct_bias and given.preproc is None
    bias_correction_wf = init_bias_correction_wf(
        omp_nthreads=omp_nthreads, mem_gb=mem_gb, sloppy=sloppy, correct=correct
    )
    warp_priors = pe.Node(
        ApplyTransforms(dimension=3, input_image_type=3, interpolation='Linear', float=True, num_threads=omp_nthreads),
        name='warp_priors', mem_gb=mem_gb,
    )  # fmt: skip
    segment = pe.Node(SegmentTissue(), name='segment', mem_gb=mem_gb)
    workflow.connect([
        (conform, outputnode, [('warnings', 'conform_warnings')]),
        (conform, mask_wf, [('out_file', 'inputnode.in_file')]),
        (inputnode, mask_wf, [(field, f'inputnode.{field}') for field in for_mask]),
        (conform, bias_correction_wf, [('out_file', 'inputnode.in_file')]),
        (mask_wf, bias_correction_wf, [('outputnode.out_mask', 'inputnode.in_mask')]),
        (mask_wf, outputnode, [(f'outputnode.{field}', field) for field in MASK_FIELDS]),
        (bias_correction_wf, outputnode, [(f'outputnode.{field}', field) for field in BRAIN_FIELDS]),
        (inputnode, warp_priors, [('template_priors', 'input_image')]),
        (bias_correction_wf, warp_priors, [('outputnode.brain_mask', 'reference_image')]),
        (warp_priors, segment, [('output_image', 'priors')]),
        (warp_priors, outputnode, [('output_image', 'priors')]),
        (bias_correction_wf, segment, [('outputnode.brain', 'in_file'), ('outputnode.brain_mask', 'mask_file')]),
        (segment, outputnode, [('tissue', 'tissue'), ('dseg', 'dseg')]),
    ])  # fmt: skip
    if given.to_template and given.from_template:
        outputnode.inputs.to_template = str(given.to_template)
        outputnode.inputs.from_template = str(given.from_template)
        warp_priors.inputs.transforms = [str(given.from_template)]
    else:
        _connect_registration(workflow, registration, omp_nthreads, sloppy, seed)
    return workflow


def _connect_registration(
    workflow: pe.Workflow, kind: str, omp_nthreads: int, sloppy: bool, seed: int
) -> None:
    """Register the coarse brain to the template, and hand the transforms on."""
    register_wf = init_template_registration_wf(
        kind=kind, omp_nthreads=omp_nthreads, sloppy=sloppy, seed=seed, name='register_wf'
    )
    bias_correction_wf, warp_priors = (
        workflow.get_node(name) for name in ('bias_correction_wf', 'warp_priors')
    )
    ways = [(f'outputnode.{field}', field) for field in ('to_template', 'from_template')]
    workflow.connect([
        (workflow.get_node('inputnode'), register_wf, [('template_coarse', 'inputnode.template_coarse')]),
        (bias_correction_wf, register_wf, [('outputnode.coarse_brain', 'inputnode.coarse_brain')]),
        (register_wf, warp_priors, [('outputnode.from_template', 'transforms')]),
        (register_wf, workflow.get_node('outputnode'), ways),
    ])  # fmt: skip


def _mask_source(
    given: Precomputed,
    given_mask: bool,
    scan_name: str,
    method: str,
    skull_strip: str,
    device: str,
    gpu_plugin_args: dict[str, Any] | None,
    omp_nthreads: int,
    mem_gb: float,
    sloppy: bool,
    seed: int,
) -> pe.Workflow:
    """Return the graph that makes the mask, or the one that takes over a given mask; their fields are the same.

    One that is given when the graph runs is a further input, ``in_mask``.
    """
    if given.brain_mask is None and not given_mask:
        return init_brain_extraction_wf(
            scan_name=scan_name, method=method, skull_strip=skull_strip, device=device, gpu_plugin_args=gpu_plugin_args,
            omp_nthreads=omp_nthreads, mem_gb=mem_gb, sloppy=sloppy, seed=seed,
        )  # fmt: skip
    workflow = pe.Workflow(name='brain_extraction_wf')
    inputs = ['in_file', *EXTRACTION_FIELDS, *(['in_mask'] if given_mask else [])]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name='inputnode')
    fields = ['out_mask', 'mask_method', 'mask_sidecar', 'mask_warnings']
    outputnode = pe.Node(niu.IdentityInterface(fields=fields), name='outputnode')
    reuse_mask = pe.Node(ReuseMask(name=scan_name), name='reuse_mask', mem_gb=mem_gb)
    if given_mask:
        reuse_mask.inputs.method = 'given by the pipeline around'
        workflow.connect(inputnode, 'in_mask', reuse_mask, 'mask_file')
    else:
        reuse_mask.inputs.mask_file = str(given.brain_mask)
        reuse_mask.inputs.method = f'reused from {given.source}'
    workflow.connect([
        (inputnode, reuse_mask, [('in_file', 'in_file')]),
        (reuse_mask, outputnode, [
            ('out_mask', 'out_mask'), ('method', 'mask_method'),
            ('sidecar', 'mask_sidecar'), ('warnings', 'mask_warnings'),
        ]),
    ])  # fmt: skip
    return workflow


@tag('harmonize.registration')
def init_template_registration_wf(
    *,
    kind: str = 'affine',
    omp_nthreads: int = 1,
    sloppy: bool = False,
    seed: int = 0,
    name: str = 'template_registration_wf',
) -> pe.Workflow:
    """Register a brain to a template on copies at 2 mm.

    Parameters
    ----------
    kind
        ``affine`` or ``syn``.
    omp_nthreads, sloppy, seed, name
        As in the other workflows.

    Inputs
    ------
    coarse_brain
        The scan's masked 2 mm copy.
    template_coarse
        The template's.

    Outputs
    -------
    to_template, from_template
        Composite transforms for images, from the scan to the template and back.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['coarse_brain', 'template_coarse']), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=['to_template', 'from_template']), name='outputnode')
    register = pe.Node(
        Registration(
            **registration_inputs(kind=kind, sloppy=sloppy, seed=seed), initial_moving_transform_com=1,
            num_threads=omp_nthreads,
        ),
        name='register', n_procs=omp_nthreads, mem_gb=1.5 if kind == 'syn' else 0.5,
    )  # fmt: skip
    workflow.connect([
        (inputnode, register, [('template_coarse', 'fixed_image'), ('coarse_brain', 'moving_image')]),
        (register, outputnode, [
            ('composite_transform', 'to_template'), ('inverse_composite_transform', 'from_template'),
        ]),
    ])  # fmt: skip
    return workflow


def init_follower_wf(
    *,
    scan_name: str = '',
    same_session: bool = True,
    anchor: str = 'T1w',
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    sloppy: bool = False,
    seed: int = 0,
    name: str = 'follower_wf',
) -> pe.Workflow:
    """Preprocess a T2w, FLAIR or PDw that follows the T1w of its subject.

    A rigid registration of the whole heads brings the T1w's brain mask and tissue probabilities over; these
    are the prior of the follower's own segmentation.

    Parameters
    ----------
    scan_name
        Name of the scan, for messages.
    same_session
        Scans of one session start where their headers put them; others from their centres of mass.
    anchor
        Contrast of the scan that it follows, for the record.
    omp_nthreads, mem_gb, sloppy, seed, name
        As in the other workflows.

    Inputs
    ------
    in_file
        Raw scan.
    anchor_coarse_head, anchor_brain_mask, anchor_tissue, anchor_to_template, anchor_from_template
        From the T1w.

    Outputs
    -------
    as :func:`init_structural_wf`; ``to_anchor`` and ``from_anchor`` are the rigid transforms
    """
    workflow = pe.Workflow(name=name)
    fields = ['coarse_head', 'brain_mask', 'tissue', 'to_template', 'from_template']
    inputnode = pe.Node(
        niu.IdentityInterface(fields=['in_file', *(f'anchor_{field}' for field in fields)]), name='inputnode'
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=SCAN_FIELDS), name='outputnode')
    conform = pe.Node(ConformScan(), name='conform', mem_gb=mem_gb)
    shrink = pe.Node(ShrinkImage(), name='shrink', mem_gb=mem_gb)
    start = {} if same_session else {'initial_moving_transform_com': 1}
    register = pe.Node(
        Registration(
            **registration_inputs(kind='rigid', sloppy=sloppy, seed=seed), **start, num_threads=omp_nthreads
        ),
        name='register', n_procs=omp_nthreads, mem_gb=0.5,
    )  # fmt: skip
    warp = {'dimension': 3, 'float': True, 'num_threads': omp_nthreads}
    warp_mask = pe.Node(ApplyTransforms(interpolation='Linear', **warp), name='warp_mask', mem_gb=mem_gb)
    reuse_mask = pe.Node(
        ReuseMask(name=scan_name, method=f'carried over from the {anchor}'), name='reuse_mask', mem_gb=mem_gb
    )
    bias_correction_wf = init_bias_correction_wf(omp_nthreads=omp_nthreads, mem_gb=mem_gb, sloppy=sloppy)
    warp_priors = pe.Node(
        ApplyTransforms(input_image_type=3, interpolation='Linear', **warp), name='warp_priors', mem_gb=mem_gb
    )
    segment = pe.Node(SegmentTissue(), name='segment', mem_gb=mem_gb)
    workflow.connect([
        (inputnode, conform, [('in_file', 'in_file')]),
        (conform, shrink, [('out_file', 'in_file')]),
        (conform, outputnode, [('warnings', 'conform_warnings')]),
        (inputnode, register, [('anchor_coarse_head', 'fixed_image')]),
        (shrink, register, [('out_file', 'moving_image')]),
        (register, outputnode, [
            ('composite_transform', 'to_anchor'), ('inverse_composite_transform', 'from_anchor'),
        ]),
        (inputnode, warp_mask, [('anchor_brain_mask', 'input_image')]),
        (conform, warp_mask, [('out_file', 'reference_image')]),
        (register, warp_mask, [('inverse_composite_transform', 'transforms')]),
        (conform, reuse_mask, [('out_file', 'in_file')]),
        (warp_mask, reuse_mask, [('output_image', 'mask_file')]),
        (reuse_mask, outputnode, [
            ('method', 'mask_method'), ('sidecar', 'mask_sidecar'), ('warnings', 'mask_warnings'),
        ]),
        (conform, bias_correction_wf, [('out_file', 'inputnode.in_file')]),
        (reuse_mask, bias_correction_wf, [('out_mask', 'inputnode.in_mask')]),
        (bias_correction_wf, outputnode, [
            (f'outputnode.{field}', field)
            for field in ('preproc', 'brain', 'brain_mask', 'coarse_brain', 'coarse_head')
        ]),
        (inputnode, warp_priors, [('anchor_tissue', 'input_image')]),
        (bias_correction_wf, warp_priors, [('outputnode.brain_mask', 'reference_image')]),
        (register, warp_priors, [('inverse_composite_transform', 'transforms')]),
        (warp_priors, segment, [('output_image', 'priors')]),
        (warp_priors, outputnode, [('output_image', 'priors')]),
        (bias_correction_wf, segment, [('outputnode.brain', 'in_file'), ('outputnode.brain_mask', 'mask_file')]),
        (segment, outputnode, [('tissue', 'tissue'), ('dseg', 'dseg')]),
        (inputnode, outputnode, [
            ('anchor_to_template', 'to_template'), ('anchor_from_template', 'from_template'),
        ]),
    ])  # fmt: skip
    return workflow
