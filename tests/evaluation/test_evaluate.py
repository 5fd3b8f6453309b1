"""The protocol and its command, on people and scanners whose truth is known."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from bidsharm.bids import evaluation_output
from bidsharm.bids.evaluation_input import Sources, find_study
from bidsharm.bids.evaluation_output import check_output, comparison_rows
from bidsharm.cli import evaluate as command
from bidsharm.errors import UsageError
from bidsharm.evaluation import group_measures, models
from bidsharm.evaluation.catalogue import COMPARED, MARGINS, METRICS
from bidsharm.evaluation.comparisons import Results, compare, tolerant
from bidsharm.evaluation.protocol import evaluate
from bidsharm.evaluation.scan_measures import Trace, load_scan
from bidsharm.evaluation.statistics import cohens_d
from bidsharm.evaluation.study import ORIGINAL, Options, Study, StudyScan
from bidsharm.reports import evaluation as report
from bidsharm.reports import plots

PEOPLE, SCANNERS = 6, ('east', 'north', 'west')
SPACING = 2.9
QUICK = [
    '--aligned',
    '--given-segmentations',
    '--resamples',
    '200',
    '--permutations',
    '20',
    '--site',
    'session',
]
Image = NDArray[np.float32]


class Person:
    """A ball of white matter in grey matter in fluid; older people have thinner grey matter."""

    def __init__(self, number: int) -> None:
        axes = [(np.arange(48) - 23.5) * SPACING] * 3
        grid = np.meshgrid(*axes, indexing='ij')
        # The ball lies off the middle, elsewhere in every person.
        shift = np.random.default_rng(number).uniform(-4, 4, 3)
        radius = np.sqrt(sum((axis - s) ** 2 for axis, s in zip(grid, shift, strict=True)))
        self.age = 20.0 + 10 * number
        self.mask = radius < 64
        grey = 58 - 0.15 * self.age
        self.labels = np.where(radius < 42, 2, np.where(radius < grey, 1, 3)) * self.mask
        lesion = (np.abs(grid[0] - 12) < 9) & (np.abs(grid[1]) < 9) & (np.abs(grid[2]) < 9)
        self.lesions = lesion & self.mask
        grain = np.random.default_rng(100 + number).standard_normal(radius.shape)
        tissue = np.choose(self.labels, [0.0, 0.6, 1.0, 0.2]) - 0.25 * self.lesions
        self.canonical = ((tissue + 0.02 * grain) * self.mask).astype(np.float32)

    def seen_by(self, scanner: str, number: int) -> Image:
        """Return the scan: each scanner has a curve, a scale, and noise."""
        curve = {'east': 0.7, 'north': 1.0, 'west': 1.5}[scanner]
        scale = {'east': 300.0, 'north': 1000.0, 'west': 2500.0}[scanner]
        rng = np.random.default_rng((number, len(scanner), ord(scanner[0])))
        noisy = np.clip(self.canonical, 0.01, None) ** curve + 0.01 * rng.standard_normal(self.mask.shape)
        return (scale * noisy * self.mask).astype(np.float32)


def save(path: Path, data: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if data.dtype in (bool, np.int64) else np.float32
    nib.save(nib.Nifti1Image(data.astype(kind), np.diag([SPACING] * 3 + [1.0])), path)


def perfect(person: Person, scan: Image, rng: np.random.Generator) -> Image:
    return (person.canonical + 0.005 * rng.standard_normal(scan.shape)).astype(np.float32) * person.mask


def scaled(person: Person, scan: Image, rng: np.random.Generator) -> Image:
    return scan / np.quantile(scan[person.mask], 0.9).astype(np.float32)


def levelled(person: Person, scan: Image, rng: np.random.Generator) -> Image:
    """Give everybody the same distribution, which erases who has how much grey matter."""
    order = np.argsort(np.argsort(scan[person.mask], kind='stable'), kind='stable')
    image = np.zeros_like(scan)
    parts = np.repeat([0.2, 0.6, 1.0], [30, 35, 35])
    image[person.mask] = parts[(order * 100 // len(order)).astype(int)]
    return image


METHODS: dict[str, Callable[[Person, Image, np.random.Generator], Image]] = {
    'perfect': perfect,
    'scaled': scaled,
    'levelled': levelled,
}


def named(folder: Path, subject: str, session: str, rest: str) -> Path:
    return (
        folder / f'sub-{subject}' / f'ses-{session}' / 'anat' / f'sub-{subject}_ses-{session}_{rest}.nii.gz'
    )


@pytest.fixture(scope='module')
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people in three scanners, three methods, and the truth."""
    root = tmp_path_factory.mktemp('world')
    rows = ['participant_id\tage\tsex\tdiagnosis']
    for number in range(PEOPLE):
        person, subject = Person(number), f'{number:02d}'
        rows.append(f'sub-{subject}\t{person.age}\t{"FM"[number % 2]}\t{"old" if number > 2 else "young"}')
        for scanner in SCANNERS:
            scan = person.seen_by(scanner, number)
            save(named(root / 'before', subject, scanner, 'desc-preproc_T1w'), scan)
            save(named(root / 'before', subject, scanner, 'dseg'), person.labels)
            for name, kind in (('dseg', person.labels), ('desc-brain_mask', person.mask),
                               ('label-lesion_mask', person.lesions), ('desc-canonical_T1w', person.canonical)):  # fmt: skip
                save(named(root / 'truth', subject, scanner, name), kind)
            for method, make in METHODS.items():
                rng = np.random.default_rng((number, ord(scanner[0]), 7))
                image = make(person, scan, rng)
                save(named(root / method, subject, scanner, 'desc-harmonized_T1w'), image)
                save(named(root / method, subject, scanner, 'desc-harmonized_dseg'), person.labels)
            error = rng.standard_normal(scan.shape) * 0.1
            save(named(root / 'unsure', subject, scanner, 'desc-harmonized_T1w'), person.canonical + error)
            save(named(root / 'unsure', subject, scanner, 'desc-uncertainty_T1w'), np.full(scan.shape, 0.1))
    (root / 'participants.tsv').write_text('\n'.join(rows) + '\n')
    return root


def sources(world: Path, *methods: str, truth: bool = True, spm: Path | None = None, **more: Any) -> Sources:
    folders = {name: world / name for name in methods} | ({'spm': spm} if spm else {})
    base = Sources(
        folders, original=world / 'before', truth=world / 'truth' if truth else None,
        participants=world / 'participants.tsv', site='session',
    )  # fmt: skip
    return replace(base, **more)


OPTIONS = Options(resamples=200, permutations=20, network=False, aligned=True, given_labels=True)


@pytest.fixture(scope='module')
def found(world: Path) -> Any:
    return evaluate(find_study(sources(world, *METHODS, task='diagnosis')), OPTIONS)


def test_the_right_image_wins_against_the_truth(found):
    table = {method: found.values[method] for method in METHODS}
    assert table['perfect']['psnr'].estimate == pytest.approx(-20 * np.log10(0.005 / 0.86), abs=0.7)
    for name in ('psnr', 'ssim', 'mae', 'wasserstein', 'pcc', 'gradient_ncc', 'js', 'ffd'):
        costs = {method: METRICS[name].cost(row[name].estimate) for method, row in table.items()}
        assert min(costs, key=lambda method: costs[method]) == 'perfect', name


def test_units_of_the_scanner_are_not_compared_with_the_truth(found):
    before = found.values[ORIGINAL]
    assert 'pcc' in before
    assert not {'psnr', 'ssim', 'mae', 'wasserstein', 'ffd'} & set(before)


def test_sites_show_before_and_not_after(found):
    assert found.values[ORIGINAL]['site_linear'].estimate > 0.9
    after = found.values['perfect']['site_linear']
    assert after.estimate <= after.chance_high
    assert after.chance == pytest.approx(1 / 3, abs=0.1)


def test_classifiers_carry_where_tissue_looks_the_same(found):
    carried = {method: row['transfer_dice'].estimate for method, row in found.values.items()}
    assert carried['perfect'] > 0.95
    assert carried['perfect'] > carried['scaled'] > carried[ORIGINAL]


def test_erasing_people_is_seen(found):
    assert found.values['perfect']['transfer_gm_r'].estimate > 0.9
    assert found.values['perfect']['age_r'].estimate < -0.9
    spread = {
        method: np.std([row['transfer_gm'] for row in found.scans if row['method'] == method])
        for method in ('perfect', 'levelled')
    }
    assert spread['levelled'] < 0.05 * spread['perfect']
    assert abs(found.values['levelled']['age_r'].estimate) < 0.9


def test_volumes_of_the_same_segmentation_agree(found):
    row = found.values['perfect']
    assert row['ravd_gm'].estimate == 0
    assert row['dice_wm'].estimate == 1
    assert row['volume_r_gm'].estimate == pytest.approx(1)
    assert row['cov_gm'].estimate == pytest.approx(0)
    assert row['icc_agreement_gm'].estimate == pytest.approx(1)
    assert row['scanner_dice_gm'].estimate == 1


def test_scans_find_their_person(found):
    assert found.values['perfect']['reidentification'].estimate == 1
    assert (
        found.values['perfect']['within_between'].estimate < found.values['scaled']['within_between'].estimate
    )


def test_linear_maps_keep_lesions_and_edges(found):
    row = found.values['scaled']
    assert row['lesion_kept'].estimate == pytest.approx(1, abs=1e-4)
    assert row['new_edges'].estimate == 0
    assert row['edges_kept'].estimate == 1


def test_a_task_is_scored_by_person_and_by_scanner(found):
    row = found.values['perfect']
    assert row['task_auc'].n == PEOPLE
    assert row['task_auc'].estimate > 0.8
    assert 'task_accuracy_scanner' in row


def classed(classes: str, scanners: str = 'xy') -> tuple[list[Trace], list[float], Study]:
    """Return scans of people, one letter a class, whose first quantile tells it."""
    rng = np.random.default_rng(0)
    traces = [
        replace(EMPTY, scan=f'{n}{scanner}', person=f'p{n}', scanner=scanner, filters=np.zeros((2, 3)),
                quantiles=np.array([float(ord(name)) + rng.normal(0, 0.05), 1.0]))
        for n, name in enumerate(classes) for scanner in scanners
    ]  # fmt: skip
    study = Study((), ('m',), classes={f'p{n}': name for n, name in enumerate(classes)})
    return traces, [np.nan] * len(traces), study


def test_two_people_in_each_class_are_enough_for_a_task():
    found = group_measures.task(*classed('aabb'), OPTIONS)
    for way in ('', '_scanner'):
        assert (found[f'task_accuracy{way}'].estimate, found[f'task_accuracy{way}'].n) == (1, 4)
    assert group_measures.task(*classed('aabbcc'), OPTIONS)['task_f1'].estimate == 1
    alone = group_measures.task(*classed('aaaab'), OPTIONS)
    assert np.isnan(alone['task_accuracy'].estimate)
    assert 'fewer than two people' in alone['task_accuracy'].reason


def test_people_whose_class_nobody_could_learn_are_left_out_not_wrong():
    traces, _, study = classed('aaabba')
    where = {'p0': 'x', 'p1': 'x', 'p2': 'y', 'p3': 'y', 'p4': 'y', 'p5': 'z'}
    # Without scanner y there is only one class to learn, and so nothing for the scans there.
    traces = [replace(t, scanner=where[t.person]) for t in traces if t.scan.endswith('x')]
    found = group_measures.task(traces, [0.5] * len(traces), study, OPTIONS)['task_accuracy_scanner']
    assert (found.estimate, found.n) == (1, 3)
    assert '3 people' in found.reason


def test_people_of_a_class_that_is_in_one_scanner_only_are_left_out_not_wrong():
    traces, _, study = classed('aaabbbcc')
    where = dict(zip(sorted(study.classes), 'xyzxyzzz', strict=True))
    traces = [replace(t, scanner=where[t.person]) for t in traces if t.scan.endswith('x')]
    found = group_measures.task(traces, [0.5] * len(traces), study, OPTIONS)['task_accuracy_scanner']
    assert (found.estimate, found.n) == (1, 6)  # without z nobody is left to learn c from
    assert '2 people' in found.reason


def test_an_unknown_scanner_is_no_new_scanner():
    traces, fractions, study = classed('aabb')
    some = [replace(t, scanner='' if t.scanner == 'y' else 'x') for t in traces]
    found = group_measures.task(some, fractions, study, OPTIONS)
    assert 'task_accuracy' in found
    assert 'task_accuracy_scanner' not in found


def test_the_fraction_of_grey_matter_is_of_one_kind_for_all_methods():
    parts = {'volume_csf': 1.0, 'volume_gm': 2.0, 'volume_wm': 1.0}
    here, there = (replace(EMPTY, row={**parts, 'transfer_gm': share}) for share in (0.3, 0.4))
    assert group_measures.gm_fractions({'a': [here], 'b': [there]}) == {'a': [0.3], 'b': [0.4]}
    lacks = replace(EMPTY, row=parts)
    assert group_measures.gm_fractions({'a': [here], 'b': [there, lacks]}) == {'a': [0.5], 'b': [0.5, 0.5]}
    nothing = group_measures.gm_fractions({'a': [replace(EMPTY, row={})]})
    assert np.isnan(nothing['a'][0])


def test_needs_are_true(world):
    for name in ('nll', 'coverage95', 'ece', 'ause'):
        assert 'travelled' not in METRICS[name].needs
        assert '--truth' in METRICS[name].needs
    assert METRICS['fid'].needs == METRICS['inception_score'].needs
    assert 'two or more scanners' in METRICS['task_auc_scanner'].needs
    study = find_study(sources(world, 'unsure', target='north'))
    assert 'nll' not in evaluate(study, OPTIONS).values['unsure']


def test_the_person_is_the_unit(found):
    table = found.tables['psnr']
    assert table.against['scaled'].n == PEOPLE
    rows = [r for r in found.scans if r['method'] == 'perfect']
    assert len(rows) == PEOPLE * len(SCANNERS)
    means = found.by_person('psnr', 'perfect')
    assert found.values['perfect']['psnr'].estimate == pytest.approx(np.mean(list(means.values())))


def test_holm_covers_all_methods_and_measures(found):
    raw = [c.p_t for t in found.tables.values() for c in t.against.values() if c.p_t is not None]
    smallest = min(raw)
    adjusted = min(p for t in found.tables.values() for p in t.holm_t.values() if p is not None)
    assert adjusted == pytest.approx(min(1, smallest * len(raw)))


def test_no_harm_is_tested_against_the_scans_before(found):
    assert found.harmless['ravd_gm']['perfect'].equivalent == 'equivalent'
    assert found.harmless['lesion_kept']['scaled'].equivalent == 'equivalent'
    assert set(found.harmless) <= set(MARGINS)


def test_scans_before_are_in_no_test_of_what_they_have_by_definition(world):
    found = evaluate(find_study(sources(world, 'perfect', 'levelled', truth=False)), OPTIONS)
    assert found.against == ORIGINAL
    assert {'ravd_gm', 'lesion_kept', 'new_edges'} & found.tables.keys() == set()
    assert 'transfer_dice' in found.tables
    assert 'new_edges' in found.harmless


def test_errors_of_lesions_do_not_make_up_for_each_other():
    def rows(method, *kept):
        return [
            {'method': method, 'person': f'p{n}', 'lesion_kept': value} for n in range(6) for value in kept
        ]

    results = Results(('even', 'uneven'), 'even', rows('even', 0.95, 0.95) + rows('uneven', 0.4, 1.6))
    compare(results, OPTIONS)
    assert results.tables['lesion_kept'].against['uneven'].mean_difference == pytest.approx(0.55)


def test_people_without_a_number_are_counted():
    rows = [{'method': 'm', 'person': f'p{n}', 'new_edges': np.nan if n < 2 else 0.001 * n} for n in range(8)]
    results = Results((ORIGINAL, 'm'), ORIGINAL, rows)
    compare(results, OPTIONS)
    found = results.harmless['new_edges']['m']
    assert (found.n, found.left_out) == (6, 2)
    (row,) = comparison_rows(results)
    assert row['left_out'] == 2


def test_who_lacks_images_is_told_and_is_not_the_best(world, tmp_path):
    folder = copied(world / 'perfect', tmp_path / 'some', lambda path: 'sub-05' not in str(path))
    found = evaluate(
        find_study(sources(world, 'scaled', datasets={'scaled': world / 'scaled', 'some': folder})), OPTIONS
    )
    (problem,) = found.problems
    assert (problem.method, problem.what.split(':')[0]) == (
        'some',
        'This data set has no image of 3 of 18 scans',
    )
    assert found.values['some']['psnr'].n == PEOPLE - 1
    assert report._best(found, 'psnr') is None or report._best(found, 'psnr') != 'some'
    cell = report._table(found, ['psnr'])['rows'][-1][1][0]
    assert f'n = {PEOPLE - 1}, not {PEOPLE}' in cell.detail


def test_one_spoilt_image_does_not_decide_what_is_brain(world, tmp_path):
    def spoilt(source, name):
        folder = copied(
            world / source, tmp_path / name, lambda path: 'sub-00' in str(path) or 'sub-01' in str(path)
        )
        for path in folder.rglob('*T1w.nii.gz'):
            image = nib.load(path)
            nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), path)
        return folder

    few = {name: copied(world / name, tmp_path / name, of_two) for name in ('perfect', 'scaled')}
    plain = find_study(Sources(few, site='session'))
    more = find_study(Sources({**few, 'blank': spoilt('perfect', 'blank')}, site='session'))
    (one, *_), (other, *_) = plain.scans, more.scans
    assert np.array_equal(load_scan(one).mask, load_scan(other).mask)


def test_the_site_is_that_of_any_record(world, tmp_path):
    first, second = (copied(world / 'scaled', tmp_path / name, of_two) for name in ('theirs', 'mine'))
    for path in second.rglob('*desc-harmonized_T1w.nii.gz'):
        record = path.parent / path.name.replace('desc-harmonized_T1w.nii.gz', 'desc-T1w_qc.json')
        record.write_text(json.dumps({'site': 'here'}))
    found = find_study(Sources({'theirs': first, 'mine': second}))
    assert {scan.scanner for scan in found.scans} == {'here'}


def test_comparisons_hold_everything_that_was_computed(found):
    row = next(r for r in comparison_rows(found) if (r['metric'], r['method']) == ('ravd_gm', 'scaled'))
    one = found.harmless['ravd_gm']['scaled']
    assert (row['change'], (row['change_low'], row['change_high'])) == (one.difference, one.interval)
    assert (row['equivalent'], row['noninferior']) == (one.equivalent, one.noninferior)
    row = next(r for r in comparison_rows(found) if (r['metric'], r['method']) == ('psnr', 'scaled'))
    pair, model = found.tables['psnr'].against['scaled'], found.tables['psnr'].model
    effect = model.effects['scaled']
    assert (row['shift_low'], row['shift_high']) == pair.shift_interval
    assert (row['dz_low'], row['dz_high']) == pair.dz_interval
    assert (row['mixed'], row['p_mixed']) == (effect.estimate, effect.p)
    assert (row['mixed_low'], row['mixed_high']) == effect.interval
    assert row['fitted_as'] == model.fitted_as != ''


def test_a_model_that_fell_back_says_so(found, monkeypatch):
    monkeypatch.setattr(models, '_fit_mixed', lambda *args: None)
    again = Results(found.methods, found.against, found.scans, found.values)
    compare(again, OPTIONS)
    row = next(r for r in comparison_rows(again) if (r['metric'], r['method']) == ('psnr', 'scaled'))
    assert row['fitted_as'] == 'fixed subjects'
    assert 'subject intercepts did not converge' in row['reason']
    assert 'fitted_as' in evaluation_output._COMPARISONS['p_mixed']
    assert 'fixed subjects' in evaluation_output._COMPARISONS['fitted_as']


@pytest.mark.parametrize(('error', 'verdict'), [(0.004, 'equivalent'), (0.02, 'not shown')])
def test_scans_of_the_target_that_hardly_change_are_no_harm(error, verdict):
    scans = [
        {'method': 'm', 'person': f'p{n}', 'identity_error': error + 1e-4 * n} for n in range(6)
    ] + [{'method': ORIGINAL, 'person': f'p{n}'} for n in range(6)]  # fmt: skip
    results = Results((ORIGINAL, 'm'), ORIGINAL, scans)
    compare(results, OPTIONS)
    found = results.harmless['identity_error']['m']
    assert (found.margin, found.n, found.equivalent) == (0.01, 6, verdict)
    assert found.difference == pytest.approx(error, rel=0.1)  # before, nothing was changed
    (row,) = comparison_rows(results)
    assert (row['metric'], row['equivalent'], row['margin']) == ('identity_error', verdict, 0.01)
    assert 'identity_error' not in results.tables  # no part of Holm's family


def test_everything_named_is_in_the_catalogue(found):
    assert set(COMPARED) | set(MARGINS) <= set(METRICS)
    assert {name for row in found.values.values() for name in row} <= set(METRICS)


def test_without_a_network_nothing_is_trained(found):
    assert 'site_cnn' not in found.values['perfect']


def test_two_runs_agree_in_one_process_or_two(world, found):
    again = evaluate(find_study(sources(world, 'scaled', task='diagnosis')), replace(OPTIONS, processes=2))
    assert again.scans == [row for row in found.scans if row['method'] in (ORIGINAL, 'scaled')]
    for method, row in again.values.items():
        assert row == found.values[method]


def test_uncertainty_is_calibrated(world):
    found = evaluate(find_study(sources(world, 'unsure')), OPTIONS)
    row = found.values['unsure']
    assert row['coverage95'].estimate == pytest.approx(0.95, abs=0.01)
    assert row['ece'].estimate < 0.01


def test_travellers_instead_of_truth(world):
    study = find_study(sources(world, 'perfect', 'scaled', target='north'))
    found = evaluate(study, OPTIONS)
    assert found.values['perfect']['psnr'].estimate > found.values['scaled']['psnr'].estimate + 10
    at_target = [r for r in found.scans if r['scanner'] == 'north']
    assert all('psnr' not in row for row in at_target)
    assert all('identity_error' in row for row in at_target if row['method'] != ORIGINAL)
    # Before harmonization units can be compared here: the reference is a scan, too.
    assert 'psnr' in found.values[ORIGINAL]


def resources(folder: Path, run: str, *rows: str) -> None:
    path = folder / 'logs' / run / 'resources.tsv'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(['scan\tstep\tseconds\tpeak_gb\tstate', *rows]) + '\n')


def test_memory_comes_from_the_logs_of_bidsharm(world, tmp_path):
    folder = copied(world / 'scaled', tmp_path / 'scaled', of_two)
    east, west = 'sub-00_ses-east_T1w', 'sub-00_ses-west_T1w'
    resources(
        folder, '20260101-000000_a', f'{east}\tharmonize.harmonize\t1\t9.5\tfinished',
        f'{west}\tharmonize.harmonize\t1\t0.75\tfinished',
    )  # fmt: skip
    resources(
        folder, '20260102-000000_b', f'{east}\tprep.conform\t1\t4\tfinished',
        f'{east}\tharmonize.harmonize\t1\t0.25\tfinished',  # it was run again
        f'{west}\tharmonize.harmonize\t1\t0.5\tfailed',
        'sub-01_ses-east_T1w\tharmonize.harmonize\t1\tn/a\tfinished',
        f'{east}\tqc.assess\t1\t3\tfinished',
    )  # fmt: skip
    resources(folder, '20260103-000000_c')
    (folder / 'logs' / '20260103-000000_c' / 'resources.tsv').write_bytes(b'\xff')
    study = find_study(sources(world, spm=folder))
    assert {scan.name: scan.methods['spm'].peak_gb for scan in study.scans if scan.person == '00'} == {
        east: 0.25, west: 0.75,
    }  # fmt: skip
    assert all(scan.methods['spm'].peak_gb is None for scan in study.scans if scan.person == '01')
    found = evaluate(study, OPTIONS)
    assert found.values['spm']['peak_gb'].estimate == 0.5
    assert METRICS['peak_gb'].unit == 'GB'


def test_scans_that_came_back(world, tmp_path):
    for number in range(2):
        for scanner in SCANNERS:
            scan, mask = Person(number).seen_by(scanner, number), Person(number).mask
            low, high = np.quantile(scan[mask], [0.005, 0.995])
            returned = scan + 0.01 * (high - low) * mask
            save(named(tmp_path, f'{number:02d}', scanner, 'desc-harmonized_T1w'), returned)
    found = evaluate(find_study(sources(world, 'perfect', returned={'perfect': tmp_path})), OPTIONS)
    assert found.values['perfect']['cycle_error'].estimate == pytest.approx(0.01, rel=0.01)
    assert found.values['perfect']['cycle_error'].n == 2


def test_lesions_that_were_found(world, tmp_path):
    person = Person(0)
    save(named(tmp_path, '00', 'east', 'desc-harmonized_T1w'), person.canonical)
    save(named(tmp_path, '00', 'east', 'label-lesion_mask'), person.lesions)
    found = evaluate(find_study(sources(world, datasets={'x': tmp_path})), OPTIONS)
    assert found.values['x']['lesion_dice'].estimate == 1
    assert found.values['x']['lesion_f1'].estimate == 1
    assert found.values['x']['lesion_ravd'].estimate == 0
    assert found.values['x']['lesion_false'].estimate == 0


def test_lesions_that_are_none_are_counted_and_change_the_volume(world, tmp_path):
    person = Person(0)
    made_up = np.zeros_like(person.lesions)
    made_up[10:13, 20:23, 20:23] = True
    assert not (made_up & person.lesions).any()
    save(named(tmp_path, '00', 'east', 'desc-harmonized_T1w'), person.canonical)
    save(named(tmp_path, '00', 'east', 'label-lesion_mask'), person.lesions | made_up)
    found = evaluate(find_study(sources(world, datasets={'x': tmp_path})), OPTIONS).values['x']
    assert found['lesion_false'].estimate == 0.5
    assert found['lesion_ravd'].estimate == pytest.approx(27 / person.lesions.sum())
    assert METRICS['lesion_false'].better == METRICS['lesion_ravd'].better == 'lower'


# --- Who was where ---


def test_truth_of_another_contrast_lies_on_its_own_grid(tmp_path):
    """`bidsharm-simulate` names labels by a contrast where its grid is not that of the first one."""
    person = Person(1)
    half = {name: getattr(person, name)[::2] for name in ('mask', 'labels', 'lesions', 'canonical')}

    def place(folder: str, rest: str, data: NDArray[Any], voxel: float) -> Path:
        path = named(tmp_path / folder, '01', 'east', rest)
        save(path, data)
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([voxel, SPACING, SPACING, 1.0])), path)
        return path

    for rest, data in (
        ('desc-brain_mask', person.mask),
        ('dseg', person.labels),
        ('label-lesion_mask', person.lesions),
    ):
        place('truth', rest, data, SPACING)
    own = {
        'mask': place('truth', 'desc-T2wBrain_mask', half['mask'], 2 * SPACING),
        'labels': place('truth', 'desc-T2w_dseg', half['labels'], 2 * SPACING),
        'lesions': place('truth', 'label-lesion_desc-T2w_mask', half['lesions'], 2 * SPACING),
    }
    for contrast, data, voxel in (('T1w', person.canonical, SPACING), ('T2w', half['canonical'], 2 * SPACING),
                                  ('FLAIR', half['canonical'], 2 * SPACING), ('PDw', person.canonical, SPACING)):  # fmt: skip
        place('method', f'desc-harmonized_{contrast}', data, voxel)
        given = Sources(
            {'method': tmp_path / 'method'}, suffix=contrast, truth=tmp_path / 'truth', site='session'
        )
        (scan,) = find_study(given).scans
        found = {'mask': scan.mask, 'labels': scan.labels, 'lesions': scan.lesions}
        if contrast in ('T2w', 'FLAIR'):  # FLAIR shares the grid that T2w has given its name
            assert found == own
        else:
            assert not set(found.values()) & set(own.values())
            assert None not in found.values()


def test_a_table_says_who_was_where(world, tmp_path):
    table = tmp_path / 'scans.tsv'
    rows = ['participant_id\tsession_id\tperson\tscanner']
    rows += [f'sub-{n:02d}\tses-{s}\tp{n // 2}\tmagnet{s[0]}' for n in range(PEOPLE) for s in SCANNERS]
    table.write_text('\n'.join(rows) + '\n')
    study = find_study(sources(world, 'perfect', scans=table))
    assert study.scanners == ('magnete', 'magnetn', 'magnetw')
    assert {scan.person for scan in study.scans} == {'p0', 'p1', 'p2'}


def test_people_keep_age_group_and_class_where_a_table_names_them(world, tmp_path):
    scans, people = tmp_path / 'scans.tsv', tmp_path / 'participants.tsv'
    rows = ['participant_id\tperson\tscanner']
    rows += [f'sub-{n:02d}\t{name}\tx' for n, name in enumerate(('anna', 'anna', 'bo', 'bo', '01', '01'))]
    scans.write_text('\n'.join(rows) + '\n')
    people.write_text(
        'participant_id\tage\tsex\tdiagnosis\n'
        'sub-00\tn/a\tF\tn/a\nsub-01\t31\tM\twell\n'  # of anna; the first row lacks two
        'bo\t50\tM\till\nsub-02\t49\tF\twell\n'  # the own row counts
        'sub-04\t70\tF\till\n'  # sub-01 is not the person 01
    )
    study = find_study(sources(world, 'perfect', scans=scans, participants=people, task='diagnosis'))
    assert study.ages == {'anna': 31, 'bo': 50, '01': 70}
    assert study.groups == {'anna': 'F', 'bo': 'M', '01': 'F'}
    assert study.classes == {'anna': 'well', 'bo': 'ill', '01': 'ill'}


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('participant_id\tplace\nsub-00\tx\n', 'scanner'),
        ('participant_id\tscanner\nsub-99\tx\n', 'no row for sub-00'),
        ('', 'participant_id'),
    ],
)
def test_tables_that_do_not_tell(world, tmp_path, text, said):
    (tmp_path / 'scans.tsv').write_text(text)
    with pytest.raises(UsageError, match=said):
        find_study(sources(world, 'perfect', scans=tmp_path / 'scans.tsv'))


def test_a_target_that_nobody_was_at(world):
    with pytest.raises(UsageError, match='east, north, west'):
        find_study(sources(world, 'perfect', target='south'))


def test_a_column_that_is_not_there(world):
    with pytest.raises(UsageError, match='handedness'):
        find_study(sources(world, 'perfect', task='handedness'))


# --- The command ---


@pytest.fixture(scope='module')
def page(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the command once; one image of one method is broken, and one lies on another grid."""
    root = tmp_path_factory.mktemp('run')
    broken = root / 'broken'
    for path in sorted((world / 'scaled').rglob('*_T1w.nii.gz')):
        copy = broken / path.relative_to(world / 'scaled')
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    named(broken, '00', 'east', 'desc-harmonized_T1w').write_bytes(b'no image')
    save(named(broken, '01', 'east', 'desc-harmonized_T1w'), np.zeros((9, 9, 9)))
    code = command.main([
        str(root / 'out'), f'perfect={world / "perfect"}', f'<b>broken</b>={broken}', '--original', str(world / 'before'),
        '--truth', str(world / 'truth'), '--participants', str(world / 'participants.tsv'), '--no-cnn', *QUICK,
    ])  # fmt: skip
    assert code == 1
    assert list((root / 'out' / 'measured').glob('*.npz'))  # mended, the two images cost only themselves
    return root / 'out'


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


def test_tables_are_bids_tables(page):
    for name in ('scans', 'summary', 'comparisons'):
        rows = rows_of(page / f'{name}.tsv')
        assert rows
        described = json.loads((page / f'{name}.json').read_text())
        assert list(rows[0]) == list(described)
        assert not any(value in ('', 'nan', 'None') for row in rows for value in row.values())


def test_bad_scans_cost_themselves_only(page):
    rows = rows_of(page / 'scans.tsv')
    measured = [row for row in rows if row['method'] == '<b>broken</b>']
    assert len(measured) == PEOPLE * len(SCANNERS) - 2
    problems = json.loads((page / 'evaluation.json').read_text())['problems']
    assert {(p['scan'], p['method']) for p in problems} == {
        ('sub-00_ses-east_T1w', '<b>broken</b>'),
        ('sub-01_ses-east_T1w', '<b>broken</b>'),
    }
    assert any('grid' in p['what'] and p['fix'] for p in problems)


def test_the_page_stands_alone_and_escapes(page):
    html = (page / 'evaluation.html').read_text()
    assert '<b>broken</b>' not in html
    assert '&lt;b&gt;broken&lt;/b&gt;' in html
    assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
    assert html.count('<svg class="plot"') >= 5
    assert '2 errors' in html


def test_the_page_says_what_measures_would_need(page):
    html = (page / 'evaluation.html').read_text()
    for words in ('--inception', '--lpips', '--returned', '--task'):
        assert words in html


def test_the_page_shows_how_sure_the_effects_are(page):
    html = (page / 'evaluation.html').read_text()
    record = json.loads((page / 'evaluation.json').read_text())
    row = next(r for r in record['comparisons'] if r['dz_low'] is not None)
    assert f'{plots.number(row["dz_low"])} to {plots.number(row["dz_high"])}' in html
    assert '<th scope="col">Not worse</th>' in html
    assert '<td>not inferior</td>' in html


def test_the_record_holds_strict_json(page):
    record = json.loads((page / 'evaluation.json').read_text(), parse_constant=pytest.fail)
    assert record['methods'] == [ORIGINAL, 'perfect', '<b>broken</b>']
    assert record['provenance']['Seed'] == 0


def test_a_second_run_replaces_the_first(page, world):
    code = command.main([str(page), f'p={world / "perfect"}', '--no-cnn', *QUICK])
    assert code == 0
    assert json.loads((page / 'evaluation.json').read_text())['methods'] == ['p']
    html = (page / 'evaluation.html').read_text()
    assert 'needs a reference' in html


@pytest.mark.parametrize(
    ('arguments', 'code', 'said'),
    [
        (['{out}', '{world}/nowhere'], 2, 'no such folder'),
        (['{world}/perfect/out', '{world}/perfect'], 2, 'lies in a data set'),
        (['{full}', '{world}/perfect'], 2, 'something else'),
        (['{out}', 'a={world}/perfect', 'a={world}/scaled'], 2, 'taken'),
        (['{out}', 'original={world}/perfect'], 2, 'taken'),
        (['{out}', '{world}/perfect', '--suffix', 'FLAIR'], 3, 'FLAIR'),
        (['{out}', '{world}/perfect', '--against', 'best'], 2, 'no method'),
        (['{out}', '{world}/perfect', '--returned', 'other={world}/scaled'], 2, 'no data set'),
        (['{out}', '{world}/perfect', '{world}/truth'], 2, 'no desc-harmonized'),
        (['{out}', '{world}/perfect', '--scans', '{world}/none.tsv'], 2, 'cannot be read'),
    ],
)  # fmt: skip
def test_wrong_use_is_explained(world, tmp_path, capsys, arguments, code, said):
    full = tmp_path / 'full'
    full.mkdir()
    (full / 'thesis.doc').write_text('.')
    places = {'out': tmp_path / 'out', 'world': world, 'full': full}
    assert command.main([part.format(**places) for part in arguments]) == code
    assert said in capsys.readouterr().err


def test_nothing_to_measure_ends_with_its_code(tmp_path, capsys):
    path = named(tmp_path / 'bad', '01', 'a', 'desc-harmonized_T1w')
    path.parent.mkdir(parents=True)
    path.write_bytes(b'no image')
    assert command.main([str(tmp_path / 'out'), str(tmp_path / 'bad'), *QUICK]) == 3
    assert 'No scan could be measured' in capsys.readouterr().err


# --- What others bring ---

EMPTY = Trace('', '', '', '', {}, *(np.empty(0),) * 5)


def copied(source: Path, target: Path, keep: Callable[[Path], bool] = lambda path: True) -> Path:
    """Copy the files of a data set that are wanted."""
    for path in filter(keep, sorted(source.rglob('*.nii.gz'))):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return target


def of_one(path: Path) -> bool:
    return path.name.startswith('sub-00_ses-east')


def of_two(path: Path) -> bool:
    return path.name.startswith(('sub-00_ses-east', 'sub-00_ses-west', 'sub-01_ses-east', 'sub-01_ses-west'))


def test_a_background_of_nan_is_background_and_a_brain_of_nan_is_an_error(world, tmp_path):
    copied(world / 'scaled', tmp_path / 'spm', of_two)
    for subject, spoil_brain in (('00', False), ('01', True)):
        path = named(tmp_path / 'spm', subject, 'east', 'desc-harmonized_T1w')
        data = np.asarray(nib.load(path).dataobj).copy()
        data[0 if not spoil_brain else 24] = np.nan
        save(path, data)
    found = evaluate(find_study(sources(world, spm=tmp_path / 'spm')), OPTIONS)
    whole = evaluate(find_study(sources(world, 'scaled')), OPTIONS)
    assert [(p.scan, p.method) for p in found.problems] == [('sub-01_ses-east_T1w', 'spm')]
    assert 'in the brain' in found.problems[0].what
    ours, theirs = (
        next(r for r in one.scans if r['method'] == name and r['scan'] == 'sub-00_ses-east_T1w')
        for one, name in ((found, 'spm'), (whole, 'scaled'))
    )
    assert ours['psnr'] == theirs['psnr']


def test_images_of_a_space_come_with_the_mask_of_their_grid(world, tmp_path):
    for resolution, spacing in (('1', 1.0), ('2', 2.0)):
        for rest in (
            f'space-MNI_res-{resolution}_desc-harmonized_T1w',
            f'space-MNI_res-{resolution}_desc-brain_mask',
        ):
            save(named(tmp_path / 'm', '00', 'a', rest), np.full((40, 40, 40), spacing))
    folders = {'m': tmp_path / 'm'}
    with pytest.raises(UsageError, match='Two images are of one scan') as caught:
        find_study(Sources(folders, space='MNI'))
    assert ':res-N' in caught.value.fix
    (scan,) = find_study(Sources(folders, space='MNI:res-2')).scans
    assert scan.methods['m'].image.name == 'sub-00_ses-a_space-MNI_res-2_desc-harmonized_T1w.nii.gz'
    assert scan.mask.name == 'sub-00_ses-a_space-MNI_res-2_desc-brain_mask.nii.gz'


def test_a_person_scanned_twice_in_a_scanner_counts_with_the_mean(world, tmp_path):
    table = tmp_path / 'scans.tsv'
    magnets = {'east': 'a', 'north': 'a', 'west': 'b'}
    rows = ['participant_id\tsession_id\tscanner']
    rows += [f'sub-{n:02d}\tses-{s}\t{magnets[s]}' for n in range(PEOPLE) for s in SCANNERS]
    table.write_text('\n'.join(rows) + '\n')
    study = find_study(sources(world, 'scaled', scans=table))
    traces = [
        replace(EMPTY, scan=s.name, person=s.person, scanner=s.scanner, row={'volume_gm': float(i)})
        for i, s in enumerate(scan for scan in study.scans if scan.person == '00')
    ]
    volumes = group_measures._table(traces, study, 'volume_gm')
    np.testing.assert_array_equal(volumes, [[0.5, 2.0]])
    found = evaluate(study, OPTIONS)
    carried = {
        r['scan'].split('-')[2][:4]: r['transfer_dice']
        for r in found.scans if r['method'] == 'scaled' and r['person'] == '03'
    }  # fmt: skip
    assert carried['east'] != carried['nort']


def test_agreement_rests_on_people_who_travelled_and_where_they_were():
    rng = np.random.default_rng(0)
    where = {'p': 'abc', 'q': 'ab', 'r': 'ab', 's': 'ab', 't': 'd', 'u': 'd'}
    volumes = {person: rng.uniform(500, 700) for person in where}
    traces = [
        replace(EMPTY, scan=f'{person}{scanner}', person=person, scanner=scanner, coarse=np.array([volumes[person]]),
                row={f'volume_{name}': volumes[person] + rng.normal(0, 5) for name in ('csf', 'gm', 'wm')})
        for person, scanners in where.items() for scanner in scanners
    ]  # fmt: skip
    study = Study(tuple(StudyScan(t.scan, t.person, t.scanner, {}) for t in traces), ('m',))
    found = group_measures.across_scanners(traces, study)
    assert found['icc_agreement_gm'].n == 4
    assert 0.9 < found['icc_agreement_gm'].estimate < 1
    assert found['icc_consistency_gm'].reason == 'rests on 4 of 4 people who travelled and 2 of 4 scanners'
    two = [trace for trace in traces if trace.scanner in 'ab' and trace.person in 'pqrs']
    study = Study(tuple(StudyScan(t.scan, t.person, t.scanner, {}) for t in two), ('m',))
    again = group_measures.across_scanners(two, study)
    assert again['icc_agreement_gm'] == replace(found['icc_agreement_gm'], reason='')


def test_segmentations_are_compared_between_two_scanners_that_are_known():
    grey = np.zeros((4, 4, 4), np.uint8)
    grey[:2] = 1
    half, other = grey.copy(), grey.copy()
    half[0], other[:2, :2] = 0, 0
    same = [('x', grey), ('x', half), ('', grey), ('', half)]
    assert group_measures.label_agreement(same)['gm'] == []
    found = group_measures.label_agreement([*same, ('y', other)])['gm']
    assert found == pytest.approx([2 * 16 / (32 + 16), 2 * 8 / (16 + 16)])


def test_repeats_in_one_scanner_say_nothing_across_scanners(world, tmp_path):
    copied(world / 'scaled', tmp_path / 'spm', of_two)
    for scanners in ({'east': 'x', 'west': 'x'}, {'east': 'x', 'west': 'n/a'}):
        table = tmp_path / 'scans.tsv'
        rows = ['participant_id\tsession_id\tscanner']
        rows += [f'sub-{n}\tses-{s}\t{scanner}' for n in ('00', '01') for s, scanner in scanners.items()]
        table.write_text('\n'.join(rows) + '\n')
        found = evaluate(find_study(sources(world, spm=tmp_path / 'spm', scans=table, site='')), OPTIONS)
        assert 'dice_gm' in found.values['spm']
        assert 'scanner_dice_gm' not in found.values['spm']


def test_one_person_in_one_scanner_is_measured(world, tmp_path, capsys):
    only = copied(world / 'scaled', tmp_path / 'one', of_one)
    name = '\t<i>ours</i>'
    assert (
        command.main([str(tmp_path / 'out'), f'{name}={only}', '--truth', str(world / 'truth'), *QUICK]) == 0
    )
    rows = rows_of(tmp_path / 'out' / 'summary.tsv')
    assert {row['method'] for row in rows} == {'<i>ours</i>'}
    assert any(row['metric'] == 'psnr' and row['low'] == 'n/a' and row['reason'] != 'n/a' for row in rows)
    assert '<i>ours' not in (tmp_path / 'out' / 'evaluation.html').read_text()


def alexnet() -> dict[str, torch.Tensor]:
    """Return random weights of LPIPS."""
    torch.manual_seed(0)
    layers = {
        '0': (64, 3, 11),
        '3': (192, 64, 5),
        '6': (384, 192, 3),
        '8': (256, 384, 3),
        '10': (256, 256, 3),
    }
    alex = {}
    for index, (name, (out, depth, size)) in enumerate(layers.items()):
        alex[f'features.{name}.weight'] = 0.05 * torch.randn(out, depth, size, size)
        alex[f'features.{name}.bias'] = torch.zeros(out)
        alex[f'lin{index}.model.1.weight'] = torch.rand(1, out, 1, 1)
    return alex


def test_networks_of_photographs_come_from_files(world, tmp_path, inception, capsys):
    save_file(inception, tmp_path / 'inception.safetensors')
    save_file(alexnet(), tmp_path / 'alex.safetensors')
    folders = [f'{name}={copied(world / name, tmp_path / name, of_one)}' for name in ('perfect', 'scaled')]
    weights = [
        '--inception',
        str(tmp_path / 'inception.safetensors'),
        '--lpips',
        str(tmp_path / 'alex.safetensors'),
    ]
    out, truth = str(tmp_path / 'out'), ['--truth', str(world / 'truth'), '--no-cnn']
    assert command.main([out, *folders, *weights, *truth, *QUICK]) == 0
    known = [row for row in rows_of(tmp_path / 'out/summary.tsv') if row['estimate'] != 'n/a']
    rows = {(row['method'], row['metric']): float(row['estimate']) for row in known}
    for measure in ('fid', 'kid', 'lpips'):
        assert rows['perfect', measure] < rows['scaled', measure]
    (tmp_path / 'alex.safetensors').write_bytes(b'none')
    assert command.main([out, *folders, *weights, *truth, *QUICK]) == 2
    assert 'alex.safetensors' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('option', 'change', 'said'),
    [
        ('--inception', {'fc.weight': torch.zeros(1000, 2048)}, '1008 classes'),
        ('--inception', {'Mixed_7c.branch1x1.conv.weight': None}, 'Mixed_7c'),
        ('--inception', {'Mixed_7c.branch1x1.conv.weight': torch.zeros(320, 3, 1, 1)}, 'cannot be run'),
        ('--lpips', {'lin3.model.1.weight': None}, 'lin3'),
        ('--lpips', {'lin3.model.1.weight': torch.zeros(1, 7, 1, 1)}, 'cannot be run'),
        ('--lpips', {'features.6.weight': torch.zeros(9)}, 'cannot be run'),
    ],
)
def test_weights_of_another_network_are_refused_before_anything_is_measured(
    world, tmp_path, inception, capsys, monkeypatch, option, change, said
):
    weights = (inception if option == '--inception' else alexnet()) | change
    file = tmp_path / 'weights.safetensors'
    save_file({name: part for name, part in weights.items() if part is not None}, file)
    monkeypatch.setattr(command, '_evaluate', lambda *args: pytest.fail('it was measured'))
    assert command.main([str(tmp_path / 'out'), f'p={world / "perfect"}', option, str(file), *QUICK]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert 'weights.safetensors' in told


def test_networks_of_photographs_cost_themselves_only(world, tmp_path):
    copied(world / 'perfect', tmp_path / 'perfect', of_two)
    weights = tmp_path / 'weights.safetensors'
    save_file({'features.0.weight': torch.zeros(64, 3, 11, 11)}, weights)
    study = find_study(sources(world, spm=tmp_path / 'perfect'))
    found = evaluate(study, replace(OPTIONS, inception=weights, lpips=weights))
    assert [(p.scan, p.method) for p in found.problems] == [('all scans', 'spm')] * 2
    assert all('psnr' in row for row in found.scans if row['method'] == 'spm')
    assert 'transfer_dice' in found.values['spm']
    assert not {'lpips', 'fid'} & set(found.values['spm'])


def test_slices_that_are_too_small_for_lpips_cost_it_only(tmp_path):
    save_file(alexnet(), tmp_path / 'alex.safetensors')
    slices = np.zeros((2, 31, 40))
    traces = [replace(EMPTY, slices=slices, reference_slices=slices)]
    problems: list[Any] = []
    with tolerant(problems, 'all scans', 'm'):
        group_measures.add_lpips(traces, tmp_path / 'alex.safetensors')
    assert '32 x 32' in problems[0].what
    assert problems[0].fix


def test_a_run_that_was_ended_while_it_wrote_can_be_repeated(world, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'scans.tsv').write_text('method\n')
    code = (
        'from pathlib import Path\n'
        'from bidsharm.temporary import temporary_path\n'
        'print(temporary_path(Path("summary.tsv")))'
    )
    ended = subprocess.run(
        [sys.executable, '-c', code], check=True, capture_output=True, text=True
    ).stdout.strip()
    (tmp_path / 'out' / ended).write_text('method\n')
    check_output(tmp_path / 'out')
    assert not (tmp_path / 'out' / ended).exists()


@pytest.mark.parametrize(
    'place', ['measured/sub-01/anat/sub-01_T1w.nii.gz', 'measured/notes.txt', '.tmp-of-someone']
)
def test_what_somebody_else_put_there_is_never_touched(world, tmp_path, place):
    file = tmp_path / 'out' / place
    file.parent.mkdir(parents=True)
    file.write_text('mine')
    with pytest.raises(UsageError, match='something else'):
        check_output(tmp_path / 'out')
    assert file.read_text() == 'mine'


# --- What was measured before ---


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Scans and methods that are measured from now on."""
    from bidsharm.evaluation import person

    measure, made = person.measure, []

    def counted(loaded: Any, method: str, *rest: Any, **more: Any) -> Any:
        made.append((loaded.scan.name, method))
        return measure(loaded, method, *rest, **more)

    monkeypatch.setattr(person, 'measure', counted)
    return made


def test_a_stopped_evaluation_goes_on_and_ends_in_the_same_place(world, tmp_path, calls, monkeypatch):
    from bidsharm.evaluation import person

    study = find_study(sources(world, 'perfect', 'scaled', target='north', truth=False, task='diagnosis'))
    whole = evaluate(study, OPTIONS)
    everything, counted = list(calls), person.measure
    calls.clear()

    def stopping(*args: Any, **more: Any) -> Any:
        if len(calls) == 20:
            raise KeyboardInterrupt
        return counted(*args, **more)

    options = replace(OPTIONS, kept=tmp_path)
    monkeypatch.setattr(person, 'measure', stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(study, options)
    monkeypatch.setattr(person, 'measure', counted)
    found = evaluate(study, options)
    assert calls == everything
    assert found.scans == whole.scans
    assert found.values == whole.values
    calls.clear()
    assert evaluate(study, options).values == whole.values
    assert not calls


def test_one_more_method_costs_only_itself(world, tmp_path, calls):
    options = replace(OPTIONS, kept=tmp_path)
    evaluate(find_study(sources(world, 'perfect')), options)
    calls.clear()
    found = evaluate(find_study(sources(world, 'perfect', 'scaled')), options)
    assert {method for _, method in calls} == {'scaled'}
    calls.clear()
    assert found.values == evaluate(find_study(sources(world, 'perfect', 'scaled')), OPTIONS).values


def test_what_changed_is_measured_again(world, tmp_path, calls):
    options, theirs = replace(OPTIONS, kept=tmp_path / 'kept'), tmp_path / 'theirs'
    for path in (world / 'scaled').rglob('*_T1w.nii.gz'):
        copy = theirs / path.relative_to(world / 'scaled')
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    base = sources(world, spm=theirs, target='north', truth=False)
    before = evaluate(find_study(base), options)
    image = named(theirs, '02', 'north', 'desc-harmonized_T1w')
    save(image, 2 * np.asarray(nib.load(image).dataobj))
    calls.clear()
    found = evaluate(find_study(base), options)
    # The method aims at that scanner, so the image is what the person's others are compared with; and it is part of what says, for
    # all methods, where the brain is.
    assert set(calls) == {
        (f'sub-02_ses-{scanner}_T1w', method) for scanner in SCANNERS for method in (ORIGINAL, 'spm')
    }
    assert found.values['spm'] != before.values['spm']
    assert found.values['spm'] == evaluate(find_study(base), OPTIONS).values['spm']


def test_measures_are_kept_until_all_is_done_or_where_the_user_says(world, tmp_path):
    arguments = [
        str(tmp_path / 'out'), f'perfect={world / "perfect"}', '--original', str(world / 'before'),
        '--participants', str(world / 'participants.tsv'), '--no-cnn', *QUICK,
    ]  # fmt: skip
    assert command.main(arguments) == 0
    assert not (tmp_path / 'out' / 'measured').exists()
    assert command.main([*arguments, '--work-dir', str(tmp_path / 'work')]) == 0
    assert len(list((tmp_path / 'work').glob('*.npz'))) > PEOPLE * len(SCANNERS)
    assert not (tmp_path / 'out' / 'measured').exists()
    assert command.main([*arguments, '--work-dir', str(world / 'perfect' / 'work')]) == 2
    for inside in ('', 'work', 'measured', 'scans.tsv'):
        assert command.main([*arguments, '--work-dir', str(tmp_path / 'out' / inside)]) == 2
    assert command.main(arguments) == 0


# --- Heads that lie anywhere ---


def test_turned_heads_are_aligned_and_segmented(tmp_path):
    from bidsharm.cli import simulate

    held = tmp_path / 'held'
    assert simulate.main([str(held), '--subjects', '2', '--scanners', 'northA', 'southB', '--resolution', '3',
                          '--brain-only', '--seed', '5']) == 0  # fmt: skip
    truth = held / 'derivatives' / 'truth'
    for source in sorted(truth.rglob('*_desc-canonical_T1w.nii.gz')):
        copy = tmp_path / 'perfect' / source.relative_to(truth)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.with_name(copy.name.replace('canonical', 'harmonized')).write_bytes(source.read_bytes())
    study = find_study(Sources({'perfect': tmp_path / 'perfect'}, original=held, truth=truth, site='session'))
    assert study.ages  # of the data set that the truth belongs to
    found = evaluate(study, Options(resamples=100, permutations=10, network=False))
    assert not found.problems
    row = found.values['perfect']
    assert row['psnr'].estimate == np.inf
    assert row['mae'].estimate == 0
    assert row['scanner_dice_wm'].estimate > 0.8
    assert row['reidentification'].estimate == 1
    assert row['transfer_dice'].estimate > found.values[ORIGINAL]['transfer_dice'].estimate
    for scan in found.scans:
        assert 300 < scan['volume_wm'] < 800


# --- Options of the command ---


@pytest.fixture(scope='module')
def asked(world, tmp_path_factory):
    """Return what the command wrote where everything has another name than usual."""
    root = tmp_path_factory.mktemp('asked')
    rows = rows_of(world / 'participants.tsv')
    lines = [f'{row["participant_id"]}\t{row["age"]}\t{row["diagnosis"]}' for row in rows]
    (root / 'people.tsv').write_text('\n'.join(['participant_id\tyears\tarm', *lines]) + '\n')
    assert command.main([
        str(root / 'out'), *(f'{name}={world / name}' for name in METHODS), '--original', str(world / 'before'),
        '--truth', str(world / 'truth'), '--participants', str(root / 'people.tsv'), '--age', 'years', '--group', 'arm',
        '--task', 'arm', '--against', 'scaled', '--target', 'north', '--nprocs', '2', *QUICK,
    ]) == 0  # fmt: skip
    return root / 'out'


def estimates(out: Path, metric: str) -> dict[str, float]:
    rows = [
        row for row in rows_of(out / 'summary.tsv') if row['metric'] == metric and row['estimate'] != 'n/a'
    ]
    return {row['method']: float(row['estimate']) for row in rows}


def test_columns_of_people_have_the_names_that_were_given(asked, world, found):
    assert estimates(asked, 'age_r')['perfect'] == pytest.approx(found.values['perfect']['age_r'].estimate)
    assert 'task_accuracy' in {row['metric'] for row in rows_of(asked / 'summary.tsv')}
    people = [Person(number) for number in range(PEOPLE)]
    shares = [np.mean(person.labels[person.mask] == 1) for person in people]
    wanted = cohens_d(shares, ['old' if number > 2 else 'young' for number in range(PEOPLE)], seed=0)
    assert estimates(asked, 'group_d')['perfect'] == pytest.approx(wanted.estimate, rel=0.02)


def test_methods_are_compared_with_the_one_that_was_named(asked):
    record = json.loads((asked / 'evaluation.json').read_text())
    assert record['against'] == 'scaled'
    rows = [row for row in record['comparisons'] if row['metric'] == 'transfer_dice']
    assert {row['method'] for row in rows} >= {'perfect', 'levelled'}
    assert 'scaled' not in {row['method'] for row in rows}
    (row,) = (row for row in rows if row['method'] == 'perfect')
    carried = estimates(asked, 'transfer_dice')
    assert row['difference'] == pytest.approx(carried['perfect'] - carried['scaled'], abs=0.02)


def test_a_network_guesses_the_scanner_of_scans_before_and_not_of_the_right_image(asked):
    guessed = estimates(asked, 'site_cnn')
    assert set(guessed) == {ORIGINAL, *METHODS}
    assert guessed[ORIGINAL] > 0.8
    assert guessed['perfect'] < guessed[ORIGINAL]
