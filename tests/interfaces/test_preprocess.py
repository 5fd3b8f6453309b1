"""The steps of preprocessing, files in and files out, on a head whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsharm.errors import ScanError
from bidsharm.imaging import grids, masks
from bidsharm.interfaces import preprocess
from bidsharm.interfaces.preprocess import (
    ApplyField,
    CoarseCopy,
    ConformScan,
    CutHead,
    ExtractBrain,
    PrepareTemplate,
    ReuseMask,
    SegmentTissue,
    ShrinkImage,
    UpperHead,
)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def voxels(file: str) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def test_conform_writes_the_checked_scan_and_what_was_mended(tmp_path, save_image):
    data = np.random.default_rng(0).random((9, 10, 11)).astype(np.float32)
    data[0, 0, 0] = np.nan
    file = save_image(tmp_path / 'raw' / 'scan.nii.gz', data, np.diag([-1.0, 1, 1, 1]))
    before = Path(file).read_bytes()
    outputs = ConformScan(in_file=file).run(cwd=str(tmp_path)).outputs
    assert Path(outputs.out_file).parent == tmp_path
    np.testing.assert_array_equal(voxels(outputs.out_file), np.nan_to_num(data)[::-1])
    assert len(outputs.warnings) == 1
    assert 'NaN' in outputs.warnings[0]
    assert Path(file).read_bytes() == before


def test_conform_hands_the_error_on(tmp_path):
    (tmp_path / 'scan.nii.gz').write_bytes(b'')
    with pytest.raises(ScanError) as caught:
        ConformScan(in_file=str(tmp_path / 'scan.nii.gz')).run(cwd=str(tmp_path))
    assert caught.value.where == 'scan.nii.gz'


# Brain masks


def extract(tmp_path: Path, file: str, **options: Any) -> Any:
    return ExtractBrain(in_file=file, name='sub-01_T1w', **options).run(cwd=str(tmp_path)).outputs


@pytest.fixture
def network(monkeypatch, head, save_image):
    """Stand for deepbet; return what it was asked."""
    asked: list[dict[str, Any]] = []

    def answer(step: str, request: dict[str, Any], cwd: Path, *, threads: int) -> dict[str, Any]:
        asked.append({**request, 'step': step, 'threads': threads})
        save_image(Path(request['out_file']), head.mask.astype(np.uint8), head.affine)
        return {}

    monkeypatch.setattr(preprocess, 'run_isolated', answer)
    return asked


def test_a_whole_head_goes_through_deepbet(tmp_path, head, head_files):
    """In a process of its own, as in a run."""
    outputs = extract(tmp_path, head_files['image'])
    image = nib.load(outputs.out_mask)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.affine, head.affine, atol=1e-5)
    assert dice(voxels(outputs.out_mask) > 0, head.mask) > 0.93
    assert outputs.method == 'deepbet'
    assert outputs.sidecar == {'SkullStripped': False}


def test_a_stripped_scan_keeps_its_own_mask(tmp_path, head, head_files):
    """With deepbet, which judges it, in earnest."""
    outputs = extract(tmp_path, head_files['brain'])
    assert dice(voxels(outputs.out_mask) > 0, head.mask) > 0.999
    assert outputs.method == 'the scan came skull-stripped'
    assert outputs.sidecar == {'SkullStripped': True}


def childs_head(head, image: np.ndarray, save_image, tmp_path: Path, volume_ml: float = 1400) -> str:
    """Write a head that is as large as a grown-up's brain."""
    size = np.cbrt(volume_ml / masks.volume_ml(head.ideal > 0, head.affine))
    return save_image(tmp_path / 'child.nii', image, np.diag([size, size, size, 1]) @ head.affine)


def test_a_small_head_in_exact_zeros_is_not_taken_for_a_brain(tmp_path, head, save_image):
    file = childs_head(head, head.ideal, save_image, tmp_path)
    image = nib.load(file)
    assert masks.stripped_support(image.get_fdata(), image.affine) is not None
    outputs = extract(tmp_path, file)
    assert (outputs.method, outputs.sidecar) == ('deepbet', {'SkullStripped': False})
    assert dice(voxels(outputs.out_mask) > 0, head.mask) > 0.93
    assert any(
        'a head around a brain' in warning and '--skull-strip skip' in warning for warning in outputs.warnings
    )


@pytest.mark.parametrize('stripped', [True, False])
def test_a_given_mask_says_whether_the_scan_is_stripped(stripped, tmp_path, head, head_files, save_image):
    image = np.where(head.mask, head.ideal, 0) if stripped else head.ideal
    for file, mask in (
        (save_image(tmp_path / 'scan.nii', image, head.affine), head_files['mask']),
        (childs_head(head, image, save_image, tmp_path), childs_head(head, head.mask.astype(np.uint8), save_image, tmp_path / 'm')),
    ):  # fmt: skip
        outputs = ReuseMask(in_file=file, mask_file=mask).run(cwd=str(tmp_path)).outputs
        assert outputs.sidecar == {'SkullStripped': stripped}
        np.testing.assert_array_equal(voxels(outputs.out_mask), head.mask)


@pytest.mark.parametrize('stripped', [True, False])
def test_beside_a_mask_by_registration_deepbet_judges(stripped, tmp_path, head, save_image, network):
    image = np.where(head.mask, head.ideal, 0) if stripped else head.ideal
    file = childs_head(head, image, save_image, tmp_path)
    rough = ndimage.binary_erosion(head.mask, iterations=2)
    mask = childs_head(head, rough.astype(np.uint8), save_image, tmp_path / 'm')
    tool = ReuseMask(in_file=file, mask_file=mask, method='ANTs', judge='deepbet', num_threads=3)
    outputs = tool.run(cwd=str(tmp_path)).outputs
    assert [request['threads'] for request in network] == [3]
    assert outputs.sidecar == {'SkullStripped': stripped}
    assert outputs.method == ('the scan came skull-stripped' if stripped else 'ANTs')
    np.testing.assert_array_equal(voxels(outputs.out_mask), head.mask if stripped else rough)
    assert any('a head around a brain' in warning for warning in outputs.warnings) == (not stripped)


@pytest.mark.parametrize('judge', ['deepbet', 'nobody'])
def test_without_a_judge_the_mask_by_registration_counts(judge, tmp_path, head, save_image, monkeypatch):
    """deepbet fails on some scans; who asked for ants then needs it least."""

    def fail(*_: Any, **__: Any) -> None:
        raise ScanError('deepbet found no brain in it.')

    monkeypatch.setattr(preprocess, 'run_isolated', fail)
    file = childs_head(head, np.where(head.mask, head.ideal, 0), save_image, tmp_path)
    mask = childs_head(head, head.mask.astype(np.uint8), save_image, tmp_path / 'm')
    tool = ReuseMask(in_file=file, mask_file=mask, method='ANTs', judge=judge)
    outputs = tool.run(cwd=str(tmp_path)).outputs
    assert (outputs.method, outputs.sidecar) == ('ANTs', {'SkullStripped': False})
    np.testing.assert_array_equal(voxels(outputs.out_mask), head.mask)
    assert any('could not be told' in text and 'skip' in text for text in outputs.warnings) == (
        judge == 'deepbet'
    )


def test_an_exact_background_stays_what_it_is(tmp_path, head, save_image):
    """In a stripped z-score 0 is an intensity like others; the field must not turn the background into noise."""
    inside = head.data[head.mask]
    score = np.where(head.mask, (head.data - inside.mean()) / inside.std(), 0).astype(np.float32)
    scan = save_image(tmp_path / 'scan.nii', score, head.affine)
    mask = save_image(tmp_path / 'mask.nii', head.mask.astype(np.uint8), head.affine)
    field = save_image(
        tmp_path / 'field.nii', np.linspace(0.7, 1.4, score.size).reshape(score.shape), head.affine
    )
    tool = ApplyField(in_file=scan, mask_file=mask, field_file=field, shift=5.0)
    corrected = voxels(tool.run(cwd=str(tmp_path)).outputs.out_file)
    assert not corrected[~head.mask].any()
    assert np.abs(corrected - score)[head.mask].max() > 0.5


def test_force_strips_what_looks_stripped(tmp_path, head_files, network):
    outputs = extract(tmp_path, head_files['brain'], skull_strip='force', device='cuda:0', num_threads=5)
    (request,) = network
    assert request['step'] == 'deepbet'
    assert (request['device'], request['threads'], request['name']) == ('cuda:0', 5, 'sub-01_T1w')
    assert outputs.method == 'deepbet'
    assert outputs.sidecar == {'SkullStripped': False}


def test_skip_takes_all_that_is_no_background(tmp_path, head, save_image, network):
    """Here the brain fills so much of the volume that it does not count as stripped by itself."""
    box = grids.bounding_box(head.mask)
    data = np.where(head.mask, head.data + 1, 0)[box]
    file = save_image(tmp_path / 'brain.nii', data, grids.crop_affine(head.affine, box))
    outputs = extract(tmp_path, file, skull_strip='skip')
    assert not network
    np.testing.assert_array_equal(voxels(outputs.out_mask) > 0, head.mask[box])


def test_skip_refuses_a_head_with_its_skull(tmp_path, head, save_image, network):
    file = save_image(tmp_path / 'head.nii', head.ideal, head.affine)
    with pytest.raises(ScanError, match='no brain'):
        extract(tmp_path, file, skull_strip='skip')


def test_a_brain_that_is_none_is_refused_by_name(tmp_path, head, head_files, monkeypatch, save_image):
    def nothing(step: str, request: dict[str, Any], cwd: Path, *, threads: int) -> dict[str, Any]:
        mask = np.zeros(head.mask.shape, np.uint8)
        mask[20:22, 20:22, 20:22] = 1
        save_image(Path(request['out_file']), mask, head.affine)
        return {}

    monkeypatch.setattr(preprocess, 'run_isolated', nothing)
    with pytest.raises(ScanError, match='no brain') as caught:
        extract(tmp_path, head_files['image'])
    assert caught.value.where == 'sub-01_T1w'


def reuse(tmp_path: Path, scan: str, mask: str) -> Any:
    tool = ReuseMask(in_file=scan, mask_file=mask, name='sub-01_T1w', method='reused from x')
    return tool.run(cwd=str(tmp_path)).outputs


def test_a_mask_on_the_same_grid_is_taken_voxel_by_voxel(tmp_path, head, head_files):
    outputs = reuse(tmp_path, head_files['image'], head_files['mask'])
    np.testing.assert_array_equal(voxels(outputs.out_mask), head.mask)
    assert outputs.method == 'reused from x'
    assert outputs.sidecar == {'SkullStripped': False}


@pytest.mark.parametrize('value', [1, 255])
def test_a_mask_in_other_axes_finds_its_place(value, tmp_path, head, head_files, save_image):
    """Another pipeline writes LPS, a trailing axis, and 255 for brain."""
    flipped = (head.mask[::-1, ::-1] * value).astype(np.uint8)[..., None]
    affine = head.affine @ np.diag([-1.0, -1, 1, 1])
    affine[:3, 3] = (head.affine @ [head.mask.shape[0] - 1, head.mask.shape[1] - 1, 0, 1])[:3]
    outputs = reuse(tmp_path, head_files['image'], save_image(tmp_path / 'mask.nii', flipped, affine))
    np.testing.assert_array_equal(voxels(outputs.out_mask), head.mask)


def test_a_finer_mask_is_brought_to_the_grid(tmp_path, head, head_files, save_image):
    fine = head.affine @ np.diag([0.5, 0.5, 0.5, 1])
    fine[:3, 3] -= 1.0
    mask = np.repeat(np.repeat(np.repeat(head.mask, 2, 0), 2, 1), 2, 2).astype(np.uint8)
    outputs = reuse(tmp_path, head_files['image'], save_image(tmp_path / 'mask.nii', mask, fine))
    assert dice(voxels(outputs.out_mask) > 0, head.mask) > 0.97


def test_a_mask_of_someone_else_is_refused(tmp_path, head, head_files, save_image):
    far = head.affine.copy()
    far[:3, 3] += 1000
    with pytest.raises(ScanError, match='does not lie on this scan') as caught:
        reuse(
            tmp_path, head_files['image'], save_image(tmp_path / 'mask.nii', head.mask.astype(np.uint8), far)
        )
    assert caught.value.where == 'sub-01_T1w'
    assert 'same subject' in caught.value.fix


# Copies


def world_centre(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    weights = np.clip(data, 0, None).astype(float)
    index = np.indices(weights.shape).reshape(3, -1)
    return (affine @ [*(index * weights.ravel()).sum(axis=1) / weights.sum(), 1])[:3]


def test_copy_for_n4(tmp_path, head, head_files):
    outputs = CoarseCopy(in_file=head_files['image'], mask_file=head_files['mask'], size_mm=8.0).run(
        cwd=str(tmp_path)
    ).outputs  # fmt: skip
    image, mask = nib.load(outputs.out_file), nib.load(outputs.out_mask)
    assert image.shape == mask.shape
    np.testing.assert_allclose(image.affine, mask.affine)
    np.testing.assert_allclose(image.header.get_zooms(), 8)
    assert voxels(outputs.out_file).min() > 0
    # A brain that holds a 0 is lifted; one that does not stays.
    assert (outputs.shift > 0) == bool(head.data[head.mask].min() <= 0)
    np.testing.assert_allclose(
        world_centre(voxels(outputs.out_mask), mask.affine), world_centre(head.mask, head.affine), atol=0.7
    )


def test_smaller_copy_keeps_its_place(tmp_path, head, head_files):
    outputs = ShrinkImage(in_file=head_files['brain'], size_mm=8.0).run(cwd=str(tmp_path)).outputs
    image = nib.load(outputs.out_file)
    np.testing.assert_allclose(image.header.get_zooms(), 8)
    brain = np.where(head.mask, head.data, 0)
    np.testing.assert_allclose(
        world_centre(image.get_fdata(), image.affine), world_centre(brain, head.affine), atol=0.3
    )


def test_upper_head_is_the_upper_part_of_the_copy(tmp_path, head_files):
    whole = ShrinkImage(in_file=head_files['image'], size_mm=4.0).run(cwd=str(tmp_path)).outputs.out_file
    whole_image = nib.load(whole)
    data = whole_image.get_fdata()
    upper = nib.load(
        UpperHead(in_file=head_files['image'], size_mm=4.0).run(cwd=str(tmp_path)).outputs.out_file
    )
    start = round((upper.affine[2, 3] - whole_image.affine[2, 3]) / 4)
    assert start > 0
    np.testing.assert_array_equal(upper.get_fdata(), data[:, :, start : start + upper.shape[2]])


def test_a_head_is_cut_down_to_the_brain_and_a_margin(tmp_path, head, head_files, save_image):
    probability = save_image(
        tmp_path / 'p.nii', np.where(head.mask, 0.9, 0.3).astype(np.float32), head.affine
    )
    tool = CutHead(in_file=head_files['image'], mask_file=probability, margin_mm=8.0)
    cut = voxels(tool.run(cwd=str(tmp_path)).outputs.out_file)
    keep = ndimage.distance_transform_edt(~head.mask, sampling=4) <= 8.0
    np.testing.assert_array_equal(cut, np.where(keep, head.data, 0))


# The field, and the cut


@pytest.fixture
def corrected(tmp_path, head, save_image, head_files) -> Any:
    """Take a known field out of a scan."""
    y = np.linspace(-0.3, 0.3, head.data.shape[1])[None, :, None]
    field = np.exp(y - np.broadcast_to(y, head.data.shape)[head.mask].mean())
    biased = save_image(tmp_path / 'biased.nii', (head.data * field).astype(np.float32), head.affine)
    small, coarse = grids.shrink(np.broadcast_to(field, head.data.shape), head.affine, 8.0)
    tool = ApplyField(
        in_file=biased,
        mask_file=head_files['mask'],
        field_file=save_image(tmp_path / 'field.nii', small, coarse),
    )
    return tool.run(cwd=str(tmp_path)).outputs


def test_the_field_is_taken_out_of_the_whole_image(corrected, head):
    data = voxels(corrected.out_file)
    assert data.shape == head.data.shape
    np.testing.assert_allclose(data[head.mask], head.data[head.mask], rtol=0.02)


def test_the_cut_is_a_part_of_the_whole(corrected, head):
    whole, brain, mask = (
        nib.load(getattr(corrected, name)) for name in ('out_file', 'brain_file', 'brain_mask')
    )
    assert brain.shape == mask.shape
    np.testing.assert_allclose(brain.affine, mask.affine)
    start = np.round(np.linalg.inv(whole.affine)[:3] @ brain.affine[:, 3]).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, brain.shape, strict=True))
    np.testing.assert_array_equal(brain.get_fdata(), whole.get_fdata()[box])
    np.testing.assert_array_equal(np.asarray(mask.dataobj), head.mask[box])
    assert np.asarray(mask.dataobj).sum() == head.mask.sum()
    assert (start >= 0).all()
    assert np.prod(brain.shape) < 0.7 * np.prod(whole.shape)


def test_copies_for_registration(corrected, head):
    """The brain alone, and the whole head; 4 mm voxels are left as they are."""
    brain, whole = nib.load(corrected.coarse_brain), nib.load(corrected.coarse_head)
    np.testing.assert_allclose(
        world_centre(brain.get_fdata(), brain.affine),
        world_centre(np.where(head.mask, head.data, 0), head.affine),
        atol=1.0,
    )
    assert (brain.get_fdata() > 0).sum() <= head.mask.sum()
    assert (whole.get_fdata() > 0).sum() > 1.3 * head.mask.sum()


def test_without_a_field_the_scan_stays(tmp_path, head, head_files):
    tool = ApplyField(in_file=head_files['image'], mask_file=head_files['mask'])
    np.testing.assert_array_equal(voxels(tool.run(cwd=str(tmp_path)).outputs.out_file), head.data)


# Template and tissue


def test_the_bundled_template_comes_with_everything(tmp_path):
    outputs = PrepareTemplate(step=2).run(cwd=str(tmp_path)).outputs
    brain, mask, priors = (nib.load(getattr(outputs, name)) for name in ('brain', 'mask', 'priors'))
    np.testing.assert_allclose(brain.header.get_zooms(), 2)
    assert priors.shape == (*brain.shape, 3)
    np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, brain.get_fdata() > 0)
    assert 1700 < np.asarray(mask.dataobj).sum() * 8 / 1000 < 2000
    coarse = nib.load(outputs.coarse_brain)
    np.testing.assert_allclose(coarse.header.get_zooms(), 2)
    # The head stands where the brain does, and is larger.
    whole = nib.load(outputs.coarse_head)
    on_head = grids.resample(brain.get_fdata(), brain.affine, whole.shape, whole.affine)
    assert (whole.get_fdata()[on_head > 0.3] > 20).mean() > 0.99
    assert (whole.get_fdata() > 20).sum() > 1.3 * (on_head > 0.1).sum()


def test_another_template_is_stripped_by_its_mask(tmp_path, head, head_files):
    tool = PrepareTemplate(space='Other', image=head_files['image'], mask=head_files['mask'])
    outputs = tool.run(cwd=str(tmp_path)).outputs
    np.testing.assert_array_equal(voxels(outputs.brain), np.where(head.mask, head.data, 0))
    assert dice(voxels(outputs.mask) > 0, head.mask) > 0.99


def test_a_stripped_template_needs_no_mask(tmp_path, head, head_files):
    outputs = PrepareTemplate(space='Other', image=head_files['brain']).run(cwd=str(tmp_path)).outputs
    np.testing.assert_array_equal(voxels(outputs.brain), np.where(head.mask, head.data, 0))


def test_tissue_is_written_in_two_ways(tmp_path, head, head_files, save_image):
    # Priors that are blurred by 6 mm: the edges must come from the scan.
    blurred = np.stack([ndimage.gaussian_filter(part, 1.5) for part in head.fractions], axis=-1)
    priors = save_image(tmp_path / 'priors.nii', blurred.astype(np.float32), head.affine)
    tool = SegmentTissue(in_file=head_files['brain'], mask_file=head_files['mask'], priors=priors)
    outputs = tool.run(cwd=str(tmp_path)).outputs
    tissue, labels = voxels(outputs.tissue), voxels(outputs.dseg)
    assert tissue.shape == (*head.mask.shape, 3)
    assert labels.dtype == np.uint8
    np.testing.assert_allclose(tissue.sum(axis=-1)[head.mask], 1, atol=1e-4)
    order = np.array([3, 1, 2])  # CSF, GM, WM as labels
    np.testing.assert_array_equal(labels[head.mask], order[tissue.argmax(axis=-1)][head.mask])
    assert dice(labels == 1, head.labels == 1) > 0.75
    assert dice(labels == 2, head.labels == 2) > 0.85
