"""The harmonize graph: one node, whichever method was chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bidsharm.workflows.tags import tag
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.interfaces.harmonize import HarmonizeScan


@dataclass(frozen=True)
class Method:
    """The chosen harmonizer, resolved: everything the harmonize node needs to know.

    Parameters
    ----------
    name
        Registry name.
    target
        ``canonical``, ``site:NAME`` or ``reference:FILE``.
    card
        The method's card as plain types.
    model_dir, model_digest
        Bundle and its digest; empty for a method without.
    weights_digest
        Digest of weights that ship with the method; empty for a method without.
    execution
        Device, precision, seed, out-of-memory policy.
    memory_gb
        Peak memory for a 1 mm head.
    """

    name: str
    target: str = 'canonical'
    card: dict[str, Any] = field(default_factory=dict)
    model_dir: str = ''
    model_digest: str = ''
    weights_digest: str = ''
    execution: dict[str, Any] = field(default_factory=dict)
    memory_gb: float = 1.5

    @property
    def target_label(self) -> str:
        """The target as people call it; a file by its name only."""
        kind, _, value = self.target.partition(':')
        return (
            value
            if kind == 'site'
            else f'reference {value.rsplit("/", 1)[-1]}'
            if kind == 'reference'
            else kind
        )

    @property
    def learnt(self) -> str:
        """Digests of all that the method has learnt, here and before it was shipped."""
        return ' '.join(filter(None, (self.model_digest, self.weights_digest)))

    @property
    def uses_gpu(self) -> bool:
        """Whether the scheduler must keep a card for the node."""
        return self.execution.get('device', 'cpu') not in ('cpu', '')


@tag('harmonize.method')
def init_harmonize_wf(
    *,
    method: Method,
    contrast: str,
    scan_name: str = '',
    site: str = '',
    omp_nthreads: int = 1,
    gpu_plugin_args: dict[str, Any] | None = None,
    name: str = 'harmonize_wf',
) -> pe.Workflow:
    """Harmonize one preprocessed scan.

    Parameters
    ----------
    method
        The chosen harmonizer.
    contrast
        BIDS suffix of the scan.
    scan_name, site
        For messages, and for methods that look at the site.
    omp_nthreads
        Threads of the node.
    gpu_plugin_args
        Plugin arguments for the node when it needs a GPU (a cluster's ``--gres=gpu:1``).
    name
        Name of the workflow.

    Inputs
    ------
    brain, brain_mask, tissue
        From a preprocessing graph.
    preproc, mask_sidecar
        The whole image and its ``SkullStripped``; only where the head is wanted too.

    Outputs
    -------
    harmonized
        Harmonized brain, same grid.
    uncertainty
        Standard deviation per voxel that the method expects of its error, in units of ``harmonized``; undefined where it gives none.
    unsupported
        Structure that the method drew without support of the scan, in units of ``harmonized``; undefined for methods that cannot draw.
    record
        Details, device, precision, seconds, quantiles of the target.
    sidecar
        Fields for the sidecar of the image.
    head, head_sidecar
        The whole image, harmonized (the brain alone where the method knows no more), and the fields for its sidecar; undefined without
        ``preproc``.
    """
    workflow = pe.Workflow(name=name)
    given = ['brain', 'brain_mask', 'tissue', 'preproc', 'mask_sidecar']
    results = ['harmonized', 'uncertainty', 'unsupported', 'record', 'sidecar', 'head', 'head_sidecar']
    inputnode = pe.Node(niu.IdentityInterface(fields=given), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=results), name='outputnode')
    harmonize = pe.Node(
        HarmonizeScan(
            harmonizer=method.name, target=method.target, model_dir=method.model_dir,
            model_digest=method.model_digest, weights_digest=method.weights_digest, execution={**method.execution, 'threads': omp_nthreads},
            contrast=contrast, name=scan_name, site=site, use_gpu=method.uses_gpu, num_threads=omp_nthreads,
        ),
        name='harmonize',
        # A GPU node takes one slot: nipype counts n_procs against the cards (facts of nipype 1.11's MultiProc).
        n_procs=1 if method.uses_gpu else omp_nthreads,
        mem_gb=method.memory_gb,
    )  # fmt: skip
    if method.uses_gpu and gpu_plugin_args:
        harmonize.plugin_args = gpu_plugin_args
    workflow.connect([
        (inputnode, harmonize, [
            ('brain', 'in_file'), ('brain_mask', 'mask_file'), ('tissue', 'tissue'), ('preproc', 'head_file'),
            ('mask_sidecar', 'head_sidecar'),
        ]),
        (harmonize, outputnode, [('out_file', 'harmonized'), *((field, field) for field in results[1:])]),
    ])  # fmt: skip
    return workflow
