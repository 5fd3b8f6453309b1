"""Names of what bidsharm writes, built from the entities of the raw scan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Order of entities in a BIDS file name (BIDS 1.10, schema "entities"), as far as anatomical scans use them.
ENTITY_ORDER = (
    'sub', 'ses', 'sample', 'acq', 'ce', 'rec', 'dir', 'run', 'mod', 'echo', 'flip', 'inv', 'mt', 'part',
    'proc', 'hemi', 'space', 'chunk', 'seg', 'res', 'den', 'label', 'desc',
)  # fmt: skip

_ENTITY = re.compile(r'^([a-z]+)-([0-9A-Za-z+]+)$')


@dataclass(frozen=True)
class ScanFile:
    """One raw scan of the data set.

    Parameters
    ----------
    path
        The image file.
    entities
        Entities of its name (``sub``, ``ses``, ``acq``...), without suffix and extension.
    suffix
        Contrast: ``T1w``, ``T2w``, ``FLAIR`` or ``PDw``.
    site
        Label of the scanner or site.
    metadata
        Sidecar fields that apply to it.
    root
        Folder of the data set; :attr:`relative` is given from there.
    warnings
        What was wrong with its sidecars.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str
    root: Path
    site: str = ''
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """Subject label without ``sub-``."""
        return self.entities['sub']

    @property
    def session(self) -> str | None:
        """Session label without ``ses-``, or None."""
        return self.entities.get('ses')

    @property
    def name(self) -> str:
        """The scan's name in messages and tables: its file name without extension."""
        return file_name(self.entities, self.suffix)

    @property
    def node(self) -> str:
        """The name as a graph node: letters, digits and underscores only."""
        return re.sub(r'\W', '_', self.name)

    @property
    def relative(self) -> str:
        """POSIX path from the root of the data set."""
        return self.path.relative_to(self.root).as_posix()


def parse_name(name: str) -> tuple[dict[str, str], str] | None:
    """Split a BIDS file name into entities and suffix; None when it is not one.

    Examples
    --------
    >>> parse_name('sub-01_ses-a_run-1_T1w.nii.gz')
    ({'sub': '01', 'ses': 'a', 'run': '1'}, 'T1w')
    >>> parse_name('notes.txt') is None
    True
    """
    stem = name.split('.', maxsplit=1)[0]
    *pairs, suffix = stem.split('_')
    matches = [_ENTITY.match(pair) for pair in pairs]
    entities = {match[1]: match[2] for match in matches if match}
    # An entity given twice says two things about one file: no BIDS name.
    if not pairs or len(entities) < len(pairs):
        return None
    return entities, suffix


def file_name(entities: Mapping[str, str], suffix: str, extension: str = '') -> str:
    """Build a BIDS file name with the entities in their standard order.

    Examples
    --------
    >>> file_name({'desc': 'harmonized', 'sub': '01', 'run': '2'}, 'T1w', '.nii.gz')
    'sub-01_run-2_desc-harmonized_T1w.nii.gz'
    """
    unknown = [key for key in entities if key not in ENTITY_ORDER]
    ordered = [key for key in ENTITY_ORDER if key in entities]
    # Entities that BIDS adds later keep their place before "desc".
    if unknown:
        last = ['desc'] if 'desc' in ordered else []
        ordered = [key for key in ordered if key != 'desc'] + unknown + last
    return '_'.join([*(f'{key}-{entities[key]}' for key in ordered), suffix]) + extension


@dataclass(frozen=True)
class OutputNames:
    """Where the derivatives of one scan go, relative to the output folder."""

    scan: ScanFile

    @property
    def folder(self) -> str:
        """``sub-XX[/ses-YY]/anat``."""
        session = f'/ses-{self.scan.session}' if self.scan.session else ''
        return f'sub-{self.scan.subject}{session}/anat'

    def of(self, suffix: str, extension: str = '.nii.gz', **entities: str) -> str:
        """Return the relative path of a derivative that keeps the scan's entities."""
        return f'{self.folder}/{file_name({**self.scan.entities, **entities}, suffix, extension)}'

    def image(self, desc: str, space: Mapping[str, str] | None = None) -> str:
        """Return the path of an image of the scan's own contrast."""
        return self.of(self.scan.suffix, **(space or {}), desc=desc)

    def companion(self, suffix: str, *, desc: str = '', extension: str = '.nii.gz', **entities: str) -> str:
        """Return the path of a mask, segmentation or probability map that belongs to this scan.

        For the T1w the names are those of fMRIPrep; for other contrasts ``desc`` starts with the contrast,
        so that ``sub-01_desc-brain_mask`` of a T1w and of a T2w cannot overwrite each other.
        """
        if self.scan.suffix != 'T1w':
            desc = self.scan.suffix + (desc[:1].upper() + desc[1:])
        return self.of(suffix, extension, **entities, **({'desc': desc} if desc else {}))

    @property
    def qc(self) -> str:
        """The QC record; written last, so its presence says that the scan is complete."""
        return self.of('qc', '.json', desc=self.scan.suffix)

    def transform(self, source: str, target: str) -> str:
        """Return the path of a composite transform (fMRIPrep's ``from-``/``to-`` names)."""
        stem = file_name(self.scan.entities, f'from-{source}_to-{target}_mode-image_xfm', '.h5')
        return f'{self.folder}/{stem}'
