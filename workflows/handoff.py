"""The sink for fMRIPrep: the harmonized T1w in a derivative data set of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bidsharm.workflows.outputs import SINK_FIELDS
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from bidsharm.bids.derivatives import Precomputed, way_back
from bidsharm.bids.handoff import handoff_specs
from bidsharm.bids.names import OutputNames, ScanFile
from bidsharm.interfaces.derivatives import SaveDerivatives


def init_ds_handoff_wf(
    *,
    scan: ScanFile,
    folder: Path,
    native: Path,
    spaces: Sequence[str],
    reused: Precomputed | None = None,
    given: Mapping[str, Path] | None = None,
    name: str = 'ds_handoff_wf',
) -> pe.Workflow:
    """Write a harmonized T1w, its mask, tissues and transforms under the names that fMRIPrep looks for.

    Parameters
    ----------
    scan
        The raw T1w.
    folder
        Root of the derivative data set.
    native
        Image whose grid the results come back to.
    spaces
        Labels of the templates that there are transforms to.
    reused
        Files of other pipelines that the results rest on.
    given
        Transforms of other pipelines to some of the templates, by label; they are copied, and their ways back.
    name
        Name of the workflow.

    Inputs
    ------
    head, sidecar, brain_mask, dseg, tissue, forward1, backward1...
        Harmonized image and the fields for its sidecar, results of preprocessing, and for each of ``spaces`` in their order the transforms
        to it and back (those of ``given`` are set).

    Outputs
    -------
    out_files, fingerprints
        What was written, and what it looked like then.
    """
    workflow = pe.Workflow(name=name)
    ways = [f'{way}{index}' for index in range(1, len(spaces) + 1) for way in ('forward', 'backward')]
    fields = ['head', 'brain_mask', 'dseg', 'tissue', *ways]
    inputnode = pe.Node(niu.IdentityInterface(fields=[*fields, 'sidecar']), name='inputnode')
    for index, label in enumerate(spaces, start=1):
        if given and label in given:
            inputnode.set_input(f'forward{index}', str(given[label]))
            inputnode.set_input(f'backward{index}', str(way_back(given[label], label)))
    outputnode = pe.Node(niu.IdentityInterface(fields=SINK_FIELDS), name='outputnode')
    collect = pe.Node(niu.Merge(len(fields)), name='collect', run_without_submitting=True)
    ds_handoff = pe.Node(
        SaveDerivatives(
            specs=handoff_specs(scan, reused or Precomputed(), spaces), out_root=str(folder),
            native=str(native), alone_in=OutputNames(scan).folder,
        ),
        name='ds_handoff', mem_gb=1.0,
    )  # fmt: skip
    workflow.connect([
        (inputnode, collect, [(field, f'in{index}') for index, field in enumerate(fields, start=1)]),
        (inputnode, ds_handoff, [('sidecar', 'extra')]),
        (collect, ds_handoff, [('out', 'in_files')]),
        (ds_handoff, outputnode, [(field, field) for field in SINK_FIELDS]),
    ])  # fmt: skip
    return workflow
