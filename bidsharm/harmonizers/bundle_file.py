"""A bundle as one file for another lab: the same bundle gives the same bytes, and a file from elsewhere is believed nothing.

The file is an uncompressed tar archive with the two files of a bundle and no more. It is read entry by entry, none of which is taken for
more than a name, a kind and a size: what it says about places, owners, links or times has no effect.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.files import MAX_TEXT, open_regular, parse_json, shown
from bidsharm.harmonizers import bundle
from bidsharm.settings import ACQUISITION
from bidsharm.temporary import atomic_path, temporary_folder

ENDING = '.tar'
#: Bytes of a bundle's files, at most.
LIMITS = {bundle.CARD: MAX_TEXT, bundle.TENSORS: bundle.MAX_TENSORS}
#: Bytes of the archive around them, at most: headers, filling and the end.
_AROUND = 64 * tarfile.BLOCKSIZE
#: How a target that is one image is written in a bundle: before the name of its file.
_REFERENCE = 'reference:'
#: Settings that hold labels of the data.
_LISTS, _SINGLE = ('sites', 'labelled_sites'), ('target', 'target_site')
_SUBJECT = re.compile(r'sub-[a-zA-Z0-9]')


class Exported(NamedTuple):
    """What a file holds: the digest of its bundle, and the labels in it that come from the data."""

    digest: str
    names: list[str]


def export_bundle(
    folder: Path, file: Path, *, rename: Mapping[str, str] | None = None, keep_names: bool = False
) -> Exported:
    """Write a bundle as one file, whole or not at all.

    Parameters
    ----------
    folder
        A bundle.
    file
        A new file, ``.tar``.
    rename
        Other names for sites, or for the image that was the target.
    keep_names
        Write the names of images and subjects that the bundle holds.

    Returns
    -------
    Exported
        What is in the file; the digest is another one than that of the folder where names were changed.

    Raises
    ------
    UsageError
        If the file is there already, a name is not in the bundle, or one may tell who was scanned.
    ConfigurationError
        If the bundle is not whole.
    """
    file = Path(file)
    if file.suffix != ENDING:
        raise UsageError(f'The file has to end with {ENDING}.', where=str(file))
    if os.path.lexists(file):
        raise UsageError('The file is there already.', where=str(file), fix='Give another name.')
    card, tensors = bundle.read_parts(folder)
    content = parse_json(card.decode())
    if rename:
        content = _renamed(content, rename)
        card = bundle.card_text(content).encode()
    given = set((rename or {}).values())
    telling = [name for name in map(_bare, filter(_tells, names_in(content))) if name not in given]
    if telling and not keep_names:
        raise UsageError(
            f'The bundle holds what may tell who was scanned: {", ".join(telling)}.', where=str(folder),
            fix='Give it another name (--rename OLD=NEW), or say that it may be passed on (--keep-names).',
        )  # fmt: skip
    with atomic_path(file) as partial, partial.open('wb') as handle:
        _pack({bundle.CARD: card, bundle.TENSORS: tensors}, handle)
    return Exported(bundle.digest_of(card, tensors), names_in(content))


def import_bundle(file: Path, folder: Path, *, digest: str = '') -> str:
    """Make a bundle of a file that :func:`export_bundle` wrote, whole or not at all.

    Parameters
    ----------
    file
        A file from anywhere.
    folder
        Folder to make; nothing may be there.
    digest
        What the bundle's digest has to be; any by default.

    Returns
    -------
    str
        Digest of the bundle.

    Raises
    ------
    UsageError
        If there is something in the place of the folder.
    ConfigurationError
        If the file holds anything but one whole bundle that can be loaded, or another than the digest says.
    """
    file, folder = Path(file), Path(folder)
    if os.path.lexists(folder):
        raise _occupied(folder)
    parts = _unpack(file)
    found = bundle.digest_of(parts[bundle.CARD], parts[bundle.TENSORS])
    if digest and digest.lower() != found:
        raise ConfigurationError(
            f'The bundle in the file has the digest {found}, not {shown(digest)}.', where=str(file),
            fix='Get the file again from its source, and the digest with it.',
        )  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder('.tmp', folder.parent, 0o777) as temporary:
        for name, content in parts.items():
            (temporary / name).write_bytes(content)
        try:
            bundle.load_any(temporary)
        except ConfigurationError as error:
            raise ConfigurationError(error.what, where=str(file), fix=error.fix) from error
        try:
            os.rename(temporary, folder)
        except (FileExistsError, NotADirectoryError):
            raise _occupied(folder) from None
        except OSError:
            if folder.exists():
                raise _occupied(folder) from None
            raise
    return found


# --- Names ---


def names_in(content: Mapping[str, Any]) -> list[str]:
    """Return the labels in a bundle that come from the data: of sites, of the target, of categories that were kept.

    Parameters
    ----------
    content
        Of ``card.json``.
    """
    settings = content['settings']
    design = settings.get('design')
    levels = design.get('levels', {}) if isinstance(design, Mapping) else {}
    found = [name for key in (*_LISTS, *_SINGLE) for name in _listed(settings.get(key))]
    found += [name for some in levels.values() for name in _listed(some)]
    return [name for name in dict.fromkeys(found) if name]


def _listed(value: Any) -> list[str]:
    """Return labels, of which there may be one or several."""
    return [str(item) for item in value] if isinstance(value, list) else [str(value or '')]


def _bare(label: str) -> str:
    return label.removeprefix(_REFERENCE).removeprefix(ACQUISITION)


def _tells(name: str) -> bool:
    """Say whether a label may name a person: that of an image, or one with a BIDS label of a subject."""
    return name.startswith(_REFERENCE) or _SUBJECT.search(name) is not None


def _renamed(content: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of a card with other names of sites and target; an image that was the target stays one."""
    settings = dict(content['settings'])
    known = [_bare(name) for key in (*_LISTS, *_SINGLE) for name in _listed(settings.get(key))]
    if missing := [name for name in names if name not in known]:
        there = ', '.join(dict.fromkeys(name for name in known if name)) or 'none'
        raise UsageError(
            f'The bundle has no site or target "{missing[0]}".', where='--rename', fix=f'It has: {there}.'
        )

    def new(label: str) -> str:
        bare = _bare(label)
        return label.removesuffix(bare) + names.get(bare, bare)

    for key in (*_LISTS, *_SINGLE):
        labels = [new(label) for label in _listed(settings.get(key))]
        if len(set(labels)) < len(labels):
            raise UsageError(
                'Two sites would have the same name.', where='--rename', fix='Give each a name of its own.'
            )
        if key in settings:
            settings[key] = labels if key in _LISTS else ''.join(labels)
    return {**content, 'settings': settings}


# --- The archive ---


def _pack(parts: Mapping[str, bytes], handle: io.BufferedIOBase) -> None:
    """Write an archive whose bytes depend on nothing but the parts."""
    with closing(tarfile.open(fileobj=handle, mode='w', format=tarfile.USTAR_FORMAT)) as archive:
        for name in sorted(parts):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(parts[name]), 0o644, 0
            archive.addfile(entry, io.BytesIO(parts[name]))


def _unpack(file: Path) -> dict[str, bytes]:
    """Return the two files of a bundle that an archive holds."""
    try:
        with open_regular(file, sum(LIMITS.values()) + _AROUND) as archive:
            found = dict(_entries(archive, file))
    except OSError as error:
        raise ConfigurationError(f'The file cannot be read ({error.strerror}).', where=str(file)) from error
    for name in LIMITS:
        if name not in found:
            raise _no_export(file, f'{name} is missing')
    return found


def _entries(archive: BufferedReader, file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each entry; nothing is read that is not a file of a bundle, or longer than the archive."""
    size, seen = os.fstat(archive.fileno()).st_size, set()
    while (header := archive.read(tarfile.BLOCKSIZE)).strip(b'\0'):
        entry = _entry(header, file)
        name = entry.name
        if name in seen:
            raise _no_export(file, f'it holds {name} twice')
        if not 0 <= entry.size <= LIMITS[name]:
            raise _no_export(file, f'{name} is larger than {LIMITS[name] / 1e6:.0f} MB')
        if entry.size > size - archive.tell():
            raise _no_export(file, f'it is cut off in {name}')
        seen.add(name)
        yield name, archive.read(entry.size)
        archive.read(-entry.size % tarfile.BLOCKSIZE)


def _entry(header: bytes, file: Path) -> tarfile.TarInfo:
    """Return what stands before a file of a bundle; anything else is refused."""
    try:
        entry = tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape')
    except (tarfile.TarError, ValueError) as error:
        raise _no_export(file, 'it is no tar archive, compressed, or damaged') from error
    if entry.name not in LIMITS:
        raise _no_export(file, f'it holds "{shown(entry.name)}"')
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise _no_export(file, f'{entry.name} is a link or something else that is no file')
    return entry


def _no_export(file: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f'This is no bundle as `bidsharm-models export` writes one: {why}.', where=str(file),
        fix='Get the file again from its source.',
    )  # fmt: skip


def _occupied(folder: Path) -> UsageError:
    return UsageError(
        'There is something in the place of the bundle.', where=str(folder), fix='Give a new folder.'
    )
