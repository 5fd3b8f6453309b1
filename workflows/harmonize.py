"""The harmonize graph: one node, whichever method was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bidsharm.workflows.tags import tag
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.bids.names import ScanFile
from bidsharm.interfaces.ants import ApplyTransforms
from bidsharm.interfaces.harmonize import HarmonizeScan


@dataclass(frozen=True)
class Method:
    """The chosen harmonizer, resolved: everything the harmonize node needs to know.

    Parameters
    ----------
    name
        Registry name.
    target
        ``canonical``, ``site:NAME``, ``reference:FILE`` or ``acquisition:NAME``.
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
            else f'acquisition {value}'
            if kind == 'acquisition'
            else kind
        )

    @property
    def uses_companions(self) -> bool:
        """Whether it looks at the other contrasts of a visit too."""
        return bool(self.card.get('companions', False))

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
    companions: Sequence[ScanFile] = (),
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
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
    companions
        Scans of other contrasts of the visit that the method looks at, too.
    omp_nthreads
        Threads of the node.
    mem_gb
        Memory of one step on the whole scan.
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
    companion1, companion1_transforms, ...
        Brain of each companion, and the transforms from it to the scan.

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
    given += [f'companion{i}{part}' for i, _ in enumerate(companions, 1) for part in ('', '_transforms')]
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
    if companions:
        _connect_companions(workflow, inputnode, harmonize, companions, omp_nthreads, mem_gb)
    return workflow


def _connect_companions(
    workflow: pe.Workflow,
    inputnode: pe.Node,
    harmonize: pe.Node,
    companions: Sequence[ScanFile],
    omp_nthreads: int,
    mem_gb: float,
) -> None:
    """Bring the companions to the grid of the scan."""
    harmonize.inputs.companion_contrasts = [scan.suffix for scan in companions]
    harmonize.inputs.companion_names = [scan.name for scan in companions]
    gather = pe.Node(niu.Merge(len(companions)), name='companions', run_without_submitting=True)
    workflow.connect(gather, 'out', harmonize, 'companions')
    for index, scan in enumerate(companions, 1):
        warp = pe.Node(
            ApplyTransforms(dimension=3, interpolation='Linear', float=True, num_threads=omp_nthreads),
            name=f'warp_{scan.suffix}', mem_gb=mem_gb,
        )  # fmt: skip
        workflow.connect([
            (inputnode, warp, [
                (f'companion{index}', 'input_image'), (f'companion{index}_transforms', 'transforms'),
                ('brain_mask', 'reference_image'),
            ]),
            (warp, gather, [('output_image', f'in{index}')]),
        ])  # fmt: skip
