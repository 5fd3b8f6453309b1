"""Sidecars of the outputs: the fields that BIDS asks of derivatives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bidsharm.bids.derivatives import Precomputed
from bidsharm.bids.sidecars import (
    dseg_spec,
    image_spec,
    mask_spec,
    preproc_spec,
    probseg_spec,
    raw_uri,
    space_specs,
    template_uri,
    transform_spec,
    uncertainty_spec,
)
from bidsharm.imaging.templates import BUNDLED, Space, Template

#: BIDS 1.10, "BIDS URI": bids:[<dataset name>]:<relative path>.
BIDS_URI = re.compile(r'^bids:[0-9a-zA-Z/#:?_.-]*:[^/].*$')


def test_raw_scan_as_uri(tree):
    scan = tree.scan('sub-01_ses-a_run-1_T1w')
    assert raw_uri(scan) == 'bids:raw:sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.nii.gz'
    assert BIDS_URI.match(raw_uri(scan))


def test_image_names_source_and_what_it_is(tree):
    scan = tree.scan('sub-01_T1w')
    spec = image_spec(scan, 'preproc', 'No bias', [raw_uri(scan)], SkullStripped=False)
    assert spec['sidecar'] == {
        'Description': 'No bias',
        'Sources': ['bids:raw:sub-01/anat/sub-01_T1w.nii.gz'],
        'SkullStripped': False,
    }
    assert (spec['path'], spec['native']) == ('sub-01/anat/sub-01_desc-preproc_T1w.nii.gz', True)


def test_uncertainty_may_be_missing_and_names_its_image(tree):
    spec = uncertainty_spec(tree.scan('sub-01_T1w'))
    assert spec['path'] == 'sub-01/anat/sub-01_desc-uncertainty_T1w.nii.gz'
    assert spec['sidecar']['Sources'] == ['bids::sub-01/anat/sub-01_desc-harmonized_T1w.nii.gz']
    assert spec['optional']


def test_mask_and_segmentations(tree):
    scan = tree.scan('sub-01_T1w')
    mask = mask_spec(scan, Precomputed(), None)
    assert mask['sidecar']['Type'] == 'Brain'
    assert mask['sidecar']['Sources'] == [raw_uri(scan)]
    source = 'bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz'
    dseg = dseg_spec(scan, '', source)
    assert dseg['path'] == 'sub-01/anat/sub-01_dseg.nii.gz'
    assert dseg['sidecar']['Manual'] is False
    assert dseg['sidecar']['Sources'] == [source]
    probseg = probseg_spec(scan, source)
    assert probseg['path'] == [
        f'sub-01/anat/sub-01_label-{tissue}_probseg.nii.gz' for tissue in ('CSF', 'GM', 'WM')
    ]
    assert ['CSF' in probseg['sidecar'][0]['Description'], 'WM' in probseg['sidecar'][2]['Description']] == [
        True,
        True,
    ]
    assert len(probseg['sidecar']) == len(probseg['path'])


@pytest.mark.parametrize('suffix', ['T1w', 'T2w'])
@pytest.mark.parametrize(
    'space', [Space('T1w'), Space('MNI152NLin2009cAsym', '1'), Space('MNIPediatricAsym', '2', '3')]
)
def test_outputs_in_a_space(tree, suffix, space):
    """SkullStripped is required of images, Resolution where the name has res-, SpatialReference where BIDS knows no space."""
    scan = tree.scan(f'sub-01_ses-a_{suffix}')
    reference = 'bids::sub-01/ses-b/anat/sub-01_ses-b_desc-preproc_T1w.nii.gz'
    image, mask, dseg = space_specs(scan, space, reference=reference)
    assert image['sidecar']['SkullStripped'] is True
    assert 'SkullStripped' not in mask['sidecar']
    assert mask['sidecar']['Type'] == 'Brain'
    assert dseg['sidecar']['Manual'] is False
    for spec in (image, mask, dseg):
        fields = spec['sidecar']
        assert fields['Sources'] == [f'bids::sub-01/ses-a/anat/sub-01_ses-a_desc-harmonized_{suffix}.nii.gz']
        assert all(BIDS_URI.match(uri) for uri in fields['Sources'])
        assert f'_space-{space.entities["space"]}_' in spec['path']
        assert ('_res-' in spec['path']) is ('Resolution' in fields) is (space.name != 'T1w')
        assert fields['SpatialReference'] == reference
        assert spec['native'] is (space.name == 'T1w')
    if space.resolution:
        assert f'res-{space.resolution}' in image['sidecar']['Resolution']


def test_mask_and_image_name_what_they_were_really_made_of(tree, tmp_path):
    t1w, t2w = tree.scan('sub-01_T1w'), tree.scan('sub-01_T2w')
    folder = tmp_path / 'sub-01' / 'anat'
    given = Precomputed(
        preproc=folder / 'sub-01_desc-preproc_T1w.nii.gz', brain_mask=folder / 'sub-01_desc-brain_mask.nii.gz',
        source='smriprep', root=tmp_path,
    )  # fmt: skip
    preproc = preproc_spec(t1w, given, None)['sidecar']
    assert preproc['Sources'] == ['bids:smriprep:sub-01/anat/sub-01_desc-preproc_T1w.nii.gz']
    assert 'N4' not in preproc['Description']
    assert mask_spec(t1w, given, None)['sidecar']['Sources'] == [
        'bids:smriprep:sub-01/anat/sub-01_desc-brain_mask.nii.gz'
    ]
    # A T2w is corrected here, and its mask comes from the T1w.
    assert 'N4' in preproc_spec(t2w, given, t1w)['sidecar']['Description']
    assert preproc_spec(t2w, given, t1w)['sidecar']['Sources'] == [raw_uri(t2w)]
    assert mask_spec(t2w, given, t1w)['sidecar']['Sources'] == [
        'bids::sub-01/anat/sub-01_desc-brain_mask.nii.gz', raw_uri(t2w),
    ]  # fmt: skip


def test_template_spaces_say_what_defines_them(tree):
    template = Template(Space('MNIInfant', '1', '3'), Path('/x/tpl-MNIInfant_cohort-3_res-1_T1w.nii.gz'))
    uri = template_uri(template)
    assert uri.startswith('https://')
    assert uri.endswith('/tpl-MNIInfant/cohort-3/tpl-MNIInfant_cohort-3_res-1_T1w.nii.gz')
    assert 'nilearn' in template_uri(Template(Space(BUNDLED, '1'), Path('/x.nii.gz')))


def test_specs_do_not_share_fields(tree):
    image, mask, _ = space_specs(tree.scan('sub-01_T1w'), Space('T1w'), reference='here')
    image['sidecar']['SpatialReference'] = 'changed'
    assert mask['sidecar']['SpatialReference'] != 'changed'


def test_transform_is_a_plain_file(tree):
    spec = transform_spec(tree.scan('sub-01_T1w'), 'T1w', 'MNI')
    assert spec == {'path': 'sub-01/anat/sub-01_from-T1w_to-MNI_mode-image_xfm.h5', 'kind': 'file'}
