"""The sink for fMRIPrep: the harmonized T1w in a derivative data set of its own."""

from __future__ import annotations

from collections.abc import Mapping
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
    transforms: Mapping[str, Path],
    reused: Precomputed | None = None,
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
    transforms
        Transforms of other pipelines to templates, by label; they are copied, and their ways back.
    reused
        Files of other pipelines that the results rest on.
    name
        Name of the workflow.

    Inputs
    ------
    head, sidecar, brain_mask, dseg, tissue
        Harmonized image and the fields for its sidecar, results of preprocessing.

    Outputs
    -------
    out_files, fingerprints
        What was written, and what it looked like then.
    """
    workflow = pe.Workflow(name=name)
    given = [str(way) for label, there in transforms.items() for way in (there, way_back(there, label))]
    fields = ['head', 'brain_mask', 'dseg', 'tissue']
    inputnode = pe.Node(niu.IdentityInterface(fields=[*fields, 'sidecar']), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(fields=SINK_FIELDS), name='outputnode')
    collect = pe.Node(niu.Merge(len(fields) + len(given)), name='collect', run_without_submitting=True)
    for index, way in enumerate(given, start=len(fields) + 1):
        collect.set_input(f'in{index}', way)
    ds_handoff = pe.Node(
        SaveDerivatives(
            specs=handoff_specs(scan, reused or Precomputed(), tuple(transforms)), out_root=str(folder),
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
