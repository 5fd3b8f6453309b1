"""The root of the derivatives: what makes the folder a BIDS data set."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bidsharm import __version__
from bidsharm.bids.atomic import make_folder, write_json, write_text
from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.files import leads_out
from bidsharm.files import read_json as read_any_json
from bidsharm.settings import CONTRASTS, Settings

BIDS_VERSION = '1.10.0'

#: What BIDS has no name for yet; the validator passes over it.
BIDSIGNORE = '*.html\nlogs/\nmodels\nfigures\n*_xfm.*\n*_qc.*\ngroup_*\n'

#: What the generator of each kind of folder says of itself: no folder is written over by a run that wants the other kind.
MAIN = 'Harmonization of brain MRI across scanners'
HANDOFF = 'Harmonized T1w under the names that fMRIPrep looks for'

README = """# Harmonized MRI

Written by bidsharm. Every `sub-*.html` shows what was changed in one subject's scans and that the anatomy was not;
`group.html` shows all of them together. `desc-harmonized` images are the result; `desc-preproc` images are the same
scans with only the bias field removed. What each file is: the page "outputs" of the documentation.
"""

_DESCRIPTIONS = (
    ('desc_id', 'description'),
    ('desc-harmonized', 'Brain as the target scanner would have made it'),
    ('desc-uncertainty', 'Standard deviation that the method expects of the error of desc-harmonized'),
    ('desc-unsupported', 'Structure that the method drew and that the scan does not support'),
    ('desc-preproc', 'Bias field removed, intensities of the scanner'),
    ('desc-brain', 'Brain mask'),
    *(
        (f'desc-{contrast}{what}', text.format(contrast))
        for contrast in CONTRASTS[1:]
        for what, text in (
            ('', 'Segmentation of the {}'),
            ('Brain', 'Brain mask on the grid of the {}'),
            ('Harmonized', 'Segmentation of the harmonized {}'),
        )
    ),
)


def prepare_root(settings: Settings) -> None:
    """Write the root files, each only if it is not there with the same content.

    Raises
    ------
    UsageError
        If the folder cannot be written, or holds the derivatives of another pipeline.
    """
    root = settings.output_dir
    make_folder(root, 'output folder', str(root))
    refuse_foreign(root, MAIN)
    if not os.access(root, os.W_OK):
        raise UsageError(
            'The output folder cannot be written.', where=str(root), fix='Check its permissions.'
        )
    write_json(root / 'dataset_description.json', description(settings))
    write_text(root / '.bidsignore', BIDSIGNORE)
    if not (root / 'README.md').exists():
        write_text(root / 'README.md', README)
    write_text(root / 'descriptions.tsv', ''.join('\t'.join(row) + '\n' for row in _DESCRIPTIONS))
    write_labels(root)


def refuse_links_out(root: Path, folders: Iterable[str] = ()) -> None:
    """Refuse to write through a link that leads out of the output folder.

    Parameters
    ----------
    root
        The output folder; it may be a link itself.
    folders
        Folders of scans that are going to be written, from there; those that every run writes are looked at, too.

    Raises
    ------
    ConfigurationError
        Naming the link.
    """
    places = dict.fromkeys(['logs', 'models', 'figures', *folders])
    for name in places:
        parts = Path(name).parts
        for place in [root.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]:
            if place.is_symlink() and leads_out(place, root):
                raise ConfigurationError(
                    'This is a link that leads out of the output folder; nothing is written through it.',
                    where=str(place), fix='Put a folder in its place, or give another output folder.',
                )  # fmt: skip


def write_labels(root: Path) -> None:
    """Write ``dseg.tsv``: what the numbers of the segmentations mean."""
    labels = (('index', 'name', 'abbreviation'), ('1', 'Grey matter', 'GM'), ('2', 'White matter', 'WM'),
              ('3', 'Cerebrospinal fluid', 'CSF'))  # fmt: skip
    write_text(root / 'dseg.tsv', ''.join('\t'.join(row) + '\n' for row in labels))


def refuse_foreign(root: Path, kind: str) -> None:
    """Refuse a folder that holds another data set.

    Parameters
    ----------
    root
        The folder.
    kind
        :data:`MAIN` or :data:`HANDOFF`: what is to be written there. A folder without a description may hold no subject if it is for
        fMRIPrep, since images of an earlier choice are removed there.

    Raises
    ------
    UsageError
        Naming the folder.
    """
    file = root / 'dataset_description.json'
    listed = read_json(file).get('GeneratedBy')
    makers = [maker for maker in listed if isinstance(maker, dict)] if isinstance(listed, list) else []
    ours = [maker for maker in makers if maker.get('Name') == 'bidsharm']
    untold = kind == HANDOFF and any(root.glob('sub-*'))
    if not ours and (file.exists() or untold):
        raise UsageError(
            f'The {"output folder" if kind == MAIN else "folder for fMRIPrep"} already holds another data set.',
            where=str(root), fix='Give an empty folder.',
        )  # fmt: skip
    if ours and (ours[0].get('Description') == HANDOFF) != (kind == HANDOFF):
        raise UsageError(
            'OUTPUT_DIR and --fmriprep-derivatives are two data sets, and this folder is the other one.',
            where=str(root), fix='Give each its own folder.',
        )  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is missing or broken is an empty one."""
    try:
        content = read_any_json(path, encoding='utf-8-sig')
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def refuse_out(root: Path, out: Path, generator: str) -> None:
    """Refuse a folder for the output of a command on derivatives that holds another data set, or lies in the folder that is read.

    Parameters
    ----------
    root, out
        Folders that are read and written.
    generator
        What the description of such an output says of its maker.

    Raises
    ------
    UsageError
        Naming the folder.
    """
    if out.resolve() == root.resolve() or root.resolve() in out.resolve().parents:
        raise UsageError('OUT lies in the folder that is read.', where=str(out), fix='Choose another folder.')
    makers = read_json(out / 'dataset_description.json').get('GeneratedBy') or [{}]
    if (out / 'dataset_description.json').exists() and makers[0].get('Description') != generator:
        raise UsageError(
            'The folder already holds another data set.', where=str(out), fix='Choose another folder.'
        )


def derived_description(root: Path, generator: str, *, command: str, usual: str, link: str) -> dict[str, Any]:
    """Return the content of ``dataset_description.json`` for what a command makes of derivatives.

    Parameters
    ----------
    root
        Folder that is read.
    generator
        As for :func:`refuse_out`.
    command, usual
        Name of the command, and what the data set is called where the derivatives have no name.
    link
        Name of the derivatives in the URIs of sidecars.
    """
    before = read_json(root / 'dataset_description.json')
    return {
        'Name': f'{command}: {before.get("Name", usual)}',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [{'Name': 'bidsharm', 'Version': __version__, 'Description': generator}],
        'DatasetLinks': {link: root.resolve().as_uri()},
        **({'License': str(before['License'])} if before.get('License') else {}),
    }


def raw_description(settings: Settings) -> dict[str, Any]:
    """Return what the raw data set says of itself; nothing where that is a link out of it that is not to be followed."""
    path = settings.bids_dir / 'dataset_description.json'
    return {} if not settings.follow_links and leads_out(path, settings.bids_dir) else read_json(path)


def description(settings: Settings, root: Path | None = None) -> dict[str, Any]:
    """Return the content of ``dataset_description.json`` of a folder, OUTPUT_DIR if it is not given."""
    raw = raw_description(settings)
    generator: dict[str, Any] = {
        'Name': 'bidsharm',
        'Version': __version__,
        'Description': MAIN,
    }
    image = os.environ.get('BIDSHARM_CONTAINER')
    if image:
        kind, _, tag = image.partition(':')
        generator['Container'] = {'Type': kind, 'Tag': tag}
    # What earlier runs reused is still named in the sidecars that they wrote.
    before = read_json((root or settings.output_dir) / 'dataset_description.json').get('DatasetLinks')
    links = {str(name): str(uri) for name, uri in before.items()} if isinstance(before, dict) else {}
    links['raw'] = settings.bids_dir.as_uri()
    links |= {name: folder.as_uri() for name, folder in settings.derivatives.items()}
    source: dict[str, Any] = {'URL': settings.bids_dir.as_uri()}
    if raw.get('DatasetDOI'):
        source['DOI'] = str(raw['DatasetDOI'])
    content: dict[str, Any] = {
        'Name': f'bidsharm: {raw.get("Name", "harmonized MRI")}',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [generator],
        'SourceDatasets': [source],
        'DatasetLinks': links,
        'HowToAcknowledge': 'Please cite what logs/CITATION.md names.',
    }
    if raw.get('License'):
        content['License'] = str(raw['License'])
    return content
