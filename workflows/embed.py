"""Harmonizing a T1w inside another pipeline: file in, file out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bidsharm.workflows.base import identity_of, init_template_node
from bidsharm.workflows.harmonize import Method, init_harmonize_wf
from bidsharm.workflows.preprocess import TEMPLATE_FIELDS, init_structural_wf
from bidsharm.workflows.qc import init_qc_wf
from bidsharm.workflows.tags import tag
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.bids.names import ScanFile, parse_name
from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import NEED_PHRASES, Execution
from bidsharm.harmonizers.execution import resolve_device
from bidsharm.interfaces.derivatives import OnNativeGrid
from bidsharm.settings import DEFAULT_HARMONIZER

#: Outputs on the grid of the T1w: where each comes from, and its kind.
_IMAGES = {
    'harmonized': ('harmonize', 'harmonized', 'image'),
    'head': ('harmonize', 'head', 'image'),
    'preproc': ('prep', 'preproc', 'image'),
    'brain_mask': ('prep', 'brain_mask', 'mask'),
    'dseg': ('prep', 'dseg', 'dseg'),
    'dseg_after': ('qc', 'dseg_after', 'dseg'),
}


def method_of(name: str, model: Path | str | None = None, *, seed: int = 0, device: str = 'cpu') -> Method:
    """Return a harmonizer as the graphs want it, without a data set around.

    Parameters
    ----------
    name
        A name of ``bidsharm-models list``.
    model
        Folder of a bundle (``OUTPUT_DIR/models/...`` of a run); its target is aimed at. Without one, the method's own canonical target.
    seed, device
        As ``--random-seed`` and ``--device``.

    Raises
    ------
    UsageError
        If there is no such method, or it has to learn and there is no bundle.
    ConfigurationError
        If the bundle is not there, damaged, or of another method; or the device is not there.
    """
    kind = registry.get(name)
    card = kind.card
    execution: dict[str, Any] = {'device': resolve_device(device) if card.uses_device else 'cpu', 'seed': seed, 'oom_fallback': 'fail'}  # fmt: skip
    needs = [need for need in ('cohort', 'weights') if need in (*card.needs_fit, *card.needs_apply)]
    if model is None and needs:
        raise UsageError(
            f'"{name}" needs {NEED_PHRASES[needs[0]]}.', where='method_of',
            fix='Learn a bundle with bidsharm first, and give its folder as model.',
        )  # fmt: skip
    method = Method(
        name=name, card=card.to_dict(), execution=execution, memory_gb=card.memory_gb,
        weights_digest=kind.weights_digest(),
    )  # fmt: skip
    if model is None:
        return method
    folder = Path(model).absolute()
    if not folder.is_dir():
        raise ConfigurationError('The model bundle was not found.', where=str(folder))
    _, learnt = bundle.load(folder, Execution(**execution), name=name).state()
    label = str(learnt.get('target') or 'canonical')
    target = f'site:{label}' if learnt.get('target_kind') == 'site' else label
    return replace(method, target=target, model_dir=str(folder), model_digest=bundle.digest(folder))


@tag('anat.harmonize')
def init_harmonize_t1w_wf(
    *,
    method: Method | None = None,
    given_mask: bool = False,
    correct_bias: bool = True,
    omp_nthreads: int = 1,
    mem_gb: float = 1.5,
    device: str = 'cpu',
    sloppy: bool = False,
    seed: int = 0,
    scan_name: str = 'T1w',
    name: str = 'harmonize_t1w_wf',
) -> pe.Workflow:
    """Harmonize a T1w and judge the result, without a data set: a graph to connect into another pipeline.

    It writes nothing but its own working files, and needs no settings.

    Parameters
    ----------
    method
        What :func:`method_of` returns; the default method if it is not given.
    given_mask
        The brain mask comes in by ``in_mask``; otherwise deepbet makes one.
    correct_bias
        False for a T1w whose bias field is removed already.
    omp_nthreads
        Threads of one step.
    mem_gb
        Memory of one step on the whole image, for the scheduler.
    device
        Where deepbet runs.
    sloppy
        Fewer iterations, for tests.
    seed
        Seed of the registration.
    scan_name
        Name in messages, figures and the record: letters, digits, ``-`` and ``_``.
    name
        Name of the workflow.

    Inputs
    ------
    t1w
        Path of the image.
    in_mask
        Path of its brain mask, above 0.5 inside, on any grid of the same world; only with ``given_mask``.

    Outputs
    -------
    harmonized, brain_mask, dseg, dseg_after
        The brain in the target's intensities (0 outside), its mask, and the tissues before and after (1 GM, 2 WM, 3 CSF).
    head, head_sidecar
        The whole image in these intensities, where the method can go on beyond the mask (``SkullStripped`` is False then).
    preproc
        The whole image without the bias field, in the scanner's intensities.
    to_template, from_template
        Composite transforms between the T1w and MNI152NLin2009aSym.
    verdict, qc, figures, sidecar
        ``pass``, ``warn`` or ``fail``; the record of the checks (JSON); pictures; ``Harmonization`` for a sidecar.

    Images are on the grid of the T1w.
    """
    method = method or method_of(DEFAULT_HARMONIZER)
    workflow = pe.Workflow(name=name)
    inputs = ['t1w', *(['in_mask'] if given_mask else [])]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name='inputnode')
    template = init_template_node()
    steps = {
        'prep': init_structural_wf(
            scan_name=scan_name, given_mask=given_mask, correct_bias=correct_bias, device=device, omp_nthreads=omp_nthreads,
            mem_gb=mem_gb, sloppy=sloppy, seed=seed, name='prep_wf',
        ),
        'harmonize': init_harmonize_wf(
            method=method, contrast='T1w', scan_name=scan_name, omp_nthreads=omp_nthreads, name='harmonize_wf'
        ),
        'qc': init_qc_wf(
            identity=_identity(scan_name, method), omp_nthreads=omp_nthreads, mem_gb=mem_gb, name='qc_wf'
        ),
    }  # fmt: skip
    _connect_steps(workflow, inputnode, template, steps, given_mask)
    _connect_outputs(workflow, inputnode, steps, mem_gb)
    return workflow


def _identity(scan_name: str, method: Method) -> dict[str, Any]:
    """Return what the record says of who it is about."""
    parsed = parse_name(scan_name) or ({'sub': 'unknown'}, 'T1w')
    entities = {'sub': 'unknown', **parsed[0]}
    return identity_of(ScanFile(Path(scan_name), entities, 'T1w', Path()), method) | {'scan': scan_name}


def _connect_steps(
    workflow: pe.Workflow,
    inputnode: pe.Node,
    template: pe.Node,
    steps: Mapping[str, pe.Workflow],
    given_mask: bool,
) -> None:
    """Connect preprocessing, harmonization and the checks."""
    prep_wf, harmonize_wf, qc_wf = steps['prep'], steps['harmonize'], steps['qc']
    chain = pe.Node(niu.Merge(1), name='chain', run_without_submitting=True)
    outputs = ('coarse_brain', 'mask', 'coarse_head', 'priors', 'brain')
    ways = [(item, f'inputnode.{field}') for item, field in zip(outputs, TEMPLATE_FIELDS, strict=True)]

    def hand_on(*fields: str) -> list[tuple[str, str]]:
        return [(f'outputnode.{field}', f'inputnode.{field}') for field in fields]

    workflow.connect([
        (inputnode, prep_wf, [('t1w', 'inputnode.in_file')] + [('in_mask', 'inputnode.in_mask')] * given_mask),
        (template, prep_wf, ways),
        (template, qc_wf, [('brain', 'inputnode.template_brain')]),
        (prep_wf, harmonize_wf, hand_on('brain', 'brain_mask', 'tissue', 'preproc', 'mask_sidecar')),
        (prep_wf, qc_wf, hand_on(
            'preproc', 'brain', 'brain_mask', 'priors', 'tissue', 'dseg', 'conform_warnings', 'mask_warnings', 'mask_method',
        )),
        (prep_wf, chain, [('outputnode.to_template', 'in1')]),
        (chain, qc_wf, [('out', 'inputnode.transforms')]),
        (harmonize_wf, qc_wf, hand_on('harmonized', 'record')),
    ])  # fmt: skip


def _connect_outputs(
    workflow: pe.Workflow, inputnode: pe.Node, steps: Mapping[str, pe.Workflow], mem_gb: float
) -> None:
    """Put the images back on the grid of the T1w, and hand everything on."""
    plain = {
        'prep': ('to_template', 'from_template'), 'harmonize': ('sidecar', 'head_sidecar'), 'qc': ('verdict', 'qc', 'figures'),
    }  # fmt: skip
    fields = [*_IMAGES, *(field for group in plain.values() for field in group)]
    outputnode = pe.Node(niu.IdentityInterface(fields=fields), name='outputnode')
    for image, (step, field, kind) in _IMAGES.items():
        back = pe.Node(OnNativeGrid(kind=kind, name=image), name=f'native_{image}', mem_gb=mem_gb)
        workflow.connect([
            (inputnode, back, [('t1w', 'native')]),
            (steps[step], back, [(f'outputnode.{field}', 'in_file')]),
            (back, outputnode, [('out_file', image)]),
        ])  # fmt: skip
    for step, group in plain.items():
        workflow.connect([(steps[step], outputnode, [(f'outputnode.{field}', field) for field in group])])
