"""Files with any header and any voxels, and what must hold for each of them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from bidsharm.errors import ScanError
from bidsharm.imaging import grids

#: Types of voxels that NIfTI knows, and two that it does not.
TYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 7, -3)
_SHORT = st.integers(-32768, 32767)
_FLOAT = st.floats(width=32) | st.sampled_from(
    [0.0, 1.0, -1.0, 1e-3, 2.5, float('nan'), float('inf'), 3e38, 1e-40]
)
_ROW = st.lists(_FLOAT, min_size=4, max_size=4)
_SIZE = st.integers(1, 24) | _SHORT
#: Values that a field of the header may be changed to.
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    'dim': st.tuples(st.integers(-1, 9) | _SHORT, *[_SIZE] * 7).map(list),
    'pixdim': st.lists(_FLOAT, min_size=8, max_size=8),
    'datatype': st.sampled_from(TYPES),
    'bitpix': _SHORT,
    'scl_slope': _FLOAT,
    'scl_inter': _FLOAT,
    'vox_offset': st.sampled_from([0, 348, 352, 353, 544, 1000, 10**7, -5]),
    'sform_code': _SHORT,
    'qform_code': _SHORT,
    'quatern_b': _FLOAT,
    'quatern_c': _FLOAT,
    'quatern_d': _FLOAT,
    'qoffset_x': _FLOAT,
    'srow_x': _ROW,
    'srow_y': _ROW,
    'srow_z': _ROW,
    'xyzt_units': st.integers(0, 255),
    'magic': st.sampled_from([b'n+1', b'ni1', b'n+2', b'', b'abc']),
    'sizeof_hdr': st.sampled_from([348, 540, 0, -1]),
}  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw the ending and the content of a file: a good scan, of which up to three fields of the header are changed."""
    kind = draw(st.sampled_from([nib.Nifti1Header, nib.Nifti1Header, nib.Nifti2Header]))
    header = kind(endianness=draw(st.sampled_from('<>')))
    shapes = [st.tuples(*[st.integers(8, 14)] * 3)] * 5 + [st.tuples(*[st.integers(1, 14)] * 4)]
    shape = draw(st.sampled_from(shapes).flatmap(lambda strategy: strategy))
    code = draw(st.sampled_from([2, 4, 8, 16, 64, 256, 512, 768]))
    header.set_data_dtype(nib.nifti1.data_type_codes.dtype[code])
    header.set_data_shape(shape)
    dtype = header.get_data_dtype()
    size = int(np.prod(shape)) * dtype.itemsize
    header.set_sform(draw(_affines()), code=draw(st.integers(0, 4)))
    header['vox_offset'] = header.single_vox_offset
    header['magic'] = header.single_magic
    for name in draw(st.lists(st.sampled_from(sorted(_FIELDS)), max_size=3, unique=True)):
        try:
            header[name] = draw(_FIELDS[name])
        except OverflowError:  # NIfTI-2 and NIfTI-1 hold other numbers
            continue
    body = draw(_bodies(size, dtype))
    content = header.binaryblock + bytes(4) + body[: draw(st.sampled_from([*[size] * 8, size // 2, 0]))]
    zipped = draw(st.booleans())
    return ('.nii.gz', gzip.compress(content, 1)) if zipped else ('.nii', content)


@st.composite
def _bodies(draw: st.DrawFn, size: int, dtype: np.dtype) -> bytes:
    """Draw the bytes of the voxels: mostly small whole numbers, else any bytes, or one byte over and over."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    how = draw(st.sampled_from(['numbers'] * 6 + ['bytes', 'bytes', 'constant']))
    if how == 'numbers':
        return rng.integers(0, 120, size // dtype.itemsize).astype(dtype).tobytes()
    return rng.bytes(size) if how == 'bytes' else bytes([draw(st.integers(0, 255))]) * size


@st.composite
def _affines(draw: st.DrawFn) -> np.ndarray:
    """Draw an affine: any order, flips and sizes of axes, sometimes a shear."""
    order = draw(st.permutations(range(3)))
    sizes = draw(
        st.lists(
            st.sampled_from([0.8, 1.0, 2.5, 6.0, -0.3, -1.0, -2.5, -11.0, *[1.0] * 8, 0.1, -20.0]),
            min_size=3,
            max_size=3,
        )
    )
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * sizes
    affine[0, 1] += draw(st.sampled_from([*[0.0] * 6, 0.02, 0.5]))
    affine[:3, 3] = draw(st.lists(st.floats(-300, 300, width=32), min_size=3, max_size=3))
    return affine


def check(path: Path) -> str:
    """Read a file and put it back: all is exact, or it is refused in words; returns ``done`` or ``refused``.

    Raises
    ------
    AssertionError
        If neither holds; whatever else ``conform`` raises comes through.
    """
    before = path.read_bytes()
    result: grids.Conformed | ScanError
    try:
        result = grids.conform(path)
    except ScanError as error:
        result = error
    assert path.read_bytes() == before, 'the file changed'
    if isinstance(result, ScanError):
        assert result.what.strip(), 'refused without a word'
        assert result.where == path.name, f'refused at {result.where!r}'
        return 'refused'
    image, raw = result.image, nib.load(path)
    data = np.asarray(image.dataobj)
    assert data.dtype == np.float32
    assert data.ndim == 3
    assert np.isfinite(data).all()
    assert aff2axcodes(image.affine) == ('R', 'A', 'S')
    back = grids.to_native(image, raw)
    with np.errstate(all='ignore'):
        expected = np.asarray(raw.dataobj, dtype=np.float32).reshape(raw.shape[:3])
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.where(np.isfinite(expected), expected, 0))
    np.testing.assert_allclose(back.affine, raw.affine, rtol=1e-5, atol=1e-5)
    return 'done'
