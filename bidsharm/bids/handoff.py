"""What is written for fMRIPrep: one T1w for each session in a derivative data set of its own, under fMRIPrep's names.

``fmriprep --derivatives harm=FOLDER`` asks such a folder for ``desc-preproc_T1w``, ``desc-brain_mask``, ``dseg``, ``probseg`` and
``from-T1w_to-*_xfm`` of a subject (and a session), whatever ``acq-`` or ``run-`` says, and takes what it finds for one scan (sMRIPrep
0.19.5, ``data/io_spec.json`` and ``utils/bids.py``). So there may be only one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bidsharm.bids import sidecars
from bidsharm.bids.atomic import make_folder, write_json, write_text
from bidsharm.bids.dataset import BIDSIGNORE, HANDOFF, description, refuse_foreign, write_labels
from bidsharm.bids.derivatives import Precomputed
from bidsharm.bids.names import OutputNames, ScanFile
from bidsharm.settings import Settings

#: Ends of the names of all that is written there, as far as fMRIPrep looks for it.
HANDOFF_ENDINGS = (
    '_desc-preproc_T1w.nii.gz', '_desc-preproc_T1w.json', '_desc-brain_mask.nii.gz', '_desc-brain_mask.json',
    '_dseg.nii.gz', '_dseg.json', '_probseg.nii.gz', '_probseg.json', '_mode-image_xfm.h5',
)  # fmt: skip

README = """# Harmonized T1w for fMRIPrep

Written by bidsharm (`--fmriprep-derivatives`). fMRIPrep takes these files with `--derivatives harm=FOLDER`: it uses the harmonized
T1w, its mask and segmentation instead of making its own. There is one T1w for each session. The full results, the
checks and the reports are in the data set that the sidecars call `bidsharm`.
"""


def handed_off(scans: Iterable[ScanFile]) -> frozenset[str]:
    """Return the names of the T1w that fMRIPrep gets: of each session the first by name, those with contrast agent last.

    It is the one that the other contrasts of the session follow.
    """
    first: dict[tuple[str, str | None], ScanFile] = {}
    for scan in sorted(scans, key=lambda item: ('ce' in item.entities, item.name)):
        if scan.suffix == 'T1w':
            first.setdefault((scan.subject, scan.session), scan)
    return frozenset(scan.name for scan in first.values())


def handoff_specs(
    scan: ScanFile, reused: Precomputed, spaces: Sequence[str], *, description: str = ''
) -> list[dict[str, Any]]:
    """Return the specifications of image, mask, segmentation, probabilities, and the transforms there and back of each space.

    Parameters
    ----------
    scan
        A T1w.
    reused
        Files of other pipelines that the results rest on.
    spaces
        Labels of the templates.
    description
        What the image is.
    """
    names = OutputNames(scan)
    own = f'bids:bidsharm:{names.image("preproc")}'
    text = (
        description
        or 'Harmonized T1w, for fMRIPrep; where SkullStripped is false, the head around the brain too'
    )
    specs = [
        sidecars.image_spec(scan, 'preproc', text, [own]),
        sidecars.mask_spec(scan, reused, None),
        sidecars.dseg_spec(scan, '', own),
        sidecars.probseg_spec(scan, own),
    ]
    for space in spaces:
        specs += [
            sidecars.transform_spec(scan, 'T1w', space),
            sidecars.transform_spec(scan, space, 'T1w'),
        ]
    return specs


def handoff_files(scan: ScanFile, spaces: Sequence[str]) -> list[str]:
    """Return the relative names of all files, without sidecars."""
    paths = [spec['path'] for spec in handoff_specs(scan, Precomputed(), spaces)]
    return [name for path in paths for name in (path if isinstance(path, list) else [path])]


def prepare_handoff(settings: Settings) -> None:
    """Write the root files of the folder of ``--fmriprep-derivatives``, each only if it is not there with the same content.

    Raises
    ------
    UsageError
        If the folder cannot be written or holds something else.
    """
    root = settings.fmriprep_derivatives
    if root is None:
        return
    where = f'--fmriprep-derivatives {root}'
    make_folder(root, 'folder for fMRIPrep', where)
    refuse_foreign(root, HANDOFF)
    content = description(settings, root)
    content['Name'] = f'{content["Name"]}, for fMRIPrep'
    content['GeneratedBy'][0]['Description'] = HANDOFF
    content['DatasetLinks']['bidsharm'] = settings.output_dir.as_uri()
    content['HowToAcknowledge'] = 'Please cite what logs/CITATION.md of the data set "bidsharm" names.'
    write_json(root / 'dataset_description.json', content)
    write_text(root / '.bidsignore', BIDSIGNORE)
    if not (root / 'README.md').exists():
        write_text(root / 'README.md', README)
    write_labels(root)
