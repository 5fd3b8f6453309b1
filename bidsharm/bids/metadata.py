"""Sidecars of a scan, by the inheritance principle of BIDS, tolerant of broken files.

pybids stops at the first sidecar that is not JSON; one bad file should not cost the data set, so only its index
of names is used, and metadata are read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bidsharm.bids.names import parse_name
from bidsharm.files import leads_out, read_json, shown
from bidsharm.settings import reason

#: What is said of a link that is not followed, and what to do.
LEADS_OUT = 'it is a link that leads out of the data set; --follow-links reads it'

#: Names of sidecars by folder.
Listings = dict[Path, tuple[str, ...]]


def read_metadata(
    path: Path, root: Path, *, follow_links: bool = False, listed: Listings | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the metadata that apply to an image, and what is wrong with its sidecars.

    Parameters
    ----------
    path
        The image.
    root
        Folder of the data set; sidecars above the image count, nearer ones win.
    follow_links
        Whether sidecars that are links out of the data set count.
    listed
        Sidecars by folder as they were found for other images, to be kept while nobody writes there; new folders are added.

    Returns
    -------
    metadata, warnings
        Fields of all sidecars that apply, and a sentence for each that cannot be read.
    """
    parsed = parse_name(path.name)
    if parsed is None:
        return {}, ()
    entities, suffix = parsed
    metadata: dict[str, Any] = {}
    warnings: list[str] = []
    listed = {} if listed is None else listed
    folders = [
        folder for folder in (path.parent, *path.parent.parents) if folder == root or root in folder.parents
    ]
    for folder in reversed(folders):
        applying = []
        if folder not in listed:
            listed[folder] = _sidecars(folder)
        for name in listed[folder]:
            # "T1w.json" at the root is the most common sidecar of all, though no image is called so
            other = ({}, suffix) if name == f'{suffix}.json' else parse_name(name)
            if other is not None and other[1] == suffix and other[0].items() <= entities.items():
                applying.append((len(other[0]), name))
        for _, name in sorted(applying):
            try:
                metadata.update(_read(folder / name, None if follow_links else root))
            except (OSError, ValueError) as error:
                warnings.append(
                    f'The sidecar {shown(name)} cannot be read ({reason(error)}); its fields are missing.'
                )
    return metadata, tuple(warnings)


def _sidecars(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(entry.name for entry in folder.iterdir() if entry.suffix == '.json')
    except OSError:
        return ()


def _read(path: Path, inside: Path | None) -> dict[str, Any]:
    if inside is not None and leads_out(path, inside):
        raise ValueError(LEADS_OUT)
    content = read_json(path, encoding='utf-8-sig')
    if not isinstance(content, dict):
        raise ValueError('it is no JSON object')
    return content
