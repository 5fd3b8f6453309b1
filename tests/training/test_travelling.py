"""People who travel between simulated scanners: the person stays, the scanner stays, and both are the same whenever they are asked for."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsharm.imaging.lowres import SHAPE
from bidsharm.training import travelling
from bidsharm.training.scans import draw_signals
from bidsharm.training.travelling import People, TravellingSource, usual


def egg(path: Path, radius: float) -> Path:
    """Write an egg of white matter in cortex in fluid, with a ventricle and a nucleus, as a label map of 2 mm."""
    shape = (60, 76, 60)
    points = np.indices(shape) - (np.reshape(shape, (3, 1, 1, 1)) - 1) / 2
    away = np.sqrt(sum((p / (radius * r)) ** 2 for p, r in zip(points, (1, 1.25, 1), strict=True)))
    labels = np.select([away < 0.8, away < 0.95, away < 1.0], [2, 3, 24], 0)
    labels[26:34, 30:46, 26:34] = 4
    labels[20:24, 34:42, 26:34] = 11
    nib.Nifti1Image(labels.astype(np.int16), np.diag([2.0, 2, 2, 1])).to_filename(path)
    return path


@pytest.fixture(scope='module')
def maps(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp('maps')
    return [egg(folder / 'small.nii.gz', 18), egg(folder / 'large.nii.gz', 23)]


@pytest.fixture(scope='module')
def people(maps, tmp_path_factory) -> People:
    return People(maps, 3, seed=1, folder=tmp_path_factory.mktemp('people'))


@pytest.fixture(scope='module')
def source(people) -> TravellingSource:
    return TravellingSource(people, 'T1w', scanners=3, seed=5)


def volume(values, voxels):
    found = torch.zeros(SHAPE)
    found[tuple(voxels.T)] = values.float()
    return found


def test_acquisition_parameters_are_those_of_the_scanners_that_were_drawn(source):
    from bidsharm.simulation.protocols import draw_scanner

    drawn, inverted = draw_signals('T1w', 60, seed=3), 0
    rng = np.random.default_rng((3, 7))
    for number in range(60):
        scanner = draw_scanner(rng, 'x', contrasts=('T1w',))
        sequence = scanner.protocols[0].sequence
        expected = {
            'RepetitionTime': sequence.repetition_time, 'EchoTime': sequence.echo_time, 'FlipAngle': sequence.flip_angle,
            'MagneticFieldStrength': scanner.hardware.field_strength,
        }  # fmt: skip
        if sequence.inversion_time:
            expected['InversionTime'] = sequence.inversion_time
        assert drawn.acquisition(number) == pytest.approx(expected, rel=1e-6)
        inverted += 'InversionTime' in expected
    assert 0 < inverted < 60
    assert source.acquisition(1) == source.signals.acquisition(source.chosen[1])


# --- People ---


def test_people_come_in_equal_parts_from_the_maps(people, maps):
    assert [path for path, _ in people.drawn_from] == [maps[0], maps[0], maps[1]]
    assert [person.anatomy for person in people] == ['small', 'small', 'large']
    sizes = [person.fractions.shape[1] for person in people]
    assert max(sizes[:2]) < sizes[2]
    assert sizes[0] != sizes[1]
    assert len({people.key(number) for number in range(3)}) == 3
    assert [people.label(number) for number in range(3)] == ['a001p0001', 'a001p0002', 'a002p0001']


def test_more_people_leave_those_who_are_there_as_they_are(people, maps, tmp_path):
    more = People(maps, 5, seed=1, folder=tmp_path)
    labels = {more.label(number): more.key(number) for number in range(5)}
    for number in range(3):
        assert labels[people.label(number)] == people.key(number)


def test_people_are_drawn_once_and_the_same_in_any_order(people, maps, tmp_path, monkeypatch):
    first = [people[number] for number in range(3)]
    again = People(maps, 3, seed=1, folder=tmp_path)
    for number in (2, 1, 0):
        np.testing.assert_array_equal(again[number].fractions, first[number].fractions)
    monkeypatch.setattr(travelling, 'draw_brains', None)  # nobody is drawn any more
    kept = People(maps, 3, seed=1, folder=tmp_path)
    for number in range(3):
        np.testing.assert_array_equal(kept[number].texture, first[number].texture)
        assert kept.age(number) == first[number].age


def test_somebody_whose_file_was_cut_off_is_drawn_again(people, maps, tmp_path):
    again = People(maps, 3, seed=1, folder=tmp_path)
    assert again.age(1) is None
    first = people[1]
    again.file(1).write_bytes(people.file(1).read_bytes()[:1000])
    assert again.age(1) is None
    np.testing.assert_array_equal(again[1].fractions, first.fractions)
    assert again.age(1) == first.age


def test_another_seed_or_map_is_somebody_else(people, maps, tmp_path):
    other = People(maps, 3, seed=2, folder=tmp_path)
    assert other.key(0) != people.key(0)
    copy = tmp_path / 'copy.nii.gz'
    copy.write_bytes(maps[0].read_bytes())
    twice = People([maps[0], copy], 2, seed=1, folder=tmp_path)
    assert twice.key(0) == people.key(0)  # the content counts, not the name
    assert twice.key(1) == people.key(1)


# --- Visits ---


def test_a_person_stays_the_same_from_scanner_to_scanner(source):
    visits = [source.visit(0, scanner) for scanner in range(3)]
    grids = [volume(visit.scan.tissue[2], visit.scan.voxels) for visit in visits]
    inside = [volume(torch.ones(len(visit.scan.voxels)), visit.scan.voxels) > 0 for visit in visits]
    for grid, mask in zip(grids[1:], inside[1:], strict=True):
        both = mask & inside[0]
        assert both.sum() > 0.8 * inside[0].sum()
        assert torch.equal(grid[both], grids[0][both])
    canonical = [volume(visit.scan.canonical, visit.scan.voxels) for visit in visits]
    both = inside[0] & inside[1]
    assert torch.equal(canonical[0][both], canonical[1][both])
    for visit in visits:
        np.testing.assert_array_equal(visit.centre, visits[0].centre)
    other = source.visit(1, 0).scan
    assert len(other.values) != len(visits[0].scan.values)


def contrast(scan):
    """Return the signal of grey relative to white matter."""
    grey, white = (scan.values[scan.tissue[kind] > 0.9].mean() for kind in (1, 2))
    return float(grey / white)


def test_a_scanner_stays_the_same_from_person_to_person(source):
    table = np.array(
        [[contrast(source.visit(person, scanner).scan) for scanner in range(3)] for person in range(3)]
    )
    between_people = table.std(axis=0).mean()
    between_scanners = table.mean(axis=0).std()
    assert between_scanners > 3 * between_people


def test_a_visit_does_not_depend_on_what_came_before(source, people):
    first = source.visit(1, 2).scan
    source.visit(0, 0)
    again = source.visit(1, 2).scan
    fresh = TravellingSource(people, 'T1w', scanners=3, seed=5).visit(1, 2).scan
    for scan in (again, fresh):
        assert torch.equal(scan.values, first.values)
        assert torch.equal(scan.voxels, first.voxels)
    other = TravellingSource(people, 'T1w', scanners=3, seed=6).visit(1, 2).scan
    assert other.values.shape != first.values.shape or not torch.equal(other.values, first.values)


def test_contrasts_of_a_visit_lie_on_each_other(source, people):
    t2w = TravellingSource(people, 'T2w', scanners=3, seed=5)
    one, other = source.visit(0, 1), t2w.visit(0, 1)
    np.testing.assert_array_equal(one.centre, other.centre)
    grids = [volume(visit.scan.tissue[2], visit.scan.voxels) for visit in (one, other)]
    both = (grids[0] > 0) & (grids[1] > 0)
    assert torch.equal(grids[0][both], grids[1][both])
    assert contrast(one.scan) < 1 < contrast(other.scan)


def test_what_lies_over_a_scan_is_as_smooth_and_small_as_after_a_bias_correction(source):
    for person in range(2):
        gain = source.visit(person, 1).scan.log_gain
        assert float(gain.std()) < 0.1


def test_usual_scanners_are_fine_have_signal_and_differ():
    signals = draw_signals('T1w', 120, seed=0)
    chosen = usual(signals, 4)
    assert len(set(chosen)) == 4
    middle = signals.signal.shape[2] // 2
    ratios = signals.signal[chosen, 2, middle].abs()
    assert (ratios.diff() > 0).all()
    assert (signals.snr[chosen] > 12).all()
    assert signals.voxel[chosen].amax() <= signals.voxel.amax(dim=1).median()
    assert len(usual(signals, 1)) == 1
