"""What a header asks a reader to do before the first voxel: refused where it would fill the memory or never end."""

from __future__ import annotations

import gzip
import itertools
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import nibabel as nib
import numpy as np

from bidsharm.files import open_regular

#: Voxels begin at most so many bytes after the start of a file, and there are at most so many extensions before them.
MAX_OFFSET, MAX_EXTENSIONS = 32_000_000, 1000
_LONGEST = 540
#: gzip makes nothing smaller than by this factor (zlib's manual).
MAX_RATIO = 1040


def refuse_bomb(path: Path) -> None:
    """Refuse what is no regular file, and a NIfTI whose header announces extensions that no scan has.

    nibabel reads extensions into memory when it opens a file, as large as they say they are.

    Raises
    ------
    OSError, ValueError
        With a reason in words.
    """
    with open_regular(path) as raw:
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.name.endswith('.gz') else raw
        try:
            _check(file)
        except (OSError, EOFError, zlib.error):
            return  # cut off, or not compressed: nibabel says so


def _check(file: BinaryIO) -> None:
    start = file.read(_LONGEST)
    kinds = (nib.Nifti1Header, nib.Nifti2Header)
    kind = next((kind for kind in kinds if kind.may_contain_header(start)), None)
    if kind is None:
        return
    length = kind.template_dtype.itemsize
    header = kind(start[:length], check=False)
    offset = float(header['vox_offset'])
    if not 0 <= offset <= MAX_OFFSET:
        raise ValueError(f'its header puts the voxels {offset:g} bytes after its start')
    _check_extensions(file, header, length, offset or np.inf)


def _check_extensions(file: BinaryIO, header: Any, length: int, end: float) -> None:
    file.seek(length)
    if file.read(4)[:1] in (b'', b'\0'):
        return
    order: Literal['little', 'big'] = 'little' if header.endianness == '<' else 'big'
    place = length + 4
    for count in itertools.count(1):
        described = file.read(8)
        size = int.from_bytes(described[:4], order, signed=True)
        if place + 16 > end or len(described) < 8 or size < 8:
            return
        place += size
        if place > MAX_OFFSET or count > MAX_EXTENSIONS:
            raise ValueError('its header announces more extensions than any scan has')
        file.seek(place)


def is_too_short(image: nib.spatialimages.SpatialImage) -> bool:
    """Say whether a file cannot hold the voxels that its header promises, before memory is asked for them."""
    voxels, file = cast(Any, image.dataobj), image.get_filename()
    if not file or not nib.is_proxy(voxels) or not hasattr(voxels, 'offset'):
        return False
    promised = voxels.offset + float(np.prod(voxels.shape, dtype=float)) * voxels.dtype.itemsize
    room = {'.nii': 1, '.img': 1, '.gz': MAX_RATIO}.get(Path(file).suffix, np.inf)
    return bool(promised > os.path.getsize(file) * room)
