"""Every way in which a header or a file can be odd, and that voxels come back where they were."""

from __future__ import annotations

import gzip
import hashlib
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from bidsharm.errors import ScanError
from bidsharm.imaging import grids

#: All ways to order and flip three axes.
ORIENTATIONS = [
    np.column_stack([order, flips])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
SHAPE = (9, 11, 13)


def voxels(shape: tuple[int, ...] = SHAPE, dtype: type = np.int16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 120, shape).astype(dtype)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_same_places(raw: nib.Nifti1Image, conformed: nib.Nifti1Image, world_of) -> None:
    """Every raw voxel must be found at its own world coordinates in the conformed image."""
    data = np.asarray(raw.dataobj).reshape(raw.shape[:3])
    points = world_of(raw.affine, data.shape)
    inverse = np.linalg.inv(conformed.affine)
    places = np.tensordot(inverse[:3, :3], points, axes=1) + inverse[:3, 3].reshape(3, 1, 1, 1)
    index = np.round(places).astype(int)
    assert np.abs(places - index).max() < 1e-3
    np.testing.assert_array_equal(np.asarray(conformed.dataobj)[tuple(index)], data)


def check_round_trip(
    raw: nib.Nifti1Image, conformed: nib.Nifti1Image, rounding: float = 0.0
) -> nib.Nifti1Image:
    given = raw.affine.copy()
    back = grids.to_native(conformed, raw)
    assert back.shape == raw.shape[:3]
    np.testing.assert_array_equal(raw.affine, given)
    np.testing.assert_allclose(back.affine, raw.affine, rtol=rounding, atol=rounding)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(raw.dataobj).reshape(raw.shape[:3]))
    return back


def refused(path: Path, *words: str) -> ScanError:
    """Conform a file that must be refused; the error says where, by the file's name alone, and why."""
    with pytest.raises(ScanError) as caught:
        grids.conform(path)
    error = caught.value
    assert error.where == path.name
    assert str(path.parent) not in str(error)
    for word in words:
        assert word in str(error), str(error)
    return error


# Axis orders


@pytest.mark.parametrize('turned', [False, True], ids=['straight', 'oblique'])
@pytest.mark.parametrize('number', range(48))
def test_every_orientation_comes_back_exactly(number, turned, tmp_path, write_image, world_of, make_affine):
    sizes = (0.9, 1.1, 2.5)
    base = make_affine((11.0, -23.0, 17.0) if turned else (0.0, 0.0, 0.0), sizes)
    canonical = voxels()
    # An image whose axes run in this order: built from the canonical one, whose truth is known.
    orientation = ORIENTATIONS[number]
    data = apply_orientation(canonical, orientation)
    path = write_image(tmp_path / 'scan.nii', data, base @ inv_ornt_aff(orientation, canonical.shape))
    raw = nib.load(path)
    result = grids.conform(path)
    assert not result.warnings
    assert aff2axcodes(result.image.affine) == ('R', 'A', 'S')
    assert result.image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(result.image.dataobj), canonical)
    np.testing.assert_allclose(result.image.affine, base, atol=1e-4)
    check_same_places(raw, result.image, world_of)
    check_round_trip(raw, result.image)


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180, width=32)] * 3),
    sizes=st.tuples(*[st.sampled_from([0.5, 0.9375, 1.0, 3.3])] * 3),
    flip=st.booleans(),
)
def test_any_rotation_comes_back_exactly(
    angles, sizes, flip, tmp_path_factory, write_image, world_of, make_affine
):
    affine = make_affine(angles, sizes)
    if flip:
        affine[:, 0] *= -1
    path = write_image(tmp_path_factory.mktemp('turned') / 'scan.nii', voxels(), affine)
    raw = nib.load(path)
    result = grids.conform(path)
    check_same_places(raw, result.image, world_of)
    check_round_trip(raw, result.image)


@pytest.mark.parametrize('angle', [45.0, -45.0, 135.0, 225.0])
@pytest.mark.parametrize('axis', 'xyz')
def test_halfway_between_two_axes(angle, axis, tmp_path, write_image, world_of, make_affine):
    """At 45 degrees rounding decides which axis is nearest; both ways must decide alike."""
    affine = make_affine((0.0, 0.0, 0.0), (1.0, 1.2, 0.8))
    affine[:3, :3] = Rotation.from_euler(axis, angle, degrees=True).as_matrix() @ affine[:3, :3]
    path = write_image(tmp_path / 'scan.nii', voxels(), affine)
    raw = nib.load(path)
    result = grids.conform(path)
    check_same_places(raw, result.image, world_of)
    check_round_trip(raw, result.image)


def test_a_crop_comes_back_to_its_place(tmp_path, write_image, make_affine):
    orientation = ORIENTATIONS[29]
    canonical = voxels((20, 24, 28))
    affine = make_affine((5.0, 8.0, -30.0), (1.0, 1.0, 1.5)) @ inv_ornt_aff(orientation, canonical.shape)
    path = write_image(tmp_path / 'scan.nii.gz', apply_orientation(canonical, orientation), affine)
    raw = nib.load(path)
    image = grids.conform(path).image
    box = (slice(3, 15), slice(0, 20), slice(9, 28))
    cut = np.asarray(image.dataobj)[box]
    back = grids.to_native(grids.make_image(cut, grids.crop_affine(image.affine, box)), raw)
    expected = np.zeros_like(canonical)
    expected[box] = canonical[box]
    np.testing.assert_array_equal(np.asarray(back.dataobj), apply_orientation(expected, orientation))
    np.testing.assert_array_equal(back.affine, raw.affine)


def test_a_four_dimensional_result_comes_back(tmp_path, write_image):
    orientation = ORIENTATIONS[13]
    stack = np.stack([voxels(seed=seed) for seed in range(3)], axis=-1).astype(np.float32)
    affine = np.eye(4) @ inv_ornt_aff(orientation, SHAPE)
    path = write_image(tmp_path / 'scan.nii', apply_orientation(stack[..., 0], orientation), affine)
    raw = nib.load(path)
    image = grids.conform(path).image
    back = grids.to_native(nib.Nifti1Image(stack, image.affine), raw)
    for index in range(3):
        np.testing.assert_array_equal(
            np.asarray(back.dataobj)[..., index], apply_orientation(stack[..., index], orientation)
        )


@pytest.mark.parametrize('shift', [(0.5, 0.0, 0.0), (-3.0, 0.0, 0.0), (0.0, 5.0, 0.0)])
def test_a_result_that_does_not_lie_on_the_voxels_is_refused(shift, tmp_path, write_image):
    path = write_image(tmp_path / 'scan.nii', voxels())
    image = grids.conform(path).image
    moved = image.affine.copy()
    moved[:3, 3] += shift
    with pytest.raises(ValueError, match='does not lie on the voxels'):
        grids.to_native(grids.make_image(np.asarray(image.dataobj), moved), nib.load(path))


def test_codes_of_the_raw_header_are_kept(tmp_path, write_image):
    path = write_image(tmp_path / 'scan.nii', voxels(), sform=2, qform=3)
    back = grids.to_native(grids.conform(path).image, nib.load(path))
    assert int(back.header['sform_code']) == 2
    assert int(back.header['qform_code']) == 3


# Kinds of voxels


@pytest.mark.parametrize('dtype', [np.int16, np.uint8, np.float64, np.float32, np.int32, np.uint16])
@pytest.mark.parametrize('order', ['<', '>'], ids=['little', 'big'])
@pytest.mark.parametrize('ending', ['nii', 'nii.gz'])
def test_types_and_byte_orders(dtype, order, ending, tmp_path):
    data = voxels(dtype=dtype)
    path = tmp_path / f'scan.{ending}'
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    nib.Nifti1Image(data, np.eye(4), header).to_filename(path)
    assert nib.load(path).header.endianness == order
    before = sha(path)
    image = grids.conform(path).image
    np.testing.assert_array_equal(np.asarray(image.dataobj), data.astype(np.float32))
    assert sha(path) == before


def test_scaled_integers(tmp_path):
    values = np.linspace(-0.25, 1.75, np.prod(SHAPE)).reshape(SHAPE)
    image = nib.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.int16)
    image.to_filename(tmp_path / 'scan.nii.gz')
    stored = nib.load(tmp_path / 'scan.nii.gz')
    assert stored.dataobj.slope not in (0, 1)
    np.testing.assert_allclose(grids.conform(tmp_path / 'scan.nii.gz').image.get_fdata(), values, atol=1e-4)


@pytest.mark.parametrize('trailing', [(1,), (1, 1)])
def test_trailing_single_axes_are_dropped(trailing, tmp_path, write_image, world_of):
    path = write_image(tmp_path / 'scan.nii.gz', voxels((*SHAPE, *trailing)), np.diag([-1, 2, 1.5, 1]))
    raw = nib.load(path)
    image = grids.conform(path).image
    assert image.shape == SHAPE
    check_same_places(raw, image, world_of)
    check_round_trip(raw, image)


@pytest.mark.parametrize('shape', [(*SHAPE, 2), (*SHAPE, 1, 3), (9, 11)])
def test_what_is_not_one_volume_is_refused(shape, tmp_path, write_image):
    error = refused(write_image(tmp_path / 'bold.nii.gz', voxels(shape)), 'shape', 'one 3-D volume')
    assert error.fix


@pytest.mark.parametrize('shape', [(40, 40, 1), (40, 7, 40)])
def test_a_slice_is_no_head(shape, tmp_path, write_image):
    refused(write_image(tmp_path / 'slice.nii', voxels(shape)), 'not plausible', str(shape))


def test_an_impossible_number_of_voxels_is_refused_before_they_are_read(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((3000, 3000, 3000))
    header.set_data_dtype(np.uint8)
    header['magic'], header['vox_offset'] = b'n+1', 352
    (tmp_path / 'huge.nii').write_bytes(header.binaryblock + bytes(1000))
    refused(tmp_path / 'huge.nii', 'not plausible')


def test_colour_and_complex_are_refused(tmp_path):
    colour = np.zeros(SHAPE, dtype=[('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
    nib.Nifti1Image(colour, np.eye(4)).to_filename(tmp_path / 'rgb.nii.gz')
    refused(tmp_path / 'rgb.nii.gz', 'colour')
    nib.Nifti1Image(voxels().astype(np.complex64), np.eye(4)).to_filename(tmp_path / 'complex.nii.gz')
    refused(tmp_path / 'complex.nii.gz', 'complex')


@pytest.mark.parametrize('ending', ['nii', 'nii.gz'])
def test_voxels_that_are_not_numbers_become_zero(ending, tmp_path, write_image):
    data = voxels(dtype=np.float32)
    data[0, 0, 0], data[3, 4, 5], data[8, 10, 12] = np.nan, np.inf, -np.inf
    path = write_image(tmp_path / f'scan.{ending}', data)
    before = sha(path)
    result = grids.conform(path)
    assert any('3 voxels' in text and 'NaN' in text for text in result.warnings)
    np.testing.assert_array_equal(
        np.asarray(result.image.dataobj), np.nan_to_num(data, nan=0, posinf=0, neginf=0)
    )
    assert sha(path) == before  # an uncompressed file is mapped into memory, and must not change with it


def test_mostly_not_numbers_is_refused(tmp_path, write_image):
    data = voxels(dtype=np.float32)
    data[:6] = np.nan
    refused(write_image(tmp_path / 'nan.nii', data), 'NaN', '67%')


@pytest.mark.parametrize('value', [0, 7, np.nan])
def test_a_picture_of_nothing_is_refused(value, tmp_path, write_image):
    data = np.full(SHAPE, value, dtype=np.float32)
    refused(write_image(tmp_path / 'flat.nii', data), 'NaN' if np.isnan(value) else f'All voxels are {value}')


def test_zeros_and_nan_are_a_picture_of_nothing_too(tmp_path, write_image):
    data = np.zeros(SHAPE, dtype=np.float32)
    data[:3] = np.nan
    refused(write_image(tmp_path / 'flat.nii', data), 'All voxels are 0')


# Headers


def broken_affine(kind: str) -> np.ndarray:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    if kind == 'zero':
        affine[:3, :3] = 0
    elif kind == 'singular':
        affine[:3, 1] = affine[:3, 0]
    elif kind == 'nan':
        affine[1, 1] = np.nan
    return affine


@pytest.mark.parametrize('kind', ['zero', 'singular', 'nan'])
def test_an_affine_that_says_nothing_is_refused(kind, tmp_path):
    image = nib.Nifti1Image(voxels(), np.eye(4))
    image.header.set_sform(broken_affine(kind), code=1)
    image.header.set_qform(None, code=0)
    path = tmp_path / 'scan.nii'
    path.write_bytes(image.header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order='F'))
    raw = path.read_bytes()
    # nibabel refuses to write such a header through an image, so it is written by hand.
    header = nib.Nifti1Header(raw[:348])
    header['vox_offset'], header['magic'] = 352, b'n+1'
    path.write_bytes(header.binaryblock + raw[348:])
    error = refused(path, 'affine', 'left')
    assert 'dcm2niix' in error.fix


def test_sheared_axes_are_refused(tmp_path, write_image):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    error = refused(write_image(tmp_path / 'scan.nii', voxels(), affine), 'right angles', '0.20')
    assert 'Resample' in error.fix


def test_slightly_sheared_axes_are_straightened_and_the_result_comes_back(tmp_path, write_image):
    """A whole scan and a crop of it must find their raw voxels though the affine was mended."""
    affine = np.eye(4)
    affine[0, 1] = 0.02
    affine[:3, 3] = (-40, 10, 20)
    data = voxels((60, 64, 40))
    path = write_image(tmp_path / 'scan.nii', data, affine, qform=0)
    raw = nib.load(path)
    result = grids.conform(path)
    assert any('straightened' in text for text in result.warnings)
    directions = result.image.affine[:3, :3] / grids.voxel_sizes(result.image.affine)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    check_round_trip(raw, result.image)
    box = (slice(20, 50), slice(30, 60), slice(10, 38))
    cut = grids.make_image(data[box], grids.crop_affine(result.image.affine, box))
    expected = np.zeros_like(data)
    expected[box] = data[box]
    back = grids.to_native(cut, raw)
    np.testing.assert_array_equal(np.asarray(back.dataobj), expected)
    np.testing.assert_array_equal(back.affine, raw.affine)


@pytest.mark.parametrize('size', [0.05, 20.0])
def test_implausible_voxel_sizes_are_refused(size, tmp_path, write_image):
    refused(
        write_image(tmp_path / 'scan.nii', voxels(), np.diag([1, 1, size, 1])), 'not plausible', str(size)
    )


@pytest.mark.parametrize(('units', 'factor'), [('meter', 1e-3), ('micron', 1e3)])
@pytest.mark.parametrize('size', [0.8, 1.0, 2.0])
def test_other_units_are_converted(units, factor, size, tmp_path, write_image):
    """Sizes count in mm inside; the result goes back to the scan's own grid in the scan's own units."""
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = (-10, 20, 30)
    affine[:3] *= factor
    path = write_image(tmp_path / 'scan.nii', voxels(), affine, units=units)
    raw = nib.load(path)
    result = grids.conform(path)
    assert any(units in text for text in result.warnings)
    np.testing.assert_allclose(grids.voxel_sizes(result.image.affine), size, rtol=1e-5)
    np.testing.assert_allclose(result.image.affine[:3, 3], (-10, 20, 30), rtol=1e-5)
    back = check_round_trip(raw, result.image)
    assert back.header.get_xyzt_units()[0] == units


def test_wrong_units_of_plausible_sizes_are_not_believed(tmp_path, write_image):
    path = write_image(tmp_path / 'scan.nii', voxels(), units='meter')
    np.testing.assert_allclose(grids.voxel_sizes(grids.conform(path).image.affine), 1)


def test_neither_sform_nor_qform_is_a_warning(tmp_path, write_image):
    path = write_image(tmp_path / 'scan.nii', voxels(), sform=0, qform=0)
    assert any('neither' in text for text in grids.conform(path).warnings)


def test_a_qform_that_is_no_rotation_costs_a_warning_only(tmp_path):
    """Other software rounds quaternions; nibabel refuses those longer than one."""
    image = nib.Nifti1Image(voxels(), np.eye(4))
    image.set_sform(np.eye(4), code=1)
    image.header['qform_code'] = 1
    image.header['quatern_b'], image.header['quatern_c'], image.header['quatern_d'] = 1.0, 0.002, 0.0
    image.to_filename(tmp_path / 'scan.nii')
    result = grids.conform(tmp_path / 'scan.nii')
    assert any('qform is not a rotation' in text for text in result.warnings)
    np.testing.assert_allclose(result.image.affine, np.eye(4))
    grids.to_native(result.image, nib.load(tmp_path / 'scan.nii'))


def test_sform_counts_where_the_two_differ(tmp_path):
    image = nib.Nifti1Image(voxels(), np.eye(4))
    image.set_sform(np.diag([2.0, 2, 2, 1]), code=1)
    image.set_qform(np.diag([1.0, 1, 1, 1]), code=1)
    image.to_filename(tmp_path / 'scan.nii')
    result = grids.conform(tmp_path / 'scan.nii')
    assert any('sform and qform differ' in text for text in result.warnings)
    np.testing.assert_allclose(grids.voxel_sizes(result.image.affine), 2)


def test_qform_alone_counts(tmp_path, write_image, make_affine, world_of):
    affine = make_affine((10.0, 20.0, 30.0), (1.0, 1.5, 2.0))
    path = write_image(tmp_path / 'scan.nii', voxels(), affine, sform=0)
    raw = nib.load(path)
    result = grids.conform(path)
    np.testing.assert_allclose(raw.affine, affine, atol=1e-4)
    check_same_places(raw, result.image, world_of)
    check_round_trip(raw, result.image, rounding=1e-6)  # an sform holds 32 bits, a qform gives 64


# Files


@pytest.mark.parametrize('share', [0.05, 0.5, 0.95])
def test_a_file_that_was_cut_off(share, tmp_path, write_image):
    noise = np.random.default_rng(0).integers(0, 4000, (30, 30, 30)).astype(np.int16)
    whole = write_image(tmp_path / 'whole.nii.gz', noise).read_bytes()
    path = tmp_path / 'cut.nii.gz'
    path.write_bytes(whole[: int(share * len(whole))])
    error = refused(path)
    if share > 0.1:
        assert 'cut off' in error.what
        assert error.fix


def test_uncompressed_and_cut_off(tmp_path, write_image):
    path = write_image(tmp_path / 'scan.nii', voxels((30, 30, 30)))
    path.write_bytes(path.read_bytes()[:20_000])
    assert refused(path, 'cut off').fix


def test_damage_inside_the_compressed_stream(tmp_path, write_image):
    noise = np.random.default_rng(0).integers(0, 4000, (30, 30, 30)).astype(np.int16)
    path = write_image(tmp_path / 'scan.nii.gz', noise)
    content = bytearray(path.read_bytes())
    for index in range(len(content) // 2, len(content) // 2 + 400):
        content[index] ^= 0xFF
    path.write_bytes(bytes(content))
    refused(path)


@pytest.mark.parametrize(
    'content', [b'', b'this is a text\n' * 40, gzip.compress(b'this is a text\n' * 40), bytes(400)],
    ids=['empty', 'text', 'zipped-text', 'zeros'],
)  # fmt: skip
@pytest.mark.parametrize('name', ['scan.nii.gz', 'scan.nii'])
def test_files_that_are_no_images(content, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, 'not a readable image')
    assert path.read_bytes() == content


def test_a_missing_file(tmp_path):
    refused(tmp_path / 'scan.nii.gz', 'does not exist')


def test_a_link_that_leads_nowhere(tmp_path):
    """As DataLad leaves files whose content was not fetched."""
    path = tmp_path / 'scan.nii.gz'
    path.symlink_to('../.git/annex/objects/none')
    assert 'datalad get' in refused(path, 'leads nowhere').fix


def test_a_link_that_leads_somewhere(tmp_path, write_image):
    target = write_image(tmp_path / 'annex' / 'MD5E-1.nii.gz', voxels())
    path = tmp_path / 'scan.nii.gz'
    path.symlink_to(target)
    np.testing.assert_array_equal(np.asarray(grids.conform(path).image.dataobj), voxels())


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / 'scan.nii.gz').mkdir()
    refused(tmp_path / 'scan.nii.gz', 'not a readable image')


# Boxes, crops, coarser copies, other grids


def test_bounding_box_is_the_smallest_and_stays_inside():
    mask = np.zeros((10, 12, 14), dtype=bool)
    mask[2, 5, 0] = mask[7, 6, 3] = True
    assert grids.bounding_box(mask) == (slice(2, 8), slice(5, 7), slice(0, 4))
    assert grids.bounding_box(mask, (1, 2, 3)) == (slice(1, 9), slice(3, 9), slice(0, 7))
    assert grids.bounding_box(mask, 99) == (slice(0, 10), slice(0, 12), slice(0, 14))
    with pytest.raises(ValueError, match='empty'):
        grids.bounding_box(np.zeros((3, 3, 3), dtype=bool))


#: Grids that any head could have.
AFFINES = st.builds(
    lambda angles, sizes: (angles, sizes),
    st.tuples(*[st.floats(-60, 60)] * 3),
    st.tuples(*[st.floats(0.7, 3.0)] * 3),
)


@settings(max_examples=25, deadline=None)
@given(grid=AFFINES, start=st.tuples(*[st.integers(0, 6)] * 3), size=st.tuples(*[st.integers(1, 8)] * 3))
def test_a_crop_keeps_its_place_in_the_world(grid, start, size, make_affine, world_of):
    affine = make_affine(*grid)
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    points = world_of(affine, (14, 14, 14))
    np.testing.assert_allclose(
        world_of(grids.crop_affine(affine, box), size), points[(slice(None), *box)], atol=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(grid=AFFINES, other=AFFINES)
def test_resampling_keeps_world_coordinates(grid, other, make_affine, world_of):
    """A picture that is linear in the world is the same on every grid."""
    slope = np.array([0.7, -1.3, 2.1])
    affine, onto = make_affine(*grid), make_affine(*other)
    shape = (24, 26, 28)
    data = np.tensordot(slope, world_of(affine, shape), axes=1)
    # The other grid turns about the middle of the first one, so that the two overlap.
    middle = affine @ [11.5, 12.5, 13.5, 1]
    onto[:3, 3] = middle[:3] - onto[:3, :3] @ np.full(3, 4.5)
    points = world_of(onto, (10, 10, 10))
    inverse = np.linalg.inv(affine)
    places = np.tensordot(inverse[:3, :3], points, axes=1) + inverse[:3, 3].reshape(3, 1, 1, 1)
    inside = ((places >= 0) & (places <= np.reshape(shape, (3, 1, 1, 1)) - 1)).all(axis=0)
    assert inside.any()
    result = grids.resample(data, affine, (10, 10, 10), onto)
    expected = np.tensordot(slope, points, axes=1)
    np.testing.assert_allclose(result[inside], expected[inside], atol=1e-3)
    outside = (places < -1) | (places > np.reshape(shape, (3, 1, 1, 1)))
    assert not result[outside.any(axis=0)].any()


def test_resampling_labels_keeps_them(make_affine):
    labels = np.random.default_rng(1).choice([0, 2, 41], (20, 20, 20))
    result = grids.resample(labels, np.eye(4), (20, 20, 20), make_affine((10, 0, 5), (1, 1, 1)), order=0)
    assert set(np.unique(result)) <= {0, 2, 41}


def test_outside_may_be_the_nearest_value():
    data = np.full((5, 5, 5), 3.0)
    far = np.eye(4)
    far[0, 3] = 50
    assert (grids.resample(data, np.eye(4), (5, 5, 5), far, mode='nearest') == 3).all()
    assert not grids.resample(data, np.eye(4), (5, 5, 5), far).any()


@settings(max_examples=25, deadline=None)
@given(grid=AFFINES, size_mm=st.sampled_from([1.5, 2.0, 4.0]))
def test_a_coarse_copy_keeps_world_coordinates(grid, size_mm, make_affine, world_of):
    affine = make_affine(*grid)
    shape = (31, 34, 37)
    slope = np.array([0.7, -1.3, 2.1])
    data = np.tensordot(slope, world_of(affine, shape), axes=1).astype(np.float32)
    small, coarse = grids.shrink(data, affine, size_mm)
    sizes = grids.voxel_sizes(affine)
    np.testing.assert_allclose(grids.voxel_sizes(coarse), np.maximum(sizes, size_mm), rtol=1e-6)
    # The field of view is that of the scan: it starts at the same corner, and ends there to one voxel.
    corner = [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(coarse @ corner, affine @ corner, atol=1e-6)
    np.testing.assert_allclose(
        np.array(small.shape) * grids.voxel_sizes(coarse), np.array(shape) * sizes, atol=size_mm
    )
    expected = np.tensordot(slope, world_of(coarse, small.shape), axes=1)
    inner = tuple(slice(3, n - 3) for n in small.shape)  # at the rim the filter sees the end of the volume
    np.testing.assert_allclose(small[inner], expected[inner], atol=5e-3 * float(np.ptp(data)) / 100)


def test_a_coarse_copy_suppresses_what_it_cannot_hold():
    checkers = (np.indices((32, 32, 32)).sum(axis=0) % 2).astype(float)
    small, _ = grids.shrink(checkers, np.eye(4), 4.0)
    np.testing.assert_allclose(small, 0.5, atol=0.01)


def test_coarse_axes_are_left_alone():
    data = voxels().astype(np.float32)
    small, affine = grids.shrink(data, np.diag([3.0, 3, 5, 1]), 2.0)
    np.testing.assert_array_equal(small, data)
    np.testing.assert_array_equal(affine, np.diag([3.0, 3, 5, 1]))


def test_same_grid_tells_grids_apart():
    image = grids.make_image(voxels(), np.eye(4))
    near, far = np.eye(4), np.eye(4)
    near[0, 3], far[0, 3] = 1e-3, 0.5
    assert grids.same_grid(image, grids.make_image(voxels(), near))
    assert not grids.same_grid(image, grids.make_image(voxels(), far))
    assert not grids.same_grid(image, grids.make_image(voxels()[:-1], np.eye(4)))


def test_forms_are_compared_in_mm(tmp_path):
    image = nib.Nifti1Image(voxels(), np.diag([1e-3, 1e-3, 1e-3, 1]))
    moved = image.affine.copy()
    moved[0, 3] = 0.5  # half a metre
    image.set_sform(image.affine, code=1)
    image.set_qform(moved, code=1)
    image.header.set_xyzt_units('meter')
    image.to_filename(tmp_path / 'scan.nii')
    result = grids.conform(tmp_path / 'scan.nii')
    assert any('sform and qform differ (by 500.0 mm)' in text for text in result.warnings)


def test_grids_that_are_turned_a_little_are_not_the_same(make_affine):
    """Half a degree is nothing in a cosine, and a voxel and more at the corner of a head."""
    data = np.zeros((256, 256, 160), np.uint8)
    straight, turned = (make_affine((angle, 0.0, 0.0), (1.0, 1.0, 1.0)) for angle in (0.0, 0.5))
    assert grids.corner_distance(straight, turned, data.shape) > 1
    assert not grids.same_grid(grids.make_image(data, straight), grids.make_image(data, turned))


def test_images_are_written_with_one_affine_in_two_forms(make_affine):
    affine = make_affine((3.0, 4.0, 5.0), (1.0, 1.0, 2.0))
    header = grids.make_image(voxels(), affine).header
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-5)
    assert header.get_xyzt_units()[0] == 'mm'
