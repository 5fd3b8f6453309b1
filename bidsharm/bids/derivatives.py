"""What other pipelines have already computed: masks, bias-corrected images and transforms to reuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bidsharm.bids.names import ScanFile, file_name
from bidsharm.errors import UsageError
from bidsharm.files import leads_out

#: What is said of a link that is not followed, and what to do.
LEADS_OUT = 'is a link that leads out of that folder; --follow-links reads it'


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
    root
        Folder of that name.
    warnings
        What was found and not taken.
    """

    preproc: Path | None = None
    brain_mask: Path | None = None
    to_template: Path | None = None
    from_template: Path | None = None
    source: str = ''
    root: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, Path]:
        """The files found, by what they replace."""
        names = ('preproc', 'brain_mask', 'to_template', 'from_template')
        return {name: file for name in names if (file := getattr(self, name))}

    @property
    def uris(self) -> dict[str, str]:
        """BIDS URIs of the files found."""
        return {name: self.uri(file) for name, file in self.files.items()}

    def uri(self, file: Path) -> str:
        """Return the BIDS URI of a file of that derivative (its name is defined in DatasetLinks)."""
        return f'bids:{self.source}:{file.relative_to(self.root or file.anchor).as_posix()}'


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


def find_precomputed(
    scan: ScanFile, derivatives: Mapping[str, Path], template: str, *, follow_links: bool = False
) -> Precomputed:
    """Look for what can be reused for a T1w, in the order in which the derivatives were named.

    The names are those of fMRIPrep and sMRIPrep, with the entities of the scan. Names with fewer entities
    (only subject and session, or the folder of the subject) are what a pipeline makes of all T1w below them:
    they count only where the scan is the only one, for an average over runs or scanners is not this scan. Links that lead
    out of the folder that was named are passed over with a warning, unless ``follow_links`` is set.
    """
    warnings: dict[str, None] = {}
    for name, root in derivatives.items():
        found: dict[str, Path] = {}
        for folder, entities in _places(scan, root):
            for key, file in _candidates(folder, entities, template).items():
                if key in found or not file.is_file():
                    continue
                if not follow_links and leads_out(file, root):
                    warnings[f'{file.name} of the derivatives "{name}" was not used: it {LEADS_OUT}.'] = None
                    continue
                found[key] = file
        if 'to_template' not in found or 'from_template' not in found:
            found.pop('to_template', None)
            found.pop('from_template', None)
        if 'brain_mask' not in found:
            found.pop('preproc', None)  # without its mask a stripped image looks like a whole head
        if found:
            return Precomputed(**found, source=name, root=root, warnings=tuple(warnings))
    return Precomputed(warnings=tuple(warnings))


def _places(scan: ScanFile, root: Path) -> list[tuple[Path, dict[str, str]]]:
    subject = root / f'sub-{scan.subject}'
    exact: dict[str, str] = dict(scan.entities)
    short: dict[str, str] = {key: exact[key] for key in ('sub', 'ses') if key in exact}
    here = subject / f'ses-{scan.session}' if scan.session else subject
    places: list[tuple[Path, dict[str, str]]] = [(here / 'anat', exact)]
    if _is_only_t1w(scan, scan.path.parent.parent):
        places.append((here / 'anat', short))
    if scan.session and _is_only_t1w(scan, scan.root / f'sub-{scan.subject}'):
        places.append((subject / 'anat', {'sub': scan.subject}))
    return places


def _is_only_t1w(scan: ScanFile, folder: Path) -> bool:
    """Say whether no other T1w lies in the ``anat`` folders of a session or of all sessions of a subject."""
    images = {file for pattern in ('anat', 'ses-*/anat') for file in folder.glob(f'{pattern}/*_T1w.nii*')}
    return images <= {scan.path}


def _candidates(folder: Path, entities: Mapping[str, str], template: str) -> dict[str, Path]:
    transform = 'from-{}_to-{}_mode-image_xfm'
    return {
        'preproc': folder / file_name({**entities, 'desc': 'preproc'}, 'T1w', '.nii.gz'),
        'brain_mask': folder / file_name({**entities, 'desc': 'brain'}, 'mask', '.nii.gz'),
        'to_template': folder / file_name(entities, transform.format('T1w', template), '.h5'),
        'from_template': folder / file_name(entities, transform.format(template, 'T1w'), '.h5'),
    }


def way_back(forward: Path, label: str) -> Path:
    """Return the transform from a template that :func:`find_precomputed` found together with the one to it."""
    there, back = f'from-T1w_to-{label}_', f'from-{label}_to-T1w_'
    return forward.with_name(forward.name.replace(there, back))
