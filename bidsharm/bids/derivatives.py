"""What other pipelines have already computed: masks, bias-corrected images and transforms to reuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bidsharm.bids.names import ScanFile, file_name
from bidsharm.errors import UsageError


@dataclass(frozen=True)
class Precomputed:
    """Files of other derivatives that replace a step for one T1w.

    Parameters
    ----------
    preproc
        Bias-corrected T1w (``desc-preproc_T1w``) in the T1w space of that pipeline.
    brain_mask
        Its brain mask.
    to_template, from_template
        Composite transforms between the T1w and the registration template.
    source
        Name given on the command line.
    """

    preproc: Path | None = None
    brain_mask: Path | None = None
    to_template: Path | None = None
    from_template: Path | None = None
    source: str = ''

    def to_dict(self) -> dict[str, str]:
        """Return the files found, for the record."""
        return {key: str(value) for key, value in vars(self).items() if value}


def check_folders(derivatives: Mapping[str, Path]) -> None:
    """Refuse derivatives folders that do not exist or hold no subject.

    Raises
    ------
    UsageError
        Naming the folder.
    """
    for name, folder in derivatives.items():
        if not folder.is_dir():
            raise UsageError('The derivatives folder does not exist.', where=f'--derivatives {name}={folder}')
        if not any(folder.glob('sub-*')):
            raise UsageError(
                'The derivatives folder holds no sub-* folder.',
                where=f'--derivatives {name}={folder}',
                fix='Give the folder that holds dataset_description.json.',
            )


def find_precomputed(scan: ScanFile, derivatives: Mapping[str, Path], template: str) -> Precomputed:
    """Look for what can be reused for a T1w, in the order in which the derivatives were named.

    The names are those of fMRIPrep and sMRIPrep, with the entities of the scan; where a pipeline merged
    runs or acquisitions, names with only subject and session are tried too, and the folder of the subject
    where sessions were merged.
    """
    found: dict[str, Path] = {}
    source = ''
    for name, root in derivatives.items():
        for folder, entities in _places(scan, root):
            for key, file in _candidates(folder, entities, template).items():
                if key not in found and file.is_file() and (not source or source == name):
                    found[key] = file
                    source = name
    if 'to_template' not in found or 'from_template' not in found:
        found.pop('to_template', None)
        found.pop('from_template', None)
    if 'preproc' in found and 'brain_mask' not in found:
        found.pop('preproc')  # without its mask we could not tell a stripped image from a whole head
    return Precomputed(**found, source=source if found else '')


def _places(scan: ScanFile, root: Path) -> list[tuple[Path, dict[str, str]]]:
    subject = root / f'sub-{scan.subject}'
    exact: dict[str, str] = dict(scan.entities)
    short: dict[str, str] = {key: exact[key] for key in ('sub', 'ses') if key in exact}
    here = subject / f'ses-{scan.session}' if scan.session else subject
    places: list[tuple[Path, dict[str, str]]] = [(here / 'anat', exact), (here / 'anat', short)]
    if scan.session:
        places.append((subject / 'anat', {'sub': scan.subject}))
    return places


def _candidates(folder: Path, entities: Mapping[str, str], template: str) -> dict[str, Path]:
    transform = 'from-{}_to-{}_mode-image_xfm'
    return {
        'preproc': folder / file_name({**entities, 'desc': 'preproc'}, 'T1w', '.nii.gz'),
        'brain_mask': folder / file_name({**entities, 'desc': 'brain'}, 'mask', '.nii.gz'),
        'to_template': folder / file_name(entities, transform.format('T1w', template), '.h5'),
        'from_template': folder / file_name(entities, transform.format(template, 'T1w'), '.h5'),
    }
