"""Results on the grid of the raw scan, with their sidecars, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff

from bidsharm.bids.resume import fingerprint, is_complete, unchanged
from bidsharm.errors import BidsharmError
from bidsharm.imaging import grids
from bidsharm.interfaces import derivatives
from bidsharm.interfaces.derivatives import ClipToRange, SaveDerivatives, SaveQC

SHAPE = (14, 16, 18)
PREFIX = 'sub-01/anat/sub-01'


def spec(kind: str = 'image', path: Any = f'{PREFIX}_desc-preproc_T1w.nii.gz', **more: Any) -> dict[str, Any]:
    return {'kind': kind, 'path': path, 'sidecar': {'SkullStripped': False}, 'native': True, **more}


@pytest.fixture
def raw(tmp_path, make_rigid, save_image) -> Path:
    """An oblique scan whose axes run to the left, to the feet and to the front."""
    canonical = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
    orientation = axcodes2ornt('LIA')
    affine = make_rigid((10, -12, 7), (-8, 3, 5)) @ np.diag([0.9, 1.0, 2.2, 1.0])
    data = apply_orientation(canonical, orientation)
    path = tmp_path / 'bids' / 'sub-01' / 'anat' / 'sub-01_T1w.nii.gz'
    save_image(path, data, affine @ inv_ornt_aff(orientation, SHAPE))
    return path


@pytest.fixture
def canonical(raw) -> nib.Nifti1Image:
    return grids.conform(raw).image


def sink(
    tmp_path: Path, files: list[str], specs: list[dict[str, Any]], raw: Path | None, **more: Any
) -> list[str]:
    tool = SaveDerivatives(in_files=files, specs=specs, out_root=str(tmp_path / 'out'), **more)
    if raw is not None:
        tool.inputs.native = str(raw)
    return tool.run(cwd=str(tmp_path)).outputs.out_files


def test_an_image_is_back_on_the_raw_grid_exactly(raw, canonical, tmp_path):
    canonical.to_filename(tmp_path / 'result.nii')
    before = raw.read_bytes()
    (file,) = sink(tmp_path, [str(tmp_path / 'result.nii')], [spec()], raw)
    assert file == str(tmp_path / 'out' / f'{PREFIX}_desc-preproc_T1w.nii.gz')
    saved, original = nib.load(file), nib.load(raw)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), np.asarray(original.dataobj))
    np.testing.assert_array_equal(saved.affine, original.affine)
    assert raw.read_bytes() == before
    assert saved.get_data_dtype() == np.float32
    assert (saved.dataobj.slope, saved.dataobj.inter) == (1, 0)


def test_a_cropped_result_is_back_in_its_place(raw, canonical, tmp_path, save_image):
    box = (slice(2, 9), slice(4, 16), slice(0, 11))
    data = np.asarray(canonical.dataobj)
    cut = save_image(tmp_path / 'cut.nii', data[box], grids.crop_affine(canonical.affine, box))
    (file,) = sink(tmp_path, [cut], [spec()], raw)
    saved, original = nib.load(file), np.asarray(nib.load(raw).dataobj)
    kept = np.asarray(saved.dataobj) != 0
    assert kept.sum() == data[box].size
    np.testing.assert_array_equal(np.asarray(saved.dataobj)[kept], original[kept])


@pytest.mark.parametrize(
    ('kind', 'dtype'), [('image', 'f4'), ('probseg', 'f4'), ('mask', 'u1'), ('dseg', 'u1')]
)
def test_kinds_have_types_of_their_own(kind, dtype, raw, canonical, tmp_path, save_image):
    """Values of a mask that a resampling left slightly off are whole numbers again."""
    labels = (np.indices(SHAPE).sum(axis=0) % 4).astype(np.float32)
    file = save_image(tmp_path / 'labels.nii', labels - 0.001, canonical.affine)
    (saved,) = sink(tmp_path, [file], [spec(kind)], raw)
    image = nib.load(saved)
    assert image.get_data_dtype() == np.dtype(dtype)
    back = np.asarray(grids.conform(Path(saved)).image.dataobj)
    if dtype == 'u1':
        np.testing.assert_array_equal(back, labels)
    else:
        np.testing.assert_allclose(back, labels - 0.001, atol=1e-6)


def test_sidecars_hold_what_was_planned_and_what_was_found(raw, canonical, tmp_path):
    canonical.to_filename(tmp_path / 'result.nii')
    files = [str(tmp_path / 'result.nii')] * 2
    plans = [
        spec(path=f'{PREFIX}_desc-harmonized_T1w.nii.gz', extra=True),
        spec('dseg', path=f'{PREFIX}_dseg.nii.gz', sidecar={'Labels': ['ü']}),
    ]
    extra = {'SkullStripped': True, 'Harmonization': {'Method': 'robust'}}
    image, labels = sink(tmp_path, files, plans, raw, extra=extra)
    assert json.loads(Path(image.replace('.nii.gz', '.json')).read_text()) == {
        'SkullStripped': True,  # what was found counts more
        'Harmonization': {'Method': 'robust'},
    }
    assert json.loads(Path(labels.replace('.nii.gz', '.json')).read_text()) == {'Labels': ['ü']}


def test_tissues_become_one_file_each(raw, canonical, tmp_path, save_image):
    parts = np.random.default_rng(1).random((*SHAPE, 3)).astype(np.float32)
    file = save_image(tmp_path / 'tissue.nii', parts, canonical.affine)
    names = [f'{PREFIX}_label-{tissue}_probseg.nii.gz' for tissue in ('CSF', 'GM', 'WM')]
    plan = spec('probseg', path=names, sidecar=[{'Label': tissue} for tissue in ('CSF', 'GM', 'WM')])
    written = sink(tmp_path, [file], [plan], raw)
    assert [Path(name).name for name in written] == [Path(name).name for name in names]
    for index, name in enumerate(written):
        np.testing.assert_array_equal(np.asarray(grids.conform(Path(name)).image.dataobj), parts[..., index])
        sidecar = json.loads(Path(name.replace('.nii.gz', '.json')).read_text())
        assert sidecar == {'Label': ('CSF', 'GM', 'WM')[index]}


def test_a_plan_for_another_number_of_volumes_is_refused(raw, canonical, tmp_path, save_image):
    file = save_image(tmp_path / 'tissue.nii', np.ones((*SHAPE, 3), np.float32), canonical.affine)
    names = [f'{PREFIX}_label-{tissue}_probseg.nii.gz' for tissue in ('CSF', 'GM')]
    with pytest.raises(ValueError, match='zip'):
        sink(tmp_path, [file], [spec('probseg', path=names, sidecar=[{}, {}])], raw)


def test_a_result_in_another_space_keeps_its_grid(raw, tmp_path, save_image, make_rigid):
    affine = make_rigid((0, 0, 0), (-90, -126, -72)) @ np.diag([2.0, 2, 2, 1])
    data = np.random.default_rng(2).random((9, 10, 11)).astype(np.float32)
    file = save_image(tmp_path / 'mni.nii', data, affine)
    (saved,) = sink(tmp_path, [file], [spec(native=False)], raw)
    image = nib.load(saved)
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_allclose(image.affine, affine)
    assert int(image.header['sform_code']) == 4  # a template's space, not a scanner's
    assert image.header.get_xyzt_units()[0] == 'mm'


def test_files_are_copied_as_they_are(raw, tmp_path):
    (tmp_path / 'Composite.h5').write_bytes(b'\x89HDF transform')
    plan = {'kind': 'file', 'path': f'{PREFIX}_from-T1w_to-MNI_mode-image_xfm.h5'}
    (saved,) = sink(tmp_path, [str(tmp_path / 'Composite.h5')], [plan], None)
    assert Path(saved).read_bytes() == b'\x89HDF transform'
    assert not list(Path(saved).parent.glob('*.json'))


def test_fingerprints_are_those_of_what_this_process_wrote(raw, canonical, tmp_path, monkeypatch):
    """Another job may replace a file at once; its content must not pass for ours."""
    replace, ours = os.replace, {}

    def late(source: Path, target: Path) -> None:
        replace(source, target)
        ours[Path(target).name] = fingerprint(Path(target))
        other = bytes(len(Path(target).read_bytes()))  # as long, and other content
        Path(target).write_bytes(other)

    canonical.to_filename(tmp_path / 'result.nii')
    (tmp_path / 'Composite.h5').write_bytes(b'transform')
    way = {'kind': 'file', 'path': f'{PREFIX}_from-T1w_to-MNI_mode-image_xfm.h5'}
    tool = SaveDerivatives(
        in_files=[str(tmp_path / 'result.nii'), str(tmp_path / 'Composite.h5')], specs=[spec(), way],
        out_root=str(tmp_path / 'out'), native=str(raw),
    )  # fmt: skip
    monkeypatch.setattr(os, 'replace', late)
    found = tool.run(cwd=str(tmp_path)).outputs.fingerprints
    assert list(found) == [spec()['path'], way['path']]
    for name, written in found.items():
        assert written['sha256'] == ours[Path(name).name]['sha256']
        assert not unchanged(tmp_path / 'out' / name, written)


def test_what_a_method_does_not_give_is_not_there_nor_left_of_an_earlier_run(raw, canonical, tmp_path):
    canonical.to_filename(tmp_path / 'result.nii')
    result, extra = str(tmp_path / 'result.nii'), f'{PREFIX}_desc-uncertainty_T1w.nii.gz'
    specs = [
        spec(),
        spec(path=extra.replace('uncertainty', 'other'), optional='other'),
        spec(path=extra, optional='result'),
    ]
    assert len(sink(tmp_path, [result, result], specs, raw)) == 2
    first, _, second = (tmp_path / 'out' / each['path'] for each in specs)
    assert second.exists()
    assert sink(tmp_path, [result], specs, raw) == [str(first)]
    assert sorted(path.name for path in first.parent.iterdir()) == [
        'sub-01_desc-preproc_T1w.json', first.name,
    ]  # fmt: skip
    with pytest.raises(ValueError, match='zip'):
        sink(tmp_path, [], specs, raw)


def test_what_is_written_can_be_read_by_the_group(raw, canonical, tmp_path):
    canonical.to_filename(tmp_path / 'result.nii')
    (file,) = sink(tmp_path, [str(tmp_path / 'result.nii')], [spec()], raw)
    (tmp_path / 'plain').write_text('')
    expected = stat.S_IMODE((tmp_path / 'plain').stat().st_mode)
    for path in (Path(file), Path(file.replace('.nii.gz', '.json'))):
        assert stat.S_IMODE(path.stat().st_mode) == expected


def test_nothing_is_left_of_a_file_that_could_not_be_written(raw, canonical, tmp_path, monkeypatch):
    """A full disk in the middle of the image: no image, no temporary file; an earlier one is kept."""
    canonical.to_filename(tmp_path / 'result.nii')
    target = tmp_path / 'out' / f'{PREFIX}_desc-preproc_T1w.nii.gz'
    target.parent.mkdir(parents=True)
    target.write_bytes(b'from an earlier run')

    def full(self: nib.Nifti1Image, path: Path) -> None:
        Path(path).write_bytes(b'half of it')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(nib.Nifti1Image, 'to_filename', full)
    with pytest.raises(OSError, match='No space left'):
        sink(tmp_path, [str(tmp_path / 'result.nii')], [spec()], raw)
    assert target.read_bytes() == b'from an earlier run'
    target.unlink()
    with pytest.raises(OSError, match='No space left'):
        sink(tmp_path, [str(tmp_path / 'result.nii')], [spec()], raw)
    assert not list(target.parent.glob('*.nii.gz'))
    assert not list(target.parent.glob('.tmp-*'))


@pytest.mark.parametrize('through_a_link', [False, True])
def test_the_raw_scan_is_never_written_over(through_a_link, raw, canonical, tmp_path):
    """An output folder that is the raw one, directly or by a link."""
    canonical.to_filename(tmp_path / 'result.nii')
    root = raw.parents[2]
    if through_a_link:
        (tmp_path / 'link').symlink_to(root)
        root = tmp_path / 'link'
    raw.with_name('sub-01_T1w.json').write_text('{"Manufacturer": "X"}')
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in raw.parent.iterdir()}
    tool = SaveDerivatives(
        in_files=[str(tmp_path / 'result.nii')], specs=[spec(path='sub-01/anat/sub-01_T1w.nii.gz')],
        out_root=str(root), native=str(raw),
    )  # fmt: skip
    with pytest.raises(BidsharmError, match='written over') as caught:
        tool.run(cwd=str(tmp_path))
    assert caught.value.where == 'sub-01_T1w.nii.gz'
    assert before == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in raw.parent.iterdir()}


def test_a_result_that_does_not_fit_the_raw_scan_is_no_file(raw, tmp_path, save_image):
    file = save_image(tmp_path / 'other.nii', np.ones((5, 5, 5), np.float32), np.diag([7.0, 7, 7, 1]))
    with pytest.raises(ValueError, match='does not lie on the voxels'):
        sink(tmp_path, [file], [spec()], raw)
    assert not list((tmp_path / 'out').rglob('*.nii.gz'))


def test_overshoot_is_clipped(tmp_path, save_image):
    reference = save_image(tmp_path / 'ref.nii', np.array([0, 10.0, 90.0, 0]).reshape(1, 1, 4), np.eye(4))
    warped = save_image(tmp_path / 'in.nii', np.array([-7.0, 5.0, 50.0, 97.0]).reshape(1, 1, 4), np.eye(4))
    mask = save_image(tmp_path / 'mask.nii', np.array([0, 1, 1, 1], np.uint8).reshape(1, 1, 4), np.eye(4))
    result = ClipToRange(in_file=warped, mask_file=mask, reference=reference).run(cwd=str(tmp_path))
    np.testing.assert_array_equal(nib.load(result.outputs.out_file).get_fdata().ravel(), [0, 10, 50, 90])


def test_negative_intensities_are_not_clipped_away(tmp_path, save_image):
    """Z-scores are negative in half of the brain."""
    reference = save_image(tmp_path / 'ref.nii', np.array([0, -2.0, 3.0, 0]).reshape(1, 1, 4), np.eye(4))
    warped = save_image(tmp_path / 'in.nii', np.array([9.0, -5.0, -1.5, 2.0]).reshape(1, 1, 4), np.eye(4))
    mask = save_image(tmp_path / 'mask.nii', np.array([0, 1, 1, 1], np.uint8).reshape(1, 1, 4), np.eye(4))
    result = ClipToRange(in_file=warped, mask_file=mask, reference=reference).run(cwd=str(tmp_path))
    np.testing.assert_array_equal(nib.load(result.outputs.out_file).get_fdata().ravel(), [0, -2, -1.5, 2])


def save_qc(tmp_path: Path, raw: Path, digest: str = 'abc') -> Path:
    root = tmp_path / 'out'
    image = root / f'{PREFIX}_desc-harmonized_T1w.nii.gz'
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(b'image')
    record = {'verdict': 'pass', 'scan': 'sub-01_T1w', 'subject': '01', 'contrast': 'T1w', 'warnings': []}
    (tmp_path / 'qc.json').write_text(json.dumps(record))
    pictures = []
    for name in ('before', 'after'):
        pictures.append(str(tmp_path / f'sub-01_T1w_desc-{name}.webp'))
        Path(pictures[-1]).write_bytes(name.encode())
    tool = SaveQC(
        qc=str(tmp_path / 'qc.json'), figures=pictures, sources={'bids:raw:x': str(raw)}, methods={'text': 'So.'}, out_root=str(root),
        qc_path=f'{PREFIX}_desc-T1w_qc.json', figures_dir='sub-01/figures', digest=digest,
        saved=[{f'{PREFIX}_desc-harmonized_T1w.nii.gz': fingerprint(image)}, {}],
    )  # fmt: skip
    return Path(tool.run(cwd=str(tmp_path)).outputs.out_file)


def test_the_record_says_that_the_scan_is_complete(raw, tmp_path):
    file = save_qc(tmp_path, raw)
    root = tmp_path / 'out'
    record = json.loads(file.read_text())
    assert record['verdict'] == 'pass'
    assert record['figures'] == {
        name: f'sub-01/figures/sub-01_T1w_desc-{name}.webp' for name in ('before', 'after')
    }
    assert (root / record['figures']['after']).read_bytes() == b'after'
    assert list(record['outputs']) == [f'{PREFIX}_desc-harmonized_T1w.nii.gz']
    assert record['inputs']['bids:raw:x']['sha256'] == hashlib.sha256(raw.read_bytes()).hexdigest()
    assert record['methods'] == {'text': 'So.'}
    assert is_complete(file, root, {'bids:raw:x': raw}, 'abc')
    assert not is_complete(file, root, {'bids:raw:x': raw}, 'other settings')
    (root / next(iter(record['outputs']))).unlink()
    assert not is_complete(file, root, {'bids:raw:x': raw}, 'abc')


def test_the_record_comes_last(raw, tmp_path, monkeypatch):
    """When a picture cannot be copied there is no record, so that the scan is done again."""

    def fail(source: Path, path: Path) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(derivatives, 'copy_file', fail)
    with pytest.raises(OSError, match='No space left'):
        save_qc(tmp_path, raw)
    assert not list((tmp_path / 'out').rglob('*_qc.json'))
