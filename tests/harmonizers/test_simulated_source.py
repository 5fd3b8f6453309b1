"""Simulated travelling heads as what a method is trained on."""

from __future__ import annotations

import numpy as np
import pytest

from bidsharm.errors import UsageError
from bidsharm.harmonizers import training_data
from bidsharm.harmonizers.simulated_source import check_size, simulated
from bidsharm.harmonizers.training_cache import prepare, sketch
from bidsharm.harmonizers.training_data import offers_of
from bidsharm.harmonizers.unet import UNet3D


def made(block_map, folder, people=3, scanners=2, contrasts=('T1w',), seed=4):
    return simulated(
        [block_map], people=people, scanners=scanners, contrasts=contrasts, seed=seed, folder=folder
    )


def test_they_offer_what_methods_need_before_anything_is_drawn(block_map, tmp_path):
    data = sketch(made(block_map, tmp_path, contrasts=('T1w', 'T2w', 'T1w')))
    assert len(data.volumes) == 3 * 2 * 2
    assert data.sites == ('simulated1', 'simulated2')
    needs = {'cohort', 'site', 'two_sites', 'paired', 'travellers', 'multi_contrast', 'tissue'}
    assert needs <= offers_of(data, 'simulated2')
    assert not list(tmp_path.iterdir())


def test_volumes_of_a_person_lie_on_each_other_without_registration(block_map, tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, 'align', None)
    settings = UNet3D.preset('tiny', voxel_mm=4.0)
    prepared = prepare(made(block_map, tmp_path), settings, tmp_path)
    assert not prepared.problems
    pairs = prepared.data.pairs('simulated1')
    assert len(pairs) == 3
    for source, wanted in pairs:
        both = source.mask & wanted.mask
        assert both.sum() > 0.8 * max(source.mask.sum(), wanted.mask.sum())
        assert np.mean(source.tissue[both] == wanted.tissue[both]) > 0.95
        # The head is in the middle of the field of view.
        middle = np.mean(np.argwhere(wanted.mask), axis=0) - (np.array(wanted.mask.shape) - 1) / 2
        assert np.abs(middle).max() < 1.5
        assert 20 <= source.covariates['age'] == wanted.covariates['age'] <= 80
    people = {source.person: source.tissue for source, _ in pairs}
    assert not np.array_equal(*list(people.values())[:2])


def test_what_is_kept_is_not_made_again_and_equals_what_would_be(block_map, tmp_path, monkeypatch):
    from bidsharm.harmonizers.simulated_source import SimulatedSource

    settings = UNet3D.preset('tiny', voxel_mm=4.0)
    first = prepare(made(block_map, tmp_path / 'a'), settings, tmp_path / 'a').data
    # More people change nothing for those who are there.
    more = prepare(made(block_map, tmp_path / 'b', people=4), settings, tmp_path / 'b').data
    for volume, other in zip(first.volumes, more.volumes, strict=False):
        assert volume.name == other.name
        assert volume.person.startswith('a001p000')
        np.testing.assert_array_equal(volume.values, other.values)
    monkeypatch.setattr(SimulatedSource, 'read', None)
    again = prepare(made(block_map, tmp_path / 'a'), settings, tmp_path / 'a').data
    np.testing.assert_array_equal(again.volumes[-1].values, first.volumes[-1].values)
    # What is known of the scanners comes along.
    known = {volume.site: volume.acquisition for volume in first.volumes}
    assert known['simulated1'] != known['simulated2']
    assert all({'EchoTime', 'MagneticFieldStrength'} <= parameters.keys() for parameters in known.values())
    assert all(volume.acquisition == known[volume.site] for volume in again.volumes)


def test_other_requests_have_other_keys(block_map, tmp_path):
    requests = [{}, {'seed': 5}, {'scanners': 3}, {'contrasts': ('T2w',)}]
    keys = [made(block_map, tmp_path, **request)[0].key for request in requests]
    assert len(set(keys)) == len(requests)
    assert made(block_map, tmp_path)[0].key == keys[0]
    assert len({source.key for source in made(block_map, tmp_path)}) == 6


def test_finer_voxels_than_are_simulated_are_refused():
    with pytest.raises(UsageError, match='voxels of 2 mm, and unet3d sees voxels of 1 mm') as caught:
        check_size(UNet3D.preset('paper', voxel_mm=1.0), 'unet3d')
    assert 'voxel_mm=2' in caught.value.fix
    check_size(UNet3D.preset('paper', voxel_mm=2.0), 'unet3d')


def test_another_visit_is_the_same_anatomy_with_other_noise_whenever_it_is_made(block_map, tmp_path):
    settings = UNet3D.preset('tiny', voxel_mm=4.0)
    volumes = [prepare(made(block_map, tmp_path), settings, tmp_path).data.volumes[0] for _ in range(2)]
    first, again = volumes[0], volumes[0].take(1)
    assert first.take(0) is first
    assert (again.name, again.person, again.site) == (first.name, first.person, first.site)
    both = first.mask & again.mask
    assert both.sum() > 0.8 * max(first.mask.sum(), again.mask.sum())
    assert np.mean(first.tissue[both] == again.tissue[both]) > 0.98
    assert 0.9 < np.corrcoef(first.values[both], again.values[both])[0, 1] < 1
    other = volumes[0].take(2)
    assert not np.array_equal(other.values, again.values)
    # In another process, in another order.
    np.testing.assert_array_equal(volumes[1].take(2).values, other.values)
    np.testing.assert_array_equal(volumes[1].take(1).values, again.values)


def test_visits_that_were_not_wanted_for_long_are_made_anew(block_map, tmp_path, monkeypatch):
    from bidsharm.harmonizers.rescans import Rescans

    settings = UNet3D.preset('tiny', voxel_mm=4.0)
    sources = made(block_map, tmp_path)
    rescans = Rescans(settings, memory=1)  # one volume
    first, second = (rescans.of(source) for source in sources[:2])
    kept = first(1)
    assert first(1) is kept
    second(1)
    assert first(1) is not kept
    np.testing.assert_array_equal(first(1).values, kept.values)
