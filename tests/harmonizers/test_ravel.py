"""RAVEL on cohorts whose unwanted variation was planted: it goes, and what people differ by stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bidsharm.errors import ConfigurationError, MissingNeed, ScanError, UsageError
from bidsharm.harmonizers import bundle, registered, training_data, unwanted
from bidsharm.harmonizers.contract import Canonical, Cohort, Execution, Reference, Scan, Site
from bidsharm.harmonizers.linear import WhiteStripe
from bidsharm.harmonizers.native import harmonize_scan, on_model_grid
from bidsharm.harmonizers.ravel import LEAST_CONTROLS, Ravel
from bidsharm.imaging.alignment import Grid, template_brain

SHAPE = (40, 40, 40)
PLACES = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
RADIUS = np.linalg.norm(PLACES, axis=0)
FLUID_MM, GREY_MM, BRAIN_MM = 9.0, 14.0, 18.0
#: What a scanner of strength 1 does to fluid and grey matter: brighter, and more so at one side. White matter stays, as White Stripe has it.
PATTERN = 100 * (1 + PLACES[0] / BRAIN_MM) * (RADIUS < GREY_MM)
#: Where some people differ from others: in white matter, far from fluid.
SPOT = np.linalg.norm(PLACES - np.array([0, 0, 16.0])[:, None, None, None], axis=0) < 1.9
GREY, WHITE = (RADIUS > 10.5) & (RADIUS < 13), (RADIUS > 15) & (RADIUS < 17) & ~SPOT
STRENGTHS = (-1.0, 0.6, -0.4, 1.0, 0.2, -0.8, 0.7, -0.3)
#: Not correlated with the strengths (see the test that needs it).
AFFECTED = (True, False, False, True, True, False, False, True)


def head(
    strength: float = 0.0, *, seed: int = 0, affected: bool = False, fluid_mm: float = FLUID_MM, **known
) -> Scan:
    """Return fluid in the middle, grey matter around it and white matter around that, as a scanner of a given strength shows them."""
    labels = np.select([fluid_mm > RADIUS, RADIUS < GREY_MM, RADIUS < BRAIN_MM], [1, 2, 3], 0)
    clean = np.array([0.0, 200.0, 600.0, 900.0])[labels] + strength * PATTERN + 150.0 * (SPOT * affected)
    data = clean + np.random.default_rng(seed).normal(0, 50, SHAPE)
    mask = labels > 0
    data[~mask] = 4321.0  # what lies outside must not matter
    tissue = np.stack([labels == index for index in (1, 2, 3)]).astype(np.float32)
    return Scan(
        data.astype(np.float32), mask, np.eye(4), 'T1w', f'sub-{seed:02d}_T1w', tissue=tissue, **known
    )


def people(**known) -> list[Scan]:
    return [
        head(a, seed=i, affected=b, **known) for i, (a, b) in enumerate(zip(STRENGTHS, AFFECTED, strict=True))
    ]


@pytest.fixture(autouse=True)
def balls_lie_in_the_middle(monkeypatch):
    """Lay balls in the middle of a small common grid as they are: to register them with a head says nothing."""
    grid = Grid((32, 32, 32), np.diag([2.0, 2.0, 2.0, 1.0]))
    middle = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]

    def moved(scan: Scan):
        world = np.eye(4)
        centre = np.argwhere(scan.mask).mean(axis=0)
        world[:3, 3] = middle - (scan.affine[:3, :3] @ centre + scan.affine[:3, 3])
        return world

    monkeypatch.setattr(registered, 'to_template', moved)
    monkeypatch.setattr(training_data, 'common_frame', lambda voxel_mm: grid)


@pytest.fixture(scope='module')
def cohort() -> Cohort:
    return Cohort(people())


@pytest.fixture
def fitted(cohort) -> Ravel:
    method = Ravel()
    method.fit(cohort)
    return method


def tilt(image) -> float:
    """Return how much of the pattern of the scanners is in the grey matter of an image."""
    pattern = PATTERN[GREY] - PATTERN[GREY].mean()
    return float(pattern @ image[GREY] / (pattern @ pattern))


def striped(scan: Scan):
    return WhiteStripe().harmonize(scan, Canonical()).image


def test_what_scanners_add_goes(fitted, cohort):
    before = np.std([tilt(striped(scan)) for scan in cohort.scans])
    after = np.std([tilt(fitted.harmonize(scan, Canonical()).image) for scan in cohort.scans])
    assert after < 0.15 * before


def test_what_people_differ_by_stays(fitted, cohort):
    assert abs(np.corrcoef(STRENGTHS, AFFECTED)[0, 1]) < 0.1

    def difference(images):
        spots = np.array([image[SPOT].mean() - image[WHITE].mean() for image in images])
        return spots[np.array(AFFECTED)].mean() - spots[~np.array(AFFECTED)].mean()

    before = difference([striped(scan) for scan in cohort.scans])
    after = difference([fitted.harmonize(scan, Canonical()).image for scan in cohort.scans])
    assert before > 3
    assert after == pytest.approx(before, rel=0.15)


def test_a_scan_that_comes_later_is_corrected_too(fitted):
    """The strength of no scan of the cohort, and a difference that nobody of the cohort has."""
    scan = head(0.9, seed=50)
    result = fitted.harmonize(scan, Canonical())
    assert abs(tilt(result.image)) < 0.4 * abs(tilt(striped(scan)))
    unaffected = fitted.harmonize(head(0.0, seed=50), Canonical())
    np.testing.assert_allclose(result.image[SPOT].mean(), unaffected.image[SPOT].mean(), atol=2)
    assert not result.warnings


def test_scans_of_the_cohort_are_corrected_as_the_equations_say(fitted, cohort):
    looks = [registered.look_at(scan) for scan in cohort.scans]
    volume = np.stack([look.values for look in looks], axis=1).astype(np.float64)
    controls = np.all([look.fluid for look in looks], axis=0)
    brain = np.all([look.inside for look in looks], axis=0)
    centred = volume[controls] - volume[controls].mean(axis=1, keepdims=True)
    factor = np.linalg.svd(centred, full_matrices=False)[2][0]
    design = np.column_stack([np.ones(len(looks)), factor])
    gamma = np.linalg.lstsq(design, volume[brain].T, rcond=None)[0][1]
    expected = volume[brain] - np.outer(gamma, factor)
    assert brain.sum() > 2000
    learned = fitted._learned['T1w']
    for index, (scan, look) in enumerate(zip(cohort.scans, looks, strict=True)):
        scores = np.array(fitted.harmonize(scan, Canonical()).details['scores'])
        np.testing.assert_allclose(np.abs(scores), np.abs(factor[index : index + 1]), rtol=1e-9)
        ours = look.values - learned.unwanted(scores)
        np.testing.assert_allclose(ours[brain], expected[:, index], rtol=0, atol=1e-4)


def test_the_workflow_sees_a_scan_of_the_cohort_as_the_fit_did(fitted, cohort):
    scan = cohort.scans[3]
    direct = fitted.harmonize(scan, Canonical())
    on_grid = fitted.harmonize(on_model_grid(scan, 1.0), Canonical())
    assert on_grid.details == direct.details
    fitted.execution = Execution(guard='report')
    carried = harmonize_scan(fitted, scan, Canonical())
    np.testing.assert_allclose(carried.image[RADIUS < 17], direct.image[RADIUS < 17], atol=1e-3)


def test_the_guard_takes_off_less(fitted, cohort):
    """It removes what the scan does not show: some of the correction, never the scan's own structure."""
    scan = cohort.scans[3]
    fitted.execution = Execution(guard='blend')
    guarded = harmonize_scan(fitted, scan, Canonical())
    assert (
        abs(tilt(fitted.harmonize(scan, Canonical()).image))
        < abs(tilt(guarded.image))
        < abs(tilt(striped(scan)))
    )
    assert guarded.unsupported is not None


def test_control_voxels_are_the_fluid_that_all_have():
    scans = [*people(), head(0.1, seed=9, fluid_mm=6.0), head(0.1, seed=10, fluid_mm=12.0)]
    method = Ravel()
    report = method.fit(Cohort(scans))
    grid = registered.common_grid()
    places = np.argwhere(np.ones(grid.shape, bool))[method._learned['T1w'].controls]
    centre = (np.array(grid.shape) - 1) / 2
    assert np.linalg.norm((places - centre) * 2.0, axis=1).max() < 6.5  # the smallest fluid, and half a voxel
    assert len(places) == pytest.approx(
        4 / 3 * np.pi * 6**3 / 8, rel=0.25
    )  # by trilinear sampling at half voxels
    assert report.details['contrasts']['T1w'] == {'scans': 10, 'control_voxels': len(places), 'kept': []}


def test_only_fluid_of_the_scan_itself_is_looked_at(fitted):
    """Grey matter in the place of fluid, in a scan with small ventricles, is not taken for a scanner."""
    small = head(0.9, seed=60, fluid_mm=7.0)
    result = fitted.harmonize(small, Canonical())
    assert result.details['control_voxels'] < fitted._learned['T1w'].controls.size
    assert abs(tilt(result.image)) < 0.3 * abs(tilt(striped(small)))


def test_a_covariate_that_scans_bring_is_kept():
    """Age goes with the scanner and brightens grey matter: without it the method takes some of that for the scanner's."""
    ages = [40 + 10 * a + (8 if b else -8) for a, b in zip(STRENGTHS, AFFECTED, strict=True)]
    aged = []
    for age, scan in zip(ages, people(), strict=True):
        data = scan.data.copy()
        data[GREY] += 4.0 * (age - 40)
        aged.append(replace(scan, data=data, covariates={'age': age, 'constant': 1.0}))

    def slope(method):
        levels = [method.harmonize(scan, Canonical()).image[GREY].mean() for scan in aged]
        return np.polyfit(ages, levels, 1)[0]

    with_age, without = Ravel(), Ravel()
    report = with_age.fit(Cohort(aged))
    without.fit(Cohort([replace(scan, covariates={}) for scan in aged]))
    assert report.details['contrasts']['T1w']['kept'] == ['age']
    true = 4.0 / np.mean([with_age.harmonize(scan, Canonical()).details['scale'] for scan in aged])
    assert slope(with_age) == pytest.approx(true, rel=0.12)
    assert slope(without) < 0.87 * true


def test_a_scan_unlike_the_cohort_is_named(fitted):
    assert 'fluid differs' in fitted.harmonize(head(6.0, seed=70), Canonical()).warnings[0]


def test_what_was_learned_comes_back_whole(fitted, tmp_path):
    bundle.save(fitted, tmp_path / 'model')
    loaded = bundle.load(tmp_path / 'model')
    scan = head(0.5, seed=80)
    assert np.array_equal(
        loaded.harmonize(scan, Canonical()).image, fitted.harmonize(scan, Canonical()).image
    )
    arrays, settings = fitted.state()
    assert arrays['T1w/gamma'].shape == (1, 32**3)
    assert arrays['T1w/gamma'].dtype == np.float32
    for name, wrong in {
        'controls': arrays['T1w/controls'] - 10**9,
        'gamma': arrays['T1w/gamma'][:, :-1],
    }.items():
        with pytest.raises(ConfigurationError, match='do not fit'):
            Ravel().restore(arrays | {f'T1w/{name}': wrong}, settings)


def test_two_factors_take_off_two_patterns(cohort):
    second = (100 * PLACES[1] / BRAIN_MM * (RADIUS < GREY_MM)).astype(np.float32)
    scans = [
        replace(scan, data=scan.data + np.float32(np.cos(3 * index)) * second)
        for index, scan in enumerate(cohort.scans)
    ]
    pattern = second[GREY]

    def left(method):
        method.fit(Cohort(scans))
        return np.std([pattern @ method.harmonize(scan, Canonical()).image[GREY] for scan in scans])

    two = Ravel(factors=2)
    assert left(two) < 0.3 * left(Ravel())
    assert two.state()[1]['factors'] == 2


def test_quantiles_are_those_of_the_corrected_cohort(fitted, cohort):
    images = [fitted.harmonize(scan, Canonical()).image[scan.mask] for scan in cohort.scans]
    expected = np.mean([np.percentile(image, np.arange(101.0)) for image in images], axis=0)
    np.testing.assert_allclose(fitted.target_quantiles('T1w'), expected, atol=1e-3)
    assert fitted.target_quantiles('T2w') is None


UNUSABLE = {
    'several scans': lambda scans: scans[:1],
    'tissue segmentation': lambda scans: [replace(scan, tissue=None) for scan in scans],
    'at least 4 usable scans of a contrast to learn from; of T1w there are 3': lambda scans: scans[:3],
    'do not differ': lambda scans: [scans[0]] * 5,
    '0 voxels of 2 mm in common': lambda scans: [
        *scans, replace(scans[0], tissue=np.roll(scans[0].tissue, 1, axis=0))
    ],
}  # fmt: skip


@pytest.mark.parametrize('message', UNUSABLE)
def test_cohorts_that_teach_nothing_are_refused_in_words(cohort, message):
    with pytest.raises(MissingNeed, match=message):
        Ravel().fit(Cohort(UNUSABLE[message](list(cohort.scans))))


def test_what_cannot_be_used_is_left_out_and_named(cohort):
    flat = replace(cohort.scans[0], data=np.full(SHAPE, 7, np.float32), name='sub-flat_T1w')
    lonely = replace(cohort.scans[0], contrast='FLAIR', name='sub-00_FLAIR')
    report = Ravel().fit(Cohort([*cohort.scans, flat, lonely]))
    assert report.scans == tuple(scan.name for scan in cohort.scans)
    assert [item['scan'] for item in report.details['skipped']] == ['sub-flat_T1w']
    assert 'FLAIR' in report.details['left_out']
    with pytest.raises(ScanError, match='same intensity'):
        Ravel().fit(Cohort([flat, flat]))


def test_scans_that_it_cannot_serve_are_refused_in_words(fitted):
    with pytest.raises(ScanError, match='not fitted to T2w'):
        fitted.harmonize(replace(head(), contrast='T2w'), Canonical())
    with pytest.raises(ScanError, match=f'needs {LEAST_CONTROLS}'):
        fitted.harmonize(head(fluid_mm=2.0), Canonical())
    with pytest.raises(MissingNeed, match='several scans'):
        Ravel().harmonize(head(), Canonical())
    for target in (Site('A'), Reference('a_T1w.nii')):
        with pytest.raises(UsageError, match='cannot aim'):
            fitted.harmonize(head(), target)
        with pytest.raises(UsageError, match='cannot aim'):
            Ravel().fit(Cohort(people()), target=target)


def test_factors_need_control_voxels_that_determine_them():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 40)).astype(np.float32)
    controls = np.arange(40) < 10
    found = unwanted.learn(values, controls, factors=2)
    with pytest.raises(ValueError, match='do not determine'):
        found.scores(values[0], np.arange(40) < 1)
    seen = values[:, controls] - values[:, controls].mean(axis=0)
    factor = np.linalg.svd(seen, full_matrices=False)[0][:, :1]
    with pytest.raises(ValueError, match='combination of the covariates'):
        unwanted.learn(values, controls, kept=5 * factor.astype(np.float64))


def test_heads_are_laid_on_the_template_wherever_they_lie(monkeypatch):
    """The template itself, smaller, turned and moved: stretched and put back to a few millimetres."""
    monkeypatch.undo()
    brain = template_brain()
    step = np.diag([3.0, 3.0, 3.0, 1.0])
    small = np.diag([0.93, 0.95, 0.97, 1.0])
    angle = np.deg2rad(8)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = [12, -20, 9]
    data = brain.data[::3, ::3, ::3].astype(np.float32)
    scan = Scan(data, data > 0, turn @ small @ brain.affine @ step, 'T1w', 'sub-01_T1w')
    found = registered.to_template(scan) @ scan.affine
    places = np.column_stack([np.argwhere(scan.mask), np.ones(np.count_nonzero(scan.mask))])
    off = np.linalg.norm(((found - brain.affine @ step) @ places.T)[:3], axis=0)
    assert off.max() < 5
    assert training_data.common_frame(2.0).shape == registered.common_grid().shape == (80, 96, 80)
