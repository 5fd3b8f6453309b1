"""Model bundles: a folder with ``model.safetensors`` and ``card.json``, whole or not there, never a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bidsharm
from bidsharm.errors import ConfigurationError, UsageError
from bidsharm.files import MAX_TEXT, leads_out, parse_json, read_bytes
from bidsharm.harmonizers import registry
from bidsharm.harmonizers.contract import Card, Execution, HarmonizationMethod, Harmonizer
from bidsharm.temporary import temporary_folder, temporary_path

FORMAT = 1
TENSORS = 'model.safetensors'
CARD = 'card.json'
#: Weights that are larger (bytes) are none.
MAX_TENSORS = 8_000_000_000


def save(harmonizer: HarmonizationMethod, folder: Path) -> str:
    """Write what a method learned as a bundle.

    The folder appears at once and complete. A complete bundle of the same method that is already there is
    kept: of several jobs that write the same one, the first wins, and all return its digest.

    Parameters
    ----------
    harmonizer
        The method to save.
    folder
        Folder to make; its parents are made too.

    Returns
    -------
    str
        Digest of the bundle that is in the folder afterwards.

    Raises
    ------
    ConfigurationError
        If the folder holds something else.
    """
    arrays, settings = harmonizer.state()
    return write(harmonizer.card, arrays, settings, folder)


def save_anew(harmonizer: HarmonizationMethod, folder: Path) -> str:
    """Write what a method learned as a bundle, in place of a bundle that is there; see :func:`save`."""
    folder = Path(folder)
    if folder.is_dir() and all(item.name in (TENSORS, CARD) for item in folder.iterdir()):
        remains = temporary_path(folder)
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, remains)
        shutil.rmtree(remains, ignore_errors=True)
    return save(harmonizer, folder)


def write(card: Card, arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any], folder: Path) -> str:
    """Write arrays and settings of a method as a bundle; see :func:`save`.

    Parameters
    ----------
    card
        Of the method.
    arrays, settings
        What :meth:`~bidsharm.harmonizers.contract.HarmonizationMethod.state` returns; settings hold JSON types only.
    folder
        Folder to make.
    """
    from safetensors.numpy import save as to_bytes

    folder = Path(folder)
    tensors = to_bytes({name: np.asarray(array, order='C') for name, array in arrays.items()})
    content = {
        'format': FORMAT,
        'name': card.name,
        'bidsharm': bidsharm.__version__,
        'card': card.to_dict(),
        'contrasts': list(settings.get('contrasts', [])),
        'settings': dict(settings),
        'tensors_sha256': hashlib.sha256(tensors).hexdigest(),
    }
    text = card_text(content)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder('.tmp', folder.parent, 0o777) as temporary:
        (temporary / TENSORS).write_bytes(tensors)
        (temporary / CARD).write_text(text, encoding='utf-8')
        _take_place(temporary, folder, card.name)
    return digest(folder)


def load(folder: Path, execution: Execution | None = None, *, name: str | None = None) -> Harmonizer:
    """Return the method for volumes that was saved, with what it had learned.

    Parameters
    ----------
    folder, execution, name
        As for :func:`load_any`.

    Raises
    ------
    ConfigurationError
        As :func:`load_any`, or if the bundle is of a method of another domain.
    """
    found = load_any(folder, execution, name=name)
    if not isinstance(found, Harmonizer):
        what, command = registry.ELSEWHERE[found.card.place]
        raise ConfigurationError(
            f'The bundle was made by "{found.card.name}", which {what}.',
            where=str(folder),
            fix=f'Use it with {command}.',
        )
    return found


def load_any(
    folder: Path, execution: Execution | None = None, *, name: str | None = None
) -> HarmonizationMethod:
    """Return the method of any domain that was saved, with what it had learned.

    Parameters
    ----------
    folder
        A bundle.
    execution
        Where and how it is going to run.
    name
        The method that is expected; any by default.

    Raises
    ------
    ConfigurationError
        If a file is missing, damaged or of another format, or the bundle is of another method.
    """
    folder = Path(folder)
    content, tensors = _read(folder)
    found = str(content['name'])
    if name is not None and found != name:
        raise ConfigurationError(
            f'The bundle was made by "{found}", not by "{name}".',
            where=str(folder),
            fix=f'Choose --harmonizer {found}, or another bundle.',
        )
    try:
        harmonizer = registry.find(found)(execution)
    except UsageError as error:
        raise ConfigurationError(
            f'The bundle needs the harmonizer "{found}", which is not installed.',
            where=str(folder),
            fix='Install the package that offers it.',
        ) from error
    arrays = _unpack(tensors, folder)
    try:
        harmonizer.restore(arrays, content['settings'])
    except ConfigurationError as error:
        raise ConfigurationError(error.what, where=str(folder), fix=error.fix) from error
    except Exception as error:  # whatever a method stumbles over in content that nobody has checked
        raise _damaged(folder, f'its content does not fit "{found}" ({error})') from error
    restored = {key: (array.shape, array.dtype) for key, array in harmonizer.state()[0].items()}
    stored = {key: (array.shape, array.dtype) for key, array in arrays.items()}
    if restored != stored:
        changed = sorted(
            key for key in restored.keys() | stored.keys() if restored.get(key) != stored.get(key)
        )
        raise _damaged(folder, f'"{found}" does not take these arrays as they are: {", ".join(changed)}')
    return harmonizer


def digest(folder: Path) -> str:
    """Return the sha256 over both files of a bundle, after checking that they belong together.

    Raises
    ------
    ConfigurationError
        If the bundle is not whole.
    """
    return digest_of(*read_parts(folder))


def digest_of(card: bytes, tensors: bytes) -> str:
    """Return the sha256 over the content of both files."""
    total = hashlib.sha256(card)
    total.update(tensors)
    return total.hexdigest()


def card_text(content: Mapping[str, Any]) -> str:
    """Return the text of ``card.json``; equal content gives equal text."""
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + '\n'


def read_parts(folder: Path) -> tuple[bytes, bytes]:
    """Return the content of ``card.json`` and ``model.safetensors`` of a whole bundle; errors as :func:`digest`."""
    folder = Path(folder)
    _, tensors = _read(folder)
    return _content(folder, CARD, MAX_TEXT), tensors


def read_card(folder: Path) -> dict[str, Any]:
    """Return the content of ``card.json`` of a whole bundle; errors as :func:`digest`."""
    return _read(Path(folder))[0]


def read_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a whole bundle by name; errors as :func:`digest`."""
    return _unpack(_read(Path(folder))[1], Path(folder))


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return the card's content and the bytes of the tensors, verified against each other."""
    try:
        text = _content(folder, CARD, MAX_TEXT).decode('utf-8')
        tensors = _content(folder, TENSORS, MAX_TENSORS)
    except UnicodeDecodeError as error:
        raise _damaged(folder, f'{CARD} is not text') from error
    except OSError as error:
        raise ConfigurationError(
            f'This is no model bundle: {CARD} or {TENSORS} cannot be read ({error.strerror}).',
            where=str(folder),
            fix='Give the folder of a bundle, with both files.',
        ) from error
    try:
        content = parse_json(text)
    except ValueError as error:
        raise _damaged(folder, f'{CARD} is not JSON') from error
    if not isinstance(content, dict) or 'format' not in content:
        raise _damaged(folder, f'{CARD} does not say its format')
    if content['format'] != FORMAT:
        raise ConfigurationError(
            f'The bundle has format {content["format"]!r}; this version of bidsharm reads {FORMAT}.',
            where=str(folder),
            fix='Use the version of bidsharm that made it, or fit the method again.',
        )
    if not isinstance(content.get('settings'), dict) or not isinstance(content.get('name'), str):
        raise _damaged(folder, f'{CARD} has no name or no settings')
    if hashlib.sha256(tensors).hexdigest() != content.get('tensors_sha256'):
        raise _damaged(folder, f'{TENSORS} is not the file that {CARD} describes')
    return content, tensors


def _content(folder: Path, name: str, most: int) -> bytes:
    """Return the content of a file of a bundle, which may lie nowhere else."""
    if leads_out(folder / name, folder):
        raise ConfigurationError(
            f'{name} is a link that leads out of the bundle.',
            where=str(folder),
            fix='Copy the file into the folder.',
        )
    return read_bytes(folder / name, most)


def _unpack(tensors: bytes, folder: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        # The arrays are read-only views of the bytes otherwise.
        arrays = {name: np.array(array) for name, array in from_bytes(tensors).items()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # numpy lacks some types
        raise _damaged(folder, f'{TENSORS} cannot be read ({error})') from error
    for name, array in arrays.items():
        if array.dtype.kind == 'f' and not np.isfinite(array).all():
            raise _damaged(folder, f'"{name}" holds what is no number')
    return arrays


def _damaged(folder: Path, how: str) -> ConfigurationError:
    return ConfigurationError(
        f'The bundle is damaged: {how}.',
        where=str(folder),
        fix='Copy it again from its source, or fit again.',
    )


def _take_place(temporary: Path, folder: Path, name: str) -> None:
    """Give the finished bundle its name; keep a whole one of the same method, replace remains of one."""
    try:
        # Onto nothing or an empty folder this succeeds; onto anything else it fails and changes nothing.
        os.replace(temporary, folder)
        return
    except OSError:
        if not folder.exists():
            raise
    if not folder.is_dir() or any(item.name not in (TENSORS, CARD) for item in folder.iterdir()):
        raise ConfigurationError(
            'There is something else in the place of the bundle.',
            where=str(folder),
            fix='Choose another folder.',
        )
    try:
        found = str(_read(folder)[0]['name'])
    except ConfigurationError:
        remains = temporary_path(folder)
        with contextlib.suppress(FileNotFoundError):  # another job was faster to move them away
            os.replace(folder, remains)
        shutil.rmtree(remains, ignore_errors=True)
        _take_place(temporary, folder, name)
        return
    if found != name:
        raise ConfigurationError(
            f'There is a bundle of "{found}" in this place.', where=str(folder), fix='Choose another folder.'
        )
