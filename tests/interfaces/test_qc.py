"""The QC record and the pictures of one scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bidsharm.errors import UsageError
from bidsharm.imaging import grids
from bidsharm.interfaces.qc import AssessScan, DrawFigures

IDENTITY = {
    'subject': '01',
    'session': 'a',
    'scan': 'sub-01_ses-a_T1w',
    'contrast': 'T1w',
    'site': 'A',
    'harmonizer': {'name': 'robust', 'target': 'canonical'},
}
RECORD = {
    'details': {'scale': 500.0},
    'execution': {'device': 'cpu', 'precision': 'float32', 'steps': [], 'seconds': 1.5},
    'target_quantiles': None,
}


def assess(cwd: Path, files: dict[str, str], **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        'before': files['brain'], 'after': files['other'], 'mask_file': files['mask'],
        'tissue_before': files['tissue'], 'tissue_after': files['tissue'], 'identity': IDENTITY, 'record': RECORD,
        'warnings': [['from conform'], [], ['from the mask', 'twice']], 'notes': {'bias_correction': 'N4'},
        'mask_method': 'deepbet',
    }  # fmt: skip
    text = Path(AssessScan(**{**given, **more}).run(cwd=str(cwd)).outputs.qc).read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))


@pytest.fixture(scope='module')
def record(head_files, tmp_path_factory) -> dict[str, Any]:
    return assess(tmp_path_factory.mktemp('qc'), head_files)


def test_a_change_of_scale_passes_the_checks_of_anatomy(record, head):
    """The harmonized brain is three times as bright and otherwise the same."""
    checks = {check['name']: check for check in record['checks']}
    for key in ('dice_gm', 'dice_wm', 'dice_csf', 'edge_agreement'):
        assert checks[key]['value'] == pytest.approx(1, abs=1e-3), key
    for key in ('finite', 'background', 'new_edges', 'local_change'):
        assert checks[key]['value'] == pytest.approx(0, abs=1e-3), key
    assert record['verdict'] in ('pass', 'warn')
    volume = head.mask.sum() * 64 / 1000
    assert any(check['value'] == pytest.approx(volume, rel=1e-3) for check in record['checks'])


def test_record_says_which_scan_and_how(record):
    assert (record['subject'], record['session'], record['contrast'], record['site']) == (
        '01',
        'a',
        'T1w',
        'A',
    )
    assert record['harmonizer'] == {
        'name': 'robust', 'target': 'canonical', 'device': 'cpu', 'precision': 'float32', 'steps': [], 'seconds': 1.5,
    }  # fmt: skip
    assert record['warnings'] == ['from conform', 'from the mask', 'twice']
    assert record['notes'] == {
        'bias_correction': 'N4', 'brain_mask': 'deepbet', 'harmonizer': {'scale': 500.0},
    }  # fmt: skip
    assert record['version']


def test_the_identity_of_the_node_is_left_alone(head_files, tmp_path, record):
    """It is hashed again by the engine: a changed input would make the node run for ever."""
    node = AssessScan(
        before=head_files['brain'], after=head_files['other'], mask_file=head_files['mask'],
        tissue_before=head_files['tissue'], tissue_after=head_files['tissue'], identity=IDENTITY, record=RECORD,
    )  # fmt: skip
    before = node.inputs.get_hashval()[1]
    node.run(cwd=str(tmp_path))
    assert node.inputs.get_hashval()[1] == before
    assert IDENTITY['harmonizer'] == {'name': 'robust', 'target': 'canonical'}


def test_another_brain_does_not_pass(head, head_files, tmp_path, save_image):
    """Right contrast, wrong anatomy: the mirrored and shifted brain."""
    brain = np.where(head.mask, head.data, 0)
    wrong = np.where(head.mask, np.roll(brain[::-1], 2, axis=1), 0).astype(np.float32)
    tissue = np.roll(head.fractions[:, ::-1], 2, axis=2) * head.mask
    result = assess(
        tmp_path, head_files, after=save_image(tmp_path / 'wrong.nii', wrong, head.affine),
        tissue_after=save_image(tmp_path / 'wrong_tissue.nii', np.moveaxis(tissue, 0, -1), head.affine),
    )  # fmt: skip
    assert result['verdict'] == 'fail'
    failed = {check['name'] for check in result['checks'] if check['verdict'] == 'fail'}
    assert failed & {'edge_agreement', 'dice_gm', 'dice_wm', 'new_edges'}


def test_voxels_that_are_no_numbers_fail(head, head_files, tmp_path, save_image):
    data = np.where(head.mask, head.data, 0).astype(np.float32)
    inside = np.argwhere(head.mask)[::1000]
    data[tuple(inside.T)] = np.nan
    result = assess(tmp_path, head_files, after=save_image(tmp_path / 'nan.nii', data, head.affine))
    checks = {check['name']: check for check in result['checks']}
    assert checks['finite']['value'] == len(inside)
    assert checks['finite']['verdict'] == result['verdict'] == 'fail'


def test_distance_to_the_target_is_measured_where_one_was_learnt(head, head_files, tmp_path, record):
    quantiles = np.percentile(3 * head.data[head.mask], np.arange(101)).tolist()
    near, far = (
        assess(tmp_path, head_files, record={**RECORD, 'target_quantiles': [factor * q for q in quantiles]})
        for factor in (1.0, 2.0)
    )
    values = [
        next(check for check in result['checks'] if check['name'] == 'target_distance')['value']
        for result in (near, far)
    ]
    assert values[0] == pytest.approx(0, abs=0.01)
    assert values[1] > 0.1
    missing = [check for check in record['checks'] if check['name'] == 'target_distance']
    assert all(check['value'] is None for check in missing)


@pytest.mark.parametrize(('turned', 'verdict'), [(False, 'pass'), (True, 'fail')])
def test_a_head_that_lies_the_other_way_than_its_header_says(
    turned, verdict, head, head_files, tmp_path, save_image
):
    """Registration cannot turn a head upside down: the maps of the template then lie across the tissues."""
    maps = head.fractions[:, :, ::-1, ::-1] if turned else head.fractions
    priors = save_image(tmp_path / 'priors.nii', np.moveaxis(maps * head.mask, 0, -1), head.affine)
    result = assess(tmp_path, head_files, priors=priors)
    check = next(check for check in result['checks'] if check['name'] == 'template_fit')
    assert check['verdict'] == verdict, check['value']


def test_thresholds_of_the_user_count(head, head_files, tmp_path):
    strict = {'brain_volume_low': {'warn': 2100.0, 'fail': 2000.0}}
    result = assess(tmp_path, head_files, thresholds=strict)
    check = next(check for check in result['checks'] if check['name'] == 'brain_volume_low')
    assert check['verdict'] == result['verdict'] == 'fail'
    with pytest.raises(UsageError):
        assess(tmp_path, head_files, thresholds={'dice_gn': {'warn': 1.0}})


# Pictures


@pytest.fixture
def cropped(head, tmp_path, save_image) -> dict[str, str]:
    """What the later steps work on: the brain, cut out of the whole image."""
    box = grids.bounding_box(head.mask, 2)
    affine = grids.crop_affine(head.affine, box)
    brain = np.where(head.mask, head.data, 0)[box]
    arrays = {'after': (brain / 500).astype(np.float32), 'mask_file': head.mask[box].astype(np.uint8), 'dseg': head.labels[box]}  # fmt: skip
    return {key: save_image(tmp_path / f'{key}.nii', data, affine) for key, data in arrays.items()}


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == 'WEBP'
        return np.asarray(picture.convert('RGBA'), dtype=float)


def named(paths: list[str]) -> dict[str, str]:
    return {Path(path).stem.rsplit('_desc-', 1)[-1]: path for path in paths}


def test_pictures_show_something_and_lie_over_each_other(head_files, cropped, tmp_path):
    tool = DrawFigures(head=head_files['image'], stem='sub-01_ses-a_T1w', **cropped)
    paths = tool.run(cwd=str(tmp_path)).outputs.figures
    found = named(paths)
    assert set(found) == {'before', 'after', 'contours', 'change', 'mask'}
    assert all(Path(path).name.startswith('sub-01_ses-a_T1w_desc-') for path in paths)
    drawn = {name: pixels(path) for name, path in found.items()}
    assert len({drawn[name].shape for name in ('before', 'after', 'contours')}) == 1
    for name, picture in drawn.items():
        assert picture.std() > 5, name
    # The same brain on another scale looks the same: each picture has its own window.
    before, after = (drawn[name][..., 0].ravel() for name in ('before', 'after'))
    assert np.corrcoef(before, after)[0, 1] > 0.99
    # The mask is a coloured line on the whole head, whose scalp is the brightest of all.
    coloured, white = (
        {name: count(drawn[name]) for name in ('before', 'mask')} for count in (colour, bright)
    )
    assert coloured['mask'] > 1000 > 10 * coloured['before']
    assert white['mask'] > 5 * white['before']


def colour(picture: np.ndarray) -> int:
    return int((np.ptp(picture[..., :3], axis=-1) > 80).sum())


def bright(picture: np.ndarray) -> int:
    return int((picture[..., :3].min(axis=-1) > 250).sum())


def test_the_cut_is_put_where_it_belongs(head, head_files, cropped, tmp_path, save_image):
    """A brain whose cut starts elsewhere must be drawn elsewhere: contours follow the affine, not the array."""
    straight = (
        DrawFigures(head=head_files['image'], stem='a', **cropped).run(cwd=str(tmp_path)).outputs.figures
    )
    box = grids.bounding_box(head.mask, 4)
    affine = grids.crop_affine(head.affine, box)
    arrays = {
        'after': (np.where(head.mask, head.data, 0)[box] / 500).astype(np.float32),
        'mask_file': head.mask[box].astype(np.uint8), 'dseg': head.labels[box],
    }  # fmt: skip
    other = {key: save_image(tmp_path / f'wide_{key}.nii', data, affine) for key, data in arrays.items()}
    wide = DrawFigures(head=head_files['image'], stem='b', **other).run(cwd=str(tmp_path)).outputs.figures
    for name in ('contours', 'after'):
        first, second = pixels(named(straight)[name]), pixels(named(wide)[name])
        np.testing.assert_allclose(first, second, atol=1)


def test_a_brain_at_the_edge_of_the_image_can_be_drawn(head, tmp_path, save_image, cropped):
    """A scan that came cut to the brain has no room around it."""
    box = grids.bounding_box(head.mask)
    affine = grids.crop_affine(head.affine, box)
    files = {
        'head': head.data[box], 'after': (head.data * head.mask)[box].astype(np.float32),
        'mask_file': head.mask[box].astype(np.uint8), 'dseg': head.labels[box],
    }  # fmt: skip
    saved = {key: save_image(tmp_path / f'tight_{key}.nii', data, affine) for key, data in files.items()}
    assert len(DrawFigures(stem='x', **saved).run(cwd=str(tmp_path)).outputs.figures) == 5


def test_registration_is_drawn_where_there_is_one(head_files, cropped, tmp_path):
    tool = DrawFigures(
        head=head_files['image'],
        stem='x',
        warped=head_files['brain'],
        template=head_files['brain'],
        **cropped,
    )
    found = named(tool.run(cwd=str(tmp_path)).outputs.figures)
    assert 'registration' in found
    assert pixels(found['registration']).std() > 5


def test_positions_in_the_picture_of_the_registration_are_those_of_the_template(
    head, head_files, cropped, tmp_path, monkeypatch
):
    from bidsharm.reports import figures

    given = {}

    def draw(**options):
        given.update(options)
        return {}

    monkeypatch.setattr(figures, 'draw_scan_figures', draw)
    files = {'warped': head_files['brain'], 'template': head_files['brain']}
    DrawFigures(head=head_files['image'], stem='x', **files, **cropped).run(cwd=str(tmp_path))
    np.testing.assert_allclose(given['template_affine'], head.affine)


def test_whole_image_of_another_size_is_still_cut_right(head, cropped, tmp_path, save_image):
    """Only the neighbourhood of the brain is drawn, however large the field of view."""
    wide = np.pad(head.data, 20)
    affine = head.affine.copy()
    affine[:3, 3] -= 20 * 4
    file = save_image(tmp_path / 'wide.nii', wide, affine)
    plain = save_image(tmp_path / 'plain.nii', head.data, head.affine)
    pictures = [
        named(DrawFigures(head=path, stem=stem, **cropped).run(cwd=str(tmp_path)).outputs.figures)
        for path, stem in ((file, 'wide'), (plain, 'plain'))
    ]
    assert nib.load(file).shape != nib.load(plain).shape
    np.testing.assert_allclose(pixels(pictures[0]['before']), pixels(pictures[1]['before']), atol=1)
