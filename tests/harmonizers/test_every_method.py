"""What holds for every method there is, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bidsharm.errors import ScanError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import NEED_PHRASES, Canonical, Cohort, Harmonizer, Site
from bidsharm.harmonizers.linear import check_scan
from bidsharm.harmonizers.trained import TrainedHarmonizer

#: Methods that are not trained; the others have a suite of their own (test_every_trained_method.py).
METHODS = [
    name
    for name in sorted(registry._BUILTIN)
    if issubclass(registry.find(name), Harmonizer) and not issubclass(registry.find(name), TrainedHarmonizer)
]


#: Those of them that change intensities alike everywhere.
ONE_TO_ONE = [name for name in METHODS if not registry.card(name).changes_anatomy]


@pytest.fixture(autouse=True)
def balls_lie_in_the_middle(monkeypatch):
    """Lay the brains of phantoms on that of the template by their middles, on a coarse grid: a ball can be turned in any way."""
    from bidsharm.harmonizers import registered, training_data
    from bidsharm.imaging.alignment import template_brain

    def middle(mask, affine):
        return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]

    def moved(scan, anchor):
        world = np.eye(4)
        brain = template_brain()
        world[:3, 3] = middle(brain.mask, brain.affine) - middle(scan.mask, scan.affine)
        return world

    monkeypatch.setattr(training_data, 'align', moved)
    monkeypatch.setattr(registered, 'COMMON_MM', 6.0)


def suited(name, cohort, make_scan):
    """Return the cohort with what a method cannot learn without."""
    if 'tissue' not in registry.card(name).needs_fit:
        return cohort
    tissue = make_scan(tissue=True).tissue
    return Cohort([replace(scan, tissue=tissue) for scan in cohort.scans])


@pytest.fixture(scope='module')
def fits():
    """Methods that were fitted to the cohort, by name: harmonizing does not change them."""
    return {}


@pytest.fixture(params=METHODS)
def fitted(request, cohort, make_scan, fits):
    if request.param not in fits:
        harmonizer = registry.get(request.param)()
        harmonizer.fit(suited(request.param, cohort, make_scan))
        fits[request.param] = harmonizer
    return fits[request.param]


@pytest.mark.parametrize('name', sorted(registry._BUILTIN))
def test_the_card_is_complete(name):
    card = registry.card(name)
    assert card.name == name
    assert card.title
    assert card.paper
    assert {*card.needs_fit, *card.needs_apply} <= set(NEED_PHRASES)
    assert (card.fidelity == 'faithful') or card.deviations
    assert json.loads(json.dumps(card.to_dict())) == card.to_dict()


@pytest.mark.parametrize('shape', [(24, 24, 24), (17, 23, 19), (9, 40, 13)])
@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.int16, np.uint16])
def test_output_is_float32_on_the_grid_and_zero_outside(fitted, make_scan, shape, dtype):
    scan = make_scan(shape=shape)
    scan = replace(scan, data=scan.data.astype(dtype), mask=scan.mask.astype(np.uint8))
    image = fitted.harmonize(scan, Canonical()).image
    assert image.dtype == np.float32
    assert image.shape == shape
    assert np.isfinite(image).all()
    assert np.count_nonzero(image[scan.mask == 0]) == 0
    assert image[scan.mask == 1].std() > 0


def test_the_input_is_not_changed(fitted, make_scan):
    scan = make_scan()
    before = scan.data.copy()
    fitted.harmonize(scan, Canonical())
    assert np.array_equal(scan.data, before)


def test_the_same_scan_gives_the_same_result(fitted, make_scan, cohort):
    scan = make_scan(seed=15)
    first = fitted.harmonize(scan, Canonical())
    fitted.harmonize(make_scan(seed=16), Canonical())
    np.random.seed(99)
    second = fitted.harmonize(scan, Canonical())
    again = type(fitted)()
    again.fit(suited(fitted.card.name, cohort, make_scan))
    third = again.harmonize(scan, Canonical())
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.image, third.image)
    assert json.loads(json.dumps(first.details, allow_nan=False)) == first.details


@pytest.mark.parametrize('fitted', ONE_TO_ONE, indirect=True)
def test_order_of_intensities_is_kept(fitted, make_scan):
    scan = make_scan(seed=18)
    order = np.argsort(scan.data[scan.mask])
    mapped = fitted.harmonize(scan, Canonical()).image[scan.mask][order]
    assert (np.diff(mapped) >= 0).all()


def test_voxels_outside_the_mask_do_not_matter(fitted, make_scan):
    scan = make_scan()
    other = scan.data.copy()
    other[~scan.mask] = np.nan
    assert np.array_equal(
        fitted.harmonize(scan, Canonical()).image,
        fitted.harmonize(replace(scan, data=other), Canonical()).image,
    )


def test_save_and_load_give_equal_outputs(fitted, make_scan, tmp_path):
    scan = make_scan(seed=19)
    bundle.save(fitted, tmp_path / 'model')
    loaded = bundle.load(tmp_path / 'model')
    assert type(loaded) is type(fitted)
    assert np.array_equal(
        loaded.harmonize(scan, Canonical()).image, fitted.harmonize(scan, Canonical()).image
    )
    assert np.array_equal(loaded.target_quantiles('T1w'), fitted.target_quantiles('T1w'))


@pytest.mark.parametrize('name', [name for name in METHODS if 'site' in registry.card(name).targets])
def test_scans_of_two_sites_come_closer(name, cohort):
    harmonizer = registry.get(name)()
    harmonizer.fit(cohort, target=Site('A'))

    def distance(images):
        quantiles = [np.percentile(image, [10, 50, 90]) for image in images]
        return np.abs(np.mean(quantiles[:3], axis=0) - np.mean(quantiles[3:], axis=0)).max()

    before = [scan.data[scan.mask] for scan in cohort.scans]
    after = [harmonizer.harmonize(scan, Site('A')).image[scan.mask] for scan in cohort.scans]
    assert distance(after) < 0.05 * distance(before)


def spoil_nan(scan):
    data = scan.data.copy()
    data[12, 12, 12] = np.nan
    return replace(scan, data=data)


def keep(scan, count):
    mask = np.zeros_like(scan.mask)
    mask.ravel()[np.flatnonzero(scan.mask)[:count]] = True
    return replace(scan, mask=mask)


BAD = {
    'not finite': spoil_nan,
    'no voxel': lambda scan: replace(scan, mask=np.zeros_like(scan.mask)),
    'same intensity': lambda scan: replace(scan, data=np.full_like(scan.data, 7)),
    'one 3-D grid': lambda scan: replace(scan, mask=scan.mask[:-1]),
    'tissue probabilities': lambda scan: replace(scan, tissue=np.zeros((3, 2, 2, 2), np.float32)),
    'only 1 voxels': lambda scan: keep(scan, 1),
    'only 99 voxels': lambda scan: keep(scan, 99),
}


@pytest.mark.parametrize('message', BAD)
def test_bad_scans_are_refused_with_advice(fitted, make_scan, message):
    with pytest.raises(ScanError, match=message) as caught:
        fitted.harmonize(BAD[message](make_scan(name='sub-07_T1w')), Canonical())
    assert caught.value.where == 'sub-07_T1w'
    assert caught.value.fix


def test_the_smallest_masks_work_or_are_refused_in_words(fitted, make_scan):
    scan = keep(make_scan(), 100)
    try:
        values = fitted.harmonize(scan, Canonical()).image[scan.mask]
    except ScanError as error:
        values = np.full(100, bool(error.where and error.fix))
    assert values.all()
    assert np.isfinite(values).all()


def test_check_scan_returns_the_brain(make_scan):
    scan = make_scan()
    values = check_scan(scan)
    assert values.dtype == np.float64
    assert np.array_equal(values, scan.data[scan.mask])
