from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bidsharm.errors import MissingNeed, ScanError
from bidsharm.harmonizers.contract import Canonical, Cohort, Reference, Site
from bidsharm.harmonizers.histogram import HistogramMatching, Nyul, increasing_map

BOTH = [Nyul, HistogramMatching]


def voxels(scan):
    return scan.data[scan.mask].astype(np.float64)


@pytest.mark.parametrize('method', BOTH)
def test_the_map_is_strictly_increasing(method, make_scan, cohort):
    harmonizer = method()
    harmonizer.fit(cohort)
    scan = make_scan(seed=20, noise=60)
    scan.data[12, 12, 12] = 5000.0  # an outlier far beyond the nodes
    mapped = harmonizer.harmonize(scan, Canonical()).image[scan.mask].astype(np.float64)
    order = np.argsort(voxels(scan), kind='stable')
    apart = np.diff(voxels(scan)[order]) > 0.01
    assert (np.diff(mapped[order])[apart] > 0).all()
    assert (np.diff(mapped[order]) >= 0).all()
    assert mapped.max() > 2 * np.percentile(mapped, 99)  # the outlier stays one


@pytest.mark.parametrize('method', BOTH)
def test_two_scans_that_differ_by_an_affine_map_become_equal(method, make_scan, cohort):
    harmonizer = method()
    harmonizer.fit(cohort)
    one = harmonizer.harmonize(make_scan(seed=7), Canonical()).image
    other = harmonizer.harmonize(make_scan(seed=7, gain=0.4, offset=50), Canonical()).image
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('method', BOTH)
def test_a_monotone_change_of_contrast_is_undone(method, make_scan, cohort):
    harmonizer = method()
    harmonizer.fit(cohort)
    scan = make_scan(seed=7)
    bent = replace(scan, data=(scan.data / 1000.0) ** 1.5)
    before = harmonizer.harmonize(scan, Canonical()).image[scan.mask]
    after = harmonizer.harmonize(bent, Canonical()).image[scan.mask]
    low, high = np.percentile(before, [2, 98])
    inner = (before > low) & (before < high)
    assert np.abs(before - after)[inner].max() < 0.04 * (high - low)


@pytest.mark.parametrize('method', BOTH)
def test_site_target_has_the_units_and_the_distribution_of_the_site(method, make_scan, cohort):
    harmonizer = method()
    report = harmonizer.fit(cohort, target=Site('B'))
    of_site = [scan for scan in cohort.scans if scan.site == 'B']
    assert report.scans == tuple(scan.name for scan in of_site)
    scan = make_scan(seed=30, gain=0.01)
    mapped = harmonizer.harmonize(scan, Site('B')).image[scan.mask]
    levels = [5, 25, 50, 75, 95]
    expected = np.mean([np.percentile(voxels(item), levels) for item in of_site], axis=0)
    np.testing.assert_allclose(np.percentile(mapped, levels), expected, rtol=0.03)
    np.testing.assert_allclose(
        np.percentile(mapped, levels), harmonizer.target_quantiles('T1w')[levels], rtol=0.02
    )


@pytest.mark.parametrize('method', BOTH)
def test_a_reference_is_left_as_it_is_by_itself(method, make_scan):
    reference = make_scan(seed=5, gain=1.7)
    harmonizer = method()
    harmonizer.fit(Cohort([reference]), target=Reference('ref.nii.gz'))
    image = harmonizer.harmonize(reference, Reference('ref.nii.gz')).image
    np.testing.assert_allclose(image[reference.mask], reference.data[reference.mask], rtol=1e-4)


def test_nyul_is_the_packages(make_scan, cohort):
    from intensity_normalization import NyulNormalizer, create_image

    scans = cohort.scans
    ones = [create_image(np.ones(int(scan.mask.sum()))) for scan in scans]
    package = NyulNormalizer().fit_population([create_image(voxels(scan)) for scan in scans], ones)
    scan = make_scan(seed=40, gain=3)
    expected = package.transform(create_image(voxels(scan)), ones[0]).get_data()
    harmonizer = Nyul()
    harmonizer.fit(cohort)
    found = harmonizer.harmonize(scan, Canonical()).image[scan.mask]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert np.percentile(found, [1, 99]) == pytest.approx([1, 100], abs=0.1)


def test_histogram_matching_agrees_with_scikit_image(make_scan):
    from skimage.exposure import match_histograms

    source, reference = make_scan(seed=1, gain=0.3, noise=50), make_scan(seed=2, gain=2, noise=30)
    harmonizer = HistogramMatching()
    harmonizer.fit(Cohort([reference]), target=Reference('r.nii'))
    found = harmonizer.harmonize(source, Reference('r.nii')).image[source.mask]
    expected = match_histograms(voxels(source), voxels(reference))
    spread = np.ptp(np.percentile(voxels(reference), [0.5, 99.5]))
    # In the gaps between the tissues the quantile function jumps: there one interpolates, the other steps.
    difference = np.abs(found - expected)
    assert np.percentile(difference, 98) < 0.01 * spread
    assert difference.mean() < 0.003 * spread


def test_canonical_histogram_is_the_barycentre_of_scaled_scans(make_scan):
    # Two uniform distributions, 0.1..1 and 0.5..1 after scaling: the barycentre runs from 0.3 to 1 (at 90 %).
    shape = (16, 16, 16)
    ramp = np.linspace(0, 1, 4096).reshape(shape)
    base = make_scan(shape=shape)
    whole = replace(base, mask=np.ones(shape, bool))
    scans = [
        replace(whole, data=((low + (1 - low) * ramp / 0.9) * gain)) for low, gain in ((0.1, 7), (0.5, 90))
    ]
    harmonizer = HistogramMatching()
    harmonizer.fit(Cohort(scans))
    image = harmonizer.harmonize(scans[0], Canonical()).image
    np.testing.assert_allclose(image, 0.3 + 0.7 * ramp / 0.9, atol=2e-3)
    assert harmonizer.target_quantiles('T1w')[[0, 50, 90]] == pytest.approx(
        [0.3, 0.3 + 0.7 * 5 / 9, 1], abs=2e-3
    )


@pytest.mark.parametrize('method', BOTH)
def test_canonical_without_a_fit_names_the_need_and_the_alternatives(method, make_scan):
    for attempt in (
        lambda: method().harmonize(make_scan(), Canonical()),
        lambda: method().fit(Cohort([make_scan()])),
        lambda: method().fit(Cohort([])),
        # One scan of each contrast is no cohort, although there are two scans.
        lambda: method().fit(Cohort([make_scan(), make_scan(contrast='T2w')])),
    ):
        with pytest.raises(MissingNeed, match=r'several scans of the same contrast.*zscore'):
            attempt()


@pytest.mark.parametrize('method', BOTH)
def test_a_contrast_with_one_scan_is_left_out_of_the_canonical_fit(method, make_scan, cohort):
    harmonizer = method()
    report = harmonizer.fit(Cohort([*cohort.scans, make_scan(contrast='FLAIR')]))
    assert report.details['contrasts_with_too_few_scans'] == ['FLAIR']
    with pytest.raises(ScanError, match=r'FLAIR but to T1w'):
        harmonizer.harmonize(make_scan(contrast='FLAIR'), Canonical())


@pytest.mark.parametrize('method', BOTH)
def test_few_distinct_intensities_stay_distinct(method, make_scan, cohort):
    harmonizer = method()
    harmonizer.fit(cohort)
    scan = make_scan(noise=0)  # exactly three intensities: most landmarks coincide
    mapped = harmonizer.harmonize(scan, Canonical()).image
    found = [np.unique(mapped[scan.data == value]) for value in (300, 600, 900)]
    assert [len(item) for item in found] == [1, 1, 1]
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize('method', BOTH)
def test_nearly_constant_scans_are_refused(method, make_scan, cohort):
    harmonizer = method()
    harmonizer.fit(cohort)
    data = np.full((24, 24, 24), 7.0, np.float32)
    data[12, 12, 12] = 8.0
    with pytest.raises(ScanError, match='same intensity'):
        harmonizer.harmonize(replace(make_scan(), data=data), Canonical())


def test_increasing_map_by_hand():
    source, target = np.array([0.0, 1.0, 2.0, 4.0]), np.array([10.0, 20.0, 20.0, 30.0])
    mapped = increasing_map(np.array([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 6.0]), source, target)
    assert mapped[:4] == pytest.approx([0, 10, 15, 20])  # goes on with the slope of the first segment
    assert 20 < mapped[4] < mapped[5] < 20.1  # a flat part gets a small slope
    assert mapped[6] == pytest.approx(30, abs=0.1)
    assert mapped[7] == pytest.approx(40, abs=0.2)
