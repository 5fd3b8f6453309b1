"""From settings to work: scans, targets, devices, and what is done already."""

from __future__ import annotations

import json
import random
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bidsharm.workflows import planning, targets
from bidsharm.workflows.base import Options, ScanPlan, init_single_subject_wf
from bidsharm.workflows.harmonize import Method
from bidsharm.workflows.participant import plan_run
from bidsharm.workflows.planning import (
    batches,
    expected_outputs,
    make_plan,
    measured,
    plan_scan,
    resolve_target,
    subject_plans,
    unfinished,
)
from bidsharm.workflows.summary import Outcome

from bidsharm.bids import sidecars
from bidsharm.bids.derivatives import Precomputed
from bidsharm.bids.names import OutputNames
from bidsharm.bids.query import Selection
from bidsharm.bids.resume import fingerprint
from bidsharm.bids.sidecars import raw_uri
from bidsharm.errors import ConfigurationError, ExitCode, NotServed, ScanError, UsageError
from bidsharm.harmonizers import bundle, registry
from bidsharm.harmonizers.contract import Card, Cohort, Reference, Scan, Site
from bidsharm.imaging.templates import Space, Template
from bidsharm.reports.subject import ErrorEntry

SITES = {'01': 'north', '02': 'south', '03': 'north', '04': 'south', '05': 'north', '06': 'east'}


@pytest.fixture
def cohort(make_raw, tmp_path):
    """Return a function that makes a selection from names and sites; every T1w is structural."""

    def make(names: dict[str, str]) -> Selection:
        scans = tuple(make_raw(tmp_path / 'bids', name, site=site) for name, site in names.items())
        return Selection(scans, structural=tuple(scan for scan in scans if scan.suffix == 'T1w'))

    return make


@pytest.fixture
def sites(cohort):
    """Six subjects of three sites, T1w and T2w each."""
    return cohort(
        {f'sub-{label}_{suffix}': site for label, site in SITES.items() for suffix in ('T1w', 'T2w')}
    )


def names_of(scans) -> list[str]:
    return [scan.name for scan in scans]


def anchors_to_learn(plan, settings) -> dict[str, str]:
    """Return which scan each of those follows that the target is learnt from."""
    return {item.scan.name: item.anchor.name for item in targets._plans(plan, plan.fit_scans, settings)}


# Batches.


@pytest.mark.parametrize('count', [0, 1, 4, 5, 9])
def test_batches_hold_every_subject_once_and_in_order(count):
    subjects = [f'{index:02d}' for index in range(count)]
    groups = list(batches(subjects, 4))
    assert [subject for group in groups for subject in group] == subjects
    assert all(0 < len(group) <= 4 for group in groups)
    assert len(groups) == -(-count // 4)


# What is to be done for a subject.


def test_only_what_is_unfinished_and_its_anchor(cohort, make_settings):
    selection = cohort(dict.fromkeys(
        ['sub-01_ses-1_T1w', 'sub-01_ses-1_T2w', 'sub-01_ses-1_FLAIR', 'sub-01_ses-2_T1w', 'sub-02_T1w'], 'A'
    ))  # fmt: skip
    settings, options = make_settings(), Options()

    def plans(*only: str) -> dict[str, ScanPlan]:
        found = subject_plans(selection, '01', settings, options, only=set(only))
        assert len({plan.scan.name for plan in found}) == len(found)
        return {plan.scan.name: plan for plan in found}

    found = plans('sub-01_ses-1_T2w', 'sub-01_ses-1_FLAIR')
    assert {name: plan.write for name, plan in found.items()} == {
        'sub-01_ses-1_T1w': False,
        'sub-01_ses-1_T2w': True,
        'sub-01_ses-1_FLAIR': True,
    }
    assert {plan.anchor.name for plan in found.values()} == {'sub-01_ses-1_T1w'}
    assert not found['sub-01_ses-1_T1w'].follows
    # An anchor that has to be done itself is written, wherever it stands in the list.
    found = plans('sub-01_ses-1_FLAIR', 'sub-01_ses-1_T1w')
    assert all(plan.write for plan in found.values())
    assert len(found) == 2
    # One that nobody needs is not there.
    assert set(plans('sub-01_ses-2_T1w')) == {'sub-01_ses-2_T1w'}
    assert plans() == {}
    everything = subject_plans(selection, '01', settings, options)
    assert sorted(plan.scan.name for plan in everything) == sorted(
        name for name in names_of(selection.scans) if name.startswith('sub-01')
    )
    assert all(plan.write for plan in everything)


def test_anchor_may_lie_outside_of_what_was_asked_for(make_raw, make_settings, tmp_path):
    """Asked for a session without T1w, the T1w of another session comes along without being written."""
    flair = make_raw(tmp_path / 'bids', 'sub-01_ses-2_FLAIR')
    anchor = make_raw(tmp_path / 'bids', 'sub-01_ses-1_T1w')
    selection = Selection((flair,), structural=(anchor,))
    plans = subject_plans(selection, '01', make_settings(), Options())
    assert {plan.scan.name: (plan.write, plan.follows) for plan in plans} == {
        'sub-01_ses-2_FLAIR': (True, True),
        'sub-01_ses-1_T1w': (False, False),
    }


def theirs(root: Path, stem: str, *names: str) -> Path:
    """Write empty files of another pipeline."""
    for name in names:
        file = root / f'{stem}_{name}'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


@pytest.mark.parametrize('suffix', ['T1w', 'T2w'])
def test_results_of_another_pipeline_serve_the_t1w_only(suffix, cohort, make_settings, tmp_path):
    """Where there is no T1w, another contrast is the anchor; it must not be replaced by a T1w of theirs."""
    root = theirs(
        tmp_path / 'smriprep', 'sub-01/anat/sub-01', 'desc-preproc_T1w.nii.gz', 'desc-brain_mask.nii.gz',
        'from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5', 'from-MNI152NLin2009aSym_to-T1w_mode-image_xfm.h5',
    )  # fmt: skip
    selection = cohort({f'sub-01_{suffix}': 'A', 'sub-01_FLAIR': 'A'})
    settings = make_settings(derivatives={'smriprep': root})
    plans = {plan.scan.suffix: plan for plan in subject_plans(selection, '01', settings, Options())}
    assert plans['FLAIR'].precomputed.files == {}
    assert plans['FLAIR'].native == plans['FLAIR'].scan.path
    given = plans[suffix].precomputed
    if suffix == 'T1w':
        assert given.source == 'smriprep'
        assert given.brain_mask == root / 'sub-01/anat/sub-01_desc-brain_mask.nii.gz'
        assert plans['T1w'].native == given.preproc == root / 'sub-01/anat/sub-01_desc-preproc_T1w.nii.gz'
    else:
        assert given.files == {}


def test_every_cohort_of_a_template_has_transforms_of_its_own(cohort, make_settings, make_method, tmp_path):
    root = theirs(
        tmp_path / 'smriprep', 'sub-01/anat/sub-01',
        'from-T1w_to-MNIInfant+2_mode-image_xfm.h5', 'from-MNIInfant+2_to-T1w_mode-image_xfm.h5',
    )  # fmt: skip
    templates = tuple(
        Template(
            Space('MNIInfant', '1', number), theirs(tmp_path, 'brain', 'T1w.nii.gz') / 'brain_T1w.nii.gz'
        )
        for number in '23'
    )
    options = Options(templates=templates)
    settings = make_settings(derivatives={'smriprep': root})
    plans = subject_plans(cohort({'sub-01_T1w': 'A'}), '01', settings, options)
    assert set(plans[0].space_transforms) == {'MNIInfant+2'}
    workflow = init_single_subject_wf(
        plans=plans, method=make_method(), output_dir=tmp_path / 'out', options=options
    )
    names = workflow.list_node_names()
    assert [name for name in names if name.startswith('register_') and 'MNIInfant_1_2' in name] == []
    assert [name for name in names if name.startswith('register_') and 'MNIInfant_1_3' in name] != []
    ways = {name: workflow.get_node(name).inputs.in1 for name in names if name.startswith('moves_')}
    assert str(ways['moves_sub_01_T1w_template_MNIInfant_1_2']).endswith(
        'from-T1w_to-MNIInfant+2_mode-image_xfm.h5'
    )


def test_transforms_do_not_come_from_another_pipeline_than_the_mask(cohort, make_settings, tmp_path):
    transforms = theirs(
        tmp_path / 'a', 'sub-01/anat/sub-01',
        'from-T1w_to-OASIS_mode-image_xfm.h5', 'from-OASIS_to-T1w_mode-image_xfm.h5',
    )  # fmt: skip
    mask = theirs(tmp_path / 'b', 'sub-01/anat/sub-01', 'desc-brain_mask.nii.gz')
    options = Options(templates=(Template(Space('OASIS', '1'), tmp_path / 'x'),))
    for folders, expected in (
        ({'a': transforms}, {'OASIS'}),
        ({'a': transforms, 'b': mask}, set()),
        ({'b': mask, 'a': transforms}, set()),
    ):
        settings = make_settings(derivatives=folders)
        (plan,) = subject_plans(cohort({'sub-01_T1w': 'A'}), '01', settings, options)
        assert set(plan.space_transforms) == expected


def test_given_transforms_to_output_templates(cohort, make_settings, tmp_path):
    root = theirs(
        tmp_path / 'smriprep', 'sub-01/anat/sub-01',
        'from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5', 'from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5',
        'from-T1w_to-OneWay_mode-image_xfm.h5',
    )  # fmt: skip
    selection = cohort({'sub-01_T1w': 'A'})
    templates = tuple(
        Template(Space(name, '1'), tmp_path / 'x') for name in ('MNI152NLin2009cAsym', 'OneWay', 'None')
    )
    (plan,) = subject_plans(
        selection, '01', make_settings(derivatives={'smriprep': root}), Options(templates=templates)
    )
    assert set(plan.space_transforms) == {'MNI152NLin2009cAsym'}
    assert plan.precomputed.to_template is None


# Memory.


def test_memory_grows_with_the_scan(make_raw, make_settings, tmp_path):
    sizes = {'sub-01_T1w': (16, 16, 16), 'sub-02_T1w': (64, 64, 64), 'sub-03_T1w': (64, 64, 64, 2)}
    memory = {}
    for name, shape in sizes.items():
        scan = make_raw(tmp_path, name)
        nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)).to_filename(scan.path)
        memory[name] = measured(plan_scan(scan, scan, make_settings(), Options())).mem_gb
    broken = make_raw(tmp_path, 'sub-04_T1w', content=b'no image')
    gone = make_raw(tmp_path, 'sub-05_T1w', content=None)
    plans = [measured(plan_scan(scan, scan, make_settings(), Options())) for scan in (broken, gone)]
    assert memory['sub-01_T1w'] < memory['sub-02_T1w'] == memory['sub-03_T1w'] < plans[0].mem_gb
    assert plans[0].shape == plans[1].shape == (256, 256, 256)
    # A dozen float32 copies of 256^3 voxels are 0.8 GB.
    assert 0.8 < plans[0].mem_gb < 2


# Expected files.


@pytest.mark.parametrize('name', ['sub-01_T1w', 'sub-01_ses-1_acq-x_run-2_T2w'])
def test_expected_outputs_are_those_of_the_sidecars(name, make_raw, tmp_path):
    scan = make_raw(tmp_path, name, content=None)
    anchor = scan if scan.suffix == 'T1w' else make_raw(tmp_path, 'sub-01_ses-1_T1w', content=None)
    spaces = [Space('native'), Space('T1w'), Space('MNI152NLin2009aSym', '2'), Space('Other', '1')]
    expected = expected_outputs(scan, anchor, spaces)
    assert len(set(expected)) == len(expected)
    specs = [
        sidecars.image_spec(scan, 'harmonized', '', []),
        sidecars.preproc_spec(scan, Precomputed(), None),
        sidecars.mask_spec(scan, Precomputed(), None),
    ]
    for space in spaces[1:] if scan != anchor else spaces[2:]:
        specs += sidecars.space_specs(scan, space)
    assert sorted(expected) == sorted([*(spec['path'] for spec in specs), OutputNames(scan).qc])
    stem = f'{OutputNames(scan).folder}/{name.rsplit("_", 1)[0]}'
    assert f'{stem}_space-Other_res-1_desc-harmonized_{scan.suffix}.nii.gz' in expected
    assert any('_space-T1w_' in path for path in expected) == (scan != anchor)
    assert not any('native' in path for path in expected)


# Which scans a target is learnt from.


@pytest.mark.parametrize('most', [1, 2, 3, 4, 6, 50])
def test_number_of_scans_is_that_asked_for(most, sites, make_settings):
    settings = make_settings(harmonizer='nyul', target_scans=max(most, 2))
    card = registry.get('nyul').card
    _, scans = resolve_target(settings, card, sites)
    count = Counter(scan.suffix for scan in scans)
    assert count == {'T1w': min(max(most, 2), 6), 'T2w': min(max(most, 2), 6)}
    _, scans = resolve_target(make_settings(target='north', target_scans=most), card, sites)
    assert Counter(scan.suffix for scan in scans) == {'T1w': min(most, 3), 'T2w': min(most, 3)}
    assert {scan.site for scan in scans} == {'north'}


def test_sites_are_taken_in_turn(sites, make_settings):
    _, scans = resolve_target(
        make_settings(harmonizer='nyul', target_scans=4), registry.get('nyul').card, sites
    )
    chosen = [scan for scan in scans if scan.suffix == 'T1w']
    assert Counter(scan.site for scan in chosen) == {'north': 2, 'south': 1, 'east': 1}
    assert names_of(chosen)[-1] == 'sub-03_T1w'


def test_every_subject_gives_one_scan_before_any_gives_two(cohort, make_settings):
    selection = cohort({f'sub-{label}_run-{run}_T1w': 'A' for label in ('01', '02', '03') for run in '123'})
    _, scans = resolve_target(
        make_settings(target='A', target_scans=4), registry.get('robust').card, selection
    )
    assert names_of(scans) == [
        'sub-01_run-1_T1w', 'sub-02_run-1_T1w', 'sub-03_run-1_T1w', 'sub-01_run-2_T1w'
    ]  # fmt: skip


def test_choice_does_not_depend_on_the_order_of_the_scans(sites, make_settings):
    card = registry.get('histogram').card
    settings = make_settings(harmonizer='histogram', target_scans=4)
    _, first = resolve_target(settings, card, sites)
    for seed in range(5):
        shuffled = list(sites.scans)
        random.Random(seed).shuffle(shuffled)
        _, again = resolve_target(settings, card, replace(sites, scans=tuple(shuffled)))
        for suffix in ('T1w', 'T2w'):
            assert [s.name for s in again if s.suffix == suffix] == [
                s.name for s in first if s.suffix == suffix
            ]


@pytest.mark.parametrize('target', ['canonical', 'south'])
def test_choice_does_not_depend_on_the_participants_asked_for(target, make_data_set, make_settings, tmp_path):
    """Jobs for single subjects must agree on the target without talking to each other."""
    make_data_set(tmp_path / 'bids', SITES, ('T1w', 'T2w'))
    common = {'harmonizer': 'nyul', 'target': target, 'target_scans': 2}
    whole = plan_run(make_settings(**common))
    assert Counter(scan.suffix for scan in whole.fit_scans) == {'T1w': 2, 'T2w': 2}
    for labels in (['01'], ['05', '02']):
        part = plan_run(make_settings(**common, participant_label=labels))
        assert part.fit_scans == whole.fit_scans
        assert set(part.selection.subjects) == set(labels)
        assert anchors_to_learn(part, make_settings()) == anchors_to_learn(whole, make_settings())
        assert part.method == whole.method


def test_scans_to_learn_from_need_no_t1w(make_data_set, make_settings, tmp_path):
    """A subject without T1w, and not asked for, may well serve the target."""
    bids = make_data_set(tmp_path / 'bids', {'01': 'A', '02': 'A', '03': 'A'}, ('T1w', 'T2w', 'FLAIR'))
    for label in ('02', '03'):
        (bids / f'sub-{label}/anat/sub-{label}_T1w.nii.gz').unlink()
    whole = plan_run(make_settings(harmonizer='nyul'))
    part = plan_run(make_settings(harmonizer='nyul', participant_label=['01']))
    assert part.fit_scans == whole.fit_scans
    assert 'sub-02_FLAIR' in names_of(part.fit_scans)
    assert anchors_to_learn(part, make_settings()) == anchors_to_learn(whole, make_settings())
    assert anchors_to_learn(part, make_settings())['sub-02_FLAIR'] == 'sub-02_T2w'


@pytest.mark.parametrize(
    ('name', 'advice'), [('nyul', 'Give --target a site'), ('ravel', 'Choose one of: identity')]
)
def test_a_single_scan_teaches_no_cohort_and_the_advice_is_one_that_helps(
    name, advice, cohort, make_settings
):
    with pytest.raises(UsageError, match='there is only 1') as caught:
        make_plan(make_settings(harmonizer=name), cohort({'sub-01_T1w': 'A'}))
    assert caught.value.fix.startswith(advice)


def test_methods_with_a_standard_of_their_own_need_no_scans(sites, make_settings):
    for name in ('robust', 'zscore', 'identity'):
        assert resolve_target(make_settings(harmonizer=name), registry.get(name).card, sites) == (
            'canonical',
            (),
        )


# Targets.


def test_site_target(sites, make_settings):
    target, scans = resolve_target(make_settings(target='east'), registry.get('robust').card, sites)
    assert target == 'site:east'
    assert names_of(scans) == ['sub-06_T1w', 'sub-06_T2w']


def test_unknown_target_names_the_sites(sites, make_settings):
    with pytest.raises(UsageError, match='"nroth" is neither') as caught:
        resolve_target(make_settings(target='nroth'), registry.get('robust').card, sites)
    assert caught.value.where == '--target'
    assert 'east, north, south' in caught.value.fix
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ('name', 'suffix'),
    [('sub-09_ses-x_T2w', 'T2w'), ('my head', 'T1w'), ('a_FLAIR', 'FLAIR'), ('FLAIR', 'FLAIR')],
)
def test_reference_file(name, suffix, sites, make_settings, tmp_path, monkeypatch):
    file = tmp_path / 'elsewhere' / f'{name}.nii.gz'
    file.parent.mkdir()
    nib.Nifti1Image(np.ones((32, 32, 32), np.int16), 5 * np.eye(4)).to_filename(file)
    monkeypatch.chdir(tmp_path)
    card = registry.get('robust').card
    for text in (str(file), f'elsewhere/{name}.nii.gz'):
        target, (scan,) = resolve_target(make_settings(target=text), card, sites)
        assert target == f'reference:{file}'
        assert (scan.path, scan.suffix, scan.subject) == (file, suffix, 'reference')


def test_reference_that_is_no_image_ends_the_run_at_once(sites, make_settings, tmp_path):
    file = tmp_path / 'passwd'
    file.write_text('root:x')
    with pytest.raises(UsageError, match='reference image cannot be used'):
        make_plan(make_settings(target=str(file)), sites)


def test_a_subject_called_reference_is_a_subject(cohort, make_settings):
    selection = cohort(
        {'sub-reference_T1w': 'A', 'sub-reference_T2w': 'A', 'sub-01_T2w': 'A', 'sub-01_T1w': 'A'}
    )
    plan = make_plan(make_settings(target='A'), selection)
    scan = next(scan for scan in plan.fit_scans if scan.name == 'sub-reference_T2w')
    assert plan.fit_anchor(scan).name == 'sub-reference_T1w'


def test_label_of_a_site_goes_before_a_file_of_that_name(sites, make_settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'east').touch()
    assert resolve_target(make_settings(target='east'), registry.get('robust').card, sites)[0] == 'site:east'


def test_target_that_the_method_cannot_aim_at(sites, make_settings):
    with pytest.raises(UsageError, match='identity cannot aim at a site') as caught:
        resolve_target(make_settings(target='east'), registry.get('identity').card, sites)
    assert 'canonical' in caught.value.fix


def test_too_few_scans_for_a_common_scale(cohort, make_settings):
    card = registry.get('nyul').card
    with pytest.raises(UsageError, match='several scans of the same contrast') as caught:
        resolve_target(make_settings(harmonizer='nyul'), card, cohort({'sub-01_T1w': 'A'}))
    assert 'robust' in caught.value.fix
    assert 'nyul' not in caught.value.fix
    # One scan is enough for a site.
    _, scans = resolve_target(make_settings(harmonizer='nyul', target='A'), card, cohort({'sub-01_T1w': 'A'}))
    assert names_of(scans) == ['sub-01_T1w']


def test_one_scan_of_each_contrast_is_too_few(cohort, make_settings):
    """Told before the hours of preprocessing, not after."""
    selection = cohort({'sub-01_T1w': 'A', 'sub-01_T2w': 'A'})
    with pytest.raises(UsageError, match='several scans of the same contrast'):
        make_plan(make_settings(harmonizer='nyul'), selection)


def test_contrast_with_a_single_scan_is_passed_over(cohort, make_settings):
    """A common scale of T1w is no reason to fail a lone FLAIR: it is not served, as the plan says at once."""
    selection = cohort({'sub-01_T1w': 'A', 'sub-02_T1w': 'A', 'sub-02_FLAIR': 'A'})
    plan = make_plan(make_settings(harmonizer='nyul'), selection)
    assert names_of(plan.selection.scans) == ['sub-01_T1w', 'sub-02_T1w']
    (error,) = plan.selection.left_out
    assert isinstance(error, NotServed)
    assert error.where == 'sub-02_FLAIR'


def test_reference_of_another_contrast_is_no_failure(sites, make_settings, tmp_path):
    file = tmp_path / 'sub-x_T2w.nii.gz'
    nib.Nifti1Image(np.ones((32, 32, 32), np.int16), 5 * np.eye(4)).to_filename(file)
    plan = make_plan(make_settings(target=str(file)), sites)
    assert {scan.suffix for scan in plan.selection.scans} == {'T2w'}
    assert sorted(error.where for error in plan.selection.left_out) == [f'sub-{label}_T1w' for label in SITES]
    assert all(isinstance(error, NotServed) for error in plan.selection.left_out)
    assert all('T1w' in error.what for error in plan.selection.left_out)
    # The T1w are still there for the T2w to follow.
    for scan in plan.selection.scans:
        assert plan.selection.anchor(scan).name == f'sub-{scan.subject}_T1w'
    outcome = Outcome(left_out=list(plan.selection.left_out), verdicts={'sub-01_T2w': 'fail'})
    assert outcome.exit_code == ExitCode.OK


def test_reference_that_serves_nothing(cohort, make_settings, tmp_path):
    file = tmp_path / 'sub-x_T2w.nii.gz'
    nib.Nifti1Image(np.ones((32, 32, 32), np.int16), 5 * np.eye(4)).to_filename(file)
    with pytest.raises(UsageError, match='offers no T1w'):
        make_plan(make_settings(target=str(file)), cohort({'sub-01_T1w': 'A'}))


def test_a_scan_that_had_to_be_refused_is_no_wrong_use():
    doubtful = ScanError('Several files would have the same outputs.', where='sub-05_T1w', fix='Keep one.')
    with pytest.raises(ScanError, match='Several files') as caught:
        planning._with_contrasts(
            Selection((), left_out=(doubtful,)), registry.card('tscore'), set(), 'canonical'
        )
    assert caught.value.where == 'sub-05_T1w'


def test_exit_codes():
    assert Outcome().exit_code == ExitCode.OK
    assert Outcome(left_out=[NotServed('x')]).exit_code == ExitCode.OK
    assert Outcome(left_out=[NotServed('x'), ScanError('x')]).exit_code == ExitCode.SCAN_FAILED
    assert Outcome(failures=[ErrorEntry('sub-01_T1w', 'x')]).exit_code == ExitCode.SCAN_FAILED


def test_contrast_that_the_method_does_not_handle(sites, make_settings, monkeypatch):
    give_card(monkeypatch, contrasts=('T1w',))
    plan = make_plan(make_settings(), sites)
    assert {scan.suffix for scan in plan.selection.scans} == {'T1w'}
    assert {type(error) for error in plan.selection.left_out} == {NotServed}
    assert all('does not handle T2w' in error.what for error in plan.selection.left_out)


# Devices.


def give_card(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    """Let every name stand for a method with this card."""
    card = Card(**{'name': 'fake', 'title': 'Fake', 'paper': 'None', **fields})
    monkeypatch.setattr(registry, 'get', lambda name: types.SimpleNamespace(card=card, weights_digest=str))


def give_cards(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Pretend to be a machine with so many GPUs."""
    cuda = types.SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count)
    mps = types.SimpleNamespace(is_available=lambda: False)
    torch = types.SimpleNamespace(cuda=cuda, backends=types.SimpleNamespace(mps=mps))
    monkeypatch.setitem(sys.modules, 'torch', torch)


@pytest.mark.parametrize(
    ('asked', 'uses', 'cards', 'graph', 'node'),
    [
        ('auto', False, 2, 'cpu', 'cpu'),
        ('auto', True, 2, 'cuda:0', 'cuda:0'),
        ('auto', True, 0, 'cpu', 'cpu'),
        ('cuda', False, 1, 'cuda:0', 'cpu'),
        ('cuda', True, 1, 'cuda:0', 'cuda:0'),
        ('cuda:1', True, 2, 'cuda:1', 'cuda:1'),
        ('cpu', True, 2, 'cpu', 'cpu'),
    ],
)
def test_device(asked, uses, cards, graph, node, sites, make_settings, monkeypatch):
    give_cards(monkeypatch, cards)
    give_card(monkeypatch, uses_device=uses, memory_gb=7.0)
    plan = make_plan(make_settings(device=asked), sites)
    assert plan.options.device == graph
    assert plan.method.execution['device'] == node
    assert plan.method.uses_gpu == (node != 'cpu')
    assert plan.method.memory_gb == 7.0


def test_device_that_is_not_there(sites, make_settings, monkeypatch):
    give_cards(monkeypatch, 1)
    for asked in ('cuda:1', 'mps'):
        with pytest.raises(ConfigurationError, match='not there'):
            make_plan(make_settings(device=asked), sites)
    with pytest.raises(UsageError):
        make_plan(make_settings(device='gpu'), sites)


def test_method_for_the_cpu_does_not_load_torch(sites, make_settings, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)  # importing it now raises
    assert make_plan(make_settings(device='auto'), sites).options.device == 'cpu'


# Templates, seeds, and bundles.


def test_output_spaces(sites, make_settings):
    plan = make_plan(
        make_settings(
            output_spaces=['native', 'T1w', 'MNI152NLin2009aSym', 'MNI152NLin2009aSym:res-1', 'MNI152NLin2009aSym:res-02'],
            random_seed=7, oom_fallback='cpu', guard='refuse', registration='syn', sloppy=True, offline=True,
        ), sites,
    )  # fmt: skip
    assert [(space.name, space.resolution) for space in plan.spaces] == [
        ('native', ''), ('T1w', ''), ('MNI152NLin2009aSym', '1'), ('MNI152NLin2009aSym', '2'),
    ]  # fmt: skip
    assert [template.space for template in plan.options.templates] == list(plan.spaces[2:])
    assert plan.options.t1w_space
    assert (plan.options.seed, plan.options.registration, plan.options.sloppy) == (7, 'syn', True)
    assert plan.method.execution == {'device': 'cpu', 'seed': 7, 'oom_fallback': 'cpu', 'guard': 'refuse'}


def test_template_that_is_not_there(sites, make_settings, tmp_path, monkeypatch):
    monkeypatch.setenv('TEMPLATEFLOW_HOME', str(tmp_path / 'templates'))
    with pytest.raises(ConfigurationError, match='MNI152NLin2009cAsym'):
        make_plan(make_settings(output_spaces=['MNI152NLin2009cAsym'], offline=True), sites)


def test_derivatives_that_are_not_there(sites, make_settings, tmp_path):
    with pytest.raises(UsageError, match='does not exist'):
        make_plan(make_settings(derivatives={'smriprep': tmp_path / 'gone'}), sites)


def test_results_depend_on_weights_that_ship(sites, make_settings, monkeypatch):
    def plan() -> Method:
        return make_plan(make_settings(harmonizer='isotone'), sites).method

    before = plan()
    assert before.learnt == before.weights_digest != ''
    monkeypatch.setattr(registry.get('isotone'), 'weights_digest', classmethod(lambda cls: 'others'))
    after = make_settings(harmonizer='isotone').digest(model=plan().learnt)
    assert make_settings(harmonizer='isotone').digest(model=before.learnt) != after
    assert make_plan(make_settings(harmonizer='robust'), sites).method.learnt == ''


def test_model_takes_the_place_of_learning(sites, make_settings, tmp_path, monkeypatch):
    folder = tmp_path / 'models' / 'mine'
    digest = bundle.save(registry.get('zscore')(), folder)
    monkeypatch.chdir(tmp_path)
    given = [
        {'model': folder},
        {'model': Path('models/mine')},
        {'model': Path('mine'), 'weights_dir': folder.parent},
    ]
    for values in given:
        plan = make_plan(make_settings(harmonizer='zscore', **values), sites)
        assert (plan.method.model_dir, plan.method.model_digest) == (str(folder), digest)
        assert plan.fit_scans == ()
    with pytest.raises(ConfigurationError, match='not found'):
        make_plan(make_settings(harmonizer='zscore', model=Path('gone')), sites)
    (tmp_path / 'mine.tar').write_bytes(b'')
    with pytest.raises(ConfigurationError, match=r'not the folder.*bidsharm-models import'):
        make_plan(make_settings(harmonizer='zscore', model=Path('mine.tar')), sites)
    with pytest.raises(ConfigurationError, match='made by "zscore"'):
        make_plan(make_settings(harmonizer='robust', model=folder), sites)
    (folder / 'card.json').write_text('{')
    with pytest.raises(ConfigurationError, match='damaged'):
        make_plan(make_settings(harmonizer='zscore', model=folder), sites)


def learn(folder: Path, target: Site | Reference) -> Path:
    """Write a bundle of nyul, learnt from two T1w."""
    rng = np.random.default_rng(1)
    mask = np.ones((12, 12, 12), bool)
    scans = [
        Scan(
            rng.gamma(4, 10, mask.shape).astype(np.float32), mask, np.eye(4), 'T1w', f'sub-0{n}_T1w', 'north'
        )
        for n in (1, 2)
    ]
    method = registry.get('nyul')()
    method.fit(Cohort(scans), target=target)
    bundle.save(method, folder)
    return folder


@pytest.fixture
def north_model(tmp_path):
    """A bundle of nyul, learnt from T1w of the site north."""
    return learn(tmp_path / 'north', Site('north'))


def test_model_may_be_named_with_the_reference_that_it_was_learnt_from(sites, make_settings, tmp_path):
    model = learn(tmp_path / 'bundle', Reference(str(tmp_path / 'here' / 'best_T1w.nii.gz')))
    # The image may have moved, or be gone: the bundle holds all that counts.
    for target in ('canonical', str(tmp_path / 'there' / 'best_T1w.nii.gz'), 'reference:best_T1w.nii.gz'):
        plan = make_plan(make_settings(harmonizer='nyul', model=model, target=target), sites)
        assert plan.method.target == 'reference:best_T1w.nii.gz'
    for target in (str(tmp_path / 'here' / 'other_T1w.nii.gz'), 'best'):
        with pytest.raises(UsageError, match=r'learnt for the target "reference:best_T1w\.nii'):
            make_plan(make_settings(harmonizer='nyul', model=model, target=target), sites)


def test_reference_that_is_a_link_goes_by_its_own_name(cohort, make_settings, tmp_path):
    """In an annex the link has the name of the image, and what it leads to has a key."""
    key = tmp_path / 'annex' / 'MD5E-s5--abc.nii.gz'
    key.parent.mkdir()
    nib.Nifti1Image(np.ones((12, 12, 12), np.int16), np.eye(4)).to_filename(key)
    link = tmp_path / 'sub-ref_T2w.nii.gz'
    link.symlink_to(key)
    card = registry.get('nyul').card
    target, scans = resolve_target(make_settings(target=str(link)), card, cohort({'sub-01_T2w': 'A'}))
    assert target == f'reference:{link}'
    assert [scan.suffix for scan in scans] == ['T2w']


def test_model_brings_its_own_target(sites, make_settings, north_model):
    """The data set at hand need not know the site that the model was learnt from."""
    elsewhere = replace(sites, scans=tuple(replace(scan, site='west') for scan in sites.scans))
    for target in ('canonical', 'north'):
        plan = make_plan(make_settings(harmonizer='nyul', model=north_model, target=target), elsewhere)
        assert plan.method.target == 'site:north'
        assert plan.fit_scans == ()
        assert {scan.suffix for scan in plan.selection.scans} == {'T1w'}
        assert {type(error) for error in plan.selection.left_out} == {NotServed}
        assert 'north offers no T2w' in plan.selection.left_out[0].what
    with pytest.raises(UsageError, match='learnt for the target "north"'):
        make_plan(make_settings(harmonizer='nyul', model=north_model, target='south'), sites)


def test_settings_that_would_fail_late_fail_now(sites, make_settings, tmp_path):
    with pytest.raises(UsageError, match='dice_grey'):
        make_plan(make_settings(qc_thresholds={'dice_grey': {'warn': 0.9, 'fail': 0.8}}), sites)
    (tmp_path / 'plugin.yml').write_text('plugin: Nothing')
    with pytest.raises(UsageError, match='Nothing'):
        make_plan(make_settings(use_plugin=tmp_path / 'plugin.yml'), sites)
    (tmp_path / 'plugin.yml').write_text('plugin: SLURM\ngpu_plugin_args: {sbatch_args: "--gres=gpu:1"}')
    plan = make_plan(make_settings(use_plugin=tmp_path / 'plugin.yml'), sites)
    assert plan.options.gpu_plugin_args == {'sbatch_args': '--gres=gpu:1'}


def test_method_that_needs_weights(sites, make_settings, monkeypatch):
    give_card(monkeypatch, needs_apply=('weights',))
    with pytest.raises(ConfigurationError, match='a model bundle'):
        make_plan(make_settings(), sites)


# What is done already.


def test_a_scan_that_follows_is_done_again_when_what_it_rests_on_changes(cohort, make_settings, tmp_path):
    selection = cohort({'sub-01_T1w': 'A', 'sub-01_T2w': 'A'})
    root = theirs(tmp_path / 'prep', 'sub-01/anat/sub-01', 'desc-brain_mask.nii.gz')
    settings = make_settings(derivatives={'prep': root})
    plan = make_plan(settings, selection)
    t1w, t2w = sorted(selection.scans, key=lambda scan: scan.suffix)
    mask = root / 'sub-01/anat/sub-01_desc-brain_mask.nii.gz'
    sources = plan_scan(t2w, t1w, settings, plan.options).sources
    assert sources == {
        raw_uri(t2w): t2w.path, raw_uri(t1w): t1w.path,
        'bids:prep:sub-01/anat/sub-01_desc-brain_mask.nii.gz': mask,
    }  # fmt: skip
    record = settings.output_dir / OutputNames(t2w).qc
    record.parent.mkdir(parents=True)
    content = {
        'verdict': 'pass', 'scan': t2w.name, 'subject': '01', 'contrast': 'T2w', 'digest': 'd', 'outputs': {}, 'figures': {},
        'inputs': {uri: fingerprint(file) for uri, file in sources.items()}, 'site': t2w.site,
    }  # fmt: skip
    record.write_text(json.dumps(content))
    assert unfinished([t2w], plan, settings, 'd') == set()
    for file in (t1w.path, mask):
        before = file.read_bytes()
        file.write_bytes(b'another content')
        assert unfinished([t2w], plan, settings, 'd') == {t2w.name}
        file.write_bytes(before)
    assert unfinished([t2w], plan, settings, 'd') == set()
    assert unfinished([t2w], plan, make_settings(), 'd') == {t2w.name}, 'the mask is no longer given'


def test_unfinished(sites, make_settings):
    scans = sites.of_subject('01')
    settings = make_settings()
    plan = make_plan(settings, sites)
    digest = settings.digest(model='')
    everything = set(names_of(scans))
    assert unfinished(scans, plan, settings, digest) == everything
    done = scans[0]
    image = settings.output_dir / OutputNames(done).image('harmonized')
    record = settings.output_dir / OutputNames(done).qc
    image.parent.mkdir(parents=True)
    image.touch()
    content = {
        **{'verdict': 'pass', 'scan': done.name, 'subject': '01', 'contrast': 'T1w'}, 'digest': digest, 'outputs': {OutputNames(done).image('harmonized'): fingerprint(image)}, 'figures': {},
        'inputs': {raw_uri(done): fingerprint(done.path)}, 'site': 'elsewhere',
    }  # fmt: skip
    record.write_text(json.dumps(content))
    assert unfinished(scans, plan, settings, digest) == everything, 'the site was corrected'
    record.write_text(json.dumps({**content, 'site': done.site}))
    assert unfinished(scans, plan, settings, digest) == everything - {done.name}
    assert unfinished(scans, plan, make_settings(force=True), digest) == everything
    assert unfinished(scans, plan, settings, 'another') == everything
    image.unlink()
    assert unfinished(scans, plan, settings, digest) == everything
    image.touch()
    done.path.write_bytes(b'another scan')
    assert unfinished(scans, plan, settings, digest) == everything
    record.write_text('{"cut')
    assert unfinished(scans, plan, settings, digest) == everything


@pytest.mark.parametrize(
    ('change', 'again'),
    [
        ({'target': 'north'}, True),
        ({'random_seed': 1}, True),
        ({'harmonizer': 'zscore'}, True),
        ({'output_spaces': ['T1w']}, True),
        ({'nprocs': 8}, False),
        ({'device': 'auto'}, False),
        ({'participant_label': ['01']}, False),
        ({'verbose': 2}, False),
    ],
)
def test_settings_that_make_a_scan_unfinished(change, again, make_settings):
    before, after = make_settings().digest(model='x'), make_settings(**change).digest(model='x')
    assert (before != after) is again
    assert make_settings().digest(model='y') != before


def test_planning_offers_what_it_announces():
    assert all(hasattr(planning, name) for name in planning.__all__)
