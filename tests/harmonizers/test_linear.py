from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from bidsharm.errors import MissingNeed, ScanError, UsageError
from bidsharm.harmonizers import linear
from bidsharm.harmonizers.contract import Canonical, Cohort, Reference, Site
from bidsharm.harmonizers.linear import FCM, KDE, LSQ, Identity, Robust, TScore, WhiteStripe, ZScore

FIXED = [Robust, ZScore, TScore, KDE, FCM, WhiteStripe]
LINEAR = [*FIXED, LSQ]


def voxels(scan):
    return scan.data[scan.mask].astype(np.float64)


def test_identity_returns_the_input_inside_the_mask(make_scan):
    scan = make_scan()
    image = Identity().harmonize(scan, Canonical()).image
    assert np.array_equal(image[scan.mask], scan.data[scan.mask])
    assert not image[~scan.mask].any()


def test_identity_cannot_aim_at_a_site(make_scan, cohort):
    with pytest.raises(UsageError, match='canonical'):
        Identity().harmonize(make_scan(), Site('A'))
    with pytest.raises(UsageError, match='canonical'):
        Identity().fit(cohort, target=Site('A'))


def test_known_canonical_values(make_scan):
    scan = make_scan(noise=5)
    robust = Robust().harmonize(scan, Canonical()).image[scan.mask]
    assert np.percentile(robust, 90) == pytest.approx(1, abs=1e-6)
    zscore = ZScore().harmonize(scan, Canonical()).image[scan.mask]
    assert zscore.mean() == pytest.approx(0, abs=1e-4)
    assert zscore.std() == pytest.approx(1, abs=1e-4)
    tscore = TScore().harmonize(scan, Canonical()).image[scan.mask]
    np.testing.assert_allclose(tscore, 50 + 10 * zscore, rtol=1e-5)
    assert tscore.min() > 0
    # The white matter has 900: its peak and its mean are the unit of these two.
    assert KDE().measure(scan)[1] == pytest.approx(900, rel=0.01)
    assert FCM().measure(scan)[1] == pytest.approx(900, rel=0.02)
    shift, scale = WhiteStripe().measure(scan)
    assert shift == pytest.approx(900, rel=0.01)
    assert 0 < scale < 5  # a narrow part of a noise of 5


@pytest.mark.parametrize('contrast', ['T1w', 'T2w', 'FLAIR', 'PDw'])
def test_kde_finds_the_peak_of_its_tissue(make_scan, contrast):
    # Brightest class in T1w, largest in T2w and FLAIR (here grey matter), darkest in PDw.
    expected = {'T1w': 900, 'T2w': 600, 'FLAIR': 700, 'PDw': 650}[contrast]
    scan = make_scan(contrast=contrast, shape=(32, 32, 32), noise=5)
    assert KDE().measure(scan)[1] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize('method', LINEAR)
@pytest.mark.parametrize('gain', [1e-3, 0.37, 250.0])
def test_a_gain_makes_no_difference(method, gain, make_scan, cohort):
    harmonizer = method()
    harmonizer.fit(cohort)
    before, after = make_scan(seed=7), make_scan(seed=7, gain=gain)
    one = harmonizer.harmonize(before, Canonical()).image
    other = harmonizer.harmonize(after, Canonical()).image
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize('method', [ZScore, WhiteStripe])
def test_an_offset_makes_no_difference(method, make_scan):
    # Minus 600 puts zero in the middle of the grey matter, where nothing may take it for background.
    one = method().harmonize(make_scan(seed=7), Canonical()).image
    other = method().harmonize(make_scan(seed=7, gain=3, offset=-1800), Canonical()).image
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize('method', LINEAR)
def test_the_map_is_affine(method, make_scan, cohort):
    harmonizer = method()
    harmonizer.fit(cohort, target=Site('B'))
    scan = make_scan(seed=9)
    mapped = harmonizer.harmonize(scan, Site('B')).image[scan.mask]
    slope, intercept = np.polyfit(voxels(scan), mapped, 1)
    assert slope > 0
    np.testing.assert_allclose(mapped, slope * voxels(scan) + intercept, atol=1e-4 * np.abs(mapped).max())


@pytest.mark.parametrize('method', LINEAR)
def test_site_target_has_the_mean_parameters_of_that_site_only(method, make_scan, cohort):
    harmonizer = method()
    report = harmonizer.fit(cohort, target=Site('B'))
    of_site = [scan for scan in cohort.scans if scan.site == 'B']
    assert report.scans == tuple(scan.name for scan in of_site)
    expected = np.mean([harmonizer.measure(scan) for scan in of_site], axis=0)
    source = make_scan(seed=11, gain=0.2)
    result = harmonizer.harmonize(source, Site('B'))
    reached = harmonizer.measure(replace(source, data=result.image))
    np.testing.assert_allclose(reached, expected, rtol=1e-3, atol=1e-3)
    assert result.details['target_scale'] == pytest.approx(expected[1])


@pytest.mark.parametrize('method', LINEAR)
def test_a_reference_is_left_as_it_is_by_itself(method, make_scan):
    reference = make_scan(seed=5, gain=1.7)
    harmonizer = method()
    harmonizer.fit(Cohort([reference]), target=Reference('/data/sub-05_T1w.nii.gz'))
    image = harmonizer.harmonize(reference, Reference('/elsewhere/sub-05_T1w.nii.gz')).image
    np.testing.assert_allclose(image[reference.mask], reference.data[reference.mask], rtol=1e-4)


def test_contrasts_have_their_own_standard(make_scan):
    scans = [make_scan(seed=1, gain=2), make_scan(seed=2, contrast='T2w', gain=5)]
    harmonizer = Robust()
    harmonizer.fit(Cohort(scans), target=Site('A'))
    for scan in scans:
        image = harmonizer.harmonize(replace(scan, data=scan.data * 0.01), Site('A')).image
        np.testing.assert_allclose(image[scan.mask], scan.data[scan.mask], rtol=1e-4)
    with pytest.raises(ScanError, match=r'FLAIR.*T1w, T2w'):
        harmonizer.harmonize(make_scan(contrast='FLAIR'), Site('A'))


@pytest.mark.parametrize('method', LINEAR)
def test_target_quantiles_are_those_of_the_harmonized_scans(method, cohort):
    harmonizer = method()
    assert harmonizer.target_quantiles('T1w') is None
    harmonizer.fit(cohort, target=Site('A'))
    images = [
        harmonizer.harmonize(scan, Site('A')).image[scan.mask] for scan in cohort.scans if scan.site == 'A'
    ]
    expected = np.mean([np.percentile(image, np.arange(101)) for image in images], axis=0)
    found = harmonizer.target_quantiles('T1w')
    assert found.shape == (101,)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    assert harmonizer.target_quantiles('T2w') is None


def test_a_target_that_was_not_learned_is_refused(make_scan, cohort):
    harmonizer = Robust()
    with pytest.raises(MissingNeed, match='"B"'):
        harmonizer.harmonize(make_scan(), Site('B'))
    harmonizer.fit(cohort, target=Site('A'))
    with pytest.raises(MissingNeed, match=r'"B".*fitted to "A"'):
        harmonizer.harmonize(make_scan(), Site('B'))
    # A site may be called like anything, even like the canonical target.
    with pytest.raises(MissingNeed, match='"canonical"'):
        harmonizer.harmonize(make_scan(), Site('canonical'))


def test_a_site_without_scans_or_labels_is_refused(make_scan, cohort):
    with pytest.raises(MissingNeed, match=r'"C".*A, B'):
        Robust().fit(cohort, target=Site('C'))
    with pytest.raises(MissingNeed, match='site labels'):
        Robust().fit(Cohort([make_scan(site='')]), target=Site('A'))


def test_lsq_needs_a_cohort_for_its_canonical_scale(make_scan):
    for attempt in (
        lambda: LSQ().harmonize(make_scan(), Canonical()),
        lambda: LSQ().fit(Cohort([make_scan()])),
    ):
        with pytest.raises(MissingNeed, match=r'several scans of the same contrast.*robust'):
            attempt()


def test_lsq_scales_to_the_standard_means(make_scan):
    harmonizer = LSQ()
    harmonizer.fit(Cohort([make_scan(seed=i, gain=1 + i, tissue=True, noise=1) for i in range(3)]))
    scan = make_scan(seed=8, gain=0.1, tissue=True, noise=1)
    image = harmonizer.harmonize(scan, Canonical()).image
    means = [image[probability > 0.5].mean() for probability in scan.tissue]
    np.testing.assert_allclose(means, [1, 2, 3], rtol=2e-3)  # 300, 600, 900 with CSF as the unit


def test_lsq_of_one_scan_is_the_packages(make_scan):
    from intensity_normalization import LSQNormalizer, create_image

    first, other = make_scan(seed=1, tissue=True), make_scan(seed=2, gain=1.3, tissue=True)
    images = [create_image(voxels(scan)) for scan in (first, other)]
    weights = [create_image(scan.tissue[:, scan.mask].T) for scan in (first, other)]
    package = LSQNormalizer().fit_population(images[:1], weights[:1])
    expected = package.transform(images[1], weights[1]).get_data()
    harmonizer = LSQ()
    standard = harmonizer.combine([harmonizer.describe(first)], Canonical())
    found = harmonizer.apply(voxels(other), harmonizer.describe(other), standard)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_segmentation_is_used_where_there_is_one(make_scan):
    scan = make_scan(contrast='T2w', tissue=True, noise=1)
    assert FCM().measure(scan)[1] == pytest.approx(400, rel=1e-3)
    for method in (FCM, LSQ):
        with pytest.raises(ScanError, match='segmentation for T2w'):
            method().describe(replace(scan, tissue=None))
    with pytest.raises(ScanError, match='miss a tissue'):
        FCM().measure(replace(scan, tissue=np.zeros_like(scan.tissue)))


def test_fcm_is_near_the_package_on_all_voxels(make_scan, monkeypatch):
    from intensity_normalization import FCMNormalizer

    scan = make_scan(shape=(40, 40, 40), noise=60)
    ones = linear._images(voxels(scan))
    with linear._fixed_start():
        package = FCMNormalizer().fit(*ones)
    expected = np.average(voxels(scan), weights=package.tissue_membership)
    monkeypatch.setattr(linear, 'SAMPLE_SIZE', 2000)
    assert FCM().measure(scan)[1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('contrast', ['T1w', 'T2w', 'FLAIR', 'PDw'])
@pytest.mark.parametrize('noise', [15.0, 90.0])
def test_the_sample_moves_the_kde_peak_by_less_than_half_a_percent(make_scan, monkeypatch, contrast, noise):
    scan = make_scan(seed=3, contrast=contrast, shape=(48, 48, 48), noise=noise)
    monkeypatch.setattr(linear, 'SAMPLE_SIZE', 10**9)
    full = KDE().measure(scan)[1]
    # The whole brain has 25 times more voxels than the sample; so has this one.
    monkeypatch.setattr(linear, 'SAMPLE_SIZE', int(scan.mask.sum()) // 25)
    assert KDE().measure(scan)[1] == pytest.approx(full, rel=0.005)


def test_the_global_random_state_is_left_alone(make_scan):
    np.random.seed(42)
    before = np.random.get_state()[1].copy()
    FCM().measure(make_scan())
    assert np.array_equal(before, np.random.get_state()[1])


def test_bad_scans_in_a_fit_are_left_out_and_named(make_scan):
    bad = replace(make_scan(seed=4), data=np.zeros((24, 24, 24), np.float32), name='sub-bad')
    good = [make_scan(seed=1), make_scan(seed=2)]
    seen = []
    report = Robust().fit(Cohort([bad, *good]), target=Site('A'), progress=lambda *step: seen.append(step))
    assert report.scans == ('sub-01_T1w', 'sub-02_T1w')
    assert [item['scan'] for item in report.details['skipped']] == ['sub-bad']
    assert seen == [(1, 3, 'sub-bad'), (2, 3, 'sub-01_T1w'), (3, 3, 'sub-02_T1w')]
    with pytest.raises(ScanError, match='sub-bad'):
        Robust().fit(Cohort([bad]), target=Site('A'))


def test_images_that_are_not_positive_are_refused_by_methods_that_divide(make_scan):
    scan = make_scan(offset=-5000)
    for method in (Robust, KDE, FCM):
        with pytest.raises(ScanError, match='scale') as caught:
            method().harmonize(scan, Canonical())
        assert caught.value.where == scan.name
        assert caught.value.fix


@pytest.mark.real
def test_kde_peak_on_real_scans(monkeypatch):
    folder = os.environ.get('BIDSHARM_REAL_DATA')
    if not folder:
        pytest.skip('set BIDSHARM_REAL_DATA to a folder with real T1w scans')
    from pathlib import Path

    import nibabel as nib

    from bidsharm.harmonizers.contract import Scan

    path = sorted(Path(folder).glob('sub-*/**/*_T1w.nii*'))[0]
    data = np.asarray(nib.load(path).dataobj, dtype=np.float32)
    step = (slice(None, None, 2),) * 3
    data = data[step]
    scan = Scan(data, data > np.percentile(data, 70), np.eye(4), 'T1w', path.name)
    sampled = KDE().measure(scan)[1]
    monkeypatch.setattr(linear, 'SAMPLE_SIZE', 10**9)
    assert sampled == pytest.approx(KDE().measure(scan)[1], rel=0.005)
