"""The mosaics: orientation, layout, and what they show."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from bidsharm.errors import ScanError
from bidsharm.reports import figures

SHAPE = (60, 70, 50)


def head() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """An ellipsoid brain on a 2 mm RAS grid, centred on the world's origin, with a bright ball on its left."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-60, -70, -50]
    x, y, z = nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1)).transpose(3, 0, 1, 2)
    mask = (x / 50) ** 2 + (y / 60) ** 2 + (z / 40) ** 2 < 1
    before = np.where(mask, 100.0, 20.0)
    before[(x / 55) ** 2 + (y / 65) ** 2 + (z / 48) ** 2 > 1] = 0
    before[(x + 30) ** 2 + y**2 + z**2 < 12**2] = 200
    dseg = np.where(mask, 1, 0)
    dseg[(x / 30) ** 2 + (y / 40) ** 2 + (z / 25) ** 2 < 1] = 2
    return {'before': before, 'after': before * mask / 100, 'mask': mask, 'dseg': dseg}, affine


def reoriented(volumes: dict[str, np.ndarray], affine: np.ndarray, codes: str) -> tuple[dict, np.ndarray]:
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    moved = {name: nib.orientations.apply_orientation(volume, turn) for name, volume in volumes.items()}
    return moved, affine @ nib.orientations.inv_ornt_aff(turn, SHAPE)


def grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert('L'), float)


@pytest.mark.parametrize('codes', ['RAS', 'LAS', 'LPS', 'PIR'])
def test_left_is_shown_on_the_side_that_says_left(tmp_path: Path, codes: str) -> None:
    volumes, affine = reoriented(*head(), codes)
    drawn = figures.draw_scan_figures(**volumes, affine=affine, out_dir=tmp_path, stem='sub-1_T1w')
    picture = grey(drawn['before'])
    cell = figures.WIDTH // figures.COLUMNS
    layout = figures.plan(
        figures.to_ras(volumes['mask'], affine), figures._ras_affine(affine, volumes['mask'].shape), 4.0
    )
    tops = [top for row, _, left, top in layout.boxes() if left // cell == 3]
    for row in (0, 1):  # axial and coronal, middle slice
        top, height = tops[row], layout.panel(row)[1]
        panel = picture[top + 25 : top + height - 30, 3 * cell : 4 * cell]
        assert np.median(np.nonzero(panel > 200)[1]) < cell / 2
    # The letter that is drawn into the left corner is an L, not an R.
    corner = picture[tops[0] + layout.panel(0)[1] - 24 : tops[0] + layout.panel(0)[1], 4:28]
    assert likeness(corner, 'L') > likeness(corner, 'R') + 0.2


def likeness(corner: np.ndarray, letter: str) -> float:
    """Correlation with a letter drawn at the same place."""
    stamp = Image.new('L', (corner.shape[1], corner.shape[0]))
    ImageDraw.Draw(stamp).text((4, corner.shape[0] - 2), letter, 255, font=figures._font(22), anchor='ls')
    return float(np.corrcoef(corner.ravel(), np.asarray(stamp, float).ravel())[0, 1])


def test_orientation_of_the_grid_does_not_change_the_pictures(tmp_path: Path) -> None:
    pictures = []
    for codes in ('RAS', 'SLP'):
        volumes, affine = reoriented(*head(), codes)
        drawn = figures.draw_scan_figures(**volumes, affine=affine, out_dir=tmp_path, stem=f'scan-{codes}')
        pictures.append({name: path.read_bytes() for name, path in drawn.items()})
    assert pictures[0] == pictures[1]


def test_files_names_and_shared_layout(tmp_path: Path) -> None:
    volumes, affine = head()
    drawn = figures.draw_scan_figures(
        **volumes, affine=affine, out_dir=tmp_path / 'figures', stem='sub-1_T1w',
        template_overlay=(volumes['before'], volumes['before']), template_affine=affine,
    )  # fmt: skip
    assert set(drawn) == {'before', 'after', 'contours', 'change', 'mask', 'registration'}
    assert {path.name for path in drawn.values()} == {f'sub-1_T1w_desc-{name}.webp' for name in drawn}
    assert {path.name for path in (tmp_path / 'figures').iterdir()} == {path.name for path in drawn.values()}
    sizes = {name: Image.open(path).size for name, path in drawn.items()}
    assert sizes['before'] == sizes['after'] == sizes['contours']
    overlay = np.asarray(Image.open(drawn['contours']).convert('RGBA'))
    assert 0 < (overlay[..., 3] > 0).mean() < 0.2  # lines on a transparent ground


def test_registration_is_left_out_without_a_template(tmp_path: Path) -> None:
    volumes, affine = head()
    assert 'registration' not in figures.draw_scan_figures(
        **volumes, affine=affine, out_dir=tmp_path, stem='s'
    )


def test_contours_lie_on_the_boundary_of_white_matter(tmp_path: Path) -> None:
    volumes, affine = head()
    path = figures.draw_scan_figures(**volumes, affine=affine, out_dir=tmp_path, stem='s')['contours']
    overlay = np.asarray(Image.open(path).convert('RGBA')).astype(int)
    layout = figures.plan(volumes['mask'], affine, 4.0)
    white = figures.mosaic(volumes['dseg'] == 2, layout)
    orange = (overlay[..., 3] > 120) & (overlay[..., 0] > overlay[..., 2] + 60)
    assert orange.sum() > 500
    assert np.abs(white[orange] - 0.5).mean() < 0.3


def test_voxels_keep_their_aspect() -> None:
    affine = np.diag([1.0, 0.5, 4.0, 1.0])
    layout = figures.plan(np.ones((100, 200, 25), bool), affine, 0.0)
    for row in range(3):
        width, height = layout.panel(row)
        assert width == pytest.approx(height, abs=1)


def test_a_linear_map_leaves_the_change_map_grey(tmp_path: Path) -> None:
    volumes, affine = head()
    volumes['before'] = volumes['before'] + np.random.default_rng(1).normal(0, 5, SHAPE) * volumes['mask']
    volumes['after'] = volumes['mask'] * (3 * volumes['before'] + 7)
    path = figures.draw_scan_figures(**volumes, affine=affine, out_dir=tmp_path, stem='s')['change']
    picture = np.asarray(Image.open(path)).astype(float)[:-48]  # without the colour bar
    assert (picture.max(axis=2) - picture.min(axis=2)).max() < 12


def test_intensities_around_zero_look_like_all_others(tmp_path: Path) -> None:
    """A z-score is half negative: the picture must not be cut off at 0, and the background stays black."""
    volumes, affine = head()
    noise = np.random.default_rng(1).normal(0, 20, SHAPE)
    volumes['before'] = volumes['before'] + noise * volumes['mask']
    inside = volumes['before'][volumes['mask']]
    positive: dict[str, np.ndarray] = {}
    for name, image in (('brain', volumes['before']), ('score', (volumes['before'] - inside.mean()) / 20)):
        shown = {**volumes, 'after': image * volumes['mask']}
        overlay = (image * volumes['mask'], volumes['mask'].astype(float))
        drawn = figures.draw_scan_figures(
            **shown, affine=affine, out_dir=tmp_path, stem=name, template_overlay=overlay, template_affine=affine
        )  # fmt: skip
        for figure in ('after', 'registration'):
            expected = positive.setdefault(figure, grey(drawn[figure]))
            assert np.abs(grey(drawn[figure]) - expected).max() < 4
        assert grey(drawn['after'])[40, 3] < 10


def test_change_map_is_blue_where_darker_and_orange_where_brighter(tmp_path: Path) -> None:
    volumes, affine = head()
    rng = np.random.default_rng(1)
    volumes['before'] = volumes['before'] + rng.normal(0, 5, SHAPE) * volumes['mask']
    tilt = np.linspace(-0.3, 0.3, SHAPE[0])[:, None, None]
    volumes['after'] = volumes['mask'] * (volumes['before'] / 100 + tilt)
    picture = np.asarray(
        Image.open(figures.draw_scan_figures(**volumes, affine=affine, out_dir=tmp_path, stem='s')['change'])
    ).astype(float)
    cell = figures.WIDTH // figures.COLUMNS
    panel = picture[30:170, 3 * cell : 4 * cell]  # axial, middle slice: darker left, brighter right
    warmth = (panel[..., 0] - panel[..., 2]).mean(axis=0)
    assert warmth[30 : cell // 3].mean() < -15
    assert warmth[-cell // 3 : -30].mean() > 15


@pytest.mark.parametrize('fill', [np.nan, np.inf, 0.0])
def test_odd_values_and_an_empty_mask_are_drawn(tmp_path: Path, fill: float) -> None:
    volumes, affine = head()
    volumes['before'] = np.full(SHAPE, fill)
    volumes['after'] = np.full(SHAPE, fill)
    volumes['mask'] = np.zeros(SHAPE, bool)
    drawn = figures.draw_scan_figures(**volumes, affine=affine, out_dir=tmp_path, stem='s')
    assert all(Image.open(path).size[0] == figures.WIDTH for path in drawn.values())


def test_arrays_of_different_grids_are_refused(tmp_path: Path) -> None:
    volumes, affine = head()
    volumes['after'] = volumes['after'][:-1]
    with pytest.raises(ScanError, match='do not share one 3-D grid'):
        figures.draw_scan_figures(**volumes, affine=affine, out_dir=tmp_path, stem='s')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('affine', [np.full((4, 4), np.nan), np.zeros((4, 4))])
def test_an_affine_without_orientation_is_refused(tmp_path: Path, affine: np.ndarray) -> None:
    volumes, _ = head()
    with pytest.raises(ScanError, match='which way'):
        figures.draw_scan_figures(**volumes, affine=affine, out_dir=tmp_path, stem='s')


@pytest.mark.real
def test_a_real_thick_slice_scan_is_drawn_small(tmp_path: Path) -> None:
    folder = os.environ.get('BIDSHARM_REAL_DATA')
    if not folder:
        pytest.skip('set BIDSHARM_REAL_DATA to the folder with the real scans')
    image = nib.load(Path(folder) / 'sub-ms01' / 'ses-1' / 'anat' / 'sub-ms01_ses-1_T1w.nii.gz')
    data = image.get_fdata(dtype=np.float32)
    mask = data > np.percentile(data, 80)
    dseg = mask * (1 + (data > np.percentile(data, 92)))
    drawn = figures.draw_scan_figures(
        before=data, after=data * mask, mask=mask, dseg=dseg, affine=image.affine, out_dir=tmp_path, stem='s'
    )
    assert all(5_000 < path.stat().st_size < 400_000 for path in drawn.values())
