"""One image in, one image out: the promises of `bidsharm.harmonize`."""

from __future__ import annotations

import subprocess
import sys
import types

import nibabel as nib
import numpy as np
import pytest

import bidsharm
from bidsharm.errors import ConfigurationError, ScanError, UsageError
from bidsharm.simulation.acquisition import acquire
from bidsharm.simulation.heads import load_template
from bidsharm.simulation.presets import PRESETS
from bidsharm.simulation.rendering import render, scan_grid


def _head(scanner: int, *, whole: bool) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return the template's head or brain in a built-in scanner at 2 mm, in LAS, and its mask."""
    shape, affine = scan_grid(2.0)
    head = render(load_template(head=whole, step=2), shape=shape, affine=affine)
    found = acquire(head, PRESETS[scanner], 'T1w', np.random.default_rng(scanner))
    data = found.stored if whole else np.where(head.brain_mask, found.stored, 0)
    turned = affine @ np.diag([-1.0, 1, 1, 1])
    turned[:3, 3] += affine[:3, 0] * (shape[0] - 1)
    return nib.Nifti1Image(data[::-1].astype(np.int16), turned), head.brain_mask[::-1]


@pytest.fixture(scope='module')
def brains():
    """The same brain in two scanners."""
    return [_head(number, whole=False)[0] for number in (0, 2)]


@pytest.fixture(scope='module')
def mask(brains):
    return nib.Nifti1Image((np.asarray(brains[0].dataobj) > 0).astype(np.uint8), brains[0].affine)


def inside(image, mask) -> np.ndarray:
    return np.asarray(image.dataobj)[np.asarray(mask.dataobj) > 0]


def test_a_method_keeps_its_promise_on_the_grid_of_the_image(brains, mask):
    before = np.asarray(brains[0].dataobj).copy()
    result = bidsharm.harmonize(brains[0], harmonizer='zscore', mask=mask, progress=False)
    assert result.image.shape == brains[0].shape
    np.testing.assert_allclose(result.image.affine, brains[0].affine)
    assert nib.aff2axcodes(result.image.affine) == ('L', 'A', 'S')
    found = inside(result.image, mask)
    assert abs(found.mean()) < 1e-3
    assert found.std() == pytest.approx(1, abs=1e-3)
    assert not np.asarray(result.image.dataobj)[np.asarray(mask.dataobj) == 0].any()
    np.testing.assert_array_equal(np.asarray(brains[0].dataobj), before)
    np.testing.assert_array_equal(np.asarray(result.mask.dataobj), np.asarray(mask.dataobj))
    # z-scores undo a change of scale, so the order of what the method saw is the order of what it gave
    np.testing.assert_array_equal(np.argsort(inside(result.before, mask)[:1000], kind='stable'), np.argsort(found[:1000], kind='stable'))  # fmt: skip


def test_a_reference_is_aimed_at(brains, mask):
    aim = bidsharm.harmonize(brains[1], harmonizer='identity', mask=mask, progress=False)
    for target in (brains[1], [brains[1]]):
        result = bidsharm.harmonize(brains[0], target, harmonizer='histogram', mask=mask, progress=False)
        levels = [np.quantile(inside(each, mask), (0.1, 0.5, 0.9)) for each in (result.image, aim.image)]
        np.testing.assert_allclose(*levels, rtol=0.03)
    apart = np.quantile(inside(result.before, mask), 0.5) / np.quantile(inside(aim.image, mask), 0.5)
    assert abs(apart - 1) > 0.1


def test_the_network_gives_an_uncertainty(brains, mask):
    result = bidsharm.harmonize(brains[0], harmonizer='isotone', mask=mask, progress=False)
    assert result.details['way'] == 'network'
    assert result.uncertainty is not None
    assert inside(result.uncertainty, mask).min() > 0


def test_paths_serve_and_correction_is_left_out_on_wish(brains, mask, tmp_path):
    file, mask_file = tmp_path / 'a b.nii.gz', tmp_path / 'mask.nii.gz'
    nib.save(brains[0], file)
    nib.save(mask, mask_file)
    raw = bidsharm.harmonize(
        str(file), harmonizer='identity', mask=mask_file, correct_bias=False, progress=False
    )
    np.testing.assert_allclose(inside(raw.image, mask), inside(brains[0], mask))
    corrected = bidsharm.harmonize(file, harmonizer='identity', mask=mask_file, progress=False)
    assert np.abs(inside(corrected.image, mask) / inside(raw.image, mask) - 1).max() > 0.01


def test_a_brain_is_found_in_a_head_and_a_stripped_image_is_taken_as_it_is(brains, mask):
    head, brain = _head(0, whole=True)
    found = np.asarray(bidsharm.harmonize(head, harmonizer='robust', progress=False).mask.dataobj) > 0
    assert 2 * (found & brain).sum() / (found.sum() + brain.sum()) > 0.9
    stripped = bidsharm.harmonize(brains[0], harmonizer='robust', progress=False)
    kept = np.asarray(stripped.mask.dataobj) > 0
    given = np.asarray(mask.dataobj) > 0
    assert 2 * (kept & given).sum() / (kept.sum() + given.sum()) > 0.999


def test_the_figure_shows_both(brains, mask):
    result = bidsharm.harmonize(brains[0], harmonizer='robust', mask=mask, correct_bias=False, progress=False)
    pixels = np.asarray(result.figure().convert('L'), dtype=float)
    above, below = np.split(pixels, 2)
    assert pixels.shape[1] == 1400
    assert above.std() > 20
    # a scale does not change a grey scale that follows the brain
    assert np.abs(above - below).mean() < 1


def test_progress_is_shown_on_wish(brains, mask, capsys):
    bidsharm.harmonize(brains[0], harmonizer='robust', mask=mask, progress=False)
    assert capsys.readouterr().out == ''


def test_a_terminal_shows_each_step(brains, mask, monkeypatch, capsys):
    monkeypatch.setenv('FORCE_COLOR', '1')  # rich then takes what is captured for a terminal
    bidsharm.harmonize(brains[0], harmonizer='robust', mask=mask, correct_bias=False)
    shown = capsys.readouterr().out
    places = [shown.index(step) for step in ('brain mask', 'bias field', 'harmonization')]
    assert places == sorted(places)


def test_a_notebook_shows_each_step_in_one_output_that_empties(brains, mask, monkeypatch):
    import rich.console

    shown = []

    class Handle:
        def update(self, what: object, raw: bool = False) -> None:
            shown.append(what['text/plain'] if raw else what._repr_mimebundle_([], [])['text/plain'])

    fake = types.ModuleType('IPython.display')
    fake.display = lambda what, display_id: Handle()
    monkeypatch.setitem(sys.modules, 'IPython', types.ModuleType('IPython'))
    monkeypatch.setitem(sys.modules, 'IPython.display', fake)
    monkeypatch.setattr(rich.console, '_is_jupyter', lambda: True)
    bidsharm.harmonize(brains[0], harmonizer='robust', mask=mask, correct_bias=False)
    monkeypatch.undo()
    assert [text.split('\x1b')[0].strip() for text in shown] == [
        'brain mask',
        'bias field',
        'harmonization',
        '',
    ]


@pytest.mark.parametrize(
    ('options', 'error', 'says'),
    [
        ({'harmonizer': 'nyul'}, UsageError, 'target=\\['),
        ({'harmonizer': 'none'}, UsageError, 'none'),
        ({'contrast': 'bold'}, UsageError, 'bold'),
        ({'target': []}, UsageError, 'no image'),
        ({'device': 'cuda:99'}, ConfigurationError, 'cuda:99'),
        ({'target': 'nowhere.nii.gz'}, ScanError, 'does not exist'),
    ],
)
def test_what_cannot_be_says_why(brains, mask, options, error, says):
    with pytest.raises(error, match=says):
        bidsharm.harmonize(brains[0], mask=mask, progress=False, **options)


def test_bad_images_are_refused(brains, mask):
    series = nib.Nifti1Image(np.zeros((40, 40, 40, 3), np.float32), np.eye(4))
    with pytest.raises(ScanError, match='one 3-D volume'):
        bidsharm.harmonize(series, progress=False)
    moved = nib.Nifti1Image(np.asarray(mask.dataobj), mask.affine + np.eye(4) * 0.5)
    with pytest.raises(ScanError, match='another grid'):
        bidsharm.harmonize(brains[0], mask=moved, progress=False)
    few = np.zeros(mask.shape, np.uint8)
    few[40:43, 40:43, 40:43] = 1
    with pytest.raises(ScanError, match='no brain'):
        bidsharm.harmonize(brains[0], mask=nib.Nifti1Image(few, mask.affine), progress=False)


def test_importing_the_package_is_light():
    code = 'import sys, bidsharm; print(*(name in sys.modules for name in ("numpy", "nibabel", "torch", "nipype")))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False'] * 4
    code = 'import sys, bidsharm; bidsharm.harmonize; print("nipype" in sys.modules, "torch" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False'] * 2
    assert {'harmonize', 'HarmonizedImage', '__version__'} <= set(dir(bidsharm))
    with pytest.raises(AttributeError, match='nothing'):
        _ = bidsharm.nothing
