"""The QC graph: segment again, compare, draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bidsharm.workflows.tags import tag
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.interfaces.ants import ApplyTransforms
from bidsharm.interfaces.preprocess import SegmentTissue
from bidsharm.interfaces.qc import AssessScan, DrawFigures


@tag('harmonize.quality')
def init_qc_wf(
    *,
    identity: dict[str, Any],
    notes: dict[str, Any] | None = None,
    thresholds: dict[str, Any] | None = None,
    warnings: Sequence[str] = (),
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    name: str = 'qc_wf',
) -> pe.Workflow:
    """Compare a scan before and after harmonization.

    The same segmenter with the same priors sees both images; what differs afterwards was changed by the
    harmonization.

    Parameters
    ----------
    identity
        ``subject``, ``session``, ``scan``, ``contrast``, ``site`` and ``harmonizer`` for the record.
    notes
        How the steps were done, for the record.
    thresholds
        Settings that replace default thresholds.
    warnings
        What is known to be wrong with the scan before it is read.
    omp_nthreads, mem_gb, name
        As in the other workflows.

    Inputs
    ------
    preproc, brain, brain_mask, priors, tissue, dseg, conform_warnings, mask_warnings, mask_method
        From a preprocessing graph.
    harmonized, record
        From the harmonize graph.
    template_brain, transforms
        For the picture of the registration.

    Outputs
    -------
    qc, verdict, figures, tissue_after, dseg_after
        Record (JSON), its verdict, pictures, and the segmentation of the harmonized image.
    """
    workflow = pe.Workflow(name=name)
    given = [
        'preproc', 'brain', 'brain_mask', 'priors', 'tissue', 'dseg', 'harmonized', 'record', 'template_brain',
        'transforms', 'conform_warnings', 'mask_warnings', 'mask_method',
    ]  # fmt: skip
    inputnode = pe.Node(niu.IdentityInterface(fields=given), name='inputnode')
    outputnode = pe.Node(
        niu.IdentityInterface(fields=['qc', 'verdict', 'figures', 'tissue_after', 'dseg_after']),
        name='outputnode',
    )
    segment_after = pe.Node(SegmentTissue(), name='segment_after', mem_gb=mem_gb)
    gather = pe.Node(niu.Merge(3, no_flatten=True), name='gather', run_without_submitting=True)
    gather.inputs.in3 = list(warnings)
    assess = pe.Node(
        AssessScan(identity=identity, notes=notes or {}, thresholds=thresholds or {}),
        name='assess',
        mem_gb=2 * mem_gb,
    )
    warp = pe.Node(
        ApplyTransforms(dimension=3, interpolation='Linear', float=True, num_threads=omp_nthreads),
        name='warp', mem_gb=mem_gb,
    )  # fmt: skip
    draw = pe.Node(DrawFigures(stem=identity['scan']), name='draw', mem_gb=2 * mem_gb)
    workflow.connect([
        (inputnode, segment_after, [('harmonized', 'in_file'), ('brain_mask', 'mask_file'), ('priors', 'priors')]),
        (inputnode, gather, [('conform_warnings', 'in1'), ('mask_warnings', 'in2')]),
        (inputnode, assess, [
            ('brain', 'before'), ('harmonized', 'after'), ('brain_mask', 'mask_file'),
            ('tissue', 'tissue_before'), ('priors', 'priors'), ('record', 'record'), ('mask_method', 'mask_method'),
        ]),
        (segment_after, assess, [('tissue', 'tissue_after')]),
        (gather, assess, [('out', 'warnings')]),
        (inputnode, warp, [
            ('brain', 'input_image'), ('template_brain', 'reference_image'), ('transforms', 'transforms'),
        ]),
        (inputnode, draw, [
            ('preproc', 'head'), ('harmonized', 'after'), ('brain_mask', 'mask_file'), ('dseg', 'dseg'),
            ('template_brain', 'template'),
        ]),
        (warp, draw, [('output_image', 'warped')]),
        (assess, outputnode, [('qc', 'qc'), ('verdict', 'verdict')]),
        (draw, outputnode, [('figures', 'figures')]),
        (segment_after, outputnode, [('tissue', 'tissue_after'), ('dseg', 'dseg_after')]),
    ])  # fmt: skip
    return workflow
