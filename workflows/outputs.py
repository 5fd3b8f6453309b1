"""Sinks, apart from the work: what is written for one scan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.bids import sidecars
from bidsharm.bids.derivatives import Precomputed
from bidsharm.bids.names import OutputNames, ScanFile
from bidsharm.imaging.templates import BUNDLED, Space
from bidsharm.interfaces.ants import ApplyTransforms
from bidsharm.interfaces.derivatives import ClipToRange, SaveDerivatives, SaveQC

#: Memory of a step that copies files or writes a record: the interpreter with its libraries (0.22 GB were measured).
LIGHT_GB = 0.3

#: What every sink hands on.
SINK_FIELDS = ['out_files', 'fingerprints']


def init_ds_preproc_wf(
    *,
    scan: ScanFile,
    output_dir: Path,
    native: Path,
    reused: Precomputed | None = None,
    anchor: ScanFile | None = None,
    name: str = 'ds_preproc_wf',
) -> pe.Workflow:
    """Write what preprocessing made: image, mask, segmentation, transforms.

    Parameters
    ----------
    scan
        The raw scan.
    output_dir
        Root of the derivatives.
    native
        Image whose grid the results come back to.
    reused
        Files of other pipelines that the results rest on.
    anchor
        The scan that it follows: the rigid transforms to that one are written instead of those to the template.
    name
        Name of the workflow.

    Inputs
    ------
    preproc, brain_mask, dseg, tissue, mask_sidecar, forward, backward
        Results; ``forward`` and ``backward`` are the transforms.

    Outputs
    -------
    out_files, fingerprints
        What was written, and what it looked like then.
    """
    workflow = pe.Workflow(name=name)
    fields = ['preproc', 'brain_mask', 'dseg', 'tissue', 'forward', 'backward']
    inputnode = pe.Node(niu.IdentityInterface(fields=[*fields, 'mask_sidecar']), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=SINK_FIELDS), name='outputnode')
    here, there = scan.suffix, anchor.suffix if anchor else BUNDLED
    reused = reused or Precomputed()
    own = f'bids::{OutputNames(scan).image("preproc")}'
    specs = [
        sidecars.preproc_spec(scan, reused, anchor),
        sidecars.mask_spec(scan, reused, anchor),
        sidecars.dseg_spec(scan, '', own),
        sidecars.probseg_spec(scan, own),
        sidecars.transform_spec(scan, here, there),
        sidecars.transform_spec(scan, there, here),
    ]
    collect = pe.Node(niu.Merge(len(fields)), name='collect', run_without_submitting=True)
    ds_preproc = pe.Node(
        SaveDerivatives(specs=specs, out_root=str(output_dir), native=str(native)),
        name='ds_preproc',
        mem_gb=1.0,
    )
    workflow.connect([
        (inputnode, collect, [(field, f'in{index}') for index, field in enumerate(fields, start=1)]),
        (inputnode, ds_preproc, [('mask_sidecar', 'extra')]),
        (collect, ds_preproc, [('out', 'in_files')]),
        (ds_preproc, outputnode, [(field, field) for field in SINK_FIELDS]),
    ])  # fmt: skip
    return workflow


def init_ds_harmonized_wf(
    *, scan: ScanFile, output_dir: Path, native: Path, name: str = 'ds_harmonized_wf'
) -> pe.Workflow:
    """Write the harmonized image on the scan's own grid, its segmentation, and its uncertainty where the method gives one.

    Parameters
    ----------
    scan, output_dir, native, name
        As in :func:`init_ds_preproc_wf`.

    Inputs
    ------
    harmonized, dseg_after, uncertainty, unsupported, sidecar
        Results, and the sidecar's ``Harmonization`` fields; ``uncertainty`` and ``unsupported`` may be undefined.

    Outputs
    -------
    out_files, fingerprints
        What was written, and what it looked like then.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=['harmonized', 'dseg_after', 'uncertainty', 'unsupported', 'sidecar']),
        name='inputnode',
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=SINK_FIELDS), name='outputnode')
    names = OutputNames(scan)
    image = sidecars.image_spec(
        scan, 'harmonized', 'Harmonized brain on the scan’s own grid', [f'bids::{names.image("preproc")}'],
        SkullStripped=True,
    )  # fmt: skip
    specs = [
        image,
        sidecars.dseg_spec(scan, 'harmonized', f'bids::{names.image("harmonized")}'),
        sidecars.uncertainty_spec(scan),
        sidecars.unsupported_spec(scan),
    ]
    collect = pe.Node(niu.Merge(4), name='collect', run_without_submitting=True)
    ds_harmonized = pe.Node(
        SaveDerivatives(specs=specs, out_root=str(output_dir), native=str(native)),
        name='ds_harmonized',
        mem_gb=1.0,
    )
    workflow.connect([
        (inputnode, collect, [
            ('harmonized', 'in1'), ('dseg_after', 'in2'), ('uncertainty', 'in3'), ('unsupported', 'in4'),
        ]),
        (inputnode, ds_harmonized, [('sidecar', 'extra')]),
        (collect, ds_harmonized, [('out', 'in_files')]),
        (ds_harmonized, outputnode, [(field, field) for field in SINK_FIELDS]),
    ])  # fmt: skip
    return workflow


def init_ds_space_wf(
    *,
    scan: ScanFile,
    output_dir: Path,
    space: Space,
    native: Path | None = None,
    reference: str = '',
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    name: str = 'ds_space_wf',
) -> pe.Workflow:
    """Resample the harmonized image, mask and segmentation to one output space, and write them.

    Parameters
    ----------
    scan, output_dir, omp_nthreads, mem_gb, name
        As in the other workflows.
    space
        Where to.
    native
        The T1w whose grid the results come back to (space ``T1w`` only).
    reference
        Where the image that defines the space comes from, for the sidecars.

    Inputs
    ------
    harmonized, brain_mask, dseg_after, sidecar, transforms, reference
        Results, transforms to the space, and an image on its grid.

    Outputs
    -------
    out_files, fingerprints
        What was written, and what it looked like then.
    """
    workflow = pe.Workflow(name=name)
    fields = ['harmonized', 'brain_mask', 'dseg_after', 'sidecar', 'transforms', 'reference']
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=SINK_FIELDS), name='outputnode')
    base = {'dimension': 3, 'float': True, 'num_threads': omp_nthreads}
    warp_image = pe.Node(
        ApplyTransforms(interpolation='LanczosWindowedSinc', **base), name='warp_image', mem_gb=mem_gb
    )
    warp_mask = pe.Node(
        ApplyTransforms(interpolation='NearestNeighbor', **base), name='warp_mask', mem_gb=mem_gb
    )
    warp_dseg = pe.Node(
        ApplyTransforms(interpolation='NearestNeighbor', **base), name='warp_dseg', mem_gb=mem_gb
    )
    clip = pe.Node(ClipToRange(), name='clip', mem_gb=mem_gb)
    collect = pe.Node(niu.Merge(3), name='collect', run_without_submitting=True)
    ds_space = pe.Node(
        SaveDerivatives(
            specs=sidecars.space_specs(scan, space, reference=reference), out_root=str(output_dir),
            **({'native': str(native)} if native else {}),
        ),
        name='ds_space', mem_gb=mem_gb,
    )  # fmt: skip
    targets = [('transforms', 'transforms'), ('reference', 'reference_image')]
    workflow.connect([
        (inputnode, warp_image, [('harmonized', 'input_image'), *targets]),
        (inputnode, warp_mask, [('brain_mask', 'input_image'), *targets]),
        (inputnode, warp_dseg, [('dseg_after', 'input_image'), *targets]),
        (warp_image, clip, [('output_image', 'in_file')]),
        (warp_mask, clip, [('output_image', 'mask_file')]),
        (inputnode, clip, [('harmonized', 'reference')]),
        (clip, collect, [('out_file', 'in1')]),
        (warp_mask, collect, [('output_image', 'in2')]),
        (warp_dseg, collect, [('output_image', 'in3')]),
        (collect, ds_space, [('out', 'in_files')]),
        (inputnode, ds_space, [('sidecar', 'extra')]),
        (ds_space, outputnode, [(field, field) for field in SINK_FIELDS]),
    ])  # fmt: skip
    return workflow


def init_ds_transforms_wf(
    *, scan: ScanFile, output_dir: Path, there: str, name: str = 'ds_transforms_wf'
) -> pe.Workflow:
    """Write the composite transforms between a scan and a template, both ways.

    Parameters
    ----------
    scan, output_dir, name
        As in :func:`init_ds_preproc_wf`.
    there
        Label of the template's space.

    Inputs
    ------
    forward, backward
        To the template, and from it.

    Outputs
    -------
    out_files, fingerprints
        What was written, and what it looked like then.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=['forward', 'backward']), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=SINK_FIELDS), name='outputnode')
    collect = pe.Node(niu.Merge(2), name='collect', run_without_submitting=True)
    specs = [
        sidecars.transform_spec(scan, scan.suffix, there),
        sidecars.transform_spec(scan, there, scan.suffix),
    ]
    ds_transforms = pe.Node(
        SaveDerivatives(specs=specs, out_root=str(output_dir)), name='ds_transforms', mem_gb=LIGHT_GB
    )
    workflow.connect([
        (inputnode, collect, [('forward', 'in1'), ('backward', 'in2')]),
        (collect, ds_transforms, [('out', 'in_files')]),
        (ds_transforms, outputnode, [(field, field) for field in SINK_FIELDS]),
    ])  # fmt: skip
    return workflow


def init_ds_qc_wf(
    *,
    scan: ScanFile,
    output_dir: Path,
    digest: str,
    sources: Mapping[str, Path],
    sinks: int,
    methods: Mapping[str, Any] | None = None,
    handoff: bool = False,
    name: str = 'ds_qc_wf',
) -> pe.Workflow:
    """Write pictures and QC record, after everything else of the scan is in place.

    Parameters
    ----------
    scan, output_dir, name
        As in the other workflows.
    digest
        Digest of the settings that decide the result.
    sources
        Files that the scan is made from, by BIDS URI.
    sinks
        How many other sinks to wait for (inputs ``saved1``...).
    methods
        How the results are made, in words (:meth:`bidsharm.bids.boilerplate.Boilerplate.to_dict`).
    handoff
        Whether to wait for the sink of fMRIPrep's files too.

    Inputs
    ------
    qc, figures, saved1..., handoff
        Record, pictures, what the other sinks wrote, and what that of fMRIPrep's files wrote.
    """
    workflow = pe.Workflow(name=name)
    saved = [f'saved{index}' for index in range(1, sinks + 1)]
    more = ['handoff'] if handoff else []
    inputnode = pe.Node(niu.IdentityInterface(fields=['qc', 'figures', *saved, *more]), name='inputnode')
    wait = pe.Node(niu.Merge(sinks, no_flatten=True), name='wait', run_without_submitting=True)
    ds_qc = pe.Node(
        SaveQC(
            sources={uri: str(file) for uri, file in sources.items()}, methods=dict(methods or {}),
            out_root=str(output_dir), qc_path=OutputNames(scan).qc,
            figures_dir=f'sub-{scan.subject}/figures', digest=digest,
        ),
        name='ds_qc', mem_gb=LIGHT_GB,
    )  # fmt: skip
    workflow.connect([
        (inputnode, wait, [(field, f'in{index}') for index, field in enumerate(saved, start=1)]),
        (wait, ds_qc, [('out', 'saved')]),
        (inputnode, ds_qc, [(field, field) for field in ('qc', 'figures', *more)]),
    ])  # fmt: skip
    return workflow
